"""Conversations written down as JSON by other programs, and by our own export.

Knows the forms in which chat APIs and training files list messages. What is made of them is
`history_import.py`'s business.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mlxchat.errors import HistoryError

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_ROLES |= {"model": "assistant", "system": "system", "developer": "system"}
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True)
class Said:
    """A message to import; `parent` is the place of an earlier one in the list."""

    role: str
    content: str
    reasoning: str | None = None
    parent: int | None = None
    is_dropped: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """A conversation to import.

    Attributes:
        source: Names it for ever, so that it is imported only once.
        head: The place of the last message in the list.
    """

    source: str
    title: str | None
    model: str | None
    system: str | None
    messages: tuple[Said, ...]
    head: int | None
    created_at: float


def read_json(path: Path) -> Iterator[Imported]:
    """Yields the conversations of a file.

    Raises:
        HistoryError: It is no JSON, or holds no messages.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise HistoryError(f"{path} is neither JSON nor a logs.db; give one of these") from None
    values = _values(text, path)
    if not values:
        raise HistoryError(f"there is no conversation in {path}; nothing was imported")
    for number, value in enumerate(values, start=1):
        yield _conversation(value, f"{path}, conversation {number}")


def _values(text: str, path: Path) -> list[Any]:
    """Returns the conversations of a file: one value, a list of them, or one per line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError) as error:
            reason = str(error)[:100]
            raise HistoryError(f"{path} is no JSON ({reason}); repair or convert it") from None
    if isinstance(value, list) and not _is_message_list(value):
        return value
    return [value]


def _is_message_list(value: list[Any]) -> bool:
    return bool(value) and all(
        isinstance(item, Mapping) and ("role" in item or "from" in item) for item in value
    )


def _conversation(value: Any, place: str) -> Imported:
    fields: Mapping[str, Any] = value if isinstance(value, Mapping) else {"messages": value}
    messages = fields.get("messages", fields.get("conversations"))
    if not isinstance(messages, list) or not _is_message_list(messages):
        raise HistoryError(
            f"{place}: there is no list of messages; give objects with 'role' and 'content'"
        )
    system, said, head = read_messages(messages, fields.get("head"), place)
    digest = hashlib.sha256(json.dumps([system, [repr(m) for m in said]]).encode()).hexdigest()
    return Imported(
        f"json:{digest}",
        _text_or_none(fields.get("title")),
        _text_or_none(fields.get("model")),
        system,
        tuple(said),
        head,
        read_time(fields.get("created_at")),
    )


def read_messages(
    messages: list[Any], head_id: object, place: str
) -> tuple[str | None, list[Said], int | None]:
    """Returns the system prompt, the messages with their places in the tree, and the head.

    Args:
        messages: Objects with a role and content; those of tools are left out.
        head_id: The `id` of the last message, where they have any.
        place: Names them in an error.

    Raises:
        HistoryError: There is no message of a person or a model.
    """
    system, said = None, list[Said]()
    places: dict[object, int] = {}
    last: int | None = None
    for item in messages:
        role = _ROLES.get(str(item.get("role", item.get("from"))))
        content = _content(item.get("content", item.get("value")))
        if role is None or content is None:
            continue  # what tools were called with is no text of the conversation
        if role == "system":
            system = content if system is None else f"{system}\n\n{content}"
            continue
        reasoning = next((str(item[name]) for name in _REASONING if item.get(name)), None)
        parent = places.get(item["parent"]) if "parent" in item else last
        dropped = item.get("state") == "dropped"
        if not dropped and not content and not reasoning:
            continue
        said.append(Said(role, content, reasoning, parent, dropped))
        last = len(said) - 1
        if "id" in item:
            places[item["id"]] = last
    if not said:
        raise HistoryError(f"{place}: there is no message in it; nothing was imported")
    head = places.get(head_id, last) if isinstance(head_id, int | str) else last
    return system, said, head


def _content(value: object) -> str | None:
    """Returns the text of a message: a string, or the text parts of a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part if isinstance(part, str) else _part_text(part) for part in value]
        return "\n\n".join(part for part in parts if part) or None
    return None


def _part_text(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else ""


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def read_time(value: object) -> float:
    """Returns seconds since 1970 of a number or an ISO 8601 text; now for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    return time.time()
