"""What was said, found again: lists, whole conversations, search, deletion.

Reads and tidies the tables of `history_file.py`; live turns are written by `recorder.py`, files for
people by `export.py`. A conversation that is restored renders to the very ids it had: the generated
ids, the template's date and the switches are stored with it.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mlxchat.chat import history_file
from mlxchat.chat.attached import make_title
from mlxchat.chat.conversation import Conversation, Node, Origin
from mlxchat.chat.history_file import transaction, unpack_ids
from mlxchat.chat.template import Message, Role
from mlxchat.errors import HistoryError

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")
State = Literal["kept", "partial", "dropped"]
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


@dataclass(frozen=True, slots=True)
class Stats:
    """What the history holds."""

    num_conversations: int = 0
    num_messages: int = 0
    num_turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    file_bytes: int = 0
    oldest_at: float | None = None
    newest_at: float | None = None
    turns_by_model: dict[str, int] = field(default_factory=dict)


_SUMMARY = """
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


class History:
    """The history on disk.

    Args:
        path: The database; it must exist.

    Raises:
        HistoryError: There is none, or it cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or history_file.history_path()
        if not self.path.exists():
            raise HistoryError(f"there is no history in {self.path} yet; a chat begins one")
        self.db: sqlite3.Connection = history_file.open_for_reading(self.path)

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    def _rows(self, sql: str, *values: object) -> "list[sqlite3.Row]":
        return self._do(lambda: self.db.execute(sql, values).fetchall())

    def _do(self, work: Callable[[], T]) -> T:
        return history_file.guarded(self.path, work)

    # -- lists -------------------------------------------------------------------------------------

    def summaries(self, limit: int | None = None, kind: str | None = None) -> list[Summary]:
        """Returns the conversations, the one with the newest turn first."""
        where = "" if kind is None else "WHERE kind = ?"
        sql = f"{_SUMMARY} {where} ORDER BY c.activity DESC LIMIT ?"
        values = [*([] if kind is None else [kind]), -1 if limit is None else limit]
        return [_summary(row) for row in self._rows(sql, *values)]

    def find(self, reference: str) -> int:
        """Returns the number of the conversation that a person named.

        Raises:
            HistoryError: There is none of that number.
        """
        number = reference.strip().lstrip("#")
        known = number.isascii() and number.isdigit() and len(number) < 19
        if not known or not self._rows("SELECT 1 FROM conversations WHERE id = ?", int(number)):
            raise HistoryError(
                f"there is no conversation {reference!r}; `mlxchat history list` shows the numbers"
            )
        return int(number)

    def newest(self, kind: str | None = None) -> int:
        """Returns the conversation with the newest turn.

        Raises:
            HistoryError: There is none.
        """
        found = self.summaries(1, kind)
        if not found:
            raise HistoryError("there is no conversation yet; start one with `mlxchat chat`")
        return found[0].id

    def last_used(self) -> dict[str, float]:
        """Returns when each model was asked last."""
        rows = self._rows(
            "SELECT model, max(started_at) AS at FROM turns WHERE model IS NOT NULL GROUP BY model"
        )
        return {row["model"]: row["at"] for row in rows}

    def stats(self) -> Stats:
        """Counts what the history holds."""
        counts = self._rows(
            """SELECT (SELECT count(*) FROM conversations) AS conversations,
                (SELECT count(*) FROM messages WHERE role != 'system') AS messages,
                min(created_at) AS oldest, max(updated_at) AS newest FROM conversations"""
        )[0]
        totals = dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), 0)
        by_model: dict[str, int] = {}
        for row in self._rows("SELECT model, result FROM turns ORDER BY id"):
            name = row["model"] or "?"
            by_model[name] = by_model.get(name, 0) + 1
            usage = json.loads(row["result"])["usage"] if row["result"] else {}
            for key in totals:
                totals[key] += usage.get(key, 0)
        return Stats(
            num_conversations=counts["conversations"],
            num_messages=counts["messages"],
            num_turns=sum(by_model.values()),
            file_bytes=self.file_bytes(),
            oldest_at=counts["oldest"],
            newest_at=counts["newest"],
            turns_by_model=by_model,
            **totals,
        )

    def file_bytes(self) -> int:
        """Returns the size of the database with its write-ahead log."""
        names = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(name.stat().st_size for name in names if name.exists())

    def check(self) -> list[str]:
        """Returns what `PRAGMA integrity_check` finds wrong; nothing for a sound history."""
        found = [str(row[0]) for row in self._rows("PRAGMA integrity_check(10)")]
        return [] if found == ["ok"] else found

    # -- one conversation --------------------------------------------------------------------------

    def record(self, number: int) -> Record:
        """Reads all that is stored of a conversation."""
        summary = self._rows(f"{_SUMMARY} WHERE c.id = ?", number)
        if not summary:
            raise HistoryError(f"there is no conversation {number}; it was deleted")
        row = self._rows("SELECT * FROM conversations WHERE id = ?", number)[0]
        messages = self._messages(number)
        texts = {message.id: message.content for message in messages}
        now = row["template_now"]
        return Record(
            _summary(summary[0]),
            row["head"],
            texts.get(row["system"]),
            row["system"],
            None if now is None else datetime.fromisoformat(now),
            None if row["think"] is None else bool(row["think"]),
            bool(row["keep_thinking"]),
            tuple(message for message in messages if message.role != "system"),
            tuple(self._turns(number, {message.id: message for message in messages})),
        )

    def _messages(self, number: int) -> list[MessageRecord]:
        said: dict[tuple[int, str], str] = {}
        for row in self._rows(
            "SELECT * FROM deltas WHERE message IN (SELECT id FROM messages WHERE conversation = ?)"
            " ORDER BY id",
            number,
        ):
            key = (row["message"], row["kind"])
            said[key] = said.get(key, "") + row["text"]
        found = []
        for row in self._rows("SELECT * FROM messages WHERE conversation = ? ORDER BY id", number):
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

    def _turns(self, number: int, messages: dict[int, MessageRecord]) -> list[TurnRecord]:
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
            for row in self._rows("SELECT * FROM turns WHERE conversation = ? ORDER BY id", number)
        ]

    def restore(self, number: int) -> Restored:
        """Reads a conversation so that it can go on where it was left."""
        record = self.record(number)
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

    # -- changes -----------------------------------------------------------------------------------

    def systems(self, numbers: Sequence[int] | None = None) -> set[str]:
        """Returns the system prompts that some conversations ever had; None: all of them."""
        sql = "SELECT DISTINCT content FROM messages WHERE role = 'system'"
        if numbers is None:
            return {row["content"] for row in self._rows(sql)}
        found = (self._rows(f"{sql} AND conversation = ?", number) for number in numbers)
        return {row["content"] for rows in found for row in rows}

    def rename(self, number: int, title: str | None) -> None:
        """Gives a conversation a title; None takes it away."""
        text = None if title is None else history_file.clean(title)
        self._change("UPDATE conversations SET title = ? WHERE id = ?", text, number)

    def delete(self, numbers: Sequence[int]) -> None:
        """Deletes conversations, and overwrites the place where they were."""

        def work() -> None:
            with transaction(self.db, durable=True):
                for number in numbers:
                    if self.has_index():
                        self.db.execute(
                            "DELETE FROM message_search WHERE rowid IN"
                            " (SELECT id FROM messages WHERE conversation = ?)",
                            (number,),
                        )
                    self.db.execute("DELETE FROM conversations WHERE id = ?", (number,))
                if self.has_index():  # deleted words stay in the index until it is merged
                    self.db.execute(
                        "INSERT INTO message_search (message_search) VALUES ('optimize')"
                    )
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        self._do(work)

    def strip(self, numbers: Sequence[int] | None = None) -> None:
        """Keeps the text of conversations only (None: of all): generated ids are forgotten."""
        for number in [s.id for s in self.summaries()] if numbers is None else numbers:
            self._change(
                "UPDATE messages SET content_ids = NULL, reasoning_ids = NULL, generated_ids = NULL"
                " WHERE conversation = ?",
                number,
            )
            self._change("UPDATE turns SET tokens = NULL WHERE conversation = ?", number)

    def _change(self, sql: str, *values: object) -> None:
        def work() -> None:
            with transaction(self.db, durable=True):
                self.db.execute(sql, values)

        self._do(work)

    def has_index(self) -> bool:
        """Whether the index of the words exists."""
        sql = "SELECT 1 FROM sqlite_schema WHERE name = 'message_search'"
        return self.db.execute(sql).fetchone() is not None


def open_history(path: Path | None = None) -> History | None:
    """Opens the history if there is one.

    Raises:
        HistoryError: It cannot be read.
    """
    place = path or history_file.history_path()
    return History(place) if os.path.exists(place) else None


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


def _summary(row: "sqlite3.Row") -> Summary:
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
