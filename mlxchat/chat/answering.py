"""One answer while it is decoded: thinking apart, stop strings, the thinking's end, why it ended.

Knows how text becomes final and what a person has seen of it; what is sampled and fed is the
engine's business, what is kept of an answer the turn's. Runs on the worker thread.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

from mlxchat.chat.continuation import Begun
from mlxchat.chat.reasoning import Delta, Kind, ReasoningSplitter, Split
from mlxchat.chat.results import Notice, StopReason, TextDelta
from mlxchat.chat.stop_strings import StopStrings
from mlxchat.engine.constraint import Constraint
from mlxchat.engine.engine import Engine, Logits
from mlxchat.engine.sampling import Sampler
from mlxchat.engine.timing import Stopwatch
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import MemoryShortError
from mlxchat.model.tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """What decoding gave.

    Attributes:
        split: Thinking and answer, as generated; of a continued answer from its beginning.
        text: The answer up to a stop string.
        tokens: The ids of this turn.
        stop_reason: Why it ended.
        was_thinking: It ended inside thinking.
    """

    split: Split
    text: str
    tokens: list[int]
    stop_reason: StopReason
    was_thinking: bool


class AnswerDecoder:
    """Decodes one answer and shows its text as soon as it is final.

    Args:
        engine: Decodes; its sequence holds the prompt.
        tokenizer: Knows the stop tokens.
        splitter: Of the prompt.
        stop: Strings that end the answer.
        watch: Takes the time of each token.
        context: The job's.
        think_budget: Tokens after which the thinking is closed; None lets it end by itself.
        ends_thinking: Set when the thinking shall end now.
        check: Called between tokens; without it the job's, which ends the answer on Ctrl-C.
        constraint: What the answer is held to; the sampler's.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        splitter: ReasoningSplitter,
        stop: Sequence[str],
        watch: Stopwatch,
        context: JobContext,
        *,
        think_budget: int | None = None,
        ends_thinking: Event | None = None,
        check: Callable[[], None] | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._splitter = engine, tokenizer, splitter
        self._stop, self._stops = stop, StopStrings(stop)
        self._watch, self._context = watch, context
        self._check, self._constraint = check or context.check, constraint
        self._think_budget, self._ends_thinking = think_budget, ends_thinking
        self._was_closed = False  # by us
        self._num_thought = 0  # ids since the thinking began, held back ones included
        self._begun: tuple[int, ...] = ()  # ids of the answer that were there before
        self._tokens: list[int] = []
        self._texts: list[str] = []
        self._seen: dict[Kind, str] = {"reasoning": "", "answer": ""}  # and will come again

    def replay(self, begun: Begun) -> None:
        """Takes the beginning of an answer that goes on; what was shown is not shown again."""
        self._stops = StopStrings(())
        self._begun = begun.token_ids
        self._seen = {"reasoning": begun.reasoning, "answer": begun.answer}
        for token_id in begun.token_ids:
            self._take(token_id)
        # A stop string may lie across the border, but one that was passed does not end it again.
        self._stops = StopStrings(self._stop)
        whole = "".join(self._texts)
        self._texts = [self._stops.push(whole)]
        if self._stops.is_hit:
            self._stops, self._texts = StopStrings(self._stop), [whole]

    def run(
        self, logits: Logits, sampler: Sampler, *, max_tokens: int, limit: StopReason
    ) -> Answer:
        """Decodes until the answer ends.

        Args:
            logits: After the last id of the prompt.
            sampler: Draws the tokens.
            max_tokens: Longest answer.
            limit: Why it ends there.
        """
        reason: StopReason | None = None
        if self._begun:
            sampler.follow(self._begun)
        try:
            while reason is None:
                left = max_tokens - len(self._tokens)
                if self._must_close():
                    closing = self._closing_ids()
                    if len(closing) > left:
                        reason = limit
                        break
                    logits = self._feed(closing, sampler)
                    left -= len(closing)
                reason = self._decode(logits, sampler, left, limit)
        except JobCancelledError:
            reason = "user_cancelled"
        except MemoryShortError as error:
            reason = "context_full"
            self._context.emit(Notice(str(error)))
        return self.finish(reason)

    def finish(self, reason: StopReason) -> Answer:
        """Ends the answer, which nothing follows."""
        was_thinking = self._splitter.is_thinking
        deltas, split = self._splitter.finish()
        self._give(deltas)
        self._show(self._stops.finish(), "answer")
        self._tell_if_cut(reason)
        return Answer(split, "".join(self._texts), self._tokens, reason, was_thinking)

    def _tell_if_cut(self, reason: StopReason) -> None:
        """Says that an answer which was held to a grammar ended before it was whole."""
        if self._constraint is None or reason == "eos_token":
            return
        self._constraint.follow([*self._begun, *self._tokens])
        if reason == "stop_string" or not self._constraint.is_complete:
            name = self._constraint.name
            self._context.emit(Notice(f"the answer was cut off, so it does not match the {name}"))

    def _decode(
        self, logits: Logits, sampler: Sampler, max_tokens: int, limit: StopReason
    ) -> StopReason | None:
        """Takes tokens to the end; returns None where the thinking must be closed first."""
        taken: list[StopReason | None] = []
        decoding = self._engine.decode(
            logits,
            sampler,
            max_tokens=max_tokens,
            check=self._check,
            on_first=lambda token: taken.append(self.step(token)),
        )
        # Closed at once: what speculation fed beyond the end must leave the cache.
        with contextlib.closing(decoding) as tokens:
            for token in tokens:
                if reason := taken.pop() if taken else self.step(token):
                    return reason
                if self._must_close():
                    return None
        return limit

    def step(self, token: int) -> StopReason | None:
        """Takes the next token; says why the answer ends with it, where it does."""
        self._watch.token()
        if token in self._tokenizer.eos_ids:
            return "eos_token"
        self._tokens.append(token)
        self._take(token)
        return "stop_string" if self._stops.is_hit else None

    def _take(self, token_id: int) -> None:
        was_thinking = self._splitter.is_thinking
        self._give(self._splitter.push(token_id))
        self._num_thought += was_thinking and self._splitter.is_thinking

    def _must_close(self) -> bool:
        """Whether the thinking has taken its budget, or the person has had enough of it."""
        if not self._splitter.is_thinking or self._was_closed:
            return False
        is_over = self._think_budget is not None and self._num_thought >= self._think_budget
        return is_over or (self._ends_thinking is not None and self._ends_thinking.is_set())

    def _closing_ids(self) -> list[int]:
        self._was_closed = True
        text = self._splitter.closing_text()
        return list(self._tokenizer.encode(text, is_continuation=True))

    def _feed(self, token_ids: list[int], sampler: Sampler) -> Logits:
        """Feeds ids that nobody sampled as a part of the answer."""
        prefix = self._engine.prefix
        whole = [*prefix.token_ids, *token_ids]
        logits = self._engine.prefill(whole, prefix.plan(whole), check=self._check)
        assert logits is not None
        sampler.count(token_ids)
        for token_id in token_ids:
            self._tokens.append(token_id)
            self._take(token_id)
        sampler.follow([*self._begun, *self._tokens])
        return logits

    def _give(self, deltas: list[Delta]) -> None:
        """Shows what has become final; the answer's text passes the stop strings first."""
        for delta in deltas:
            is_answer = delta.kind == "answer"
            self._show(self._stops.push(delta.text) if is_answer else delta.text, delta.kind)

    def _show(self, text: str, kind: Kind) -> None:
        if kind == "answer":
            self._texts.append(text)
        if seen := self._seen[kind]:
            num = _common_length(seen, text)
            self._seen[kind] = seen[num:] if num == len(text) else ""
            text = text[num:]
        if text:
            num_reasoning = self._splitter.num_reasoning_tokens
            self._context.emit(TextDelta(text, kind, num_reasoning))


def _common_length(text: str, other: str) -> int:
    """Counts the characters that two texts share at their start."""
    pairs = enumerate(zip(text, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
