"""From samples to figures: means and spreads, percentiles, shares of what the machine can do."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxchat.bench.workload import Case, Sample


@dataclass(frozen=True, slots=True)
class Row:
    """What one test gave on one system.

    Attributes:
        test: What was measured.
        samples: In order.
        mean_s: Seconds of one repetition, and their spread.
        mean_tok_per_s: Of the repetitions' rates, and their spread.
        gaps_ms: Median, 95th and 99th percentile from token to token ("tg").
        host_ms: Processor time of the driving thread per token.
        peak_memory_bytes: The most of all repetitions.
        kv_bytes: At the end.
        bytes_per_token: Weights and keys and values read for one decoded token ("tg"), if known.
        bandwidth_use: Share of the measured memory bandwidth ("tg").
        matmul_use: Share of the measured matmul rate ("pp"): products with weights only.
    """

    test: Case
    samples: tuple[Sample, ...]
    mean_s: float
    sd_s: float
    mean_tok_per_s: float
    sd_tok_per_s: float
    gaps_ms: dict[str, float] | None
    host_ms: float
    peak_memory_bytes: int
    kv_bytes: int
    bytes_per_token: int | None
    bandwidth_use: float | None
    matmul_use: float | None


def make_rows(tests: Sequence[Case], samples: Sequence[Sample], facts: dict[str, Any]) -> list[Row]:
    """Returns a row for each test that has samples.

    Args:
        tests: In the order of the table.
        samples: Of one system.
        facts: What it said of the model and the machine; empty leaves the shares out.
    """
    by_test: dict[int, list[Sample]] = {}
    for sample in samples:
        by_test.setdefault(sample.test, []).append(sample)
    return [
        _make_row(test, by_test[number], facts)
        for number, test in enumerate(tests)
        if number in by_test
    ]


def _make_row(test: Case, samples: list[Sample], facts: dict[str, Any]) -> Row:
    seconds = [sample.seconds for sample in samples]
    rates = [sample.tok_per_s for sample in samples]
    rate = statistics.fmean(rates)
    is_decode = test.kind == "tg"
    gaps = [gap for sample in samples for gap in sample.gaps_ms]
    kv = samples[-1].kv_bytes
    weights = facts.get("bytes_per_token") if is_decode else None
    read = None if weights is None else weights + kv
    bandwidth, matmul = facts.get("bandwidth"), facts.get("matmul_flops")
    # Weights that stay in the processor's caches say nothing of memory.
    is_stream = weights is not None and weights >= facts.get("smallest_stream", 0)
    params = facts.get("matmul_params") if test.kind == "pp" else None
    return Row(
        test,
        tuple(samples),
        statistics.fmean(seconds),
        spread(seconds),
        rate,
        spread(rates),
        {f"p{p}": percentile(gaps, p) for p in (50, 95, 99)} if gaps else None,
        1e3 * sum(s.host_s for s in samples) / sum(s.num_done for s in samples),
        max(s.peak_memory_bytes for s in samples),
        kv,
        read,
        read * rate / bandwidth if read and is_stream and bandwidth else None,
        2 * params * rate / matmul if params and matmul else None,
    )


def spread(values: Sequence[float]) -> float:
    """Returns the standard deviation of a sample; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns a percentile, interpolated between the two values around it.

    Args:
        values: At least one, in any order.
        percent: From 0 to 100.
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
