"""A draft model beside the model: loaded, and checked to speak the same tokens. On the worker."""

from collections.abc import Callable

from mlxchat.chat.results import LoadProgress
from mlxchat.engine.draft_model import DraftModel
from mlxchat.engine.engine import Engine
from mlxchat.engine.speculation import explain_unfit
from mlxchat.errors import UsageError
from mlxchat.model.hub import resolve_model
from mlxchat.model.loader import LoadedModel, load_model


def load_draft_model(
    name: str, loaded: LoadedModel, report: Callable[[LoadProgress], None]
) -> DraftModel:
    """Loads a draft model.

    Args:
        name: A folder, a Hub id, or `builtin`.
        loaded: The model that it drafts for.
        report: Called with the progress; may raise to cancel.

    Raises:
        UsageError: It cannot draft for this model; says why.
    """
    folder = resolve_model(
        None if name == "builtin" else name,
        on_progress=lambda done, total: report(LoadProgress("download", done, total)),
    )
    draft = load_model(
        folder.path, lambda phase, done, total: report(LoadProgress(phase, done, total))
    )
    difference = compare_tokenizers(loaded, draft)
    if difference:
        raise UsageError(
            f"--draft-model {name} has another tokenizer than the model ({difference}); name a"
            " smaller model of the same family"
        )
    engine = Engine(draft.model)
    unfit = explain_unfit(draft.model, engine.prefix.cache)
    if unfit:
        raise UsageError(f"--draft-model {name} cannot draft: {unfit}; name another")
    return DraftModel(engine)


def compare_tokenizers(loaded: LoadedModel, draft: LoadedModel) -> str:
    """Returns how the vocabularies of two models differ, nothing where ids mean the same."""
    ours, theirs = loaded.tokenizer.vocabulary(), draft.tokenizer.vocabulary()
    if ours != theirs:
        other = next(iter(sorted(set(ours.items()) ^ set(theirs.items()))))[0]
        return f"{len(theirs)} tokens to {len(ours)}; {other!r} has not the same id"
    if draft.model.info.vocab_size < len(ours):
        return f"{draft.model.info.vocab_size} embedding rows for {len(ours)} tokens"
    return ""
