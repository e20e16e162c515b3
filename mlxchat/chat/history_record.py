"""One stored conversation: its messages and turns, and the tree that goes on from them.

Read from the tables of `history_file.py`. A conversation that is restored renders to the very ids
it had: the generated ids, the template's date and the switches are stored with it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from mlxchat.chat.attached import make_title
from mlxchat.chat.conversation import Conversation, Node, Origin
from mlxchat.chat.history_file import unpack_ids
from mlxchat.chat.template import Message, Role
from mlxchat.errors import HistoryError

if TYPE_CHECKING:
    import sqlite3

State = Literal["kept", "partial", "dropped"]
# Runs one SELECT with its values.
Select = Callable[..., "list[sqlite3.Row]"]
_UNKNOWN = Origin()


@dataclass(frozen=True, slots=True)
class Summary:
    """One conversation in a list.

    Attributes:
        title: As the person named it, else the first question.
        num_questions: On all branches.
        is_partial: An answer in it was never finished.
    """

    id: int
    kind: str
    title: str
    is_titled: bool
    model: str | None
    created_at: float
    updated_at: float
    num_questions: int
    is_partial: bool


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """One stored message."""

    id: int
    parent: int | None
    role: Role
    state: State
    content: str
    reasoning: str | None
    inline: str | None
    content_ids: tuple[int, ...] | None
    reasoning_ids: tuple[int, ...] | None
    created_at: float
    origin: Origin = _UNKNOWN

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was ever shown."""
        return not self.content and not self.reasoning

    def to_message(self, *, with_ids: bool = True) -> Message:
        """Returns it as a conversation holds it."""
        message = Message(self.role, self.content, self.reasoning, inline=self.inline)
        if not with_ids:
            return message
        return replace(message, content_ids=self.content_ids, reasoning_ids=self.reasoning_ids)


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One stored turn: which question and answer, with what, and what came of it.

    Attributes:
        result: The JSON contract's object; None for a turn that did not end well.
    """

    id: int
    question: int | None
    answer: int
    state: Literal["running", "done", "dropped", "failed"]
    model: str | None
    commit: str | None
    fingerprint: str | None
    settings: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None
    started_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """All that is stored of one conversation; messages and turns in the order of arrival."""

    summary: Summary
    head: int | None
    system: str | None
    system_id: int | None
    template_now: datetime | None
    think: bool | None
    keep_thinking: bool
    messages: tuple[MessageRecord, ...]
    turns: tuple[TurnRecord, ...]

    @property
    def adapter(self) -> str | None:
        """The adapter of the model that was asked last."""
        path = self.turns[-1].settings.get("adapter") if self.turns else None
        return path if isinstance(path, str) else None

    def path(self) -> list[MessageRecord]:
        """Returns the messages from the first to the head, unanswered and empty ones included."""
        by_id = {message.id: message for message in self.messages}
        path, at = [], self.head
        while at is not None and at in by_id:
            path.append(by_id[at])
            at = by_id[at].parent
        return path[::-1]


@dataclass(frozen=True, slots=True)
class Restored:
    """A conversation ready to go on.

    Attributes:
        rows: The database's number of each message, by its number in the tree.
        partial: Answers that were never finished.
        unanswered: The question that the head stands before, because no answer to it was shown.
    """

    record: Record
    conversation: Conversation
    rows: dict[int, int]
    partial: frozenset[int] = frozenset()
    unanswered: int | None = None


SUMMARY = """
    SELECT c.id, c.kind, c.model, c.created_at, c.updated_at, c.title IS NOT NULL AS is_titled,
        coalesce(c.title, (
            SELECT title_of(content) FROM messages
            WHERE conversation = c.id AND role = 'user' ORDER BY id LIMIT 1
        ), '') AS title,
        (SELECT count(*) FROM messages
            WHERE conversation = c.id AND role = 'user' AND state = 'kept') AS num_questions,
        EXISTS (SELECT 1 FROM messages
            WHERE conversation = c.id AND state = 'partial') AS is_partial
    FROM conversations c"""


def read_record(select: Select, number: int) -> Record:
    """Reads all that is stored of a conversation.

    Raises:
        HistoryError: There is none of that number.
    """
    summary = select(f"{SUMMARY} WHERE c.id = ?", number)
    if not summary:
        raise HistoryError(f"there is no conversation {number}; it was deleted")
    row = select("SELECT * FROM conversations WHERE id = ?", number)[0]
    messages = _read_messages(select, number)
    texts = {message.id: message.content for message in messages}
    now = row["template_now"]
    return Record(
        make_summary(summary[0]),
        row["head"],
        texts.get(row["system"]),
        row["system"],
        None if now is None else datetime.fromisoformat(now),
        None if row["think"] is None else bool(row["think"]),
        bool(row["keep_thinking"]),
        tuple(message for message in messages if message.role != "system"),
        tuple(_read_turns(select, number, {message.id: message for message in messages})),
    )


def _read_messages(select: Select, number: int) -> list[MessageRecord]:
    said: dict[tuple[int, str], str] = {}
    for row in select(
        "SELECT * FROM deltas WHERE message IN (SELECT id FROM messages WHERE conversation = ?)"
        " ORDER BY id",
        number,
    ):
        key = (row["message"], row["kind"])
        said[key] = said.get(key, "") + row["text"]
    found = []
    for row in select("SELECT * FROM messages WHERE conversation = ? ORDER BY id", number):
        reasoning = (row["reasoning"] or "") + said.get((row["id"], "reasoning"), "")
        found.append(
            MessageRecord(
                row["id"],
                row["parent"],
                row["role"],
                row["state"],
                row["content"] + said.get((row["id"], "answer"), ""),
                reasoning if reasoning or row["reasoning"] is not None else None,
                row["inline"],
                unpack_ids(row["content_ids"]),
                unpack_ids(row["reasoning_ids"]),
                row["created_at"],
                Origin(
                    row["fingerprint"],
                    row["stop_reason"],
                    unpack_ids(row["generated_ids"]) or (),
                ),
            )
        )
    return found


def _read_turns(
    select: Select, number: int, messages: dict[int, MessageRecord]
) -> list[TurnRecord]:
    return [
        TurnRecord(
            row["id"],
            row["question"],
            row["answer"],
            row["state"],
            row["model"],
            row["model_commit"],
            row["fingerprint"],
            json.loads(row["settings"]),
            _whole_result(row, messages.get(row["answer"])),
            row["error"],
            row["started_at"],
            row["ended_at"],
        )
        for row in select("SELECT * FROM turns WHERE conversation = ? ORDER BY id", number)
    ]


def restore_record(record: Record) -> Restored:
    """Makes a conversation that can go on where it was left."""
    usable = [m for m in record.messages if m.state != "dropped" and not m.is_empty]
    nodes = {message.id: index for index, message in enumerate(usable, start=1)}
    conversation = Conversation(record.system)
    turns = {turn.answer: turn for turn in record.turns}
    for message in usable:
        parent = nodes.get(message.parent) if message.parent is not None else None
        origin = _origin(message, turns.get(message.id))
        node = Node(nodes[message.id], parent, message.to_message(), origin)
        conversation.nodes[node.id] = node
    path = [nodes[message.id] for message in record.path() if message.id in nodes]
    conversation.head = path[-1] if path else None
    unanswered = None
    if path and conversation.nodes[path[-1]].message.role == "user":
        unanswered = path[-1]  # a question without an answer is no place to ask the next one
        conversation.head = conversation.nodes[unanswered].parent
    return Restored(
        record,
        conversation,
        {node: message for message, node in nodes.items()},
        frozenset(nodes[message.id] for message in usable if message.state == "partial"),
        unanswered,
    )


def describe(conversation: Conversation, model: str, now: datetime | None) -> Record:
    """Returns the record of a conversation that is not stored; its number is 0."""
    at = time.time()
    messages = tuple(
        MessageRecord(
            node.id,
            node.parent,
            node.message.role,
            "kept",
            node.message.content,
            node.message.reasoning,
            node.message.inline,
            node.message.content_ids,
            node.message.reasoning_ids,
            at,
            node.origin or Origin(),
        )
        for node in conversation.nodes.values()
    )
    questions = [message.content for message in messages if message.role == "user"]
    title = make_title(questions[0]) if questions else ""
    summary = Summary(0, "chat", title, False, model, at, at, len(questions), False)
    head, system = conversation.head, conversation.system
    return Record(summary, head, system, None, now, None, False, messages, ())


def make_summary(row: "sqlite3.Row") -> Summary:
    """Returns a row that `SUMMARY` selected."""
    names = [name for name in Summary.__slots__ if name not in ("is_titled", "is_partial")]
    return Summary(
        **{name: row[name] for name in names},
        is_titled=bool(row["is_titled"]),
        is_partial=bool(row["is_partial"]),
    )


def _origin(message: MessageRecord, turn: TurnRecord | None) -> Origin | None:
    """Returns how an answer came about, as its own row or, in older histories, its turn says."""
    if message.role != "assistant":
        return None
    origin = message.origin
    if message.state == "partial":  # the program ended before it did
        return replace(origin, stop_reason="user_cancelled")
    if turn is None:
        return origin
    fingerprint = origin.fingerprint or turn.fingerprint
    if origin.stop_reason is not None or turn.result is None:
        return replace(origin, fingerprint=fingerprint)
    token_ids = tuple(turn.result["tokens"]) if message.content_ids is not None else ()
    return Origin(fingerprint, turn.result.get("stop_reason"), token_ids)


def _whole_result(row: "sqlite3.Row", answer: MessageRecord | None) -> dict[str, Any] | None:
    """Puts back what a stored result leaves out because it is stored with the answer."""
    if row["result"] is None or answer is None:
        return None
    result: dict[str, Any] = json.loads(row["result"])
    ids = unpack_ids(row["tokens"]) or ()
    whole = {"text": answer.content, "reasoning": answer.reasoning, "tokens": list(ids)}
    return {**result, **whole}
