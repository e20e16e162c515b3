"""Where mlxchat keeps its files: one folder under `MLXCHAT_HOME`, or the platform's own places."""

import os
from pathlib import Path

import platformdirs


def _place(name: str, platform_default: str) -> Path:
    home = os.environ.get("MLXCHAT_HOME")
    return Path(home).expanduser() / name if home else Path(platform_default)


def config_dir() -> Path:
    """Returns the folder of `config.toml`."""
    return _place("config", platformdirs.user_config_dir("mlxchat"))


def data_dir() -> Path:
    """Returns the folder of what must not be lost: input history, conversations."""
    return _place("data", platformdirs.user_data_dir("mlxchat"))


def cache_dir() -> Path:
    """Returns the folder of what can be computed again: stored prompt caches."""
    return _place("cache", platformdirs.user_cache_dir("mlxchat"))


def make_private_dir(folder: Path) -> Path:
    """Creates a folder that only its owner can read, and returns it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
