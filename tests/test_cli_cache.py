"""`mlxchat cache`: what it lists, makes and removes, and what it does without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stored import make_ids, make_store, write

from mlxchat import paths
from mlxchat.cli.main import cli
from mlxchat.cli.render import format_age
from mlxchat.engine.prompt_store import PromptStore, make_label
from mlxchat.settings import settings_path

NOTHING = "nothing is stored yet; a chat or `mlxchat cache warm` stores prompts\n"
SYSTEM = " ".join(["Be kind and brief, and say where you know it from."] * 6)


def run(*arguments):
    return CliRunner().invoke(cli, ["cache", *arguments])


def ok(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture
def store():
    """Two stored prefixes where the commands look for them."""
    store = make_store(paths.cache_dir() / "prompts")
    write(store, make_ids(1, 40), size=5000)
    write(store, make_ids(2, 70), what="conversation", size=300)
    return store


def test_list(store):
    """One line per entry with model, kind, tokens, size, age and the beginning of the prompt."""
    header, *lines = ok("list").splitlines()
    assert header.split() == ["model", "what", "tokens", "size", "used", "begins"]
    assert len(lines) == 2
    by_kind = {line.split()[1]: line for line in lines}
    assert by_kind["system"].startswith("tiny")
    for part in (" 40 ", "KiB", "s ago", "Be kind."):
        assert part in by_kind["system"]
    assert " 70 " in by_kind["conversation"]


def test_no_command_lists(store):
    """`mlxchat cache` alone lists, as `mlxchat history` does."""
    assert ok() == ok("list")


def test_list_as_json(store):
    """The same as one object."""
    entries = json.loads(ok("list", "--json"))["entries"]
    assert {e["tokens"] for e in entries} == {40, 70}
    for entry in entries:
        assert entry["model"] == "tiny"
        assert entry["label"] == "Be kind."
        assert 0 <= entry["age_s"] < 60
        assert entry["bytes"] == (store.folder / entry["name"]).stat().st_size


def test_an_unreadable_entry_is_listed_and_pruned(store):
    """What cannot be read says so; `prune` removes it and nothing else."""
    entry = store.entries()[0]
    (store.folder / entry.name).write_bytes(b"junk")
    assert "unreadable" in ok("list")
    assert json.loads(ok("prune", "--json")) == {"removed": 1, "bytes": 4}
    assert len(store.entries()) == 1
    assert ok("prune") == "removed 0 prompt caches, 0 B\n"


def test_info(store):
    """Where they lie, how many there are, and what they may take."""
    facts = json.loads(ok("info", "--json"))
    assert facts["folder"] == str(store.folder)
    assert facts["entries"] == 2
    assert facts["used_bytes"] == sum(e.num_bytes for e in store.entries())
    assert facts["min_free_bytes"] == 10 << 30
    assert facts["allowed_bytes"] <= 10 << 30
    text = ok("info")
    assert str(store.folder) in text
    assert "2 prompts" in text
    assert "10.0 GiB of it always stay free" in text


def configure(*arguments):
    return CliRunner().invoke(cli, ["config", "set", *arguments])


def test_the_budget_is_a_setting(store):
    """`cache.max_gib` decides what may be taken; `info` and `doctor` show it."""
    assert configure("cache.max_gib", "0.25").exit_code == 0
    facts = json.loads(ok("info", "--json"))
    assert (facts["max_gib"], facts["allowed_bytes"]) == (0.25, 1 << 28)
    assert "256.0 MiB (cache.max_gib = 0.25)" in ok("info")
    doctor = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    assert doctor["cache"].endswith("of prompts, 256.0 MiB allowed)")
    assert ok("prune") == "removed 0 prompt caches, 0 B\n"
    assert configure("cache.max_gib", "0").exit_code == 0
    assert ok("prune").startswith("removed 2 prompt caches, ")
    assert store.entries() == []


def test_a_budget_that_makes_no_sense_is_refused(store):
    """The error says what is allowed, and nothing is changed."""
    result = configure("cache.max_gib", "-3")
    assert result.exit_code == 1
    assert "cache.max_gib = -3.0 is not allowed; give a number >= 0" in result.stderr
    assert "cache.max_gib in the settings changes it" in ok("info")


def test_clear(store):
    """Everything goes, and a second time there is nothing."""
    assert ok("clear").startswith("removed 2 prompt caches, ")
    assert store.entries() == []
    assert json.loads(ok("clear", "--json")) == {"removed": 0, "bytes": 0}
    assert ok("list") == NOTHING


def test_clear_that_fails(store, monkeypatch):
    """Files that cannot be removed are an error in one line."""
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    result = run("clear")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 2 files in ")


def test_without_a_folder(mlxchat_home):
    """Before anything was stored the commands say so, and make nothing."""
    assert ok("list") == NOTHING
    assert json.loads(ok("list", "--json")) == {"entries": []}
    assert "0 prompts" in ok("info")
    assert ok("prune").startswith("removed 0")
    assert not mlxchat_home.exists()


def test_warm(monkeypatch):
    """`warm` stores a system prompt once, and the next answer uses it."""
    answer = json.loads(ok("warm", "-s", SYSTEM, "-m", "builtin", "--json"))
    assert answer["model"] == "builtin"
    assert answer["num_read"] == answer["num_tokens"] > 32
    again = ok("warm", "-s", SYSTEM, "-m", "builtin")
    assert again.startswith(f"{answer['num_tokens']} tokens of builtin are stored (")
    done = CliRunner().invoke(
        cli, ["generate", "Hello", "-s", SYSTEM, "--json", "--temp", "0", "--max-tokens", "1"]
    )
    result = json.loads(done.stdout)
    assert result["cache"]["source"] == "disk"
    assert result["usage"]["cached_tokens"] == answer["num_tokens"]


def test_warm_by_name_and_in_few_bits():
    """`@name` is a system prompt of the settings; keys and values of other bits lie apart."""
    done = CliRunner().invoke(cli, ["config", "set", "systems.kind", SYSTEM])
    assert done.exit_code == 0, done.stderr
    plain = json.loads(ok("warm", "-s", "@kind", "--json"))
    assert json.loads(ok("warm", "-s", SYSTEM, "--json")) == {**plain, "num_read": 0}
    few = json.loads(ok("warm", "-s", "@kind", "--kv-bits", "8", "--json"))
    assert few == plain
    assert few["num_read"] == few["num_tokens"]
    sizes = sorted(e["bytes"] for e in json.loads(ok("list", "--json"))["entries"])
    assert len(sizes) == 2
    assert sizes[0] < 0.5 * sizes[1]
    options = ["-s", "@kind", "--kv-bits", "8", "--json", "--temp", "0", "--max-tokens", "1"]
    done = CliRunner().invoke(cli, ["generate", "Hello", *options])
    assert json.loads(done.stdout)["usage"]["cached_tokens"] == few["num_tokens"]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["warm"], 2, "--system"),
        (["warm", "-s", "@nobody"], 1, "there is no system prompt @nobody"),
        (["warm", "-s", SYSTEM, "--kv-bits", "3"], 2, "'8', '4'"),
        (["warm", "-s", "short"], 2, "from 32 on it is stored"),
        (["warm", "-s", SYSTEM * 300], 1, "shorten it"),
        (["warm", "-s", SYSTEM, "-m", "./missing"], 1, "missing"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_errors(arguments, code, part):
    """What cannot be done is one line that says what to try."""
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert part in result.stderr
    assert "; " in result.stderr


def test_warm_where_nothing_can_be_stored(mlxchat_home):
    """When the folder cannot be made, `warm` says why."""
    mlxchat_home.mkdir(parents=True)
    (mlxchat_home / "cache").touch()
    result = run("warm", "-s", SYSTEM)
    assert result.exit_code == 1
    assert "cannot be stored" in result.stderr


@pytest.mark.parametrize("command", ["list", "info", "prune", "clear"])
def test_without_mlx(store, command):
    """Looking and removing need no MLX, and no other heavy library."""
    code = (
        "import sys\nfrom mlxchat.cli.main import cli\n"
        f"try:\n    cli(['cache', {command!r}])\n"
        "finally:\n    heavy = {'mlx', 'tokenizers', 'jinja2', 'rich', 'prompt_toolkit'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h"), (9e5, "10 d")]
)
def test_format_age(seconds, text):
    """Ages are in whole units."""
    assert format_age(seconds) == f"{text} ago"


@pytest.mark.parametrize("arguments", [["strip", "1"], ["strip", "--all"], ["delete", "1", "-y"]])
def test_history_forgets_kv_too(arguments):
    """What is stripped or deleted from the history leaves the folder of prompts as well."""
    text = " ".join(["Tell me about the sea."] * 8)
    done = CliRunner().invoke(cli, ["chat", "--temp", "0", "--max-tokens", "4"], input=text)
    assert done.exit_code == 0, done.stderr
    entries = json.loads(ok("list", "--json"))["entries"]
    assert [e["what"] for e in entries] == ["conversation"]
    done = CliRunner().invoke(cli, ["history", *arguments])
    assert done.exit_code == 0, done.stderr
    assert ok("list") == NOTHING


def begin_chat(system, *options):
    """Has a conversation of one turn with a system prompt."""
    arguments = ["chat", "--temp", "0", "--max-tokens", "4", "-s", system, *options]
    done = CliRunner().invoke(cli, arguments, input="Who are you?")
    assert done.exit_code == 0, done.stderr


def delete_chat(number):
    """Deletes a conversation; returns how the stored system prompts begin after that."""
    done = CliRunner().invoke(cli, ["history", "delete", number, "-y"])
    assert done.exit_code == 0, done.stderr
    entries = json.loads(ok("list", "--json"))["entries"]
    assert {e["what"] for e in entries} <= {"system", "conversation"}
    return sorted(e["label"] for e in entries if e["what"] == "system")


def test_deletion_takes_the_system_prompt_along():
    """It goes with the last conversation that has it, and its label with it."""
    other = f"Never mind. {SYSTEM}"
    for text in (SYSTEM, SYSTEM, other):
        begin_chat(text)
    labels = sorted([make_label(SYSTEM), make_label(other)])
    assert delete_chat("1") == labels
    assert delete_chat("2") == [make_label(other)]
    assert delete_chat("3") == []


@pytest.mark.parametrize("name", ["system", "systems.kind", "models.builtin.system"])
def test_deletion_leaves_system_prompts_of_the_settings(name):
    """They serve the next conversation too."""
    done = CliRunner().invoke(cli, ["config", "set", name, SYSTEM])
    assert done.exit_code == 0, done.stderr
    begin_chat(SYSTEM)
    assert delete_chat("1") == [make_label(SYSTEM)]


def test_deletion_with_broken_settings(mlxchat_home):
    """It must not fail half done: what no other conversation has goes."""
    begin_chat(SYSTEM)
    settings_path().parent.mkdir(parents=True, exist_ok=True)
    settings_path().write_text("no toml")
    done = CliRunner().invoke(cli, ["history", "delete", "1", "-y"])
    assert done.exit_code == 0, done.stderr
    assert PromptStore().entries() == []
