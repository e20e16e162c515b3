"""Conversations of other programs, brought into the history.

A file is JSON (`import_messages.py`) or the logs.db of simonw/llm (`import_llm.py`); its content
shows which. What was imported once is not imported again.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxchat.chat import history_file
from mlxchat.chat.history_file import clean, transaction
from mlxchat.chat.import_llm import read_llm
from mlxchat.chat.import_messages import Imported, Said, read_json
from mlxchat.errors import HistoryError

if TYPE_CHECKING:
    import sqlite3

_SQLITE_HEADER = b"SQLite format 3\0"


def import_file(path: Path, into: Path | None = None) -> tuple[int, int]:
    """Imports a file; what it is shows by its content.

    Returns:
        How many conversations were imported, and how many were there already.

    Raises:
        HistoryError: The file is none that we know, or the history cannot be written.
    """
    known = _import(path, into)
    num_new = sum(is_new for _, is_new in known)
    return num_new, len(known) - num_new


def import_numbers(path: Path) -> list[int]:
    """Imports a file; returns the numbers of its conversations, new or known, the newest first.

    Raises:
        HistoryError: The file is none that we know, or the history cannot be written.
    """
    return [number for number, _ in _import(path, None)]


def _import(path: Path, into: Path | None) -> list[tuple[int, bool]]:
    """Returns the number of each conversation of a file, and whether it is new."""
    target = into or history_file.history_path()
    try:
        with path.open("rb") as file:
            is_database = file.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER
        found = list(read_llm(path) if is_database else read_json(path))
        found.sort(key=lambda conversation: -conversation.created_at)
    except OSError as error:
        raise HistoryError(f"cannot read {path} ({error.strerror}); check the name") from None
    return history_file.guarded(target, lambda: _store(target, found))


def _store(target: Path, found: Iterable[Imported]) -> list[tuple[int, bool]]:
    db = history_file.open_history_file(target)
    stored: list[tuple[int, bool]] = []
    try:
        for conversation in found:
            # One transaction each: a chat in another window never waits long.
            with transaction(db, durable=False):
                # What was said here and exported is known by when it began.
                sql = (
                    "SELECT id FROM conversations WHERE source = ?"
                    " OR (source IS NULL AND abs(created_at - ?) < 1e-5)"
                )
                known = (conversation.source, conversation.created_at)
                row = db.execute(sql, known).fetchone()
                number = int(row[0]) if row else _insert(db, conversation)
                stored.append((number, row is None))
        with transaction(db, durable=True):
            db.execute("UPDATE conversations SET kind = kind WHERE id = -1")
    finally:
        db.close()
    return stored


def _insert(db: "sqlite3.Connection", found: Imported) -> int:
    number = db.execute(
        "INSERT INTO conversations (kind, title, model, source, activity, created_at, updated_at)"
        # Below all that was said here; the newest comes first.
        " VALUES ('import', ?, ?, ?, (SELECT coalesce(min(activity), 1) - 1 FROM conversations),"
        " ?, ?)",
        (
            found.title and clean(found.title),
            found.model and clean(found.model),
            found.source,
            found.created_at,
            found.created_at,
        ),
    ).lastrowid

    def add(said: Said, parent: int | None) -> int:
        state = "dropped" if said.is_dropped else "kept"
        reasoning = None if said.reasoning is None else clean(said.reasoning)
        row = db.execute(
            "INSERT INTO messages (conversation, parent, role, state, content, reasoning,"
            " created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, parent, said.role, state, clean(said.content), reasoning, found.created_at),
        ).lastrowid
        assert row is not None
        return row

    system = None if found.system is None else add(Said("system", found.system), None)
    rows: list[int] = []
    for said in found.messages:
        rows.append(add(said, None if said.parent is None else rows[said.parent]))
    head = None if found.head is None or not rows else rows[found.head]
    sql = "UPDATE conversations SET head = ?, system = ? WHERE id = ?"
    db.execute(sql, (head, system, number))
    assert number is not None
    return number
