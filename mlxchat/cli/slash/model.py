"""The slash commands about the model itself."""

from mlxchat.cli.render import format_count, format_table, one_line
from mlxchat.cli.slash.registry import Context, command, say_cost
from mlxchat.errors import UsageError


@command("model", "[NAME]", "Show the models here, or go on with another one.")
def model(context: Context, argument: str) -> None:
    """Shows or changes the model; the conversation stays."""
    session = context.session
    if not argument:
        from mlxchat.cli.models import find_last_used, find_models, format_models
        from mlxchat.cli.render_views import format_model

        rows = [] if session.info is None else format_model(session.info)
        if session.info is not None:
            rows.append(("context", f"{format_count(session.info.context_limit)} tokens"))
        used = find_last_used()
        table = format_models(find_models(used), used, session.model_name)
        context.say("\n\n".join(filter(None, [format_table(rows), table])))
        return
    from mlxchat.cli.choices import BY_MODEL_TABLE, apply_to_model, choose_adapter
    from mlxchat.cli.turn import follow

    before, old = session.info, session.model
    adapter = choose_adapter(context.settings, argument)  # the old one is for the old model
    info = follow(lambda: session.switch_model(argument, adapter), context.screen)
    if info is before:
        context.say(f"{one_line(info.model)} is loaded already.")
        return
    context.origins.pop("adapter", None)
    if info.adapter is not None:
        context.origins["adapter"] = BY_MODEL_TABLE
    apply_to_model(context, old, session.model)
    for text in info.notices:
        context.say(text)
    context.say(f"From here {one_line(info.model)} answers; the conversation goes on.")
    say_cost(context)


_PARTS = {"license": "what one may do with it", "template": "how messages become a prompt"}
# What `/show` also shows in ollama, and what shows it here.
_ELSEWHERE = {"parameters": "params", "system": "system"}


def _complete_part(start: str) -> list[tuple[str, str]]:
    return [(part, meaning) for part, meaning in _PARTS.items() if part.startswith(start)]


@command(
    "show", "[PART]", "Show what the model's files say, `license` or `template`.", _complete_part
)
def show(context: Context, argument: str) -> None:
    """Shows what the model's files say, its template or its licence."""
    from mlxchat.cli.models import format_details, read_part
    from mlxchat.cli.slash.registry import find

    word = {"licence": "license", "info": ""}.get(argument, argument)
    if word in _ELSEWHERE:
        find(_ELSEWHERE[word]).run(context, "")
        return
    if word and word not in _PARTS:
        what = f"/show {one_line(argument)} is not allowed"
        raise UsageError(f"{what}; write /show, /show license or /show template")
    from mlxchat.model.library import find_model

    info = context.session.info
    found = find_model(context.session.model_name, info.commit if info is not None else None)
    context.say(read_part(found, word) if word else format_details(found))


def _complete_adapter(start: str) -> list[tuple[str, str]]:
    from mlxchat.cli.files import complete_path

    words = [("off", "the plain model"), ("show", "what it holds")]
    folders = [(path, "folder") for path in complete_path(start, only_folders=True)]
    return [(word, meaning) for word, meaning in words if word.startswith(start)] + folders


@command(
    "adapter",
    "[PATH]",
    "Put an adapter (LoRA) on the model; `off` takes it away.",
    _complete_adapter,
)
def adapter(context: Context, argument: str) -> None:
    """Shows or changes the adapter; model and conversation stay."""
    from mlxchat.cli.choices import NO_ADAPTER
    from mlxchat.cli.turn import follow

    session = context.session
    before = session.options.adapter
    if argument in ("", "show"):
        context.say(_show_adapter(before) if before else "There is no adapter; /adapter PATH.")
        return
    path = None if argument == NO_ADAPTER else find_folder(argument)
    if path == before:
        context.say("There is no adapter." if path is None else "It is loaded already.")
        return
    info = follow(lambda: session.switch_adapter(path), context.screen)
    context.origins["adapter"] = "/adapter"
    for text in info.notices:
        context.say(text)
    context.say(f"From here {one_line(info.model)} answers; the conversation goes on.")
    say_cost(context)


def find_folder(text: str) -> str:
    """Returns the whole path of an adapter's folder."""
    import os

    return os.path.realpath(os.path.expanduser(text.strip("'\"")))


def _show_adapter(path: str) -> str:
    from mlxchat.cli.render import format_bytes
    from mlxchat.model.adapter import Adapter

    found = Adapter.open(path)
    size = format_bytes(sum(tensor.nbytes for tensor in found.tensors.values()))
    if found.kind == "full":
        what = f"{format_count(len(found.tensors))} tensors"
    else:
        ranks = " or ".join(map(str, sorted(found.ranks)))
        what = f"rank {ranks} on {format_count(len(found.parts))} matrices"
    rows = [("adapter", f"{found.name} ({found.kind}, {what}, {size})"), ("folder", path)]
    return format_table([*rows, ("trained on", found.base or "not said")])
