"""Another model takes the place of the one in memory; on the worker thread.

Both are in memory for a moment where that fits; else the old one goes first, and is loaded again
should the new one fail or the person change their mind.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace

from mlxchat.chat.loading import find_model, load_folder, name_to_reopen
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.results import LoadProgress, SessionInfo
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.worker import JobCancelledError
from mlxchat.model.adapter import Adapter
from mlxchat.model.device import available_memory_bytes, make_device_plan, release_memory
from mlxchat.model.hub import ModelFolder

# Float32 copies of weights that are stored in 16 bits, and in 4 bits with their scales.
_GROWTH, _GROWTH_QUANTISED = 2, 8


@dataclass(slots=True)
class InMemory:
    """The model of a session; None where there is none (any more)."""

    name: str | None
    runner: TurnRunner | None = None
    info: SessionInfo | None = None


def switch_model(
    held: InMemory,
    name: str | None,
    options: ChatOptions,
    report: Callable[[LoadProgress], None],
    check: Callable[[], None],
    *,
    adapter: str | None = None,
    keeps_same: bool = True,
) -> None:
    """Loads a model in the place of another.

    Args:
        held: The old model; the new one takes its place. Where that fails it is as before.
        name: A folder, a Hub id, or None for the built-in model.
        options: The conversation's options, with the old model's adapter.
        report: Called with the progress; may raise to cancel.
        check: Raises when the job is cancelled.
        adapter: For the new model.
        keeps_same: The model that is loaded already stays, with the adapter that it has.
    """
    folder = find_model(name, report, check)
    old = held.info
    is_same = (
        old is not None
        and (old.source, old.commit) == (name_to_reopen(folder), folder.commit)
        and (keeps_same or old.adapter == adapter)
    )
    if is_same:
        return
    if adapter is not None:
        Adapter.open(adapter)  # a wrong name must not cost the old model its cache
    if held.runner is not None and not fits_beside(folder):
        held.runner.keeping.drop()
        held.runner = held.info = None
        release_memory()
    try:
        runner, info = load_folder(folder, replace(options, adapter=adapter), report)
    except BaseException:
        release_memory()
        if held.runner is None and old is not None:
            again = find_model(held.name, lambda event: None, lambda: None)
            held.runner, held.info = load_folder(again, options, _follow(report))
        raise
    if held.runner is not None:
        held.runner.keeping.drop()
    held.name, held.runner, held.info = name, runner, info
    release_memory()


def fits_beside(folder: ModelFolder) -> bool:
    """Whether a model can be loaded while another one is in memory."""
    return estimate_bytes(folder) <= available_memory_bytes()


def estimate_bytes(folder: ModelFolder) -> int:
    """Returns what the weights of a folder take in memory, rather too much than too little."""
    size = sum(file.stat().st_size for file in folder.path.glob("*.safetensors"))
    if not make_device_plan().float32:
        return size
    try:
        config = json.loads((folder.path / "config.json").read_text())
    except (OSError, ValueError):  # the load will say what is wrong
        return size
    is_quantised = "quantization" in config or "quantization_config" in config
    return size * (_GROWTH_QUANTISED if is_quantised else _GROWTH)


def _follow(report: Callable[[LoadProgress], None]) -> Callable[[LoadProgress], None]:
    """Reports of a load that nothing stops any more."""

    def follow(event: LoadProgress) -> None:
        with contextlib.suppress(JobCancelledError):  # it is what brings the old model back
            report(event)

    return follow
