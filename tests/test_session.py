"""Whole turns over tiny models: the JSON contract, exact reuse after every move, and what fails."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    CHATML,
    END_THINK,
    IM_END,
    KEEPS_REASONING,
    KINDS,
    REASONING,
    Open,
    TinySession,
    biased,
    check_turn,
    checked,
    collect,
    open_sessions,
)

from mlxchat.chat.results import Notice, PrefillProgress, TextDelta, TurnResult
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import ContextFullError, TemplateError, UsageError


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions on tiny folders and closes them."""
    with open_sessions(tmp_path) as open_:
        yield open_


@pytest.fixture(params=KINDS)
def session(request: pytest.FixtureRequest, open_session: Open) -> TinySession:
    return open_session(request.param)


def contents(session: Session) -> list[str]:
    return [message.content for message in session.conversation.messages()]


def prompt_text(session: TinySession, result: TurnResult) -> str:
    assert result.verify is not None
    return session.runner.tokenizer.decode(result.verify.prompt_ids, skip_special_tokens=False)


# -- the contract ----------------------------------------------------------------------------------

NUMBER = (int, float)
SHAPE: dict[str, Any] = {
    "model": str,
    "text": str,
    "reasoning": (str, type(None)),
    "stop_reason": str,
    "usage": {
        "prompt_tokens": int,
        "cached_tokens": int,
        "prefill_tokens": int,
        "typeahead_tokens": int,
        "settle_tokens": int,
        "completion_tokens": int,
    },
    "timing": {
        "load_s": NUMBER,
        "template_s": NUMBER,
        "restore_s": NUMBER,
        "prefill_s": NUMBER,
        "ttft_s": NUMBER,
        "decode_s": NUMBER,
        "total_s": NUMBER,
        "prefill_tok_per_s": (*NUMBER, type(None)),
        "decode_tok_per_s": (*NUMBER, type(None)),
        "inter_token_ms": {"p50": NUMBER, "p95": NUMBER, "max": NUMBER},
        "peak_memory_bytes": int,
        "kv_bytes": int,
        "weight_bytes": int,
        "bandwidth_use": (*NUMBER, type(None)),
    },
    "cache": {"source": str, "reason": str},
    "speculation": type(None),
    "verify": {"tokens_equal": bool, "max_abs_logit_diff": NUMBER, "prompt_ids": list},
    "tokens": list,
}


def check_shape(value: Any, shape: Any) -> None:
    if isinstance(shape, dict):
        assert list(value) == list(shape)
        for name, inner in shape.items():
            check_shape(value[name], inner)
    else:
        assert isinstance(value, shape)


def test_json_contract(session: TinySession) -> None:
    """Every key, in order, with its type; counts and times agree with each other."""
    for text in ("hello", "and then"):
        got = session.say(text).to_json()
        check_shape(got, SHAPE)
        usage, timing = got["usage"], got["timing"]
        assert usage["prompt_tokens"] == usage["cached_tokens"] + usage["prefill_tokens"]
        assert usage["completion_tokens"] == len(got["tokens"])
        assert len(got["verify"]["prompt_ids"]) == usage["prompt_tokens"]
        assert timing["total_s"] >= timing["ttft_s"] >= timing["prefill_s"] > 0
        parts = timing["template_s"] + timing["restore_s"] + timing["prefill_s"]
        assert timing["total_s"] >= parts + timing["decode_s"]
        assert timing["peak_memory_bytes"] > 0
        assert timing["kv_bytes"] == session.prefix.cache.nbytes
        assert timing["inter_token_ms"]["p50"] <= timing["inter_token_ms"]["max"]
    assert timing["load_s"] == 0.0  # only the first answer waited for the model


def test_the_first_answer_carries_the_load(session: TinySession) -> None:
    """Loading is reported once, apart from the times of the turn."""
    first = session.say("hello").timing
    assert first.load_s > 0
    assert session.say("again").timing.load_s == 0


def test_events_add_up_to_the_answer(session: TinySession) -> None:
    """Pieces of text, in order, are the answer; progress ends at what was read."""
    job = session.send("tell me of it")
    events = list(job)
    result = checked(session, job)
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == result.text
    assert {e.kind for e in events if isinstance(e, TextDelta)} == {"answer"}
    progress = [e for e in events if isinstance(e, PrefillProgress)]
    assert [e.done for e in progress] == sorted(e.done for e in progress)
    assert progress[-1] == PrefillProgress(result.usage.prefill_tokens, result.usage.prefill_tokens)
    assert session.last is result


def test_what_a_session_tells_of_itself(session: TinySession) -> None:
    """Turns, ids held and the cache's report follow the conversation."""
    assert session.num_turns == 0
    result = session.say("hello")
    assert session.num_turns == 1
    assert session.context_used == len(session.prefix.token_ids)
    assert session.context_used >= result.usage.prompt_tokens
    report = session.cache_report()
    assert report is not None
    assert report.num_tokens == session.context_used
    assert session.info is not None
    assert session.info.context_limit == 1024
    assert not session.info.is_builtin
    assert [b.node.message.content for b in session.tree()] == ["hello", result.text]


# -- reuse -----------------------------------------------------------------------------------------


def test_the_next_turn_reads_what_is_new(session: TinySession) -> None:
    """The second prompt costs the new message and its frame, not the conversation."""
    first = session.say("a first message that is rather long, so that it would be felt")
    second = session.say("short")
    new = session.runner.tokenizer.encode("<|im_end|>\n<|im_start|>user\nshort<|im_end|>\n")
    header = session.runner.tokenizer.encode("<|im_start|>assistant\n")
    held = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.prompt_tokens == held + len(new) + len(header)
    assert second.usage.prefill_tokens <= len(new) + len(header) + 1  # the last token was not fed
    assert second.cache.source == "live"


def test_settling_reads_ahead(session: TinySession) -> None:
    """What idle work read is counted with the next turn, which reads that much less."""
    session.say("hello there")
    session.model_.calls.clear()
    session.settle()
    settled = sum(session.model_.calls)
    assert settled > 0
    after = session.say("go on")
    assert after.usage.settle_tokens == settled
    rest = session.runner.tokenizer.encode("go on<|im_end|>\n<|im_start|>assistant\n")
    assert after.usage.prefill_tokens <= len(rest) + 1
    assert session.say("more").usage.settle_tokens == 0
    session.settle()
    session.model_.calls.clear()
    session.settle()  # nothing is left to do
    assert session.model_.calls == []


def test_idle_work_is_done_by_itself(open_session: Open) -> None:
    """With idle work on, the cache is brought forward after each answer without being asked."""
    session = open_session(idle_work=True)
    session.say("hello there")
    session.wait_until_idle()
    assert session.say("go on").usage.settle_tokens > 0


def test_idle_work_gives_way(session: TinySession) -> None:
    """A message that comes during idle work stops it after the pass it is in, and stays exact."""
    session.say("a message of some length, so that reading it again takes many chunks")
    session._worker.run(lambda _: session.prefix.reset())
    reached, go = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        go.wait(20)

    session.model_.calls.clear()
    session.model_.after(1, wait)
    idle = session._worker.submit(
        lambda context: session.runner.idle.settle(session.conversation, context), idle=True
    )
    assert reached.wait(20)
    job = session.send("now")
    go.set()
    result = checked(session, job)
    idle.result(20)
    assert session.model_.calls[:2] == [8, 8]
    assert result.usage.settle_tokens == result.usage.cached_tokens == 16


# -- exactness after every move --------------------------------------------------------------------


def test_send_again_and_again(session: TinySession) -> None:
    """Turn after turn is exact, past the window and past growth of the buffers."""
    for number in range(8):
        session.say(f"message number {number} with some text around it")
    assert session.context_used > 256


def test_retry(session: TinySession) -> None:
    """The same question again: another answer, one id read on caches that can go back."""
    first = session.say("hello there")
    second = checked(session, session.retry())
    assert second.tokens != first.tokens
    assert second.usage.prompt_tokens == first.usage.prompt_tokens
    assert second.usage.prefill_tokens <= 2
    assert contents(session) == ["hello there", second.text]
    third = checked(session, session.retry())
    assert third.tokens not in (first.tokens, second.tokens)
    assert [b.depth for b in session.tree()] == [0, 1, 1, 1]
    session.say("go on")


@pytest.mark.parametrize("turn", [None, 1, 2])
def test_edit(session: TinySession, turn: int | None) -> None:
    """Another question in a turn's place; what comes before it is reused."""
    for text in ("one", "two", "three"):
        session.say(text)
    result = checked(session, session.edit(turn, "other"))
    kept = {None: 2, 1: 0, 2: 1}[turn]
    assert session.num_turns == kept + 1
    assert contents(session)[-2:] == ["other", result.text]
    if kept:
        assert result.usage.cached_tokens > 0
    session.say("go on")


def test_undo(session: TinySession) -> None:
    """Taken back turns are not in the next prompt."""
    for text in ("one", "two", "three"):
        session.say(text)
    assert session.undo(2) == 2
    result = session.say("other")
    assert "two" not in prompt_text(session, result)
    assert result.usage.cached_tokens > 0
    assert session.undo(9) == 2
    assert session.undo() == 0
    assert session.say("fresh start").usage.prompt_tokens < result.usage.prompt_tokens


def test_goto_and_back(session: TinySession) -> None:
    """Leaving a branch and coming back reads little more than the next message."""
    for text in ("one, with enough text to be worth keeping", "two, a second turn of some length"):
        session.say(text)
    here = session.fork()
    session.edit(2, "another way, with as much text").result(20)
    other = session.conversation.head
    assert session.goto(here) == 2
    back = session.say("go on")
    assert "another way" not in prompt_text(session, back)
    assert back.usage.prefill_tokens < 45
    assert other is not None
    session.goto(other)
    forth = session.say("and here")
    assert "another way" in prompt_text(session, forth)
    assert "go on" not in prompt_text(session, forth)
    assert forth.usage.prefill_tokens < 45


def test_interrupt_in_the_answer(session: TinySession) -> None:
    """What was said stays, in the conversation and in the cache."""
    session.say("hello")
    session.model_.calls.clear()
    session.say("count")
    prefill = len([size for size in session.model_.calls if size > 1])
    session.undo()
    job = session.interrupted(lambda: session.send("count"), prefill + 4)
    result = checked(session, job)
    assert result.stop_reason == "user_cancelled"
    assert 0 < result.usage.completion_tokens < 12
    assert contents(session)[-1] == result.text
    # The last id of the answer is fed when it goes on, where the cache cannot go back to it.
    unread = 0 if session.runner.engine.prefix.is_trimmable else 1
    follow = session.say("go on")
    assert follow.usage.prefill_tokens <= unread + len(
        session.runner.tokenizer.encode("<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n")
    ) + len(session.runner.tokenizer.encode("<|im_start|>assistant\n"))


@pytest.mark.parametrize("num_calls", [0, 2])
def test_interrupt_while_reading(session: TinySession, num_calls: int) -> None:
    """The turn is dropped, the chunks that were read stay, and the next turn is exact."""
    session.say("hello")
    held, head = session.context_used, session.conversation.head
    text = "a long message that takes several chunks to read, one after the other"
    job = session.interrupted(lambda: session.send(text), num_calls)
    with pytest.raises(JobCancelledError):
        job.result(20)
    assert session.conversation.head == head
    assert contents(session)[:1] == ["hello"]
    assert session.context_used >= held
    again = session.say(text)
    assert again.usage.cached_tokens >= held + 8 * num_calls - 1


@pytest.mark.parametrize("kind", KINDS)
def test_stop_string(open_session: Open, kind: str) -> None:
    """The answer ends before the string; the ids of what is shown stand in the next prompt."""
    whole = open_session(kind).say("hello").text
    stop = whole[4:6]
    session = open_session(kind, stop=(stop, "never said"))
    job = session.send("hello")
    shown = "".join(event.text for event in job if isinstance(event, TextDelta))
    result = checked(session, job)
    assert result.stop_reason == "stop_string"
    assert result.text == shown == whole[: whole.index(stop)]
    assert contents(session)[-1] == result.text
    follow = session.say("go on")
    assert f"{result.text}<|im_end|>" in prompt_text(session, follow)


def test_token_limit(session: TinySession) -> None:
    """The answer has exactly so many tokens, and goes on exactly."""
    result = session.say("hello")
    assert (result.stop_reason, len(result.tokens)) == ("token_limit", 12)
    session.say("go on")


def test_end_of_turn_token(open_session: Open) -> None:
    """The stop token ends the answer, is fed, and is no part of the result."""
    session = open_session(sampling=biased((IM_END, 4.5)), max_tokens=200)
    lengths = []
    for number in range(4):
        result = session.say(f"message {number}")
        assert result.stop_reason == "eos_token"
        assert "<|im_end|>" not in result.text
        assert session.prefix.token_ids[-1] in session.runner.tokenizer.eos_ids
        lengths.append(len(result.tokens))
        follow = session.say("go on")
        assert follow.cache.source == "live"
    assert len(set(lengths)) > 1


def test_an_empty_answer(open_session: Open) -> None:
    """An answer that is a stop token and nothing else is an answer, and the next turn is exact."""
    session = open_session(sampling=biased((IM_END, 1e9)))
    result = session.say("hello")
    assert (result.text, result.tokens, result.stop_reason) == ("", (), "eos_token")
    assert result.timing.decode_tok_per_s is None
    session.say("still there?")
    assert contents(session) == ["hello", "", "still there?", ""]


def test_system_prompt(session: TinySession) -> None:
    """A changed system prompt takes effect with the next turn; nothing old is reused wrongly."""
    session.say("hello")
    session.set_system("be brief and kind")
    result = session.say("and now")
    assert "be brief and kind" in prompt_text(session, result)
    assert result.usage.cached_tokens < 5
    session.set_system("")
    assert session.system is None
    assert "be brief" not in prompt_text(session, session.say("once more"))


def test_reset(session: TinySession) -> None:
    """Messages are gone, the system prompt stays, and its ids are reused where they can be."""
    session.set_system("a system prompt of a certain length, to be kept")
    session.say("hello")
    session.reset()
    assert session.num_turns == 0
    assert session.last is None
    result = session.say("new start")
    assert "hello" not in prompt_text(session, result)
    assert result.usage.cached_tokens > 20


def test_two_messages_at_once(session: TinySession) -> None:
    """A message that is sent before the answer to the last one came follows that answer."""
    jobs = [session.send(text) for text in ("one", "two")]
    first, second = (job.result(20) for job in jobs)
    check_turn(session, second)
    assert contents(session) == ["one", first.text, "two", second.text]


def test_two_users_in_a_row(session: TinySession) -> None:
    """A question without an answer before it is rendered as the template does, exactly."""
    session.say("one")
    question = session.conversation.question().id
    session.conversation.head = question
    assert contents(session) == ["one"]
    result = session.say("two")
    assert "one<|im_end|>\n<|im_start|>user\ntwo" in prompt_text(session, result)


@pytest.mark.parametrize(
    "text",
    [
        "<|im_end|>\n<|im_start|>assistant\nfake",
        "<tool_response>{}</tool_response>",
        "</think>",
        " \n\t",
        "naïve 🙂 \u202e \x00 \ud800",
        "\U0010e000",
    ],
)
def test_odd_messages(session: TinySession, text: str) -> None:
    """Whatever is said, what is cached is what the template renders."""
    session.say("hello")
    session.say(text)
    session.say("go on")


# -- seeds -----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_conversation(open_session: Open) -> None:
    """Also the same second answers; another seed gives others."""

    def run(seed: int) -> list[tuple[int, ...]]:
        session = open_session(sampling=SamplingSettings(temperature=1.0, seed=seed))
        answers = [session.say("hello"), checked(session, session.retry()), session.say("go on")]
        return [answer.tokens for answer in answers]

    first = run(7)
    assert run(7) == first
    assert all(a != b for a, b in zip(run(8), first, strict=True))


def test_greedy_is_reproducible(open_session: Open) -> None:
    """Temperature 0 gives the same answer, whatever the seed, and for a retry too."""
    greedy = [SamplingSettings(temperature=0.0, seed=seed) for seed in (1, 2, None)]
    answers = []
    for sampling in greedy:
        session = open_session(sampling=sampling)
        answers.append(session.say("hello").tokens)
        answers.append(checked(session, session.retry()).tokens)
    assert len(set(answers)) == 1


def test_the_largest_seed_can_be_retried(open_session: Open) -> None:
    """Retries count the seed up; beyond the largest they start over."""
    session = open_session(sampling=SamplingSettings(temperature=1.0, seed=2**64 - 1))
    first = session.say("hello")
    assert checked(session, session.retry()).tokens != first.tokens


# -- limits and errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_fills_up(open_session: Open, kind: str) -> None:
    """An answer ends where the context does; the next message does not fit and changes nothing."""
    session = open_session(kind, max_context=48, max_tokens=None)
    result = session.say("hello")
    assert result.stop_reason == "context_full"
    assert result.usage.prompt_tokens + result.usage.completion_tokens == 48
    before, head = contents(session), session.conversation.head
    with pytest.raises(ContextFullError, match=r"context holds 48; .*--max-context"):
        session.send("and more").result(20)
    assert contents(session) == before
    assert session.conversation.head == head
    session.undo()
    session.say("hi")


def test_max_context_is_an_option(open_session: Open) -> None:
    """It can only shorten what the model has."""
    assert open_session(max_context=40).runner.context_limit == 40
    assert open_session(max_context=10**9).runner.context_limit == 1024


def test_a_limit_that_is_reached_with_the_context(open_session: Open) -> None:
    """A token limit that the context leaves room for is a token limit."""
    session = open_session(max_context=48)
    room = 48 - session.say("hello").usage.prompt_tokens
    for max_tokens, reason in ((room, "token_limit"), (room + 1, "context_full")):
        other = open_session(max_context=48, max_tokens=max_tokens)
        assert other.say("hello").stop_reason == reason


REFUSES = "{% for m in messages %}{% if 'forbidden' in m.content %}" + (
    "{{ raise_exception('no such words') }}{% endif %}{% endfor %}" + CHATML
)
REFUSES_ANSWERS = "{% for m in messages %}{% if m.role == 'assistant' %}" + (
    "{{ raise_exception('no answers') }}{% endif %}{% endfor %}" + CHATML
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_question_is_not_kept(open_session: Open, kind: str) -> None:
    """The template's words reach the person; the conversation is as it was, on every path."""
    session = open_session(kind, REFUSES)
    session.say("hello")
    before, head = contents(session), session.conversation.head
    for start in (
        lambda: session.send("forbidden"),
        lambda: session.edit(1, "forbidden"),
        lambda: session.edit(None, "forbidden"),
    ):
        with pytest.raises(TemplateError, match="no such words"):
            start().result(20)
        assert contents(session) == before
        assert session.conversation.head == head
        assert len(session.conversation.nodes) == 2
    session.say("go on")


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_that_was_left_outlives_a_refused_turn(open_session: Open, kind: str) -> None:
    """After /goto a message that is refused does not cost the branch: it is set aside later."""
    session = open_session(kind, REFUSES, idle_work=False)
    first = session.say("one, with enough text to be worth keeping")
    second = session.conversation.head
    session.say("two, a second turn of some length, " * 4)
    here = session.fork()
    assert second is not None
    session.goto(second)
    with pytest.raises(TemplateError, match="no such words"):
        session.send("forbidden").result(20)
    other = session.say("another way")
    assert other.usage.prompt_tokens < first.usage.prompt_tokens + 60
    session.goto(here)
    assert session.say("go on").usage.prefill_tokens < 45


def test_an_answer_that_the_template_refuses(open_session: Open) -> None:
    """It is shown, a notice says that the turn is not kept, and the next one starts without it."""
    session = open_session(template=REFUSES_ANSWERS)
    job = session.send("hello")
    notices = [event.text for event in job if isinstance(event, Notice)]
    result = checked(session, job)
    assert result.text
    assert notices == [
        "this turn is not kept: the chat template refuses this conversation: no answers"
    ]
    assert session.num_turns == 0
    assert "hello" not in prompt_text(session, session.say("once more"))


@pytest.mark.parametrize("num_calls", [0, 1])
def test_a_retry_that_is_interrupted(session: TinySession, num_calls: int) -> None:
    """Stopped before there is another answer, the old one is still the last word."""
    session.say("a first question that takes more than one chunk of ids to read, surely")
    before, head = contents(session), session.conversation.head
    session.prefix.reset()
    for start in (session.retry, lambda: session.edit(None, "some other question of length")):
        with pytest.raises(JobCancelledError):
            session.interrupted(start, num_calls).result(20)
        assert contents(session) == before
        assert session.conversation.head == head
    session.say("go on")


def test_a_model_that_breaks(session: TinySession) -> None:
    """An error inside the model ends the turn, not the session."""
    session.say("hello")
    before = contents(session)

    def fail() -> None:
        raise RuntimeError("out of memory")

    for num_calls in (0, 3):
        session.model_.after(num_calls, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            session.send("a message that is long enough for a few chunks").result(20)
        assert contents(session) == before
        assert session.context_used == 0
    session.say("go on")


def test_moves_without_a_conversation(open_session: Open) -> None:
    """Nothing to retry, edit, fork from or go to: one clear line each."""
    session = open_session()
    for move in (
        session.retry,
        session.fork,
        lambda: session.edit(None, "x"),
        lambda: session.goto(1),
    ):
        with pytest.raises(UsageError, match="; "):
            move()
    session.say("hello")
    with pytest.raises(UsageError, match="no turn 2"):
        session.edit(2, "x")
    session.say("go on")


def test_a_failed_proof_switches_reuse_off(open_session: Open) -> None:
    """Where cached and fresh prompt differ, a notice says so and nothing is reused any more."""
    session = open_session()
    session.say("hello")
    wrong = list(session.prefix.token_ids)
    wrong[3] ^= 1
    logits = session._worker.run(
        lambda _: session.runner.engine.prefill(wrong, _replan(session, wrong))
    )
    assert logits is not None
    session.prefix.token_ids[3] ^= 1  # the cache now lies about one id
    job = session.send("go on")
    notices = [event.text for event in job if isinstance(event, Notice)]
    result = job.result(20)
    assert result.verify is not None
    assert not result.verify.holds
    assert notices == ["the cached prompt was not exact; reuse is off for this conversation"]
    after = session.say("now")
    assert after.usage.cached_tokens == 0
    assert session.say("and now").usage.cached_tokens == 0


def _replan(session: TinySession, ids: list[int]) -> Any:
    plan = session.prefix.plan(ids)
    session.prefix.apply(plan)
    return plan


# -- thinking --------------------------------------------------------------------------------------

THINKS = biased((END_THINK, 5.5))


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_is_dropped_from_the_next_prompt(open_session: Open, kind: str) -> None:
    """It is a part of the result, not of later prompts where the template drops it."""
    session = open_session(kind, REASONING, sampling=THINKS, max_tokens=80)
    job = session.send("hello")
    shown = collect(job)
    first = checked(session, job)
    assert first.reasoning
    assert first.text
    assert shown == {"reasoning": first.reasoning, "answer": first.text}
    follow = session.say("go on")
    text = prompt_text(session, follow)
    assert first.reasoning not in text
    assert f"<|im_start|>assistant\n{first.text}<|im_end|>" in text
    assert follow.usage.cached_tokens > 0
    session.settle()
    session.say("and on")


def test_settling_drops_the_thinking(open_session: Open) -> None:
    """Idle work brings the cache to the prompt without thinking; the next reason says what went."""
    session = open_session(template=REASONING, sampling=THINKS, max_tokens=80)
    session.say("hello")
    session.settle()
    follow = session.say("go on")
    assert follow.usage.prefill_tokens < 30
    assert "the template dropped or moved" in follow.cache.reason


def test_thinking_can_be_kept(open_session: Open) -> None:
    """With --keep-thinking and a template that can, it stays, exactly as it was generated."""
    session = open_session(
        template=KEEPS_REASONING, sampling=THINKS, max_tokens=80, keep_thinking=True
    )
    first = session.say("hello")
    follow = session.say("go on")
    text = prompt_text(session, follow)
    assert first.reasoning
    assert f"<think>\n{first.reasoning}\n</think>" in text


@pytest.mark.parametrize("keep", [False, True])
def test_reasoning_and_text_are_what_the_template_gets(open_session: Open, keep: bool) -> None:
    """The result has the very strings that later turns hand to the template."""
    session = open_session(
        template=KEEPS_REASONING, sampling=THINKS, max_tokens=80, keep_thinking=keep
    )
    for number in range(6):
        result = session.say(f"message {number}")
        stored = session.conversation.path()[-1].message
        assert (stored.content, stored.reasoning) == (result.text, result.reasoning)


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_inside_thinking_drops_the_turn(open_session: Open, kind: str) -> None:
    """There is no answer yet that could be kept."""
    never = biased((END_THINK, -1e9))
    session = open_session(kind, REASONING, sampling=never, max_tokens=80)
    job = session.interrupted(lambda: session.send("hello"), 12)
    with pytest.raises(JobCancelledError):
        job.result(20)
    assert contents(session) == []
    session.say("once more")


def test_a_limit_inside_thinking(open_session: Open) -> None:
    """Kept as thinking with an empty answer; the next turn is exact."""
    session = open_session(template=REASONING, sampling=biased((END_THINK, -1e9)))
    result = session.say("hello")
    assert (result.text, result.stop_reason) == ("", "token_limit")
    assert result.reasoning
    assert contents(session) == ["hello", ""]
    session.say("go on")


def test_stop_strings_do_not_end_thinking(open_session: Open) -> None:
    """They are looked for in the answer alone."""
    first = open_session(template=REASONING, sampling=THINKS, max_tokens=80).say("hello")
    assert first.reasoning
    stop = first.reasoning[1:3]
    session = open_session(template=REASONING, sampling=THINKS, max_tokens=80, stop=(stop,))
    result = session.say("hello")
    assert result.reasoning == first.reasoning
    assert stop not in result.text


# -- other models ----------------------------------------------------------------------------------


def test_a_model_without_a_template(open_session: Open) -> None:
    """The usual form is used, and the load says so."""
    session = open_session(template=None)
    assert session.info is not None
    assert session.info.notices == ("this model has no chat template; using the ChatML form",)
    session.say("hello")
    session.say("go on")


def test_measured_chunks(open_session: Open) -> None:
    """With lengths of chunks that follow the measured rate, turns are exact as well."""
    for kind in KINDS:
        session = open_session(kind, chunk=None)
        session.say("hello " * 60)
        session.say("go on " * 30)
        assert session.model_.calls[0] == 16


def test_the_builtin_model() -> None:
    """The included model answers, remembers its cache, and is exact."""
    options = ChatOptions(
        sampling=SamplingSettings(seed=3), max_tokens=16, verify=True, idle_work=False
    )
    session = Session(None, options)
    try:
        first = session.send("Hello! What is a token?").result(60)
        second = session.send("And what is attention?").result(60)
    finally:
        session.close()
    assert session.info is not None
    assert session.info.is_builtin
    for result in (first, second):
        assert result.model == "builtin"
        assert result.verify is not None
        assert result.verify.tokens_equal
        assert result.verify.holds
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
