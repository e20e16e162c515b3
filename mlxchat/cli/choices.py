"""What `config.toml` chooses for a model: its sampling and its system prompt, and who chose it."""

import os
from typing import TYPE_CHECKING, Any

from mlxchat.settings import SAMPLING_BOUNDS, Settings, find_system

if TYPE_CHECKING:
    from mlxchat.cli.slash import Context

BUILTIN = "builtin"
BY_FILE = "config.toml"
BY_MODEL_TABLE = f"{BY_FILE}, for this model"
NO_ADAPTER = "off"


def choose_sampling(
    settings: Settings, typed: dict[str, Any], model: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the sampling for a model and who chose it, by the names of fields.

    Args:
        settings: The model's own table goes before `[sampling]`.
        typed: What the command line says, which goes before both.
        model: None is the built-in one.
    """
    own = settings.models.get(model or BUILTIN, {})
    own = {name: value for name, value in own.items() if name in SAMPLING_BOUNDS}
    origins = (
        dict.fromkeys(settings.sampling, BY_FILE)
        | dict.fromkeys(own, BY_MODEL_TABLE)
        | dict.fromkeys(typed, "command line")
    )
    return {**settings.sampling, **own, **typed}, origins


def choose_system(settings: Settings, model: str | None) -> str | None:
    """Returns the system prompt that the settings have for a model.

    Raises:
        SettingsError: It is named, and there is none of that name.
    """
    own = settings.models.get(model or BUILTIN, {})
    text = own.get("system", settings.system)
    return find_system(text, settings) if text else None


def choose_adapter(settings: Settings, model: str | None, typed: str | None = None) -> str | None:
    """Returns the adapter for a model as a whole path; None is none.

    Args:
        settings: The model's own table may name one.
        model: None is the built-in one.
        typed: What the command line says, which goes before; `off` is none.
    """
    path = typed or settings.models.get(model or BUILTIN, {}).get("adapter")
    return None if not path or path == NO_ADAPTER else os.path.abspath(os.path.expanduser(path))


def apply_to_model(context: "Context", old: str | None, new: str | None) -> None:
    """After a change of the model: its sampling, and its system prompt where nobody chose one."""
    from dataclasses import replace

    settings, session, origins = context.settings, context.session, context.origins
    values, chosen = choose_sampling(settings, {}, new)
    sampling = session.options.sampling
    changes = {
        name: values.get(name)
        for name in SAMPLING_BOUNDS
        if origins.get(name, BY_FILE).startswith(BY_FILE)
        and getattr(sampling, name) != values.get(name)
    }
    for name in SAMPLING_BOUNDS:
        if origins.get(name, BY_FILE).startswith(BY_FILE):
            origins.pop(name, None)
            origins |= {name: chosen[name]} if name in chosen else {}
    if changes:
        session.set_options(replace(session.options, sampling=replace(sampling, **changes)))
        context.say(f"Sampling for this model: {', '.join(sorted(changes))}; /params shows it.")
    before, after = choose_system(settings, old), choose_system(settings, new)
    if before != after and session.system == before:
        session.set_system(after)
        context.say("The system prompt is this model's own; /system shows it.")
