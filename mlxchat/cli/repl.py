"""The chat in a terminal: prompt, keys, completion, toolbar.

What is typed is understood by `slash` and answered by `turn`. The prompt is drawn before the
session's code is imported; the model is loaded on the worker while the person types.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from mlxchat import __version__, paths
from mlxchat.cli import slash
from mlxchat.cli.failures import Stopped, explain
from mlxchat.cli.render import format_banner, format_progress, format_toolbar
from mlxchat.cli.screen import Screen

if TYPE_CHECKING:
    from mlxchat.chat.results import SessionInfo
    from mlxchat.cli.turn import Answers
    from mlxchat.engine.worker import Job

# Two presses further apart than this are two wishes to clear the line.
LEAVE_WITHIN_S = 2.0
# How often a message that waits for the model looks whether it is there.
LOAD_POLL_S = 0.05
_MARK_PASTES, _LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"
_LEAVE_HINT = "Press Ctrl-C again to leave."


class SlashCompleter(Completer):
    """Completes slash commands and their arguments from their registry."""

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yields the commands that begin with what stands before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or text[1:].startswith("/"):
            return
        name, space, argument = text[1:].partition(" ")
        if space:
            known = slash.COMMANDS.get(name)
            for value, meaning in known.complete(argument) if known and known.complete else ():
                yield Completion(value, -len(argument), display_meta=meaning)
            return
        for name, command in slash.COMMANDS.items():
            if name.startswith(text[1:]):
                yield Completion(f"/{name}", -len(text), display_meta=command.summary)


class Repl:
    """The loop of prompt and answer.

    Args:
        open_answers: Makes what answers, and its session; called when the prompt has been drawn.
        screen: Where to.
        model: The name that was asked for; None is the built-in one.
        plain: No toolbar.
        keeps_history: What is typed goes to disk, to be recalled another day.
    """

    def __init__(
        self,
        open_answers: "Callable[[], Answers]",
        screen: Screen,
        model: str | None,
        *,
        plain: bool = False,
        keeps_history: bool = True,
    ) -> None:
        self._open_answers, self._screen, self._model = open_answers, screen, model
        self._answers: Answers | None = None
        self._load: Job[SessionInfo] | None = None
        self._load_text = ""
        self._ctrl_c_at = -LEAVE_WITHIN_S
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            history=open_history(paths.data_dir() / "input_history", is_kept=keeps_history),
            completer=SlashCompleter(),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            key_bindings=self._keys(),
            bottom_toolbar=None if plain else self._toolbar,
        )

    def run(self, greeting: str = "") -> int:
        """Talks until the person leaves.

        Args:
            greeting: What is said before the first prompt, besides the banner.

        Returns:
            The exit code.

        Raises:
            MlxchatError: The model could not be loaded.
        """
        self._screen.note(format_banner(__version__, self._model))
        if greeting:
            self._screen.note(greeting, dim=False)
        self._prompt.app.after_render += self._begin
        with chat_signals(), quiet_terminal(), contextlib.suppress(EOFError, slash.LeaveChat):
            while True:
                text = self._prompt.prompt()
                if text.strip():
                    self._take(text, self._answers or self._open(self._prompt.app))
        return 0

    def _take(self, text: str, answers: "Answers") -> None:
        try:
            with marked_pastes():
                context = slash.Context(answers.session, self._screen.note, self._screen)
                start = slash.interpret(context, text)
                if start is not None:
                    self._wait_for_load()
                    answers.tell_load()
                    answers.give(start)
        except Stopped:
            self._screen.note("Stopped.")
        except slash.LeaveChat:
            raise
        except Exception as error:
            if answers.session.info is None and self._load is not None and self._load.done:
                raise  # without a model there is nothing to go on with
            self._screen.error(str(explain(error)))

    def _wait_for_load(self) -> None:
        """Shows how the load goes on while a message waits for it.

        Raises:
            Stopped: Ctrl-C took the message back; the load goes on.
        """
        from mlxchat.cli.turn import StopOnCtrlC

        with StopOnCtrlC() as ctrl_c:
            while self._load is not None and not self._load.done:
                if ctrl_c.pressed_at is not None:
                    self._screen.clear_progress()
                    raise Stopped
                if self._load_text:
                    self._screen.progress(self._load_text)
                time.sleep(LOAD_POLL_S)
        self._screen.clear_progress()

    def _begin(self, app: "Application[str]") -> None:
        """Opens the session after the first drawing; a dumb terminal's prompt never gets here."""
        app.after_render -= self._begin
        try:
            self._open(app)
        except Exception as error:
            leave_prompt(app, error)

    def _open(self, app: "Application[str]") -> "Answers":
        """Opens the session and loads the model in the background; returns what answers."""
        from mlxchat.chat.results import LoadProgress

        self._answers = answers = self._open_answers()
        self._load = job = answers.session.load()
        answers.session.prepare_history()

        def redraw() -> None:
            with contextlib.suppress(RuntimeError):  # the prompt's loop has just ended
                app.invalidate()

        def watch() -> None:
            started = time.monotonic()
            for event in job:
                if isinstance(event, LoadProgress):
                    self._load_text = format_progress(event, time.monotonic() - started)
                    redraw()
            try:
                job.result()
                redraw()
            except Exception as error:
                leave_prompt(app, error)

        threading.Thread(target=watch, name="load-watch", daemon=True).start()
        return answers

    def _toolbar(self) -> str:
        if time.monotonic() - self._ctrl_c_at < LEAVE_WITHIN_S:
            return _LEAVE_HINT
        session = None if self._answers is None else self._answers.session
        width = self._prompt.app.output.get_size().columns
        return format_toolbar(session, self._model, self._load_text, width)

    def _show_thinking(self) -> None:
        last = None if self._answers is None else self._answers.session.last
        thinking = None if last is None else last.reasoning
        self._screen.note((thinking or "").strip("\n") or "The last answer came without thinking.")

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-o")
        def _show_thinking(event: KeyPressEvent) -> None:
            run_in_terminal(self._show_thinking)

        @keys.add("c-c")
        @keys.add("<sigint>")
        def _clear_or_leave(event: KeyPressEvent) -> None:
            now = time.monotonic()
            is_empty = not event.current_buffer.text
            if is_empty and now - self._ctrl_c_at < LEAVE_WITHIN_S:
                event.app.exit(exception=EOFError)
                return
            event.current_buffer.reset()
            self._ctrl_c_at = now
            if event.app.loop is not None:  # takes the hint away when it is no longer true
                event.app.loop.call_later(LEAVE_WITHIN_S, event.app.invalidate)

        return keys


class _ForgetfulHistory(FileHistory):
    """Recalls what the file holds; what is typed now lasts as long as the chat."""

    def store_string(self, string: str) -> None:
        pass


def open_history(path: Path, *, is_kept: bool = True) -> History:
    """Returns the input history kept in `path`, which only its owner can read.

    Where the file cannot be written, or nothing shall be kept, what is typed lasts as long as the
    chat.
    """
    try:
        paths.make_private_dir(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path)) if is_kept else _ForgetfulHistory(str(path))


def leave_prompt(app: "Application[str]", error: Exception) -> None:
    """Ends a prompt from another thread; its caller gets `error`. Does nothing without a prompt."""

    def leave() -> None:
        if app.is_running and app.future is not None and not app.future.done():
            app.exit(exception=error)

    if app.loop is not None:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            app.loop.call_soon_threadsafe(leave)


@contextlib.contextmanager
def chat_signals() -> Iterator[None]:
    """Leaves in the normal way on SIGTERM and SIGHUP, so that the terminal is put back.

    SIGINT does nothing in the moments between a prompt and an answer, which handle it themselves.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: leave, signal.SIGHUP: leave, signal.SIGINT: ignore}
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def quiet_terminal() -> Iterator[None]:
    """Keeps keys that are pressed between prompts from showing; Ctrl-C still interrupts.

    What was typed is there when the next prompt opens, which takes the terminal over as it is here.
    """
    import termios

    try:
        descriptor = sys.stdin.fileno()
        old = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    quiet = [*old]
    quiet[0] &= ~termios.ICRNL  # Enter stays Enter for the next prompt
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # Ctrl-C does not throw away what was typed before it
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, old)


@contextlib.contextmanager
def marked_pastes() -> Iterator[None]:
    """Has the terminal mark where a paste begins and ends, as it does at the prompt.

    So what is pasted during an answer is still one piece when the next prompt reads it.
    """
    is_able = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if is_able:
        sys.stdout.write(_MARK_PASTES)
        sys.stdout.flush()
    try:
        yield
    finally:
        if is_able:
            sys.stdout.write(_LEAVE_PASTES)
            sys.stdout.flush()
