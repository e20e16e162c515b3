"""Times of a turn: what is counted, what is left out, and the rates that follow."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.engine import timing
from mlxchat.engine.timing import Stopwatch, summarise_gaps

CONTRACT = {
    "load_s",
    "template_s",
    "restore_s",
    "prefill_s",
    "ttft_s",
    "decode_s",
    "total_s",
    "prefill_tok_per_s",
    "decode_tok_per_s",
    "inter_token_ms",
    "peak_memory_bytes",
    "kv_bytes",
    "weight_bytes",
    "bandwidth_use",
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets: its only item is now."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def run_turn(clock: list[float]) -> Stopwatch:
    """1 s template, 2 s restore, 4 s prefill, three tokens 0.5 s and 0.25 s apart, 1 s to end."""
    watch = Stopwatch(start=clock[0])
    now = clock[0]
    for phase, seconds in (("template", 1.0), ("restore", 2.0), ("prefill", 4.0)):
        clock[0] += seconds
        now = watch.add(phase, now)
    for gap in (1.0, 0.5, 0.25):
        clock[0] += gap
        watch.token()
    clock[0] += 1.0
    return watch


def test_phases_and_rates(clock: list[float]) -> None:
    """Phases are summed apart; rates follow the definitions of the contract."""
    got = run_turn(clock).finish(20, kv_bytes=7, weight_bytes=9, peak_memory_bytes=11, load_s=3.0)
    assert (got.template_s, got.restore_s, got.prefill_s) == (1.0, 2.0, 4.0)
    assert got.ttft_s == 8.0  # from the message to the first token
    assert got.decode_s == 0.75  # first to last token
    assert got.total_s == 9.75
    assert got.prefill_tok_per_s == 5.0
    assert got.decode_tok_per_s == 2 / 0.75  # tokens - 1
    assert (got.load_s, got.kv_bytes, got.weight_bytes, got.peak_memory_bytes) == (3.0, 7, 9, 11)


def test_excluded_time_is_in_no_sum(clock: list[float]) -> None:
    """Time that was left out shortens time to first token and the total, nothing else."""
    watch = run_turn(clock)
    watch.exclude(2.5)
    got = watch.finish(20)
    assert (got.ttft_s, got.total_s) == (5.5, 7.25)
    assert (got.prefill_s, got.decode_s) == (4.0, 0.75)


def test_a_phase_may_come_twice(clock: list[float]) -> None:
    """Times of the same phase add up, and `add` returns now."""
    watch = Stopwatch(start=clock[0])
    for _ in range(2):
        since = clock[0]
        clock[0] += 1.5
        assert watch.add("prefill", since) == clock[0]
    assert watch.finish(6).prefill_s == 3.0


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_too_few_tokens_for_a_rate(clock: list[float], num_tokens: int) -> None:
    """One token has no gap and no rate; none has no time to first token either."""
    watch = Stopwatch(start=clock[0])
    clock[0] += 1.0
    for _ in range(num_tokens):
        watch.token()
    got = watch.finish(0)
    assert got.decode_tok_per_s is None
    assert got.prefill_tok_per_s is None
    assert got.inter_token_ms is None
    assert got.ttft_s == num_tokens
    assert got.decode_s == 0.0


def test_json_has_the_keys_of_the_contract(clock: list[float]) -> None:
    """Every key is there, in an empty turn as well; gaps are an object of numbers or nulls."""
    full: dict[str, Any] = run_turn(clock).finish(20).to_json()
    empty: dict[str, Any] = Stopwatch(start=clock[0]).finish(0).to_json()
    for got in (full, empty):
        assert got.keys() == CONTRACT
        assert got["inter_token_ms"].keys() == {"p50", "p95", "max"}
    assert set(empty["inter_token_ms"].values()) == {None}
    assert full["inter_token_ms"]["max"] == 500.0


@bounded(max_examples=80)
@given(st.lists(st.floats(0, 10, allow_nan=False), min_size=2, max_size=40))
def test_gap_summary(gaps: list[float]) -> None:
    """Median and 95th percentile lie among the gaps, in order, in milliseconds."""
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    got = summarise_gaps(times)
    assert got is not None
    exact = sorted((b - a) * 1e3 for a, b in itertools.pairwise(times))
    assert exact[0] - 1e-6 <= got["p50"] <= got["p95"] + 1e-6 <= got["max"] + 2e-6
    assert got["max"] == exact[-1]
    below = sum(gap <= got["p50"] + 1e-6 for gap in exact)
    assert below >= len(exact) / 2
    assert sum(gap <= got["p95"] + 1e-6 for gap in exact) >= 0.9 * len(exact) - 1
