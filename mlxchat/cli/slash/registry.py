"""The registry of slash commands, and what a line that the person wrote means.

`/help`, completion and the README come from the registry. A line is a command when its first word
is a `/` with letters, digits or hyphens after it (`/stats`), or `/?`. So `/etc/hosts`, `/ 2` and
`// note` are text. `//word ...` is sent as `/word ...`. A line that begins with `!` is a shell
command.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from mlxchat.cli.failures import stoppable
from mlxchat.cli.render import format_rereads
from mlxchat.cli.slash.elsewhere import ALIASES, find_instead
from mlxchat.errors import MlxchatError, UsageError
from mlxchat.settings import Settings

if TYPE_CHECKING:
    from mlxchat.chat.session import Session
    from mlxchat.cli.attachments import Attachments
    from mlxchat.cli.screen import Screen
    from mlxchat.cli.turn import Answers, Start

_SHELL = re.compile(r"/?!(?=\s*[^\s!])\s*(.+)", re.DOTALL)
_COMMAND = re.compile(r"(/?)/([A-Za-z][\w-]*|\?)(?:\s+(.*))?", re.DOTALL | re.ASCII)


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
        settings: What `config.toml` said at the start.
        answers: Shows what comes of a turn; None where nothing can be set on it.
        redraft: Begins the next prompt with three texts, of which the second may be a chip; None
            where there is no prompt.
    """

    session: "Session"
    say: Callable[[str], None]
    attached: "Attachments" = field(default_factory=lambda: _nothing_attached())
    origins: dict[str, str] = field(default_factory=dict)
    send_escape: Callable[[str], bool] = lambda sequence: False
    expand: Callable[[str], str] = lambda text: text
    runs_shell: bool = True
    screen: "Screen | None" = None
    settings: Settings = field(default_factory=Settings)
    answers: "Answers | None" = None
    redraft: Callable[[str, str, str], None] | None = None

    @property
    def width(self) -> int:
        """Columns that a line of a report may take."""
        return 80 if self.screen is None else self.screen.width

    def last_answer(self) -> str:
        """Returns the last answer as the model wrote it.

        Raises:
            MlxchatError: There is none yet.
        """
        if (answer := self.session.last_answer()) is None:
            raise MlxchatError("there is no answer yet; send a message first")
        return answer

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
    argument = (argument or "").strip()
    entry = find(name.lower(), argument)
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

        screen = context.screen
        show = context.say if screen is None else partial(screen.verbatim, dim=True)
        attachment = run_command(context.expand(match[1]), show)
        context.attached.add(attachment)
        context.say(f"Attached {attachment.describe(context.session.count_tokens)}.")
        return None
    if match is not None:
        context.say("A line that begins with ! is text here; with --shell it is a command.")
    is_escape = line.startswith("!!") and context.runs_shell
    return send(context, line[1:] if is_escape else line)


def find(name: str, argument: str = "") -> Command:
    """Returns a command by its name or another name of it.

    Args:
        name: In lower case.
        argument: What followed it.

    Raises:
        UsageError: There is none; the message names the nearest, or what does its work.
    """
    name = ALIASES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name]
    import difflib

    if instead := find_instead(name, argument):
        raise UsageError(f"there is no command /{name}; {instead}")
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean /{near[0]}?" if near else "/help lists the commands;"
    raise UsageError(f"there is no command /{name}; {hint} write //{name} to send it as text")


def whole_number(text: str, usage: str) -> int:
    """Reads a number of at least 1; `usage` is how the command is written."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        what = f"{text!r} is not allowed" if text else "there is no number"
        raise UsageError(f"{what}; write {usage} with a whole number >= 1")
    return int(text)


def need_turns(session: "Session") -> None:
    """Raises where the current branch has no turn."""
    if session.num_turns == 0:
        raise MlxchatError("the conversation is empty; send a message first")


def need_turns_ever(session: "Session") -> None:
    """Raises where no branch has a message."""
    if not session.tree():
        raise MlxchatError("the conversation is empty; send a message first")


def say_cost(context: Context) -> None:
    """Says how much of the conversation a change makes the next turn read again."""
    counts = context.session.count_rereads()
    if counts is not None and counts[0] > 1:
        context.say(format_rereads(*counts))
