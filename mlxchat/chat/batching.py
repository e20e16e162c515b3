"""The lines of a batch file answered together; on the worker thread.

Each line is a conversation of its own and gets what it would get alone. Its prompt goes through
the live sequence, so that what it has in common with the line before is not read again; what was
read is then copied into the batch, where a line takes the place of one that has ended. Where the
model cannot do that, lines are answered one after the other.
"""

import contextlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxchat.chat.answering import AnswerDecoder
from mlxchat.chat.batch_lines import BatchLine, LineAnswer
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.reading import Reading
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import BatchProgress, Notice, StopReason, Verify
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.batch import Batch, BatchToken, copy_live, find_stack
from mlxchat.engine.token_ids import count_common
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import MemoryShortError
from mlxchat.model.batch_cache import Stack

_PROGRESS_S = 0.1  # a line of progress is drawn no more often


def _redirect(context: JobContext, line: BatchLine) -> JobContext:
    """Returns a job's context for one line: only its notices are shown, with its number."""

    def hand_on(event: object) -> None:
        if isinstance(event, Notice):
            context.emit(Notice(f"line {line.number}: {event.text}"))

    return context.redirect(hand_on)


@dataclass(slots=True)
class _Open:
    """A line that is being answered."""

    line: BatchLine
    conversation: Conversation
    reading: Reading
    decoder: AnswerDecoder
    verify: Verify | None
    max_tokens: int
    limit: StopReason
    num_tokens: int = 0


class LineAnswerer:
    """Answers lines and emits a `LineAnswer` for each as soon as it is there.

    Args:
        runner: Of the model.
        lines: Without those that are broken.
        size: How many are decoded together.
        context: The job's.
    """

    def __init__(
        self, runner: TurnRunner, lines: Sequence[BatchLine], size: int, context: JobContext
    ) -> None:
        self._runner, self._context, self._size = runner, context, size
        self._options = runner.options
        self._todo = deque(lines)
        self._open: dict[int, _Open] = {}
        self._num_lines, self._num_done, self._num_tokens = len(lines), 0, 0
        self._told_at = 0.0

    def run(self) -> None:
        """Answers all.

        Raises:
            JobCancelledError: Stopped; what was finished until then has been emitted.
        """
        try:
            stack, reason = self._find_stack()
            if reason:
                self._context.emit(Notice(f"The lines are answered one by one: {reason}."))
            if stack is None:
                self._answer_in_turn()
            else:
                self._answer_together(stack)
        finally:
            self._runner.set_sampling(self._options)

    def _find_stack(self) -> tuple[Stack | None, str]:
        """Returns how lines are put together, or why not; nothing to tell where nobody asked."""
        if min(self._size, self._num_lines) <= 1:
            return None, ""
        if self._options.think_budget is not None:
            return None, "a --think-budget feeds one answer what the others are not fed"
        return find_stack(self._runner.engine)

    # -- together ----------------------------------------------------------------------------------

    def _answer_together(self, stack: Stack) -> None:
        self._runner.engine.speculator = None  # a batch takes one token of each row at a time
        while self._todo:
            batch, check = Batch(self._runner.engine, stack), self._context.check
            if self._options.checks_memory:
                check = self._runner.memory.watch_batch(batch, check)
            self._fill(batch)
            try:
                for token in batch.decode(check):
                    if self._take(batch, token):
                        self._fill(batch)
            except MemoryShortError as error:
                self._end_all(batch, error)

    def _end_all(self, batch: Batch, error: MemoryShortError) -> None:
        """Ends the lines of a batch that cannot grow; those that have no token yet come again."""
        self._context.emit(Notice(str(error)))
        ended, self._open = list(self._open.values()), {}
        for row in reversed(ended):  # so that the first of those that come again is the next one
            if row.num_tokens:
                self._tell(self._finish(row, "context_full", batch.row_bytes))
            else:
                self._todo.appendleft(row.line)

    def _fill(self, batch: Batch) -> None:
        """Reads the next prompts until no place is left."""
        while self._todo and len(self._open) < self._size:
            line = self._todo.popleft()
            try:
                self._begin(batch, line)
            except JobCancelledError:
                raise
            except MemoryShortError as error:
                if self._open:  # there is more when one of them has ended
                    self._todo.appendleft(line)
                    return
                self._tell(LineAnswer(line, error=error))
            except Exception as error:  # the other lines can do without this one
                self._tell(LineAnswer(line, error=error))

    def _begin(self, batch: Batch, line: BatchLine) -> None:
        """Reads a line's prompt and has it join the batch."""
        runner, context = self._runner, _redirect(self._context, line)
        conversation = self._prepare(line)
        reading = runner.read(conversation, self._request(line, conversation), context)
        before = time.perf_counter()
        verify = runner.verify(reading, context)  # while the live sequence holds the prompt
        reading.watch.exclude(time.perf_counter() - before)
        max_tokens, limit = runner.limit_of(len(reading.token_ids))
        if self._options.checks_memory:
            others = [(len(o.reading.token_ids), o.max_tokens) for o in self._open.values()]
            rows = [*others, (len(reading.token_ids), max_tokens)]
            runner.memory.check_batch(runner.engine, rows)
        sampler = runner.make_sampler(conversation, reading.token_ids, prompt=reading.prompt)
        decoder = runner.make_decoder(reading, context, sampler)
        row = batch.add(copy_live(runner.engine), reading.logits, sampler, max_tokens)
        self._open[row] = _Open(line, conversation, reading, decoder, verify, max_tokens, limit)

    def _take(self, batch: Batch, token: BatchToken) -> bool:
        """Takes a token; returns whether its line is answered now."""
        row = self._open[token.row]
        row.num_tokens += 1
        self._num_tokens += 1
        reason = row.decoder.step(token.token_id)
        if reason is None and row.num_tokens == row.max_tokens:
            reason = row.limit
        if reason is None:
            self._tell_progress()
            return False
        kv_bytes = batch.row_bytes
        batch.end(token.row)
        del self._open[token.row]
        self._tell(self._finish(row, reason, kv_bytes))
        return True

    def _finish(self, row: _Open, reason: StopReason, kv_bytes: int) -> LineAnswer:
        runner, context = self._runner, _redirect(self._context, row.line)
        answer = row.decoder.finish(reason)
        for text in runner.record(row.conversation, row.line.question, row.reading, answer):
            context.emit(Notice(text))
        result = runner.report(row.reading, answer, kv_bytes=kv_bytes)
        return LineAnswer(row.line, replace(result, verify=row.verify))

    # -- one by one --------------------------------------------------------------------------------

    def _answer_in_turn(self) -> None:
        while self._todo:
            line = self._todo.popleft()
            context = _redirect(self._context, line)
            conversation = self._prepare(line)
            try:
                result = self._runner.run(conversation, self._request(line, conversation), context)
            except JobCancelledError:
                raise
            except Exception as error:  # as above
                self._tell(LineAnswer(line, error=error))
                continue
            self._context.check()  # what Ctrl-C cut off is no answer
            self._num_tokens += result.usage.completion_tokens
            self._tell(LineAnswer(line, result))

    # -- both --------------------------------------------------------------------------------------

    def _prepare(self, line: BatchLine) -> Conversation:
        """Takes the line's settings and returns what stands before its question."""
        self._runner.set_sampling(line.choose_options(self._options))
        return line.make_conversation(self._options.system)

    def _request(self, line: BatchLine, conversation: Conversation) -> TurnRequest:
        """Returns the turn, with a mark up to where the next line's prompt is the same.

        Only caches that cannot be trimmed need it: there is no other way back to that place.
        """
        start = time.perf_counter()
        marks: tuple[int, ...] = ()
        if self._todo and not self._runner.engine.prefix.is_trimmable:
            follower = self._todo[0]
            after = follower.make_conversation(self._options.system)
            with contextlib.suppress(Exception):  # reading the line that is at fault will tell
                first = self._render(conversation, line)
                marks = (count_common(first, self._render(after, follower)),)
        return TurnRequest(line.question, start, cause="another prompt", marks=marks)

    def _render(self, conversation: Conversation, line: BatchLine) -> tuple[int, ...]:
        messages = self._runner.messages(conversation, line.question)
        return self._runner.renderer.render_ids(messages).token_ids

    def _tell(self, answer: LineAnswer) -> None:
        self._num_done += 1
        self._context.emit(answer)
        self._tell_progress()

    def _tell_progress(self) -> None:
        now = time.perf_counter()
        if now - self._told_at >= _PROGRESS_S:
            self._told_at = now
            progress = BatchProgress(self._num_done, self._num_lines, self._num_tokens)
            self._context.emit(progress)
