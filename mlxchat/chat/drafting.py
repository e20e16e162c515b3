"""What foresees the tokens of answers: earlier text, or a draft model beside the model.

A draft model is loaded here, and checked to speak the same tokens. Runs on the worker thread.
"""

from collections.abc import Callable

from mlxchat.chat.options import ChatOptions
from mlxchat.chat.results import LoadProgress, Speculation
from mlxchat.engine.draft_model import DraftModel
from mlxchat.engine.engine import Engine
from mlxchat.engine.lookup import PromptLookup
from mlxchat.engine.speculation import Drafter, Speculator, explain_unfit
from mlxchat.errors import UsageError
from mlxchat.model.hub import resolve_model
from mlxchat.model.loader import LoadedModel, load_model


class Foresight:
    """Chooses what foresees the tokens of a model's answers.

    Args:
        unfit: Why nothing can, with this model; empty where it can.
    """

    def __init__(self, unfit: str) -> None:
        self.unfit = unfit
        self.lookup = Speculator(PromptLookup())
        self.drafting: Speculator | None = None

    def set_drafter(self, drafter: Drafter) -> None:
        """Takes a draft model, which goes before looking up earlier text."""
        self.drafting = Speculator(drafter)

    def choose(self, wanted: str) -> Speculator | None:
        """Returns what foresees the next answer, where that is wanted (one of `SPECULATE`)."""
        if wanted == "off" or self.unfit:
            return None
        return self.drafting if self.drafting is not None and wanted == "auto" else self.lookup

    def explain_off(self, options: ChatOptions) -> str:
        """Returns why what was asked for is off; nothing where it is not."""
        is_wanted = options.speculate == "lookup" or options.draft_model is not None
        return f"speculation is off: {self.unfit}" if is_wanted and self.unfit else ""


def report_speculation(speculator: Speculator | None) -> Speculation | None:
    """Tells what was foreseen of the last answer."""
    if speculator is None:
        return None
    stats = speculator.stats
    return Speculation(stats.kind, stats.drafted, stats.accepted, stats.saved_s, stats.forced)


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
