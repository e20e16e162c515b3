"""The embedding table and the output table of a model as plain arrays, one row a token."""

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear

from mlxchat.errors import UnsupportedModelError
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.linear import Linear as NativeLinear
from mlxchat.model.low_rank import add_low_rank
from mlxchat.model.transformer import Transformer
from mlxchat.model.weights import dequantise


def input_table(model: LanguageModel) -> mx.array:
    """Returns the embedding rows (V, D) in float32, as stored: without the family's scale.

    Raises:
        UnsupportedModelError: A model of mlx-lm keeps its embedding in a form that we do not know.
    """
    if isinstance(model, Transformer):
        return _native(model.weights.embed)
    rows = model.info.vocab_size
    found = [m for m in _modules(model) if isinstance(m, Embedding | QuantizedEmbedding)]
    tables = [m for m in found if m.weight.shape[0] >= rows]
    if not tables:
        raise UnsupportedModelError(
            f"{model.info.family} has no embedding table that can be read;"
            " try a model of a native family (llama, qwen3, gemma3, ...)"
        )
    return _plain(tables[0])


def output_table(model: LanguageModel) -> mx.array | None:
    """Returns the head's rows (V, D) in float32; None where the embedding serves as the head."""
    if isinstance(model, Transformer):
        return None if model.weights.is_tied else _native(model.weights.head)
    rows = model.info.vocab_size
    found = [m for m in _modules(model) if isinstance(m, Linear | QuantizedLinear)]
    heads = [m for m in found if m.weight.shape[0] == rows]
    return _plain(heads[-1]) if heads else None


def _modules(model: LanguageModel) -> list[Module]:
    inner: Module = model.model  # type: ignore[attr-defined]  # a ZooModel's
    return list(inner.modules())  # type: ignore[no-untyped-call]


def _native(linear: NativeLinear) -> mx.array:
    spec, (weight, scales, biases, _, *extra) = linear
    assert weight is not None
    if spec.quant is not None:
        table = dequantise(weight, scales, biases, spec.quant).astype(mx.float32)
    else:
        table = (weight.T if spec.transposed else weight).astype(mx.float32)
    if extra:  # what the head adds to the logits of each input direction
        table = add_low_rank(table.T, mx.eye(table.shape[1]), extra).T
    return table


def _plain(module: Module) -> mx.array:
    if "scales" not in module:
        array: mx.array = module.weight
        return array.astype(mx.float32)
    from mlxchat.model.zoo_float32 import dequantize_to_float32

    return dequantize_to_float32(module)
