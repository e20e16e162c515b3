"""XTC, "exclude top choices": at some tokens all likely choices but the least of them are dropped.

Weidmann's sampler of text-generation-webui (pull request 6335), in the form that mlx-lm's
`apply_xtc` gives it: what ends a turn and what breaks a line is never dropped. As there with its
default order, it comes last, after temperature and truncation.
"""

import mlx.core as mx


def exclude_top_choices(
    logprobs: mx.array,
    ids: mx.array | None,
    coins: mx.array,
    *,
    probability: float,
    threshold: float,
    spared: tuple[int, ...] = (),
) -> mx.array:
    """Drops, with some probability, all tokens above a threshold but the least likely of them.

    Args:
        logprobs: (B, N), unnormalised, minus infinity where dropped already.
        ids: What they belong to, (B, N); None is vocabulary order.
        coins: Uniform random numbers from [0, 1), (B, 1) or (1, 1).
        probability: Of doing so: where the coin is below it.
        threshold: A probability. Where fewer than two tokens exceed it nothing is dropped.
        spared: Ids that stay in any case.

    Returns:
        Logprobs (B, N).
    """
    probs = mx.softmax(logprobs, axis=-1)
    least = mx.where(probs > threshold, probs, mx.inf).min(axis=-1, keepdims=True)
    drops = probs > least
    if spared:
        names = mx.arange(logprobs.shape[-1]) if ids is None else ids
        drops = drops & (names[..., None] != mx.array(spared)).all(axis=-1)
    return mx.where(drops & (coins < probability), -mx.inf, logprobs)
