"""What the chat sets on the terminal and in its signals, and how both are put back.

The terminal is the shell's again whenever the chat does not run: at its end, however that comes,
and while Ctrl-Z has it stopped.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_MARK_PASTES, _LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"
# Ends what may be half done: a style, a hidden cursor, rows that do not wrap.
_PLAIN = "\x1b[0m\x1b[?25h\x1b[?7h"


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


def has_typed(descriptor: int) -> bool:
    """Returns whether this is a terminal on which something was typed that nobody read yet."""
    return os.isatty(descriptor) and bool(select.select([descriptor], [], [], 0)[0])


class TerminalModes:
    """The modes of the terminal between prompts, which take it over as it is here.

    Args:
        on_return: Called when the shell had the terminal and gave it back.
    """

    def __init__(self, on_return: Callable[[], None]) -> None:
        self._on_return = on_return
        self._marks_pastes = False

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Keeps keys that are pressed between prompts from showing; Ctrl-C still interrupts.

        What was typed is there when the next prompt opens.
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
        quiet[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
        quiet[3] |= termios.NOFLSH  # Ctrl-C does not throw away what was typed before it
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
        try:
            with self._suspending(descriptor, old):
                yield
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, old)

    @contextlib.contextmanager
    def _suspending(self, descriptor: int, old: list[object]) -> Iterator[None]:
        """Gives the terminal to the shell while Ctrl-Z has the program stopped."""
        import termios

        def suspend(number: int, frame: FrameType | None) -> None:
            modes = termios.tcgetattr(descriptor)
            self._put(_PLAIN + (_LEAVE_PASTES if self._marks_pastes else ""))
            termios.tcsetattr(descriptor, termios.TCSANOW, old)  # type: ignore[arg-type]
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)  # goes on here after `fg`
            signal.signal(signal.SIGTSTP, suspend)
            termios.tcsetattr(descriptor, termios.TCSANOW, modes)  # stops again after `bg`
            self._put(_MARK_PASTES if self._marks_pastes else "")
            self._on_return()

        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
            yield  # a shell without job control ignores it
            return
        signal.signal(signal.SIGTSTP, suspend)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    @contextlib.contextmanager
    def marked_pastes(self) -> Iterator[bool]:
        """Has the terminal mark where a paste begins and ends, as it does at the prompt.

        So what is pasted during an answer is still one piece when the next prompt reads it. Yields
        whether there is a terminal that can do this.
        """
        is_able = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        if is_able:
            self._marks_pastes = True
            sys.stdout.write(_MARK_PASTES)
            sys.stdout.flush()
        try:
            yield is_able
        finally:
            if is_able:
                self._marks_pastes = False
                sys.stdout.write(_LEAVE_PASTES)
                sys.stdout.flush()

    @staticmethod
    def _put(text: str) -> None:
        """Writes past the stream, which the signal may have caught in the middle of a write."""
        if os.environ.get("TERM") != "dumb":
            with contextlib.suppress(OSError, ValueError):
                os.write(sys.stdout.fileno(), text.encode())
