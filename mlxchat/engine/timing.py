"""Wall-clock times of one turn, by phase, and the rates that follow from them.

Every phase is measured around synchronised work: its arrays are evaluated before the clock is read.
"""

import itertools
import time
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, rates and bytes of one turn; names and units as in the JSON contract."""

    load_s: float = 0.0
    template_s: float = 0.0
    restore_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    total_s: float = 0.0
    prefill_tok_per_s: float | None = None
    decode_tok_per_s: float | None = None
    inter_token_ms: dict[str, float] | None = None
    peak_memory_bytes: int = 0
    kv_bytes: int = 0
    weight_bytes: int = 0
    bandwidth_use: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the `timing` object of the JSON contract."""
        none: dict[str, float | None] = {"p50": None, "p95": None, "max": None}
        gaps = self.inter_token_ms or none
        return {name: getattr(self, name) for name in self.__slots__} | {"inter_token_ms": gaps}


@dataclass(slots=True)
class Stopwatch:
    """Collects the times of one turn while it runs."""

    start: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)
    token_times: list[float] = field(default_factory=list)
    paused_s: float = 0.0

    def add(self, phase: str, since: float) -> float:
        """Adds the time since `since` to a phase and returns now."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - since
        return now

    def exclude(self, seconds: float) -> None:
        """Leaves seconds out of `ttft_s` and `total_s` (loading, verification)."""
        self.paused_s += seconds

    def token(self) -> None:
        """Notes that a token is in hand."""
        self.token_times.append(time.perf_counter())

    def finish(self, num_prefilled: int, **sizes: Any) -> Timing:
        """Closes the turn.

        Args:
            num_prefilled: Tokens newly read in this turn.
            sizes: Byte counts of `Timing`, and `load_s`.
        """
        times, prefill_s = self.token_times, self.phases.get("prefill", 0.0)
        span = times[-1] - times[0] if times else 0.0
        return Timing(
            template_s=self.phases.get("template", 0.0),
            restore_s=self.phases.get("restore", 0.0),
            prefill_s=prefill_s,
            ttft_s=(times[0] - self.start - self.paused_s) if times else 0.0,
            decode_s=span,
            total_s=time.perf_counter() - self.start - self.paused_s,
            prefill_tok_per_s=num_prefilled / prefill_s if prefill_s > 0 else None,
            decode_tok_per_s=(len(times) - 1) / span if span > 0 else None,
            inter_token_ms=summarise_gaps(times),
            **sizes,
        )


def summarise_gaps(times: list[float]) -> dict[str, float] | None:
    """Returns median, 95th percentile and longest gap between tokens, in milliseconds."""
    gaps = sorted((b - a) * 1e3 for a, b in itertools.pairwise(times))
    if not gaps:
        return None
    if len(gaps) == 1:
        return {"p50": gaps[0], "p95": gaps[0], "max": gaps[0]}
    cuts = quantiles(gaps, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18], "max": gaps[-1]}
