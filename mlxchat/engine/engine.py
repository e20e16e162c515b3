"""Prefill and decode, timed and interruptible: token ids in, token ids out.

The engine feeds what the plan leaves to feed, chunk by chunk, and decodes one step ahead: while
the person's program handles a token, the device already computes the next. Text, messages and
templates belong to `chat/`.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from mlxchat.engine.chunking import PrefillChunker
from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.reuse_plan import Plan
from mlxchat.engine.sampling import Sampler
from mlxchat.engine.speculation import Passes, Speculator
from mlxchat.model.kv_quantization import make_kv_plan
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.taps import Taps

Check = Callable[[], None]
Logits = mx.array  # (1, V): what the floors above pass around without looking inside
OnProgress = Callable[[int, int], None]
OnToken = Callable[[int], None]


def _nothing(*_: object) -> None:
    pass


# Cached and fresh prefills round differently at chunk borders: by 1e-6 of the logit range in
# float32. Half precision rounds a thousand times coarser, while one wrong context token moves
# logits by 6e-3 to 1 of it.
FLOAT32_TOLERANCE = 1e-3
HALF_TOLERANCE_SHARE = 0.05
# With quantised keys and values such rounding moves a value now and then to the next step. Two
# prefills of the same ids in other chunks, without any reuse, were up to 2.2e-3 of the range apart
# in 8 bits and 1e-2 in 4 bits (random models with windows, chunks of 16 to 512, 2026-11-21).
KV_TOLERANCE_SHARE = {8: 5e-3, 4: 2e-2}
VERIFY_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Verification:
    """How a from-scratch prefill of the same ids compares with the cached way.

    Attributes:
        ids_equal: The cache held exactly the prompt.
        max_abs_logit_diff: At the prompt's last position.
        holds: Ids are equal and the difference is rounding.
        kv_logit_diff: What quantised keys and values cost: the difference there to a fresh cache
            that is not quantised; None where none is.
    """

    ids_equal: bool
    max_abs_logit_diff: float
    holds: bool
    kv_logit_diff: float | None = None


def reset_peak_memory() -> None:
    """Starts a new measurement of `peak_memory_bytes`."""
    mx.reset_peak_memory()


def peak_memory_bytes() -> int:
    """Returns the most bytes that MLX's arrays took at once since the last reset."""
    return mx.get_peak_memory()


@dataclass(slots=True)
class Engine:
    """Feeds one model and keeps its live sequence.

    Attributes:
        model: Native or zoo.
        chunker: Chooses the length of prefill chunks from measured rates.
        kv_bits: Keys and values are held in so many bits; None holds them as they are.
        speculator: Decodes several tokens at once where that pays; None decodes one by one.
        kv_notice: Which layers stay as they are all the same, and why.
        taps: Change every pass (steering); set with `steer`.
        prefix: The live sequence with marks and stashes.
    """

    model: LanguageModel
    chunker: PrefillChunker = field(default_factory=PrefillChunker)
    kv_bits: int | None = None
    speculator: Speculator | None = None
    kv_notice: str = field(init=False, default="")
    taps: Taps | None = field(init=False, default=None)
    prefix: PrefixCache = field(init=False)
    _make_cache: Callable[[], SequenceCache] = field(init=False)

    def __post_init__(self) -> None:
        self._make_cache = self.model.make_cache
        if self.kv_bits is not None:
            plan = make_kv_plan(self.model, self.kv_bits)
            self._make_cache = lambda: plan.apply(self.model.make_cache())
            self.kv_notice = plan.notice
        self.prefix = PrefixCache(self._make_cache)

    def steer(self, taps: Taps | None) -> None:
        """Changes every pass from now on; what was cached until now was computed otherwise."""
        if taps is not self.taps:
            self.taps = taps
            self.prefix.reset()

    def forward(self, token_ids: mx.array, cache: SequenceCache) -> Logits:
        """Feeds ids (B, T), steered where that is on; returns the last logits (B, V), lazily."""
        if self.taps is None:
            return self.model.forward(token_ids, cache)
        return self.model.forward(token_ids, cache, self.taps)

    def _forward_all(self, token_ids: mx.array, cache: SequenceCache) -> Logits:
        return self.model.forward_all(token_ids, cache, self.taps)

    def prefill(
        self,
        token_ids: Sequence[int],
        plan: Plan,
        *,
        on_progress: OnProgress = _nothing,
        check: Check = _nothing,
    ) -> Logits | None:
        """Feeds the ids that the plan leaves; the plan must have been applied.

        Args:
            token_ids: All ids that the cache shall hold afterwards.
            plan: Says where feeding starts and where marks are taken.
            on_progress: Called with (done, total) of the newly fed ids.
            check: Called between chunks; what it raises ends the prefill, and the ids fed so far
                stay.

        Returns:
            Logits (1, V) after the last id, evaluated; None when there was nothing to feed.
        """
        prefix, total = self.prefix, len(token_ids) - plan.start
        stops = [*plan.marks, len(token_ids)]
        logits: mx.array | None = None
        self.prefix.cache.reserve(len(token_ids))
        while (done := len(prefix.token_ids)) < len(token_ids):
            check()
            stop = next(s for s in stops if s > done)
            size = min(self.chunker.size, stop - done)
            chunk = token_ids[done : done + size]
            last = done + size == len(token_ids)
            with self.chunker.measure(size):
                logits = self._feed(chunk, wants_logits=last)
            if done + size in plan.marks:
                prefix.mark()
            on_progress(done + size - plan.start, total)
        return logits

    def _feed(self, token_ids: Sequence[int], *, wants_logits: bool) -> mx.array | None:
        """Feeds ids and waits for them; the sequence is reset if the forward pass breaks off."""
        prefix = self.prefix
        try:
            ids, logits = mx.array([list(token_ids)]), None
            if wants_logits:
                logits = self.forward(ids, prefix.cache)
            elif self.taps is None:
                self.model.prefill(ids, prefix.cache)
            else:
                self.model.prefill(ids, prefix.cache, self.taps)
            mx.eval(prefix.cache.arrays(), [] if logits is None else logits)
        except BaseException:
            prefix.reset()  # some layers may hold more rows than others
            raise
        prefix.extend(token_ids)
        return logits

    def decode(
        self,
        logits: Logits,
        sampler: Sampler,
        *,
        max_tokens: int,
        check: Check = _nothing,
        on_first: OnToken = _nothing,
    ) -> Generator[int, None, None]:
        """Samples tokens and feeds each before it is yielded, one step ahead.

        The consumer ends the generator when it has seen a stop token; that token is then in the
        cache, as every id that was fed. The last token of `max_tokens` is not fed.

        Args:
            logits: (1, V), from `prefill`.
            sampler: Draws the tokens.
            max_tokens: At most this many are yielded.
            check: Called between tokens. What it raises ends the decoding; a cache that cannot go
                back first gives the token that is drawn already, unfed as the last one.
            on_first: Called with the first token as soon as it is drawn: a whole step before it
                is yielded.

        Yields:
            Token ids.
        """
        if max_tokens < 1:
            return
        if self.speculator is not None:
            yield from self.speculator.decode(
                Passes(self.forward, self._forward_all),
                self.prefix,
                logits,
                sampler,
                max_tokens=max_tokens,
                check=check,
                on_first=on_first,
            )
        else:
            yield from self._decode_one_by_one(logits, sampler, max_tokens, check, on_first)

    def _decode_one_by_one(
        self, logits: Logits, sampler: Sampler, max_tokens: int, check: Check, on_first: OnToken
    ) -> Generator[int, None, None]:
        """Decodes as `decode` does, a token a pass."""
        prefix = self.prefix
        token = sampler.sample(logits)
        mx.async_eval(token)  # type: ignore[no-untyped-call]
        for num in range(max_tokens):
            try:
                check()
            except BaseException:
                if num and not prefix.is_trimmable:  # so that the answer can go on from here
                    yield cast(int, token.item())
                raise
            if num == 0:
                on_first(cast(int, token.item()))
            if num == max_tokens - 1:
                yield cast(int, token.item())
                return
            fed = False
            try:
                ahead = sampler.sample(self.forward(token[:, None], prefix.cache))
                mx.async_eval(ahead)  # type: ignore[no-untyped-call]
                token_id = cast(int, token.item())
                prefix.extend([token_id])
                fed = True
            finally:
                if not fed:
                    prefix.reset()
            yield token_id
            token = ahead

    def verify(
        self,
        token_ids: Sequence[int],
        logits: Logits,
        *,
        held: Sequence[int] | None = None,
        check: Check = _nothing,
    ) -> Verification:
        """Compares with a prefill of the same ids in a fresh cache.

        Args:
            token_ids: The prompt.
            logits: (1, V) of its last position, from the cached way.
            held: Ids of the sequence that must begin with it; None is the live one.
            check: Called between chunks; what it raises ends the comparison.
        """
        fresh = self._read_afresh(token_ids, self._make_cache(), check)
        difference = _max_diff(fresh, logits)
        share = 0.0 if logits.dtype == mx.float32 else HALF_TOLERANCE_SHARE
        kv_bits, cost = self.prefix.cache.kv_bits, None
        if kv_bits is not None:
            share = max(share, KV_TOLERANCE_SHARE[kv_bits])
            plain = self._read_afresh(token_ids, self.model.make_cache(), check)
            cost = _max_diff(plain, logits)
        largest = cast(float, mx.abs(fresh.astype(mx.float32)).max().item())
        tolerance = share * largest if share else FLOAT32_TOLERANCE
        held = self.prefix.token_ids if held is None else held
        ids_equal = list(held[: len(token_ids)]) == list(token_ids)
        return Verification(ids_equal, difference, ids_equal and difference <= tolerance, cost)

    def _read_afresh(
        self, token_ids: Sequence[int], cache: SequenceCache, check: Check
    ) -> mx.array:
        """Feeds ids into an empty cache and returns the last logits."""
        logits: mx.array | None = None
        for start in range(0, len(token_ids), VERIFY_CHUNK):
            check()
            chunk = list(token_ids[start : start + VERIFY_CHUNK])
            logits = self.forward(mx.array([chunk]), cache)
            mx.eval(cache.arrays(), logits)
        assert logits is not None
        return logits


def _max_diff(a: mx.array, b: mx.array) -> float:
    return cast(float, mx.abs(a.astype(mx.float32) - b.astype(mx.float32)).max().item())
