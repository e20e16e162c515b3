"""What a deleted conversation leaves outside of the history: stored prompts, and what was typed."""

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxchat import paths
from mlxchat.cli.settings_file import replace_file
from mlxchat.errors import SettingsError
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from mlxchat.chat.history_record import Record
    from mlxchat.engine.prompt_store import PromptStore


def forget_prompts(store: "PromptStore", numbers: Iterable[int], systems: Collection[str]) -> None:
    """Removes stored keys and values of conversations.

    Args:
        store: Where they are stored.
        numbers: The conversations.
        systems: Their system prompts that no other conversation has; those of the settings stay.
    """
    from mlxchat.engine.prompt_store import make_label

    store.forget(numbers)
    kept: list[str | None] = []
    with contextlib.suppress(SettingsError):
        settings = load_settings()
        own = [values.get("system") for values in settings.models.values()]
        kept = [settings.system, *settings.systems.values(), *own]
    gone = set(map(make_label, systems)) - {make_label(text) for text in kept if text}
    if gone:
        store.forget_systems(gone)


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
        replace_file(file, new, errors="surrogateescape")
