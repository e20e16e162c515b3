"""`/copy`: code blocks, OSC 52, clipboard programs."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxchat.cli import clipboard
from mlxchat.cli.clipboard import copy, find_code_blocks, make_osc_52, pick
from mlxchat.errors import MlxchatError, UsageError

ANSWER = """Two:
```py
a = 1
```
- item
  ~~~
  b
    c
  ~~~
```not a `fence`
````md
```
inner
```
````
```
open"""


def test_code_blocks():
    """Blocks of both fences are found, indented, nested and unfinished ones included."""
    assert find_code_blocks(ANSWER) == ["a = 1", "b\n  c", "```\ninner\n```", "open"]


@given(st.lists(st.text(st.sampled_from("ab \n~")), max_size=5))
def test_code_blocks_come_back(blocks):
    """What is put into fences is found again."""
    text = "\n".join(f"x\n```py\n{block}\n```" for block in blocks)
    assert find_code_blocks(text) == blocks


@pytest.mark.parametrize(
    ("what", "text"),
    [("", ANSWER), ("2", "b\n  c"), ("code", "\n\n".join(find_code_blocks(ANSWER)))],
)
def test_pick(what, text):
    """The answer as it is, all code, or a block by its number."""
    assert pick(ANSWER, what)[0] == text


@pytest.mark.parametrize(
    ("answer", "what", "part"),
    [
        (ANSWER, "5", "no code block 5; give 1 to 4"),
        (ANSWER, "0", "no code block 0"),
        (ANSWER, "all", "/copy all is not allowed; write"),
        ("text", "code", "no code block; /copy copies all"),
    ],
)
def test_refusals(answer, what, part):
    """What is not there is refused."""
    with pytest.raises(UsageError, match=part):
        pick(answer, what)


def test_osc_52(monkeypatch):
    """The text is in it in base64; GNU screen gets an envelope; long texts get none."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("TMUX", raising=False)
    sequence = make_osc_52("hé\x1b")
    assert sequence.startswith("\x1b]52;c;")
    assert base64.b64decode(sequence[7:-1]).decode() == "hé\x1b"
    monkeypatch.setenv("TERM", "screen-256color")
    assert make_osc_52("x").startswith("\x1bP\x1b]52;c;")
    assert make_osc_52("x" * 80_000) is None


def test_the_terminal_alone(monkeypatch):
    """Without a program the terminal is enough."""
    monkeypatch.setattr(clipboard, "_run_tool", lambda text: False)
    sent = []
    copy("x", lambda sequence: sent.append(sequence) is None)
    assert len(sent) == 1


@pytest.mark.parametrize(("text", "part"), [("x", "no clipboard"), ("x" * 80_000, "too long")])
def test_nowhere_to_copy_to(monkeypatch, text, part):
    """Without terminal and program the person is told what to do."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MlxchatError, match=f"{part}.*; install wl-copy or xclip"):
        copy(text, lambda sequence: False)


def test_programs(tmp_path, monkeypatch):
    """The first program that works gets the text; one without its display is not tried."""
    for name, status in (("wl-copy", 0), ("xclip", 1), ("xsel", 0)):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\n/bin/cat >{tmp_path}/{name}.got\nexit {status}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    copy("héllo", lambda sequence: False)
    got = {file.stem: file.read_text() for file in tmp_path.glob("*.got")}
    assert got == {"xclip": "héllo", "xsel": "héllo"}
