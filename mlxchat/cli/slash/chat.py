"""The slash commands about the chat itself: help and the way out."""

from mlxchat.cli.slash.registry import COMMANDS, Context, LeaveChat, command


@command("help", "", "List the commands.")
def help_(context: Context, argument: str) -> None:
    """Lists the commands."""
    width = max(len(entry.usage) for entry in COMMANDS.values())
    lines = [f"{entry.usage:<{width}}  {entry.summary}" for entry in COMMANDS.values()]
    context.say("\n".join([*lines, "//word sends /word as text; /a/path is text anyway."]))


@command("exit", "", "Leave the chat; Ctrl-D does the same.")
def exit_(context: Context, argument: str) -> None:
    """Leaves the chat."""
    raise LeaveChat
