"""Markdown tables, cut to the width of a terminal where somebody looks at one. Pure functions."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence


def make_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_left: int = 1,
    width: int | None = None,
) -> str:
    """Returns a Markdown table.

    Args:
        header: Of each column.
        rows: Cells.
        num_left: So many columns are flush left, the rest right.
        width: A wider table is cut into several, each with the first column; None cuts nothing.
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    parts = _cut(widths, width) if width is not None else [range(len(header))]
    return "\n".join(_draw(lines, widths, columns, num_left) for columns in parts)


def _cut(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Yields the columns of each table: as many as fit, at least one beside the first."""
    columns = [0]
    for column in range(1, len(widths)):
        needed = sum(widths[i] + 3 for i in (*columns, column)) + 1
        if needed > width and len(columns) > 1:
            yield columns
            columns = [0]
        columns.append(column)
    yield columns


def _draw(
    lines: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int], num_left: int
) -> str:
    def line(cells: Sequence[str]) -> str:
        padded = (
            f"{cells[i]:<{widths[i]}}" if i < num_left else f"{cells[i]:>{widths[i]}}"
            for i in columns
        )
        return "| " + " | ".join(padded) + " |"

    rule = "|".join(
        "-" * (widths[i] + 2) if i < num_left else "-" * (widths[i] + 1) + ":" for i in columns
    )
    return "\n".join([line(lines[0]), f"|{rule}|", *map(line, lines[1:])]) + "\n"


def wrap_lines(lines: Iterable[str], width: int | None) -> list[str]:
    """Returns lines of text, those wider than a terminal broken between words."""
    if width is None:
        return list(lines)
    return [textwrap.fill(line, width, subsequent_indent="  ") for line in lines]
