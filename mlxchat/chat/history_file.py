"""The database file of the history: where it lies, its tables, how it is opened and set aside.

One SQLite file in WAL mode, readable by its owner only. What stands in the tables is `history.py`'s
and `recorder.py`'s business. sqlite3 is imported on use: a chat opens it behind the prompt.
"""

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mlxchat import paths
from mlxchat.chat.attached import make_title
from mlxchat.errors import HistoryError

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")

# How long a writer waits for another one. Our own transactions take milliseconds.
BUSY_S = 5.0

# Each step brings the tables from its index to the next version (PRAGMA user_version). A step that
# was released is never changed; new ones are added at the end.
#
# The order of things is the order of their ids: clocks go backwards. Ids are never used again.
# `activity` orders conversations by their last turn. A message's `state` is kept, partial (being
# written, or never ended) or dropped (no part of the conversation: stopped early, or failed).
# While an answer is written its text lies in `deltas`.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE conversations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            title TEXT,
            model TEXT,
            head INTEGER,
            system INTEGER,
            template_now TEXT,
            think INTEGER,
            keep_thinking INTEGER NOT NULL DEFAULT 0,
            activity INTEGER NOT NULL,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL
        )""",
        """CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
            parent INTEGER,
            role TEXT NOT NULL,
            state TEXT NOT NULL,
            content TEXT NOT NULL,
            reasoning TEXT,
            inline TEXT,
            content_ids BLOB,
            reasoning_ids BLOB,
            created_at REAL NOT NULL
        )""",
        "CREATE INDEX messages_of_conversation ON messages (conversation)",
        """CREATE TABLE turns (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
            question INTEGER,
            answer INTEGER NOT NULL,
            system INTEGER,
            state TEXT NOT NULL,
            model TEXT,
            model_commit TEXT,
            fingerprint TEXT,
            settings TEXT NOT NULL,
            result TEXT,
            tokens BLOB,
            error TEXT,
            started_at REAL NOT NULL,
            ended_at REAL
        )""",
        "CREATE INDEX turns_of_conversation ON turns (conversation)",
        """CREATE TABLE deltas (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
            kind TEXT NOT NULL,
            text TEXT NOT NULL
        )""",
    ),
    (  # where imported conversations came from; which messages the search index lacks
        "ALTER TABLE conversations ADD COLUMN source TEXT",
        "CREATE UNIQUE INDEX conversations_by_source ON conversations (source)",
        "ALTER TABLE messages ADD COLUMN is_indexed INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX messages_to_index ON messages (id) WHERE is_indexed = 0",
    ),
    (  # how an answer came about; before this the turns alone knew
        "ALTER TABLE messages ADD COLUMN fingerprint TEXT",
        "ALTER TABLE messages ADD COLUMN stop_reason TEXT",
        "ALTER TABLE messages ADD COLUMN generated_ids BLOB",
    ),
)


def history_path() -> Path:
    """Returns where the history lies."""
    return paths.data_dir() / "history.db"


def open_history_file(path: Path) -> "sqlite3.Connection":
    """Opens the history for reading and writing; makes or migrates it where needed.

    Returns:
        A connection that any thread may use, one at a time; transactions are begun by hand.

    Raises:
        HistoryError: A newer mlxchat made it.
        OSError: The folder or the file cannot be made.
        sqlite3.Error: It cannot be opened, or is damaged.
    """
    import sqlite3

    _make_private(path)
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.row_factory = sqlite3.Row
        _add_functions(db)
        _use_wal(db)
        # What is deleted is overwritten; on a Mac, "synced" shall mean "survives a power cut".
        for pragma in ("synchronous = NORMAL", "foreign_keys = ON", "secure_delete = ON"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("PRAGMA fullfsync = ON")
        _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _add_functions(db: "sqlite3.Connection") -> None:
    """Makes known to SQL what a conversation without a title is called."""
    db.create_function("title_of", 1, make_title, deterministic=True)


def open_for_reading(path: Path) -> "sqlite3.Connection":
    """Opens a history that exists, for writing if that is possible, else for reading.

    Raises:
        HistoryError: It cannot be opened; one line says why.
    """
    import sqlite3

    try:
        return open_history_file(path)
    except (sqlite3.Error, OSError) as error:
        codes = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL)
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if not path.exists() or (isinstance(error, sqlite3.Error) and code not in codes):
            raise explain(error, path) from None
    # In a folder that cannot be written SQLite can make no index for the write-ahead log; without
    # a log there is nothing to index.
    wal = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
        db.row_factory = sqlite3.Row
        _add_functions(db)
        _check_version(db, path)
    except sqlite3.Error as error:
        raise explain(error, path) from None
    return db


def _make_private(path: Path) -> None:
    folder = paths.make_private_dir(path.parent)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _use_wal(db: "sqlite3.Connection") -> None:
    import sqlite3

    for _ in range(50):  # SQLite does not wait by itself while another process does the same
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.02)


def _check_version(db: "sqlite3.Connection", path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise HistoryError(
            f"{path} was made by a newer mlxchat (version {version} of the tables, this one knows"
            f" {len(MIGRATIONS)}); update mlxchat"
        )
    return version


def _migrate(db: "sqlite3.Connection", path: Path) -> None:
    if _check_version(db, path) == len(MIGRATIONS):
        return
    with transaction(db, durable=True):
        version = _check_version(db, path)  # another process may have been faster
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


@contextlib.contextmanager
def transaction(db: "sqlite3.Connection", *, durable: bool) -> Iterator[None]:
    """Commits what is done inside, or takes all of it back.

    Args:
        db: The history.
        durable: The commit survives a power cut (it costs a sync of the disk, milliseconds); every
            commit survives the end of the process (microseconds).
    """
    db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


# -- what can go wrong ---------------------------------------------------------------------------


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the file is no database, or a broken one."""
    import sqlite3

    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes


def explain(error: Exception, path: Path) -> HistoryError:
    """Returns the one line that a person can act on."""
    import sqlite3

    if isinstance(error, HistoryError):
        return error
    if is_damage(error):
        return HistoryError(
            f"the history in {path} is damaged; the next chat sets it aside and begins a new one"
        )
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) == 28:
        return HistoryError(f"the disk of {path} is full; make room")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HistoryError(f"another program holds {path}; close it or try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return HistoryError(f"{path} cannot be opened for writing; check folder and permissions")
    text = getattr(error, "strerror", None) or str(error)
    return HistoryError(f"the history in {path} failed ({text}); check disk and permissions")


def set_aside(path: Path) -> Path | None:
    """Moves a damaged history out of the way; nothing is deleted.

    Two processes may find the damage at once; only one of them moves the file.

    Returns:
        Its new place, or None when the file is sound (again).
    """
    import fcntl

    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or not check_file(path):
            return None
        number = 1
        while (target := path.with_name(f"{path.name}.damaged-{number}")).exists():
            number += 1
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(target.with_name(target.name + suffix))
        return target
    finally:
        os.close(lock)


def check_file(path: Path) -> list[str]:
    """Returns what `PRAGMA integrity_check` finds wrong; nothing for a sound file."""
    import sqlite3

    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S)
        with contextlib.closing(db):
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(10)")]
    except sqlite3.Error as error:
        return [str(error)] if is_damage(error) else []
    return [] if found == ["ok"] else found


# -- values --------------------------------------------------------------------------------------


def pack_ids(token_ids: Sequence[int] | None) -> bytes | None:
    """Returns token ids as 32-bit little-endian integers."""
    return None if token_ids is None else struct.pack(f"<{len(token_ids)}I", *token_ids)


def unpack_ids(blob: bytes | None) -> tuple[int, ...] | None:
    """Returns what `pack_ids` packed."""
    return None if blob is None else struct.unpack(f"<{len(blob) // 4}I", blob)


def clean(text: str) -> str:
    """Returns text that can be stored: half a surrogate pair becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def guarded(path: Path, work: Callable[[], T]) -> T:
    """Runs some work on the history; what goes wrong becomes a `HistoryError`.

    Raises:
        HistoryError: One line on what was wrong.
    """
    import sqlite3

    try:
        return work()
    except (sqlite3.Error, OSError) as error:
        raise explain(error, path) from None
