"""`mlxchat chat`: the REPL in a terminal, one message per line anywhere else."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.failures import explain
from mlxchat.cli.options import chat_options, read_look, read_request
from mlxchat.cli.screen import Screen
from mlxchat.errors import MlxchatError

if TYPE_CHECKING:
    from mlxchat.cli.turn import Answers


@click.command()
@chat_options
def chat(as_json: bool, timing: bool, plain: bool, **params: Any) -> int:
    """Talk with a model.

    In a terminal this opens the chat. Otherwise each line of stdin is one message, and each answer
    goes to stdout.
    """
    request = read_request(params)
    is_interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    is_repl = is_interactive and not as_json
    screen = Screen(sys.stdout, sys.stdout if is_repl else sys.stderr, plain=plain, **read_look())
    with contextlib.ExitStack() as stack:

        def open_answers() -> "Answers":
            from mlxchat.cli.turn import Answers

            session = stack.enter_context(contextlib.closing(request.open()))
            return Answers(session, screen, as_json=as_json, timing=timing, turn_line=is_repl)

        if not is_repl:
            return run_lines(open_answers())
        from mlxchat.cli.repl import Repl

        return Repl(open_answers, screen, request.model, plain=plain).run()


def run_lines(answers: "Answers") -> int:
    """Takes one message or command per line of stdin; a line that fails does not end the chat.

    Returns:
        The exit code: 1 when a line failed.
    """
    from mlxchat.cli import slash

    context = slash.Context(answers.session, answers.screen.note, answers.screen)
    has_failed = False
    for line in _read_lines():
        try:
            start = slash.interpret(context, _decode(line))
            if start is not None and answers.give(start).stop_reason == "user_cancelled":
                raise KeyboardInterrupt
        except slash.LeaveChat:
            break
        except BrokenPipeError:
            raise
        except Exception as error:
            has_failed = True
            answers.screen.error(str(explain(error)))
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
