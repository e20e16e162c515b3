"""Any architecture that mlx-lm knows, behind the same calls as our own transformer.

mlx-lm builds the model and reads the weights; this module puts our caches in the place of its own,
brings the weights to float32 where the device wants that, and knows the few models that need a
special cache; mlx-lm's own loader applies adapters. mlx-lm is imported on use.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten, tree_unflatten

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.adapter import Adapter
from mlxchat.model.batch_cache import Stack
from mlxchat.model.checkpoint import find_context
from mlxchat.model.device import DevicePlan, make_device_plan
from mlxchat.model.kv_cache import FullKV, LayerCache
from mlxchat.model.language_model import ModelInfo
from mlxchat.model.safetensors_file import shown
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.state_cache import Opaque, RecurrentState
from mlxchat.model.taps import STREAM_POINTS, Point, Taps
from mlxchat.model.window_cache import ChunkedKV, WindowKV
from mlxchat.model.zoo_taps import LayerWatch

if TYPE_CHECKING:
    from mlxchat.model.zoo_batch import Ways

Config = dict[str, Any]
Progress = Callable[[int, int], None]

# mlx-lm's mask for these is one row wider than the rotating cache that it pairs it with, so a long
# prefill sees W + 1 rows and a decode step W: the wider buffer makes both agree (CACHES.md 1.1).
WINDOW_ONE_WIDER = frozenset({"plamo3"})
# Attention by blocks of keys, which are counted from the first column of a batch and not from a
# row's own first token: longer prompts than `zoo_batch.py` tries would be answered otherwise.
NOT_PADDED = frozenset({"minimax_m3_vl"})
# Why a module of mlx-lm is refused: its results are not the model's, whatever the cache does.
REFUSED = {
    "phi3small": "mlx-lm's prefill for it lets tokens see later ones, so its answers are wrong",
}
# Where a config names no limit (recurrent models have none): what memory allows comes first anyway.
UNKNOWN_CONTEXT = 1 << 20


class ZooModel:
    """A model of mlx-lm with our caches.

    Args:
        model: An instance of some `mlx_lm.models.*.Model`.
        config: Its config.
        notices: Lines that a person should read once, gathered while loading.
    """

    points: frozenset[Point] = STREAM_POINTS
    can_pad = False

    def __init__(self, model: Module, config: Config, notices: tuple[str, ...] = ()) -> None:
        self.model = model
        self.config = config
        self.module_name = type(model).__module__.rpartition(".")[2]
        limit, warning = _find_max_context(model, config)
        self.info = ModelInfo(
            family=str(config.get("model_type", self.module_name)),
            n_layers=len(self.layers),
            vocab_size=self._measure_vocab_size(),
            max_context=limit or UNKNOWN_CONTEXT,
            weight_bytes=sum(array.nbytes for array in _parameters(model).values()),
            n_params=_count_params(model),
            notices=notices + warning,
        )

    @property
    def layers(self) -> list[Module]:
        """The blocks in order, for looking inside."""
        layers = getattr(self.model, "layers", None)
        if layers is None:
            layers = _find_layers(self.model)
        return list(layers)

    def make_cache(self) -> SequenceCache:
        """Make an empty cache: mlx-lm decides the kinds, our classes hold the rows."""
        from mlx_lm.models.cache import make_prompt_cache

        replace = _Replacement(self.module_name)
        raw = [replace(cache) for cache in make_prompt_cache(self.model)]
        return SequenceCache(raw, replace.layers)

    def find_stack(self) -> Stack | None:
        """Return what makes a batch of sequences of any lengths, where it is proved to work."""
        return None if self.module_name in NOT_PADDED else self._ways.stack

    def can_read_rows(self) -> bool:
        """Say whether prompts of different lengths can be read together, where that is proved."""
        return self.module_name not in NOT_PADDED and self._ways.reads_rows

    @cached_property
    def _ways(self) -> Ways:
        from mlxchat.model.zoo_batch import find_ways

        return find_ways(self)

    def prefill(self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None) -> None:
        """Feed ids whose logits nobody wants; evaluate `cache.arrays()` afterwards.

        Args:
            token_ids: (B, T).
            cache: Made by `make_cache`; it grows by T positions.
            taps: See the residual stream between layers.
        """
        self._call(token_ids, cache, taps)

    def forward(
        self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None
    ) -> mx.array:
        """Feed ids and return the logits of the last one, lazily.

        The ids before the last go first and are evaluated, so that the head runs on one position
        and the buffers are written in place.

        Args:
            token_ids: (B, T), T >= 1.
            cache: Made by `make_cache`; it grows by T positions.
            taps: See the residual stream between layers.

        Returns:
            Logits (B, V).
        """
        if token_ids.shape[1] > 1:
            self.prefill(token_ids[:, :-1], cache, taps)
            mx.eval(cache.arrays())
        return self._call(token_ids[:, -1:], cache, taps)[:, -1, :]

    def forward_all(
        self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None
    ) -> mx.array:
        """Feed ids (B, T) and return the logits of every position, (B, T, V), lazily."""
        return self._call(token_ids, cache, taps)

    def _call(self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None) -> mx.array:
        if taps is None:
            logits: mx.array = self.model(token_ids, cache=cache.raw)
            return logits
        return self._watch.run(lambda: self._call(token_ids, cache, None), taps)[0]

    # -- looking inside ----------------------------------------------------------------------------

    @property
    def _watch(self) -> LayerWatch:
        return LayerWatch(self.model, self.layers, self.info.family)

    def hidden(
        self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None
    ) -> mx.array:
        """Feed ids and return the residual stream after the last layer, (B, T, D).

        Raises:
            UnsupportedModelError: The layers are not a chain with one stream.
        """
        return self._watch.run(lambda: self._call(token_ids, cache, None), taps)[1]

    def unembed(self, x: mx.array) -> mx.array:
        """Return the logits (B, T, V) of a residual stream (B, T, D): final norm and head."""
        ids = mx.zeros(x.shape[:2], mx.int32)
        return self._watch.unembed(lambda: self._call(ids, self.make_cache(), None), x)

    def embed(self, token_ids: mx.array) -> mx.array:
        """Return the embedding rows of ids (B, T) as the first layer gets them, (B, T, D)."""
        return self._watch.embed(lambda: self._call(token_ids, self.make_cache(), None))

    def _measure_vocab_size(self) -> int:
        """Read the width of the logits off an unevaluated forward pass: configs differ."""
        return int(self.forward(mx.zeros((1, 1), mx.int32), self.make_cache()).shape[-1])


def _parameters(model: Module) -> dict[str, mx.array]:
    """Return the parameters of a model by their dotted names."""
    parameters = model.parameters()  # type: ignore[no-untyped-call]
    return dict(tree_flatten(parameters))


def _named_modules(model: Module) -> list[tuple[str, Any]]:
    """Return the modules inside a model with their dotted names, the model itself as ''."""
    return list(model.named_modules())  # type: ignore[no-untyped-call]


class _Replacement:
    """Turns mlx-lm's empty caches into ours and lists the layers that it made, flat."""

    def __init__(self, module_name: str) -> None:
        self.layers: list[LayerCache] = []
        self._wider = int(module_name in WINDOW_ONE_WIDER)

    def __call__(self, cache: Any) -> Any:
        """Return what the model gets in place of `cache`."""
        from mlx_lm.models.cache import CacheList

        if type(cache) is CacheList:
            return CacheList(*(self(member) for member in cache.caches))
        layer = self._make_layer(cache)
        self.layers.append(layer)
        return layer.raw if isinstance(layer, RecurrentState | Opaque) else layer

    def _make_layer(self, cache: Any) -> LayerCache:
        from mlx_lm.models import cache as theirs

        # Exact types: a subclass may do more than the class that we know.
        kind = type(cache)
        if kind is theirs.KVCache:
            return FullKV()
        if kind is theirs.RotatingKVCache and cache.keep == 0:
            return WindowKV(cache.max_size + self._wider)
        if kind is theirs.ChunkedKVCache:
            return ChunkedKV(cache.chunk_size)
        if kind is theirs.ArraysCache:
            return RecurrentState(cache)
        return Opaque(cache)


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
    if plan.can_dequantise(4 * _count_params(model)):
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
    for name, module in _named_modules(model):
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


def _evaluate(model: Module, progress: Progress | None) -> None:
    """Read the weights, a few at a time where someone watches."""
    arrays = list(_parameters(model).values())
    total, done = sum(array.nbytes for array in arrays), 0
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        if progress is not None:
            progress(done, total)


def _count_params(model: Module) -> int:
    """Count parameters; packed weights count by their logical shape."""
    packed = {name: module for name, module in _named_modules(model) if "scales" in module}
    count = 0
    for path, array in _parameters(model).items():
        parent, _, name = path.rpartition(".")
        if parent not in packed:
            count += array.size
        elif name == "weight":
            count += array.nbytes * 8 // packed[parent].bits
        elif name == "bias":
            count += array.size
    return count


def _find_layers(model: Module) -> list[Module]:
    """Return the longest list of modules inside a model."""
    best: list[Module] = []
    for _, module in _named_modules(model):
        for child in module.children().values():
            if isinstance(child, list) and len(child) > len(best):
                best = child
    return best


def _find_max_context(model: Module, config: Config) -> tuple[int | None, tuple[str, ...]]:
    """Return the context limit and, where the limit is a hard one, the reason as a notice."""
    limit = find_context(config)
    for _, module in _named_modules(model):
        # The base of its rotation changes with the length, so earlier keys become wrong.
        if type(module).__name__ == "DynamicNTKScalingRoPE":
            limit = int(module.max_position_embeddings)
            notice = (
                f"Context limited to {limit} positions: beyond them dynamic NTK RoPE would make"
            )
            return limit, (f"{notice} every cached key wrong.",)
    return limit, ()
