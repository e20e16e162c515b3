"""Low-rank changes of matrices as the transformer uses them: added, or fused into the weights.

Float32 weights take the change up, exact to rounding and free of cost in decoding. Anything else
keeps it beside the matrix: quantised weights could not hold it, and half precision would round
small changes away. DoRA (Liu et al. 2024) gives the changed rows lengths of their own; since the
weights stand still that is one factor a row, computed once.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlxchat.model.adapter import LowRank

# Beside weight, scales, biases and bias: a (n_in, r), b (r, n_out), and DoRA's factors (n_out,).
Extra = list[mx.array | None]


def add_low_rank(y: mx.array, x: mx.array, extra: Extra) -> mx.array:
    """Adds x a b to the product y (B, T, n_out) of x (B, T, n_in), and scales the rows."""
    a, b, factor = extra
    assert a is not None
    assert b is not None
    y = y + ((x @ a) @ b).astype(y.dtype)
    return y if factor is None else y * factor.astype(y.dtype)


def fuse_change(weight: mx.array, change: LowRank, *, is_embedding: bool = False) -> mx.array:
    """Returns a float matrix (rows, columns) with the change in it, in the matrix's own type."""
    new = _changed(weight, change, is_embedding=is_embedding)
    if change.m is not None:
        new = new * _row_factors(new, change.m)[:, None]
    return new.astype(weight.dtype)


def make_extra(weight: mx.array, change: LowRank) -> Extra:
    """Returns what stands beside a matrix in place of fusing.

    Args:
        weight: (rows, columns), dequantised; only DoRA looks at it.
        change: To the matrix.
    """
    factor = None
    if change.m is not None:
        factor = _row_factors(_changed(weight, change, is_embedding=False), change.m)
    return [change.a, change.b, factor]


def join_extras(extras: Sequence[Extra], widths: Sequence[int]) -> Extra:
    """Joins the changes of matrices over the same input to that of their joined matrix.

    Args:
        extras: One for each matrix; empty where it has none.
        widths: The matrices' rows.
    """
    total, before = sum(widths), 0
    columns: list[mx.array] = []
    blocks: list[mx.array] = []
    factors: list[mx.array] = []
    for extra, width in zip(extras, widths, strict=True):
        a, b, factor = extra or (None, None, None)
        if a is not None and b is not None:
            columns.append(a)
            blocks.append(mx.pad(b, [(0, 0), (before, total - before - width)]))
        factors.append(mx.ones((width,)) if factor is None else factor)
        before += width
    has_factors = any(extra and extra[2] is not None for extra in extras)
    return [
        mx.concatenate(columns, axis=1),
        mx.concatenate(blocks, axis=0),
        mx.concatenate(factors) if has_factors else None,
    ]


def _changed(weight: mx.array, change: LowRank, *, is_embedding: bool) -> mx.array:
    product = change.a.astype(mx.float32) @ change.b.astype(mx.float32)
    return weight.astype(mx.float32) + (product if is_embedding else product.T)


def _row_factors(changed: mx.array, m: mx.array) -> mx.array:
    return m.astype(mx.float32) / mx.linalg.norm(changed, axis=1)
