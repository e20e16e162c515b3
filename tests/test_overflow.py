"""--overflow drop-oldest: whole old turns leave the prompt, with a word, and nothing else goes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import KINDS, Open, TinySession, checked, open_sessions

from mlxchat.chat.results import Notice, TurnResult
from mlxchat.cli.main import cli
from mlxchat.errors import ContextFullError
from mlxchat.settings import settings_path

SYSTEM = "be brief and kind"
QUESTIONS = [f"question {number}, with some words that fill the context" for number in range(9)]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions with a small context that drop the oldest turns, and closes them."""
    options = {"max_context": 256, "overflow": "drop-oldest", "system": SYSTEM}
    with open_sessions(tmp_path, **options) as open_:
        yield open_


def ask(session: TinySession, text: str) -> tuple[TurnResult, list[str]]:
    job = session.send(text)
    notices = [event.text for event in job if isinstance(event, Notice)]
    return checked(session, job), notices


def shown(session: TinySession, result: TurnResult) -> str:
    assert result.verify is not None
    return session.runner.tokenizer.decode(result.verify.prompt_ids, skip_special_tokens=False)


@pytest.mark.parametrize("settles", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_that_never_ends(open_session: Open, kind: str, settles: bool) -> None:
    """Every prompt is the rendering of the newest turns; what was dropped stays dropped."""
    session = open_session(kind)
    num_dropped, before, said = 0, 0, []
    for number, text in enumerate(QUESTIONS):
        result, notices = ask(session, text)
        told = [notice for notice in notices if "left out of the prompt" in notice]
        prompt = shown(session, result)
        assert prompt.startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        kept = [i for i, question in enumerate(QUESTIONS) if question in prompt]
        assert kept == list(range(kept[0], number + 1))
        assert bool(told) == (kept[0] > num_dropped)
        if told:
            first = num_dropped + 1
            which = f"turn {first} is" if kept[0] == first else f"turns {first} to {kept[0]} are"
            assert which in told[0]
            assert QUESTIONS[num_dropped][:20] in told[0]
        elif kind == "full" and said:
            assert result.usage.cached_tokens > before
        before = result.usage.prompt_tokens
        num_dropped = kept[0]
        said.append(result.text)
        assert result.stop_reason == "token_limit"
        if settles:
            session.settle()
    assert num_dropped > 3
    assert [m.content for m in session.conversation.messages()[2::2]] == said


def test_a_message_that_does_not_fit_alone(open_session: Open) -> None:
    """It is refused, and nothing changes."""
    session = open_session()
    ask(session, QUESTIONS[0])
    before = session.conversation.messages()
    with pytest.raises(ContextFullError, match="the context holds 256; shorten the message"):
        session.send("word " * 300).result(20)
    assert session.conversation.messages() == before
    result, notices = ask(session, "hi")
    assert QUESTIONS[0] in shown(session, result) or notices


def test_a_long_message_pushes_all_others_out(open_session: Open) -> None:
    """Then the prompt is that message, and the conversation goes on from it."""
    session = open_session()
    for text in QUESTIONS[:2]:
        ask(session, text)
    long = "word " * 38
    result, notices = ask(session, long)
    assert "turns 1 to 2 are left out" in notices[0]
    assert shown(session, result).count("user\n") == 1
    session.settle()
    result, notices = ask(session, "hi")
    assert (long in shown(session, result)) or notices
    session.undo(2)
    session.settle()
    result, notices = ask(session, "again")
    assert QUESTIONS[0] in shown(session, result)
    assert notices == []


@pytest.mark.parametrize("kind", KINDS)
def test_retry_and_continue(open_session: Open, kind: str) -> None:
    """The last question always stays; an answer that goes on makes room too."""
    session = open_session(kind)
    for text in QUESTIONS[:3]:
        ask(session, text)
    for _ in range(6):
        result = checked(session, session.retry())
        assert QUESTIONS[2] in shown(session, result)
    dropped = []
    for _ in range(5):
        job = session.go_on()
        dropped += [event.text for event in job if isinstance(event, Notice)]
        result = checked(session, job)
        assert QUESTIONS[2] in shown(session, result)
    assert dropped


def test_another_conversation_has_all_its_turns(open_session: Open) -> None:
    """What was dropped from one conversation says nothing about the next one."""
    session = open_session()
    for text in QUESTIONS[:6]:
        _, notices = ask(session, text)
    assert notices or session.runner.messages(session.conversation)[1].content != QUESTIONS[0]
    session.reset()
    ask(session, "a")
    checked(session, session.retry())  # so that a question has the number of what was dropped
    for number, text in enumerate("bcde", 2):
        result, notices = ask(session, text)
        assert notices == []
        assert shown(session, result).count("user\n") == number


def test_it_is_off_without_being_asked(open_session: Open) -> None:
    """By default a message that does not fit is refused; the option can change on the way."""
    session = open_session(overflow="error")
    with pytest.raises(ContextFullError, match="dropped with --overflow drop-oldest"):
        [ask(session, text) for text in QUESTIONS]
    session.set_options(replace(session.options, overflow="drop-oldest"))
    _, notices = ask(session, QUESTIONS[-1])
    assert len(notices) == 1


def test_in_a_pipe() -> None:
    """A long piped chat never fails, and stderr says what was dropped."""
    arguments = ["chat", "--max-context", "96", "--max-tokens", "8"]
    lines = "".join(f"tell me about number {n}\n" for n in range(9))
    refused = CliRunner().invoke(cli, arguments, input=lines)
    assert refused.exit_code == 1
    assert "--overflow drop-oldest" in refused.stderr
    result = CliRunner().invoke(cli, [*arguments, "--overflow", "drop-oldest"], input=lines)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 9
    assert "left out of the prompt from now on" in result.stderr


def test_who_chose() -> None:
    """The setting counts, the command line goes before it, /set before both; others are refused."""
    config = settings_path()
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[context]\noverflow = "drop-oldest"\n')
    for arguments, who in (([], "config.toml"), (["--overflow", "error"], "command line")):
        result = CliRunner().invoke(cli, ["chat", *arguments], input="/params\n")
        lines = [line for line in result.stderr.split("\n") if line.startswith("overflow")]
        assert [who in line for line in lines] == [True]
    result = CliRunner().invoke(cli, ["chat"], input="/set overflow error\n/set overflow no\n")
    assert "overflow: error." in result.stderr
    assert "overflow no is not allowed; give error or drop-oldest" in result.stderr
    config.write_text('[context]\noverflow = "drop"\n')
    result = CliRunner().invoke(cli, ["chat"], input="hello\n")
    assert "context.overflow = 'drop' is not allowed" in result.stderr
