"""The chat in a real pseudo-terminal: screens, Ctrl-C, signals, the speed of the first prompt."""

import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from fakes import MARKDOWN
from terminal import REPOSITORY, Terminal

from mlxchat.settings import settings_path

FAKES = str(Path(__file__).with_name("fakes.py"))
CTRL_C, CTRL_D = "\x03", "\x04"

BANNER = """\
mlxchat 0.1.0 · the built-in model, a tiny demo that knows a small world
For a real model: mlxchat -m mlx-community/Qwen3-4B-4bit
/help lists commands · Alt-Enter new line · Ctrl-C stops · Ctrl-D leaves
"""
FIGURES = """\
312 tokens · ttft 0.08 s · 54.1 tok/s at depth 2 310 (81 % of bandwidth)
reused 2 290, read 20
"""


@pytest.fixture
def terminal():
    """A chat with the fake session, its prompt drawn and its model loaded."""
    with Terminal(FAKES) as terminal:
        terminal.wait_for("builtin · 0 of 512 tokens")
        yield terminal


def settings_of(terminal):
    """Returns the terminal's modes without the state of what waits to be read."""
    return termios.tcgetattr(terminal.process.child_fd)[:4]


def test_screen_of_a_conversation(terminal):
    """Golden screen: banner, message, answer, its figures, the next prompt, the toolbar."""
    terminal.send("hello\r")
    terminal.wait_for("10 of 512")
    toolbar = "builtin · 10 of 512 tokens (2 %) ░░░░░░░░ · 54.1 tok/s · 934 MiB · 2 290 cached"
    screen = f"{BANNER}> hello\nyou said: hello\n{FIGURES}>"
    assert terminal.text == screen + "\n" * (23 - screen.count("\n")) + toolbar


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("environment", [{"TERM": "xterm-256color"}, {"NO_COLOR": "1"}])
def test_screen_at_two_widths(columns, environment):
    """Golden screens of 80 and 120 columns, dark and without colour: the same words."""
    with Terminal(FAKES, columns=columns, **environment) as terminal:
        terminal.wait_for("builtin · 0 of 512")
        terminal.send("/theme dark\rhello\r")
        terminal.wait_for("10 of 512")
        figures = FIGURES if columns == 80 else FIGURES.replace(")\n", ") · ")
        answer = f"> hello\nyou said: hello\n{figures}>"
        assert terminal.text.startswith(f"{BANNER}> /theme dark\n")
        assert answer in terminal.text
        is_dim = b"\x1b[2m312 tokens" in terminal.raw
        assert is_dim == ("NO_COLOR" not in environment)
        assert terminal.lines[-1].startswith("builtin · 10 of 512 tokens (2 %) ░░░░░░░░ · 54.1")


def test_what_is_typed_before_the_prompt():
    """Keys that come before the terminal is ours are kept: Enter sends, a begun line stays.

    The terminal made a line feed of that Enter.
    """
    with Terminal(FAKES) as terminal:
        terminal.send("hello\rand mo")
        terminal.wait_for("you said: hello")
        terminal.wait_for("> and mo")
        terminal.send("re\r")
        terminal.wait_for("you said: and more")
        assert terminal.text.count("and mo") == 2


def test_noise_never_corrupts_the_screen(terminal):
    """After answers of escapes, half characters and half Markdown the prompt is in its place."""
    for number in range(8):
        terminal.send(f"fuzz {number}\r")
        terminal.wait_for(f"builtin · {10 * (number + 1)} of 512")
        terminal.send("typed after it")
        terminal.wait_for("> typed after it")
        assert [line for line in terminal.lines if line][-2:][0] == "> typed after it"
        assert terminal.lines[-1].startswith("builtin · ")
        terminal.send("\x15")
    for forbidden in (b"\x1b[2J", b"\x1b[?1049h", b"\x1b]0;", b"\x1bc", b"\x9b2J", b"\x00"):
        assert forbidden not in terminal.raw


def test_screen_of_thinking_and_commands(terminal):
    """Golden screen: the line that reasoning folds to, a notice, a command's output."""
    terminal.send("think\rnotice\r/system Be brief.\r/undo x\r")
    terminal.wait_for("a whole number >= 1")
    thought = next(line for line in terminal.lines if line.startswith("thought for 0.0"))
    assert (
        "\n".join(terminal.lines[3:18]).rstrip()
        == (
            f"> think\n{thought}\nyou said: think\n{FIGURES}"
            f"> notice\nSomething to know.\nyou said: notice\n{FIGURES}"
            "> /system Be brief.\nSystem prompt: Be brief.\n"
            "The next turn reads 700 of 1 000 tokens again.\n"
            "> /undo x\nError: 'x' is not allowed; write /undo [N] with a whole number >= 1"
        ).rstrip()
    )


def test_reasoning_and_figures_are_dim():
    """Reasoning and figures are dimmed; with --plain or NO_COLOR nothing of ours is."""
    for arguments, environment, is_dim in (
        ((), {}, True),
        (("--plain",), {}, False),
        ((), {"NO_COLOR": "1"}, False),
    ):
        with Terminal(FAKES, *arguments, **environment) as terminal:
            terminal.wait_for(">")
            terminal.send("think\r")
            terminal.wait_for("read 20")
            assert (b"\x1b[2mI wonder.\x1b[0m" in terminal.raw) == is_dim
            assert (b"\x1b[2m312 tokens" in terminal.raw) == is_dim
            assert b"\x1b[2myou said" not in terminal.raw


def test_plain_has_no_toolbar():
    """--plain shows neither toolbar nor progress."""
    with Terminal(FAKES, "--plain") as terminal:
        terminal.wait_for(">")
        terminal.send("read this\r")
        terminal.wait_for("read 20")
        assert b" of 512 tokens" not in terminal.raw
        assert b"reading" not in terminal.raw


def test_progress_comes_and_goes(terminal):
    """A long prefill shows a line with tokens, rate and time left, which the answer replaces."""
    terminal.send("read this\r")
    terminal.wait_for("reading ")
    terminal.wait_for("tok/s · 0.")
    terminal.wait_for("10 of 512")
    assert "reading" not in terminal.text
    assert f"> read this\nyou said: read this\n{FIGURES}" in terminal.text


def test_load_progress_is_in_the_toolbar():
    """While the model loads the prompt is there and the toolbar says how far it is."""
    with Terminal(FAKES, "-m", "slow") as terminal:
        terminal.wait_for("slow · loading ")
        terminal.send("typed while loading")
        terminal.wait_for("> typed while loading")
        terminal.wait_for("slow · +3 tokens")
        assert "> typed while loading" in terminal.text


def test_a_message_that_waits_for_the_model():
    """A message sent during the load shows its progress; Ctrl-C takes back the message only."""
    with Terminal(FAKES, "-m", "slow") as terminal:
        terminal.wait_for("slow · loading ")
        terminal.send("hello\r")
        terminal.wait_for("> hello\nloading ")
        terminal.send(CTRL_C)
        terminal.wait_for("> hello\nStopped.\n")
        terminal.wait_for("slow · loading ")
        terminal.send("again\r")
        terminal.wait_for("you said: again")
        assert "you said: hello" not in terminal.text


def test_a_model_that_is_missing():
    """A model that cannot be loaded ends the chat with one line, the terminal as before."""
    with Terminal(FAKES, "-m", "missing") as terminal:
        assert terminal.wait_for_end() == 1
        assert "Error: there is no model 'missing'; give a folder" in terminal.text
        assert "Traceback" not in terminal.text


def test_ctrl_c_stops_the_answer(terminal):
    """Ctrl-C during an answer stops it; what was typed meanwhile waits in the next prompt."""
    terminal.send("long\r")
    terminal.wait_for("word5")
    terminal.send("next")
    pressed = time.monotonic()
    terminal.send(CTRL_C)
    terminal.wait_for("312 tokens (stopped)")
    assert time.monotonic() - pressed < 1.5
    terminal.wait_for("> next")
    assert "^C" not in terminal.text
    terminal.send(" one\r")
    terminal.wait_for("you said: next one")


def test_a_paste_during_the_answer_stays_one_message(terminal):
    """The terminal marks pastes during an answer too, so that their lines are not sent one by one.

    What is pasted waits in the next prompt; after the chat the marks are off.
    """
    terminal.send("long\r")
    terminal.wait_for("word5")
    assert terminal.raw.rfind(b"\x1b[?2004h") > terminal.raw.rfind(b"\x1b[?2004l")
    terminal.send("\x1b[200~one\ntwo\nthree\x1b[201~")
    terminal.send(CTRL_C)
    terminal.wait_for("> one\n  two\n  three")
    terminal.send("\r/exit\r")
    assert terminal.wait_for_end() == 0
    assert terminal.raw.rfind(b"\x1b[?2004l") > terminal.raw.rfind(b"\x1b[?2004h")


def test_the_hint_on_leaving_goes_away(terminal):
    """When a second Ctrl-C would no longer leave, the toolbar no longer says so."""
    terminal.send(CTRL_C)
    terminal.wait_for("Press Ctrl-C again to leave.")
    terminal.wait_for("builtin · 0 of 512 tokens", timeout_s=5)


def test_ctrl_c_at_the_prompt(terminal):
    """Ctrl-C clears the line and says how to leave; the second one on the empty line leaves."""
    terminal.send("half a line")
    terminal.wait_for("> half a line")
    terminal.send(CTRL_C)
    terminal.wait_for("Press Ctrl-C again to leave.")
    assert "half a line" not in terminal.text
    terminal.send(CTRL_C)
    assert terminal.wait_for_end() == 0


@pytest.mark.parametrize("keys", [CTRL_D, "/exit\r", CTRL_C * 2])
def test_the_terminal_is_put_back(keys):
    """However the chat is left, the terminal is as it was."""
    with Terminal("-c", "input('shell> ')") as terminal:
        terminal.wait_for("shell>")
        before = settings_of(terminal)
    with Terminal(FAKES) as terminal:
        terminal.wait_for(">")
        terminal.send("hello\r")
        terminal.wait_for("10 of 512")
        assert settings_of(terminal) != before
        terminal.send(keys)
        assert terminal.wait_for_end() == 0
        assert settings_of(terminal) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("message", ["", "long\r"])
def test_the_terminal_is_put_back_by_signals(number, message):
    """SIGTERM and SIGHUP end prompt and answer with the terminal as it was."""
    with Terminal("-c", "input('shell> ')") as terminal:
        terminal.wait_for("shell>")
        before = settings_of(terminal)
    with Terminal(FAKES) as terminal:
        terminal.wait_for("builtin · 0 of 512")
        terminal.send(message)
        terminal.wait_for("word5" if message else ">")
        os.kill(terminal.process.pid, number)
        assert terminal.wait_for_end() == 128 + number
        assert settings_of(terminal) == before
        assert "Traceback" not in terminal.text


def test_escapes_never_reach_the_screen(terminal):
    """An answer full of escape sequences is shown, not obeyed."""
    terminal.read()
    start = len(terminal.raw)
    terminal.send("escape\r")
    terminal.wait_for("read 20")
    written = terminal.raw[start:]
    assert "␛[31mred␇<U+009B>2J<U+202E>abc" in terminal.text
    assert b"\x1b[31m" not in written
    assert b"\x07" not in written
    assert "\x9b".encode() not in written


def test_narrow_terminal():
    """In 40 columns the figures break at their dots where they can."""
    with Terminal(FAKES, columns=40, rows=60) as terminal:
        terminal.wait_for("of 512")
        terminal.send("hello\r")
        terminal.wait_for("10 of 512")
        assert "\n312 tokens · ttft 0.08 s\n54.1 tok/s at depth 2 310" in terminal.text
        assert "\nreused 2 290, read 20\n" in terminal.text
        terminal.send("/params\r")
        terminal.wait_for("draft-model")
        rows = terminal.text.partition("> /params\n")[2].split("\n")
        assert "max-tokens          what the context" in rows
        assert "                    holds  default" in rows


def test_dumb_terminal():
    """Where the terminal can do nothing (Emacs' shell) messages are answered all the same."""
    with Terminal(FAKES, TERM="dumb") as terminal:
        terminal.wait_for(">")
        terminal.send("hello\r")
        terminal.wait_for("you said: hello")
        terminal.send("again\n")  # as Emacs sends it
        terminal.wait_for("you said: again")
        assert b"\x1b[2m" not in terminal.raw
        terminal.send("/exit\r")
        assert terminal.wait_for_end() == 0


def test_json_in_a_terminal():
    """--json in a terminal reads lines and prints objects, without a prompt."""
    with Terminal(FAKES, "--json", columns=2000) as terminal:
        terminal.send("hello\n")
        terminal.wait_for('"text": "you said: hello"')
        terminal.send(CTRL_D)
        assert terminal.wait_for_end() == 0
        assert b"\x1b" not in terminal.raw


def test_the_prompt_is_fast():
    """The real chat draws its prompt within 1.3 times the work of a bare PromptSession script.

    Work is processor time, which other programs take nothing of; but they take the caches away, so
    it is measured again where it is too much, at most eight times.
    """
    script = [sys.executable, str(REPOSITORY / "scripts/bench_prompt.py"), "--rounds", "5"]
    for _ in range(8):
        done = subprocess.run(script, capture_output=True, text=True, timeout=200)
        if done.returncode == 0:
            assert json.loads(done.stdout.splitlines()[-1])
            return
    pytest.fail(f"the prompt takes too long:\n{done.stdout}{done.stderr}")


def test_a_real_conversation():
    """The built-in model answers in a terminal, a second turn reuses the first, Ctrl-D leaves."""
    with Terminal("-m", "mlxchat", "--max-tokens", "8", "--temp", "0", rows=30) as terminal:
        terminal.wait_for("builtin · 0 of ", timeout_s=60)
        terminal.send("hello\r")
        terminal.wait_for("reused 0, read ", timeout_s=60)
        terminal.send("and again\r/stats\r")
        terminal.wait_for("turns    2", timeout_s=60)
        terminal.send("/goto 2\r")  # the toolbar follows what idle time brings the cache to
        terminal.wait_for("after 1 turn.")
        terminal.wait_for("builtin · 15 of ", timeout_s=60)
        figures = [line for line in terminal.lines if "reused" in line]
        assert "reused 0," in figures[0]
        assert "reused 0," not in figures[1]
        terminal.send(CTRL_D)
        assert terminal.wait_for_end() == 0
        assert "Traceback" not in terminal.text


def test_a_draft_is_read_while_it_is_typed():
    """The toolbar says what sending costs; the turn finds the draft read, but not by setting."""
    settings_path().parent.mkdir(parents=True)
    for setting, is_read in (("", True), ("[chat]\ntypeahead = false\n", False)):
        settings_path().write_text(setting)
        with Terminal("-m", "mlxchat", "--max-tokens", "4", columns=120) as terminal:
            terminal.wait_for("builtin · 0 of ", timeout_s=60)
            terminal.send("what is a KV cache and why does it make the chat fast")
            terminal.wait_for("builtin · +")
            assert re.search(r"\+1\d tokens.*, \d % of context · 0 of 2 048", terminal.text)
            time.sleep(1)
            terminal.send("\r")
            terminal.wait_for("reused ", timeout_s=60)
            terminal.wait_for(" cached", timeout_s=60)
            assert ("read while you typed" in terminal.text) == is_read


STACKS_80 = """\
> markdown
Stacks

A stack has two operations, see http://example.com/stack:

1. push puts an item on top
2. pop takes it away again

── python ──────────────────────────────────────────────────
def push(stack, item):
    stack.append(item)  # on top
────────────────────────────────────────────────────────────

operation   cost
────────────────
push           1
入れる        10

│ The last one in is the first one out. A queue does it the other way round, as
│ people do.
"""
STACKS_120 = STACKS_80.replace("as\n│ people do.", "as people do.")


@pytest.mark.parametrize(("columns", "screen"), [(80, STACKS_80), (120, STACKS_120)])
def test_screen_of_markdown(columns, screen):
    """Golden screens of 80 and 120 columns: heading, list, code, table and quote, in colours."""
    with Terminal(FAKES, columns=columns, rows=40, TERM="xterm-256color", COLORTERM="") as terminal:
        terminal.wait_for("0 of 512")
        terminal.send("/theme dark\rmarkdown\r")
        terminal.wait_for("read 20")
        text = terminal.text
        assert screen in text
        lines = text.split("\n")
        colours = {
            word: terminal.style_at(
                next(line for line in enumerate(lines) if word in line[1]), word
            )
            for word in ("Stacks", "stack has", "def", "# on top", "push puts", "operation   ")
        }
        assert colours["Stacks"] == ("87d7ff", True)
        assert colours["stack has"] == ("default", True)
        assert colours["def"] == ("d7afff", True)
        assert colours["push puts"] == ("ffd787", False)
        assert colours["# on top"][0] == "9e9e9e"


@pytest.mark.parametrize("columns", [80, 120])
def test_screen_of_markdown_without_colour(columns):
    """With NO_COLOR the answer is the model's text, and nothing of ours moves the cursor."""
    with Terminal(FAKES, columns=columns, rows=40, NO_COLOR="1") as terminal:
        terminal.wait_for("0 of 512")
        terminal.read()
        start = len(terminal.raw)
        terminal.send("markdown\r")
        terminal.wait_for("read 20")
        answer = terminal.raw[start:].split(b"# Stacks", 1)[1].split(b"312 tokens")[0]
        assert b"\x1b" not in answer
        assert f"# Stacks{answer.decode()}".replace("\r\n", "\n") == MARKDOWN
        assert "```python\ndef push(stack, item):" in terminal.text


def test_the_scrollback_is_whole():
    """On a screen too small for the answer each of its rows is in the scrollback once."""
    with Terminal(FAKES, columns=80, rows=8) as terminal:
        terminal.wait_for("0 of 512")
        terminal.send("markdown\r")
        terminal.wait_for("read 20")
        assert STACKS_80.rstrip() in "\n".join([*terminal.scrollback, *terminal.lines])


def test_resize_during_an_answer():
    """A terminal that becomes wider in the middle of an answer gets the rest at that width."""
    with Terminal(FAKES, columns=40, rows=30) as terminal:
        terminal.wait_for("0 of 512")
        terminal.send("long\r")
        terminal.wait_for("word12")
        terminal.resize(70, 30)
        terminal.wait_for("word60")
        terminal.send(CTRL_C)
        terminal.wait_for("(stopped)")
        text = terminal.text.split("> long\n")[1].split("312 tokens")[0]
        words = text.split()
        assert words == [f"word{n}" for n in range(len(words))]
        assert len(text.split("\n")[0]) > 60


def test_ctrl_o_shows_the_thinking(terminal):
    """Ctrl-O at the prompt shows the last thinking, and says when there was none."""
    terminal.send("think\r")
    terminal.wait_for("10 of 512")
    assert "I wonder." not in terminal.text
    terminal.send("\x0f")
    terminal.wait_for("I wonder.\n>")
    terminal.send("hello\r")
    terminal.wait_for("20 of 512")
    terminal.send("\x0f")
    terminal.wait_for("The last answer came without thinking.")


def test_the_look_is_kept():
    """`/theme` and `/markdown` hold for the next chat; a wrong theme in the file is one line."""
    with Terminal(FAKES) as terminal:
        terminal.wait_for("0 of 512")
        terminal.send("/markdown off\r")
        terminal.wait_for("Markdown: off.")
    with Terminal(FAKES) as terminal:
        terminal.wait_for("0 of 512")
        terminal.send("markdown\r")
        terminal.wait_for("# Stacks")
    config = settings_path()
    config.write_text("[display]\ntheme = 'pink'\n")
    with Terminal(FAKES) as terminal:
        assert terminal.wait_for_end() == 1
        said = f"Error: {config}: there is no theme 'pink'; choose"
        assert "".join(said.split()) in "".join(terminal.text.split())


def test_another_model(terminal):
    """/model shows how the load goes on; Ctrl-C keeps the old model, which then answers."""
    terminal.send("/model slow\r")
    terminal.wait_for("loading █")
    terminal.send(CTRL_C)
    terminal.wait_for("Stopped.")
    terminal.wait_for("builtin · 0 of 512")
    terminal.send("/model slow\r")
    terminal.wait_for("From here slow answers; the conversation goes on.")
    terminal.wait_for("slow · 0 of 512 tokens")
    terminal.send("/model missing\r")
    terminal.wait_for("Error: there is no model 'missing'; give a folder")
    terminal.send("hello\r")
    terminal.wait_for("you said: hello")


def test_compaction_can_be_stopped(terminal):
    """/compact shows the summary while it is written; Ctrl-C stops it; else it is shown whole."""
    terminal.send("one\rtwo\rthree\r/compact\r")
    terminal.wait_for("piece  2,")
    terminal.send(CTRL_C)
    terminal.wait_for("Stopped.")
    assert "piece" not in terminal.text
    assert "summary: " in terminal.text
    terminal.send("/compact\r")
    terminal.wait_for("Turn 1 is now this summary:")
    terminal.wait_for("A **short** one.")
    terminal.wait_for("/goto 3 brings all of it back")


def test_ctrl_t_ends_the_thinking(terminal):
    """While the model thinks, Ctrl-T asks for the answer, which comes at once."""
    terminal.send("think long\r")
    terminal.wait_for("wonder wonder")
    terminal.send("\x14")
    terminal.wait_for("you said: think long", 5.0)
    terminal.wait_for("> ")
    assert "thought for" in terminal.text
