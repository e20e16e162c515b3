"""One turn on the worker thread: the prompt is read, the answer decoded, recorded and reported.

Holds the model, its engine and the settings in force, which `reading.py`, `idle_work.py` and the
others work with. The conversation is changed only when an answer stands: an error or an early
Ctrl-C leaves it as it was.
"""

from dataclasses import asdict, replace
from threading import Event

from mlxchat.chat.answering import Answer, AnswerDecoder
from mlxchat.chat.continuation import CUT_OFF
from mlxchat.chat.conversation import Conversation, Origin
from mlxchat.chat.drafting import Foresight, report_speculation
from mlxchat.chat.idle_work import IdleWork
from mlxchat.chat.memory import MemoryGuard
from mlxchat.chat.metering import Meter
from mlxchat.chat.options import ChatOptions, pick_seed
from mlxchat.chat.overflow import choose_messages
from mlxchat.chat.preamble import AnswerGrammars
from mlxchat.chat.prompt import PromptRenderer, RenderedPrompt
from mlxchat.chat.prompt_keeping import PromptKeeping, open_keeping
from mlxchat.chat.read_ahead import ReadAhead
from mlxchat.chat.reading import Reading, read_prompt
from mlxchat.chat.reasons import TEMPLATE, RereadReasons, format_reuse
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import (
    Alternatives,
    CacheUse,
    Notice,
    StopReason,
    TurnResult,
    Usage,
    Verify,
)
from mlxchat.chat.steering import make_taps
from mlxchat.chat.template import ChatTemplate, Message
from mlxchat.chat.verifying import prove
from mlxchat.engine.engine import Engine
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.sampling import Sampler, resolve_sampling
from mlxchat.engine.speculation import explain_unfit
from mlxchat.engine.stored_prefix import make_key
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import TemplateError
from mlxchat.model.loader import LoadedModel
from mlxchat.model.tokenizer import Tokenizer


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
        self.foresight = Foresight(explain_unfit(loaded.model, self.engine.prefix.cache))
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
        self.reuses = True  # cached ids; not after they have proved wrong
        self.ahead = ReadAhead(self)
        self.idle = IdleWork(self)
        self.meter = Meter()
        self.memory = MemoryGuard(loaded.model.info.weight_bytes)
        self.grammars = AnswerGrammars(loaded.tokenizer, loaded.model.info.vocab_size)
        if options.grammar is not None:
            self.grammars.prepare()
        self.ends_thinking = Event()  # set while an answer comes: its thinking shall end
        self._pin = 0  # where the last turn began
        self.reasons = RereadReasons()
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

    def make_renderer(self, think: bool | None) -> PromptRenderer:
        """Makes a renderer with thinking on or off, where the template has a switch."""
        keep = self.options.keep_thinking
        template = self._template.with_thinking(think, keep)
        return PromptRenderer(template, self.tokenizer, keep_thinking=keep)

    def make_sampler(
        self,
        conversation: Conversation,
        token_ids: tuple[int, ...],
        later: int = 0,
        prompt: RenderedPrompt | None = None,
    ) -> Sampler:
        """Makes the sampler of the answer that follows these ids, `later` messages from now.

        Args:
            conversation: The question's.
            token_ids: All ids before the answer.
            later: Messages until then.
            prompt: What is answered, where the answer is held to the grammar of the options.

        Raises:
            MlxchatError: The grammar cannot be used with this model.
        """
        # Each answer has its own seed, so that a retry differs; the same moves give the same seeds.
        seed = self._seed + len(conversation.nodes) + later
        spared = (*self.tokenizer.encode("\n"), *sorted(self.tokenizer.eos_ids))
        config = self.loaded.generation_config
        sampling = resolve_sampling(self.options.sampling, config, seed, spared)
        constraint, grammar = None, self.options.grammar
        if grammar is not None and prompt is not None:
            constraint = self.grammars.constrain(grammar, self.renderer, prompt)
        return Sampler(sampling, self.loaded.model.info.vocab_size, token_ids, constraint)

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

    def template_notices(self) -> list[str]:
        """Returns what the template and its renderer had to say so far."""
        return [*self.renderer.template.notices, *self.renderer.notices]

    @property
    def num_cached(self) -> int:
        """Ids that the cache holds."""
        return len(self.engine.prefix.token_ids)

    def begin_at(self, position: int) -> None:
        """Notes where a turn begins: sliding windows keep their rows back to it."""
        self._pin = position
        self.engine.prefix.cache.pin(position)

    def pin(self, position: int) -> None:
        """Keeps what a return to a position needs, or to the beginning of the last turn."""
        self.engine.prefix.cache.pin(min(position, self._pin))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.loaded.tokenizer

    def run(
        self, conversation: Conversation, request: TurnRequest, context: JobContext
    ) -> TurnResult:
        """Answers a question; arguments and errors are those of `read_prompt`."""
        reading = self.read(conversation, request, context)
        sampler = self.make_sampler(conversation, reading.token_ids, prompt=reading.prompt)
        self.engine.speculator = self.foresight.choose(self.options.speculate)
        answer = self._decode(reading, sampler, context)
        if answer.stop_reason in ("token_limit", "context_full", "user_cancelled"):
            self.engine.prefix.mark()  # the answer may go on from here
        for text in self.record(conversation, request.question, reading, answer):
            context.emit(Notice(text))
        result = self.report(reading, answer)
        return replace(result, verify=self.verify(reading, context))

    def run_many(
        self, conversation: Conversation, request: TurnRequest, context: JobContext, count: int
    ) -> Alternatives:
        """Answers a question several times (see `answer_many`)."""
        from mlxchat.chat.alternatives import answer_many

        return answer_many(self, conversation, request, context, count)

    def read(
        self, conversation: Conversation, request: TurnRequest, context: JobContext
    ) -> Reading:
        """Brings the cache to the prompt of a turn (see `read_prompt`)."""
        self.ends_thinking.clear()
        return read_prompt(self, conversation, request, context)

    def messages(self, conversation: Conversation, question: str | None = None) -> list[Message]:
        """Returns what stands in the prompt, with the question that follows."""
        if self.options.overflow == "error":
            messages = conversation.messages()
        else:
            messages = choose_messages(conversation, is_asked=question is not None)
        return messages if question is None else [*messages, Message("user", question)]

    # -- the answer --------------------------------------------------------------------------------

    def limit_of(self, num_prompt: int) -> tuple[int, StopReason]:
        """Returns how long the answer to a prompt may be, and why it ends there."""
        room = self.context_limit - num_prompt
        max_tokens = min(self.options.max_tokens or room, room)
        is_room = max_tokens == room and self.options.max_tokens != room
        return max_tokens, "context_full" if is_room else "token_limit"

    def make_decoder(
        self, reading: Reading, context: JobContext, sampler: Sampler
    ) -> AnswerDecoder:
        """Makes what turns the tokens of an answer into its text."""
        checks_memory = self.options.checks_memory
        return AnswerDecoder(
            self.engine,
            self.tokenizer,
            self.renderer.splitter(reading.prompt),
            self.options.stop,
            reading.watch,
            context,
            think_budget=self.options.think_budget,
            ends_thinking=self.ends_thinking,
            check=self.memory.watch(self.engine, context.check) if checks_memory else None,
            constraint=sampler.constraint,
        )

    def _decode(self, reading: Reading, sampler: Sampler, context: JobContext) -> Answer:
        max_tokens, limit = self.limit_of(len(reading.token_ids))
        decoder = self.make_decoder(reading, context, sampler)
        decoder.replay(reading.begun)
        return decoder.run(reading.last_logits, sampler, max_tokens=max_tokens, limit=limit)

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
        self.reasons.own_cause = TEMPLATE
        if answer.text != split.text:  # a stop string cut it
            self.reasons.own_cause = "the stop string"
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
        self, reading: Reading, answer: Answer, *, kv_bytes: int | None = None
    ) -> TurnResult:
        """Returns all that is known of an answer, its verification apart.

        Args:
            reading: Of its prompt.
            answer: What was decoded.
            kv_bytes: What its keys and values take; None asks the live sequence.
        """
        plan, num_ahead = reading.plan, reading.num_ahead
        num_prompt, num_cached = len(reading.token_ids), plan.start
        usage = Usage(
            prompt_tokens=num_prompt,
            cached_tokens=num_cached,
            prefill_tokens=num_prompt - num_cached,
            typeahead_tokens=num_ahead,
            settle_tokens=self.idle.take_num_settled(),
            completion_tokens=len(answer.tokens),
        )
        if kv_bytes is None:
            kv_bytes = self.engine.prefix.cache.nbytes
        timing = self.meter.finish(reading.watch, usage.prefill_tokens, self.loaded, kv_bytes)
        self.memory.note(timing.peak_memory_bytes, kv_bytes)
        was_loaded = self.keeping.take_was_loaded() and plan.source == "live"  # in idle time
        source = "disk" if was_loaded else plan.source
        self.reasons.settled = ""
        return TurnResult(
            model=self.name,
            text=answer.text,
            reasoning=answer.split.reasoning,
            stop_reason=answer.stop_reason,
            usage=usage,
            timing=timing,
            cache=CacheUse(source, format_reuse(usage, source, reading.why)),
            verify=None,
            speculation=report_speculation(self.engine.speculator),
            tokens=tuple(answer.tokens),
        )

    def verify(self, reading: Reading, context: JobContext) -> Verify | None:
        """Proves a turn where that is wanted; where it fails, reuse is off for this model."""
        if not self.options.verify:
            return None
        try:
            verify = prove(self.engine, self.tokenizer, reading, context)
        except JobCancelledError:  # the answer stands, unverified
            return None
        if not verify.holds and self.reuses:
            self.reuses = False
            self.keeping.distrust()
            context.emit(
                Notice("the cached prompt was not exact; reuse is off for this conversation")
            )
        return verify
