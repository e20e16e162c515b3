"""The slash commands: a registry filled by a decorator, one short handler each.

`/help`, completion and the README come from the registry. A line is a command when its first word
is a `/` with letters, digits or hyphens after it (`/stats`). So `/etc/hosts`, `/ 2` and `// note`
are text. `//word ...` is sent as `/word ...`. A line that begins with `!` is a shell command.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from mlxchat.cli.failures import stoppable
from mlxchat.cli.history import conversation_names
from mlxchat.cli.render import format_cache, format_stats, format_tree
from mlxchat.errors import MlxchatError, UsageError

if TYPE_CHECKING:
    from mlxchat.chat.session import Session
    from mlxchat.cli.attachments import Attachments
    from mlxchat.cli.screen import Screen
    from mlxchat.cli.turn import Start

_SHELL = re.compile(r"!(?=\s*[^\s!])\s*(.+)", re.DOTALL)
_COMMAND = re.compile(r"(/?)/([A-Za-z][\w-]*)(?:\s+(.*))?", re.DOTALL | re.ASCII)


class LeaveChat(Exception):  # noqa: N818  # a wish, no error
    """The person wants to leave."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler works on.

    Attributes:
        session: Answers.
        say: Shows lines that are no answer.
        attached: What waits for the next message.
        origins: Who chose the options, by the names of fields.
        send_escape: Writes an escape sequence of ours; returns False where no terminal takes it.
        expand: Puts what was pasted in the place of the chips that stand for it.
        runs_shell: `!` runs a command; else it is text.
        screen: What shows answers; None where nothing can be set on it.
    """

    session: "Session"
    say: Callable[[str], None]
    attached: "Attachments" = field(default_factory=lambda: _nothing_attached())
    origins: dict[str, str] = field(default_factory=dict)
    send_escape: Callable[[str], bool] = lambda sequence: False
    expand: Callable[[str], str] = lambda text: text
    runs_shell: bool = True
    screen: "Screen | None" = None

    def message(self, text: str, *, is_literal: bool = False) -> str:
        """Returns a message with what is attached and what its `@` name; pastes have no `@`."""
        count, say = self.session.count_tokens, self.say
        with stoppable():
            message = self.attached.compose(text, count, say, is_literal=is_literal)
        return self.expand(message)


def _nothing_attached() -> "Attachments":
    from mlxchat.cli.attachments import Attachments  # only here: the prompt comes first

    return Attachments()


# A handler gets the text after the command's name; what it returns starts an answer.
Handler: TypeAlias = "Callable[[Context, str], Start | None]"
# Gets the beginning of the argument; returns (value, meaning).
Completer: TypeAlias = Callable[[str], list[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command; `complete` offers values for its argument, with what they mean."""

    name: str
    arguments: str
    summary: str
    run: Handler
    complete: Completer | None = None
    takes_message: bool = False  # its argument is a message, where `@` names files

    @property
    def usage(self) -> str:
        """How the command is written: `/undo [N]`."""
        return f"/{self.name} {self.arguments}".rstrip()


COMMANDS: dict[str, Command] = {}
ALIASES = {"quit": "exit"}


def command(
    name: str,
    arguments: str,
    summary: str,
    complete: Completer | None = None,
    *,
    takes_message: bool = False,
) -> Callable[[Handler], Handler]:
    """Registers a handler under a name."""

    def register(handler: Handler) -> Handler:
        COMMANDS[name] = Command(name, arguments, summary, handler, complete, takes_message)
        return handler

    return register


def interpret(context: Context, line: str) -> "Start | None":
    """Takes what the person wrote: a message or a command.

    Returns:
        What starts the answer; None when the command gives none.

    Raises:
        MlxchatError: The command is unknown or cannot do what it was asked.
        LeaveChat: The command ends the chat.
    """
    context.attached.begin()
    match = _COMMAND.fullmatch(line.strip())
    if match is None:
        return _take_text(context, line)
    escape, name, argument = match.groups()
    if escape:
        return send(context, line.lstrip()[1:])
    entry, argument = _find(name.lower()), (argument or "").strip()
    if argument and not entry.arguments:
        raise UsageError(f"/{name} takes no argument; write //{name} to send the line as text")
    return entry.run(context, argument if entry.takes_message else context.expand(argument))


def send(context: Context, text: str, *, is_literal: bool = False) -> "Start":
    """Returns what sends a message with what is attached.

    Args:
        context: The chat.
        text: The message.
        is_literal: An `@` in it is text.

    Raises:
        AttachError: A file that it names cannot be attached.
    """
    message = context.message(text, is_literal=is_literal)
    return lambda: context.session.send(message)


def _take_text(context: Context, line: str) -> "Start | None":
    """Sends a message, or runs the shell command that it is."""
    match = _SHELL.fullmatch(line.strip())
    if match is not None and context.runs_shell:
        from mlxchat.cli.shell import run_command

        attachment = run_command(context.expand(match[1]), context.say)
        context.attached.add(attachment)
        context.say(f"Attached {attachment.describe(context.session.count_tokens)}.")
        return None
    if match is not None:
        context.say("A line that begins with ! is text here; with --shell it is a command.")
    is_escape = line.startswith("!!") and context.runs_shell
    return send(context, line[1:] if is_escape else line)


def _find(name: str) -> Command:
    name = ALIASES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name]
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean /{near[0]}?" if near else "/help lists the commands;"
    raise UsageError(f"there is no command /{name}; {hint} write //{name} to send it as text")


def _whole_number(text: str, usage: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"{text!r} is not allowed; write {usage} with a whole number >= 1")
    return int(text)


def _need_turns(session: "Session") -> None:
    if session.num_turns == 0:
        raise MlxchatError("the conversation is empty; send a message first")


def _need_turns_ever(session: "Session") -> None:
    if not session.tree():
        raise MlxchatError("the conversation is empty; send a message first")


@command("help", "", "List the commands.")
def help_(context: Context, argument: str) -> None:
    """Lists the commands."""
    width = max(len(entry.usage) for entry in COMMANDS.values())
    lines = [f"{entry.usage:<{width}}  {entry.summary}" for entry in COMMANDS.values()]
    context.say("\n".join([*lines, "//word sends /word as text; /a/path is text anyway."]))


@command("system", "[TEXT]", "Show the system prompt, or set it; `none` removes it.")
def system(context: Context, argument: str) -> None:
    """Shows or sets the system prompt."""
    if argument:
        context.session.set_system(None if argument == "none" else argument)
    prompt = context.session.system
    context.say("No system prompt." if prompt is None else f"System prompt: {prompt}")
    if argument:
        _say_cost(context)


@command("reset", "", "Empty the conversation; the system prompt stays.")
def reset(context: Context, argument: str) -> None:
    """Empties the conversation."""
    context.session.reset()
    context.say("The conversation is empty.")


@command("stats", "", "Show model, context and the last answer's timing.")
def stats(context: Context, argument: str) -> None:
    """Shows where the time and the memory went."""
    context.say(format_stats(context.session))


@command("retry", "", "Answer the last message again.")
def retry(context: Context, argument: str) -> "Start":
    """Answers the last message again."""
    _need_turns(context.session)
    return context.session.retry


@command("undo", "[N]", "Take back the last turn, or the last N.")
def undo(context: Context, argument: str) -> None:
    """Takes turns back."""
    count = _whole_number(argument, "/undo [N]") if argument else 1
    _need_turns(context.session)
    taken = context.session.undo(count)
    context.say(f"Took back {taken} {'turn' if taken == 1 else 'turns'}.")


@command(
    "edit",
    "[TURN] TEXT",
    "Rewrite your last message, or turn TURN's, and answer it.",
    takes_message=True,
)
def edit(context: Context, argument: str) -> "Start":
    """Replaces the text of a turn and answers it."""
    first, _, rest = argument.partition(" ")
    turn = int(first) if first.isascii() and first.isdigit() else None
    text = argument if turn is None else rest.strip()
    if not text:
        raise UsageError("there is no new text; write /edit [TURN] TEXT")
    _need_turns(context.session)
    if turn is not None and not 1 <= turn <= context.session.num_turns:
        raise UsageError(f"there is no turn {turn}; give 1 to {context.session.num_turns}")
    message = context.message(text)
    return lambda: context.session.edit(turn, message)


@command("fork", "", "Start another branch here; /goto comes back to this place.")
def fork(context: Context, argument: str) -> None:
    """Starts another branch."""
    _need_turns(context.session)
    number = context.session.fork()
    context.say(f"From here the conversation branches; /goto {number} comes back to this place.")


@command("tree", "", "Draw the branches of the conversation.")
def tree(context: Context, argument: str) -> None:
    """Draws the branches."""
    _need_turns_ever(context.session)
    context.say(format_tree(context.session.tree()))


@command("goto", "N", "Go to message N of the tree, on whatever branch.")
def goto(context: Context, argument: str) -> None:
    """Goes to a message."""
    number = _whole_number(argument, "/goto N")
    turns = context.session.goto(number)
    context.say(f"At message {number}, after {turns} {'turn' if turns == 1 else 'turns'}.")


@command("think", "MODE", "Thinking `on`, `off` or `default`, where the template can.")
def think(context: Context, argument: str) -> None:
    """Turns thinking on or off."""
    choices = {"on": True, "off": False, "default": None}
    if argument not in choices:
        raise UsageError(f"/think {argument} is not allowed; write /think on, off or default")
    for text in context.session.set_thinking(choices[argument]) or [f"Thinking: {argument}."]:
        context.say(text)
    context.origins["think"] = "/think"
    _say_cost(context)


@command("cache", "", "Show what the KV cache holds.")
def cache(context: Context, argument: str) -> None:
    """Shows what the KV cache holds."""
    report = context.session.cache_report()
    context.say("The model is not loaded yet." if report is None else format_cache(report))


@command("title", "[TEXT]", "Show the conversation's title, or set it.")
def title(context: Context, argument: str) -> None:
    """Shows or sets the title."""
    if argument:
        context.session.set_title(argument)
    name = context.session.title
    context.say(f"Title: {name}" if name else "No title; the first message stands for it.")


@command("save", "TITLE", "Keep the conversation under a title, also after --no-history.")
def save(context: Context, argument: str) -> None:
    """Names the conversation, and keeps it where it was not kept so far."""
    if not argument:
        raise UsageError("there is no title; write /save TITLE")
    number = context.session.save(argument)
    context.say(f"Saved as {number}; mlxchat chat --resume {number} goes on with it.")


@command("resume", "[ID]", "Go on with another conversation, or list them.", conversation_names)
def resume(context: Context, argument: str) -> None:
    """Takes a conversation of the history up again."""
    from mlxchat.cli.render_history import format_restored
    from mlxchat.cli.resume import find_conversation, list_conversations

    restored = find_conversation(argument or None)
    if restored is None:
        context.say(f"{list_conversations()}\n/resume ID goes on with one.")
        return
    context.session.restore(restored)
    context.say(format_restored(restored))
    _say_cost(context)


@command("export", "[FILE]", "Write the conversation to FILE: .md, .json, .jsonl or .html.")
def export(context: Context, argument: str) -> None:
    """Writes the conversation to a file that does not exist yet."""
    from pathlib import Path

    from mlxchat.chat.export import format_export
    from mlxchat.cli.history import read_format
    from mlxchat.cli.render import sanitize

    _need_turns_ever(context.session)
    record = context.session.record()
    file = Path(argument or f"conversation-{record.summary.id or 'unkept'}.md").expanduser()
    text = format_export([record], read_format(None, file.name), sanitize)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise MlxchatError(f"{file} exists; write /export FILE with another name") from None
    context.say(f"Wrote {file}.")


def _say_cost(context: Context) -> None:
    """Says how much of the conversation a change makes the next turn read again."""
    counts = context.session.count_rereads()
    if counts is not None and counts[0] > 1:
        read, total = counts
        context.say(f"The next turn reads {read} of {total} tokens again.")


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
    number = _whole_number(argument, "/drop [N]") if argument else None
    for attachment in context.attached.drop(number):
        context.say(f"Dropped {attachment.describe(context.session.count_tokens)}.")


@command("copy", "[code|N]", "Copy the last answer, its code, or its N-th code block.")
def copy(context: Context, argument: str) -> None:
    """Copies the last answer or its code."""
    from mlxchat.cli import clipboard

    answer = context.session.last_answer()
    if answer is None:
        raise MlxchatError("there is no answer yet; send a message first")
    text, name = clipboard.pick(answer, argument)
    clipboard.copy(text, context.send_escape)
    context.say(f"Copied {name}: {len(text)} characters.")


@command("set", "NAME VALUE", "Set temp, top-p, seed ... from the next turn on.")
def set_(context: Context, argument: str) -> None:
    """Sets a parameter."""
    from mlxchat.cli import parameters

    name, _, value = argument.partition(" ")
    if not value.strip():
        raise UsageError(f"write /set NAME VALUE; names are {', '.join(parameters.NAMES)}")
    for line in parameters.set_parameter(context, name, value.strip()):
        context.say(line)


@command("params", "", "Show what is in force, and who chose it.")
def params(context: Context, argument: str) -> None:
    """Shows the parameters."""
    from mlxchat.cli import parameters

    context.say(parameters.format_parameters(parameters.list_parameters(context)))


# Here, so that they stand before /exit in /help.
from mlxchat.cli import slash_display  # noqa: E402, F401  # it registers its commands


@command("exit", "", "Leave the chat; Ctrl-D does the same.")
def exit_(context: Context, argument: str) -> None:
    """Leaves the chat."""
    raise LeaveChat
