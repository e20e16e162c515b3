"""`mlxchat chat`: the REPL in a terminal, one message per line anywhere else."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mlxchat.cli.failures import explain
from mlxchat.cli.options import chat_options, read_request
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
    with contextlib.closing(request.open()) as session:
        from mlxchat.cli.screen import Screen
        from mlxchat.cli.turn import Answers

        is_interactive = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        if is_interactive and not as_json:
            from mlxchat.cli.repl import Repl

            screen = Screen(sys.stdout, sys.stdout, plain=plain)
            answers = Answers(session, screen, timing=timing, turn_line=True)
            return Repl(answers, request.model, plain=plain).run()
        screen = Screen(sys.stdout, sys.stderr, plain=plain)
        return run_lines(Answers(session, screen, as_json=as_json, timing=timing))


def run_lines(answers: "Answers") -> int:
    """Takes one message or command per line of stdin; a line that fails does not end the chat.

    Returns:
        The exit code: 1 when a line failed.
    """
    from mlxchat.cli import slash

    context = slash.Context(answers.session, answers.screen.note)
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
