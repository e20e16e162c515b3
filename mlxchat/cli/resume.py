"""Which conversation `--continue`, `--resume` and `/resume` mean, and the picker that asks."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlxchat.errors import HistoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import click
    from click.shell_completion import CompletionItem

    from mlxchat.chat.history_record import Record, Restored
    from mlxchat.chat.history_search import Found

PICK = "?"  # what `--resume` without an ID stands for
NUM_SHOWN = 20


def complete_conversation(
    context: "click.Context", parameter: "click.Parameter", incomplete: str
) -> "list[CompletionItem]":
    """Offers the numbers of conversations to the shell, with their titles."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(number, help=title) for number, title in conversation_names(incomplete)]


def conversation_names(beginning: str, limit: int = 50) -> list[tuple[str, str]]:
    """Returns the numbers of conversations that begin so, the newest first, with their titles."""
    from mlxchat.chat.history import open_history
    from mlxchat.cli.render import one_line

    with contextlib.suppress(HistoryError):
        history = open_history()
        if history is not None:
            with contextlib.closing(history):
                return [
                    (str(summary.id), one_line(summary.title))
                    for summary in history.summaries(limit)
                    if str(summary.id).startswith(beginning)
                ]
    return []


def find_adapter(record: "Record") -> str | None:
    """Returns the adapter that a conversation goes on with, where its folder is still there."""
    path = record.adapter
    return path if path is not None and os.path.isdir(path) else None


def find_conversation(
    reference: str | None, *, is_last: bool = False, can_ask: bool = False
) -> "Restored | None":
    """Reads the conversation that a person wants to go on with.

    Args:
        reference: Its number, a part of its title, a file that was exported, `PICK`, or None.
        is_last: They want the last chat.
        can_ask: They sit before a terminal.

    Raises:
        UsageError: They named none and cannot be asked, or named two.
        HistoryError: There is no such conversation.
    """
    if reference is None and not is_last:
        return None
    if reference is not None and is_last:
        raise UsageError("--continue and --resume exclude each other; give one of them")
    from mlxchat.chat.history import History  # only here: the prompt comes first

    with contextlib.closing(History()) as history:
        if is_last:
            return history.restore(history.newest("chat"))
        if reference == PICK and not can_ask:
            raise UsageError("--resume needs a conversation's ID here; see `mlxchat history list`")
        number = ask_for_conversation() if reference == PICK else reference or ""
        return history.restore(_by_title_or_file(number) or history.find(number))


def _by_title_or_file(reference: str) -> int | None:
    """Returns the conversation that a file holds, or that has a title; None for a number.

    Raises:
        UsageError: Several have the title.
        HistoryError: None has, or the file holds no conversation, or several.
    """
    from pathlib import Path

    if reference.strip().lstrip("#").isdigit():
        return None
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(reference).expanduser()
        if path.is_file():
            return _import_one(path)
    found = fitting(conversation_names("", limit=1000), reference)
    if len(found) > 1:
        shown = ", ".join(number for number, _ in found[:5])
        raise UsageError(f"{len(found)} conversations fit {reference!r}; give one of {shown} ...")
    if not found:
        raise HistoryError(
            f"there is no conversation {reference!r}, by number, title or file;"
            " `mlxchat history list` shows them"
        )
    return int(found[0][0])


def _import_one(path: "Path") -> int:
    from mlxchat.chat.history_import import import_numbers

    numbers = import_numbers(path)
    if len(numbers) != 1:
        raise HistoryError(
            f"{path} holds {len(numbers)} conversations; `mlxchat history import` imports them,"
            " then give an ID"
        )
    return numbers[0]


def search_history(words: "Sequence[str]") -> "Found":
    """Finds the messages in which all words stand, in all conversations."""
    from mlxchat.chat.history import History
    from mlxchat.chat.history_search import search

    with contextlib.closing(History()) as history:
        return search(history, words, NUM_SHOWN)


def list_conversations() -> str:
    """Returns the last conversations as a table.

    Raises:
        HistoryError: There is none.
    """
    from mlxchat.chat.history import History
    from mlxchat.cli.render_history import format_summaries

    with contextlib.closing(History()) as history:
        summaries = history.summaries(NUM_SHOWN)
    if not summaries:
        raise HistoryError("there is no conversation yet; start one with `mlxchat chat`")
    return format_summaries(summaries)


def ask_for_conversation() -> str:
    """Shows the last conversations and lets the person pick one; Enter takes the first.

    What they type is a number or a part of a title. While it fits none, or more than one, Enter
    says so.

    Raises:
        KeyboardInterrupt: They would rather not.
    """
    import sys

    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.validation import ValidationError, Validator

    from mlxchat.cli.render import cut
    from mlxchat.cli.render_history import TITLE_CHARS
    from mlxchat.cli.screen import show_table

    if TYPE_CHECKING:
        from prompt_toolkit.completion import CompleteEvent
        from prompt_toolkit.document import Document

    show_table(list_conversations(), sys.stdout)
    names = conversation_names("", limit=1000)

    class ByTitle(Completer):
        """Offers the numbers of the conversations that what is typed fits."""

        def get_completions(
            self, document: "Document", complete_event: "CompleteEvent"
        ) -> "Iterator[Completion]":
            for number, title in fitting(names, document.text) if document.text.strip() else ():
                yield Completion(
                    number, -len(document.text), display=f"{number}  {cut(title, TITLE_CHARS)}"
                )

    class OneFits(Validator):
        """Takes what fits one conversation."""

        def validate(self, document: "Document") -> None:
            if document.text.strip() and (count := len(fitting(names, document.text))) != 1:
                problem = f"{count} conversations fit" if count else "no conversation fits"
                raise ValidationError(
                    len(document.text), f"{problem}; type a number or a part of a title"
                )

    prompt: PromptSession[str] = PromptSession(
        completer=ByTitle(), validator=OneFits(), validate_while_typing=False
    )
    try:
        return fitting(names, prompt.prompt("Conversation (Enter: the first): "))[0][0]
    except EOFError:
        raise KeyboardInterrupt from None


def fitting(names: list[tuple[str, str]], typed: str) -> list[tuple[str, str]]:
    """Returns the numbers and titles that fit what was typed, in their order.

    A whole number goes before everything; else the number's beginning or a part of the title fits.
    """
    typed = typed.strip()
    wanted = typed.lstrip("#")
    exact = [(number, title) for number, title in names if number == wanted]
    part = typed.casefold()
    return exact or [
        (number, title)
        for number, title in names
        if (wanted and number.startswith(wanted)) or part in title.casefold()
    ]
