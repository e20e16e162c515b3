"""The lines of a batch file answered together; on the worker thread.

Each line is a conversation of its own and gets what it would get alone. What was read of it
(`line_reading.py`) is copied into the batch, where a line takes the place of one that has ended.
Where the model cannot do that, lines are answered one after the other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlxchat.chat.answering import AnswerDecoder
from mlxchat.chat.batch_lines import BatchLine, LineAnswer
from mlxchat.chat.line_reading import LineReader, ReadLine, redirect
from mlxchat.chat.results import BatchProgress, Notice, StopReason, Verify
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.batch import Batch, BatchToken, find_stack
from mlxchat.engine.engine import Logits
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import MemoryShortError
from mlxchat.model.batch_cache import Stack

_PROGRESS_S = 0.1  # a line of progress is drawn no more often


@dataclass(slots=True)
class _Open:
    """A line that is being answered."""

    read: ReadLine
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
        self._reader = LineReader(runner, lines, size, context)
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
        while not self._reader.is_done:
            batch, check = Batch(self._runner.engine, stack), self._context.check
            batch.keeps_logits = self._options.verify
            if self._options.checks_memory:
                check = self._runner.memory.watch_batch(batch, check)
            try:
                self._fill(batch)
                for token in batch.decode(check):
                    if self._take(batch, token):
                        self._fill(batch)
            except JobCancelledError:
                raise
            except MemoryShortError as error:
                self._end_all(batch, error)
            except Exception as error:  # of the pass that all rows share
                ended, self._open = list(self._open.values()), {}
                if not ended:  # or the same would come again and again
                    raise
                self._reader.put_back()
                for row in ended:
                    self._tell(LineAnswer(row.read.line, error=error))

    def _end_all(self, batch: Batch, error: MemoryShortError) -> None:
        """Ends the lines of a batch that cannot grow; those that have no token yet come again.

        Where none has one they come again in smaller batches, and one that is alone has the error.
        """
        self._context.emit(Notice(str(error)))
        ended, self._open = list(self._open.values()), {}
        again = [row for row in ended if not row.num_tokens]
        if again == ended:
            if len(ended) == 1:
                self._tell(LineAnswer(again.pop().read.line, error=error))
            self._size = max(1, len(ended) // 2)
        self._reader.put_back(row.read.line for row in again)
        for row in ended:
            if row.num_tokens:
                self._tell(self._end(row, "context_full", batch.row_bytes))

    def _fill(self, batch: Batch) -> None:
        """Has lines join until no place is left, or no line."""
        while len(self._open) < self._size:
            rows = [(len(o.read.reading.token_ids), o.max_tokens) for o in self._open.values()]
            found = self._reader.take(rows)
            if found is None:
                return
            if isinstance(found, LineAnswer):
                self._tell(found)
                continue
            try:
                self._join(batch, found)
            except JobCancelledError:
                raise
            except Exception as error:  # the other lines can do without this one
                self._tell(LineAnswer(found.line, error=error))

    def _join(self, batch: Batch, read: ReadLine) -> None:
        """Has a line that was read join the batch."""
        runner, reading = self._runner, read.reading
        runner.set_sampling(read.options)
        reading.watch.exclude(time.perf_counter() - read.since)  # it waited for its place
        max_tokens, limit = runner.limit_of(len(reading.token_ids))
        sampler = runner.make_sampler(read.conversation, reading.token_ids, prompt=reading.prompt)
        decoder = runner.make_decoder(reading, redirect(self._context, read.line), sampler)
        row = batch.add(read.strand, read.first, sampler, max_tokens)
        self._open[row] = _Open(read, decoder, read.verify, max_tokens, limit)

    def _take(self, batch: Batch, token: BatchToken) -> bool:
        """Takes a token; returns whether its line is answered now."""
        row = self._open[token.row]
        row.num_tokens += 1
        self._num_tokens += 1
        try:
            if token.problem is not None:
                raise token.problem
            if token.row in batch.prompt_logits:
                self._verify(row, batch.prompt_logits.pop(token.row))
            reason = row.decoder.step(token.token_id)
            if reason is None and row.num_tokens == row.max_tokens:
                reason = row.limit
            if reason is None:
                self._tell_progress()
                return False
            answer = self._finish(row, reason, batch.row_bytes)
        except JobCancelledError:
            raise
        except Exception as error:  # the other lines can do without this one
            answer = LineAnswer(row.read.line, error=error)
        batch.end(token.row)
        del self._open[token.row]
        self._tell(answer)
        return True

    def _verify(self, row: _Open, logits: Logits) -> None:
        """Proves a prompt whose last id was fed by the batch."""
        reading, start = replace(row.read.reading, logits=logits), time.perf_counter()
        row.verify = self._runner.verify(reading, redirect(self._context, row.read.line))
        reading.watch.exclude(time.perf_counter() - start)

    def _end(self, row: _Open, reason: StopReason, kv_bytes: int) -> LineAnswer:
        """Ends a line with what it has, or with the error that this gives."""
        try:
            return self._finish(row, reason, kv_bytes)
        except Exception as error:  # the other lines can do without this one
            return LineAnswer(row.read.line, error=error)

    def _finish(self, row: _Open, reason: StopReason, kv_bytes: int) -> LineAnswer:
        runner, read = self._runner, row.read
        answer = row.decoder.finish(reason)
        for text in runner.record(read.conversation, read.line.question, read.reading, answer):
            redirect(self._context, read.line).emit(Notice(text))
        result = runner.report(read.reading, answer, kv_bytes=kv_bytes)
        return LineAnswer(read.line, replace(result, verify=row.verify))

    # -- one by one --------------------------------------------------------------------------------

    def _answer_in_turn(self) -> None:
        while (begun := self._reader.begin_next()) is not None:
            line, conversation, request = begun
            try:
                result = self._runner.run(conversation, request, redirect(self._context, line))
            except JobCancelledError:
                raise
            except Exception as error:  # as above
                self._tell(LineAnswer(line, error=error))
                continue
            self._context.check()  # what Ctrl-C cut off is no answer
            self._num_tokens += result.usage.completion_tokens
            self._tell(LineAnswer(line, result))

    # -- both --------------------------------------------------------------------------------------

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
