"""How wide text is on a terminal, and how it is broken into rows.

A row is a list of runs: text with the name of its style. Widths are the largest that a terminal
may use: a family emoji counts as its members, so a row never runs over the edge where a terminal
does not join them.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from wcwidth import wcwidth

Run = tuple[str, str]  # text, style
Row = list[Run]

TAB = "    "
_CJK = "\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff01-\uff60\uffe0-\uffe6\U00020000-\U0003fffd"
_CLOSING = "、。，．！？：；）」』】〉》”’"  # never begin a row
# What a text is broken into: line feeds, blanks, single CJK characters, words.
_PARTS = re.compile(rf"\n|[ \t]+|[{_CJK}][{_CLOSING}]*|[^\s{_CJK}]+|\s")
_JOINER, _EMOJI_STYLE = "\u200d", "\ufe0f"


@lru_cache(4096)
def char_width(char: str) -> int:
    """Returns the columns that a character may take, 0 for one that joins the one before it."""
    return 1 if char == _EMOJI_STYLE else max(wcwidth(char), 0)


def text_width(text: str) -> int:
    """Returns the columns that a text without line feeds may take."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def split_at_width(text: str, width: int) -> tuple[str, str]:
    """Cuts a text where it fills `width` columns; a character stays with what joins it.

    At least one character goes to the first part.
    """
    used = 0
    for index, char in enumerate(text):
        used += char_width(char)
        is_joined = not char_width(char) or char == _EMOJI_STYLE or text[index - 1] == _JOINER
        if used > width and index and not is_joined:
            return text[:index], text[index:]
    return text, ""


class _Rows:
    """Rows while they are filled, word by word."""

    def __init__(self, width: int, *, keeps_links: bool = False) -> None:
        self.width, self._keeps_links = max(width, 1), keeps_links
        self.rows: list[Row] = []
        self._row: Row = []
        self._used = 0
        self._word: Row = []  # pieces with no break between them
        self._space: Run | None = None
        self._is_after_link = False  # the blank after a link ends its row

    def add(self, part: str, style: str, *, breaks_before: bool) -> None:
        if part == "\n":
            self.end_row()
        elif part.isspace():
            self._end_word()
            part = part.expandtabs(len(TAB))
            self._space = (f"{self._space[0]}{part}" if self._space else part, style)
        else:
            if breaks_before:
                self._end_word()
            self._word.append((part, style))

    def end_row(self) -> None:
        self._end_word()
        self._space = None
        if not self._is_after_link:  # its row has ended already
            self._new_row()
        self._is_after_link = False

    def finish(self) -> list[Row]:
        if self._row or self._word or not self.rows:
            self.end_row()
        return self.rows

    def _new_row(self) -> None:
        self.rows.append(self._row)
        self._row, self._used = [], 0

    def _end_word(self) -> None:
        if not self._word:
            return
        width = sum(text_width(text) for text, _ in self._word)
        space = text_width(self._space[0]) if self._space else 0
        if self._row and self._used + space + width > self.width:
            self._new_row()
        elif self._space and not self._is_after_link:
            self._put(self._space)
        self._is_after_link = False
        if self._keeps_links and width > self.width and is_link(self._word):
            if self._used:
                self._new_row()
            self._row += self._word
            self._new_row()
            self._is_after_link = True
        else:
            for run in self._word:
                self._put(run)
        self._word, self._space = [], None

    def _put(self, run: Run) -> None:
        """Puts a run at the end of the row, on more rows where it is wider than one."""
        text, style = run
        while text_width(text) > self.width - self._used:
            room = self.width - self._used
            head, tail = split_at_width(text, room)
            if text_width(head) > room and self._row:
                self._new_row()
                continue
            self._row.append((head, style))
            text = tail
            if not text:
                return
            self._new_row()
        self._row.append((text, style))
        self._used += text_width(text)


def is_link(row: Row) -> bool:
    """Returns whether a web address stands in a row."""
    return "://" in "".join(text for text, _ in row)


def wrap(runs: Iterable[Run], width: int, *, keeps_links: bool = False) -> list[Row]:
    """Breaks runs into rows between words, and words that are wider than a row anywhere.

    Args:
        runs: Line feeds in them end a row.
        width: Columns of a row.
        keeps_links: A web address that is wider has a row that is wider, so that the terminal
            breaks it, and can open it and copy it whole.

    Returns:
        At least one row; runs in it that are neighbours differ in style.
    """
    rows = _Rows(width, keeps_links=keeps_links)
    for part, style, breaks_before in _parts(runs):
        rows.add(part, style, breaks_before=breaks_before)
    return [merge(row) for row in rows.finish()]


def fill(line: str, width: int, indent: int = 0) -> list[str]:
    """Breaks a line between words, and leaves words that are wider than a row to the terminal.

    So a path or a link can be copied whole. The rows after the first have `indent` columns less.
    """
    rows: list[str] = []
    row = space = ""
    for part, _, breaks_before in _parts([(line, "")]):
        if part.isspace():
            space = part
            continue
        room = width - (indent if rows else 0)
        if row and (space or breaks_before) and text_width(row + space + part) > room:
            rows.append(row)
            row, space = part, ""
        else:
            row, space = row + space + part, ""
    return [*rows, row]


def fold(runs: Iterable[Run], width: int) -> list[Row]:
    """Breaks runs into rows where they are full, blanks included: for code."""
    rows = _Rows(width)
    for text, style in runs:
        for index, line in enumerate(text.expandtabs(len(TAB)).split("\n")):
            if index:
                rows.end_row()
            if line:
                rows._put((line, style))
    return [merge(row) for row in rows.finish()]


def _parts(runs: Iterable[Run]) -> Iterator[tuple[str, str, bool]]:
    was_cjk = False
    for text, style in runs:
        for match in _PARTS.finditer(text):
            part = match.group()
            is_cjk = part[0] >= "\u2e80" and bool(re.match(f"[{_CJK}]", part))
            yield part, style, (is_cjk or was_cjk) and part[0] not in _CLOSING
            was_cjk = is_cjk


def merge(row: Iterable[Run]) -> Row:
    """Joins neighbours of one style and drops empty runs."""
    merged: Row = []
    for text, style in row:
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        elif text:
            merged.append((text, style))
    return merged
