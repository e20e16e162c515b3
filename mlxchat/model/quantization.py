"""How the weights of a checkpoint are quantised: read from the config and checked against shapes.

Knows the `quantization` blocks that mlx-lm writes, and which foreign formats mlx-lm converts while
it loads. Unpacking is left to `loader.py`, foreign formats to `zoo.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.safetensors_file import TensorInfo, shown

Mode = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]

# (group size, bits) that MLX takes where a block names only the mode.
_MODE_DEFAULTS: Mapping[str, tuple[int, int]] = {
    "affine": (64, 4),
    "mxfp4": (32, 4),
    "nvfp4": (16, 4),
    "mxfp8": (32, 8),
}
_AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
_AFFINE_GROUPS = (32, 64, 128)
# Dense families for which mlx-lm has no fp8 loader; other architectures bring their own.
_NO_FP8 = {
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3"),
    *("gemma2", "gemma3_text", "granite", "olmo2"),
}
_CONVERT = "use the unquantised model or an MLX conversion of it (mlx_lm.convert -q)"


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one matrix is quantised.

    Attributes:
        bits: Bits per weight.
        group_size: Weights that share a scale.
        mode: MLX's name of the number format.
    """

    bits: int
    group_size: int
    mode: Mode = "affine"

    def stored_shapes(self, path: str, out_dims: int, in_dims: int) -> dict[str, tuple[int, ...]]:
        """Returns the tensors that hold an (out, in) matrix, by name, for `Checkpoint.require`.

        Args:
            path: Name of the module, such as `model.layers.0.mlp.up_proj`.
            out_dims: Rows of the matrix.
            in_dims: Columns of the matrix.
        """
        groups = (out_dims, in_dims // self.group_size)
        shapes = {f"{path}.weight": (out_dims, in_dims * self.bits // 32), f"{path}.scales": groups}
        if self.mode == "affine":
            shapes[f"{path}.biases"] = groups
        return dict(shapes)


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What a config says about quantisation.

    Attributes:
        default: The setting of modules that the config does not name; None for plain weights.
        overrides: Settings of named modules; None keeps the module unquantised.
        needs_mlx_lm: The weights are in a foreign format that only mlx-lm unpacks while it loads.
        method: Name of that format, else None.
    """

    default: QuantSpec | None = None
    overrides: Mapping[str, QuantSpec | None] = field(default_factory=dict)
    needs_mlx_lm: bool = False
    method: str | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether any weight may be quantised."""
        return self.default is not None or self.needs_mlx_lm

    def for_module(
        self, path: str, tensors: Mapping[str, TensorInfo], in_dims: int
    ) -> QuantSpec | None:
        """Tells how one module's matrix is stored, by mlx-lm's rules.

        A named module follows the config. Any other is quantised exactly if `<path>.scales` is
        there, and then the shapes decide, since the default may not hold for it.

        Args:
            path: Name of the module, such as `model.layers.0.self_attn.q_proj`.
            tensors: The checkpoint's tensors.
            in_dims: Columns of the unpacked matrix, as the config asks for.

        Returns:
            The setting, or None for plain weights.

        Raises:
            CheckpointError: Config and shapes contradict each other.
        """
        scales = tensors.get(f"{path}.scales")
        if path in self.overrides:
            spec = self.overrides[path]
            if spec is not None and scales is None:
                raise CheckpointError(
                    f"config.json says that {shown(path)} is quantised, but {shown(path)}.scales "
                    "is not in the weights; fetch the model again"
                )
            if spec is None and scales is not None:
                raise CheckpointError(
                    f"config.json says that {shown(path)} is not quantised, but the weights have "
                    f"{shown(path)}.scales; fetch the model again"
                )
            return spec
        if scales is None:
            return None
        if self.default is None:
            raise CheckpointError(
                f"the weights have {shown(path)}.scales, but config.json has no quantization "
                "block; fetch config.json again"
            )
        weight = tensors.get(f"{path}.weight")
        return _infer(path, weight, scales, in_dims)


def read_quantization(config: Mapping[str, Any]) -> QuantizationPlan:
    """Reads the quantisation of a checkpoint from its config.

    Args:
        config: The content of config.json.

    Raises:
        CheckpointError: An MLX block is malformed.
        UnsupportedModelError: The weights are in a format that neither MLX nor mlx-lm reads.
    """
    block = config.get("quantization")
    if block is None:
        block = config.get("quantization_config")
    text_config = config.get("text_config")
    if block is None and isinstance(text_config, dict):
        block = text_config.get("quantization_config")
    if not block:
        return QuantizationPlan()
    if not isinstance(block, dict):
        raise CheckpointError(
            "the quantization block of config.json is not a table; fetch it again"
        )
    if config.get("quantization") is None and "quant_method" in block:
        return _foreign(block, config.get("model_type"))
    overrides = {
        path: _override(path, value, block)
        for path, value in block.items()
        if isinstance(value, dict | bool)
    }
    needs_mlx_lm = bool(config.get("quantize_activations"))
    method = "quantised activations" if needs_mlx_lm else None
    return QuantizationPlan(_spec("the default", block), overrides, needs_mlx_lm, method)


def _override(path: str, value: dict[str, Any] | bool, block: dict[str, Any]) -> QuantSpec | None:
    if value is False:
        return None
    return _spec(shown(path), block if value is True else value)


def _spec(label: str, block: Mapping[str, Any]) -> QuantSpec:
    mode = block.get("mode", "affine")
    if mode not in get_args(Mode):
        raise UnsupportedModelError(
            f"quantization mode {shown(str(mode), 40)!r} of {label} in config.json is not known; "
            f"MLX has {', '.join(get_args(Mode))}"
        )
    default_group, default_bits = _MODE_DEFAULTS[mode]
    group_size = block.get("group_size", default_group)
    bits = block.get("bits", default_bits)
    if type(group_size) is not int or type(bits) is not int:
        raise CheckpointError(
            f"bits and group_size of {label} in config.json are not whole numbers; fetch it again"
        )
    if not _is_known(bits, group_size, mode):
        raise UnsupportedModelError(
            f"{bits} bits in groups of {group_size} ({mode}, {label} in config.json) are more than "
            "MLX reads; affine has 1-6 or 8 bits in groups of 32, 64 or 128"
        )
    return QuantSpec(bits, group_size, mode)


def _is_known(bits: int, group_size: int, mode: str) -> bool:
    if mode == "affine":
        return bits in _AFFINE_BITS and group_size in _AFFINE_GROUPS
    return (group_size, bits) == _MODE_DEFAULTS[mode]


def _infer(path: str, weight: TensorInfo | None, scales: TensorInfo, in_dims: int) -> QuantSpec:
    if weight is None or not weight.shape or not scales.shape or 0 in scales.shape:
        raise CheckpointError(f"{shown(path)}.scales has no fitting weight; fetch the model again")
    bits, bits_rest = divmod(weight.shape[-1] * 32, in_dims)
    group_size, group_rest = divmod(in_dims, scales.shape[-1])
    candidates: tuple[Mode, ...] = ("nvfp4", "mxfp4", "mxfp8")
    if scales.dtype != "U8":  # only affine keeps its scales as numbers of the weight's type
        candidates = ("affine",)
    for mode in candidates:
        if not bits_rest and not group_rest and _is_known(bits, group_size, mode):
            return QuantSpec(bits, group_size, mode)
    raise CheckpointError(
        f"{shown(path)}.weight has shape {weight.shape} with scales {scales.shape}; "
        f"no quantization of {in_dims} columns, which config.json asks for, has these shapes"
    )


def _foreign(block: Mapping[str, Any], model_type: object) -> QuantizationPlan:
    method = str(block["quant_method"]).lower()
    nested = block.get("quantization")
    if method == "modelopt" and isinstance(nested, dict):
        block = nested
    if _mlx_lm_converts(method, block, model_type):
        return QuantizationPlan(needs_mlx_lm=True, method=method)
    detail = block.get("format") or block.get("quant_algo")
    if detail is None and "bits" in block:
        detail = f"{block['bits']} bits"
    label = f"{method} ({detail})" if detail else method
    raise UnsupportedModelError(
        f"the weights are quantised with {shown(label, 60)}, which MLX does not read; {_CONVERT}"
    )


def _mlx_lm_converts(method: str, block: Mapping[str, Any], model_type: object) -> bool:
    """Whether `mlx_lm.utils.load_model` (0.32.2) unpacks this format while it loads."""
    if method in ("bitnet", "mxfp4", "mxfp8"):
        return True
    if method in ("awq", "gptq"):
        return bool(block.get("bits", 4) == 4)
    if method == "compressed-tensors":
        return block.get("format") in (
            "nvfp4-pack-quantized",
            "mxfp4-pack-quantized",
            "pack-quantized",
        )
    if method == "modelopt":
        return bool(block.get("quant_algo") == "NVFP4")
    if method == "fp8":
        blocks_of_32 = block.get("weight_block_size") == [32, 32]
        is_mxfp8 = block.get("scale_fmt") == "ue8m0" and blocks_of_32
        return is_mxfp8 or model_type not in _NO_FP8
    return False
