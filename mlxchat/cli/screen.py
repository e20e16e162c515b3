"""The one writer to the terminal: where text goes, how it is dimmed, and how progress is drawn.

An answer goes to `out`; what is said about it (progress, notices, reports, errors) goes to `notes`.
"""

import os
from typing import TextIO

from mlxchat.cli.render import one_line, sanitize, wrap_parts

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


class Screen:
    """Two text streams and what they can show.

    Args:
        out: Takes answers; every character of them is sanitised.
        notes: Takes everything else.
        plain: No styles and no progress display, whatever the terminal can do.
    """

    def __init__(self, out: TextIO, notes: TextIO, *, plain: bool = False) -> None:
        self._is_terminal = self.shows_reasoning = notes.isatty()
        self._takes_escapes = notes.isatty() and os.environ.get("TERM") != "dumb"
        self.shows_progress = self._takes_escapes and not plain
        self._dims = self.shows_progress and not os.environ.get("NO_COLOR")
        self._out, self._notes = out, notes
        self._is_one_place = out is notes or (out.isatty() and notes.isatty())
        self._progress_is_shown = False
        self._open_line: TextIO | None = None  # where the last piece did not end its line

    def answer(self, text: str) -> None:
        """Writes a piece of the answer."""
        self._write(self._out, sanitize(text), dim=False)

    def reasoning(self, text: str) -> None:
        """Writes a piece of the reasoning, dimmed."""
        self._write(self._notes, sanitize(text), dim=True)

    def note(self, text: str, *, dim: bool = True) -> None:
        """Writes lines about the answer or the program."""
        if self._is_one_place or self._open_line is self._notes:
            self.end_line()
        text = sanitize(text)
        if self._is_terminal:
            width = self._width()
            text = "\n".join(wrap_parts(line, width) for line in text.split("\n"))
        self._write(self._notes, f"{text}\n", dim=dim)

    def error(self, message: str) -> None:
        """Writes one error line."""
        self.note(f"Error: {one_line(message)}", dim=False)

    def line(self, text: str) -> None:
        """Writes a line to `out` that is no answer text, such as a JSON object."""
        self._write(self._out, f"{text}\n", dim=False)

    def escape(self, sequence: str) -> bool:
        """Writes an escape sequence of ours that shows nothing; returns False without a terminal.

        The only way past `sanitize`: nothing of a model, a file or a person may be in it unencoded.
        """
        if self._takes_escapes:
            self._put(self._notes, sequence)
        return self._takes_escapes

    def end_line(self) -> None:
        """Ends the line that a piece left open, so that what follows starts its own."""
        if self._open_line is not None:
            self._write(self._open_line, "\n", dim=False)

    def progress(self, text: str) -> None:
        """Draws `text` over the last progress line; does nothing where no one can see it."""
        if self.shows_progress:
            if self._is_one_place or self._open_line is self._notes:
                self.end_line()
            text = text[: self._width() - 1]
            self._put(self._notes, _CLEAR_LINE + self._dimmed(text))
            self._progress_is_shown = True

    def clear_progress(self) -> None:
        """Takes the progress line away."""
        if self._progress_is_shown:
            self._put(self._notes, _CLEAR_LINE)
            self._progress_is_shown = False

    def _write(self, stream: TextIO, text: str, *, dim: bool) -> None:
        if not text:
            return
        self.clear_progress()
        self._open_line = None if text.endswith("\n") else stream
        self._put(stream, self._dimmed(text) if dim else text)

    def _width(self) -> int:
        # Not from shutil: it prefers the variable COLUMNS, which is old after a resize.
        try:
            return os.get_terminal_size(self._notes.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _dimmed(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._dims else text

    def _put(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()
