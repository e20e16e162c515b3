"""Token ids to text, one id at a time.

Knows how the decoders of the `tokenizers` library join tokens, so that the streamed text equals
the full decode to the last character. Which ids are special, and how a token is spelled, is the
tokenizer's business.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Spelling = Callable[[int], str | None]
Decode = Callable[[list[int]], str]

# Ids that the window decoder puts before the new ones: joins never reach further back than this.
_CONTEXT_IDS = 6


@dataclass(frozen=True)
class DecoderPlan:
    """How a tokenizer joins its tokens into text.

    `bytes`: every token spells bytes. `pieces`: tokens spell text, `<0xNN>` tokens spell bytes.
    `window`: anything else; decoded again over a short window.
    """

    kind: Literal["bytes", "pieces", "window"]
    replacements: tuple[tuple[str, str], ...] = ()
    has_byte_tokens: bool = False
    strip: str = ""
    num_strip: int = 0
    first_token_drops: str = ""


def make_decoder_plan(state: bytes | None) -> DecoderPlan:
    """Read the plan from a decoder of the `tokenizers` library.

    Args:
        state: The decoder's serialised form (JSON), or None for a tokenizer without decoder.

    Returns:
        The plan; `window` for every combination that is not known to be exact otherwise.
    """
    if state is None:
        return DecoderPlan("window")
    spec: dict[str, Any] = json.loads(state)
    stages: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = [stage["type"] for stage in stages]
    if kinds == ["ByteLevel"]:
        return DecoderPlan("bytes")
    if kinds == ["ByteLevel", "Strip"] and stages[1]["stop"] == 0:
        return DecoderPlan("bytes", strip=stages[1]["content"], num_strip=stages[1]["start"])
    if kinds == ["Metaspace"]:
        space = stages[0]["replacement"]
        drops = "" if stages[0].get("prepend_scheme") == "never" else space
        return DecoderPlan("pieces", ((space, " "),), first_token_drops=drops)
    return _piece_plan(stages)


def _piece_plan(stages: list[dict[str, Any]]) -> DecoderPlan:
    """The plan of [Replace..., ByteFallback?, Fuse, Strip?], the SentencePiece family's chain."""
    rest = list(stages)
    replacements = []
    while rest and rest[0]["type"] == "Replace" and "String" in rest[0]["pattern"]:
        stage = rest.pop(0)
        replacements.append((stage["pattern"]["String"], stage["content"]))
    has_byte_tokens = bool(rest) and rest[0]["type"] == "ByteFallback"
    if has_byte_tokens:
        rest.pop(0)
    if rest and rest[0]["type"] == "Fuse":
        rest.pop(0)
        if not rest:
            return DecoderPlan("pieces", tuple(replacements), has_byte_tokens)
        strip = rest[0]
        if len(rest) == 1 and strip["type"] == "Strip" and strip["stop"] == 0:
            return DecoderPlan(
                "pieces", tuple(replacements), has_byte_tokens, strip["content"], strip["start"]
            )
    return DecoderPlan("window")


@cache
def _byte_of_char() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in table.values()]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def spell_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; a token with a foreign character spells itself."""
    table = _byte_of_char()
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def byte_token_value(token: str) -> int | None:
    """The byte of a `<0xNN>` token, None for every other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


class StreamDecoder:
    """Decodes ids as they arrive; what it has returned is final.

    The texts of all `push` calls and of `finish`, joined, equal the full decode. A character
    is never split: U+FFFD comes only where the bytes are no character.
    """

    def push(self, token_id: int) -> str:
        """Take one id; return the text that has become final, often empty or one word."""
        raise NotImplementedError

    def finish(self) -> str:
        """Return what was held back; nothing may be pushed afterwards."""
        raise NotImplementedError


class _Strip:
    """Takes the plan's number of characters off the start of a stream of text."""

    def __init__(self, plan: DecoderPlan) -> None:
        self._char = plan.strip
        self._num_left = plan.num_strip

    def __call__(self, text: str) -> str:
        while self._num_left and text:
            if not text.startswith(self._char):
                self._num_left = 0
                break
            text = text.removeprefix(self._char)
            self._num_left -= 1
        return text


class ByteStream(StreamDecoder):
    """Byte-level tokens: holds back an incomplete UTF-8 character."""

    def __init__(self, spelling: Spelling, plan: DecoderPlan) -> None:
        self._spelling = spelling
        self._strip = _Strip(plan)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:  # noqa: D102
        token = self._spelling(token_id)
        return self._strip(self._decoder.decode(spell_bytes(token))) if token else ""

    def finish(self) -> str:  # noqa: D102
        return self._strip(self._decoder.decode(b"", final=True))


class PieceStream(StreamDecoder):
    """Text pieces with byte tokens: holds back a run of byte tokens until it ends.

    One wrong byte turns the whole run into U+FFFD signs, so no part of it is final before.
    """

    def __init__(self, spelling: Spelling, plan: DecoderPlan) -> None:
        self._spelling = spelling
        self._plan = plan
        self._bytes = bytearray()
        self._strip = _Strip(plan)
        self._is_first = True

    def push(self, token_id: int) -> str:  # noqa: D102
        token = self._spelling(token_id)
        if token is None:
            return ""
        if self._is_first:
            self._is_first = False
            if self._plan.first_token_drops:
                token = token.replace(self._plan.first_token_drops, "")
        for old, new in self._plan.replacements:
            token = token.replace(old, new)
        if self._plan.has_byte_tokens:
            byte = byte_token_value(token)
            if byte is not None:
                self._bytes.append(byte)
                return ""
        return self._strip(self._flush_bytes() + token)

    def finish(self) -> str:  # noqa: D102
        return self._strip(self._flush_bytes())

    def _flush_bytes(self) -> str:
        run, self._bytes = self._bytes, bytearray()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)


class WindowStream(StreamDecoder):
    """Any other decoder: decodes a short window again and returns what it adds."""

    def __init__(self, spelling: Spelling, decode: Decode) -> None:
        self._spelling = spelling
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._done = 0
        self._text: list[str] = []

    def push(self, token_id: int) -> str:  # noqa: D102
        if self._spelling(token_id) is None:
            return ""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._done])
        after = self._decode(self._ids[self._start :])
        if after.endswith("\ufffd") or not after.startswith(before):
            return ""
        self._start = max(self._done - _CONTEXT_IDS, 0)
        self._done = len(self._ids)
        self._text.append(after[len(before) :])
        return self._text[-1]

    def finish(self) -> str:  # noqa: D102
        return self._decode(self._ids)[sum(map(len, self._text)) :]
