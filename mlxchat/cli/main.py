"""The `mlxchat` command and its subcommands."""

import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any

import click

from mlxchat import __version__
from mlxchat.cli.failures import report
from mlxchat.cli.groups import Group

# In the order of --help; each is the object of that name in the module of that name.
_NAMES = (
    *("chat", "generate", "embed", "models", "history", "inspect", "cache"),
    *("bench", "timings", "config", "doctor"),
)


class Commands(MutableMapping[str, click.Command]):
    """The commands by name; each is imported when it is asked for: the prompt comes first."""

    def __init__(self) -> None:
        self._added: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._added and name in _NAMES:
            module = importlib.import_module(f"mlxchat.cli.{name}")
            self._added[name] = getattr(module, name)
        return self._added[name]

    def __contains__(self, name: object) -> bool:
        return name in _NAMES or name in self._added

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._added[name] = command

    def __delitem__(self, name: str) -> None:
        del self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*_NAMES, *self._added)))

    def __len__(self) -> int:
        return len(list(iter(self)))


class Program(Group):
    """A group that runs `chat` when no command is named, and reports errors in one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `chat` before options that are not the group's own."""
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["chat", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command and exits with its code."""
        kwargs["standalone_mode"] = False
        run = super().main
        sys.exit(report(lambda: run(*args, **kwargs)))


@click.group(
    cls=Program, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="mlxchat", message="%(prog)s %(version)s")
def cli() -> None:
    """Chat with a language model in the terminal.

    It never reads the same token twice, and it shows where every millisecond went. Without a
    command it opens the chat; `mlxchat chat --help` lists its options.
    """


def _fill_closed_descriptors() -> None:
    # The next file that is opened would get the number: MLX takes 0 for a failure, and what is
    # written to stderr would end up in a file that got 2.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def main() -> None:
    """Runs the program; the console script."""
    # Start-up makes only objects that stay; walking them costs a tenth of the time to the prompt.
    gc.set_threshold(50_000, 20, 20)
    _fill_closed_descriptors()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # open until the end
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        cli()
    except SystemExit as leave:
        if any(thread.name == "mlx-worker" for thread in threading.enumerate()):
            sys.stdout.flush()
            os._exit(int(leave.code or 0))  # MLX would abort an orderly exit in mid-evaluation
        raise
