"""The last rows of a terminal, redrawn in place; what is above them is never touched.

Rows that are final are written once and belong to the scrollback from then on. The open rows are
redrawn by moving the cursor up inside the screen. They are never more than the screen holds, and
only what changed is written.
"""

import os
import re
from collections.abc import Callable, Sequence

from mlxchat.cli.wrap import text_width

# Terminals that know it show the rows between the two at once; the others ignore it.
_SYNC_ON, _SYNC_OFF = "\x1b[?2026h", "\x1b[?2026l"
# Should a terminal count more columns than we do, it cuts the row instead of breaking it.
_WRAP_OFF, _WRAP_ON = "\x1b[?7l", "\x1b[?7h"
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
# Set by terminals that break their rows anew when they become narrower.
_REFLOWS = (
    "TERM_PROGRAM",
    "TMUX",
    "VTE_VERSION",
    "KITTY_WINDOW_ID",
    "ALACRITTY_WINDOW_ID",
    "KONSOLE_VERSION",
    "WT_SESSION",
)


class LiveRegion:
    """The open rows at the end of what was written.

    Args:
        write: Writes and flushes.
        size: Asks the terminal for its size.
    """

    def __init__(self, write: Callable[[str], None], size: Callable[[], os.terminal_size]) -> None:
        self._write, self._ask_size = write, size
        self._size = size()
        self._shown: list[str] = []
        self._is_lost = False
        self._reflows = any(os.environ.get(name) for name in _REFLOWS)

    @property
    def width(self) -> int:
        """Columns that a row may fill; the last one stays free, so no terminal breaks a row."""
        return max(self._ask_size().columns - 1, 1)

    @property
    def height(self) -> int:
        """Rows of the screen."""
        return self._ask_size().lines

    @property
    def is_empty(self) -> bool:
        """Whether nothing is open."""
        return not self._shown

    def lose(self) -> None:
        """Something else was written below the open rows; the next ones come after it."""
        self._is_lost = True

    def show(self, rows: Sequence[str]) -> None:
        """Shows open rows in the place of those shown before; their end where not all fit."""
        start = self._follow_resize()
        room = max(self._size.lines - 1, 1)
        text = start + self._difference(list(rows)[-room:])
        if text:
            self._write(text)
        self._shown = list(rows)[-room:]

    def commit(self, rows: Sequence[str]) -> None:
        """Puts final rows in the place of the open ones; the cursor is then on a new row.

        A final row may be wider than the screen: the terminal breaks it and can copy it whole.
        """
        start = self._follow_resize()
        if not rows:
            text = self._to_row(0) + "\x1b[J" if self._shown else ""
        else:
            text = self._difference(list(rows), wraps=True) + "\n"
        if start or text:
            self._write(start + text)
        self._shown = []

    def _difference(self, rows: list[str], *, wraps: bool = False) -> str:
        """Returns what makes the shown rows these rows and leaves the cursor at their end."""
        shown = self._shown
        if rows == shown:
            return ""
        same = next(
            (n for n, pair in enumerate(zip(rows, shown, strict=False)) if pair[0] != pair[1]),
            min(len(rows), len(shown)),
        )
        if not shown:
            return _guarded("\n".join(rows), wraps)
        if same == len(shown) - 1 < len(rows) and rows[same].startswith(shown[same]):
            tail = rows[same][len(shown[same]) :]
            return _guarded("\n".join([tail, *rows[same + 1 :]]), wraps)
        if same == len(shown):
            return _guarded("\n" + "\n".join(rows[same:]), wraps)
        text = self._to_row(same)
        if same == len(rows):  # fewer rows than before
            text += "\x1b[J" + (_back_to_end(rows[-1]) if rows else "")
        elif wraps:
            text += "\x1b[J" + "\n".join(rows[same:])
        else:
            text += "\x1b[K\n".join(rows[same:]) + "\x1b[K"
            text += "\x1b[J" if len(rows) < len(shown) else ""
        return _SYNC_ON + _guarded(text, wraps) + _SYNC_OFF

    def _to_row(self, index: int) -> str:
        """Returns what moves from the end of the shown rows to the start of one of them."""
        up = len(self._shown) - 1 - index
        return (f"\x1b[{up}A" if up > 0 else "") + "\r"

    def _follow_resize(self) -> str:
        """Returns what takes the open rows away when the terminal has changed its size.

        Rows that a narrower terminal broke anew take more room; rows that left the screen stay in
        the scrollback.
        """
        if self._is_lost:
            self._is_lost, self._shown = False, []
        old, self._size = self._size, self._ask_size()
        if old == self._size or not self._shown:
            return ""
        columns, rows = self._size
        height = len(self._shown)
        if self._reflows and columns < old.columns:
            widths = [text_width(_STYLES.sub("", row)) for row in self._shown]
            height = sum(max(-(-width // columns), 1) for width in widths)
        self._shown = []
        up = min(height, rows) - 1
        return (f"\x1b[{up}A" if up > 0 else "") + "\r\x1b[J"


def _guarded(text: str, wraps: bool) -> str:
    return text if wraps or text.isascii() else _WRAP_OFF + text + _WRAP_ON


def _back_to_end(row: str) -> str:
    """Returns what moves from the start of a row to the end of the one above it."""
    width = text_width(_STYLES.sub("", row))
    return "\x1b[A" + (f"\x1b[{width}C" if width else "")
