"""Checkpoint tensors -> the arrays of the native transformer: dequantised, fused, laid out.

Fused means: q, k and v become one matrix, gate and up another, wherever their quantisation
agrees. What a layer holds is a `LayerWeights`: dictionaries of arrays for the compiled functions,
and beside them the static `LinearSpec`s that say how to multiply. Two layers of equal static
shape share one compiled function. Adapters are fused in or stand beside (`low_rank.py`).
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx

from mlxchat.errors import CheckpointError
from mlxchat.model.adapter import LowRank
from mlxchat.model.device import DevicePlan
from mlxchat.model.families import ModelConfig
from mlxchat.model.linear import Arrays, Linear, LinearSpec
from mlxchat.model.low_rank import fuse_change, join_extras, make_extra
from mlxchat.model.quantization import QuantSpec

Tensors = MutableMapping[str, mx.array]
Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One block's arrays, for the function before the cache update and the one after it."""

    before: Params  # norm?, qkv: list of array lists, qk_norm? (heads) or q_norm?, k_norm? (full)
    after: Params  # o, gate_up: list of array lists, down, and the norms that the family has
    qkv: tuple[LinearSpec, ...]
    o: LinearSpec
    gate_up: tuple[LinearSpec, ...]
    down: LinearSpec

    @property
    def static(self) -> tuple[Any, ...]:
        """What a compiled function depends on beside array shapes."""
        return (self.qkv, self.o, self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All arrays of a native model.

    Attributes:
        embed: Token embedding, (V, D) or quantised.
        head: LM head; the embedding itself where tied.
        n_params: Parameters as counted before quantisation, tied rows once.
        num_bytes: Bytes held in memory, tied rows once.
    """

    embed: Linear
    head: Linear
    final_norm: mx.array
    layers: tuple[LayerWeights, ...]
    n_params: int
    num_bytes: int

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is the LM head too."""
        return self.head is self.embed

    @property
    def embed_bytes(self) -> int:
        """Bytes of the embedding."""
        return sum(array.nbytes for array in _leaves(self.embed[1]))


class WeightMaker:
    """Takes tensors out of a checkpoint, one layer after the other, and evaluates them.

    Args:
        config: The model's shape.
        tensors: Lazy arrays by checkpoint name; what was used is removed.
        quantization: Returns the quantisation of a module path, or None.
        plan: The device's dtype and layout choices.
        dequantise: Quantised matrices become float32.
        changes: What an adapter changes, by the module's path.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Tensors,
        quantization: Callable[[str], QuantSpec | None],
        plan: DevicePlan,
        *,
        dequantise: bool,
        changes: Mapping[str, LowRank] | None = None,
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.quantization = quantization
        self.plan = plan
        self.dequantise = dequantise
        self.changes = changes or {}

    def make(self, on_layer: Callable[[int, int], None] | None = None) -> ModelWeights:
        """Builds and evaluates every array.

        Args:
            on_layer: Called with (layers done, layers in all) after each; may raise to cancel.
        """
        c = self.config
        embed = self.linear("model.embed_tokens", layout=False)
        tied = c.tied or (c.head_optional and "lm_head.weight" not in self.tensors)
        head = embed if tied else self.linear("lm_head")
        final_norm = self.norm("model.norm.weight")
        mx.eval(embed[1], head[1], final_norm)
        layers = []
        for i in range(c.n_layers):
            layer = self.layer(f"model.layers.{i}.")
            mx.eval(layer.before, layer.after)
            layers.append(layer)
            if on_layer is not None:
                on_layer(i + 1, c.n_layers)
        num_bytes = sum(a.nbytes for a in _leaves([embed[1], [] if tied else head[1], final_norm]))
        num_bytes += sum(a.nbytes for layer in layers for a in _leaves([layer.before, layer.after]))
        return ModelWeights(
            embed, head, final_norm, tuple(layers), count_params(c, tied), num_bytes
        )

    def layer(self, prefix: str) -> LayerWeights:
        """Builds the arrays of one block."""
        c = self.config
        attn, mlp = prefix + "self_attn.", prefix + "mlp."
        if c.fused_names:
            qkv, gate_up = [self.linear(attn + "qkv_proj")], [self.linear(mlp + "gate_up_proj")]
        else:
            qkv = self.fuse([self.linear(attn + f"{n}_proj", layout=False) for n in "qkv"])
            gate_up = self.fuse(
                [self.linear(mlp + f"{n}_proj", layout=False) for n in ("gate", "up")]
            )
        before: Params = {"qkv": [arrays for _, arrays in qkv]}
        if c.norms != "post":
            before["norm"] = self.norm(prefix + "input_layernorm.weight")
        if c.qk_norm != "none":
            q, k = self.norm(attn + "q_norm.weight"), self.norm(attn + "k_norm.weight")
            before |= self.joint_norm(q, k) if c.qk_norm == "head" else {"q_norm": q, "k_norm": k}
        o, down = self.linear(attn + "o_proj"), self.linear(mlp + "down_proj")
        after: Params = {"o": o[1], "gate_up": [arrays for _, arrays in gate_up], "down": down[1]}
        if c.norms == "pre":
            after["pre_mlp_norm"] = self.norm(prefix + "post_attention_layernorm.weight")
        else:
            after["post_attn_norm"] = self.norm(prefix + "post_attention_layernorm.weight")
            after["post_mlp_norm"] = self.norm(prefix + "post_feedforward_layernorm.weight")
        if c.norms == "both":
            after["pre_mlp_norm"] = self.norm(prefix + "pre_feedforward_layernorm.weight")
        return LayerWeights(
            before, after, tuple(s for s, _ in qkv), o[0], tuple(s for s, _ in gate_up), down[0]
        )

    def joint_norm(self, q: mx.array, k: mx.array) -> Params:
        """Stacks the q and k norms to one weight of shape (H + K, 1, Dh)."""
        c = self.config
        rows = [mx.broadcast_to(q, (c.n_heads, 1, c.head_dim))]
        rows.append(mx.broadcast_to(k, (c.n_kv_heads, 1, c.head_dim)))
        return {"qk_norm": mx.concatenate(rows)}

    def norm(self, name: str) -> mx.array:
        """Returns a norm's weight, with the family's offset added."""
        weight = self.cast(self.take(name))
        return weight + self.config.norm_weight_offset if self.config.norm_weight_offset else weight

    def linear(self, path: str, *, layout: bool = True) -> Linear:
        """Returns one matrix, dequantised and in the device's layout where asked."""
        weight = self.take(path + ".weight")
        quant = self.quantization(path) if path + ".scales" in self.tensors else None
        scales = self.take(path + ".scales") if quant else None
        biases = self.tensors.pop(path + ".biases", None)
        bias = self.tensors.pop(path + ".bias", None)
        bias = None if bias is None else self.cast(bias)
        change = self.changes.get(path)
        # Rows of an embedding are looked up, so nothing can stand beside them.
        whole = self.dequantise or (change is not None and path == "model.embed_tokens")
        if quant is None:
            weight = self.cast(weight)
        elif whole:
            kind = mx.float32 if self.dequantise or scales is None else scales.dtype
            weight = dequantise(weight, scales, biases, quant)
            weight = weight.astype(kind)
            scales = biases = quant = None
        spec = LinearSpec(weight.shape[0], quant, bias is not None)
        linear = (spec, [weight, scales, biases, bias])
        if change is not None:
            linear = self.change(path, linear, change)
        return self.lay_out(linear) if layout else linear

    def change(self, path: str, linear: Linear, change: LowRank) -> Linear:
        """Fuses an adapter's change into a matrix, or puts it beside it."""
        spec, (weight, scales, biases, bias) = linear
        assert weight is not None
        is_embedding = path == "model.embed_tokens"
        if spec.quant is None and (weight.dtype == mx.float32 or is_embedding):
            return spec, [fuse_change(weight, change, is_embedding=is_embedding), None, None, bias]
        if change.m is not None and spec.quant is not None:
            weight = dequantise(weight, scales, biases, spec.quant)
        extra = make_extra(weight, change)
        kind: Literal["lora", "dora"] = "lora" if change.m is None else "dora"
        return replace(spec, extra=kind), [*linear[1], *extra]

    def fuse(self, parts: list[Linear]) -> list[Linear]:
        """Joins matrices over the same input to one where their storage agrees."""
        first = parts[0][0]
        same = all(
            replace(spec, n_out=first.n_out, extra=first.extra) == first for spec, _ in parts
        )
        dtypes = {tuple(None if a is None else a.dtype for a in arrays[:4]) for _, arrays in parts}
        if not same or len(dtypes) > 1:
            return [self.lay_out(part) for part in parts]
        n_out = sum(spec.n_out for spec, _ in parts)
        columns = zip(*(arrays[:4] for _, arrays in parts), strict=True)
        joined: Arrays = [None if c[0] is None else mx.concatenate(list(c)) for c in columns]
        kinds = {spec.extra for spec, _ in parts}
        if kinds != {""}:
            joined += join_extras([a[4:] for _, a in parts], [spec.n_out for spec, _ in parts])
        return [self.lay_out((replace(first, n_out=n_out, extra=max(kinds)), joined))]

    def lay_out(self, linear: Linear) -> Linear:
        """Stores a plain matrix the way in which the device multiplies it fastest."""
        spec, (weight, *others) = linear
        if spec.quant is not None or not self.plan.transposes:
            return linear
        assert weight is not None
        return replace(spec, transposed=True), [mx.contiguous(weight.T), *others]

    def cast(self, array: mx.array) -> mx.array:
        """Casts a plain array as the device plan says."""
        return array.astype(mx.float32) if self.plan.float32 else array

    def take(self, name: str) -> mx.array:
        """Removes a tensor from the checkpoint and returns it."""
        try:
            return self.tensors.pop(name)
        except KeyError:
            raise CheckpointError(
                f"the checkpoint has no tensor {name}; the download may be incomplete"
            ) from None


def dequantise(
    weight: mx.array, scales: mx.array | None, biases: mx.array | None, quant: QuantSpec
) -> mx.array:
    """Returns a quantised matrix as float32, without rounding to the scales' own type first."""
    assert scales is not None
    group_size, bits, mode = quant.group_size, quant.bits, quant.mode
    if mode == "affine":
        scales = scales.astype(mx.float32)
        biases = None if biases is None else biases.astype(mx.float32)
        return mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits, mode=mode)
    return mx.dequantize(
        weight, scales, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32
    )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the unquantised shape of every tensor that the config asks for, by name."""
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.d_model),
        "model.norm.weight": (c.d_model,),
    }
    if not (c.tied or c.head_optional):
        shapes["lm_head.weight"] = (c.vocab_size, c.d_model)
    layer: dict[str, tuple[int, ...]] = {
        "post_attention_layernorm.weight": (c.d_model,),
        "self_attn.o_proj.weight": (c.d_model, q),
        "mlp.down_proj.weight": (c.d_model, c.d_mlp),
    }
    if c.norms != "post":
        layer["input_layernorm.weight"] = (c.d_model,)
    if c.norms != "pre":
        layer["post_feedforward_layernorm.weight"] = (c.d_model,)
    if c.norms == "both":
        layer["pre_feedforward_layernorm.weight"] = (c.d_model,)
    if c.qk_norm != "none":
        head = c.qk_norm == "head"
        layer["self_attn.q_norm.weight"] = (c.head_dim if head else q,)
        layer["self_attn.k_norm.weight"] = (c.head_dim if head else kv,)
    layer |= dict(_projection_shapes(c, q, kv))
    for i in range(c.n_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _projection_shapes(c: ModelConfig, q: int, kv: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if c.fused_names:
        yield "self_attn.qkv_proj.weight", (q + 2 * kv, c.d_model)
        yield "mlp.gate_up_proj.weight", (2 * c.d_mlp, c.d_model)
        return
    for name, width in (("q", q), ("k", kv), ("v", kv)):
        yield f"self_attn.{name}_proj.weight", (width, c.d_model)
        if c.qkv_bias:
            yield f"self_attn.{name}_proj.bias", (width,)
    for name in ("gate", "up"):
        yield f"mlp.{name}_proj.weight", (c.d_mlp, c.d_model)
        if c.mlp_bias:
            yield f"mlp.{name}_proj.bias", (c.d_mlp,)
    if c.o_bias:
        yield "self_attn.o_proj.bias", (c.d_model,)
    if c.mlp_bias:
        yield "mlp.down_proj.bias", (c.d_model,)


def count_params(config: ModelConfig, tied: bool) -> int:
    """Returns the number of parameters, tied rows once."""
    total = 0
    for name, shape in expected_shapes(replace(config, tied=tied, head_optional=False)).items():
        del name
        size = 1
        for n in shape:
            size *= n
        total += size
    return total


def _leaves(tree: Any) -> Iterator[mx.array]:
    if isinstance(tree, mx.array):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value)
