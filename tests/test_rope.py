"""Rotary positions against mlx-lm's layers and against what the schemes promise."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.device import load_mlx
from mlxchat.model.rope import Rope, make_rope

mx = load_mlx()

YARN = {"rope_type": "yarn", "original_max_position_embeddings": 64}
SCHEMES: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic-within": {"rope_type": "dynamic", "factor": 2.0},
    "mrope": {"rope_type": "mrope", "mrope_section": [2, 3, 3]},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
    "llama3-wide": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 8.0,
        "original_max_position_embeddings": 2048,
    },
    "yarn": {**YARN, "factor": 4.0},
    "yarn-no-stretch": {**YARN, "factor": 1.0},
    "yarn-betas": {**YARN, "factor": 16.0, "beta_fast": 8, "beta_slow": 2},
    "yarn-mscales": {**YARN, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0],
    },
}
MAX_CONTEXT = 512


def rotate(rope: Rope, x: Any, offset: int) -> Any:
    """RoPE as it is defined: pair i of a head turned by position / period i."""
    half = rope.dims // 2
    angle = (mx.arange(x.shape[2]) + offset)[:, None] / mx.array(rope.periods)
    cos, sin = mx.cos(angle) * rope.mscale, mx.sin(angle) * rope.mscale
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return mx.concatenate([a * cos - b * sin, a * sin + b * cos, rest], axis=-1)


@pytest.mark.parametrize("theta", [10000.0, 500.0, 1e6])
@pytest.mark.parametrize("width", [16, 24], ids=["whole", "partial"])
@pytest.mark.parametrize("name", SCHEMES)
def test_rotations_equal_mlx_lm(name: str, width: int, theta: float) -> None:
    """Heads are turned and stretched as mlx-lm's layer of that scheme does it."""
    from mlx_lm.models.rope_utils import initialize_rope

    scheme = SCHEMES[name]
    theirs = initialize_rope(16, theta, False, scheme, MAX_CONTEXT)
    ours = make_rope(16, theta, scheme, MAX_CONTEXT, None)
    x = mx.random.normal((1, 2, 9, width), key=mx.random.key(1))
    for offset in (0, 200):
        difference = mx.abs(rotate(ours, x, offset) - theirs(x, offset=offset)).max().item()
        assert difference <= 1e-4


@bounded(max_examples=60)
@given(
    factor=st.floats(1.0, 64.0),
    original=st.integers(8, 8192),
    theta=st.floats(100.0, 1e7),
    low=st.floats(0.5, 2.0),
    gap=st.floats(0.5, 8.0),
)
def test_llama3_never_turns_faster(
    factor: float, original: int, theta: float, low: float, gap: float
) -> None:
    """Every period lies between its own and the stretched one; order is kept."""
    scheme = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low + gap,
        "original_max_position_embeddings": original,
    }
    plain = make_rope(32, theta, None, original, None)
    rope = make_rope(32, theta, scheme, original, None)
    assert list(rope.periods) == sorted(rope.periods)
    for before, after in zip(plain.periods, rope.periods, strict=True):
        assert before * (1 - 1e-9) <= after <= before * factor * (1 + 1e-9)


@bounded(max_examples=60)
@given(factor=st.floats(1.0, 64.0), original=st.integers(64, 8192), theta=st.floats(100.0, 1e7))
def test_yarn_blends_between_kept_and_stretched(factor: float, original: int, theta: float) -> None:
    """Fast pairs keep their period, slow ones take the stretched one, others lie between."""
    plain = make_rope(32, theta, None, original, None)
    rope = make_rope(32, theta, {"type": "yarn", "factor": factor}, original, original)
    for before, after in zip(plain.periods, rope.periods, strict=True):
        assert before * (1 - 1e-9) <= after <= before * factor * (1 + 1e-9)
    assert rope.periods[0] == pytest.approx(1.0)
    assert rope.mscale == pytest.approx(0.1 * math.log(factor) + 1.0)


def test_linear_divides_positions() -> None:
    """Position 4 n of a factor of 4 is turned as position n was."""
    x = mx.random.normal((1, 1, 1, 16), key=mx.random.key(1))
    stretched = make_rope(16, 1e4, {"type": "linear", "factor": 4}, 512, None)
    plain = make_rope(16, 1e4, None, 512, None)
    assert mx.allclose(rotate(stretched, x, 40), rotate(plain, x, 10), atol=1e-5).item()


def test_only_dynamic_has_a_limit() -> None:
    """Its periods follow the length beyond the trained context: cached keys end there."""
    assert make_rope(16, 1e4, SCHEMES["dynamic-within"], 512, None).max_exact == 512
    for name, scheme in SCHEMES.items():
        if name != "dynamic-within":
            assert make_rope(16, 1e4, scheme, 512, None).max_exact is None


def test_where_the_original_length_is_found() -> None:
    """Inside the scheme first, then beside it, then the default."""
    scheme = {"type": "longrope", "long_factor": 2.0}
    inside = make_rope(16, 1e4, {**scheme, "original_max_position_embeddings": 64}, 512, 128)
    beside = make_rope(16, 1e4, scheme, 512, 64)
    assert inside == beside
    assert make_rope(16, 1e4, scheme, 512, None).mscale == 1.0  # 512 is below the default 4096
    assert inside.mscale == pytest.approx(math.sqrt(1 + math.log(8) / math.log(64)))


@pytest.mark.parametrize(
    "scheme",
    [
        {"type": "linear"},
        {"type": "linear", "factor": "wide"},
        {"type": "linear", "factor": 0},
        {"type": "linear", "factor": -2},
        {"type": "yarn", "factor": math.nan},
        {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": -5},
        {"type": "longrope", "long_factor": [1.0, 2.0]},
        {"type": "longrope"},
    ],
    ids=str,
)
def test_broken_schemes_are_refused(scheme: dict[str, Any]) -> None:
    """One line names the scheme."""
    with pytest.raises(CheckpointError, match=f"rope_scaling of type '{scheme['type']}'"):
        make_rope(16, 2.0, scheme, 512, 300)


def test_unknown_schemes_are_named() -> None:
    """The message says which schemes there are."""
    with pytest.raises(UnsupportedModelError, match=r"'warp' is unknown; known are .*yarn"):
        make_rope(16, 1e4, {"rope_type": "warp"}, 512, None)
