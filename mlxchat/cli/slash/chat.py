"""The slash commands about the chat itself: help and the way out."""

import textwrap

from mlxchat.cli.failures import LeaveChat
from mlxchat.cli.slash.registry import ALIASES, COMMANDS, Context, command, find
from mlxchat.cli.slash.registry import Command as Entry

_NARROW = 60  # below this usage and summary stand under each other


def _complete_name(start: str) -> list[tuple[str, str]]:
    return [(name, entry.summary) for name, entry in COMMANDS.items() if name.startswith(start)]


@command("help", "[NAME]", "List the commands, or explain one.", _complete_name)
def help_(context: Context, argument: str) -> None:
    """Lists the commands, or explains one."""
    if argument:
        context.say(explain(find(argument.lower().removeprefix("/")), context.width))
        return
    entries = list(COMMANDS.values())
    width = max(len(entry.usage) for entry in entries)
    lines = [format_entry(entry.usage, entry.summary, width, context.width) for entry in entries]
    last = "//word sends /word as text; /a/path is text anyway."
    context.say("\n".join([*lines, *textwrap.wrap(last, context.width)]))


def format_entry(usage: str, summary: str, width: int, columns: int) -> str:
    """Returns a command and what it does, broken between words.

    Args:
        usage: How it is written.
        summary: What it does.
        width: Columns for the usages.
        columns: Of the screen.
    """
    line = f"{usage:<{width}}  {summary}"
    if len(line) <= columns:
        return line
    if columns < _NARROW:
        rows = textwrap.wrap(summary, columns - 2, break_on_hyphens=False)
        return "\n".join([usage, *(f"  {row}" for row in rows)])
    first, *rest = textwrap.wrap(summary, columns - width - 2, break_on_hyphens=False)
    return "\n".join([f"{usage:<{width}}  {first}", *(" " * (width + 2) + row for row in rest)])


def explain(entry: Entry, columns: int) -> str:
    """Returns what there is to say about one command."""
    lines = [entry.usage, *textwrap.wrap(entry.summary, columns)]
    also = [f"/{name}" for name, target in ALIASES.items() if target == entry.name]
    if also:
        lines.append(f"Also: {', '.join(also)}")
    values = entry.complete("") if entry.complete is not None else []
    words = ", ".join(value.strip() for value, _ in values[:20])
    lines += textwrap.wrap(f"Tab offers: {words}", columns) if words else []
    if entry.takes_message:
        lines.append("@path in its text puts a file into it.")
    return "\n".join(lines)


@command("exit", "", "Leave the chat; Ctrl-D does the same.")
def exit_(context: Context, argument: str) -> None:
    """Leaves the chat."""
    raise LeaveChat
