"""`mlxchat generate`: one prompt in, one answer out, or many of both; made for pipes."""

import os
import stat
import sys
from typing import Any

import click

from mlxchat.cli.failures import advise_generate
from mlxchat.cli.options import MOST_ANSWERS, chat_options, read_look, read_request
from mlxchat.cli.screen import Screen
from mlxchat.errors import ContextFullError, MlxchatError, UsageError

BATCH_SIZE = 8


@click.command()
@click.argument("prompt", required=False)
@chat_options
@click.option(
    "--samples",
    type=click.IntRange(1, MOST_ANSWERS),
    default=1,
    metavar="N",
    help="Give N answers, decoded together.",
)
@click.option(
    "--batch",
    metavar="FILE",
    help="Answer each line of FILE, or of stdin for `-`: JSON in, JSON out.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, MOST_ANSWERS),
    metavar="N",
    help="Decode N lines of --batch together; 8 without this.",
)
def generate(
    prompt: str | None,
    as_json: bool,
    timing: bool,
    plain: bool,
    samples: int,
    batch: str | None,
    batch_size: int | None,
    **params: Any,
) -> None:
    """Answer one PROMPT, or each line of a file.

    The prompt is the argument, the text on stdin, or both: the argument first, then the text. The
    answer goes to stdout, all else to stderr.

    A line of --batch is {"prompt": "..."} or {"messages": [...]}, perhaps with "id", "system",
    "stop", "max_tokens", "temperature", "seed" and the like. Its answer is one JSON object; the
    order stays.
    """
    if batch is not None or batch_size is not None:
        _check_batch(batch, prompt, samples, batch_size or BATCH_SIZE, params)
    screen = Screen(sys.stdout, sys.stderr, plain=plain, **read_look())
    if batch is not None:
        from mlxchat.cli.batch import run_batch

        request = read_request(params, "generate")
        run_batch(batch, request, batch_size or BATCH_SIZE, screen, timing=timing)
        return
    text = join_prompt(prompt, read_stdin())
    request = read_request(params, "generate")
    with request.opened(idle_work=False) as session:
        from mlxchat.cli.turn import Answers, Start

        answers = Answers(session, screen, as_json=as_json, timing=timing)
        start: Start = lambda: session.send(text)  # noqa: E731
        if samples > 1:
            start = lambda: session.send_many(text, samples)  # noqa: E731
        try:
            result = answers.give(start)
        except ContextFullError as error:
            is_limited = params["max_context"] is not None
            raise advise_generate(error, is_limited=is_limited) from None
        if result.stop_reason == "user_cancelled":
            raise KeyboardInterrupt


def _check_batch(
    batch: str | None, prompt: str | None, samples: int, size: int, params: dict[str, Any]
) -> None:
    """Checks what `--batch` is given with.

    Raises:
        UsageError: Something that does not go with it.
    """
    if batch is None:
        raise UsageError("--batch-size is of no use alone; give --batch FILE too")
    if prompt is not None:
        raise UsageError("--batch takes its prompts from a file; leave the PROMPT out")
    if samples > 1:
        raise UsageError("--batch gives one answer a line; repeat lines in place of --samples")
    foresees = params["draft_model"] is not None or params["speculate"] == "lookup"
    if foresees and size > 1:
        flag = "--draft-model" if params["draft_model"] is not None else "--speculate lookup"
        raise UsageError(
            f"{flag} is for answers one by one; leave it out, or give --batch-size 1 too"
        )


def join_prompt(argument: str | None, text: str) -> str:
    """Returns the prompt: the argument, a blank line, the text; or the one that there is.

    Raises:
        UsageError: There is neither.
    """
    parts = [part for part in (argument or "", text.rstrip("\n")) if part.strip()]
    if not parts:
        raise UsageError("there is no prompt; give one as an argument or on stdin")
    return "\n\n".join(parts)


def read_stdin() -> str:
    """Returns what is on stdin when that is a pipe or a file, else nothing.

    Raises:
        MlxchatError: It is not UTF-8.
    """
    if sys.stdin is None or not _has_text(sys.stdin.buffer):
        return ""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise MlxchatError(
            f"stdin is not UTF-8 (byte {error.start}); convert it with iconv"
        ) from None


def _has_text(stream: Any) -> bool:
    # A terminal or /dev/null must not be waited for. Some programs use a socket for a pipe.
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return True  # not a file at all: a test's buffer
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
