"""A linear map as the native transformer holds and applies it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlxchat.model.device import DevicePlan
from mlxchat.model.low_rank import add_low_rank
from mlxchat.model.quantization import QuantSpec
from mlxchat.openblas import SmallProduct

# So many rows are a few. With fewer weights than this at once, calls cost more than copies.
_MOST_FEW = 8
_FEWEST_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """How one matrix is stored: the static part of a linear map.

    Attributes:
        n_out: Rows of the weight, as the checkpoint names them.
        quant: Quantisation, or None for a plain array.
        bias: Whether a bias follows.
        transposed: The array is (n_in, n_out) instead of (n_out, n_in).
        extra: What an adapter adds beside it: nothing, LoRA's or DoRA's arrays.
    """

    n_out: int
    quant: QuantSpec | None = None
    bias: bool = False
    transposed: bool = False
    extra: Literal["", "lora", "dora"] = ""


# Weight, scales, biases (quantised), bias, and with `extra` three more (`low_rank.Extra`).
Arrays = list[mx.array | None]
Linear = tuple[LinearSpec, Arrays]


def apply_linear(
    spec: LinearSpec, arrays: Arrays, x: mx.array, plan: DevicePlan | None = None
) -> mx.array:
    """Multiplies (..., n_in) by one matrix and returns (..., n_out).

    Args:
        spec: How the matrix is stored.
        arrays: Weight, scales, biases, bias, and what stands beside them.
        x: Input of shape (..., n_in).
        plan: Says how a few rows are multiplied; without one they are as many are.
    """
    weight, scales, biases, bias, *extra = arrays
    assert weight is not None
    if spec.quant is not None:
        assert scales is not None
        y = mx.quantized_matmul(
            x,
            weight,
            scales,
            biases,
            transpose=True,
            group_size=spec.quant.group_size,
            bits=spec.quant.bits,
            mode=spec.quant.mode,
        )
    elif spec.transposed:
        y = x @ weight
    elif plan is not None and plan.small:
        y = multiply_rows(x.reshape(-1, x.shape[-1]), weight, plan.small)
        y = y.reshape(*x.shape[:-1], spec.n_out)
    else:
        y = x @ weight.T
    if extra:
        y = add_low_rank(y, x, extra)
    return y if bias is None else y + bias


def apply_joined(
    specs: Sequence[LinearSpec],
    parts: Iterable[Arrays],
    x: mx.array,
    plan: DevicePlan | None = None,
) -> mx.array:
    """Multiplies by several matrices and joins what they give, (..., sum of n_out)."""
    outs = [apply_linear(s, p, x, plan) for s, p in zip(specs, parts, strict=True)]
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=-1)


def multiply_rows(x: mx.array, weight: mx.array, small: SmallProduct) -> mx.array:
    """Multiplies (T, n_in) by (n_out, n_in): a few rows with no more weights at once than is small.

    Returns:
        (T, n_out)
    """
    num_rows, (n_out, n_in) = x.shape[0], weight.shape
    most = min(small.results // num_rows, small.multiplications // (num_rows * n_in))
    if num_rows > _MOST_FEW or most < _FEWEST_AT_ONCE or n_out <= most:
        return x @ weight.T
    num_parts = -(-n_out // most)
    # Without a rest where there is such a number nearby; else the rest is a product of its own.
    even = (n for n in range(num_parts, 2 * num_parts) if n_out % n == 0)
    num_parts = next(even, num_parts)
    part = n_out // num_parts
    whole = part * num_parts
    parts = weight[:whole].reshape(num_parts, part, n_in)
    y = (x[None] @ parts.swapaxes(-1, -2)).swapaxes(0, 1).reshape(num_rows, whole)
    return y if whole == n_out else mx.concatenate([y, x @ weight[whole:].T], axis=1)
