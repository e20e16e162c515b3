"""Words on a plane for people: a scatter plot in the terminal, and one by layer on a page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.inspect.paint import bar, heading, make_table
from mlxchat.cli.render import format_share, one_line

if TYPE_CHECKING:
    from mlxchat.cli.inspect.map import Words
    from mlxchat.lens.plane import LayerPlane, Points

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red", "white", "bright_black")
_MARKS = "●▲■◆✚✖★▼"
_HEIGHT = 22
_MOST_WIDTH = 110


def make_view(
    planes: "Sequence[LayerPlane]", known: "Words", chosen: int, model: str, width: int
) -> list[RenderableType]:
    """Returns the plane of one layer and the measure of all."""
    title = Text.assemble(("map", "bold"), (f"  {one_line(model)} · {describe(known)}", "dim"))
    name = "the embedding" if chosen == 0 else f"after {chosen} blocks"
    parts: list[RenderableType] = [title, heading(f"layer {chosen}", name)]
    parts.append(draw_plane(planes[chosen].points, known, min(width, _MOST_WIDTH) - 2, _HEIGHT))
    if known.labels:
        parts.append(_legend(known))
    parts += [heading("layers", explain(known)), _make_layers(planes, chosen)]
    return parts


def describe(known: "Words") -> str:
    """Returns in words what is drawn."""
    if known.places:
        return f"{len(known.names)} words, best linear map onto their coordinates"
    if known.labels:
        return f"{len(known.names)} words, best linear map onto {len(known.kinds)} labels"
    return f"{len(known.names)} words, principal components"


def explain(known: "Words") -> str:
    """Returns in words what is measured of each layer."""
    if known.places:
        return "R squared on words held out; below 0 is worse than the mean"
    if known.labels:
        return f"labels told right on words held out; chance is {format_share(chance(known))}"
    return "variance along both axes"


def chance(known: "Words") -> float:
    """Returns what naming the commonest label would get right."""
    labels = known.labels or []
    return max(labels.count(kind) for kind in known.kinds) / len(labels)


def draw_plane(points: "Points", known: "Words", width: int, height: int) -> Text:
    """Draws named points as text; a name that would cover another is left out."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    canvas = [[" "] * width for _ in range(height)]
    styles = [[""] * width for _ in range(height)]
    groups = known.groups or [0] * len(points)
    room = max(cell_len(name) for name in known.names) + 2
    spots = []
    for x, y in points:
        column = round((x - min(xs)) / ((max(xs) - min(xs)) or 1) * max(width - room - 1, 1))
        row = round((max(ys) - y) / ((max(ys) - min(ys)) or 1) * (height - 1))
        spots.append((row, column))
    for (row, column), group in zip(spots, groups, strict=True):
        canvas[row][column] = _MARKS[group % len(_MARKS)]
        styles[row][column] = _COLOURS[group % len(_COLOURS)]
    for (row, column), name in zip(spots, known.names, strict=True):
        _write_name(canvas[row], one_line(name), column)
    drawn = Text()
    for line, colours in zip(canvas, styles, strict=True):
        for mark, style in zip(line, colours, strict=True):
            drawn.append(mark, style=f"bold {style}" if style else "")
        drawn.append("\n")
    drawn.rstrip()
    return drawn


def _write_name(line: list[str], name: str, column: int) -> None:
    """Writes a point's name on its right, or its left, where nothing stands."""
    width = cell_len(name)
    for start in (column + 2, column - 1 - width):
        end = start + width
        around = line[max(start - 1, 0) : end + 1]
        if start < 0 or end > len(line) or any(cell != " " for cell in around):
            continue
        at = start
        for character in name:
            line[at] = character
            for extra in range(1, cell_len(character)):
                line[at + extra] = ""  # a wide character takes the next cell too
            at += cell_len(character)
        return


def _legend(known: "Words") -> Text:
    shown = Text()
    for number, kind in enumerate(known.kinds):
        mark, colour = _MARKS[number % len(_MARKS)], _COLOURS[number % len(_COLOURS)]
        shown.append(f"{mark} ", style=f"bold {colour}").append(f"{one_line(kind)}   ")
    return shown


def _make_layers(planes: "Sequence[LayerPlane]", chosen: int) -> Table:
    table = make_table("layer>", "measure>", "")
    for one in planes:
        mark = " ◀" if one.layer == chosen else "  "
        value = one.score or 0.0
        shown = f"{value:.2f}"
        if one.explained is not None:
            value = sum(one.explained)
            shown = format_share(value)
        table.add_row(f"{one.layer}{mark}", shown, bar(value, 24))
    return table


def make_page(planes: "Sequence[LayerPlane]", known: "Words", chosen: int, model: str) -> str:
    """Returns a web page with the plane of every layer."""
    header = ["layer", "held out"] if planes[0].explained is None else ["layer", "x", "y"]
    rows = [[one.layer, *(one.explained or (one.score or 0.0,))] for one in planes]
    sections = [(explain(known), page.make_table(header, rows))]
    groups = known.groups or None
    for one in sorted(planes, key=lambda p: (p.layer != chosen, p.layer)):
        legend = ", ".join(known.kinds)
        title = f"Layer {one.layer}" + (f": {legend}" if legend else "")
        sections.append((title, page.draw_scatter(one.points, known.names, groups)))
    return page.make_page("Map of words", f"{model}: {describe(known)}", sections)
