"""Web pages that stand alone: one file, no scripts, nothing fetched; pictures are SVG.

Everything that comes from a person, a file or a model is escaped here.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path

import click

from mlxchat.cli.heat import choose_ink, format_hex, mix_colour
from mlxchat.errors import UsageError

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667; --line: #d5d9e0; --paper: #fdfdfc;
  --accent: #0b6e99; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa3b0; --line: #39404c;
  --paper: #16191e; --accent: #56b4e9; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .5rem; }
p.summary { color: var(--soft); margin: 0 0 1rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: left;
  border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
th { color: var(--soft); } td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.long { white-space: normal; min-width: 18rem; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0 0; font-size: 13px; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif;
  fill: var(--ink); } svg .soft { fill: var(--soft); } svg .line { stroke: var(--line); }
.hit { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem; margin: .6rem 0; }
.place { color: var(--accent); font-family: ui-monospace, monospace; font-size: 13px; }
"""
# Ten hues that differ in brightness too, after Okabe and Ito.
GROUP_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#7a5195", "#8c6d1f", "#999999", "#b3201f"),
)
_CELL = 46
_CHAR = 7.0  # width of a character of 12 px, about
_LONGEST_LINE = 32
# On a phone a picture gets so small at most, and scrolls: its letters can still be read.
_SMALLEST_SCALE = 0.8


def check_folder(file: str | None) -> None:
    """Checks that a file can be made where a person wants it, before the work is done.

    Raises:
        UsageError: Its folder is not there or cannot be written to.
    """
    if file is not None and not os.access(
        folder := Path(file).expanduser().absolute().parent, os.W_OK
    ):
        raise UsageError(f"{folder} is no folder that can be written to; name another file")


def _check_page(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    check_folder(value)
    return value


HTML_OPTION = click.option(
    "--html",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    callback=_check_page,
    help="Write what is shown as one web page.",
)


def make_page(title: str, summary: str, sections: Sequence[tuple[str, str]]) -> str:
    """Returns a whole page.

    Args:
        title: Plain text.
        summary: Plain text under it.
        sections: Headings as plain text, and what follows them as HTML made here.
    """
    parts = [
        f"<h2>{escape(heading)}</h2>\n{body}" if heading else body for heading, body in sections
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="summary">{escape(summary)}</p>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def write_page(file: str, page: str) -> None:
    """Writes a page to a file."""
    Path(file).expanduser().write_text(page, encoding="utf-8")


def escape(text: str) -> str:
    """Returns text as it stands in a page; control characters become visible."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return html.escape(shown, quote=True)


def make_table(header: Sequence[str], rows: Sequence[Sequence[str | float | int]]) -> str:
    """Returns a table; numbers stand on the right, long texts get lines, wide tables scroll."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: str | float | int) -> str:
    if isinstance(value, str):
        kind = ' class="long"' if len(value) > _LONGEST_LINE else ""
        return f"<td{kind}>{escape(value)}</td>"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return f'<td class="number">{text}</td>'


def draw_heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    digits: int = 2,
) -> str:
    """Draws numbers as coloured cells.

    Args:
        values: By row.
        rows: Their names.
        columns: The names of the columns.
        low: What is darkest.
        high: What is brightest.
        digits: Behind the point; the full number shows when one points at a cell.
    """
    left = 16 + round(_CHAR * max(map(len, rows), default=0))
    top = 16 + round(_CHAR * max(map(len, columns), default=0) * 0.75)
    height = 24
    parts = []
    for j, name in enumerate(columns):
        x = left + j * _CELL + _CELL // 2
        parts.append(
            f'<text class="soft" x="{x}" y="{top - 6}" transform="rotate(-40 {x} {top - 6})">'
            f"{escape(name)}</text>"
        )
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + i * height
        parts.append(
            f'<text class="soft" x="{left - 6}" y="{y + 16}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        for j, value in enumerate(row):
            colour, x = mix_colour((value - low) / ((high - low) or 1)), left + j * _CELL
            parts.append(
                f'<g><title>{value:.6g}</title><rect x="{x}" y="{y}" width="{_CELL - 1}"'
                f' height="{height - 1}" fill="{format_hex(colour)}"/><text x="{x + _CELL / 2}"'
                f' y="{y + 16}" text-anchor="middle" style="fill:{choose_ink(colour)}">'
                f"{value:.{digits}f}</text></g>"
            )
    ends = [(j + 0.5) * _CELL + 0.8 * _CHAR * len(name) for j, name in enumerate(columns)]
    width = left + max([len(columns) * _CELL, *ends]) + 8
    return make_svg(width, top + len(rows) * height + 4, parts)


def draw_scatter(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    groups: Sequence[int] | None = None,
    *,
    width: int = 720,
    height: int = 480,
) -> str:
    """Draws named points on a plane, both axes in one scale.

    Args:
        points: (x, y), y upwards.
        names: Of the points.
        groups: Points of one number share a colour.
        width: In pixels.
        height: In pixels.
    """
    margin, xs, ys = 60, [x for x, _ in points], [y for _, y in points]
    span_x, span_y = max(xs) - min(xs), max(ys) - min(ys)
    scale = min(
        (width - 2 * margin) / (span_x or 1e-9), (height - 2 * margin) / (span_y or 1e-9), 1e9
    )
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    parts = [
        f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" fill="none" class="line"/>'
    ]
    for index, ((x, y), name) in enumerate(zip(points, names, strict=True)):
        at_x = width / 2 + (x - middle_x) * scale
        at_y = height / 2 - (y - middle_y) * scale
        colour = GROUP_COLOURS[(groups[index] if groups else 0) % len(GROUP_COLOURS)]
        parts.append(
            f'<g><title>{escape(name)} ({x:.4g}, {y:.4g})</title><circle cx="{at_x:.1f}"'
            f' cy="{at_y:.1f}" r="4" fill="{colour}"/><text x="{at_x + 7:.1f}"'
            f' y="{at_y + 4:.1f}">{escape(name)}</text></g>'
        )
    return make_svg(width, height, parts)


def make_svg(width: float, height: float, parts: Sequence[str], label: str = "") -> str:
    """Returns a picture of parts that are SVG already; a wide one scrolls.

    Args:
        width: In pixels.
        height: In pixels.
        parts: What is drawn.
        label: What it shows, for those who cannot see it.
    """
    named = f' aria-label="{escape(label)}"' if label else ""
    return (
        f'<div class="scroll"><svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}"'
        f' height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" role="img"{named}'
        f' style="min-width:{width * _SMALLEST_SCALE:.0f}px">\n'
        + "\n".join(parts)
        + "\n</svg></div>"
    )
