"""Keys of the prompt and what they send: lines, pastes, editor, vi, attachments, commands."""

import os
import stat
import subprocess
import time

import pytest
from chats import CTRL_C, CTRL_J, ENTER, chats, paste
from fake_hub import put_in_cache
from fakes import ctrl_c
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input.vt100_parser import Vt100Parser
from virtual_terminal import cut

from mlxchat import paths
from mlxchat.cli.completion import ChatCompleter, find_models
from mlxchat.cli.paste import MAX_CHARS, PasteParser
from mlxchat.errors import MlxchatError

UP, RIGHT, LEFT, TAB, ESC, BACKSPACE = "\x1b[A", "\x1b[C", "\x1b[D", "\t", "\x1b", "\x7f"
CTRL_X, CTRL_E, CTRL_P, CTRL_R, CTRL_A, CTRL_Z = "\x18", "\x05", "\x10", "\x12", "\x01", "\x1f"
LARGE = "".join(f"line {n}\n" for n in range(42))


@pytest.fixture
def make_chat(tmp_path, monkeypatch):
    """Makes chats in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with chats() as make:
        yield make


@pytest.fixture
def chat(make_chat):
    return make_chat()


def write_editor(tmp_path, monkeypatch, body):
    """Makes a shell script the person's editor."""
    script = tmp_path / "editor with blank"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"'{script}'")


# -- lines -----------------------------------------------------------------------------------------


def test_trailing_backslash(chat):
    """A backslash at the end and Enter add a line; two are text."""
    chat.run(f"one\\{ENTER}two{ENTER}a \\\\{ENTER}")
    assert chat.session.sent == ["one\ntwo", "a \\\\"]


def test_block(chat):
    """Between triple quotes Enter adds lines, and nothing is a command or names a file."""
    chat.run(f'"""{ENTER}/help @no/file{ENTER}  !ls \\{ENTER}"""{ENTER}')
    assert chat.session.sent == ["/help @no/file\n  !ls \\"]


def test_block_on_one_line(chat):
    """Quotes that close on their line are taken away; quotes in the middle are text."""
    chat.run(f'"""/help"""{ENTER}say """x""" now{ENTER}"""a""" b{ENTER}')
    assert chat.session.sent == ["/help", 'say """x""" now', '"""a""" b']


def test_enter_in_the_middle_of_a_block(chat):
    """In an open block Enter adds the line where the cursor is."""
    chat.run(f'"""ab{LEFT}{ENTER}{CTRL_E}{ENTER}"""{ENTER}')
    assert chat.session.sent == ["a\nb"]


# -- pastes ----------------------------------------------------------------------------------------


def test_a_large_paste_is_sent_whole(chat):
    """A chip stands for all that was pasted, with its place in the line."""
    chat.run(f"before {paste(LARGE)} after{ENTER}")
    assert chat.session.sent == [f"before {LARGE} after"]


@given(
    st.lists(
        st.sampled_from(["\x1b[200~", "\x1b[201~", "\x1b", "[20", "1~", "ab", "\r"]), max_size=9
    ),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_pastes_in_pieces(parts, places):
    """However what is typed is cut, the keys and pastes are those that prompt-toolkit finds."""
    ours, theirs = [], []
    parser, reference = PasteParser(ours.append), Vt100Parser(theirs.append)
    for piece in cut("".join(parts), places):
        parser.feed(piece)
        reference.feed(piece)
    assert ours == theirs


def test_a_long_line_becomes_a_chip(chat):
    """Many characters on one line are a chip too: one key deletes it."""
    chat.run(f"a{paste('x' * (MAX_CHARS + 1))}{BACKSPACE}b{paste('y' * 9)}{ENTER}")
    assert chat.session.sent == [f"ab{'y' * 9}"]


@pytest.mark.parametrize("keys", [CTRL_X + CTRL_P, TAB])
def test_expanding_a_chip(chat, keys):
    """Ctrl-X Ctrl-P, or Tab behind the chip, puts the text into the line to be edited."""
    chat.run(f"{paste(LARGE)}{keys}{BACKSPACE}{BACKSPACE}!{ENTER}")
    assert chat.session.sent == [f"{LARGE[:-2]}!"]


def test_expanding_all_chips(chat):
    """Ctrl-X Ctrl-P away from any chip expands all of them."""
    chat.run(f"{paste(LARGE)} and {paste(LARGE.upper())} end{CTRL_X}{CTRL_P}{ENTER}")
    assert chat.session.sent == [f"{LARGE} and {LARGE.upper()} end"]


def test_pasted_code_names_no_files(chat):
    """An `@` in a large paste is text, also where it looks like a path."""
    code = "@app/decorated.py\n" * 12
    chat.run(f"explain {paste(code)}{ENTER}")
    assert chat.session.sent == [f"explain {code}"]


def test_a_paste_as_the_argument_of_a_command(chat):
    """A command gets the whole paste."""
    chat.run(f"/system {paste(LARGE)}{ENTER}")
    assert chat.session.system == LARGE


# -- history ---------------------------------------------------------------------------------------


def test_a_paste_is_recalled_whole(chat, make_chat):
    """The input history keeps the text of a paste, not its chip."""
    chat.run(f"see {paste(LARGE)}{ENTER}")
    again = make_chat()
    again.run(f"{UP}{ENTER}")
    assert again.session.sent == [f"see {LARGE}"]


def test_the_same_message_is_kept_once(chat):
    """What is sent twice in a row is one entry."""
    chat.run(f"same{ENTER}same{ENTER}other{ENTER}same{ENTER}")
    lines = (paths.data_dir() / "input_history").read_text().splitlines()
    assert [line for line in lines if line.startswith("+")] == ["+same", "+other", "+same"]


def test_search(make_chat):
    """Ctrl-R finds an older message by a part of it."""
    make_chat().run(f"the first one{ENTER}second{ENTER}")
    chat = make_chat()
    chat.run(f"{CTRL_R}fir{ENTER}{ENTER}")
    assert chat.session.sent == ["the first one"]


def test_grey_suggestion(make_chat):
    """Right takes the rest of the latest message that begins like the line."""
    make_chat().run(f"tell me a joke{ENTER}tell me more{ENTER}other{ENTER}")
    chat = make_chat()
    with pytest.MonkeyPatch.context() as patch:
        # The pipe is faster than the task that asks for the suggestion.
        from prompt_toolkit.buffer import Buffer

        def suggest(buffer):
            buffer.suggestion = buffer.auto_suggest.get_suggestion(buffer, buffer.document)

        patch.setattr(Buffer, "_text_changed", lambda self: suggest(self))
        chat.run(f"tell me{RIGHT}{ENTER}")
    assert chat.session.sent == ["tell me more"]


# -- editor and vi ---------------------------------------------------------------------------------


def test_editor(chat, tmp_path, monkeypatch):
    """Ctrl-X Ctrl-E opens the draft, pastes whole; what was saved is the draft."""
    write_editor(tmp_path, monkeypatch, 'wc -l <"$1" >"$1.n"; cat "$1.n" >>"$1"; rm "$1.n"')
    keys = f"{CTRL_X}{CTRL_E}"
    chat.repl._prompt.app.after_render += press_when(chat, lambda text: "42" in text, ENTER)
    chat._pipe.send_text(f"{paste(LARGE)}{keys}")
    assert chat.repl.run() == 0
    assert chat.session.sent == [f"{LARGE}42\n"]


def press_when(chat, is_due, keys):
    """Returns a handler that types keys, then Ctrl-D, once the line has what it waits for."""
    done = []

    def check(app):
        if not done and is_due(app.current_buffer.text):
            done.append(True)
            chat._pipe.send_text(f"{keys}\x04")

    return check


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("exit 3", "ended with status 3; the draft is as it was\n"),
        ("echo new >$1; exit 1", "ended with status 1; the draft is as it was, what was saved is"),
    ],
)
def test_an_editor_that_fails(chat, tmp_path, monkeypatch, body, part):
    """A failing editor changes nothing, says so, and what it had saved is kept."""
    write_editor(tmp_path, monkeypatch, body)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    said = []
    monkeypatch.setattr(chat.repl._screen, "error", lambda text: said.append(text))
    chat.repl._prompt.app.after_render += press_when(chat, lambda _: bool(said), ENTER)
    chat._pipe.send_text(f"{paste(LARGE)}!{CTRL_X}{CTRL_E}")
    assert chat.repl.run() == 0
    assert chat.session.sent == [f"{LARGE}!"]
    assert part in f"{said[0]}\n"
    left = list(tmp_path.glob("mlxchat-*.md"))
    assert [file.read_text() for file in left] == (["new\n"] if "new" in body else [])


@pytest.mark.parametrize(
    ("editor", "part"),
    [("/no/such/editor", "cannot be started"), ("'half", "EDITOR='half is not allowed")],
)
def test_no_editor(monkeypatch, editor, part):
    """An editor that cannot be started is one line."""
    from mlxchat.cli.editor import edit_text

    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    with pytest.raises(MlxchatError, match="; ") as caught:
        edit_text("draft")
    assert part in str(caught.value)


def test_vi_mode(make_chat):
    """With `[keys] mode = "vi"` Esc begins vi's commands; Ctrl-J adds a line."""
    chat = make_chat(keys="vi")
    chat.run(f"hello wrld{ESC}bxi{ENTER}one{CTRL_J}two{ENTER}")
    assert chat.session.sent == ["hello rld", "one\ntwo"]


# -- attachments -----------------------------------------------------------------------------------


def test_a_file_in_a_message(chat):
    """`@path` puts the file before the message, with its name, and says what that costs."""
    with open("a b.py", "w") as file:
        file.write("print(1)\n")
    out = chat.run(f'explain @"a b.py".{ENTER}and mail me@a.b{ENTER}')
    assert chat.session.sent[0] == 'a b.py:\n```py\nprint(1)\n```\n\nexplain "a b.py".'
    assert "Attached a b.py, 9 B, " in out
    assert chat.session.sent[1] == "and mail me@a.b"


def test_a_missing_file_keeps_the_draft(chat):
    """A path without a file is an error and the line waits to be corrected."""
    with open("there.txt", "w") as file:
        file.write("x")
    out = chat.run(f"see @thre.txt{ENTER}{BACKSPACE * 6}ere.txt{ENTER}")
    assert "Error: there is no file thre.txt (there is there.txt); correct the name" in out
    assert "or write @@thre.txt to send it as text" in out
    assert chat.session.sent == ["there.txt:\n```txt\nx\n```\n\nsee there.txt"]


def test_a_draft_with_a_chip_is_kept(chat):
    """The chip of a draft that was kept still stands for its paste."""
    chat.run(f"{paste(LARGE)} @no/file{ENTER}{BACKSPACE * 8}x{ENTER}")
    assert chat.session.sent == [f"{LARGE} x"]


def test_file_and_drop(chat):
    """/file attaches, /drop discards, the prompt and the toolbar tell, sending uses it up."""
    for name in ("a.txt", "b.txt", "c.txt"):
        with open(name, "w") as file:
            file.write(name)
    seen = []
    chat.repl._prompt.app.after_render += lambda app: seen.append(
        (chat.repl._sign(), chat.repl._toolbar())
    )
    out = chat.run(f"/file ?.txt{ENTER}/drop 2{ENTER}go{ENTER}again{ENTER}/drop{ENTER}{CTRL_C}")
    assert chat.session.sent == [
        "a.txt:\n```txt\na.txt\n```\n\nc.txt:\n```txt\nc.txt\n```\n\ngo",
        "again",
    ]
    assert "Dropped b.txt, 5 B" in out
    assert "Error: nothing is attached; @path, /file and !cmd attach" in out
    assert any(sign == "[3 attached] > " for sign, _ in seen)
    assert any("attached: a.txt, c.txt (10 B) · " in toolbar for _, toolbar in seen)


def test_ctrl_c_begins_a_line_to_type_in_vi_mode(make_chat):
    """After vi's commands Ctrl-C clears the line and the next keys are text again."""
    chat = make_chat(keys="vi")
    chat.run(f"one{ESC}bx{CTRL_C}what{ENTER}")
    assert chat.session.sent == ["what"]


def test_what_is_attached_survives_a_failed_turn(chat):
    """Attachments are used up by an answer, not by a turn that failed or a command."""
    with open("a.txt", "w") as file:
        file.write("A")
    send = chat.session.send

    def fail_once(text):
        chat.session.send = send
        raise MlxchatError("the context is full; shorten the message")

    def retry():
        chat.session.send = fail_once
        return send("again")

    chat.session.retry = retry
    chat.run(f"hi{ENTER}/file a.txt{ENTER}/retry{ENTER}lost{ENTER}go{ENTER}")
    assert len(chat.session.sent) == 3
    assert chat.session.sent[2].endswith("A\n```\n\ngo")


def test_ctrl_c_stops_the_search_for_files(chat, monkeypatch):
    """Ctrl-C ends a pattern that leads too far; the chat goes on with the draft gone."""
    begun = []

    def search(name, max_bytes):
        begun.append(name)
        time.sleep(30)

    monkeypatch.setattr("mlxchat.cli.attachments.find_files", search)
    started = time.monotonic()
    with ctrl_c(lambda: begun):
        out = chat.run(f"/file /**/*.py{ENTER}hello{ENTER}")
    assert time.monotonic() - started < 20
    assert "Stopped.\nyou said: hello" in out


def test_edit_takes_files_too(chat):
    """The text of /edit is a message."""
    with open("a.txt", "w") as file:
        file.write("A")
    chat.run(f"hi{ENTER}/edit see @a.txt{ENTER}")
    assert chat.session.sent == ["a.txt:\n```txt\nA\n```\n\nsee a.txt"]


def test_edit_without_a_text(chat):
    """The old message comes into the prompt; what was attached to it stands as a chip."""
    with open("a.txt", "w") as file:
        file.write("line\n" * 20)
    chat.run(
        f"see @a.txt now{ENTER}second{ENTER}/edit{ENTER} one{ENTER}/edit 1{ENTER}, please{ENTER}"
    )
    block = "a.txt:\n```txt\n" + "line\n" * 20 + "```\n\n"
    assert chat.session.sent == [f"{block}see a.txt now, please"]


def test_shell_command(chat):
    """`!cmd` shows its output and attaches it with the exit status to the next message."""
    out = chat.run(f"!echo out; echo err >&2; exit 3{ENTER}what?{ENTER}!!no{ENTER}! {ENTER}")
    assert (
        "\nout\nerr\nAttached $ echo out; echo err >&2; exit 3 (exit status 3), 8 B" in f"\n{out}"
    )
    command = "echo out; echo err >&2; exit 3"
    assert chat.session.sent == [
        f"Output of `{command}` (exit status 3):\n```\nout\nerr\n```\n\nwhat?",
        "!no",
        "! ",
    ]


# -- copy and set ----------------------------------------------------------------------------------


def test_copy(chat, monkeypatch):
    """/copy hands the last answer to a program that was found."""
    given = []
    monkeypatch.setattr("shutil.which", lambda name: name if name == "pbcopy" else None)

    def run(command, *, input, **_):
        given.append((command[0], input))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)
    out = chat.run(f"/copy{ENTER}héllo{ENTER}/copy{ENTER}/copy 1{ENTER}")
    assert given == [("pbcopy", "you said: héllo".encode())]
    assert "Copied the answer: 15 characters." in out
    assert "Error: there is no answer yet; send a message first" in out
    assert "Error: the last answer has no code block; /copy copies all of it" in out


def test_set_and_params(chat):
    """/set changes the next turn; /params says what is in force and who chose it."""
    out = chat.run(
        f"hi{ENTER}/set temp 0.2{ENTER}/set think off{ENTER}/params{ENTER}/set tmp 1{ENTER}"
    )
    assert chat.session.options.sampling.temperature == 0.2
    assert chat.session.options.think is False
    rows = dict(line.split(maxsplit=1) for line in out.split("\n") if line.count("  ") >= 2)
    assert rows["temp"].split() == ["0.2", "/set"]
    assert rows["think"].split() == ["off", "/set"]
    assert rows["top-p"].split() == ["0.95", "default"]
    assert "Error: tmp is no setting; did you mean temp?" in out


# -- completion ------------------------------------------------------------------------------------


def completions(chat, text):
    completer = ChatCompleter(lambda: None if chat is None else chat.session)
    found = completer.get_completions(Document(text), CompleteEvent())
    return [text[: len(text) + c.start_position] + c.text for c in found]


def test_completion_of_arguments(chat):
    """Tab knows the arguments: messages, switches, settings and their values."""
    chat.run(f"one{ENTER}two{ENTER}")
    assert completions(chat, "/goto ") == ["/goto 1", "/goto 2"]
    assert completions(chat, "/think o") == ["/think on", "/think off"]
    assert completions(chat, "/set top") == ["/set top-p", "/set top-k"]
    assert completions(chat, "/set verify ") == ["/set verify on", "/set verify off"]
    assert completions(chat, "/copy ") == ["/copy code"]
    assert completions(chat, "/help x") == []
    assert completions(chat, "/xyzzy x") == []
    assert completions(None, "/goto ") == []


def test_completion_of_paths(chat):
    """Tab completes paths in /file and after `@`, hidden ones on demand, blanks in quotes."""
    os.makedirs("src/deep")
    for name in ("src/a.py", "src/a b.py", ".hidden", "top.txt"):
        open(name, "w").close()
    assert completions(chat, "/file ") == ["/file src/", "/file top.txt"]
    assert completions(chat, "/file src/a ") == ["/file src/a b.py"]
    assert completions(chat, "see @to") == ["see @top.txt"]
    assert completions(chat, "see (@src/") == [
        'see (@"src/a b.py"',
        "see (@src/a.py",
        "see (@src/deep/",
    ]
    assert completions(chat, 'see @"src/a ') == ['see @"src/a b.py"']
    assert completions(chat, "@.h") == ["@.hidden"]
    assert completions(chat, "/edit see @to") == ["/edit see @top.txt"]
    assert completions(chat, "/system @to") == []
    assert completions(chat, "me@to") == []
    assert completions(chat, "@no/such/") == []
    assert completions(chat, "/schema o") == ["/schema off"]
    assert completions(chat, "/schema to") == ["/schema top.txt"]
    assert completions(chat, "/schema grammar src/d") == ["/schema grammar src/deep/"]


def test_completion_of_models(tmp_path, monkeypatch):
    """Models are what the Hub cache holds, the built-in one and folders."""
    put_in_cache(tmp_path / "hub", "owner/name", {"config.json": b"{}"})
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert dict(find_models(None, f"{tmp_path}/f")) == {f"{tmp_path}/folder/": "folder"}
    found = dict(find_models(None, ""))
    assert list(found) == ["builtin", "owner/name"]
    assert "no model.safetensors" in found["owner/name"]


def test_tab_completes_in_the_prompt(chat):
    """The Tab key completes a path in the middle of a message."""
    with open("only.txt", "w") as file:
        file.write("x")
    chat.run(f"see @on{TAB}{ENTER}")
    assert chat.session.sent[0].endswith("see only.txt")


def test_history_file_is_private(chat):
    """What is kept of pastes is for its owner alone."""
    chat.run(f"{paste(LARGE)}{ENTER}")
    mode = (paths.data_dir() / "input_history").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
