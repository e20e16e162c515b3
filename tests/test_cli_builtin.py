"""The command line over the real session and the built-in model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlxchat.cli.main import cli

REPOSITORY = Path(__file__).parents[1]
GREEDY = ("--temp", "0", "--max-tokens", "8")

# DESIGN.md, JSON contract.
KEYS = {
    "": {
        *("model", "text", "reasoning", "stop_reason", "usage", "timing", "cache"),
        *("speculation", "verify", "tokens"),
    },
    "usage": {
        *("prompt_tokens", "cached_tokens", "prefill_tokens"),
        *("typeahead_tokens", "settle_tokens", "completion_tokens"),
    },
    "timing": {
        *("load_s", "template_s", "restore_s", "prefill_s", "ttft_s", "decode_s", "total_s"),
        *("prefill_tok_per_s", "decode_tok_per_s", "inter_token_ms"),
        *("peak_memory_bytes", "kv_bytes", "weight_bytes", "bandwidth_use"),
    },
    "cache": {"source", "reason"},
}


def run(*arguments, text=""):
    return CliRunner().invoke(cli, [*arguments], input=text)


def test_generate_keeps_the_json_contract():
    """The object of `generate --json` has the contract's fields, and its counts agree."""
    result = run("generate", "hello", "--json", "--verify", *GREEDY)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer.keys() == KEYS[""]
    for part in ("usage", "timing", "cache"):
        assert answer[part].keys() == KEYS[part]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == usage["cached_tokens"] + usage["prefill_tokens"]
    assert usage["completion_tokens"] == len(answer["tokens"]) <= 8
    assert answer["verify"]["tokens_equal"] is True
    assert len(answer["verify"]["prompt_ids"]) == usage["prompt_tokens"]


def test_greedy_text_is_the_same_in_every_form():
    """The text on stdout is the text of the JSON object, sanitised; a second run gives it again."""
    from mlxchat.cli.render import sanitize

    plain = run("generate", "hello", *GREEDY)
    as_json = run("generate", "hello", "--json", *GREEDY)
    assert plain.stdout.rstrip("\n") == sanitize(json.loads(as_json.stdout)["text"]).rstrip("\n")


def test_piped_chat_reuses_what_it_has_read():
    """The second message of a chat reads less than its whole prompt."""
    result = run("chat", "--json", *GREEDY, text="hello there\nand what is a token?\n/retry\n")
    assert result.exit_code == 0, result.stderr
    usages = [json.loads(line)["usage"] for line in result.stdout.splitlines()]
    assert len(usages) == 3
    assert usages[0]["cached_tokens"] == 0
    assert usages[1]["cached_tokens"] > 0
    assert usages[2]["prefill_tokens"] < usages[1]["prefill_tokens"]


@pytest.mark.parametrize(
    ("model", "part"),
    [("./no-such-folder", "no-such-folder"), ("", None)],
    ids=["missing", "built-in by the empty name"],
)
def test_model_names(model, part):
    """A folder that is not there is one line and exit code 1."""
    result = run("generate", "hello", "-m", model, *GREEDY)
    assert result.exit_code == (1 if part else 0)
    if part:
        assert part in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert "; " in result.stderr
        assert result.stdout == ""


def test_a_prompt_longer_than_the_context():
    """A prompt that does not fit is one line and exit code 1; a chat answers the next one."""
    result = run("generate", "--max-context", "40", *GREEDY, text="word " * 200)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    chat = run("chat", "--max-context", "40", "--json", *GREEDY, text="word " * 200 + "\nhello\n")
    assert chat.exit_code == 1
    assert len(chat.stdout.splitlines()) == 1


def test_without_mlx(tmp_path):
    """Where MLX's library is missing one line says what to install; `doctor` shows the rest."""
    broken = tmp_path / "mlx"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "core.py").write_text(
        "raise ImportError('libmlx.so: cannot open shared object file')"
    )
    env = dict(os.environ, PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")
    for arguments in (["generate", "hello"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-m", "mlxchat", *arguments],
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("Error: MLX cannot be")
        assert "mlxchat[cpu]" in done.stderr
        assert done.stderr.count("\n") == 1
        assert ("python" in done.stdout) == (arguments == ["doctor"])


def test_a_process_ends_in_order():
    """MLX's streams go with the worker; left alone they abort the process at its end."""
    code = """
from mlxchat.engine.worker import Worker
def work(context):
    import mlx.core as mx
    x = mx.ones((64, 64))
    for _ in range(50):
        x = mx.exp(x @ x * 0.01)
        mx.async_eval(x)
worker = Worker()
worker.run(work)
worker.close()
"""
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_between_messages():
    """SIGINT while the chat waits for the next line ends it with exit code 130."""
    with subprocess.Popen(
        [sys.executable, "-m", "mlxchat", "chat", "--json", *GREEDY],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        assert first["stop_reason"] != "user_cancelled"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert b"Traceback" not in process.stderr.read()


def test_a_closed_stdin_does_not_keep_the_weights_from_being_read():
    """With stdin closed from the start the model is read and the argument answered."""
    done = subprocess.run(
        [
            "sh",
            "-c",
            f"exec '{sys.executable}' -m mlxchat generate hello --json {' '.join(GREEDY)} <&-",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["completion_tokens"] >= 1


def test_continue_in_a_pipe():
    """A cut answer goes on: its text grows, its ids join to those of one whole answer."""
    question = "what is a KV cache?"
    whole = json.loads(run("generate", question, "--json", "--temp", "0").stdout)
    lines = f"{question}\n/continue\n/continue\n/continue\n"
    result = run("chat", "--json", "--verify", *GREEDY, text=lines)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 3
    assert [i for answer in answers for i in answer["tokens"]] == whole["tokens"]
    assert answers[-1]["text"] == whole["text"]
    assert [answer["usage"]["prefill_tokens"] for answer in answers[1:]] == [1, 1]
    assert result.exit_code == 1
    assert "ended by itself" in result.stderr
    plain = run("chat", *GREEDY, text=lines.rsplit("/", 1)[0])
    assert plain.stdout.replace("\n", "") == whole["text"]


@pytest.mark.parametrize(
    ("options", "advice"),
    [((), "take another model with -m"), (("--max-context", "64"), "raise --max-context")],
)
def test_a_prompt_that_is_too_long(options, advice):
    """What `generate` advises can be done there: it has no /compact."""
    done = CliRunner().invoke(cli, ["generate", "word " * 3000, *options])
    assert done.exit_code == 1
    assert f"; shorten the prompt, or {advice}" in done.stderr
    assert "/compact" not in done.stderr


@pytest.mark.parametrize("name", ["/nonexistent", "no-such-model", "a b/c"])
def test_a_wrong_name_is_told_without_any_line(name):
    """Where nothing is asked nothing is loaded, but a name that cannot be a model's is an error."""
    done = run("chat", "-m", name)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "; name a model folder or a Hub id like owner/name" in done.stderr
    assert run("chat").exit_code == 0
