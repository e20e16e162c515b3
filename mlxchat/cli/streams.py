"""Answers and thinking while they stream into the live region of a terminal."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from mlxchat.cli.blocks import Block, BlockSplitter, cut_table
from mlxchat.cli.live import LiveRegion
from mlxchat.cli.render import sanitize
from mlxchat.cli.theme import Theme
from mlxchat.cli.wrap import split_at_width, text_width, wrap

if TYPE_CHECKING:
    from mlxchat.cli.markdown import MarkdownRenderer, Painter

# Drawing may take this share of the time, and an open block waits no longer than this for it.
DRAW_SHARE, MAX_DRAW_PAUSE_S = 0.1, 0.25
# One line without any of these, which does not begin like a rule or code, is plain text: it needs
# no Markdown parser, and so no Rich.
_SPECIAL = frozenset("\\`*_[]<>#|~&\t\n")


class Stream(Protocol):
    """Text that is shown while it comes."""

    def push(self, text: str) -> None:
        """Takes a piece."""

    def close(self) -> None:
        """Ends the text; what was open becomes final."""


class AnswerStream:
    """An answer in Markdown: finished blocks are final, the open one is redrawn.

    Args:
        region: Where to.
        theme: Colours.
        depth: How many colours the terminal has, None for none.
        clock: Seconds.
    """

    def __init__(
        self,
        region: LiveRegion,
        theme: Theme,
        depth: str | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._region, self._theme, self._depth, self._clock = region, theme, depth, clock
        self._splitter = BlockSplitter()
        self._is_first = True
        self._draw_at = 0.0
        self._renderer: MarkdownRenderer | None = None
        self._painter: Painter | None = None

    def push(self, text: str) -> None:
        """Takes a piece, of any length and cut anywhere."""
        for block in self._splitter.push(sanitize(text)):
            self._commit(block)
        now = self._clock()
        if now >= self._draw_at:
            self._draw()
            spent = self._clock() - now
            self._draw_at = now + min(spent / DRAW_SHARE, MAX_DRAW_PAUSE_S)

    def close(self) -> None:
        """Ends the answer; half-open Markdown stays as it was written."""
        for block in self._splitter.finish():
            self._commit(block)
        self._region.show([])

    def _commit(self, block: Block) -> None:
        self._region.commit(self._rows([block], is_final=True))
        self._is_first = False

    def _draw(self) -> None:
        height, blocks = self._region.height, []
        for block in self._splitter.open_blocks():
            if block.kind == "text":
                block = replace(block, source=cut_table(block.source, height))
            blocks.append(block)
        self._region.show(self._rows(blocks, is_final=False) if blocks else [])

    def _rows(self, blocks: list[Block], *, is_final: bool) -> list[str]:
        rows: list[str] = []
        for block in blocks:
            if block.gap and not self._is_first:
                rows.append("")
            rows += self._render(block, is_final=is_final)
        return rows

    def _render(self, block: Block, *, is_final: bool) -> list[str]:
        width = self._region.width
        if is_plain(block):
            rows = wrap([(block.source.strip(), "")], width, keeps_links=is_final)
            return ["".join(text for text, _ in row) for row in rows]
        if self._renderer is None or self._painter is None:
            from mlxchat.cli.markdown import MarkdownRenderer, Painter

            self._renderer, self._painter = MarkdownRenderer(self._theme), Painter(self._depth)
        try:
            rows = self._renderer.render(block, width, is_final=is_final)
        except Exception:  # a parser's bug must not cost the answer
            rows = wrap([(block.source, "")], width)
        return [self._painter.paint(row) for row in rows]


def is_plain(block: Block) -> bool:
    """Returns whether a block has nothing that Markdown would change."""
    source = block.source
    is_marked = source.startswith("    ") or source.lstrip().startswith("-")
    return block.kind == "text" and not is_marked and not _SPECIAL.intersection(source)


class ThoughtStream:
    """Thinking: its last rows, dimmed; at its end one line takes their place.

    Args:
        region: Where to.
        dim: Dims a row.
    """

    def __init__(self, region: LiveRegion, dim: Callable[[str], str]) -> None:
        self._region, self._dim = region, dim
        self._rows: deque[str] = deque(maxlen=500)  # more than any screen shows
        self._row = ""  # the last one, which goes on
        self._width = region.width

    def push(self, text: str) -> None:
        """Takes a piece; only the row that it goes on with is broken anew."""
        width = self._region.width
        if width < self._width:
            rows, last = list(self._rows), self._row
            self._rows.clear()
            for row in rows:
                self._add(row, width)
                self._rows.append(self._row)
            self._row = last
        self._width = width
        first, *lines = (self._row + sanitize(text).expandtabs(4)).split("\n")
        self._add(first, width)
        for line in lines:
            self._rows.append(self._row.rstrip())
            self._add(line, width)
        rows = [*self._rows, self._row.rstrip()]
        while rows and not rows[-1]:
            rows.pop()
        self._region.show([self._dim(row) if row else "" for row in rows])

    def close(self) -> None:
        """Leaves what is shown as it is."""
        rows = [self._dim(row) if row else "" for row in (*self._rows, self._row.rstrip())]
        self._region.commit([] if self._region.is_empty else rows)

    def fold(self, line: str) -> None:
        """Puts one line in the place of the thinking."""
        self._region.commit([self._dim(line)])

    def _add(self, line: str, width: int) -> None:
        """Takes the text of the last row and breaks it where it has become too wide."""
        while text_width(line.rstrip()) > width:
            head, rest = split_at_width(line, width)
            at = head.rfind(" ")
            if at > 0 and not rest.startswith(" "):
                head, rest = line[:at], line[at:]
            self._rows.append(head.rstrip())
            line = rest.lstrip(" ")
        self._row = line
