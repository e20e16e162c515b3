"""Shell commands: what is kept of their output, how they end, what Ctrl-C does."""

import os
import time

import pytest
from fakes import ctrl_c
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.cli import shell
from mlxchat.cli.shell import Clip, clean_output, run_command


@pytest.fixture(autouse=True)
def plain_shell(monkeypatch):
    """Every test uses the same shell."""
    monkeypatch.setenv("SHELL", "/bin/sh")


def run(command, **options):
    """Returns the attachment and the lines that were shown."""
    said = []
    return run_command(command, said.append, **options), "\n".join(said)


def test_output_and_status():
    """Both outputs are kept in their order, with the exit status; the keyboard is empty."""
    attachment, said = run("echo a; echo b >&2; cat; exit 7")
    assert (attachment.text, attachment.status, attachment.size) == ("a\nb\n", "exit status 7", 4)
    assert attachment.name == "echo a; echo b >&2; cat; exit 7"
    assert said == "a\nb"


def test_no_output():
    """A command that says nothing says so to the model."""
    assert run("true")[0].text == "(no output)"


def test_a_signal():
    """A command that a signal ended has that as its status."""
    assert run("kill -9 $$")[0].status == "ended by signal 9"


def test_long_output():
    """Long output is cut in the middle at line ends; a line says how much is missing."""
    attachment, said = run("seq 1 20000", max_bytes=2000)
    head, _, tail = attachment.text.partition("\n[... ")
    missing, _, tail = tail.partition(" left out ...]\n")
    first, last = head.split("\n"), tail.rstrip("\n").split("\n")
    assert first == [str(n) for n in range(1, len(first) + 1)]
    assert last == [str(n) for n in range(20001 - len(last), 20001)]
    lost_bytes, lost_lines = missing.replace(" bytes", "").replace(" lines", "").split(", ")
    assert int(lost_lines.replace(" ", "")) == 20000 - len(first) - len(last)
    assert int(lost_bytes.replace(" ", "")) + len(head) + 1 + len(tail) == attachment.size
    assert len(attachment.text) < 2100
    assert said.endswith("… 19 960 more lines")


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(2, 64))
def test_clip(pieces, limit):
    """However output comes in pieces, what is kept is its two ends, and short output is whole."""
    clip, whole = Clip(limit), b"".join(pieces)
    for piece in pieces:
        clip.add(piece)
    again = Clip(limit)
    again.add(whole)
    assert clip.size == len(whole)
    assert clip.text() == again.text()
    if len(whole) <= limit // 2 * 2:
        assert clip.text() == clean_output(whole)
    else:
        assert "left out" in clip.text()


def test_clean_output():
    """Colours, titles and overwritten progress are taken away."""
    data = b"\x1b[1;31mred\x1b[0m\r\n10%\r 50%\r100%\n\x1b]0;title\x07x\xff"
    assert clean_output(data) == "red\n100%\nx\ufffd"


def test_ctrl_c_stops_the_command():
    """Ctrl-C ends the command with what it started; what it wrote is kept."""
    started = time.monotonic()
    said = []
    with ctrl_c(lambda: said):
        attachment = run_command("echo begun; sleep 60", said.append)
    assert time.monotonic() - started < 10
    assert (attachment.text, attachment.status) == ("begun\n", "stopped by Ctrl-C")


def test_ctrl_c_on_a_stubborn_command(monkeypatch):
    """A command that ignores Ctrl-C and a request to end is killed."""
    monkeypatch.setattr(shell, "PATIENCE_S", 0.1)
    said = []
    with ctrl_c(lambda: said):
        attachment = run_command(
            "trap '' INT TERM; echo begun; while :; do sleep 1; done", said.append
        )
    assert attachment.status == "stopped by Ctrl-C"


def test_work_in_the_background_is_not_awaited(tmp_path):
    """A command that leaves something running returns at once."""
    started = time.monotonic()
    attachment, _ = run(f"sleep 30 & echo $! >{tmp_path}/pid; echo done")
    assert time.monotonic() - started < 10
    assert attachment.text == "done\n"
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_command_that_closes_its_output():
    """The exit status is awaited where the output ends before the command."""
    assert run("exec >&- 2>&-; sleep 0.2; exit 5")[0].status == "exit status 5"
