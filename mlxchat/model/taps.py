"""Where a forward pass can be watched and changed: the named points of a block.

A model that gets `taps` hands them the arrays at the points that they ask for and goes on with
what comes back. Without taps nothing is handed out and the compiled functions run as they are.
What is recorded or changed is the business of `lens/` and of the engine's steering.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import mlx.core as mx

# The residual stream is (B, T, D); a block is resid_pre + attn_out = resid_mid, and that + mlp_out
# = resid_post. Names as in TransformerLens.
Point = Literal[
    "resid_pre",  # (B, T, D) the residual stream before the block
    "attn_in",  # (B, T, D) what q, k and v are made from: normed where the family norms first
    "q",  # (B, H, T, Dh) rotated
    "k",  # (B, K, T, Dh) rotated, new rows only
    "v",  # (B, K, T, Dh) new rows only
    "scores",  # (B, H, T, S) scaled, the lowest number where a token may not look
    "pattern",  # (B, H, T, S) softmax of the scores
    "z",  # (B, H, T, Dh) values mixed by the pattern
    "attn_out",  # (B, T, D) what attention adds to the residual stream
    "resid_mid",  # (B, T, D)
    "mlp_in",  # (B, T, D)
    "mlp_act",  # (B, T, d_mlp) the feed-forward units: activation(gate) * up
    "mlp_out",  # (B, T, D) what the feed-forward adds to the residual stream
    "resid_post",  # (B, T, D) the residual stream after the block
]
STREAM_POINTS: frozenset[Point] = frozenset(["resid_pre", "resid_post"])
BLOCK_POINTS: frozenset[Point] = STREAM_POINTS | frozenset(
    [
        *("attn_in", "q", "k", "v", "scores", "pattern", "z", "attn_out"),
        *("resid_mid", "mlp_in", "mlp_act", "mlp_out"),
    ]
)

Visit = Callable[[Point, mx.array], mx.array]


class Taps(Protocol):
    """Sees a forward pass at some points, and may change it there."""

    @property
    def points(self) -> frozenset[Point]:
        """The points of interest; of the others nothing is handed out."""

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        """Takes the array at a point of a layer and returns the one to go on with."""


def visit(taps: Taps | None, point: Point, layer: int, value: mx.array) -> mx.array:
    """Hands an array to the taps that want it, and returns the one to go on with."""
    return value if taps is None or point not in taps.points else taps.visit(point, layer, value)


def unchanged(point: Point, value: mx.array) -> mx.array:
    """The visit of a pass that nobody watches."""
    del point
    return value
