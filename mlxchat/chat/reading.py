"""A prompt is brought into the cache: rendered, measured against the context, planned, read.

Runs on the worker thread. What is read stays reusable whatever happens afterwards; the conversation
is not changed, but for the oldest turns that are dropped where that was asked for.
"""

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxchat.chat.continuation import Begun, begin_again
from mlxchat.chat.conversation import Conversation, Node
from mlxchat.chat.overflow import drop_oldest, format_dropped
from mlxchat.chat.prompt import RenderedPrompt
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import Notice, PrefillProgress
from mlxchat.chat.template import Message
from mlxchat.counts import format_count
from mlxchat.engine.engine import Engine, Logits, reset_peak_memory
from mlxchat.engine.reuse_plan import Plan
from mlxchat.engine.timing import Stopwatch
from mlxchat.engine.worker import JobContext
from mlxchat.errors import ContextFullError, TemplateError

if TYPE_CHECKING:
    from mlxchat.chat.turn import TurnRunner


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt that has been read: what an answer begins with.

    Attributes:
        messages: Of the prompt.
        prompt: As it was rendered.
        begun: The beginning of an answer that goes on.
        token_ids: Of prompt and beginning.
        plan: Which of them were reused.
        logits: After the last one; None where a batch is yet to be fed with that.
        watch: Has taken the time so far.
        why: Why no more were reused.
        num_ahead: Ids that were read while the person typed.
        held: What the cache holds of them, where that is not the live sequence.
    """

    messages: list[Message]
    prompt: RenderedPrompt
    begun: Begun
    token_ids: tuple[int, ...]
    plan: Plan
    logits: Logits | None
    watch: Stopwatch
    why: str
    num_ahead: int
    held: tuple[int, ...] | None = None

    @property
    def last_logits(self) -> Logits:
        """The logits after the last id, which has been fed."""
        assert self.logits is not None
        return self.logits


def read_prompt(
    runner: "TurnRunner", conversation: Conversation, request: TurnRequest, context: JobContext
) -> Reading:
    """Brings the cache to the prompt of a turn.

    Args:
        runner: Of the model.
        conversation: Its head is where the question goes.
        request: The turn.
        context: The job's.

    Raises:
        TemplateError: The template refuses the conversation.
        ContextFullError: The prompt leaves no room for an answer.
        JobCancelledError: Stopped before there was anything to keep.
    """
    reset_peak_memory()
    watch = Stopwatch(request.start)
    now = time.perf_counter()
    if notice := _make_room(runner, conversation, request):
        context.emit(Notice(notice))
        cause = f"{request.cause}, --overflow" if request.cause else "--overflow"
        request = replace(request, cause=cause)
    messages, prompt, begun = _render(runner, conversation, request)
    token_ids = (*prompt.token_ids, *begun.token_ids)
    runner.reasons.is_respelled = prompt.is_respelled
    _check_room(runner, len(token_ids))
    logits = runner.ahead.take_logits(token_ids)
    if logits is None:
        plan = plan_prompt(runner, messages, prompt, token_ids, request.marks)
    else:
        plan = runner.engine.prefix.plan(token_ids, leave=0)
    now = watch.add("template", now)
    num_earlier = prompt.message_ends[-2] if len(messages) > 2 else 0
    plan, why, num_ahead = _reuse(runner, token_ids, plan, request, context, num_earlier)
    now = watch.add("restore", now)
    if logits is None:
        logits = prefill(runner.engine, token_ids, plan, context)
        watch.add("prefill", now)
    runner.keeping.note(messages, token_ids, prompt.message_ends[0])
    return Reading(messages, prompt, begun, token_ids, plan, logits, watch, why, num_ahead)


def prefill(engine: Engine, token_ids: tuple[int, ...], plan: Plan, context: JobContext) -> Logits:
    """Reads what a plan leaves, tells how far it has come, and returns the last logits."""
    logits = engine.prefill(
        token_ids,
        plan,
        on_progress=lambda done, total: context.emit(PrefillProgress(done, total)),
        check=context.check,
    )
    assert logits is not None  # the plan left an id
    return logits


def _make_room(runner: "TurnRunner", conversation: Conversation, request: TurnRequest) -> str:
    """Drops the oldest turns where that was asked for and is needed; returns the line for it."""
    options = runner.options
    if options.overflow == "error":
        return ""

    def count() -> int:
        _, prompt, begun = _render(runner, conversation, request)
        return len(prompt.token_ids) + len(begun.token_ids)

    is_asked = request.question is not None
    dropped = drop_oldest(
        conversation, count, runner.context_limit, options.max_tokens, is_asked=is_asked
    )
    return format_dropped(conversation, dropped) if dropped else ""


def _render(
    runner: "TurnRunner", conversation: Conversation, request: TurnRequest
) -> tuple[list[Message], RenderedPrompt, Begun]:
    messages = runner.messages(conversation, request.question)
    prompt = runner.renderer.render_ids(messages)
    if not prompt.token_ids:
        raise TemplateError("the chat template renders an empty prompt; fix or replace it")
    if request.cut_off is None:
        return messages, prompt, Begun()
    return messages, *_render_begun(runner, messages, prompt, request.cut_off)


def _render_begun(
    runner: "TurnRunner", messages: list[Message], prompt: RenderedPrompt, cut_off: Node
) -> tuple[RenderedPrompt, Begun]:
    """Returns the prompt under which an answer began, and the answer as far as it had come.

    Thinking may have been switched since. Under the other prompt what was thought would be the
    answer, or the answer a thought.
    """
    begun = begin_again(cut_off, runner.renderer, prompt)
    if begun.is_of(cut_off.message) or cut_off.message.inline is not None:
        return prompt, begun
    for think in (None, True, False):
        renderer = runner.make_renderer(think)
        other = renderer.render_ids(messages)
        as_begun = begin_again(cut_off, renderer, other)
        if as_begun.is_of(cut_off.message):
            if runner.options.think is False:
                runner.ends_thinking.set()
            return other, as_begun
    return prompt, begun


def _check_room(runner: "TurnRunner", num_prompt: int) -> None:
    """Refuses a prompt that leaves no room in the context, or a turn that memory cannot hold."""
    limit = runner.context_limit
    if num_prompt >= limit:
        could_be_more = limit < runner.loaded.model.info.max_context
        raise ContextFullError(
            f"the prompt has {format_count(num_prompt)} tokens, but the context holds"
            f" {format_count(limit)}; shorten the message, have the oldest turns summarised with"
            " /compact or dropped with --overflow drop-oldest, take turns back with /undo"
            + (", or raise --max-context" if could_be_more else ", or start over with /reset")
        )
    if runner.options.checks_memory:
        room, max_tokens = limit - num_prompt, runner.options.max_tokens
        runner.memory.check(runner.engine, num_prompt, room, max_tokens)


def plan_prompt(
    runner: "TurnRunner",
    messages: list[Message],
    prompt: RenderedPrompt,
    token_ids: tuple[int, ...],
    wanted: tuple[int, ...] = (),
) -> Plan:
    """Plans the reuse, with marks where they will be wanted.

    Args:
        runner: Of the model.
        messages: Of the prompt.
        prompt: As it was rendered.
        token_ids: Of the prompt, and of the beginning of an answer that goes on.
        wanted: More positions that will be wanted.
    """
    prefix = runner.engine.prefix
    if not runner.reuses:
        prefix.reset()
    marks: tuple[int, ...] = ()
    if not prefix.is_trimmable:
        marks = (
            prompt.message_ends[0] if messages[0].role == "system" else 0,
            prompt.message_ends[-2] if len(messages) > 1 else 0,
            runner.renderer.probe_point(messages, prompt),
            *wanted,
        )
    return prefix.plan(token_ids, marks=marks)


def _reuse(
    runner: "TurnRunner",
    token_ids: tuple[int, ...],
    plan: Plan,
    request: TurnRequest,
    context: JobContext,
    num_earlier: int,
) -> tuple[Plan, str, int]:
    """Brings the live sequence to where reading begins.

    Returns:
        The plan, with what was loaded from disk; why it reuses no more; and how many ids of the
        prompt were read while the person typed.
    """
    prefix, keep_branch = runner.engine.prefix, request.keep_branch
    if runner.reuses:
        plan = runner.keeping.restore(token_ids, plan, context.check, keep_branch=keep_branch)
    for text in runner.keeping.take_notices():
        context.emit(Notice(text))
    ahead = runner.ahead.take(plan)
    if ahead is not None:
        why = runner.reasons.settled
    elif runner.reuses:
        why = runner.reasons.explain(plan, request.cause, num_earlier)
    else:
        why = "reuse is off"
    num_ahead = ahead or 0
    prefix.apply(plan, keep_branch=keep_branch and not num_ahead)
    if not num_ahead:  # mostly the end of the last answer: this question may be edited
        prefix.mark()
    runner.begin_at(min([plan.start - num_ahead, *plan.marks]))
    return plan, why, num_ahead
