"""Type-ahead: the stable part of a draft is read in idle time, and never makes an answer wrong."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, KINDS, REASONING, TinySession, make_tiny_folder

from mlxchat.chat.draft import find_stable
from mlxchat.chat.results import TurnResult
from mlxchat.engine.worker import JobContext

Open = Callable[..., TinySession]
DRAFT = "and then the other one in the ring said that it is on the line"


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions that work in idle time, over one folder per kind and template."""
    sessions = []

    def open_(kind: str = "full", template: str = CHATML, **options: Any) -> TinySession:
        name = "full" if kind == "recurrent" else kind
        folder = tmp_path / f"{name}{len(template)}"
        if not folder.exists():
            make_tiny_folder(folder, name, template=template, max_position_embeddings=4096)
        options = {"idle_work": True, "keeps_history": False, **options}
        sessions.append(TinySession(folder, kind, **options))
        return sessions[-1]

    yield open_
    for session in sessions:
        session.close()


def type_in(session: TinySession, *drafts: str) -> None:
    """Shows the session each draft and lets it read it."""
    for draft in drafts:
        session.read_ahead(draft)
        session.wait_until_idle()


def ask(session: TinySession, text: str) -> TurnResult:
    """Sends a message, checks the answer, and lets the session settle."""
    result = session.send(text).result(60)
    assert result.verify is not None
    assert result.verify.holds
    assert result.verify.tokens_equal
    usage = result.usage
    assert usage.prompt_tokens == usage.cached_tokens + usage.prefill_tokens
    session.wait_until_idle()
    return result


@pytest.mark.parametrize(
    ("draft", "stable"),
    [
        ("", ""),
        ("Hel", ""),
        ("Hello wor", "Hello"),
        ("Hello world ", "Hello world"),
        ("one\n\ntwo", "one"),
        ("  lead", ""),
        ("漢" * 50, "漢" * 26),
    ],
)
def test_the_last_word_is_not_stable(draft: str, stable: str) -> None:
    """What is read is the draft without the word that is being written, however it is written."""
    assert find_stable(draft) == stable


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [CHATML, REASONING])
def test_a_draft_is_read_before_it_is_sent(open_session: Open, kind: str, template: str) -> None:
    """The turn reads the last word and the prompt's end only, and answers as without type-ahead."""
    session, plain = open_session(kind, template), open_session(kind, template)
    for question in ("hi there", DRAFT):
        words = question.split()
        type_in(session, *(" ".join(words[:n]) for n in range(1, len(words) + 1)))
        result, expected = ask(session, question), ask(plain, question)
        assert result.tokens == expected.tokens
        assert result.verify is not None
        assert expected.verify is not None
        assert result.verify.prompt_ids == expected.verify.prompt_ids
    ahead = result.usage.typeahead_tokens
    assert ahead > 10
    assert expected.usage.typeahead_tokens == 0
    assert result.usage.prefill_tokens + ahead == expected.usage.prefill_tokens
    last = len(session.runner.tokenizer.encode(" line<|im_end|>\n<|im_start|>assistant\n<think>\n"))
    assert result.usage.prefill_tokens <= last + 2
    assert f"({ahead} read while you typed)" in result.cache.reason


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_costs_no_more_than_the_draft(open_session: Open, kind: str) -> None:
    """After an edit at the start of a draft nothing before the draft is read again."""
    session, plain = open_session(kind), open_session(kind)
    for one in (session, plain):
        ask(one, "a long beginning of it all")
    type_in(session, DRAFT, "x" + DRAFT)
    session.model_.calls.clear()
    result, expected = ask(session, f"y{DRAFT}"), ask(plain, f"y{DRAFT}")
    assert result.tokens == expected.tokens
    assert result.usage.prefill_tokens <= expected.usage.prefill_tokens


def pause(session: TinySession, draft: str) -> None:
    """Shows the session a draft that the person has stopped at."""
    session.read_ahead(draft)
    session.read_ahead(draft, is_still=True)
    session.wait_until_idle()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [CHATML, REASONING])
def test_after_a_pause_nothing_is_left_to_read(
    open_session: Open, kind: str, template: str
) -> None:
    """What was read whole is answered without a pass, as it is without type-ahead."""
    session, plain = open_session(kind, template), open_session(kind, template)
    for question in ("hi there", DRAFT, "one"):
        pause(session, question)
        held = list(session.prefix.token_ids)
        result, expected = ask(session, question), ask(plain, question)
        assert result.tokens == expected.tokens
        assert result.verify is not None
        assert list(result.verify.prompt_ids) == held
        assert result.usage.prefill_tokens == 0
        assert result.timing.prefill_tok_per_s is None
        assert result.usage.cached_tokens == expected.usage.prompt_tokens
    assert result.usage.typeahead_tokens == expected.usage.prefill_tokens
    assert f"({result.usage.typeahead_tokens} read while you typed), read 0" in result.cache.reason


@pytest.mark.parametrize("kind", KINDS)
def test_typing_on_after_a_pause(open_session: Open, kind: str) -> None:
    """What was read behind the draft is taken back, and of the draft only its last word."""
    session, plain = open_session(kind), open_session(kind)
    for one in (session, plain):
        ask(one, "a long beginning of it all")
    words = DRAFT.split()
    for num in range(3, len(words)):
        pause(session, " ".join(words[:num]))
    marks = len(session.prefix.marks)
    session.model_.calls.clear()
    pause(session, DRAFT)
    tail = session.runner.tokenizer.encode(" the line<|im_end|>\n<|im_start|>assistant\n")
    assert sum(session.model_.calls) <= len(tail) + 2
    assert len(session.prefix.marks) <= marks + 1  # they do not pile up with every pause
    assert ask(session, DRAFT).tokens == ask(plain, DRAFT).tokens


def test_a_pause_at_something_else(open_session: Open) -> None:
    """A message that is another one than the one that was read whole is read as ever."""
    session, plain = open_session(), open_session()
    pause(session, DRAFT)
    result, expected = ask(session, f"{DRAFT} now"), ask(plain, f"{DRAFT} now")
    assert result.tokens == expected.tokens
    assert 0 < result.usage.prefill_tokens < expected.usage.prefill_tokens
    pause(session, DRAFT)
    session.set_system("be brief")
    assert ask(session, DRAFT).usage.prefill_tokens > 0


def test_a_key_stops_the_reading_of_a_pause(open_session: Open) -> None:
    """A draft that goes on is not read to the end of a prompt that nobody will send."""
    session = open_session(chunk=2)
    type_in(session, DRAFT)
    held = len(session.prefix.token_ids)
    session.model_.after(2, lambda: session.read_ahead(f"{DRAFT} an"))
    session.read_ahead(DRAFT, is_still=True)
    session.wait_until_idle()
    result = ask(session, f"{DRAFT} and")
    last = session.runner.tokenizer.encode(" and<|im_end|>\n<|im_start|>assistant\n")
    assert held < result.usage.cached_tokens <= held + 4  # two chunks
    assert result.usage.prefill_tokens <= len(last) + 1


def test_taking_words_back_keeps_what_was_read(open_session: Open) -> None:
    """Deleting the end of a draft reads nothing, and typing it again neither."""
    session = open_session("recurrent")
    type_in(session, DRAFT)
    session.model_.calls.clear()
    type_in(session, DRAFT[:30], DRAFT[:20], DRAFT)
    assert session.model_.calls == []


def test_the_system_prompt_is_read_with_the_first_letter(open_session: Open) -> None:
    """Before the first message type-ahead reads the system prompt; that is no type-ahead."""
    session = open_session(system="be the one in the line and say on and on")
    type_in(session, "H")
    held = session.context_used, len(session.prefix.token_ids)
    result = ask(session, "Hi")
    assert held[1] > 20
    assert result.usage.cached_tokens >= held[1] - 1
    assert result.usage.typeahead_tokens == 0
    assert result.usage.settle_tokens == held[1]


def test_the_context_shown_leaves_the_draft_out(open_session: Open) -> None:
    """What is held of a draft is no part of the conversation yet."""
    session = open_session()
    ask(session, "hello")
    used = session.context_used
    type_in(session, DRAFT)
    assert session.context_used == used
    assert len(session.prefix.token_ids) > used + 10


def test_a_sent_draft_is_read_no_more(open_session: Open) -> None:
    """A draft that waits when its message is sent is not taken for the beginning of the next."""
    session = open_session()
    ask(session, "hello")
    is_busy = threading.Event()

    def wait(context: JobContext) -> None:
        is_busy.set()
        context._cancel.wait(20)

    gate = session._worker.submit(wait, idle=True)
    is_busy.wait(20)
    session.read_ahead(DRAFT)
    job = session.send("another message")  # cancels the gate
    job.result(60)
    gate.result()
    session.wait_until_idle()
    held = session.runner.tokenizer.decode(session.prefix.token_ids, skip_special_tokens=False)
    assert "ring" not in held


def test_a_turn_need_not_wait_for_a_draft(open_session: Open) -> None:
    """A message that is sent in the middle of reading stops it after the running chunk."""
    session = open_session(chunk=4)
    ask(session, "hello")
    text = f"{DRAFT} " * 8
    jobs = []
    session.model_.after(2, lambda: jobs.append(session.send(text)))
    session.read_ahead(text)
    while not jobs:
        time.sleep(0.001)
    result = jobs[0].result(60)
    assert result.verify is not None
    assert result.verify.holds
    assert result.usage.typeahead_tokens == 12
    assert result.usage.prefill_tokens > 100


def test_an_edit_stops_what_is_being_read(open_session: Open) -> None:
    """While a draft is read, one that no longer agrees with it takes its place at once."""
    session = open_session(chunk=4)
    ask(session, "hello")
    session.model_.calls.clear()
    session.model_.after(2, lambda: session.read_ahead("now for something else entirely"))
    type_in(session, f"{DRAFT} " * 40)
    assert sum(session.model_.calls) < 60
    assert "something" in session.runner.tokenizer.decode(session.prefix.token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_random_typing(open_session: Open, kind: str) -> None:
    """However a draft was typed, changed and sent, the answers are those of a plain session."""
    chance = random.Random(7)
    session, plain = open_session(kind), open_session(kind)
    for _ in range(6):
        text = ""
        for _ in range(chance.randrange(1, 9)):
            if text and chance.random() < 0.3:
                text = text[: chance.randrange(len(text))]
            at = chance.randrange(len(text) + 1) if chance.random() < 0.3 else len(text)
            text = text[:at] + DRAFT[: chance.randrange(1, len(DRAFT))] + text[at:]
            session.read_ahead(text, is_still=chance.random() < 0.5)
            if chance.random() < 0.7:
                session.wait_until_idle()
        assert ask(session, text).tokens == ask(plain, text).tokens
        if chance.random() < 0.5:
            for one in (session, plain):
                one.undo()


def test_after_a_retry_nothing_counts_as_typed(open_session: Open) -> None:
    """What was read of a draft is not counted for another message."""
    session = open_session()
    ask(session, "hello there")
    type_in(session, DRAFT)
    result = session.retry().result(60)
    assert result.usage.typeahead_tokens == 0


def test_without_idle_work_nothing_is_read(open_session: Open) -> None:
    """Where there is no idle work, a draft changes nothing."""
    session = open_session(idle_work=False)
    session.read_ahead(DRAFT)
    session.wait_until_idle()
    assert session.prefix.token_ids == []


def test_a_full_context_is_not_read_into(open_session: Open) -> None:
    """A draft that cannot be sent is not read."""
    session = open_session(max_context=20)
    type_in(session, DRAFT * 3)
    assert session.prefix.token_ids == []


def test_the_cost_of_a_draft(open_session: Open) -> None:
    """The cost falls by what was read ahead, and says how full the context would be."""
    session = open_session(max_context=1000)
    ask(session, "hello")
    session.runner.engine.chunker.tok_per_s = {8: 100.0}
    tokens = session.count_tokens(DRAFT)
    assert tokens is not None
    before = session.estimate_cost(tokens)
    assert before is not None
    assert before.seconds == pytest.approx(tokens / 100)
    assert before.context_share == pytest.approx((session.context_used + tokens) / 1000)
    type_in(session, DRAFT)
    session.runner.engine.chunker.tok_per_s = {8: 100.0}
    after = session.estimate_cost(tokens)
    assert after is not None
    assert after.seconds is not None
    assert after.seconds < 0.05
    assert after.context_share == pytest.approx(before.context_share)


def test_no_rate_no_seconds(open_session: Open) -> None:
    """Before anything was measured no time is promised."""
    session = open_session()
    cost = session.estimate_cost(10)
    assert cost is not None
    assert cost.seconds is None
