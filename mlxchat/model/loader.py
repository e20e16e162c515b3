"""Puts a model together: config, checkpoint, weights, transformer or zoo, warm-up.

Call it on the worker thread: `mx.load` reads a tensor when it is evaluated, and arrays belong to
the thread that built them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.adapter import Adapter, join_fingerprints
from mlxchat.model.checkpoint import (
    Checkpoint,
    compute_fingerprint,
    read_config,
    read_generation_config,
)
from mlxchat.model.device import DevicePlan, make_device_plan
from mlxchat.model.families import ModelConfig, is_encoder, is_native, make_model_config
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.quantization import QuantizationPlan, QuantSpec, read_quantization
from mlxchat.model.tokenizer import Tokenizer
from mlxchat.model.transformer import Transformer
from mlxchat.model.weights import WeightMaker, expected_shapes

Phase = Literal["load", "warm-up"]
OnProgress = Callable[[Phase, int, int], None]

# Prefill compiles apart from decode; this many tokens stand for "more than one".
WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, ready to be fed.

    Attributes:
        model: The native transformer or a zoo model.
        tokenizer: Its tokenizer.
        generation_config: The checkpoint's sampling defaults.
        fingerprint: Identity of config and weights, the adapter's too.
        load_s: Seconds from the first file to the end of the warm-up.
        adapter: What changes the weights, if anything.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    generation_config: dict[str, Any]
    fingerprint: str
    load_s: float
    adapter: Adapter | None = None


def load_model(
    folder: Path, on_progress: OnProgress | None = None, *, adapter: str | None = None
) -> LoadedModel:
    """Loads a model folder.

    Args:
        folder: Holds config.json, safetensors and tokenizer files.
        on_progress: Called with (phase, done, total); may raise to cancel.
        adapter: A folder with a LoRA, DoRA or full adapter for the model.

    Raises:
        CheckpointError: Files are missing, damaged or do not fit together.
        UnsupportedModelError: Neither mlxchat nor mlx-lm knows the architecture.
        TokenizerError: The tokenizer files are missing or broken.
    """
    start = time.perf_counter()
    report = on_progress or (lambda phase, done, total: None)
    config = read_config(folder)
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(
            f"{folder / 'config.json'} has no model_type; a Hugging Face model config names one"
        )
    if is_encoder(config):
        raise UnsupportedModelError(
            f"{config['model_type']} is an encoder: it gives vectors and writes no text; use"
            " mlxchat embed, or chat with another model"
        )
    checkpoint = Checkpoint.open(folder)
    opened = None if adapter is None else Adapter.open(adapter)
    tokenizer = Tokenizer.load(folder)
    quantization = read_quantization(config)
    if is_native(config) and not quantization.needs_mlx_lm:
        model: LanguageModel = load_native(config, checkpoint, quantization, report, adapter=opened)
    else:
        from mlxchat.model.zoo_loading import load_zoo_model

        model = load_zoo_model(
            folder,
            config,
            progress=lambda done, total: report("load", done, total),
            adapter=opened,
        )
    check_vocabulary(tokenizer, model.info.vocab_size)
    warm_up(model, report)
    return LoadedModel(
        model,
        tokenizer,
        read_generation_config(folder),
        join_fingerprints(compute_fingerprint(checkpoint), opened),
        time.perf_counter() - start,
        opened,
    )


def load_native(
    config: dict[str, Any],
    checkpoint: Checkpoint,
    quantization: QuantizationPlan,
    report: OnProgress,
    plan: DevicePlan | None = None,
    *,
    needs_head: bool = True,
    adapter: Adapter | None = None,
) -> Transformer:
    """Builds the native transformer from a checked checkpoint.

    Args:
        config: The content of config.json.
        checkpoint: Its opened weights.
        quantization: What the config says of quantisation.
        report: Called with ("load", done, total) in bytes.
        plan: The device's choices; default: this machine's.
        needs_head: Off loads a checkpoint without head too; its logits mean nothing then.
        adapter: Changes the weights.
    """
    plan = plan or make_device_plan()
    shape = make_model_config(config)
    if not needs_head and "lm_head.weight" not in checkpoint.tensors:
        shape = replace(shape, tied=True)
    specs = _check_shapes(shape, checkpoint, quantization)
    n_float = sum(_size(s) for s in expected_shapes(shape).values()) * 4
    tensors, changes = checkpoint.load(), {}
    if adapter is not None:
        adapter.check(_expected(shape, checkpoint), checkpoint.tensors)
        changes = adapter.load_changes()
        tensors |= adapter.load() if adapter.kind == "full" else {}
    maker = WeightMaker(
        shape,
        tensors,
        specs.get,
        plan,
        dequantise=plan.can_dequantise(n_float),
        changes=changes,
    )
    total = checkpoint.total_bytes

    def on_layer(done: int, layers: int) -> None:
        report("load", total * done // layers, total)

    report("load", 0, total)
    try:
        weights = maker.make(on_layer)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {checkpoint.folder} cannot be read ({str(error).splitlines()[0]});"
            " fetch the model again"
        ) from error
    return Transformer(shape, weights, plan)


def _check_shapes(
    shape: ModelConfig, checkpoint: Checkpoint, quantization: QuantizationPlan
) -> dict[str, QuantSpec]:
    """Checks every tensor against the config and returns the quantisation by module path."""
    expected = _expected(shape, checkpoint)
    stored: dict[str, tuple[int, ...]] = {}
    specs: dict[str, QuantSpec] = {}
    for name, size in expected.items():
        path = name.removesuffix(".weight")
        spec = None
        if name.endswith(".weight") and len(size) == 2:
            spec = quantization.for_module(path, checkpoint.tensors, size[-1])
        if spec is None:
            stored[name] = size
        else:
            specs[path] = spec
            stored |= spec.stored_shapes(path, *size)
    checkpoint.require(stored)
    return specs


def _expected(shape: ModelConfig, checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Returns the unpacked shape of every tensor that the model has, by name."""
    expected = expected_shapes(shape)
    if shape.head_optional and "lm_head.weight" in checkpoint.tensors:
        expected["lm_head.weight"] = (shape.vocab_size, shape.d_model)
    return expected


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Checks that no token id falls outside the embedding.

    Raises:
        CheckpointError: The tokenizer has ids that the model has no row for.
    """
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} entries, but the model has {vocab_size}"
            " embedding rows; tokenizer and weights are not of the same model"
        )


def warm_up(model: LanguageModel, report: OnProgress) -> None:
    """Compiles the kernels of prefill and decode, so that the first turn does not pay for them.

    Raises:
        UnsupportedModelError: The model cannot run on this backend.
        CheckpointError: What it computes is no number.
    """
    cache = model.make_cache()
    try:
        for done, num_new in enumerate((WARM_UP_TOKENS, 1, 1)):
            report("warm-up", done, 3)
            logits = model.forward(mx.zeros((1, num_new), mx.int32), cache)
            mx.eval(logits)
        has_nan = mx.isnan(logits).any().item()
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"{model.info.family} does not run on this backend ({str(error).splitlines()[0]});"
            " try another model"
        ) from error
    if has_nan:
        raise CheckpointError(
            "the weights give values that are no numbers (NaN); fetch the model again, or try"
            " another quantisation of it"
        )
    report("warm-up", 3, 3)
