"""System prompts by name and sampling per model: who chooses what, and what is refused."""

import json

import pytest
from click.testing import CliRunner
from fakes import FakeSession

from mlxchat.chat.session import ChatOptions
from mlxchat.cli.choices import choose_sampling, choose_system
from mlxchat.cli.completion import ChatCompleter
from mlxchat.cli.main import cli
from mlxchat.cli.slash import Context, interpret
from mlxchat.engine.options import SamplingSettings
from mlxchat.errors import SettingsError
from mlxchat.settings import Settings, load_settings, settings_path

FILE = """\
system = "@brief"

[systems]
brief = "Be brief."
reviewer = "Review."

[sampling]
temperature = 0.5
top_p = 0.9

[models.builtin]
temperature = 0.25
system = "@reviewer"

[models."some/Model-2.5"]
top_k = 7
"""


def write(text=FILE):
    settings_path().parent.mkdir(parents=True, exist_ok=True)
    settings_path().write_text(text)


def run(*arguments, text=""):
    return CliRunner().invoke(cli, arguments, input=text)


def test_what_a_model_gets():
    """Its own table goes before the general ones, the command line before both."""
    write()
    settings = load_settings()
    sampling, origins = choose_sampling(settings, {"top_p": 0.1}, None)
    assert sampling == {"temperature": 0.25, "top_p": 0.1}
    assert origins == {"temperature": "config.toml, for this model", "top_p": "command line"}
    sampling, origins = choose_sampling(settings, {}, "some/Model-2.5")
    assert sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 7}
    assert origins["temperature"] == "config.toml"
    assert choose_system(settings, None) == "Review."
    assert choose_system(settings, "some/Model-2.5") == "Be brief."
    assert choose_system(Settings(), None) is None


def test_in_a_chat():
    """-s @name, /system @name, and /params with who chose."""
    write()
    lines = "/system\n/params\n/system @brief\n/system @none\n/system @no body\n"
    result = run("chat", text=lines)
    said = result.stderr.split("\n")
    assert said[0] == "System prompt: Review."
    assert any(
        line.split() == ["temp", "0.25", *["config.toml,", "for", "this", "model"]] for line in said
    )
    assert "System prompt: Be brief." in said
    assert "there is no system prompt @none; known are @brief, @reviewer;" in result.stderr
    assert "System prompt: @no body" in said
    assert run("chat", "-s", "@brief", text="/system\n").stderr == "System prompt: Be brief.\n"
    assert run("chat", "-s", "", text="/system\n").stderr == "No system prompt.\n"
    refused = run("chat", "-s", "@nobody", text="/system\n")
    assert refused.exit_code == 1
    assert "`mlxchat config set systems.nobody TEXT` makes it" in refused.stderr


def test_config_commands():
    """`config set` and `get` know systems and models, whatever dots are in a name."""
    write("# mine\n")
    for name, value in (
        ("systems.poet", "Write verse."),
        ("models.some/Model-2.5.temperature", "0.4"),
        ("models.some/Model-2.5.system", "@poet"),
    ):
        assert run("config", "set", name, value).exit_code == 0
        assert run("config", "get", name).stdout.strip() == value
    assert run("config", "get", 'models."some/Model-2.5".temperature').stdout == "0.4\n"
    assert load_settings().models == {"some/Model-2.5": {"temperature": 0.4, "system": "@poet"}}
    assert '[models."some/Model-2.5"]' in settings_path().read_text()
    listed = run("config", "get").stdout
    assert f"models.some/Model-2.5.system = {json.dumps('@poet')}" in listed
    for name in ("systems.poet", "models.some/Model-2.5.temperature"):
        assert run("config", "set", name).exit_code == 0
        assert run("config", "get", name).exit_code == 1
    assert settings_path().read_text().startswith("# mine\n")
    for name in ("systems.", "systems.a b", "models.x", "models.x.modle", "system.x"):
        result = run("config", "set", name, "1")
        assert result.exit_code == 2
        assert f"{name} is not a setting" in result.stderr


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[systems]\nx = 1", "systems.x = 1 is not allowed; give a string"),
        ("[systems]\n'a b' = 'x'", "systems.a b is not allowed; names have letters"),
        ("systems = 1", "give a [systems] table"),
        ("[models]\nx = 1", 'models."x" = 1 is not allowed; give a [models."x"] table'),
        (
            "[models.x]\ntemp = 1",
            'models."x".temp is not a setting; known are system, adapter, temperature',
        ),
        ("[models.x]\ntop_p = 3", 'models."x".top_p = 3 is not allowed; give a number in (0, 1]'),
        ("[models.x]\nsystem = 3", 'models."x".system = 3 is not allowed; give a string'),
    ],
)
def test_a_broken_file(text, part):
    """What is wrong is named with its key."""
    write(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert part in str(caught.value)


def test_another_model():
    """/model takes its sampling and its system prompt, but nothing that the person chose."""
    write()
    settings = load_settings()
    sampling = SamplingSettings(temperature=0.25, top_p=0.9, top_k=3)
    session = FakeSession(None, ChatOptions(system="Review.", sampling=sampling))
    origins = {
        "temperature": "config.toml, for this model",
        "top_p": "config.toml",
        "top_k": "/set",
    }
    said = []
    context = Context(session, said.append, origins=origins, settings=settings)
    try:
        interpret(context, "/model some/Model-2.5")
        assert session.options.sampling == SamplingSettings(temperature=0.5, top_p=0.9, top_k=3)
        assert origins["temperature"] == "config.toml"
        assert session.system == "Be brief."
        session.set_system("My own.")
        interpret(context, "/model builtin")
        assert session.options.sampling.temperature == 0.25
        assert session.system == "My own."
    finally:
        session.close()
    assert any("Sampling for this model: temperature" in text for text in said)


def test_completion():
    """Tab knows the names of system prompts."""
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    write()
    found = ChatCompleter(lambda: None).get_completions(Document("/system @r"), CompleteEvent())
    assert [completion.text for completion in found] == ["@reviewer"]
