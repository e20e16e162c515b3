"""Where a template shows the answers of a conversation.

A second render with a private character in place of each answer gives the text between them; the
real text then tells where each answer stands, and what the template made of it. Knows nothing of
token ids but that they belong to a text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlxchat.chat.splice import Span
from mlxchat.chat.template import REASONING_FIELDS, ChatTemplate, Message
from mlxchat.errors import TemplateError

# First characters of private-use blocks; each sentinel is one character of the first free block.
_BLOCKS = (0x10E000, 0x10C000, 0x10A000, 0xFE000, 0xFC000, 0xF5000)
_BLOCK_CHARS = 0x2000
_MAX_LAYOUTS = 3


@dataclass(frozen=True)
class Field:
    """A text of a message that ids may stand for."""

    message: int
    name: Literal["content", "reasoning"]
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class _Layout:
    """Where fields stand in every text that begins like this one."""

    fields: tuple[Field, ...]
    spans: tuple[Span, ...]
    text: str


class FieldFinder:
    """Finds the texts that ids may stand for in what a template rendered.

    Remembers the last layout, and the messages that a template does not show as they are.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._refused: set[tuple[str, str]] = set()
        self._layout: _Layout | None = None

    def fields(self, messages: Sequence[Message]) -> list[Field]:
        """The texts that ids may stand for; a blank text leaves nothing to look for."""
        fields = []
        for index, message in enumerate(messages):
            if not (message.content_ids or message.reasoning_ids):
                continue
            if (message.content, message.reasoning or "") in self._refused:
                continue
            shown = message.content if message.inline is None else message.inline
            reasoning = "" if message.inline is not None else message.reasoning or ""
            if message.reasoning_ids and reasoning.strip():
                fields.append(Field(index, "reasoning", reasoning, message.reasoning_ids))
            if message.content_ids and shown.strip():
                fields.append(Field(index, "content", shown, message.content_ids))
        return fields

    def find(
        self,
        messages: Sequence[Message],
        fields: list[Field],
        text: str,
        add_generation_prompt: bool,
    ) -> Sequence[Span]:
        """Where in the text the fields stand.

        A second render with a sentinel for each field gives the text between them. The text
        around each field must come back the same; a message for which it does not is left out.
        """
        known = self._layout
        if known and known.fields == tuple(fields) and text.startswith(known.text):
            return known.spans
        left_out: set[int] = set()
        for _ in range(_MAX_LAYOUTS):
            chosen = [i for i, field in enumerate(fields) if field.message not in left_out]
            if not chosen:
                return ()
            try:
                spans, culprits = self._lay_out(
                    messages, fields, chosen, text, add_generation_prompt
                )
            except TemplateError:
                return ()
            if not culprits:
                if spans:
                    known_text = text[: spans[-1].end]
                    self._layout = _Layout(tuple(fields), tuple(spans), known_text)
                return spans
            for index in culprits:
                message = messages[index]
                self._refused.add((message.content, message.reasoning or ""))
            left_out |= culprits
        return ()

    def _lay_out(
        self,
        messages: Sequence[Message],
        fields: list[Field],
        chosen: list[int],
        text: str,
        add_generation_prompt: bool,
    ) -> tuple[list[Span], set[int]]:
        """One layout: the spans, and the messages whose text the template shows otherwise."""
        block = _free_block(text, messages)
        dicts = self._template.to_dicts(messages)
        shift = len(messages) - len(dicts)
        for i in chosen:
            at, sentinel = fields[i].message - shift, chr(block + i)
            names = ("content",) if fields[i].name == "content" else REASONING_FIELDS
            dicts[at] = dicts[at] | dict.fromkeys(names, sentinel)
        marked = self._template.render(dicts, add_generation_prompt=add_generation_prompt)
        pieces = re.split(f"([{chr(block)}-{chr(block + _BLOCK_CHARS - 1)}])", marked)
        owners = [ord(sentinel) - block for sentinel in pieces[1::2]]
        twice = {fields[i].message for i, count in Counter(owners).items() if count > 1}
        if twice:
            return [], twice
        return _align(text, pieces[::2], owners, fields)


def _free_block(text: str, messages: Sequence[Message]) -> int:
    """A block of private-use characters that occurs nowhere in the conversation."""
    texts = [text, *(message.content for message in messages)]
    for block in _BLOCKS:
        pattern = re.compile(f"[{chr(block)}-{chr(block + _BLOCK_CHARS - 1)}]")
        if not any(pattern.search(part) for part in texts):
            return block
    raise TemplateError("the conversation uses all private characters; remove them")


def _align(
    text: str, pieces: list[str], owners: list[int], fields: list[Field]
) -> tuple[list[Span], set[int]]:
    """Find the pieces between the fields in the real text.

    Returns:
        The spans of the fields, and the messages at which the texts part (then no span counts).
    """
    if not text.startswith(pieces[0]):
        return [], {fields[owners[0]].message} if owners else set()
    spans = []
    at = len(pieces[0])
    for number, (owner, piece) in enumerate(zip(owners, pieces[1:], strict=True)):
        is_last = number == len(owners) - 1
        for shown in _shown_forms(fields[owner].text):
            end = at + len(shown)
            if not text.startswith(shown, at) or not text.startswith(piece, end):
                continue
            if not is_last or end + len(piece) == len(text):
                spans.append(Span(at, end, owner, fields[owner].token_ids))
                at = end + len(piece)
                break
        else:
            culprits = {fields[other].message for other in owners[number : number + 2]}
            return [], culprits
    return spans, set()


def _shown_forms(text: str) -> list[str]:
    """What a template may make of a text and still show all its words."""
    forms = [text, text.strip(), text.lstrip(), text.rstrip()]
    forms += [text.strip("\n"), text.lstrip("\n"), text.rstrip("\n")]
    return list(dict.fromkeys(forms))
