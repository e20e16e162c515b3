"""Thinking apart from the answer, while it streams.

Splits a stream of ids at the markers around thinking (`reasoning_markers.py`), by special ids and
by text. What the template does with thinking is `chat/template.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from mlxchat.chat.reasoning_markers import Markers, opened_by
from mlxchat.model.tokenizer import Tokenizer

Kind = Literal["reasoning", "answer"]


@dataclass(frozen=True)
class Delta:
    """A piece of text that has become final."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Split:
    """A generated answer in its two parts.

    Attributes:
        text: The answer; the texts of all `answer` deltas.
        reasoning: The thinking, None if there was none.
        content_ids: The ids behind `text`, with the white space that belongs to the markers.
        reasoning_ids: The ids behind `reasoning`, likewise.
        opened: The opener that stood in the prompt, None if it did not.
        token_ids: All generated ids, markers included, without the stop token.
    """

    text: str
    reasoning: str | None
    content_ids: tuple[int, ...]
    reasoning_ids: tuple[int, ...]
    opened: str | None
    token_ids: tuple[int, ...]


class _State(Enum):
    START = auto()
    THOUGHT_HEAD = auto()
    THOUGHT = auto()
    ANSWER_HEAD = auto()
    ANSWER = auto()


@dataclass
class _Piece:
    """Some text and the id it came from (None where a marker cut the id's text in two)."""

    token_id: int | None
    raw: str
    visible: str


@dataclass
class _Part:
    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


class ReasoningSplitter:
    """Takes ids one by one and says which text is thinking and which is answer.

    Nothing that may still become a marker is given out. An answer without thinking costs one
    comparison per token.

    Args:
        tokenizer: Decodes the ids.
        markers: What to look for.
        prompt_text: The rendered prompt: thinking may be open at its end.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Markers, prompt_text: str = "") -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self._opened = opened_by(markers, prompt_text)
        self._state = _State.START if self._opened is None else _State.THOUGHT_HEAD
        space = (self._opened or markers.opener)[len(markers.opener) :]
        self._head_space = markers.after_opener.removeprefix(space)
        self._stream = tokenizer.stream()
        self._held: list[_Piece] = []
        self._parts = {"reasoning": _Part(), "answer": _Part()}
        self._token_ids: list[int] = []
        self._has_reasoning = self._opened is not None

    @property
    def is_thinking(self) -> bool:
        """Whether the next text belongs to the thinking, as far as is known."""
        return self._state in (_State.THOUGHT_HEAD, _State.THOUGHT)

    @property
    def has_begun_answer(self) -> bool:
        """Whether all that follows is the answer."""
        return self._state is _State.ANSWER

    @property
    def held_text(self) -> str:
        """What has come but is not final: it may still become a marker or belong to one."""
        return "".join(piece.raw for piece in self._held)

    def open_closers(self) -> tuple[str, ...]:
        """What is missing of the closers that the end of the thinking may be the beginning of."""
        held, closers = self.held_text, self._markers.closers
        parts = ((closer, _num_partial(held, closer)) for closer in closers)
        return tuple(closer[num:] for closer, num in parts if num)

    def closing_text(self) -> str:
        """What would end the thinking here: the first closer, with the white space around it."""
        markers = self._markers
        texts = self._parts["reasoning"].texts
        said = (texts[-1] if texts else "") + self.held_text
        space = markers.before_closer
        there = next((n for n in range(len(space), 0, -1) if said.endswith(space[:n])), 0)
        return space[there:] + markers.closers[0] + markers.after_closer

    @property
    def num_reasoning_tokens(self) -> int:
        """Ids that are known to belong to the thinking, markers left out."""
        return len(self._parts["reasoning"].ids)

    def push(self, token_id: int) -> list[Delta]:
        """Take one generated id (not the stop token); return the text that has become final."""
        self._token_ids.append(token_id)
        visible = self._stream.push(token_id)
        if self._state is _State.ANSWER:
            self._parts["answer"].ids.append(token_id)
            return self._give_text("answer", visible)
        raw = visible
        if token_id in self._tokenizer.special_ids:
            raw = self._tokenizer.token_text(token_id)
        self._held.append(_Piece(token_id, raw, visible))
        return self._advance(is_last=False)

    def finish(self) -> tuple[list[Delta], Split]:
        """End the stream.

        Returns:
            The deltas for what was held back, and the whole answer in its parts.
        """
        deltas = self._advance(is_last=True)
        kind: Kind = "reasoning" if self.is_thinking else "answer"
        deltas += self._give_text(kind, self._stream.finish())
        reasoning, answer = self._parts["reasoning"], self._parts["answer"]
        split = Split(
            text="".join(answer.texts),
            reasoning="".join(reasoning.texts) if self._has_reasoning else None,
            content_ids=tuple(answer.ids),
            reasoning_ids=tuple(reasoning.ids),
            opened=self._opened,
            token_ids=tuple(self._token_ids),
        )
        return deltas, split

    def _advance(self, *, is_last: bool) -> list[Delta]:
        """Move on through the states as far as the held text allows."""
        steps: dict[_State, Callable[[str, bool], list[Delta] | None]] = {
            _State.START: self._start,
            _State.THOUGHT_HEAD: self._thought_head,
            _State.THOUGHT: self._thought,
            _State.ANSWER_HEAD: self._answer_head,
        }
        deltas: list[Delta] = []
        while self._state in steps:
            new = steps[self._state](self.held_text, is_last)
            if new is None:
                break
            deltas += new
        return deltas

    # Each step gets the held text. It returns None to wait for more, else what it gives out.

    def _start(self, buffer: str, is_last: bool) -> list[Delta] | None:
        text = buffer.lstrip()
        openers = (self._markers.opener, *self._markers.answer_openers)
        for opener in openers:
            if text.startswith(opener):
                self._take(len(buffer) - len(text) + len(opener))
                self._restart_stream()
                self._has_reasoning = opener == self._markers.opener
                self._state = _State.THOUGHT_HEAD if self._has_reasoning else _State.ANSWER_HEAD
                return []
        if not is_last and any(opener.startswith(text) for opener in openers):
            return None
        self._state = _State.ANSWER
        return self._give("answer", self._take_all())

    def _thought_head(self, buffer: str, is_last: bool) -> list[Delta] | None:
        space = self._head_space
        if not is_last and len(buffer) < len(space) and space.startswith(buffer):
            return None
        self._hide(_common_length(buffer, space))
        self._state = _State.THOUGHT
        return []

    def _thought(self, buffer: str, is_last: bool) -> list[Delta] | None:
        ends = (*self._markers.closers, *self._markers.joints)
        hits = [(at, end) for end in ends if (at := buffer.find(end)) >= 0]
        if hits:
            at, end = min(hits)
            is_closer = end in self._markers.closers
            pieces = self._take(at)
            self._take(len(end))
            deltas = self._give("reasoning", pieces, self._markers.before_closer)
            if is_closer:
                deltas += self._give_text("reasoning", self._stream.finish())
                self._restart_stream()
                self._state = _State.ANSWER_HEAD
            return deltas
        if is_last:
            return self._give("reasoning", self._take_all()) or None
        num_sure = len(buffer) - max(_num_partial(buffer, end) for end in ends)
        num_sure = len(buffer[:num_sure].rstrip())
        return self._give("reasoning", self._take_whole(num_sure)) or None

    def _answer_head(self, buffer: str, is_last: bool) -> list[Delta] | None:
        text = buffer.lstrip()
        for opener in self._markers.answer_openers:
            if text.startswith(opener):
                self._take(len(buffer) - len(text) + len(opener))
                return []
        space = self._markers.after_closer
        waits_for_opener = any(o.startswith(text) for o in self._markers.answer_openers)
        waits_for_space = len(buffer) < len(space) and space.startswith(buffer)
        if not is_last and (waits_for_opener or waits_for_space):
            return None
        self._hide(_common_length(buffer, space))
        self._state = _State.ANSWER
        return self._give("answer", self._take_all())

    def _take(self, num_chars: int) -> list[_Piece]:
        """Remove that many characters from the held text, cutting a piece in two if need be."""
        taken = self._take_whole(num_chars)
        rest = num_chars - sum(len(piece.raw) for piece in taken)
        if rest and self._held:
            first = self._held[0]
            is_plain = first.raw == first.visible
            head, tail = first.raw[:rest], first.raw[rest:]
            taken.append(_Piece(None, head, head if is_plain else ""))
            self._held[0] = _Piece(None, tail, tail if is_plain else "")
        return taken

    def _take_whole(self, num_chars: int) -> list[_Piece]:
        """Remove the pieces that lie within that many characters."""
        end = 0
        while end < len(self._held) and len(self._held[end].raw) <= num_chars:
            num_chars -= len(self._held[end].raw)
            end += 1
        taken, self._held = self._held[:end], self._held[end:]
        return taken

    def _take_all(self) -> list[_Piece]:
        taken, self._held = self._held, []
        return taken

    def _hide(self, num_chars: int) -> None:
        """Let white space at the start vanish from the text; its ids stay with the part."""
        for piece in self._held:
            num = min(num_chars, len(piece.raw))
            piece.raw, piece.visible = piece.raw[num:], piece.visible[num:]
            num_chars -= num

    def _restart_stream(self) -> None:
        """Begin a part: what is held decodes as if it stood alone."""
        self._stream = self._tokenizer.stream()
        for piece in self._held:
            if piece.token_id is not None:
                piece.visible = self._stream.push(piece.token_id)
                if piece.token_id not in self._tokenizer.special_ids:
                    piece.raw = piece.visible

    def _give(self, kind: Kind, pieces: list[_Piece], space: str = "") -> list[Delta]:
        """Give pieces out; white space at their end that belongs to a marker is left out."""
        part = self._parts[kind]
        part.ids += [piece.token_id for piece in pieces if piece.token_id is not None]
        text = "".join(piece.visible for piece in pieces)
        return self._give_text(kind, text[: len(text) - _common_length(text[::-1], space[::-1])])

    def _give_text(self, kind: Kind, text: str) -> list[Delta]:
        if not text:
            return []
        self._parts[kind].texts.append(text)
        return [Delta(kind, text)]


def _common_length(text: str, other: str) -> int:
    """How many characters two texts share at their start."""
    for index, (char, expected) in enumerate(zip(text, other, strict=False)):
        if char != expected:
            return index
    return min(len(text), len(other))


def _num_partial(text: str, marker: str) -> int:
    """How many characters at the end of a text may be the beginning of a marker."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0
