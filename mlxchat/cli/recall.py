"""What was typed before: kept on disk for its owner alone, offered in grey while typing."""

import contextlib
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from prompt_toolkit.auto_suggest import AutoSuggest, Suggestion
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from mlxchat import paths

# A key press must not look through years of messages.
_SUGGEST_FROM = 1000


class InputHistory(FileHistory):
    """Keeps what was sent, once where it was sent several times in a row.

    Args:
        path: The file.
        expand: Makes what is kept of what stood in the line; pastes are kept whole.
        is_kept: What is typed now goes to the file; else it lasts as long as the chat.
    """

    def __init__(self, path: Path, expand: Callable[[str], str], *, is_kept: bool) -> None:
        super().__init__(str(path))
        self._expand, self._is_kept = expand, is_kept

    def append_string(self, string: str) -> None:
        """Adds a message."""
        string = self._expand(string)
        if string != next(iter(reversed(self.get_strings())), None):
            super().append_string(string)

    def store_string(self, string: str) -> None:
        """Writes a message; a full disk is no reason to end the chat."""
        if self._is_kept:
            with contextlib.suppress(OSError):
                super().store_string(string.encode(errors="replace").decode())


class RecentSuggest(AutoSuggest):
    """Suggests the rest of the latest message that begins like the line."""

    def get_suggestion(self, buffer: Buffer, document: Document) -> Suggestion | None:
        """Returns what would follow the text, if anything."""
        text = document.text
        if not text.strip() or "\n" in text:
            return None
        for old in islice(reversed(buffer.history.get_strings()), _SUGGEST_FROM):
            if old.startswith(text) and old != text:
                return Suggestion(old[len(text) :].partition("\n")[0])
        return None


def open_history(
    path: Path, expand: Callable[[str], str] = str, *, is_kept: bool = True
) -> History:
    """Returns the input history kept in `path`, which only its owner can read.

    Where the file cannot be written, or nothing shall be kept, what is typed lasts as long as the
    chat.
    """
    try:
        paths.make_private_dir(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return InputHistory(path, expand, is_kept=is_kept)
