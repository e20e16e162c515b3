"""Follows what is being typed: what it would cost to send it, and having it read ahead.

A key press only notes the text; counting, attaching and asking for the power supply happen on a
thread of its own, once the keys pause for a moment.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxchat.cli.lines import QUOTES, block_state, read_block
from mlxchat.cli.power import PowerSupply
from mlxchat.errors import AttachError

if TYPE_CHECKING:
    from mlxchat.chat.draft import DraftCost
    from mlxchat.chat.session import Session
    from mlxchat.cli.attachments import Attachments

# Keys that follow each other within this time are looked at together: a tenth of a second is the
# pace of a fast typist, and too short to be missed when the message is sent.
PAUSE_S = 0.1
# A person who pressed no key for so much longer has paused, perhaps before Enter.
STILL_S = 0.1
# How often and how many times the cost is looked at again while the draft is being read.
_LOOK_EVERY_S, _MAX_LOOKS = 0.5, 20
_BLOCK_CHARS = 1500


class TokenCounter:
    """Counts the tokens of a text that grows: what was counted before is not counted again."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count(self, session: "Session", text: str) -> int | None:
        """Returns the tokens of a text, nearly exact if it is long; None before the load."""
        blocks = [text[at : at + _BLOCK_CHARS] for at in range(0, len(text), _BLOCK_CHARS)]
        counts: dict[str, int] = {}
        for block in blocks:
            count = self._counts.get(block)
            if count is None:
                count = session.count_tokens(block)
            if count is None:
                return None
            counts[block] = count
        self._counts = counts
        return sum(counts[block] for block in blocks)


def preview_message(text: str, attached: "Attachments", expand: Callable[[str], str]) -> str | None:
    """Returns the message that a draft would become, as far as it is certain.

    Args:
        text: The draft.
        attached: What waits for the message; is left as it is.
        expand: Puts what was pasted in the place of its chips.

    Returns:
        None where it is empty or a command, or names a file that is not there.
    """
    from mlxchat.cli.attachments import Attachments

    state = block_state(text)
    if state == "closed":
        text = read_block(text) or ""
    elif state == "open":
        text = text.lstrip()[len(QUOTES) :].removeprefix("\n")
    elif text.lstrip().startswith(("/", "!")):
        return None
    else:
        words = text.split()
        if words and "@" in words[-1] and text.endswith(words[-1]):  # may be half a path
            text = text[: -len(words[-1])]
    if not text.strip():
        return None
    copy = Attachments(attached.max_bytes, list(attached.pending))
    try:
        message = copy.compose(
            text, lambda text: None, lambda line: None, is_literal=state != "none"
        )
    except AttachError:
        return None
    return expand(message)


class Drafts:
    """Follows the drafts of a chat.

    Args:
        session: Counts and reads.
        attached: What waits for the next message.
        expand: Puts what was pasted in the place of its chips.
        redraw: Called when `cost` has changed.
        reads_ahead: Whether drafts are read before they are sent.
        power: What the machine runs on.

    Attributes:
        cost: What it would cost to send the draft; None while there is nothing to say.
    """

    def __init__(
        self,
        session: "Session",
        attached: "Attachments",
        expand: Callable[[str], str],
        redraw: Callable[[], None],
        *,
        reads_ahead: bool = True,
        power: PowerSupply | None = None,
    ) -> None:
        self.cost: DraftCost | None = None
        self._session, self._attached, self._expand = session, attached, expand
        self._redraw, self._reads_ahead = redraw, reads_ahead
        self._power = power or PowerSupply()
        self._counter = TokenCounter()
        self._text: str | None = None
        self._lock = threading.Lock()  # held while a draft is handed over, so none comes late
        self._has_changed = threading.Event()
        self._thread: threading.Thread | None = None

    def change(self, text: str) -> None:
        """Takes the draft as it is now; costs the caller nothing."""
        self._text = text
        self._has_changed.set()
        if self._thread is None and text:
            self._thread = threading.Thread(target=self._follow, name="drafts", daemon=True)
            self._thread.start()

    def sent(self) -> None:
        """The draft is one no longer: nothing more of it is read."""
        with self._lock:
            self._text = self.cost = None
            self._session.drop_draft()
        self._has_changed.set()

    def _follow(self) -> None:
        try:
            self._run()
        except Exception:  # a draft can be sent all the same, and a traceback would hide it
            self.cost = None
            if os.environ.get("MLXCHAT_DEBUG") == "1":
                raise

    def _run(self) -> None:
        text: str | None = None
        message: str | None = None
        looks = 0
        while True:
            is_looking = message is not None and looks < _MAX_LOOKS
            if self._has_changed.wait(_LOOK_EVERY_S if is_looking else None):
                time.sleep(PAUSE_S)
                self._has_changed.clear()
                text, looks = self._text, 0
                message = self._preview(text)
            looks += 1
            self._estimate(text, message)
            if looks == 1 and message is not None:
                self._read(text, message)
                if not self._has_changed.wait(STILL_S):
                    self._read(text, message, is_still=True)

    def _preview(self, text: str | None) -> str | None:
        return None if not text else preview_message(text, self._attached, self._expand)

    def _estimate(self, text: str | None, message: str | None) -> None:
        cost = None
        if message is not None:
            num_tokens = self._counter.count(self._session, message)
            if num_tokens is not None:
                cost = self._session.estimate_cost(num_tokens)
        with self._lock:
            if self._text is not text or cost == self.cost:
                return
            self.cost = cost
        self._redraw()

    def _read(self, text: str | None, message: str, *, is_still: bool = False) -> None:
        if not self._reads_ahead or self._power.is_battery:
            return
        with self._lock:
            if self._text is text:
                self._session.read_ahead(message, is_still=is_still)
