"""Sequences of different lengths side by side, for the models of mlx-lm.

Those models know padding through mlx-lm's own batched caches, which its BatchGenerator is made of
too: they give each row its position and mask. Our caches are read, theirs are decoded with. Which
architectures compute the same with them is nowhere written down (some take positions for one
number, some have caches of their own), so each model proves it on two short sequences first.
mlx-lm is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from mlxchat.model.batch_cache import Stack, Strand, can_cut
from mlxchat.model.kv_cache import FullKV, RowCache
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.window_cache import WindowKV

# Lengths of the two sequences of the proof, and the tokens that are decoded after them.
_LENGTHS, _NUM_STEPS = (37, 22), 3
# Batched and single passes round differently, by 1e-6 of the largest logit in float32; a row with a
# wrong position or mask is off by a hundredth at least.
_TOLERANCE = {mx.float32: 1e-3}
_HALF_TOLERANCE = 5e-2


class _ZooBatch(SequenceCache):
    """A batch in mlx-lm's caches; what it takes is asked of them."""

    def __init__(self, raw: list[Any]) -> None:
        super().__init__(raw, [])

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(int(layer.nbytes) for layer in self.raw)


@dataclass(frozen=True, slots=True)
class Ways:
    """What can be done with sequences of different lengths, as it was proved.

    Attributes:
        stack: Puts them together to be decoded; None where that is not exact.
        reads_rows: They can be read together too, with anything behind the shorter ones.
    """

    stack: Stack | None
    reads_rows: bool


def find_ways(model: LanguageModel) -> Ways:
    """Tries what can be done with sequences of different lengths."""
    if _proves(lambda: can_cut(model.make_cache()) and _is_exact(model, reads_together=True)):
        return Ways(stack_with_theirs, reads_rows=True)
    return Ways(stack_with_theirs if _proves(lambda: _is_exact(model)) else None, reads_rows=False)


def _proves(prove: Callable[[], bool]) -> bool:
    try:
        return prove()
    except Exception:  # whatever an architecture that was not made for it may raise
        return False


def stack_with_theirs(strands: Sequence[Strand]) -> SequenceCache:
    """Joins what is left of a batch, if anything, and sequences of our caches to one batch."""
    held = [strand for strand in strands if isinstance(strand.cache, _ZooBatch)]
    new = [strand for strand in strands if not isinstance(strand.cache, _ZooBatch)]
    batch: list[Any] = []
    if held:
        batch = held[0].cache.raw
        for layer in batch:
            layer.filter([strand.row for strand in held])
    if new:
        theirs = [[_convert(layer, strand) for layer in strand.cache.raw] for strand in new]
        merged = [layers[0].merge(layers) for layers in zip(*theirs, strict=True)]
        for layer, more in zip(batch, merged, strict=False):
            layer.extend(more)
        batch = batch or merged
    return _ZooBatch(batch)


def _convert(cache: Any, strand: Strand) -> Any:
    """Returns mlx-lm's own cache with what one of ours holds of a sequence.

    Raises:
        TypeError: It has no such form.
    """
    from mlx_lm.models import cache as theirs

    if type(cache) is theirs.CacheList:
        return theirs.CacheList(*(_convert(member, strand) for member in cache.caches))
    if type(cache) is theirs.ArraysCache and strand.row == strand.tail == 0:
        return cache  # merging copies it
    if type(cache) is FullKV:
        full = theirs.KVCache()
        full.keys, full.values = _last_rows(cache, strand, strand.length)
        full.offset = strand.length
        return full
    if type(cache) is WindowKV:
        rotating = theirs.RotatingKVCache(cache.window)
        num = min(strand.length, cache.window)
        rotating.keys, rotating.values = _last_rows(cache, strand, num)
        rotating.offset, rotating._idx = strand.length, num
        return rotating
    raise TypeError(f"{type(cache).__name__} has no batched form")


def _last_rows(
    cache: RowCache, strand: Strand, num: int
) -> tuple[mx.array | None, mx.array | None]:
    """Returns the last rows; one that slid out of a window is empty, as the next token takes it."""
    end = cache.offset - strand.tail - cache.origin
    held, one = min(num, end), slice(strand.row, strand.row + 1)
    rows = {name: buffer[one, :, end - held : end] for name, buffer in cache.buffers.items()}
    if held < num:
        missing = [(0, 0), (0, 0), (num - held, 0), (0, 0)]
        rows = {name: mx.pad(array, missing) for name, array in rows.items()}
    return rows.get("keys"), rows.get("values")


def _is_exact(model: LanguageModel, *, reads_together: bool = False) -> bool:
    """Whether two sequences of different lengths decode together as they do alone.

    Args:
        model: Decodes.
        reads_together: They are read together too.
    """
    shape = (len(_LENGTHS), max(_LENGTHS) + _NUM_STEPS)
    ids = mx.random.randint(0, model.info.vocab_size, shape, key=mx.random.key(0))
    caches = [model.make_cache() for _ in _LENGTHS]
    for row, (cache, length) in enumerate(zip(caches, _LENGTHS, strict=True)):
        mx.eval(model.forward(ids[row : row + 1, :length], cache), cache.arrays())
    strands = [Strand(cache, length) for cache, length in zip(caches, _LENGTHS, strict=True)]
    if reads_together:
        whole, longest = model.make_cache(), max(_LENGTHS)
        whole.pin(min(_LENGTHS))
        model.prefill(ids[:, :longest], whole)
        mx.eval(whole.arrays())
        strands = [Strand(whole, num, row, longest - num) for row, num in enumerate(_LENGTHS)]
    batch = stack_with_theirs(strands)
    for step in range(_NUM_STEPS):
        together = model.forward(ids[:, step - _NUM_STEPS, None], batch)
        mx.eval(together)
        singles = [
            model.forward(ids[row : row + 1, step - _NUM_STEPS, None], cache)
            for row, cache in enumerate(caches)
        ]
        alone = mx.concatenate(singles).astype(mx.float32)
        off = mx.abs(together.astype(mx.float32) - alone).max()
        share = _TOLERANCE.get(together.dtype, _HALF_TOLERANCE)
        # Written so that what is not a number does not pass.
        if not cast(bool, (off <= share * mx.abs(alone).max()).item()):
            return False
    return True
