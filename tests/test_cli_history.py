"""`mlxchat history`, `--continue`, `--resume` and the slash commands of the history."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import CommandLine
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from scripted import ScriptedSession
from terminal import Terminal

from mlxchat.chat import history_file
from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.cli import forget
from mlxchat.cli.completion import ChatCompleter
from mlxchat.cli.history import history
from mlxchat.cli.recall import open_history
from mlxchat.cli.render_history import format_restored
from mlxchat.cli.resume import complete_conversation, fitting
from mlxchat.settings import settings_path

REPOSITORY = Path(__file__).parents[1]
SCRIPTED = str(Path(__file__).with_name("scripted.py"))


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    """The sessions that commands open are scripted; returns them."""
    made = []

    class Session(ScriptedSession):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("mlxchat.chat.session.Session", Session)
    return made


run = CommandLine()


def stored(number=1):
    return json.loads(run("history", "show", str(number), "--json"))


def refused(*arguments, text="", code=1):
    """Runs a command line that fails; returns its one line."""
    assert run(*arguments, text=text, code=code) == ""
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("Error: ")
    assert "; " in run.stderr
    return run.stderr


# -- what is recorded


def test_chat_and_generate_are_recorded():
    """Each chat and each call of `generate` is a conversation."""
    run("chat", text="one\ntwo\n")
    run("generate", "three")
    run("generate", "four", "-m", "a/b", "--temp", "0.5", "--seed", "3")
    listed = json.loads(run("history", "list", "--json"))
    assert [(c["kind"], c["title"], c["num_questions"]) for c in listed] == [
        ("generate", "four", 1),
        ("generate", "three", 1),
        ("chat", "one", 2),
    ]
    turn = stored(3)["turns"][0]
    assert turn["model"] == "a/b"
    assert turn["settings"]["sampling"] == {"temperature": 0.5, "seed": 3}


def test_json_lines_are_stored_results():
    """What --json prints is what is stored."""
    lines = run("chat", "--json", text="one\nthink two\n").splitlines()
    assert [turn["result"] for turn in stored()["turns"]] == [json.loads(line) for line in lines]


@pytest.mark.parametrize("way", ["option", "setting"])
@pytest.mark.parametrize("command", [["chat"], ["generate", "hello"]])
def test_no_history(way, command, scripted):
    """--no-history, or `history = false`, leaves nothing on the disk and tells the session."""
    if way == "setting":
        settings_path().parent.mkdir(parents=True)
        settings_path().write_text("history = false\n")
    run(*command, *(["--no-history"] if way == "option" else []), text="hello\n")
    assert not history_file.history_path().exists()
    assert scripted[0].options.keeps_history is False
    assert scripted[0].recorder is None


def test_settings_refuse_other_values():
    """`history` is true or false."""
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text("history = 'no'\n")
    assert "give true or false" in refused("generate", "hello")


# -- history


@pytest.fixture
def three():
    """Three conversations: one with thinking, one with escapes, one about foxes."""
    run("chat", "-s", "Be brief.", text="think about it\nand more\n")
    run("generate", "red \x1b[31malert\x07 \u202eabc")
    run("chat", text="the quick brown fox\n/title Foxes\n")


def test_list(three):
    """The list shows number, time, questions, model and title, the newest first."""
    lines = run("history", "list").splitlines()
    assert lines[0].split() == ["id", "last", "turn", "turns", "model", "title"]
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert lines[1].endswith("builtin  Foxes")
    assert lines[3].endswith("2  builtin  think about it")
    assert run("history") == run("history", "list")
    assert len(run("history", "list", "-n", "1").splitlines()) == 2
    assert len(run("history", "list", "--all").splitlines()) == 4


def test_empty_history():
    """Without a history the list is empty, and the other commands say so."""
    assert run("history", "list") == ""
    assert run("history", "list", "--json") == "[]\n"
    for arguments in (["show"], ["search", "x"], ["export", "--all"], ["delete", "1"], ["stats"]):
        assert "there is no history" in refused("history", *arguments)
    assert "no history" in refused("chat", "--continue")
    assert not history_file.history_path().exists()


def test_show(three):
    """A conversation is shown with its figures; thinking on demand; the newest without a number."""
    text = run("history", "show", "1")
    assert text.startswith("think about it\nconversation 1 · builtin · 20")
    assert "System\nBe brief.\n" in text
    assert "(thought in 11 characters; --thinking shows them)\nyou said: think about it\n" in text
    assert "(312 tokens · ttft 0.08 s · 54.1 tok/s · reused 2290, read 20)" in text
    assert "let me see\nyou said" in run("history", "show", "1", "--thinking")
    assert run("history", "show").startswith("Foxes\n")
    assert run("history", "show", "#3") == run("history", "show")


def test_nothing_escapes_to_the_terminal(three):
    """Terminal escapes in what was said are made visible everywhere."""
    for arguments in (
        ["list"],
        ["show", "2"],
        ["search", "red"],
        ["export", "2"],
        ["export", "2", "--format", "html"],
        ["export", "--all", "--format", "jsonl"],
        ["show", "2", "--json"],
        ["search", "red", "--json"],
    ):
        text = run("history", *arguments)
        assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(text), arguments
        assert "alert" in text


def test_search(three):
    """Hits name conversation, time, title and speaker, with the words in their place."""
    lines = run("history", "search", "quick", "fox").splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("3  20")
    assert lines[0].endswith("  Foxes")
    assert {line.strip() for line in lines[1::2]} == {
        "you: the quick brown fox",
        "model: you said: the quick brown fox",
    }
    hits = json.loads(run("history", "search", "quick fox", "--json"))
    assert hits == []
    assert run.stderr == ""
    run("history", "search", "quick fox")
    assert run.stderr == "Nothing was found.\n"
    assert "no word to search" in refused("history", "search", " ", code=2)


def test_export(three, tmp_path, monkeypatch):
    """An export goes to stdout or a file, whose name decides the format."""
    monkeypatch.chdir(tmp_path)
    assert run("history", "export", "3").startswith("# Foxes\n")
    for name, beginning in (("a.md", "# Foxes"), ("a.html", "<!DOCTYPE"), ("a.json", "{")):
        assert run("history", "export", "3", "-o", name) == ""
        assert (tmp_path / name).read_text().startswith(beginning)
    run("history", "export", "--all", "-o", "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2, 3]
    for arguments in ([], ["3", "--all"]):
        assert "either an ID or --all" in refused("history", "export", *arguments, code=2)
    message = refused("history", "export", "3", "-o", str(tmp_path / "none" / "a.md"))
    assert "No such file" in message


def test_import(three, tmp_path):
    """What was exported can be imported where it is not (any more), once."""
    file = tmp_path / "all.json"
    run("history", "export", "--all", "-o", str(file))
    run("history", "delete", "1", "2", "-y")
    run("history", "import", str(file))
    assert run.stderr == "Imported 2 conversations; 1 was there already.\n"
    run("history", "import", str(file))
    assert run.stderr == "Imported 0 conversations; 3 were there already.\n"
    assert "check the name" in refused("history", "import", "nothing")


def test_delete(three):
    """Without a terminal nothing is deleted unasked; --yes deletes; a wrong number stops it."""
    run("history", "delete", "1", code=2)
    assert "think about it" in run.stderr
    assert "--yes deletes without asking" in run.stderr
    assert "no conversation '9'" in refused("history", "delete", "1", "9", "--yes")
    assert len(run("history", "list").splitlines()) == 4
    run("history", "delete", "1", "2", "1", "-y")
    assert run.stderr == "Deleted 2 conversations.\n"
    assert len(run("history", "list").splitlines()) == 2
    assert "nothing to delete" in refused("history", "delete", code=2)


def test_delete_takes_what_was_typed(tmp_path):
    """The questions of a deleted conversation cannot be recalled at the prompt any more."""
    file = tmp_path / "mlxchat-home" / "data" / "input_history"
    input_history = open_history(file)
    for text in ("one secret", "two\nlines", "kept"):
        input_history.store_string(text)
    run("chat", text="one secret\n")
    forget.forget_typed([])
    run("history", "delete", "1", "-y")
    assert "one secret" not in file.read_text()
    assert list(open_history(file).load_history_strings()) == ["kept", "two\nlines"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_strip(three):
    """Strip keeps the text and forgets the ids."""
    run("history", "strip", "3")
    assert stored(3)["turns"][0]["result"]["tokens"] == []
    assert stored(3)["messages"][1]["content"] == "you said: the quick brown fox"
    assert stored(1)["turns"][0]["result"]["tokens"]
    run("history", "strip", "--all")
    assert run.stderr == "Stripped 3 conversations to the text.\n"
    assert stored(1)["turns"][0]["result"]["tokens"] == []
    assert "either an ID or --all" in refused("history", "strip", code=2)


def test_path_and_stats(three, mlxchat_home):
    """`path` prints the place, `stats` counts."""
    assert run("history", "path") == f"{mlxchat_home}/data/history.db\n"
    stats = json.loads(run("history", "stats", "--json"))
    assert (stats["num_conversations"], stats["num_turns"]) == (3, 4)
    assert stats["turns_by_model"] == {"builtin": 4}
    assert "conversations     3\n" in run("history", "stats")


def test_times_are_local(three):
    """Times are those of this machine's zone."""
    env = dict(os.environ, PYTHONPATH=str(REPOSITORY))
    hours = []
    for zone in ("UTC", "UTC-5"):  # POSIX counts westwards: this is five hours ahead
        done = subprocess.run(
            [sys.executable, "-m", "mlxchat", "history", "show", "3"],
            env=env | {"TZ": zone},
            capture_output=True,
            text=True,
            check=True,
        )
        hours.append(int(done.stdout.split("\n")[1].split()[-1].split(":")[0]))
    assert (hours[1] - hours[0]) % 24 == 5


def test_doctor(three, monkeypatch):
    """`doctor` says where the history lies, how large it is and that it is sound."""
    monkeypatch.setattr("mlxchat.model.device.describe", lambda: [("backend", "none")])
    row = json.loads(run("doctor", "--json"))["history"]
    assert row.startswith(str(history_file.history_path()))
    assert row.endswith("3 conversations, sound)")
    history_file.history_path().write_bytes(b"x" * 5000)
    assert "cannot be read" in run("doctor", code=1)
    assert "is damaged" in run.stderr


def test_doctor_finds_damage_inside(three, monkeypatch):
    """Damage that opening does not show is found by the integrity check."""
    monkeypatch.setattr("mlxchat.model.device.describe", lambda: [("backend", "none")])
    with history_file.history_path().open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xa5" * 4096)
    run("doctor", code=1)
    assert "damaged" in run.stderr


# -- going on


def test_continue(three, scripted):
    """--continue goes on with the last chat, not with a later `generate`."""
    run("generate", "later")
    run("chat", "--continue", text="more\n")
    assert "Conversation 3 goes on after 1 turn: Foxes" in run.stderr
    asked = [message.content for message in scripted[-1]._runner.prompts[0]]
    assert asked == ["the quick brown fox", "you said: the quick brown fox", "more"]
    assert len(stored(3)["turns"]) == 2
    assert json.loads(run("history", "list", "--json"))[0]["id"] == 3


@pytest.mark.parametrize("arguments", [["--resume", "1"], ["-r1"], ["--resume=1", "--json"]])
def test_resume(three, scripted, arguments):
    """--resume goes on with any conversation, system prompt and all."""
    run("chat", *arguments, text="more\n")
    prompt = scripted[-1]._runner.prompts[0]
    assert (prompt[0].role, prompt[0].content) == ("system", "Be brief.")
    assert len(stored(1)["turns"]) == 3


def test_resume_keeps_the_model(scripted):
    """A conversation goes on with its own model, whatever the default is; -m names another."""
    run("chat", "-m", "a/b", text="one\n")
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text('model = "c/d"\nsystem = "Default."\n')
    run("chat", "--continue", text="two\n")
    assert (scripted[-1].model, scripted[-1].system) == ("a/b", None)
    run("chat", "--continue", "-m", "builtin", "-s", "Other.", "--no-think", text="three\n")
    assert (scripted[-1].model, scripted[-1].system) == (None, "Other.")
    assert scripted[-1].options.think is False
    assert stored(1)["model"] == "builtin"


def test_resume_without_history_on(three, scripted):
    """With --no-history a conversation can be gone on from, and is left as it was."""
    run("chat", "--continue", "--no-history", text="more\n")
    assert len(scripted[-1]._runner.prompts[0]) == 3
    assert len(stored(3)["turns"]) == 1


@pytest.mark.parametrize(
    ("arguments", "part", "code"),
    [
        (["--resume", "9"], "no conversation '9'", 1),
        (["--resume"], "--resume needs a conversation's ID here", 2),
        (["--resume", "1", "--continue"], "exclude each other", 2),
    ],
)
def test_resume_refuses(three, arguments, part, code):
    """What cannot be gone on with is one line."""
    assert part in refused("chat", *arguments, code=code)


def test_slash_commands(tmp_path, monkeypatch, scripted):
    """/title, /save, /resume and /export do what they say, in a pipe too."""
    monkeypatch.chdir(tmp_path)
    lines = ["one", "/title", "/title First", "/title", "/save Saved", "/export", "/export"]
    lines += [
        "/export a.html",
        "/export -",
        "/reset",
        "two",
        "/resume",
        "/resume 1",
        "three",
        "/resume 9",
    ]
    run("chat", text="\n".join(lines), code=1)
    for part in (
        "No title; the first message stands for it.\n",
        "Title: First\n",
        "Saved as 1; mlxchat chat --resume 1 goes on with it.\n",
        "Wrote conversation-1.md.\n",
        "Error: conversation-1.md exists; write /export FILE with another name\n",
        "Wrote a.html.\n",
        "Error: - is no file name here; name a file, or write mlxchat history export in a shell\n",
        "/resume ID goes on with one.\n",
        "Conversation 1 goes on after 1 turn: Saved\n",
        "Error: there is no conversation '9'",
    ):
        assert part in run.stderr
    assert (tmp_path / "conversation-1.md").read_text().startswith("# Saved\n")
    assert [m["content"] for m in stored(1)["messages"]][::2] == ["one", "three"]
    assert [m["content"] for m in stored(2)["messages"]][::2] == ["two"]


def test_search_in_the_chat(three):
    """/search finds words in all conversations, and says with which numbers."""
    run("chat", text='/search fox\n/search "no such phrase"\n/search it\'s\n')
    assert "3  " in run.stderr
    assert "  Foxes\n    " in run.stderr
    assert "/resume ID goes on with one.\n" in run.stderr
    assert "Nothing was found.\n" in run.stderr


def test_resume_by_title_or_file(three, tmp_path, monkeypatch):
    """A part of a title names a conversation, and so does a file that was exported as JSON."""
    monkeypatch.chdir(tmp_path)
    run("history", "export", "3", "-o", "fox.json")
    run("chat", "--resume", "foxes", text="/title")
    assert "Title: Foxes\n" in run.stderr
    run("history", "delete", "3", "-y")
    run("chat", text="/resume foxes\n/resume fox.json\nand then?", code=1)
    assert "Error: there is no conversation 'foxes'" in run.stderr
    assert "goes on after" in run.stderr
    number = json.loads(run("history", "list", "--json"))[0]["id"]
    assert stored(number)["messages"][-2]["content"] == "and then?"
    run("chat", "--resume", "fox.json", text="/tree")
    assert len(json.loads(run("history", "list", "--json"))) == 3
    (tmp_path / "two.jsonl").write_text(run("history", "export", "--all", "--format", "jsonl"))
    assert "two.jsonl holds 3 conversations; `mlxchat history import`" in refused(
        "chat", "--resume", "two.jsonl"
    )


def test_save_after_no_history(tmp_path, monkeypatch):
    """After --no-history, /export works, /title refuses, and /save keeps the conversation."""
    monkeypatch.chdir(tmp_path)
    lines = ["one", "/title x", "/export", "/save After all", "two"]
    run("chat", "--no-history", text="\n".join(lines), code=1)
    assert "this conversation is not kept; /save TITLE keeps it" in run.stderr
    assert "you said: one" in (tmp_path / "conversation-unkept.md").read_text()
    assert stored(1)["title"] == "After all"
    assert [m["content"] for m in stored(1)["messages"]][::2] == ["one", "two"]


def test_completion(three):
    """The shell and the Tab key offer numbers with titles."""
    command = history.commands["show"]
    items = complete_conversation(command.make_context("show", []), command.params[0], "")
    assert (items[0].value, items[0].help) == ("3", "Foxes")
    completer = ChatCompleter(lambda: None)
    found = list(completer.get_completions(Document("/resume 1"), CompleteEvent()))
    assert [completion.text for completion in found] == ["1"]
    assert found[0].display_meta_text == "think about it"


def test_no_history_is_not_recalled(mlxchat_home):
    """With --no-history what is typed is recalled in this chat, and never reaches the file."""
    file = mlxchat_home / "data" / "input_history"
    open_history(file).append_string("kept")
    forgetful = open_history(file, is_kept=False)
    forgetful.append_string("secret")
    assert "secret" not in file.read_text()
    assert list(forgetful.load_history_strings()) == ["kept"]


# -- in a terminal, and with the real model


def test_picker():
    """In a terminal --resume shows the list, and a part of a title finds a conversation."""
    with Terminal(SCRIPTED, "chat", "--json") as terminal:
        terminal.send("first fox\n/reset\nsecond bear\n\x04")
        assert terminal.wait_for_end() == 0
    with Terminal(SCRIPTED, "chat", "--resume") as terminal:
        terminal.wait_for("Conversation (Enter: the first):")
        assert "first fox" in terminal.text
        terminal.send("1\r")
        terminal.wait_for("Conversation 1 goes on after 1 turn: first fox")
        assert "Model: you said: first fox" in terminal.text
        terminal.wait_for(" of 512 tokens")
        terminal.send("go on\r")
        terminal.wait_for("you said: go on")
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0
    assert [m["content"] for m in stored(1)["messages"]][::2] == ["first fox", "go on"]
    with Terminal(SCRIPTED, "chat", "--resume") as terminal:
        terminal.wait_for("Conversation (Enter: the first):")
        terminal.send("nothing like it\r")
        terminal.wait_for("no conversation fits; type a number or a part of a title")
        terminal.send("\x15BEA")
        terminal.wait_for("2  second bear")
        terminal.send("\r")
        terminal.wait_for("Conversation 2 goes on after 1 turn: second bear")
        terminal.wait_for(" of 512 tokens")
        terminal.send("\x04")
        assert terminal.wait_for_end() == 0
    with Terminal(SCRIPTED, "chat", "--resume") as terminal:
        terminal.wait_for("Conversation (Enter: the first):")
        terminal.send("\x03")
        assert terminal.wait_for_end() == 130


NAMES = [("12", "a fox"), ("2", "The Fox"), ("1", "a bear"), ("7", "2 hares")]


@pytest.mark.parametrize(
    ("typed", "numbers"),
    [
        ("", ["12", "2", "1", "7"]),
        ("fox", ["12", "2"]),
        (" the f ", ["2"]),
        ("1", ["1"]),
        ("#2", ["2"]),
        ("2 h", ["7"]),
        ("9", []),
        ("#", []),
    ],
)
def test_what_fits_in_the_picker(typed, numbers):
    """A whole number is that conversation; else beginnings of numbers and parts of titles fit."""
    assert [number for number, _ in fitting(NAMES, typed)] == numbers


def test_long_lines_of_what_was_said_are_broken_between_words():
    """The greeting of a conversation that goes on breaks no word; blanks at a beginning stay."""
    run("chat", text="one two three\n")
    with contextlib.closing(History()) as found:
        restored = found.restore(1)
    shown = format_restored(restored, width=16).splitlines()
    assert shown[:4] == ["You: one two", "three", "Model: you said:", "one two three"]


def program(*arguments, text=""):
    done = subprocess.run(
        [sys.executable, "-m", "mlxchat", *arguments],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        input=text,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_resumed_prompt_is_the_same_id_for_id():
    """The built-in model reads the same prompt whether or not the program ended in between."""
    options = ["--json", "--verify", "--temp", "0.8", "--seed", "4", "--max-tokens", "16"]
    lines = ["hello there", "what is a token?", "and a model?"]
    whole = program("chat", *options, text="\n".join(lines))
    program("chat", *options, text="\n".join(lines[:2]))
    (last,) = program("chat", "--continue", *options, text=lines[2])
    assert last["verify"]["prompt_ids"] == whole[2]["verify"]["prompt_ids"]
    assert last["verify"]["tokens_equal"]
    assert last["cache"]["source"] == "disk"


def test_text_alone_is_enough():
    """Without stored keys and values the text is read again in idle time; the figures say so."""
    options = ["--json", "--temp", "0", "--max-tokens", "8"]
    program("chat", *options, text="hello there\nwhat is a token?\n")
    run("history", "strip", "1")
    with contextlib.closing(History()) as found:
        restored = found.restore(1)
    session = Session(None, ChatOptions(max_tokens=8), Recorder("chat"))
    with contextlib.closing(session):
        session.restore(restored)
        session.load().result()
        session.wait_until_idle()
        result = session.send("and more").result()
    assert result.usage.settle_tokens > 10
    assert result.usage.prefill_tokens < result.usage.cached_tokens
    assert "no keys and values were stored, the text was read again" in result.cache.reason


def test_history_needs_no_mlx():
    """`history` loads neither MLX nor any other heavy library."""
    run("chat", text="one\n")
    code = (
        "import sys\n"
        "from mlxchat.cli.main import cli\n"
        "for arguments in (['list'], ['show'], ['search', 'one'], ['stats'], ['export', '1'],\n"
        "                  ['strip', '1'], ['delete', '1', '--yes']):\n"
        "    try:\n"
        "        cli(['history', *arguments])\n"
        "    except SystemExit as leave:\n"
        "        assert not leave.code\n"
        "heavy = {'mlx', 'tokenizers', 'jinja2', 'huggingface_hub', 'rich', 'prompt_toolkit',\n"
        "         'numpy', 'asyncio'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)


def test_a_long_question_shows_its_end():
    """Of a question with files before it the conversation that goes on shows what was written."""
    run("chat", text="x\n")
    with contextlib.closing(History()) as history:
        restored = history.restore(1)
    nodes, text = restored.conversation.nodes, "a.txt:\n" + "line\n" * 100 + "\nsum it up"
    nodes[1] = replace(nodes[1], message=replace(nodes[1].message, content=text))
    lines = format_restored(restored).splitlines()
    assert lines[0] == "You: ... 93 lines"
    assert lines[1:11] == [*["line"] * 8, "", "sum it up"]
    assert lines[11].startswith("Model: ")
