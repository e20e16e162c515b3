"""Quantisation blocks of configs: what MLX reads, what mlx-lm converts, what nobody reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from bad_folders import make_good_folder

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.checkpoint import Checkpoint, read_config
from mlxchat.model.quantization import QuantizationPlan, QuantSpec, read_quantization
from mlxchat.model.safetensors_file import TensorInfo

PATH = "model.layers.0.mlp.up_proj"


def stored(
    weight: tuple[int, ...], scales: tuple[int, ...] | None = None, dtype: str = "BF16"
) -> dict[str, TensorInfo]:
    """Describes a module's stored tensors."""
    file = Path("model.safetensors")
    tensors = {f"{PATH}.weight": TensorInfo(f"{PATH}.weight", "U32", weight, 0, file, 0)}
    if scales is not None:
        name = f"{PATH}.scales"
        tensors[name] = TensorInfo(name, dtype, scales, 0, file, 0)
    return tensors


def test_plain_model() -> None:
    """A config without a block, or with an empty one, means plain weights."""
    for config in ({}, {"quantization": None}, {"quantization_config": {}}):
        plan = read_quantization(config)
        assert not plan.is_quantized
        assert plan.for_module(PATH, stored((64, 32)), 32) is None


def test_scales_without_block() -> None:
    """Quantised weights under a config that does not say so are refused."""
    with pytest.raises(CheckpointError, match=r"up_proj\.scales, but config\.json has no quant"):
        read_quantization({}).for_module(PATH, stored((64, 16), (64, 2)), 128)


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_mlx_block(key: str) -> None:
    """Both keys that mlx-lm writes are read; the mode defaults to affine."""
    plan = read_quantization({key: {"bits": 8, "group_size": 32}})
    assert plan.default == QuantSpec(8, 32, "affine")
    assert plan.is_quantized
    assert not plan.needs_mlx_lm


def test_mlx_block_wins_over_foreign() -> None:
    """A converted model may still carry its origin's block."""
    plan = read_quantization(
        {
            "quantization": {"bits": 4, "group_size": 64},
            "quantization_config": {"quant_method": "x"},
        }
    )
    assert plan.default == QuantSpec(4, 64)
    block = {"bits": 4, "group_size": 64, "quant_method": "gptq"}
    assert read_quantization({"quantization": block}) == plan


def test_overrides() -> None:
    """A named module follows its own setting, with MLX's defaults for what it leaves out."""
    plan = read_quantization(
        {
            "quantization": {
                "bits": 4,
                "group_size": 64,
                "a": {"bits": 6, "group_size": 128},
                "b": False,
                "c": True,
                "d": {"mode": "mxfp8"},
                "e": {"bits": 8},
            }
        }
    )
    assert plan.overrides == {
        "a": QuantSpec(6, 128),
        "b": None,
        "c": QuantSpec(4, 64),
        "d": QuantSpec(8, 32, "mxfp8"),
        "e": QuantSpec(8, 64),
    }


@pytest.mark.parametrize(
    ("spec", "weight", "scales", "dtype"),
    [
        (QuantSpec(4, 64), (8, 32), (8, 4), "BF16"),
        (QuantSpec(8, 32), (8, 64), (8, 8), "F32"),
        (QuantSpec(3, 128), (8, 24), (8, 2), "F16"),
        (QuantSpec(4, 16, "nvfp4"), (8, 32), (8, 16), "U8"),
        (QuantSpec(4, 32, "mxfp4"), (8, 32), (8, 8), "U8"),
        (QuantSpec(8, 32, "mxfp8"), (8, 64), (8, 8), "U8"),
    ],
)
def test_shapes_decide(
    spec: QuantSpec, weight: tuple[int, int], scales: tuple[int, int], dtype: str
) -> None:
    """For a module that the config does not name, the shapes tell the setting, as in mlx-lm."""
    plan = QuantizationPlan(QuantSpec(4, 64))
    tensors = stored(weight, scales, dtype)
    assert plan.for_module(PATH, tensors, 256) == spec
    shapes = spec.stored_shapes(PATH, 8, 256)
    assert {name: tensors[name].shape for name in tensors} == {n: shapes[n] for n in tensors}
    assert (f"{PATH}.biases" in shapes) == (spec.mode == "affine")


@pytest.mark.parametrize(
    ("weight", "scales", "dtype"),
    [
        ((8, 32), (8, 3), "BF16"),
        ((8, 33), (8, 4), "BF16"),
        ((8, 56), (8, 4), "BF16"),
        ((8, 32), (8, 4), "U8"),
        ((8, 32), (0,), "BF16"),
        ((), (8, 4), "BF16"),
    ],
)
def test_shapes_that_fit_nothing(
    weight: tuple[int, ...], scales: tuple[int, ...], dtype: str
) -> None:
    """Shapes that no quantisation has are refused by name."""
    with pytest.raises(CheckpointError, match="up_proj"):
        QuantizationPlan(QuantSpec(4, 64)).for_module(PATH, stored(weight, scales, dtype), 256)


@pytest.mark.parametrize("override", [QuantSpec(4, 64), None])
def test_override_against_the_weights(override: QuantSpec | None) -> None:
    """A config that names a module otherwise than it is stored is refused."""
    plan = QuantizationPlan(QuantSpec(4, 64), {PATH: override})
    tensors = stored((8, 256)) if override else stored((8, 32), (8, 4))
    with pytest.raises(CheckpointError, match=r"config\.json says that .*up_proj is"):
        plan.for_module(PATH, tensors, 256)


@pytest.mark.parametrize(
    "block",
    [
        {"bits": 7, "group_size": 64},
        {"bits": 4, "group_size": 48},
        {"bits": 4, "group_size": 64, "mode": "mxfp4"},
        {"bits": 4, "group_size": 64, "mode": "q4_k"},
        {"bits": 4, "group_size": 64, "mode": ["affine"]},
        {"bits": 4, "group_size": 64, "a": {"bits": 16}},
    ],
)
def test_unknown_numbers(block: dict[str, Any]) -> None:
    """Settings that MLX does not have are refused in one line."""
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        read_quantization({"quantization": block})


@pytest.mark.parametrize("block", [[], "4bit", {"bits": "4"}, {"bits": True}, {"group_size": None}])
def test_malformed_block(block: object) -> None:
    """A block of another form is either no block or refused, never a crash."""
    if not block:
        assert not read_quantization({"quantization": block}).is_quantized
        return
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_quantization({"quantization": block})


@pytest.mark.parametrize(
    "block",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "mxfp4"},
        {"quant_method": "bitnet"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}},
        {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_formats_that_mlx_lm_converts(block: dict[str, Any], nested: bool) -> None:
    """What mlx-lm unpacks while it loads is sent to it, also from a multimodal config."""
    config = {"quantization_config": block}
    plan = read_quantization({"text_config": config} if nested else config)
    assert plan.needs_mlx_lm
    assert plan.is_quantized
    assert plan.method == block["quant_method"]


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 8}, "gptq (8 bits)"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "float-quantized"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt (FP8)"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "hqq\x1b[0m"}, r"hqq\x1b[0m"),
    ],
)
def test_formats_that_nobody_reads(block: dict[str, Any], named: str) -> None:
    """Other formats are named, with what to use instead."""
    with pytest.raises(UnsupportedModelError) as caught:
        read_quantization({"model_type": "llama", "quantization_config": block})
    assert named in str(caught.value)
    assert "mlx_lm.convert" in str(caught.value)


def test_fp8_of_other_architectures() -> None:
    """Architectures whose mlx-lm class unpacks fp8 itself are sent to it."""
    block = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    plan = read_quantization({"model_type": "deepseek_v3", "quantization_config": block})
    assert plan.needs_mlx_lm


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_agrees_with_mlx_lm(tmp_path: Path, mode: str) -> None:
    """For a mixed checkpoint that mlx-lm writes, each module's setting is the one mlx-lm uses."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import load_model, quantize_model, save_model

    folder = make_good_folder(tmp_path / "m")
    model, config = load_model(folder)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if "layers.0.mlp" in path:
            return {"bits": 8, "group_size": 32, "mode": "affine"}
        return "o_proj" not in path

    group_size = 32 if mode == "affine" else None
    model, config = quantize_model(model, config, group_size, None, mode, quant_predicate=predicate)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_model(folder)

    checkpoint = Checkpoint.open(folder)
    plan = read_quantization(read_config(folder))
    matrices = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding | nn.QuantizedLinear | nn.QuantizedEmbedding)
    }
    assert len(matrices) == 15
    for path, module in matrices.items():
        in_dims = 64 if path.endswith("down_proj") else 32
        spec = plan.for_module(path, checkpoint.tensors, in_dims)
        theirs = (module.bits, module.group_size, module.mode) if "scales" in module else None
        assert (spec and (spec.bits, spec.group_size, spec.mode)) == theirs
        if spec is not None:
            checkpoint.require(spec.stored_shapes(path, module.scales.shape[0], in_dims))
    assert all(a.dtype != mx.bool_ for a in checkpoint.load().values())
