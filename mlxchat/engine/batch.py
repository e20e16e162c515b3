"""Several sequences decoded together: the weights are read once for all of them.

Sequences are prefilled before (`batch_prefill.py`: several at once), then the rows go on in step,
one step ahead of the program that takes the tokens. Others may join at any time, in the place of
those that have ended; the last id of their prompt may be what they are fed first. Rows of
different lengths stand side by side with padding before the shorter ones, where the model can. A
row draws the tokens that it would draw alone, as far as products of several rows round like those
of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import mlx.core as mx

from mlxchat.engine.engine import Check, Engine, Logits
from mlxchat.engine.sampling import Sampler, sample_rows
from mlxchat.model.batch_cache import Stack, Strand, can_stack, stack, take_row
from mlxchat.model.sequence_cache import SequenceCache


def can_batch(engine: Engine, lengths: Sequence[int]) -> bool:
    """Whether sequences of these lengths can be decoded together."""
    can_pad = engine.model.can_pad and engine.kv_bits is None
    return can_stack(engine.prefix.make_cache()) and (can_pad or len(set(lengths)) == 1)


def find_stack(engine: Engine) -> tuple[Stack | None, str]:
    """Returns what puts sequences of any lengths together, or why they are decoded one by one."""
    if engine.kv_bits is not None:
        return None, "keys and values in few bits cannot be padded"
    found = engine.model.find_stack()
    return found, "" if found else "the caches of this model cannot be padded"


def copy_live(engine: Engine) -> Strand:
    """Returns a copy of the live sequence, which can then go on with something else."""
    prefix = engine.prefix
    length = len(prefix.token_ids)
    cache = stack(prefix.make_cache(), [Strand(prefix.cache, length)])
    mx.eval(cache.arrays())
    return Strand(cache, length)


@dataclass(frozen=True, slots=True)
class BatchToken:
    """A token of one row.

    Attributes:
        row: Its number.
        token_id: Drawn for it.
        is_fed: The row's cache holds it.
        problem: Why none could be drawn; the row has ended then, and the token is no answer's.
    """

    row: int
    token_id: int
    is_fed: bool
    problem: Exception | None = None


@dataclass(slots=True)
class _Row:
    """A row that is decoded.

    Attributes:
        number: Of all rows that ever joined.
        sampler: Draws its tokens.
        length: Positions fed.
        left: Tokens that may still come.
        is_read: Its prompt is fed whole; else the next token is the prompt's last id.
    """

    number: int
    sampler: Sampler
    length: int
    left: int
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row that joins with the next step."""

    row: _Row
    strand: Strand
    first: Logits | int


@dataclass(slots=True)
class Batch:
    """Rows that are decoded together.

    Attributes:
        engine: Its model decodes; its live sequence stays as it is.
        stack: Puts sequences together; None is the way of our own caches.
        cache: Of the rows that are decoded; None before the first step.
        keeps_logits: Those after the prompts of rows that are read here are kept.
        prompt_logits: Of such rows, (1, V), until somebody takes them.
    """

    engine: Engine
    stack: Stack | None = None
    cache: SequenceCache | None = None
    keeps_logits: bool = False
    prompt_logits: dict[int, Logits] = field(default_factory=dict)
    _tokens: mx.array = field(init=False)  # (B,): of each row the next one, not yet fed
    _rows: list[_Row] = field(default_factory=list)
    _waiting: list[_Waiting] = field(default_factory=list)
    _ended: set[int] = field(default_factory=set)
    _num_rows: int = 0

    def add(self, strand: Strand, first: Logits | int, sampler: Sampler, max_tokens: int) -> int:
        """Has a prefilled sequence join with the next step; returns the number of its row.

        Args:
            strand: Must stay as it is until then; the same one may be added several times.
            first: Logits (1, V) after its last position, or an id that is fed before any is drawn.
            sampler: Draws the tokens of the row.
            max_tokens: Longest answer.
        """
        is_read = not isinstance(first, int)
        row = _Row(self._num_rows, sampler, strand.length, max_tokens, is_read)
        self._waiting.append(_Waiting(row, strand, first))
        self._num_rows += 1
        return row.number

    def end(self, row: int) -> None:
        """Ends a row: none of its tokens are yielded any more."""
        self._ended.add(row)

    def take(self, row: int) -> SequenceCache:
        """Returns the cache of a row, with the tokens fed so far, lazily (see `take_row`)."""
        assert self.cache is not None
        place = next(i for i, other in enumerate(self._rows) if other.number == row)
        return take_row(self.cache, place, self.engine.prefix.make_cache())

    @property
    def row_bytes(self) -> int:
        """Bytes of keys and values that one row takes."""
        return 0 if self.cache is None else self.cache.nbytes // max(self.num_rows, 1)

    @property
    def num_rows(self) -> int:
        """Rows in the cache, those included that have ended since it was stacked."""
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Positions that the longest row holds; as many stand in the buffers of each."""
        return max((row.length for row in self._rows), default=0)

    def decode(self, check: Check) -> Iterator[BatchToken]:
        """Samples a token for each row and feeds them before they are yielded, to the last row.

        Args:
            check: Called between steps; may raise to stop. What was yielded can be taken then.

        Yields:
            Tokens, row after row, step after step.
        """
        while True:
            check()
            self._change_rows()
            if not self._rows:
                return
            tokens = self._tokens
            rows = [row for row in self._rows if row.number not in self._ended]
            problems = {row.number: row.sampler.problem for row in rows}  # of these tokens
            is_last = all(row.left == 1 and row.is_read for row in rows)
            if not is_last:
                self._step(tokens)
            drawn = []
            for row, token_id in zip(self._rows, cast(list[int], tokens.tolist()), strict=True):
                row.length += not is_last
                row.left -= row.is_read
                if row.is_read:
                    drawn.append((row, token_id))
                row.is_read = True
            for row, token_id in drawn:
                problem = problems.get(row.number)
                if row.number not in self._ended:
                    yield BatchToken(row.number, token_id, not is_last, problem)
                if row.left <= 0 or problem is not None:
                    self.end(row.number)

    def _step(self, tokens: mx.array) -> None:
        """Feeds a token of each row and draws the next ones."""
        assert self.cache is not None
        logits = self.engine.forward(tokens[:, None], self.cache)
        if self.keeps_logits:
            new = [(i, row.number) for i, row in enumerate(self._rows) if not row.is_read]
            self.prompt_logits.update({number: logits[i : i + 1] for i, number in new})
        self._tokens = sample_rows([row.sampler for row in self._rows], logits)
        mx.async_eval(self._tokens)  # type: ignore[no-untyped-call]

    def _change_rows(self) -> None:
        """Lets rows join; those that have ended leave then, or when they are half of all."""
        left = [i for i, row in enumerate(self._rows) if row.number not in self._ended]
        if not self._waiting and len(left) > len(self._rows) // 2:
            return
        read = [(new, new.first) for new in self._waiting if not isinstance(new.first, int)]
        others = [(new, new.first) for new in self._waiting if isinstance(new.first, int)]
        waiting = [new for new, _ in read] + [new for new, _ in others]
        self._waiting = []
        strands = []
        if self.cache is not None:
            strands = [Strand(self.cache, self._rows[i].length, i) for i in left]
        strands += [new.strand for new in waiting]
        rows = [self._rows[i] for i in left] + [new.row for new in waiting]
        tokens = [self._tokens[mx.array(left)]] if left else []
        if read:
            logits = mx.concatenate([logits for _, logits in read])
            tokens.append(sample_rows([new.row.sampler for new, _ in read], logits))
        if others:
            tokens.append(mx.array([first for _, first in others], mx.uint32))
        self._rows = rows
        self._ended.clear()
        if rows:
            self._tokens = mx.concatenate(tokens)
            if self.stack is not None:
                self.cache = self.stack(strands)
            else:
                self.cache = stack(self.engine.prefix.make_cache(), strands)
            mx.async_eval(self._tokens)  # type: ignore[no-untyped-call]
