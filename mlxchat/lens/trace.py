"""Runs ids through a model and keeps what passes at the points asked for."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxchat.counts import format_count
from mlxchat.errors import ContextFullError, UnsupportedModelError, UsageError
from mlxchat.lens.edits import AFTER_BLOCK, Both
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Point, Taps

# Rows that are unembedded at once: their logits are (rows, V).
UNEMBED_ROWS = 64
CHUNK = 512  # ids that are fed at once where nothing is recorded
# Patterns and scores take H * T^2 floats a layer.
MOST_BYTES_OF_MAPS = 4 << 30


class Recorder:
    """Taps that keep a copy of what they see, and change nothing.

    Args:
        points: What to keep.
        layers: Of these layers only; None is all.
        positions: Of these positions only (axis T); a slice or None.
    """

    def __init__(
        self,
        points: Collection[Point],
        layers: Collection[int] | None = None,
        positions: slice | None = None,
    ) -> None:
        self.points = frozenset(points)
        self.layers = None if layers is None else frozenset(layers)
        self.positions = positions
        self.seen: dict[tuple[Point, int], mx.array] = {}

    def visit(self, point: Point, layer: int, value: mx.array) -> mx.array:
        """Keeps the array of the first sequence of the batch, T on its axis -2."""
        if self.layers is None or layer in self.layers:
            kept = value[0]
            self.seen[point, layer] = (
                kept if self.positions is None else kept[..., self.positions, :]
            )
        return value


@dataclass(frozen=True, slots=True)
class Trace:
    """What one pass showed; arrays are evaluated and without the batch axis.

    Attributes:
        token_ids: The T ids that were fed.
        seen: Arrays by point and layer, as `model/taps.py` says but for the batch axis.
        logits: (T, V); None where they were not wanted. T counts from the trace's `start`.
    """

    token_ids: tuple[int, ...]
    seen: dict[tuple[Point, int], mx.array]
    logits: mx.array | None

    def __getitem__(self, key: tuple[Point, int]) -> mx.array:
        """Returns the array of a point and layer."""
        return self.seen[key]

    def stack(self, point: Point) -> mx.array:
        """Returns a point of all recorded layers, (L, ...)."""
        return mx.stack([a for (p, _), a in sorted(self.seen.items()) if p == point])


def trace(
    model: LanguageModel,
    token_ids: Sequence[int],
    points: Collection[Point] = AFTER_BLOCK,
    *,
    edits: Taps | None = None,
    layers: Collection[int] | None = None,
    positions: slice | None = None,
    start: int = 0,
    logits: bool = True,
) -> Trace:
    """Feeds ids to a fresh cache and records what passes.

    Args:
        model: Native or zoo.
        token_ids: At least one.
        points: What to record.
        edits: Changes on the way; the recorder sees their result.
        layers: Record these only.
        positions: Record these only, counted from `start`.
        start: The ids before it are fed first, without being recorded: of a long text only the
            end takes memory. Edits hold there too.
        logits: Whether the logits of all positions are wanted.

    Raises:
        UsageError: There are no ids.
        ContextFullError: More ids than the model can hold.
        UnsupportedModelError: The model cannot show a point.
    """
    require_points(model, {*points, *(edits.points if edits is not None else ())})
    check_length(model, len(token_ids), points, start)
    recorder, cache, ids = Recorder(points, layers, positions), model.make_cache(), list(token_ids)
    for first in range(0, start, CHUNK):
        model.prefill(mx.array([ids[first : min(first + CHUNK, start)]]), cache, edits)
        mx.eval(cache.arrays())
    x = model.hidden(mx.array([ids[start:]]), cache, Both(edits, recorder))
    mx.eval(x, list(recorder.seen.values()))
    out = unembed(model, x[0]) if logits else None
    return Trace(tuple(token_ids), recorder.seen, out)


def unembed(model: LanguageModel, rows: mx.array) -> mx.array:
    """Returns the logits (N, V) of residual rows (N, D), evaluated a few rows at a time."""
    parts = []
    for start in range(0, rows.shape[0], UNEMBED_ROWS):
        part = model.unembed(rows[None, start : start + UNEMBED_ROWS])[0]
        mx.eval(part)
        parts.append(part)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def require_points(model: LanguageModel, points: Collection[Point]) -> None:
    """Checks that a model can show some points.

    Raises:
        UnsupportedModelError: It cannot.
    """
    missing = sorted(set(points) - model.points)
    if missing:
        raise UnsupportedModelError(
            f"{', '.join(missing)} of {model.info.family} cannot be read, since mlx-lm runs its"
            f" blocks; {', '.join(sorted(model.points))} can, and a native family (llama, qwen3,"
            " gemma3, ...) shows all"
        )


def check_length(
    model: LanguageModel, num_ids: int, points: Collection[Point], start: int = 0
) -> None:
    """Checks that a text can be traced.

    Raises:
        UsageError: It is empty, or its maps take too much memory.
        ContextFullError: It is longer than the model's context.
    """
    if num_ids == 0:
        raise UsageError("the text has no tokens; give at least one")
    if num_ids > model.info.max_context:
        raise ContextFullError(
            f"the text has {format_count(num_ids)} tokens, but the model holds"
            f" {format_count(model.info.max_context)}; give a shorter one"
        )
    config = getattr(model, "config", None)
    heads = getattr(config, "n_heads", 0) * len({"scores", "pattern"} & set(points))
    if 4 * heads * model.info.n_layers * num_ids * (num_ids - start) > MOST_BYTES_OF_MAPS:
        raise UsageError(
            f"attention maps of {format_count(num_ids)} tokens take more than"
            f" {MOST_BYTES_OF_MAPS >> 30} GiB; give a shorter text"
        )


def check_layer(model: LanguageModel, layer: int) -> None:
    """Checks that a model has a layer.

    Raises:
        UsageError: It has not.
    """
    last = model.info.n_layers - 1
    if not 0 <= layer <= last:
        raise UsageError(f"layer {layer} is not allowed; this model has 0 to {last}")


def to_lists(array: mx.array) -> Any:
    """Returns an array as nested lists of Python's own numbers, for the other threads."""
    return array.tolist()


def to_number(array: mx.array) -> float:
    """Returns an array of one element as a float."""
    return float(array.item())  # type: ignore[arg-type]
