"""What a deleted conversation leaves outside of the history: what was typed at the prompt."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxchat import paths

if TYPE_CHECKING:
    from mlxchat.chat.history import Record


def forget_typed(records: "Iterable[Record]", file: Path | None = None) -> None:
    """Takes the questions of conversations out of what the prompt recalls."""
    file = file or paths.data_dir() / "input_history"
    gone = {
        message.content
        for record in records
        for message in record.messages
        if message.role == "user"
    }
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    # prompt-toolkit's form: an empty line, "# time", then each line of the text behind a "+".
    kept = []
    for block in text.split("\n# "):
        lines = [line[1:] for line in block.split("\n") if line.startswith("+")]
        if "\n".join(lines) not in gone or not lines:
            kept.append(block)
    new = "\n# ".join(kept)
    if new != text:
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(new)
        temporary.replace(file)
