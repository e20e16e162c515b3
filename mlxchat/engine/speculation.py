"""Speculation: several tokens foreseen, one pass to judge them all, and proof that it pays.

A drafter says which tokens probably come next. One forward pass over the current token and the
drafts gives the logits after each of them; from these each token is drawn just as plain decoding
would draw it, and the drafts before the first that differs stand. For a drafter that names one
token this is the rejection rule of Leviathan et al. 2023 and Chen et al. 2023: a draft stands with
the model's own probability, and what replaces it is distributed as the model's draw without it. So
the text has the model's distribution, with one seed it is the text of plain decoding, and greedy
answers are its very tokens: where the two best are nearer than passes of different lengths round,
a pass of its own decides.

Where the answer is held to a grammar, each of these draws has the mask that it would have had, so
the distribution is that of plain decoding under the grammar. Thinking before such an answer is
decoded plainly, since each of its tokens may decide which mask comes next.

What was fed in vain is taken back, so the cache holds the text and nothing else. The controller
measures and compares with plain decoding, and stops where nothing is gained.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

import mlx.core as mx

from mlxchat.engine.forced_text import ForcedText
from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.sampling import Sampler
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.sequence_cache import SequenceCache

# Drafts in a pass. Few sizes, since each new length of a pass is compiled once.
SIZES = (3, 7, 15)
# What a pass costs, in plain steps, until it was measured: the first try shows.
_GUESSED_COST = {3: 1.3, 7: 1.6, 15: 2.2}
# A pass must promise this much more tokens a second than plain steps.
_MARGIN = 1.15
# An answer may lose so many plain steps and this share of its time, then speculation ends with it.
_CREDIT_STEPS, _CREDIT_SHARE = 2.0, 0.01
# Hits and misses beyond so many are forgotten bit by bit.
_MEMORY = 64
_SMOOTHING = 0.2


class Drafter(Protocol):
    """Foresees tokens."""

    @property
    def kind(self) -> Literal["lookup", "draft"]:
        """What the report calls it."""

    @property
    def strength(self) -> int:
        """How good the reasons are for what is expected next; 0 is none at all."""

    def begin(self, token_ids: Sequence[int], check: Callable[[], None]) -> None:
        """Takes the text so far.

        Args:
            token_ids: Of the text.
            check: Called now and then where that takes long; what it raises ends it.
        """

    def push(self, token_id: int) -> None:
        """Takes the next id of the text."""

    def expects(self) -> int | None:
        """Returns the id that is expected next, where it is known without work."""

    def draft(self, num: int) -> list[int]:
        """Returns up to `num` ids that probably come next."""


@dataclass(slots=True)
class SpeculationStats:
    """What speculation did in one answer.

    Attributes:
        kind: Of the drafter.
        drafted: Tokens that were foreseen and judged.
        forced: Those of them that a grammar left no choice about.
        accepted: Those that stood.
        saved_s: Seconds less than plain steps would have taken, as measured.
    """

    kind: Literal["lookup", "draft"]
    drafted: int = 0
    forced: int = 0
    accepted: int = 0
    saved_s: float = 0.0


@dataclass(slots=True)
class Controller:
    """Decides how many drafts the next pass judges, from measured times and hits.

    Times are wall times from token to token, whatever is done with a token included.

    Attributes:
        plain_s: A plain step.
        pass_s: A pass, by its number of drafts.
        hits: Drafts that stood and drafts in all, by the bit length of the strength.
        balance_s: Saved, or lost, in this answer.
        decode_s: Time of this answer so far.
    """

    plain_s: float | None = None
    pass_s: dict[int, float] = field(default_factory=dict)
    hits: dict[int, tuple[float, float]] = field(default_factory=dict)
    balance_s: float = 0.0
    decode_s: float = 0.0
    _tried: set[int] = field(default_factory=set)
    _num_plain: int = 0

    def begin(self) -> None:
        """A new answer: what it is like is not known, so old hits count half."""
        self.balance_s = self.decode_s = 0.0
        self._num_plain = 0
        self.hits = {key: (hit / 2, num / 2) for key, (hit, num) in self.hits.items()}

    def choose(self, strength: int, room: int) -> int:
        """Returns how many drafts to judge; 0 is a plain step."""
        if not strength or self.plain_s is None:
            return 0
        allowed = _CREDIT_STEPS * self.plain_s + _CREDIT_SHARE * self.decode_s
        rate, best, chosen = self._rate(strength), _MARGIN, 0
        num_known = sum(size in self.pass_s for size in SIZES)
        for size in SIZES[: num_known + 1]:  # a longer pass is tried when the shorter is known
            cost = self._cost(size)
            is_affordable = self.balance_s - (cost - 1) * self.plain_s >= -allowed
            expected = sum(rate**i for i in range(size + 1))
            if size <= room and is_affordable and expected / cost > best:
                best, chosen = expected / cost, size
        return chosen

    def _rate(self, strength: int) -> float:
        hit, num = self.hits.get(strength.bit_length(), (0.0, 0.0))
        return (hit + 1) / (num + 2)

    def _cost(self, size: int) -> float:
        """Returns what a pass costs in plain steps."""
        assert self.plain_s is not None
        if size in self.pass_s:
            return self.pass_s[size] / self.plain_s
        if not self.pass_s:
            return _GUESSED_COST[size]
        longest = max(self.pass_s)
        return _GUESSED_COST[size] * max(self._cost(longest) / _GUESSED_COST[longest], 1.0)

    def note_hits(self, strength: int, num_hit: int, num: int) -> None:
        """Takes in which of `num` expected tokens came."""
        hit, total = self.hits.get(strength.bit_length(), (0.0, 0.0))
        shrink = min(1.0, _MEMORY / (total + num))
        self.hits[strength.bit_length()] = ((hit + num_hit) * shrink, (total + num) * shrink)

    def note_plain(self, seconds: float) -> None:
        """Takes in a plain step."""
        self._num_plain += 1
        self.decode_s += seconds
        if self._num_plain <= 2 and self.plain_s is None:
            return  # compiles
        if self.plain_s is None:
            self.plain_s = seconds
        # A step that was held up says little of the others.
        seconds = min(seconds, 2 * self.plain_s)
        self.plain_s += _SMOOTHING * (seconds - self.plain_s)

    def note_pass(self, size: int, num_tokens: int, seconds: float) -> float:
        """Takes in a pass over `size` drafts that gave some tokens; returns what it saved."""
        assert self.plain_s is not None
        saved = num_tokens * self.plain_s - seconds
        self.balance_s += saved
        self.decode_s += seconds
        if size not in self._tried:
            self._tried.add(size)  # the first one compiles
        elif size in self.pass_s:
            self.pass_s[size] += _SMOOTHING * (seconds - self.pass_s[size])
        else:
            self.pass_s[size] = seconds
        return saved


Pass = Callable[[mx.array, SequenceCache], mx.array]


@dataclass(frozen=True, slots=True)
class Passes:
    """How ids (1, T) are fed: for the logits (1, V) of the last, or for those of all, (1, T, V)."""

    last: Pass
    all: Pass


@dataclass(slots=True)
class Speculator:
    """Decodes with a drafter.

    Attributes:
        drafter: Foresees tokens.
        controller: Decides whether to believe it; what it has measured stays over answers.
        stats: Of the last answer.
    """

    drafter: Drafter
    controller: Controller = field(default_factory=Controller)
    stats: SpeculationStats = field(init=False)

    def __post_init__(self) -> None:
        self.stats = SpeculationStats(self.drafter.kind)

    def decode(
        self,
        passes: Passes,
        prefix: PrefixCache,
        logits: mx.array,
        sampler: Sampler,
        *,
        max_tokens: int,
        check: Callable[[], None],
        on_first: Callable[[int], None],
    ) -> Iterator[int]:
        """Samples tokens as `Engine.decode` does; close it when a token ends the answer.

        What was accepted beyond the token at which it is closed is taken out of the cache.
        """
        drafter, controller = self.drafter, self.controller
        self.stats = SpeculationStats(drafter.kind)
        if sampler.constraint is not None:
            drafter = ForcedText(drafter, sampler.constraint, shortest=SIZES[0])
        text = _Text(passes, prefix, sampler, check)
        token = sampler.sample(logits)
        check()
        on_first(cast(int, token.item()))
        drafter.begin(prefix.token_ids, check)
        controller.begin()
        known: int | None = None  # the token's id, once the drafter has it
        is_near, left = False, max_tokens
        while True:
            check()
            start = time.perf_counter()
            if left == 1:
                yield cast(int, token.item())
                return
            can = sampler.can_foresee and not is_near
            num = controller.choose(drafter.strength, left - 2) if can else 0
            strength, drafts = drafter.strength, []
            if num:
                known = self._learn(drafter, token) if known is None else known
                drafts = drafter.draft(num) if drafter.strength else []
                drafts = drafts[: max((s for s in SIZES if s <= len(drafts)), default=0)]
            if not drafts or known is None:
                ahead = text.start_step(token)  # before this token is known: the device stays busy
                known = self._learn(drafter, token) if known is None else known
                text.end_step(known)
                left -= 1
                yield known
                controller.note_plain(time.perf_counter() - start)
                token, known, is_near = ahead, None, False
                continue
            ids = [known, *drafts]
            verdict = text.judge(ids)
            self._note(verdict, drafter, drafts, strength)
            known, is_near = verdict.next_id, verdict.is_near
            token = mx.array([known])
            left -= verdict.num_fed
            yield from text.give(ids[: verdict.num_fed])
            seconds = time.perf_counter() - start
            self.stats.saved_s += controller.note_pass(len(drafts), verdict.num_fed, seconds)

    def _note(
        self, verdict: "_Verdict", drafter: Drafter, drafts: list[int], strength: int
    ) -> None:
        """Counts what stood of the drafts, and tells the drafter how the text goes on."""
        num_hit = verdict.num_hit
        self.controller.note_hits(strength, num_hit, min(num_hit + 1, len(drafts)))
        self.stats.drafted += len(drafts)
        if isinstance(drafter, ForcedText) and drafter.was_forced:
            self.stats.forced += len(drafts)
        self.stats.accepted += num_hit
        for token_id in drafts[:num_hit]:
            drafter.push(token_id)
        if not verdict.is_near:
            drafter.push(verdict.next_id)

    def _learn(self, drafter: Drafter, token: mx.array) -> int:
        """Waits for the token, and compares it with what was expected."""
        token_id = cast(int, token.item())
        expected, strength = drafter.expects(), drafter.strength
        if expected is not None:
            self.controller.note_hits(strength, int(expected == token_id), 1)
        drafter.push(token_id)
        return token_id


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a pass over a token and its drafts gave.

    Attributes:
        num_hit: Drafts that stand.
        num_fed: Ids of the pass that are text and stay in the cache.
        next_id: The id after them, which is text too.
        is_near: It was a near tie: `next_id` is fed again by itself, to decide what follows.
    """

    num_hit: int
    num_fed: int
    next_id: int
    is_near: bool


@dataclass(slots=True)
class _Text:
    """The text of one answer: the passes, the cache and the sampler, kept in step."""

    passes: Passes
    prefix: PrefixCache
    sampler: Sampler
    check: Callable[[], None]

    def start_step(self, token: mx.array) -> mx.array:
        """Feeds one token and draws the next, without waiting."""
        try:
            ahead = self.sampler.sample(self.passes.last(token[:, None], self.prefix.cache))
            mx.async_eval(ahead)  # type: ignore[no-untyped-call]
        except BaseException:
            self.prefix.reset()
            raise
        return ahead

    def end_step(self, token_id: int) -> None:
        """Notes the token that was fed."""
        self.prefix.extend([token_id])

    def judge(self, ids: list[int]) -> _Verdict:
        """Feeds a token and drafts, draws after each, and takes back what does not stand."""
        prefix, drafts = self.prefix, ids[1:]
        held = len(prefix.token_ids)
        try:
            logits = self.passes.all(mx.array([ids]), prefix.cache)[0]  # (T, V)
            drawn, near = self.sampler.sample_ahead(logits, drafts)
            mx.eval(drawn, near, prefix.cache.arrays())
            tokens, is_near = cast(list[int], drawn.tolist()), cast(list[bool], near.tolist())
            hit = next(
                (i for i, x in enumerate(drafts) if tokens[i] != x or is_near[i]), len(drafts)
            )
            fed = hit if is_near[hit] else hit + 1
            if fed < len(ids):
                prefix.cache.rewind(held + fed)
        except BaseException:
            prefix.reset()
            raise
        prefix.extend(ids[:fed])
        if is_near[hit]:
            self.sampler.accept(drafts[:hit])
            return _Verdict(hit, fed, ids[hit], True)
        self.sampler.accept(tokens[:fed])
        return _Verdict(hit, fed, tokens[hit], False)

    def give(self, ids: list[int]) -> Iterator[int]:
        """Yields ids that are in the cache; those that nobody takes leave it again."""
        given, held = 0, len(self.prefix.token_ids)
        try:
            for token_id in ids:
                if given:
                    self.check()
                given += 1
                yield token_id
        finally:
            if given < len(ids):
                keep = held - len(ids) + given
                self.prefix.cache.rewind(keep)
                del self.prefix.token_ids[keep:]
                self.sampler.count(ids[given:], -1)


def explain_unfit(model: LanguageModel, cache: SequenceCache) -> str:
    """Returns why a model with such a cache cannot speculate, nothing where it can."""
    if not hasattr(model, "forward_all"):
        return "this model gives one token's logits only"
    if cache.kinds & {"recurrent", "opaque"}:
        return "this model's cache cannot take tokens back"
    return ""
