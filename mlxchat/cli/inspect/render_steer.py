"""Steering vectors for people: layers, strengths, and answers side by side."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.inspect.paint import bar, heading, make_table
from mlxchat.cli.render import format_age, format_share, one_line, sanitize

if TYPE_CHECKING:
    from mlxchat.lens.steering_file import SteeringInfo

Results = Sequence[tuple[float, list[int], str]]
# Below this the vector does not do what its pairs do.
WEAK = 0.1


def best_strength(info: "SteeringInfo") -> dict[str, Any]:
    """Returns the strength that was measured to come nearest to the positive prompts."""
    return max(info.sweep, key=lambda s: float(s["effect"]))


def format_verdict(info: "SteeringInfo") -> str:
    """Returns one line on whether the vector works, and how to use it."""
    best = best_strength(info)
    where = "pairs kept back" if info.held_out else "the pairs that it was made from"
    if best["effect"] < WEAK:
        return (
            f"It does not work: measured on {where}, no strength brings the answers nearer to the"
            " positive ones. Try more pairs, or --layer."
        )
    return (
        f"Strongest at {best['coeff']:g}: {format_share(best['effect'])} of the way to the positive"
        f" answers, measured on {where}. Use it with /steer {info.name} {best['coeff']:g}"
    )


def format_summary(info: "SteeringInfo") -> str:
    """Returns one line on how it was made."""
    age = format_age(max(0.0, time.time() - info.created))
    return (
        f"{one_line(info.model)} · {info.num_pairs} pairs · added after block {info.layer} · {age}"
    )


def make_list(infos: Sequence["SteeringInfo"]) -> Table:
    """Returns the table of all vectors."""
    table = make_table("name", "model", "layer>", "pairs>", "strongest at>", "effect>", "made>")
    for info in infos:
        best = best_strength(info)
        table.add_row(
            info.name,
            one_line(info.model),
            str(info.layer),
            str(info.num_pairs),
            f"{best['coeff']:g}",
            format_share(best["effect"]),
            format_age(max(0.0, time.time() - info.created)),
        )
    return table


def make_view(info: "SteeringInfo") -> list[RenderableType]:
    """Returns what a terminal shows of one vector."""
    return [
        Text.assemble((info.name, "bold"), (f"  {format_summary(info)}", "dim")),
        *(Text(sanitize(f"+ {text}"), style="green", no_wrap=True) for text in info.positive),
        *(Text(sanitize(f"- {text}"), style="red", no_wrap=True) for text in info.negative),
        heading("layers", "tells apart: held-out pairs; effect: of strength 1"),
        _make_layers(info),
        heading("strengths", f"added after block {info.layer}"),
        _make_sweep(info),
        Text(""),
        Text(format_verdict(info)),
    ]


def _make_layers(info: "SteeringInfo") -> Table:
    table = make_table(
        *(
            "layer>",
            "length>",
            "of stream>",
            "tells apart>",
            "gap>",
            "1st component>",
            "effect>",
            "",
        )
    )
    for number, facts in enumerate(info.layers):
        effect, apart = facts["effect"], facts["separation"]
        table.add_row(
            f"{number}{' ◀' if number == info.layer else '  '}",
            f"{facts['norm']:.3g}",
            format_share(facts["share"]),
            "" if apart is None else format_share(apart),
            f"{facts['gap']:.1f}σ",
            format_share(facts["explained"]),
            "" if effect is None else format_share(effect),
            bar(effect or 0.0, 16),
        )
    return table


def _make_sweep(info: "SteeringInfo") -> Table:
    table = make_table("strength>", "effect>", "", "away from plain>")
    for one in info.sweep:
        table.add_row(
            f"{one['coeff']:g}",
            format_share(one["effect"]),
            bar(one["effect"], 16),
            f"{one['divergence']:.2f} nats",
        )
    return table


def make_page(info: "SteeringInfo") -> str:
    """Returns a web page of one vector."""
    layers = [
        [
            number,
            facts["norm"],
            facts["share"],
            "" if facts["separation"] is None else float(facts["separation"]),
            facts["gap"],
            facts["explained"],
            "" if facts["effect"] is None else float(facts["effect"]),
        ]
        for number, facts in enumerate(info.layers)
    ]
    header = ["layer", "length", "of stream", "tells apart", "gap", "1st component", "effect"]
    sweep = [[float(s["coeff"]), s["effect"], s["divergence"]] for s in info.sweep]
    prompts = [["+", text] for text in info.positive] + [["-", text] for text in info.negative]
    curve = [(float(s["coeff"]), max(float(s["effect"]), -1.0)) for s in info.sweep]
    return page.make_page(
        f"Steering vector {info.name}",
        f"{format_summary(info)}. {format_verdict(info)}",
        [
            ("Prompts", page.make_table(["", "begins"], prompts)),
            ("Effect by strength", draw_curve(curve)),
            ("", page.make_table(["strength", "effect", "divergence"], sweep)),
            ("Layers", page.make_table(header, layers)),
        ],
    )


def draw_curve(points: Sequence[tuple[float, float]], width: int = 560, height: int = 220) -> str:
    """Draws effects by strength, from -1 to 1, with 0 as a line."""
    left, top, right = 40, 10, max(x for x, _ in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x / right * (width - left - 20), top + (1 - y) / 2 * (height - 40)

    parts = []
    for level in (-1.0, 0.0, 1.0):
        (x1, y), (x2, _) = place(0, level), place(right, level)
        parts.append(f'<line class="line" x1="{x1:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="4" y="{y + 4:.1f}">{format_share(level)}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(x, y) for x, y in [(0, 0), *points]))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#0b6e99" stroke-width="2"/>')
    for x, y in points:
        at_x, at_y = place(x, y)
        parts.append(
            f"<g><title>{x:g}: {format_share(y, 1)}</title>"
            f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="4" fill="#0b6e99"/>'
            f'<text class="soft" x="{at_x - 6:.1f}" y="{height - 8}">{x:g}</text></g>'
        )
    return page.make_svg(width, height, parts)


def make_answers(
    info: "SteeringInfo", layer: int, prompt: str, results: Results
) -> list[RenderableType]:
    """Returns the answers by strength."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("strength", justify="right")
    table.add_column("answer", ratio=1)
    for coeff, _, text in results:
        style = "dim" if coeff == 0 else ""
        table.add_row(f"{coeff:g}", Text(sanitize(text.strip()) or "(nothing)", style=style))
    title = Text.assemble(
        (info.name, "bold"), (f"  {one_line(info.model)} · added after block {layer}", "dim")
    )
    return [title, Text(sanitize(prompt), style="bold"), Text(""), table]


def make_answers_page(info: "SteeringInfo", layer: int, prompt: str, results: Results) -> str:
    """Returns a web page of the answers by strength."""
    rows = [[f"{coeff:g}", text] for coeff, _, text in results]
    return page.make_page(
        f"Steered by {info.name}",
        f"{info.model} · added after block {layer}",
        [(prompt, page.make_table(["strength", "answer"], rows))],
    )
