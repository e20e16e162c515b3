"""How byte-pair encoding made a text's tokens: its merges, one after the other (Sennrich 2016)."""

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlxchat.model.detokenizer import byte_token_value
from mlxchat.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Merge:
    """Two neighbouring symbols of a word became one.

    Attributes:
        word: Number of the word, as the tokenizer cuts a text before merging.
        position: Index of the left symbol in the word at that time.
        left: As the vocabulary spells it.
        right: As the vocabulary spells it.
        rank: Of the rule; low ranks go first.
    """

    word: int
    position: int
    left: str
    right: str
    rank: int


@dataclass(frozen=True, slots=True)
class Merging:
    """The merges of a text.

    Attributes:
        kind: "BPE", "Unigram", ...: of the others there are no merges.
        words: For each word the symbols that it began with.
        merges: In the order in which they were made.
        pieces: For each word the symbols that came out.
    """

    kind: str
    words: tuple[tuple[str, ...], ...]
    merges: tuple[Merge, ...]
    pieces: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=2)
def _read_model(
    tokenizer: Tokenizer,
) -> tuple[dict[str, Any], dict[tuple[str, str], int], frozenset[str]]:
    """Returns the model, the ranks of its merges, and the tokens that were added to it."""
    whole = json.loads(tokenizer.describe())
    model = whole["model"]
    added = frozenset(token["content"] for token in whole.get("added_tokens") or ())
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or ()]
    return model, {(left, right): rank for rank, (left, right) in enumerate(pairs)}, added


def replay_merges(tokenizer: Tokenizer, text: str) -> Merging:
    """Makes a text's tokens again, merge by merge."""
    model, ranks, added = _read_model(tokenizer)
    kind = str(model.get("type"))
    if kind != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return Merging(kind, (), (), ())
    words: list[tuple[str, ...]] = []
    merges: list[Merge] = []
    pieces: list[tuple[str, ...]] = []
    for tokens in tokenizer.words(text):
        is_added = len(tokens) == 1 and tokens[0] in added
        if is_added or (len(tokens) == 1 and model.get("ignore_merges")):
            begun, found = tokens, []  # found whole, without merging
        else:
            begun = _symbols(model["vocab"], tokens)
            found = _replay(list(begun), ranks, len(words))
        words.append(tuple(begun))
        merges += found
        pieces.append(tuple(_apply(list(begun), found)))
    return Merging(kind, tuple(words), tuple(merges), tuple(pieces))


def _symbols(vocab: dict[str, int], tokens: tuple[str, ...]) -> tuple[str, ...]:
    """Returns what a word is before merging: its characters, and what stands for unknown ones."""
    symbols: list[str] = []
    for token in tokens:
        is_whole = byte_token_value(token) is not None or not all(c in vocab for c in token)
        symbols += [token] if is_whole else token
    return tuple(symbols)


def _replay(symbols: list[str], ranks: dict[tuple[str, str], int], word: int) -> list[Merge]:
    found = []
    while len(symbols) > 1:
        pairs = list(itertools.pairwise(symbols))
        position = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if (rank := ranks.get(pairs[position])) is None:
            break
        found.append(Merge(word, position, *pairs[position], rank))
        symbols[position : position + 2] = ["".join(pairs[position])]
    return found


def _apply(symbols: list[str], merges: list[Merge]) -> list[str]:
    for merge in merges:
        symbols[merge.position : merge.position + 2] = [merge.left + merge.right]
    return symbols
