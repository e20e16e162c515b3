"""The colours of answers: themes by name, as Rich style definitions.

`terminal` uses the terminal's own sixteen colours, so it suits whatever the person has chosen.
The others bring fixed colours for a light or a dark background. `cb` takes accents that people
with any kind of colour blindness can tell apart: blue and orange instead of green and red.
"""

import os
from typing import NamedTuple

from mlxchat.errors import UsageError

SUFFIX = "cb"


class Theme(NamedTuple):
    """How the parts of an answer look; each is a Rich style definition.

    Attributes:
        dims: Whether notes and thinking are dimmed.
    """

    heading: str
    code: str
    link: str
    marker: str
    quote: str
    frame: str
    keyword: str
    name: str
    string: str
    number: str
    comment: str
    inserted: str
    deleted: str
    error: str
    dims: bool = True


def _coloured(
    accent: str,
    code: str,
    keyword: str,
    string: str,
    error: str,
    *,
    link: str = "underline",
    quote: str = "italic",
    frame: str = "dim",
    comment: str = "dim",
) -> Theme:
    """Makes a theme of a few colours, each of which serves several parts."""
    return Theme(
        heading=f"bold {accent}",
        code=code,
        link=link,
        marker=accent,
        quote=quote,
        frame=frame,
        keyword=f"bold {keyword}",
        name=accent,
        string=string,
        number=code,
        comment=comment,
        inserted=string,
        deleted=error,
        error=error,
    )


_TERMINAL = _coloured("blue", "cyan", "magenta", "green", "red")
_DARK = _coloured(
    *("#7cc7ff", "#ffcb8b", "#d8a6ff", "#a5d6a7", "#ff9e9e"),
    link="underline #7cc7ff",
    quote="italic #b8c4d0",
    frame="#8b98a5",
    comment="italic #9aa7b4",
)
_LIGHT = _coloured(
    *("#0b4f9e", "#8a3b00", "#7a1fa2", "#1b6b2a", "#b3201f"),
    link="underline #0b4f9e",
    quote="italic #45505c",
    frame="#5f6b78",
    comment="italic #5f6b78",
)
_CONTRAST = Theme(
    heading="bold underline",
    code="bold",
    link="bold underline",
    marker="bold",
    quote="italic",
    frame="default",
    keyword="bold",
    name="bold",
    string="default",
    number="default",
    comment="italic",
    inserted="bold underline",
    deleted="bold reverse",
    error="bold reverse",
    dims=False,
)


def _safe(theme: Theme, blue: str, code: str, string: str, number: str, deleted: str) -> Theme:
    """Returns a theme with blue for what is inserted and for keywords, and orange for errors."""
    return theme._replace(
        code=code,
        keyword=f"bold {blue}",
        name=blue,
        string=string,
        number=number,
        inserted=f"bold {blue}",
        deleted=deleted,
        error=deleted,
    )


# Accents from the palette of Okabe and Ito, darkened for a light background.
_THEMES = {
    "terminal": _TERMINAL,
    "light": _LIGHT,
    "dark": _DARK,
    "contrast": _CONTRAST,
    "terminal cb": _safe(_TERMINAL, "blue", "yellow", "yellow", "cyan", "yellow")._replace(
        name="bold", error="bold yellow"
    ),
    "light cb": _safe(_LIGHT, "#00557f", "#8a4b00", "#8a4b00", "#6b3a5b", "#a04000"),
    "dark cb": _safe(_DARK, "#56b4e9", "#f0e442", "#e69f00", "#f0e442", "#e69f00"),
    # It has no colours to confuse.
    "contrast cb": _CONTRAST,
}
NAMES = tuple(name for name in _THEMES if not name.endswith(f" {SUFFIX}"))
DEFAULT = NAMES[0]


def find_theme(name: str) -> Theme:
    """Returns a theme by its name, with ` cb` after it for the colour-blind-safe accents.

    Raises:
        UsageError: There is no such theme.
    """
    words = name.split()
    if (theme := _THEMES.get(" ".join(words))) is None:
        raise UsageError(
            f"there is no theme {name!r}; choose {', '.join(NAMES)}, each with `{SUFFIX}` after it"
            " for colour-blind-safe accents"
        )
    return theme


def color_depth() -> str:
    """Returns how many colours the terminal says it has, as Rich names it."""
    if os.environ.get("COLORTERM", "").strip().lower() in ("truecolor", "24bit"):
        return "TRUECOLOR"
    term = os.environ.get("TERM", "")
    if term.endswith(("-256color", "-kitty", "-ghostty")):
        return "EIGHT_BIT"
    return "STANDARD"
