"""`mlxchat config`: the settings file shown, changed and opened in an editor."""

import json
import os
from collections.abc import Iterator
from typing import Any

import click

from mlxchat.cli.groups import Group
from mlxchat.cli.render import one_line
from mlxchat.cli.theme import find_theme
from mlxchat.errors import SettingsError, UsageError
from mlxchat.settings import (
    KINDS,
    check_settings,
    kind_of,
    parse_toml,
    read_settings,
    settings_path,
    split_name,
)

_WORDS = {"true": True, "on": True, "false": False, "off": False}


@click.group(cls=Group)
def config() -> None:
    """Show and change the settings."""


@config.command("path")
def path_() -> None:
    """Print where the settings file lies."""
    click.echo(settings_path())


@config.command()
@click.argument("name", required=False)
def get(name: str | None) -> int:
    """Print the setting NAME, or all that are set.

    The exit code is 1 where NAME is not set.
    """
    found = read_all()
    if name is None:
        for key, value in found.items():
            click.echo(f"{key} = {one_line(json.dumps(value, ensure_ascii=False))}")
        return 0
    _check_name(name)
    name = ".".join(split_name(name))
    if name in found:
        value = found[name]
        click.echo(one_line(value if isinstance(value, str) else json.dumps(value)))
    return int(name not in found)


@config.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("value", required=False)
def set_(name: str, value: str | None) -> None:
    """Set NAME to VALUE; without VALUE take it out."""
    from mlxchat.cli.settings_file import save_setting

    _check_name(name)
    if name == "display.theme" and value is not None:
        find_theme(value)
    save_setting(name, None if value is None else parse_value(name, value))


@config.command()
def edit() -> None:
    """Open the settings file in $VISUAL or $EDITOR, and check it afterwards."""
    from mlxchat import paths

    path = settings_path()
    paths.make_private_dir(path.parent)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    click.edit(filename=str(path))
    check_settings(parse_toml(read_settings(path), path), path)


def read_all() -> dict[str, Any]:
    """Returns the settings of the file by their whole names, in its order.

    Raises:
        SettingsError: The file is broken.
    """
    path = settings_path()
    table = parse_toml(read_settings(path), path)
    check_settings(table, path)
    return dict(_flatten(table, ""))


def _flatten(table: dict[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def parse_value(name: str, word: str) -> str | float | bool:
    """Returns what a word means for a setting; its bounds are checked when it is saved.

    Raises:
        SettingsError: It means nothing.
    """
    kind = kind_of(name)
    if kind is str:
        return word
    try:
        return _WORDS[word.lower()] if kind is bool else int(word) if kind is int else float(word)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number"}.get(kind or str, "a number")
        raise SettingsError(f"{name} = {word!r} is not allowed; give {wanted}") from None


def _check_name(name: str) -> None:
    if kind_of(name) is None:
        more = "systems.NAME, models.MODEL.temperature and so on"
        raise UsageError(f"{name} is not a setting; known are {', '.join(KINDS)}, {more}")
