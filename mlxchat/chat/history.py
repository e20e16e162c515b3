"""What was said, found again: lists, counts, whole conversations, deletion.

Reads and tidies the tables of `history_file.py`; what is kept of one conversation is
`history_record.py`'s. Live turns are written by `recorder.py`, files for people by `export.py`.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlxchat.chat import history_file
from mlxchat.chat.history_file import transaction
from mlxchat.chat.history_record import (
    SUMMARY,
    Record,
    Restored,
    Summary,
    make_summary,
    read_record,
    restore_record,
)
from mlxchat.errors import HistoryError

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")


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
        sql = f"{SUMMARY} {where} ORDER BY c.activity DESC LIMIT ?"
        values = [*([] if kind is None else [kind]), -1 if limit is None else limit]
        return [make_summary(row) for row in self._rows(sql, *values)]

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
        return read_record(self._rows, number)

    def restore(self, number: int) -> Restored:
        """Reads a conversation so that it can go on where it was left."""
        return restore_record(self.record(number))

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
