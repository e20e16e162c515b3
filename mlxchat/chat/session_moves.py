"""Moves in the message tree: back, elsewhere, to another branch, to a summary.

Nothing that was said is lost by a move; what the cache holds of a branch left behind is stashed.
"""

from typing import TYPE_CHECKING

from mlxchat.chat.conversation import Branch
from mlxchat.chat.results import Alternatives
from mlxchat.chat.session_base import SessionBase
from mlxchat.engine.worker import Job, JobContext
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.results import Compaction


class SessionMoves(SessionBase):
    """The part of `Session` that moves in the tree."""

    def undo(self, count: int = 1) -> int:
        """Takes the last turns back; returns how many."""
        taken = self.conversation.undo(count)
        self._leave_branch("/undo")
        return taken

    def goto(self, node_id: int) -> int:
        """Moves to any message of the tree; returns the number of turns before that place.

        Raises:
            UsageError: There is no such message.
        """
        self.conversation.goto(node_id)
        self._leave_branch("/goto")
        return len(self.conversation.questions())

    def fork(self) -> int:
        """Starts another branch here; returns the number under which `goto` finds this place.

        Raises:
            UsageError: Nothing was said yet.
        """
        if self.conversation.head is None:
            raise UsageError("nothing was said yet; say something first")
        self._changes.left_branch = True
        return self.conversation.head

    def tree(self) -> list[Branch]:
        """Returns the messages of all branches, in the order in which they are drawn."""
        return list(self.conversation.branches())

    def _leave_branch(self, cause: str) -> None:
        """After a move: what the cache holds of the branch left behind is stashed, not dropped."""
        self._changes.left_branch = True
        self._changes.note(cause)
        self._worker.cancel_idle()
        self._settle_when_idle()
        if self.recorder is not None:
            self.recorder.note_move()

    def compact(self, num_kept: int) -> "Job[Compaction]":
        """Has the model summarise all but the newest turns; the old branch stays in the tree.

        Args:
            num_kept: Turns that stay as they are.
        """
        conversation = self.conversation

        def job(context: JobContext) -> "Compaction":
            runner = self._load_runner(context)
            from mlxchat.chat.compaction import Compactor

            self._changes.left_branch = True
            self._changes.note("/compact")
            try:
                result = Compactor(runner, conversation, context).run(num_kept)
            finally:
                self._settle_when_idle()
            if self.recorder is not None:
                self.recorder.note_tree(self.options, self.model_name)
            return result

        return self._worker.submit(job)

    def choose(self, offered: Alternatives, number: int) -> None:
        """Goes on with one of several answers.

        Args:
            offered: By `retry_many`.
            number: Counted from 1; 0 is the answer that was there before.
        """
        node = offered.nodes[number - 1] if number else offered.old
        if node is not None and node != self.conversation.head:
            self.conversation.goto(node)
            self._leave_branch("/retry")
        if number:
            self.last = offered.results[number - 1]
