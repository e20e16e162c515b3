"""Several answers to one question, decoded together; on the worker thread.

Each is what a `/retry` of its own would have given: it has the seed that it would have had then.
All of them stand in the tree, and what the cache holds of each is kept as a branch, so that going
on with any of them reads none of it again.
"""

import copy
from dataclasses import replace

from mlxchat.chat.answering import Answer
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.results import Alternatives, BatchProgress, Notice, TurnResult
from mlxchat.chat.turn import Reading, TurnRunner
from mlxchat.engine.batch import Batch, can_batch
from mlxchat.engine.prefix_cache import Plan
from mlxchat.engine.worker import JobContext
from mlxchat.model.batch_cache import Strand


class _Muted(JobContext):
    """A job's context for a row whose text is shown when all rows have ended."""

    def __init__(self, context: JobContext) -> None:
        super().__init__()
        self._cancel = context._cancel

    def emit(self, event: object) -> None:
        """Shows nothing."""


def answer_many(
    runner: TurnRunner,
    conversation: Conversation,
    question: str | None,
    context: JobContext,
    *,
    count: int,
    start: float,
    keep_branch: bool = False,
    cause: str = "",
) -> Alternatives:
    """Answers a question several times; the head is then the first answer.

    Args:
        runner: Of the model.
        conversation: As in `TurnRunner.read`.
        question: As there.
        context: As there.
        count: How many answers.
        start: As there.
        keep_branch: As there.
        cause: As there.

    Raises:
        JobCancelledError: Stopped; nothing is kept.
    """
    reading = runner.read(
        conversation, question, context, start=start, keep_branch=keep_branch, cause=cause
    )
    runner.engine.speculator = None  # a batch takes one token of each row at a time
    # Where the thinking must be closed, a row is fed what the others are not.
    can = can_batch(runner.engine, [len(reading.token_ids)]) and not runner.options.think_budget
    decode = _decode_together if can else _decode_in_turn
    answers, readings = decode(runner, conversation, question, reading, count, context)
    results: list[TurnResult] = []
    nodes: list[int | None] = []
    place = conversation.head
    for answer, read in zip(answers, readings, strict=True):
        num_before = len(conversation.nodes)
        conversation.head = place
        for text in runner.record(conversation, question, read, answer):
            context.emit(Notice(text))
        is_kept = len(conversation.nodes) > num_before
        nodes.append(conversation.head if is_kept else None)
        if is_kept and question is not None:
            place, question = conversation.nodes[conversation.head or 0].parent, None
        results.append(runner.report(read, answer, read.watch))
    verify = runner.verify(reading, context)
    results = [replace(result, verify=verify) for result in results]
    kept = [node for node in nodes if node is not None]
    conversation.head = kept[0] if kept else place
    return Alternatives(tuple(results), tuple(nodes))


def _readings(reading: Reading, count: int) -> list[Reading]:
    """Returns what each answer begins with; what the first has read the others reuse."""
    held = len(reading.token_ids)
    others = []
    for _ in range(count - 1):
        watch = copy.deepcopy(reading.watch)
        watch.phases.pop("prefill", None)
        plan = Plan("continue", held, held, held)
        why = "the first answer read the rest"
        others.append(replace(reading, plan=plan, watch=watch, why=why, num_ahead=0))
    return [reading, *others]


def _decode_together(
    runner: TurnRunner,
    conversation: Conversation,
    question: str | None,
    reading: Reading,
    count: int,
    context: JobContext,
) -> tuple[list[Answer], list[Reading]]:
    engine, ids = runner.engine, reading.token_ids
    max_tokens, limit = runner.limit_of(len(ids))
    batch, strand = Batch(engine), Strand(engine.prefix.cache, len(ids))
    for row in range(count):
        sampler = runner.make_sampler(conversation, ids, _later(row, question))
        batch.add(strand, reading.logits, sampler, max_tokens)
    readings, muted = _readings(reading, count), _Muted(context)
    decoders = [runner.make_decoder(read, read.watch, muted) for read in readings]
    fed = [list(ids) for _ in range(count)]
    num_tokens = [0] * count
    answers: dict[int, Answer] = {}
    for token in batch.decode(context.check):
        row = token.row
        num_tokens[row] += 1
        if token.is_fed:
            fed[row].append(token.token_id)
        reason = decoders[row].step(token.token_id)
        if reason is None and num_tokens[row] == max_tokens:
            reason = limit
        if reason is not None:
            engine.prefix.add_branch(batch.take(row), fed[row])
            batch.end(row)
            answers[row] = decoders[row].finish(reason)
        if row == count - 1 or reason is not None:
            context.emit(BatchProgress(len(answers), count, sum(num_tokens)))
    return [answers[row] for row in range(count)], readings


def _later(row: int, question: str | None) -> int:
    """How many messages an answer would come later if they came one by one."""
    return row + 1 if row and question is not None else row


def _decode_in_turn(
    runner: TurnRunner,
    conversation: Conversation,
    question: str | None,
    reading: Reading,
    count: int,
    context: JobContext,
) -> tuple[list[Answer], list[Reading]]:
    """Decodes one by one what cannot be decoded together."""
    engine, ids = runner.engine, reading.token_ids
    max_tokens, limit = runner.limit_of(len(ids))
    muted, answers, readings = _Muted(context), list[Answer](), _readings(reading, count)
    logits = reading.logits
    for row, read in enumerate(readings):
        if row:
            plan = engine.prefix.plan(ids)
            engine.prefix.apply(plan, keep_branch=True)
            again = engine.prefill(ids, plan, check=context.check)
            assert again is not None
            logits = again
        sampler = runner.make_sampler(conversation, ids, _later(row, question))
        decoder = runner.make_decoder(read, read.watch, muted)
        answers.append(decoder.run(logits, sampler, max_tokens=max_tokens, limit=limit))
        context.check()
        tokens = sum(len(answer.tokens) for answer in answers)
        context.emit(BatchProgress(row + 1, count, tokens))
    return answers, readings
