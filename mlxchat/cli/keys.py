"""What the keys do at the prompt. While an answer is given, `answer_keys` listens instead."""

import time
from collections.abc import Callable, Sequence
from functools import partial

from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import Completion
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, emacs_mode, has_focus
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import (
    ConditionalKeyBindings,
    KeyBindings,
    KeyPressEvent,
    merge_key_bindings,
)
from prompt_toolkit.keys import Keys
from prompt_toolkit.search import stop_search
from prompt_toolkit.utils import is_dumb_terminal

from mlxchat.cli.completion import complete_line
from mlxchat.cli.lines import continue_line
from mlxchat.cli.paste import Pastes
from mlxchat.errors import MlxchatError

# Shift-Enter, where the terminal tells it apart (xterm's way, and the way that kitty began).
ANSI_SEQUENCES |= dict.fromkeys(("\x1b[27;2;13~", "\x1b[13;2u"), Keys.ControlJ)
# Two presses further apart than this are two wishes to clear the line.
LEAVE_WITHIN_S = 2.0
# A signal that comes this soon after the editor's end was meant for the editor.
EDITOR_SIGNAL_S = 0.5


class PromptKeys:
    """The key bindings of the prompt.

    Args:
        pastes: Takes what is pasted.
        show_error: Shows a line above the prompt.
        show_thinking: Shows the last thinking above the prompt.
        show_choices: Shows what Tab found above the prompt.
    """

    def __init__(
        self,
        pastes: Pastes,
        show_error: Callable[[str], None],
        show_thinking: Callable[[], None] = lambda: None,
        show_choices: Callable[[Sequence[Completion]], None] = lambda choices: None,
    ) -> None:
        self._pastes, self._show_error, self._show_choices = pastes, show_error, show_choices
        self._ctrl_c_at = -LEAVE_WITHIN_S
        self._is_editing = False  # the editor has the terminal
        self._edited_at = -LEAVE_WITHIN_S  # when it gave it back
        own = KeyBindings()
        self._own = own
        self._add_lines()
        own.add("c-c")(self._clear_or_leave)
        self._add_pastes()
        own.add("c-x", "c-e")(self._open_editor)

        @own.add("c-o")
        def _show_thinking(event: KeyPressEvent) -> None:
            run_in_terminal(show_thinking)

        # In a Ctrl-R search the keys are prompt-toolkit's; Ctrl-C as a signal comes anywhere.
        everywhere = KeyBindings()
        everywhere.add("<sigint>")(self._take_signal)
        at_the_line = ConditionalKeyBindings(own, has_focus(DEFAULT_BUFFER))
        self.bindings = merge_key_bindings([at_the_line, everywhere])

    @property
    def hints_at_leaving(self) -> bool:
        """Whether the next Ctrl-C would leave."""
        return time.monotonic() - self._ctrl_c_at < LEAVE_WITHIN_S

    def _add_lines(self) -> None:
        @self._own.add("enter")
        def _send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            longer = continue_line(buffer.text)
            if longer is None:
                buffer.validate_and_handle()
            elif longer.startswith(buffer.text):  # an open block: the line goes where one types
                buffer.insert_text("\n")
            else:
                buffer.save_to_undo_stack()
                buffer.text = longer
                buffer.cursor_position = len(longer)

        # In vi mode a lone Esc must act at once, so it cannot begin a longer key.
        @self._own.add("escape", "enter", filter=emacs_mode)
        @self._own.add("c-j")
        def _new_line(event: KeyPressEvent) -> None:
            if is_dumb_terminal():  # the shell of Emacs ends its lines so
                _send(event)
            else:
                event.current_buffer.insert_text("\n")

    def _take_signal(self, event: KeyPressEvent) -> None:
        """Takes a Ctrl-C that came as a signal: while the terminal was not the prompt's."""
        # It may be heard of only when the editor that it has ended is gone.
        if self._is_editing or time.monotonic() - self._edited_at < EDITOR_SIGNAL_S:
            return
        if event.app.layout.is_searching:
            stop_search()
        else:
            self._clear_or_leave(event)

    def _clear_or_leave(self, event: KeyPressEvent) -> None:
        if not event.current_buffer.text and self.hints_at_leaving:
            event.app.exit(exception=EOFError)
            return
        event.current_buffer.reset()
        event.app.vi_state.reset()  # a new line is typed, as in shells
        self._ctrl_c_at = time.monotonic()
        if event.app.loop is not None:  # takes the hint away when it is no longer true
            event.app.loop.call_later(LEAVE_WITHIN_S, event.app.invalidate)

    def _add_pastes(self) -> None:
        pastes = self._pastes

        @Condition
        def is_at_chip() -> bool:
            buffer = get_app().current_buffer
            return pastes.find(buffer.text, buffer.cursor_position) is not None

        @self._own.add(Keys.BracketedPaste)
        def _paste(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(pastes.take(event.data))

        @self._own.add("tab", filter=~is_at_chip)
        def _complete(event: KeyPressEvent) -> None:
            # prompt-toolkit's own way leaves the toolbar behind in the scrollback.
            if choices := complete_line(event.current_buffer):
                run_in_terminal(partial(self._show_choices, choices))

        @self._own.add("c-x", "c-p")
        @self._own.add("tab", filter=is_at_chip)
        def _expand(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            place = pastes.find(buffer.text, buffer.cursor_position)
            if place is None:
                before, after = pastes.expand(buffer.text), ""
            else:
                before = buffer.text[:place] + pastes.expand(buffer.text[place])
                after = buffer.text[place + 1 :]
            buffer.save_to_undo_stack()
            buffer.text = before + after
            buffer.cursor_position = len(before)

    def _open_editor(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        draft = self._pastes.expand(buffer.text)

        def edit() -> str:
            from mlxchat.cli.editor import edit_text

            try:
                return edit_text(draft)
            except MlxchatError as error:
                self._show_error(str(error))
                return draft

        async def work() -> None:
            self._is_editing = True
            try:
                text = await run_in_terminal(edit, in_executor=True)
            finally:
                self._is_editing, self._edited_at = False, time.monotonic()
            if text != draft:
                buffer.save_to_undo_stack()
                buffer.text = text
                buffer.cursor_position = len(text)

        event.app.create_background_task(work())
