"""What can go wrong with the history: the chat says so in one line, and goes on."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scripted import ScriptedSession

from mlxchat.chat import history_file, recorder
from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.results import Notice, TextDelta
from mlxchat.chat.session import ChatOptions
from mlxchat.errors import HistoryError


@pytest.fixture
def session():
    session = ScriptedSession(None, ChatOptions(), Recorder("chat"))
    yield session
    session.close()


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A disk of 4 MiB that MLXCHAT_HOME lies on; skipped where nothing can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk here")
    monkeypatch.setenv("MLXCHAT_HOME", str(place / "home"))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def take(job):
    """Follows a job to its end; returns what was shown and the notices."""
    events = list(job)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return text, [event.text for event in events if isinstance(event, Notice)]


def path_of(number=1):
    with contextlib.closing(History()) as found:
        return [message.content for message in found.record(number).path()]


def path():
    return history_file.history_path()


# -- full


def fill(folder):
    """Takes the last byte of a disk."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


def test_a_full_disk(small_disk, session):
    """The person is told once; when there is room again, all turns are written, times and all."""
    session.send("one").result()
    fill(small_disk)
    # A write-ahead log that has room left can take some turns more.
    answers, notices = [], []
    for number in range(12):
        text, said = take(session.send(f"turn {number} " + "word " * 2000))
        answers.append(text)
        notices += said
    assert len(notices) == 1
    assert "goes on, but is not kept for now" in notices[0]
    assert "is full; make room" in notices[0]
    (small_disk / "filler").unlink()
    text, said = take(session.send("last"))
    assert said == ["The history is kept again; nothing is missing."]
    assert path_of()[1::2] == ["you said: one", *answers, "you said: last"]
    with contextlib.closing(History()) as found:
        assert found.check() == []
        assert all(turn.result for turn in found.record(1).turns)


def test_a_disk_that_is_full_from_the_start(small_disk, session):
    """Nothing can be made: one line, and all is there once it can."""
    fill(small_disk)
    text, said = take(session.send("one"))
    assert text == "you said: one"
    assert "is full; make room" in said[0]
    (small_disk / "filler").unlink()
    session.close()
    assert path_of() == ["one", "you said: one"]


def test_full_in_the_middle_of_an_answer(session):
    """What is shown of an answer while nothing can be written is written with its end."""
    session.send("one").result()
    db = session.recorder._db
    job = session.send("slow two three four five six")
    notices = []
    for event in job:
        if isinstance(event, TextDelta):
            db.execute("PRAGMA max_page_count = 1")
            db.execute("PRAGMA cache_size = 0")
        if isinstance(event, Notice):
            notices.append(event.text)
            db.execute("PRAGMA max_page_count = 1000000")
    assert path_of()[-1] == "you said: slow two three four five six"
    assert len(notices) in (0, 2)


# -- not to be written


def test_a_folder_that_cannot_be_made(session, mlxchat_home):
    """Where the home is no folder the chat goes on; one line says why nothing is kept."""
    mlxchat_home.write_text("a file in the way")
    text, said = take(session.send("one"))
    assert text == "you said: one"
    assert len(said) == 1
    assert str(path()) in said[0]
    assert "check disk and permissions" in said[0]
    assert take(session.send("two"))[1] == []
    mlxchat_home.unlink()
    assert take(session.send("three"))[1] == ["The history is kept again; nothing is missing."]
    assert path_of()[::2] == ["one", "two", "three"]


def test_a_read_only_disk(small_disk, session):
    """A chat on a read-only disk goes on; `history` reads there what it can."""
    session.send("one").result()
    session.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    other = ScriptedSession(None, ChatOptions(), Recorder("chat"))
    text, said = take(other.send("two"))
    other.close()
    assert text == "you said: two"
    assert len(said) == 1
    assert "not kept" in said[0]
    assert path_of() == ["one", "you said: one"]
    with contextlib.closing(History()) as found, pytest.raises(HistoryError, match="permissions"):
        found.delete([1])


def test_another_program_holds_the_file(session, monkeypatch):
    """While it is locked, answers are shown after a moment, and written when it is free."""
    monkeypatch.setattr(recorder, "PATIENCE_S", 0.05)
    monkeypatch.setattr(history_file, "BUSY_S", 0.05)
    session.send("one").result()
    defaults = Recorder._write.__kwdefaults__
    monkeypatch.setattr(Recorder._write, "__kwdefaults__", defaults | {"wait_s": 0.05})
    with contextlib.closing(sqlite3.connect(path(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        text, said = take(session.send("two"))
        other.execute("ROLLBACK")
    assert text == "you said: two"
    assert len(said) == 1
    assert "another program holds" in said[0]
    session.send("three").result()
    assert path_of()[::2] == ["one", "two", "three"]


# -- on leaving


def test_what_is_lost_on_leaving_is_told(session, mlxchat_home):
    """Where the last write fails, closing says so, once."""
    session.send("one").result()
    session.recorder.close()
    shutil.rmtree(mlxchat_home)
    mlxchat_home.write_text("a file in the way")
    session.send("two")
    (said,) = session.close()
    assert said.startswith(f"The end of this chat is not in the history: the history in {path()}")
    assert "goes on" not in said
    assert session.close() == []


def test_what_was_written_late_is_no_loss(session, mlxchat_home):
    """Where the last write succeeds, closing says that all is kept."""
    mlxchat_home.write_text("a file in the way")
    assert len(take(session.send("one"))[1]) == 1
    mlxchat_home.unlink()
    assert session.close() == ["The history is kept again; nothing is missing."]


@pytest.mark.parametrize("command", [["chat"], ["generate"]])
def test_the_loss_reaches_the_person(command, mlxchat_home):
    """The program says it on stderr as its last line."""
    mlxchat_home.mkdir()
    path().parent.write_text("a file in the way")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "scripted.py"), *command],
        input="one\n",
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1])),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "you said: one\n")
    first, last = done.stderr.splitlines()
    assert first.startswith("The chat goes on, but is not kept for now: ")
    assert last.startswith("The end of this chat is not in the history: ")


# -- damaged


def damage_header(data):
    return b"no database at all " * 300


def damage_pages(data):
    return data[:4096] + b"\xa5" * (len(data) - 4096)


def cut_off(data):
    return data[: 4096 + 1000]


@pytest.mark.parametrize("damage", [damage_header, damage_pages, cut_off])
def test_a_damaged_file(session, damage):
    """It is set aside with a notice, never deleted, and the conversation goes to a new one."""
    session.send("one").result()
    session.close()
    broken = damage(path().read_bytes())
    path().write_bytes(broken)
    other = ScriptedSession(None, ChatOptions(), Recorder("chat"))
    said = [note for line in ("two", "three") for note in take(other.send(line))[1]]
    other.close()
    assert len(said) == 1
    place = path().with_name("history.db.damaged-1")
    assert f"It lies in {place} now" in said[0]
    assert place.read_bytes() == broken
    assert path_of()[::2] == ["two", "three"]


def test_damage_while_the_chat_runs(session):
    """A file that breaks under a running chat is set aside; nothing of the conversation is lost."""
    session.send("one").result()
    session.recorder._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path().open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path().stat().st_size - 4096))
    session.recorder._db.execute("PRAGMA cache_size = 0")
    session.recorder._db.execute("PRAGMA shrink_memory")
    notices = [note for line in ("two", "three") for note in take(session.send(line))[1]]
    assert [note for note in notices if "was damaged" in note]
    assert path_of()[::2] == ["one", "two", "three"]
    with contextlib.closing(History()) as found:
        assert found.check() == []


def test_a_file_that_is_removed_while_the_chat_runs(session):
    """Where the person removes or moves the file, the next turn writes all to a new one."""
    session.send("one").result()
    for name in path().parent.glob("history.db*"):
        name.rename(name.with_name(f"old-{name.name}"))
    session.send("two").result()
    assert path_of()[::2] == ["one", "two"]


def test_reading_a_damaged_file(session):
    """`history` says that the file is damaged and moves nothing."""
    path().parent.mkdir(parents=True)
    path().write_bytes(b"no database at all " * 300)
    with pytest.raises(HistoryError, match="is damaged; the next chat sets it aside"):
        History()
    assert [file.name for file in path().parent.iterdir()] == ["history.db"]


def test_two_set_it_aside_at_once():
    """Of two programs that find the damage only one moves the file, and the new one stays."""
    path().parent.mkdir(parents=True)
    path().write_bytes(b"no database at all " * 300)
    assert history_file.set_aside(path()) == path().with_name("history.db.damaged-1")
    assert history_file.set_aside(path()) is None
    history_file.open_history_file(path()).close()
    assert history_file.set_aside(path()) is None
    assert path().exists()


# -- many at once


def test_many_writers_at_once():
    """Three programs at once on a new file lose nothing and wait for each other."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from scripted import ScriptedSession, ChatOptions\n"
        "from mlxchat.chat.recorder import Recorder\n"
        "session = ScriptedSession(None, ChatOptions(), Recorder('chat'))\n"
        "for number in range(15):\n"
        "    job = session.send(f'{sys.argv[2]} {number}')\n"
        "    notices = [e for e in job if type(e).__name__ == 'Notice']\n"
        "    assert not notices, notices\n"
        "session.close()\n"
    )
    tests = str(Path(__file__).parent)
    env = dict(os.environ, PYTHONPATH=str(Path(tests).parent))
    processes = [
        subprocess.Popen([sys.executable, "-c", code, tests, name], env=env) for name in "abc"
    ]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with contextlib.closing(History()) as found:
        summaries = found.summaries()
        assert len(summaries) == 3
        for summary in summaries:
            questions = [m.content for m in found.record(summary.id).path()][::2]
            name = questions[0].split()[0]
            assert questions == [f"{name} {number}" for number in range(15)]
        assert found.check() == []


def test_the_history_opens_in_the_background(session):
    """`prepare` opens the file on another thread; the first turn finds it open."""
    session.prepare_history()
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("Thread"):
            thread.join(10)
    assert session.recorder._db is not None
    session.send("one").result()
    assert path_of() == ["one", "you said: one"]
