"""Rotary position embedding: from a config to periods, in plain Python.

RoPE turns pair i of a head by `position / period[i]` radians. Every scaling scheme of the native
families changes only the periods and, in two of them, the length of what is turned (`mscale`).
The transformer applies them; this module knows no arrays.

Sources: RoFormer (Su et al. 2021); linear position interpolation (Chen et al. 2023); YaRN (Peng
et al. 2023); LongRoPE (Ding et al. 2024); the `llama3` scheme as Meta published it with Llama 3.1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxchat.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of one kind of layer.

    Attributes:
        periods: `dims / 2` positions per radian, one for each pair.
        mscale: Factor on the rotated part of queries and keys.
        max_exact: Positions beyond this cannot be cached exactly (dynamic NTK), or None.
    """

    periods: tuple[float, ...]
    mscale: float = 1.0
    max_exact: int | None = None

    @property
    def dims(self) -> int:
        """Number of head dimensions that are rotated."""
        return 2 * len(self.periods)


def make_rope(
    dims: int,
    theta: float,
    scaling: Mapping[str, Any] | None,
    max_context: int,
    original: int | None,
) -> Rope:
    """Builds the rotation that a Hugging Face config describes.

    Args:
        dims: Rotated dimensions of a head (even).
        theta: Base of the geometric row of periods.
        scaling: The config's `rope_scaling` (or `rope_parameters`) object, or None.
        max_context: The config's `max_position_embeddings`.
        original: Context before scaling, where the config names it outside `scaling`.

    Raises:
        UnsupportedModelError: The scheme is not one of default, linear, llama3, yarn, longrope,
            dynamic.
        CheckpointError: The scheme lacks a value that it needs, or has one that makes no sense.
    """
    scaling = scaling or {}
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    try:
        rope = _make_rope(kind, dims, theta, scaling, max_context, original)
        if not all(0 < value < math.inf for value in (*rope.periods, rope.mscale)):
            raise ValueError("it gives no finite rotation")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"rope_scaling of type {kind!r} in config.json is broken ({error!r});"
            " compare it with the model's page on the Hub"
        ) from error
    return rope


def _make_rope(
    kind: str,
    dims: int,
    theta: float,
    scaling: Mapping[str, Any],
    max_context: int,
    original: int | None,
) -> Rope:
    plain = tuple(theta ** (i / dims) for i in range(0, dims, 2))
    if kind in ("default", "mrope"):
        return Rope(plain)
    if kind == "linear":
        factor = float(scaling["factor"])
        return Rope(tuple(p * factor for p in plain))
    if kind == "dynamic":
        return Rope(plain, max_exact=max_context)
    if kind == "llama3":
        return Rope(_llama3_periods(plain, scaling))
    if kind == "yarn":
        return _yarn(plain, dims, theta, scaling, original)
    if kind in ("longrope", "su"):
        return _longrope(plain, scaling, max_context, original)
    raise UnsupportedModelError(
        f"rope_scaling type {kind!r} is unknown;"
        " known are default, linear, llama3, yarn, longrope and dynamic"
    )


def _llama3_periods(plain: tuple[float, ...], scaling: Mapping[str, Any]) -> tuple[float, ...]:
    factor = float(scaling["factor"])
    low = float(scaling.get("low_freq_factor", 1.0))
    high = float(scaling.get("high_freq_factor", 4.0))
    context = float(scaling.get("original_max_position_embeddings", 8192))

    def scale(period: float) -> float:
        wavelength = 2 * math.pi * period
        if wavelength > context / low:
            return period * factor
        if wavelength <= context / high:
            return period
        smooth = (context / wavelength - low) / (high - low)
        return period / ((1 - smooth) / factor + smooth)

    return tuple(scale(p) for p in plain)


def _yarn(
    plain: tuple[float, ...],
    dims: int,
    theta: float,
    scaling: Mapping[str, Any],
    original: int | None,
) -> Rope:
    factor = float(scaling["factor"])
    context = float(scaling.get("original_max_position_embeddings") or original or 4096)

    def dimension_of(rotations: float) -> float:
        return dims * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_of(float(scaling.get("beta_fast") or 32))), 0)
    high = min(math.ceil(dimension_of(float(scaling.get("beta_slow") or 1))), dims - 1)
    width = (high - low) or 0.001  # one shared border would divide by zero

    def blend(i: int, period: float) -> float:
        kept = 1.0 - min(max((i - low) / width, 0.0), 1.0)
        stretched = factor * period
        return stretched * period / (stretched * kept + period * (1.0 - kept))

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    ratio = mscale(float(scaling.get("mscale") or 1)) / mscale(
        float(scaling.get("mscale_all_dim") or 0)
    )
    return Rope(tuple(blend(i, p) for i, p in enumerate(plain)), mscale=ratio)


def _longrope(
    plain: tuple[float, ...], scaling: Mapping[str, Any], max_context: int, original: int | None
) -> Rope:
    context = int(scaling.get("original_max_position_embeddings") or original or 4096)
    factors = scaling["long_factor"]
    if not isinstance(factors, list | tuple):
        factors = [factors] * len(plain)
    if len(factors) != len(plain):
        raise ValueError(f"long_factor has {len(factors)} values, not {len(plain)}")
    stretch = max_context / context
    mscale = scaling.get("long_mscale")
    if mscale is None:
        mscale = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(context))
    # The long factors hold at every length: switching at the old limit would turn cached keys by
    # another angle.
    return Rope(
        tuple(float(f) * p for f, p in zip(factors, plain, strict=True)), mscale=float(mscale)
    )
