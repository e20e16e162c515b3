"""One word in several texts: how its vector moves apart, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import mlx.core as mx

from mlxchat.errors import UsageError
from mlxchat.lens.trace import to_lists, trace
from mlxchat.model.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class ContextView:
    """The likeness of a word's vectors.

    Attributes:
        pairs: Which texts are compared, as indexes.
        layers: Cosines by layer and pair; layer 0 is the embedding, layer n follows n blocks.
    """

    pairs: tuple[tuple[int, int], ...]
    layers: tuple[tuple[float, ...], ...]


def compare_contexts(
    model: LanguageModel, texts: Sequence[Sequence[int]], positions: Sequence[int]
) -> ContextView:
    """Compares the vectors of one token in several texts.

    Args:
        model: Native or zoo.
        texts: The ids of each text.
        positions: Where the token stands in each.

    Raises:
        UsageError: The tokens there are not the same.
    """
    if len({ids[p] for ids, p in zip(texts, positions, strict=True)}) > 1:
        raise UsageError(
            "the word is not the same token in all texts; write it the same way everywhere,"
            " such as in the middle of a sentence and in small letters"
        )
    rows = [_rows(model, ids, p) for ids, p in zip(texts, positions, strict=True)]
    pairs = tuple(combinations(range(len(texts)), 2))
    layers = tuple(
        tuple(_cosine(rows[a][layer], rows[b][layer]) for a, b in pairs)
        for layer in range(model.info.n_layers + 1)
    )
    return ContextView(pairs, layers)


def _rows(model: LanguageModel, token_ids: Sequence[int], position: int) -> list[list[float]]:
    """Returns the token's vector before the first block and after each."""
    where = slice(position, position + 1)
    seen = trace(model, token_ids, ["resid_pre", "resid_post"], positions=where, logits=False)
    arrays = [seen["resid_pre", 0], *(seen["resid_post", n] for n in range(model.info.n_layers))]
    return [to_lists(array[0].astype(mx.float32)) for array in arrays]


def _cosine(a: list[float], b: list[float]) -> float:
    """Returns the cosine in double precision: equal rows give 1 to the last digits."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return dot / (lengths or 1.0)
