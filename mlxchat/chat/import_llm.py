"""The `logs.db` of simonw/llm, read only.

Knows both generations of its tables: responses in conversations, and the message store of llm 0.32
and later, where each message names the one before it and turns name the end of their chain.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxchat.chat.import_messages import Imported, Said, read_messages, read_time
from mlxchat.errors import HistoryError

if TYPE_CHECKING:
    import sqlite3

_OLD, _NEW = {"conversations", "responses"}, {"messages", "parts", "threads", "turns"}


def read_llm(path: Path) -> Iterator[Imported]:
    """Yields the conversations of a logs.db.

    Raises:
        HistoryError: It is none, or cannot be read.
    """
    import sqlite3

    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        with contextlib.closing(db):
            db.row_factory = sqlite3.Row
            names = {row[0] for row in db.execute("SELECT name FROM sqlite_schema")}
            if not (names >= _OLD or names >= _NEW):
                raise HistoryError(
                    f"{path} is no logs.db of llm: its tables are missing; give another file"
                )
            reader = _Reader(db, names)
            # A conversation that went on after the change of tables is whole in the new ones.
            threads = list(reader.threads()) if names >= _NEW else []
            yield from threads
            if names >= _OLD:
                yield from reader.conversations({thread.source for thread in threads})
    except sqlite3.Error as error:
        raise HistoryError(f"cannot read {path} ({error}); give a logs.db of llm") from None


@dataclass(frozen=True)
class _Reader:
    """One open database and the names of its tables."""

    db: "sqlite3.Connection"
    names: set[str]

    def conversations(self, known: set[str]) -> Iterator[Imported]:
        """Yields what the older tables hold, each response a question and its answer."""
        rows: dict[str, list[sqlite3.Row]] = {}
        for row in self.db.execute(
            "SELECT r.*, c.name AS title FROM responses r"
            " LEFT JOIN conversations c ON c.id = r.conversation_id"
            " ORDER BY r.datetime_utc, r.rowid"
        ):
            name = f"llm:{row['conversation_id'] or row['id']}"
            if name not in known:
                rows.setdefault(name, []).append(row)
        asked = self._fragments_of("prompt_fragments")
        told = self._fragments_of("system_fragments")
        for name, turns in rows.items():
            said: list[Said] = []
            for row in turns:
                question = _join(asked.get(row["id"], []), row["prompt"])
                thought = row["reasoning"] if "reasoning" in row.keys() else None  # noqa: SIM118
                said.append(Said("user", question, None, len(said) - 1 if said else None))
                answer = row["response"] or ""
                said.append(Said("assistant", answer, thought or None, len(said) - 1))
            first = turns[0]
            systems = [_join(told.get(row["id"], []), row["system"]) for row in turns]
            yield Imported(
                name,
                first["title"],
                first["model"],
                next((text for text in systems if text), None),
                tuple(said),
                len(said) - 1,
                _utc(first["datetime_utc"]),
            )

    def _fragments_of(self, table: str) -> dict[str, list[str]]:
        """Returns the texts that were attached to each response."""
        found: dict[str, list[str]] = {}
        if {table, "fragments"} <= self.names:
            for row in self.db.execute(
                f"SELECT response_id, content FROM {table}"  # noqa: S608
                ' JOIN fragments ON fragments.id = fragment_id ORDER BY "order"'
            ):
                found.setdefault(row["response_id"], []).append(row["content"] or "")
        return found

    def threads(self) -> Iterator[Imported]:
        """Yields what the message store holds: each thread's chain of messages."""
        messages = {row["hash"]: row for row in self.db.execute("SELECT * FROM messages")}
        texts = self._texts()
        for thread in self.db.execute("SELECT * FROM threads ORDER BY datetime_utc, rowid"):
            turns = self.db.execute(
                "SELECT * FROM turns WHERE thread_id = ? ORDER BY datetime_utc, rowid",
                (thread["id"],),
            ).fetchall()
            at = thread["tip_message_hash"] or (turns[-1]["tip_message_hash"] if turns else None)
            items: list[dict[str, str]] = []
            while at in messages and len(items) <= len(messages):
                message = messages[at]
                said = {kind: texts.get((at, kind), "") for kind in ("text", "reasoning")}
                items.append(
                    {"role": message["role"], "content": said["text"]}
                    | {"reasoning": said["reasoning"]}
                )
                at = message["parent_hash"]
            with contextlib.suppress(HistoryError):  # nothing but tool calls
                system, chain, head = read_messages(items[::-1], None, "")
                yield Imported(
                    f"llm:{thread['id']}",
                    thread["name"],
                    turns[0]["model"] if turns else None,
                    system,
                    tuple(chain),
                    head,
                    _utc(thread["datetime_utc"]),
                )

    def _texts(self) -> dict[tuple[Any, str], str]:
        """Returns the text of each message by (hash, kind of part)."""
        fragments = {}
        if "fragments" in self.names:
            fragments = dict(self.db.execute("SELECT id, content FROM fragments").fetchall())
        texts: dict[tuple[Any, str], str] = {}
        for part in self.db.execute("SELECT * FROM parts ORDER BY message_hash, position"):
            text = part["text"]
            if text is None:
                pieces = json.loads(part["payload"] or "{}").get("text_ref", [])
                text = "".join(
                    piece.get("literal") or fragments.get(piece.get("fragment")) or ""
                    for piece in pieces
                )
            key = (part["message_hash"], part["type"])
            texts[key] = texts.get(key, "") + text
        return texts


def _join(fragments: Iterable[str], text: str | None) -> str:
    return "\n".join([*fragments, *([text] if text else [])])


def _utc(text: str | None) -> float:
    """Returns seconds since 1970; llm writes UTC, at times without saying so."""
    if not text:
        return time.time()
    has_zone = text.endswith("Z") or "+" in text
    return read_time(text if has_zone else f"{text}+00:00")
