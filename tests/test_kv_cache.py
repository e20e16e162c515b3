"""Caches with rows against a plain list, and against the mlx-lm classes whose place they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from mlxchat.model.kv_cache import FullKV, RowCache, Snapshot
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.state_cache import Opaque, RecurrentState
from mlxchat.model.window_cache import ChunkedKV, WindowKV

BATCH, HEADS, KEY_WIDTH, VALUE_WIDTH = 2, 3, 4, 2
WINDOW, CHUNK = 6, 5


def rows(ids: list[int]) -> tuple[mx.array, mx.array]:
    """Make keys (B, K, T, 4) and values (B, K, T, 2) that carry their id in every number."""
    column = mx.array(ids, mx.float32).reshape(1, 1, -1, 1)
    head = mx.arange(HEADS).reshape(1, -1, 1, 1) / 8
    keys = mx.broadcast_to(column + head, (BATCH, HEADS, len(ids), KEY_WIDTH))
    values = mx.broadcast_to(-column - head, (BATCH, HEADS, len(ids), VALUE_WIDTH))
    return keys, values


def read(keys: mx.array, values: mx.array) -> list[int]:
    """Return the ids of fetched rows, having checked that every number carries them."""
    ids = [int(i) for i in keys[0, 0, :, 0].tolist()]
    expected_keys, expected_values = rows(ids)
    assert mx.array_equal(keys, expected_keys)
    assert mx.array_equal(values, expected_values)
    return ids


def append(cache: Any, ids: list[int]) -> list[int]:
    """Append rows and return the ids that the cache hands to the model."""
    keys, values = cache.update_and_fetch(*rows(ids))
    mx.eval(keys, values)
    return read(keys, values)


@dataclass
class Mark:
    """A remembered place: the ids held there and the snapshot taken."""

    ids: list[int]
    snapshot: Snapshot | None


class RowCacheMachine(RuleBasedStateMachine):
    """Random histories of one cache; the list `held` is assumed to be perfect."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = self.make()
        self.held: list[int] = []
        self.marks: list[Mark] = []
        self.next_id = 1
        self.pinned: int | None = None

    def make(self) -> RowCache:
        raise NotImplementedError

    def first_seen(self, pos: int) -> int:
        """Return the first position that a token at `pos` looks at, by definition of the kind."""
        raise NotImplementedError

    @rule(count=st.integers(1, 23))
    def append_rows(self, count: int) -> None:
        new = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        first = self.first_seen(len(self.held))
        self.held += new
        assert append(self.cache, new) == self.held[first:]
        assert self.cache.offset == len(self.held)
        assert read(*self.cache.keys_and_values()) == self.held[first:]

    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        pos = data.draw(st.integers(0, len(self.held)))
        if self.pinned is not None and pos >= self.pinned:
            assert self.cache.can_rewind(pos)
        if not self.cache.can_rewind(pos):
            with pytest.raises(ValueError, match="are gone"):
                self.cache.rewind(pos)
            return
        self.cache.rewind(pos)
        self.held = self.held[:pos]
        if pos == 0 or (self.pinned is not None and pos < self.pinned):
            self.pinned = None

    @rule()
    def pin(self) -> None:
        self.pinned = len(self.held)
        self.cache.pin(self.pinned)

    @rule()
    def take_snapshot(self) -> None:
        self.marks.append(Mark(list(self.held), self.cache.snapshot()))

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        mark = data.draw(st.sampled_from(self.marks))
        pos = len(mark.ids)
        if mark.snapshot is None:
            if self.held[:pos] != mark.ids:
                return  # rows of another branch: such a mark is no longer valid
            self.cache.rewind(pos)
        else:
            self.cache.restore(pos, mark.snapshot)
        self.held = list(mark.ids)
        self.pinned = None

    @rule()
    def store_and_load(self) -> None:
        meta, arrays = self.cache.export()
        first = self.first_seen(len(self.held))
        assert all(array.shape[2] == len(self.held) - first for array in arrays.values())
        self.cache = self.make()
        self.cache.load_export({name: str(value) for name, value in meta.items()}, arrays)
        self.pinned = None


class FullMachine(RowCacheMachine):
    def make(self) -> RowCache:
        return FullKV(step=8)

    def first_seen(self, pos: int) -> int:
        return 0


class WindowMachine(RowCacheMachine):
    def make(self) -> RowCache:
        return WindowKV(WINDOW, step=8)

    def first_seen(self, pos: int) -> int:
        return max(0, pos - WINDOW + 1)


class ChunkedMachine(RowCacheMachine):
    def make(self) -> RowCache:
        return ChunkedKV(CHUNK, step=8)

    def first_seen(self, pos: int) -> int:
        return pos - pos % CHUNK


for machine in (FullMachine, WindowMachine, ChunkedMachine):
    machine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestFull = FullMachine.TestCase
TestWindow = WindowMachine.TestCase
TestChunked = ChunkedMachine.TestCase


def visible(ids: list[int], mask: Any, num_new: int) -> list[set[int]]:
    """Return for each query the ids that a mask in mlx-lm's forms lets it see."""
    if mask is None:
        mask = mx.ones((num_new, len(ids)), mx.bool_)
    elif isinstance(mask, str):
        old = len(ids) - num_new
        mask = mx.arange(len(ids))[None] <= mx.arange(old, len(ids))[:, None]
    lines = mask.reshape(-1, len(ids)).tolist()
    return [{i for i, seen in zip(ids, line, strict=True) if seen} for line in lines]


FEEDS = [[1] * 15, [4, 1, 1, 1, 1, 1, 1, 5, 1], [20, 1, 1], [3, 9, 1, 2, 1, 7], [6, 1, 1], [5, 2]]


@pytest.mark.parametrize("return_array", [False, True])
@pytest.mark.parametrize("narrower", [None, WINDOW, 4])
@pytest.mark.parametrize("feed", FEEDS)
def test_window_shows_each_query_what_the_rotating_cache_shows(
    feed: list[int], narrower: int | None, return_array: bool
) -> None:
    """Rows and masks together give every query the same rows as mlx-lm's RotatingKVCache."""
    from mlx_lm.models.cache import RotatingKVCache

    ours, theirs, fed = WindowKV(WINDOW, step=8), RotatingKVCache(max_size=WINDOW), 0
    for count in feed:
        new = list(range(fed + 1, fed + count + 1))
        fed += count
        seen = []
        for cache in (ours, theirs):
            mask = cache.make_mask(count, window_size=narrower, return_array=return_array)
            seen.append(visible(append(cache, new), mask, count))
        assert seen[0] == seen[1]


@pytest.mark.parametrize("feed", FEEDS)
def test_full_returns_rows_and_masks_of_mlx_lm(feed: list[int]) -> None:
    """FullKV hands out the same rows in the same order, and the same kinds of masks."""
    from mlx_lm.models.cache import KVCache

    ours, theirs, fed = FullKV(step=8), KVCache(), 0
    for count in feed:
        new = list(range(fed + 1, fed + count + 1))
        fed += count
        for options in ({}, {"return_array": True}, {"window_size": 3}):
            asked = {"return_array": False, "window_size": None, **options}
            left, right = ours.make_mask(count, **asked), theirs.make_mask(count, **asked)
            assert type(left) is type(right)
            assert left == right if not isinstance(left, mx.array) else mx.array_equal(left, right)
        assert append(ours, new) == append(theirs, new)
        assert ours.offset == theirs.offset == ours.size()


def test_chunked_shows_each_query_its_chunk() -> None:
    """The mask that Llama 4 builds from start_position fits the rows, also after a rewind."""
    cache, held = ChunkedKV(CHUNK, step=8), []
    for count, back_to in [(3, None), (9, None), (1, 12), (1, None), (7, 13), (4, None)]:
        if back_to is not None:
            cache.rewind(back_to)
            held = held[:back_to]
        cache.maybe_trim_front()
        positions = mx.arange(cache.start_position, cache.offset + count)
        queries = mx.arange(cache.offset, cache.offset + count)[:, None]
        mask = (positions // CHUNK == queries // CHUNK) & (positions <= queries)
        first_query = cache.offset
        new = [100 * count + i for i in range(count)]
        held += new
        cache.pin(cache.offset)
        seen = visible(append(cache, new), mask, count)
        for pos, ids in enumerate(seen, start=first_query):
            assert ids == set(held[pos - pos % CHUNK : pos + 1])


def test_decode_writes_in_place() -> None:
    """One more row costs no second buffer: the peak stays within a small part of the buffer."""
    caches = [FullKV(), WindowKV(2000)]
    for cache in caches:
        cache.update_and_fetch(mx.zeros((1, 8, 2000, 64)), mx.zeros((1, 8, 2000, 64)))
        mx.eval(cache.arrays())
        held = cache.nbytes
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        for _ in range(20):
            keys, values = cache.update_and_fetch(mx.ones((1, 8, 1, 64)), mx.ones((1, 8, 1, 64)))
            mx.eval(keys.sum(), values.sum(), cache.arrays())
            del keys, values
        assert cache.nbytes == held
        assert mx.get_peak_memory() - before < held / 20


def test_window_memory_stays_bounded() -> None:
    """Without a pin the window's buffer does not grow with the sequence."""
    cache = WindowKV(WINDOW, step=8)
    sizes = set()
    for i in range(100):
        append(cache, [i])
        sizes.add(cache.keys.shape[2])
    assert max(sizes) <= 16


def test_reserve_allocates_once() -> None:
    """With the length announced, a prompt in chunks never copies its buffer."""
    cache = FullKV(step=8)
    cache.reserve(100)
    capacities = set()
    for i in range(20):
        append(cache, [5 * i + j for j in range(5)])
        capacities.add(cache.keys.shape[2])
    assert capacities == {104}


def test_values_may_be_missing() -> None:
    """A cache of keys alone appends, rewinds and is stored."""
    cache = FullKV(step=4)
    keys = rows([1, 2, 3, 4, 5])[0]
    fetched, values = cache.update_and_fetch(keys, None)
    assert values is None
    assert mx.array_equal(fetched, keys)
    cache.rewind(2)
    assert list(cache.export()[1]) == ["keys"]
    assert mx.array_equal(cache.keys_and_values()[0], keys[..., :2, :])


def test_rewind_to_zero_gives_memory_back() -> None:
    """An emptied cache holds nothing and takes another batch size."""
    cache = FullKV()
    append(cache, [1, 2, 3])
    cache.rewind(0)
    window = WindowKV(WINDOW, step=8)
    append(window, list(range(30)))
    append(window, list(range(30)))
    window.rewind(0)  # also where a window has moved on
    assert append(window, [1, 2]) == [1, 2]
    assert (cache.nbytes, cache.empty(), cache.arrays()) == (0, True, [])
    assert cache.update_and_fetch(mx.zeros((5, 1, 2, 4)), mx.zeros((5, 1, 2, 4)))[0].shape[0] == 5


def test_trim_speaks_mlx_lms_language() -> None:
    """mlx-lm's own loops can trim our full cache and see that a slid window cannot be trimmed."""
    full, window = FullKV(), WindowKV(WINDOW, step=8)
    append(full, list(range(10)))
    assert (full.is_trimmable(), full.trim(4), full.offset) == (True, 4, 6)
    append(window, list(range(30)))
    assert window.is_trimmable()
    append(window, list(range(30)))
    assert not window.is_trimmable()


def _recurrent(slots: int = 3) -> RecurrentState:
    from mlx_lm.models.cache import ArraysCache

    return RecurrentState(ArraysCache(size=slots))


def test_recurrent_snapshot_survives_and_owns_its_memory() -> None:
    """A snapshot keeps dtype and empty slots, and not the large array that a slot was cut from."""
    state = _recurrent()
    large = mx.random.normal((1, 500, 64), key=mx.random.key(0))
    state.raw[0] = large[:, -3:]
    state.raw[2] = mx.ones((1, 4), mx.bfloat16)
    mx.eval(state.arrays())
    wanted = state.raw[0].tolist()
    before = mx.get_active_memory()
    snapshot = state.snapshot()
    assert snapshot.nbytes == 3 * 64 * 4 + 4 * 2
    state.raw[0] = state.raw[0] * 0
    state.raw[2] = None
    mx.eval(state.arrays())
    del large
    assert mx.get_active_memory() < before - 100_000
    for _ in range(2):
        state.restore(7, snapshot)
        assert state.raw[0].tolist() == wanted
        assert (state.raw[1], state.raw[2].dtype) == (None, mx.bfloat16)
        state.raw[0][...] = 5.0  # even a write into the state leaves the snapshot alone
    assert not state.can_rewind(7)
    with pytest.raises(ValueError, match="restore a snapshot"):
        state.rewind(7)
    state.rewind(0)
    assert state.raw.cache == [None] * 3


class Odd:
    """A cache class that nobody knows."""

    def __init__(self) -> None:
        self.offset = 0
        self.parts: list[mx.array] = []
        self.named = {"sum": mx.zeros((2,))}

    def feed(self, value: float) -> None:
        self.offset += 1
        self.parts.append(mx.full((2,), value))
        self.named["sum"] += value


def test_opaque_copies_the_whole_object() -> None:
    """Unknown caches come back with all their attributes, as often as wanted."""
    layer = Opaque(Odd())
    layer.raw.feed(1.0)
    layer.raw.feed(2.0)
    snapshot = layer.snapshot()
    assert snapshot.nbytes == layer.nbytes == 3 * 8
    for _ in range(2):
        layer.raw.feed(4.0)
        assert layer.raw.named["sum"].tolist() == [7.0, 7.0]
        layer.restore(2, snapshot)
        assert layer.raw.named["sum"].tolist() == [3.0, 3.0]
        assert (layer.raw.offset, len(layer.raw.parts)) == (2, 2)
    assert layer.export() is None  # nested attributes have no stored form
    layer.rewind(0)
    assert (layer.raw.offset, layer.raw.parts) == (0, [])


def _sequence() -> SequenceCache:
    layers = [FullKV(step=8), WindowKV(WINDOW, step=8), _recurrent(1)]
    return SequenceCache([layers[0], layers[1], layers[2].raw], layers)


def _advance(cache: SequenceCache, ids: list[int]) -> None:
    for layer in cache.layers[:2]:
        append(layer, ids)
    cache.layers[2].raw[0] = mx.array([float(ids[-1])])


def test_sequence_restores_every_layer_or_none() -> None:
    """Marks bring all layers back; where one cannot go back, nothing moves."""
    cache = _sequence()
    _advance(cache, [1, 2, 3])
    marks = cache.snapshot()
    assert [mark is None for mark in marks] == [True, False, False]
    only_state = cache.snapshot(kinds={"recurrent", "opaque"})
    assert [mark is None for mark in only_state] == [True, True, False]
    _advance(cache, list(range(4, 40)))
    _advance(cache, list(range(40, 60)))
    assert cache.offsets() == {59}
    assert not cache.can_restore(3, only_state)
    with pytest.raises(ValueError, match="no way back"):
        cache.restore(3, only_state)
    with pytest.raises(ValueError, match="no way back"):
        cache.rewind(3)
    assert cache.offsets() == {59}
    cache.restore(3, marks)
    assert cache.offsets() == {3}
    assert cache.raw[2][0].tolist() == [3.0]
    assert append(cache.layers[1], [4]) == [1, 2, 3, 4]


def test_sequence_is_stored_under_layer_numbers() -> None:
    """What is exported loads into a fresh cache of the same kinds, and into no other."""
    cache = _sequence()
    _advance(cache, list(range(30)))
    meta, arrays = cache.export()
    assert set(arrays) == {"0.keys", "0.values", "1.keys", "1.values", "2.0"}
    assert arrays["1.keys"].shape[2] == WINDOW - 1
    fresh = _sequence()
    fresh.load_export(meta, arrays)
    assert append(fresh.layers[0], [30]) == list(range(31))
    assert append(fresh.layers[1], [30]) == list(range(25, 31))
    assert fresh.raw[2][0].tolist() == [29.0]
    with pytest.raises(ValueError, match="another model"):
        SequenceCache([], [FullKV()] * 3).load_export(meta, arrays)
    assert (fresh.kinds, fresh.nbytes > 0) == ({"full", "window", "recurrent"}, True)
