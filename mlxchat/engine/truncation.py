"""Temperature and truncation: which of the likeliest tokens may be drawn.

Top-k (Fan et al. 2018), top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024), in this order,
as lazy array work.
"""

import mlx.core as mx

from mlxchat.model.exponential import softmax_parts

# More probabilities than this are not sorted on a CPU, where it takes ten times as long as the rest
# of a draw from 150k, and a third of a step of eight rows from 3k. On GPUs sorting is fast, and
# parting is sorting.
_MOST_SORTED = 512


def truncated_logprobs(
    logits: mx.array, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[mx.array, mx.array | None]:
    """Tempers and truncates logits (B, V).

    Args:
        logits: (B, V).
        temperature: Above 0.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps
            all.
        min_p: Drop tokens below this share of the likeliest token's probability; 0 keeps all.

    Returns:
        Unnormalised logprobs (B, N), minus infinity where dropped, and the ids (B, N) that they
        belong to, or None where N = V in vocabulary order.
    """
    scaled = logits.astype(mx.float32) / temperature
    ids: mx.array | None = None
    if 0 < top_k < logits.shape[-1]:
        ids = mx.argpartition(-scaled, kth=top_k - 1, axis=-1)[..., :top_k]
        scaled = mx.take_along_axis(scaled, ids, axis=-1)
    if top_p < 1.0 and scaled.shape[-1] > _MOST_SORTED and mx.default_device().type == mx.cpu:
        scaled = _drop_beyond_nucleus(scaled, top_p)
    elif top_p < 1.0:
        order = mx.argsort(-scaled, axis=-1)
        scaled = mx.take_along_axis(scaled, order, axis=-1)
        ids = order if ids is None else mx.take_along_axis(ids, order, axis=-1)
        probs = mx.softmax(scaled, axis=-1)
        before = mx.cumsum(probs, axis=-1) - probs  # probability of all likelier tokens
        first = mx.arange(probs.shape[-1]) == 0
        scaled = mx.where((before < top_p) | first, scaled, -mx.inf)
    if min_p > 0.0:
        floor = mx.max(scaled, axis=-1, keepdims=True) + mx.log(mx.array(min_p))
        scaled = mx.where(scaled >= floor, scaled, -mx.inf)
    return scaled, ids


def _drop_beyond_nucleus(scaled: mx.array, top_p: float) -> mx.array:
    """Sets what top-p drops to minus infinity, without sorting all of it or waiting for a value.

    Of tokens as likely as the least likely one of the nucleus the first ones stay, as many as it
    takes.

    Args:
        scaled: Tempered logits (B, V).
        top_p: Above 0 and below 1.
    """
    probs, sums = softmax_parts(scaled)
    probs = probs if sums is None else probs / sums
    border = _find_border(probs, top_p)
    is_above, is_tied = probs > border, probs == border
    num_before = mx.cumsum(is_tied.astype(mx.int32), axis=-1, inclusive=False)
    before = (is_above * probs).sum(axis=-1, keepdims=True) + num_before * border
    return mx.where(is_above | (is_tied & (before < top_p)), scaled, -mx.inf)


def _find_border(probs: mx.array, top_p: float) -> mx.array:
    """Finds the largest probability that all tokens at least as likely reach top-p with.

    Halves are parted, not sorted, and the one that holds the border is parted again: what is
    computed is the same wherever it is, so that no value must be known before the next step.

    Args:
        probs: (B, V).
        top_p: Above 0 and below 1.

    Returns:
        Probabilities (B, 1).
    """
    num_halvings = max(0, (probs.shape[-1] - 1) // _MOST_SORTED).bit_length()
    values = mx.pad(probs, [(0, 0), (0, -probs.shape[-1] % (1 << num_halvings))])
    wanted: float | mx.array = top_p  # of what is left
    for _ in range(num_halvings):
        half = values.shape[-1] // 2
        low, high = mx.split(mx.partition(values, half, axis=-1), 2, axis=-1)
        mass = high.sum(axis=-1, keepdims=True)
        is_high = mass >= wanted
        values = mx.where(is_high, high, low)
        wanted = mx.where(is_high, wanted, wanted - mass)
    values = mx.sort(values, axis=-1)
    likelier = mx.cumsum(values, axis=-1, reverse=True, inclusive=False)
    return mx.where(likelier < wanted, values, mx.inf).min(axis=-1, keepdims=True)
