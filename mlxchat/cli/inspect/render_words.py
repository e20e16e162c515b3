"""Words near words, and one word in many texts, for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli import page
from mlxchat.cli.inspect.paint import bar, make_table, number_cell, show_token, spark
from mlxchat.cli.render import one_line

if TYPE_CHECKING:
    from mlxchat.lens.context import ContextView

Named = list[tuple[int, str, float]]


@dataclass(frozen=True, slots=True)
class Title:
    """What a view is of.

    Attributes:
        what: The command.
        of: The words.
        model: Its name.
        metric: Of the scores.
        note: What a person should know of the words; may be empty.
    """

    what: str
    of: str
    model: str
    metric: str
    note: str

    def lines(self) -> list[RenderableType]:
        """Returns the title as a terminal shows it."""
        head = Text.assemble(
            (f"{self.what} ", "bold"), (one_line(self.of), "bold cyan"), (f"  {self.model}", "dim")
        )
        return [head, Text(one_line(self.note), style="yellow")] if self.note else [head]

    def page_lead(self) -> str:
        """Returns the line below the title of a page."""
        return f"{self.model}, {self.metric}" + (f"; {self.note}" if self.note else "")


def make_view(title: Title, tables: Sequence[tuple[str, Named]]) -> list[RenderableType]:
    """Returns tokens with their scores."""
    parts = title.lines()
    for name, rows in tables:
        table = make_table("token", "id>", f"{title.metric}>", "", title=name or None)
        best = max((abs(score) for _, _, score in rows), default=1.0) or 1.0
        for i, text, score in rows:
            share = score if title.metric == "cosine" else score / best
            table.add_row(Text(show_token(text)), str(i), f"{score:.3f}", bar(share))
        parts.append(table)
    return parts


def make_page(title: Title, tables: Sequence[tuple[str, Named]]) -> str:
    """Returns a web page of the same."""
    sections = []
    for name, rows in tables:
        best = max((abs(score) for _, _, score in rows), default=1.0) or 1.0
        parts = []
        for number, (i, text, score) in enumerate(rows):
            y = 4 + number * 24
            parts.append(
                f'<text x="150" y="{y + 15}" text-anchor="end">{page.escape(show_token(text))}'
                f'</text><rect x="160" y="{y}" width="{max(score, 0) / best * 400:.1f}" height="20"'
                f' fill="#2f9e8f"><title>id {i}: {score:.6f}</title></rect>'
                f'<text class="soft" x="570" y="{y + 15}">{score:.3f}</text>'
            )
        sections.append((name, page.make_svg(640, 10 + 24 * len(rows), parts)))
    return page.make_page(f"{title.what.capitalize()} {title.of}", title.page_lead(), sections)


# -- one word in many texts ------------------------------------------------------------------------


def make_context_view(
    title: Title, view: "ContextView", texts: Sequence[str]
) -> list[RenderableType]:
    """Returns the texts, and the likeness of the word in each pair, layer by layer."""
    listed = make_table("", "~")
    for number, text in enumerate(texts, 1):
        listed.add_row(Text(str(number), style="bold"), Text(one_line(text)))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("layer", justify="right")
    for a, b in view.pairs:
        table.add_column(f"{a + 1} and {b + 1}", justify="right", no_wrap=True)
    for number, row in enumerate(view.layers):
        name = "0 embedding" if number == 0 else str(number)
        table.add_row(name, *(number_cell(f"{cosine:.4f}", cosine) for cosine in row))
    curves = [[row[i] for row in view.layers] for i in range(len(view.pairs))]
    low = min(min(curve) for curve in curves)
    table.add_row("", *(Text(spark(curve, low, 1.0), style="cyan") for curve in curves))
    return [*title.lines(), listed, table]


def make_context_page(title: Title, view: "ContextView", texts: Sequence[str]) -> str:
    """Returns a web page with one curve for each pair of texts."""
    rows: list[list[str | float | int]] = [[n, text] for n, text in enumerate(texts, 1)]
    names = [f"{a + 1} and {b + 1}" for a, b in view.pairs]
    return page.make_page(
        f"{title.what.capitalize()} {title.of}",
        title.page_lead(),
        [
            ("Texts", page.make_table(["", "text"], rows)),
            ("Likeness by layer", _curves(view, names)),
            (
                "Numbers",
                page.draw_heat_map(
                    [list(row) for row in view.layers],
                    [f"layer {n}" for n in range(len(view.layers))],
                    names,
                    low=min(min(row) for row in view.layers),
                    high=1.0,
                    digits=3,
                ),
            ),
        ],
    )


def _curves(view: "ContextView", names: Sequence[str]) -> str:
    width, height, left, top = 560, 260, 60, 16
    low = min(0.0, min(min(row) for row in view.layers))
    steps = max(len(view.layers) - 1, 1)

    def at(layer: int, cosine: float) -> str:
        x, y = left + width * layer / steps, top + height * (1 - cosine) / (1 - low)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for value in (1.0, 0.5, 0.0):
        y = at(0, value).split(",")[1]
        parts.append(
            f'<line class="line" x1="{left}" x2="{left + width}" y1="{y}" y2="{y}"/>'
            f'<text class="soft" x="{left - 8}" y="{y}" text-anchor="end">{value:g}</text>'
        )
    for layer in range(steps + 1):
        x = left + width * layer / steps
        parts.append(
            f'<text class="soft" x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{layer}'
            "</text>"
        )
    for i, name in enumerate(names):
        colour = page.GROUP_COLOURS[i % len(page.GROUP_COLOURS)]
        points = " ".join(at(layer, row[i]) for layer, row in enumerate(view.layers))
        last = at(steps, view.layers[-1][i]).split(",")
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{float(last[0]) + 8:.0f}" y="{last[1]}" style="fill:{colour}">{name}</text>'
        )
    return page.make_svg(left + width + 90, top + height + 30, parts)
