"""From a folder to a model that gives vectors: an encoder, or a decoder without its head.

Both answer one call: padded ids in, hidden states out. A decoder sees only earlier tokens, so
padding on the right never reaches a token, and batches need no mask. Call everything here on the
worker thread. Pooling belongs to `engine/vectors.py`, texts to `chat/embedding.py`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlxchat.errors import UnsupportedModelError
from mlxchat.model.adapter import Adapter, join_fingerprints
from mlxchat.model.bert import BertEncoder
from mlxchat.model.bert_files import load_bert, make_bert_config
from mlxchat.model.checkpoint import Checkpoint, compute_fingerprint, read_config
from mlxchat.model.embedding_files import EmbeddingFiles, Pooling, read_embedding_files
from mlxchat.model.families import is_encoder, is_native
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.loader import OnProgress, check_vocabulary, load_native
from mlxchat.model.quantization import read_quantization
from mlxchat.model.taps import STREAM_POINTS, Point
from mlxchat.model.tokenizer import Tokenizer


class HiddenStates(Protocol):
    """What gives hidden states: (B, T) ids and which of them count, then the layer."""

    def hidden(self, token_ids: mx.array, is_token: mx.array, layer: int | None = None) -> mx.array:
        """Returns (B, T, D) after some blocks; None means as the model ends."""


class _Decoder:
    """Hidden states of a decoder, each batch in a cache of its own."""

    def __init__(self, model: LanguageModel, final_norm: Callable[[mx.array], mx.array]) -> None:
        self.model = model
        self._final_norm = final_norm

    def hidden(self, token_ids: mx.array, is_token: mx.array, layer: int | None = None) -> mx.array:
        del is_token  # no token sees the padding after it
        keep = _Keep(layer)
        x = self.model.hidden(token_ids, self.model.make_cache(), keep)
        return self._final_norm(x) if layer is None else keep.kept[0]


class _Keep:
    """Taps that keep the stream after some blocks."""

    points: frozenset[Point] = STREAM_POINTS

    def __init__(self, layer: int | None) -> None:
        self.kept: list[mx.array] = []
        point: Point = "resid_pre" if layer == 0 else "resid_post"
        self._wanted = (point, max((layer or 0) - 1, 0))

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        if (point, layer) == self._wanted:
            self.kept.append(value)
        return value


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
        fingerprint: Identity of config and weights, the adapter's too.
        load_s: Seconds that loading took.
        adapter: What changes the weights, if anything.
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
    adapter: Adapter | None = None


def load_embedder(
    folder: Path, on_progress: OnProgress | None = None, *, adapter: str | None = None
) -> Embedder:
    """Loads a model folder for vectors.

    Args:
        folder: Holds config.json, safetensors and tokenizer files.
        on_progress: Called with ("load", done, total); may raise to cancel.
        adapter: A folder with a LoRA, DoRA or full adapter for the model.

    Raises:
        CheckpointError: Files are missing, damaged or do not fit together.
        UnsupportedModelError: It is neither of the BERT family nor a decoder that is known, or an
            encoder with an adapter.
        TokenizerError: The tokenizer files are missing or broken.
    """
    start = time.perf_counter()
    report = on_progress or (lambda phase, done, total: None)
    config = read_config(folder)
    checkpoint = Checkpoint.open(folder)
    tokenizer = Tokenizer.load(folder)
    files = read_embedding_files(folder, config)
    opened = None if adapter is None else Adapter.open(adapter)
    if is_encoder(config):
        if opened is not None:
            raise UnsupportedModelError(
                f"{config['model_type']} is an encoder, and adapters are for models that chat;"
                f" leave {opened.name} out (--adapter off)"
            )
        model, sizes = _load_encoder(config, checkpoint, tokenizer, report)
    else:
        model, sizes = _load_decoder(folder, config, checkpoint, tokenizer, report, opened)
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
        fingerprint=join_fingerprints(compute_fingerprint(checkpoint), opened),
        load_s=time.perf_counter() - start,
        adapter=opened,
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
    folder: Path,
    config: dict[str, Any],
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    report: OnProgress,
    adapter: Adapter | None,
) -> Loaded:
    quantization = read_quantization(config)
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError(
            f"this {config.get('model_type')} attends in both directions, which is not known here"
            " for it; try a Qwen3-Embedding or a model of the BERT family"
        )
    model: LanguageModel
    final_norm: Callable[[mx.array], mx.array]
    if is_native(config) and not quantization.needs_mlx_lm:
        native = load_native(
            config, checkpoint, quantization, report, needs_head=False, adapter=adapter
        )
        model, final_norm, width = native, native.final_norm, native.config.d_model
    else:
        from mlxchat.model.zoo_loading import load_zoo_model, validate_architecture

        try:
            validate_architecture(config)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                f"{config.get('model_type')} gives no vectors here; BERT, RoBERTa, XLM-RoBERTa,"
                " DistilBERT, MPNet and the models that chat do"
            ) from error
        zoo = load_zoo_model(
            folder,
            config,
            progress=lambda done, total: report("load", done, total),
            adapter=adapter,
        )
        model, final_norm = zoo, _find_final_norm(zoo.model)
        width = zoo.embed(mx.zeros((1, 1), mx.int32)).shape[-1]
    check_vocabulary(tokenizer, model.info.vocab_size)
    return _Decoder(model, final_norm), (model.info.n_layers, width, model.info.max_context)


def _find_final_norm(model: Any) -> Callable[[mx.array], mx.array]:
    """Returns what a model of mlx-lm does between its last layer and its head."""
    inner = getattr(model, "model", model)
    for name in ("norm", "final_layernorm", "norm_f", "ln_f", "final_norm"):
        if callable(norm := getattr(inner, name, None)):
            found: Callable[[mx.array], mx.array] = norm
            return found

    def refuse(x: mx.array) -> mx.array:
        raise UnsupportedModelError(
            "the final norm of this model of mlx-lm was not found; choose the hidden states of a"
            " layer with --layer"
        )

    return refuse


def _appends_end(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer ends each text itself, as those of last-token embedders do."""
    with_special = tokenizer.encode("a", add_special_tokens=True)
    return bool(with_special) and with_special[-1] in tokenizer.special_ids
