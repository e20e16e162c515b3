"""Finds words in the history, by SQLite's full-text index where there is one.

The index is brought up to date by the search itself, so a turn never pays for it. Without FTS5, and
for scripts that write no spaces between words, the texts themselves are looked through.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxchat.chat.history_file import clean, guarded, transaction

if TYPE_CHECKING:
    import sqlite3

    from mlxchat.chat.history import History

# Marks around found words inside a snippet: private characters that no text is likely to hold.
OPEN, CLOSE = "\ue0b1", "\ue0b2"
NUM_SNIPPET_WORDS, NUM_SNIPPET_CHARS = 16, 60

# Thai to Khmer, kana, Chinese characters and their extensions: words stand without spaces.
_SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
_WORD = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Hit:
    """A message in which all the words stand.

    Attributes:
        snippet: The words with some text around them, each between `OPEN` and `CLOSE`.
    """

    conversation: int
    message: int
    title: str
    role: str
    created_at: float
    snippet: str


@dataclass(frozen=True, slots=True)
class Found:
    """The hits of a search, the best first, and what the person should know of it."""

    hits: list[Hit]
    notice: str | None = None


def search(history: "History", words: Sequence[str], limit: int = 20) -> Found:
    """Finds the messages in which all words stand; a word finds longer words that begin with it.

    Args:
        history: Where to look.
        words: What to find; one that holds spaces is a phrase.
        limit: The most hits.

    Raises:
        HistoryError: The history cannot be read.
    """
    terms = [clean(word).replace("\0", " ") for word in words if word.strip("\0 \t\n")]
    is_indexable = all(_WORD.search(term) and not _SPACELESS.search(term) for term in terms)
    if not terms or not is_indexable:
        return Found(_scan(history, terms, limit))
    if not guarded(history.path, lambda: _has_fts5(history.db)):
        notice = "This SQLite has no FTS5: the texts are looked through, which is slow."
        return Found(_scan(history, terms, limit), notice)
    try:
        guarded(history.path, lambda: _bring_up_to_date(history))
    except Exception:
        if not history.has_index():
            return Found(_scan(history, terms, limit))
        return Found(_look_up(history, terms, limit), "The newest messages may be missing.")
    return Found(_look_up(history, terms, limit))


def _has_fts5(db: "sqlite3.Connection") -> bool:
    options = [str(row[0]) for row in db.execute("PRAGMA compile_options")]
    return "ENABLE_FTS5" in options or bool(
        db.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone()
    )


def _bring_up_to_date(history: "History") -> None:
    """Joins what is left of answers that were never finished, and indexes what is new."""
    db = history.db
    with transaction(db, durable=False):
        db.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS message_search"
            " USING fts5(content, reasoning, tokenize = 'unicode61 remove_diacritics 2')"
        )
        _fold(db)
        new = [row[0] for row in db.execute("SELECT id FROM messages WHERE is_indexed = 0")]
        for number in new:
            db.execute("DELETE FROM message_search WHERE rowid = ?", (number,))
        db.executemany(
            "INSERT INTO message_search (rowid, content, reasoning)"
            " SELECT id, content, coalesce(reasoning, '') FROM messages WHERE id = ?",
            [(number,) for number in new],
        )
        db.execute("UPDATE messages SET is_indexed = 1 WHERE is_indexed = 0")


def _fold(db: "sqlite3.Connection") -> None:
    """Moves pieces of partial answers into their messages; harmless while one is being written."""
    said: dict[tuple[int, str], str] = {}
    for row in db.execute("SELECT message, kind, text FROM deltas ORDER BY id"):
        key = (row["message"], row["kind"])
        said[key] = said.get(key, "") + row["text"]
    for (number, kind), text in said.items():
        name = "reasoning" if kind == "reasoning" else "content"
        before = db.execute(
            f"SELECT {name} FROM messages WHERE id = ?",  # noqa: S608
            (number,),
        ).fetchone()[0]
        db.execute(
            f"UPDATE messages SET {name} = ?, is_indexed = 0 WHERE id = ?",  # noqa: S608
            ((before or "") + text, number),
        )
    db.execute("DELETE FROM deltas")


_TITLE = """coalesce(c.title, (
    SELECT title_of(content) FROM messages
    WHERE conversation = c.id AND role = 'user' ORDER BY id LIMIT 1), '') AS title"""


def _look_up(history: "History", terms: Iterable[str], limit: int) -> list[Hit]:
    query = " ".join('"{}"*'.format(term.replace('"', '""')) for term in terms)
    sql = f"""SELECT m.id, m.conversation, m.role, m.created_at, {_TITLE},
            snippet(message_search, -1, ?, ?, '…', {NUM_SNIPPET_WORDS}) AS snippet
        FROM message_search JOIN messages m ON m.id = message_search.rowid
        JOIN conversations c ON c.id = m.conversation
        WHERE message_search MATCH ? ORDER BY rank, m.id DESC LIMIT ?"""  # noqa: S608
    values = (OPEN, CLOSE, query, limit)
    rows = guarded(history.path, lambda: history.db.execute(sql, values).fetchall())
    return [_hit(row, row["snippet"]) for row in rows]


def _scan(history: "History", terms: Sequence[str], limit: int) -> list[Hit]:
    """Looks through all texts, the newest first; upper and lower case count as the same."""
    patterns = [re.compile(re.escape(term), re.IGNORECASE) for term in terms]
    sql = f"""SELECT m.id, m.conversation, m.role, m.created_at, {_TITLE},
            m.content || coalesce(char(10) || m.reasoning, '') || coalesce((
                SELECT group_concat(text, '') FROM deltas WHERE message = m.id), '') AS text
        FROM messages m JOIN conversations c ON c.id = m.conversation
        ORDER BY m.id DESC"""  # noqa: S608
    hits: list[Hit] = []
    for row in guarded(history.path, lambda: history.db.execute(sql).fetchall()):
        matches = [pattern.search(row["text"]) for pattern in patterns]
        if len(hits) < limit and matches and all(matches):
            first = min(match.start() for match in matches if match)
            hits.append(_hit(row, _cut_out(row["text"], first, patterns)))
    return hits


def _cut_out(text: str, at: int, patterns: Iterable[re.Pattern[str]]) -> str:
    start, end = max(at - NUM_SNIPPET_CHARS, 0), at + NUM_SNIPPET_CHARS
    part = text[start:end]
    for pattern in patterns:
        part = pattern.sub(lambda match: f"{OPEN}{match[0]}{CLOSE}", part)
    return f"{'…' if start else ''}{part}{'…' if end < len(text) else ''}"


def _hit(row: "sqlite3.Row", snippet: str) -> Hit:
    names = ("conversation", "title", "role", "created_at")
    return Hit(**{name: row[name] for name in names}, message=row["id"], snippet=snippet)
