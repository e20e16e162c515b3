"""A session without a model: answers by rule, counts what it is asked, can be slow, stuck or fail.

`python tests/fakes.py` runs the real command line over it, for tests in a process of their own.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from mlxchat.chat.conversation import Branch, Node
from mlxchat.chat.draft import DraftCost
from mlxchat.chat.results import (
    Alternatives,
    BatchProgress,
    CacheUse,
    Compaction,
    LoadProgress,
    Notice,
    PrefillProgress,
    SessionInfo,
    SummaryProgress,
    TextDelta,
    TurnResult,
    Usage,
    Verify,
)
from mlxchat.chat.session import ChatOptions
from mlxchat.chat.template import Message
from mlxchat.chat.views import ContextPart, ContextView, TokenPiece
from mlxchat.engine.prefix_cache import CacheReport
from mlxchat.engine.timing import Timing
from mlxchat.engine.worker import Job, JobContext, Worker
from mlxchat.errors import MlxchatError, ModelNotFoundError, UsageError

LONG_ANSWER_TOKENS = 2_000
MARKDOWN = """\
# Stacks

A **stack** has two operations, see <http://example.com/stack>:

1. `push` puts an item on top
2. `pop` takes it away again

```python
def push(stack, item):
    stack.append(item)  # on top
```

| operation | cost |
|-----------|-----:|
| push      |    1 |
| 入れる    |   10 |

> The last one in is the *first* one out. A queue does it the other way round, as people do.
"""


def make_result(text: str = "Hello!", **changes: Any) -> TurnResult:
    """Returns a plausible result; `changes` replace its fields, those of its parts included."""
    usage: dict[str, Any] = {
        "prompt_tokens": 2310,
        "cached_tokens": 2290,
        "prefill_tokens": 20,
        "typeahead_tokens": 0,
        "settle_tokens": 0,
        "completion_tokens": 312,
    }
    timing: dict[str, Any] = {
        "load_s": 0.4123,
        "template_s": 0.0011,
        "restore_s": 0.0,
        "prefill_s": 0.0124,
        "ttft_s": 0.081,
        "decode_s": 5.77,
        "total_s": 5.851,
        "prefill_tok_per_s": 1612.9,
        "decode_tok_per_s": 54.06,
        "inter_token_ms": {"p50": 18.2, "p95": 19.0, "max": 30.1},
        "peak_memory_bytes": 1_288_490_189,
        "kv_bytes": 12_582_912,
        "weight_bytes": 966_367_642,
        "bandwidth_use": 0.812,
    }
    top: dict[str, Any] = {
        "model": "fake",
        "text": text,
        "reasoning": None,
        "stop_reason": "eos_token",
        "cache": CacheUse("live", "reused 2290, read 20"),
        "verify": None,
        "tokens": (1, 2, 3),
    }
    for part in (usage, timing, top):
        part.update({name: changes.pop(name) for name in list(changes) if name in part})
    assert not changes, changes
    return TurnResult(usage=Usage(**usage), timing=Timing(**timing), **top)


def make_noise(seed: str) -> list[str]:
    """Returns pieces that a broken model may write: escapes, half characters, half Markdown."""
    chance = random.Random(seed)
    bits = ["\x1b[", "2J", "?1049h", "31m", "\x1b]0;t\x07", "\x1bc", "\x9b", "\r", "\x08", "\x00"]
    bits += ["\ufffd", "漢", "🙂", "\u202e", "# ", "```", "**", "| a |", "\n", "- ", "<b>", "word "]
    return ["".join(chance.choices(bits, k=chance.randrange(1, 6))) for _ in range(60)]


class StuckConstraint:
    """A grammar as a sampler knows it, with which an answer cannot go on after some tokens."""

    name = "grammar"
    is_complete = True

    def __init__(self, num_tokens: int) -> None:
        self.left = num_tokens

    def follow(self, token_ids: Any) -> None:
        """Takes the answer as far as it has come."""

    def take(self, token_id: int) -> None:
        """Takes a token."""

    def mask(self) -> None:
        """Allows all tokens, or none."""
        if not self.left:
            raise MlxchatError("the answer cannot go on")
        self.left -= 1


class FakeSession:
    """Answers `you said: ...`; some messages ask for more.

    `think ...` reasons first; `long` writes until it is stopped; `stuck` ignores a cancel; `fail`
    raises; `crash` breaks; `escape` writes terminal escapes, `fuzz` noise; `markdown` has headings,
    code and tables; `read` takes its time to prefill; `notice` has one.
    """

    made: "ClassVar[list[FakeSession]]" = []  # noqa: RUF012  # the annotation is a string

    title: str | None = None
    ends_thinking = False

    def __init__(self, model: str | None, options: ChatOptions, recorder: object = None) -> None:
        self.model, self.options, self.recorder = model, options, recorder
        self.info: SessionInfo | None = None
        self.last: TurnResult | None = None
        self.system = options.system
        self.sent: list[str] = []
        self.drafts: list[str | None] = []  # None where one was dropped
        self.still_drafts: list[str] = []
        self.load_calls = self.send_calls = 0
        self.is_closed = False
        self._worker = Worker()
        FakeSession.made.append(self)

    @property
    def model_name(self) -> str:
        return self.model or "builtin"

    @property
    def num_turns(self) -> int:
        return len(self.sent)

    @property
    def context_used(self) -> int:
        return 10 * len(self.sent)

    def load(self) -> Job[SessionInfo]:
        self.load_calls += 1
        return self._worker.submit(self._load)

    def switch_model(self, name: str, adapter: str | None = None) -> Job[SessionInfo]:
        def job(context: JobContext) -> SessionInfo:
            old = self.model, self.info
            self.model, self.info = name, None
            try:
                return self._load(context)
            except BaseException:
                self.model, self.info = old
                raise

        return self._worker.submit(job)

    def _load(self, context: JobContext) -> SessionInfo:
        if self.model == "missing":
            raise ModelNotFoundError("there is no model 'missing'; give a folder")
        if self.model == "slow":
            for step in range(20):
                context.check()
                context.emit(LoadProgress("load", step, 20))
                time.sleep(0.05)
        if self.info is None:
            notices = ("The fake is loaded.",) if self.model == "noticed" else ()
            self.info = SessionInfo(
                model=self.model or "builtin",
                family="fake",
                n_params=3_000_000,
                weight_bytes=4_000_000,
                context_limit=512,
                backend="CPU (fake)",
                is_builtin=self.model is None,
                load_s=0.01,
                notices=notices,
            )
        return self.info

    def send(self, text: str) -> Job[TurnResult]:
        self.send_calls += 1
        return self._worker.submit(lambda context: self._turn(context, text))

    def retry(self) -> Job[TurnResult]:
        text = self.sent.pop()
        return self.send(f"{text} again")

    def retry_many(self, count: int) -> Job[Alternatives]:
        text = self.sent.pop()

        def job(context: JobContext) -> Alternatives:
            context.emit(BatchProgress(count, count, 7))
            results = tuple(make_result(f"{text} answer {n + 1}") for n in range(count))
            return Alternatives(results, tuple(range(11, 11 + count)), old=2)

        return self._worker.submit(job)

    def choose(self, offered: Alternatives, number: int) -> None:
        self.chosen = number

    def go_on(self) -> Job[TurnResult]:
        if self.last is None or self.last.stop_reason == "eos_token":
            raise UsageError("the last answer ended by itself; ask for more")
        return self.send(f"{self.sent.pop()} on")

    def edit(self, turn: int | None, text: str) -> Job[TurnResult]:
        self.sent = self.sent[: len(self.sent) - 1 if turn is None else turn - 1]
        return self.send(text)

    def undo(self, count: int = 1) -> int:
        taken = min(count, len(self.sent))
        self.sent = self.sent[: len(self.sent) - taken]
        return taken

    def prepare_history(self) -> None:
        pass

    def set_title(self, title: str | None) -> None:
        self.title = title

    def save(self, title: str) -> int:
        self.title = title
        return 7

    def restore(self, restored: Any) -> None:
        self.sent = [node.message.content for node in restored.conversation.questions()]

    def compact(self, num_kept: int) -> Job[Compaction]:
        def job(context: JobContext) -> Compaction:
            for done in range(20):
                context.check()
                context.emit(SummaryProgress(10 * done + 10, f"piece {done:2}, \n"))
                time.sleep(0.02)
            old, self.sent = self.sent, ["summary", *self.sent[-num_kept:]]
            num_turns = max(len(old) - num_kept, 1)
            return Compaction("A **short** one.", num_turns, 4000, 300, len(old))

        return self._worker.submit(job)

    def set_system(self, text: str | None) -> None:
        self.system = text

    def reset(self) -> None:
        self.sent = []

    def fork(self) -> int:
        return len(self.sent)

    def goto(self, node_id: int) -> int:
        if node_id > len(self.sent):
            raise UsageError(f"there is no message {node_id}; /tree shows the numbers")
        self.sent = self.sent[:node_id]
        return node_id

    def tree(self) -> list[Branch]:
        nodes = [Node(i, None, Message("user", t)) for i, t in enumerate(self.sent, 1)]
        return [Branch(node, node.id % 2, node.id == len(nodes), True) for node in nodes]

    def set_thinking(self, think: bool | None) -> list[str]:
        self.options = replace(self.options, think=think)
        return ["this template has no switch"] if think is False else []

    def end_thinking(self) -> None:
        self.ends_thinking = True

    def set_options(self, options: ChatOptions) -> list[str]:
        self.options = options
        return []

    def resolve_sampling(self) -> tuple[dict[str, float], frozenset[str]] | None:
        if self.info is None:
            return None
        values: dict[str, float] = {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0.0}
        values |= {"xtc_probability": 0.0, "xtc_threshold": 0.1}
        values |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        return values | {"seed": 7}, frozenset({"temperature"})

    def count_tokens(self, text: str) -> int | None:
        return None if self.info is None else len(text.split())

    def read_ahead(self, draft: str, *, is_still: bool = False) -> None:
        (self.still_drafts if is_still else self.drafts).append(draft)

    def drop_draft(self) -> None:
        self.drafts.append(None)

    def estimate_cost(self, num_tokens: int) -> DraftCost | None:
        if self.info is None:
            return None
        return DraftCost(num_tokens, num_tokens / 100, (self.context_used + num_tokens) / 512)

    def last_answer(self) -> str | None:
        return self.last.text if self.last is not None and self.sent else None

    def question_text(self, turn: int | None = None) -> str:
        return self.sent[-1 if turn is None else turn - 1]

    def count_rereads(self) -> tuple[int, int] | None:
        return (700, 1000) if self.sent else None

    def view_context(self) -> Job[ContextView]:
        parts = [ContextPart(n, text, 10) for n, text in enumerate(self.sent, start=1)]
        view = ContextView((ContextPart(None, self.system or "", 32), *parts), 512)
        return self._worker.submit(lambda _: view)

    def list_tokens(self, text: str | None) -> Job[list[TokenPiece]]:
        words = (text or f"<end> {self.sent[-1]}").split()
        pieces = [TokenPiece(n, word, word[0] == "<") for n, word in enumerate(words)]
        return self._worker.submit(lambda _: pieces)

    def cache_report(self) -> CacheReport | None:
        if not self.sent:
            return None
        return CacheReport(120, ("full", "recurrent"), 2048, ((100, 512),), ((80, 110, 256),), 4096)

    def close(self) -> list[str]:
        self.is_closed = True
        self._worker.close(0.5)
        return []

    def _turn(self, context: JobContext, text: str) -> TurnResult:
        self._load(context)
        say: Callable[[str], None] = lambda piece: context.emit(TextDelta(piece, "answer"))  # noqa: E731
        first = text.split()[0]
        if first == "fail":
            raise MlxchatError("this message fails; send another")
        if first == "crash":
            raise ValueError("a bug\nwith two lines")
        self.sent.append(text)
        if first == "think":
            self.ends_thinking = False
            rounds = 200 if "long" in text else 1
            for piece in ("\nI ", *["wonder "] * (rounds - 1), "wonder", ".\n"):
                context.emit(TextDelta(piece, "reasoning"))
                if self.ends_thinking:
                    break
                if rounds > 1:
                    time.sleep(0.05)
            say("\n\n")
        if first == "read":
            for done in range(0, 1000, 20):
                context.emit(PrefillProgress(done, 1000))
                time.sleep(0.01)
        if first == "notice":
            context.emit(Notice("Something to know."))
        pieces = {
            "fuzz": make_noise(text),
            "long": [f"word{n} " for n in range(LONG_ANSWER_TOKENS)],
            "escape": ["\x1b", "[31mred\x07", "\x9b2J\r", "\u202eabc\n\ttab"],
            "stuck": ["started "],
            "markdown": [MARKDOWN[at : at + 3] for at in range(0, len(MARKDOWN), 3)],
        }.get(first, ["you said: ", text])
        written = []
        for piece in pieces:
            if context.cancelled:
                break
            written.append(piece)
            say(piece)
            if first == "long":
                time.sleep(0.01)
        if first == "stuck":
            time.sleep(30)
        self.last = make_result(
            "".join(written),
            reasoning="\nI wonder.\n" if first == "think" else None,
            stop_reason="user_cancelled" if context.cancelled else "eos_token",
            verify=Verify(True, 0.0, (1, 2)) if self.options.verify else None,
        )
        return self.last


@contextmanager
def ctrl_c(is_due: Callable[[], object], *more_after_s: float) -> Iterator[None]:
    """Presses Ctrl-C in this process when `is_due`, then again after each of some pauses.

    `is_due` must become true only when the signal does no harm. A press that never came fails.
    """

    def work() -> None:
        deadline = time.monotonic() + 20
        while not is_due() and time.monotonic() < deadline:
            time.sleep(0.01)
        for pause in (0.05, *more_after_s) if is_due() else ():
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
        assert not thread.is_alive(), "the command ended before Ctrl-C was pressed"
    finally:
        thread.join()


def main() -> None:
    """Runs the real command line over the fake; `python tests/fakes.py chat`."""
    from mlxchat.chat import session
    from mlxchat.cli.main import main as run

    session.Session = FakeSession  # type: ignore[misc, assignment]
    run()


if __name__ == "__main__":
    main()
