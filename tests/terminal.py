"""A program in a pseudo-terminal whose screen can be read: pexpect drives it, pyte draws."""

import os
import sys
import time
from pathlib import Path

import pexpect
import pyte

REPOSITORY = Path(__file__).parents[1]


class Terminal:
    """Runs a Python program in a terminal of its own.

    Args:
        arguments: What follows `python` on its command line.
        columns, rows: Size of the screen.
        environment: Added to the environment.
    """

    def __init__(self, *arguments, columns=80, rows=24, **environment):
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=1)
        self._screen.write_process_input = self._reply  # answers cursor position requests
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        env = dict(os.environ, TERM="xterm", PYTHONPATH=str(REPOSITORY), COLUMNS="33")
        env.update(environment)
        self.process = pexpect.spawn(
            sys.executable, list(arguments), env=env, dimensions=(rows, columns), echo=True
        )

    def _reply(self, text):
        self.process.send(text)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        try:
            self.process.close(force=True)
        except pexpect.ExceptionPexpect:  # on a busy machine even a killed process takes its time
            time.sleep(2)
            self.process.close(force=True)

    def read(self, timeout_s=0.05):
        """Draws what the program has written; returns False when it has ended."""
        try:
            data = self.process.read_nonblocking(65536, timeout_s)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def send(self, keys):
        """Types."""
        self.process.send(keys)

    @property
    def lines(self):
        """The lines of the screen without trailing blanks."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self):
        """The screen as one text, without empty lines at its end."""
        return "\n".join(self.lines).rstrip()

    @property
    def scrollback(self):
        """The lines that have left the screen at its top."""
        columns = range(self._screen.columns)
        lines = ("".join(row[c].data for c in columns) for row in self._screen.history.top)
        return [line.rstrip() for line in lines]

    def resize(self, columns, rows):
        """Gives the terminal another size and tells the program."""
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def style_at(self, line, text):
        """Returns colour and boldness of the first character of a text in a (number, line)."""
        number, content = line
        char = self._screen.buffer[number][content.index(text)]
        return char.fg, char.bold

    def wait_for(self, text, timeout_s=20.0):
        """Reads until `text` is on the screen."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            if not self.read() or time.monotonic() > deadline:
                raise AssertionError(f"no {text!r} on the screen:\n{self.text}")

    def wait_for_end(self, timeout_s=20.0):
        """Reads until the program has ended; returns its exit status."""
        deadline = time.monotonic() + timeout_s
        while self.read():
            if time.monotonic() > deadline:
                raise AssertionError(f"the program goes on:\n{self.text}")
        self.process.wait()
        return self.process.exitstatus
