"""Questions about an answer that was given: how sure, why this word, and settled where."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.lens.attention import read_last_attention
from mlxchat.lens.logit_lens import LensView, Reading, read_lens, read_rows
from mlxchat.lens.trace import to_lists, to_number, trace
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Taps


def read_confidence(
    model: LanguageModel,
    token_ids: Sequence[int],
    start: int,
    *,
    top: int = 4,
    edits: Taps | None = None,
) -> list[Reading]:
    """Reads how likely each token of an answer was when it was chosen, at temperature 1.

    Args:
        model: Native or zoo.
        token_ids: Prompt and answer.
        start: Where the answer begins, at least 1.
        top: How many of the likeliest are told.
        edits: What steered the model.

    Returns:
        A reading for each token of the answer.
    """
    last = model.info.n_layers - 1
    seen = trace(model, token_ids[:-1], layers=[last], start=start - 1, edits=edits, logits=False)
    return list(read_rows(model, seen["resid_post", last], token_ids[start:], top))


@dataclass(frozen=True, slots=True)
class Source:
    """An earlier token that the model looked at.

    Attributes:
        position: Where it stands.
        weight: Mean of the weights of all heads and layers.
        by_layer: Mean of the heads, by layer.
        best: The layer and head that looked most, with its weight.
    """

    position: int
    weight: float
    by_layer: tuple[float, ...]
    best: tuple[int, int, float]


@dataclass(frozen=True, slots=True)
class Why:
    """How one token of an answer came about.

    Attributes:
        position: The token that is explained.
        lens: The logit lens where it was chosen, with the token as its target.
        sources: What the model looked at then, the most looked at first; the first token and the
            place itself are left out, since heads rest there.
        resting: The share of the attention on those two.
    """

    position: int
    lens: LensView
    sources: tuple[Source, ...]
    resting: float


def explain(
    model: LanguageModel,
    token_ids: Sequence[int],
    position: int,
    *,
    count: int = 8,
    edits: Taps | None = None,
) -> Why:
    """Reads why the token at a position was chosen.

    Raises:
        UnsupportedModelError: mlx-lm runs the model's blocks.
    """
    before = token_ids[:position]
    maps = read_last_attention(model, before, edits)  # (L, H, T)
    lens = read_lens(model, before, positions=[-1], targets=[token_ids[position]], edits=edits)
    mean, by_layer = to_lists(maps.mean((0, 1))), maps.mean(1)
    by_head = maps.reshape(-1, len(before))  # (L * H, T)
    resting = {0, len(before) - 1}
    keys = sorted(set(range(len(before))) - resting, key=lambda k: -mean[k])[:count]
    sources = []
    for key in keys:
        head = int(to_number(mx.argmax(by_head[:, key])))
        place = divmod(head, maps.shape[1])
        best = (*place, to_number(by_head[head, key]))
        sources.append(Source(key, mean[key], tuple(to_lists(by_layer[:, key])), best))
    return Why(position, lens, tuple(sources), sum(mean[k] for k in resting))


def hardest(
    model: LanguageModel,
    token_ids: Sequence[int],
    start: int,
    allowed: Sequence[int],
    *,
    edits: Taps | None = None,
) -> int:
    """Returns the token of an answer on which the blocks worked most.

    That is the one whose probability rose most, in logarithms, from the first layer to the last.

    Args:
        model: Native or zoo.
        token_ids: Prompt and answer.
        start: Where the answer begins.
        allowed: Positions to choose from.
        edits: What steered the model.
    """
    layers = [0, model.info.n_layers - 1]
    seen = trace(model, token_ids[:-1], layers=layers, start=start - 1, edits=edits, logits=False)
    rows = mx.array([p - start for p in allowed])
    targets = [token_ids[p] for p in allowed]
    early, late = (read_rows(model, seen["resid_post", n][rows], targets, 1) for n in layers)
    gains = [_log(b.prob) - _log(a.prob) for a, b in zip(early, late, strict=True)]
    return allowed[max(range(len(gains)), key=gains.__getitem__)]


def _log(prob: float) -> float:
    return math.log(max(prob, 1e-12))
