"""`mlxchat inspect`: look inside a model. One module per command, imported when it is used."""

import importlib

import click

from mlxchat.cli.groups import Group

# The commands in the order of --help; each has the module of its name.
NAMES = (
    *("walk", "tokens", "parameters", "cost"),
    *("neighbours", "analogy", "context"),
    *("lens", "attention", "neurons"),
    *("patch", "steer", "map"),
)


class _OnUse(Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order of --help."""
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports a command."""
        if cmd_name not in NAMES:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.command("inspect", cls=_OnUse)
def inspect() -> None:
    """Look inside a model.

    Each command works on the built-in model and, with -m, on any other, draws what it finds, prints
    it as one object with --json, and writes it as one web page with --html FILE.
    """
