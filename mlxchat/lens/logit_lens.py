"""The logit lens: what the model would say if it stopped after each block (nostalgebraist 2020).

Each residual stream goes through the model's own final norm and head; after the last block that
is the model's answer itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.lens.trace import UNEMBED_ROWS, Trace, to_lists, trace
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Taps


@dataclass(frozen=True, slots=True)
class Reading:
    """What the lens shows at one layer and position.

    Attributes:
        top: The likeliest tokens as (id, probability).
        rank: Of the token that the last layer settles on; 1 is the likeliest.
        prob: Of that token.
        entropy: Of the distribution, in nats.
    """

    top: tuple[tuple[int, float], ...]
    rank: int
    prob: float
    entropy: float


@dataclass(frozen=True, slots=True)
class LensView:
    """The logit lens over a text.

    Attributes:
        token_ids: What was read.
        positions: The positions that are shown, as indexes into `token_ids`.
        final: For each shown position the token that the last layer finds likeliest.
        layers: Readings by layer (after its block) and shown position.
    """

    token_ids: tuple[int, ...]
    positions: tuple[int, ...]
    final: tuple[int, ...]
    layers: tuple[tuple[Reading, ...], ...]

    def settled_at(self, index: int) -> int:
        """Returns the first layer from which on the final token stays the likeliest."""
        settled = len(self.layers) - 1
        while settled and self.layers[settled - 1][index].rank == 1:
            settled -= 1
        return settled


def read_lens(
    model: LanguageModel,
    token_ids: Sequence[int],
    *,
    top: int = 5,
    positions: Sequence[int] | None = None,
    targets: Sequence[int] | None = None,
    edits: Taps | None = None,
) -> LensView:
    """Reads a text with the logit lens.

    Args:
        model: Native or zoo.
        token_ids: The text.
        top: How many tokens are shown.
        positions: At which positions; None is all. Negative ones count from the end.
        targets: For each position the token whose rank is told; None is the last layer's choice.
        edits: Changes on the way, such as steering.
    """
    count = len(token_ids)
    where = tuple(range(count) if positions is None else (p % count for p in positions))
    start = min(where, default=0)
    seen = trace(model, token_ids, start=start, edits=edits, logits=False)
    return read_trace(model, seen, where, start=start, top=top, targets=targets)


def read_trace(
    model: LanguageModel,
    seen: Trace,
    where: Sequence[int],
    *,
    start: int = 0,
    top: int = 5,
    targets: Sequence[int] | None = None,
) -> LensView:
    """Reads what one pass recorded of `resid_post` with the logit lens.

    Args:
        model: Native or zoo.
        seen: The pass.
        where: At which positions.
        start: The trace's own.
        top: How many tokens are shown.
        targets: As in `read_lens`.
    """
    rows = mx.array([p - start for p in where])
    streams = [seen["resid_post", layer][rows] for layer in range(model.info.n_layers)]
    if targets is None:
        targets = _likeliest(model, streams[-1])
    layers = tuple(read_rows(model, stream, targets, top) for stream in streams)
    return LensView(seen.token_ids, tuple(where), tuple(targets), layers)


def _batches(model: LanguageModel, rows: mx.array) -> list[mx.array]:
    size = UNEMBED_ROWS
    return [rows[start : start + size] for start in range(0, rows.shape[0], size)]


def _likeliest(model: LanguageModel, rows: mx.array) -> list[int]:
    found: list[int] = []
    for batch in _batches(model, rows):
        found += to_lists(mx.argmax(model.unembed(batch[None])[0], axis=-1))
    return found


def read_rows(
    model: LanguageModel, rows: mx.array, targets: Sequence[int], top: int
) -> tuple[Reading, ...]:
    """Reads residual rows (N, D), a few at a time, since their logits are (N, V).

    Args:
        model: Native or zoo.
        rows: (N, D).
        targets: N tokens whose rank and probability are told.
        top: How many of the likeliest are told.
    """
    readings: list[Reading] = []
    for batch in _batches(model, rows):
        logits = model.unembed(batch[None])[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        probs = mx.exp(logprobs)
        # A token that the head excludes has the logit -inf, and 0 * -inf is no number.
        entropy = -mx.sum(mx.where(probs > 0, probs * logprobs, 0), axis=-1)
        first = len(readings)
        wanted = mx.array(list(targets[first : first + batch.shape[0]]))[:, None]
        own = mx.take_along_axis(logprobs, wanted, axis=-1)
        rank = mx.sum(logprobs > own, axis=-1) + 1
        ids = top_ids(logprobs, top)
        columns = (ids, mx.take_along_axis(probs, ids, axis=-1), rank, mx.exp(own)[:, 0], entropy)
        for i, p, r, q, e in zip(*map(to_lists, columns), strict=True):
            readings.append(Reading(tuple(zip(i, p, strict=True)), r, q, max(e, 0.0)))
    return tuple(readings)


def top_ids(scores: mx.array, count: int) -> mx.array:
    """Returns the columns of the largest scores (N, V) of each row, the largest first."""
    count = min(count, scores.shape[-1])
    some = mx.argpartition(-scores, count - 1, axis=-1)[..., :count]
    order = mx.argsort(-mx.take_along_axis(scores, some, axis=-1), axis=-1)
    return mx.take_along_axis(some, order, axis=-1)


def divergence(p: mx.array, q: mx.array) -> mx.array:
    """Returns the Kullback-Leibler divergence of distributions (..., V) from others: (...)."""
    tiny = 1e-20
    return (p * (mx.log(p + tiny) - mx.log(q + tiny))).sum(-1)
