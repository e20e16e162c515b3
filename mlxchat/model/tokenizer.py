"""Text to token ids and back.

Knows the tokenizer itself, its special and end-of-turn tokens and the chat template text, as
`tokenizer_files.py` reads them. It renders no template and holds no conversation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as Backend

from mlxchat.model.detokenizer import (
    ByteStream,
    PieceStream,
    StreamDecoder,
    WindowStream,
    byte_token_value,
    make_decoder_plan,
    spell_bytes,
)
from mlxchat.model.tokenizer_files import read_tokenizer_files

# Threads gain nothing for one text at a time, and the library warns of them at each command run.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Texts to put before a piece so that a tokenizer adds its prefix space there, not to the piece.
_ANCHORS = ("\n", "\t", ".")
# From this length on other threads run meanwhile: `encode` holds Python's lock, `encode_batch` not.
# 180,000 characters held up a key press for 130 ms, and now for 10.
_LONG_CHARS = 2000


class Tokenizer:
    """A model's tokenizer.

    Attributes:
        special_tokens: `bos_token`, `eos_token`, ... as strings, as chat templates read them.
        eos_ids: Every id that ends a turn.
        special_ids: Ids that `decode` leaves out.
        chat_templates: Template texts by name; the usual one is `chat_template`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        file: Path | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.special_tokens = dict(special_tokens or {})
        self.chat_templates = dict(chat_templates or {})
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        own_eos = backend.token_to_id(self.special_tokens.get("eos_token", ""))
        ids = {*eos_ids, *([] if own_eos is None else [own_eos])}
        self.eos_ids = frozenset(id_ for id_ in ids if backend.id_to_token(id_) is not None)
        decoder = backend.decoder
        self._plan = make_decoder_plan(decoder.__getstate__() if decoder else None)
        self._spellings: dict[int, str | None] = {}
        self._file = file

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            TokenizerError: A file is missing or broken; the message names it.
        """
        files = read_tokenizer_files(Path(folder))
        return cls(
            files.backend,
            special_tokens=files.special_tokens,
            eos_ids=files.eos_ids,
            chat_templates=files.chat_templates,
            file=files.file,
        )

    def encode(
        self, text: str, *, add_special_tokens: bool = False, is_continuation: bool = False
    ) -> list[int]:
        """Turn text into ids; special tokens spelled in the text become their ids.

        Args:
            text: Any text; lone surrogates count as U+FFFD.
            add_special_tokens: Also add what the tokenizer puts around a plain text.
            is_continuation: The text follows other text: no prefix space is added at its start.
        """
        if is_continuation and self._adds_prefix:
            for anchor in _ANCHORS:
                head = self._encode(anchor, False)
                token_ids = self._encode(anchor + text, False)
                if token_ids[: len(head)] == head:
                    return token_ids[len(head) :]
        return self._encode(text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            return self._encode_clean(text, add_special_tokens)
        except (UnicodeEncodeError, TypeError):
            clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._encode_clean(clean, add_special_tokens)

    def _encode_clean(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) < _LONG_CHARS:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:
            (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoding.ids
        return token_ids

    @cached_property
    def _adds_prefix(self) -> bool:
        """Whether a piece encoded alone differs from the same piece inside a text."""
        newline = self._encode("\n", False)
        return self._encode("\na", False) != newline + self._encode("a", False)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn ids into text; ids outside the vocabulary are left out."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def decode_continuation(self, token_ids: Sequence[int]) -> str | None:
        """The text that ids stand for inside a longer text, special tokens included.

        Unlike `decode` it keeps a leading space. None where the ids have no text of their own:
        their bytes melt into those of a neighbour.
        """
        before, after = self._newlines
        whole = self.decode([*before, *token_ids, *after], skip_special_tokens=False)
        head = self.decode(before, skip_special_tokens=False)
        if len(whole) > len(head) and whole.startswith(head) and whole.endswith("\n"):
            return whole[len(head) : -1]
        return None

    @cached_property
    def _newlines(self) -> tuple[list[int], list[int]]:
        return self._encode("\n", False), self.encode("\n", is_continuation=True)

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for ids that arrive one by one; see `StreamDecoder`."""
        spelling = self._visible_spelling if skip_special_tokens else self.spelling
        if self._plan.kind == "bytes":
            return ByteStream(spelling, self._plan)
        if self._plan.kind == "pieces":
            return PieceStream(spelling, self._plan)
        return WindowStream(
            spelling, lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens)
        )

    def spelling(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None if there is no such id."""
        try:
            return self._spellings[token_id]
        except KeyError:
            try:
                token = self._backend.id_to_token(token_id)
            except OverflowError:
                token = None
            self._spellings[token_id] = token
            return token

    def _visible_spelling(self, token_id: int) -> str | None:
        return None if token_id in self.special_ids else self.spelling(token_id)

    def token_text(self, token_id: int) -> str:
        """One token as a person reads it: its text with leading space, or its special name."""
        token = self.spelling(token_id)
        if token is None:
            return ""
        if token_id in self.special_ids:
            return token
        if self._plan.kind == "bytes":
            return spell_bytes(token).decode("utf-8", "replace")
        for old, new in self._plan.replacements:
            token = token.replace(old, new)
        byte = byte_token_value(token) if self._plan.has_byte_tokens else None
        return token if byte is None else bytes([byte]).decode("utf-8", "replace")

    @property
    def has_token_bytes(self) -> bool:
        """Whether `token_bytes`, joined, are a text; else its tokens change beside each other."""
        return self._plan.kind != "window"

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for in a text."""
        token = self.spelling(token_id) or ""
        if token_id not in self.special_ids:
            if self._plan.kind == "bytes":
                return spell_bytes(token)
            byte = byte_token_value(token) if self._plan.has_byte_tokens else None
            if byte is not None:
                return bytes([byte])
        return self.token_text(token_id).encode("utf-8", "replace")

    def words(self, text: str) -> list[tuple[str, ...]]:
        """The tokens of a text as the vocabulary spells them, by the words it is cut into first."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        added = self._backend.get_added_tokens_decoder()
        words: list[tuple[str, ...]] = []
        last: object = None
        for i, word in zip(encoding.ids, encoding.word_ids, strict=True):
            number = None if i in added else word
            if number is not None and number == last:
                words[-1] = (*words[-1], self.spelling(i) or "")
            else:
                words.append((self.spelling(i) or "",))
            last = number
        return words

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def describe(self) -> str:
        """Everything that decides which ids a text becomes, as JSON of the `tokenizers` library."""
        content: str = self._backend.to_str()
        return content

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling, None if the vocabulary lacks it."""
        found: int | None = self._backend.token_to_id(token)
        return found

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        size: int = self._backend.get_vocab_size(with_added_tokens=True)
        return size

    @property
    def bos_token(self) -> str | None:
        """The token that opens a text."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self.special_tokens.get("eos_token")

    @property
    def chat_template(self) -> str | None:
        """The template text used by default, None if the model ships none."""
        if len(self.chat_templates) == 1:
            return next(iter(self.chat_templates.values()))
        return self.chat_templates.get("default")

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of everything that decides which ids a text becomes."""
        # Writing a large tokenizer out takes 20 times as long as hashing its file.
        added = repr(sorted(self._backend.get_added_tokens_decoder().items()))
        content = self._file.read_bytes() if self._file else self._backend.to_str().encode()
        return hashlib.sha256(content + added.encode()).hexdigest()[:16]
