"""Several answers to one question, decoded together; on the worker thread.

Each is what a `/retry` of its own would have given: it has the seed that it would have had then.
All of them stand in the tree, and what the cache holds of each is kept as a branch, so that going
on with any of them reads none of it again.
"""

import copy
from dataclasses import replace

from mlxchat.chat.answering import Answer
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.reading import Reading, prefill
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import Alternatives, BatchProgress, Notice, TurnResult
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.batch import Batch, can_batch
from mlxchat.engine.reuse_plan import Plan
from mlxchat.engine.sampling import Sampler
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import MemoryShortError
from mlxchat.model.batch_cache import Strand

_End = Answer | Exception  # what became of one answer


def _mute(context: JobContext) -> JobContext:
    """Returns a job's context for rows whose text is shown when all rows have ended."""

    def hand_on(event: object) -> None:
        if isinstance(event, Notice):
            context.emit(event)

    return context.redirect(hand_on)


def answer_many(
    runner: TurnRunner,
    conversation: Conversation,
    request: TurnRequest,
    context: JobContext,
    count: int,
) -> Alternatives:
    """Answers a question several times; the head is then the first answer.

    Args:
        runner: Of the model.
        conversation: Its head is where the question goes.
        request: The turn.
        context: The job's.
        count: How many answers.

    Raises:
        JobCancelledError: Stopped before any had ended; nothing is kept.
        Exception: Every answer failed; what ended the first. Otherwise those that came are kept.
    """
    reading = runner.read(conversation, request, context)
    runner.engine.speculator = None  # a batch takes one token of each row at a time
    question = request.question
    begun = _readings(reading, count)
    # One by one each would come a message later than the one before, after the question too.
    later = range(count) if question is None else (0, *range(2, count + 1))
    ids, prompt = reading.token_ids, reading.prompt
    samplers = [runner.make_sampler(conversation, ids, num, prompt) for num in later]
    # Where the thinking must be closed, a row is fed what the others are not.
    can = can_batch(runner.engine, [len(reading.token_ids)]) and not runner.options.think_budget
    decode = _decode_together if can else _decode_in_turn
    found = decode(runner, begun, samplers, context)
    errors = [end for end in found if isinstance(end, Exception)]
    cancelled = [error for error in errors if isinstance(error, JobCancelledError)]
    if len(errors) == count:
        raise (cancelled or errors)[0]
    results: list[TurnResult] = []
    nodes: list[int | None] = []
    place = conversation.head
    for answer, read in zip(found, begun, strict=True):
        if isinstance(answer, Exception):
            continue
        num_before = len(conversation.nodes)
        conversation.head = place
        for text in runner.record(conversation, question, read, answer):
            context.emit(Notice(text))
        is_kept = len(conversation.nodes) > num_before
        nodes.append(conversation.head if is_kept else None)
        if is_kept and question is not None:
            place, question = conversation.nodes[conversation.head or 0].parent, None
        results.append(runner.report(read, answer))
    verify = None if cancelled else runner.verify(reading, context)
    results = [replace(result, verify=verify) for result in results]
    kept = [node for node in nodes if node is not None]
    conversation.head = kept[0] if kept else place
    return Alternatives(tuple(results), tuple(nodes), errors=tuple(errors))


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
    runner: TurnRunner, readings: list[Reading], samplers: list[Sampler], context: JobContext
) -> list[_End]:
    engine, (reading, *_), count = runner.engine, readings, len(readings)
    ids = reading.token_ids
    max_tokens, limit = runner.limit_of(len(ids))
    batch, strand = Batch(engine), Strand(engine.prefix.cache, len(ids))
    for sampler in samplers:
        batch.add(strand, reading.last_logits, sampler, max_tokens)
    muted = _mute(context)
    pairs = zip(readings, samplers, strict=True)
    decoders = [runner.make_decoder(read, muted, sampler) for read, sampler in pairs]
    fed = [list(ids) for _ in range(count)]
    num_tokens = [0] * count
    answers: dict[int, _End] = {}
    check = context.check
    if runner.options.checks_memory:
        check = runner.memory.watch_batch(batch, check)
    try:
        for token in batch.decode(check):
            row = token.row
            num_tokens[row] += 1
            if token.is_fed:
                fed[row].append(token.token_id)
            try:
                if token.problem is not None:
                    raise token.problem
                reason = decoders[row].step(token.token_id)
                if reason is None and num_tokens[row] == max_tokens:
                    reason = limit
                if reason is not None:
                    answers[row] = decoders[row].finish(reason)
                    engine.prefix.add_branch(batch.take(row), fed[row])
            except Exception as error:  # the other answers can do without this one
                answers[row] = error
            if row in answers:
                batch.end(row)
            if row == count - 1 or row in answers:
                context.emit(BatchProgress(len(answers), count, sum(num_tokens)))
    except JobCancelledError as error:  # those that have ended stay
        return [answers.get(row, error) for row in range(count)]
    except MemoryShortError as error:  # nor is there room for what the cache holds of each
        context.emit(Notice(str(error)))
        for row in set(range(count)) - answers.keys():
            try:
                answers[row] = decoders[row].finish("context_full")
            except Exception as problem:  # as above
                answers[row] = problem
    return [answers[row] for row in range(count)]


def _decode_in_turn(
    runner: TurnRunner, readings: list[Reading], samplers: list[Sampler], context: JobContext
) -> list[_End]:
    """Decodes one by one what cannot be decoded together."""
    engine, ids, logits = runner.engine, readings[0].token_ids, readings[0].last_logits
    max_tokens, limit = runner.limit_of(len(ids))
    muted, answers, num_tokens = _mute(context), list[_End](), 0
    for row, (read, sampler) in enumerate(zip(readings, samplers, strict=True)):
        try:
            if row:
                plan = engine.prefix.plan(ids)
                engine.prefix.apply(plan, keep_branch=True)
                logits = prefill(engine, ids, plan, muted)
            decoder = runner.make_decoder(read, muted, sampler)
            answer = decoder.run(logits, sampler, max_tokens=max_tokens, limit=limit)
            context.check()  # what Ctrl-C cut off is no answer to choose
            num_tokens += len(answer.tokens)
            answers.append(answer)
        except JobCancelledError as error:
            return [*answers, *[error] * (len(readings) - row)]
        except Exception as error:  # as above
            answers.append(error)
        context.emit(BatchProgress(row + 1, len(readings), num_tokens))
    return answers
