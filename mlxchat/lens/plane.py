"""Hidden states on a plane: principal components, or the best linear map onto what is known.

With coordinates or labels the map is a ridge regression, and how good it is is measured on words
that it was not made from. All in float32 on the CPU: tens to hundreds of words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.errors import UsageError
from mlxchat.lens.trace import require_points, to_lists, to_number, trace
from mlxchat.model.language_model import LanguageModel

# The words are parted into so many groups, each told by a map made from the others.
FOLDS = 10
# Against the mean square of the states: with fewer words than dimensions every map would fit.
RIDGE = 0.1

# Words that make a plane, and words that a map onto what is known can be judged by.
LEAST, LEAST_KNOWN = 3, 5

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class LayerPlane:
    """The words after one layer.

    Attributes:
        layer: After how many blocks; 0 is the embedding rows.
        points: (x, y) of each word.
        explained: Shares of the variance along both axes; of principal components only.
        score: Held-out measure: R squared for coordinates, share of right labels for labels; None
            for principal components.
    """

    layer: int
    points: Points
    explained: tuple[float, float] | None = None
    score: float | None = None


def map_layers(
    model: LanguageModel,
    texts: Sequence[tuple[Sequence[int], int]],
    places: Sequence[tuple[float, float]] | None = None,
    labels: Sequence[int] | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[LayerPlane]:
    """Returns the plane of each layer, the embedding first.

    Args:
        model: Native, or a zoo model whose residual stream can be watched.
        texts: Ids of each word and the position of the token that stands for it.
        places: Their coordinates; the states are mapped onto them.
        labels: Numbers of their labels, from 0 on; the same.
        check: Called between steps; what it raises ends the work.

    Raises:
        UsageError: There are too few words.
    """
    least = LEAST if places is None and labels is None else LEAST_KNOWN
    if len(texts) < least:
        count = "1 word makes" if len(texts) == 1 else f"{len(texts)} words make"
        raise UsageError(f"{count} no map; give at least {least}")
    found = []
    for layer, states in enumerate(read_states(model, texts, check)):
        check()
        if places is not None:
            found.append(map_onto(states, mx.array([list(place) for place in places]), layer))
        elif labels is not None:
            found.append(map_labels(states, labels, layer))
        else:
            found.append(map_components(states, layer))
    return found


def read_states(
    model: LanguageModel,
    texts: Sequence[tuple[Sequence[int], int]],
    check: Callable[[], None] = lambda: None,
) -> mx.array:
    """Returns the stream of one token of each text after 0, 1, ... blocks, (L + 1, N, D).

    Args:
        model: Native, or a zoo model whose residual stream can be watched.
        texts: Ids and the position of the token.
        check: Called between texts; what it raises ends the work.
    """
    require_points(model, ["resid_pre", "resid_post"])
    rows = []
    for token_ids, position in texts:
        check()
        seen = trace(model, token_ids, ["resid_pre", "resid_post"], logits=False)
        states = mx.concatenate([seen["resid_pre", 0][None], seen.stack("resid_post")])
        rows.append(states[:, position].astype(mx.float32))
        mx.eval(rows[-1])
    return mx.stack(rows, axis=1)


def map_components(states: mx.array, layer: int) -> LayerPlane:
    """Projects states (N, D) onto their two principal components."""
    centred = states - states.mean(0)
    left, scales, basis = mx.linalg.svd(centred, stream=mx.cpu)
    # The sign of a component means nothing; its largest weight is made positive.
    largest = mx.take_along_axis(basis[:2], mx.argmax(mx.abs(basis[:2]), axis=1)[:, None], axis=1)
    signs = mx.where(largest[:, 0] < 0, -1.0, 1.0)
    plane = left[:, :2] * scales[:2] * signs
    shares = mx.square(scales) / mx.maximum(mx.square(scales).sum(), 1e-30)
    explained = to_lists(shares[:2])
    return LayerPlane(layer, _points(plane), explained=(explained[0], explained[1]))


def map_onto(states: mx.array, targets: mx.array, layer: int) -> LayerPlane:
    """Maps states (N, D) onto known coordinates (N, 2); scored on words held out."""
    told = _tell_held_out(states, targets)
    left = mx.square(targets - told).sum()
    spread = mx.square(targets - _mean_of_others(targets)).sum()
    score = to_number(1 - left / mx.maximum(spread, 1e-30))
    return LayerPlane(layer, _points(told), score=score)


def map_labels(states: mx.array, labels: Sequence[int], layer: int) -> LayerPlane:
    """Maps states (N, D) onto labels; scored on words held out.

    The plane is that of the two principal components of the labels' scores.
    """
    wanted = mx.array(list(labels))
    scores = _tell_held_out(states, mx.eye(max(labels) + 1)[wanted])
    right = to_number((mx.argmax(scores, axis=1) == wanted).mean())
    return LayerPlane(layer, map_components(scores, layer).points, score=right)


def _tell_held_out(states: mx.array, targets: mx.array) -> mx.array:
    """Returns each row of the targets as a map made from the other groups tells it."""

    def tell(others: mx.array, fold: mx.array) -> mx.array:
        return fit_ridge(states[others], targets[others], states[fold])

    return _tell_folds(targets, tell)


def _mean_of_others(targets: mx.array) -> mx.array:
    """Returns what the same test says of a map that knows only the mean."""
    return _tell_folds(targets, lambda others, _: targets[others].mean(0))


def _tell_folds(targets: mx.array, tell: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
    """Returns each group's rows of the targets (N, K) as something tells them from the others.

    Args:
        targets: What is to be told.
        tell: Gets the indices of the others and of a group; returns its rows, or one for all.
    """
    num = targets.shape[0]
    told: list[mx.array] = [targets[0]] * num
    for fold in folds_of(num):
        others = mx.array([i for i in range(num) if i not in fold])
        rows = tell(others, mx.array(fold))
        for i, row in zip(fold, mx.broadcast_to(rows, (len(fold), targets.shape[1])), strict=True):
            told[i] = row
    return mx.stack(told)


def folds_of(num: int) -> list[list[int]]:
    """Parts `num` words into groups: every tenth together; of a few words each alone."""
    count = min(FOLDS, num)
    return [list(range(start, num, count)) for start in range(count)]


def fit_ridge(states: mx.array, targets: mx.array, new: mx.array) -> mx.array:
    """Fits targets (N, K) by states (N, D) with an offset, and applies it to new states (M, D)."""
    centre, offset = states.mean(0), targets.mean(0)
    x = states - centre
    kernel = x @ x.T  # (N, N)
    weight = RIDGE * mx.trace(kernel) / kernel.shape[0] + 1e-12
    solved = mx.linalg.solve(
        kernel + weight * mx.eye(kernel.shape[0]), targets - offset, stream=mx.cpu
    )
    return (new - centre) @ (x.T @ solved) + offset


def _points(plane: mx.array) -> Points:
    if plane.shape[1] < 2:
        plane = mx.concatenate([plane, mx.zeros((plane.shape[0], 2 - plane.shape[1]))], axis=1)
    return [(x, y) for x, y in to_lists(plane)]
