"""Figures of the history to text and to a page; pure functions."""

import json
import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlxchat.chat.timings import (
    PHASES,
    Span,
    Totals,
    TurnFigures,
    add_up,
    by_turn,
    count_together,
    places_of,
)
from mlxchat.cli.plots import format_bars, format_points, format_stacked
from mlxchat.cli.render import (
    cut,
    format_columns,
    format_count,
    format_counts_in,
    format_rate,
    format_seconds,
    format_share,
    format_tokens,
    one_line,
    short_model,
)
from mlxchat.cli.render_history import TITLE_CHARS

# More bars than this are joined to spans of turns.
BARS_IN_TEXT, BARS_ON_PAGE = 24, 60


@dataclass(frozen=True, slots=True)
class Told:
    """A conversation and its figures.

    Attributes:
        id: Its number.
        title: As lists show it.
        turns: In the order of time.
        without: Numbers of the turns that have no figures.
    """

    id: int
    title: str
    turns: tuple[TurnFigures, ...]
    without: tuple[int, ...] = ()


def format_json(told: Sequence[Told], machine: dict[str, Any]) -> str:
    """Returns everything as JSON."""
    turns = [turn for one in told for turn in one.turns]
    data = {
        "machine": machine,
        "conversations": [
            {"id": one.id, "title": one.title, "turns": [asdict(turn) for turn in one.turns]}
            for one in told
        ],
        "totals": asdict(add_up(turns)) if turns else None,
    }
    return json.dumps(data, indent=1)


# -- text ----------------------------------------------------------------------------------------


def format_timings(told: Sequence[Told], *, width: int = 80, is_coloured: bool = False) -> str:
    """Returns tables and charts of characters.

    Args:
        told: One conversation is shown turn by turn, more are shown each in a row.
        width: Columns.
        is_coloured: The terminal shows colours.
    """
    turns = [turn for one in told for turn in one.turns]
    if len(told) == 1:
        head = f"Conversation {told[0].id}: {cut(one_line(told[0].title), TITLE_CHARS)}"
        parts = [head, _turn_table(told[0], width)]
    else:
        parts = [f"{format_count(len(told))} conversations", _conversation_table(told, width)]
    spans = by_turn(turns, BARS_IN_TEXT)
    is_joined = len(told) > 1 or len(spans) < len(turns)
    parts += [
        "\n".join(_fill(line, width) for line in format_summary(add_up(turns)).split("\n")),
        format_bars(
            f"Time to first token by turn{_joined_by('medians', is_joined)}",
            [(span.label, span.median_ttft_s) for span in spans],
            "s",
            width,
        ),
        format_stacked(
            f"Tokens of the prompt by turn{_joined_by('means', is_joined)}",
            [(span.label, _prompt_parts(span)) for span in spans],
            ("reused", "read"),
            "tokens",
            width,
            is_coloured=is_coloured,
        ),
        format_points(
            "Decode rate by depth", rate_points(turns), "depth, tokens in the cache", "tok/s", width
        ),
        _phase_table(turns, width, is_coloured=is_coloured),
        "\n".join(["Measured on", *(_fill(f"  {one_line(p)}", width) for p in places_of(turns))]),
    ]
    return "\n\n".join(parts)


def _fill(line: str, width: int) -> str:
    """Breaks a line that is too wide; what goes on is indented further."""
    indent = " " * (2 + len(line) - len(line.lstrip()))
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)


def _joined_by(way: str, is_joined: bool) -> str:
    return f" ({way})" if is_joined else ""


def _prompt_parts(span: Span) -> tuple[float, float]:
    """Returns the tokens of a prompt that were reused, and those that were read: a span's means."""
    cached, read = (t.num_cached for t in span.turns), (t.num_read for t in span.turns)
    return statistics.fmean(cached), statistics.fmean(read)


def rate_points(turns: Sequence[TurnFigures]) -> list[tuple[float, float]]:
    """Returns depth and decode rate of the turns that have one."""
    return [(float(t.depth), t.decode_tok_per_s) for t in turns if t.decode_tok_per_s]


_TURN_HEADER = (
    *("turn", "prompt", "reused", "read", "idle", "from"),
    *("ttft", "answer", "tok/s", "total"),
)


def turn_cells(turn: TurnFigures) -> tuple[str, ...]:
    """Returns a row of the table of turns."""
    return (
        str(turn.number),
        format_count(turn.depth),
        format_count(turn.num_cached),
        format_count(turn.num_read),
        format_count(turn.num_idle),
        turn.source,
        format_seconds(turn.ttft_s),
        format_count(turn.num_answer),
        format_rate(turn.decode_tok_per_s),
        format_seconds(turn.total_s),
    )


# What the columns are, for whoever sees them the first time.
_LEGEND = (
    "prompt, reused, read, idle and answer in tokens; idle: read before the message was sent; from:"
    " where what was reused lay"
)


def _turn_table(told: Told, width: int) -> str:
    table = format_columns(_TURN_HEADER, [turn_cells(turn) for turn in told.turns])
    found: dict[str, list[int]] = {}
    for turn in told.turns:
        found.setdefault(explain_reading(turn), []).append(turn.number)
    reasons = [f"{_name_turns(numbers)}: {why}" for why, numbers in found.items() if why]
    notes = [_LEGEND, *reasons, *_tell_missing(told)]
    return "\n".join([table, "", *(_fill(note, width) for note in notes)])


def _tell_missing(told: Told) -> list[str]:
    """Returns a line on the turns that have no figures, where there are such."""
    if not told.without:
        return []
    return [f"{_name_turns(told.without)}: no figures; stopped, failed or stripped"]


def _name_turns(numbers: Sequence[int]) -> str:
    """Returns `turn 3`, or `turns 3, 5-9`; numbers ascend."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    named = ", ".join("-".join(map(str, run)) for run in runs)
    return f"turn{'s' if len(numbers) > 1 else ''} {named}"


def explain_reading(turn: TurnFigures) -> str:
    """Returns why a turn read more than its message; empty where it did not."""
    _, found, why = turn.reason.partition(f", read {turn.num_read}")
    text = why.removeprefix(" (").removesuffix(")") if found else turn.reason
    return format_counts_in(one_line(text))


_CONVERSATION_HEADER = ("id", "turns", "reused", "read", "ttft", "tok/s", "model", "title")


def conversation_cells(one: Told) -> tuple[str, ...]:
    """Returns a row of the table of conversations."""
    totals = add_up(one.turns)
    return (
        str(one.id),
        format_count(totals.num_turns),
        format_count(totals.num_cached),
        format_count(totals.num_read),
        format_seconds(totals.median_ttft_s),
        format_rate(totals.median_tok_per_s),
        cut(short_model(one.turns[-1].model), 24),
        cut(one_line(one.title), TITLE_CHARS),
    )


def _conversation_table(told: Sequence[Told], width: int) -> str:
    rows = [conversation_cells(one) for one in told]
    before = format_columns(_CONVERSATION_HEADER[:-1], [row[:-1] for row in rows])
    room = max(width - max(map(len, before.splitlines())) - 2, 12)
    return format_columns(_CONVERSATION_HEADER, [(*row[:-1], cut(row[-1], room)) for row in rows])


def format_summary(totals: Totals) -> str:
    """Returns what the turns add up to, in two lines."""
    prompt = totals.num_cached + totals.num_read
    # Rounded down: 100 % means all.
    share = f" ({100 * totals.num_cached // prompt} %)" if prompt else ""
    reuse = (
        f"{format_count(totals.num_cached)}{share} of {format_count(prompt)} prompt tokens reused,"
        f" {format_count(totals.num_read)} read, {format_count(totals.num_idle)} more in idle time"
    )
    rate = totals.median_tok_per_s
    rates = "" if rate is None else f", {format_rate(rate)} tok/s"
    drafts = ""
    if totals.num_drafted:
        share = format_share(totals.num_accepted / totals.num_drafted)
        drafts = f"\n{share} of {format_count(totals.num_drafted)} drafted tokens accepted"
    return (
        f"{reuse}\n{format_tokens(totals.num_answer)} answered; medians: first token"
        f" {format_seconds(totals.median_ttft_s)}{rates}{drafts}"
    )


def phase_rows(totals: Totals) -> list[tuple[str, float, float]]:
    """Returns phases with seconds and share of the time of all turns."""
    whole = sum(totals.phases_s.values()) or 1.0
    return [(name, totals.phases_s[name], totals.phases_s[name] / whole) for name in PHASES]


def _tell_together(turns: Sequence[TurnFigures]) -> list[str]:
    """Returns a line on times that are counted more than once, where there are such."""
    count = count_together(turns)
    return [f"{count} answers came several at a time, and the time of each counts"] if count else []


def _phase_table(turns: Sequence[TurnFigures], width: int, *, is_coloured: bool) -> str:
    totals = add_up(turns)
    bar = format_stacked(
        "Where the time went",
        [("all turns", list(totals.phases_s.values()))],
        PHASES,
        "s",
        width,
        is_coloured=is_coloured,
    )
    rows = [
        f"  {name:<12} {format_seconds(seconds):>12}  {format_share(share):>5}"
        for name, seconds, share in phase_rows(totals)
    ]
    if totals.load_s:
        rows.append(f"  {'model load':<12} {format_seconds(totals.load_s):>12}  apart")
    rows += [_fill(f"  {line}", width) for line in _tell_together(turns)]
    return "\n".join([bar, *rows])


# -- page ----------------------------------------------------------------------------------------


def make_timings_page(told: Sequence[Told], machine_lines: Sequence[str]) -> str:
    """Returns one page that stands alone, with charts.

    Args:
        told: One conversation is shown turn by turn, more are shown each in a row.
        machine_lines: On the machine where the page was made.
    """
    from mlxchat.cli.page import escape, make_page, make_table

    turns = [turn for one in told for turn in one.turns]
    totals = add_up(turns)
    if len(told) == 1:
        title = f"Timings of conversation {told[0].id}: {one_line(told[0].title)}"
        header = (*(_UNITS.get(name, name) for name in _TURN_HEADER), "why")
        notes = "".join(f"<p>{escape(note)}</p>" for note in (_LEGEND, *_tell_missing(told[0])))
        table = ("Turns", make_table(header, [_page_cells(turn) for turn in turns]) + notes)
    else:
        title = "Timings of all conversations"
        rows = [conversation_cells(one) for one in told]
        table = ("Conversations", make_table(_CONVERSATION_HEADER, rows))
    places = "".join(f"<li>{escape(one_line(line))}</li>" for line in places_of(turns))
    made = "".join(f"<li>{escape(line)}</li>" for line in machine_lines)
    sections = [
        *_page_charts(turns, totals, is_one=len(told) == 1),
        table,
        ("Measured on", f"<ul>{places}</ul>"),
        ("This page was made on", f"<ul>{made}</ul>"),
    ]
    return make_page(title, format_summary(totals).replace("\n", " · "), sections)


def _page_charts(
    turns: Sequence[TurnFigures], totals: Totals, *, is_one: bool
) -> list[tuple[str, str]]:
    """Returns the charts under their headings."""
    from mlxchat.cli.charts import draw_points, draw_stacked
    from mlxchat.cli.page import escape, make_table

    spans = by_turn(turns, BARS_ON_PAGE)
    is_joined = not is_one or len(spans) < len(turns)
    models = list(dict.fromkeys(turn.model for turn in turns))
    rates = [
        (short_model(model), rate_points([t for t in turns if t.model == model]))
        for model in models
    ]
    phases = [
        (name, format_seconds(seconds), format_share(share, 1))
        for name, seconds, share in phase_rows(totals)
    ]

    together = "".join(f"<p>{escape(line)}</p>" for line in _tell_together(turns))

    def stacked(
        values: Callable[[Span], list[float]], parts: Sequence[str], axis: str, unit: str
    ) -> str:
        return draw_stacked([(s.label, values(s)) for s in spans], parts, "turn", axis, unit=unit)

    ttft = stacked(lambda s: [s.median_ttft_s], ("first token",), "time to first token, s", "s")
    prompt = stacked(lambda s: list(_prompt_parts(s)), ("reused", "read"), "tokens", "tokens")
    whole = stacked(
        lambda s: [_mean(s.turns, name) for name in PHASES],
        PHASES,
        "mean time, s" if is_joined else "time, s",
        "s",
    )
    decode = draw_points(
        [(name, points) for name, points in rates if points],
        "depth, tokens in the cache",
        "decode rate, tok/s",
    )
    return [
        (f"Time to first token by turn{_joined_by('medians', is_joined)}", ttft),
        (
            f"Tokens of the prompt by turn: reused and read{_joined_by('means', is_joined)}",
            prompt,
        ),
        ("Decode rate by depth", decode),
        (
            "Where the time of each turn went",
            whole + make_table(("phase", "time", "share"), phases) + together,
        ),
    ]


_UNITS = {"ttft": "ttft, s", "total": "total, s"}


def _page_cells(turn: TurnFigures) -> tuple[str | float | int, ...]:
    """Returns a row of the table of turns with numbers as numbers, for the page to align."""
    rate = turn.decode_tok_per_s
    return (
        turn.number,
        turn.depth,
        turn.num_cached,
        turn.num_read,
        turn.num_idle,
        turn.source,
        turn.ttft_s,
        turn.num_answer,
        "-" if rate is None else round(rate),
        turn.total_s,
        explain_reading(turn),
    )


def _mean(turns: Sequence[TurnFigures], phase: str) -> float:
    return sum(turn.phases_s[phase] for turn in turns) / len(turns)
