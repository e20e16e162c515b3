"""XTC, "exclude top choices": at some tokens all likely choices but the least of them are dropped.

Weidmann's sampler of text-generation-webui (pull request 6335), in the form that mlx-lm's
`apply_xtc` gives it: what ends a turn and what breaks a line is never dropped. As there with its
default order, it comes last, after temperature and truncation.
"""

import mlx.core as mx


def exclude_top_choices(
    weights: mx.array,
    ids: mx.array | None,
    coins: mx.array,
    *,
    probability: float,
    threshold: float,
    spared: tuple[int, ...] = (),
) -> mx.array:
    """Drops, with some probability, all tokens above a threshold but the least likely of them.

    Args:
        weights: (B, N), the tokens' shares of the probability; their sum need not be 1.
        ids: What they belong to, (B, N); None is vocabulary order.
        coins: Uniform random numbers from [0, 1), (B, 1) or (1, 1).
        probability: Of doing so: where the coin is below it.
        threshold: A probability. Where fewer than two tokens exceed it nothing is dropped.
        spared: Ids that stay in any case.

    Returns:
        Weights (B, N), 0 where dropped.
    """
    border = threshold * weights.sum(axis=-1, keepdims=True)
    least = mx.where(weights > border, weights, mx.inf).min(axis=-1, keepdims=True)
    drops = weights > mx.where(coins < probability, least, mx.inf)
    names = mx.arange(weights.shape[-1]) if ids is None else ids
    for token_id in spared:
        drops = drops & (names != token_id)
    return mx.where(drops, 0.0, weights)
