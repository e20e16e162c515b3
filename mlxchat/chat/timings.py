"""What the history says of speed: one row of figures per turn, and what many of them add up to.

Only turns that ended well have figures. Free of MLX.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxchat.chat.history_record import Record, TurnRecord

# Where the time of a turn goes, in the order in which it passes.
PHASES = ("template", "restore", "prefill", "first token", "decode", "rest")


@dataclass(frozen=True, slots=True)
class TurnFigures:
    """One turn.

    Attributes:
        conversation: Its number.
        number: Of the turn in it, all branches in the order of time.
        depth: Ids in the cache when the answer began.
        num_idle: Ids that idle time had read for it: settled, and read while the person typed.
        phases_s: Seconds by `PHASES`; the load of the model is none of them.
        num_drafted: Ids that speculation foresaw.
        num_accepted: Those that stood.
        settings: What was set of the sampling, and how the model decoded.
    """

    conversation: int
    number: int
    started_at: float
    model: str
    on: dict[str, str]
    depth: int
    num_cached: int
    num_read: int
    num_idle: int
    num_answer: int
    source: str
    reason: str
    ttft_s: float
    total_s: float
    load_s: float
    phases_s: dict[str, float]
    prefill_tok_per_s: float | None
    decode_tok_per_s: float | None
    peak_memory_bytes: int
    kv_bytes: int
    num_drafted: int = 0
    num_accepted: int = 0
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """What turns add up to.

    Attributes:
        phases_s: Seconds by phase.
        load_s: Seconds that models took to load, apart.
    """

    num_turns: int
    num_cached: int
    num_read: int
    num_idle: int
    num_answer: int
    median_ttft_s: float
    median_tok_per_s: float | None
    phases_s: dict[str, float]
    load_s: float
    num_drafted: int
    num_accepted: int


def read_figures(record: Record) -> list[TurnFigures]:
    """Returns the figures of a conversation's turns, in the order of time."""
    found = []
    for number, turn in enumerate(record.turns, start=1):
        if turn.result is not None:
            found.append(_read_turn(record.summary.id, number, turn, turn.result))
    return found


def numbers_without_figures(record: Record) -> tuple[int, ...]:
    """Returns the numbers of the turns that have none."""
    return tuple(n for n, turn in enumerate(record.turns, start=1) if turn.result is None)


def _read_turn(
    conversation: int, number: int, turn: TurnRecord, result: dict[str, Any]
) -> TurnFigures:
    usage, timing = result["usage"], result["timing"]
    cache, speculation = result.get("cache") or {}, result.get("speculation") or {}
    before = {name: float(timing.get(f"{name}_s") or 0.0) for name in PHASES[:3]}
    ttft_s, decode_s = float(timing["ttft_s"]), float(timing["decode_s"])
    total_s = float(timing["total_s"])
    phases = before | {
        "first token": max(0.0, ttft_s - sum(before.values())),
        "decode": decode_s,
        "rest": max(0.0, total_s - ttft_s - decode_s),
    }
    return TurnFigures(
        conversation,
        number,
        turn.started_at,
        str(turn.model or result.get("model") or "?"),
        dict(turn.settings.get("on") or {}),
        int(usage["prompt_tokens"]),
        int(usage["cached_tokens"]),
        int(usage["prefill_tokens"]),
        int(usage.get("settle_tokens") or 0) + int(usage.get("typeahead_tokens") or 0),
        int(usage["completion_tokens"]),
        str(cache.get("source") or ""),
        str(cache.get("reason") or ""),
        ttft_s,
        total_s,
        float(timing.get("load_s") or 0.0),
        phases,
        timing.get("prefill_tok_per_s"),
        timing.get("decode_tok_per_s"),
        int(timing.get("peak_memory_bytes") or 0),
        int(timing.get("kv_bytes") or 0),
        int(speculation.get("drafted") or 0),
        int(speculation.get("accepted") or 0),
        _describe_settings(turn.settings),
    )


def _describe_settings(settings: dict[str, Any]) -> str:
    """Returns what of a turn's settings decides how fast it is, in words."""
    words = {
        "kv_bits": "KV in {} bits",
        "speculate": "speculation {}",
        "draft_model": "drafts by {}",
    }
    sampling = settings.get("sampling") or {}
    parts = [f"{name.replace('_', '-')} {value}" for name, value in sampling.items()]
    parts += [text.format(settings[name]) for name, text in words.items() if settings.get(name)]
    return ", ".join(parts)


def add_up(turns: Sequence[TurnFigures]) -> Totals:
    """Returns what turns, at least one, add up to."""
    rates = [turn.decode_tok_per_s for turn in turns if turn.decode_tok_per_s]
    return Totals(
        len(turns),
        sum(turn.num_cached for turn in turns),
        sum(turn.num_read for turn in turns),
        sum(turn.num_idle for turn in turns),
        sum(turn.num_answer for turn in turns),
        statistics.median(turn.ttft_s for turn in turns),
        statistics.median(rates) if rates else None,
        {name: sum(turn.phases_s[name] for turn in turns) for name in PHASES},
        sum(turn.load_s for turn in turns),
        sum(turn.num_drafted for turn in turns),
        sum(turn.num_accepted for turn in turns),
    )


@dataclass(frozen=True, slots=True)
class Span:
    """Turns that a chart shows as one, because there are too many.

    Attributes:
        label: `7`, or `7-12`.
        turns: At least one.
    """

    label: str
    turns: tuple[TurnFigures, ...]

    @property
    def median_ttft_s(self) -> float:
        """Median time to the first token."""
        return statistics.median(turn.ttft_s for turn in self.turns)


def by_turn(turns: Sequence[TurnFigures], most: int) -> list[Span]:
    """Returns turns by their number in their conversation, in at most so many spans."""
    last = max((turn.number for turn in turns), default=0)
    size = -(-last // most) or 1
    spans = []
    for first in range(1, last + 1, size):
        inside = tuple(t for t in turns if first <= t.number < first + size)
        if inside:
            end = min(first + size - 1, last)
            spans.append(Span(str(first) if end == first else f"{first}-{end}", inside))
    return spans


def count_together(turns: Sequence[TurnFigures]) -> int:
    """Counts the turns that answered a question together with others: `/retry N`, `--samples`."""
    groups = Counter((turn.conversation, turn.started_at) for turn in turns)
    return sum(count for count in groups.values() if count > 1)


def places_of(turns: Sequence[TurnFigures]) -> list[str]:
    """Returns what the turns were measured on, each once: model, backend, versions, settings."""
    lines = []
    for turn in turns:
        on = turn.on
        if not on:
            lines.append(f"{turn.model}: versions and machine were not kept")
            continue
        lines.append(
            f"{turn.model} on {on.get('backend') or '?'}, {on.get('system') or '?'};"
            f" mlxchat {on.get('mlxchat') or '?'}, mlx {on.get('mlx') or '?'}"
            + (f"; {turn.settings}" if turn.settings else "")
        )
    return list(dict.fromkeys(lines))
