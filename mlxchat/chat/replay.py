"""A stored conversation once more: how long the first token of each turn takes.

Each turn is asked again, with the answers that were given, in three ways: cold (nothing is cached),
warm (the cache holds what it holds in a chat when the message comes), and from disk (a chat that
goes on after a restart). One token is made. Nothing is written to the history or to the person's
store. Runs on the worker thread.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxchat.chat.conversation import Conversation
from mlxchat.chat.prompt_keeping import PromptKeeping
from mlxchat.chat.request import TurnRequest
from mlxchat.chat.results import FirstToken, ReplayedTurn, TurnResult, Way
from mlxchat.engine.prompt_store import PromptStore
from mlxchat.engine.stored_prefix import StoredPrefixes, make_key
from mlxchat.engine.worker import JobContext

if TYPE_CHECKING:
    from mlxchat.chat.turn import TurnRunner


class Replay:
    """Asks the turns of a conversation again.

    Args:
        runner: Of a session that does nothing else.
        conversation: Its path is replayed; it is not changed.
        context: The job's.
    """

    def __init__(
        self, runner: "TurnRunner", conversation: Conversation, context: JobContext
    ) -> None:
        self._runner, self._conversation, self._context = runner, conversation, context
        runner.set_sampling(replace(runner.options, max_tokens=1, verify=False))

    def run(self, repetitions: int) -> list[ReplayedTurn]:
        """Replays all turns; each is emitted when it is done.

        Args:
            repetitions: Of each turn and way, after a warm-up.

        Raises:
            ContextFullError: The conversation no longer fits the context.
            JobCancelledError: The job was cancelled.
        """
        done = []
        with tempfile.TemporaryDirectory(prefix="mlxchat-replay-") as folder:
            empty, kept = self._make_keeping(folder, "none"), self._make_keeping(folder, "kept")
            questions = self._conversation.questions()
            if questions:
                self._runner.keeping = empty
                self._ask(questions[0].id, "cold", empty)  # compiles, and finds the chunk length
            for number, question in enumerate(questions, start=1):
                ways: dict[Way, FirstToken] = {}
                num_prompt = 0
                for way in self._ways(number):
                    keeping = kept if way == "disk" else empty
                    results = [self._ask(question.id, way, keeping) for _ in range(repetitions)]
                    seconds = tuple(result.timing.ttft_s for result in results)
                    read = results[-1].usage.prefill_tokens
                    ways[way] = FirstToken(statistics.median(seconds), seconds, read)
                    num_prompt = results[-1].usage.prompt_tokens
                done.append(ReplayedTurn(number, num_prompt, ways))
                self._context.emit(done[-1])
        return done

    def _make_keeping(self, folder: str, name: str) -> PromptKeeping:
        """Makes a store of our own, so that what the person has stored plays no part."""
        loaded = self._runner.loaded
        prefixes = StoredPrefixes(
            PromptStore(Path(folder) / name),
            make_key(loaded.fingerprint, loaded.model),
            self._runner.name,
            self._runner.engine.prefix,
        )
        return PromptKeeping(prefixes, keeps_conversation=True)

    def _ways(self, number: int) -> tuple[Way, ...]:
        if number > 1:
            return ("cold", "warm", "disk")
        # A system prompt can come from disk before anything was said.
        return ("cold", "disk") if self._conversation.system else ("cold",)

    def _before(self, question: int) -> Conversation:
        """Returns the conversation as it stood when a question came."""
        nodes = dict(self._conversation.nodes)
        return Conversation(self._conversation.system, nodes, nodes[question].parent)

    def _ask(self, question: int, way: Way, keeping: PromptKeeping) -> TurnResult:
        """Brings the cache to where it is to be, and asks."""
        runner, context = self._runner, self._context
        before = self._before(question)
        text = self._conversation.nodes[question].message.content
        prefix = runner.engine.prefix
        runner.keeping = keeping
        if way == "warm":
            runner.idle.settle(before, context)
            context.check()
        elif way == "disk":
            self._store(before, question, keeping)
        if way != "warm":
            prefix.reset()
        return runner.run(before, TurnRequest(text, time.perf_counter()), context)

    def _store(self, before: Conversation, question: int, keeping: PromptKeeping) -> None:
        """Has on disk what a chat would have left there before the question."""
        runner = self._runner
        if before.head is None:  # the turn itself reads the system prompt and notes it
            text = self._conversation.nodes[question].message.content
            request = TurnRequest(text, time.perf_counter())
            runner.run(self._before(question), request, self._context)
            runner.idle.keep_prompts(before, self._context, whole=False)
        else:
            runner.idle.settle(before, self._context)
            runner.idle.keep_prompts(before, self._context, whole=True)
        self._context.check()
        keeping.prefixes.wait()
