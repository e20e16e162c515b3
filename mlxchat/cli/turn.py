"""One answer: follows its job, shows it while it streams, lets Ctrl-C stop it, reports on it."""

import json
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar, cast

from mlxchat.chat.results import (
    Alternatives,
    BatchProgress,
    LoadProgress,
    Notice,
    PrefillProgress,
    SummaryProgress,
    TextDelta,
    TurnResult,
    merge_text,
)
from mlxchat.chat.session import Session
from mlxchat.cli.choose import format_preview
from mlxchat.cli.failures import Stopped, explain
from mlxchat.cli.progress import PhaseClock
from mlxchat.cli.render import format_batch_progress, format_progress
from mlxchat.cli.render_turn import (
    CONTEXT_WARNINGS,
    format_context_notice,
    format_summary_line,
    format_thought_line,
    format_timing,
    format_turn_line,
    format_verify,
)
from mlxchat.cli.screen import Screen
from mlxchat.engine.worker import Job, JobCancelledError
from mlxchat.errors import MlxchatError

T = TypeVar("T")
Start = Callable[[], Job[Any]]  # of a TurnResult or of Alternatives


# A job stops within one prefill chunk (150 ms); after this long Ctrl-C leaves the program instead.
PATIENCE_S = 2.0
# Text that comes within this time is shown together: more often no eye sees it, and every piece
# takes processor time from the decoding.
FRAME_S = 0.03
# Shorter phases end before their line could be read; drawing more often than this is flicker.
PROGRESS_DELAY_S, PROGRESS_INTERVAL_S = 0.2, 0.1


class StopOnCtrlC:
    """While entered, Ctrl-C cancels the watched job instead of raising KeyboardInterrupt.

    The job then ends in its own way and what it did so far is kept. Pressed again when the job did
    not react for `PATIENCE_S`, it raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.pressed_at: float | None = None
        self._job: Job[Any] | None = None
        self._old: Any = None

    def __enter__(self) -> "StopOnCtrlC":
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._old = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)

    def watch(self, job: Job[T]) -> Job[T]:
        """Names the job to cancel and returns it; cancels it at once when Ctrl-C was earlier."""
        self._job = job
        if self.pressed_at is not None:
            job.cancel()
        return job

    def _press(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.pressed_at is None:
            self.pressed_at = now
            if self._job is not None:
                self._job.cancel()
        elif now - self.pressed_at > PATIENCE_S:
            raise KeyboardInterrupt


class TurnView:
    """Shows the events of one job.

    Args:
        screen: Where to.
        shows_text: False where the answer is printed as a whole afterwards.
    """

    def __init__(self, screen: Screen, *, shows_text: bool) -> None:
        self._screen = screen
        self._shows_text = shows_text
        self._thinks_since: float | None = None
        # When the last event came that is no text: thinking begins there, and what there is of it
        # may come together with the answer.
        self._read_at = time.monotonic()
        self._num_reasoning_tokens = 0
        self._skips_newlines = False
        self._num_summarised, self._summary_started = 0, 0.0
        self._clock, self._drawn_at = PhaseClock(), time.monotonic()

    def show(self, event: object) -> None:
        """Shows one event."""
        if not isinstance(event, TextDelta):
            self._read_at = time.monotonic()
        match event:
            case TextDelta():
                self._num_reasoning_tokens = event.num_reasoning_tokens
                show = self._reason if event.kind == "reasoning" else self._answer
                show(event.text)
            case SummaryProgress() if self._screen.can_redraw:
                self._summarise(event)
            case LoadProgress() | PrefillProgress() | SummaryProgress() | BatchProgress():
                self._end_summary()
                self._progress(event)
            case Notice(text=text):
                self._screen.note(text)

    def close(self) -> None:
        """Ends what is half shown: the reasoning, a summary, a progress line, an open line."""
        self._end_reasoning()
        self._end_summary()
        self._screen.clear_progress()
        self._screen.end_line()

    def _reason(self, text: str) -> None:
        self._skips_newlines = True
        if self._shows_text and self._screen.shows_reasoning:
            if self._thinks_since is None:
                self._thinks_since = self._read_at
                text = text.lstrip("\n")
            self._screen.reasoning(text)

    def _end_reasoning(self) -> None:
        if self._thinks_since is not None:
            seconds = time.monotonic() - self._thinks_since
            line = format_thought_line(seconds, self._num_reasoning_tokens)
            self._screen.end_reasoning(line)
            self._thinks_since = None

    def _summarise(self, event: SummaryProgress) -> None:
        """Shows a summary while it is written; it folds, since it is shown as a whole afterwards.

        Of a long conversation several are written, each from the one before.
        """
        if event.done < self._num_summarised:
            self._end_summary()
        if not self._num_summarised:
            self._summary_started = time.monotonic()
        self._num_summarised = event.done
        self._screen.reasoning(event.text)

    def _end_summary(self) -> None:
        if self._num_summarised:
            seconds = time.monotonic() - self._summary_started
            self._screen.end_reasoning(format_summary_line(seconds, self._num_summarised))
            self._num_summarised = 0

    def _answer(self, text: str) -> None:
        if not self._shows_text:
            return
        self._end_reasoning()
        if self._skips_newlines:  # the empty lines that models put between thinking and answer
            text = text.lstrip("\n")
            self._skips_newlines = not text
        self._screen.answer(text)

    def _progress(
        self, event: LoadProgress | PrefillProgress | SummaryProgress | BatchProgress
    ) -> None:
        now, elapsed_s = time.monotonic(), self._clock.elapsed_s(event)
        if elapsed_s >= PROGRESS_DELAY_S and now - self._drawn_at >= PROGRESS_INTERVAL_S:
            self._drawn_at = now
            if isinstance(event, BatchProgress):
                self._screen.progress(format_batch_progress(event, elapsed_s))
            else:
                self._screen.progress(format_progress(event, elapsed_s))


def follow(
    start: Callable[[], Job[T]],
    screen: Screen | None,
    *,
    shows_text: bool = False,
    view: TurnView | None = None,
) -> T:
    """Starts a job, shows its events to its end and returns its value; Ctrl-C stops it.

    Args:
        start: Starts it.
        screen: Where to; None shows nothing.
        shows_text: Text is shown while it comes.
        view: Shows the events in its own way.

    Raises:
        MlxchatError: It failed.
        Stopped: Ctrl-C came before there was anything to keep.
        KeyboardInterrupt: Ctrl-C came twice and the job did not react.
    """
    if view is None and screen is not None:
        view = TurnView(screen, shows_text=shows_text)
    with StopOnCtrlC() as ctrl_c:
        job = ctrl_c.watch(start())
        try:
            for batch in job.batches(lambda: FRAME_S):
                for event in merge_text(batch):
                    if view is not None:
                        view.show(event)
        except BaseException:
            job.cancel()
            raise
        finally:
            if view is not None:
                view.close()
        try:
            return job.result()
        except JobCancelledError:
            raise Stopped from None


class Answers:
    """Gives answers one after the other in the form that the command line asked for.

    Args:
        session: Answers.
        screen: Shows.
        as_json: One JSON object per answer instead of its text.
        timing: The full report after each answer.
        turn_line: One line after each answer.
    """

    def __init__(
        self,
        session: Session,
        screen: Screen,
        *,
        as_json: bool = False,
        timing: bool = False,
        turn_line: bool = False,
    ) -> None:
        self.session, self.screen = session, screen
        self._as_json, self._turn_line = as_json, turn_line
        self.timing = timing
        self._has_told_load = False
        self._context_warned = 0.0  # the share of the context that was told last
        self.offered: Alternatives | None = None  # what the person may choose from

    def give(self, start: Start) -> TurnResult:
        """Starts an answer, shows it to its end and reports on it.

        Raises:
            MlxchatError: The answer failed.
            Stopped: Ctrl-C came before there was anything to keep.
            KeyboardInterrupt: Ctrl-C came twice and the job did not react.
        """
        result: Any = follow(start, self.screen, shows_text=not self._as_json)
        self.offered = None
        if isinstance(result, Alternatives):
            return self._offer(result)
        self._report(result)
        return cast(TurnResult, result)

    def _offer(self, offered: Alternatives) -> TurnResult:
        """Shows several answers under their numbers; returns the one at the head.

        Raises:
            MlxchatError: Some failed, and nobody is asked which one it is to be.
            KeyboardInterrupt: The same where Ctrl-C ended some.
        """
        problem, is_stopped = _explain_lost(offered), _is_stopped(offered)
        if self._turn_line:
            width = self.screen.width
            for number, result in enumerate(offered.results, start=1):
                self.screen.note(format_preview(number, result, width), dim=False)
            if is_stopped:
                self.screen.note(str(problem))
            elif problem is not None:
                self.screen.error(str(problem))
            self.offered = offered
            self.tell_load()
            return offered.results[0]
        for number, result in enumerate(offered.results, start=1):
            if not self._as_json:
                self.screen.line(f"[{number}]" if number == 1 else f"\n[{number}]")
                self.screen.answer(result.text)
                self.screen.end_line()
            self._report(result)
        if offered.old is not None:
            self.screen.note(
                f"{len(offered.results)} answers; the first is kept, /tree shows the others."
            )
        if is_stopped:
            self.screen.note(str(problem))
            raise KeyboardInterrupt
        if problem is not None:
            raise problem
        return offered.results[0]

    def tell_load(self) -> None:
        """Shows, once, what the load had to say."""
        if not self._has_told_load and self.session.info is not None:
            self._has_told_load = True
            for text in self.session.info.notices:
                self.screen.note(text)

    def _report(self, result: TurnResult) -> None:
        if self._as_json:
            self.screen.line(json.dumps(result.to_json()))
        self.tell_load()
        has_answer = bool(result.text.strip())
        if result.stop_reason == "token_limit" and result.reasoning and not has_answer:
            self.screen.note(
                "The token limit came before the answer; /continue goes on, --max-tokens allows"
                " more."
            )
        if result.stop_reason == "eos_token" and not has_answer:
            after = " with its thinking," if result.reasoning else ""
            self.screen.note(f"The model ended{after} without an answer; /retry asks it again.")
        if result.stop_reason == "context_full":
            self.screen.note(
                "The context is full, so the answer ends here; /compact makes room, then /continue"
                " goes on with it."
            )
        if result.verify is not None:
            self.screen.note(format_verify(result.verify))
        if self.timing:
            self.screen.note(format_timing(result))
        elif self._turn_line:
            self.screen.note(format_turn_line(result))
        self._warn_of_context()

    def _warn_of_context(self) -> None:
        """Tells, once each, that the context is filling up."""
        limit = 0 if self.session.info is None else self.session.info.context_limit
        used = self.session.context_used
        passed = [share for share in CONTEXT_WARNINGS if used >= share * limit > 0]
        warned, self._context_warned = self._context_warned, max(passed, default=0.0)
        if self._context_warned > warned:
            self.screen.note(format_context_notice(used, limit), dim=False)


def _explain_lost(offered: Alternatives) -> MlxchatError | None:
    """Returns what to say of answers that failed, or were stopped, while the others came."""
    if not offered.errors:
        return None
    lost, count = len(offered.errors), len(offered.errors) + len(offered.results)
    if _is_stopped(offered):
        return MlxchatError(f"Stopped; {count - lost} of {count} answers had ended.")
    return MlxchatError(f"{lost} of {count} answers failed: {explain(offered.errors[0])}")


def _is_stopped(offered: Alternatives) -> bool:
    return any(isinstance(error, JobCancelledError) for error in offered.errors)
