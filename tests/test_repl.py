"""The REPL through a pipe: keys, commands, completion, history, errors."""

import re
import signal

import pytest
from chats import ALT_ENTER, CTRL_C, CTRL_J, ENTER, chats
from fakes import LONG_ANSWER_TOKENS, ctrl_c
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from mlxchat import paths
from mlxchat.cli import keys, recall
from mlxchat.cli.completion import ChatCompleter
from mlxchat.errors import ModelNotFoundError


@pytest.fixture
def make_chat():
    """Makes chats over a fake session."""
    with chats() as make:
        yield make


@pytest.fixture
def chat(make_chat):
    return make_chat()


def test_a_conversation(chat):
    """Messages are answered one after the other, each with its line of figures; Ctrl-D leaves."""
    out = chat.run(f"hello{ENTER}bye{ENTER}")
    banner, first, *_ = out.split("you said: ")
    assert "/help" in banner
    assert first.startswith("hello\n312 tokens · ttft 0.08 s")
    assert out.endswith("reused 2 290, read 20\n")
    assert chat.session.sent == ["hello", "bye"]


def test_the_model_is_loaded_behind_the_prompt(chat):
    """Loading begins with the first drawing of the prompt, once."""
    chat.run(f"hello{ENTER}again{ENTER}")
    assert chat.session.load_calls == 1


@pytest.mark.parametrize("new_line", [ALT_ENTER, CTRL_J, "\x1b[27;2;13~", "\x1b[13;2u"])
def test_more_lines(chat, new_line):
    """Alt-Enter, Ctrl-J and Shift-Enter add a line, Enter sends."""
    chat.run(f"one{new_line}two{ENTER}")
    assert chat.session.sent == ["one\ntwo"]


def test_paste_keeps_its_lines(chat):
    """A bracketed paste is one message with its lines, however it ends them."""
    chat.run(f"\x1b[200~one\r\ntwo\rthree\n\x1b[201~{ENTER}")
    assert chat.session.sent == ["one\ntwo\nthree\n"]


def test_empty_lines_are_not_sent(chat):
    """Enter on an empty line, or on blanks, sends nothing."""
    chat.run(f"{ENTER}  {ENTER}hello{ENTER}")
    assert chat.session.sent == ["hello"]


def test_ctrl_c_clears_the_line(chat):
    """Ctrl-C at the prompt throws the line away and stays."""
    chat.run(f"secret{CTRL_C}hello{ENTER}")
    assert chat.session.sent == ["hello"]


def test_ctrl_c_twice_leaves(chat):
    """A second Ctrl-C on an empty line leaves."""
    chat.run(f"text{CTRL_C}{CTRL_C}hello{ENTER}")
    assert chat.session.sent == []


def test_ctrl_c_twice_but_slowly_stays(chat, monkeypatch):
    """Two presses that are far apart are two wishes to clear the line."""
    monkeypatch.setattr(keys, "LEAVE_WITHIN_S", 0.0)
    chat.run(f"{CTRL_C}{CTRL_C}hello{ENTER}")
    assert chat.session.sent == ["hello"]


def test_ctrl_c_then_typing_stays(chat):
    """A line typed after Ctrl-C is cleared by the next one."""
    chat.run(f"{CTRL_C}text{CTRL_C}hello{ENTER}")
    assert chat.session.sent == ["hello"]


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(chat):
    """Ctrl-C in an answer ends it at once; what was written stays; the next message is answered."""
    with ctrl_c(lambda: chat.session.sent):
        out = chat.run(f"long{ENTER}hello{ENTER}")
    assert "word0 word1" in out
    assert f"word{LONG_ANSWER_TOKENS // 2}" not in out
    assert "tokens (stopped)" in out
    assert "you said: hello" in out
    assert chat.session.sent == ["long", "hello"]


def test_ctrl_c_while_loading_keeps_the_chat(make_chat):
    """Ctrl-C while a message waits for the model takes the message back and goes on."""
    chat = make_chat("slow")
    waits = "StopOnCtrlC._press"  # what handles Ctrl-C by then
    with ctrl_c(lambda: waits in repr(signal.getsignal(signal.SIGINT))):
        out = chat.run(f"hello{ENTER}again{ENTER}")
    assert chat.session.sent == ["again"]
    assert "Stopped.\nyou said: again" in out


def test_signals_are_put_back(chat):
    """After the chat SIGINT, SIGTERM and SIGHUP do what they did before."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    chat.run(f"hello{ENTER}")
    assert [signal.getsignal(number) for number in numbers] == before


def test_an_error_does_not_end_the_chat(chat):
    """What fails prints one line and the next message is answered."""
    out = chat.run(f"hi{ENTER}fail{ENTER}/hepl{ENTER}crash{ENTER}hello{ENTER}")
    assert "Error: this message fails; send another\n" in out
    assert "Error: there is no command /hepl; did you mean /help?" in out
    assert "Error: internal error ValueError: a bug with two lines; set MLXCHAT_DEBUG" in out
    assert "you said: hello" in out
    assert "Traceback" not in out


def test_a_model_that_cannot_be_loaded(make_chat):
    """Without a model the chat ends with its error."""
    chat = make_chat("missing")
    with pytest.raises(ModelNotFoundError, match="no model 'missing'; give a folder"):
        chat.repl.run()  # nothing is typed


def test_a_model_that_cannot_be_loaded_while_a_message_waits(make_chat):
    """The same when a message was sent before the load had failed."""
    chat = make_chat("missing")
    with pytest.raises(ModelNotFoundError):
        chat.run(f"hello{ENTER}")


def test_a_wrong_command_while_loading(make_chat):
    """A command that fails before the model is there does not end the chat."""
    chat = make_chat("slow")
    out = chat.run(f"/hepl{ENTER}hello{ENTER}")
    assert "did you mean /help?" in out
    assert chat.session.sent == ["hello"]


def test_what_the_load_says_is_said_once(make_chat):
    """Notices of the load come with the first answer and not again."""
    out = make_chat("noticed").run(f"hello{ENTER}bye{ENTER}")
    assert out.count("The fake is loaded.") == 1


@pytest.mark.parametrize("leave", ["/exit", "/quit"])
def test_exit(chat, leave):
    """/exit leaves."""
    chat.run(f"{leave}{ENTER}hello{ENTER}")
    assert chat.session.sent == []


def test_commands_print(chat):
    """A command's output is on the screen, and is sanitised."""
    out = chat.run(f"\x1b[200~/system a\x1bb\x1b[201~{ENTER}/help{ENTER}")
    assert "System prompt: a␛b\n" in out
    assert "\x1b" not in out
    assert "/undo [N]" in out


def test_reasoning_is_closed_by_a_line(chat, monkeypatch):
    """Reasoning is shown where someone looks, and closed by how long it took."""
    chat.repl._screen.shows_reasoning = True
    out = chat.run(f"think{ENTER}")
    assert re.search(r"I wonder\.\nthought for 0\.\d+ s\nyou said: think\n", out)


def test_input_history(chat, make_chat):
    """What was sent can be recalled in the next chat; only its owner can read the file."""
    chat.run(f"first{ENTER}")
    file = paths.data_dir() / "input_history"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    again = make_chat()
    again.run(f"\x1b[A{ENTER}")
    assert again.session.sent == ["first"]


def test_history_made_private(mlxchat_home):
    """A history file that others could read is made private."""
    file = mlxchat_home / "data" / "input_history"
    file.parent.mkdir(parents=True)
    file.touch(0o644)
    recall.open_history(file)
    assert file.stat().st_mode & 0o777 == 0o600


def test_history_that_cannot_be_kept(make_chat, mlxchat_home):
    """A data folder that cannot be made is no reason not to talk."""
    mlxchat_home.write_text("a file in the way")
    chat = make_chat()
    chat.run(f"hello{ENTER}")
    assert chat.session.sent == ["hello"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("/sa", ["/save"]),
        ("/he", ["/help"]),
        ("he", []),
        ("/system t", []),
        ("//he", []),
        ("say /he", []),
    ],
)
def test_completion(text, names):
    """Tab completes command names at the start of the line, from the registry."""
    found = ChatCompleter(lambda: None).get_completions(Document(text), CompleteEvent())
    assert [completion.text for completion in found] == names


def test_tab_completes(chat):
    """The Tab key does it."""
    out = chat.run(f"/sta\t{ENTER}")
    assert "turns    0" in out
