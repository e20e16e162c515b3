"""Lengths of prefill chunks on simulated devices."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.engine import chunking
from mlxchat.engine.chunking import (
    FAST_TOK_PER_S,
    FIRST_CHUNK,
    LARGEST_CHUNK,
    TARGET_S,
    PrefillChunker,
)

Device = Callable[[int], float]


def prefill(chunker: PrefillChunker, device: Device, total: int) -> list[tuple[int, float]]:
    """Feeds `total` tokens and returns (length, seconds) of each chunk."""
    chunks = []
    while total:
        size = min(chunker.size, total)
        chunks.append((size, device(size)))
        chunker.observe(size, device(size))
        total -= size
    return chunks


def prefill_seconds(device: Device, size: int, total: int) -> float:
    """Seconds that chunks of one length take."""
    return total / size * device(size)


def device(overhead_s: float, tok_per_s: float) -> Device:
    """A device that takes a fixed time for each chunk and a time for each token."""
    return lambda size: overhead_s + size / tok_per_s


@bounded(max_examples=150)
@given(st.floats(0, 0.1), st.floats(150, 0.9 * FAST_TOK_PER_S), st.integers(1, 5000))
def test_chunks_of_slow_devices_keep_to_the_target(
    overhead_s: float, tok_per_s: float, total: int
) -> None:
    """No chunk is longer than the target but the first size, and its double, tried once."""
    chunks = prefill(PrefillChunker(), device(overhead_s, tok_per_s), total)
    longer = [size for size, seconds in chunks if seconds > TARGET_S * 1.0001]
    assert longer.count(2 * FIRST_CHUNK) <= 1
    assert all(size <= 2 * FIRST_CHUNK for size in longer)


@bounded(max_examples=150)
@given(
    st.floats(0, 0.2),
    st.floats(1, 1e7),
    st.integers(1, 60_000),
    st.sampled_from([8, 16, 64, 512, LARGEST_CHUNK]),
)
def test_lengths_are_powers_of_two_within_bounds(
    overhead_s: float, tok_per_s: float, total: int, largest: int
) -> None:
    """All but the last chunk are powers of two from 16 up to the largest."""
    chunker = PrefillChunker(largest=largest)
    chunks = prefill(chunker, device(overhead_s, tok_per_s), total)
    assert chunks[0][0] == min(FIRST_CHUNK, largest, total)
    for size, seconds in chunks[:-1]:
        assert size & (size - 1) == 0
        assert min(FIRST_CHUNK, largest) <= size <= largest
        # Longer only where a pass by itself takes so long, and for one try beyond.
        assert seconds <= max(2 * TARGET_S, 4 * overhead_s) * 1.0001 or size <= 2 * FIRST_CHUNK


def test_fast_devices_get_the_largest_chunks_soon() -> None:
    """A fast device reaches the largest length within five chunks, by jumps of at most four."""
    chunks = [size for size, _ in prefill(PrefillChunker(), device(0.001, 50_000), 10_000)]
    assert chunks[:5] == [16, 64, 256, 1024, 2048]
    assert max(chunks) == LARGEST_CHUNK


def test_a_slow_device_settles() -> None:
    """At 500 tokens a second, 64 take 128 ms: the length goes there and stays."""
    chunks = [size for size, _ in prefill(PrefillChunker(), device(0.0, 500), 1000)]
    assert chunks[:2] == [16, 64]
    assert set(chunks[1:-1]) == {64}


def test_a_chunk_that_took_too_long_is_followed_by_a_shorter_one() -> None:
    """Where rates fall with depth, lengths fall with them, down to the first one."""
    chunker = PrefillChunker(size=256)
    for expected in (128, 64, 32, 16, 16):
        chunker.observe(chunker.size, 2 * TARGET_S + 0.1 + chunker.size / 100)
        assert chunker.size == expected


def test_where_passes_cost_more_than_tokens_lengths_grow() -> None:
    """A pass that takes 0.3 s whatever it holds: 16 tokens of it are 53 a second, 1024 are 2000."""
    costly = device(0.3, 5000)
    chunks = prefill(PrefillChunker(), costly, 20_000)
    assert [size for size, _ in chunks[:6]] == [16, 32, 64, 128, 256, 512]
    assert {size for size, _ in chunks[7:-1]} == {512}
    seconds = sum(s for _, s in chunks)
    assert seconds < 0.1 * prefill_seconds(costly, FIRST_CHUNK, 20_000)


def test_where_tokens_cost_more_than_passes_lengths_stay() -> None:
    """A device that reads 60 tokens a second tries 32 once and goes back to 16 for good."""
    chunks = prefill(PrefillChunker(), device(0.02, 60), 1000)
    assert [size for size, _ in chunks[:3]] == [16, 32, 16]
    assert {size for size, _ in chunks[3:-1]} == {16}


def test_a_fast_device_trades_latency_for_throughput() -> None:
    """Where a longer chunk gains a tenth, a fast device takes up to twice the target, and stays."""
    gains = device(0.04, 8000)  # 512: 0.104 s, 1024: 0.168 s and 24 % more tokens a second
    sizes = [size for size, _ in prefill(PrefillChunker(), gains, 20_000)]
    assert set(sizes[8:-1]) == {1024}
    assert TARGET_S < gains(1024) <= 2 * TARGET_S


def test_a_fast_device_turns_back_where_nothing_is_gained() -> None:
    """A doubling that does not pay is tried once and then left alone."""
    flat = device(0.0, 6000)  # 512: 0.085 s, 1024: 0.17 s at the same rate
    sizes = [size for size, _ in prefill(PrefillChunker(), flat, 40_000)]
    assert sizes.count(1024) <= 1
    assert set(sizes[6:-1]) == {512}


def test_a_short_chunk_says_nothing() -> None:
    """The rest of a prompt, and a clock that stood still, change nothing."""
    chunker = PrefillChunker()
    for num_tokens, seconds in ((5, 1e-6), (5, 9.0), (16, 0.0), (16, -1.0)):
        chunker.observe(num_tokens, seconds)
        assert chunker.size == FIRST_CHUNK


def test_measure_takes_the_time_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` observes the seconds inside it; a block that fails says nothing."""
    now = [0.0]
    monkeypatch.setattr(chunking.time, "perf_counter", lambda: now[0])
    chunker = PrefillChunker()
    with chunker.measure(16):
        now[0] += 0.016
    assert chunker.size == 64
    with pytest.raises(ZeroDivisionError), chunker.measure(64):
        now[0] += 9.0 / 0
    assert chunker.size == 64


def test_an_estimate_takes_the_rate_of_the_nearest_shorter_chunk():
    """How long tokens will take follows from the longest chunk that is not longer than they are."""
    chunker = PrefillChunker()
    assert chunker.estimate_s(10) is None
    chunker.observe(3, 0.1)  # too short to say anything
    assert chunker.estimate_s(10) is None
    chunker.observe(12, 0.12)
    assert chunker.estimate_s(400) == pytest.approx(4.0)
    chunker.observe(chunker.size, chunker.size / 1000)
    assert chunker.estimate_s(400) == pytest.approx(0.4)
    assert chunker.estimate_s(10) == pytest.approx(0.1)
    assert chunker.estimate_s(1) == pytest.approx(0.01)
