"""What Tab completes: slash commands, their arguments, models, and paths after `@`."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    get_common_complete_suffix,
)
from prompt_toolkit.document import Document

from mlxchat.cli import slash
from mlxchat.cli.render import cut, num_columns, one_line

if TYPE_CHECKING:
    from mlxchat.chat.session import Session

FindSession = Callable[[], "Session | None"]
# A candidate and what is said about it.
Candidates = Iterable[tuple[str, str]]
_MAX = 200
MAX_EXPLAINED = 12
_NAME = re.compile(r"/[\w-]*", re.ASCII)
_COMMAND = re.compile(r"/([A-Za-z][\w-]*)(\s+)(.*)", re.DOTALL | re.ASCII)
# A path after an `@`, in quotes or not, up to the cursor.
_AT = re.compile(r"""(?:^|[\s(\[{])@(?:(["'])([^"'\n]*)|((?:\\ |[^\s"'])*))$""")


class ChatCompleter(Completer):
    """Completes from the registry of commands, the session and the disk.

    Args:
        find_session: Returns the session once there is one.
    """

    def __init__(self, find_session: FindSession) -> None:
        self._find_session = find_session

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yields what can stand at the cursor."""
        text = document.text_before_cursor
        if _NAME.fullmatch(text):
            for name, command in slash.COMMANDS.items():
                if name.startswith(text[1:]):
                    yield Completion(f"/{name}", -len(text), display_meta=command.summary)
        elif match := _COMMAND.fullmatch(text):
            yield from self._arguments(match[1].lower(), match[3])
            entry = slash.COMMANDS.get(slash.ALIASES.get(match[1].lower(), match[1].lower()))
            if entry is not None and not entry.takes_message:
                return  # an `@` in its argument names no file
        if match := _AT.search(text):
            yield from complete_reference(match[1] or "", match[2] or match[3] or "")

    def _arguments(self, name: str, argument: str) -> Iterator[Completion]:
        entry = slash.COMMANDS.get(slash.ALIASES.get(name, name))
        if entry is None:
            return
        find = _FINDERS.get(entry.name)
        session = self._find_session()
        if entry.complete is not None:
            words: Candidates = entry.complete(argument)
        else:
            words = find_words(entry.arguments) if find is None else find(session, argument)
        is_whole = entry.name in _WHOLE or entry.complete is not None
        start = argument if is_whole else argument.rpartition(" ")[2]
        found = ((word, note) for word, note in words if word.startswith(start))
        for word, note in islice(found, _MAX):
            yield Completion(word, -len(start), display_meta=note)


def complete_line(buffer: Buffer) -> list[Completion]:
    """Completes at the cursor as far as there is one way to; returns the choices where it ends."""
    if buffer.completer is None:
        return []
    wanted = CompleteEvent(completion_requested=True)
    found = list(buffer.completer.get_completions(buffer.document, wanted))
    if len(found) == 1:
        buffer.delete_before_cursor(-found[0].start_position)
        buffer.insert_text(found[0].text)
    elif common := get_common_complete_suffix(buffer.document, found):
        buffer.insert_text(common)
    else:
        return found
    return []


def format_choices(choices: Sequence[Completion], columns: int) -> str:
    """Returns what could stand at the cursor: few with what they mean, many side by side."""
    names = [one_line(choice.display_text) for choice in choices]
    meanings = [choice.display_meta_text for choice in choices]
    width = max(map(num_columns, names))
    if all(meanings) and len(names) <= MAX_EXPLAINED:
        pads = (" " * (width - num_columns(name) + 2) for name in names)
        rows = zip(names, pads, meanings, strict=True)
        return "\n".join(cut(f"{name}{pad}{text}", columns) for name, pad, text in rows)
    per_row = max(columns // (width + 2), 1)
    num_rows = -(-len(names) // per_row)
    cells = [f"{name}{' ' * (width - num_columns(name) + 2)}" for name in names]
    return "\n".join("".join(cells[row::num_rows]).rstrip() for row in range(num_rows))


def complete_reference(quote: str, start: str) -> Iterator[Completion]:
    """Yields the paths after an `@`; one with a blank is put into quotes.

    Args:
        quote: The quotation mark that was typed, if any.
        start: What was typed of the path.
    """
    from mlxchat.cli.files import complete_path

    for path in islice(complete_path(start.replace("\\ ", " ")), _MAX):
        mark = quote or ('"' if " " in path else "")
        end = mark if not path.endswith("/") else ""
        length = len(quote) + len(start)
        shown = path.rstrip("/").rpartition("/")[2] + "/" * path.endswith("/")
        yield Completion(f"{mark}{path}{end}", -length, display=shown)


def find_words(arguments: str) -> Candidates:
    """Returns the words that a usage line names: `on`, `off` of `on|off|budget N`."""
    return [(word, "") for word in re.findall(r"(?<![\w-])[a-z][a-z-]*(?![\w-])", arguments)]


def find_paths(session: "Session | None", text: str) -> Candidates:
    """Yields paths."""
    from mlxchat.cli.files import complete_path

    return ((path, "") for path in complete_path(text))


def find_models(session: "Session | None", text: str) -> Candidates:
    """Yields the models on this disk, then folders."""
    from mlxchat.cli.files import complete_path
    from mlxchat.cli.models import name_models

    yield from name_models(text)
    for path in complete_path(text, only_folders=True) if text else ():
        yield path, "folder"


def find_messages(session: "Session | None", text: str) -> Candidates:
    """Yields the numbers of the tree, each with the beginning of its message."""
    from mlxchat.cli.attachments import format_own_words

    for branch in session.tree() if session is not None else ():
        yield str(branch.node.id), cut(format_own_words(branch.node.message.content), 40)


def find_turns(session: "Session | None", text: str) -> Candidates:
    """Yields the numbers of the turns."""
    if session is not None and " " not in text:
        for number in range(1, session.num_turns + 1):
            yield str(number), "turn"


def find_settings(session: "Session | None", text: str) -> Candidates:
    """Yields the names of `/set`, then the values of the one that was named."""
    from mlxchat.cli.parameters import NAMES, PARAMETERS

    name, blank, _ = text.partition(" ")
    if not blank:
        yield from ((known, "") for known in NAMES)
    elif name in PARAMETERS:
        yield from ((value, "") for value in PARAMETERS[name].values)


_FINDERS: dict[str, Callable[["Session | None", str], Candidates]] = {
    "file": find_paths,
    "export": find_paths,
    "model": find_models,
    "goto": find_messages,
    "edit": find_turns,
    "set": find_settings,
}
_WHOLE = {"file", "export"}  # their argument is one path, blanks included
