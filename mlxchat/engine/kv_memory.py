"""What keys and values take in memory: measured on the model, not guessed from its config."""

import mlx.core as mx

from mlxchat.engine.engine import Engine
from mlxchat.model.kv_cache import RowCache
from mlxchat.model.sequence_cache import SequenceCache

# As many as the warm-up reads, so that nothing is compiled for this.
_NUM_IDS = 8
# While buffers grow, the old ones of so many layers are there beside the new ones: measured 2.2
# with 4 layers and 2.8 with 24 (CPU, mlx 0.32.4).
_NUM_COPIED = 4


def measure_kv_bytes_per_token(engine: Engine) -> float:
    """Measures by how many bytes the cache grows with each token.

    Layers that do not grow with the text (windows, recurrent state) count nothing, nor do those
    whose rows cannot be told: rather too little than too much.
    """
    cache = engine.prefix.make_cache()
    mx.eval(engine.model.forward(mx.zeros((1, _NUM_IDS), mx.int32), cache), cache.arrays())
    return sum(_bytes_per_row(layer) for layer in _growing(cache))


def has_room(cache: SequenceCache, num_tokens: int) -> bool:
    """Whether the buffers hold so many tokens without growing."""
    layers = _growing(cache)
    return bool(layers) and all(_capacity(layer) >= num_tokens for layer in layers)


def count_rows(cache: SequenceCache) -> int | None:
    """Counts the positions that the buffers hold without growing; None where none grows."""
    return min((_capacity(layer) for layer in _growing(cache)), default=None)


def growth_bytes(cache: SequenceCache) -> int:
    """Returns what the next growth of the buffers takes at once, at most."""
    layers = _growing(cache)
    new = sum(_bytes_per_row(layer) * layer.step for layer in layers)
    copied = sorted((layer.nbytes for layer in layers), reverse=True)[:_NUM_COPIED]
    return int(new) + sum(copied)


def _growing(cache: SequenceCache) -> list[RowCache]:
    return [
        layer
        for layer in cache.layers
        if isinstance(layer, RowCache) and layer.kind == "full" and layer.buffers
    ]


def _capacity(layer: RowCache) -> int:
    return int(next(iter(layer.buffers.values())).shape[2])


def _bytes_per_row(layer: RowCache) -> float:
    return layer.nbytes / max(_capacity(layer), 1)
