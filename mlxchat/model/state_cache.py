"""Layers whose cache has no rows: recurrent states, and caches of unknown kind.

Both wrap the object that the model itself writes to, change it in place and answer to
`LayerCache`. The way back to an earlier position is always a snapshot.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxchat.model.kv_cache import Kind, Meta, Snapshot, own, share


class RecurrentState:
    """The small state of a recurrent, convolution or linear-attention layer.

    Wraps a cache with a list `cache` of arrays or None, as mlx-lm's models fill it: they replace
    the arrays and never write into them. The way back is a snapshot.

    Args:
        raw: The object that the model writes to.
    """

    kind: Kind = "recurrent"

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """Return the slots that are filled."""
        return [array for array in self.raw.cache if array is not None]

    def can_rewind(self, pos: int) -> bool:
        """Say yes for position 0 only: the state holds no past."""
        return pos == 0

    def rewind(self, pos: int) -> None:
        """Empty the state.

        Raises:
            ValueError: `pos` is not 0.
        """
        if pos != 0:
            raise ValueError(
                f"a recurrent state cannot go back to position {pos}; restore a snapshot"
            )
        self.raw.cache = [None] * len(self.raw.cache)

    def pin(self, pos: int) -> None:
        """Do nothing: there are no rows to keep."""

    def snapshot(self, evaluate: bool = True) -> Snapshot:
        """Copy the state; a slice kept as state would hold the whole array that it was cut from."""
        copies = [None if array is None else mx.contiguous(array) for array in self.raw.cache]
        return own(Snapshot(tuple(copies)), evaluate)

    def restore(self, pos: int, snapshot: Snapshot) -> None:
        """Put the state of a snapshot back; the snapshot stays usable."""
        self.raw.cache = [share(array) for array in snapshot.arrays]

    def export(
        self, pos: int | None = None, mark: Snapshot | None = None, since: int = 0
    ) -> tuple[Meta, dict[str, mx.array]]:
        """Return the filled slots by number, in their own dtypes: the mark's, or the live ones."""
        slots = self.raw.cache if mark is None else mark.arrays
        filled = ((str(i), array) for i, array in enumerate(slots) if array is not None)
        arrays = {name: mx.contiguous(array) for name, array in filled}
        return {"kind": self.kind, "slots": len(slots)}, arrays

    def load_export(self, meta: Meta, arrays: dict[str, mx.array]) -> None:
        """Take over exported slots."""
        self.raw.cache = [share(arrays.get(str(i))) for i in range(int(meta["slots"]))]


class Opaque:
    """Any other cache: the whole object is copied, nothing else is known about it.

    Args:
        raw: The object that the model writes to; its attributes are its state.
    """

    kind: Kind = "opaque"

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._fresh = copy.deepcopy(vars(raw))

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays among the attributes."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """Return the arrays among the attributes, nested ones too."""
        return _arrays_in(vars(self.raw))

    def can_rewind(self, pos: int) -> bool:
        """Say yes for position 0 only: a cache of unknown kind is made anew."""
        return pos == 0

    def rewind(self, pos: int) -> None:
        """Bring the object back to how it was made.

        Raises:
            ValueError: `pos` is not 0.
        """
        if pos != 0:
            raise ValueError(f"this cache cannot go back to position {pos}; restore a snapshot")
        self._assign(self._fresh)

    def _assign(self, attributes: dict[str, Any]) -> None:
        vars(self.raw).clear()
        vars(self.raw).update(copy.deepcopy(attributes))

    def pin(self, pos: int) -> None:
        """Do nothing: what the object keeps is unknown."""

    def snapshot(self, evaluate: bool = True) -> Snapshot:
        """Copy the whole object."""
        detail = _map_arrays(copy.deepcopy(vars(self.raw)), mx.contiguous)
        return own(Snapshot(tuple(_arrays_in(detail)), detail=detail), evaluate)

    def restore(self, pos: int, snapshot: Snapshot) -> None:
        """Put the attributes of a snapshot back; the snapshot stays usable."""
        self._assign(snapshot.detail)

    def export(
        self, pos: int | None = None, mark: Snapshot | None = None, since: int = 0
    ) -> tuple[Meta, dict[str, mx.array]] | None:
        """Return the attributes, or None where one is neither an array nor plain data."""
        arrays, plain = {}, {}
        attributes = vars(self.raw) if mark is None else mark.detail
        for name, value in attributes.items():
            if isinstance(value, mx.array):
                arrays[name] = mx.contiguous(value)
            elif value is None or isinstance(value, str | int | float):
                plain[name] = value
            else:
                return None
        return {"kind": self.kind, "attributes": json.dumps(plain)}, arrays

    def load_export(self, meta: Meta, arrays: dict[str, mx.array]) -> None:
        """Take over exported attributes."""
        self._assign({**json.loads(str(meta["attributes"])), **arrays})


def _map_arrays(tree: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """Apply `change` to every array in nested dicts, lists and tuples."""
    if isinstance(tree, mx.array):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _map_arrays(value, change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_arrays(value, change) for value in tree)
    return tree


def _arrays_in(tree: Any) -> list[mx.array]:
    """List the arrays in nested dicts, lists and tuples."""
    if isinstance(tree, mx.array):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [array for branch in tree for array in _arrays_in(branch)]
    return []
