"""A conversation with a model: its turns, the draft of the next one, and their replay.

A session is one object in several files: `session_base.py` loads the model and ends the session,
the other `session_` files look, move in the tree, change settings, and keep the conversation.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxchat.chat.changes import Changes
from mlxchat.chat.continuation import find_cut_off
from mlxchat.chat.conversation import Conversation, Node
from mlxchat.chat.draft import DraftCost, Typed
from mlxchat.chat.history_writer import LiveTurn
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import Alternatives, ReplayedTurn, TurnResult
from mlxchat.chat.session_history import SessionHistory
from mlxchat.chat.session_moves import SessionMoves
from mlxchat.chat.session_settings import SessionSettings
from mlxchat.chat.session_views import SessionViews
from mlxchat.engine.worker import Job, JobCancelledError, JobContext

if TYPE_CHECKING:
    from mlxchat.chat.batch_lines import BatchLine
    from mlxchat.chat.warming import Warmed

__all__ = ["ChatOptions", "Session"]


@dataclass(slots=True)
class _Asked:
    """A turn on its way to the worker."""

    request: TurnRequest
    conversation: Conversation
    find_head: Callable[[], int | None]
    changes: Changes
    live: LiveTurn
    count: int | None


class Session(SessionViews, SessionMoves, SessionSettings, SessionHistory):
    """One conversation with one model.

    Args:
        model: A folder, a Hub id, or None for the built-in model.
        options: How to answer.
        recorder: Keeps what is said; None keeps nothing.
    """

    # -- turns -------------------------------------------------------------------------------------

    def send(self, text: str) -> Job[TurnResult]:
        """Answers a message."""
        return self._turn(text, lambda: self.conversation.head)

    def retry(self) -> Job[TurnResult]:
        """Answers the last question again; the old answer stays in the tree.

        Raises:
            UsageError: Nothing was said yet.
        """
        question = self.conversation.question()
        return self._turn(None, lambda: question.id, keep_branch=True, cause="/retry")

    def retry_many(self, count: int) -> Job[Alternatives]:
        """Answers the last question several times at once; the old answer stays in the tree.

        The head is then the first of them; `choose` takes another.

        Raises:
            UsageError: Nothing was said yet.
        """
        question = self.conversation.question()
        return self._turn(None, lambda: question.id, keep_branch=True, cause="/retry", count=count)

    def send_many(self, text: str, count: int) -> Job[Alternatives]:
        """Answers a message several times at once; the head is then the first answer."""
        return self._turn(text, lambda: self.conversation.head, count=count)

    def answer_lines(self, lines: "Sequence[BatchLine]", size: int) -> Job[None]:
        """Answers questions that have nothing to do with each other or with the conversation.

        The job emits a `LineAnswer` for each as soon as it is there.

        Args:
            lines: Without those that are broken.
            size: How many are decoded together.
        """

        def job(context: JobContext) -> None:
            runner = self._load_runner(context)
            from mlxchat.chat.batching import LineAnswerer

            LineAnswerer(runner, lines, size, context).run()

        self._turn_job = submitted = self._worker.submit(job)
        return submitted

    def go_on(self) -> Job[TurnResult]:
        """Goes on with the last answer, which was cut off; the shorter one stays in the tree.

        Raises:
            UsageError: There is none, or it ended by itself.
        """
        node = find_cut_off(self.conversation)
        return self._turn(None, lambda: node.parent, cut_off=node, cause="/continue")

    def edit(self, turn: int | None, text: str) -> Job[TurnResult]:
        """Puts another question in the place of a turn's (None: the last) and answers it.

        Raises:
            UsageError: There is no such turn.
        """
        place = self.conversation.question(turn).parent
        return self._turn(text, lambda: place, keep_branch=True, cause="/edit")

    def _turn(
        self,
        question: str | None,
        find_head: Callable[[], int | None],
        *,
        keep_branch: bool = False,
        cut_off: Node | None = None,
        cause: str = "",
        count: int | None = None,
    ) -> Job[Any]:
        """Queues a turn; where it goes is asked when it runs, after the turns before it."""
        start = time.perf_counter()
        self._draft.drop()
        changes = self._changes.take()
        changes.note(cause)
        request = TurnRequest(question, start, changes.left_branch or keep_branch, cut_off)
        conversation, num_before = self.conversation, len(self.conversation.nodes)
        model, system = self.model_name, conversation.system
        live = LiveTurn(question, find_head(), num_before, system, self.options, model, self.info)
        if cut_off is not None:
            live.begun = cut_off.message
        asked = _Asked(request, conversation, find_head, changes, live, count)
        self._turn_job = job = self._worker.submit(lambda context: self._answer(asked, context))
        # The worker reads the prompt while the question is written.
        return job if self.recorder is None else self.recorder.start(live, job)

    def _answer(self, asked: _Asked, context: JobContext) -> Any:
        """Runs a turn; where it comes to nothing, head and causes are as they were."""
        loading = time.perf_counter()
        runner = self._load_runner(context)
        loaded_s = time.perf_counter() - loading
        conversation, live, changes = asked.conversation, asked.live, asked.changes
        live.info = self.info
        before, head = conversation.head, asked.find_head()
        conversation.head = head
        num_before = len(conversation.nodes)
        start = asked.request.start + loaded_s
        request = replace(asked.request, start=start, cause=changes.cause)
        run = runner.run if asked.count is None else partial(runner.run_many, count=asked.count)
        try:
            result = run(conversation, request, context)
        except JobCancelledError:
            changes.note("a stopped turn")
            raise
        finally:
            if conversation.head == head:  # the turn was not kept
                conversation.head = before
                self._changes.give_back(changes)
        if isinstance(result, Alternatives):
            self.last, result = result.results[0], replace(result, old=before)
            live.split(result, conversation)
        else:
            self.last = result
            live.nodes = tuple(range(num_before + 1, len(conversation.nodes) + 1))
        self._settle_when_idle()
        return result

    def warm(self, system: str) -> "Job[Warmed]":
        """Reads a system prompt and stores it for later chats with this model."""

        def job(context: JobContext) -> "Warmed":
            runner = self._load_runner(context)
            from mlxchat.chat.warming import warm

            return warm(runner, system, context)

        return self._worker.submit(job)

    # -- the draft ---------------------------------------------------------------------------------

    def read_ahead(self, draft: str, *, is_still: bool = False) -> None:
        """Has the stable part of the next message read in idle time; any thread may call this.

        Args:
            draft: The message as far as it is written.
            is_still: The person has paused: all of it is read, and what the prompt ends with.
        """
        if self.options.idle_work:
            typed = Typed(draft, is_still)
            with contextlib.suppress(RuntimeError):  # the worker has just been closed
                self._draft.put(typed, lambda: self._worker.submit(self._follow_draft, idle=True))

    def _follow_draft(self, context: JobContext) -> None:
        runner = self._runner
        if runner is not None and runner.reuses:
            runner.ahead.follow(
                self._draft, self.conversation, context, keep_branch=self._changes.left_branch
            )

    def drop_draft(self) -> None:
        """Nothing is being written any more; what was read stays as long as it serves."""
        self._draft.drop()

    def estimate_cost(self, num_tokens: int) -> DraftCost | None:
        """Tells what a message of so many tokens would cost now; None before the model is loaded.

        Any thread may ask.
        """
        if self._runner is None:
            return None
        return self._runner.ahead.estimate(num_tokens, self.conversation)

    def replay(self, repetitions: int) -> "Job[list[ReplayedTurn]]":
        """Asks each turn of the conversation again, for its first token; the tree stays."""

        def job(context: JobContext) -> "list[ReplayedTurn]":
            runner = self._load_runner(context)
            from mlxchat.chat.replay import Replay

            return Replay(runner, self.conversation, context).run(repetitions)

        return self._worker.submit(job)
