"""/context, /timing, /tokens and /help: what is shown, and that it adds up."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import FakeSession, make_result
from small_templates import SMALL_TEMPLATES
from tiny import CHATML, REASONING, TinySession, make_tiny_folder

from mlxchat.chat.session import ChatOptions
from mlxchat.chat.views import ContextPart, ContextView, TokenPiece
from mlxchat.cli.main import cli
from mlxchat.cli.render_views import format_context, format_phases, format_tokens
from mlxchat.cli.screen import Screen
from mlxchat.cli.slash import COMMANDS, Context, interpret
from mlxchat.cli.slash.chat import format_entry
from mlxchat.cli.turn import Answers
from mlxchat.errors import MlxchatError, UsageError

Open = Callable[..., TinySession]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions on tiny folders and closes them."""
    sessions = []

    def open_(template: str = CHATML, **options: Any) -> TinySession:
        folder = make_tiny_folder(tmp_path / str(len(sessions)), template=template)
        sessions.append(TinySession(folder, **options))
        return sessions[-1]

    yield open_
    for session in sessions:
        session.close()


@pytest.fixture
def talk() -> Iterator[tuple[Context, list[str]]]:
    """A chat with a fake, and what was said in it."""
    said: list[str] = []
    session = FakeSession(None, ChatOptions(system="Be brief."))
    answers = Answers(session, Screen(io.StringIO(), io.StringIO()))
    yield Context(session, said.append, answers=answers), said
    session.close()


@pytest.mark.parametrize("template", [CHATML, REASONING, *SMALL_TEMPLATES.values()])
def test_the_parts_add_up(open_session: Open, template: str) -> None:
    """System prompt and turns have the ids of the whole prompt together, whatever the template."""
    session = open_session(template, system="be brief and kind", verify=False)
    for text in ("hello there", "go on with it", "and more"):
        session.say(text)
    view = session.view_context().result(30)
    messages = session.conversation.messages()
    whole = session.runner.renderer.render_ids(messages, add_generation_prompt=False)
    assert sum(part.num_tokens for part in view.parts) == len(whole.token_ids)
    assert [part.turn for part in view.parts] == [None, 1, 2, 3]
    assert [part.text for part in view.parts[1:]] == ["hello there", "go on with it", "and more"]
    if template == CHATML:
        assert all(part.num_tokens > 20 for part in view.parts)
    assert view.limit == 1024


def test_an_empty_conversation(open_session: Open) -> None:
    """Only the system prompt is there, or nothing at all."""
    assert open_session().view_context().result(30).parts == ()
    (part,) = open_session(system="be brief").view_context().result(30).parts
    assert part.turn is None
    assert part.num_tokens > 8


def test_turns_that_were_dropped(open_session: Open) -> None:
    """They are counted, and the others keep their numbers."""
    session = open_session(overflow="drop-oldest", max_context=200)
    for number in range(6):
        session.say(f"question {number} with some words")
    view = session.view_context().result(30)
    assert view.num_left_out > 0
    assert view.parts[0].turn == view.num_left_out + 1
    assert "left out of the prompt" in format_context(view)


def test_screen_of_the_context() -> None:
    """Golden text: a bar for each part, old turns as one row, the free rest."""
    parts = (ContextPart(None, "Be brief.", 100), ContextPart(1, "hello\nthere " * 9, 400))
    assert format_context(ContextView(parts, 2000)) == (
        "system        100  █░░░░░░░░░░░░░░░░░░░  Be brief.\n"
        "turn 1        400  ████░░░░░░░░░░░░░░░░  hello there hello there hello there he…\n"
        "free        1 500  ███████████████░░░░░\n"
        "500 of 2 000 tokens are used (25 %)"
    )
    wide = format_context(ContextView((ContextPart(1, "你好" * 40, 400),), 2000), 40)
    assert wide.split("\n")[0] == "turn 1        400  ██░░░░░░  你好你好你…"
    many = tuple(ContextPart(n, "x", 10) for n in range(1, 31))
    lines = format_context(ContextView(many, 600)).split("\n")
    assert lines[0].split()[:5] == ["turns", "1", "to", "10", "100"]
    assert len(lines) == 1 + 20 + 2


def test_screen_of_the_phases() -> None:
    """The phases are the whole time; bars show their shares."""
    lines = format_phases(make_result()).split("\n")
    assert [line.split("  ")[0] for line in lines] == [
        *("template", "restore", "prefill", "first token", "decode", "rest", "total")
    ]
    assert "████████████████████" in lines[4]
    assert max(map(len, lines)) <= 80
    assert max(map(len, format_phases(make_result(), 40).split("\n"))) <= 40


def test_timing(talk: tuple[Context, list[str]]) -> None:
    """/timing shows the last turn; on and off switch the report after each answer."""
    context, said = talk
    with pytest.raises(MlxchatError, match="no answer yet; send"):
        interpret(context, "/timing")
    context.session.last = make_result()
    interpret(context, "/timing")
    assert said[-1].startswith("template")
    interpret(context, "/timing on")
    assert context.answers.timing
    interpret(context, "/timing off")
    assert not context.answers.timing
    with pytest.raises(UsageError, match="/timing, /timing on or off"):
        interpret(context, "/timing maybe")


def test_tokens_of_the_last_message(open_session: Open) -> None:
    """The ids with the marks around them, in order; of a text its own."""
    session = open_session()
    result = session.say("hello")
    pieces = session.list_tokens(None).result(30)
    ids = [piece.token_id for piece in pieces]
    assert (ids[0], ids[-2]) == (2, 1)  # <|im_start|> ... <|im_end|> and a line feed
    assert tuple(ids[-2 - len(result.tokens) : -2]) == result.tokens
    assert [piece.text for piece in pieces if piece.is_special] == ["<|im_start|>", "<|im_end|>"]
    of_text = session.list_tokens("hello there").result(30)
    assert "".join(piece.text for piece in of_text) == "hello there"


def test_screen_of_tokens() -> None:
    """Special ids have a star, white space is visible, nothing is wider than the screen."""
    pieces = [TokenPiece(2, "<|a|>", True), TokenPiece(9, " hi\n", False)]
    assert format_tokens(pieces, 80) == "<|a|>* 2  ' hi\\n' 9\n2 tokens; * marks special ones"
    text = format_tokens(pieces * 300, 40)
    assert max(map(len, text.split("\n"))) <= 40
    assert "… and 200 more" in text
    escape = format_tokens([TokenPiece(1, "\x1b[31m", False)], 40)
    assert "\x1b" not in escape


def test_help_of_one_command(talk: tuple[Context, list[str]]) -> None:
    """/help NAME, with or without the slash; an unknown name gets a suggestion."""
    context, said = talk
    for line in ("/help timing", "/help /timing", "/help TIMING"):
        interpret(context, line)
        assert said[-1].split("\n")[:2] == ["/timing [MODE]", COMMANDS["timing"].summary]
    assert "Tab offers: on, off" in said[-1]
    interpret(context, "/help quit")
    assert "Also: /quit" in said[-1]
    with pytest.raises(UsageError, match=r"did you mean /timing\?"):
        interpret(context, "/help timin")


@pytest.mark.parametrize("columns", [24, 40, 59, 60, 72, 80, 120])
def test_help_breaks_between_words(columns: int) -> None:
    """At any width every word of a summary stays whole."""
    width = max(len(entry.usage) for entry in COMMANDS.values())
    for entry in COMMANDS.values():
        text = format_entry(entry.usage, entry.summary, width, columns)
        assert text.split() == [*entry.usage.split(), *entry.summary.split()]
        assert max(map(len, text.split("\n"))) <= max(columns, len(entry.usage))


def test_in_a_pipe() -> None:
    """All of them work between lines, also before the model is loaded."""
    lines = "/context\n/tokens Hello there\nhello\n/context\n/tokens\n/timing\n/help tokens\n"
    result = CliRunner().invoke(cli, ["chat", "-s", "Be brief."], input=lines)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 1
    for part in (
        "system  ",
        "turn 1",
        "Hello' ",
        "tokens; * marks special",
        "prefill",
        "/tokens [",
    ):
        assert part in result.stderr
