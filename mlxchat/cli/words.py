"""Where a word that a person names stands among the tokens of a text."""

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.model.tokenizer import Tokenizer


def find_word(tokenizer: "Tokenizer", token_ids: Sequence[int], word: str) -> tuple[int, ...]:
    """Returns the positions of the tokens that spell a word, at its last occurrence.

    Args:
        tokenizer: Of the ids.
        token_ids: The text.
        word: A word, or any piece of the text; as a whole word where it stands as one.

    Raises:
        UsageError: It is not there.
    """
    # In bytes, since a character may be spread over several tokens.
    pieces = [tokenizer.token_bytes(i) for i in token_ids]
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    wanted = word.strip() or word
    found = list(re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", text))
    found = found or list(re.finditer(re.escape(wanted), text))
    if not wanted or not found:
        raise UsageError(f"the text has no {word!r}; name a word that stands in it")
    start, end = (len(text[:at].encode("utf-8", "surrogateescape")) for at in found[-1].span())
    ends = list(itertools.accumulate(map(len, pieces)))
    return tuple(n for n, at in enumerate(ends) if at > start and at - len(pieces[n]) < end)


def find_token(tokenizer: "Tokenizer", word: str) -> tuple[int, str]:
    """Returns the token that stands for a word, and a note where it is only a part of it.

    The word as it stands inside a text goes before the word at a text's beginning.

    Raises:
        UsageError: It has no tokens.
    """
    if (known := tokenizer.token_id(word)) is not None:
        return known, ""
    forms = [tokenizer.encode(form, is_continuation=True) for form in (f" {word}", word)]
    forms.append(tokenizer.encode(word))
    forms = [ids for ids in forms if ids]
    if not forms:
        raise UsageError(f"{word!r} has no tokens; give a word")
    best = min(forms, key=len)
    if len(best) == 1:
        return best[0], ""
    # Alone among these a blank would stand for the word.
    text = tokenizer.token_text(best[-1])
    return best[-1], f"{word!r} is {len(best)} tokens; its last one, {text!r}, stands for it"


def spellings_of(tokenizer: "Tokenizer", token_ids: Sequence[int]) -> set[int]:
    """Returns all tokens that spell the same words but for case and blanks."""
    wanted = {_bare(tokenizer.token_text(i)) for i in token_ids} - {""}
    texts = ((i, _bare(tokenizer.token_text(i))) for i in range(tokenizer.vocab_size))
    return {*token_ids, *(i for i, text in texts if text in wanted)}


def _bare(text: str) -> str:
    return text.strip().casefold()
