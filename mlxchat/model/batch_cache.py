"""Several sequences in one cache: stacked to a batch, thinned out, taken out again.

The rows of a batch go on in step. Shorter sequences stand at the right: before them lie rows that
are padding, and `SequenceCache.padding` says how many. Only our own transformer looks at it, so
other models take sequences of one length.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxchat.model.kv_cache import LayerCache, RowCache, make_causal_mask
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.state_cache import RecurrentState
from mlxchat.model.window_cache import ChunkedKV


def can_stack(cache: SequenceCache) -> bool:
    """Whether every layer is of a kind that can hold several sequences."""
    return all(isinstance(layer, RowCache | RecurrentState) for layer in cache.layers)


def stack(empty: SequenceCache, caches: Sequence[SequenceCache], lengths: Sequence[int]) -> None:
    """Fills an empty cache with several sequences, which stay as they are.

    Args:
        empty: Made by the model's `make_cache`.
        caches: One sequence each; the same one may stand there several times.
        lengths: Positions that each holds.

    Raises:
        ValueError: A layer cannot hold several sequences, or not of different lengths.
    """
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    for i, layer in enumerate(empty.layers):
        parts = [cache.layers[i] for cache in caches]
        if isinstance(layer, RowCache):
            _stack_rows(layer, parts, lengths, padding)
        elif isinstance(layer, RecurrentState) and not any(padding):
            states = [part.raw.cache for part in parts if isinstance(part, RecurrentState)]
            layer.raw.cache = [_join(slots) for slots in zip(*states, strict=True)]
        else:
            raise ValueError(f"a layer of kind {layer.kind} holds no such batch")
    empty.padding = mx.array(padding) if any(padding) else None


def _stack_rows(
    into: RowCache, parts: Sequence[LayerCache], lengths: Sequence[int], padding: Sequence[int]
) -> None:
    if isinstance(into, ChunkedKV) and any(padding):
        raise ValueError("chunks of sequences of different lengths do not lie side by side")
    longest = max(lengths)
    first = into.first_needed(longest)
    keys: list[mx.array | None] = []
    values: list[mx.array | None] = []
    made: dict[int, tuple[mx.array | None, mx.array | None]] = {}
    for part, length in zip(parts, lengths, strict=True):
        assert isinstance(part, RowCache)
        if id(part) not in made:
            _, *rows = part.rows_for(length)
            made[id(part)] = (_pad(rows[0], longest - first), _pad(rows[1], longest - first))
        keys.append(made[id(part)][0])
        values.append(made[id(part)][1])
    into.adopt(longest, first, _join(keys), _join(values))


def _pad(rows: mx.array | None, wanted: int) -> mx.array | None:
    """Puts empty rows before (B, K, S, Dh), so that there are `wanted`."""
    if rows is None or rows.shape[2] == wanted:
        return rows
    return mx.pad(rows, [(0, 0), (0, 0), (wanted - rows.shape[2], 0), (0, 0)])


def _join(arrays: Sequence[mx.array | None]) -> mx.array | None:
    """Joins arrays (1, ...) to (B, ...); where they are one array, without a copy."""
    first = arrays[0]
    if first is None:
        return None
    if all(array is first for array in arrays):
        return mx.broadcast_to(first, (len(arrays), *first.shape[1:]))
    return mx.concatenate([array for array in arrays if array is not None], axis=0)


def keep_rows(cache: SequenceCache, rows: Sequence[int]) -> None:
    """Drops all sequences of a batch but some; what they took is given back."""
    chosen = mx.array(list(rows))
    for layer in cache.layers:
        if isinstance(layer, RowCache):
            layer.keys = None if layer.keys is None else layer.keys[chosen]
            layer.values = None if layer.values is None else layer.values[chosen]
        elif isinstance(layer, RecurrentState):
            layer.raw.cache = [None if a is None else a[chosen] for a in layer.raw.cache]
    if cache.padding is not None:
        cache.padding = cache.padding[chosen]


def take_row(cache: SequenceCache, row: int, empty: SequenceCache) -> SequenceCache:
    """Returns one sequence of a batch without padding, as it is now, lazily.

    What is wanted of it must be copied and evaluated before the batch goes on.

    Args:
        cache: The batch.
        row: Number of the sequence in it.
        empty: Made by the model's `make_cache`; it is filled and returned.
    """
    one = slice(row, row + 1)
    for layer, into in zip(cache.layers, empty.layers, strict=True):
        if isinstance(layer, RowCache) and isinstance(into, RowCache):
            keys, values = (None if a is None else a[one] for a in (layer.keys, layer.values))
            into.adopt(layer.offset, layer.origin, keys, values)
        elif isinstance(layer, RecurrentState) and isinstance(into, RecurrentState):
            into.raw.cache = [None if a is None else a[one] for a in layer.raw.cache]
    return empty


def mask_padding(
    layer: RowCache, mask: mx.array | str | None, num_new: int, padding: mx.array
) -> mx.array:
    """Hides the padding of a batch from the next `num_new` tokens of each row.

    Args:
        layer: Of the kind that the mask is for.
        mask: Without padding: None, "causal", or a boolean array that ends with (T, S).
        num_new: T.
        padding: (B,).

    Returns:
        Boolean array (B, 1, T, S), true where a query may look.
    """
    first = layer.first_needed(layer.offset)
    columns = mx.arange(first, layer.offset + num_new)
    seen = (columns[None] >= padding[:, None])[:, None, None]  # (B, 1, 1, S)
    if mask is None:
        return seen
    if isinstance(mask, str):
        mask = make_causal_mask(num_new, layer.offset - first)
    return seen & mask
