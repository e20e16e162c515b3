"""A conversation, a model and the worker between them: loading, idle work, the end.

The session belongs to the main thread, which must never touch MLX: everything that does runs as a
job on the worker, and the main thread only hands in text and takes events out. Importing this
module costs nothing; the engine side is imported by the first job.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mlxchat.chat.changes import Changes
from mlxchat.chat.conversation import Conversation
from mlxchat.chat.draft import Draft
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.pause import AfterPause
from mlxchat.chat.results import SessionInfo, TurnResult
from mlxchat.engine.worker import Job, JobCancelledError, JobContext, Worker

if TYPE_CHECKING:
    from mlxchat.chat.recorder import Recorder
    from mlxchat.chat.turn import TurnRunner

# The conversation is stored when nothing was said for so long: seldom enough for the disk.
STORE_AFTER_S = 20.0
# Leaving waits so long for what is being stored.
LEAVE_S = 5.0


class SessionBase:
    """What all parts of a session work with.

    Args:
        model: A folder, a Hub id, or None for the built-in model.
        options: How to answer.
        recorder: Keeps what is said; None keeps nothing.

    Attributes:
        on_settled: Called, on the worker, when idle time has changed what the cache holds.
    """

    def __init__(
        self, model: str | None, options: ChatOptions, recorder: "Recorder | None" = None
    ) -> None:
        self.model = model
        self.options = replace(options, now=options.now or datetime.now())
        self.conversation = Conversation(options.system)
        self.recorder = recorder
        if recorder is not None:
            recorder.begin(self.conversation)
        self.info: SessionInfo | None = None
        self.last: TurnResult | None = None
        self.on_settled: Callable[[], None] = lambda: None
        self._worker = Worker()
        self._runner: TurnRunner | None = None
        self._is_closed = False
        self._changes = Changes()
        self._draft = Draft()
        self._turn_job: Job[Any] | None = None
        self._pause = AfterPause(STORE_AFTER_S, lambda: self._keep_prompts(whole=True, idle=True))

    # -- loading -----------------------------------------------------------------------------------

    def load(self) -> Job[SessionInfo]:
        """Loads the model in the background; a second call finds it loaded."""
        return self._worker.submit(self._load)

    def _load(self, context: JobContext) -> SessionInfo:
        if self.info is None:
            from mlxchat.model.device import load_mlx

            load_mlx()
            from mlxchat.chat.loading import load_runner

            options = self.options
            self._runner, self.info = load_runner(
                self.model, options, context.progress, context.check
            )
            self._catch_up(options)
            self._go_on_here()
        return self.info

    def _load_runner(self, context: JobContext) -> "TurnRunner":
        """Returns what runs the turns, once the model is loaded."""
        self._load(context)
        assert self._runner is not None
        return self._runner

    def _catch_up(self, options: ChatOptions) -> None:
        """Takes over what a command changed while a model was loaded with these options."""
        if self._runner is not None and self.options is not options:
            self._runner.set_options(self.options)

    def _go_on_here(self) -> None:
        """Makes a model that was just loaded ready for what was said before."""
        if self.conversation.head is not None:
            self._drop_foreign_ids()
            self._settle_when_idle()

    def switch_model(self, name: str, adapter: str | None = None) -> Job[SessionInfo]:
        """Loads another model in the place of this one; the conversation stays.

        Where that fails or is cancelled, the old model is there as before. Of answers that
        another model gave only the text counts from then on.

        Args:
            name: A folder, a Hub id, or `builtin`.
            adapter: A folder that changes its weights.
        """
        return self._exchange(name, adapter, "/model")

    def switch_adapter(self, adapter: str | None) -> Job[SessionInfo]:
        """Loads the same model with another adapter, or with none, as `switch_model` does."""
        return self._exchange(self.model, adapter, "/adapter")

    def _exchange(self, name: str | None, adapter: str | None, cause: str) -> Job[SessionInfo]:
        self._worker.cancel_idle()
        self._pause.stop()

        def job(context: JobContext) -> SessionInfo:
            from mlxchat.model.device import load_mlx

            load_mlx()
            from mlxchat.chat.switching import InMemory, switch_model

            options = self.options
            held = InMemory(self.model, self._runner, self.info)
            self._runner = self.info = None  # so that nothing else keeps it in memory
            try:
                switch_model(
                    held,
                    name,
                    options,
                    context.progress,
                    context.check,
                    adapter=adapter,
                    keeps_same=cause == "/model",
                )
            finally:
                self.model, self._runner, self.info = held.name, held.runner, held.info
                self._catch_up(options)
                if self.info is not None:
                    self.options = replace(self.options, adapter=self.info.adapter)
            assert self.info is not None
            self._changes.note(cause)
            self._go_on_here()
            return self.info

        return self._worker.submit(job)

    # -- work in idle time -------------------------------------------------------------------------

    def _settle_when_idle(self) -> None:
        """Has the cache brought to what the next turn will begin with, in the background."""
        branch = self._changes.left_branch

        def job(context: JobContext) -> None:
            if self._runner is not None:  # asked now: it may have made way for another model
                cause = self._changes.cause
                self._runner.idle.settle(
                    self.conversation, context, keep_branch=branch, cause=cause
                )
                self.on_settled()

        if self._runner is not None and self.options.idle_work:
            self._worker.submit(job, idle=True)
            self._keep_prompts(whole=False, idle=True)
            self._pause.restart()

    def _keep_prompts(self, *, whole: bool, idle: bool) -> Job[None]:
        """Has what was computed stored: the system prompt, or the whole conversation too."""
        conversation = self.conversation
        number = self.recorder.conversation_id if self.recorder is not None else None
        owner = "" if number is None else str(number)

        def job(context: JobContext) -> None:
            if self._runner is not None:
                self._runner.idle.keep_prompts(conversation, context, whole=whole, owner=owner)

        return self._worker.submit(job, idle=idle)

    def _use(self, options: ChatOptions) -> None:
        """Takes other options, on the worker where there is a model."""
        self.options = options
        if self._runner is not None:
            runner = self._runner
            self._worker.run(lambda _: runner.set_options(options))

    @property
    def model_name(self) -> str:
        """The name under which the model is opened again."""
        return (self.info.source if self.info else None) or self.model or "builtin"

    def _drop_foreign_ids(self) -> None:
        """Forgets the ids of answers that another model gave: its text alone counts."""
        self.conversation.forget_ids(self.info.fingerprint if self.info is not None else None)

    # -- the end -----------------------------------------------------------------------------------

    def wait_until_idle(self, timeout_s: float = 60.0) -> None:
        """Waits for background work; for tests and measurements."""
        self._worker.submit(lambda _: None, idle=True).result(timeout_s)

    def close(self) -> list[str]:
        """Stores what the next start can use, ends the worker, and completes the history.

        Returns:
            What the person should still hear, such as that the history could not be written.
        """
        if self._is_closed:
            return []
        self._is_closed, notices = True, []
        self._pause.stop()
        try:
            if self._runner is not None and self._turn_job is not None and self._turn_job.done:
                job = self._keep_prompts(whole=True, idle=False)
                with contextlib.suppress(TimeoutError, JobCancelledError):
                    job.result(LEAVE_S)
                    self._runner.keeping.finish(LEAVE_S)
                notices += self._runner.keeping.take_notices()
        finally:
            self._worker.close()
            if self.recorder is not None:
                notices += self.recorder.close()
        return notices
