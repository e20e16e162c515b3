"""`generate --batch` over the real session and the built-in model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_cli_builtin import KEYS

from mlxchat.chat.batch_lines import read_lines
from mlxchat.cli.batch import _format_stop
from mlxchat.cli.main import cli

REPOSITORY = Path(__file__).parents[1]
QUESTIONS = ["What is the capital of Norway?", "hello", "what is a KV cache?", "who are you?"]


def run(*arguments, text=""):
    return CliRunner().invoke(cli, ["generate", *arguments], input=text)


def write(file, *lines):
    made = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("".join(f"{line}\n" for line in made))
    return str(file)


def read(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_each_line_is_answered_as_alone(tmp_path):
    """One object a line in the order of the file, with the contract's fields, the same text."""
    file = write(tmp_path / "q", *({"id": text, "prompt": text} for text in QUESTIONS))
    result = run("--batch", file, "--temp", "0", "--verify", "--batch-size", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    answers = read(result)
    assert [(a["index"], a["id"]) for a in answers] == list(enumerate(QUESTIONS))
    for answer in answers:
        assert answer.keys() == KEYS[""] | {"index", "id"}
        assert answer["timing"].keys() == KEYS["timing"]
        assert answer["verify"]["tokens_equal"]
        (alone,) = read(run(answer["id"], "--temp", "0", "--json"))
        assert (answer["text"], answer["tokens"]) == (alone["text"], alone["tokens"])
    assert sum(answer["timing"]["load_s"] > 0 for answer in answers) == 1


def test_a_seed_gives_the_text_that_it_gives_alone(tmp_path):
    """Sampled with a seed, on the command line or in the line, the text is the single run's."""
    file = write(tmp_path / "q", *({"prompt": text, "temperature": 1.5} for text in QUESTIONS))
    texts = [a["text"] for a in read(run("--batch", file, "--seed", "3", "--max-tokens", "12"))]
    for prompt, text in zip(QUESTIONS, texts, strict=True):
        options = ("--temp", "1.5", "--seed", "3", "--max-tokens", "12", "--json")
        assert read(run(prompt, *options))[0]["text"] == text


def test_stdin_and_broken_lines():
    """`-` is stdin; a broken line has its error in its place, and the exit code tells."""
    text = '{"prompt": "hello", "id": 1}\n\nnonsense\n{"prompt": "hi", "id": 2}\n'
    result = run("--batch", "-", "--temp", "0", text=text)
    first, broken, last = read(result)
    assert (first["id"], last["id"], last["index"]) == (1, 2, 2)
    assert broken.keys() == {"index", "id", "error"}
    assert broken["error"].startswith("line 3: not JSON")
    assert result.exit_code == 1
    assert result.stderr == "Error: 1 of 3 lines failed; 'error' in their output says why\n"


def test_too_long_a_prompt_is_an_error_of_its_line(tmp_path):
    """What the context does not hold fails alone."""
    file = write(tmp_path / "q", {"prompt": "hello " * 60}, {"prompt": "hello"})
    result = run("--batch", file, "--temp", "0", "--max-context", "40")
    long, short = read(result)
    assert long["error"].endswith(
        "the context holds 40; shorten the prompt, or raise --max-context"
    )
    assert short["text"]
    assert result.exit_code == 1


def test_broken_lines_alone_load_no_model(tmp_path):
    """Where no line is sound nothing is opened, not even a model that is not there."""
    result = run("--batch", write(tmp_path / "q", "1"), "-m", str(tmp_path / "no-such-model"))
    assert "not an object" in read(result)[0]["error"]
    assert "1 of 1 lines failed" in result.stderr


def test_nothing_is_kept_and_the_prefix_is_reused(tmp_path, monkeypatch):
    """Lines are not in the history; a system prompt is read once, and what was read is told."""
    monkeypatch.setenv("MLXCHAT_HOME", str(tmp_path / "home"))
    file = write(tmp_path / "q", *({"prompt": text} for text in QUESTIONS))
    system = "You are a helper who answers in one short sentence and never lies."
    result = run("--batch", file, "-s", system, "--temp", "0", "--timing")
    usages = [answer["usage"] for answer in read(result)]
    assert usages[0]["cached_tokens"] == 0
    assert all(usage["cached_tokens"] > 10 for usage in usages[1:])
    cached = sum(usage["cached_tokens"] for usage in usages)
    assert f"reused {cached}, read " in result.stderr
    assert result.stderr.startswith("4 answers · ")
    assert not list((tmp_path / "home").rglob("*.db*"))


def test_models_that_cannot_say_so(tmp_path):
    """With quantised keys and values lines are answered one by one, which is said once."""
    file = write(tmp_path / "q", *({"prompt": text} for text in QUESTIONS))
    result = run("--batch", file, "--temp", "0", "--kv-bits", "8", "--max-tokens", "8")
    assert len(read(result)) == 4
    assert result.stderr.count("answered one by one: keys and values in few bits") == 1
    one = run("--batch", file, "--kv-bits", "8", "--max-tokens", "4", "--batch-size", "1")
    assert (len(read(one)), one.stderr.count("one by one")) == (4, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hello", "--batch", "FILE"), "leave the PROMPT out"),
        (("--batch", "FILE", "--samples", "2"), "repeat lines in place of --samples"),
        (("hello", "--batch-size", "2"), "give --batch FILE too"),
        (("--batch", "FILE", "--batch-size", "0"), "0 is not in the range"),
        (("--batch", "FILE", "--speculate", "lookup"), "--speculate lookup is for answers one by"),
        (("--batch", "FILE", "--draft-model", "x"), "--draft-model is for answers one by one"),
        (("--batch", "FILE"), "there is no line in"),
        (("--batch", "FILE-gone"), "cannot be read (No such file or directory)"),
        (("--batch", "FOLDER"), "cannot be read (Is a directory)"),
    ],
)
def test_what_does_not_go_together(tmp_path, arguments, said):
    """Each combination that makes no sense is wrong usage, said in one line before any work."""
    names = {"FILE": write(tmp_path / "q", ""), "FOLDER": str(tmp_path)}
    names["FILE-gone"] = str(tmp_path / "gone")
    result = run(*(names.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_speculation_goes_with_one_by_one(tmp_path):
    """--batch-size 1 may speculate."""
    file = write(tmp_path / "q", {"prompt": "hello"})
    options = ("--batch-size", "1", "--speculate", "lookup", "--temp", "0")
    (answer,) = read(run("--batch", file, *options))
    assert answer["speculation"]["kind"] == "lookup"


def test_ctrl_c_leaves_what_was_finished(tmp_path):
    """Lines that are finished are printed, the exit code is 130, and stderr says how many."""
    slow = {"prompt": "tell me a story", "temperature": 4, "top_p": 1, "seed": 1}
    file = write(tmp_path / "q", {"prompt": "hello", "id": 1}, slow, {"prompt": "hi", "id": 2})
    command = [sys.executable, "-m", "mlxchat", "generate", "--batch", file, "--temp", "0"]
    environment = os.environ | {"MLXCHAT_HOME": str(tmp_path / "home")}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    first = child.stdout.readline()  # it comes while the second is being answered
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    rest, said = child.communicate(timeout=60)
    answers = [json.loads(line) for line in (first + rest).splitlines()]
    assert [answer["id"] for answer in answers] in ([1, 2], [1])
    assert child.returncode == 130
    missing = "2" if len(answers) == 2 else "2-3"
    assert said.strip() == (
        f"stopped; {len(answers)} of 3 lines are answered; of the file are missing: {missing}"
    )


def test_the_missing_lines_are_told_as_runs():
    """Numbers are those of the file, where blank lines count; many runs are cut."""
    lines = read_lines(b"\n".join(b"" if i == 4 else b'{"prompt": "a"}' for i in range(60)))
    answered = {line.index for line in lines if line.number in (1, 3, 8, 9)}
    told = _format_stop(lines, answered)
    assert told == "stopped; 4 of 59 lines are answered; of the file are missing: 2, 4-7, 10-60"
    assert _format_stop(lines, set(range(59))) == "stopped; 59 of 59 lines are answered"
    many = _format_stop(lines, set(range(0, 59, 2))).partition("missing: ")[2].split(", ")
    assert (len(many), many[0], many[-1]) == (13, "2", "...")


def test_a_reader_that_goes_away_ends_it(tmp_path):
    """After `| head -1` nothing more is answered, nothing is said, and the exit code is 1."""
    slow = {"prompt": "tell me a story", "temperature": 4, "top_p": 1, "max_tokens": 900}
    hello = {"prompt": "hello", "temperature": 0}
    file = write(tmp_path / "q", hello, *({**slow, "seed": seed} for seed in range(40)))
    command = [sys.executable, "-m", "mlxchat", "generate", "--batch", file]
    environment = os.environ | {"MLXCHAT_HOME": str(tmp_path / "home")}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, env=environment
    )
    assert json.loads(child.stdout.readline())["index"] == 0
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == b""
    assert child.wait(120) == 1
