"""One answer on its way to the terminal: what goes where, and what never does."""

import io
import re
from types import SimpleNamespace

import pytest
from fakes import FakeSession, make_result
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.chat.results import LoadProgress, Notice, PrefillProgress, TextDelta
from mlxchat.chat.session import ChatOptions
from mlxchat.cli import turn
from mlxchat.cli.screen import Screen
from mlxchat.cli.turn import Answers, TurnView


class Tty(io.StringIO):
    """A string that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def terminal_type(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def show(events, out, notes, **options):
    view = TurnView(Screen(out, notes, **options), shows_text=True)
    for event in events:
        view.show(event)
    view.close()


ANSWER = [TextDelta("one ", "answer"), Notice("by the way"), TextDelta("two", "answer")]


def test_a_notice_does_not_break_a_piped_answer():
    """A notice in the middle of an answer leaves a piped stdout as it is."""
    out, notes = io.StringIO(), Tty()
    show(ANSWER, out, notes)
    assert out.getvalue() == "one two\n"
    assert notes.getvalue() == "\x1b[2mby the way\n\x1b[0m"


def test_a_notice_gets_its_own_line_in_a_terminal():
    """On one terminal the notice starts a line of its own."""
    screen = Tty()
    show(ANSWER, screen, screen, plain=True)
    assert screen.getvalue() == "one \nby the way\ntwo\n"


def test_thinking_that_comes_with_the_answer(monkeypatch):
    """Thinking counts from the end of the reading, also where it is shown with the answer."""
    seconds = iter([0.0, 0.0, 1.0, 1.0, 3.5, 3.5, 3.5])
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr("mlxchat.cli.turn.time", clock)
    monkeypatch.setattr("mlxchat.cli.progress.time", SimpleNamespace(monotonic=lambda: 0.0))
    notes = Tty()
    view = TurnView(Screen(notes, notes, plain=True), shows_text=True)
    view.show(PrefillProgress(7, 7))
    view.show(TextDelta("hm", "reasoning", 1))
    view.show(TextDelta("yes", "answer", 1))
    assert notes.getvalue() == "hm\nthought for 2.5 s, 1 token\nyes"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": "\n"}, "The model ended without an answer; /retry asks it again."),
        (
            {"text": "", "reasoning": "hm"},
            "The model ended with its thinking, without an answer; /retry asks it again.",
        ),
        ({"text": "", "reasoning": "hm", "stop_reason": "token_limit"}, "The token limit came"),
        ({"text": "yes"}, ""),
    ],
)
def test_an_answer_without_text_is_told_of(changes, expected):
    """Where nothing is shown a line says why, and what to do."""
    notes, session = io.StringIO(), FakeSession(None, ChatOptions())
    try:
        answers = Answers(session, Screen(io.StringIO(), notes))
        job = session.send("hello")
        job.result = lambda *_: make_result(**{"stop_reason": "eos_token", **changes})
        answers.give(lambda: job)
    finally:
        session.close()
    assert notes.getvalue().startswith(expected)
    assert bool(notes.getvalue()) is bool(expected)


def test_reasoning_goes_to_a_terminal_only():
    """Reasoning is for someone who looks at stderr; the answer begins without its blank lines."""
    events = [
        TextDelta("\nhm", "reasoning"),
        TextDelta("\n", "reasoning"),
        TextDelta("\n", "answer"),
        TextDelta("\nyes", "answer"),
    ]
    out, notes = io.StringIO(), Tty()
    show(events, out, notes, plain=True)
    assert out.getvalue() == "yes\n"
    assert re.fullmatch(r"hm\nthought for 0\.\d+ s\n", notes.getvalue())
    out, notes = io.StringIO(), io.StringIO()
    show(events, out, notes)
    assert (out.getvalue(), notes.getvalue()) == ("yes\n", "")


def test_progress_is_for_terminals(monkeypatch):
    """Progress is drawn on a terminal, over itself, and taken away; elsewhere it is not."""
    monkeypatch.setattr(turn, "PROGRESS_DELAY_S", 0)
    monkeypatch.setattr(turn, "PROGRESS_INTERVAL_S", 0)
    events = [PrefillProgress(0, 10), PrefillProgress(5, 10), TextDelta("done", "answer")]
    screen = Tty()
    show(events, screen, screen)
    drawn = screen.getvalue()
    assert drawn.startswith("\r\x1b[K\x1b[2mreading ░░░░░░░░ 0 of 10 tokens")
    assert drawn.endswith("\r\x1b[Kdone\n")
    for notes, options in ((io.StringIO(), {}), (Tty(), {"plain": True})):
        show(events, io.StringIO(), notes, **options)
        assert notes.getvalue() == ""


def test_short_phases_show_no_progress():
    """A prefill that is over at once draws nothing."""
    screen = Tty()
    show([PrefillProgress(n, 10) for n in range(11)], screen, screen)
    assert screen.getvalue() == ""


texts = st.text(st.sampled_from("\x1b\x9b[]\x07\r\n0;31mJ\u202e\x7fa🙂"), max_size=8)
events = st.one_of(
    st.builds(TextDelta, texts, st.sampled_from(["reasoning", "answer"])),
    st.builds(Notice, texts),
    st.builds(PrefillProgress, st.integers(0, 9), st.just(9)),
    st.builds(LoadProgress, st.sampled_from(["download", "load"]), st.integers(0, 9), st.just(9)),
)


@given(st.lists(events))
def test_nothing_that_a_terminal_obeys(events):
    """Whatever a model writes, in whatever pieces, no control character of it is written."""
    screen = Tty()
    show(events, screen, screen, plain=True)
    written = screen.getvalue()
    assert not set("\x1b\x9b\x07\r\u202e\x7f") & set(written)
    assert written == "" or written.endswith("\n")


@given(st.lists(st.builds(TextDelta, texts, st.just("answer"))))
def test_a_piped_answer_is_its_text(deltas):
    """A piped answer is the sanitised text, ended by one line feed where it has none."""
    from mlxchat.cli.render import sanitize

    out = io.StringIO()
    show(deltas, out, io.StringIO())
    text = sanitize("".join(delta.text for delta in deltas))
    assert out.getvalue() == (text if text.endswith("\n") or not text else text + "\n")


def test_an_answer_that_cannot_be_shown_is_cancelled():
    """When writing fails the job is told to stop."""

    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    session = FakeSession(None, ChatOptions())
    jobs = []
    try:
        answers = Answers(session, Screen(Broken(), io.StringIO()))
        with pytest.raises(BrokenPipeError):
            answers.give(lambda: jobs.append(session.send("long")) or jobs[0])
        assert jobs[0].result(10).stop_reason == "user_cancelled"
    finally:
        session.close()
