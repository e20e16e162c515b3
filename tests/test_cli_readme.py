"""The README says what the program does: its tables are checked against the registries."""

import re
from pathlib import Path

import click
import pytest

from mlxchat.cli.main import cli
from mlxchat.cli.slash import COMMANDS
from mlxchat.cli.slash.chat import KEYS

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def table(header):
    """Returns the rows of the first table below a heading whose rows start with code."""
    section = README.split(f"\n{header}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", section, re.MULTILINE)
    return {name.replace("\\|", "|"): text for name, text in rows}


def test_commands():
    """Every command is in the table with its summary."""
    rows = {}
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=name)
        arguments = [
            p.make_metavar(context) for p in command.params if p.param_type_name != "option"
        ]
        rows["`" + " ".join(["mlxchat", name, *arguments]) + "`"] = command.get_short_help_str(200)
    assert table("## Commands") == rows


def test_history_commands():
    """Every subcommand of `history` is in its table with its summary."""
    rows = {}
    for name, command in cli.commands["history"].commands.items():
        arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["mlxchat history", name, *arguments])
        rows[f"`{usage}`"] = command.get_short_help_str(200)
    assert table("## History") == rows


def test_config_commands():
    """Every subcommand of `config` is in its table with its summary."""
    rows = {}
    for name, command in cli.commands["config"].commands.items():
        context = click.Context(command)
        arguments = [p.make_metavar(context) for p in command.params]
        usage = " ".join(["mlxchat config", name, *arguments])
        rows[f"`{usage}`"] = command.get_short_help_str(200)
    assert table("### Settings") == rows


def options_of(name):
    """Returns the options of a command as its table shows them."""
    rows = {}
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            metavar = "" if option.is_flag else f" {option.metavar}"
            names = [f"`{text}`" for text in (*option.opts, *option.secondary_opts)]
            rows[", ".join(names)[:-1] + f"{metavar}`"] = option.help
    return rows


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("bench", "## Measure it: `mlxchat bench`"),
        ("timings", "## Where the time went: `mlxchat timings`"),
    ],
)
def test_options_of_reports(name, header):
    """Every option of `bench` and `timings` is in its table with its help."""
    assert table(header) == options_of(name)


@pytest.mark.parametrize("name", ["chat", "generate"])
def test_options(name):
    """Every option of `chat` and `generate` is in the tables with its help."""
    rows = options_of(name)
    shared = table("### Options of `chat` and `generate`")
    own = table(f"### Options of `{name}` alone")
    assert shared | own == rows


def test_cache_commands():
    """Every command of `mlxchat cache` is in the table with its summary."""
    commands = cli.commands["cache"].commands
    rows = {f"`mlxchat cache {n}`": c.get_short_help_str(200) for n, c in commands.items()}
    assert table("## Stored prompts") == rows


def test_inspect_commands():
    """Every command of `inspect` is in its table with its summary, in the order of --help."""
    rows = {}
    group = cli.commands["inspect"]
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        context = click.Context(command)
        arguments = [
            p.make_metavar(context) for p in command.params if p.param_type_name == "argument"
        ]
        usage = " ".join(["mlxchat inspect", name, *arguments])
        rows[f"`{usage}`"] = command.get_short_help_str(200)
    assert list(table("## Look inside").items()) == list(rows.items())


def test_keys():
    """The keys that /help lists are those of the README, in its words."""
    section = README.split("\n## In the chat\n")[1].split("\n| key |")[1].split("\n\n")[0]
    assert re.findall(r"^\| ([A-Z].*?) \| (.*?) \|$", section, re.MULTILINE) == list(KEYS)


def test_slash_commands():
    """Every slash command is in the table with its usage and summary, in the order of /help."""
    rows = table("## In the chat")
    assert list(rows.items()) == [(f"`{c.usage}`", c.summary) for c in COMMANDS.values()]


def test_scripts():
    """Every script that is named exists and can be run."""
    for name in table("## Development"):
        path = REPOSITORY / name.strip("`")
        assert path.is_file()
        assert path.stat().st_mode & 0o111
    named = {name.strip("`") for name in table("## Development")}
    folder = REPOSITORY / "scripts"
    assert {f"scripts/{p.name}" for p in folder.iterdir() if _is_script(p)} <= named


def _is_script(path):
    return path.is_file() and path.suffix == "" and path.stat().st_mode & 0o111 != 0


def test_module_map():
    """Every folder is in the README's map, every module in its folder's list in mlxchat/."""
    section = README.split("\n## Module map\n")[1].split("\n## ")[0]
    package = REPOSITORY / "mlxchat"
    lists = (package / "README.md").read_text().split("\n## ")
    for path in package.glob("[a-z]*.py"):
        assert f"{path.name}`" in section
        assert f"`{path.name}`" in lists[0]
    for folder in sorted(path.parent for path in package.glob("*/__init__.py")):
        assert f"`mlxchat/{folder.name}/`" in section
        (listed,) = (text for text in lists if text.startswith(f"{folder.name}/\n"))
        modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        assert [name for name in sorted(modules) if f"`{name}`" not in listed] == []
        named = set(re.findall(r"`(\w+\.py)`", listed))
        assert [name for name in sorted(named) if not list(folder.rglob(name))] == []


def test_links():
    """Every link inside the README leads to a heading of it, or to a file of the repository."""
    text = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    for link in links:
        assert link.startswith(("#", "https://")) or (REPOSITORY / link).is_file()
