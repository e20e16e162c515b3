"""A text cut into passages that can be looked up, each with its place in the file.

A passage is a whole file, a line, or a paragraph: lines up to an empty one, a heading together with
what it heads. What is longer than a model reads well is cut between lines, and between words where
one line is too long.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Split = Literal["file", "paragraph", "line"]
SPLITS: tuple[Split, ...] = get_args(Split)
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text.

    Attributes:
        text: Never empty.
        path: The file that it is from; None for a text that was given as such.
        first_line: Its first line in the file, from 1 on.
        last_line: Its last line.
    """

    text: str
    path: str | None = None
    first_line: int = 1
    last_line: int = 1

    @property
    def place(self) -> str:
        """Where it is, as editors understand it."""
        return f"{self.path}:{self.first_line}" if self.path else ""


def cut_text(text: str, path: str, split: Split, count: Count, max_tokens: int) -> list[Passage]:
    """Cuts the text of a file.

    Args:
        text: The whole text.
        path: The file's name.
        split: What one passage is.
        count: Returns the tokens of a text.
        max_tokens: A paragraph that has more is cut.

    Returns:
        The passages in order; those without a visible character are left out.
    """
    lines = text.split("\n")
    if split == "file":
        return [Passage(text, path, 1, len(lines))] if text.strip() else []
    if split == "line":
        return [Passage(s.strip(), path, n, n) for n, s in enumerate(lines, 1) if s.strip()]
    passages: list[Passage] = []
    for first, last in _paragraphs(lines):
        passages += _shorten(lines, path, first, last, count, max_tokens)
    return passages


def _paragraphs(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yields the first and last index of each paragraph."""
    first: int | None = None
    for index, line in enumerate([*lines, ""]):
        if line.strip():
            first = index if first is None else first
        elif first is not None and not (_is_heading(lines[first:index]) and any(lines[index:])):
            yield first, index - 1
            first = None
    if first is not None:
        yield first, len(lines) - 1


def _is_heading(lines: list[str]) -> bool:
    return all(line.startswith("#") or not line.strip() for line in lines)


def _shorten(
    lines: list[str], path: str, first: int, last: int, count: Count, max_tokens: int
) -> Iterator[Passage]:
    """Yields a run of lines as one passage, or as several none of which is too long."""
    while last > first and not lines[last].strip():
        last -= 1
    text = "\n".join(lines[first : last + 1]).strip()
    if not text:
        return
    if count(text) <= max_tokens:
        yield Passage(text, path, first + 1, last + 1)
    elif last > first:
        middle = (first + last) // 2
        yield from _shorten(lines, path, first, middle, count, max_tokens)
        yield from _shorten(lines, path, middle + 1, last, count, max_tokens)
    else:
        for part in _cut_line(text, count, max_tokens):
            yield Passage(part, path, first + 1, last + 1)


def _cut_line(text: str, count: Count, max_tokens: int) -> Iterator[str]:
    if count(text) <= max_tokens or len(text) < 2:
        yield text
        return
    middle = len(text) // 2
    space = text.find(" ", middle)
    middle = space if 0 < space < len(text) - 1 else middle
    for part in (text[:middle], text[middle:]):
        if part.strip():
            yield from _cut_line(part.strip(), count, max_tokens)
