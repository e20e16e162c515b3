"""One layer's cache: append, rewind, snapshot, restore, pin.

Knows arrays and positions of one sequence (or a batch in step), never tokens, models or mlx-lm. The
classes with rows answer to the names that mlx-lm's models use (`update_and_fetch`, `make_mask`,
`offset`, ...), so the same objects serve our transformer and the zoo. Layers that drop old rows are
in `window_cache.py`, those without rows in `state_cache.py`, all layers together in
`sequence_cache.py`. Which position to keep, and when to take a snapshot, is the planner's business
(`engine/prefix_cache.py`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import mlx.core as mx

from mlxchat.model.kv_quantization import KVFormat, Rows

Kind = Literal["full", "window", "chunked", "recurrent", "opaque"]
Meta = dict[str, str | int]

GROWTH_STEP = 256  # rows; as mlx-lm: one copy of the buffer pays for this many decoded tokens


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of one layer at one position, in memory of its own.

    Args:
        arrays: The saved arrays, contiguous and evaluated; None where a slot was empty.
        start: Position of the first saved row, for layers that hold rows.
        detail: What only this kind of layer needs to come back.
    """

    arrays: tuple[mx.array | None, ...]
    start: int = 0
    detail: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes held by this snapshot."""
        return sum(array.nbytes for array in self.arrays if array is not None)


class LayerCache(Protocol):
    """What the engine asks of one layer's cache, whatever its kind."""

    kind: Kind

    @property
    def nbytes(self) -> int:
        """Bytes held now, room for growth included."""

    def arrays(self) -> list[mx.array]:
        """Return the arrays to evaluate after a forward pass."""

    def can_rewind(self, pos: int) -> bool:
        """Say whether `rewind(pos)` would be exact."""

    def rewind(self, pos: int) -> None:
        """Forget everything from position `pos` on."""

    def snapshot(self, evaluate: bool = True) -> Snapshot | None:
        """Copy the state, or return None where the position alone brings it back."""

    def restore(self, pos: int, snapshot: Snapshot) -> None:
        """Bring back a snapshot that was taken at position `pos`."""

    def pin(self, pos: int) -> None:
        """Keep what `rewind` needs for every position from `pos` on."""

    def export(
        self, pos: int | None = None, mark: Snapshot | None = None, since: int = 0
    ) -> tuple[Meta, dict[str, mx.array]] | None:
        """Return the state for storage, unevaluated, or None where it has no stored form.

        Args:
            pos: The position whose state is wanted; None for the live one.
            mark: The snapshot taken there, where one was and the layer cannot rewind to it.
            since: Rows before this position are stored elsewhere, where rows never change.
        """

    def load_export(self, meta: Meta, arrays: dict[str, mx.array]) -> None:
        """Take over what `export` returned."""


def make_causal_mask(num_new: int, offset: int, window: int | None = None) -> mx.array:
    """Build the mask of `num_new` queries over `offset` earlier rows and their own.

    Args:
        num_new: Number of queries T.
        offset: Number of rows before the first query.
        window: Queries see at most this many rows, their own included; None for all.

    Returns:
        Boolean array (T, offset + T), true where a query may look.
    """
    rows = mx.arange(offset + num_new)[None]
    queries = mx.arange(offset, offset + num_new)[:, None]
    mask = queries >= rows
    return mask if window is None else mask & (queries < rows + window)


def own(snapshot: Snapshot, evaluate: bool) -> Snapshot:
    """Evaluate the arrays of a snapshot where asked to, and return it."""
    if evaluate:
        mx.eval([array for array in snapshot.arrays if array is not None])
    return snapshot


def share(array: mx.array | None) -> mx.array | None:
    """Return another handle on the same memory: writing to one leaves the other alone."""
    return None if array is None else copy.copy(array)


class RowCache:
    """Keys and values in growing buffers, in order of position.

    Plain rows are in two buffers, "keys" and "values"; quantised ones have two more each. Buffer
    row `i` holds position `origin + i`. Rows are written in place: nothing outside may hold
    the buffer or a slice of it across a write, else MLX copies the whole buffer. Subclasses say
    which rows the model sees and which may be dropped.

    Args:
        step: The buffer grows to whole multiples of this many rows.

    Attributes:
        buffers: By name, equal in shape but for the width: (B, K, capacity, width).
        format: How rows are quantised; None keeps them as they come. Set it on an empty cache.
    """

    kind: Kind
    format: KVFormat | None = None

    def __init__(self, step: int = GROWTH_STEP) -> None:
        self.step = step
        self.buffers: Rows = {}
        self.offset = 0
        self.origin = 0
        self.start_position = 0
        self._pin: int | None = None
        self._reserved = 0

    def first_needed(self, pos: int) -> int:
        """Return the oldest position that a token at `pos` or later looks at."""
        raise NotImplementedError

    def update_and_fetch(
        self, keys: mx.array, values: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        """Append rows and return all rows that the new tokens may look at.

        Args:
            keys: (B, K, T, Dh), rotated.
            values: (B, K, T, Dv), or None where the keys say it all.

        Returns:
            Keys (B, K, S, Dh) and values (B, K, S, Dv), in order of position.
        """
        self.append(keys, values)
        return self.keys_and_values()

    def append(self, keys: mx.array, values: mx.array | None) -> None:
        """Appends rows as `update_and_fetch` does, without returning any."""
        if self.format is not None:
            self.append_rows(self.format.quantise(keys, values))
        else:
            self.append_rows({"keys": keys} if values is None else {"keys": keys, "values": values})

    def append_rows(self, rows: Rows) -> None:
        """Appends rows in the form in which the buffers hold them."""
        self._make_room(rows)
        first = self.offset - self.origin
        last = first + rows["keys"].shape[2]
        for name, new in rows.items():
            self.buffers[name][..., first:last, :] = new
        self.offset = last + self.origin
        self.start_position = self.first_needed(first + self.origin)

    def visible(self) -> Rows:
        """Return the rows that the tokens of the last update may look at, as they are held."""
        rows = slice(self.start_position - self.origin, self.offset - self.origin)
        if rows == slice(0, self.buffers["keys"].shape[2]):
            return self.buffers
        return {name: buffer[..., rows, :] for name, buffer in self.buffers.items()}

    def keys_and_values(self) -> tuple[mx.array, mx.array | None]:
        """Return the rows of the last update again (models that share KV ask for them)."""
        rows = self.visible()
        if self.format is not None:
            return self.format.dequantise(rows)
        return rows["keys"], rows.get("values")

    @property
    def keys(self) -> mx.array | None:
        """The buffer of keys: mlx-lm's models know it by this name, and may replace it."""
        return self.buffers.get("keys")

    @keys.setter
    def keys(self, keys: mx.array) -> None:
        self.buffers["keys"] = keys

    @property
    def values(self) -> mx.array | None:
        """The buffer of values."""
        return self.buffers.get("values")

    @values.setter
    def values(self, values: mx.array) -> None:
        self.buffers["values"] = values

    def reserve(self, total: int) -> None:
        """Make the next growth large enough for `total` positions."""
        self._reserved = total

    def _make_room(self, rows: Rows) -> None:
        """Grow or compact the buffers where the new rows do not fit."""
        num_new = rows["keys"].shape[2]
        held = self.buffers.get("keys")
        if held is not None and self.offset - self.origin + num_new <= held.shape[2]:
            return
        pinned = self.offset if self._pin is None else min(self._pin, self.offset)
        keep = max(self.origin, self.first_needed(pinned))
        wanted = max(self.offset + num_new, self._reserved) - keep
        capacity = -(-wanted // self.step) * self.step
        live = slice(keep - self.origin, self.offset - self.origin)
        old, self.buffers = self.buffers, {}
        for name, new in rows.items():
            self.buffers[name] = _regrow(old.pop(name, None), new, live, capacity)
        self.origin = keep

    @property
    def state(self) -> tuple[mx.array | None, mx.array | None, int]:
        """Buffers and offset, for mlx-lm's own loops."""
        return self.keys, self.values, self.offset

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers, room for growth included."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """Return the buffers that exist."""
        return list(self.buffers.values())

    def size(self) -> int:
        """Return the number of positions fed."""
        return self.offset

    def empty(self) -> bool:
        """Say whether nothing was fed yet."""
        return self.offset == 0

    def is_trimmable(self) -> bool:
        """Say whether mlx-lm's code may trim: our own code asks `can_rewind`."""
        return self.origin == 0

    def trim(self, n: int) -> int:
        """Drop the last `n` positions, in mlx-lm's words, and return how many were dropped."""
        n = min(n, self.offset)
        self.rewind(self.offset - n)
        return n

    def can_rewind(self, pos: int) -> bool:
        """Say whether every row that a token at `pos` needs is still held; at 0 none is."""
        return pos == 0 or (0 < pos <= self.offset and self.first_needed(pos) >= self.origin)

    def rewind(self, pos: int) -> None:
        """Forget positions from `pos` on; at 0 the memory is given back.

        Raises:
            ValueError: Rows that `pos` needs are gone: check `can_rewind` first.
        """
        if not self.can_rewind(pos):
            raise ValueError(f"rows for position {pos} are gone; the first held is {self.origin}")
        self.offset = pos
        self.start_position = self.first_needed(pos)
        if pos == 0:
            self.buffers = {}
            self.origin = 0
            self._pin = None

    def pin(self, pos: int) -> None:
        """Keep the rows that positions from `pos` on need, until the next pin."""
        self._pin = pos

    def snapshot(self, evaluate: bool = True) -> Snapshot | None:
        """Return None: rows before a position never change, so the position is enough."""
        return None

    def restore(self, pos: int, snapshot: Snapshot) -> None:
        """Replace the rows by those of a snapshot taken at `pos`."""
        self.adopt(pos, snapshot.start, rows_of(snapshot))

    def adopt(self, pos: int, start: int, rows: Rows) -> None:
        """Take over rows of positions `start` to `pos`; the first write copies them."""
        self.buffers = {name: copy.copy(array) for name, array in rows.items()}
        self.offset = pos
        self.origin = self.start_position = start

    def copy_rows(self, first: int, last: int) -> Rows:
        """Return the rows of positions `first` to `last`, as they are held, lazily copied."""
        rows = slice(first - self.origin, last - self.origin)
        return {n: mx.contiguous(buffer[..., rows, :]) for n, buffer in self.buffers.items()}

    def _visible_snapshot(self, evaluate: bool) -> Snapshot:
        """Copy the rows that the next token sees."""
        start = self.first_needed(self.offset)
        rows = self.copy_rows(start, self.offset)
        return own(Snapshot(tuple(rows.values()), start, tuple(rows)), evaluate)

    def export(
        self, pos: int | None = None, mark: Snapshot | None = None, since: int = 0
    ) -> tuple[Meta, dict[str, mx.array]] | None:
        """Return the rows that a token at `pos` needs, without room for growth or deleted rows."""
        pos = self.offset if pos is None else pos
        if self.can_rewind(pos):
            start = self.first_needed(pos)
            rows = self.copy_rows(start, pos)
        elif mark is not None:
            start, rows = mark.start, rows_of(mark)
        else:
            return None
        return {"kind": self.kind, "offset": pos, "start": start}, rows

    def load_export(self, meta: Meta, arrays: dict[str, mx.array]) -> None:
        """Take over exported rows; the first write copies them into a buffer with room."""
        self.adopt(int(meta["offset"]), int(meta["start"]), arrays)


def rows_of(snapshot: Snapshot) -> Rows:
    """Return the rows of a layer's snapshot by their names."""
    arrays = zip(snapshot.detail, snapshot.arrays, strict=True)
    return {name: array for name, array in arrays if array is not None}


def _regrow(buffer: mx.array | None, like: mx.array, live: slice, capacity: int) -> mx.array:
    """Copy the `live` rows into a new buffer of `capacity` rows shaped like `like`."""
    batch, heads, _, width = like.shape
    rows = live.stop - live.start
    room = mx.zeros((batch, heads, capacity - rows, width), like.dtype)
    if buffer is None or rows == 0:
        return room
    return mx.concatenate([buffer[..., live, :], room], axis=2)


class FullKV(RowCache):
    """Keys and values of every position: any position can be reached again by the offset alone."""

    kind: Kind = "full"

    def first_needed(self, pos: int) -> int:
        """Return the oldest position that a token at `pos` or later looks at."""
        return 0

    def export(
        self, pos: int | None = None, mark: Snapshot | None = None, since: int = 0
    ) -> tuple[Meta, dict[str, mx.array]] | None:
        """Return the rows from `since` to `pos`."""
        pos = self.offset if pos is None else pos
        if not 0 <= since <= pos <= self.offset:
            return None
        return {"kind": self.kind, "offset": pos, "start": since}, self.copy_rows(since, pos)

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's models name it)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """Return the mask of the next `N` tokens as mlx-lm does: None, "causal" or an array."""
        if window_size is not None:
            return make_causal_mask(N, self.offset, window_size)
        if N == 1:
            return None
        return make_causal_mask(N, self.offset) if return_array else "causal"
