"""From a model folder to a model of mlx-lm, in memory.

mlx-lm builds the model, reads the weights and applies adapters. What it raises becomes our errors,
and its loader gets nothing that would run code from a checkpoint. mlx-lm is imported on use.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.adapter import Adapter
from mlxchat.model.device import DevicePlan, make_device_plan
from mlxchat.model.safetensors_file import shown
from mlxchat.model.zoo import ZooModel, count_params, named_parameters
from mlxchat.model.zoo_float32 import convert_to_float32

Config = dict[str, Any]
Progress = Callable[[int, int], None]

# Why a module of mlx-lm is refused: its results are not the model's, whatever the cache does.
REFUSED = {
    "phi3small": "mlx-lm's prefill for it lets tokens see later ones, so its answers are wrong",
}


def load_zoo_model(
    folder: Path,
    config: Config,
    *,
    plan: DevicePlan | None = None,
    progress: Progress | None = None,
    adapter: Adapter | None = None,
) -> ZooModel:
    """Load a model folder through mlx-lm.

    Args:
        folder: Holds config.json and model*.safetensors.
        config: The config that was read from there.
        plan: The device's choices; default: this machine's.
        progress: Called with bytes done and bytes in all while weights are evaluated.
        adapter: Changes the weights.

    Returns:
        The model, its weights in memory.

    Raises:
        UnsupportedModelError: mlx-lm does not know the architecture, or it wants to run own code.
        CheckpointError: The weights are missing, damaged or do not fit the config.
    """
    validate_architecture(config)
    plan = plan or make_device_plan()
    model = _load_lazily(folder, config)
    if adapter is not None:
        _apply_adapter(model, adapter, config)
    notices: list[str] = []
    if plan.can_dequantise(4 * count_params(model)):
        notices += convert_to_float32(model)
    elif plan.float32:
        notices.append("The weights stay as stored: as float32 they would not fit into memory.")
    try:
        _evaluate(model, progress)
    except MODEL_FAULTS as fault:
        raise _damaged(folder, config, fault) from fault
    try:
        return ZooModel(model, config, tuple(notices))
    except MODEL_FAULTS as fault:
        raise UnsupportedModelError(
            f"{config['model_type']} does not run on this device ({_first_line(fault)}); "
            "try a model of another family"
        ) from fault


# What mlx-lm raises for a config or checkpoint that it cannot work with; RuntimeError is MLX's own.
MODEL_FAULTS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError, OSError)


def validate_architecture(config: Config) -> None:
    """Check that mlx-lm has the architecture and that nothing but mlx-lm's code would run.

    Raises:
        CheckpointError: The config names no architecture.
        UnsupportedModelError: The architecture is unknown or brings its own code.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or not name:
        raise CheckpointError("config.json names no model_type; is this a model folder?")
    if config.get("model_file") or config.get("trust_remote_code"):
        raise UnsupportedModelError(
            f"this {name} model brings its own code, and mlxchat runs no code from a checkpoint; "
            "try a conversion that mlx-lm loads without trust_remote_code"
        )
    from mlx_lm import utils

    try:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(name)
        # A module that misses a package prints so and ends the process.
        with contextlib.redirect_stdout(io.StringIO()):
            utils._get_classes(config)
    except (ValueError, AttributeError, ImportError, SystemExit) as fault:
        raise UnsupportedModelError(
            f"model_type {name!r} is not among the architectures of mlx-lm; "
            "update mlx-lm or try a model of a known family (llama, qwen3, gemma3, mistral, ...)"
        ) from fault
    if name in REFUSED:
        raise UnsupportedModelError(f"{name} is refused: {REFUSED[name]}; try another model")


def _load_lazily(folder: Path, config: Config) -> Module:
    """Build the model and point it at its weights, without reading them."""
    from mlx_lm.utils import load_model

    try:
        model: Module = load_model(folder, lazy=True, model_config=config, trust_remote_code=False)[
            0
        ]
    except MODEL_FAULTS as fault:
        raise _damaged(folder, config, fault) from fault
    return model


def _apply_adapter(model: Module, adapter: Adapter, config: Config) -> None:
    """Have mlx-lm put an adapter into its model, lazily.

    Raises:
        CheckpointError: It does not fit, or is in a layout that mlx-lm does not read.
    """
    if adapter.layout != "mlx-lm":
        raise CheckpointError(
            f"adapter {adapter.name} is in {adapter.layout}'s layout, which mlx-lm does not read,"
            f" and mlx-lm runs {config['model_type']}; train or convert it with mlx_lm.lora"
        )
    from mlx_lm.tuner.utils import load_adapters

    try:
        load_adapters(model, str(adapter.folder))
    except MODEL_FAULTS as fault:
        # Its first line names the folder, the next ones the tensors.
        lines = str(fault).strip().splitlines() or [type(fault).__name__]
        problem = shown(lines[min(1, len(lines) - 1)].strip(), 200)
        base = f"it was trained on {shown(adapter.base)}" if adapter.base else "take its own model"
        raise CheckpointError(
            f"adapter {adapter.name} does not fit the model ({problem}); {base}"
        ) from fault
    model.eval()  # what was added would drop out at random


def _damaged(folder: Path, config: Config, fault: Exception) -> CheckpointError:
    """Make the error for weights that cannot be read or do not fit."""
    return CheckpointError(
        f"{folder.name} does not load as {config['model_type']} ({_first_line(fault)}); "
        "check that config.json and the safetensors files belong together and are complete"
    )


def _first_line(fault: Exception) -> str:
    """Return the kind and the first line of an exception, shortened."""
    lines = str(fault).strip().splitlines() or [""]
    return f"{type(fault).__name__}: {lines[0][:160]}"


def _evaluate(model: Module, progress: Progress | None) -> None:
    """Read the weights, a few at a time where someone watches."""
    arrays = list(named_parameters(model).values())
    total, done = sum(array.nbytes for array in arrays), 0
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        if progress is not None:
            progress(done, total)
