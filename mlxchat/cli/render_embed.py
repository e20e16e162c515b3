"""What `mlxchat embed` shows: vectors with their neighbours, and what was found for a question."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mlxchat.cli.embed import MOST_SHOWN
from mlxchat.cli.heat import shade
from mlxchat.cli.inspect.paint import make_console, spark
from mlxchat.cli.render import cut, format_count, one_line, sanitize

if TYPE_CHECKING:
    from mlxchat.chat.embedding import Embedded

# A table of all pairs is readable up to here; with more texts each shows its nearest one.
_MOST_IN_MATRIX = 12
_SPARK_WIDTH = 24
_EXCERPT_LINES = 4
# What the columns beside text and vector take, the blanks between them included.
_OTHER_COLUMNS = 38
_WIDE = 90


def show(done: "Embedded") -> None:
    """Writes the vectors, or what was found, to stdout."""
    console = make_console()
    console.print(make_view(done, console.width))


def make_view(done: "Embedded", width: int) -> RenderableType:
    """Returns what a person sees of the vectors in so many columns."""
    parts: list[RenderableType] = [Text(format_summary(done), style="dim"), ""]
    if done.query is not None:
        return Group(*parts, *_make_hits(done))
    parts.append(_make_table(done, width))
    if done.likeness and len(done.passages) <= _MOST_IN_MATRIX:
        parts += ["", _make_matrix(done)]
    return Group(*parts)


def format_summary(done: "Embedded") -> str:
    """Returns one line on how the vectors were made."""
    where = "the end" if done.layer is None else f"layer {done.layer} of {done.n_layers}"
    dims = f"{done.dims} dimensions"
    if done.dims != done.whole_dims:
        dims += f" of {done.whole_dims}"
    length = "length 1" if done.normalized else "own length"
    name = Path(done.model).name  # of a local folder the path is too long for a line
    parts = (name, f"{done.pooling} pooling at {where}", dims, length, done.metric)
    return " · ".join(parts)


def _label(done: "Embedded", index: int, limit: int) -> str:
    passage = done.passages[index]
    text = f"{passage.place}  {passage.text}" if passage.path else passage.text
    return cut(one_line(text), limit)


def nearest(done: "Embedded", index: int) -> tuple[int, float] | None:
    """Returns the text that is nearest to one, with the score."""
    if not done.likeness:
        return None
    row = done.likeness[index]
    others = [i for i in range(len(row)) if i != index]
    best = (min if done.metric == "l2" else max)(others, key=row.__getitem__)
    return best, row[best]


def format_spark(row: list[float], width: int = _SPARK_WIDTH) -> str:
    """Draws a vector as a few bars: the mean of each run of dimensions, lowest to highest."""
    width = min(width, len(row))
    edges = [i * len(row) // width for i in range(width + 1)]
    means = [sum(row[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    return spark(means)


def _make_table(done: "Embedded", width: int) -> Table:
    bars = _SPARK_WIDTH if width >= _WIDE else _SPARK_WIDTH // 2
    room = max(width - bars - _OTHER_COLUMNS, 12)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right", style="dim", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=room)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("length", justify="right", no_wrap=True)
    table.add_column("vector", no_wrap=True, style="cyan")
    if done.likeness:
        table.add_column("nearest", justify="right", no_wrap=True)
    for index, row in enumerate(done.rows[:MOST_SHOWN]):
        length = sum(x * x for x in row) ** 0.5
        cells: list[RenderableType] = [
            str(index + 1),
            Text(_label(done, index, 200)),
            format_count(done.num_tokens[index]),
            f"{length:.3g}",
            format_spark(row, bars),
        ]
        if (found := nearest(done, index)) is not None:
            cells.append(f"#{found[0] + 1} {found[1]:.3f}")
        table.add_row(*cells)
    if (num_left := len(done.passages) - MOST_SHOWN) > 0:
        table.caption = f"{format_count(num_left)} more; --json and -o have all"
    return table


def _make_matrix(done: "Embedded") -> Table:
    low, high = _range(done)
    table = Table(box=None, pad_edge=False, padding=(0, 0), title=_matrix_title(done))
    table.title_justify, table.title_style = "left", "bold"
    table.add_column("", justify="right", style="dim")
    for index in range(len(done.likeness)):
        table.add_column(str(index + 1), justify="center", header_style="dim")
    for index, row in enumerate(done.likeness):
        cells = [Text(f" {x:5.2f} ", style=shade((x - low) / (high - low))) for x in row]
        table.add_row(f"{index + 1} ", *cells)
    return table


def _matrix_title(done: "Embedded") -> str:
    return {"cosine": "cosine", "l2": "L2 distance", "dot": "dot product"}[done.metric]


def _range(done: "Embedded") -> tuple[float, float]:
    """Returns the ends of the colours: of the pairs, since the diagonal would drown them."""
    pairs = [x for i, row in enumerate(done.likeness) for j, x in enumerate(row) if i != j]
    low, high = min(pairs), max(pairs)
    return low, high if high - low > 1e-6 else low + 1e-6


def _make_hits(done: "Embedded") -> list[RenderableType]:
    assert done.query is not None
    parts: list[RenderableType] = [Text(sanitize(done.query), style="bold"), ""]
    if not done.hits:
        return [*parts, "nothing was found"]
    scores = [hit.score for hit in done.hits]
    for number, hit in enumerate(done.hits, 1):
        lines = sanitize(hit.passage.text).split("\n")
        shown = "\n".join(lines[:_EXCERPT_LINES])
        if len(lines) > _EXCERPT_LINES:
            shown += f"\n… {len(lines) - _EXCERPT_LINES} more lines"
        title = f"{number}  {hit.score:.3f} {_bar(hit.score, scores, done.metric)}"
        if hit.passage.place:
            title += f"  {one_line(hit.passage.place)}"
        parts.append(Panel(Text(shown), title=Text(title), title_align="left", border_style="dim"))
    return parts


def _bar(score: float, scores: list[float], metric: str, width: int = 10) -> str:
    """Draws a score against the best one."""
    best = min(scores) if metric == "l2" else max(scores)
    share = best / score if metric == "l2" and score else score / best if best > 0 else 1.0
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "━" * filled + "╌" * (width - filled)


def make_page(done: "Embedded") -> str:
    """Returns a web page of the same."""
    from mlxchat.cli import page

    sections: list[tuple[str, str]] = []
    for hit in done.hits:
        text = page.escape(hit.passage.text)
        place = page.escape(hit.passage.place)
        sections.append(
            (
                "",
                f'<div class="hit"><b>{hit.score:.3f}</b> <span class="place">{place}</span>'
                f"<pre>{text}</pre></div>",
            )
        )
    if done.query is None:
        header = ["#", "text", "tokens", "length", "nearest", "score"]
        rows = [_page_row(done, index) for index in range(len(done.rows))]
        sections.append(("Texts", page.make_table(header, rows)))
    if done.likeness:
        low, high = _range(done)
        names = [f"{i + 1} {_label(done, i, 24)}" for i in range(len(done.likeness))]
        numbers = [str(i + 1) for i in range(len(names))]
        picture = page.draw_heat_map(done.likeness, names, numbers, low=low, high=high)
        sections.append((_matrix_title(done), picture))
    return page.make_page(done.query or "Embeddings", format_summary(done), sections)


def _page_row(done: "Embedded", index: int) -> list[str | float | int]:
    length = sum(x * x for x in done.rows[index]) ** 0.5
    found = nearest(done, index)
    score: list[str | float | int] = ["", ""] if found is None else [f"#{found[0] + 1}", found[1]]
    return [index + 1, _label(done, index, 200), done.num_tokens[index], length, *score]
