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


_TERMINAL = Theme(
    heading="bold blue",
    code="cyan",
    link="underline",
    marker="blue",
    quote="italic",
    frame="dim",
    keyword="bold magenta",
    name="blue",
    string="green",
    number="cyan",
    comment="dim",
    inserted="green",
    deleted="red",
    error="red",
)
_DARK = Theme(
    heading="bold #7cc7ff",
    code="#ffcb8b",
    link="underline #7cc7ff",
    marker="#7cc7ff",
    quote="italic #b8c4d0",
    frame="#8b98a5",
    keyword="bold #d8a6ff",
    name="#7cc7ff",
    string="#a5d6a7",
    number="#ffcb8b",
    comment="italic #9aa7b4",
    inserted="#a5d6a7",
    deleted="#ff9e9e",
    error="#ff9e9e",
)
_LIGHT = Theme(
    heading="bold #0b4f9e",
    code="#8a3b00",
    link="underline #0b4f9e",
    marker="#0b4f9e",
    quote="italic #45505c",
    frame="#5f6b78",
    keyword="bold #7a1fa2",
    name="#0b4f9e",
    string="#1b6b2a",
    number="#8a3b00",
    comment="italic #5f6b78",
    inserted="#1b6b2a",
    deleted="#b3201f",
    error="#b3201f",
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
# Accents from the palette of Okabe and Ito, darkened for a light background.
_THEMES = {
    "terminal": _TERMINAL,
    "light": _LIGHT,
    "dark": _DARK,
    "contrast": _CONTRAST,
    "terminal cb": _TERMINAL._replace(
        code="yellow",
        keyword="bold blue",
        name="bold",
        string="yellow",
        number="cyan",
        inserted="bold blue",
        deleted="yellow",
        error="bold yellow",
    ),
    "light cb": _LIGHT._replace(
        code="#8a4b00",
        keyword="bold #00557f",
        name="#00557f",
        string="#8a4b00",
        number="#6b3a5b",
        inserted="bold #00557f",
        deleted="#a04000",
        error="#a04000",
    ),
    "dark cb": _DARK._replace(
        code="#f0e442",
        keyword="bold #56b4e9",
        name="#56b4e9",
        string="#e69f00",
        number="#f0e442",
        inserted="bold #56b4e9",
        deleted="#e69f00",
        error="#e69f00",
    ),
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
