"""Attention and exp() of the CPU backend against MLX's own."""

import math

import numpy as np
import pytest

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.model import attention  # noqa: E402
from mlxchat.model.exponential import silu, softmax_parts  # noqa: E402

TOLERANCE = 1e-5


def make(batch, heads, kv_heads, num_new, num_rows, width=16):
    """Returns random q, k and v; keys and values are slices of buffers with room for more."""
    mx.random.seed(num_new * num_rows)
    q = 3 * mx.random.normal((batch, heads, num_new, width))
    k, v = mx.random.normal((2, batch, kv_heads, num_rows + 7, width))[..., :num_rows, :]
    return q, k, v


def fast(q, k, v, mask):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)


def exactly(q, k, v):
    """Returns the attention with a causal mask in float64."""
    q, k, v = (np.array(array, dtype=np.float64) for array in (q, k, v))
    k, v = (np.repeat(array, q.shape[1] // k.shape[1], axis=1) for array in (k, v))
    num_new, num_rows = q.shape[2], k.shape[2]
    seen = np.arange(num_rows - num_new, num_rows)[:, None] >= np.arange(num_rows)
    scores = np.where(seen, 0.3 * q @ k.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize(
    ("num_new", "num_rows"), [(1, 1), (1, 3000), (2, 9), (7, 7), (16, 1300), (100, 900), (70, 5000)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (3, 1)])
def test_attention_is_that_of_mlx(num_new, num_rows, heads, kv_heads):
    """Few and many rows, in one block and in several, are as near to float64 as MLX's attention."""
    q, k, v = make(1, heads, kv_heads, num_new, num_rows)
    mask = None if num_new == 1 else "causal"
    exact = exactly(q, k, v)
    found, theirs = (
        np.abs(np.array(a, dtype=np.float64) - exact).max()
        for a in (attention.attend(q, k, v, mask, 0.3), fast(q, k, v, mask))
    )
    assert found <= 1.1 * theirs + 1e-6


@pytest.mark.parametrize(
    ("num_new", "axes"), [(1, 1), (1, 2), (1, 4), (5, 2), (5, 4), (200, 2), (200, 4)]
)
def test_masks_of_every_shape(num_new, axes):
    """A mask may be for one query, for several, or for each sequence of a batch."""
    q, k, v = make(2, 4, 2, num_new, 600)
    shape = {1: (600,), 2: (num_new, 600), 4: (2, 1, num_new, 600)}[axes]
    mask = mx.random.bernoulli(0.4, shape)
    if axes > 1:  # no query looks at what comes after it
        mask = mask & (mx.arange(600 - num_new, 600)[:, None] >= mx.arange(600))
    whole = mx.broadcast_to(mask, (2, 1, num_new, 600))
    found = attention.attend(q, k, v, mask, 0.3)
    assert mx.allclose(found, fast(q, k, v, whole), atol=TOLERANCE, rtol=0)


def test_hidden_rows_count_for_nothing():
    """Rows behind the mask change no bit, however large their scores are."""
    q, k, v = make(1, 4, 2, 16, 700)
    mask = mx.arange(700) < 600
    loud = mx.where(mask[:, None], k, 1e4), mx.where(mask[:, None], v, 1e4)
    found = attention.attend(q, k, v, mask, 0.3)
    assert mx.array_equal(found, attention.attend(q, *loud, mask, 0.3))


@pytest.mark.parametrize("size", [10, 100_000])
def test_softmax(size):
    """Its parts give the softmax as exactly as MLX does, for scores near each other and far."""
    for spread in (1e-3, 1.0, 30.0, 1e4):
        scores = spread * mx.random.normal((1, 1, size))
        numerators, sums = softmax_parts(scores)
        found = numerators if sums is None else numerators / sums
        wide = np.array(scores, dtype=np.float64)
        exact = np.exp(wide - wide.max())
        exact /= exact.sum()
        theirs = np.abs(np.array(mx.softmax(scores, axis=-1)) - exact).max()
        assert np.abs(np.array(found) - exact).max() < 1.1 * theirs + 1e-6 * exact.max()


def test_silu():
    """SiLU is x * sigmoid(x), also where its exp() would be zero or infinite."""
    x = mx.concatenate([mx.linspace(-30, 30, 10_001), mx.array([-1e30, -200.0, 200.0, 1e30])])
    wide = np.array(x, dtype=np.float64)
    exact = wide / (1 + np.exp(np.minimum(-wide, 700.0)))
    found = np.array(mx.compile(silu)(x), dtype=np.float64)
    assert np.all(np.abs(found - exact) <= 1e-6 * np.maximum(np.abs(exact), 1))
    assert math.isnan(silu(mx.array(math.nan)).item())
    half = x[:10].astype(mx.bfloat16)
    assert mx.array_equal(silu(half), half * mx.sigmoid(half))
