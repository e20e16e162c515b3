"""Changes one setting in `config.toml` and leaves everything else in it as it is.

The file belongs to the person: comments, order and spelling stay. A change is made in the text and
checked by reading both versions; where the text cannot be changed safely, nothing is written.
"""

import contextlib
import copy
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxchat import paths
from mlxchat.errors import SettingsError
from mlxchat.settings import check_settings, parse_toml, read_settings, settings_path, split_name


def save_setting(name: str, value: str | float | bool | None) -> Path:
    """Writes a setting; returns where.

    Args:
        name: With its table: `display.theme`.
        value: None takes the setting out.

    Raises:
        SettingsError: The name is unknown, the value not allowed, or the file cannot be changed.
    """
    path = settings_path()
    old = read_settings(path)
    text = change_setting(old, name, value, path)
    try:
        paths.make_private_dir(path.parent)
        replace_file(path.resolve(), text)
    except OSError as error:
        raise SettingsError(
            f"cannot write {path}: {error.strerror}; check space and permissions"
        ) from None
    return path


def change_setting(text: str, name: str, value: str | float | bool | None, path: Path) -> str:
    """Returns the text of a settings file with one setting changed.

    Raises:
        SettingsError: As `save_setting`.
    """
    table = parse_toml(text, path)
    check_settings(table, path)
    wanted = copy.deepcopy(table)
    *tables, key = split_name(name)
    place = wanted
    for inner in tables:
        place = place.setdefault(inner, {})
    section = ".".join(map(_quote, tables))
    if value is None:
        place.pop(key, None)
    else:
        place[key] = value
    check_settings(wanted, path)
    line = None if value is None else f"{key} = {_toml(value)}"
    for candidate in _candidates(text.split("\n"), section, key, line):
        with contextlib.suppress(SettingsError):
            if _without_empty(parse_toml(candidate, path)) == _without_empty(wanted):
                return candidate
    raise SettingsError(f"cannot change {name} in {path}; change it with an editor")


def _candidates(lines: list[str], section: str, key: str, line: str | None) -> Iterator[str]:
    """Yields texts in which the setting may be as wanted, the likeliest first."""
    new = [] if line is None else [line]
    for start, old in enumerate(lines):
        if re.match(rf"\s*{re.escape(key)}\s*=", old):
            for end in range(start + 1, len(lines) + 1):  # a value may take more than one line
                yield "\n".join([*lines[:start], *new, *lines[end:]])
                if old.count('"""') != 1 and old.count("'''") != 1 and not old.endswith("["):
                    break
    if not section:
        yield "\n".join([*new, *lines])
        return
    for start, old in enumerate(lines):
        if re.match(rf"\s*\[\s*{re.escape(section)}\s*\]", old):
            yield "\n".join([*lines[: start + 1], *new, *lines[start + 1 :]])
    text = "\n".join(lines).rstrip("\n")
    yield "\n".join([*([text, ""] if text else []), f"[{section}]", *new, ""])


def _without_empty(table: dict[str, Any]) -> dict[str, Any]:
    """Returns tables without those that say nothing."""
    inner = {k: _without_empty(v) if isinstance(v, dict) else v for k, v in table.items()}
    return {name: value for name, value in inner.items() if value != {}}


def _quote(name: str) -> str:
    """Returns the name of a table as TOML writes it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: str | float | bool) -> str:
    if isinstance(value, str):
        # JSON's strings are TOML's, but for characters beyond U+FFFF and DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def replace_file(path: Path, text: str, *, errors: str = "strict") -> None:
    """Puts a whole file in the place of the old one; its permissions stay.

    Args:
        path: The file.
        text: What it shall hold.
        errors: What is done with characters that are none, as `open` takes it.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(
            tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", errors=errors, dir=path.parent, delete=False
            )
        )
        stack.callback(lambda: Path(file.name).unlink(missing_ok=True))
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            os.chmod(file.name, path.stat().st_mode & 0o777)
        os.replace(file.name, path)
