"""`mlxchat doctor`: what this machine, this installation and these settings are."""

import contextlib
import json
import os
import platform
import sys

import click

from mlxchat import __version__, paths
from mlxchat.cli.choices import choose_adapter
from mlxchat.cli.failures import explain
from mlxchat.cli.options import resolve_model
from mlxchat.errors import HistoryError, MlxchatError
from mlxchat.settings import load_settings, settings_path

Rows = list[tuple[str, str]]

_PACKAGES = (
    "mlx",
    "mlx-cpu",
    "mlx-cuda-13",
    "mlx-metal",
    "mlx-lm",
    "tokenizers",
    "huggingface-hub",
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Show what this machine and this installation can do."""
    from mlxchat.bench.machine import versions
    from mlxchat.cli.render import format_table

    backend, problem = _backend()
    history, damage = _history()
    problem = problem or damage
    python = f"{platform.python_version()} ({sys.executable})"
    rows = [
        ("mlxchat", __version__),
        ("python", python),
        *versions(_PACKAGES).items(),
        *backend,
        *_places(),
        history,
    ]
    click.echo(json.dumps(dict(rows)) if as_json else format_table(rows))
    if problem is not None:
        raise problem
    return 0


def _backend() -> tuple[Rows, MlxchatError | None]:
    from mlxchat.engine.worker import Worker
    from mlxchat.model import device

    worker = Worker()
    try:
        return worker.run(lambda _: device.describe()), None
    except Exception as error:
        return [("backend", "none")], explain(error)
    finally:
        worker.close()


def _history() -> tuple[tuple[str, str], MlxchatError | None]:
    """Returns where the history lies and how it is."""
    from mlxchat.chat.history import open_history
    from mlxchat.chat.history_file import history_path
    from mlxchat.cli.render import format_bytes

    path = str(history_path())
    try:
        history = open_history()
        if history is None:
            return ("history", f"{path} (none yet)"), None
        with contextlib.closing(history):
            damage = history.check()
            stats = history.stats() if not damage else None
            size = format_bytes(history.file_bytes())
    except MlxchatError as error:
        return ("history", f"{path} (cannot be read)"), error
    if stats is None:
        line = f"the history in {path} is damaged ({damage[0]}); restore it from a backup"
        return ("history", f"{path} ({size}, damaged)"), HistoryError(line)
    return ("history", f"{path} ({size}, {stats.num_conversations} conversations, sound)"), None


def _prompt_cache() -> str:
    """Returns where stored prompt caches lie, and what they take and may take."""
    from mlxchat.cli.cache import open_store
    from mlxchat.cli.render import format_bytes

    usage = open_store().usage()
    used, allowed = format_bytes(usage.used), format_bytes(usage.allowed)
    return f"{paths.cache_dir()} ({used} of prompts, {allowed} allowed)"


def _places() -> Rows:
    from huggingface_hub import constants

    settings = load_settings()
    path = settings_path()
    model = resolve_model(os.environ.get("MLXCHAT_MODEL"), settings)
    adapter = choose_adapter(settings, model)
    return [
        ("settings", f"{path}{'' if path.exists() else ' (none yet)'}"),
        ("data", str(paths.data_dir())),
        ("cache", _prompt_cache()),
        ("models", str(constants.HF_HUB_CACHE)),
        ("default model", (model or "built-in") + (f" with adapter {adapter}" if adapter else "")),
    ]
