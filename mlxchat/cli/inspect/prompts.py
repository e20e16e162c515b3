"""Prompts that a person hands in: a text, a line of a file, or a list of messages."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxchat.cli.files import find_files
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.cli.inspect.looking import Subject

_MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, or messages as (role, content)."""

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    @property
    def shown(self) -> str:
        """The prompt on one line, for people."""
        return " | ".join(f"{role}: {text}" for role, text in self.messages) or self.text

    def encode(self, subject: "Subject", *, raw: bool) -> list[int]:
        """Returns its ids: a text as a message to the model, or as it is.

        Args:
            subject: Has the tokenizer and the template; without a template a text is taken raw.
            raw: Take a text as it is.
        """
        from mlxchat.chat.template import Message

        if self.messages:
            messages = [Message(role, text) for role, text in self.messages]  # type: ignore[arg-type]
            return list(subject.renderer.render_ids(messages).token_ids)
        is_chat = not raw and subject.tokenizer.chat_template is not None
        return subject.encode(self.text, is_chat=is_chat)


def read_prompts(file: str) -> list[Prompt]:
    """Reads the prompts of a file, one a line; those of a .jsonl file are texts or messages.

    Raises:
        UsageError: It has none, or a line that is neither.
        AttachError: It cannot be read.
    """
    lines = find_files(file, _MAX_BYTES).files[0].text.split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"{file} has no prompts; write one on each line")
    if not file.endswith(".jsonl"):
        return [Prompt(line.strip()) for _, line in numbered]
    return [_read_line(file, number, line) for number, line in numbered]


def _read_line(file: str, number: int, line: str) -> Prompt:
    try:
        value = json.loads(line)
        if isinstance(value, str) and value:
            return Prompt(value)
        if value and {m["role"] for m in value} <= {"system", "user", "assistant"}:
            return Prompt(messages=tuple((m["role"], str(m["content"])) for m in value))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UsageError(
        f'line {number} of {file} is no prompt; write "text" or'
        ' [{"role": "user", "content": "text"}]'
    )
