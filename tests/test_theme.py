"""Themes: every one is complete, can be read, and `cb` can be told apart by everybody."""

import pytest
from rich.color import Color
from rich.style import Style

from mlxchat.cli import theme
from mlxchat.cli.theme import NAMES, Theme, find_theme
from mlxchat.errors import UsageError

ALL = [f"{name}{suffix}" for name in NAMES for suffix in ("", " cb")]
BACKGROUNDS = {"light": (255, 255, 255), "dark": (30, 30, 30)}


def styles(name):
    found = find_theme(name)
    names = [name for name in Theme._fields if name != "dims"]
    return {part: Style.parse(getattr(found, part)) for part in names}


def luminance(colour):
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_styles(name):
    """Every style of every theme is one that Rich knows."""
    assert len(styles(name)) == 14


@pytest.mark.parametrize("name", [n for n in ALL if n.split()[0] in BACKGROUNDS])
def test_contrast(name):
    """Fixed colours can be read on their background: a contrast of 4.5 to 1."""
    back = luminance(BACKGROUNDS[name.split()[0]])
    for part, style in styles(name).items():
        if style.color is not None:
            front = luminance(Color.parse(style.color.name).get_truecolor())
            contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
            assert contrast >= 4.5, (part, contrast)


@pytest.mark.parametrize("name", [n for n in ALL if n.endswith("cb")])
def test_colour_blind_safe(name):
    """What was added and what was taken away differ in blueness, which everybody sees, or shape."""
    found = styles(name)
    added, taken = found["inserted"], found["deleted"]
    if added.color is None or "default" in (added.color.name, taken.color and taken.color.name):
        assert (added.underline, added.reverse) != (taken.underline, taken.reverse)
        return
    assert added.bold != taken.bold
    blues = [style.color.get_truecolor().blue for style in (added, taken)]
    assert blues[0] - blues[1] > 100
    for style in found.values():
        assert style.color is None or style.color.name not in ("red", "green")


def test_find_theme():
    """A theme is found however its name is spaced; an unknown one is named with what there is."""
    assert find_theme(" dark   cb") is find_theme("dark cb")
    with pytest.raises(UsageError, match="no theme 'pink'; choose terminal, light, dark, contrast"):
        find_theme("pink")


@pytest.mark.parametrize(
    ("environment", "depth"),
    [
        ({"COLORTERM": "truecolor", "TERM": "xterm"}, "TRUECOLOR"),
        ({"COLORTERM": "", "TERM": "xterm-256color"}, "EIGHT_BIT"),
        ({"COLORTERM": "", "TERM": "xterm"}, "STANDARD"),
    ],
)
def test_color_depth(environment, depth, monkeypatch):
    """The terminal's own word decides how many colours are used."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert theme.color_depth() == depth
