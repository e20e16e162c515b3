"""Type-ahead: what a person is writing is read while it is being written.

The part of a draft that stays whatever follows is rendered as the next message and planned and fed
like every prompt, so the turn finds it by its ids alone: what was edited since is trimmed, and
nothing here can make an answer wrong. When the person pauses, the rest is read as if the draft had
been sent; where it is sent like this, the answer begins with no pass at all. It is read on the
worker, in idle time.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxchat.chat.draft import Draft, DraftCost, Typed, find_stable
from mlxchat.chat.reading import plan_prompt
from mlxchat.engine.token_ids import count_common
from mlxchat.engine.worker import JobCancelledError, JobContext

if TYPE_CHECKING:
    from mlxchat.chat.conversation import Conversation
    from mlxchat.chat.template import Message
    from mlxchat.chat.turn import TurnRunner
    from mlxchat.engine.engine import Logits
    from mlxchat.engine.reuse_plan import Plan


class ReadAhead:
    """Reads drafts into a runner's live sequence and knows what it holds of them.

    Lives on the worker thread; only `estimate` and `num_ids` may be called by others.

    Args:
        runner: Renders, plans and feeds.
    """

    def __init__(self, runner: "TurnRunner") -> None:
        self._runner = runner
        self._start: int | None = None  # where the ids begin that were read of the draft
        self._mark: int | None = None  # where the part ends that stays, once more was read
        self._whole: tuple[tuple[int, ...], Logits] | None = None  # a prompt that was read whole
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

    def take_logits(self, token_ids: tuple[int, ...]) -> "Logits | None":
        """Returns the logits (1, V) after a prompt that was read whole; None for all others."""
        whole, self._whole = self._whole, None
        if whole is None or whole[0] != token_ids:
            return None
        held = self._runner.engine.prefix.token_ids
        return whole[1] if tuple(held) == token_ids else None

    def forget(self) -> None:
        """The live sequence goes somewhere else."""
        self._start = self._mark = self._whole = None

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
        typed: Typed | None = None
        try:
            while (typed := draft.follow(typed)) is not None:
                context.check()
                try:
                    self._follow(draft, typed, conversation, context.check, keep_branch)
                except JobCancelledError:
                    context.check()
        except JobCancelledError:
            return
        finally:
            draft.leave()

    def _follow(
        self,
        draft: Draft,
        typed: Typed,
        conversation: "Conversation",
        check: Callable[[], None],
        keep_branch: bool,
    ) -> None:
        """Reads a draft as far as it stays, and to its end when the person has paused."""
        stable = find_stable(typed.text)

        def check_stable() -> None:
            check()
            if draft.newest is None or not draft.newest.text.startswith(stable):
                raise JobCancelledError

        def check_whole() -> None:
            check()
            if draft.newest != typed:
                raise JobCancelledError

        end = self._read_stable(conversation, typed.text, stable, check_stable, keep_branch)
        if end and typed.is_still:
            self._read_whole(conversation, typed.text, end, check_whole)

    def _read_stable(
        self,
        conversation: "Conversation",
        text: str,
        stable: str,
        check: Callable[[], None],
        keep_branch: bool,
    ) -> int:
        """Reads what stays of a draft, with what stands before it; returns how many ids it has."""
        runner = self._runner
        prefix = runner.engine.prefix
        messages = self._list_messages(conversation)
        base = self._find_base(messages)
        target, system_end = runner.renderer.draft_target(messages, text, stable)
        if not target or len(target) >= runner.context_limit:
            return 0
        if count_common(prefix.token_ids, target) == len(target):
            return len(target)  # perhaps with words that were taken back: typing on decides
        check()
        plan = prefix.plan(target, marks=(system_end, base), leave=0)
        plan = runner.keeping.restore(target, plan, check, leave=0)
        self._go_to(plan, keep_branch=keep_branch and plan.start < base)
        if plan.start == base:
            prefix.mark()  # an edit must not cost more than the draft
        try:
            runner.engine.prefill(target, plan, check=check)
        finally:
            runner.idle.num_settled += max(min(len(prefix.token_ids), base) - plan.start, 0)
        return len(target)

    def _read_whole(
        self,
        conversation: "Conversation",
        text: str,
        stable_end: int,
        check: Callable[[], None],
    ) -> None:
        """Reads a draft as a turn would read it if it were sent now.

        Where typing on will go on, at `stable_end`, a mark is taken; one from an earlier pause is
        needed no longer.
        """
        runner, prefix = self._runner, self._runner.engine.prefix
        messages = runner.messages(conversation, text)
        prompt = runner.renderer.render_ids(messages)
        token_ids = prompt.token_ids
        if len(token_ids) >= runner.context_limit or prefix.token_ids == list(token_ids):
            return
        check()
        plan = plan_prompt(runner, messages, prompt, token_ids, (stable_end,))
        self._go_to(plan)
        if plan.start == stable_end:
            prefix.mark()
        try:
            logits = runner.engine.prefill(token_ids, plan, check=check)
        finally:
            if self._mark is not None and self._mark != stable_end:
                prefix.drop_mark(self._mark)
            self._mark = stable_end if stable_end > self._base else None
        assert logits is not None  # the plan left an id
        self._whole = token_ids, logits

    def _go_to(self, plan: "Plan", *, keep_branch: bool = False) -> None:
        """Brings the live sequence to where a draft is read on."""
        runner, base = self._runner, self._base
        runner.engine.prefix.apply(plan, keep_branch=keep_branch)
        runner.pin(min(plan.start, base))
        begins_at = max(plan.start, base)
        if self._start is None or plan.action in ("resume", "load"):
            self._start = begins_at
        self._start = min(self._start, begins_at)

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
