"""The logit lens for people: tokens by layer on shaded ground, and a web page of the same."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.heat import choose_ink, format_hex, mix_colour, shade
from mlxchat.cli.inspect.paint import heading, show_token, spark
from mlxchat.cli.render import cut

if TYPE_CHECKING:
    from mlxchat.lens.logit_lens import LensView

_CELL = 9  # columns of a token in the grid
_MOST_SHOWN = 12  # positions side by side


def make_view(
    view: "LensView", names: dict[int, str], model: str, width: int = 100
) -> list[RenderableType]:
    """Returns what a terminal shows: the grid of the last positions, then the last one in full."""
    count = min(_MOST_SHOWN, count_columns(view, width))
    shown = range(len(view.positions) - count, len(view.positions))
    heads = [view.token_ids[view.positions[index]] for index in shown]
    left = f", the last {count} of {len(view.positions)} positions"
    parts: list[RenderableType] = [
        Text.assemble(
            ("logit lens", "bold"),
            (f"  {model}{left if count < len(view.positions) else ''}", "dim"),
        ),
        Text("likeliest next token after each layer; brightness is its probability", style="dim"),
        make_grid(view, names, heads, shown),
        heading("the last position", "what it settles on, layer by layer"),
        make_story(view, names, len(view.positions) - 1, width),
    ]
    return parts


def count_columns(view: "LensView", width: int) -> int:
    """Returns how many positions of a view stand side by side in a width."""
    return min(len(view.positions), max((width - 8) // (_CELL + 1), 1))


def _fit(text: str) -> str:
    return set_cell_size(show_token(text), _CELL)


def make_grid(
    view: "LensView",
    names: dict[int, str],
    heads: Sequence[int],
    shown: range,
    *,
    step: int = 1,
    marks_final: bool = False,
) -> Table:
    """Returns the likeliest token by layer and position, the last layer on top.

    Args:
        view: The lens.
        names: Texts by id.
        heads: The tokens that stand above the columns.
        shown: The columns' positions in the view.
        step: Every so-manieth layer is shown.
        marks_final: The view's final tokens are bold where they come up.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("layer", justify="right", style="dim")
    for token in heads:
        table.add_column(Text(_fit(names[token])), no_wrap=True)
    for number in reversed(range(len(view.layers))):
        if (len(view.layers) - 1 - number) % step:
            continue
        cells: list[RenderableType] = [str(number)]
        for index in shown:
            token, prob = view.layers[number][index].top[0]
            is_bold = marks_final and token == view.final[index]
            cells.append(Text(_fit(names[token]), style=shade(prob) + " bold" * is_bold))
        table.add_row(*cells)
    return table


def make_story(view: "LensView", names: dict[int, str], index: int, width: int) -> Table:
    """Returns what one position would have said after each layer, for a width in columns."""
    final = set_cell_size(show_token(names[view.final[index]]), 12).rstrip()
    rank = f"rank of {final}"
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("layer", rank, "prob", "entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("likeliest")
    room = max(width - 30 - len(rank), 12)
    settled = view.settled_at(index)
    for number, layer in enumerate(view.layers):
        reading = layer[index]
        top = Text()
        for i, p in reading.top:
            top.append(show_token(names[i]), style="bold green" if i == view.final[index] else "")
            top.append(f" {p:.2f}  ", style="dim")
        if number == settled and reading.rank == 1:
            top = Text("◀ settled  ", style="green").append_text(top)
        top.truncate(room, overflow="ellipsis")
        numbers = (str(reading.rank), f"{reading.prob:.3f}", f"{reading.entropy:.2f}")
        table.add_row(str(number), *numbers, top)
    readings = [layer[index] for layer in view.layers]
    courses = (
        spark([-math.log(r.rank) for r in readings]),
        spark([r.prob for r in readings], 0.0, 1.0),
        spark([r.entropy for r in readings], 0.0),
    )
    if len(readings) <= _MOST_SHOWN:  # of deep models the bars would widen the columns
        table.add_row("", *courses, "", style="cyan")
    return table


def make_page(view: "LensView", names: dict[int, str], model: str) -> str:
    """Returns a web page: the whole grid; pointing at a cell shows the five likeliest."""
    width, height, left, top = 84, 24, 50, 26
    parts = []
    for column, position in enumerate(view.positions):
        x = left + column * width
        name = page.escape(cut(show_token(names[view.token_ids[position]]), 11))
        parts.append(f'<text class="soft" x="{x + 4}" y="{top - 8}">{name}</text>')
    for row, number in enumerate(reversed(range(len(view.layers)))):
        y = top + row * height
        parts.append(
            f'<text class="soft" x="{left - 8}" y="{y + 16}" text-anchor="end">{number}</text>'
        )
        for column, reading in enumerate(view.layers[number]):
            colour = mix_colour(reading.top[0][1])
            lines = [f"{show_token(names[i])}  {p:.4f}" for i, p in reading.top]
            lines += [
                f"rank of {show_token(names[view.final[column]])}: {reading.rank}",
                f"entropy: {reading.entropy:.3f} nats",
            ]
            text = cut(show_token(names[reading.top[0][0]]), 11)
            x = left + column * width
            parts.append(
                f"<g><title>{page.escape(chr(10).join(lines))}</title>"
                f'<rect x="{x}" y="{y}" width="{width - 1}" height="{height - 1}"'
                f' fill="{format_hex(colour)}"/><text x="{x + 4}" y="{y + 16}"'
                f' style="fill:{choose_ink(colour)}">{page.escape(text)}</text></g>'
            )
    size = (left + len(view.positions) * width + 4, top + len(view.layers) * height + 4)
    last = len(view.positions) - 1
    rows: list[list[str | float | int]] = []
    for number, layer in enumerate(view.layers):
        reading = layer[last]
        tops = "   ".join(f"{show_token(names[i])} {p:.2f}" for i, p in reading.top)
        rows.append([str(number), tops, reading.rank, reading.prob, reading.entropy])
    final = show_token(names[view.final[last]])
    header = ["layer", "likeliest", f"rank of {final}", "probability", "entropy"]
    return page.make_page(
        "Logit lens",
        f"{model}: the likeliest next token after each layer, brighter where it is surer",
        [
            ("All positions", page.make_svg(*size, parts)),
            ("The last position", page.make_table(header, rows)),
        ],
    )
