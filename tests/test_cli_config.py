"""`mlxchat config`: settings shown, changed, edited."""

import pytest
from click.testing import CliRunner

from mlxchat.cli.config import config
from mlxchat.errors import MlxchatError
from mlxchat.settings import load_settings, settings_path


def run(*arguments):
    result = CliRunner().invoke(config, arguments, standalone_mode=False)
    if isinstance(result.exception, MlxchatError):
        raise result.exception
    assert result.exception is None
    return result.stdout


def test_path():
    """`path` prints where the file lies, also before there is one."""
    assert run("path") == f"{settings_path()}\n"


def test_set_and_get():
    """What was set is read by the chat and printed again; without a value it is taken out."""
    for name, value in (
        ("model", "a/b"),
        ("history", "off"),
        ("sampling.top_k", "40"),
        ("sampling.temperature", "0.5"),
        ("display.markdown", "false"),
        ("display.theme", "dark cb"),
    ):
        run("set", name, value)
    settings = load_settings()
    assert (settings.model, settings.history) == ("a/b", False)
    assert settings.sampling == {"top_k": 40, "temperature": 0.5}
    assert (settings.display.markdown, settings.display.theme) == (False, "dark cb")
    assert run("get", "model") == "a/b\n"
    assert run("get", "sampling.top_k") == "40\n"
    assert sorted(run("get").splitlines()) == [
        "display.markdown = false",
        'display.theme = "dark cb"',
        "history = false",
        'model = "a/b"',
        "sampling.temperature = 0.5",
        "sampling.top_k = 40",
    ]
    run("set", "model")
    assert load_settings().model is None
    assert run("get", "model") == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get", "modle"), "modle is not a setting; known are model, system, history, "),
        (
            ("set", "sampling.top_k", "x"),
            "sampling.top_k = 'x' is not allowed; give a whole number",
        ),
        (("set", "sampling.top_p", "-1"), "sampling.top_p = -1.0 is not allowed; give a number in"),
        (("set", "history", "maybe"), "history = 'maybe' is not allowed; give true or false"),
        (("set", "display.theme", "pink"), "there is no theme 'pink'; choose terminal"),
    ],
)
def test_refusals(arguments, message):
    """A wrong name or value is one line and changes nothing."""
    with pytest.raises(MlxchatError) as caught:
        run(*arguments)
    assert message in str(caught.value)
    assert not settings_path().exists()


def test_edit(monkeypatch, tmp_path):
    """`edit` opens the file in the person's editor and says what is wrong with it afterwards."""
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "modle = 1" >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    with pytest.raises(MlxchatError, match="modle is not a setting"):
        run("edit")
    assert settings_path().stat().st_mode & 0o777 == 0o600
