"""The chat in a terminal: prompt, keys, completion, toolbar.

What is typed is understood by `slash` and answered by `turn`; keys are in `keys`. The prompt is
drawn first: its keys, Tab and the slash commands come after that, before a key is taken, then the
session's code. The model is loaded on the worker meanwhile.
"""

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.keys import Keys
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from mlxchat import __version__, paths
from mlxchat.cli.failures import LeaveChat, Stopped, explain
from mlxchat.cli.options import Request, make_attachments
from mlxchat.cli.paste import ChipProcessor, Pastes, speed_up_pastes
from mlxchat.cli.recall import RecentSuggest, open_history
from mlxchat.cli.render import format_banner, format_progress, format_toolbar
from mlxchat.cli.screen import Screen
from mlxchat.cli.terminal_modes import TerminalModes, chat_signals, has_typed
from mlxchat.errors import AttachError

if TYPE_CHECKING:
    from mlxchat.chat.results import Alternatives, SessionInfo
    from mlxchat.chat.session import Session
    from mlxchat.cli.answer_keys import Actions
    from mlxchat.cli.attachments import Attachments
    from mlxchat.cli.drafts import Drafts
    from mlxchat.cli.keys import PromptKeys
    from mlxchat.cli.turn import Answers, Start
    from mlxchat.engine.worker import Job

# How often a message that waits for the model looks whether it is there.
LOAD_POLL_S = 0.05
# So many new objects take the collector a millisecond.
KEYS_THRESHOLD = 2_000
# A thread that computes hands over to the one that has a key press after this long, not after 5 ms.
SWITCH_S = 0.0005
_LEAVE_HINT = "Press Ctrl-C again to leave."


class Repl:
    """The loop of prompt and answer.

    Args:
        open_answers: Makes what answers, and its session; called when the prompt has been drawn.
        screen: Where to.
        request: What was asked for.
        plain: No toolbar.
    """

    def __init__(
        self,
        open_answers: "Callable[[], Answers]",
        screen: Screen,
        request: Request,
        *,
        plain: bool = False,
    ) -> None:
        self._open_answers, self._screen, self._model = open_answers, screen, request.model
        self._answers: Answers | None = None
        self._attached: Attachments  # made when the prompt has been drawn
        self._drafts: Drafts | None = None
        self._load: Job[SessionInfo] | None = None
        self._load_text = ""
        self._draft = ""  # what the next prompt begins with
        self._request, self._pastes = request, Pastes()
        self._keys: PromptKeys | None = None  # made when the prompt has been drawn
        self._prompt: PromptSession[str] = PromptSession(
            self._sign,
            multiline=True,
            prompt_continuation="  ",
            history=open_history(
                paths.data_dir() / "input_history",
                self._pastes.expand,
                is_kept=request.keeps_history,
            ),
            complete_style=CompleteStyle.READLINE_LIKE,
            complete_while_typing=False,
            # Without colour a suggestion would look like what was typed.
            auto_suggest=None if plain or os.environ.get("NO_COLOR") else RecentSuggest(),
            input_processors=[ChipProcessor(self._pastes)],
            vi_mode=request.settings.keys == "vi",
            bottom_toolbar=None if plain else self._toolbar,
            enable_suspend=True,
        )
        speed_up_pastes(self._prompt.app.input)
        self._terminal = TerminalModes(self._come_back)

    def run(self, greeting: str = "") -> int:
        """Talks until the person leaves.

        Args:
            greeting: What is said before the first prompt, besides the banner.

        Returns:
            The exit code.

        Raises:
            MlxchatError: The model could not be loaded.
        """
        self._prompt.app.after_render += self._begin
        with chat_signals(), self._terminal.quiet(), contextlib.suppress(EOFError, LeaveChat):
            if has_typed(self._prompt.app.input.fileno()):
                self._take_typed()
            self._screen.note(format_banner(__version__, self._model))
            if greeting:
                self._screen.note(greeting, dim=False)
            if is_dumb_terminal():  # prompt-toolkit draws no more than the text there
                self._equip()
            while True:
                text = self._prompt.prompt(default=self._draft)
                self._draft = ""
                if text.strip():
                    self._take(text, self._answers or self._open(self._prompt.app))
        return 0

    def _take_typed(self) -> None:
        """Keeps what was typed before the prompt, which takes it before it is drawn."""
        from mlxchat.cli.answer_keys import keep_typed

        self._equip()
        keys = keep_typed(self._prompt.app.input)
        if keys and keys[-1].key != Keys.Enter:  # a line that was begun is on the screen
            self._screen.escape("\r\x1b[K")

    def _take(self, text: str, answers: "Answers") -> None:
        if self._drafts is not None:
            self._drafts.sent()
        from mlxchat.cli.answer_keys import listen, press_ctrl_c

        try:
            keys: Actions = {Keys.Escape: press_ctrl_c, Keys.ControlT: answers.session.end_thinking}
            with (
                self._terminal.marked_pastes() as is_able,
                listen(self._prompt.app.input, is_able, keys),
            ):
                start = self._understand(text, answers)
                if start is not None:
                    self._wait_for_load()
                    answers.tell_load()
                    answers.give(start)
                    self._attached.sent()
            if answers.offered is not None:
                self._choose(answers, answers.offered)
        except Stopped:
            self._screen.note("Stopped.")
        except AttachError as error:
            self._draft = text
            self._screen.error(str(error))
        except LeaveChat:
            raise
        except Exception as error:
            if answers.session.info is None and self._load is not None and self._load.done:
                raise  # without a model there is nothing to go on with
            self._screen.error(str(explain(error)))

    def _choose(self, answers: "Answers", offered: "Alternatives") -> None:
        """Lets the person choose between several answers."""
        from mlxchat.cli.choose import ask_which

        answers.offered = None
        width = self._prompt.app.output.get_size().columns
        ask_which(answers.session, offered, self._screen, width)

    def _understand(self, text: str, answers: "Answers") -> "Start | None":
        from mlxchat.cli import slash
        from mlxchat.cli.lines import read_block

        context = slash.Context(
            answers.session,
            self._screen.note,
            self._attached,
            self._request.origins,
            self._screen.escape,
            self._pastes.expand,
            screen=self._screen,
            settings=self._request.settings,
            answers=answers,
            redraft=self._redraft,
        )
        block = read_block(text)
        if block is None:
            return slash.interpret(context, text)
        return slash.send(context, block, is_literal=True)

    def _redraft(self, start: str, paste: str, end: str) -> None:
        self._draft = f"{start}{self._pastes.take(paste)}{end}"

    def _come_back(self) -> None:
        """The shell had the terminal (Ctrl-Z, `fg`), so nothing on it is where it was."""
        self._screen.lose_place()
        app = self._prompt.app

        def redraw() -> None:
            app.renderer.reset()
            app.invalidate()

        # After Ctrl-Z at the prompt it is drawn anew anyway.
        if app.is_running and app.loop is not None and not app._running_in_terminal:
            app.loop.call_soon_threadsafe(redraw)

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
            self._equip()
            self._open(app)
        except Exception as error:
            leave_prompt(app, error)

    def _equip(self) -> None:
        """Gives the prompt its keys and Tab, which nobody needs before they see it."""
        if self._keys is not None:
            return
        from mlxchat.cli.completion import ChatCompleter, format_choices
        from mlxchat.cli.keys import PromptKeys

        self._keys = PromptKeys(
            self._pastes,
            self._screen.error,
            self._show_thinking,
            lambda choices: self._screen.note(format_choices(choices, self._screen.width - 1)),
        )
        self._prompt.key_bindings = self._keys.bindings
        self._prompt.completer = ChatCompleter(self._session)

    def _open(self, app: "Application[str]") -> "Answers":
        """Opens the session and loads the model in the background; returns what answers."""
        from mlxchat.chat.results import LoadProgress

        self._attached = make_attachments(self._request)
        self._answers = answers = self._open_answers()
        self._load = job = answers.session.load()
        answers.session.prepare_history()

        def redraw() -> None:
            with contextlib.suppress(RuntimeError):  # the prompt's loop has just ended
                app.invalidate()

        answers.session.on_settled = redraw  # the toolbar says how much is held
        self._follow_drafts(answers.session, redraw)

        def watch() -> None:
            started = time.monotonic()
            for event in job:
                if isinstance(event, LoadProgress):
                    self._load_text = format_progress(event, time.monotonic() - started)
                    redraw()
            try:
                job.result()
                favour_keys()
                redraw()
            except Exception as error:
                leave_prompt(app, error)

        threading.Thread(target=watch, name="load-watch", daemon=True).start()
        return answers

    def _follow_drafts(self, session: "Session", redraw: Callable[[], None]) -> None:
        from mlxchat.cli.drafts import Drafts

        self._drafts = drafts = Drafts(
            session,
            self._attached,
            self._pastes.expand,
            redraw,
            reads_ahead=self._request.settings.typeahead,
        )
        buffer = self._prompt.default_buffer
        buffer.on_text_changed += lambda buffer: drafts.change(buffer.text)
        drafts.change(buffer.text)

    def _session(self) -> "Session | None":
        return None if self._answers is None else self._answers.session

    def _sign(self) -> str:
        count = 0 if self._answers is None else len(self._attached.pending)
        return f"[{count} attached] > " if count else "> "

    def _toolbar(self) -> str:
        if self._keys is not None and self._keys.hints_at_leaving:
            return _LEAVE_HINT
        attached = "" if self._answers is None else self._attached.describe()
        width = self._prompt.app.output.get_size().columns
        width -= len(attached) + 3 if attached else 0
        cost = None if self._drafts is None else self._drafts.cost
        toolbar = format_toolbar(self._session(), self._model, self._load_text, width, cost)
        return f"{attached} · {toolbar}" if attached else toolbar

    def _show_thinking(self) -> None:
        session = self._session()
        thinking = None if session is None or session.last is None else session.last.reasoning
        self._screen.note((thinking or "").strip("\n") or "The last answer came without thinking.")


def favour_keys() -> None:
    """Keeps the collector of cyclic garbage, and other threads, from holding a key press up.

    What was made until now stays and is looked at no more; what comes is looked at often. With the
    program's setting for its start, one key press in a hundred waited for 15 to 40 ms.
    """
    if gc.get_threshold()[0] > KEYS_THRESHOLD:  # else `main` has not set it
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()
        gc.set_threshold(KEYS_THRESHOLD, 20, 20)


def leave_prompt(app: "Application[str]", error: Exception) -> None:
    """Ends a prompt from another thread; its caller gets `error`. Does nothing without a prompt."""

    def leave() -> None:
        if app.is_running and app.future is not None and not app.future.done():
            app.exit(exception=error)

    if app.loop is not None:
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            app.loop.call_soon_threadsafe(leave)
