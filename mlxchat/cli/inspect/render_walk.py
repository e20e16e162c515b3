"""The walk through one step, and the feed-forward units, for people."""

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.inspect.paint import bar, heading, make_table, show_token, spark
from mlxchat.cli.render import format_share, one_line

if TYPE_CHECKING:
    from mlxchat.lens.neurons import NeuronView
    from mlxchat.lens.walk import Walk, WalkStep

_MOST_TOKENS = 24
# What each point of a block is, for someone who sees it for the first time.
_MEANINGS = {
    "resid_pre": "residual stream comes in",
    "attn_in": "norm",
    "q": "queries, rotated by position",
    "k": "keys, rotated by position",
    "v": "values",
    "scores": "queries · keys, scaled",
    "pattern": "softmax: who looks at whom",
    "z": "values mixed by the pattern",
    "attn_out": "output projection: what attention adds",
    "resid_mid": "residual stream + attention",
    "mlp_in": "norm",
    "mlp_act": "feed-forward units: act(gate) · up",
    "mlp_out": "down projection: what the feed-forward adds",
    "resid_post": "residual stream goes out",
}
_OUTER = {
    "embed": "rows of the embedding table",
    "rope": "rotation angles, one for each pair of dimensions",
    "final": "last hidden state",
    "logits": "final norm and head: a score for every token",
    "probs": "softmax",
}


def _tokens(ids: tuple[int, ...], names: dict[int, str]) -> Text:
    line = Text()
    shown = ids[-_MOST_TOKENS:]
    if len(shown) < len(ids):
        line.append(f"… {len(ids) - len(shown)} before  ", style="dim")
    for number, i in enumerate(shown):
        line.append(f" {show_token(names[i])} ", style="reverse" if number % 2 else "bold")
        line.append(f"{i} ", style="dim")
    return line


def make_walk_view(
    seen: "Walk", names: dict[int, str], model: str, text: str
) -> list[RenderableType]:
    """Returns what a terminal shows: one block in full, the others by what they add."""
    first = [s for s in seen.steps if s.name.startswith("0.")]
    outer = {s.name: s for s in seen.steps if "." not in s.name}
    parts: list[RenderableType] = [
        Text.assemble(("one step", "bold"), (f"  {model}", "dim")),
        Text.assemble(("text  ", "dim"), one_line(text)),
        Text("ids   ", style="dim").append_text(_tokens(seen.token_ids, names)),
        heading("into the blocks"),
        _steps([outer[n] for n in ("embed", "rope") if n in outer]),
    ]
    if seen.angles:
        parts.append(
            Text.assemble(
                ("angles of the last position, in radians: ", "dim"),
                ", ".join(f"{a:.3g}" for a in seen.angles[:4]),
                (f" … {seen.angles[-1]:.3g}", "dim"),
            )
        )
    parts += [
        heading("block 0 in full", "shapes of the whole array, length of the last position's part"),
        _steps(first),
        heading("all blocks", "what each adds to the last position, and what it would say then"),
        _blocks(seen, names),
        heading("out of the blocks"),
        _steps([outer[n] for n in ("final", "logits", "probs") if n in outer]),
        heading("next token", f"at temperature {seen.temperature:g}"),
        _next(seen, names),
    ]
    return parts


def _steps(steps: "list[WalkStep]") -> Table:
    table = make_table("", "shape", "length>", "")
    for step in steps:
        point = step.name.rpartition(".")[2]
        shape = " × ".join(map(str, step.shape))
        meaning = _MEANINGS.get(point) or _OUTER[point]
        table.add_row(
            Text(point, style="cyan"), shape, f"{step.norm:.3g}", Text(meaning, style="dim")
        )
    return table


def _blocks(seen: "Walk", names: dict[int, str]) -> Table:
    table = make_table("block>", "attention adds", "feed-forward adds", "turns by>", "would say")
    longest = max((max(a.attention, a.feed_forward) for a in seen.added), default=1.0) or 1.0
    for number, layer in enumerate(seen.lens.layers):
        token, prob = layer[0].top[0]
        said = Text.assemble(show_token(names[token]), (f" {prob:.2f}", "dim"))
        if not seen.added:
            table.add_row(str(number), "", "", "", said)
            continue
        added = seen.added[number]
        cells = [
            bar(x / longest, 12).append(f" {x:.2f}", style="dim")
            for x in (added.attention, added.feed_forward)
        ]
        table.add_row(str(number), *cells, f"{_degrees(added.turn):.0f}°", said)
    return table


def _degrees(cosine: float) -> float:
    from math import acos, degrees

    return degrees(acos(min(max(cosine, -1.0), 1.0)))


def _next(seen: "Walk", names: dict[int, str]) -> Table:
    table = make_table("token", "id>", "probability>", "")
    for i, prob in seen.top:
        table.add_row(Text(show_token(names[i])), str(i), f"{prob:.4f}", bar(prob))
    return table


def make_walk_page(seen: "Walk", names: dict[int, str], model: str, text: str) -> str:
    """Returns a web page with every step of every block."""
    rows: list[list[str | float | int]] = []
    for step in seen.steps:
        block, _, point = step.name.rpartition(".")
        meaning = _MEANINGS.get(point) or _OUTER[point]
        shape = " × ".join(map(str, step.shape))
        rows.append([f"block {block}" if block else "", point, shape, step.norm, meaning])
    ids: list[list[str | float | int]] = [
        [n, show_token(names[i]), i] for n, i in enumerate(seen.token_ids)
    ]
    said: list[list[str | float | int]] = [[show_token(names[i]), i, p] for i, p in seen.top]
    sections = [
        ("Tokens", page.make_table(["position", "token", "id"], ids)),
        ("What each block adds to the last position", _draw_added(seen, names)),
        (
            f"Next token, at temperature {seen.temperature:g}",
            page.make_table(["token", "id", "probability"], said),
        ),
        ("Every step", page.make_table(["", "point", "shape", "length", "what it is"], rows)),
    ]
    return page.make_page("One step", f"{model}: {one_line(text)}", sections)


def _draw_added(seen: "Walk", names: dict[int, str]) -> str:
    longest = max((max(a.attention, a.feed_forward) for a in seen.added), default=1.0) or 1.0
    parts = [
        '<text class="soft" x="60" y="14">attention</text>'
        '<text class="soft" x="330" y="14">feed-forward</text>'
        '<text class="soft" x="600" y="14">the lens then says</text>'
    ]
    for number, layer in enumerate(seen.lens.layers):
        y = 24 + number * 26
        parts.append(f'<text class="soft" x="50" y="{y + 14}" text-anchor="end">{number}</text>')
        token, prob = layer[0].top[0]
        said = page.escape(f"{show_token(names[token])}  {prob:.3f}")
        parts.append(f'<text x="600" y="{y + 14}">{said}</text>')
        if seen.added:
            added = seen.added[number]
            for x, value in ((60, added.attention), (330, added.feed_forward)):
                parts.append(
                    f'<rect x="{x}" y="{y}" width="{200 * value / longest:.1f}" height="18"'
                    f' fill="#2f9e8f"/><text class="soft" x="{x + 206}" y="{y + 14}">{value:.2f}'
                    "</text>"
                )
    return page.make_svg(800, 30 + len(seen.lens.layers) * 26, parts)


# -- feed-forward units ----------------------------------------------------------------------------


def make_neuron_view(
    view: "NeuronView", texts: list[str], names: dict[int, str], model: str
) -> list[RenderableType]:
    """Returns what a terminal shows: the units by layer with their course over the text."""
    table = make_table("layer>", "unit>", "value>", "at", "over the text", "share>", "writes~")
    for number, layer in enumerate(view.layers):
        for index, unit in enumerate(layer):
            writes = "  ".join(show_token(names[i]) for i, _ in unit.writes)
            course = unit.activations[-32:]
            table.add_row(
                Text(str(number) if index == 0 else "", style="bold"),
                str(unit.unit),
                f"{unit.activation:+.2f}",
                Text(show_token(texts[unit.position]), style="cyan"),
                Text(spark([abs(x) for x in course], 0.0), style="cyan"),
                format_share(unit.share),
                Text(writes),
            )
    note = f"  {model}, the most active of {view.d_mlp} in each of {len(view.layers)} layers"
    return [
        Text.assemble(("feed-forward units", "bold"), (note, "dim")),
        Text("share: of the length of all that the feed-forward adds there", style="dim"),
        table,
    ]


def make_neuron_page(
    view: "NeuronView", texts: list[str], names: dict[int, str], model: str
) -> str:
    """Returns a web page: a map of the units over the text for each layer, and what they write."""
    sections = []
    for number, layer in enumerate(view.layers):
        peak = max((abs(x) for unit in layer for x in unit.activations), default=1.0) or 1.0
        picture = page.draw_heat_map(
            [[abs(x) for x in unit.activations] for unit in layer],
            [str(unit.unit) for unit in layer],
            [show_token(t) for t in texts],
            low=0.0,
            high=peak,
            digits=1,
        )
        rows: list[list[str | float | int]] = [
            [
                unit.unit,
                unit.activation,
                show_token(texts[unit.position]),
                "  ".join(show_token(names[i]) for i, _ in unit.writes),
            ]
            for unit in layer
        ]
        table = page.make_table(["unit", "strongest", "at", "writes"], rows)
        sections.append((f"Layer {number}", picture + table))
    lead = f"{model}: the most active of {view.d_mlp} units a layer, and the tokens they write"
    return page.make_page("Feed-forward units", lead, sections)
