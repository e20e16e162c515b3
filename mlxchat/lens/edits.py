"""Changes of the residual stream during a forward pass: patching, steering, and both at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.model.taps import Point, Taps, visit

AFTER_BLOCK: frozenset[Point] = frozenset(["resid_post"])


@dataclass(frozen=True, slots=True)
class Replace:
    """Puts a row in the place of `resid_post` at one layer and position.

    Attributes:
        layer: Number of the block, from 0.
        position: Index into the ids of the pass; of a later pass with the same cache leave it out.
        row: (D,).
    """

    layer: int
    position: int
    row: mx.array

    points = AFTER_BLOCK

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        """Returns the stream (B, T, D) with the row in its place."""
        if layer != self.layer:
            return value
        here = (mx.arange(value.shape[1]) == self.position % value.shape[1])[:, None]  # (T, 1)
        return mx.where(here, self.row.astype(value.dtype), value)


@dataclass(frozen=True, slots=True)
class Add:
    """Adds a row to `resid_post` at every position of some layers.

    Attributes:
        rows: (D,) by layer.
    """

    rows: Mapping[int, mx.array]

    points = AFTER_BLOCK

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        """Returns the stream (B, T, D) with the layer's row added."""
        row = self.rows.get(layer)
        return value if row is None else value + row.astype(value.dtype)


@dataclass(frozen=True, slots=True)
class Checked:
    """Changes nothing, but lets a person end a long pass.

    Attributes:
        check: Called at every block; what it raises ends the pass.
    """

    check: Callable[[], None]

    points = AFTER_BLOCK

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        """Asks whether to go on."""
        self.check()
        return value


class Both:
    """Several taps in one: each gets what the one before it returned.

    Args:
        taps: In order; None is left out.
    """

    def __init__(self, *taps: Taps | None) -> None:
        self._taps = [t for t in taps if t is not None]
        self.points: frozenset[Point] = frozenset().union(*(t.points for t in self._taps))

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        """Hands the array from one to the next."""
        for taps in self._taps:
            value = visit(taps, point, layer, value)
        return value
