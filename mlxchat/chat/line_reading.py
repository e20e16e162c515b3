"""The prompts of batch lines are read: several in one pass where that is less work.

A prompt that has much in common with the one before goes through the live sequence, which holds
that. Prompts that depart from it at about the same place are read side by side, and wait here
until the batch has a place for them. Runs on the worker thread.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from mlxchat.chat.batch_lines import BatchLine, LineAnswer
from mlxchat.chat.continuation import Begun
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.prompt import RenderedPrompt
from mlxchat.chat.reading import Reading
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import Notice, Verify
from mlxchat.chat.template import Message
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.batch import copy_live
from mlxchat.engine.batch_prefill import can_read_together, choose_prompts, read_together
from mlxchat.engine.engine import Logits, reset_peak_memory
from mlxchat.engine.reuse_plan import Plan
from mlxchat.engine.timing import Stopwatch
from mlxchat.engine.token_ids import count_common
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import MemoryShortError
from mlxchat.model.batch_cache import Strand

CAUSE = "another prompt"
# Prompts that are read in one pass, at most: more gain nothing, and each waits for the others.
_MOST_TOGETHER = 16

Rows = list[tuple[int, int]]  # of each row the tokens of its prompt and the most of its answer


def redirect(context: JobContext, line: BatchLine) -> JobContext:
    """Returns a job's context for one line: only its notices are shown, with its number."""

    def hand_on(event: object) -> None:
        if isinstance(event, Notice):
            context.emit(Notice(f"line {line.number}: {event.text}"))

    return context.redirect(hand_on)


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A line with its prompt."""

    line: BatchLine
    options: ChatOptions
    conversation: Conversation
    messages: list[Message]
    prompt: RenderedPrompt
    seconds: float


@dataclass(frozen=True, slots=True)
class ReadLine:
    """A line whose prompt is read.

    Attributes:
        line: Asks.
        options: What it wants.
        conversation: What stands before its question.
        reading: Of its prompt; without logits where the last id is still to be fed.
        strand: Holds the prompt.
        first: Logits after the prompt, or its last id.
        since: When it was read.
        verify: What --verify found, if it was asked already.
    """

    line: BatchLine
    options: ChatOptions
    conversation: Conversation
    reading: Reading
    strand: Strand
    first: Logits | int
    since: float
    verify: Verify | None = None


class LineReader:
    """Hands out lines in their order, read; those in one pass may come before others.

    Args:
        runner: Of the model.
        lines: To be answered.
        size: How many are decoded together.
        context: The job's.
    """

    def __init__(
        self, runner: TurnRunner, lines: Sequence[BatchLine], size: int, context: JobContext
    ) -> None:
        self._runner, self._size, self._context = runner, size, context
        self._options = runner.options
        self._todo = deque(lines)
        self._ready: deque[ReadLine] = deque()
        self._rendered: dict[int, _Rendered | None] = {}
        self._can_read_together: bool | None = None  # not known yet
        self._is_first = True

    @property
    def is_done(self) -> bool:
        """Whether all lines have been handed out."""
        return not (self._todo or self._ready)

    def put_back(self, lines: Iterable[BatchLine] = ()) -> None:
        """Takes lines back, which come again; what has been read and not handed out is let go."""
        again = [*lines, *(read.line for read in self._ready), *self._todo]
        self._ready.clear()
        self._todo = deque(sorted(again, key=lambda line: line.index))

    def take(self, rows: Rows) -> ReadLine | LineAnswer | None:
        """Returns the next line, read, or with the error that ends it.

        Args:
            rows: That are decoded now.

        Returns:
            None where no line is left, or memory holds no more beside those rows.
        """
        if not self._ready and self._todo and not self._read_together(rows):
            return self._take_alone(rows)
        return self._ready.popleft() if self._ready else None

    def begin_next(self) -> tuple[BatchLine, Conversation, TurnRequest] | None:
        """Takes a line to be answered by itself, its settings in force."""
        if not self._todo:
            return None
        line = self._todo.popleft()
        self._runner.set_sampling(line.choose_options(self._options))
        return line, line.make_conversation(self._options.system), self._make_request(line)

    # -- by itself ---------------------------------------------------------------------------------

    def _take_alone(self, rows: Rows) -> ReadLine | LineAnswer | None:
        begun = self.begin_next()
        assert begun is not None
        line, conversation, request = begun
        try:
            return self._read_alone(line, conversation, request, rows)
        except JobCancelledError:
            raise
        except MemoryShortError as error:
            if not rows:
                return LineAnswer(line, error=error)
            self._todo.appendleft(line)  # there is more when one of them has ended
            return None
        except Exception as error:  # the other lines can do without this one
            return LineAnswer(line, error=error)

    def _read_alone(
        self, line: BatchLine, conversation: Conversation, request: TurnRequest, rows: Rows
    ) -> ReadLine:
        """Reads a prompt through the live sequence."""
        runner, context = self._runner, redirect(self._context, line)
        reading = runner.read(conversation, request, context)
        self._is_first = False
        before = time.perf_counter()
        verify = runner.verify(reading, context)  # while the live sequence holds the prompt
        reading.watch.exclude(time.perf_counter() - before)
        num_prompt = len(reading.token_ids)
        if self._options.checks_memory:
            row = num_prompt, runner.limit_of(num_prompt)[0]
            runner.memory.check_batch(runner.engine, [*rows, row])
        strand, logits, now = copy_live(runner.engine), reading.last_logits, time.perf_counter()
        return ReadLine(line, runner.options, conversation, reading, strand, logits, now, verify)

    def _make_request(self, line: BatchLine) -> TurnRequest:
        """Returns the turn, with a mark up to where the next line's prompt is the same.

        Only caches that cannot be trimmed need it: there is no other way back to that place.
        """
        start = time.perf_counter()
        marks: tuple[int, ...] = ()
        if self._todo and not self._runner.engine.prefix.is_trimmable:
            first, after = self._render(line), self._render(self._todo[0])
            if first is not None and after is not None:
                marks = (count_common(first.prompt.token_ids, after.prompt.token_ids),)
        self._rendered.pop(line.index, None)
        return TurnRequest(line.question, start, cause=CAUSE, marks=marks)

    def _render(self, line: BatchLine) -> _Rendered | None:
        """Renders a line's prompt once; None where it cannot be: reading it will tell why."""
        if line.index not in self._rendered:
            start, found = time.perf_counter(), None
            with contextlib.suppress(Exception):
                conversation = line.make_conversation(self._options.system)
                messages = self._runner.messages(conversation, line.question)
                prompt = self._runner.renderer.render_ids(messages)
                options, spent = line.choose_options(self._options), time.perf_counter() - start
                found = _Rendered(line, options, conversation, messages, prompt, spent)
            self._rendered[line.index] = found
        return self._rendered[line.index]

    # -- several in one pass -----------------------------------------------------------------------

    def _read_together(self, rows: Rows) -> bool:
        """Reads the next line with others that it goes well with; False where there are none."""
        # The first line finds what is stored on disk, and what all have in common is held then.
        can = not self._is_first and len(self._todo) > 1 and self._runner.reuses
        if not (can and self._options.overflow == "error"):
            return False
        if self._can_read_together is None:
            self._can_read_together = can_read_together(self._runner.engine)
        if not self._can_read_together:
            return False
        start, group = self._choose()
        while len(group) > 1 and not self._has_memory(rows, group):
            group = group[: len(group) // 2]
        if len(group) < 2:
            return False
        try:
            self._ready += self._read_group(start, group)
        except JobCancelledError:
            raise
        except Exception:  # one by one it will show which of them is at fault, if any
            self._can_read_together = False
            return False
        indices = {one.line.index for one in group}
        self._todo = deque(line for line in self._todo if line.index not in indices)
        for index in indices:
            del self._rendered[index]
        return True

    def _choose(self) -> tuple[int, list[_Rendered]]:
        """Returns how many ids are held, and the lines to read together."""
        found: list[_Rendered] = []
        for line in islice(self._todo, 2 * self._size):
            one = self._render(line)
            if one is not None and 1 < len(one.prompt.token_ids) < self._runner.context_limit:
                found.append(one)
            elif not found:
                return 0, []
        prefix = self._runner.engine.prefix
        prompts = [one.prompt.token_ids for one in found]
        start, group = choose_prompts(prefix.token_ids, prompts, min(self._size, _MOST_TOGETHER))
        return start, [found[i] for i in group] if prefix.cache.can_rewind(start) else []

    def _has_memory(self, rows: Rows, group: list[_Rendered]) -> bool:
        runner, more = self._runner, Rows()
        if not self._options.checks_memory:
            return True
        for one in group:
            runner.set_sampling(one.options)
            num = len(one.prompt.token_ids)
            more.append((num, runner.limit_of(num)[0]))
        try:
            runner.memory.check_batch(runner.engine, [*rows, *more])
        except MemoryShortError:
            return False
        return True

    def _read_group(self, start: int, group: list[_Rendered]) -> list[ReadLine]:
        runner, begun = self._runner, time.perf_counter()
        reset_peak_memory()
        prefix, prompts = runner.engine.prefix, [one.prompt.token_ids for one in group]
        strands = read_together(runner.engine, start, prompts, self._context.check)
        now, read = time.perf_counter(), []
        num_read = sum(len(ids) - start for ids in prompts)
        for one, (strand, first), ids in zip(group, strands, prompts, strict=True):
            share = (now - begun) * (len(ids) - start) / num_read
            watch = Stopwatch(
                begun - one.seconds, {"template": one.seconds, "restore": 0.0, "prefill": share}
            )
            plan = Plan("trim" if start else "fresh", start, start, len(prefix.token_ids))
            why = runner.reasons.explain(plan, CAUSE, 0)
            held = (*prefix.token_ids[:start], *ids[start:])
            logits = None if isinstance(first, int) else first
            reading = Reading(
                one.messages, one.prompt, Begun(), ids, plan, logits, watch, why, 0, held
            )
            verify = None
            if logits is not None:
                verify = runner.verify(reading, redirect(self._context, one.line))
            read.append(
                ReadLine(
                    one.line, one.options, one.conversation, reading, strand, first, now, verify
                )
            )
        return read
