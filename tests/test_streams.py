"""Thinking that streams and folds, and the screen that answers and thinking share."""

import re

import pytest
from fakes import FakeSession, make_result
from virtual_terminal import VirtualTerminal

from mlxchat.chat.results import Notice, PrefillProgress, SummaryProgress, TextDelta
from mlxchat.chat.session import ChatOptions
from mlxchat.cli import slash, turn
from mlxchat.cli.screen import Screen
from mlxchat.cli.slash import Context, interpret
from mlxchat.cli.streams import ThoughtStream
from mlxchat.cli.turn import Answers, TurnView
from mlxchat.errors import MlxchatError, UsageError
from mlxchat.settings import Display, load_settings


class Tty:
    """A terminal that a screen can write to."""

    def __init__(self, **size):
        self.terminal = VirtualTerminal(**size)

    def isatty(self):
        return True

    def write(self, text):
        self.terminal.write(text)

    def flush(self):
        pass

    def fileno(self):
        raise OSError


@pytest.fixture
def tty(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Tty(columns=80, rows=24)


def view_of(tty, **options):
    return TurnView(Screen(tty, tty, **options), shows_text=True)


def test_thinking_folds(tty):
    """Thinking is shown while it lasts; then one line with its time and tokens stands for it."""
    view = view_of(tty)
    view.show(TextDelta("Let me ", "reasoning", 2))
    view.show(TextDelta("see.\nYes.", "reasoning", 1312))
    assert tty.terminal.rows == ["Let me see.", "Yes."]
    view.show(TextDelta("\n\nIt **is**.", "answer", 1312))
    view.close()
    thought, answer = tty.terminal.rows
    assert re.fullmatch(r"thought for 0\.\d+ s, 1 312 tokens", thought)
    assert answer == "It is."


def test_a_summary_folds(tty):
    """A summary is shown while it is written; each of several gets one line in its place."""
    view = view_of(tty)
    view.show(SummaryProgress(6, "Mei is"))
    view.show(SummaryProgress(16, " in Oslo.\n"))
    assert tty.terminal.rows == ["Mei is in Oslo."]
    view.show(SummaryProgress(4, "Both"))
    assert re.fullmatch(r"summary: 16 characters in 0\.\d+ s", tty.terminal.rows[0])
    assert tty.terminal.rows[1:] == ["Both"]
    view.close()
    assert re.fullmatch(r"summary: 4 characters in 0\.\d+ s", tty.terminal.rows[1])
    assert len(tty.terminal.rows) == 2


def test_a_summary_on_a_plain_terminal(tty):
    """Where nothing can be redrawn the summary is shown once, when it is whole."""
    view = view_of(tty, plain=True)
    view.show(SummaryProgress(6, "Mei is"))
    view.close()
    assert tty.terminal.rows == []


def test_thinking_that_is_interrupted(tty):
    """A notice in the middle of thinking leaves what was thought so far above it."""
    view = view_of(tty)
    view.show(TextDelta("one\ntwo", "reasoning"))
    view.show(Notice("by the way"))
    view.show(TextDelta("three", "reasoning"))
    view.close()
    assert tty.terminal.rows[:3] == ["one", "two", "by the way"]
    assert tty.terminal.rows[3].startswith("thought for ")


@pytest.mark.parametrize("columns", [20, 80])
def test_long_thinking(columns):
    """Thinking longer than the screen shows its end, leaves no scrollback, and folds."""
    terminal = VirtualTerminal(columns=columns, rows=6)
    terminal.write("question\n")
    stream = ThoughtStream(terminal.region, lambda text: text)
    for number in range(200):
        stream.push(f"thought{number} " + "\n" * (number % 7 == 0))
    assert "thought199" in terminal.rows[-1]
    assert terminal.scrollback in ([], ["question"])
    stream.fold("thought for 1 s")
    rows = [row for row in terminal.rows if row]
    assert rows == ["question", "thought for 1 s"]


def test_thinking_and_a_narrower_terminal():
    """After a resize thinking goes on at the new width."""
    terminal = VirtualTerminal(columns=60, rows=8)
    stream = ThoughtStream(terminal.region, str)
    stream.push("word " * 30)
    terminal.resize(30, 8)
    stream.push("end")
    assert max(map(len, terminal.rows)) <= 29
    assert terminal.rows[-1].endswith("end")


def test_an_answer_is_written_raw_where_it_must(tty):
    """--plain, NO_COLOR's terminal and `/markdown off` show the text as it is written."""
    for options in ({"plain": True}, {"markdown": False}):
        other = Tty(columns=80, rows=24)
        view = view_of(other, **options)
        view.show(TextDelta("**a**", "answer"))
        view.close()
        assert other.terminal.written == "**a**\n"


def test_progress_gives_way_to_the_answer(tty, monkeypatch):
    """The progress line is gone when the answer begins."""
    monkeypatch.setattr(turn, "PROGRESS_DELAY_S", 0)
    monkeypatch.setattr(turn, "PROGRESS_INTERVAL_S", 0)
    view = view_of(tty)
    view.show(PrefillProgress(1, 2))
    view.show(PrefillProgress(2, 2))
    assert tty.terminal.rows[0].startswith("reading ████████ 2 of 2 tokens")
    view.show(TextDelta("yes", "answer"))
    view.close()
    assert tty.terminal.rows == ["yes"]


class FullSession(FakeSession):
    """Says how full its context is."""

    used = 0

    @property
    def context_used(self):
        return self.used


def test_context_notices(tty):
    """At 80 % and at 95 % of the context there is one notice each, again after it was emptied."""
    session = FullSession(None, ChatOptions())
    answers = Answers(session, Screen(tty, tty, plain=True))
    try:
        for used in (100, 409, 410, 450, 487, 500, 20, 420):
            session.used = used
            answers.give(lambda: session.send("x"))
        notices = [row[:4] for row in tty.terminal.rows if "of the context is used" in row]
        assert notices == ["80 %", "95 %", "82 %"]
    finally:
        session.close()


# -- commands --------------------------------------------------------------------------------------


@pytest.fixture
def context(tty):
    session = FakeSession(None, ChatOptions())
    screen = Screen(tty, tty)
    yield Context(session, screen.note, screen=screen)
    session.close()


def test_markdown_command(tty, context):
    """`/markdown off` shows raw text from now on and in later chats; alone it tells."""
    interpret(context, "/markdown off")
    assert not context.screen.markdown
    assert load_settings().display == Display(markdown=False)
    interpret(context, "/markdown")
    interpret(context, "/markdown on")
    assert load_settings().display.markdown
    assert tty.terminal.rows == ["Markdown: off.", "Markdown: off.", "Markdown: on."]
    with pytest.raises(UsageError, match="/markdown maybe is not allowed; write"):
        interpret(context, "/markdown maybe")


def test_theme_command(tty, context):
    """`/theme` chooses the colours for now and later; an unknown one changes nothing."""
    interpret(context, "/theme dark  cb")
    assert load_settings().display.theme == "dark cb"
    assert context.screen.theme is slash.view.find_theme("dark cb")
    with pytest.raises(UsageError, match="there is no theme 'pink'; choose "):
        interpret(context, "/theme pink")
    interpret(context, "/theme")
    assert load_settings().display.theme == "dark cb"
    assert tty.terminal.rows == [
        "Theme: dark cb.",
        "Theme: dark cb. Themes: terminal, light, dark, contrast, each also with `cb`.",
    ]


def test_raw_command(tty, context):
    """`/raw` shows the last answer as it was written, sanitised, whatever its width."""
    with pytest.raises(MlxchatError, match="there is no answer yet; send"):
        interpret(context, "/raw")
    text = "**a** · " * 20 + "\x1b[2J"
    context.session.last, context.session.sent = make_result(text), ["hello"]
    interpret(context, "/raw")
    assert tty.terminal.written == text.replace("\x1b", "␛") + "\n"


def test_prose_breaks_between_words(tty):
    """A long error or notice breaks between words, a row of a table within its last column."""
    screen = Screen(tty, tty, plain=True)
    screen.error("word " * 30 + "x" * 90)
    rows = tty.terminal.rows
    assert rows[0] == "Error: " + "word " * 13 + "word"
    assert max(map(len, rows)) <= 80
    screen.note("one · " + "two " * 30)
    assert tty.terminal.rows[len(rows) :] == ["one", "two " * 19 + "two", "two " * 9 + "two"]
    before = len(tty.terminal.rows)
    screen.note("name     value\nlong     " + "word " * 15 + "end")
    assert tty.terminal.rows[before:] == [
        "name     value",
        "long     " + "word " * 13 + "word",
        "         word end",
    ]
    command = "word " * 30
    before = len(tty.terminal.written)
    screen.verbatim(command, dim=True)
    assert tty.terminal.written[before:] == command + "\n"


def test_contrast_theme_dims_nothing(tty):
    """In the theme of high contrast notes are not dimmed."""
    Screen(tty, tty, theme="contrast").note("hello")
    assert tty.terminal.written == "hello\n"


@pytest.mark.parametrize(
    ("command", "start", "found"),
    [
        ("markdown", "o", ["on", "off"]),
        ("theme", "da", ["dark", "dark cb"]),
        ("theme", "dark c", ["dark cb"]),
    ],
)
def test_completion(command, start, found):
    """Tab completes modes and themes."""
    assert [name for name, _ in slash.COMMANDS[command].complete(start)] == found
