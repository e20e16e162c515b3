"""Configs of the native families: what is read from them, and that no value gets through wrong."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.families import FAMILIES, ModelConfig, is_native, make_model_config

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 4.0,
}


def read(family: str, **config: Any) -> ModelConfig:
    extra = GRANITE if family == "granite" else {}
    return make_model_config({**BASE, **extra, "model_type": family, **config})


def windows(config: ModelConfig) -> list[int | None]:
    return [kind.window for kind in config.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_read(family: str) -> None:
    """Every family takes the plain sizes from the plain keys."""
    config = read(family)
    assert (config.n_layers, len(config.layers)) == (6, 6)
    assert (config.n_heads, config.n_kv_heads, config.d_model, config.d_mlp) == (4, 2, 64, 128)
    assert (config.vocab_size, config.max_context, config.max_exact_context) == (160, 256, 256)
    assert config.head_dim == (256 if family == "gemma3_text" else 16)
    assert read(family, head_dim=32).head_dim == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_as_good_as_absent(family: str) -> None:
    """Configs have null for what they leave to the default."""
    nulls = dict.fromkeys(
        ["head_dim", "rope_scaling", "rope_parameters", "sliding_window", "layer_types"]
    )
    assert read(family, **nulls) == read(family)


def test_native_or_not() -> None:
    """A family of ours is native, unless the checkpoint brings code of its own."""
    assert is_native({"model_type": "qwen3"})
    assert not is_native({"model_type": "mamba"})
    assert not is_native({})
    assert not is_native({"model_type": "llama", "model_file": "model.py"})


class TestWindows:
    """Which layers slide."""

    def test_llama_by_layer_types(self) -> None:
        """layer_types decides, where it is given."""
        types = ["sliding_attention", "full_attention"] * 3
        config = read("llama", sliding_window=16, layer_types=types)
        assert windows(config) == [16, None] * 3

    def test_plain_llama_ignores_a_window(self) -> None:
        """A window alone makes no layer of a Llama slide."""
        assert windows(read("llama", sliding_window=16)) == [None] * 6

    def test_mistral(self) -> None:
        """Without layer_types every layer of a Mistral with a window slides."""
        assert windows(read("mistral", sliding_window=16)) == [16] * 6
        assert windows(read("mistral", sliding_window=None)) == [None] * 6
        types = ["full_attention"] * 6
        assert windows(read("mistral", sliding_window=16, layer_types=types)) == [None] * 6

    @pytest.mark.parametrize("family", ["qwen2", "qwen3"])
    def test_qwen(self, family: str) -> None:
        """Only with its switch on, and from max_window_layers on."""
        assert windows(read(family, sliding_window=16, max_window_layers=4)) == [None] * 6
        config = read(family, sliding_window=16, max_window_layers=4, use_sliding_window=True)
        assert windows(config) == [None] * 4 + [16] * 2

    def test_phi3(self) -> None:
        """A window as long as the context is none."""
        assert windows(read("phi3", sliding_window=16)) == [16] * 6
        assert windows(read("phi3", sliding_window=256)) == [None] * 6

    def test_gemma(self) -> None:
        """Gemma 2 slides in every other layer, Gemma 3 in all but every sixth."""
        assert windows(read("gemma2", sliding_window=16)) == [16, None] * 3
        assert windows(read("gemma3_text", sliding_window=16)) == [16] * 5 + [None]
        assert windows(read("gemma3_text", sliding_window_pattern=2)) == [512, None] * 3


class TestRopes:
    """Which layers turn how."""

    def test_theta_flat_and_nested(self) -> None:
        """rope_theta stands at the top (transformers 4) or inside rope_parameters (5)."""
        flat = read("llama", rope_theta=500.0)
        assert (
            flat.layers[0].rope
            == read("llama", rope_parameters={"rope_theta": 500.0}).layers[0].rope
        )
        rope = flat.layers[0].rope
        assert rope is not None
        assert rope.periods[1] == pytest.approx(500.0 ** (2 / 16))

    def test_gemma3_turns_windows_otherwise(self) -> None:
        """Layers with a window have the local base, the others the global one with scaling."""
        config = read("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0})
        local, full = config.layers[0].rope, config.layers[5].rope
        assert local is not None
        assert full is not None
        assert local.periods[1] == pytest.approx(10000.0 ** (2 / 256))
        assert full.periods[1] == pytest.approx(8 * 1e6 ** (2 / 256))
        nested = {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 10000.0},
        }
        assert read("gemma3_text", rope_parameters=nested).layers == config.layers

    def test_smollm3_leaves_some_layers_alone(self) -> None:
        """Every fourth layer has no positions, or those that the config names."""
        ropes = [kind.rope is not None for kind in read("smollm3").layers]
        assert ropes == [True, True, True, False, True, True]
        config = read("smollm3", no_rope_layers=[0, 1, 0, 1, 0, 1])
        assert [kind.rope is not None for kind in config.layers] == [False, True] * 3

    def test_partial_rotation(self) -> None:
        """A share of each head is turned."""
        rope = read("phi3", partial_rotary_factor=0.5).layers[0].rope
        assert rope is not None
        assert rope.dims == 8

    def test_dynamic_ntk_ends_where_keys_would_change(self) -> None:
        """Beyond the trained context cached keys would be wrong: the context ends there."""
        config = read("llama", rope_scaling={"type": "dynamic", "factor": 4.0})
        assert config.max_exact_context == 256


class TestScalings:
    """Factors of single families."""

    def test_gemma2_soft_caps(self) -> None:
        """A cap has its usual value where it is absent, and is off where it is null."""
        config = read("gemma2")
        assert (config.attn_softcap, config.final_softcap) == (50.0, 30.0)
        off = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
        assert (off.attn_softcap, off.final_softcap) == (None, None)
        assert read("gemma2", attn_logit_softcapping=20).attn_softcap == 20.0

    def test_granite(self) -> None:
        """Its four multipliers go where they belong."""
        config = read("granite")
        assert (config.attn_scale, config.embed_scale) == (0.2, 3.0)
        assert (config.residual_scale, config.logit_divisor) == (0.3, 4.0)

    def test_tied_heads(self) -> None:
        """Families differ in what they mean where the config says nothing."""
        tied = {family for family in FAMILIES if read(family).tied}
        assert tied == {"llama", "mistral", "qwen2", "smollm3", "gemma2", "granite", "olmo2"}
        assert not read("llama", tie_word_embeddings=False).tied


KEYS = [
    *BASE,
    *GRANITE,
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "no_rope_layers",
    "no_rope_layer_interval",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window_pattern",
    "rope_local_base_freq",
    "tie_word_embeddings",
    "attention_bias",
]
ROPES = [
    {"rope_type": kind, "factor": 2.0, "long_factor": [1.0] * 8, "short_factor": [1.0] * 8}
    for kind in ("linear", "dynamic", "llama3", "yarn", "longrope", "su", "mrope", "warp")
]
ROPE_KEYS = [
    "rope_type",
    "type",
    "factor",
    "rope_theta",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "long_factor",
    "long_mscale",
    "partial_rotary_factor",
    "full_attention",
]
JUNK = st.sampled_from(
    [
        *(None, True, False, "", "x", "7", [], {}, [1], [0] * 6, [None] * 6, ["x"] * 6, {"a": 1}),
        *(-1, 0, 1, 3, 7, 2**31, 10**30, 10**400, -0.5, 0.0, 0.3, 1.5, 1e-300, 1e300),
        *(math.inf, -math.inf, math.nan),
    ]
)


def check_sane(config: ModelConfig) -> None:
    """What the transformer relies on."""
    sizes = [config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim, config.d_model]
    assert all(isinstance(n, int) and n >= 1 for n in [*sizes, config.d_mlp, config.vocab_size])
    assert config.n_heads % config.n_kv_heads == 0
    assert len(config.layers) == config.n_layers
    for kind in config.layers:
        assert kind.window is None or (isinstance(kind.window, int) and kind.window >= 1)
        if kind.rope is not None:
            assert 2 <= kind.rope.dims <= config.head_dim
            assert all(0 < p < math.inf for p in (*kind.rope.periods, kind.rope.mscale))
    scales = [config.norm_eps, config.attn_scale, config.embed_scale, config.residual_scale]
    scales += [config.logit_divisor, config.attn_softcap or 1.0, config.final_softcap or 1.0]
    assert all(isinstance(s, float) and 0 < s < math.inf for s in scales)
    assert 1 <= config.max_exact_context <= config.max_context


def check_refused_or_sane(family: str, changes: dict[str, Any]) -> None:
    message = None
    try:
        check_sane(read(family, **changes))
    except (CheckpointError, UnsupportedModelError) as error:
        message = str(error)
    assert message is None or "; " in message


@bounded(max_examples=400)
@given(
    family=st.sampled_from(list(FAMILIES)),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK, min_size=1, max_size=2),
)
def test_damaged_configs(family: str, changes: dict[str, Any]) -> None:
    """Any value in any place gives a sane model or one of our errors, in one line."""
    check_refused_or_sane(family, changes)


@bounded(max_examples=400)
@given(
    family=st.sampled_from(["llama", "phi3", "gemma3_text", "smollm3"]),
    rope=st.sampled_from(ROPES),
    place=st.sampled_from(["rope_scaling", "rope_parameters"]),
    changes=st.dictionaries(st.sampled_from(ROPE_KEYS), JUNK, max_size=2),
)
def test_damaged_ropes(
    family: str, rope: dict[str, Any], place: str, changes: dict[str, Any]
) -> None:
    """The same inside the rope settings, of every scheme."""
    check_refused_or_sane(family, {place: {**rope, **changes}})


@pytest.mark.parametrize("key", [k for k in BASE if k not in ("max_position_embeddings",)])
def test_a_missing_size_is_named(key: str) -> None:
    """What a config must have is asked for by its key (heads for KV are those of the queries)."""
    config = {k: v for k, v in BASE.items() if k != key}
    if key == "num_key_value_heads":
        assert make_model_config({**config, "model_type": "llama"}).n_kv_heads == 4
        return
    with pytest.raises(CheckpointError, match=f"{key} = None"):
        make_model_config({**config, "model_type": "llama"})


def test_heads_must_share_evenly() -> None:
    """Query heads are a multiple of key-value heads."""
    with pytest.raises(CheckpointError, match="4 heads and 3 key-value heads"):
        read("llama", num_key_value_heads=3)
