"""Our transformer against mlx-lm on the same weights: the oracle for every native family."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxchat.model.device import DevicePlan, load_mlx

mx = load_mlx()

import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten, tree_map  # noqa: E402

from mlxchat.model.checkpoint import Checkpoint, read_config  # noqa: E402
from mlxchat.model.device import make_device_plan  # noqa: E402
from mlxchat.model.loader import load_native  # noqa: E402
from mlxchat.model.quantization import read_quantization  # noqa: E402
from mlxchat.model.transformer import Transformer  # noqa: E402
from mlxchat.openblas import SmallProduct  # noqa: E402

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-tied-biased": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3-rope": {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-window": {
        "model_type": "llama",
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mistral-window": {
        "model_type": "mistral",
        "sliding_window": 16,
        "head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-yarn": {
        "model_type": "qwen3",
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2},
    "phi3": {"model_type": "phi3", "partial_rotary_factor": 0.5},
    "phi3-longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 3.0, 4.0, 5.0],
        },
    },
    "gemma2": {"model_type": "gemma2", **GEMMA},
    "gemma3_text": {
        "model_type": "gemma3_text",
        **GEMMA,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 1000.0,
    },
    "granite": {
        "model_type": "granite",
        "logits_scaling": 4.0,
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    },
    "olmo2": {"model_type": "olmo2"},
}
MODES = {
    "affine-4": {"group_size": 32, "bits": 4, "mode": "affine"},
    "affine-2": {"group_size": 32, "bits": 2, "mode": "affine"},
    "affine-3": {"group_size": 64, "bits": 3, "mode": "affine"},
    "affine-5": {"group_size": 32, "bits": 5, "mode": "affine"},
    "affine-6": {"group_size": 32, "bits": 6, "mode": "affine"},
    "affine-8": {"group_size": 64, "bits": 8, "mode": "affine"},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}


def make_oracle(config: dict[str, Any], dtype: Any = None) -> nn.Module:
    """An mlx-lm model with random weights whose norms and biases are not trivial."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    key = mx.random.key(7)
    weights = []
    for name, value in tree_flatten(model.parameters()):
        key, sub = mx.random.split(key)
        scale = 0.3 if value.ndim == 1 else 1.5 / value.shape[-1] ** 0.5
        new = mx.random.normal(value.shape, key=sub) * scale
        is_norm = "norm" in name and not config["model_type"].startswith("gemma")
        weights.append((name, new + 1.0 if is_norm else new))
    model.load_weights(weights)
    if dtype is not None:
        model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def save(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    weights = dict(tree_flatten(model.parameters()))
    if config["model_type"] == "gemma3_text":
        weights = {k: v for k, v in weights.items() if not k.startswith("lm_head")}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def load(folder: Path, plan: DevicePlan | None = None) -> Transformer:
    config = read_config(folder)
    return load_native(
        config, Checkpoint.open(folder), read_quantization(config), lambda *_: None, plan
    )


def reload_oracle(folder: Path) -> nn.Module:
    """The same folder through mlx-lm itself, then float32 as DESIGN's decision 3 says."""
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)

    def widen(a: Any) -> Any:
        return a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a

    model.update(tree_map(widen, model.parameters()))
    return model


def oracle_logits(model: nn.Module, ids: list[int]) -> Any:
    from mlx_lm.models.cache import make_prompt_cache

    return model(mx.array([ids]), cache=make_prompt_cache(model))[0]


def our_logits(model: Transformer, ids: list[int], chunks: list[int]) -> Any:
    """Last logits of each chunk, at the positions where the chunks end."""
    cache, rows, start = model.make_cache(), [], 0
    for size in chunks:
        rows.append(model.forward(mx.array([ids[start : start + size]]), cache)[0])
        start += size
    return mx.stack(rows)


def check(model: Transformer, oracle: nn.Module, length: int = 45) -> None:
    ids = mx.random.randint(0, 160, (length,), key=mx.random.key(3)).tolist()
    want = oracle_logits(oracle, ids).astype(mx.float32)
    for chunks in ([length], [7] * (length // 7) + [length % 7], [9] + [1] * (length - 9)):
        ends = [sum(chunks[: i + 1]) - 1 for i in range(len(chunks))]
        got = our_logits(model, ids, chunks)
        worst = mx.abs(got - want[mx.array(ends)]).max().item()
        assert worst <= 1e-4, (chunks[:2], worst)


@pytest.mark.parametrize("name", FAMILIES)
def test_unquantised_logits_equal_mlx_lm(name: str, tmp_path: Path) -> None:
    """Whole, chunked and one-by-one feeding give mlx-lm's logits to 1e-4."""
    config = {**SMALL, **FAMILIES[name]}
    save(make_oracle(config), config, tmp_path)
    check(load(tmp_path), reload_oracle(tmp_path))


@pytest.mark.parametrize("name", FAMILIES)
def test_four_bit_logits_equal_mlx_lm(name: str, tmp_path: Path) -> None:
    """A bfloat16 model quantised by mlx-lm gives the same logits on our float32 plan."""
    from mlx_lm.utils import quantize_model

    config = {**SMALL, **FAMILIES[name]}
    oracle = make_oracle(config, mx.bfloat16)
    oracle, config = quantize_model(oracle, config, 32, 4)
    save(oracle, config, tmp_path)
    check(load(tmp_path), reload_oracle(tmp_path))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kept", [False, True], ids=["dequantised", "kept quantised"])
def test_every_quantisation_mode(mode: str, kept: bool, tmp_path: Path) -> None:
    """Each mode MLX has gives mlx-lm's logits, dequantised at load or multiplied as stored."""
    from mlx_lm.utils import quantize_model

    config = {**SMALL, **FAMILIES["qwen3"]}
    oracle, config = quantize_model(make_oracle(config), config, **MODES[mode])
    save(oracle, config, tmp_path)
    plan = make_device_plan()
    if kept:
        plan = DevicePlan("cpu", plan.blas, False, False, "row", plan.memory_bytes)
    model = load(tmp_path, plan)
    assert (model.weights.layers[0].qkv[0].quant is not None) == kept
    check(model, reload_oracle(tmp_path))


def test_mixed_quantisation_is_not_fused(tmp_path: Path) -> None:
    """Layers whose q, k, v differ in bits stay apart and still give mlx-lm's logits."""
    from mlx_lm.utils import quantize_model

    def predicate(path: str, module: Any) -> Any:
        if path.endswith("v_proj") or path.endswith("down_proj"):
            return {"group_size": 64, "bits": 8}
        return not path.endswith("layers.1.mlp.up_proj")

    config = {**SMALL, **FAMILIES["llama"]}
    oracle, config = quantize_model(make_oracle(config), config, 32, 4, quant_predicate=predicate)
    save(oracle, config, tmp_path)
    plan = DevicePlan("cpu", "bundled", False, False, "row", 2**33)
    model = load(tmp_path, plan)
    assert len(model.weights.layers[0].qkv) == 3
    assert len(model.weights.layers[1].gate_up) == 2
    assert len(model.weights.layers[0].gate_up) == 1
    check(model, reload_oracle(tmp_path))
    check(load(tmp_path), reload_oracle(tmp_path))


@pytest.mark.parametrize("layout", ["plain", "in parts", "transposed"])
@pytest.mark.parametrize("fast", [False, True], ids=["written out", "mx.fast"])
@pytest.mark.parametrize("name", ["qwen3", "phi3-longrope", "olmo2", "gemma2"])
def test_every_device_plan(name: str, fast: bool, layout: str, tmp_path: Path) -> None:
    """Kernels and layouts of other devices give the same logits here."""
    config = {**SMALL, **FAMILIES[name]}
    save(make_oracle(config), config, tmp_path)
    # Parts leave a rest in some matrices.
    small = SmallProduct(20_000, 400) if layout == "in parts" else None
    plan = DevicePlan("cpu", "bundled", True, fast, layout == "transposed", 2**33, small)
    check(load(tmp_path, plan), reload_oracle(tmp_path), length=20)


def test_a_batch_equals_its_rows(tmp_path: Path) -> None:
    """Two sequences in step give the logits of each alone."""
    config = {**SMALL, **FAMILIES["qwen3"]}
    save(make_oracle(config), config, tmp_path)
    model = load(tmp_path)
    ids = mx.random.randint(0, 160, (2, 12), key=mx.random.key(1))
    cache = model.make_cache()
    model.forward(ids[:, :11], cache)
    both = model.forward(ids[:, 11:], cache)
    for row in range(2):
        alone = model.forward(ids[row : row + 1], model.make_cache())[0]
        assert mx.abs(both[row] - alone).max().item() <= 1e-4


def test_every_layer_slides_in_mistral_without_layer_types(tmp_path: Path) -> None:
    """Mistral 7B v0.1's config (a window, no layer_types): far tokens do not count."""
    config = {**SMALL, "model_type": "mistral", "sliding_window": 4}
    save(make_oracle(config), config, tmp_path)
    model = load(tmp_path)
    near = list(range(20))
    far = [99, *near[1:]]
    reach = 3 * model.config.n_layers  # each layer looks back window - 1 rows
    assert len(near) > reach + 1
    a, b = (model.forward(mx.array([ids]), model.make_cache()) for ids in (near, far))
    assert mx.array_equal(a, b).item()
    c = model.forward(mx.array([[*near[:15], 99, *near[16:]]]), model.make_cache())
    assert mx.abs(a - c).max().item() > 1e-3
