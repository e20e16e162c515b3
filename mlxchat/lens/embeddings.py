"""The embedding table as a space: neighbours of a row, and analogies between rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlxchat.lens.logit_lens import top_ids
from mlxchat.lens.trace import to_lists

Metric = Literal["cosine", "dot"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a table with their unit rows.

    Attributes:
        rows: (V, D) in float32.
        units: The same at length 1; rows of zeros stay.
        num_tokens: Rows behind the tokenizer's last id are padding and are never an answer.
    """

    rows: mx.array
    units: mx.array
    num_tokens: int


def make_table(rows: mx.array, num_tokens: int) -> Table:
    """Prepares a table for searching."""
    lengths = mx.linalg.norm(rows, axis=-1, keepdims=True)
    return Table(rows, rows / mx.maximum(lengths, 1e-12), num_tokens)


def find_neighbours(
    table: Table,
    token_id: int,
    *,
    count: int = 10,
    metric: Metric = "cosine",
    excluded: Collection[int] = (),
) -> list[tuple[int, float]]:
    """Returns the rows nearest to a token's row as (id, score), the nearest first."""
    rows = table.units if metric == "cosine" else table.rows
    return _nearest(table, rows @ rows[token_id], {token_id, *excluded}, count)


def find_analogy(
    table: Table,
    a: int,
    b: int,
    c: int,
    *,
    count: int = 10,
    excluded: Collection[int] = (),
) -> list[tuple[int, float]]:
    """Returns the rows nearest to A - B + C as (id, cosine); A, B and C themselves do not count.

    All rows are taken at length 1, so that frequent words do not outweigh rare ones.
    """
    u = table.units
    wanted = u[a] - u[b] + u[c]
    wanted = wanted / mx.maximum(mx.linalg.norm(wanted), 1e-12)
    return _nearest(table, u @ wanted, {a, b, c, *excluded}, count)


def _nearest(
    table: Table, scores: mx.array, excluded: Collection[int], count: int
) -> list[tuple[int, float]]:
    allowed = mx.arange(scores.size) < table.num_tokens
    count = min(count, table.num_tokens - len(excluded))
    if excluded:
        allowed = allowed & (mx.arange(scores.size)[:, None] != mx.array(list(excluded))).all(1)
    ids = top_ids(mx.where(allowed, scores, -mx.inf)[None], max(count, 1))[0]
    return list(zip(to_lists(ids), to_lists(scores[ids]), strict=True))


def count_solved(table: Table, quadruples: Sequence[tuple[int, int, int, int]]) -> float:
    """Returns the share of analogies A - B + C = D in which D is the nearest row."""
    right = sum(find_analogy(table, a, b, c, count=1)[0][0] == d for a, b, c, d in quadruples)
    return right / len(quadruples)
