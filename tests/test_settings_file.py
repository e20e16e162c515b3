"""One setting is changed; the rest of `config.toml` stays as the person wrote it."""

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.cli.settings_file import change_setting, save_setting
from mlxchat.errors import SettingsError
from mlxchat.settings import Display, load_settings, settings_path

PATH = Path("config.toml")
FILE = """\
# mine
model = "a/b"  # the small one
system = \"\"\"
Be brief.
theme = "no setting"
\"\"\"

[sampling]
temperature = 0.5 # warm

[display] # look
theme = "light"
"""


@pytest.mark.parametrize(
    ("name", "value", "old", "new"),
    [
        ("display.theme", "dark cb", 'theme = "light"', 'theme = "dark cb"'),
        ("display.markdown", False, "[display] # look\n", "[display] # look\nmarkdown = false\n"),
        ("sampling.top_p", 0.9, "[sampling]\n", "[sampling]\ntop_p = 0.9\n"),
        ("sampling.temperature", 0, "temperature = 0.5 # warm", "temperature = 0"),
        ("model", None, 'model = "a/b"  # the small one\n', ""),
        ("display.theme", None, 'theme = "light"\n', ""),
        ("system", 'Say "no"\n', FILE[FILE.index("system") : FILE.index("\n\n")],
         'system = "Say \\"no\\"\\n"'),
    ],
)  # fmt: skip
def test_change(name, value, old, new):
    """A setting is changed in its place, put in under its table, or taken out."""
    assert change_setting(FILE, name, value, PATH) == FILE.replace(old, new)


def test_change_an_empty_file():
    """Tables and names that are missing are added at the right end of the file."""
    text = change_setting("", "display.theme", "dark", PATH)
    assert text == '[display]\ntheme = "dark"\n'
    text = change_setting(text, "model", "x", PATH)
    assert text == 'model = "x"\n[display]\ntheme = "dark"\n'
    assert change_setting('model = "x"', "sampling.top_k", 3, PATH).endswith(
        "[sampling]\ntop_k = 3\n"
    )


@given(st.text(st.characters(codec="utf-8")))
def test_any_text(value):
    """Any text can be a value and is read back as it was."""
    text = change_setting(FILE, "model", value, PATH)
    assert tomllib.loads(text) == {**tomllib.loads(FILE), "model": value}


@pytest.mark.parametrize(
    ("text", "name", "value", "message"),
    [
        ("x = ", "model", "a", "is not valid TOML"),
        ("", "sampling.top_p", 7, "sampling.top_p = 7 is not allowed"),
        ("", "modle", "a", "modle is not a setting"),
        ("", "display.theme", 3, "give a string"),
        ("display = { theme = 'dark' }", "display.theme", "light", "change it with an editor"),
    ],
)
def test_refusals(text, name, value, message):
    """What is not allowed, or not safe, is not written."""
    with pytest.raises(SettingsError, match=message):
        change_setting(text, name, value, PATH)


def test_save():
    """The file is made where there is none, private, and replaced whole; its permissions stay."""
    path = save_setting("display.theme", "light")
    assert path == settings_path()
    assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o640)
    save_setting("display.markdown", False)
    assert load_settings().display == Display(markdown=False, theme="light")
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == ["config.toml"]


def test_save_through_a_link(tmp_path):
    """A link to the file stays a link."""
    target = tmp_path / "dotfiles.toml"
    target.write_text("# kept\n")
    settings_path().parent.mkdir(parents=True)
    settings_path().symlink_to(target)
    save_setting("model", "m")
    assert settings_path().is_symlink()
    assert target.read_text() == 'model = "m"\n# kept\n'


def test_save_where_nothing_can_be_written(mlxchat_home):
    """A folder that cannot be made is one line."""
    mlxchat_home.write_text("in the way")
    with pytest.raises(SettingsError, match=r"cannot (read|write) "):
        save_setting("model", "m")
