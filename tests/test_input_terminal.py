"""Input in a real pseudo-terminal: chips, editor, attachments, keys while an answer is given."""

import base64
import re
import time
from pathlib import Path

import pytest
from chats import paste
from terminal import Terminal

FAKES = str(Path(__file__).with_name("fakes.py"))
CTRL_C, CTRL_D, ESC, ENTER, BACKSPACE = "\x03", "\x04", "\x1b", "\r", "\x7f"
EXPAND, EDITOR = "\x18\x10", "\x18\x05"
LARGE = "".join(f"line {n}\n" for n in range(42))


@pytest.fixture
def terminal(tmp_path, monkeypatch):
    """A chat in a folder with two files, its model loaded; the editor adds a line."""
    (tmp_path / "a.txt").write_text("one two\n")
    (tmp_path / "b.txt").write_text("x" * 3000)
    script = tmp_path / "editor"
    script.write_text(
        '#!/bin/sh\nprintf "EDITING"; read answer\nprintf "\\n%s\\n" "$answer" >>"$1"\n'
    )
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    environment = {"EDITOR": str(script), "VISUAL": "", "SHELL": "/bin/sh"}
    with Terminal(FAKES, **environment) as terminal:
        terminal.wait_for("builtin · 0 of 512 tokens")
        yield terminal


def prompt_line(terminal):
    """Returns the last line that begins like a prompt."""
    return [line for line in terminal.lines if re.match(r"(\[\d+ attached\] )?>", line)][-1]


def test_a_paste_is_a_chip(terminal):
    """A large paste shows as a chip between what is typed, moves as one, and expands."""
    terminal.send(f"ab{paste(LARGE)}cd")
    terminal.wait_for("> ab[pasted 42 lines]cd")
    terminal.send("\x1b[D" * 3 + "x")  # left over c, d and the chip
    terminal.wait_for("> abx[pasted 42 lines]cd")
    terminal.send(EXPAND)
    terminal.wait_for("line 41")
    assert "pasted" not in terminal.text
    terminal.send(CTRL_C)
    terminal.wait_for("Press Ctrl-C again to leave.")
    terminal.send(f"{paste('y' * 1200)}!")
    terminal.wait_for("> [pasted 1 200 characters]!")
    terminal.send(ENTER)
    terminal.wait_for("you said:\nyyyy")


def test_the_editor_has_the_terminal(terminal):
    """Ctrl-X Ctrl-E gives the terminal to the editor and comes back with what it saved."""
    terminal.send("draft" + EDITOR)
    terminal.wait_for("EDITING")
    terminal.send("more\n")
    terminal.wait_for("  more")
    terminal.send(ENTER)
    terminal.wait_for("you said: draft")
    assert "\nmore" in terminal.text.split("you said: draft")[1]


def test_ctrl_c_in_the_editor(terminal):
    """Ctrl-C ends an editor that lets it; the draft is as it was, and a line says so."""
    terminal.send("draft" + EDITOR)
    terminal.wait_for("EDITING")
    terminal.send(CTRL_C)
    terminal.wait_for("the draft is as it was")
    terminal.wait_for("> draft")
    terminal.send(f" sent{ENTER}")
    terminal.wait_for("you said: draft sent")


def test_attachments_are_seen(terminal):
    """What is attached is in the prompt and in the toolbar, with size and tokens when it comes."""
    terminal.send(f"/file ?.txt{ENTER}")
    terminal.wait_for("attached: a.txt, b.txt (2.9 KiB) · builtin")
    assert "Attached a.txt, 8 B, 2 tokens." in terminal.text
    assert prompt_line(terminal) == "[2 attached] >"
    terminal.send(f"/drop 2{ENTER}")
    terminal.wait_for("[1 attached] >")
    terminal.send(f"what?{ENTER}")
    terminal.wait_for("10 of 512")
    answer = terminal.text[terminal.text.index("you said: a.txt:") :]
    assert answer.index("one two") < answer.index("what?")  # shown as Markdown
    assert prompt_line(terminal) == ">"


def test_a_missing_file(terminal):
    """The draft with the wrong path is in the next prompt."""
    terminal.send(f"see @c.txt{ENTER}")
    terminal.wait_for("Error: there is no file c.txt")
    terminal.read(0.3)
    assert prompt_line(terminal) == "> see @c.txt"
    terminal.send(f"{BACKSPACE * 5}a.txt{ENTER}")
    terminal.wait_for("see a.txt")


def test_ctrl_c_and_esc_stop_a_command(terminal):
    """Both end the command and not the chat; what it had written is attached."""
    for number, key in enumerate((CTRL_C, ESC), start=1):
        terminal.send(f"!echo begun{number}; sleep 60{ENTER}")
        terminal.wait_for(f"\nbegun{number}")
        started = time.monotonic()
        terminal.send(key)
        terminal.wait_for(f"[{number} attached] >")
        assert time.monotonic() - started < 10
    assert terminal.text.count("(stopped by Ctrl-C), 7 B") == 2
    assert "^C" not in terminal.text


def test_esc_stops_the_answer(terminal):
    """Esc stops an answer like Ctrl-C; no other key does, and none is lost."""
    terminal.send(f"long{ENTER}")
    terminal.wait_for("word3")
    terminal.send("né\x1b[Dw ")  # a letter of two bytes, then left: "nw é"
    terminal.send(paste("a\nb"))
    terminal.read(0.3)
    terminal.wait_for("word40")
    terminal.send(ESC)
    terminal.wait_for("312 tokens (stopped)")
    terminal.wait_for("> nw a")
    terminal.wait_for("  bé")
    terminal.send(f"!{ENTER}")
    terminal.wait_for("you said: nw a\nb!é")


def test_lines_typed_ahead(terminal):
    """Whole lines that are typed during an answer are sent one after the other."""
    terminal.send(f"read this{ENTER}")
    terminal.wait_for("reading")
    terminal.send(f"ab\x1b[Dc{ENTER}second{ENTER}")
    terminal.wait_for("you said: acb")
    terminal.wait_for("you said: second")
    assert "stopped" not in terminal.text.lower()


def test_copy_reaches_the_terminal(terminal):
    """/copy writes the answer as OSC 52 and shows nothing of it."""
    terminal.send(f"héllo{ENTER}")
    terminal.wait_for("10 of 512")
    terminal.send(f"/copy{ENTER}")
    terminal.wait_for("Copied the answer: 15 characters.")
    data = re.search(rb"\x1b\]52;c;([A-Za-z0-9+/=]+)\x07", terminal.raw)[1]
    assert base64.b64decode(data).decode() == "you said: héllo"


def test_a_suggestion_is_grey(terminal):
    """What was sent before is offered after the cursor and taken by Right."""
    terminal.send(f"tell me a joke{ENTER}")
    terminal.wait_for("10 of 512")
    terminal.send("tell")
    terminal.wait_for("> tell me a joke")
    deadline = time.monotonic() + 10
    while prompt_line(terminal) != "> tell me a joke" and time.monotonic() < deadline:
        terminal.read()
    terminal.send(f"\x1b[C{ENTER}")
    terminal.wait_for("20 of 512")
    assert terminal.text.count("you said: tell me a joke") == 2


def test_vi_mode_in_a_terminal(tmp_path, monkeypatch):
    """With vi keys Esc acts at once: no key waits for it."""
    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    (home / "config" / "config.toml").write_text('[keys]\nmode = "vi"\n')
    with Terminal(FAKES, MLXCHAT_HOME=str(home)) as terminal:
        terminal.wait_for("builtin · 0 of 512 tokens")
        terminal.send("hello wrld")
        terminal.wait_for("hello wrld")
        terminal.send(ESC)
        terminal.read(0.3)
        terminal.send("bi2")
        terminal.wait_for("hello 2wrld")
        terminal.send(ENTER)
        terminal.wait_for("you said: hello 2wrld")


def test_tab_shows_the_choices(terminal):
    """Few choices show what they mean above the prompt; many stand side by side; nothing else."""
    terminal.send("/s\t")
    terminal.wait_for("/stats ")
    terminal.wait_for("of 512 tokens")
    rows = terminal.text.split("\n")
    assert rows[3] == "/system  Show or set the system prompt: a text, `@name` or `none`."
    assert terminal.text.count("of 512 tokens") == 1
    terminal.send("\x15look at @\t")
    terminal.wait_for("> look at @")
    assert terminal.text.count("look at @") == 1
    terminal.send("\x15/\t")
    terminal.wait_for("/reset ")
    assert re.search(r"^/system +/\w+ +/\w+ ", terminal.text, re.MULTILINE)
