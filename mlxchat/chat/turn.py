"""One turn on the worker thread: ids, plan, prefill, decode, record; and settling afterwards.

Runs where MLX runs. The conversation is changed only when an answer stands: an error or an early
Ctrl-C leaves it as it was.
"""

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from threading import Event
from typing import Any

from mlxchat.chat.answering import Answer, AnswerDecoder
from mlxchat.chat.continuation import CUT_OFF, Begun, begin_again
from mlxchat.chat.conversation import Conversation, Node, Origin
from mlxchat.chat.memory import MemoryGuard
from mlxchat.chat.options import ChatOptions, pick_seed
from mlxchat.chat.overflow import choose_messages, drop_oldest, format_dropped
from mlxchat.chat.prompt import PromptRenderer, RenderedPrompt
from mlxchat.chat.prompt_keeping import PromptKeeping, open_keeping
from mlxchat.chat.read_ahead import ReadAhead
from mlxchat.chat.results import (
    Alternatives,
    CacheUse,
    Notice,
    PrefillProgress,
    Speculation,
    StopReason,
    TurnResult,
    Usage,
    Verify,
)
from mlxchat.chat.steering import make_taps
from mlxchat.chat.template import ChatTemplate, Message
from mlxchat.chat.views import ContextView, measure_parts
from mlxchat.engine.engine import Engine, Logits, peak_memory_bytes, reset_peak_memory
from mlxchat.engine.lookup import PromptLookup
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.prefix_cache import Plan
from mlxchat.engine.sampling import Sampler, resolve_sampling
from mlxchat.engine.speculation import Drafter, Speculator, explain_unfit
from mlxchat.engine.stored_prefix import make_key
from mlxchat.engine.timing import Stopwatch
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import ContextFullError, TemplateError
from mlxchat.model.device import (
    SMALLEST_STREAM,
    measure_bandwidth,
)
from mlxchat.model.loader import LoadedModel
from mlxchat.model.tokenizer import Tokenizer

TEMPLATE = "the template"


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt that has been read: what an answer begins with.

    Attributes:
        messages: Of the prompt.
        prompt: As it was rendered.
        begun: The beginning of an answer that goes on.
        token_ids: Of prompt and beginning.
        plan: Which of them were reused.
        logits: After the last one.
        watch: Has taken the time so far.
        why: Why no more were reused.
        num_ahead: Ids that were read while the person typed.
    """

    messages: list[Message]
    prompt: RenderedPrompt
    begun: Begun
    token_ids: tuple[int, ...]
    plan: Plan
    logits: Logits
    watch: Stopwatch
    why: str
    num_ahead: int


class TurnRunner:
    """Runs the turns of one conversation on a loaded model.

    Args:
        name: The model as results name it.
        loaded: The model with its tokenizer.
        options: How to answer.
    """

    def __init__(self, name: str, loaded: LoadedModel, options: ChatOptions) -> None:
        self.name = name
        self.loaded = loaded
        self.options = options
        self.engine = Engine(loaded.model, kv_bits=options.kv_bits)
        self._speculator = Speculator(PromptLookup())
        self._drafting: Speculator | None = None
        self._unfit = explain_unfit(loaded.model, self.engine.prefix.cache)
        self.keeping: PromptKeeping = open_keeping(
            name,
            loaded,
            self.engine.prefix,
            keeps_conversation=options.stores_conversation,
            max_gib=options.cache_max_gib,
        )
        self.context_limit = min(
            options.max_context or loaded.model.info.max_context, loaded.model.info.max_context
        )
        self._template = ChatTemplate.for_tokenizer(loaded.tokenizer, now=options.now)
        self.renderer = self._make_renderer(self._template)
        self._seed = pick_seed() if options.sampling.seed is None else options.sampling.seed
        self._reuses = True
        self._is_first = True
        self.num_settled = 0  # ids read in idle time since the last turn
        self.ahead = ReadAhead(self)
        self._bandwidth: float | None = None
        self.memory = MemoryGuard(loaded.model.info.weight_bytes)
        self.ends_thinking = Event()  # set while an answer comes: its thinking shall end
        self._pin = 0  # where the turn began: sliding windows keep their rows back to it
        self._settle_note = ""
        self._own_cause = TEMPLATE  # why ids are lost where nobody changed anything
        self._notices_told: set[str] = set(self.template_notices())
        if options.steering:
            self._steer(options)

    def _steer(self, options: ChatOptions) -> None:
        """Changes what is added to the residual stream; what was cached without it goes."""
        loaded = self.loaded
        taps, key = make_taps(options.steering, loaded.fingerprint, self.name)
        kv_bits = self.engine.prefix.cache.kv_bits
        self.keeping.rebind(make_key(loaded.fingerprint, loaded.model, kv_bits, steering=key))
        self.engine.steer(taps)

    def _make_renderer(self, template: ChatTemplate) -> PromptRenderer:
        """Makes the renderer of a template with the options' switches; its date stays."""
        think, keep = self.options.think, self.options.keep_thinking
        if think is not None or keep:
            template = template.with_thinking(think, keep)
        return PromptRenderer(template, self.tokenizer, keep_thinking=keep)

    def make_quiet_renderer(self) -> PromptRenderer:
        """Makes a renderer whose answers come without thinking, where the template has a switch."""
        keep = self.options.keep_thinking
        template = self._template.with_thinking(False, keep)
        return PromptRenderer(template, self.tokenizer, keep_thinking=keep)

    def make_sampler(
        self, conversation: Conversation, token_ids: tuple[int, ...], later: int = 0
    ) -> Sampler:
        """Makes the sampler of the answer that follows these ids, `later` messages from now."""
        # Each answer has its own seed, so that a retry differs; the same moves give the same seeds.
        seed = self._seed + len(conversation.nodes) + later
        sampling = resolve_sampling(self.options.sampling, self.loaded.generation_config, seed)
        return Sampler(sampling, self.loaded.model.info.vocab_size, token_ids)

    def set_options(self, options: ChatOptions) -> list[str]:
        """Takes other options from the next turn on; returns what the template cannot do.

        Raises:
            UsageError: A steering vector does not suit the model; nothing is changed then.
        """
        if options.steering != self.options.steering:
            self._steer(options)
        if options.now != self.options.now:  # another conversation
            self._template = ChatTemplate.for_tokenizer(self.tokenizer, now=options.now)
        self.set_sampling(options)
        self.keeping.keeps_conversation = options.stores_conversation
        self.renderer = self._make_renderer(self._template)
        notices = self.renderer.template.notices
        self._notices_told.update(notices)
        return [text for text in notices if text not in self._template.notices]

    def set_sampling(self, options: ChatOptions) -> None:
        """Takes other options that leave the rendering as it is; needs no MLX."""
        seed = options.sampling.seed
        if seed != self.options.sampling.seed:
            self._seed = pick_seed() if seed is None else seed
        self.options = options

    def resolve_sampling(self) -> tuple[dict[str, float], frozenset[str]]:
        """Returns the values in force by name, and the names that the checkpoint decides."""
        config = self.loaded.generation_config
        in_force = asdict(resolve_sampling(self.options.sampling, config, self._seed))
        by_model = asdict(resolve_sampling(SamplingSettings(), config, 0))
        plain = asdict(resolve_sampling(SamplingSettings(), {}, 0))
        names = {name for name in plain if by_model[name] != plain[name] or name in config}
        return in_force, frozenset(names)

    def count_rereads(self, conversation: Conversation) -> tuple[int, int]:
        """Counts the ids that are held in the conversation but would be read again, and all."""
        target = self.renderer.settle_target(self.messages(conversation))
        plan = self.engine.prefix.plan(target, leave=0)
        return len(target) - plan.start, len(target)

    def view_context(self, conversation: Conversation) -> ContextView:
        """Returns what fills the context."""
        messages = self.messages(conversation)
        num_shown = sum(message.role == "user" for message in messages)
        num_left_out = len(conversation.questions()) - num_shown
        parts = measure_parts(self.renderer, messages, num_left_out + 1)
        return ContextView(parts, self.context_limit, num_left_out)

    def template_notices(self) -> list[str]:
        """Returns what the template and its renderer had to say so far."""
        return [*self.renderer.template.notices, *self.renderer.notices]

    @property
    def num_cached(self) -> int:
        """Ids that the cache holds."""
        return len(self.engine.prefix.token_ids)

    @property
    def reuses(self) -> bool:
        """Whether cached ids are reused: not after they have proved wrong."""
        return self._reuses

    def pin(self, position: int) -> None:
        """Keeps what a return to a position needs, or to the beginning of the last turn."""
        self.engine.prefix.cache.pin(min(position, self._pin))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    def run(
        self,
        conversation: Conversation,
        question: str | None,
        context: JobContext,
        *,
        start: float,
        keep_branch: bool = False,
        cut_off: Node | None = None,
        cause: str = "",
    ) -> TurnResult:
        """Answers a question.

        Args and errors are those of `read`.
        """
        reading = self.read(
            conversation,
            question,
            context,
            start=start,
            keep_branch=keep_branch,
            cut_off=cut_off,
            cause=cause,
        )
        sampler = self.make_sampler(conversation, reading.token_ids)
        self._choose_speculator()
        answer = self._decode(reading, sampler, context)
        if answer.stop_reason in ("token_limit", "context_full"):
            self.engine.prefix.mark()  # the answer may go on from here
        for text in self.record(conversation, question, reading, answer):
            context.emit(Notice(text))
        result = self.report(reading, answer, reading.watch)
        return replace(result, verify=self.verify(reading, context))

    def run_many(
        self, conversation: Conversation, question: str | None, context: JobContext, **more: Any
    ) -> Alternatives:
        """Answers a question several times (see `answer_many`)."""
        from mlxchat.chat.alternatives import answer_many

        return answer_many(self, conversation, question, context, **more)

    def read(
        self,
        conversation: Conversation,
        question: str | None,
        context: JobContext,
        *,
        start: float,
        keep_branch: bool = False,
        cut_off: Node | None = None,
        cause: str = "",
    ) -> Reading:
        """Brings the cache to the prompt of a turn.

        Args:
            conversation: Its head is where the question goes.
            question: The message, or None where the head is a question to be answered again.
            context: The job's.
            start: Clock time at which the message came.
            keep_branch: What the cache holds beyond the common prefix may be wanted again.
            cut_off: An answer to the question that goes on.
            cause: What the person changed since the last turn, for the reason.

        Raises:
            TemplateError: The template refuses the conversation.
            ContextFullError: The prompt leaves no room for an answer.
            JobCancelledError: Stopped before there was anything to keep.
        """
        reset_peak_memory()
        self.ends_thinking.clear()
        watch = Stopwatch(start)
        now = time.perf_counter()
        for text in self._make_room(conversation, question, cut_off):
            context.emit(Notice(text))
            cause = f"{cause}, --overflow" if cause else "--overflow"
        messages, prompt, begun = self._render(conversation, question, cut_off)
        token_ids = (*prompt.token_ids, *begun.token_ids)
        self._check_room(len(token_ids))
        if self.options.checks_memory:
            room = self.context_limit - len(token_ids)
            self.memory.check(self.engine, len(token_ids), room, self.options.max_tokens)
        plan = self._plan(messages, prompt, token_ids)
        now = watch.add("template", now)
        if self._reuses:
            plan = self.keeping.restore(token_ids, plan, context.check, keep_branch=keep_branch)
        for text in self.keeping.take_notices():
            context.emit(Notice(text))
        ahead = self.ahead.take(plan)
        why = self._settle_note
        if ahead is None:
            why = self._explain(plan, cause, prompt.message_ends[-2] if len(messages) > 2 else 0)
        num_ahead = ahead or 0
        self.engine.prefix.apply(plan, keep_branch=keep_branch and not num_ahead)
        if not num_ahead:  # mostly the end of the last answer: this question may be edited
            self.engine.prefix.mark()
        self._pin = min([plan.start - num_ahead, *plan.marks])
        self.engine.prefix.cache.pin(self._pin)
        now = watch.add("restore", now)
        logits = self._prefill(token_ids, plan, context)
        watch.add("prefill", now)
        self.keeping.note(messages, token_ids, prompt.message_ends[0])
        return Reading(messages, prompt, begun, token_ids, plan, logits, watch, why, num_ahead)

    # -- before the answer -------------------------------------------------------------------------

    def messages(self, conversation: Conversation, question: str | None = None) -> list[Message]:
        """Returns what stands in the prompt, with the question that follows."""
        if self.options.overflow == "error":
            messages = conversation.messages()
        else:
            messages = choose_messages(conversation, is_asked=question is not None)
        return messages if question is None else [*messages, Message("user", question)]

    def _render(
        self, conversation: Conversation, question: str | None, cut_off: Node | None
    ) -> tuple[list[Message], RenderedPrompt, Begun]:
        messages = self.messages(conversation, question)
        prompt = self.renderer.render_ids(messages)
        if not prompt.token_ids:
            raise TemplateError("the chat template renders an empty prompt; fix or replace it")
        begun = Begun() if cut_off is None else begin_again(cut_off, self.renderer, prompt)
        return messages, prompt, begun

    def _make_room(
        self, conversation: Conversation, question: str | None, cut_off: Node | None
    ) -> list[str]:
        """Drops the oldest turns where that was asked for and is needed; returns notices."""
        if self.options.overflow == "error":
            return []

        def count() -> int:
            _, prompt, begun = self._render(conversation, question, cut_off)
            return len(prompt.token_ids) + len(begun.token_ids)

        limit, max_tokens = self.context_limit, self.options.max_tokens
        is_asked = question is not None
        dropped = drop_oldest(conversation, count, limit, max_tokens, is_asked=is_asked)
        return [format_dropped(conversation, dropped)] if dropped else []

    def _check_room(self, num_prompt: int) -> None:
        if num_prompt >= self.context_limit:
            could_be_more = self.context_limit < self.loaded.model.info.max_context
            raise ContextFullError(
                f"the prompt has {num_prompt} tokens, but the context holds {self.context_limit};"
                " shorten the message, have the oldest turns summarised with /compact or dropped"
                " with --overflow drop-oldest, take turns back with /undo"
                + (", or raise --max-context" if could_be_more else ", or start over with /reset")
            )

    def _plan(
        self, messages: list[Message], prompt: RenderedPrompt, token_ids: tuple[int, ...]
    ) -> Plan:
        """Plans the reuse, with marks where they will be wanted."""
        prefix = self.engine.prefix
        if not self._reuses:
            prefix.reset()
        marks: tuple[int, ...] = ()
        if not prefix.is_trimmable:
            marks = (
                prompt.message_ends[0] if messages[0].role == "system" else 0,
                prompt.message_ends[-2] if len(messages) > 1 else 0,
                self.renderer.probe_point(messages, prompt),
            )
        return prefix.plan(token_ids, marks=marks)

    def _explain(self, plan: Plan, cause: str, num_earlier: int) -> str:
        """Why the turn reads more than its message, which `num_earlier` ids of turns precede."""
        if not self._reuses:
            return "reuse is off"
        is_behind = plan.start < num_earlier
        if plan.action == "load":
            return "no more was stored" if is_behind else ""
        if plan.action == "continue" and (self._settle_note or not is_behind):
            return self._settle_note
        if not plan.num_held:
            return f"{cause}: {plan.reason}" if cause and is_behind else plan.reason
        return f"{cause or self._own_cause}: {plan.reason}"

    def _prefill(self, token_ids: tuple[int, ...], plan: Plan, context: JobContext) -> Logits:
        """Reads what the plan leaves, and returns the logits of the prompt's last position."""
        logits = self.engine.prefill(
            token_ids,
            plan,
            on_progress=lambda done, total: context.emit(PrefillProgress(done, total)),
            check=context.check,
        )
        assert logits is not None
        return logits

    # -- the answer --------------------------------------------------------------------------------

    def limit_of(self, num_prompt: int) -> tuple[int, StopReason]:
        """Returns how long the answer to a prompt may be, and why it ends there."""
        room = self.context_limit - num_prompt
        max_tokens = min(self.options.max_tokens or room, room)
        is_room = max_tokens == room and self.options.max_tokens != room
        return max_tokens, "context_full" if is_room else "token_limit"

    def make_decoder(
        self, reading: Reading, watch: Stopwatch, context: JobContext
    ) -> AnswerDecoder:
        """Makes what turns the tokens of an answer into its text."""
        return AnswerDecoder(
            self.engine,
            self.tokenizer,
            self.renderer.splitter(reading.prompt),
            self.options.stop,
            watch,
            context,
            think_budget=self.options.think_budget,
            ends_thinking=self.ends_thinking,
        )

    def _decode(self, reading: Reading, sampler: Sampler, context: JobContext) -> Answer:
        max_tokens, limit = self.limit_of(len(reading.token_ids))
        decoder = self.make_decoder(reading, reading.watch, context)
        decoder.replay(reading.begun)
        return decoder.run(reading.logits, sampler, max_tokens=max_tokens, limit=limit)

    # -- after the answer --------------------------------------------------------------------------

    def record(
        self,
        conversation: Conversation,
        question: str | None,
        reading: Reading,
        answer: Answer,
    ) -> list[str]:
        """Adds question and answer to the tree; returns notices.

        Raises:
            JobCancelledError: Ctrl-C came before there was an answer; the turn is dropped.
        """
        messages, prompt = reading.messages, reading.prompt
        cancelled = answer.stop_reason == "user_cancelled"
        if cancelled and (answer.was_thinking or not answer.tokens):
            raise JobCancelledError
        split = answer.split
        self._own_cause = TEMPLATE
        if answer.text != split.text:  # a stop string cut it
            self._own_cause = "the stop string"
            ids = self._ids_of(answer.text, split.content_ids)
            split = replace(split, text=answer.text, content_ids=ids)
        notices = []
        try:
            stored = self.renderer.stored_answer(messages, prompt, split)
        except TemplateError as error:
            notices.append(f"this turn is not kept: {error}")
        else:
            if question is not None:
                conversation.append(messages[-1])
            answer.split, answer.text = replace(split, reasoning=stored.reasoning), stored.content
            is_cut = answer.stop_reason in CUT_OFF
            origin = Origin(
                self.loaded.fingerprint,
                answer.stop_reason,
                split.token_ids if is_cut else (),
            )
            conversation.append(stored, origin)
        for text in self.template_notices():
            if text not in self._notices_told:
                self._notices_told.add(text)
                notices.append(text)
        return notices

    def _ids_of(self, text: str, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the first ids that spell this text or, cut inside an id, what is before that."""
        for end in range(len(token_ids), 0, -1):
            if text.startswith(self.tokenizer.decode(token_ids[:end])):
                return token_ids[:end]
        return ()

    def report(
        self, reading: Reading, answer: Answer, watch: Stopwatch, *, kv_bytes: int | None = None
    ) -> TurnResult:
        """Returns all that is known of an answer, its verification apart.

        Args:
            reading: Of its prompt.
            answer: What was decoded.
            watch: Has taken the time.
            kv_bytes: What its keys and values take; None asks the live sequence.
        """
        plan, why, num_ahead = reading.plan, reading.why, reading.num_ahead
        num_prompt, num_cached = len(reading.token_ids), plan.start
        usage = Usage(
            prompt_tokens=num_prompt,
            cached_tokens=num_cached,
            prefill_tokens=num_prompt - num_cached,
            typeahead_tokens=num_ahead,
            settle_tokens=self.num_settled,
            completion_tokens=len(answer.tokens),
        )
        if kv_bytes is None:
            kv_bytes = self.engine.prefix.cache.nbytes
        self.memory.note(peak_memory_bytes(), kv_bytes)
        timing = watch.finish(
            usage.prefill_tokens,
            load_s=self.loaded.load_s if self._is_first else 0.0,
            peak_memory_bytes=peak_memory_bytes(),
            kv_bytes=kv_bytes,
            weight_bytes=self.loaded.model.info.weight_bytes,
        )
        weights_read, rate = self.loaded.model.info.bytes_per_token, timing.decode_tok_per_s
        if self._bandwidth and rate and weights_read and weights_read >= SMALLEST_STREAM:
            share = (weights_read + kv_bytes) * rate / self._bandwidth
            timing = replace(timing, bandwidth_use=share)
        was_loaded = self.keeping.take_was_loaded() and plan.source == "live"  # in idle time
        source = "disk" if was_loaded else plan.source
        where = " from disk" if source == "disk" else ""
        typed = f" ({num_ahead} read while you typed)" if num_ahead else ""
        reason = f"reused {num_cached}{where}{typed}, read {usage.prefill_tokens}"
        self._is_first, self.num_settled, self._settle_note = False, 0, ""
        return TurnResult(
            model=self.name,
            text=answer.text,
            reasoning=answer.split.reasoning,
            stop_reason=answer.stop_reason,
            usage=usage,
            timing=timing,
            cache=CacheUse(source, f"{reason} ({why})" if why else reason),
            verify=None,
            speculation=self._report_speculation(),
            tokens=tuple(answer.tokens),
        )

    def set_drafter(self, drafter: Drafter) -> None:
        """Takes a draft model, which goes before looking up earlier text."""
        self._drafting = Speculator(drafter)

    def _choose_speculator(self) -> None:
        chosen = self._speculator
        if self._drafting is not None and self.options.speculate == "auto":
            chosen = self._drafting
        is_off = self.options.speculate == "off" or self._unfit
        self.engine.speculator = None if is_off else chosen

    def _report_speculation(self) -> Speculation | None:
        """Tells what was foreseen of the last answer."""
        if self.engine.speculator is None:
            return None
        stats = self.engine.speculator.stats
        return Speculation(stats.kind, stats.drafted, stats.accepted, stats.saved_s)

    @property
    def speculation_notice(self) -> str:
        """Why the speculation that was asked for is off; nothing where it is not."""
        is_wanted = self.options.speculate == "lookup" or self.options.draft_model is not None
        return f"speculation is off: {self._unfit}" if is_wanted and self._unfit else ""

    def verify(self, reading: Reading, context: JobContext) -> Verify | None:
        """Proves a turn where that is wanted; where it fails, reuse is off for this model."""
        if self.options.verify:
            with contextlib.suppress(JobCancelledError):  # the answer stands, unverified
                return self._prove(reading.prompt, reading.token_ids, reading.logits, context)
        return None

    def _prove(
        self,
        prompt: RenderedPrompt,
        token_ids: tuple[int, ...],
        logits: Logits,
        context: JobContext,
    ) -> Verify:
        check = (lambda: None) if context.cancelled else context.check  # an answer was stopped
        found = self.engine.verify(token_ids, logits, check=check)
        decode = self.tokenizer.decode
        shown = decode(prompt.token_ids, skip_special_tokens=False)
        wanted = decode(self.tokenizer.encode(prompt.text), skip_special_tokens=False)
        is_equal = found.ids_equal and shown == wanted
        verify = Verify(
            is_equal,
            found.max_abs_logit_diff,
            token_ids,
            found.holds and is_equal,
            found.kv_logit_diff,
        )
        if not verify.holds and self._reuses:
            self._reuses = False
            self.keeping.distrust()
            context.emit(
                Notice("the cached prompt was not exact; reuse is off for this conversation")
            )
        return verify

    def settle(
        self,
        conversation: Conversation,
        context: JobContext,
        *,
        keep_branch: bool = False,
        cause: str = "",
    ) -> None:
        """Brings the cache to what the next turn will begin with; gives way within one chunk.

        Args:
            conversation: Where the person is.
            context: The job's.
            keep_branch: As in `run`.
            cause: As in `run`.
        """
        is_large = (self.loaded.model.info.bytes_per_token or 0) >= SMALLEST_STREAM
        if self._bandwidth is None and is_large and not context.cancelled:
            self._bandwidth = measure_bandwidth()
        if not self._reuses or conversation.head is None:
            return
        target = self.renderer.settle_target(self.messages(conversation))
        if not target or len(target) >= self.context_limit:
            return
        self.ahead.forget()
        prefix = self.engine.prefix
        plan = prefix.plan(target, marks=(len(target),), leave=0)
        lost = plan.num_held - plan.start
        try:
            context.check()
            is_empty = not plan.num_held
            plan = self.keeping.restore(
                target, plan, context.check, leave=0, keep_branch=keep_branch
            )
            if is_empty and not plan.start:  # a conversation of the history goes on
                what = "no keys and values were stored, the text was read again"
                self._settle_note = f"{cause}: {what}" if cause else what
            prefix.apply(plan, keep_branch=keep_branch)
            if lost > 1:
                note = f"{self._own_cause} dropped or moved {lost} ids of the last turn"
                self._settle_note = "" if cause else note
            self.pin(plan.start)
            before = len(prefix.token_ids)
            try:
                self.engine.prefill(target, plan, check=context.check)
            finally:
                self.num_settled += max(len(prefix.token_ids) - before, 0)
        except JobCancelledError:
            return

    def keep_prompts(
        self, conversation: Conversation, context: JobContext, *, whole: bool, owner: str = ""
    ) -> None:
        """Stores what was computed, as far as the context lets it; the rest waits for another call.

        Args:
            conversation: Where the person is.
            context: The job's.
            whole: More than the system prompt.
            owner: Number of the conversation in the history.
        """
        if not self._reuses:
            return
        try:
            self.keeping.keep_system(context.check)
            if whole and conversation.head is not None:
                target = self.renderer.settle_target(self.messages(conversation))
                self.keeping.keep_conversation(target, owner, context.check)
        except JobCancelledError:
            return
