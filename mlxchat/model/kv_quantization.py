"""Keys and values in 8 or 4 bits: how a row is packed, and which layers of a model can be.

A row is quantised alone when it is written, in groups along the head: so what is held does not
depend on how the tokens were fed, and rows can be dropped, copied and stored like any others. Each
group keeps its scale and offset in the model's own type. Attention over such rows is in
`transformer.py`; models of mlx-lm get them dequantised, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

if TYPE_CHECKING:
    from mlxchat.model.language_model import LanguageModel
    from mlxchat.model.sequence_cache import SequenceCache

Rows = dict[str, mx.array]  # by the names below; (B, K, T, width) each

BITS = (8, 4)
# As mlx-lm's caches; narrower heads take the smaller one, at 2 bits more for each value of 32.
GROUP_SIZES = (64, 32)
_PARTS = ("", "_scales", "_offsets")
_KEYS, _VALUES = (tuple(name + part for part in _PARTS) for name in ("keys", "values"))


@dataclass(frozen=True, slots=True)
class KVFormat:
    """How the rows of one layer are quantised.

    Attributes:
        bits: Of each value.
        key_group: Values of a key that share a scale.
        value_group: The same of values.
    """

    bits: int
    key_group: int
    value_group: int

    def quantise(self, keys: mx.array, values: mx.array | None) -> Rows:
        """Packs new rows: (B, K, T, Dh) and (B, K, T, Dv), or None where the keys say it all."""
        packed = mx.quantize(keys, group_size=self.key_group, bits=self.bits)
        rows = dict(zip(_KEYS, packed, strict=True))
        if values is not None:
            packed = mx.quantize(values, group_size=self.value_group, bits=self.bits)
            rows |= zip(_VALUES, packed, strict=True)
        return rows

    def dequantise(self, rows: Rows) -> tuple[mx.array, mx.array | None]:
        """Returns the keys (B, K, S, Dh) and values (B, K, S, Dv) of packed rows."""
        packed, scales, offsets = (rows[name] for name in _KEYS)
        keys = mx.dequantize(packed, scales, offsets, group_size=self.key_group, bits=self.bits)
        if _VALUES[0] not in rows:
            return keys, None
        packed, scales, offsets = (rows[name] for name in _VALUES)
        group = self.value_group
        return keys, mx.dequantize(packed, scales, offsets, group_size=group, bits=self.bits)

    def dequantise_heads(self, rows: Rows) -> Iterator[tuple[mx.array, mx.array]]:
        """Yields keys (B, 1, S, Dh) and values (B, 1, S, Dv) of one head after the other."""
        for head in range(rows["keys"].shape[1]):
            one = {name: array[:, head : head + 1] for name, array in rows.items()}
            keys, values = self.dequantise(one)
            assert values is not None
            yield keys, values

    def attend_one(self, q: mx.array, rows: Rows, mask: mx.array | str | None) -> mx.array:
        """Attends with one token over packed rows.

        Args:
            q: (B, H, 1, Dh), scaled.
            rows: Of K heads and S positions.
            mask: Over S; None or "causal" where the token sees all.

        Returns:
            (B, H, 1, Dv).
        """
        batch, n_heads, _, width = q.shape
        grouped = q.reshape(batch, rows["keys"].shape[1], -1, width)  # (B, K, H/K, Dh)
        packed, scales, offsets = (rows[name] for name in _KEYS)
        scores = mx.quantized_matmul(
            grouped, packed, scales, offsets, True, self.key_group, self.bits
        )  # (B, K, H/K, S)
        if isinstance(mask, mx.array):
            scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
        pattern = mx.softmax(scores, axis=-1, precise=True)
        packed, scales, offsets = (rows[name] for name in _VALUES)
        out = mx.quantized_matmul(
            pattern, packed, scales, offsets, False, self.value_group, self.bits
        )  # (B, K, H/K, Dv)
        return out.reshape(batch, n_heads, 1, -1)


@dataclass(frozen=True, slots=True)
class KVPlan:
    """Which layers of a model are quantised, and how.

    Attributes:
        formats: One per layer of the cache; None where it stays as it is.
        notice: What a person should hear, once; nothing where all layers are quantised.
    """

    formats: tuple[KVFormat | None, ...]
    notice: str = ""

    def apply(self, cache: SequenceCache) -> SequenceCache:
        """Sets the formats of an empty cache, and returns it."""
        for layer, chosen in zip(cache.layers, self.formats, strict=True):
            if chosen is not None:
                layer.format = chosen  # type: ignore[attr-defined]  # only layers with rows
        return cache


def make_kv_plan(model: LanguageModel, bits: int) -> KVPlan:
    """Finds the layers whose rows can be quantised.

    The widths of rows are those of a forward pass that is never evaluated. Layers inside a list
    stay as they are: such models of mlx-lm write to their caches themselves.

    Args:
        model: Any.
        bits: 8 or 4.
    """
    cache = model.make_cache()
    model.forward(mx.zeros((1, 1), mx.int32), cache)
    found = [_find_format(layer, cache.raw, bits) for layer in cache.layers]
    formats = tuple(f if isinstance(f, KVFormat) else None for f in found)
    reasons = list(dict.fromkeys(f for f in found if isinstance(f, str)))
    kept = sum(f is None for f in formats)
    if not kept:
        return KVPlan(formats)
    what = "no layer" if kept == len(found) else f"{len(found) - kept} of {len(found)} layers"
    return KVPlan(formats, f"KV in {bits} bits: {what} ({'; '.join(reasons)})")


def _find_format(layer: Any, raw: Any, bits: int) -> KVFormat | str:
    """Returns the format of a layer, or why it has none."""
    buffers = getattr(layer, "buffers", None)
    if buffers is None:
        return f"{layer.kind} layers have no rows to quantise"
    if not any(member is layer for member in raw):
        return "the model fills some caches itself"
    if not buffers:
        return "some layers keep no rows of their own"
    groups = []
    for width in (buffers[name].shape[-1] for name in ("keys", "values") if name in buffers):
        group = next((size for size in GROUP_SIZES if width % size == 0), None)
        if group is None:
            return f"heads of {width} values are no multiple of {GROUP_SIZES[-1]}"
        groups.append(group)
    return KVFormat(bits, groups[0], groups[-1])
