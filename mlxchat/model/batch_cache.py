"""Several sequences in one cache: stacked to a batch, taken out again.

The rows of a batch go on in step. Shorter sequences stand at the right: before them lie rows that
are padding, and `SequenceCache.padding` says how many. Only our own transformer looks at it, so
other models take sequences of one length here, and any lengths in mlx-lm's own batched caches
(`zoo_batch.py`). A batch is never changed but stacked anew: from what is left of the old one and
what is new, without the padding that nobody needs any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.model.kv_cache import RowCache, make_causal_mask
from mlxchat.model.kv_quantization import Rows
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.state_cache import RecurrentState
from mlxchat.model.window_cache import ChunkedKV


@dataclass(frozen=True, slots=True)
class Strand:
    """One sequence: a cache of its own, or a row of a batch.

    Attributes:
        cache: Where it is.
        length: Positions that it holds, padding apart.
        row: Its number in the batch.
        tail: Positions behind it in the cache that are not its own.
    """

    cache: SequenceCache
    length: int
    row: int = 0
    tail: int = 0


Stack = Callable[[Sequence[Strand]], SequenceCache]


def can_stack(cache: SequenceCache) -> bool:
    """Whether every layer is of a kind that can hold several sequences."""
    return all(isinstance(layer, RowCache | RecurrentState) for layer in cache.layers)


def can_cut(cache: SequenceCache) -> bool:
    """Whether sequences can be taken out of every layer without what stands behind them."""
    return bool(cache.layers) and cache.kinds <= {"full", "window"}


def stack(empty: SequenceCache, strands: Sequence[Strand]) -> SequenceCache:
    """Fills an empty cache with several sequences, lazily, and returns it.

    Args:
        empty: Made by the model's `make_cache`.
        strands: They stay as they are; the same one may stand there several times.

    Raises:
        ValueError: A layer cannot hold several sequences, or not of different lengths.
    """
    longest = max(strand.length for strand in strands)
    padding = [longest - strand.length for strand in strands]
    tails = [strand.tail for strand in strands]
    for i, layer in enumerate(empty.layers):
        if isinstance(layer, RowCache):
            if isinstance(layer, ChunkedKV) and any(padding + tails):
                raise ValueError("chunks of different lengths do not lie side by side")
            _stack_rows(layer, [(s.cache.layers[i], s) for s in strands], longest)
        elif isinstance(layer, RecurrentState) and not any(padding) and not any(tails):
            _stack_states(layer, [(s.cache.layers[i], s.row) for s in strands])
        else:
            raise ValueError(f"a layer of kind {layer.kind} holds no such batch")
    empty.padding = mx.array(padding) if any(padding) else None
    return empty


def _stack_rows(into: RowCache, parts: Sequence[tuple[object, Strand]], longest: int) -> None:
    """Copies the rows that are still needed, each once, into buffers with room to grow."""
    first = into.first_needed(longest)
    num_held = longest - first
    buffers: Rows = {}
    for number, (part, strand) in enumerate(parts):
        assert isinstance(part, RowCache)
        end = part.offset - strand.tail
        shift = longest - end
        begin = max(first - shift, end - strand.length, part.origin)
        held = slice(begin - part.origin, end - part.origin)
        for name, buffer in part.buffers.items():
            if name not in buffers:
                _, heads, _, width = buffer.shape
                shape = (len(parts), heads, num_held + into.step, width)
                buffers[name] = mx.zeros(shape, buffer.dtype)
            rows = buffer[strand.row : strand.row + 1, :, held]
            buffers[name][number : number + 1, :, begin + shift - first : num_held] = rows
    if buffers:  # some layers of the zoo hold nothing
        into.adopt(longest, first, buffers)


def _stack_states(into: RecurrentState, parts: Sequence[tuple[object, int]]) -> None:
    states = []
    for part, row in parts:
        assert isinstance(part, RecurrentState)
        states.append([None if a is None else a[row : row + 1] for a in part.raw.cache])
    slots = zip(*states, strict=True)
    into.raw.cache = [None if slot[0] is None else mx.concatenate(slot) for slot in slots]


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
