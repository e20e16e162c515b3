"""The one writer to the terminal: where text goes, how it is dimmed, and how progress is drawn.

An answer goes to `out`; what is said about it (progress, notices, reports, errors) goes to `notes`.
Where both are one terminal that can move its cursor, answers are shown as Markdown and thinking
folds to a line; everywhere else text is written as it comes.
"""

import contextlib
import os
from typing import TYPE_CHECKING, TextIO

from mlxchat.cli.render import one_line, sanitize, wrap_cells, wrap_parts, wrap_words
from mlxchat.cli.theme import DEFAULT, color_depth, find_theme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, RenderableType

    from mlxchat.cli.live import LiveRegion
    from mlxchat.cli.streams import AnswerStream, ThoughtStream

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


def terminal_width(stream: TextIO) -> int:
    """Returns the columns of the terminal that a stream writes to; 0 where it is none."""
    # Not from shutil: it prefers the variable COLUMNS, which is old after a resize.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return (os.get_terminal_size(stream.fileno()).columns or 80) if stream.isatty() else 0
    return 0


def show_table(text: str, stream: TextIO) -> None:
    """Writes a table that a command made; a terminal gets lines that are no wider than it."""
    if width := terminal_width(stream):
        text = "\n".join(wrap_cells(line, width) for line in text.split("\n"))
    stream.write(f"{text}\n")
    stream.flush()


class Screen:
    """Two text streams and what they can show.

    Args:
        out: Takes answers; every character of them is sanitised.
        notes: Takes everything else.
        plain: No styles and no progress display, whatever the terminal can do.
        markdown: Answers are shown as Markdown where the terminal can.
        theme: The name of their colours.
    """

    def __init__(
        self,
        out: TextIO,
        notes: TextIO,
        *,
        plain: bool = False,
        markdown: bool = True,
        theme: str = DEFAULT,
    ) -> None:
        self._is_terminal = self.shows_reasoning = notes.isatty()
        self._takes_escapes = notes.isatty() and os.environ.get("TERM") != "dumb"
        self.shows_progress = self._takes_escapes and not plain
        self._dims = self.shows_progress and not os.environ.get("NO_COLOR")
        self._out, self._notes = out, notes
        self._is_one_place = out is notes or (out.isatty() and notes.isatty())
        self.can_redraw = self._dims and self._is_one_place
        self.markdown, self.theme = markdown, find_theme(theme)
        self._stream: AnswerStream | ThoughtStream | None = None
        self._live: LiveRegion | None = None
        self._progress_is_shown = False
        self._open_line: TextIO | None = None  # where the last piece did not end its line

    def answer(self, text: str) -> None:
        """Writes a piece of the answer."""
        if not (self.can_redraw and self.markdown):
            self._write(self._out, sanitize(text), dim=False)
            return
        from mlxchat.cli.streams import AnswerStream

        if not isinstance(self._stream, AnswerStream):
            self.end_line()
            self.clear_progress()
            self._stream = AnswerStream(self._region(), self.theme, color_depth())
        self._stream.push(text)

    def reasoning(self, text: str) -> None:
        """Writes a piece of the reasoning, dimmed."""
        if not self.can_redraw:
            self._write(self._notes, sanitize(text), dim=True)
            return
        from mlxchat.cli.streams import ThoughtStream

        if not isinstance(self._stream, ThoughtStream):
            self.end_line()
            self.clear_progress()
            self._stream = ThoughtStream(self._region(), self._dimmed)
        self._stream.push(text)

    def end_reasoning(self, line: str) -> None:
        """Closes the reasoning with a line: in its place where that can be, else after it."""
        from mlxchat.cli.streams import ThoughtStream

        if isinstance(self._stream, ThoughtStream):
            self._stream.fold(line)
            self._stream = None
        else:
            self.note(line)

    def verbatim(self, text: str, *, dim: bool = False) -> None:
        """Writes lines among the notes as they are, not wrapped."""
        self.end_line()
        self._write(self._notes, f"{sanitize(text)}\n", dim=dim)

    def view(self, make: "Callable[[Console], Sequence[RenderableType]]") -> None:
        """Draws tables and maps among the notes; what they are made of is sanitised already."""
        from mlxchat.cli.inspect.paint import make_console

        self.end_line()
        self.clear_progress()
        console = make_console(self._notes, width=self._width(), colours=self._dims)
        console.print(*make(console), sep="\n")
        self._notes.flush()

    def note(self, text: str, *, dim: bool = True) -> None:
        """Writes lines about the answer or the program."""
        if self._is_one_place or self._open_line is self._notes:
            self.end_line()
        text = sanitize(text)
        if self._is_terminal:
            width = self._width()
            wrap = wrap_cells if "\n" in text else wrap_words  # several lines may be a table
            text = "\n".join(wrap_parts(line, width) for line in text.split("\n"))
            text = "\n".join(wrap(line, width) for line in text.split("\n"))
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
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
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

    def _region(self) -> "LiveRegion":
        from mlxchat.cli.live import LiveRegion

        self._live = LiveRegion(lambda text: self._put(self._out, text), self._size)
        return self._live

    def lose_place(self) -> None:
        """Something else has written on the terminal: what is open goes on below it."""
        if self._live is not None:
            self._live.lose()

    def _size(self) -> os.terminal_size:
        # Not from shutil: it prefers the variable COLUMNS, which is old after a resize.
        try:
            columns, rows = os.get_terminal_size(self._notes.fileno())
        except (OSError, ValueError):
            columns, rows = 80, 24
        return os.terminal_size((columns or 80, rows or 24))

    @property
    def width(self) -> int:
        """Columns that lines may take."""
        return self._width() if self._is_terminal else 80

    def _width(self) -> int:
        return self._size().columns

    def _dimmed(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._dims and self.theme.dims else text

    def _put(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()
