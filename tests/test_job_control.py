"""The chat as a job of a shell: Ctrl-Z and `fg` at the prompt and in an answer, resize, signals."""

import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from terminal import Terminal

FAKES = str(Path(__file__).with_name("fakes.py"))
CTRL_Z, CTRL_C = "\x1a", "\x03"
SHELL = "import os; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def shell():
    """A chat with the fake session, started from a shell with job control."""
    with Terminal("-c", SHELL, rows=40, PS1="shell> ", BASH_SILENCE_DEPRECATION_WARNING="1") as it:
        it.wait_for("shell>")
        it.send(f"{sys.executable} {FAKES}\r")
        it.wait_for("builtin · 0 of 512 tokens")
        yield it


def count(shell, text):
    return sum(text in line for line in shell.lines)


def wait_for_count(shell, text, number):
    """Reads until a text is on so many lines of the screen."""
    deadline = time.monotonic() + 20
    while count(shell, text) < number:
        assert shell.read()
        assert time.monotonic() < deadline, shell.text


def suspend(shell):
    """Presses Ctrl-Z and tries the shell, whose terminal echoes and edits as before."""
    shell.send(CTRL_Z)
    shell.wait_for("Stopped")
    shell.read()
    assert shell.raw.rfind(b"\x1b[?25h") > shell.raw.rfind(b"\x1b[?25l")
    shell.send("echo it is $((40 + 2))\r")
    shell.wait_for("it is 42")
    assert any(line.endswith("echo it is $((40 + 2))") for line in shell.lines), shell.text


def test_ctrl_z_at_the_prompt(shell):
    """Ctrl-Z stops the chat; `fg` brings the prompt back with its draft, and all keys work."""
    shell.send("a draft")
    shell.wait_for("> a draft")
    suspend(shell)
    shell.send("fg\r")
    wait_for_count(shell, "> a draft", 1)
    shell.wait_for("builtin · ")
    shell.send(" of mine\r")
    shell.wait_for("you said: a draft of mine")
    shell.send("/exit\r")
    wait_for_count(shell, "shell>", 3)


def test_ctrl_z_in_an_answer(shell):
    """Ctrl-Z in an answer stops it with the chat; after `fg` it goes on below what the shell wrote.

    Ctrl-C still stops the answer, and the prompt comes back.
    """
    shell.send("long\r")
    shell.wait_for("word12")
    suspend(shell)
    shown = next(n for n, line in enumerate(shell.lines) if "it is 42" in line)
    shell.send("fg\r")
    wait_for_later = time.monotonic() + 20
    while not any("word" in line for line in shell.lines[shown + 1 :]):
        assert shell.read()
        assert time.monotonic() < wait_for_later, shell.text
    assert any("it is 42" in line for line in shell.lines)
    shell.send(CTRL_C)
    shell.wait_for("(stopped)")
    assert "^C" not in shell.text
    shell.send("hello\r")
    shell.wait_for("you said: hello")


def test_ctrl_z_twice(shell):
    """The second Ctrl-Z does what the first one did."""
    for number in (1, 2):
        shell.send(CTRL_Z)
        wait_for_count(shell, "Stopped", number)
        shell.send("fg\r")
        time.sleep(0.3)
    shell.send("hello\r")
    shell.wait_for("you said: hello")


def test_a_stop_from_outside(shell):
    """A stop that no key caused is as good: here that of a command which the chat runs."""
    shell.send("!kill -TSTP $PPID\r")
    shell.wait_for("Stopped")
    shell.send("fg\r")
    shell.wait_for("1 attached")
    shell.send("hello\r")
    shell.wait_for("you said: Output of kill")


def test_resize_while_stopped(shell):
    """A terminal that changed its size meanwhile is drawn at the new one."""
    suspend(shell)
    shell.resize(60, 20)
    shell.send("fg\r")
    shell.wait_for("builtin · ")
    shell.send("hello\r")
    shell.wait_for("you said: hello")
    assert all(len(line) <= 60 for line in shell.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_killed_chat_leaves_the_shell_its_terminal(shell, number):
    """After a signal in an answer the shell echoes and edits as before."""
    shell.send("long\r")
    shell.wait_for("word5")
    name = number.name.removeprefix("SIG")
    if number == signal.SIGINT:
        shell.send(CTRL_C)
        shell.wait_for("(stopped)")
        shell.send(CTRL_C)
        shell.wait_for("Press Ctrl-C again")
        shell.send(CTRL_C)
    else:
        shell.send(CTRL_Z)
        shell.wait_for("Stopped")
        shell.send(f"kill -{name} %1; fg\r")
    wait_for_count(shell, "shell>", 2)
    time.sleep(1)
    shell.send("echo it is $((40 + 2))\r")
    shell.wait_for("it is 42")
    assert any(line.endswith("echo it is $((40 + 2))") for line in shell.lines), shell.text
    assert "Traceback" not in shell.text
