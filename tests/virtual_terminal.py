"""A terminal without a process: draws what a stream writes, and keeps its scrollback."""

import os
import re

import pyte

from mlxchat.cli.live import LiveRegion
from mlxchat.cli.streams import AnswerStream
from mlxchat.cli.theme import find_theme

# What we may write besides text: styles, cursor up and right, erase, wrapping, synchronised output.
OWN = re.compile(r"\x1b\[(?:[0-9;]*[mACKJ]|\?7[hl]|\?2026[hl])|\r|\n")


# pyte drops the rest of a text after a character without a width that is no combining mark.
UNDRAWABLE = dict.fromkeys(
    [*range(0x200B, 0x2010), *range(0xFE00, 0xFE10), 0x2060, 0xFEFF, 0x00AD], None
)


def drawable(text):
    """Returns a text without what pyte cannot draw: joiners, variation selectors, marks."""
    return text.translate(UNDRAWABLE)


class VirtualTerminal:
    """Draws with pyte; `written` is all that came, `writes` how it came."""

    def __init__(self, columns=40, rows=12):
        self.screen = pyte.HistoryScreen(columns, rows, history=100_000, ratio=1)
        self.screen.set_mode(pyte.modes.LNM)
        self._stream = pyte.Stream(self.screen)
        self.writes = []

    def write(self, text):
        self.writes.append(text)
        self._stream.feed(drawable(text))

    def resize(self, columns, rows):
        self.screen.resize(rows, columns)

    @property
    def written(self):
        return "".join(self.writes)

    @property
    def region(self):
        """A new live region on this terminal."""
        screen = self.screen
        return LiveRegion(self.write, lambda: os.terminal_size((screen.columns, screen.lines)))

    @property
    def scrollback(self):
        """The rows that have left the screen at its top."""
        columns = range(self.screen.columns)
        return ["".join(row[c].data for c in columns).rstrip() for row in self.screen.history.top]

    @property
    def rows(self):
        """Scrollback and screen, without empty rows at the end."""
        rows = [*self.scrollback, *(row.rstrip() for row in self.screen.display)]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def answer(self, theme="terminal", depth="STANDARD"):
        """A new answer on this terminal, drawn at every piece."""
        return AnswerStream(self.region, find_theme(theme), depth, clock=lambda: 0.0)


def cut(text, places):
    """Returns a text in pieces."""
    ends = [*sorted(place % (len(text) + 1) for place in places), len(text)]
    starts = [0, *ends]
    return [text[start:end] for start, end in zip(starts, ends, strict=False)]


def show(text, places=(), **size):
    """Streams an answer in pieces; returns its terminal."""
    terminal = VirtualTerminal(**size)
    answer = terminal.answer()
    for piece in cut(text, places):
        answer.push(piece)
    answer.close()
    return terminal
