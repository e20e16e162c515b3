"""A conversation with a model: turns, moves in the message tree, work in idle time.

The session belongs to the main thread, which must never touch MLX: everything that does runs as a
job on the worker (`turn.py`), and the main thread only hands in text and takes events out.
Importing this module costs nothing; the engine side is imported by the first job.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from mlxchat.chat.continuation import find_cut_off
from mlxchat.chat.conversation import Branch, Conversation, Node
from mlxchat.chat.history_writer import LiveTurn
from mlxchat.chat.options import ChatOptions, Steer
from mlxchat.chat.pause import AfterPause
from mlxchat.chat.read_ahead import Draft, DraftCost
from mlxchat.chat.results import Alternatives, LoadProgress, ReplayedTurn, SessionInfo, TurnResult
from mlxchat.chat.session_views import SessionViews
from mlxchat.engine.worker import Job, JobCancelledError, JobContext, Worker
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.chat.batch_lines import BatchLine
    from mlxchat.chat.history import Record, Restored
    from mlxchat.chat.recorder import Recorder
    from mlxchat.chat.results import Compaction
    from mlxchat.chat.turn import TurnRunner
    from mlxchat.chat.warming import Warmed

# The conversation is stored when nothing was said for so long: seldom enough for the disk.
STORE_AFTER_S = 20.0
# Leaving waits so long for what is being stored.
LEAVE_S = 5.0


__all__ = ["ChatOptions", "Session"]


class Session(SessionViews):
    """One conversation with one model.

    Args:
        model: A folder, a Hub id, or None for the built-in model.
        options: How to answer.
        recorder: Keeps what is said; None keeps nothing.
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
        self._worker = Worker()
        self._runner: TurnRunner | None = None
        self._keep_branch = self._is_closed = False
        self._draft = Draft()
        self._causes: tuple[str, ...] = ()  # what may make the next turn read ids again
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

            def report(event: LoadProgress) -> None:
                context.check()
                context.emit(event)

            options = self.options
            self._runner, self.info = load_runner(self.model, options, report, context.check)
            if self.options is not options:  # a command changed them meanwhile
                self._runner.set_options(self.options)
            if self.conversation.head is not None:
                self._drop_foreign_ids()
                self._settle_when_idle()
        return self.info

    def switch_model(self, name: str) -> Job[SessionInfo]:
        """Loads another model in the place of this one; the conversation stays.

        Where that fails or is cancelled, the old model is there as before. Of answers that
        another model gave only the text counts from then on.

        Args:
            name: A folder, a Hub id, or `builtin`.
        """
        self._worker.cancel_idle()
        self._pause.stop()

        def job(context: JobContext) -> SessionInfo:
            from mlxchat.model.device import load_mlx

            load_mlx()
            from mlxchat.chat.switching import InMemory, switch_model

            def report(event: LoadProgress) -> None:
                context.check()
                context.emit(event)

            options = self.options
            held = InMemory(self.model, self._runner, self.info)
            self._runner = self.info = None  # so that nothing else keeps it in memory
            try:
                switch_model(held, name, options, report, context.check)
            finally:
                self.model, self._runner, self.info = held.name, held.runner, held.info
                if self._runner is not None and self.options is not options:  # changed meanwhile
                    self._runner.set_options(self.options)
            assert self.info is not None
            self._causes = (*self._causes, "/model")
            if self.conversation.head is not None:
                self._drop_foreign_ids()
                self._settle_when_idle()
            return self.info

        return self._worker.submit(job)

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
            self._load(context)
            from mlxchat.chat.batching import LineAnswerer

            assert self._runner is not None
            LineAnswerer(self._runner, lines, size, context).run()

        self._turn_job = submitted = self._worker.submit(job)
        return submitted

    def choose(self, offered: Alternatives, number: int) -> None:
        """Goes on with one of several answers.

        Args:
            offered: By `retry_many`.
            number: Counted from 1; 0 is the answer that was there before.
        """
        node = offered.nodes[number - 1] if number else offered.old
        if node is not None and node != self.conversation.head:
            self.goto(node)
        if number:
            self.last = offered.results[number - 1]

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
        branch = self._keep_branch or keep_branch
        causes = (*self._causes, cause)
        self._keep_branch, self._causes = False, ()
        conversation = self.conversation
        model, system = self._model_name(), conversation.system
        num_before = len(conversation.nodes)
        turn = LiveTurn(question, find_head(), num_before, system, self.options, model, self.info)
        if cut_off is not None:
            turn.begun = cut_off.message
        more = {} if cut_off is None else {"cut_off": cut_off}

        def job(context: JobContext) -> Any:
            nonlocal causes
            loading = time.perf_counter()
            self._load(context)
            loaded_s = time.perf_counter() - loading
            assert self._runner is not None
            turn.info = self.info
            before, head = conversation.head, find_head()
            conversation.head = head
            num_before = len(conversation.nodes)
            run = self._runner.run if count is None else partial(self._runner.run_many, count=count)
            try:
                result = run(
                    conversation,
                    question,
                    context,
                    start=start + loaded_s,
                    keep_branch=branch,
                    cause=_join(causes),
                    **more,
                )
            except JobCancelledError:
                causes = (*causes, "a stopped turn")
                raise
            finally:
                if conversation.head == head:  # the turn was not kept
                    conversation.head = before
                    self._causes = (*causes, *self._causes)
            if isinstance(result, Alternatives):
                self.last, result = result.results[0], replace(result, old=before)
                turn.split(result, conversation)
            else:
                self.last = result
                turn.nodes = tuple(range(num_before + 1, len(conversation.nodes) + 1))
            self._settle_when_idle()
            return result

        self._turn_job = submitted = self._worker.submit(job)
        if self.recorder is None:
            return submitted
        # The worker reads the prompt while the question is written.
        return self.recorder.start(turn, submitted)

    def _model_name(self) -> str:
        """Returns the name under which the model is opened again."""
        return (self.info.source if self.info else None) or self.model or "builtin"

    def _settle_when_idle(self) -> None:
        """Has the cache brought to what the next turn will begin with, in the background."""
        branch = self._keep_branch

        def job(context: JobContext) -> None:
            if self._runner is not None:  # asked now: it may have made way for another model
                cause = _join(self._causes)
                self._runner.settle(self.conversation, context, keep_branch=branch, cause=cause)

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
                self._runner.keep_prompts(conversation, context, whole=whole, owner=owner)

        return self._worker.submit(job, idle=idle)

    def warm(self, system: str) -> "Job[Warmed]":
        """Reads a system prompt and stores it for later chats with this model."""

        def job(context: JobContext) -> "Warmed":
            self._load(context)
            from mlxchat.chat.warming import warm

            assert self._runner is not None
            return warm(self._runner, system, context)

        return self._worker.submit(job)

    # -- the draft ---------------------------------------------------------------------------------

    def read_ahead(self, draft: str) -> None:
        """Has the stable part of the next message read in idle time; any thread may call this."""
        if self.options.idle_work:
            with contextlib.suppress(RuntimeError):  # the worker has just been closed
                self._draft.put(draft, lambda: self._worker.submit(self._follow_draft, idle=True))

    def _follow_draft(self, context: JobContext) -> None:
        runner = self._runner
        if runner is not None and runner.reuses:
            runner.ahead.follow(
                self._draft, self.conversation, context, keep_branch=self._keep_branch
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
            self._load(context)
            from mlxchat.chat.replay import Replay

            assert self._runner is not None
            return Replay(self._runner, self.conversation, context).run(repetitions)

        return self._worker.submit(job)

    # -- moves in the tree -------------------------------------------------------------------------

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

    def _leave_branch(self, cause: str) -> None:
        """After a move: what the cache holds of the branch left behind is stashed, not dropped."""
        self._keep_branch = True
        self._causes = (*self._causes, cause)
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
            self._load(context)
            from mlxchat.chat.compaction import Compactor

            assert self._runner is not None
            self._keep_branch, self._causes = True, (*self._causes, "/compact")
            try:
                result = Compactor(self._runner, conversation, context).run(num_kept)
            finally:
                self._settle_when_idle()
            if self.recorder is not None:
                self.recorder.note_tree(self.options, self._model_name())
            return result

        return self._worker.submit(job)

    def set_system(self, text: str | None) -> None:
        """Sets the system prompt; it takes effect with the next turn."""
        self.conversation.system = text or None
        self._causes = (*self._causes, "/system")

    def set_thinking(self, think: bool | None) -> list[str]:
        """Turns thinking on or off from the next turn on; None is the template's own default.

        Returns:
            What the template had to say, such as that it has no switch.
        """
        return self._set_switches(replace(self.options, think=think))

    def end_thinking(self) -> None:
        """Ends the thinking of the answer that is being given, and asks for the answer proper."""
        if self._runner is not None:
            self._runner.ends_thinking.set()

    def set_steering(self, steers: tuple[Steer, ...]) -> None:
        """Adds steering vectors to the residual stream from the next turn on; none is plain.

        Loads the model first, since a vector must be of this very model.

        Raises:
            UsageError: A vector is not there, or was made on another model.
        """
        options = replace(self.options, steering=steers)

        def job(context: JobContext) -> None:
            self._load(context)
            assert self._runner is not None
            self._runner.set_options(options)
            self.options, self._causes = options, (*self._causes, "/steer")

        self._worker.run(job)
        if self.conversation.head is not None:
            self._settle_when_idle()

    def set_options(self, options: ChatOptions) -> list[str]:
        """Takes other options from the next turn on; system prompt and context limit stay.

        Returns:
            What the template had to say to its switches, where they changed.
        """
        old = self.options
        if (options.think, options.keep_thinking) != (old.think, old.keep_thinking):
            return self._set_switches(options)
        self.options = options
        if self._runner is not None:
            self._runner.set_sampling(options)  # no job: idle work goes on
        return []

    def _set_switches(self, options: ChatOptions) -> list[str]:
        cause = "/think" if options.think != self.options.think else "/set keep-thinking"
        self.options, self._causes = options, (*self._causes, cause)
        if self._runner is None:
            return []
        runner = self._runner
        return self._worker.run(lambda _: runner.set_options(options))

    def prepare_history(self) -> None:
        """Opens the history in the background, so that the first turn finds it open."""
        if self.recorder is not None:
            self.recorder.prepare()

    @property
    def title(self) -> str | None:
        """What the person called the conversation."""
        return self.recorder.title if self.recorder is not None else None

    def set_title(self, title: str | None) -> None:
        """Names the conversation in the history.

        Raises:
            UsageError: It is not kept.
            HistoryError: It cannot be written.
        """
        if self.recorder is None:
            raise UsageError("this conversation is not kept; /save TITLE keeps it from now on")
        self.recorder.set_title(title)

    def save(self, title: str) -> int:
        """Names the conversation and keeps it from now on; returns its number in the history.

        Raises:
            UsageError: Nothing was said yet.
            HistoryError: It cannot be written.
        """
        if not self.conversation.nodes:
            raise UsageError("nothing was said yet; say something first")
        recorder = self.recorder
        if recorder is None:
            from mlxchat.chat.recorder import Recorder

            recorder = Recorder("chat")
            recorder.begin(self.conversation)
        recorder.set_title(title)
        if recorder.conversation_id is None:
            recorder.save(self.options, self._model_name())
        self.recorder = recorder
        self._use(replace(self.options, keeps_history=True))
        assert recorder.conversation_id is not None
        return recorder.conversation_id

    def record(self) -> "Record":
        """Returns the conversation as the history holds it, or would hold it."""
        from mlxchat.chat.history import History, describe

        number = self.recorder.conversation_id if self.recorder is not None else None
        if self.recorder is None or number is None:
            return describe(self.conversation, self._model_name(), self.options.now)
        with contextlib.closing(History(self.recorder.path)) as history:
            return history.record(number)

    def reset(self) -> None:
        """Begins another conversation, today, with the same system prompt; the old is history."""
        self._take(Conversation(self.system), "/reset")
        self._use(replace(self.options, now=datetime.now()))

    def restore(self, restored: "Restored") -> None:
        """Goes on with a conversation of the history.

        Its tree, system prompt, date and thinking switches come back, so that it renders to the
        ids it had; generated ids are dropped where another model made them.
        """
        record = restored.record
        options = replace(
            self.options,
            think=record.think,
            keep_thinking=record.keep_thinking,
            now=record.template_now or self.options.now,
        )
        self._take(restored.conversation, "/resume")
        if self.recorder is not None:
            self.recorder.adopt(restored)
        self._use(options)
        if self._runner is not None:
            self._drop_foreign_ids()
            self._settle_when_idle()

    def _use(self, options: ChatOptions) -> None:
        """Takes other options, on the worker where there is a model."""
        self.options = options
        if self._runner is not None:
            runner = self._runner
            self._worker.run(lambda _: runner.set_options(options))

    def _take(self, conversation: Conversation, cause: str) -> None:
        self._worker.cancel_idle()
        if self.conversation.head is not None:  # the person may come back to it
            self._keep_prompts(whole=True, idle=True)
        self.conversation = conversation
        self.last, self._keep_branch, self._causes = None, False, (cause,)
        if self.recorder is not None:
            self.recorder.begin(conversation)

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


def _join(causes: tuple[str, ...]) -> str:
    """Names causes, each once."""
    return ", ".join(dict.fromkeys(filter(None, causes)))
