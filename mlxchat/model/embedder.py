"""From a folder to a model that gives vectors: an encoder, or a decoder without its head.

Both answer one call: padded ids in, hidden states out. A decoder sees only earlier tokens, so
padding on the right never reaches a token, and batches need no mask. Call everything here on the
worker thread. Pooling belongs to `engine/vectors.py`, texts to `chat/embedding.py`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlxchat.errors import UnsupportedModelError
from mlxchat.model.bert import BertEncoder, is_encoder, load_bert, make_bert_config
from mlxchat.model.checkpoint import Checkpoint, compute_fingerprint, read_config
from mlxchat.model.embedding_files import EmbeddingFiles, Pooling, read_embedding_files
from mlxchat.model.families import is_native
from mlxchat.model.loader import OnProgress, check_vocabulary, load_native
from mlxchat.model.quantization import read_quantization
from mlxchat.model.tokenizer import Tokenizer
from mlxchat.model.transformer import Transformer


class HiddenStates(Protocol):
    """What gives hidden states: (B, T) ids and which of them count, then the layer."""

    def hidden(self, token_ids: mx.array, is_token: mx.array, layer: int | None = None) -> mx.array:
        """Returns (B, T, D) after some blocks; None means as the model ends."""


class _Decoder:
    """Hidden states of the native transformer, each batch in a cache of its own."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def hidden(self, token_ids: mx.array, is_token: mx.array, layer: int | None = None) -> mx.array:
        del is_token  # no token sees the padding after it
        model, cache = self.model, self.model.make_cache()
        x = model.embed(token_ids)
        step = model.begin(token_ids.shape[1], cache)
        for index in range(model.config.n_layers if layer is None else layer):
            x = model.block(index, x, step, cache)
        return model.final_norm(x) if layer is None else x


@dataclass(frozen=True, slots=True)
class Embedder:
    """A model in memory that gives vectors.

    Attributes:
        model: Gives the hidden states.
        tokenizer: Its tokenizer.
        files: What its files say about vectors.
        family: As config.json names it.
        pooling: How it wants its tokens to become one vector; None where it names an unknown way.
        n_layers: Blocks.
        n_dims: Width of its hidden states.
        max_tokens: The longest text.
        fingerprint: Identity of config and weights.
        load_s: Seconds that loading took.
    """

    model: HiddenStates
    tokenizer: Tokenizer
    files: EmbeddingFiles
    family: str
    pooling: Pooling | None
    n_layers: int
    n_dims: int
    max_tokens: int
    fingerprint: str
    load_s: float


def load_embedder(folder: Path, on_progress: OnProgress | None = None) -> Embedder:
    """Loads a model folder for vectors.

    Args:
        folder: Holds config.json, safetensors and tokenizer files.
        on_progress: Called with ("load", done, total); may raise to cancel.

    Raises:
        CheckpointError: Files are missing, damaged or do not fit together.
        UnsupportedModelError: It is neither of the BERT family nor of a native decoder family.
        TokenizerError: The tokenizer files are missing or broken.
    """
    start = time.perf_counter()
    report = on_progress or (lambda phase, done, total: None)
    config = read_config(folder)
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer.load(folder)
    files = read_embedding_files(folder, config)
    if is_encoder(config):
        model, sizes = _load_encoder(config, checkpoint, tokenizer, report)
    else:
        model, sizes = _load_decoder(config, checkpoint, tokenizer, report)
    n_layers, n_dims, max_tokens = sizes
    pooling = files.pooling
    if pooling is None and files.other_pooling is None:
        ends_itself = not is_encoder(config) and _appends_end(tokenizer)
        pooling = "last" if ends_itself else "mean"
    return Embedder(
        model=model,
        tokenizer=tokenizer,
        files=files,
        family=str(config["model_type"]),
        pooling=pooling,
        n_layers=n_layers,
        n_dims=n_dims,
        max_tokens=min(max_tokens, files.max_tokens or max_tokens),
        fingerprint=compute_fingerprint(checkpoint),
        load_s=time.perf_counter() - start,
    )


Loaded = tuple[HiddenStates, tuple[int, int, int]]


def _load_encoder(
    config: dict[str, Any], checkpoint: Checkpoint, tokenizer: Tokenizer, report: OnProgress
) -> Loaded:
    shape, total = make_bert_config(config), checkpoint.total_bytes
    check_vocabulary(tokenizer, shape.vocab_size)

    def on_layer(done: int, layers: int) -> None:
        report("load", total * done // layers, total)

    model: BertEncoder = load_bert(shape, checkpoint, read_quantization(config), on_layer)
    return model, (shape.n_layers, shape.d_model, shape.max_tokens)


def _load_decoder(
    config: dict[str, Any], checkpoint: Checkpoint, tokenizer: Tokenizer, report: OnProgress
) -> Loaded:
    quantization = read_quantization(config)
    family = config.get("model_type")
    if not is_native(config) or quantization.needs_mlx_lm:
        raise UnsupportedModelError(
            f"{family} gives no vectors here; BERT, RoBERTa, XLM-RoBERTa and the native families"
            " (llama, qwen3, gemma3_text, ...) do"
        )
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            f"this {family} attends in both directions, which is not known here for it;"
            " try a Qwen3-Embedding or a model of the BERT family"
        )
    model = load_native(config, checkpoint, quantization, report, needs_head=False)
    check_vocabulary(tokenizer, model.info.vocab_size)
    c = model.config
    return _Decoder(model), (c.n_layers, c.d_model, c.max_exact_context)


def _appends_end(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer ends each text itself, as those of last-token embedders do."""
    with_special = tokenizer.encode("a", add_special_tokens=True)
    return bool(with_special) and with_special[-1] in tokenizer.special_ids
