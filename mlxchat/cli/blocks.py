"""Markdown cut into blocks while it streams: what is finished, and what is still open.

Only whole lines decide where a block ends, so the blocks are the same however the text was cut
into pieces. What a block looks like is `markdown`'s business.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["text", "item", "fence", "code", "end"]

_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*)")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_TABLE_RULE = re.compile(r" {0,3}(?=.*-)(?=.*\|)[-:| \t]+$")
_MARKER = re.compile(r"( {0,3})([-*+]|(\d{1,9})([.)]))(?:( {1,4}(?! )|[ \t])(.*)|( .*)|$)")
# The beginning of a line that may become a heading, a list item, a rule, a table's second row ...
_UNDECIDED = re.compile(r"\s*([-=*+#>`~_|:\s]*|\d{1,9}[.)]?\s*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of Markdown that can be shown by itself.

    Attributes:
        kind: `text` is any Markdown; `item` one item of a list; a code block is a `fence`, its
            lines (`code`) and its `end`.
        source: Markdown; the language of a `fence`; a line of `code`.
        gap: An empty line stood before it.
        number: Of an item of a numbered list.
    """

    kind: Kind
    source: str
    gap: bool = False
    number: int | None = None


def cut_table(source: str, num_rows: int) -> str:
    """Returns a table with its head and its last rows alone; anything else as it is.

    Of a long open table no more than that is on the screen, and laying out all of it at every
    token takes the time from the decoding.
    """
    lines = source.split("\n")
    if len(lines) <= num_rows + 2 or "|" not in lines[0] or not _TABLE_RULE.match(lines[1]):
        return source
    return "\n".join([*lines[:2], *lines[-num_rows:]])


class BlockSplitter:
    """Takes a text in pieces and gives out its blocks as they are finished."""

    def __init__(self) -> None:
        self._partial = ""
        self._open: Block | None = None  # a text or an item
        self._content_indent = 0  # of the open item
        self._fence: re.Match[str] | None = None
        self._gap = False
        self._last_item: tuple[str, int] | None = None  # delimiter and number of a numbered list

    def push(self, text: str) -> list[Block]:
        """Takes a piece; returns the blocks that it finished."""
        *lines, self._partial = (self._partial + text).split("\n")
        return [block for line in lines for block in self._line(line)]

    def finish(self) -> list[Block]:
        """Ends the text; returns what was open."""
        partial, self._partial = self._partial, ""
        blocks = self._line(partial) if partial else []
        if self._fence is not None:
            self._fence = None
            return [*blocks, Block("end", "")]
        return [*blocks, *self._flush()]

    def open_blocks(self) -> list[Block]:
        """Returns what is not finished, as it is to be shown now."""
        partial = self._partial
        if self._fence is not None:
            is_end = partial.strip() and self._fence[2].startswith(partial.strip())
            return [Block("code", self._unindented(partial))] if partial and not is_end else []
        if _UNDECIDED.match(partial):
            partial = ""
        if self._open is None:
            return [Block("text", partial, self._gap)] if partial else []
        source = f"{self._open.source}\n{partial}" if partial else self._open.source
        return [replace(self._open, source=source.rstrip("\n"))]

    # -- lines -------------------------------------------------------------------------------------

    def _line(self, line: str) -> list[Block]:
        if self._fence is not None:
            return [self._code_line(line)]
        is_item = self._open is not None and self._open.kind == "item"
        if not line.strip():
            if is_item:
                self._append("")
                return []
            blocks = self._flush()
            self._gap = True
            return blocks
        indent = len(line) - len(line.lstrip(" "))
        if is_item and indent >= self._content_indent:
            self._append(line)
            return []
        return self._top_line(line, is_item=is_item)

    def _top_line(self, line: str, *, is_item: bool) -> list[Block]:
        """Takes a line that is no part of an open item's inside."""
        is_text = self._open is not None and not is_item
        if is_text and _SETEXT.match(line):
            self._append(line)
            return self._flush()
        if fence := _FENCE.match(line):
            blocks = [*self._flush(), self._new_block("fence", fence[3].strip())]
            self._fence = fence
            return blocks
        if _RULE.match(line) or _HEADING.match(line):
            return [*self._flush(), self._new_block("text", line)]
        if (marker := _MARKER.match(line)) and (not is_text or _can_interrupt(marker)):
            return self._begin_item(line, marker)
        if self._open is not None and not self._open.source.endswith("\n"):
            self._append(line)  # of a paragraph, in an item too
            return []
        blocks = self._flush()
        self._open = self._new_block("text", line)
        return blocks

    def _begin_item(self, line: str, marker: re.Match[str]) -> list[Block]:
        blocks, last = self._flush(), self._last_item
        number = int(marker[3]) if marker[3] else None
        if number is not None and last is not None and last[0] == marker[4]:
            number = last[1] + 1
        self._open = self._new_block("item", line, number)
        self._last_item = None if number is None else (marker[4], number)
        space = marker[5] if marker[5] and marker[6] else " "
        self._content_indent = len(marker[1]) + len(marker[2]) + len(space)
        return blocks

    def _code_line(self, line: str) -> Block:
        assert self._fence is not None
        sign = line.strip()
        is_indented = len(line) - len(line.lstrip(" ")) > 3
        if sign.startswith(self._fence[2]) and not sign.strip(sign[0]) and not is_indented:
            self._fence = None
            return Block("end", "")
        return Block("code", self._unindented(line))

    def _unindented(self, line: str) -> str:
        """Takes away the indentation that the fence had too."""
        assert self._fence is not None
        spaces = len(line) - len(line.lstrip(" "))
        return line[min(spaces, len(self._fence[1])) :]

    # -- blocks ------------------------------------------------------------------------------------

    def _append(self, line: str) -> None:
        assert self._open is not None
        self._open = replace(self._open, source=f"{self._open.source}\n{line}")

    def _new_block(self, kind: Kind, source: str, number: int | None = None) -> Block:
        if kind != "item":
            self._last_item = None
        gap, self._gap = self._gap, False
        return Block(kind, source, gap, number)

    def _flush(self) -> list[Block]:
        """Ends the open block; the gap before the next one follows from its end."""
        block, self._open = self._open, None
        if block is None:
            return []
        source = block.source.rstrip("\n")
        self._gap = len(source) < len(block.source)
        return [replace(block, source=source)]


def _can_interrupt(marker: re.Match[str]) -> bool:
    """Whether a list item can follow a paragraph without an empty line between them."""
    return bool(marker[6]) and marker[3] in (None, "1")
