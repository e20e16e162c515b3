"""`mlxchat doctor`: what this machine, this installation and these settings are."""

import ctypes
import importlib
import json
import os
import platform
import shutil
import sys
from importlib import metadata

import click

from mlxchat import __version__, paths
from mlxchat.cli.failures import explain
from mlxchat.cli.options import resolve_model
from mlxchat.errors import MlxchatError
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
    from mlxchat.cli.render import format_table

    backend, problem = _backend()
    rows = [*_machine(), *_packages(), *backend, *_libraries(), *_places()]
    click.echo(json.dumps(dict(rows)) if as_json else format_table(rows))
    if problem is not None:
        raise problem
    return 0


def _machine() -> Rows:
    try:
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    except (OSError, ValueError):
        memory = "unknown"
    return [
        ("mlxchat", __version__),
        ("machine", f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores"),
        ("memory", memory),
        ("python", f"{platform.python_version()} ({sys.executable})"),
    ]


def _packages() -> Rows:
    rows = []
    for name in _PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return rows


def _backend() -> tuple[Rows, MlxchatError | None]:
    from mlxchat.engine.worker import Worker

    worker = Worker()
    try:
        return worker.submit(lambda _: _describe_device()).result(), None
    except Exception as error:
        return [("backend", "none")], explain(error)
    finally:
        worker.close()


def _describe_device() -> Rows:
    try:
        device = importlib.import_module("mlxchat.model.device")
    except ModuleNotFoundError as error:
        if error.name != "mlxchat.model.device":
            raise
        return [("backend", "unknown")]
    rows: Rows = device.describe()
    return rows


def _libraries() -> Rows:
    rows = []
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libopenblas.so.0")
            openblas = "found"
        except OSError:
            openblas = "not found; on the CPU install libopenblas0-pthread: it is much faster"
        rows.append(("openblas", openblas))
        compiler = shutil.which("g++")
        rows.append(
            (
                "g++",
                compiler or "not found; on the CPU MLX compiles its kernels with it: install g++",
            )
        )
    return rows


def _places() -> Rows:
    from huggingface_hub import constants

    settings = load_settings()
    path = settings_path()
    model = resolve_model(os.environ.get("MLXCHAT_MODEL"), settings)
    return [
        ("settings", f"{path}{'' if path.exists() else ' (none yet)'}"),
        ("data", str(paths.data_dir())),
        ("cache", str(paths.cache_dir())),
        ("models", str(constants.HF_HUB_CACHE)),
        ("default model", model or "built-in"),
    ]
