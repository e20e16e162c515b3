"""The slash commands: a registry filled by a decorator, one short handler each.

`/help`, completion and the README come from the registry. A line is a command when its first word
is a `/` with letters, digits or hyphens after it (`/stats`). So `/etc/hosts`, `/ 2` and `// note`
are text. `//word ...` is sent as `/word ...`.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mlxchat.cli.history import conversation_names
from mlxchat.cli.render import format_cache, format_stats, format_tree
from mlxchat.errors import MlxchatError, UsageError

if TYPE_CHECKING:
    from mlxchat.chat.session import Session
    from mlxchat.cli.screen import Screen
    from mlxchat.cli.turn import Start

_COMMAND = re.compile(r"(/?)/([A-Za-z][\w-]*)(?:\s+(.*))?", re.DOTALL | re.ASCII)


class LeaveChat(Exception):  # noqa: N818  # a wish, no error
    """The person wants to leave."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler works on."""

    session: "Session"
    say: Callable[[str], None]  # shows lines that are no answer
    screen: "Screen | None" = None  # None where nothing can be set on it


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

    @property
    def usage(self) -> str:
        """How the command is written: `/undo [N]`."""
        return f"/{self.name} {self.arguments}".rstrip()


COMMANDS: dict[str, Command] = {}
ALIASES = {"quit": "exit"}


def command(
    name: str, arguments: str, summary: str, complete: Completer | None = None
) -> Callable[[Handler], Handler]:
    """Registers a handler under a name."""

    def register(handler: Handler) -> Handler:
        COMMANDS[name] = Command(name, arguments, summary, handler, complete)
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
    match = _COMMAND.fullmatch(line.strip())
    if match is None:
        return lambda: context.session.send(line)
    escape, name, argument = match.groups()
    if escape:
        text = line.lstrip()[1:]
        return lambda: context.session.send(text)
    entry, argument = _find(name.lower()), (argument or "").strip()
    if argument and not entry.arguments:
        raise UsageError(f"/{name} takes no argument; write //{name} to send the line as text")
    return entry.run(context, argument)


def _find(name: str) -> Command:
    name = ALIASES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name]
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


@command("edit", "[TURN] TEXT", "Rewrite your last message, or turn TURN's, and answer it.")
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
    return lambda: context.session.edit(turn, text)


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


# Here, so that they stand before /exit in /help.
from mlxchat.cli import slash_display  # noqa: E402, F401  # it registers its commands


@command("exit", "", "Leave the chat; Ctrl-D does the same.")
def exit_(context: Context, argument: str) -> None:
    """Leaves the chat."""
    raise LeaveChat
