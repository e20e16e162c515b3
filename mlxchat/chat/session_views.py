"""What a conversation tells of itself: its sampling, its size, what its model and cache hold.

Nothing here changes what the next turn is given.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mlxchat.chat.session_base import SessionBase
from mlxchat.engine.worker import Job, JobContext

if TYPE_CHECKING:
    from mlxchat.chat.live_text import LiveText
    from mlxchat.chat.views import ContextView, TokenPiece
    from mlxchat.engine.prefix_cache import CacheReport

T = TypeVar("T")


class SessionViews(SessionBase):
    """The part of `Session` that only looks."""

    def resolve_sampling(self) -> tuple[dict[str, float], frozenset[str]] | None:
        """Tells how the next answer is sampled.

        Returns:
            All values by the names of `SamplingSettings`, and the names that the model's
            generation_config.json decides where the options leave them open; None before the
            model is loaded.
        """
        return None if self._runner is None else self._runner.resolve_sampling()

    def count_tokens(self, text: str) -> int | None:
        """Counts the tokens of a text; None before the model is loaded."""
        # Not a job: it needs no MLX, and a job would end the work that is done in idle time.
        return None if self._runner is None else len(self._runner.tokenizer.encode(text))

    def last_answer(self) -> str | None:
        """Returns the text of the last answer on the current branch."""
        messages = self.conversation.messages()
        return next((m.content for m in reversed(messages) if m.role == "assistant"), None)

    def question_text(self, turn: int | None = None) -> str:
        """Returns the message of a turn of the current branch, or of the last.

        Raises:
            UsageError: There is no such turn.
        """
        return self.conversation.question(turn).message.content

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

    @property
    def num_turns(self) -> int:
        """Questions on the current branch."""
        return len(self.conversation.questions())

    @property
    def context_used(self) -> int:
        """Tokens of the conversation that the cache holds."""
        if self._runner is None or self.conversation.head is None:
            return 0
        return self._runner.num_cached - self._runner.ahead.num_ids

    def cache_report(self) -> "CacheReport | None":
        """Describes what the cache holds; None before the model is loaded."""
        if self._runner is None:
            return None
        runner = self._runner
        return self._worker.run(lambda _: runner.engine.prefix.report())

    def look(self, work: "Callable[[LiveText], T]") -> "Job[T]":
        """Looks inside while the conversation goes on; the next turn stays as it is.

        Args:
            work: Runs on the worker; returns plain data.
        """
        conversation = self.conversation

        def job(context: JobContext) -> T:
            runner = self._load_runner(context)
            from mlxchat.chat.live_text import read_live

            try:
                return work(read_live(runner, conversation, context.check))
            finally:
                self._settle_when_idle()

        return self._worker.submit(job)

    def view_context(self) -> "Job[ContextView]":
        """Returns what fills the context; loads the model first."""

        def job(context: JobContext) -> "ContextView":
            runner = self._load_runner(context)
            from mlxchat.chat.views import view_context

            conversation = self.conversation
            try:
                messages = runner.messages(conversation)
                return view_context(runner.renderer, conversation, messages, runner.context_limit)
            finally:
                self._settle_when_idle()

        return self._worker.submit(job)

    def list_tokens(self, text: str | None) -> "Job[list[TokenPiece]]":
        """Returns the ids of a text, or of the last message (None); loads the model first."""

        def job(context: JobContext) -> "list[TokenPiece]":
            runner = self._load_runner(context)
            from mlxchat.chat.views import list_pieces

            return list_pieces(runner.renderer, self.conversation.messages(), text)

        return self._worker.submit(job)
