"""The slash commands that put something into a message, or take it out of an answer."""

from mlxchat.cli.failures import stoppable
from mlxchat.cli.slash.registry import Context, command, whole_number
from mlxchat.errors import AttachError, UsageError


@command("file", "PATH|GLOB", "Put files into your next message; so does @PATH in it.")
def file(context: Context, argument: str) -> None:
    """Attaches files."""
    if not argument:
        raise UsageError("there is no path; write /file PATH, or a pattern such as /file src/*.py")
    is_quoted = len(argument) > 1 and argument[0] == argument[-1] and argument[0] in "\"'"
    name = argument[1:-1] if is_quoted else argument.replace("\\ ", " ")
    with stoppable():  # a pattern may lead through a large disk
        lines = context.attached.add_files(name, context.session.count_tokens)
    for line in lines:
        context.say(line)


@command("drop", "[N]", "Discard what is attached, or the N-th of it.")
def drop(context: Context, argument: str) -> None:
    """Discards what is attached."""
    number = whole_number(argument, "/drop [N]") if argument else None
    try:
        dropped = context.attached.drop(number)
    except AttachError as error:
        raise UsageError(str(error)) from None  # of the others the line comes back, to be corrected
    for attachment in dropped:
        context.say(f"Dropped {attachment.describe(context.session.count_tokens)}.")


@command("copy", "[code|N]", "Copy the last answer, its code, or its N-th code block.")
def copy(context: Context, argument: str) -> None:
    """Copies the last answer or its code."""
    from mlxchat.cli import clipboard

    text, name = clipboard.pick(context.last_answer(), argument)
    clipboard.copy(text, context.send_escape)
    context.say(f"Copied {name}: {len(text)} characters.")
