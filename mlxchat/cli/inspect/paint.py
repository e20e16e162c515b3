"""Pieces of the terminal views: shaded cells, bars, sparklines, tokens, tables."""

import sys
from collections.abc import Sequence
from typing import Literal, TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from mlxchat.cli.heat import shade
from mlxchat.cli.render import fill_rows, sanitize

_BLOCKS = "▁▂▃▄▅▆▇█"
_SHADES = " ·░▒▓█"
_BLANKS = str.maketrans({"\n": "⏎", "\t": "⇥", " ": "·"})
# Of a pair of characters that shows one number of a map.
CELL_WIDTH = 2


def make_console(
    file: TextIO | None = None, *, width: int | None = None, colours: bool = True
) -> Console:
    """Returns where views are printed.

    Args:
        file: Default: stdout.
        width: Default: the terminal's.
        colours: As many as the terminal has; else none.
    """
    return Console(
        file=file or sys.stdout,
        width=width,
        color_system="auto" if colours else None,
        highlight=False,
        emoji=False,
        markup=False,
    )


def show_token(text: str) -> str:
    """Returns a token's text on one line, its blanks at both ends visible."""
    body = text.strip(" \n\t")
    if not body:
        return sanitize(text.translate(_BLANKS)) or "∅"
    start, end = text[: text.index(body)], text[text.index(body) + len(body) :]
    inside = body.replace("\n", "⏎").replace("\t", "⇥")
    return sanitize(start.translate(_BLANKS) + inside + end.translate(_BLANKS))


def heat_cell(share: float, *, colours: bool = True) -> Text:
    """Returns one number from 0 to 1 as a cell of a map: a colour, or a shade without colours."""
    share = min(max(share, 0.0), 1.0)
    if colours:
        return Text(" " * CELL_WIDTH, style=shade(share))
    mark = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
    return Text(mark * CELL_WIDTH)


def number_cell(text: str, share: float) -> Text:
    """Returns a number on a ground that shows how large it is."""
    return Text(f" {text} ", style=shade(min(max(share, 0.0), 1.0)))


def spark(values: Sequence[float], low: float | None = None, high: float | None = None) -> str:
    """Draws numbers as a row of bars."""
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    span = (high - low) or 1.0
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(min(max((v - low) / span, 0), 1) * steps)] for v in values)


def bar(share: float, width: int = 20) -> Text:
    """Draws a share of 0 to 1."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * filled, "cyan"), ("─" * (width - filled), "dim"))


def make_table(*columns: str, title: str | None = None) -> Table:
    """Returns a table without frame.

    Args:
        columns: Names; `>` at the end puts a column on the right, `~` lets it give way.
        title: Stands above.
    """
    table = Table(
        box=None,
        pad_edge=False,
        header_style="dim",
        title=title,
        title_justify="left",
        title_style="bold",
    )
    for name in columns:
        side: Literal["left", "right"] = "right" if name.endswith(">") else "left"
        table.add_column(name.rstrip(">~"), justify=side, no_wrap=not name.endswith("~"))
    return table


class Parts:
    """Parts of a line side by side, on more lines where they need them; none is broken.

    Args:
        parts: Texts; numbers and units with blanks inside stay whole.
        style: Of all of them.
    """

    def __init__(self, parts: Sequence[str], style: str = "") -> None:
        self._parts, self._style = parts, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fills the width that there is."""
        yield Text("\n".join(fill_rows(self._parts, " · ", options.max_width)), self._style)


def heading(text: str, note: str = "") -> Text:
    """Returns a heading with a dimmed note behind it."""
    return Text.assemble(("\n" + text, "bold"), (f"  {note}" if note else "", "dim"))
