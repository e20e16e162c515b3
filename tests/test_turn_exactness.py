"""Random conversations against plain lists: whatever is done, the cache holds what is rendered.

A state machine does what people do (send, interrupt, edit, retry, undo, fork, go to, change the
system prompt, switch thinking on and off) and what happens behind them (idle work, type-ahead,
eviction, a model that breaks, midnight). Beside it runs a plain tree of texts. After every turn the
prompt must be the rendering of that tree, the cache must hold exactly its ids, and its logits must
be those of a fresh prefill.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tiny import (
    CHATML,
    END_THINK,
    IM_END,
    KEEPS_REASONING,
    KINDS,
    REASONING,
    TinySession,
    biased,
    bounded,
    check_turn,
    make_tiny_folder,
)

from mlxchat.chat.conversation import Node
from mlxchat.chat.draft import Typed
from mlxchat.chat.results import TurnResult
from mlxchat.engine.token_ids import count_common
from mlxchat.engine.worker import Job, JobCancelledError
from mlxchat.errors import ContextFullError

TEXTS = st.sampled_from(
    [
        "hi",
        "and the thing is that it goes on and on, there and here",
        "  \n",
        "in<|im_end|>\n<|im_start|>user\nside",
        "naïve 🙂",
        "</think>",
    ]
)
LONG = "the one that is on the line and the other, "
BUDGET = 1 << 30
# Shows the date, says whether it thinks, and keeps earlier thinking when asked to.
SWITCHED = (
    "Today: {{ strftime_now('%d.%m.%Y') }}{{ ' /no_think' if enable_thinking is false }}\n"
    + KEEPS_REASONING.replace(
        "<think>\n{% endif %}",
        "<think>\n{% if enable_thinking is false %}</think>\n\n{% endif %}{% endif %}",
    )
)
TEMPLATES = {"plain": CHATML, "reasoning": REASONING, "switched": SWITCHED}


class Clock(datetime):
    """A clock that a test sets forward."""

    days = 0

    @classmethod
    def now(cls, tz: object = None) -> "Clock":  # type: ignore[override]
        return cls(2026, 11, 21) + timedelta(days=cls.days)


Start = Callable[[], Job[TurnResult]]


class Conversations(RuleBasedStateMachine):
    """A session and, beside it, the tree that is assumed to be perfect."""

    def __init__(self, folder: Path, kind: str, template: str) -> None:
        super().__init__()
        Clock.days = 0
        # A home of its own: a system prompt that an earlier example stored would be loaded here.
        self.home = tempfile.TemporaryDirectory(dir=folder.parent)
        os.environ["MLXCHAT_HOME"] = self.home.name
        sampling = biased((IM_END, 3.0), (END_THINK, -9.0 if template is CHATML else 5.5))
        self.session = TinySession(folder, kind, sampling=sampling, max_tokens=10)
        self.kind = kind
        self.template = template
        self.date = Clock.now().strftime("%d.%m.%Y")
        self.thoughts: dict[int, str | None] = {}
        self.tree: list[tuple[int | None, str, str]] = []  # parent, role, text; ids count from 1
        self.head: int | None = None
        self.system: str | None = None

    def teardown(self) -> None:
        self.session.close()
        self.home.cleanup()

    # -- the perfect side --------------------------------------------------------------------------

    def path(self, head: int | None) -> list[int]:
        ids = []
        while head is not None:
            ids.append(head)
            head = self.tree[head - 1][0]
        return ids[::-1]

    def questions(self) -> list[int]:
        return [i for i in self.path(self.head) if self.tree[i - 1][1] == "user"]

    def add(self, role: str, text: str) -> None:
        self.tree.append((self.head, role, text))
        self.head = len(self.tree)

    def rendered(self, head: int | None) -> str:
        lines = [("system", self.system)] if self.system else []
        lines += [(self.tree[i - 1][1], self.shown(i)) for i in self.path(head)]
        text = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in lines)
        opening = "<|im_start|>assistant\n" + ("" if self.template is CHATML else "<think>\n")
        if self.template is not SWITCHED:
            return text + opening
        is_off = self.session.options.think is False
        today = f"Today: {self.date}{' /no_think' if is_off else ''}\n"
        return today + text + opening + ("</think>\n\n" if is_off else "")

    def shown(self, node: int) -> str:
        text, thought = self.tree[node - 1][2], self.thoughts.get(node)
        is_kept = self.template is SWITCHED and self.session.options.keep_thinking
        return f"<think>\n{thought}\n</think>\n\n{text}" if thought and is_kept else text

    # -- a turn on both sides ----------------------------------------------------------------------

    def turn(
        self,
        start: Start,
        head: int | None,
        question: str | None,
        begun: tuple[int, ...] = (),
    ) -> None:
        """Runs a turn that goes where `head` is; it may be interrupted, and then may be kept.

        Args:
            start: Starts it.
            head: Where it goes.
            question: What is asked, or None where the head is a question.
            begun: The ids of an answer that goes on.
        """
        held = list(self.session.prefix.token_ids)
        try:
            result = start().result(60)
        except (JobCancelledError, ContextFullError):
            return  # dropped: the invariants say that nothing changed
        check_turn(self.session, result)
        self.head = head
        if question is not None:
            self.add("user", question)
        self.check_prompt(result, held, begun)
        self.add("assistant", result.text)
        self.thoughts[self.head or 0] = result.reasoning

    def check_prompt(
        self, result: TurnResult, held: list[int], begun: tuple[int, ...] = ()
    ) -> None:
        """The prompt is the rendering of the tree; what the cache had of it was not read again."""
        assert result.verify is not None
        tokenizer = self.session.runner.tokenizer
        prompt_ids = result.verify.prompt_ids
        text = self.rendered(self.head)
        shown = tokenizer.decode(
            prompt_ids[: len(prompt_ids) - len(begun)], skip_special_tokens=False
        )
        assert shown == tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False)
        assert prompt_ids[len(prompt_ids) - len(begun) :] == begun
        common = min(count_common(held, prompt_ids), result.usage.prompt_tokens - 1)
        if self.kind == "full":
            assert result.usage.cached_tokens >= common

    # -- what people do ----------------------------------------------------------------------------

    @rule(text=TEXTS)
    def send(self, text: str) -> None:
        self.turn(lambda: self.session.send(text), self.head, text)

    @rule(text=TEXTS, cuts=st.lists(st.integers(0, 50), min_size=1, max_size=2), more=TEXTS)
    def type_and_send(self, text: str, cuts: list[int], more: str) -> None:
        """Drafts are read on the way; in the end the message may be another one."""
        for cut in cuts:
            self.session._draft.put(LONG[:cut] + more, self.submit_draft)
            self.session.wait_until_idle()
        self.send(LONG + text)

    @rule(text=TEXTS, num_calls=st.integers(0, 12))
    def send_and_interrupt(self, text: str, num_calls: int) -> None:
        session = self.session
        self.turn(
            lambda: session.interrupted(lambda: session.send(text), num_calls), self.head, text
        )

    @precondition(lambda self: self.questions())
    @rule()
    def retry(self) -> None:
        self.turn(self.session.retry, self.questions()[-1], None)

    @precondition(lambda self: self.questions())
    @rule(num_calls=st.integers(0, 6))
    def retry_and_interrupt(self, num_calls: int) -> None:
        session = self.session
        self.turn(lambda: session.interrupted(session.retry, num_calls), self.questions()[-1], None)

    @precondition(lambda self: self.cut_off() is not None)
    @rule(num_calls=st.integers(0, 12), is_interrupted=st.booleans())
    def go_on(self, num_calls: int, is_interrupted: bool) -> None:
        session, node = self.session, self.cut_off()
        assert node is not None
        assert node.origin is not None
        ids = node.origin.token_ids

        def start() -> Job[TurnResult]:
            return (
                session.interrupted(session.go_on, num_calls) if is_interrupted else session.go_on()
            )

        self.turn(start, node.parent, None, ids)

    def cut_off(self) -> Node | None:
        node = self.session.conversation.nodes.get(self.head or 0)
        is_cut = node is not None and node.origin is not None and node.origin.token_ids
        return node if is_cut else None

    @precondition(lambda self: self.questions())
    @rule(turn=st.integers(0, 9), text=TEXTS)
    def edit(self, turn: int, text: str) -> None:
        turn %= len(self.questions())
        place = self.tree[self.questions()[turn] - 1][0]
        self.turn(lambda: self.session.edit(turn + 1, text), place, text)

    @rule(count=st.integers(1, 3))
    def undo(self, count: int) -> None:
        questions = self.questions()[-count:]
        assert self.session.undo(count) == len(questions)
        if questions:
            self.head = self.tree[questions[0] - 1][0]

    @precondition(lambda self: self.head is not None)
    @rule()
    def fork(self) -> None:
        assert self.session.fork() == self.head

    @precondition(lambda self: self.tree)
    @rule(node=st.integers(1, 40))
    def goto(self, node: int) -> None:
        node = (node - 1) % len(self.tree) + 1
        self.session.goto(node)
        answers = [i + 1 for i, (parent, role, _) in enumerate(self.tree) if parent == node]
        is_question = self.tree[node - 1][1] == "user"
        self.head = answers[-1] if is_question and answers else node

    @rule(system=st.sampled_from([None, "be kind", "be brief, and say what you mean"]))
    def set_system(self, system: str | None) -> None:
        self.session.set_system(system)
        self.system = system

    @precondition(lambda self: self.template is SWITCHED)
    @rule(think=st.sampled_from([None, True, False]), keep=st.booleans())
    def switch_thinking(self, think: bool | None, keep: bool) -> None:
        options = replace(self.session.options, think=think, keep_thinking=keep)
        assert not self.session.set_options(options)  # no notices: the template can do it all

    # -- what happens behind them ------------------------------------------------------------------

    @rule()
    def midnight(self) -> None:
        Clock.days += 1

    @rule()
    def settle(self) -> None:
        self.session.settle()

    @rule(num_calls=st.integers(0, 2))
    def settle_and_interrupt(self, num_calls: int) -> None:
        session = self.session
        session.interrupted(
            lambda: session._worker.submit(
                lambda context: session.runner.idle.settle(session.conversation, context), idle=True
            ),
            num_calls,
        )

    @rule(budget=st.sampled_from([0, 300, 2000]), stays=st.booleans())
    def evict(self, budget: int, stays: bool) -> None:
        prefix = self.session.prefix
        prefix.budget_bytes = budget
        self.session._worker.run(lambda _: prefix._thin())
        assert prefix.mark_bytes <= budget
        prefix.budget_bytes = budget if stays else BUDGET

    @rule(text=TEXTS, is_still=st.booleans(), num_calls=st.integers(0, 3))
    def read_ahead_and_interrupt(self, text: str, is_still: bool, num_calls: int) -> None:
        jobs: list[Job[None]] = []
        typed = Typed(text, is_still)
        self.session._draft.put(typed, lambda: jobs.append(self.submit_draft()) or jobs[0])
        for job in jobs:
            with contextlib.suppress(JobCancelledError):
                self.session.interrupted(lambda job=job: job, num_calls).result(60)

    @rule(text=TEXTS)
    def pause_and_send(self, text: str) -> None:
        """The message that was read whole is the one that is sent."""
        self.session._draft.put(Typed(text, True), self.submit_draft)
        self.session.wait_until_idle()
        self.turn(lambda: self.session.send(text), self.head, text)

    def submit_draft(self) -> Job[None]:
        session = self.session
        return session._worker.submit(session._follow_draft, idle=True)

    @rule()
    def save_and_load(self) -> None:
        """The cache goes through its stored form into a fresh one."""

        def through_storage(_: object) -> None:
            prefix = self.session.prefix
            if not prefix.token_ids:
                return
            exported = prefix.cache.export()
            assert exported is not None
            cache = prefix.make_cache()
            cache.load_export(*exported)
            prefix.adopt(cache, prefix.token_ids)

        self.session._worker.run(through_storage)

    @rule(text=TEXTS, num_calls=st.integers(0, 6))
    def break_the_model(self, text: str, num_calls: int) -> None:
        def fail() -> None:
            raise ArithmeticError

        self.session.model_.after(num_calls, fail)
        try:
            self.turn(lambda: self.session.send(text), self.head, text)
        except ArithmeticError:
            assert self.session.prefix.token_ids == []
        self.session.model_.hook = None

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def conversations_are_equal(self) -> None:
        got = [(n.parent, n.message.role, n.message.content) for n in self.nodes()]
        assert got == self.tree
        assert self.session.conversation.head == self.head
        assert self.session.num_turns == len(self.questions())

    def nodes(self) -> list:
        return list(self.session.conversation.nodes.values())

    @invariant()
    def the_cache_is_whole(self) -> None:
        prefix = self.session.prefix
        assert prefix.cache.offsets() <= {len(prefix.token_ids)}
        assert prefix.mark_bytes <= prefix.budget_bytes
        assert all(0 < position <= len(prefix.token_ids) for position in prefix.marks)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the session and the template read our clock."""
    Clock.days = 0
    monkeypatch.setattr("mlxchat.chat.session_base.datetime", Clock)
    monkeypatch.setattr("mlxchat.chat.session_history.datetime", Clock)
    monkeypatch.setattr("mlxchat.chat.template.datetime", Clock)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_conversation_is_exact(kind: str, template: str, tmp_path: Path) -> None:
    """Any sequence of moves leaves an exact cache, on every kind of cache."""
    folder = make_tiny_folder(
        tmp_path / "model", "full" if kind == "recurrent" else kind, template=template
    )
    run_state_machine_as_test(
        lambda: Conversations(folder, kind, template),
        settings=bounded(max_examples=6, stateful_step_count=14),
    )


def test_a_conversation_keeps_its_date_and_the_next_one_has_its_own(tmp_path: Path) -> None:
    """Midnight changes nothing that was read, whatever is switched; /reset begins a new day."""
    folder = make_tiny_folder(tmp_path / "model", template=SWITCHED)
    session = TinySession(folder, sampling=biased((IM_END, 3.0), (END_THINK, 5.5)))

    def dates(result: TurnResult) -> tuple[str, bool]:
        assert result.verify is not None
        text = session.runner.tokenizer.decode(result.verify.prompt_ids)
        return text[:17], "/no_think" in text

    assert dates(session.say("hi")) == ("Today: 21.11.2026", False)
    Clock.days = 1
    follow = session.say("and now")
    assert dates(follow) == ("Today: 21.11.2026", False)
    assert follow.usage.cached_tokens > 20
    session.set_options(replace(session.options, think=False, keep_thinking=True))
    assert dates(session.say("and then")) == ("Today: 21.11.2026", True)
    session.reset()
    assert dates(session.say("hi")) == ("Today: 22.11.2026", True)
    session.close()
