"""What a context costs: operations and bytes by closed forms, times from rates measured here.

A multiplication and its addition are 2 operations. Attention counts the whole square of scores
although half of it is masked, as papers do.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.errors import UnsupportedModelError
from mlxchat.model.families import ModelConfig
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.transformer import Transformer

CHUNK = 512  # ids that are fed at once, as the engine does on most machines
# Lengths that are measured; a longer one is left out when it would take more than MOST_S.
LENGTHS = (64, 256, 512, 1024)
MOST_S = 5.0
REPEATS = 2
DECODED = 12  # tokens that are decoded at each of two depths


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of reading a context of n tokens, and of one token after it.

    Attributes:
        num_tokens: n.
        projections: Operations of q, k, v and the output projection.
        attention: Operations of scores and mix: they grow with n^2.
        feed_forward: Operations of the feed-forward.
        head: Operations of the output table, for one position.
        kv_bytes: Bytes of keys and values.
    """

    num_tokens: int
    projections: int
    attention: int
    feed_forward: int
    head: int
    kv_bytes: int

    @property
    def linear(self) -> int:
        """Operations that grow with n."""
        return self.projections + self.feed_forward

    @property
    def total(self) -> int:
        """All operations."""
        return self.linear + self.attention + self.head


def compute_cost(config: ModelConfig, num_tokens: int, kv_itemsize: int) -> Cost:
    """Computes the cost of a context by closed forms.

    Args:
        config: The model's shape.
        num_tokens: n.
        kv_itemsize: Bytes of one number in the KV cache.
    """
    c, n = config, num_tokens
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    seen = [n if kind.window is None else min(n, kind.window) for kind in c.layers]
    return Cost(
        num_tokens=n,
        projections=2 * n * c.n_layers * c.d_model * (q + 2 * kv + q),
        attention=sum(4 * n * s * q for s in seen),
        feed_forward=2 * n * c.n_layers * 3 * c.d_model * c.d_mlp,
        head=2 * c.d_model * c.vocab_size,
        kv_bytes=sum(2 * s * kv for s in seen) * kv_itemsize,
    )


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does with this model.

    Attributes:
        linear_s: Seconds per operation of the parts that grow with n.
        attention_s: Seconds per operation of attention.
        decode_s: Seconds for one token at depth 0.
        decode_byte_s: Seconds more for each byte of keys and values.
        measured: What was measured, as (tokens, seconds of prefill).
    """

    linear_s: float
    attention_s: float
    decode_s: float
    decode_byte_s: float
    measured: tuple[tuple[int, float], ...] = ()

    def prefill_s(self, cost: Cost) -> float:
        """Returns the estimated seconds of a prefill."""
        return self.linear_s * (cost.linear + cost.head) + self.attention_s * cost.attention

    def decode_token_s(self, cost: Cost) -> float:
        """Returns the estimated seconds of one token after the context."""
        return self.decode_s + self.decode_byte_s * cost.kv_bytes


def fit_rates(
    costs: Sequence[Cost], prefills_s: Sequence[float], decodes: Sequence[tuple[int, float]]
) -> Rates:
    """Finds the rates that explain what was measured best.

    Args:
        costs: Of the measured prefills.
        prefills_s: Their seconds.
        decodes: Two of (KV bytes, seconds per token).
    """
    # Least squares of the relative errors of t = a * linear + b * attention.
    x = [((c.linear + c.head) / t, c.attention / t) for c, t in zip(costs, prefills_s, strict=True)]
    aa, ab, bb = (sum(p[i] * p[j] for p in x) for i, j in ((0, 0), (0, 1), (1, 1)))
    a1, b1 = (sum(p[i] for p in x) for i in (0, 1))
    determinant = aa * bb - ab * ab
    # One rate for all, where too little was measured or noise would make one of two negative.
    linear = attention = sum(p[0] + p[1] for p in x) / sum((p[0] + p[1]) ** 2 for p in x)
    if determinant > 1e-9 * aa * bb and a1 * bb >= b1 * ab and b1 * aa >= a1 * ab:
        linear, attention = (a1 * bb - b1 * ab) / determinant, (b1 * aa - a1 * ab) / determinant
    (few, early), (many, late) = decodes
    slope = max((late - early) / ((many - few) or 1), 0.0)
    measured = tuple((c.num_tokens, t) for c, t in zip(costs, prefills_s, strict=True))
    return Rates(linear, attention, max(early - slope * few, 0.0), slope, measured)


def need_native(model: LanguageModel) -> Transformer:
    """Returns the model where its shape is known.

    Raises:
        UnsupportedModelError: mlx-lm runs it.
    """
    if isinstance(model, Transformer):
        return model
    raise UnsupportedModelError(
        f"the operations of {model.info.family} are not counted, since mlx-lm runs its blocks;"
        " try a model of a native family (llama, qwen3, gemma3, ...)"
    )


def kv_itemsize(model: Transformer) -> int:
    """Returns the bytes of one number in the KV cache."""
    return int(model.weights.final_norm.dtype.size)


def measure_rates(
    model: Transformer,
    *,
    clock: Callable[[], float] = time.perf_counter,
    check: Callable[[], None] = lambda: None,
) -> Rates:
    """Measures prefill at some lengths and decode at two depths.

    Args:
        model: Runs.
        clock: Tells seconds.
        check: Called between measurements; what it raises ends them.
    """

    def tick() -> float:
        check()
        return clock()

    size = kv_itemsize(model)
    costs: list[Cost] = []
    times: list[float] = []
    for length in LENGTHS:
        if length > model.info.max_context - DECODED:
            break
        if times and times[-1] * (length / costs[-1].num_tokens) ** 1.5 > MOST_S:
            break
        costs.append(compute_cost(model.config, length, size))
        times.append(min(_time_prefill(model, length, tick) for _ in range(REPEATS)))
    depths = (8, costs[-1].num_tokens)
    decodes = [
        (compute_cost(model.config, n, size).kv_bytes, _time_decode(model, n, tick)) for n in depths
    ]
    return fit_rates(costs, times, decodes)


def _time_prefill(model: Transformer, length: int, clock: Callable[[], float]) -> float:
    cache = model.make_cache()
    cache.reserve(length)
    start = clock()
    _feed(model, length, cache)
    return clock() - start


def _feed(model: Transformer, length: int, cache: SequenceCache) -> None:
    ids = [i * 7919 % model.info.vocab_size for i in range(length)]
    for first in range(0, length, CHUNK):
        logits = model.forward(mx.array([ids[first : first + CHUNK]]), cache)
        mx.eval(logits, cache.arrays())


def _time_decode(model: Transformer, depth: int, clock: Callable[[], float]) -> float:
    cache = model.make_cache()
    cache.reserve(depth + DECODED)
    _feed(model, depth, cache)
    times = []
    token = mx.array([[1]])
    for _ in range(DECODED):
        start = clock()
        token = mx.argmax(model.forward(token, cache), axis=-1)[:, None]
        mx.eval(token)
        times.append(clock() - start)
    return sorted(times)[len(times) // 2]
