"""What is seen inside a live conversation, for people: lens, attention, reasons, certainty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mlxchat.cli.inspect.paint import bar, heading, make_table, show_token, spark
from mlxchat.cli.inspect.render_lens import count_columns, make_grid, make_story
from mlxchat.cli.render import cut, format_share

if TYPE_CHECKING:
    from mlxchat.lens.live import Why
    from mlxchat.lens.logit_lens import LensView, Reading

_MOST_LAYERS = 14  # rows of a grid; deep models show every second or third layer
_AROUND = 3  # tokens before and after one that is named
_UNSURE = 6
# Columns of what was looked at: the token; weight, bar, `layer 35 head 12: 0.99`, and the gaps.
_TOKEN, _OTHERS = 12, 6 + 6 + 22 + 10
NARROW = 60  # on narrower screens tables have fewer columns


@dataclass(frozen=True, slots=True)
class LensShown:
    """A lens over an answer with the texts of its tokens."""

    view: "LensView"
    texts: dict[int, str]


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a token was chosen.

    Attributes:
        why: What was found.
        texts: All tokens of the conversation.
        names: Texts by id, for the lens.
        start: Where the answer begins.
    """

    why: "Why"
    texts: list[str]
    names: dict[int, str]
    start: int


@dataclass(frozen=True, slots=True)
class Sure:
    """How sure each token of an answer was."""

    readings: "tuple[Reading, ...]"
    texts: list[str]
    names: dict[int, str]


def make_lens_view(shown: LensShown, width: int) -> list[RenderableType]:
    """Returns a grid: below each written token what each layer would have said instead."""
    view = shown.view
    if len(view.positions) == 1:
        word = Text.assemble(
            ("in place of ", "dim"), (show_token(shown.texts[view.final[0]]), "bold")
        )
        return [word, make_story(view, shown.texts, 0, width)]
    count = count_columns(view, width)
    step = -(-len(view.layers) // _MOST_LAYERS)
    heads = view.final[:count]
    table = make_grid(view, shown.texts, heads, range(count), step=step, marks_final=True)
    settled = [Text("settled", style="dim")]
    settled += [Text(f"layer {view.settled_at(i)}", style="cyan") for i in range(count)]
    table.add_row(*settled)
    note = "above: what was written; below: the likeliest after each layer, brighter is surer"
    more = len(view.positions) - count
    lines: list[RenderableType] = [Text(note, style="dim"), table]
    if more:
        lines.append(Text(f"{more} more tokens; /lens WORD shows a word of them", style="dim"))
    return lines


def make_attention_view(found: Explained, console: Console) -> list[RenderableType]:
    """Returns the conversation with what was looked at made bright, and the brightest listed."""
    word = show_token(found.texts[found.why.position])
    return [
        Text.assemble(("when it wrote ", "dim"), (word, "bold"), (" it looked at", "dim")),
        _sources(found, console.width),
        Text(
            f"{format_share(found.why.resting)} of the attention rested on the first token"
            " and on the place itself",
            style="dim",
        ),
    ]


def _sources(found: Explained, width: int) -> Table:
    """Returns what was looked at; where columns are short, the words around it give way.

    On a narrow screen only the weight and its head are left.
    """
    layers = [_at_most(s.by_layer, _MOST_LAYERS) for s in found.why.sources]
    taken = _TOKEN + max(len("by layer"), *map(len, layers)) + _OTHERS
    around = min(max(width - taken, 8), 24)
    if width < NARROW:
        table = make_table("token", "weight>", "most in")
        for source in found.why.sources:
            token = cut(show_token(found.texts[source.position]), _TOKEN)
            layer, head, _ = source.best
            table.add_row(token, f"{source.weight:.3f}", f"layer {layer} head {head}")
        return table
    table = make_table("token", "in", "by layer", "weight>", "", "most in")
    where = "layer {} head {}: {:.2f}"
    strongest = max((s.weight for s in found.why.sources), default=1.0) or 1.0
    for source, by_layer in zip(found.why.sources, layers, strict=True):
        layer, head, weight = source.best
        table.add_row(
            Text(cut(show_token(found.texts[source.position]), _TOKEN), style="bold"),
            _around(found.texts, source.position, around),
            Text(spark(by_layer, 0.0), style="cyan"),
            f"{source.weight:.3f}",
            bar(source.weight / strongest, 6),
            Text(where.format(layer, head, weight), style="dim"),
        )
    return table


def _at_most(values: Sequence[float], count: int) -> list[float]:
    """Returns so many values at most: of neighbours that share a place the largest."""
    size = -(-len(values) // count)
    return [max(values[at : at + size]) for at in range(0, len(values), size)]


def _around(texts: list[str], position: int, width: int) -> Text:
    line = Text(style="dim")
    for place in range(max(position - _AROUND, 0), min(position + _AROUND + 1, len(texts))):
        text = show_token(texts[place]).replace("·", " ")
        line.append(text, style="bold" if place == position else "")
    line.truncate(width, overflow="ellipsis")
    return line


def make_why_view(found: Explained, console: Console) -> list[RenderableType]:
    """Returns what was looked at, and the layers that settled the word."""
    why, lens = found.why, found.why.lens
    word, readings = show_token(found.texts[why.position]), [r[0] for r in lens.layers]
    settled = lens.settled_at(0)
    head = Text.assemble(("why ", "dim"), (word, "bold"))
    if readings[-1].rank == 1:
        head.append(f"  layer {settled} of {len(readings) - 1} settled it", style="dim")
    else:
        head.append(f"  it was number {readings[-1].rank}: sampling chose it", style="dim")
    is_narrow = console.width < NARROW
    if is_narrow:
        table = make_table("layer>", "likeliest", "rank>", "prob.>", "")
    else:
        table = make_table("layer>", "likeliest then", "rank>", "probability>", "")
    step = -(-len(readings) // _MOST_LAYERS)
    for number, reading in enumerate(readings):
        if (len(readings) - 1 - number) % step and number != settled:
            continue
        token = show_token(found.names[reading.top[0][0]])
        sign = " ◀" if is_narrow else " ◀ settled"
        mark = Text(sign, style="green") if number == settled else Text("")
        table.add_row(
            str(number),
            Text(token, style="bold" if token == word else ""),
            str(reading.rank),
            f"{reading.prob:.3f}",
            bar(reading.prob, 4 if is_narrow else 10).append_text(mark),
        )
    return [head, table, heading("it looked at"), *make_attention_view(found, console)[1:]]


def make_confidence_view(sure: Sure, width: int) -> list[RenderableType]:
    """Returns the answer with doubtful tokens marked, and what else they could have been."""
    line = Text()
    for text, reading in zip(sure.texts, sure.readings, strict=True):
        shown = show_token(text).replace("·", " ")
        line.append(shown, style=_sureness(reading.prob))
        if text.endswith("\n"):
            line.append("\n")
    probs = [r.prob for r in sure.readings]
    logs = [math.log(max(p, 1e-12)) for p in probs]
    mean = math.exp(sum(logs) / len(logs))
    doubts = sorted(range(len(probs)), key=probs.__getitem__)[:_UNSURE]
    table = make_table("token", "probability>", "", "could have been~")
    num_bars = 4 if width < NARROW else 10
    for index in sorted(doubts):
        if probs[index] > 0.99 and len(table.rows):
            continue
        reading = sure.readings[index]
        others = "  ".join(
            f"{show_token(sure.names[i])} {p:.2f}" for i, p in reading.top if p >= 0.005
        )
        token = Text(show_token(sure.texts[index]), style=_sureness(probs[index]))
        table.add_row(
            token, f"{probs[index]:.3f}", bar(probs[index], num_bars), Text(others, style="dim")
        )
    facts = f"{len(probs)} tokens, mean probability {mean:.3f} (geometric), lowest {min(probs):.3f}"
    course = Text(spark(probs[-60:], 0.0, 1.0), style="cyan")
    return [line, course, Text(facts, style="dim"), heading("least sure of"), table]


def _sureness(prob: float) -> str:
    """Returns how a token looks: the less sure, the more it stands out."""
    if prob >= 0.9:
        return ""
    return "yellow" if prob >= 0.5 else "bold red"
