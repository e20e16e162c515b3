"""What the keys do at the prompt. While an answer is given, `answer_keys` listens instead."""

import time
from collections.abc import Callable

from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.filters import Condition, emacs_mode
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from mlxchat.cli.editor import edit_text
from mlxchat.cli.lines import continue_line
from mlxchat.cli.paste import Pastes
from mlxchat.errors import MlxchatError

# Two presses further apart than this are two wishes to clear the line.
LEAVE_WITHIN_S = 2.0


class PromptKeys:
    """The key bindings of the prompt.

    Args:
        pastes: Takes what is pasted.
        show_error: Shows a line above the prompt.
    """

    def __init__(self, pastes: Pastes, show_error: Callable[[str], None]) -> None:
        self._pastes, self._show_error = pastes, show_error
        self._ctrl_c_at = -LEAVE_WITHIN_S
        self._is_editing = False  # the editor has the terminal
        self.bindings = KeyBindings()
        self._add_lines()
        self._add_ctrl_c()
        self._add_pastes()
        self.bindings.add("c-x", "c-e")(self._open_editor)

    @property
    def hints_at_leaving(self) -> bool:
        """Whether the next Ctrl-C would leave."""
        return time.monotonic() - self._ctrl_c_at < LEAVE_WITHIN_S

    def _add_lines(self) -> None:
        @self.bindings.add("enter")
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
        @self.bindings.add("escape", "enter", filter=emacs_mode)
        @self.bindings.add("c-j")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

    def _add_ctrl_c(self) -> None:
        @self.bindings.add("c-c")
        @self.bindings.add("<sigint>")
        def _clear_or_leave(event: KeyPressEvent) -> None:
            if self._is_editing:  # it was meant for the editor
                return
            if not event.current_buffer.text and self.hints_at_leaving:
                event.app.exit(exception=EOFError)
                return
            event.current_buffer.reset()
            self._ctrl_c_at = time.monotonic()
            if event.app.loop is not None:  # takes the hint away when it is no longer true
                event.app.loop.call_later(LEAVE_WITHIN_S, event.app.invalidate)

    def _add_pastes(self) -> None:
        from prompt_toolkit.application.current import get_app

        pastes = self._pastes

        @Condition
        def is_at_chip() -> bool:
            buffer = get_app().current_buffer
            return pastes.find(buffer.text, buffer.cursor_position) is not None

        @self.bindings.add(Keys.BracketedPaste)
        def _paste(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(pastes.take(event.data))

        @self.bindings.add("c-x", "c-p")
        @self.bindings.add("tab", filter=is_at_chip)
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
                self._is_editing = False
            if text != draft:
                buffer.save_to_undo_stack()
                buffer.text = text
                buffer.cursor_position = len(text)

        event.app.create_background_task(work())
