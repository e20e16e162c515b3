"""From a model's name to what runs its turns; on the worker thread."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from mlxchat.chat.drafting import load_draft_model
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.results import LoadProgress, SessionInfo
from mlxchat.chat.template import Message
from mlxchat.chat.turn import TurnRunner
from mlxchat.counts import format_count
from mlxchat.errors import TemplateError
from mlxchat.model.adapter import Adapter
from mlxchat.model.device import format_backend, make_device_plan
from mlxchat.model.hub import ModelFolder, resolve_model
from mlxchat.model.language_model import ModelInfo
from mlxchat.model.loader import load_model


def load_runner(
    name: str | None,
    options: ChatOptions,
    report: Callable[[LoadProgress], None],
    check: Callable[[], None],
) -> tuple[TurnRunner, SessionInfo]:
    """Finds, fetches and loads a model.

    Args:
        name: A folder, a Hub id, or None for the built-in model.
        options: The conversation's options.
        report: Called with the progress of download, load and warm-up; may raise to cancel.
        check: Raises when the job is cancelled.
    """
    return load_folder(find_model(name, report, check), options, report)


def find_model(
    name: str | None, report: Callable[[LoadProgress], None], check: Callable[[], None]
) -> ModelFolder:
    """Finds and fetches a model; nothing of it is in memory yet.

    Args:
        name: A folder, a Hub id, or None for the built-in model.
        report: Called with the progress of the download; may raise to cancel.
        check: Raises when the job is cancelled.
    """
    return resolve_model(
        name,
        on_progress=lambda done, total: report(LoadProgress("download", done, total)),
        check_cancel=check,
    )


def load_folder(
    folder: ModelFolder, options: ChatOptions, report: Callable[[LoadProgress], None]
) -> tuple[TurnRunner, SessionInfo]:
    """Loads a model that is on this disk.

    Args:
        folder: Where it is.
        options: The conversation's options.
        report: Called with the progress of load and warm-up; may raise to cancel.
    """
    loaded = load_model(
        folder.path,
        lambda phase, done, total: report(LoadProgress(phase, done, total)),
        adapter=options.adapter,
    )
    adapter = loaded.adapter
    name = folder.name_with(None if adapter is None else adapter.name)
    runner = TurnRunner(name, loaded, options)
    if options.draft_model is not None:
        runner.foresight.set_drafter(load_draft_model(options.draft_model, loaded, report))
    with contextlib.suppress(TemplateError):  # loads Jinja now; a real refusal shows in a turn
        runner.renderer.render_ids([Message("user", "Hello")])
    info = loaded.model.info
    return runner, SessionInfo(
        model=runner.name,
        family=info.family,
        n_params=info.n_params,
        weight_bytes=info.weight_bytes,
        context_limit=runner.context_limit,
        backend=format_backend(make_device_plan()),
        is_builtin=folder.is_builtin,
        load_s=loaded.load_s,
        notices=(
            *info.notices,
            *_context_notices(options, info),
            *([] if adapter is None else adapter_notices(adapter, folder)),
            *filter(None, [runner.engine.kv_notice, runner.foresight.explain_off(options)]),
            *runner.template_notices(),
        ),
        source=name_to_reopen(folder),
        commit=folder.commit,
        fingerprint=loaded.fingerprint,
        adapter=None if adapter is None else str(adapter.folder),
    )


def name_to_reopen(folder: ModelFolder) -> str:
    """Returns the name under which the same model is opened again: a Hub id or a whole path."""
    is_local = folder.commit is None and not folder.is_builtin
    return str(folder.path) if is_local else folder.name


def adapter_notices(adapter: Adapter, folder: ModelFolder) -> list[str]:
    """Says what an adapter was trained on, where that has another name than the model."""
    base = adapter.base
    if base is None or Path(base).name.lower() == Path(folder.name).name.lower():
        return []
    return [f"adapter {adapter.name} was trained on {base}; on another model it may say nonsense"]


def _context_notices(options: ChatOptions, info: ModelInfo) -> list[str]:
    if (options.max_context or 0) <= info.max_context:
        return []
    limit = format_count(info.max_context)
    return [f"--max-context {options.max_context} is more than this model's {limit}"]
