"""The slash commands: a registry filled by a decorator, one short handler each.

`/help` shows them in the order in which they register: files here, commands in a file.
"""

from mlxchat.cli.slash import conversation, model, sampling, view, look, attach, chat  # isort: skip  # noqa: F401  # in the order of /help
from mlxchat.cli.slash.elsewhere import ALIASES
from mlxchat.cli.slash.registry import (
    COMMANDS,
    Command,
    Context,
    command,
    interpret,
    send,
)

__all__ = ["ALIASES", "COMMANDS", "Command", "Context", "command", "interpret", "send"]
