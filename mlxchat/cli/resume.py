"""Which conversation `--continue`, `--resume` and `/resume` mean, and the picker that asks."""

import contextlib
from typing import TYPE_CHECKING

from mlxchat.cli.history import conversation_names
from mlxchat.errors import HistoryError, UsageError

if TYPE_CHECKING:
    from mlxchat.chat.history import Restored

PICK = "?"  # what `--resume` without an ID stands for
NUM_SHOWN = 20


def find_conversation(
    reference: str | None, *, is_last: bool = False, can_ask: bool = False
) -> "Restored | None":
    """Reads the conversation that a person wants to go on with.

    Args:
        reference: Its number, `PICK`, or None.
        is_last: They want the last chat.
        can_ask: They sit before a terminal.

    Raises:
        UsageError: They named none and cannot be asked, or named two.
        HistoryError: There is no such conversation.
    """
    from mlxchat.chat.history import History

    if reference is None and not is_last:
        return None
    if reference is not None and is_last:
        raise UsageError("--continue and --resume exclude each other; give one of them")
    with contextlib.closing(History()) as history:
        if is_last:
            return history.restore(history.newest("chat"))
        if reference == PICK and not can_ask:
            raise UsageError("--resume needs a conversation's ID here; see `mlxchat history list`")
        number = ask_for_conversation() if reference == PICK else reference
        return history.restore(history.find(number or ""))


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

    Raises:
        KeyboardInterrupt: They would rather not.
    """
    import click
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import FuzzyCompleter, WordCompleter
    from prompt_toolkit.shortcuts import CompleteStyle

    click.echo(list_conversations())
    names = dict(conversation_names("", limit=1000))
    # Typing a part of a title finds its number.
    completer = WordCompleter(
        list(names), meta_dict=dict(names), display_dict={n: f"{n}  {t}" for n, t in names.items()}
    )
    prompt: PromptSession[str] = PromptSession(
        completer=FuzzyCompleter(completer), complete_style=CompleteStyle.READLINE_LIKE
    )
    try:
        return prompt.prompt("Conversation (Enter: the first): ").strip() or next(iter(names))
    except EOFError:
        raise KeyboardInterrupt from None
