"""A message while it is being written: its newest state, what of it stays, what it would cost.

Belongs to no thread: the one that follows the keys puts drafts in, the worker takes them out.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mlxchat.engine.worker import Job

# No word that is still being written is longer, and languages without blanks have no other end.
_LAST_WORD_CHARS = 24


@dataclass(frozen=True, slots=True)
class DraftCost:
    """What it would cost to send a draft.

    Attributes:
        num_tokens: Of the message.
        seconds: To read what is not read yet, at the measured rate; None before there is one.
        context_share: How full the context would be.
    """

    num_tokens: int
    seconds: float | None
    context_share: float


def find_stable(draft: str) -> str:
    """Returns a draft without its last word, which may still grow, and the blanks before it."""
    start = max(len(draft) - _LAST_WORD_CHARS, 0)
    blanks = [at for at in range(start, len(draft)) if draft[at].isspace()]
    return draft[: blanks[-1] if blanks else start].rstrip()


class Typed(NamedTuple):
    """A draft as it stood; `is_still` once the person has paused."""

    text: str
    is_still: bool


class Draft:
    """The newest draft; whoever reads it looks here for a newer one before leaving."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job: Job[None] | None = None
        self._is_left = False
        self.newest: Typed | None = None  # None when it was sent

    def put(self, typed: Typed, submit: Callable[[], Job[None]]) -> None:
        """Takes a newer draft; `submit` starts a job that reads it, unless one is at it."""
        with self._lock:
            self.newest = typed
            if self._job is None or self._job.done or self._is_left:
                self._is_left = False
                self._job = submit()

    def drop(self) -> None:
        """There is no draft any more: whoever reads it stops."""
        self.newest = None

    def follow(self, seen: Typed | None) -> Typed | None:
        """Returns a draft that differs from `seen`; without one the reader is taken to leave."""
        with self._lock:
            if self.newest is None or self.newest == seen:
                self._is_left = True
                return None
            return self.newest

    def leave(self) -> None:
        """The reader ends before it has read everything."""
        with self._lock:
            self._is_left = True
