"""`mlxchat bench --replay`: each turn of a stored conversation cold, warm and from disk."""

import json

import pytest
from command_line import CommandLine
from tiny import make_tiny_folder

from mlxchat.chat.history import History
from mlxchat.chat.results import ReplayedTurn
from mlxchat.chat.session import ChatOptions, Session

SYSTEM = "You are a careful assistant who answers in short sentences. " * 3
QUESTIONS = ["the first question of them all", "and a second one, please", "then the third"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    return {kind: make_tiny_folder(base / kind, kind) for kind in ("full", "window")}


run = CommandLine()


def talk(folder):
    """Has a conversation of three turns, which becomes number 1."""
    options = ["--max-tokens", "12", "--seed", "5", "-s", SYSTEM]
    run("chat", "-m", folder, *options, text="\n".join(QUESTIONS) + "\n")


@pytest.mark.parametrize("kind", ["full", "window"])
def test_replay(folders, kind, mlxchat_home):
    """Cold reads the whole prompt; warm and from disk read what is new; nothing is written."""
    talk(folders[kind])
    before = History().record(1)
    stored = sorted((mlxchat_home / "cache").rglob("*"))
    data = json.loads(run("bench", "--replay", 1, "-o", "json", "-r", 1))
    assert [turn["number"] for turn in data["turns"]] == [1, 2, 3]
    for turn in data["turns"]:
        ways = turn["ways"]
        assert ways["cold"]["num_read"] == turn["num_prompt"]
        assert all(way["seconds"] > 0 for way in ways.values())
        assert ("warm" in ways) == (turn["number"] > 1)
        for name in ways.keys() - {"cold"}:
            assert 1 <= ways[name]["num_read"] < turn["num_prompt"] / 2
    prompts = [turn.result["usage"]["prompt_tokens"] for turn in before.turns]
    assert [turn["num_prompt"] for turn in data["turns"]] == prompts
    assert History().record(1) == before
    assert sorted((mlxchat_home / "cache").rglob("*")) == stored


def test_table(folders):
    """The table has a row per turn and says what warm and disk are of cold."""
    talk(folders["full"])
    text = run("bench", "--replay", 1, "-r", 1)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    header = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert header[:5] == ["turn", "prompt", "cold ms", "read", "warm ms"]
    assert "turns 2 to 3: warm " in text
    assert "machine: " in text


def test_another_model(folders):
    """A conversation can be replayed with another model: its text is what counts then."""
    talk(folders["full"])
    data = json.loads(run("bench", "--replay", 1, "-o", "json", "-r", 1, "-m", folders["window"]))
    assert data["model"].endswith("window")
    assert len(data["turns"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--replay", "7"], 1, "there is no conversation '7'"),
        (["--replay", "1", "-o", "csv"], 2, "--replay knows md and json"),
        (["--replay", "1", "--against", "mlx-lm"], 2, "-r and -o alone; leave --against out"),
        (["--replay", "1", "-p", "9", "--kv-bits", "8"], 2, "leave -p, --kv-bits out"),
        (["--baseline", "save", "--against", "mlx-lm"], 2, "leave --against out"),
    ],
)
def test_refusals(folders, arguments, code, line):
    """What cannot be replayed is refused in one line."""
    talk(folders["full"])
    assert run("bench", *arguments, code=code) == ""
    assert line in run.stderr


def test_without_history():
    """Without a history the error says how one begins."""
    run("bench", "--replay", 1, code=1)
    assert "there is no history" in run.stderr


def test_turns_are_told_as_they_come(folders):
    """Each turn is an event of the job, so that a run that is stopped has what was measured."""
    talk(folders["full"])
    session = Session(str(folders["full"]), ChatOptions(idle_work=False, keeps_history=False))
    session.restore(History().restore(1))
    try:
        job = session.replay(1)
        told = []
        for event in job:
            if isinstance(event, ReplayedTurn):
                told.append(event)
                job.cancel()
        assert [turn.number for turn in told] == [1]
        assert session.num_turns == 3
    finally:
        session.close()
