"""The BERT family (Devlin et al. 2018): encoders that read a text in both directions at once.

Learned positions are added to the token rows, LayerNorm follows each half of a block, and every
token sees every other but padding. BERT, RoBERTa and XLM-RoBERTa differ in where positions begin
and in the names around the weights. Weights are float32: the models are small, and their vectors
are compared with those of other programs.

Knows token ids and arrays; texts, pooling and prompts belong to the modules around it.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.checkpoint import Checkpoint
from mlxchat.model.families import Reader
from mlxchat.model.quantization import QuantizationPlan
from mlxchat.model.weights import dequantise

# Positions of RoBERTa's kin begin after the padding id; BERT's at 0.
_FAMILIES: Mapping[str, bool] = {
    "bert": False,
    "roberta": True,
    "xlm-roberta": True,
    "camembert": True,
}
_MOST_LAYERS = 4096
_PREFIXES = ("", "bert.", "roberta.")

Block = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The shape of an encoder.

    Attributes:
        first_position: The position of the first token.
        max_tokens: The longest text that has positions.
    """

    family: str
    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    vocab_size: int
    n_positions: int
    n_types: int
    norm_eps: float
    activation: str
    first_position: int

    @property
    def max_tokens(self) -> int:
        """The longest text that has positions."""
        return self.n_positions - self.first_position

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a config is of the BERT family."""
    return config.get("model_type") in _FAMILIES


def make_bert_config(config: Mapping[str, Any]) -> BertConfig:
    """Reads a Hugging Face config of the BERT family.

    Raises:
        CheckpointError: A value is missing or makes no sense.
        UnsupportedModelError: It is a variant with other positions, masks or activations.
    """
    read, family = Reader(config), str(config["model_type"])
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
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"this {family} has the activation {activation!r}; known are {', '.join(_ACTIVATIONS)}"
        )
    default_pad = 1 if _FAMILIES[family] else 0
    first = read.integer("pad_token_id", default_pad, low=0) + 1 if _FAMILIES[family] else 0
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
    )


class BertEncoder:
    """An encoder of the BERT family.

    Args:
        config: Its shape.
        embeddings: The rows of tokens, positions and types, and the norm after them.
        blocks: The arrays of each block.
    """

    def __init__(self, config: BertConfig, embeddings: Block, blocks: list[Block]) -> None:
        self.config = config
        self._embeddings = embeddings
        self._blocks = blocks
        self._block: Callable[..., mx.array] = mx.compile(self._run_block)

    def hidden(self, token_ids: mx.array, is_token: mx.array, layer: int | None = None) -> mx.array:
        """Returns the hidden states after some blocks.

        Args:
            token_ids: (B, T), padded on the right.
            is_token: (B, T), False for padding.
            layer: After how many blocks; None for all, 0 for the embeddings.

        Returns:
            (B, T, D); rows of padding hold nothing of use.
        """
        x = self.embed(token_ids)
        for index in range(self.config.n_layers if layer is None else layer):
            x = self.block(index, x, is_token)
        return x

    def embed(self, token_ids: mx.array) -> mx.array:
        """Adds the rows of tokens, positions and the first type, and norms them: (B, T, D)."""
        e, first = self._embeddings, self.config.first_position
        x = e["tokens"][token_ids] + e["types"][0]
        x = x + e["positions"][first : first + token_ids.shape[1]]
        return self._norm(x, e["norm"], e["norm_bias"])

    def block(self, layer: int, x: mx.array, is_token: mx.array) -> mx.array:
        """Runs one block: (B, T, D) in, (B, T, D) out."""
        return self._block(self._blocks[layer], x, is_token)

    def pattern(self, layer: int, x: mx.array, is_token: mx.array) -> mx.array:
        """Returns how much each token of the states before a block looks at each: (B, H, T, T)."""
        q, k, _ = self._qkv(self._blocks[layer], x)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(self.config.head_dim)
        scores = mx.where(is_token[:, None, None, :], scores, mx.finfo(scores.dtype).min)
        return mx.softmax(scores, axis=-1, precise=True)

    def mix(self, layer: int, x: mx.array, pattern: mx.array) -> mx.array:
        """Returns what attention adds to the states when it follows a pattern: (B, T, D)."""
        w = self._blocks[layer]
        return self._join(w, pattern @ self._qkv(w, x)[2])

    def _qkv(self, w: Block, x: mx.array) -> list[mx.array]:
        batch, length, _ = x.shape
        h = x @ w["qkv"].T + w["qkv_bias"]  # (B, T, 3 * H * Dh)
        h = h.reshape(batch, length, 3, self.config.n_heads, self.config.head_dim)
        return [h[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]  # each (B, H, T, Dh)

    def _join(self, w: Block, attended: mx.array) -> mx.array:
        batch, _, length, _ = attended.shape
        y = attended.transpose(0, 2, 1, 3).reshape(batch, length, self.config.d_model)
        return y @ w["o"].T + w["o_bias"]

    def _run_block(self, w: Block, x: mx.array, is_token: mx.array) -> mx.array:
        q, k, v = self._qkv(w, x)
        attended = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.config.head_dim**-0.5, mask=is_token[:, None, None, :]
        )
        return self._finish(w, x, self._join(w, attended))

    def finish(self, layer: int, x: mx.array, attn_out: mx.array) -> mx.array:
        """Runs what follows attention in a block: both norms and the feed-forward, (B, T, D)."""
        return self._finish(self._blocks[layer], x, attn_out)

    def _finish(self, w: Block, x: mx.array, attn_out: mx.array) -> mx.array:
        x = self._norm(x + attn_out, w["attn_norm"], w["attn_norm_bias"])
        y = _ACTIVATIONS[self.config.activation](x @ w["up"].T + w["up_bias"])
        y = y @ w["down"].T + w["down_bias"]
        return self._norm(x + y, w["mlp_norm"], w["mlp_norm_bias"])

    def _norm(self, x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, self.config.norm_eps)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: mx.maximum(x, 0),
    "silu": lambda x: x * mx.sigmoid(x),
}


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
    taker = _Taker(checkpoint, quantization)
    d, m = config.d_model, config.d_mlp
    rows = "embeddings."
    embeddings = {
        "tokens": taker.matrix(f"{rows}word_embeddings", config.vocab_size, d),
        "positions": taker.matrix(f"{rows}position_embeddings", config.n_positions, d),
        "types": taker.matrix(f"{rows}token_type_embeddings", config.n_types, d),
        **taker.norm("norm", f"{rows}LayerNorm", d),
    }
    mx.eval(embeddings)
    blocks = []
    for index in range(config.n_layers):
        at = f"encoder.layer.{index}."
        parts = [f"{at}attention.self.{name}" for name in ("query", "key", "value")]
        block = {
            "qkv": mx.concatenate([taker.matrix(part, d, d) for part in parts]),
            "qkv_bias": mx.concatenate([taker.vector(f"{part}.bias", d) for part in parts]),
            **taker.linear("o", f"{at}attention.output.dense", d, d),
            **taker.norm("attn_norm", f"{at}attention.output.LayerNorm", d),
            **taker.linear("up", f"{at}intermediate.dense", m, d),
            **taker.linear("down", f"{at}output.dense", d, m),
            **taker.norm("mlp_norm", f"{at}output.LayerNorm", d),
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
