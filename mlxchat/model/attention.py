"""Attention on MLX's CPU backend, in float32: matrix products and our own exp().

`mx.fast` has no kernel there: it multiplies each query head with its key head, where all heads that
share one can be the rows of one product.
"""

import mlx.core as mx

from mlxchat.model.exponential import softmax_parts

# How many scores are computed at once, 1 MiB, so that they stay in the processor's cache; and the
# fewest and most rows of queries that this may be. What the mask hides beyond them is not computed.
_SCORES = 1 << 18
_FEWEST_ROWS, _MOST_ROWS = 8, 64


def attend(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, scale: float
) -> mx.array:
    """Scaled dot-product attention, a few rows of queries at a time.

    Args:
        q: (B, H, T, Dh), float32.
        k: (B, K, S, Dh)
        v: (B, K, S, Dv)
        mask: None, "causal" (the last query sees all rows), or a boolean array that ends with
            (T, S), true where a query may look, which is never behind its own row.
        scale: Of the scores.

    Returns:
        (B, H, T, Dv)
    """
    batch, n_heads, num_new, _ = q.shape
    fitting = _SCORES // (batch * n_heads * k.shape[2])
    block = min(max(fitting, _FEWEST_ROWS), _MOST_ROWS)
    if mask is None or num_new <= block:
        return _attend_rows(q, k, v, mask, scale)
    before, parts = k.shape[2] - num_new, []
    for start in range(0, num_new, block):
        rows = slice(start, min(start + block, num_new))
        seen = slice(0, before + rows.stop)
        part = mask if isinstance(mask, str) else mask[..., rows, seen]
        parts.append(_attend_rows(q[:, :, rows], k[:, :, seen], v[:, :, seen], part, scale))
    return mx.concatenate(parts, axis=2)


def _attend_rows(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str | None, scale: float
) -> mx.array:
    batch, n_heads, num_new, width = q.shape
    n_kv, num_rows = k.shape[1:3]
    by_key_head = (batch, n_kv, n_heads // n_kv * num_new, num_rows)
    grouped = (q * scale).reshape(*by_key_head[:3], width)
    scores = grouped @ k.swapaxes(-1, -2)  # (B, K, H/K * T, S)
    if isinstance(mask, str):
        mask = mx.arange(num_rows - num_new, num_rows)[:, None] >= mx.arange(num_rows)
    if mask is not None:
        mask = mask[:, :, None] if mask.ndim == 4 else mask  # (B, 1, 1, T, S)
        by_head = scores.reshape(batch, n_kv, -1, num_new, num_rows)
        scores = mx.where(mask, by_head, mx.finfo(scores.dtype).min).reshape(by_key_head)
    return _mix(scores, v).reshape(batch, n_heads, num_new, v.shape[-1])


def attend_heads(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
    """Attends from one token of each sequence, with the heads that share a key head together.

    Args:
        q: (B, K, H / K, Dh), float32, scaled.
        k: (B, K, S, Dh)
        v: (B, K, S, Dv)
        mask: (B, 1, 1, S), true where a token may look; None where at everything.

    Returns:
        (B, K, H / K, Dv)
    """
    scores = q @ k.swapaxes(-1, -2)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    return _mix(scores, v)


def _mix(scores: mx.array, v: mx.array) -> mx.array:
    """Mixes values (..., S, Dv) by the softmax of scores (..., S)."""
    numerators, sums = softmax_parts(scores)
    mixed = numerators @ v
    return mixed if sums is None else mixed / sums
