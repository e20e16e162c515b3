"""Attention maps for people: a map of tokens, sinks by head, pairs, and a web page of all heads."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.heat import format_hex, mix_colour
from mlxchat.cli.inspect.paint import (
    CELL_WIDTH,
    bar,
    heading,
    heat_cell,
    make_table,
    number_cell,
    show_token,
    spark,
)

if TYPE_CHECKING:
    from mlxchat.lens.attention import AttentionView, Grid

_NAME = 14  # columns of a token beside the map
_PAIRS = 8


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is drawn of the maps.

    Attributes:
        view: All maps.
        texts: The tokens.
        model: Its name.
        keys: The tokens of the word that was asked for; empty without one.
        layer: Whose map is drawn; None is the mean of all.
        head: Whose map is drawn; None is the mean of the layer.
    """

    view: "AttentionView"
    texts: list[str]
    model: str
    keys: tuple[int, ...] = ()
    layer: int | None = None
    head: int | None = None

    def grid(self) -> "Grid":
        """Returns the map that is drawn large."""
        if self.layer is not None and self.head is not None:
            return self.view.maps[self.layer][self.head]
        return self.view.mean(self.layer)

    def title(self) -> str:
        """Returns whose map it is."""
        if self.layer is None:
            return "mean of all heads"
        whose = "mean of its heads" if self.head is None else f"head {self.head}"
        return f"layer {self.layer}, {whose}"


def make_view(drawn: Drawn, console: Console) -> list[RenderableType]:
    """Returns what a terminal shows."""
    parts: list[RenderableType] = [
        Text.assemble(("attention", "bold"), (f"  {drawn.model}, {drawn.title()}", "dim")),
        Text("row: who looks; column: at whom; brightness: how much", style="dim"),
        _map(drawn, console),
        heading("sinks", "share of the attention that rests on the first token, by layer and head"),
        _sinks(drawn.view),
        heading("strongest looks", "at other tokens than the first; the surest head of each pair"),
        _pairs(drawn),
    ]
    if drawn.keys:
        parts += _who_looks(drawn, console)
    if not drawn.view.is_causal:
        note = "how an encoder and a causal model differ"
        parts += [heading("built otherwise", note), _differences()]
    return parts


# What an encoder of the BERT family does, and what the models that one chats with do.
_DIFFERENCES = (
    ("a token sees", "all tokens, both ways", "itself and those before it"),
    ("positions", "a learned row added to each", "q and k turned (RoPE)"),
    ("norm", "LayerNorm behind each half", "RMSNorm, mostly before each half"),
    ("last states", "stand for the text (embed)", "tell the next token"),
)


def _differences() -> Table:
    table = make_table("", "this encoder", "a causal model")
    for row in _DIFFERENCES:
        table.add_row(*row)
    return table


def _map(drawn: Drawn, console: Console) -> Table:
    grid, colours = drawn.grid(), console.color_system is not None
    room = max((console.width - _NAME - 6) // CELL_WIDTH, 4)
    first = max(len(grid) - room, 0)
    # The first token gets most of the attention nearly always; the others would look alike.
    peak = max((w for row in grid for w in row[1:]), default=0.0) or 1.0
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim")
    table.add_column(no_wrap=True)
    for index in range(first, len(grid)):
        cells = Text()
        for weight in grid[index][first : index + 1 if drawn.view.is_causal else None]:
            cells.append_text(heat_cell(weight / peak, colours=colours))
        table.add_row(Text(_short(drawn.texts[index])), str(index), cells)
    step = 5 * CELL_WIDTH
    ruler = "".join(f"{i:<{step}}" for i in range(first, len(grid), 5))
    table.add_row("", "", Text(ruler, style="dim"))
    return table


def _short(text: str) -> str:
    shown = show_token(text)
    return shown if len(shown) <= _NAME else set_cell_size(shown, _NAME - 1).rstrip() + "…"


def _sinks(view: "AttentionView") -> Table:
    sinks = view.sinks()
    table = Table(box=None, pad_edge=False, padding=(0, 0), header_style="dim")
    table.add_column("layer ", justify="right", style="dim")
    for head in range(len(sinks[0])):
        table.add_column(f"h{head} ", justify="right", no_wrap=True)
    for layer, row in enumerate(sinks):
        table.add_row(f"{layer} ", *(number_cell(f"{v:.2f}", v) for v in row))
    return table


def _pairs(drawn: Drawn) -> RenderableType:
    table = make_table("from", "", "to", "layer>", "head>", "weight>", "")
    for p in drawn.view.strongest(_PAIRS):
        table.add_row(
            Text(f"{_short(drawn.texts[p.query])} {p.query}"),
            Text("→", style="dim"),
            Text(f"{_short(drawn.texts[p.key])} {p.key}"),
            str(p.layer),
            str(p.head),
            f"{p.weight:.2f}",
            bar(p.weight, 10),
        )
    return table if table.row_count else Text("none above 0.05", style="dim")


def _who_looks(drawn: Drawn, console: Console) -> list[RenderableType]:
    word = show_token("".join(drawn.texts[k] for k in drawn.keys))
    looks = drawn.view.looks_at(drawn.keys)
    after = range(min(drawn.keys) if drawn.view.is_causal else 0, len(drawn.texts))
    table = make_table("token", "by layer", "most>", "in layer>")
    for query in after:
        if query in drawn.keys and len(drawn.texts) > len(drawn.keys):
            continue
        column = [row[query] for row in looks]
        best = max(range(len(column)), key=column.__getitem__)
        table.add_row(
            Text(_short(drawn.texts[query])), spark(column, 0.0, 1.0), f"{column[best]:.2f}",
            str(best),
        )  # fmt: skip
    note = "each token's most attentive head, layer by layer"
    return [heading(f"who looks at {word}", note), table]


# -- the page --------------------------------------------------------------------------------------


def make_page(drawn: Drawn) -> str:
    """Returns a web page: the large map with all numbers, then every head small."""
    sections = [
        (drawn.title().capitalize(), _large(drawn)),
        ("Every head", _small_maps(drawn.view)),
        ("Strongest looks", _pair_table(drawn)),
    ]
    if drawn.keys:
        word = show_token("".join(drawn.texts[k] for k in drawn.keys))
        looks = drawn.view.looks_at(drawn.keys)
        names = [show_token(t) for t in drawn.texts]
        rows = [f"layer {n}" for n in range(len(looks))]
        sections.append(
            (
                f"Who looks at {word}",
                page.draw_heat_map(looks, rows, names, low=0.0, high=1.0),
            )
        )
    if not drawn.view.is_causal:
        table = page.make_table(["", "this encoder", "a causal model"], _DIFFERENCES)
        sections.append(("Built otherwise", table))
    lead = f"{drawn.model}: row by row, what each token looks at; brighter is more"
    return page.make_page("Attention", lead, sections)


def _large(drawn: Drawn) -> str:
    grid = drawn.grid()
    names = [f"{i} {show_token(t)}" for i, t in enumerate(drawn.texts)]
    cell = 22 if len(grid) <= 40 else 10
    left, top = 130, 120
    peak = max((w for row in grid for w in row[1:]), default=0.0) or 1.0
    parts = []
    for i, row in enumerate(grid):
        at = left + i * cell + cell / 2
        name = page.escape(names[i][:18])
        parts.append(
            f'<text class="soft" x="{left - 6}" y="{top + i * cell + cell * 0.7:.0f}"'
            f' text-anchor="end">{name}</text><text class="soft" x="{at}" y="{top - 6}"'
            f' transform="rotate(-55 {at} {top - 6})">{name}</text>'
        )
        for j, weight in enumerate(row[: i + 1 if drawn.view.is_causal else None]):
            told = page.escape(f"{names[i]} → {names[j]}: {weight:.4f}")
            colour = format_hex(mix_colour(weight / peak))
            parts.append(
                f'<rect x="{left + j * cell}" y="{top + i * cell}" width="{cell - 1}"'
                f' height="{cell - 1}" fill="{colour}"><title>{told}</title></rect>'
            )
    side = len(grid) * cell
    return page.make_svg(left + side + 80, top + side + 6, parts)


_LEVELS = 12
_MAP = 84  # pixels of a small map


def _small_maps(view: "AttentionView") -> str:
    """Draws all heads; cells of one brightness are one path, so that the file stays small."""
    parts, size = [], len(view.token_ids)
    step, gap = _MAP / size, 14
    for layer, heads in enumerate(view.maps):
        y = 20 + layer * (_MAP + gap)
        middle = round(y + _MAP / 2)
        parts.append(
            f'<text class="soft" x="62" y="{middle}" text-anchor="end">layer {layer}</text>'
        )
        for head, grid in enumerate(heads):
            x = 70 + head * (_MAP + gap)
            if layer == 0:
                parts.append(f'<text class="soft" x="{x}" y="14">head {head}</text>')
            parts.append(
                f'<g><title>layer {layer}, head {head}</title><rect x="{x}" y="{y}"'
                f' width="{_MAP}" height="{_MAP}" fill="{format_hex(mix_colour(0))}"/>'
                f"{_paths(grid, x, y, step)}</g>"
            )
    width = 70 + len(view.maps[0]) * (_MAP + gap)
    return page.make_svg(width, 24 + len(view.maps) * (_MAP + gap), parts)


def _paths(grid: "Grid", x: float, y: float, step: float) -> str:
    cells: dict[int, list[str]] = {}
    for i, row in enumerate(grid):
        for j, weight in enumerate(row):
            if level := round(min(weight, 1.0) * _LEVELS):
                cells.setdefault(level, []).append(
                    f"M{x + j * step:.1f} {y + i * step:.1f}h{step:.2f}v{step:.2f}h-{step:.2f}z"
                )
    return "".join(
        f'<path d="{"".join(places)}" fill="{format_hex(mix_colour(level / _LEVELS))}"/>'
        for level, places in sorted(cells.items())
    )


def _pair_table(drawn: Drawn) -> str:
    rows: list[list[str | float | int]] = [
        [
            f"{p.query} {show_token(drawn.texts[p.query])}",
            f"{p.key} {show_token(drawn.texts[p.key])}",
            p.layer,
            p.head,
            p.weight,
        ]
        for p in drawn.view.strongest(20)
    ]
    return page.make_table(["from", "to", "layer", "head", "weight"], rows)
