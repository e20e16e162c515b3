"""Holds an answer to a grammar: which tokens may come next, as a mask over the logits.

The mask goes first of all that changes logits: penalties and biases act on each token by itself and
let minus infinity stay what it is, but truncation must count allowed tokens only. So what is drawn
has the model's own probabilities among the allowed tokens, renormalised, and the greedy token is
the best that is allowed.

What stands before the text that is held to the grammar, such as thinking, is known to a preamble.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from mlxchat.engine.grammar import Grammar, TokenTable
from mlxchat.errors import MlxchatError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Preamble(Protocol):
    """Knows what may stand before the text that the grammar describes."""

    @property
    def is_over(self) -> bool:
        """The text has begun, or begins with the next token."""

    @property
    def may_end(self) -> bool:
        """The text may begin with the next token."""

    @property
    def next_ids(self) -> frozenset[int] | None:
        """Ids that go on with what stands before the text; None where anything goes."""

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that may not come where anything goes."""

    def restart(self) -> None:
        """Begins again."""

    def push(self, token_id: int) -> bool:
        """Takes the next id; returns whether it stands before the text."""


class Constraint:
    """Holds one answer to a grammar.

    Args:
        table: The model's tokens.
        grammar: What the answer must match.
        preamble: What may stand before it; None is nothing.
        after_blank: The tokenizer puts a blank before a text in this place, which is not shown:
            the answer begins with it, as every text does that the model has seen there.

    Attributes:
        name: What the grammar is called.
        num_taken: Tokens of the answer that are known here.
    """

    def __init__(
        self,
        table: TokenTable,
        grammar: Grammar,
        preamble: Preamble | None = None,
        *,
        after_blank: bool = False,
    ) -> None:
        self._table, self._grammar, self._preamble = table, grammar, preamble
        self._takes_blank = self._after_blank = after_blank
        self._matcher: LLMatcher = table.make_matcher(grammar, after_blank=after_blank)
        self.name = grammar.name
        self._has_ended = False
        self.num_taken = 0

    @property
    def is_complete(self) -> bool:
        """Whether the text so far matches the grammar as a whole."""
        is_text = self._preamble is None or self._preamble.is_over or self._preamble.may_end
        return self._has_ended or (is_text and self._matcher.is_accepting())

    @property
    def is_text(self) -> bool:
        """Whether the next token is certain to be of the text that the grammar describes."""
        return not self._has_ended and (self._preamble is None or self._preamble.is_over)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Takes the answer as far as it has come, from its beginning.

        Raises:
            MlxchatError: It does not match.
        """
        # Text of another model, which goes on, may have come without the blank.
        is_plain = bool(token_ids) and not self._table.begins_with_blank(token_ids[0])
        after_blank = self._takes_blank and not is_plain
        if after_blank != self._after_blank or self._matcher.is_error():  # which no reset ends
            self._after_blank = after_blank
            self._matcher = self._table.make_matcher(self._grammar, after_blank=after_blank)
        self._matcher.reset()
        self._has_ended, self.num_taken = False, 0
        if self._preamble is not None:
            self._preamble.restart()
        for token_id in token_ids:
            self.take(token_id)

    def take(self, token_id: int) -> None:
        """Takes the next token of the answer.

        Raises:
            MlxchatError: It does not match.
        """
        self.num_taken += 1
        if self._has_ended:
            return
        preamble = self._preamble
        if preamble is not None and not preamble.is_over and preamble.push(token_id):
            return
        if token_id in self._table.end_ids:
            self._has_ended = True
        elif not self._matcher.consume_token(token_id):
            raise self._explain()

    def _explain(self) -> MlxchatError:
        why = self._matcher.get_error().split("\n")[0]
        if why.startswith("NoExtension"):
            why = "no token of this model spells what must come"
        return MlxchatError(
            f"the answer cannot go on as the {self.name} wants it ({why}); simplify it, or leave"
            " it out"
        )

    def mask(self) -> mx.array | None:
        """Returns which tokens may come next, (V,) of bools; None where all may.

        Raises:
            MlxchatError: The grammar became too complex for llguidance.
        """
        if self._has_ended:
            return None
        preamble, size = self._preamble, self._table.vocab_size
        if preamble is None or preamble.is_over:
            return _expand(self._allowed(), size)
        if preamble.next_ids is None:
            bits = bytearray(b"\xff" * (-(-size // 32) * 4))
            for token_id in self._table.end_ids | preamble.banned_ids:
                bits[token_id // 8] &= ~(1 << token_id % 8)
        else:
            bits = bytearray(self._allowed() if preamble.may_end else -(-size // 32) * 4)
            for token_id in preamble.next_ids:
                bits[token_id // 8] |= 1 << token_id % 8
        return _expand(bytes(bits), size)

    def _allowed(self) -> bytes:
        """Returns one bit for each token that the grammar allows next."""
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise self._explain()
        return bits

    def masks_ahead(self, drafts: Sequence[int]) -> list[mx.array | None]:
        """Returns the masks before each draft and after the last, were they the next tokens.

        Behind a draft that is not allowed no mask matters, since that draft does not stand.

        Args:
            drafts: Ids; the next token must be of the text that the grammar describes.
        """
        size, num_taken = self._table.vocab_size, 0
        bits = b"" if self._has_ended else self._allowed()
        masks: list[mx.array | None] = [_expand(bits, size) if bits else None]
        for token_id in drafts if bits else ():
            if token_id in self._table.end_ids or not bits[token_id // 8] >> token_id % 8 & 1:
                break
            if not self._matcher.consume_token(token_id):
                raise self._explain()
            num_taken += 1
            bits = self._allowed()
            masks.append(_expand(bits, size))
        self._matcher.rollback(num_taken)
        return [*masks, *[None] * (len(drafts) + 1 - len(masks))]

    def forced_ids(self) -> list[int]:
        """Returns ids of the text that alone can follow, as they probably come; often none."""
        if not self.is_text or not self._matcher.compute_ff_bytes():
            return []
        return self._matcher.compute_ff_tokens()  # knows nothing before the bytes were asked for


def _expand(bits: bytes, size: int) -> mx.array:
    """Returns bits, the lowest of each byte first, as (size,) bools."""
    places = mx.array(memoryview(bits))  # type: ignore[arg-type]  # it takes buffers
    return _bits_of_bytes()[places].reshape(-1)[:size]


@cache
def _bits_of_bytes() -> mx.array:
    """Returns the bits of each byte, (256, 8): looking them up takes less than shifting words."""
    return mx.array([[bool(byte >> bit & 1) for bit in range(8)] for byte in range(256)])


def apply_mask(logits: mx.array, mask: mx.array | None) -> mx.array:
    """Takes the tokens that are not allowed out of logits (..., V)."""
    return logits if mask is None else mx.where(mask, logits, -mx.inf)
