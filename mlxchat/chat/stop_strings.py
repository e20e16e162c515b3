"""Ends an answer at a string, wherever token borders fall."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on until one of the strings appears; holds back what may be the start of one.

    The work for a piece depends on its own length and that of the strings, never on the text
    before.

    Args:
        strings: The one that is complete first in the text ends it; of two that end at the same
            place, the longer one. So the end does not depend on how the text arrives.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [s for s in strings if s]
        self._held = ""
        self.is_hit = False

    def push(self, text: str) -> str:
        """Takes a piece of text and returns what is certain to stand before any stop string."""
        if not self._strings or self.is_hit:
            return "" if self.is_hit else text
        held = self._held + text
        found = [(at + len(s), at) for s in self._strings if (at := held.find(s)) >= 0]
        if found:
            self.is_hit = True
            self._held = ""
            return held[: min(found)[1]]
        keep = max(_overlap(held, s) for s in self._strings)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """Returns what was held back, when the text ends without a hit."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
