"""Any architecture that mlx-lm knows, behind the same calls as our own transformer.

mlx-lm has built the model (`zoo_loading.py`); this module puts our caches in the place of its own,
and knows the few models that need a special cache. mlx-lm is imported on use.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten

from mlxchat.model.batch_cache import Stack
from mlxchat.model.checkpoint import find_context
from mlxchat.model.kv_cache import FullKV, LayerCache
from mlxchat.model.language_model import ModelInfo
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.state_cache import Opaque, RecurrentState
from mlxchat.model.taps import STREAM_POINTS, Point, Taps
from mlxchat.model.window_cache import ChunkedKV, WindowKV
from mlxchat.model.zoo_taps import LayerWatch

if TYPE_CHECKING:
    from mlxchat.model.zoo_batch import Ways

Config = dict[str, Any]

# mlx-lm's mask for these is one row wider than the rotating cache that it pairs it with, so a long
# prefill sees W + 1 rows and a decode step W: the wider buffer makes both agree (CACHES.md 1.1).
WINDOW_ONE_WIDER = frozenset({"plamo3"})
# Attention by blocks of keys, which are counted from the first column of a batch and not from a
# row's own first token: longer prompts than `zoo_batch.py` tries would be answered otherwise.
NOT_PADDED = frozenset({"minimax_m3_vl"})
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
            weight_bytes=sum(array.nbytes for array in named_parameters(model).values()),
            n_params=count_params(model),
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


def named_parameters(model: Module) -> dict[str, mx.array]:
    """Return the parameters of a model by their dotted names."""
    parameters = model.parameters()  # type: ignore[no-untyped-call]
    return dict(tree_flatten(parameters))


def named_modules(model: Module) -> list[tuple[str, Any]]:
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


def count_params(model: Module) -> int:
    """Count parameters; packed weights count by their logical shape."""
    packed = {name: module for name, module in named_modules(model) if "scales" in module}
    count = 0
    for path, array in named_parameters(model).items():
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
    for _, module in named_modules(model):
        for child in module.children().values():
            if isinstance(child, list) and len(child) > len(best):
                best = child
    return best


def _find_max_context(model: Module, config: Config) -> tuple[int | None, tuple[str, ...]]:
    """Return the context limit and, where the limit is a hard one, the reason as a notice."""
    limit = find_context(config)
    for _, module in named_modules(model):
        # The base of its rotation changes with the length, so earlier keys become wrong.
        if type(module).__name__ == "DynamicNTKScalingRoPE":
            limit = int(module.max_position_embeddings)
            notice = (
                f"Context limited to {limit} positions: beyond them dynamic NTK RoPE would make"
            )
            return limit, (f"{notice} every cached key wrong.",)
    return limit, ()
