"""Hugging Face config -> ModelConfig, one small table entry per family of the native transformer.

A family is described by what it changes about the plain Llama block. A `model_type` that is not
in `FAMILIES` belongs to `zoo.py`. Nothing here touches arrays.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlxchat.errors import CheckpointError
from mlxchat.model.rope import Rope, make_rope

Config = Mapping[str, Any]

ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert"},
)
_MOST = 2**31 - 1  # MLX's own limit for one axis
_MOST_LAYERS = 4096  # far above any model; a damaged number must not fill the memory


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What may differ from layer to layer: rotation (None: no positions) and window."""

    rope: Rope | None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A dense decoder as the native transformer runs it; sizes are in elements.

    `layers` has one entry a layer. `head_optional` says that the head is tied where the
    checkpoint has no `lm_head`; `fused_names` that q, k, v and gate, up are stored as one matrix
    each.
    """

    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_mlp: int
    vocab_size: int
    max_context: int
    norm_eps: float
    layers: tuple[LayerKind, ...]
    tied: bool
    attn_scale: float
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    norms: Literal["pre", "post", "both"] = "pre"
    norm_weight_offset: float = 0.0
    activation: Literal["silu", "gelu"] = "silu"
    embed_scale: float = 1.0
    embed_scale_bf16: bool = False
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    attn_softcap: float | None = None
    final_softcap: float | None = None
    clip_residual: bool = False
    head_optional: bool = False
    fused_names: bool = False

    @property
    def max_exact_context(self) -> int:
        """Longest context whose cached keys stay exact."""
        limits = [k.rope.max_exact for k in self.layers if k.rope and k.rope.max_exact]
        return min([self.max_context, *limits])


class Reader:
    """Typed look-ups in a config that say which key is missing or of a wrong kind."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def integer(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """Returns a whole number of at least `low`; None as default means that it must be there."""
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= _MOST:
            raise CheckpointError(
                f"config.json has {key} = {value!r}; it must be a whole number of at least {low},"
                " below 2^31"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a number; every one of a config is a scale, a base or a bound: above 0."""
        value = self.config.get(key)
        value = default if value is None else value
        is_bool = isinstance(value, bool)
        if isinstance(value, int | float) and not is_bool and 0 < value <= sys.float_info.max:
            return float(value)
        raise CheckpointError(f"config.json has {key} = {value!r}; it must be a number above 0")

    def cap(self, key: str, default: float) -> float | None:
        """Returns a soft-cap; null switches it off."""
        is_off = key in self.config and self.config[key] is None
        return None if is_off else self.number(key, default)

    def window(self) -> int | None:
        """Returns the sliding window, or None where nothing slides."""
        value = self.config.get("sliding_window")
        return None if value in (None, 0, False) else self.integer("sliding_window")

    def flag(self, key: str, default: bool) -> bool:
        """Returns a switch."""
        value = self.config.get(key)
        return default if value is None else bool(value)


def _rope_source(config: Config, layer_type: str) -> Config:
    """Returns the rope settings of a layer type: nested (transformers 5) or flat."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(nested, Mapping) and isinstance(nested.get(layer_type), Mapping):
        nested = nested[layer_type]
    return nested if isinstance(nested, Mapping) else {}


def _rope(config: Config, head_dim: int, layer_type: str, theta: float | None = None) -> Rope:
    read, scaling = Reader(config), _rope_source(config, layer_type)
    nested = Reader(scaling)
    if theta is None:
        theta = nested.number("rope_theta", read.number("rope_theta", 10000.0))
    share = nested.number("partial_rotary_factor", read.number("partial_rotary_factor", 1.0))
    dims = int(head_dim * share) // 2 * 2
    if not 2 <= dims <= head_dim:
        raise CheckpointError(
            f"config.json rotates {dims} of {head_dim} dimensions of a head;"
            " partial_rotary_factor must be above 0 and at most 1"
        )
    original = config.get("original_max_position_embeddings")
    return make_rope(dims, theta, scaling, read.integer("max_position_embeddings", 2048), original)


def _layer_types(config: Config, n_layers: int) -> list[str]:
    types = config.get("layer_types")
    if types is None:
        return ["full_attention"] * n_layers
    known = {"full_attention", "sliding_attention"}
    if not isinstance(types, list) or len(types) != n_layers or not set(types) <= known:
        raise CheckpointError(
            f"config.json has layer_types that do not fit {n_layers} layers;"
            f" each must be one of {', '.join(sorted(known))}"
        )
    return types


def _plain_layers(config: Config, n_layers: int, head_dim: int) -> tuple[LayerKind, ...]:
    types = _layer_types(config, n_layers)
    window = Reader(config).window()
    return tuple(
        LayerKind(_rope(config, head_dim, t), window if t == "sliding_attention" else None)
        for t in types
    )


def _base(config: Config, family: str) -> ModelConfig:
    read = Reader(config)
    n_layers, n_heads = read.integer("num_hidden_layers"), read.integer("num_attention_heads")
    if n_layers > _MOST_LAYERS:
        raise CheckpointError(
            f"config.json has num_hidden_layers = {n_layers}; at most {_MOST_LAYERS} are read"
        )
    d_model = read.integer("hidden_size")
    head_dim = read.integer("head_dim", max(d_model // n_heads, 1))
    n_kv_heads = read.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise CheckpointError(
            f"config.json has {n_heads} heads and {n_kv_heads} key-value heads;"
            " the first must be a multiple of the second"
        )
    return ModelConfig(
        family=family,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        d_model=d_model,
        d_mlp=read.integer("intermediate_size"),
        vocab_size=read.integer("vocab_size"),
        max_context=read.integer("max_position_embeddings", 2048),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        layers=_plain_layers(config, n_layers, head_dim),
        tied=read.flag("tie_word_embeddings", False),
        attn_scale=head_dim**-0.5,
    )


def _llama(config: Config, base: ModelConfig) -> ModelConfig:
    read = Reader(config)
    bias = read.flag("attention_bias", False)
    return replace(
        base,
        tied=read.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=read.flag("mlp_bias", False),
    )


def _mistral(config: Config, base: ModelConfig) -> ModelConfig:
    window = Reader(config).window()
    layers = base.layers
    if window and config.get("layer_types") is None:  # Mistral 7B v0.1: every layer slides
        layers = tuple(replace(k, window=window) for k in layers)
    return replace(_llama(config, base), layers=layers)


def _qwen_windows(config: Config, base: ModelConfig) -> tuple[LayerKind, ...]:
    if config.get("layer_types") is not None:
        return base.layers
    if not config.get("use_sliding_window"):
        return base.layers
    read = Reader(config)
    first, window = read.integer("max_window_layers", 0, low=0), read.window()
    return tuple(
        replace(k, window=window if i >= first else None) for i, k in enumerate(base.layers)
    )


def _qwen2(config: Config, base: ModelConfig) -> ModelConfig:
    tied = Reader(config).flag("tie_word_embeddings", True)
    return replace(base, tied=tied, qkv_bias=True, layers=_qwen_windows(config, base))


def _qwen3(config: Config, base: ModelConfig) -> ModelConfig:
    return replace(base, qk_norm="head", layers=_qwen_windows(config, base))


def _smollm3(config: Config, base: ModelConfig) -> ModelConfig:
    llama = _llama(config, base)
    interval = Reader(config).integer("no_rope_layer_interval", 4)
    keep = config.get("no_rope_layers") or [
        int((i + 1) % interval != 0) for i in range(base.n_layers)
    ]
    if not isinstance(keep, list) or len(keep) != base.n_layers:
        raise CheckpointError(
            "config.json has no_rope_layers that do not fit; it needs a list with one entry for"
            f" each of {base.n_layers} layers"
        )
    layers = _qwen_windows(config, base)
    return replace(
        llama,
        layers=tuple(
            k if on else replace(k, rope=None) for k, on in zip(layers, keep, strict=True)
        ),
    )


def _phi3(config: Config, base: ModelConfig) -> ModelConfig:
    window = Reader(config).window()
    if not window or window >= base.max_context:
        window = None
    layers = tuple(replace(k, window=window) for k in base.layers)
    return replace(base, fused_names=True, layers=layers)


def _gemma2(config: Config, base: ModelConfig) -> ModelConfig:
    read = Reader(config)
    window = read.window()
    layers = base.layers
    if config.get("layer_types") is None and window:
        layers = tuple(
            replace(k, window=window if i % 2 == 0 else None) for i, k in enumerate(layers)
        )
    return replace(
        base,
        tied=True,
        layers=layers,
        attn_scale=read.number("query_pre_attn_scalar", 144.0) ** -0.5,
        norms="both",
        norm_weight_offset=1.0,
        activation="gelu",
        embed_scale=base.d_model**0.5,
        attn_softcap=read.cap("attn_logit_softcapping", 50.0),
        final_softcap=read.cap("final_logit_softcapping", 30.0),
    )


def _gemma3(config: Config, base: ModelConfig) -> ModelConfig:
    read = Reader(config)
    pattern = read.integer("sliding_window_pattern", 6)
    window = read.integer("sliding_window", 512)
    types = config.get("layer_types")
    full = _rope({"rope_theta": 1e6, **config}, base.head_dim, "full_attention")
    local_theta = read.number("rope_local_base_freq", 10000.0)
    nested = config.get("rope_parameters")
    if isinstance(nested, Mapping) and "sliding_attention" in nested:
        source = Reader(_rope_source(config, "sliding_attention"))
        local_theta = source.number("rope_theta", local_theta)
    local = make_rope(base.head_dim // 2 * 2, local_theta, None, base.max_context, None)

    def kind(i: int) -> LayerKind:
        slides = types[i] == "sliding_attention" if types else (i + 1) % pattern != 0
        return LayerKind(local, window) if slides else LayerKind(full)

    return replace(
        base,
        layers=tuple(kind(i) for i in range(base.n_layers)),
        attn_scale=read.number("query_pre_attn_scalar", 256.0) ** -0.5,
        qk_norm="head",
        norms="both",
        norm_weight_offset=1.0,
        activation="gelu",
        embed_scale=base.d_model**0.5,
        embed_scale_bf16=True,
        clip_residual=True,
        head_optional=True,
    )


def _granite(config: Config, base: ModelConfig) -> ModelConfig:
    read = Reader(config)
    return replace(
        _llama(config, base),
        attn_scale=read.number("attention_multiplier"),
        embed_scale=read.number("embedding_multiplier"),
        residual_scale=read.number("residual_multiplier"),
        logit_divisor=read.number("logits_scaling"),
    )


def _olmo2(config: Config, base: ModelConfig) -> ModelConfig:
    return replace(_llama(config, base), qk_norm="full", norms="post")


FAMILIES: dict[str, Callable[[Config, ModelConfig], ModelConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _granite,
    "olmo2": _olmo2,
}

# What transformers fills in for keys that a config leaves out, where it is not _base's own default.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "head_dim": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32768,
    },
    "qwen2": {"rope_theta": 1e6, "max_position_embeddings": 32768},
    "phi3": {"max_position_embeddings": 131072},
}


def is_native(config: Config) -> bool:
    """Whether the native transformer runs this `model_type`."""
    return config.get("model_type") in FAMILIES and not config.get("model_file")


def is_encoder(config: Config) -> bool:
    """Whether a config is of the BERT family (`bert_files.py`): it gives vectors, not text."""
    return config.get("model_type") in ENCODERS


def make_model_config(config: Config) -> ModelConfig:
    """Reads a Hugging Face config of a native family.

    Raises:
        CheckpointError: A value is missing or makes no sense.
        UnsupportedModelError: A RoPE scheme is unknown.
    """
    family = str(config["model_type"])
    given = {k: v for k, v in config.items() if v is not None or k.endswith("softcapping")}
    full = {**_DEFAULTS.get(family, {}), **given}
    return FAMILIES[family](full, _base(full, family))
