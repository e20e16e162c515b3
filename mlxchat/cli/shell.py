"""Runs a shell command and keeps its output: shown while it comes, cut in the middle when long.

The command has no keyboard and a session of its own, so that it can neither wait for the person nor
take the terminal; Ctrl-C ends it with all that it started, and not the chat.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType

from mlxchat.cli.attachments import Attachment
from mlxchat.cli.render import format_count
from mlxchat.errors import AttachError

MAX_BYTES = 16 * 1024  # of output that the model gets; about 4 000 tokens
MAX_SHOWN_LINES = 40
# After Ctrl-C a command may clean up this long; after as long again it is killed.
PATIENCE_S = 1.0
# What a command left running in the background may still write.
_LAST_WORDS_S = 0.1
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[ -/]*[0-~]"
)


class Clip:
    """Keeps the beginning and the end of a long stream of bytes.

    Args:
        limit: Bytes that are kept.
    """

    def __init__(self, limit: int = MAX_BYTES) -> None:
        self._half = limit // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._num_tail = 0
        self._num_lost = self._lines_lost = 0
        self.size = 0

    def add(self, data: bytes) -> None:
        """Takes the next piece."""
        self.size += len(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        if rest := data[room:]:
            self._tail.append(rest)
            self._num_tail += len(rest)
        while self._num_tail > self._half and self._tail:
            over = self._num_tail - self._half
            piece = self._tail.popleft()
            lost, kept = piece[:over], piece[over:]
            self._num_lost += len(lost)
            self._lines_lost += lost.count(b"\n")
            self._num_tail -= len(lost)
            if kept:
                self._tail.appendleft(kept)
                break

    def text(self) -> str:
        """Returns what was kept as clean text, with a line that says how much is missing."""
        head, tail = bytes(self._head), b"".join(self._tail)
        if not self._num_lost:
            return clean_output(head + tail)
        # Whole lines on both sides, where there are lines.
        cut = head.rfind(b"\n") + 1 or len(head)
        skip = tail.find(b"\n") + 1
        if skip == len(tail):
            skip = 0
        lost = self._num_lost + len(head) - cut + skip
        lines = self._lines_lost + tail[:skip].count(b"\n")
        start, end = clean_output(head[:cut]), clean_output(tail[skip:])
        line_end = "" if start.endswith("\n") else "\n"
        what = f"{format_count(lost)} bytes, {format_count(lines)} lines"
        return f"{start}{line_end}[... {what} left out ...]\n{end}"


def clean_output(data: bytes) -> str:
    """Returns output as text: no colours, of each line what a terminal would show at the end."""
    text = _ESCAPES.sub("", data.decode(errors="replace")).replace("\r\n", "\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def run_command(command: str, say: Callable[[str], None], max_bytes: int = MAX_BYTES) -> Attachment:
    """Runs a command line in the person's shell until it ends or Ctrl-C stops it.

    Args:
        command: What the shell gets.
        say: Shows lines of output.
        max_bytes: Output that is kept.

    Raises:
        AttachError: It cannot be started.
    """
    try:
        process = subprocess.Popen(
            [_find_shell(), "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise AttachError(f"the command cannot be started: {error}; correct it") from None
    clip, shown = Clip(max_bytes), _Shown(say)
    with process, _stops_on_ctrl_c(process) as stop:
        for data in _read_output(process, stop):
            clip.add(data)
            shown.add(data)
        status = _end(process, stop)
    shown.close()
    return Attachment(command, clip.text() or "(no output)", clip.size, status)


def _find_shell() -> str:
    shell = os.environ.get("SHELL", "")
    return shell if os.path.isabs(shell) and os.access(shell, os.X_OK) else "/bin/sh"


class _Stop:
    """When Ctrl-C was pressed."""

    pressed_at: float | None = None


@contextlib.contextmanager
def _stops_on_ctrl_c(process: "subprocess.Popen[bytes]") -> Iterator[_Stop]:
    """Sends Ctrl-C on to the command; pressed again, kills it."""
    stop = _Stop()

    def press(number: int, frame: FrameType | None) -> None:
        _signal_all(process, signal.SIGINT if stop.pressed_at is None else signal.SIGKILL)
        stop.pressed_at = stop.pressed_at or time.monotonic()

    is_main = threading.current_thread() is threading.main_thread()
    listens = is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    old = signal.signal(signal.SIGINT, press) if listens else None
    try:
        yield stop
    finally:
        if process.poll() is None:  # the chat itself is ended
            _signal_all(process, signal.SIGKILL)
        if old is not None:
            signal.signal(signal.SIGINT, old)


def _read_output(process: "subprocess.Popen[bytes]", stop: _Stop) -> Iterator[bytes]:
    """Yields output until the command has ended; what it left in the background is not awaited."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    while True:
        has_ended = process.poll() is not None
        ready, _, _ = select.select([descriptor], [], [], _LAST_WORDS_S)
        if ready:
            if not (data := os.read(descriptor, 65536)):
                return
            yield data
        elif has_ended:
            return
        _lose_patience(process, stop)


def _lose_patience(process: "subprocess.Popen[bytes]", stop: _Stop) -> None:
    if stop.pressed_at is not None:
        waited_s = time.monotonic() - stop.pressed_at
        if waited_s > 2 * PATIENCE_S:
            _signal_all(process, signal.SIGKILL)
        elif waited_s > PATIENCE_S:
            _signal_all(process, signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]", stop: _Stop) -> str:
    while True:  # it may have closed its output and go on
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(_LAST_WORDS_S)
            break
        _lose_patience(process, stop)
    if stop.pressed_at is not None:
        return "stopped by Ctrl-C"
    return f"exit status {code}" if code >= 0 else f"ended by signal {-code}"


def _signal_all(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Shown:
    """Shows the first lines of output as they come."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._open, self._num_lines = say, b"", 0

    def add(self, data: bytes) -> None:
        if self._num_lines >= MAX_SHOWN_LINES:
            self._num_lines += data.count(b"\n")
            return
        *lines, rest = (self._open + data).split(b"\n")
        self._open = rest[-4096:]  # a line without end must not grow for ever
        shown = lines[: MAX_SHOWN_LINES - self._num_lines]
        self._num_lines += len(lines)
        if shown:
            self._say(clean_output(b"\n".join(shown)))

    def close(self) -> None:
        """Shows the last line, or how many were not shown."""
        if self._num_lines > MAX_SHOWN_LINES:
            more = format_count(self._num_lines - MAX_SHOWN_LINES)
            self._say(f"… {more} more lines")
        elif self._open:
            self._say(clean_output(self._open))
