"""The caches of all layers of one sequence, moved together.

What one layer can do is in `kv_cache.py`, `window_cache.py` and `state_cache.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from mlxchat.model.kv_cache import FullKV, Kind, LayerCache, Meta, RowCache, Snapshot
from mlxchat.model.kv_quantization import KVFormat

V = TypeVar("V")

Marks = tuple[Snapshot | None, ...]


class SequenceCache:
    """The caches of all layers of one sequence.

    The number of layers here is the number of caches, which need not be the model's number of
    layers; the position is the caller's own count of the ids that it fed.

    Args:
        raw: What the model takes as its cache.
        layers: The caches inside it, flat, in order.

    Attributes:
        padding: Of a batch: empty rows before each sequence (see `batch_cache.py`).
    """

    def __init__(self, raw: Any, layers: Sequence[LayerCache]) -> None:
        self.raw = raw
        self.layers = list(layers)
        self.padding: mx.array | None = None

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of layers that occur."""
        return frozenset(layer.kind for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def kv_bits(self) -> int | None:
        """Bits of quantised keys and values; None where no layer is quantised."""
        return next((kv.bits for kv in self._formats()), None)

    @property
    def num_quantised(self) -> int:
        """Layers whose keys and values are quantised."""
        return len(self._formats())

    def _formats(self) -> list[KVFormat]:
        rows = [layer for layer in self.layers if isinstance(layer, RowCache)]
        return [layer.format for layer in rows if layer.format is not None]

    def offsets(self) -> frozenset[int]:
        """Return the offsets of layers with rows: one number unless a forward pass broke off."""
        return frozenset(layer.offset for layer in self.layers if isinstance(layer, RowCache))

    def arrays(self) -> list[mx.array]:
        """Return all arrays: evaluate them after a prefill chunk whose logits nobody wants."""
        return [array for layer in self.layers for array in layer.arrays()]

    def reserve(self, total: int) -> None:
        """Announce that the sequence will grow to `total` positions, so that buffers grow once."""
        for layer in self.layers:
            if isinstance(layer, FullKV):
                layer.reserve(total)

    def can_rewind(self, pos: int) -> bool:
        """Say whether every layer can go back to `pos` without a snapshot."""
        return all(layer.can_rewind(pos) for layer in self.layers)

    def rewind(self, pos: int) -> None:
        """Forget everything from `pos` on, in every layer or in none.

        Raises:
            ValueError: Some layer cannot: check `can_rewind` first.
        """
        self.restore(pos, (None,) * len(self.layers))

    def pin(self, pos: int) -> None:
        """Keep what every layer needs to rewind to any position from `pos` on."""
        for layer in self.layers:
            layer.pin(pos)

    def snapshot(self, kinds: Collection[Kind] | None = None) -> Marks:
        """Copy what the current position needs beyond its number.

        Args:
            kinds: Copy layers of these kinds only; the others must then be reachable by `rewind`.

        Returns:
            One entry per layer, None where nothing was copied.
        """
        marks = tuple(
            layer.snapshot(evaluate=False) if kinds is None or layer.kind in kinds else None
            for layer in self.layers
        )
        mx.eval([a for mark in marks if mark for a in mark.arrays if a is not None])
        return marks

    def can_restore(self, pos: int, marks: Marks) -> bool:
        """Say whether every layer has a snapshot in `marks` or can rewind to `pos`."""
        pairs = zip(self.layers, marks, strict=True)
        return all(mark is not None or layer.can_rewind(pos) for layer, mark in pairs)

    def restore(self, pos: int, marks: Marks) -> None:
        """Go back to `pos`: rewind where a layer can, else put its snapshot back.

        Raises:
            ValueError: Some layer can do neither; nothing was changed.
        """
        if not self.can_restore(pos, marks):
            raise ValueError(f"no way back to position {pos}; start from a fresh cache")
        for layer, mark in zip(self.layers, marks, strict=True):
            if layer.can_rewind(pos):
                layer.rewind(pos)
            elif mark is not None:
                layer.restore(pos, mark)

    def export(self) -> tuple[Meta, dict[str, mx.array]] | None:
        """Return the live state of all layers, or None where one has no stored form.

        Returns:
            Meta and arrays with the layer's number before each name: "0.offset", "0.keys".
        """
        meta: Meta = {"layers": len(self.layers)}
        arrays: dict[str, mx.array] = {}
        for i, layer in enumerate(self.layers):
            exported = layer.export()
            if exported is None:
                return None
            meta.update({f"{i}.{name}": value for name, value in exported[0].items()})
            arrays.update({f"{i}.{name}": value for name, value in exported[1].items()})
        return meta, arrays

    def load_export(self, meta: Meta, arrays: dict[str, mx.array]) -> None:
        """Take over what `export` returned; meta values may come back as text.

        Raises:
            ValueError: The stored layers are not the layers of this cache.
        """
        kinds = [meta.get(f"{i}.kind") for i in range(int(meta["layers"]))]
        if kinds != [layer.kind for layer in self.layers]:
            raise ValueError("the stored cache is of another model")
        for i, layer in enumerate(self.layers):
            layer.load_export(_under(f"{i}.", meta), _under(f"{i}.", arrays))


def _under(prefix: str, named: dict[str, V]) -> dict[str, V]:
    """Return the entries whose name begins with `prefix`, without it."""
    return {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix)}
