"""The keys while an answer is given: Esc stops it, Ctrl-T ends its thinking, all others wait.

A terminal can only be read, not looked at, so whoever listens for Esc takes every key. Two things
make that safe. The keys are read through prompt-toolkit's own input, whose decoder and parser keep
half a character, half an escape sequence and half a paste for the prompt that follows. And whole
keys are handed over by its type-ahead buffer, which the next prompt empties first. The listener is
stopped and joined before the prompt reads, so there is one reader at any time.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

# A terminal sends an arrow key as Esc and more; a lone Esc has nothing after it this long.
ESCAPE_WAIT_S = 0.1
Actions = Mapping[Keys | str, Callable[[], None]]


def press_ctrl_c() -> None:
    """Does what Ctrl-C does at this moment."""
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # another thread would not wake the main one


@contextlib.contextmanager
def listen(
    keyboard: Input, is_terminal: bool = True, actions: Actions | None = None
) -> Iterator[None]:
    """Listens for keys while entered; the keys without an action wait for the next prompt.

    Args:
        keyboard: What the prompt reads from.
        is_terminal: Whether there is one; else nothing is read.
        actions: What keys do, called on the listening thread; Esc presses Ctrl-C without them.
    """
    if not is_terminal:
        yield
        return
    listener = _Listener(keyboard, {Keys.Escape: press_ctrl_c} if actions is None else actions)
    listener.start()
    try:
        yield
    finally:
        listener.stop()


def keep_typed(keyboard: Input) -> list[KeyPress]:
    """Keeps for the first prompt what was typed before the terminal was ours.

    Until then the terminal made a line feed of Enter, and showed what was typed. So a line feed
    is Enter here, and not Ctrl-J. Returns what is kept.
    """
    keys = [
        KeyPress(Keys.ControlM, "\r") if press.key == Keys.ControlJ else press
        for press in keyboard.read_keys()
    ]
    store_typeahead(keyboard, keys)
    return keys


class _Listener:
    """Reads keys on a thread of its own."""

    def __init__(self, keyboard: Input, actions: Actions) -> None:
        self._keyboard, self._actions = keyboard, actions
        self._kept: list[KeyPress] = []
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="answer-keys", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and hands over what was typed."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_write)
        os.close(self._wake_read)
        store_typeahead(self._keyboard, self._kept)

    def _run(self) -> None:
        keyboard = self._keyboard.fileno()
        is_ending = is_half = False
        with contextlib.suppress(OSError, ValueError):  # the terminal went away
            while is_half or not is_ending:
                watched = [keyboard] if is_ending else [keyboard, self._wake_read]
                ready, _, _ = select.select(watched, [], [], ESCAPE_WAIT_S if is_half else None)
                is_ending = is_ending or self._wake_read in ready
                if keyboard in ready:
                    self._take(self._keyboard.read_keys())
                    if self._keyboard.closed:
                        return
                    is_half = True
                elif not ready:
                    self._take(self._keyboard.flush_keys())
                    is_half = False

    def _take(self, keys: list[KeyPress]) -> None:
        for press in keys:
            action = self._actions.get(press.key)
            if action is None:
                self._kept.append(press)
            else:
                action()
