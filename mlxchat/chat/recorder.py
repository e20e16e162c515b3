"""Keeps a live conversation in the history: what is shown was written before.

Writing happens on the thread that takes a job's events to the screen, between taking and handing
them on: so text is on the disk, synced, before it is seen, and MLX's thread never waits for it.
A power cut takes nothing that was shown. What cannot be written (a full disk, no permission, a
damaged file) is said once, and held in memory until it can.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxchat.chat import history_file, history_writer
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.history_writer import LiveTurn, Place
from mlxchat.chat.results import Alternatives, Notice, TextDelta, TurnResult, merge_text
from mlxchat.engine.worker import Job, JobCancelledError
from mlxchat.errors import HistoryError, MlxchatError

if TYPE_CHECKING:
    import sqlite3

    from mlxchat.chat.history_record import Restored
    from mlxchat.chat.options import ChatOptions

    Work = Callable[[sqlite3.Connection], object]

# Text is written and shown at most this often: smooth to the eye, and a write costs the same for
# one token and for ten. On a slow disk syncs take at most a share of the time, until that would
# make the text come by fits and starts.
BATCH_S, SYNC_SHARE, LONGEST_BATCH_S = 0.03, 0.25, 0.25
# Text that cannot be written because another program holds the file is shown after this long.
PATIENCE_S = 2.0
# While an answer streams, what failed is tried again this often.
RETRY_S = 1.0


class Recorder:
    """Keeps one conversation at a time; belongs to the thread that shows it.

    Args:
        kind: `chat` or `generate`.
        path: The database; the usual place if None.
    """

    def __init__(self, kind: str, path: Path | None = None) -> None:
        self.path = path or history_file.history_path()
        self._place = Place(kind)
        self._conversation = Conversation()
        self._db: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._live: list[tuple[LiveTurn, Job[TurnResult]]] = []
        self._trouble = ""
        self._notices: list[str] = []
        self._sync_s = self._retry_at = 0.0
        self._file_id: tuple[int, int] | None = None

    @property
    def conversation_id(self) -> int | None:
        """The conversation's number in the history; None before it is stored."""
        return self._place.number

    @property
    def title(self) -> str | None:
        """What the person called the conversation."""
        return self._place.title

    # -- which conversation ------------------------------------------------------------------------

    def prepare(self) -> None:
        """Opens the history in the background, so that the first turn finds it open."""
        threading.Thread(target=self._try, args=(lambda db: None,), daemon=True).start()

    def begin(self, conversation: Conversation) -> None:
        """Records another conversation from now on; it is stored with its first turn."""
        self._end_live()
        self._place = Place(self._place.kind)
        self._conversation = conversation

    def adopt(self, restored: "Restored") -> None:
        """Goes on with a conversation that was restored."""
        self.begin(restored.conversation)
        summary = restored.record.summary
        self._place.number = summary.id
        self._place.title = summary.title if summary.is_titled else None
        self._place.rows = dict(restored.rows)
        record = restored.record
        if record.system and record.system_id:
            self._place.system = (record.system, record.system_id)

    def save(self, options: "ChatOptions", model: str) -> None:
        """Stores the conversation as it is, with or without a turn.

        Raises:
            HistoryError: It cannot be written.
        """
        history_file.guarded(
            self.path,
            lambda: self._transact(
                lambda db: history_writer.write_tree(
                    db,
                    self._place,
                    self._conversation,
                    options,
                    model,
                    len(self._conversation.nodes),
                ),
                durable=True,
            ),
        )

    def set_title(self, title: str | None) -> None:
        """Names the conversation.

        Raises:
            HistoryError: It cannot be written.
        """
        self._place.title = title
        if self.conversation_id is not None:
            values = (title and history_file.clean(title), self.conversation_id)
            sql = "UPDATE conversations SET title = ? WHERE id = ?"
            history_file.guarded(
                self.path, lambda: self._transact(lambda db: db.execute(sql, values), durable=True)
            )

    def note_move(self) -> None:
        """Stores where in the tree the person is now; the next turn does so anyway."""
        values = (self._place.row(self._conversation.head), self.conversation_id)
        if self.conversation_id is not None:
            sql = "UPDATE conversations SET head = ? WHERE id = ?"
            self._try(lambda db: db.execute(sql, values), durable=False)

    def note_tree(self, options: "ChatOptions", model: str) -> None:
        """Stores messages that came without a turn; where that fails the next turn does it."""
        nodes = self._conversation.nodes
        if self.conversation_id is not None:
            self._try(
                lambda db: history_writer.write_tree(
                    db, self._place, self._conversation, options, model, len(nodes)
                ),
                durable=True,
            )

    # -- turns -------------------------------------------------------------------------------------

    def start(self, turn: LiveTurn, job: Job[TurnResult]) -> "RecordedJob":
        """Writes the question of a turn that has just been submitted; returns the job to follow."""
        self._end_live()
        self._live.append((turn, job))
        self._leave_lost_file()
        self._write(durable=True)
        return RecordedJob(job, self, turn)

    def keep(self, turn: LiveTurn, deltas: list[TextDelta]) -> None:
        """Brings text that is about to be shown to the disk."""
        if not deltas:
            return
        turn.shown += deltas
        since = time.monotonic()
        if self._trouble and since < self._retry_at:
            return
        self._write(durable=True, wait_s=0.0 if self._trouble else PATIENCE_S)
        self._sync_s = time.monotonic() - since

    def pace_s(self) -> float:
        """Returns how far apart pieces of text shall be written, by what the last write took."""
        return min(max(BATCH_S, self._sync_s / SYNC_SHARE), LONGEST_BATCH_S)

    def end(self, turn: LiveTurn, job: Job[TurnResult]) -> None:
        """Commits a turn whose job has ended, well or not."""
        if turn.is_over or not job.done:
            return
        try:
            result: Any = job.result(0)
            turn.result = result.results[0] if isinstance(result, Alternatives) else result
        except JobCancelledError:
            pass
        except BaseException as error:
            is_known = isinstance(error, MlxchatError)
            turn.error = str(error) if is_known else f"{type(error).__name__}: {error}"
        turn.is_over = True
        self._live += [(sibling, job) for sibling in turn.siblings]
        self._write(durable=True)
        if turn.siblings:
            self.note_move()  # the head is the first answer, not the one that was written last

    def take_notices(self) -> list[Notice]:
        """Returns what the person should know, once."""
        notices, self._notices = [Notice(text) for text in self._notices], []
        return notices

    def close(self) -> list[str]:
        """Writes what is still unwritten and closes the file; returns what the person should know.

        What cannot be written now is lost.
        """
        self._end_live()
        with self._lock:
            self._close_file()
        told = [notice.text for notice in self.take_notices()]
        if self._trouble and self._live:
            return [f"The end of this chat is not in the history: {self._trouble}."]
        return told

    def _end_live(self) -> None:
        """Ends turns that nobody followed to their end, and tries again what failed."""
        for turn, job in list(self._live):
            self.end(turn, job)
        if self._trouble and self._live:
            self._write(durable=True)

    # -- the database ------------------------------------------------------------------------------

    def _write(self, *, durable: bool, wait_s: float = history_file.BUSY_S) -> None:
        """Writes what is unwritten of all turns; says so when that begins or ceases to fail."""
        trouble = self._try(self._write_turns, durable=durable, wait_s=wait_s)
        if not trouble:
            self._live = [(turn, job) for turn, job in self._live if not turn.is_over]
        if trouble and trouble != self._trouble:
            self._notices.append(f"The chat goes on, but is not kept for now: {trouble}.")
        elif self._trouble and not trouble:
            self._notices.append("The history is kept again; nothing is missing.")
        self._trouble, self._retry_at = trouble, time.monotonic() + RETRY_S

    def _write_turns(self, db: "sqlite3.Connection") -> None:
        num_earlier = len(self._conversation.nodes)
        for turn, _ in self._live:
            num_known = min(num_earlier, turn.num_before)
            history_writer.write_turn(db, self._place, self._conversation, turn, num_known)
            if not turn.is_over:  # the nodes that it adds are its own to write
                num_earlier = num_known

    def _try(
        self, work: "Work", *, durable: bool = False, wait_s: float = history_file.BUSY_S
    ) -> str:
        """Does some work in a transaction; returns what went wrong, nothing if all is well."""
        import sqlite3

        try:
            try:
                self._transact(work, durable=durable, wait_s=wait_s)
            except sqlite3.Error as error:
                if not history_file.is_damage(error):
                    raise
                self._set_aside()
                self._transact(work, durable=True)
        except (sqlite3.Error, OSError, HistoryError) as error:
            return str(history_file.explain(error, self.path))
        return ""

    def _set_aside(self) -> None:
        """Moves a damaged history away; the conversation is written to a new one as a whole."""
        with self._lock:
            self._close_file()
            place = history_file.set_aside(self.path)
            self._write_all_anew()
        if place is not None:
            self._notices.append(
                f"The history was damaged. It lies in {place} now, and a new one is begun."
            )

    def _leave_lost_file(self) -> None:
        """Goes to the file that lies there now, where the person has moved or removed ours."""
        with self._lock:
            if self._db is not None and self._file_id != _file_id(self.path):
                self._close_file()
                self._write_all_anew()

    def _close_file(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write_all_anew(self) -> None:
        """Forgets what is stored where: the next write stores the whole conversation."""
        self._place = Place(self._place.kind, self._place.title)
        for turn, _ in self._live:
            turn.forget()

    def _transact(
        self, work: "Work", *, durable: bool, wait_s: float = history_file.BUSY_S
    ) -> None:
        with self._lock:
            if self._db is None:
                self._db = history_file.open_history_file(self.path)
                self._file_id = _file_id(self.path)
            self._db.execute(f"PRAGMA busy_timeout = {int(wait_s * 1000)}")
            place = self._place.copy()
            marks = [(t, t.row, t.question_row, t.answer_row, t.num_written) for t, _ in self._live]
            try:
                with history_file.transaction(self._db, durable=durable):
                    work(self._db)
            except BaseException:
                self._place = place
                for turn, *values in marks:
                    turn.row, turn.question_row, turn.answer_row = values[:3]
                    turn.num_written = values[3] or 0
                raise


def _file_id(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class RecordedJob(Job[TurnResult]):
    """A turn's job whose text is in the history before its follower sees it."""

    def __init__(self, job: Job[TurnResult], recorder: Recorder, turn: LiveTurn) -> None:
        self._job, self._recorder, self._turn = job, recorder, turn
        self.idle = job.idle

    def cancel(self) -> None:
        """Asks the job to stop at its next check; returns at once."""
        self._job.cancel()

    @property
    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._job.done

    def __iter__(self) -> Iterator[Any]:
        """Yields the job's events, some together; when it ends, the turn is committed."""
        for batch in self.batches(lambda: 0.0):
            yield from batch

    def batches(self, interval_s: Callable[[], float]) -> Iterator[list[Any]]:
        """Yields the job's events in lists, no more often than the history can be written."""
        yield self._recorder.take_notices()
        for batch in self._job.batches(lambda: max(interval_s(), self._recorder.pace_s())):
            events = merge_text(batch)
            texts = [event for event in events if isinstance(event, TextDelta)]
            self._recorder.keep(self._turn, texts)
            yield [*self._recorder.take_notices(), *events]
        self._recorder.end(self._turn, self._job)
        yield self._recorder.take_notices()

    def result(self, timeout_s: float | None = None) -> TurnResult:
        """Waits for the job and returns its value, committed, or raises what it raised."""
        try:
            return self._job.result(timeout_s)
        finally:
            self._recorder.end(self._turn, self._job)
