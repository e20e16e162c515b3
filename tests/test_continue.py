"""/continue: an answer that was cut off goes on, id for id as if it had never been cut."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedSession
from tiny import (
    CHATML,
    END_THINK,
    IM_END,
    KINDS,
    REASONING,
    Open,
    TinySession,
    biased,
    checked,
    collect,
    open_sessions,
)

from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.results import TextDelta
from mlxchat.chat.session import ChatOptions
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import ContextFullError, UsageError

GREEDY = SamplingSettings(temperature=0.0)


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions on tiny folders and closes them."""
    with open_sessions(tmp_path) as open_:
        yield open_


def go_on(session: TinySession) -> Any:
    """Continues; what is streamed and what was there before are the whole text."""
    before = session.conversation.path()[-1].message
    job = session.go_on()
    shown = collect(job, before.reasoning or "", before.content)
    result = checked(session, job)
    assert shown == {"reasoning": result.reasoning or "", "answer": result.text}
    return result


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_token_limit(open_session: Open, kind: str, settles: bool) -> None:
    """Three pieces have the ids of one whole answer; the cache is not read again."""
    whole = open_session(kind, sampling=GREEDY, max_tokens=18)
    once = whole.say("hello")
    session = open_session(kind, sampling=GREEDY, max_tokens=6)
    pieces = [session.say("hello")]
    for _ in range(2):
        if settles:
            session.settle()
        pieces.append(go_on(session))
        assert pieces[-1].usage.prefill_tokens == 1
    assert sum((piece.tokens for piece in pieces), ()) == once.tokens
    assert pieces[-1].text == once.text
    messages = session.conversation.messages()
    assert [m.content for m in messages] == ["hello", once.text]
    assert messages[1].content_ids == whole.conversation.messages()[1].content_ids
    assert session.say("more").tokens == whole.say("more").tokens[:6]


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_after_ctrl_c(open_session: Open, kind: str, settles: bool) -> None:
    """What was stopped goes on with one id read; stopped again at once, all stays as it was."""
    session = open_session(kind, max_tokens=12)
    job = session.interrupted(lambda: session.send("hello"), 8)
    first = checked(session, job)
    assert first.stop_reason == "user_cancelled"
    if settles:
        session.settle()
    nodes = dict(session.conversation.nodes)
    with pytest.raises(JobCancelledError):
        session.interrupted(session.go_on, 0).result(20)
    assert session.conversation.nodes == nodes
    second = go_on(session)
    assert second.text.startswith(first.text)
    assert second.usage.prefill_tokens == 1
    assert second.usage.completion_tokens == 12
    assert len(session.conversation.nodes) == 3
    session.say("more")


def test_the_shorter_answer_stays_in_the_tree(open_session: Open) -> None:
    """The continuation stands beside the answer that it goes on with."""
    session = open_session(max_tokens=4)
    first = session.say("hello")
    second = go_on(session)
    assert [b.node.message.content for b in session.tree()] == ["hello", first.text, second.text]
    assert [b.depth for b in session.tree()] == [0, 1, 1]
    session.goto(2)
    assert session.last_answer() == first.text
    third = go_on(session)
    assert third.text.startswith(first.text)


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_stop_string(open_session: Open, kind: str, settles: bool) -> None:
    """It goes on past the string, which is then a part of the answer; the next one ends it.

    What the next turn will begin with was read in idle time; the answer is not read again.
    """
    whole = open_session(kind, sampling=GREEDY, max_tokens=24).say("hello")
    stop = whole.text[12:14]
    session = open_session(kind, sampling=GREEDY, max_tokens=24, stop=(stop,))
    first = session.say("hello")
    assert first.stop_reason == "stop_string"
    if settles:
        session.settle()
    second = go_on(session)
    assert second.usage.prefill_tokens <= (len(stop) if settles else len(first.tokens) + 1)
    assert second.text.startswith(first.text + stop)
    assert whole.text.startswith(second.text[:25])
    assert (stop in second.text[len(first.text + stop) :]) is False
    session.say("more")


def test_a_stop_string_across_the_border(open_session: Open) -> None:
    """A string that began before the cut still ends the answer, and is taken out of it."""
    whole = open_session(sampling=GREEDY, max_tokens=12).say("hello")
    session = open_session(sampling=GREEDY, max_tokens=6)
    cut = session.say("hello")
    stop = whole.text[len(cut.text) - 1 : len(cut.text) + 1]
    session.set_options(replace(session.options, stop=(stop,)))
    result = checked(session, session.go_on())
    assert result.stop_reason == "stop_string"
    assert result.text == whole.text[: whole.text.index(stop)]


@pytest.mark.parametrize("kind", KINDS)
def test_inside_thinking(open_session: Open, kind: str) -> None:
    """Thinking that a limit cut off goes on, and the answer follows it."""
    sampling = biased((END_THINK, 5.5))
    never = biased((END_THINK, -1e9), temperature=0.0)
    session = open_session(kind, REASONING, sampling=never, max_tokens=6)
    first = session.say("hello")
    assert (first.text, first.stop_reason) == ("", "token_limit")
    session.settle()
    session.set_options(replace(session.options, sampling=sampling, max_tokens=80))
    second = go_on(session)
    assert second.reasoning.startswith(first.reasoning)
    assert second.text
    session.say("more")


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_that_was_dropped_comes_back(open_session: Open, kind: str) -> None:
    """What the next turn has no room for is kept for /continue, until that turn is there."""
    sampling = biased((END_THINK, -1e9), temperature=0.0)
    session = open_session(kind, REASONING, sampling=sampling, max_tokens=60, think_budget=40)
    first = session.say("hello")
    assert first.reasoning
    assert (bool(first.text), first.stop_reason) == (True, "token_limit")
    session.settle()
    assert session.prefix.stashes
    second = go_on(session)
    assert second.usage.prefill_tokens == 1
    session.settle()
    assert session.prefix.stashes
    session.say("more")
    session.set_options(replace(session.options, sampling=biased((IM_END, 1e9))))
    session.say("and more")
    session.settle()
    assert not session.prefix.stashes


SWITCHED = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}",
)


@pytest.mark.parametrize("thinks", [True, False])
def test_thinking_is_switched_before_it_goes_on(open_session: Open, thinks: bool) -> None:
    """Thinking stays thinking and is ended once it is off; an answer stays an answer."""
    sampling = biased((END_THINK, -1e9), temperature=0.0)
    session = open_session(template=SWITCHED, sampling=sampling, max_tokens=6, think=thinks)
    first = session.say("hello")
    assert bool(first.reasoning) is thinks
    session.set_options(replace(session.options, think=not thinks, max_tokens=40))
    second = go_on(session)
    if thinks:
        assert second.reasoning.strip() == first.reasoning.strip()
        assert second.text.strip()
    else:
        assert second.text.startswith(first.text)
        assert len(second.text) > len(first.text)
        assert not second.reasoning
    session.say("more")


def test_an_answer_that_ended_is_refused(open_session: Open) -> None:
    """Only what was cut off goes on; each refusal says what to do."""
    session = open_session(sampling=biased((IM_END, 1e9)))
    with pytest.raises(UsageError, match="nothing was said yet; say"):
        session.go_on()
    session.say("hello")
    with pytest.raises(UsageError, match="ended by itself; ask for more, or /retry"):
        session.go_on()
    session.conversation.head = 1
    with pytest.raises(UsageError, match="no answer yet; /retry answers it"):
        session.go_on()


def test_a_full_context(open_session: Open) -> None:
    """Where the context holds no more, nothing changes and the reason is said."""
    session = open_session(max_context=40, max_tokens=None)
    first = session.say("hello")
    assert first.stop_reason == "context_full"
    with pytest.raises(ContextFullError, match="the context holds 40"):
        session.go_on().result(20)
    assert session.last_answer() == first.text


@pytest.mark.parametrize("template", [CHATML, REASONING])
def test_another_models_answer(open_session: Open, template: str) -> None:
    """Without the ids the text counts: the continuation begins with it."""
    session = open_session(template=template, sampling=biased((END_THINK, 5.0)), max_tokens=40)
    first = session.say("hello")
    session.conversation.forget_ids("another model")
    assert session.conversation.path()[-1].message.content_ids is None
    second = go_on(session)
    assert second.text.startswith(first.text)
    assert second.reasoning == first.reasoning
    session.say("more")


def test_after_a_restart(open_session: Open, tmp_path: Path) -> None:
    """The history keeps what is needed: a resumed answer goes on with one id read."""
    path = tmp_path / "history.db"
    session = open_session(sampling=GREEDY, max_tokens=6)
    session.recorder = Recorder("chat", path)
    session.recorder.begin(session.conversation)
    first = session.say("hello")
    second = go_on(session)
    session.recorder.close()
    with closing(History(path)) as history:
        restored = history.restore(1)
        record = history.record(1)
    assert [m.content for m in record.path()] == ["hello", second.text]
    assert [turn.result["stop_reason"] for turn in record.turns] == ["token_limit"] * 2
    assert tuple(record.turns[1].result["tokens"]) == second.tokens
    assert restored.conversation == session.conversation
    assert restored.conversation.nodes[3].origin.token_ids == first.tokens + second.tokens
    session.restore(restored)
    third = go_on(session)
    assert third.usage.prefill_tokens == 1


def test_a_crash_while_it_goes_on(tmp_path: Path) -> None:
    """The unfinished continuation holds the beginning and what was shown after it."""
    path = tmp_path / "history.db"
    session = ScriptedSession(None, ChatOptions(), Recorder("chat", path))
    with closing(session):
        job = session.send("slow one two three four five six")
        for event in job:
            if isinstance(event, TextDelta):
                job.cancel()
        first = job.result().text
        goes_on = iter(session.go_on())
        shown = next(event for event in goes_on if isinstance(event, TextDelta))
        with closing(History(path)) as history:
            restored = history.restore(1)
        partial = restored.conversation.path()[-1]
        assert partial.message.content == first + shown.text
        assert partial.origin.stop_reason == "user_cancelled"
