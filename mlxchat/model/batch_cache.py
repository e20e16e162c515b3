"""Several sequences in one cache: stacked to a batch, thinned out, taken out again.

The rows of a batch go on in step. Shorter sequences stand at the right: before them lie rows that
are padding, and `SequenceCache.padding` says how many. Only our own transformer looks at it, so
other models take sequences of one length.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlxchat.model.kv_cache import LayerCache, RowCache, make_causal_mask
from mlxchat.model.kv_quantization import Rows
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
            slots = zip(*states, strict=True)
            layer.raw.cache = [None if slot[0] is None else _join(slot) for slot in slots]
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
    made: dict[int, Rows] = {}
    for part, length in zip(parts, lengths, strict=True):
        assert isinstance(part, RowCache)
        if id(part) not in made:
            rows = part.copy_rows(part.first_needed(length), length)
            made[id(part)] = {name: _pad(a, longest - first) for name, a in rows.items()}
    each = [made[id(part)] for part in parts]
    names = each[0]
    into.adopt(longest, first, {name: _join([rows[name] for rows in each]) for name in names})


def _pad(rows: mx.array, wanted: int) -> mx.array:
    """Puts empty rows before (B, K, S, Dh), so that there are `wanted`."""
    if rows.shape[2] == wanted:
        return rows
    return mx.pad(rows, [(0, 0), (0, 0), (wanted - rows.shape[2], 0), (0, 0)])


def _join(arrays: Sequence[mx.array]) -> mx.array:
    """Joins arrays (1, ...) to (B, ...); where they are one array, without a copy."""
    first = arrays[0]
    if all(array is first for array in arrays):
        return mx.broadcast_to(first, (len(arrays), *first.shape[1:]))
    return mx.concatenate(list(arrays), axis=0)


def keep_rows(cache: SequenceCache, rows: Sequence[int]) -> None:
    """Drops all sequences of a batch but some; what they took is given back."""
    chosen = mx.array(list(rows))
    for layer in cache.layers:
        if isinstance(layer, RowCache):
            layer.buffers = {name: buffer[chosen] for name, buffer in layer.buffers.items()}
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
            rows = {name: buffer[one] for name, buffer in layer.buffers.items()}
            into.adopt(layer.offset, layer.origin, rows)
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
