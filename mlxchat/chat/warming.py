"""Storing a system prompt ahead of its first use. Runs on the worker thread."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxchat.chat.results import Notice, PrefillProgress
from mlxchat.chat.template import Message
from mlxchat.counts import format_count
from mlxchat.engine.stored_name import MIN_IDS
from mlxchat.engine.worker import JobContext
from mlxchat.errors import ContextFullError, MlxchatError, UsageError

if TYPE_CHECKING:
    from mlxchat.chat.turn import TurnRunner


@dataclass(frozen=True, slots=True)
class Warmed:
    """A system prompt that is stored now.

    Attributes:
        model: The model's name.
        num_tokens: Ids that a chat with this system prompt will not read again.
        num_read: Ids that were read for it; the others were stored before.
    """

    model: str
    num_tokens: int
    num_read: int


def warm(runner: "TurnRunner", system: str, context: JobContext) -> Warmed:
    """Reads a system prompt and stores it.

    Args:
        runner: Of a session that has said nothing yet.
        system: The system prompt.
        context: The job's.

    Raises:
        UsageError: The prompt is too short to be worth it.
        ContextFullError: It is longer than the context.
        MlxchatError: It could not be stored; says why.
    """
    messages = [Message("system", system)]
    target = runner.renderer.settle_target(messages)
    if len(target) < MIN_IDS:
        raise UsageError(
            f"this system prompt has only {len(target)} tokens; from {MIN_IDS} on it is stored"
        )
    if len(target) >= runner.context_limit:
        raise ContextFullError(
            f"the system prompt has {format_count(len(target))} tokens, but the context holds"
            f" {format_count(runner.context_limit)}; shorten it"
        )
    keeping, prefix = runner.keeping, runner.engine.prefix
    plan = prefix.plan(target, marks=(len(target),), leave=0)
    plan = keeping.restore(target, plan, context.check, leave=0)
    prefix.apply(plan)
    runner.engine.prefill(
        target,
        plan,
        on_progress=lambda done, total: context.emit(PrefillProgress(done, total)),
        check=context.check,
    )
    keeping.note(messages, target, len(target))
    keeping.keep_system(context.check)
    keeping.prefixes.wait()
    notices = keeping.take_notices()
    if not keeping.prefixes.is_stored(target, "system"):
        raise MlxchatError("; ".join(notices) or keeping.prefixes.store.explain_refusal())
    for text in notices:
        context.emit(Notice(text))
    return Warmed(runner.name, len(target), len(target) - plan.start)
