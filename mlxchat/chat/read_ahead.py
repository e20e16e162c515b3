"""Type-ahead: what a person is writing is read while it is being written.

The part of a draft that stays whatever follows is rendered as the next message and planned and fed
like every prompt, so the turn finds it by its ids alone: what was edited since is trimmed, and
nothing here can make an answer wrong. A draft is handed over by any thread; it is read on the
worker, in idle time.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxchat.engine.token_ids import count_common
from mlxchat.engine.worker import Job, JobCancelledError, JobContext

if TYPE_CHECKING:
    from mlxchat.chat.conversation import Conversation
    from mlxchat.chat.template import Message
    from mlxchat.chat.turn import TurnRunner
    from mlxchat.engine.prefix_cache import Plan

# No word that is still being written is longer, and languages without blanks have no other end.
_LAST_WORD_CHARS = 24


@dataclass(frozen=True, slots=True)
class DraftCost:
    """What it would cost to send a draft.

    Attributes:
        num_tokens: Of the message.
        seconds: To read what is not read yet, at the measured rate; None before there is one.
        context_share: How full the context would be.
    """

    num_tokens: int
    seconds: float | None
    context_share: float


def find_stable(draft: str) -> str:
    """Returns a draft without its last word, which may still grow, and the blanks before it."""
    start = max(len(draft) - _LAST_WORD_CHARS, 0)
    blanks = [at for at in range(start, len(draft)) if draft[at].isspace()]
    return draft[: blanks[-1] if blanks else start].rstrip()


class Draft:
    """The newest draft; whoever reads it looks here for a newer one before leaving."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text: str | None = None
        self._job: Job[None] | None = None
        self._is_left = False

    @property
    def text(self) -> str | None:
        """The newest draft; None when it was sent."""
        return self._text

    def put(self, text: str, submit: Callable[[], Job[None]]) -> None:
        """Takes a newer draft; `submit` starts a job that reads it, unless one is at it."""
        with self._lock:
            self._text = text
            if self._job is None or self._job.done or self._is_left:
                self._is_left = False
                self._job = submit()

    def drop(self) -> None:
        """There is no draft any more: whoever reads it stops."""
        self._text = None

    def follow(self, seen: str | None) -> str | None:
        """Returns a draft that differs from `seen`; without one the reader is taken to leave."""
        with self._lock:
            if self._text is None or self._text == seen:
                self._is_left = True
                return None
            return self._text

    def leave(self) -> None:
        """The reader ends before it has read everything."""
        with self._lock:
            self._is_left = True


class ReadAhead:
    """Reads drafts into a runner's live sequence and knows what it holds of them.

    Lives on the worker thread; only `estimate` and `num_ids` may be called by others.

    Args:
        runner: Renders, plans and feeds.
    """

    def __init__(self, runner: "TurnRunner") -> None:
        self._runner = runner
        self._start: int | None = None  # where the ids begin that were read of the draft
        self._messages: list[Message] = []
        self._renderer: object = None
        self._base = 0  # ids of the next prompt before its message

    @property
    def num_ids(self) -> int:
        """Ids at the end of the live sequence that were read of a draft."""
        start = self._start
        return 0 if start is None else max(self._runner.num_cached - start, 0)

    def take(self, plan: "Plan") -> int | None:
        """Returns how many ids of a turn's prompt were read of its draft; they count once.

        Returns:
            None where no draft was read, or the turn goes somewhere else.
        """
        start, self._start = self._start, None
        is_live = plan.action in ("continue", "trim", "restore")
        return plan.start - start if start is not None and start <= plan.start and is_live else None

    def forget(self) -> None:
        """The live sequence goes somewhere else."""
        self._start = None

    def follow(
        self,
        draft: Draft,
        conversation: "Conversation",
        context: JobContext,
        *,
        keep_branch: bool = False,
    ) -> None:
        """Reads a draft, and newer ones that come meanwhile; gives way within one chunk.

        Args:
            draft: Where the newest one is.
            conversation: Its head is where the message will go.
            context: The job's.
            keep_branch: What the cache holds of a branch left behind may be wanted again.
        """
        text: str | None = None
        try:
            while (text := draft.follow(text)) is not None:
                context.check()
                stable = find_stable(text)

                def check(stable: str = stable) -> None:
                    context.check()
                    newest = draft.text
                    if newest is None or not newest.startswith(stable):
                        raise JobCancelledError

                try:
                    self._read(self._list_messages(conversation), text, stable, check, keep_branch)
                except JobCancelledError:
                    context.check()
        except JobCancelledError:
            return
        finally:
            draft.leave()

    def _read(
        self,
        messages: "list[Message]",
        text: str,
        stable: str,
        check: Callable[[], None],
        keep_branch: bool,
    ) -> None:
        runner = self._runner
        prefix = runner.engine.prefix
        base = self._find_base(messages)
        target, system_end = runner.renderer.draft_target(messages, text, stable)
        if not target or len(target) >= runner.context_limit:
            return
        if count_common(prefix.token_ids, target) == len(target):
            return  # held, perhaps with words that were taken back: typing on decides
        check()
        plan = prefix.plan(target, marks=(system_end, base), leave=0)
        plan = runner.keeping.restore(target, plan, check, leave=0)
        prefix.apply(plan, keep_branch=keep_branch and plan.start < base)
        if plan.start == base:
            prefix.mark()  # an edit must not cost more than the draft
        runner.pin(min(plan.start, base))
        begins_at = max(plan.start, base)
        if self._start is None or plan.action in ("resume", "load"):
            self._start = begins_at
        self._start = min(self._start, begins_at)
        try:
            runner.engine.prefill(target, plan, check=check)
        finally:
            runner.idle.num_settled += max(min(len(prefix.token_ids), base) - plan.start, 0)

    def _list_messages(self, conversation: "Conversation") -> "list[Message]":
        return self._runner.messages(conversation, question="")[:-1]

    def _find_base(self, messages: "list[Message]") -> int:
        renderer = self._runner.renderer
        if renderer is not self._renderer or messages != self._messages:
            self._base = len(renderer.settle_target(messages))
            self._renderer, self._messages = renderer, messages
        return self._base

    def estimate(self, num_tokens: int, conversation: "Conversation") -> DraftCost:
        """Tells what a message would cost; from any thread, without MLX.

        Args:
            num_tokens: Of the message.
            conversation: Its head is where the message would go.
        """
        runner, num_ahead = self._runner, self.num_ids
        before = runner.num_cached - num_ahead
        left = max(num_tokens - num_ahead, 0)
        # Elsewhere the base is that of another place.
        if self._base and self._list_messages(conversation) == self._messages:
            left += max(self._base - before, 0)
            before = self._base
        share = (before + num_tokens) / runner.context_limit
        return DraftCost(num_tokens, runner.engine.chunker.estimate_s(left), share)
