"""Thinking that is ended: by a budget or by a key, with the template's own marker, id for id."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_templates import SMALL_TEMPLATES
from tiny import (
    CHATML,
    END_THINK,
    KEEPS_REASONING,
    KINDS,
    REASONING,
    THINK,
    Open,
    TinySession,
    biased,
    checked,
    collect,
    make_tiny_folder,
    open_sessions,
)

from mlxchat.cli.main import cli

NEVER_ENDS = biased((END_THINK, -1e9))


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions whose thinking would never end, and closes them."""
    with open_sessions(
        tmp_path, REASONING, sampling=NEVER_ENDS, max_tokens=40, think_budget=6
    ) as open_:
        yield open_


def closing_ids(session: TinySession) -> tuple[int, ...]:
    return tuple(session.runner.tokenizer.encode("\n</think>\n\n", is_continuation=True))


@pytest.mark.parametrize("budget", [0, 1, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_the_budget_closes_the_thinking(open_session: Open, kind: str, budget: int) -> None:
    """After so many ids come those of the marker, then the answer; the next turn is exact."""
    session = open_session(kind, think_budget=budget)
    job = session.send("hello")
    shown = collect(job)
    result = checked(session, job)
    closing = closing_ids(session)
    assert result.tokens[budget : budget + len(closing)] == closing
    assert result.usage.completion_tokens == 40
    assert shown == {"reasoning": result.reasoning, "answer": result.text}
    assert result.text
    session.settle()
    session.say("more")


def test_thinking_that_is_shorter_is_left_alone(open_session: Open) -> None:
    """A budget that is not reached changes nothing."""
    sampling = biased((END_THINK, 5.5))
    plain = open_session(sampling=sampling, think_budget=None, max_tokens=80).say("hello")
    assert plain.text
    budgeted = open_session(sampling=sampling, think_budget=75, max_tokens=80).say("hello")
    assert budgeted.tokens == plain.tokens


def test_an_answer_without_thinking_has_no_budget(open_session: Open) -> None:
    """Where no thinking is opened nothing is fed."""
    session = open_session(template=CHATML)
    assert (
        session.say("hello").tokens
        == open_session(template=CHATML, think_budget=None).say("hello").tokens
    )


def test_thinking_that_the_model_opens(open_session: Open) -> None:
    """Where the model writes the opener itself the budget counts from there."""
    template = SMALL_TEMPLATES["think-stripped"]
    sampling = biased((THINK, 9.0), (END_THINK, -1e9))
    result = open_session(template=template, sampling=sampling).say("hello")
    assert result.tokens[0] == THINK
    assert END_THINK in result.tokens
    assert len(result.tokens[1 : result.tokens.index(END_THINK)]) <= 6 + 2
    assert result.reasoning is not None


@pytest.mark.parametrize("name", ["harmony", "think-kept", "think-opened"])
def test_markers_of_other_templates(open_session: Open, name: str) -> None:
    """Whatever closes the thinking of a template, the splitter sees it closed."""
    session = open_session(template=SMALL_TEMPLATES[name], think_budget=3, max_tokens=300)
    renderer = session.runner.renderer
    prompt = renderer.render_ids(session.conversation.messages() or [_hello()])
    splitter = renderer.splitter(prompt)
    opened = renderer.opened_by(prompt)
    markers = renderer.markers
    text = "let me" if opened else f"{markers.opener}{markers.after_opener}let me"
    encode = session.runner.tokenizer.encode
    for token_id in encode(text, is_continuation=True):
        splitter.push(token_id)
    assert splitter.is_thinking
    for token_id in (*encode(splitter.closing_text(), is_continuation=True), *encode("Yes.")):
        splitter.push(token_id)
    assert not splitter.is_thinking
    _, split = splitter.finish()
    assert (split.reasoning, split.text) == ("let me", "Yes.")


def _hello() -> Any:
    from mlxchat.chat.template import Message

    return Message("user", "hello")


@pytest.mark.parametrize("text", ["let me", "let me\n", "let me\n\n"])
def test_white_space_before_the_marker(open_session: Open, text: str) -> None:
    """A line break that is there already is not fed again."""
    session = open_session()
    renderer = session.runner.renderer
    splitter = renderer.splitter(renderer.render_ids([_hello()]))
    for token_id in session.runner.tokenizer.encode(text, is_continuation=True):
        splitter.push(token_id)
    wanted = "</think>\n\n" if text.endswith("\n") else "\n</think>\n\n"
    assert splitter.closing_text() == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_ends_the_thinking(open_session: Open, kind: str) -> None:
    """Asked for in the middle of the thinking, the answer comes; the next turn thinks again."""
    session = open_session(kind, think_budget=None)
    session.model_.after(6, session.end_thinking)
    result = session.say("hello")
    closing = closing_ids(session)
    at = result.tokens.index(END_THINK)
    assert at < 10
    assert result.tokens[at - 1 : at - 1 + len(closing)] == closing
    assert result.text
    assert END_THINK not in session.say("again").tokens


def test_no_room_for_the_marker(open_session: Open) -> None:
    """A limit that leaves no room for it ends the answer inside the thinking."""
    session = open_session(max_tokens=7)
    result = session.say("hello")
    assert (result.text, result.stop_reason) == ("", "token_limit")
    assert len(result.tokens) == 6
    session.set_options(replace(session.options, max_tokens=30))
    more = checked(session, session.go_on())
    assert more.reasoning == result.reasoning
    assert more.text


def test_kept_thinking(open_session: Open) -> None:
    """Thinking that was closed and is kept stands in the next prompt."""
    session = open_session(template=KEEPS_REASONING, keep_thinking=True)
    first = session.say("hello")
    follow = session.say("more")
    assert follow.verify is not None
    shown = session.runner.tokenizer.decode(follow.verify.prompt_ids, skip_special_tokens=False)
    assert f"<think>\n{first.reasoning}\n</think>" in shown


def test_penalties_count_what_was_fed(open_session: Open) -> None:
    """With penalties on, the turn is as exact."""
    sampling = replace(NEVER_ENDS, repetition_penalty=1.2)
    session = open_session(sampling=sampling)
    assert session.say("hello").text
    session.say("more")


def test_on_the_command_line(tmp_path: Path) -> None:
    """--think-budget, /think budget N, /params; what is not allowed is refused."""
    folder = str(make_tiny_folder(tmp_path / "model", template=REASONING))
    lines = "/params\n/think budget 12\n/params\n/think budget off\n/think budget x\n/params\n"
    arguments = ["chat", "-m", folder, "--think-budget", "5"]
    result = CliRunner().invoke(cli, arguments, input=lines)
    rows = [line.split() for line in result.stderr.split("\n") if line.startswith("think-budget ")]
    assert rows[0] == ["think-budget", "5", "command", "line"]
    assert rows[1] == ["think-budget", "12", "/set"]
    assert rows[2][1:3] == ["as", "long"]
    assert "think-budget x is not allowed; give a whole number >= 0 or default" in result.stderr
