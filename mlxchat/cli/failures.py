"""The one place where what went wrong becomes a line on stderr and an exit code.

Exit codes: 0 all is well, 1 an error (a reader of stdout that went away too), 2 wrong usage,
130 interrupted.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click

from mlxchat.cli.render import one_line, wrap_words
from mlxchat.errors import ContextFullError, MlxchatError

INTERRUPTED = 130  # what shells report for SIGINT


class Stopped(KeyboardInterrupt):
    """Ctrl-C stopped an answer before there was anything to keep."""


class LeaveChat(Exception):  # noqa: N818  # a wish, no error
    """The person wants to leave."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Lets Ctrl-C stop work on the main thread that watches nothing itself.

    Raises:
        Stopped: It did.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped from None
    finally:
        signal.signal(signal.SIGINT, old)


def report(run: Callable[[], Any]) -> int:
    """Runs a command; prints what it raises as one line on stderr.

    Returns:
        The exit code: the command's own where it returned one.
    """
    try:
        code = run()
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return MlxchatError.exit_code
    except click.ClickException as error:
        _print_error(_usage_line(error))
        return error.exit_code
    except Exception as error:
        if isinstance(error, OSError):
            _silence_stdout()
        known = explain(error)
        _print_error(str(known))
        return known.exit_code
    return code if isinstance(code, int) else 0


def explain(error: Exception) -> MlxchatError:
    """Returns the error that a person can act on for one that something below us raised.

    With `MLXCHAT_DEBUG=1` its traceback goes to stderr.
    """
    if os.environ.get("MLXCHAT_DEBUG") == "1":
        sys.excepthook(type(error), error, error.__traceback__)
    if isinstance(error, MlxchatError):
        return error
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return MlxchatError(f"{error.strerror}{place}; check space and permissions")
    name = type(error).__name__
    return MlxchatError(f"internal error {name}: {error}; set MLXCHAT_DEBUG=1 for the traceback")


def advise_generate(error: Exception, *, is_limited: bool) -> Exception:
    """Returns the error with advice for `generate`, where it came with commands of the chat.

    Args:
        error: Of a prompt.
        is_limited: The person has set --max-context.
    """
    if not isinstance(error, ContextFullError):
        return error
    what = str(error).partition(";")[0]
    longer = "raise --max-context" if is_limited else "take another model with -m"
    return ContextFullError(f"{what}; shorten the prompt, or {longer}")


def _usage_line(error: click.ClickException) -> str:
    line = error.format_message().rstrip(".")
    if "; " in line:
        return line
    context = getattr(error, "ctx", None)
    # Click's parser does not say which command it is of.
    where = f"'{context.command_path} --help'" if context else "--help of this command"
    return f"{line}; see {where}"


def _print_error(line: str) -> None:
    text = f"Error: {one_line(line)}"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stderr.isatty():
            text = wrap_words(text, os.get_terminal_size(sys.stderr.fileno()).columns or 80)
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _silence_stdout() -> None:
    # The interpreter flushes stdout once more when it ends; that must not fail again.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
