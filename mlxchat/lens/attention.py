"""Attention maps: who looks at whom, in every layer and head."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.lens.trace import to_lists, trace
from mlxchat.model.bert import BertEncoder
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Taps

Grid = list[list[float]]


@dataclass(frozen=True, slots=True)
class Pair:
    """One token looking at another."""

    layer: int
    head: int
    query: int
    key: int
    weight: float


@dataclass(frozen=True, slots=True)
class AttentionView:
    """All attention maps of a text.

    Attributes:
        token_ids: What was read, T ids.
        maps: By layer and head, rows of T weights that sum to 1: row q is what token q looks at.
        is_causal: No token looks at later ones.
    """

    token_ids: tuple[int, ...]
    maps: list[list[Grid]]
    is_causal: bool = True

    def sinks(self) -> Grid:
        """Returns, by layer and head, how much of the attention goes to the first token.

        The first row is left out where it can look at nothing else.
        """
        first = 1 if self.is_causal else 0
        return [[_mean(row[0] for row in grid[first:]) for grid in heads] for heads in self.maps]

    def mean(self, layer: int | None = None) -> Grid:
        """Returns the mean map over the heads of a layer, or over all layers."""
        grids = [g for n, heads in enumerate(self.maps) if layer in (None, n) for g in heads]
        return [[_mean(cells) for cells in zip(*rows, strict=True)] for rows in zip(*grids)]  # noqa: B905

    def strongest(self, count: int) -> list[Pair]:
        """Returns the strongest looks at other tokens, those at the first token (sinks) left out.

        Of each pair of tokens only the head that is surest is told.
        """
        best: dict[tuple[int, int], Pair] = {}
        for pair in self._pairs():
            old = best.get((pair.query, pair.key))
            if old is None or pair.weight > old.weight:
                best[pair.query, pair.key] = pair
        return sorted(best.values(), key=lambda p: -p.weight)[:count]

    def _pairs(self) -> list[Pair]:
        return [
            Pair(layer, head, query, key, weight)
            for layer, heads in enumerate(self.maps)
            for head, grid in enumerate(heads)
            for query, row in enumerate(grid)
            for key, weight in enumerate(row)
            if key not in (0, query) and weight > 0.05
        ]

    def looks_at(self, keys: Collection[int]) -> Grid:
        """Returns, by layer and query, how much the head that cares most looks at some tokens."""
        size = len(self.token_ids)
        return [
            [max(sum(grid[q][k] for k in keys) for grid in heads) for q in range(size)]
            for heads in self.maps
        ]

    def looks_from(self, query: int) -> Grid:
        """Returns, by layer, what a token looks at, as the mean over the heads."""
        return [
            [_mean(cells) for cells in zip(*(grid[query] for grid in heads), strict=True)]
            for heads in self.maps
        ]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(sum(numbers) / len(numbers)) if numbers else 0.0


def read_attention(model: LanguageModel, token_ids: Sequence[int]) -> AttentionView:
    """Reads the attention maps of a text.

    Raises:
        UnsupportedModelError: mlx-lm runs the model's blocks.
    """
    seen = trace(model, token_ids, ["pattern"], logits=False)
    maps = [to_lists(seen["pattern", layer]) for layer in range(model.info.n_layers)]
    return AttentionView(seen.token_ids, maps)


def read_encoder_attention(model: BertEncoder, token_ids: Sequence[int]) -> AttentionView:
    """Reads the attention maps of a text in an encoder, whose tokens look both ways."""
    ids = mx.array([list(token_ids)])
    is_token = mx.ones(ids.shape, mx.bool_)
    x, maps = model.embed(ids), []
    for layer in range(model.config.n_layers):
        maps.append(to_lists(model.pattern(layer, x, is_token)[0]))
        x = model.block(layer, x, is_token)
    return AttentionView(tuple(token_ids), maps, is_causal=False)


def read_last_attention(
    model: LanguageModel, token_ids: Sequence[int], edits: Taps | None = None
) -> mx.array:
    """Returns what the last token looks at, by layer and head: (L, H, T).

    The ids before it are read without taps, so that a long text takes no room for maps.

    Raises:
        UnsupportedModelError: mlx-lm runs the model's blocks.
    """
    count = len(token_ids)
    seen = trace(model, token_ids, ["pattern"], start=count - 1, edits=edits, logits=False)
    rows = [seen["pattern", layer][:, 0] for layer in range(model.info.n_layers)]
    # A sliding window shows its own rows only.
    return mx.stack([mx.pad(row, [(0, 0), (count - row.shape[1], 0)]) for row in rows])
