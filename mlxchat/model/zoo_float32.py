"""The quantised layers of mlx-lm's models in float32, as the CPU backend wants them.

mlx-lm is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_unflatten

from mlxchat.model.zoo import named_modules


def convert_to_float32(model: Module) -> list[str]:
    """Replace quantised layers by plain ones in float32, and cast every other weight to it.

    Scales and biases are cast before the weights are spread out: the other way round the products
    would be rounded to the stored type (DESIGN.md, decision 3).

    Args:
        model: Changed in place, lazily.

    Returns:
        Notices: the kinds of layers that stayed quantised.
    """
    plain: list[tuple[str, Module]] = []
    kept: set[str] = set()
    for name, module in named_modules(model):
        if "scales" not in module:
            continue
        replacement = _make_plain(module)
        if replacement is None:
            kept.add(type(module).__name__)
        else:
            plain.append((name, replacement))
    if plain:
        model.update_modules(tree_unflatten(plain))
    model.set_dtype(mx.float32)
    return [f"Layers of kind {name} stay quantised." for name in sorted(kept)]


def _make_plain(module: Module) -> Module | None:
    """Return the float32 counterpart of a quantised layer, or None where there is none."""
    from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    # Made with one row and given the weights at once, so nothing large is allocated for nothing.
    blanks: dict[type, Callable[[], Module]] = {
        QuantizedLinear: lambda: Linear(1, 1, bias=False),
        QuantizedEmbedding: lambda: Embedding(1, 1),
        QuantizedSwitchLinear: lambda: SwitchLinear(1, 1, 1, bias=False),
        QuantizedMultiLinear: lambda: MultiLinear(1, 1, 1),
    }
    if type(module) not in blanks:
        return None
    blank = blanks[type(module)]()
    blank.weight = dequantize_to_float32(module)
    if "bias" in module:
        blank.bias = module.bias
    if not module.training:
        blank.eval()
    return blank


def dequantize_to_float32(module: Module) -> mx.array:
    """Return the weight of a quantised layer in float32.

    Args:
        module: Has `weight`, `scales`, perhaps `biases` and `global_scale`, `bits`, `group_size`
            and `mode`, as mlx's and mlx-lm's quantised layers do.
    """
    weight, scales, biases = module.weight, module.scales, module.get("biases")
    settings = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
    if module.mode == "affine":
        biases = None if biases is None else biases.astype(mx.float32)
        return mx.dequantize(weight, scales.astype(mx.float32), biases, **settings)
    settings["dtype"] = mx.float32
    global_scale = module.get("global_scale")
    if global_scale is None:
        return mx.dequantize(weight, scales, **settings)
    if global_scale.size == 1:
        return mx.dequantize(weight, scales, global_scale=global_scale, **settings)
    experts = zip(weight, scales, global_scale, strict=True)
    return mx.stack([mx.dequantize(w, s, global_scale=g, **settings) for w, s, g in experts])
