"""What is done while nobody waits: the cache brought to the next turn, and prefixes stored.

Runs on the worker thread, and gives way within one chunk.
"""

from typing import TYPE_CHECKING

from mlxchat.chat.continuation import CUT_OFF, begun_ids
from mlxchat.chat.conversation import Conversation, Node
from mlxchat.engine.token_ids import count_common
from mlxchat.engine.worker import JobCancelledError, JobContext
from mlxchat.errors import TemplateError

if TYPE_CHECKING:
    from mlxchat.chat.turn import TurnRunner
    from mlxchat.engine.prefix_cache import Stash


class IdleWork:
    """Does a runner's work in idle time.

    Args:
        runner: Renders, plans and feeds.
    """

    def __init__(self, runner: "TurnRunner") -> None:
        self._runner = runner
        self.num_settled = 0  # ids read in idle time since the last turn
        # An answer that was cut off, as it was generated, and its place in the tree: for /continue.
        self._cut_off: tuple[Stash, int] | None = None

    def take_num_settled(self) -> int:
        """Returns how many ids were read in idle time since the last call."""
        num_settled, self.num_settled = self.num_settled, 0
        return num_settled

    def settle(
        self,
        conversation: Conversation,
        context: JobContext,
        *,
        keep_branch: bool = False,
        cause: str = "",
    ) -> None:
        """Brings the cache to what the next turn will begin with.

        Args:
            conversation: Where the person is.
            context: The job's.
            keep_branch: As in `TurnRequest`.
            cause: As there.
        """
        runner = self._runner
        if self._cut_off is not None and self._cut_off[1] != conversation.head:
            runner.engine.prefix.drop_stash(self._cut_off[0])
            self._cut_off = None
        if not context.cancelled:
            runner.meter.measure_bandwidth(runner.loaded)
        if not runner.reuses or conversation.head is None:
            return
        messages = runner.messages(conversation)
        target = runner.renderer.settle_target(messages)
        runner.reasons.is_respelled = runner.renderer.respells_last(messages)
        if not target or len(target) >= runner.context_limit:
            return
        runner.ahead.forget()
        try:
            context.check()
            self._settle(target, conversation, context, keep_branch, cause)
        except JobCancelledError:
            return

    def _find_continuation(
        self, conversation: Conversation, node: Node, target: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Returns where /continue will leave the ids of the next turn, if it goes on from there.

        A stop string is in the ids that it goes on with, and not in those of the next turn.
        """
        runner = self._runner
        if runner.engine.prefix.is_trimmable:
            return ()
        try:
            prompt = runner.renderer.render_ids(runner.messages(conversation)[:-1])
        except TemplateError:
            return ()
        whole = (*prompt.token_ids, *begun_ids(node, runner.renderer, prompt))
        return (min(count_common(target, whole), len(whole) - 1),)

    def _settle(
        self,
        target: tuple[int, ...],
        conversation: Conversation,
        context: JobContext,
        keep_branch: bool,
        cause: str,
    ) -> None:
        runner, prefix = self._runner, self._runner.engine.prefix
        node = conversation.nodes[conversation.head or 0]
        is_cut = node.origin is not None and node.origin.stop_reason in CUT_OFF
        marks = [len(target)]
        if is_cut:
            marks += self._find_continuation(conversation, node, target)
        plan = prefix.plan(target, marks=marks, leave=0)
        is_empty, lost = not plan.num_held, plan.num_held - plan.start
        plan = runner.keeping.restore(target, plan, context.check, leave=0, keep_branch=keep_branch)
        if is_empty and not plan.start:  # a conversation of the history goes on
            runner.reasons.note_nothing_stored(cause)
        left = prefix.apply(plan, keep_branch=keep_branch or is_cut)
        if is_cut and left is not None and not keep_branch:
            self._cut_off = left, node.id
        runner.pin(plan.start)
        before = len(prefix.token_ids)
        try:
            runner.engine.prefill(target, plan, check=context.check)
        finally:
            num_read = max(len(prefix.token_ids) - before, 0)
            self.num_settled += num_read
            if lost > 1:
                runner.reasons.note_lost(lost, num_read, cause)

    def keep_prompts(
        self, conversation: Conversation, context: JobContext, *, whole: bool, owner: str = ""
    ) -> None:
        """Stores what was computed, as far as the context lets it; the rest waits for another call.

        Args:
            conversation: Where the person is.
            context: The job's.
            whole: More than the system prompt.
            owner: Number of the conversation in the history.
        """
        runner = self._runner
        if not runner.reuses:
            return
        try:
            runner.keeping.keep_system(context.check)
            if whole and conversation.head is not None:
                target = runner.renderer.settle_target(runner.messages(conversation))
                runner.keeping.keep_conversation(target, owner, context.check)
        except JobCancelledError:
            return
