"""`mlxchat chat`: the REPL in a terminal, one message per line anywhere else."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.failures import LeaveChat, explain
from mlxchat.cli.options import Request, chat_options, make_attachments, read_look, read_request
from mlxchat.cli.render import one_line
from mlxchat.cli.resume import PICK, complete_conversation, find_adapter, find_conversation
from mlxchat.cli.screen import Screen
from mlxchat.errors import MlxchatError

if TYPE_CHECKING:
    from mlxchat.cli.turn import Answers


@click.command()
@click.option("-c", "--continue", "goes_on", is_flag=True, help="Go on with the last chat.")
@click.option(
    "-r",
    "--resume",
    metavar="[ID]",
    is_flag=False,
    flag_value=PICK,
    shell_complete=complete_conversation,
    help="Go on with a conversation of the history; without ID choose from a list.",
)
@chat_options
@click.option(
    "--shell",
    is_flag=True,
    help="`!cmd` runs a command also where stdin is no terminal; else it is text, as lines may be"
    " data.",
)
def chat(
    goes_on: bool,
    resume: str | None,
    as_json: bool,
    timing: bool,
    plain: bool,
    shell: bool,
    **params: Any,
) -> int:
    """Talk with a model.

    In a terminal this opens the chat. Otherwise each line of stdin is one message, and each answer
    goes to stdout.
    """
    request = read_request(params)
    is_interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    is_repl = is_interactive and not as_json
    screen = Screen(sys.stdout, sys.stdout if is_repl else sys.stderr, plain=plain, **read_look())
    restored = find_conversation(resume, is_last=goes_on, can_ask=is_repl)
    greeting = ""
    if restored is not None:
        from mlxchat.cli.render_history import format_restored

        request = request.go_on_with(restored)
        width = screen.width if is_repl else None
        greeting = format_restored(restored, shows_last=is_repl, width=width)
        lost = restored.record.adapter
        if lost is not None and find_adapter(restored.record) is None:
            greeting += (
                f"\nThe adapter in {one_line(lost)} is not there any more; it goes on without."
            )
    with contextlib.ExitStack() as stack:

        def open_answers() -> "Answers":
            from mlxchat.cli.turn import Answers

            session = stack.enter_context(request.opened())
            return Answers(session, screen, as_json=as_json, timing=timing, turn_line=is_repl)

        if not is_repl:
            if greeting:
                screen.note(greeting)
            return run_lines(open_answers(), request, runs_shell=shell)
        from mlxchat.cli.repl import Repl

        return Repl(open_answers, screen, request, plain=plain).run(greeting)


def run_lines(answers: "Answers", request: Request, *, runs_shell: bool) -> int:
    """Takes one message or command per line of stdin; a line that fails does not end the chat.

    Args:
        answers: Gives the answers.
        request: What was asked for.
        runs_shell: `!` runs a command; else it is text, since lines may be data.

    Returns:
        The exit code: 1 when a line failed.
    """
    from mlxchat.cli import slash

    screen, attached = answers.screen, make_attachments(request)
    context = slash.Context(
        answers.session,
        screen.note,
        attached,
        request.origins,
        runs_shell=runs_shell,
        screen=screen,
        settings=request.settings,
        answers=answers,
    )
    has_failed = has_begun = False
    for line in _read_lines():
        start, has_begun = None, True
        try:
            start = slash.interpret(context, _decode(line))
            if start is not None:
                if answers.give(start).stop_reason == "user_cancelled":
                    raise KeyboardInterrupt
                attached.sent()
        except LeaveChat:
            break
        except BrokenPipeError:
            raise
        except Exception as error:
            has_failed = True
            screen.error(str(explain(error)))
            if start is not None and answers.session.info is None:
                break  # the model cannot be loaded: every other line would fail like this one
    if not has_begun:  # nothing was loaded; that a name is wrong is told all the same
        from mlxchat.model.hub import check_name

        check_name(request.model)
    return int(has_failed)


def _read_lines() -> Iterator[bytes]:
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        if line.strip():
            yield line.rstrip(b"\r\n")


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise MlxchatError("this line of stdin is not UTF-8; convert it with iconv") from None
