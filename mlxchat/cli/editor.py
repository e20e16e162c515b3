"""The draft in the person's own editor: `VISUAL`, `EDITOR`, or what is installed.

Whatever goes wrong, nothing that was written is lost.
"""

import os
import shlex
import shutil
import tempfile
from pathlib import Path

from mlxchat.errors import MlxchatError

_USUAL = ("editor", "nano", "vim", "vi", "emacs")


def find_editor() -> list[str]:
    """Returns the command that opens an editor.

    Raises:
        MlxchatError: There is none, or the variable that names one cannot be read.
    """
    for variable in ("VISUAL", "EDITOR"):
        if command := os.environ.get(variable, "").strip():
            try:
                return shlex.split(command)
            except ValueError as error:
                raise MlxchatError(
                    f"{variable}={command} is not allowed: {error}; repair it"
                ) from (None)
    for name in _USUAL:
        if shutil.which(name):
            return [name]
    raise MlxchatError("there is no editor; set EDITOR to the command that opens yours")


def edit_text(draft: str) -> str:
    """Lets the person edit a text; waits until the editor has ended.

    Raises:
        MlxchatError: The editor failed. What it had saved stays in a file, which is named.
    """
    import subprocess

    command = find_editor()
    handle, name = tempfile.mkstemp(prefix="mlxchat-", suffix=".md")
    file = Path(name)
    with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="") as stream:
        stream.write(draft)
    try:
        status = subprocess.call([*command, name])
        problem = f"{command[0]} ended with status {status}" if status else ""
    except OSError as error:
        problem = f"{command[0]} cannot be started ({error.strerror})"
    text = "" if problem else _read(file)
    if not problem:
        file.unlink(missing_ok=True)
        # An editor ends the last line; the draft had no such line end.
        return text if draft.endswith("\n") else text.removesuffix("\n")
    raise MlxchatError(f"{problem}; the draft is as it was{_keep(file, draft)}")


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode().replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MlxchatError(f"{file} cannot be read: {error}; the draft is as it was") from None


def _keep(file: Path, draft: str) -> str:
    """Removes the file unless something else than the draft is in it."""
    try:
        is_same = file.read_bytes() == draft.encode(errors="replace")
        if is_same:
            file.unlink()
    except OSError:
        return ""
    return "" if is_same else f", what was saved is in {file}"
