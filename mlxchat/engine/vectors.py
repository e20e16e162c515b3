"""Hidden states to vectors: pooling, length 1, shorter vectors, likeness.

Token ids in, arrays out; runs on the worker thread. Padding is masked out of every pooling. What
the ids spell and which files they came from belongs to `chat/embedding.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import mlx.core as mx

from mlxchat.model.embedder import Embedder
from mlxchat.model.embedding_files import Pooling

Metric = Literal["cosine", "l2", "dot"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Vectors = mx.array  # (N, D): what the floors above pass around without looking inside

# Texts and tokens that are read at once: more is no faster on the CPU, and takes memory.
MAX_BATCH = 64
MAX_BATCH_TOKENS = 4096
# Lengths are rounded up to this, so that few shapes are compiled.
_LENGTH_STEP = 8
# Below this a length counts as none: dividing by it would make noise a direction.
_TINY = 1e-12
_NEIGHBOURS = 5


def embed_ids(
    embedder: Embedder,
    token_ids: Sequence[Sequence[int]],
    *,
    pooling: Pooling,
    layer: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Vectors:
    """Returns one vector per sequence, in order.

    Args:
        embedder: The model.
        token_ids: Sequences of at least one id; none longer than the model reads.
        pooling: How tokens become one vector.
        layer: After how many blocks; None for the model's end.
        on_progress: Called with (done, total) ids after each batch.
        check: Called before each batch; what it raises ends the work.
    """
    order = sorted(range(len(token_ids)), key=lambda i: len(token_ids[i]))
    rows: list[mx.array | None] = [None] * len(order)
    total, num_read = sum(len(ids) for ids in token_ids), 0
    while order:
        check()
        batch = _next_batch(token_ids, order)
        pooled = _embed_batch(embedder, [token_ids[i] for i in batch], pooling, layer)
        mx.eval(pooled)
        for i, row in zip(batch, pooled, strict=True):
            rows[i] = row
        num_read += sum(len(token_ids[i]) for i in batch)
        on_progress(num_read, total)
        order = order[len(batch) :]
    return mx.stack([row for row in rows if row is not None])


def _next_batch(token_ids: Sequence[Sequence[int]], order: list[int]) -> list[int]:
    """Returns the first indices whose padded batch is small enough; `order` is by length."""
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * _round_up(len(token_ids[i])) > MAX_BATCH_TOKENS:
            break
        batch.append(i)
        if len(batch) == MAX_BATCH:
            break
    return batch


def _round_up(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _embed_batch(
    embedder: Embedder, batch: list[Sequence[int]], pooling: Pooling, layer: int | None
) -> mx.array:
    longest = max(len(ids) for ids in batch)
    length = min(_round_up(longest), max(embedder.max_tokens, longest))
    padded = mx.array([[*ids, *[0] * (length - len(ids))] for ids in batch])
    lengths = mx.array([len(ids) for ids in batch])
    is_token = mx.arange(length)[None] < lengths[:, None]  # (B, T)
    hidden = embedder.model.hidden(padded, is_token, layer)
    return pool(hidden.astype(mx.float32), is_token, pooling)


def pool(hidden: mx.array, is_token: mx.array, pooling: Pooling) -> mx.array:
    """Makes one vector of each sequence's hidden states.

    Args:
        hidden: (B, T, D), padded on the right.
        is_token: (B, T), False for padding; each row has at least one token.
        pooling: `mean` of the tokens, the `last`, the `first`, the `max` of each dimension, or
            `mean+max`, one after the other.

    Returns:
        (B, D), or (B, 2 D) for `mean+max`.
    """
    if pooling == "mean+max":
        parts = [pool(hidden, is_token, "mean"), pool(hidden, is_token, "max")]
        return mx.concatenate(parts, axis=-1)
    if pooling == "first":
        return hidden[:, 0]
    lengths = is_token.sum(axis=1)  # (B,)
    if pooling == "last":
        return mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    counts = is_token[:, :, None]
    if pooling == "max":
        return mx.where(counts, hidden, -mx.inf).max(axis=1)
    return mx.where(counts, hidden, 0).sum(axis=1) / lengths[:, None]


def normalize(vectors: Vectors) -> Vectors:
    """Brings each row of (N, D) to length 1; a row of zeros stays."""
    return vectors / mx.maximum(mx.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)


def similarity(queries: Vectors, vectors: Vectors, metric: Metric) -> mx.array:
    """Compares each row of (M, D) with each of (N, D): cosine, L2 distance or dot product, (M, N).

    Of `l2` the smaller is the nearer, of the others the larger.
    """
    if metric == "cosine":
        return normalize(queries) @ normalize(vectors).T
    if metric == "dot":
        return queries @ vectors.T
    # Row by row: the short formula by squares loses half of the digits of near vectors.
    return mx.stack([mx.linalg.norm(vectors - query, axis=-1) for query in queries])


def rank(query: Vectors, vectors: Vectors, metric: Metric) -> tuple[list[int], list[float]]:
    """Returns the indices of (N, D) from the nearest to the row (D,) on, and their scores."""
    scores = similarity(query[None], vectors, metric)[0]
    order = mx.argsort(scores if metric == "l2" else -scores)
    return cast(list[int], order.tolist()), cast(list[float], scores[order].tolist())


@dataclass(frozen=True, slots=True)
class TruncationLoss:
    """What retrieval loses when vectors are cut, measured on the texts themselves.

    Attributes:
        num_texts: Each was taken as a query over the others.
        k: Nearest neighbours that were compared.
        nearest_kept: Share of texts whose nearest neighbour stays the nearest.
        neighbours_kept: Share of the k nearest that stay among the k nearest.
    """

    num_texts: int
    k: int
    nearest_kept: float
    neighbours_kept: float


def measure_truncation(vectors: Vectors, n_dims: int) -> TruncationLoss | None:
    """Measures how many nearest neighbours (cosine) stay when only the first dimensions are kept.

    Args:
        vectors: (N, D), whole.
        n_dims: How many dimensions are kept.

    Returns:
        None for fewer than three vectors: there is no order to lose.
    """
    num = vectors.shape[0]
    if num < 3:
        return None
    k = min(_NEIGHBOURS, num - 2)
    whole, short = _neighbours(vectors, k), _neighbours(vectors[:, :n_dims], k)
    nearest = sum(a[0] == b[0] for a, b in zip(whole, short, strict=True)) / num
    kept = sum(len(set(a) & set(b)) for a, b in zip(whole, short, strict=True)) / (k * num)
    return TruncationLoss(num, k, nearest, kept)


def _neighbours(vectors: Vectors, k: int) -> list[list[int]]:
    unit = normalize(vectors)
    found: list[list[int]] = []
    for start in range(0, unit.shape[0], 256):
        scores = unit[start : start + 256] @ unit.T
        itself = mx.arange(start, start + scores.shape[0])[:, None] == mx.arange(unit.shape[0])
        nearest = mx.argsort(mx.where(itself, mx.inf, -scores), axis=-1)[:, :k]
        found += cast(list[list[int]], nearest.tolist())
    return found


def to_lists(vectors: mx.array) -> list[list[float]]:
    """Returns an array of rows as Python numbers."""
    return cast(list[list[float]], vectors.tolist())


def save_npy(file: str, vectors: Vectors) -> None:
    """Writes (N, D) as a NumPy file."""
    mx.save(file, vectors)
