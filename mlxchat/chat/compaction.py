"""The oldest turns become one summary, which the model writes; on the worker thread.

The compacted conversation is a branch of its own: the request for a summary, the summary as the
model's answer to it, then copies of the newest turns. So roles alternate as every template wants
them, and the branch with all that was said stays in the tree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mlxchat.chat.answering import AnswerDecoder
from mlxchat.chat.conversation import Conversation, Node, Origin
from mlxchat.chat.prompt import PromptRenderer
from mlxchat.chat.reading import prefill
from mlxchat.chat.reasoning import Split
from mlxchat.chat.results import Compaction, StopReason, SummaryProgress, TextDelta
from mlxchat.chat.template import Message
from mlxchat.chat.turn import TurnRunner
from mlxchat.counts import format_count
from mlxchat.engine.timing import Stopwatch
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import ContextFullError, MlxchatError

REQUEST = (
    "Summarise our conversation so far, so that you can go on without it: facts, names, numbers,"
    " decisions, code still needed, open questions. Write only the summary."
)
# A summary takes at most this share of the context, and no more tokens than that.
_SUMMARY_SHARE, _MAX_SUMMARY = 4, 1024
# What is compacted takes at most this share of the context.
_FULL = 7 / 8


@dataclass(frozen=True, slots=True)
class _Written:
    """A summary as the model wrote it."""

    split: Split
    stop_reason: StopReason


class Compactor:
    """Compacts one conversation once.

    Args:
        runner: The model.
        conversation: What is compacted.
        context: The job's.
    """

    def __init__(self, runner: TurnRunner, conversation: Conversation, context: JobContext) -> None:
        self._runner, self._conversation, self._context = runner, conversation, context
        self._renderer: PromptRenderer = runner.make_renderer(False)
        self._limit = runner.context_limit
        self._room = max(min(self._limit // _SUMMARY_SHARE, _MAX_SUMMARY), 1)
        system = conversation.system
        self._system = [Message("system", system)] if system else []

    def run(self, num_kept: int) -> Compaction:
        """Summarises all but the newest turns and moves to the new branch.

        Args:
            num_kept: Turns that stay as they are; fewer where they would fill the context.

        Raises:
            MlxchatError: There is nothing to summarise, or no summary came of it.
            JobCancelledError: Ctrl-C; the conversation is as it was.
        """
        old_head, turns = self._conversation.head, split_turns(self._conversation.path())
        if not turns or old_head is None:
            raise MlxchatError("there is no turn to summarise; say something first")
        num_kept = min(num_kept, len(turns) - 1)
        while num_kept and not self._leaves_room(turns[-num_kept:]):
            num_kept -= 1
        old, kept = turns[: len(turns) - num_kept], turns[len(turns) - num_kept :]
        before = self._count(self._runner.messages(self._conversation))
        stored, written = self._summarise(old)
        self._context.check()
        after = self._move(stored, written, kept)
        return Compaction(stored.content, len(old), before, after, old_head)

    def _summarise(self, turns: list[list[Node]]) -> tuple[Message, _Written]:
        """Summarises turns, in several steps where they do not fit into the context together."""
        said = [[node.message for node in turn] for turn in turns]
        head: list[Message] = []
        while True:
            size = self._largest(head, said)
            if not size:
                said[0] = self._shorten(head, said[0])
                size = 1
            written = self._write(self._asked(head, said[:size]))
            messages = [*self._system, Message("user", REQUEST)]
            prompt = self._renderer.render_ids(messages)
            stored = self._renderer.stored_answer(messages, prompt, written.split)
            if not stored.content.strip():
                raise MlxchatError(
                    "the model wrote no summary, nothing was changed; try again, or another /model"
                )
            said = said[size:]
            if not said:
                return stored, written
            head = [Message("user", REQUEST), stored]

    def _largest(self, head: list[Message], turns: list[list[Message]]) -> int:
        return largest(len(turns), lambda n: self._fits(head, turns[:n]))

    def _asked(self, head: list[Message], turns: list[list[Message]]) -> list[Message]:
        said = [message for turn in turns for message in turn]
        return [*self._system, *head, *said, Message("user", REQUEST)]

    def _fits(self, head: list[Message], turns: list[list[Message]]) -> bool:
        """Whether turns can be read with room for a summary."""
        return self._count(self._asked(head, turns)) + self._room <= self._limit

    def _shorten(self, head: list[Message], turn: list[Message]) -> list[Message]:
        """Takes the middle out of the messages of a turn that is too long to be read.

        Raises:
            ContextFullError: The context is too small for the request itself.
        """

        def cut(size: int) -> list[Message]:
            return [Message(m.role, cut_middle(m.content, size)) for m in turn]

        longest = max(len(message.content) for message in turn)
        size = largest(longest, lambda n: self._fits(head, [cut(n)]))
        if not size:
            raise ContextFullError(
                f"a context of {format_count(self._limit)} tokens is too small for a summary; take"
                " turns back with /undo, or start over with /reset"
            )
        return cut(size)

    def _write(self, messages: list[Message]) -> _Written:
        """Has the model answer the request at the end of some messages."""
        runner, context, engine = self._runner, self._context, self._runner.engine
        prompt = self._renderer.render_ids(messages)
        if not runner.reuses:
            engine.prefix.reset()
        plan = engine.prefix.plan(prompt.token_ids)
        engine.prefix.apply(plan, keep_branch=True)
        logits = prefill(engine, prompt.token_ids, plan, context)
        splitter = self._renderer.splitter(prompt)
        decoder = AnswerDecoder(
            engine,
            runner.tokenizer,
            splitter,
            (),
            Stopwatch(),
            _counting(context),
            think_budget=self._room // 2,  # where thinking cannot be switched off
        )
        sampler = runner.make_sampler(self._conversation, prompt.token_ids)
        answer = decoder.run(logits, sampler, max_tokens=self._room, limit="token_limit")
        if answer.stop_reason == "user_cancelled":
            raise JobCancelledError
        split = replace(answer.split, reasoning=None, reasoning_ids=(), opened=None)
        return _Written(split, answer.stop_reason)

    def _move(self, stored: Message, written: _Written, kept: list[list[Node]]) -> int:
        """Adds the new branch and goes there; returns the length of its prompt."""
        conversation, nodes = self._conversation, [node for turn in kept for node in turn]
        messages = [*self._system, Message("user", REQUEST), stored]
        after = self._count([*messages, *(node.message for node in nodes)])
        conversation.head = None
        conversation.append(Message("user", REQUEST))
        origin = Origin(self._runner.loaded.fingerprint, written.stop_reason)
        conversation.append(stored, origin)
        for node in nodes:
            conversation.append(node.message, node.origin)
        return after

    def _leaves_room(self, kept: list[list[Node]]) -> bool:
        """Whether turns can stay beside a summary, with room for what comes after them."""
        messages = [node.message for turn in kept for node in turn]
        summary = [Message("user", REQUEST), Message("assistant", "So far")]
        count = self._count([*self._system, *summary, *messages]) + self._room
        return count <= self._limit * _FULL

    def _count(self, messages: list[Message]) -> int:
        prompt = self._renderer.render_ids(messages, add_generation_prompt=False)
        return len(prompt.token_ids)


def split_turns(path: list[Node]) -> list[list[Node]]:
    """Returns the messages of a path by turns, each from its question to the next one."""
    turns: list[list[Node]] = []
    for node in path:
        if node.message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(node)
    return turns


def largest(limit: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number from 1 to a limit that fits, 0 where none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def cut_middle(text: str, num_chars: int) -> str:
    """Returns a text with so many of its characters, the first and the last ones."""
    if len(text) <= num_chars:
        return text
    last = num_chars // 2
    return f"{text[: num_chars - last]} […] {text[len(text) - last :]}"


def _counting(context: JobContext) -> JobContext:
    """Returns a job's context that tells a summary from an answer, and how far it has come."""
    num_chars = 0

    def hand_on(event: object) -> None:
        nonlocal num_chars
        if isinstance(event, TextDelta):
            num_chars += len(event.text)
            event = SummaryProgress(num_chars, event.text)
        context.emit(event)

    return context.redirect(hand_on)
