"""Encoders of the BERT family on disk: what their configs mean and how their tensors are called.

BERT, RoBERTa, XLM-RoBERTa, DistilBERT and MPNet differ in where positions begin and in the names of
config and weights; the model itself is `bert.py`'s.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.bert import ACTIVATIONS, BertConfig, BertEncoder, Block
from mlxchat.model.checkpoint import Checkpoint
from mlxchat.model.families import Reader
from mlxchat.model.quantization import QuantizationPlan
from mlxchat.model.weights import dequantise


@dataclass(frozen=True, slots=True)
class _Names:
    """How a family names its tensors; `layer` with its number stands before those of a layer.

    Attributes:
        q, k, v, o, attn_norm, up, down, mlp_norm: Of one layer.
        distances: The bias by distance; empty where there is none.
        has_types: Whether a row for the kind of text is added.
    """

    layer: str = "encoder.layer.{}."
    q: str = "attention.self.query"
    k: str = "attention.self.key"
    v: str = "attention.self.value"
    o: str = "attention.output.dense"
    attn_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    mlp_norm: str = "output.LayerNorm"
    distances: str = ""
    has_types: bool = True


_MPNET = _Names(
    **{name: f"attention.attn.{name}" for name in "qkvo"},
    attn_norm="attention.LayerNorm",
    distances="encoder.relative_attention_bias",
    has_types=False,
)
_DISTILBERT = _Names(
    layer="transformer.layer.{}.",
    q="attention.q_lin",
    k="attention.k_lin",
    v="attention.v_lin",
    o="attention.out_lin",
    attn_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    mlp_norm="output_layer_norm",
    has_types=False,
)
_FAMILIES: Mapping[str, _Names] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _Names()),
    "mpnet": _MPNET,
    "distilbert": _DISTILBERT,
}
# Their positions begin after the padding id; those of the others at 0.
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
# DistilBERT's own names of what all others call alike.
_DISTILBERT_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
}
_MOST_LAYERS = 4096
_PREFIXES = ("", "bert.", "roberta.", "mpnet.", "distilbert.")


def make_bert_config(config: Mapping[str, Any]) -> BertConfig:
    """Reads a Hugging Face config of the BERT family.

    Raises:
        CheckpointError: A value is missing or makes no sense.
        UnsupportedModelError: It is a variant with other positions, masks or activations.
    """
    family = str(config["model_type"])
    if family == "distilbert":
        renamed = {_DISTILBERT_KEYS.get(key, key): value for key, value in config.items()}
        config = {"type_vocab_size": 1, **renamed}
    read = Reader(config)
    n_layers, n_heads = read.integer("num_hidden_layers"), read.integer("num_attention_heads")
    d_model = read.integer("hidden_size")
    if n_layers > _MOST_LAYERS or d_model % n_heads:
        raise CheckpointError(
            f"config.json has {n_layers} layers, {n_heads} heads and width {d_model}; the width"
            f" must be a multiple of the heads, and at most {_MOST_LAYERS} layers are read"
        )
    if config.get("is_decoder"):
        raise UnsupportedModelError(f"this {family} is a decoder; only encoders give vectors here")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise UnsupportedModelError(
            f"this {family} has {positions!r} positions; only 'absolute' ones are known"
        )
    activation = str(config.get("hidden_act") or "gelu")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"this {family} has the activation {activation!r}; known are {', '.join(ACTIVATIONS)}"
        )
    is_after = family in _AFTER_PADDING
    first = read.integer("pad_token_id", 1, low=0) + 1 if is_after else 0
    n_positions = read.integer("max_position_embeddings", 512)
    if n_positions <= first:
        raise CheckpointError(
            f"config.json has {n_positions} positions, but they begin at {first};"
            " the files do not belong together"
        )
    return BertConfig(
        family=family,
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=d_model,
        d_mlp=read.integer("intermediate_size"),
        vocab_size=read.integer("vocab_size"),
        n_positions=n_positions,
        n_types=read.integer("type_vocab_size", 2),
        norm_eps=read.number("layer_norm_eps", 1e-12),
        activation=activation,
        first_position=first,
        n_distances=read.integer("relative_attention_num_buckets", 32, low=4)
        if _FAMILIES[family].distances
        else 0,
    )


def load_bert(
    config: BertConfig,
    checkpoint: Checkpoint,
    quantization: QuantizationPlan,
    on_layer: Callable[[int, int], None] | None = None,
) -> BertEncoder:
    """Builds an encoder from a checkpoint; its arrays are evaluated.

    Args:
        config: Its shape.
        checkpoint: Its opened weights.
        quantization: What the config says of quantisation; quantised matrices become float32.
        on_layer: Called with (layers done, layers in all); may raise to cancel.

    Raises:
        CheckpointError: Tensors are missing or have other shapes than the config says.
    """
    taker, names = _Taker(checkpoint, quantization), _FAMILIES[config.family]
    d, m = config.d_model, config.d_mlp
    embeddings = {
        "tokens": taker.matrix("embeddings.word_embeddings", config.vocab_size, d),
        "positions": taker.matrix("embeddings.position_embeddings", config.n_positions, d),
        **taker.norm("norm", "embeddings.LayerNorm", d),
    }
    if names.has_types:
        rows = taker.matrix("embeddings.token_type_embeddings", config.n_types, d)
        embeddings["types"] = rows
    if names.distances:
        biases = taker.matrix(names.distances, config.n_distances, config.n_heads)
        embeddings["distances"] = biases
    mx.eval(embeddings)
    blocks = []
    for index in range(config.n_layers):
        at = names.layer.format(index)
        parts = [at + name for name in (names.q, names.k, names.v)]
        block = {
            "qkv": mx.concatenate([taker.matrix(part, d, d) for part in parts]),
            "qkv_bias": mx.concatenate([taker.vector(f"{part}.bias", d) for part in parts]),
            **taker.linear("o", at + names.o, d, d),
            **taker.norm("attn_norm", at + names.attn_norm, d),
            **taker.linear("up", at + names.up, m, d),
            **taker.linear("down", at + names.down, d, m),
            **taker.norm("mlp_norm", at + names.mlp_norm, d),
        }
        try:
            mx.eval(block)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights in {checkpoint.folder} cannot be read"
                f" ({str(error).splitlines()[0]}); fetch the model again"
            ) from error
        blocks.append(block)
        if on_layer is not None:
            on_layer(index + 1, config.n_layers)
    return BertEncoder(config, embeddings, blocks)


class _Taker:
    """Takes tensors out of a checkpoint as float32, whatever stands before their names."""

    def __init__(self, checkpoint: Checkpoint, quantization: QuantizationPlan) -> None:
        self.checkpoint = checkpoint
        self.quantization = quantization
        self.tensors: MutableMapping[str, mx.array] = checkpoint.load()
        name = "embeddings.word_embeddings.weight"
        self.prefix = next((p for p in _PREFIXES if p + name in checkpoint.tensors), "")

    def vector(self, name: str, *shape: int) -> mx.array:
        self.checkpoint.require({self.prefix + name: shape})
        return self.tensors[self.prefix + name].astype(mx.float32)

    def matrix(self, path: str, n_out: int, n_in: int) -> mx.array:
        full = self.prefix + path
        quant = self.quantization.for_module(full, self.checkpoint.tensors, n_in)
        if quant is None:
            return self.vector(f"{path}.weight", n_out, n_in)
        self.checkpoint.require(quant.stored_shapes(full, n_out, n_in))
        parts = [self.tensors.get(f"{full}.{name}") for name in ("weight", "scales", "biases")]
        assert parts[0] is not None
        return dequantise(parts[0], parts[1], parts[2], quant)

    def linear(self, name: str, path: str, n_out: int, n_in: int) -> Block:
        return {
            name: self.matrix(path, n_out, n_in),
            f"{name}_bias": self.vector(f"{path}.bias", n_out),
        }

    def norm(self, name: str, path: str, width: int) -> Block:
        # Checkpoints that came from TensorFlow call weight and bias gamma and beta.
        is_old = f"{self.prefix}{path}.gamma" in self.tensors
        weight, bias = ("gamma", "beta") if is_old else ("weight", "bias")
        return {
            name: self.vector(f"{path}.{weight}", width),
            f"{name}_bias": self.vector(f"{path}.{bias}", width),
        }
