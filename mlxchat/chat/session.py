"""A conversation with a model: turns, moves in the message tree, work in idle time.

The session belongs to the main thread, which must never touch MLX: everything that does runs as a
job on the worker (`turn.py`), and the main thread only hands in text and takes events out.
Importing this module costs nothing; the engine side is imported by the first job.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlxchat.chat.conversation import Branch, Conversation
from mlxchat.chat.results import LoadProgress, SessionInfo, TurnResult
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.worker import Job, JobContext, Worker
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.turn import TurnRunner
    from mlxchat.engine.prefix_cache import CacheReport


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a person may set about a conversation; None leaves the choice to the model.

    Attributes:
        max_tokens: Longest answer; None lets it fill the context.
        max_context: Tokens that prompt and answer may take together.
        think: Thinking on or off, where the template has a switch.
        keep_thinking: Earlier thinking stays in the prompt, where the template can.
        verify: Compare every turn with a from-scratch prefill.
        idle_work: After an answer, bring the cache to what the next turn will render.
    """

    system: str | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    max_context: int | None = None
    think: bool | None = None
    keep_thinking: bool = False
    verify: bool = False
    idle_work: bool = True


class Session:
    """One conversation with one model.

    Args:
        model: A folder, a Hub id, or None for the built-in model.
        options: How to answer.
    """

    def __init__(self, model: str | None, options: ChatOptions) -> None:
        self.model = model
        self.options = options
        self.conversation = Conversation(options.system)
        self.info: SessionInfo | None = None
        self.last: TurnResult | None = None
        self._worker = Worker()
        self._runner: TurnRunner | None = None
        self._keep_branch = False

    # -- loading -----------------------------------------------------------------------------------

    def load(self) -> Job[SessionInfo]:
        """Loads the model in the background; a second call finds it loaded."""
        return self._worker.submit(self._load)

    def _load(self, context: JobContext) -> SessionInfo:
        if self.info is None:
            from mlxchat.model.device import load_mlx

            load_mlx()
            from mlxchat.chat.turn import load_runner

            def report(event: LoadProgress) -> None:
                context.check()
                context.emit(event)

            options = self.options
            self._runner, self.info = load_runner(self.model, options, report, context.check)
            if self.options is not options:  # a command changed them meanwhile
                self._runner.set_options(self.options)
        return self.info

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
        return self._turn(None, lambda: question.id, keep_branch=True)

    def edit(self, turn: int | None, text: str) -> Job[TurnResult]:
        """Puts another question in the place of a turn's (None: the last) and answers it.

        Raises:
            UsageError: There is no such turn.
        """
        place = self.conversation.question(turn).parent
        return self._turn(text, lambda: place, keep_branch=True)

    def _turn(
        self,
        question: str | None,
        find_head: Callable[[], int | None],
        *,
        keep_branch: bool = False,
    ) -> Job[TurnResult]:
        """Queues a turn; where it goes is asked when it runs, after the turns before it."""
        start = time.perf_counter()
        branch = self._keep_branch or keep_branch
        self._keep_branch = False

        def job(context: JobContext) -> TurnResult:
            loading = time.perf_counter()
            self._load(context)
            loaded_s = time.perf_counter() - loading
            assert self._runner is not None
            before, head = self.conversation.head, find_head()
            self.conversation.head = head
            try:
                self.last = self._runner.run(
                    self.conversation,
                    question,
                    context,
                    start=start + loaded_s,
                    keep_branch=branch,
                )
            finally:
                if self.conversation.head == head:  # the turn was not kept
                    self.conversation.head = before
            self._settle_when_idle()
            return self.last

        return self._worker.submit(job)

    def _settle_when_idle(self) -> None:
        """Has the cache brought to what the next turn will begin with, in the background."""
        runner, branch = self._runner, self._keep_branch
        if runner is not None and self.options.idle_work:
            self._worker.submit(
                lambda context: runner.settle(self.conversation, context, keep_branch=branch),
                idle=True,
            )

    # -- moves in the tree -------------------------------------------------------------------------

    def undo(self, count: int = 1) -> int:
        """Takes the last turns back; returns how many."""
        taken = self.conversation.undo(count)
        self._leave_branch()
        return taken

    def goto(self, node_id: int) -> int:
        """Moves to any message of the tree; returns the number of turns before that place.

        Raises:
            UsageError: There is no such message.
        """
        self.conversation.goto(node_id)
        self._leave_branch()
        return self.num_turns

    def fork(self) -> int:
        """Starts another branch here; returns the number under which `goto` finds this place.

        Raises:
            UsageError: Nothing was said yet.
        """
        if self.conversation.head is None:
            raise UsageError("nothing was said yet; say something first")
        self._keep_branch = True
        return self.conversation.head

    def tree(self) -> list[Branch]:
        """Returns the messages of all branches, in the order in which they are drawn."""
        return list(self.conversation.branches())

    def _leave_branch(self) -> None:
        """After a move: what the cache holds of the branch left behind is stashed, not dropped."""
        self._keep_branch = True
        self._worker.cancel_idle()
        self._settle_when_idle()

    def set_system(self, text: str | None) -> None:
        """Sets the system prompt; it takes effect with the next turn."""
        self.conversation.system = text or None

    def set_thinking(self, think: bool | None) -> list[str]:
        """Turns thinking on or off from the next turn on; None is the template's own default.

        Returns:
            What the template had to say, such as that it has no switch.
        """
        self.options = replace(self.options, think=think)
        if self._runner is None:
            return []
        runner, options = self._runner, self.options
        return self._worker.run(lambda _: runner.set_options(options))

    def count_rereads(self) -> tuple[int, int] | None:
        """Tells what a change of system prompt, thinking or branch costs.

        Returns:
            Ids of the conversation that the next turn reads again, and ids in all; None before
            anything is cached.
        """
        if self._runner is None or not self._runner.num_cached:
            return None
        runner, conversation = self._runner, self.conversation
        return self._worker.run(lambda _: runner.count_rereads(conversation))

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.conversation.system

    def reset(self) -> None:
        """Empties the conversation; the system prompt stays."""
        self._worker.cancel_idle()
        self.conversation.reset()
        self.last = None

    # -- what is shown -----------------------------------------------------------------------------

    @property
    def num_turns(self) -> int:
        """Questions on the current branch."""
        return len(self.conversation.questions())

    @property
    def context_used(self) -> int:
        """Tokens of the conversation that the cache holds."""
        if self._runner is None or self.conversation.head is None:
            return 0
        return self._runner.num_cached

    def cache_report(self) -> "CacheReport | None":
        """Describes what the cache holds; None before the model is loaded."""
        if self._runner is None:
            return None
        runner = self._runner
        return self._worker.run(lambda _: runner.engine.prefix.report())

    def wait_until_idle(self, timeout_s: float = 60.0) -> None:
        """Waits for background work; for tests and measurements."""
        self._worker.submit(lambda _: None, idle=True).result(timeout_s)

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()


def pick_seed() -> int:
    """Returns a seed that nobody chose."""
    return int.from_bytes(os.urandom(4), "little")
