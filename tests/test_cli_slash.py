"""Slash commands: what is a command, what each does, what is refused."""

import pytest
from fakes import FakeSession, make_result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxchat.chat.session import ChatOptions
from mlxchat.cli import slash
from mlxchat.cli.failures import LeaveChat
from mlxchat.cli.slash import COMMANDS, Context, interpret
from mlxchat.cli.slash.chat import EXAMPLES
from mlxchat.errors import MlxchatError, UsageError


class Talk:
    """A conversation with a fake: `do` runs a line to its end."""

    def __init__(self):
        self.session = FakeSession(None, ChatOptions(system="Be brief."))
        self.said = []
        self.context = Context(self.session, self.said.append)

    def do(self, line):
        """Returns the answer's text; None where there is none."""
        start = interpret(self.context, line)
        return None if start is None else start().result().text


@pytest.fixture
def talk():
    talk = Talk()
    yield talk
    talk.session.close()


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("hello", "hello"),
        ("  indented\n  code", "  indented\n  code"),
        ("/etc/hosts is odd", "/etc/hosts is odd"),
        ("/tmp.txt", "/tmp.txt"),
        ("/ 2", "/ 2"),
        ("/", "/"),
        ("/2 of it", "/2 of it"),
        ("// a comment", "// a comment"),
        ("//help", "/help"),
        ("//help me\nplease", "/help me\nplease"),
        ("///help", "///help"),
        ("what is /help", "what is /help"),
        ("/größe", "/größe"),
    ],
)
def test_messages(talk, line, sent):
    """What is no command is sent as it is; `//word` is sent with one slash."""
    talk.do(line)
    assert talk.session.sent == [sent]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.text(min_size=1))
def test_any_line(talk, line):
    """Any text is a message, a command or a refusal in one line, never a crash."""
    stripped = line.strip()
    before = list(talk.session.sent)
    start, refusal = None, ""
    try:
        start = interpret(talk.context, line)
    except LeaveChat:
        refusal = f"{stripped.lower() in ('/exit', '/quit', '/bye', '/q')}; left"
    except MlxchatError as error:
        refusal = str(error)
    assert start is not None or stripped.startswith(("/", "!")) or "@" in stripped
    assert not refusal or "; " in refusal
    assert "False; left" not in refusal
    assert talk.session.sent == before


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/hepl", "no command /hepl; did you mean /help? write //hepl to send it as text"),
        ("/statz", "did you mean /stats?"),
        ("/xyzzy", "no command /xyzzy; /help lists the commands; write //xyzzy"),
        ("/home is my folder", "write //home to send it as text"),
        ("/reset all", "/reset takes no argument; write //reset to send the line as text"),
        ("/undo x", "'x' is not allowed; write /undo [N] with a whole number >= 1"),
        ("/undo 0", "whole number >= 1"),
        ("/goto", "there is no number; write /goto N with a whole number >= 1"),
        ("/temp 0.3", "there is no command /temp; write /set temp 0.3"),
        ("/top_p", "write /set top-p VALUE"),
        ("/load x", "there is no command /load; /file PATH attaches a file"),
        ("/image a.png", "there is no command /image; text models alone run here"),
        ("/search", "there is no word to search for; write /search WORDS"),
        ("/think perhaps", "/think perhaps is not allowed; write /think on"),
        ("/drop", "nothing is attached; @path, /file and !cmd attach"),
        ("/export talk.pdf", ".pdf is not allowed; let the file's name end with .md, .json,"),
        ("/edit", "there is no new text; write /edit [TURN] TEXT"),
        ("/edit 1", "there is no new text"),
        ("/edit 5 new", "there is no turn 5; give 1 to 1"),
    ],
)
def test_refusals(talk, line, part):
    """A command that is unknown or wrongly used says what to write instead."""
    talk.do("hello")
    with pytest.raises(UsageError) as caught:
        talk.do(line)
    assert part in str(caught.value)
    assert talk.session.sent == ["hello"]


@pytest.mark.parametrize("line", ["/retry", "/undo", "/edit new", "/continue"])
def test_nothing_to_work_on(talk, line):
    """Commands that need a turn refuse an empty conversation."""
    with pytest.raises(MlxchatError, match="the conversation is empty; send a message first"):
        talk.do(line)


def test_help_lists_every_command(talk):
    """/help shows the usage and summary of each command once."""
    assert talk.do("/help") is None
    for command in COMMANDS.values():
        assert talk.said[0].count(command.summary) == 1
        assert command.usage in talk.said[0]
    assert max(map(len, talk.said[0].split("\n"))) <= 80


def test_help_explains_one_command(talk):
    """/help NAME shows usage, other names, values and examples; /help keys lists the keys."""
    for line in ("/help /retry", "/help set", "/? keys", "/help edit"):
        talk.do(line)
    retry, set_, keys, edit = talk.said
    assert retry == (
        "/retry [N]\nAnswer the last message again, or N times to choose from.\n"
        "Also: /regen, /regenerate\n  /retry 3: three answers to choose from"
    )
    assert "Names: temp, top-p," in set_
    assert "  /set temp 0.2\n" in set_
    assert keys.startswith("Enter              Sends.\nAlt-Enter, Ctrl-J  Adds a line")
    assert "@path in its text puts a file into it." in edit
    assert set(EXAMPLES) <= set(COMMANDS)
    for said in talk.said:
        assert max(map(len, said.split("\n"))) <= 80


def test_system(talk):
    """/system shows, sets and removes the system prompt."""
    talk.do("/system")
    talk.do("/SYSTEM You are\na pirate.")
    assert talk.session.system == "You are\na pirate."
    talk.do("/system none")
    assert talk.session.system is None
    assert talk.said == [
        "System prompt: Be brief.",
        "System prompt: You are\na pirate.",
        "No system prompt.",
    ]


def test_reset(talk):
    """/reset empties the conversation and keeps the system prompt."""
    talk.do("hello")
    talk.do("/reset")
    assert (talk.session.sent, talk.session.system) == ([], "Be brief.")


def test_retry_edit_undo(talk):
    """/retry and /edit answer; /undo takes back and says how many."""
    for text in ("one", "two", "three"):
        talk.do(text)
    assert talk.do("/retry") == "you said: three again"
    assert talk.do("/edit 2 dos") == "you said: dos"
    assert talk.session.sent == ["one", "dos"]
    assert talk.do("/edit zwei") == "you said: zwei"
    talk.do("/undo")
    assert talk.session.sent == ["one"]
    talk.do("/undo 9")
    assert talk.said == ["Took back 1 turn.", "Took back 1 turn."]


def test_stats(talk):
    """/stats shows the model and, after an answer, its timing."""
    talk.do("hello")
    talk.do("/stats")
    assert "turns    1" in talk.said[0]
    assert "prefill" in talk.said[0]


def test_names_from_elsewhere(talk):
    """/clear and /regen do what /reset and /retry do, `/!cmd` what `!cmd` does."""
    talk.do("/! echo hello")
    assert talk.context.attached.drop()[0].text == "hello\n"
    talk.said.clear()
    talk.do("hello")
    assert talk.do("/regen") == "you said: hello again"
    talk.do("/clear")
    assert talk.session.sent == []
    assert talk.said == ["The conversation is empty."]


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye", " /Exit "])
def test_exit(talk, line):
    """/exit and its other names leave."""
    with pytest.raises(LeaveChat):
        talk.do(line)


def test_registry_is_well_formed():
    """Every command has a lower-case name that is read back as a command, and a summary."""
    for name, command in COMMANDS.items():
        assert slash.registry._COMMAND.fullmatch(f"/{name}").group(2) == name == name.lower()
        assert command.summary.endswith(".")


def test_moves_in_the_tree(talk):
    """/fork names a place, /tree draws the branches, /goto goes back to it."""
    for text in ("one", "two\x1b[31m", "three " * 30):
        talk.do(text)
    talk.do("/fork")
    assert "/goto 3 comes back" in talk.said[-1]
    talk.do("/tree")
    lines = talk.said[-1].split("\n")
    assert lines[0] == "*   1    you: one"
    assert lines[2].startswith(">   3    you: three three")
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in talk.said[-1]
    talk.do("/goto 1")
    assert talk.said[-1] == "At message 1, after 1 turn."
    with pytest.raises(UsageError, match="no message 9; /tree"):
        talk.do("/goto 9")


def test_thinking_says_what_it_costs(talk):
    """/think passes the choice on, shows the template's notice and the cost of the change."""
    talk.do("hello")
    talk.do("/think on")
    assert talk.session.options.think is True
    assert talk.said == ["Thinking: on.", "The next turn reads 700 of 1 000 tokens again."]
    talk.do("/think off")
    assert talk.said[2] == "this template has no switch"
    talk.do("/think default")
    assert talk.session.options.think is None
    with pytest.raises(UsageError, match="on, off or default"):
        talk.do("/think maybe")


def test_set_shows_what_is_in_force(talk):
    """/set and /think without a value show; `temp=0.2` and ollama's wording set."""
    talk.do("/set temp=0.2")
    talk.do("/set parameter repeat_penalty 1.1")
    talk.do("/set stop END OF IT")
    assert talk.said == ["temp: 0.2.", "repetition-penalty: 1.1.", "stop: END OF IT."]
    assert talk.session.options.stop == ("END OF IT",)
    talk.said.clear()
    for line in ("/set temp", "/set", "/think", "/set stop default", "/set stop"):
        talk.do(line)
    assert talk.said[0] == "temp  0.2  /set"
    assert "stop                'END OF IT'" in talk.said[1]
    assert talk.said[2] == "/set NAME VALUE sets one, to `default` gives it back."
    assert talk.said[3].startswith("think          as the template does  default\nthink-budget")
    assert talk.said[4:] == ["stop: default.", "stop  none  default"]


def test_cache(talk):
    """/cache shows live tokens, checkpoints, branches and the budget."""
    talk.do("/cache")
    assert talk.said == ["The model is not loaded yet."]
    talk.do("hello")
    talk.do("/cache")
    shown = talk.said[-1]
    for part in ("120 tokens, 2.0 KiB", "full, recurrent", "at 100", "tokens 80 to 110", "768 B"):
        assert part in shown


def test_compact(talk):
    """/compact says what is summarised, shows the summary and where the old branch is."""
    for text in ("one", "two", "three", "four"):
        talk.do(text)
    talk.do("/compact")
    assert talk.said == [
        "Turns 1 to 2 are now this summary:",
        "A **short** one.",
        "The conversation took 4 000 tokens and takes 300; /goto 4 brings all of it back.",
    ]
    with pytest.raises(UsageError, match=r"write /compact \[N\]"):
        talk.do("/compact all")


def test_continue(talk):
    """/continue goes on with a cut answer; one that ended is refused."""
    talk.do("hello")
    with pytest.raises(UsageError, match="ended by itself"):
        talk.do("/continue")
    talk.session.last = make_result(stop_reason="token_limit")
    assert talk.do("/continue") == "you said: hello on"
