"""Several sequences decoded together: the weights are read once for all of them.

Each sequence is prefilled by itself, then the rows go on in step, one step ahead of the program
that takes the tokens. Rows of one prompt share what was prefilled; rows of different prompts stand
side by side with padding before the shorter ones, where the model can. A row draws the tokens that
it would draw alone, as far as products of several rows round like those of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from mlxchat.engine.engine import Check, Engine, Logits
from mlxchat.engine.sampling import Sampler, sample_rows
from mlxchat.model.batch_cache import can_stack, keep_rows, stack, take_row
from mlxchat.model.sequence_cache import SequenceCache


def can_batch(engine: Engine, lengths: Sequence[int]) -> bool:
    """Whether sequences of these lengths can be decoded together."""
    can_pad = engine.model.can_pad and engine.kv_bits is None
    return can_stack(engine.prefix.make_cache()) and (can_pad or len(set(lengths)) == 1)


@dataclass(frozen=True, slots=True)
class BatchToken:
    """A token of one row; `is_fed` says whether the row's cache holds it."""

    row: int
    token_id: int
    is_fed: bool


@dataclass(slots=True)
class Batch:
    """Rows that are decoded together.

    Attributes:
        engine: Its model decodes; its live sequence stays as it is.
        samplers: One for each row; their settings differ in nothing but the seed.
        max_tokens: Longest answer of each row.
        cache: Of the rows that are left.
    """

    engine: Engine
    samplers: list[Sampler]
    max_tokens: list[int]
    cache: SequenceCache = field(init=False)
    _logits: Logits = field(init=False)
    _rows: list[int] = field(init=False)
    _ended: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._rows = list(range(len(self.samplers)))
        self.cache = self.engine.prefix.make_cache()

    def fill(
        self, caches: Sequence[SequenceCache], lengths: Sequence[int], logits: Sequence[Logits]
    ) -> None:
        """Takes over the prefilled sequences, one for each row; they stay as they are.

        Args:
            caches: The same one may stand there several times.
            lengths: Positions that each holds.
            logits: Of each, after its last position.
        """
        self._logits = mx.concatenate(list(logits), axis=0)
        stack(self.cache, caches, lengths)
        self.cache.reserve(max(n + more for n, more in zip(lengths, self.max_tokens, strict=True)))

    def end(self, row: int) -> None:
        """Ends a row: none of its tokens are yielded any more."""
        self._ended.add(row)

    def take(self, row: int) -> SequenceCache:
        """Returns the cache of a row, with the tokens fed so far, lazily (see `take_row`)."""
        return take_row(self.cache, self._rows.index(row), self.engine.prefix.make_cache())

    def decode(self, check: Check) -> Iterator[BatchToken]:
        """Samples a token for each row and feeds them before they are yielded.

        Rows that have ended go on unseen until half of the batch has ended; then they leave it.

        Args:
            check: Called between steps; may raise to stop.

        Yields:
            Tokens, row after row, step after step.
        """
        samplers = dict(enumerate(self.samplers))
        tokens = sample_rows(self.samplers, self._logits)
        mx.async_eval(tokens)  # type: ignore[no-untyped-call]
        num = 0
        while True:
            check()
            num += 1
            is_last = all(num >= self.max_tokens[r] for r in self._rows if r not in self._ended)
            if not is_last:
                logits = self.engine.model.forward(tokens[:, None], self.cache)
                ahead = sample_rows([samplers[row] for row in self._rows], logits)
                mx.async_eval(ahead)  # type: ignore[no-untyped-call]
            for row, token_id in zip(self._rows, cast(list[int], tokens.tolist()), strict=True):
                if row not in self._ended:
                    yield BatchToken(row, token_id, not is_last)
                if num >= self.max_tokens[row]:
                    self.end(row)
            left = [i for i, row in enumerate(self._rows) if row not in self._ended]
            if not left:
                return
            tokens = ahead
            if len(left) <= len(self._rows) // 2:
                keep_rows(self.cache, left)
                tokens, self._rows = ahead[mx.array(left)], [self._rows[i] for i in left]
