"""Steering vectors: directions of the residual stream, made from pairs of prompts.

For each pair and layer the difference of `resid_post` at the last token is taken. Their mean is one
direction (Turner et al. 2023, Panickssery et al. 2023), their first principal component another
(Zou et al. 2023), brought to the mean's length so that coefficients mean the same. Which layer
works is measured: how far the vector moves what a negative prompt would answer towards what its
positive one answers. Token ids and arrays only; files are `steering_file.py`'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

import mlx.core as mx

from mlxchat.errors import UsageError
from mlxchat.lens.edits import Add
from mlxchat.lens.logit_lens import divergence
from mlxchat.lens.trace import (
    check_layer,
    require_points,
    to_lists,
    to_number,
    trace,
    unembed,
)
from mlxchat.lens.writing import write_tokens
from mlxchat.model.language_model import LanguageModel

Method = Literal["mean", "pca"]
METHODS: tuple[Method, ...] = get_args(Method)
Ids = Sequence[int]
# Each costs a pass for each pair that is measured.
SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
MOST_MEASURED = 8
MOST_LAYERS_TRIED = 12
# Of the positive prompts' answers; one token alone would favour whatever writes that token.
ANSWER_TOKENS = 8
# Every fourth pair is kept back, so that layers are judged by pairs that made no direction.
HOLD_OUT = 4


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What is known of a vector at one layer.

    Attributes:
        norm: Length of the mean difference.
        share: Its length against the residual stream's.
        separation: Share of pairs that a direction made from the other pairs tells apart; None
            for a single pair.
        gap: Mean difference of the projections in standard deviations.
        explained: Share of all differences that lies along the first component.
        agreement: Cosine of the mean difference and the first component.
        effect: How far coefficient 1 moves the next tokens towards those after the positive
            prompts: 0 is not at all, 1 all the way; None where it was not tried.
    """

    norm: float
    share: float
    separation: float | None
    gap: float
    explained: float
    agreement: float
    effect: float | None = None


@dataclass(frozen=True, slots=True)
class Strength:
    """What a coefficient does at the vector's layer.

    Attributes:
        coeff: The coefficient.
        effect: See `LayerFacts`.
        divergence: Kullback-Leibler divergence of the steered next tokens from the plain ones.
    """

    coeff: float
    effect: float
    divergence: float


@dataclass(frozen=True, slots=True)
class SteeringVector:
    """Directions by layer, and what was measured of them.

    Attributes:
        mean: (L, D), the mean differences.
        pca: (L, D), the first components at the same lengths.
        layer: Where it works best.
        layers: Facts by layer.
        sweep: Facts by coefficient.
        num_pairs: Pairs that it was made from.
        held_out: Whether effects were measured on pairs that were kept back.
    """

    mean: mx.array
    pca: mx.array
    layer: int
    layers: tuple[LayerFacts, ...]
    sweep: tuple[Strength, ...]
    num_pairs: int
    held_out: bool

    def taps(self, coeff: float, layer: int | None = None, method: Method = "mean") -> Add | None:
        """Returns the change of a forward pass; None for coefficient 0, the plain model."""
        at = self.layer if layer is None else layer
        rows = self.mean if method == "mean" else self.pca
        return Add({at: rows[at] * coeff}) if coeff else None


def make_vector(
    model: LanguageModel,
    positive: Sequence[Ids],
    negative: Sequence[Ids],
    *,
    layer: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> SteeringVector:
    """Makes a vector from pairs of prompts and measures it.

    Args:
        model: Native, or a zoo model whose residual stream can be watched.
        positive: Ids of the prompts to steer to.
        negative: Of those to steer away from; the i-th belongs to the i-th positive.
        layer: Where it shall work; None finds the layer with the most effect.
        on_progress: Called with (passes done, passes in all).
        check: Called between passes; what it raises ends the work.

    Raises:
        UsageError: There are no pairs, or they do not pair.
        UnsupportedModelError: The residual stream cannot be watched.
    """
    if not positive or len(positive) != len(negative):
        raise UsageError(
            f"{len(positive)} positive and {len(negative)} negative prompts do not pair; give as"
            " many of each, at least one"
        )
    require_points(model, ["resid_post"])
    if layer is not None:
        check_layer(model, layer)
    num = len(positive)
    used, held = _split(num)
    tried = _layers_to_try(model.info.n_layers) if layer is None else [layer]
    passes = _Passes(2 * num + len(held) * (2 + len(tried) + len(SWEEP)), on_progress, check)
    ups = [_last_states(model, ids, passes) for ids in positive]  # (L, D) each
    downs = [_last_states(model, ids, passes) for ids in negative]
    differences = mx.stack([a - b for a, b in zip(ups, downs, strict=True)])  # (N, L, D)
    measure = _Measure(model, [(positive[i], negative[i]) for i in held], passes)
    trial = differences[mx.array(used)].mean(0)
    effects = {at: measure.effect(Add({at: trial[at]}))[0] for at in tried}
    best = max(tried, key=effects.__getitem__)
    sweep = [measure.effect(Add({best: trial[best] * c})) for c in SWEEP]
    mean = differences.mean(0)
    pca, explained = _components(differences, mean)
    lengths = mx.linalg.norm(mx.stack(downs), axis=-1).mean(0)  # (L,)
    return SteeringVector(
        mean=mean,
        pca=pca,
        layer=best,
        layers=tuple(
            _facts(differences[:, at], mean[at], pca[at], share, length, effects.get(at))
            for at, (share, length) in enumerate(zip(explained, to_lists(lengths), strict=True))
        ),
        sweep=tuple(Strength(c, *found) for c, found in zip(SWEEP, sweep, strict=True)),
        num_pairs=num,
        held_out=len(used) < num,
    )


def _split(num: int) -> tuple[list[int], list[int]]:
    """Returns the pairs that make the direction that is tried, and those that judge it.

    They are the same where there are too few to keep any back.
    """
    every = list(range(num))
    held = every[HOLD_OUT - 1 :: HOLD_OUT]
    used = [i for i in every if i not in held]
    return (used, held[:MOST_MEASURED]) if held else (every, every)


def _layers_to_try(n_layers: int) -> list[int]:
    if n_layers <= MOST_LAYERS_TRIED:
        return list(range(n_layers))
    step = (n_layers - 1) / (MOST_LAYERS_TRIED - 1)
    return sorted({round(i * step) for i in range(MOST_LAYERS_TRIED)})


@dataclass(slots=True)
class _Passes:
    total: int
    on_progress: Callable[[int, int], None]
    check: Callable[[], None]
    done: int = 0

    def count(self) -> None:
        self.check()
        self.done += 1
        self.on_progress(self.done, self.total)


def _last_states(model: LanguageModel, ids: Ids, passes: _Passes) -> mx.array:
    """Returns the stream after each block at the last token, (L, D) in float32."""
    passes.count()
    seen = trace(model, ids, ["resid_post"], positions=slice(-1, None), logits=False)
    states = seen.stack("resid_post")[:, 0].astype(mx.float32)
    mx.eval(states)
    return states


def _components(differences: mx.array, mean: mx.array) -> tuple[mx.array, list[float]]:
    """Returns the first component of each layer (L, D), and its share of all squares."""
    rows, shares = [], []
    for at in range(mean.shape[0]):
        one = differences[:, at]  # (N, D)
        _, scales, basis = mx.linalg.svd(one, stream=mx.cpu)
        first = basis[0] * mx.where(basis[0] @ mean[at] < 0, -1.0, 1.0)
        rows.append(first * mx.linalg.norm(mean[at]))
        squares = mx.square(scales)
        shares.append(to_number(squares[0] / mx.maximum(squares.sum(), 1e-30)))
    return mx.stack(rows), shares


def _facts(
    differences: mx.array,
    mean: mx.array,
    first: mx.array,
    explained: float,
    length: float,
    effect: float | None,
) -> LayerFacts:
    """Returns the facts of one layer from its differences (N, D)."""
    num, norm = differences.shape[0], mx.linalg.norm(mean)
    along = differences @ mean / mx.maximum(norm, 1e-12)
    spread = mx.maximum(mx.sqrt(mx.var(along)), 1e-6 * mx.maximum(norm, 1e-6))
    separation = None
    if num > 1:
        others = (mean * num - differences) / (num - 1)
        separation = to_number(((differences * others).sum(-1) > 0).mean())
    agreement = mean @ first / mx.maximum(norm * mx.linalg.norm(first), 1e-12)
    return LayerFacts(
        norm=to_number(norm),
        share=to_number(norm) / max(length, 1e-12),
        separation=separation,
        gap=to_number(along.mean() / spread),
        explained=explained,
        agreement=to_number(agreement),
        effect=effect,
    )


class _Measure:
    """Measures how far a change brings negative prompts to answer as positive ones do.

    The positive prompt's own answer is put behind both prompts, and the distributions at its tokens
    are compared: of the positive prompt, of the negative one, of the negative one steered.

    Args:
        model: Is changed.
        pairs: The ids of positive and negative prompts.
        passes: Counts.
    """

    def __init__(
        self, model: LanguageModel, pairs: Sequence[tuple[Ids, Ids]], passes: _Passes
    ) -> None:
        self._model, self._passes = model, passes
        answers = [write_tokens(model, positive, max_tokens=ANSWER_TOKENS) for positive, _ in pairs]
        self._read_of = [
            ([*negative, *answer], len(answer) + 1)
            for (_, negative), answer in zip(pairs, answers, strict=True)
        ]
        goals = [
            ([*positive, *answer], len(answer) + 1)
            for (positive, _), answer in zip(pairs, answers, strict=True)
        ]
        self._goals = [self._read(ids, num, None) for ids, num in goals]
        self._plain = [self._read(ids, num, None) for ids, num in self._read_of]
        self._apart = fmean(map(_jensen_shannon, self._plain, self._goals))

    def _read(self, ids: list[int], num: int, edit: Add | None) -> mx.array:
        """Returns the distributions after the last `num` ids, (num, V)."""
        self._passes.count()
        x = self._model.hidden(mx.array([ids]), self._model.make_cache(), edit)
        probs = mx.softmax(unembed(self._model, x[0, -num:]).astype(mx.float32), axis=-1)
        mx.eval(probs)
        return probs

    def effect(self, edit: Add) -> tuple[float, float]:
        """Returns the share of the way that an edit goes, and its divergence from the plain."""
        steered = [self._read(ids, num, edit) for ids, num in self._read_of]
        left = fmean(map(_jensen_shannon, steered, self._goals))
        divergences = (
            to_number(divergence(a, b).mean()) for a, b in zip(steered, self._plain, strict=True)
        )
        return 1 - left / max(self._apart, 1e-12), fmean(divergences)


def _jensen_shannon(p: mx.array, q: mx.array) -> float:
    """Returns how far two rows of distributions (N, V) are apart on average: 0 for equal ones."""
    middle = (p + q) / 2
    both = divergence(p, middle) + divergence(q, middle)
    return to_number((both / 2).mean())
