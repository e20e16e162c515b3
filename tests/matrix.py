"""One conversation script, played through the real session on any model, every step checked.

Knows what the script is, and what must hold after each step: the cache holds the rendered ids, a
from-scratch prefill gives the same logits, and no more ids were fed than the nearest held prefix
leaves. The models are in `matrix_models.py`; at which chunk sizes they play is the business of
`test_matrix.py` and `scripts/matrix.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx
from matrix_models import CountingModel, make_loaded, make_tokenizer

from mlxchat.chat import turn
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.pause import AfterPause
from mlxchat.chat.prompt import PromptRenderer
from mlxchat.chat.results import PrefillProgress, SessionInfo, TurnResult
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.chunking import PrefillChunker
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.sampling import Sampler
from mlxchat.engine.worker import Job, JobCancelledError, JobContext
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.loader import LoadedModel

T = TypeVar("T")
Ids = tuple[int, ...]

TOLERANCE = 1e-3
MAX_TOKENS = 8


class FixedChunker(PrefillChunker):
    """Chunks of one length, however long they take."""

    def observe(self, num_tokens: int, seconds: float) -> None:
        del num_tokens, seconds


# -- the session on the caller's thread ------------------------------------------------------------


class StoppingContext(JobContext):
    """Cancels its job in the middle: at the first check where `is_due` says so.

    Only that check raises, so that the turn is verified all the same, which a real Ctrl-C spares.

    Args:
        is_due: Called with ids read, ids to read, and checks since the last was read.
    """

    def __init__(self, is_due: Callable[[int, int, int], bool]) -> None:
        super().__init__()
        self._is_due = is_due
        self._done = self._total = self._checks = 0
        self._is_over = False

    def emit(self, event: object) -> None:
        if isinstance(event, PrefillProgress):
            self._done, self._total = event.done, event.total

    def check(self) -> None:
        if self._total and self._done == self._total:
            self._checks += 1
        if not self._is_over and self._is_due(self._done, self._total, self._checks):
            self._is_over = True
            raise JobCancelledError


def in_prefill(done: int, total: int, checks: int) -> bool:
    """Half of a prompt was read."""
    return total > 0 and total > done >= total // 2


def in_answer(done: int, total: int, checks: int) -> bool:
    """Most of what `SAID` says was generated."""
    return checks > MAX_TOKENS - 2


class SayingSampler(Sampler):
    """Says `SAID` first: the middle of an answer is then where a test wants it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._left = make_tokenizer("exact").encode(SAID)

    def sample(self, logits: mx.array) -> mx.array:
        return mx.array([self._left.pop(0)]) if self._left else super().sample(logits)


class InlineWorker:
    """A worker on the caller's thread, since MLX's arrays belong to the thread that made them.

    Foreground jobs run at once; idle jobs wait for `run_idle`.
    """

    def __init__(self) -> None:
        self._idle: deque[Job[Any]] = deque()
        self.next_context: JobContext | None = None

    def submit(self, function: Callable[[JobContext], T], *, idle: bool = False) -> Job[T]:
        job = Job(function, idle=idle)
        if idle:
            self._idle.append(job)
            return job
        if self.next_context is not None:
            job._context, self.next_context = self.next_context, None
        job._run()
        return job

    def run(self, function: Callable[[JobContext], T]) -> T:
        return self.submit(function).result()

    def run_idle(self) -> None:
        while self._idle:
            job = self._idle.popleft()
            job._run()
            job.result()

    def cancel_idle(self) -> None:
        self._idle.clear()

    def close(self) -> None:
        self._idle.clear()


class InlineSession(Session):
    """A session over a model that is there already.

    Args:
        loaded: The model.
        options: How to answer.
        chunk: Length of prefill chunks; None lets the engine choose.
    """

    def __init__(self, loaded: LoadedModel, options: ChatOptions, chunk: int | None = None) -> None:
        super().__init__("matrix", options)
        self._worker.close()
        self.worker = InlineWorker()
        self._worker = self.worker  # type: ignore[assignment]
        self._pause = AfterPause(0.0, lambda: None)  # stores on leaving only, however slow it is
        self.runner = self._runner = TurnRunner("matrix", loaded, self.options)
        info = loaded.model.info
        self.info = SessionInfo(
            "matrix",
            info.family,
            info.n_params,
            info.weight_bytes,
            info.max_context,
            "",
            False,
            0.0,
        )
        if chunk is not None:
            self.runner.engine.chunker = FixedChunker(chunk, chunk)

    @property
    def prefix(self) -> PrefixCache:
        return self.runner.engine.prefix


# -- what must hold --------------------------------------------------------------------------------


def count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix, in the plainest way."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


@dataclass
class Tally:
    """What a play adds up.

    Attributes:
        worst: Largest logit difference of a turn, and where.
        cost: Largest logit difference to keys and values that are not quantised.
        num_prompt: Ids of all prompts.
        num_read: Ids read by turns and settling.
        num_new: Ids that no sequence held before: the least that any cache must read.
        num_generated: Generated ids that a conversation without moves goes on with.
        sources: How often reused ids came from where.
        stops: How often answers ended how.
    """

    worst: float = 0.0
    where: str = ""
    cost: float = 0.0
    num_turns: int = 0
    num_prompt: int = 0
    num_read: int = 0
    num_new: int = 0
    num_generated: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)


class Player:
    """Plays steps on a session and checks each.

    Args:
        loaded: The model, counted.
        options: How to answer; `verify` and `idle_work` are on.
        chunk: Length of prefill chunks.
    """

    def __init__(self, loaded: LoadedModel, options: ChatOptions, chunk: int) -> None:
        self.loaded, self.options, self.chunk = loaded, options, chunk
        self.session = InlineSession(loaded, options, chunk)
        self.tally = Tally()
        self._held_once: list[Ids] = []  # after each turn, for the ideal
        self._landmarks: list[Ids] = []  # positions that must be reachable while they are held

    @property
    def prefix(self) -> PrefixCache:
        return self.session.prefix

    @property
    def conversation(self) -> Conversation:
        return self.session.conversation

    @property
    def _model(self) -> CountingModel:
        assert isinstance(self.loaded.model, CountingModel)
        return self.loaded.model

    def _renderer(self) -> PromptRenderer:
        """A renderer that has seen nothing yet."""
        return PromptRenderer(self.session.runner.renderer.template, self.loaded.tokenizer)

    def send(self, text: str, *, label: str, settles: bool = True) -> TurnResult:
        """Sends a message and checks the answer."""
        return self._turn(label, lambda: self.session.send(text), settles=settles)

    def edit(self, turn: int, text: str, *, label: str) -> TurnResult:
        return self._turn(label, lambda: self.session.edit(turn, text))

    def retry(self, *, label: str) -> TurnResult:
        return self._turn(label, self.session.retry)

    def interrupt(self, text: str, is_due: Callable[[int, int, int], bool]) -> TurnResult | None:
        """Sends a message and stops in the middle; None where nothing was kept."""
        self.session.worker.next_context = StoppingContext(is_due)
        fed = self._model.num_fed
        try:
            with replaced(turn, "Sampler", SayingSampler):
                result = self._turn("interrupted", lambda: self.session.send(text), settles=False)
        except JobCancelledError:
            self._check_layers("interrupted")
            self.tally.num_read += self._model.num_fed - fed
            return None
        assert result.stop_reason == "user_cancelled", "the turn ended before it was stopped"
        return result

    def settle(self, label: str) -> None:
        """Does the idle work."""
        fed = self._model.num_fed
        self.session.worker.run_idle()
        self.tally.num_read += self._model.num_fed - fed
        self._check_layers(f"{label}, settled")
        target = self._renderer().settle_target(self.conversation.messages())
        held = tuple(self.prefix.token_ids)
        assert held == target, f"{label}: settling did not bring the cache to the next prompt"
        self._landmarks.append(target)

    def save_and_restore(self) -> None:
        """Goes on in a new session, whose cache comes from an export."""
        exported = self.prefix.cache.export()
        assert exported is not None
        meta = {name: str(value) for name, value in exported[0].items()}
        arrays = {name: mx.array(value) for name, value in exported[1].items()}
        held = self.prefix.token_ids
        self._begin_again()
        self.prefix.cache.load_export(meta, arrays)
        self.prefix.extend(held)
        self._landmarks = [tuple(held)]

    def leave_and_return(self) -> None:
        """Goes on in a new session, which finds on disk what the old one stored on leaving."""
        self.session.close()
        self._begin_again()
        assert not self.prefix.token_ids

    def _begin_again(self) -> None:
        conversation = self.session.conversation
        self.session = InlineSession(self.loaded, self.options, self.chunk)
        self.session.conversation = conversation

    def _turn(
        self, label: str, start: Callable[[], Job[TurnResult]], *, settles: bool = True
    ) -> TurnResult:
        held, fed = tuple(self.prefix.token_ids), self._model.num_fed
        marks = [0, *self.prefix.marks]
        result = start().result()
        assert result.verify is not None, f"{label}: the turn was not verified"
        prompt = result.verify.prompt_ids
        self._check_exact(label, result, fed)
        self._check_reuse(label, result, held, marks)
        self._note_landmarks(prompt, held)
        self._add(label, result)
        held = tuple(self.prefix.token_ids)
        if settles:
            self.settle(label)
        self.tally.num_generated += count_common(held, self.prefix.token_ids) - len(prompt)
        return result

    def _note_landmarks(self, prompt: Ids, held: Ids) -> None:
        """Notes where the issue wants marks: the probe's point, the end of the answer before."""
        renderer, messages = self._renderer(), self.conversation.messages()[:-1]
        rendered = renderer.render_ids(messages)
        self._landmarks.append(prompt[: renderer.probe_point(messages, rendered)])
        if len(messages) > 2:
            self._landmarks.append(prompt[: rendered.message_ends[-2]])
        if prompt[: len(held)] == held:
            self._landmarks.append(held)

    def _check_exact(self, label: str, result: TurnResult, fed: int) -> None:
        """The cache holds the prompt and the answer, as if read from scratch."""
        verify, usage = result.verify, result.usage
        assert verify is not None
        assert verify.tokens_equal, f"{label}: the cache does not hold the rendered ids"
        is_quantised = self.options.kv_bits is not None  # its own tolerance is in `holds`
        is_near = verify.holds and (is_quantised or verify.max_abs_logit_diff <= TOLERANCE)
        assert is_near, f"{label}: the logits differ by {verify.max_abs_logit_diff}"
        if is_quantised:
            assert verify.kv_logit_diff is not None, f"{label}: nothing was quantised"
            assert verify.max_abs_logit_diff < max(verify.kv_logit_diff, TOLERANCE), label
            self.tally.cost = max(self.tally.cost, verify.kv_logit_diff)
        num_prompt = len(verify.prompt_ids)
        held = tuple(self.prefix.token_ids)
        assert held[:num_prompt] == verify.prompt_ids
        generated = held[num_prompt:]
        assert generated[: len(result.tokens)] == result.tokens[: len(generated)], label
        self._check_layers(label)
        assert usage.prompt_tokens == num_prompt == usage.cached_tokens + usage.prefill_tokens
        verified = num_prompt * (2 if is_quantised else 1)
        really_fed = self._model.num_fed - fed - verified - len(generated)
        assert really_fed == usage.prefill_tokens, f"{label}: fed {really_fed} ids of the prompt"

    def _check_layers(self, label: str) -> None:
        offsets = self.prefix.cache.offsets()
        assert offsets <= {len(self.prefix.token_ids)}, f"{label}: layers stand at {offsets}"
        assert self.prefix.mark_bytes <= self.prefix.budget_bytes, label

    def _check_reuse(self, label: str, result: TurnResult, held: Ids, marks: list[int]) -> None:
        """No more was fed than the nearest held prefix leaves."""
        assert result.verify is not None
        prompt, read = result.verify.prompt_ids, result.usage.prefill_tokens
        common = min(count_common(prompt, held), len(prompt) - 1)
        assert read >= 1, label
        reachable = [p for p in marks if p <= common]
        if self.prefix.is_trimmable or common == len(held):
            reachable.append(common)
        # Where marks must be, by the issue: the probe's point of every prompt, and what settling
        # left behind, as long as the live sequence goes through them.
        self._landmarks = [ids for ids in self._landmarks if held[: len(ids)] == ids]
        reachable += [len(ids) for ids in self._landmarks if len(ids) <= common]
        most = len(prompt) - max(reachable)
        assert read <= most, f"{label}: read {read} ids, but {most} are enough"

    def _add(self, label: str, result: TurnResult) -> None:
        assert result.verify is not None
        tally, prompt = self.tally, result.verify.prompt_ids
        if result.verify.max_abs_logit_diff >= tally.worst:
            tally.worst, tally.where = result.verify.max_abs_logit_diff, label
        shared = max((count_common(prompt, ids) for ids in self._held_once), default=0)
        self._held_once.append(tuple(self.prefix.token_ids))
        tally.num_turns += 1
        tally.num_prompt += len(prompt)
        tally.num_read += result.usage.prefill_tokens
        tally.num_new += max(len(prompt) - shared, 1)
        for counts, key in (
            (tally.sources, result.cache.source),
            (tally.stops, result.stop_reason),
        ):
            counts[key] = counts.get(key, 0) + 1


# -- the script ------------------------------------------------------------------------------------

SYSTEM = "Be the one."
LONG = "the others are in this line; "
SAID = "s</think>\n\nin this"


def play(player: Player) -> Tally:
    """Four turns, an edit, a retry, an undo, a fork and back, interrupts, a save and restore."""
    player.send("Hello there", label="turn 1")
    player.send("And then?", label="turn 2")
    player.send("in this?", label="turn 3", settles=False)
    player.send("Why so?", label="turn 4")
    player.edit(4, "No, how?", label="edit of turn 4")
    player.edit(3, "in that one", label="edit of turn 3")
    player.retry(label="retry")
    player.session.undo()
    player.settle("undo")
    player.send("or these", label="after undo")
    return _play_branches(player)


def _play_branches(player: Player) -> Tally:
    fork = player.session.fork()
    long = LONG * -(-max(40, 2 * player.chunk) // 14)
    stopped = player.interrupt(long, in_prefill)
    assert stopped is None, "the prefill was not interrupted"
    player.send(long, label="long turn")
    branch, held = player.session.fork(), len(player.prefix.token_ids)
    player.session.goto(fork)
    player.settle("goto")
    player.send("Go back", label="other branch")
    player.session.goto(branch)
    result = player.send("Go on", label="first branch")
    assert result.usage.cached_tokens >= held, "the branch left behind was read again"
    stopped = player.interrupt("Stop me", in_answer)
    assert stopped is not None, "the answer was not kept"
    player.settle("interrupted")
    player.send("once more", label="after an interrupt")
    player.save_and_restore()
    player.send("the end", label="after a restore")
    held = len(player.prefix.token_ids)
    player.leave_and_return()
    result = player.send("is it?", label="after a return", settles=False)
    assert (result.cache.source, result.usage.cached_tokens) == ("disk", held)
    return player.tally


def make_options(*, is_greedy: bool = False, seed: int = 1, **changes: Any) -> ChatOptions:
    """Options of a play: ids that end an answer or its thinking are made likelier.

    Args:
        is_greedy: Random models then often repeat one token.
        seed: Of the sampled answers.
        changes: Replace fields.
    """
    tokenizer = make_tokenizer("exact")
    likelier = [("<|im_end|>", 2.0), ("<|endoftext|>", 1.0), ("</think>", 4.0)]
    bias = tuple((tokenizer.token_id(name), value) for name, value in likelier)
    sampling = SamplingSettings(
        temperature=0.0 if is_greedy else 1.0,
        top_p=1.0,
        seed=seed,
        logit_bias=bias,  # type: ignore[arg-type]
    )
    fields = {"system": SYSTEM, "sampling": sampling, "max_tokens": MAX_TOKENS, "verify": True}
    return ChatOptions(**{**fields, **changes})


def play_model(
    model: LanguageModel,
    chunk: int,
    *,
    template: str = "stripped",
    is_greedy: bool = False,
    kv_bits: int | None = None,
) -> Tally:
    """Plays the script on a model.

    Args:
        model: Made by `build`.
        chunk: Length of prefill chunks.
        template: Key of `TEMPLATES`.
        is_greedy: See `make_options`.
        kv_bits: Of quantised keys and values.
    """
    options = make_options(is_greedy=is_greedy, kv_bits=kv_bits)
    return play(Player(make_loaded(model, template), options, chunk))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Puts a value in the place of an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
