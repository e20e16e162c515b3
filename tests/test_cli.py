"""The command line over a fake session: transcripts, options, errors, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fakes import LONG_ANSWER_TOKENS, FakeSession, ctrl_c

from mlxchat.cli.main import cli
from mlxchat.errors import BackendError
from mlxchat.settings import settings_path

FAKES = str(Path(__file__).with_name("fakes.py"))


@pytest.fixture(autouse=True)
def sessions(monkeypatch):
    """The sessions that the commands of a test made, all fake; every one must be closed."""
    monkeypatch.setattr("mlxchat.chat.session.Session", FakeSession)
    made = []
    monkeypatch.setattr(FakeSession, "made", made)
    yield made
    assert all(session.is_closed for session in made)


@pytest.fixture
def run():
    """Runs a command line in this process; stdin is a pipe with `text`."""

    def run(*arguments, text=b""):
        return CliRunner().invoke(cli, [*arguments], input=text)

    return run


def program(*arguments, **options):
    """Starts a command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, FAKES, *arguments],
        env=dict(os.environ, PYTHONPATH=str(Path(FAKES).parents[1])),
        stderr=subprocess.PIPE,
        **options,
    )


def assert_one_error_line(result, code):
    """Nothing but one `Error: what; what to do` line on stderr, nothing on stdout."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "; " in result.stderr


def config(text):
    settings_path().parent.mkdir(parents=True)
    settings_path().write_text(text)


# --- the program


def test_help_names_all_commands(run):
    """`--help` lists every command with a summary."""
    result = run("--help")
    assert result.exit_code == 0
    for name in cli.commands:
        assert f"  {name} " in result.stdout


def test_version(run):
    """`--version` is one line."""
    assert run("--version").stdout == "mlxchat 0.1.0\n"


@pytest.mark.parametrize("arguments", [[], ["-m", "x"], ["chat"], ["--temp", "0", "--json"]])
def test_chat_is_the_default_command(run, sessions, arguments):
    """Without a command's name, options and all go to `chat`."""
    result = run(*arguments, text=b"hello\n")
    assert result.exit_code == 0
    assert "you said: hello" in result.stdout
    assert len(sessions) == 1


@pytest.mark.parametrize("arguments", [[], ["history"], ["config"], ["cache"], ["inspect"]])
def test_help_cuts_nothing_off(run, arguments):
    """--help lists every command of a group with its whole summary, in its own order."""
    result = run(*arguments, "--help")
    listed = result.stdout.split("Commands:\n")[1]
    assert "..." not in listed
    names = [line.split()[0] for line in listed.split("\n") if line[2:3].strip()]
    group = cli
    for name in arguments:
        group = group.get_command(click.Context(group), name)
    assert names == group.list_commands(click.Context(group))
    words = " ".join(listed.split())
    for name in names:
        command = group.get_command(click.Context(group), name)
        assert command.get_short_help_str(1000) in words


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["chta"], f"there is no command 'chta'; commands are {', '.join(cli.commands)}"),
        (["what is it?"], "command 'what is it?'; `mlxchat generate TEXT` answers one prompt"),
        (["cache", "nope"], "there is no command 'cache nope'; commands are list, info, prune,"),
        (["inspect", "steer", "nope"], "there is no command 'inspect steer nope'; commands are"),
        (["chat", "--bogus"], "No such option"),
        (["--bogus"], "see 'cli chat --help'"),
        (["generate", "a", "b"], "unexpected extra argument"),
        (["generate", "a", "--temp"], "requires an argument; see --help of this command"),
        (["generate", "a", "--stop", ""], "an empty string is not allowed; give some text"),
        (["generate"], "there is no prompt; give one as an argument or on stdin"),
        (["generate", "  "], "there is no prompt"),
    ],
)
def test_wrong_usage(run, arguments, part):
    """Wrong usage is one line and exit code 2."""
    result = run(*arguments)
    assert_one_error_line(result, 2)
    assert part in result.stderr


@pytest.mark.parametrize("command", ["chat", "generate"])
@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--temp", "-0.1", "a number >= 0"),
        ("--temp", "warm", "a number >= 0"),
        ("--temp", "nan", "a number >= 0"),
        ("--temp", "inf", "a number >= 0"),
        ("--top-p", "0", "a number in (0, 1]"),
        ("--top-p", "1.5", "a number in (0, 1]"),
        ("--top-k", "-1", "a whole number >= 0"),
        ("--top-k", "2.5", "a whole number >= 0"),
        ("--min-p", "1.1", "a number in [0, 1]"),
        ("--xtc-probability", "1.1", "a number in [0, 1]"),
        ("--xtc-threshold", "0.6", "a number in [0, 0.5]"),
        ("--repetition-penalty", "0", "a number > 0"),
        ("--seed", "-1", "a whole number in [0, 18446744073709551615]"),
        ("--max-tokens", "0", "a whole number >= 1"),
        ("--max-context", "0", "a whole number >= 1"),
    ],
)
def test_values_out_of_bounds(run, sessions, command, option, value, allowed):
    """A value that is not allowed is a usage error that names the option and what is allowed."""
    result = run(command, option, value)
    assert_one_error_line(result, 2)
    assert f"'{option}'" in result.stderr
    assert f"{value!r} is not allowed; give {allowed}\n" in result.stderr
    assert not sessions


# --- what reaches the session


def test_options_reach_the_session(run, sessions):
    """Every option arrives with its value."""
    run(
        *("generate", "hi", "-m", "a/b", "-s", "Be kind.", "--max-tokens", "7", "--temp", "0"),
        *("--top-p", "0.5", "--top-k", "3", "--min-p", "0.1", "--repetition-penalty", "1.1"),
        *("--seed", "5", "--stop", "x", "--stop", "y", "--max-context", "99", "--no-think"),
        *("--keep-thinking", "--verify", "--xtc-probability", "0.5", "--xtc-threshold", "0.2"),
    )
    (session,) = sessions
    options, sampling = session.options, session.options.sampling
    assert session.model == "a/b"
    assert (options.system, options.max_tokens, options.stop) == ("Be kind.", 7, ("x", "y"))
    assert (options.max_context, options.think) == (99, False)
    assert (options.keep_thinking, options.verify) == (True, True)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 3)
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.1, 5)


def test_nothing_given_is_nothing_set(run, sessions):
    """Without options the session decides by itself; one answer is not followed by idle work."""
    run("generate", "hi")
    run("chat", text=b"hi\n")
    from mlxchat.chat.session import ChatOptions

    assert sessions[0].model is None
    assert sessions[0].options == ChatOptions(idle_work=False, speculate="auto")
    assert sessions[1].options == ChatOptions(speculate="auto")


@pytest.mark.parametrize(
    ("option", "variable", "setting", "model"),
    [
        ("a", "b", "c", "a"),
        (None, "b", "c", "b"),
        (None, None, "c", "c"),
        (None, "", "c", "c"),
        (None, None, None, None),
        ("builtin", "b", "c", None),
        (None, None, "builtin", None),
    ],
)
def test_which_model(run, sessions, monkeypatch, option, variable, setting, model):
    """--model goes before MLXCHAT_MODEL, that before config.toml; `builtin` is the included one."""
    if variable is not None:
        monkeypatch.setenv("MLXCHAT_MODEL", variable)
    if setting is not None:
        config(f'model = "{setting}"')
    run("generate", "hi", *(["-m", option] if option else []))
    assert sessions[0].model == model


def test_settings_are_defaults(run, sessions):
    """config.toml gives defaults; the command line goes before it."""
    config('system = "Be kind."\n[sampling]\ntemperature = 0.2\ntop_k = 9\n')
    run("generate", "hi", "--temp", "1")
    run("generate", "hi", "--system", "")
    assert sessions[0].options.system == "Be kind."
    assert sessions[0].options.sampling.temperature == 1
    assert sessions[0].options.sampling.top_k == 9
    assert sessions[1].options.system is None


@pytest.mark.parametrize("command", [["generate", "hi"], ["chat"], ["doctor"]])
def test_broken_settings(run, command):
    """A broken config.toml is one line and exit code 1."""
    config("model = ")
    result = run(*command)
    assert_one_error_line(result, 1)
    assert "config.toml is not valid TOML" in result.stderr


# --- generate


@pytest.mark.parametrize(
    ("argument", "text", "sent"),
    [
        ("write", b"", "write"),
        ("write", b"diff\n+x\n", "write\n\ndiff\n+x"),
        (None, b"diff\n", "diff"),
        ("write", b" \n", "write"),
        (None, "größer\n".encode(), "größer"),
    ],
)
def test_prompt(run, sessions, argument, text, sent):
    """The prompt is the argument, then a blank line, then the text on stdin; or what there is."""
    result = run("generate", *([argument] if argument else []), text=text)
    assert result.exit_code == 0
    assert sessions[0].sent == [sent]
    assert result.stdout == f"you said: {sent}\n"
    assert result.stderr == ""


def test_generate_json(run):
    """--json prints one object and nothing else, reasoning and raw text in it."""
    result = run("generate", "escape", "--json", "--timing")
    answer = json.loads(result.stdout)
    assert answer["text"] == "\x1b[31mred\x07\x9b2J\r\u202eabc\n\ttab"
    assert result.stdout.isascii()
    assert result.stdout.count("\n") == 1
    assert "decode" in result.stderr


def test_reports_go_to_stderr(run):
    """--timing, --verify and notices leave stdout to the answer."""
    result = run("generate", "notice", "--timing", "--verify", "-m", "noticed")
    assert result.stdout == "you said: notice\n"
    for part in ("Something to know.\n", "The fake is loaded.\n", "verify: tokens equal", "ttft"):
        assert (part in result.stderr) == (part != "ttft")
    assert result.stderr.count("The fake is loaded.") == 1


def test_reasoning_is_no_answer(run):
    """A pipe gets the answer without the reasoning and without the empty lines between them."""
    result = run("generate", "think hard")
    assert result.stdout == "you said: think hard\n"
    assert result.stderr == ""


def test_escapes_never_reach_stdout(run):
    """Terminal escapes in an answer are made visible, in pipes too."""
    result = run("generate", "escape")
    assert result.stdout == "␛[31mred␇<U+009B>2J<U+202E>abc\n\ttab\n"


@pytest.mark.parametrize(
    ("arguments", "text", "part"),
    [
        (["generate", "fail"], b"", "this message fails; send another"),
        (["generate", "-m", "missing", "hi"], b"", "no model 'missing'; give a folder"),
        (
            ["generate", "crash"],
            b"",
            "internal error ValueError: a bug with two lines; set MLXCHAT",
        ),
        (["generate"], b"ab\xff", "stdin is not UTF-8 (byte 2); convert it with iconv"),
    ],
)
def test_generate_fails(run, arguments, text, part):
    """What goes wrong is one line and exit code 1."""
    result = run(*arguments, text=text)
    assert_one_error_line(result, 1)
    assert part in result.stderr


def test_debug_shows_the_traceback(run, monkeypatch):
    """MLXCHAT_DEBUG=1 adds the traceback; the line and the exit code stay."""
    monkeypatch.setenv("MLXCHAT_DEBUG", "1")
    result = run("generate", "crash")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "Error: internal error ValueError" in result.stderr


def has_begun(sessions):
    """Returns a test of whether the answer that Ctrl-C shall stop is being written."""
    return lambda: sessions and sessions[0].sent


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_keeps_the_partial_answer(run, sessions, command):
    """Ctrl-C ends a command with exit code 130 and what there is of the answer."""
    with ctrl_c(has_begun(sessions)):
        result = run(command, text=b"long\nnever\n")
    assert result.exit_code == 130
    assert result.stdout.startswith("word0 word1 ")
    assert result.stdout.endswith("\n")
    assert "never" not in result.stdout
    assert len(result.stdout.split()) < LONG_ANSWER_TOKENS / 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_with_json(run, sessions):
    """With --json the partial answer is an object that says who stopped it."""
    with ctrl_c(has_begun(sessions)):
        result = run("generate", "long", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["stop_reason"] == "user_cancelled"


def test_ctrl_c_before_there_is_anything(run, sessions):
    """Ctrl-C while the model loads ends the command without an answer."""
    with ctrl_c(lambda: sessions and sessions[0].send_calls):
        result = run("generate", "hi", "-m", "slow", "--json")
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "", "")


def test_ctrl_c_again_leaves_a_stuck_answer(run, sessions, monkeypatch):
    """When an answer does not react, Ctrl-C pressed again later leaves without it."""
    monkeypatch.setattr("mlxchat.cli.turn.PATIENCE_S", 0.2)
    started = time.monotonic()
    with ctrl_c(has_begun(sessions), 0.05, 0.3):
        result = run("generate", "stuck")
    assert result.exit_code == 130
    assert result.stdout == "started \n"
    assert time.monotonic() - started < 10


def test_a_stuck_program_can_be_left():
    """The same in a process of its own, whose worker is still busy when it ends."""
    with program("generate", "stuck", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(7) == b"started"
        started = time.monotonic()
        while process.poll() is None and time.monotonic() - started < 20:
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.wait(1) == 130
        assert 2 < time.monotonic() - started < 10
        assert process.stderr.read().strip() == b""


# --- chat without a terminal


def test_piped_chat(run, sessions):
    """One answer per line; empty lines are skipped; commands print nothing on stdout."""
    text = b"hello\n\n/stats\r\n//stats x\n/etc/hosts is\n/system be kind\n/retry\n  \nend"
    result = run("chat", text=text)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "you said: hello",
        "you said: /stats x",
        "you said: /etc/hosts is",
        "you said: /etc/hosts is again",
        "you said: end",
    ]
    assert "turns    1" in result.stderr
    assert "System prompt: be kind" in result.stderr
    assert sessions[0].system == "be kind"


def test_piped_chat_json(run):
    """With --json each answer is one line, /retry's and /edit's included."""
    result = run("chat", "--json", text=b"hello\n/retry\n/help\n/edit bye\n")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == [
        "you said: hello",
        "you said: hello again",
        "you said: bye",
    ]


def test_piped_chat_goes_on_after_errors(run):
    """A line that fails prints its error line; the others are answered; the exit code is 1."""
    result = run("chat", text=b"fail\n/hepl\ncrash\nab\xff\n/fork 3\nhello\n")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "you said: hello"
    errors = result.stderr.splitlines()
    assert len(errors) == 5
    assert all(line.startswith("Error: ") and "; " in line for line in errors)
    assert "did you mean /help?" in errors[1]
    assert "/fork takes no argument" in errors[4]


def test_piped_attachments(run, sessions, tmp_path, monkeypatch):
    """`@path`, /file, /drop, /set and /params work in a pipe; what they say goes to stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.txt").write_text("A")
    lines = (
        "/file a b.txt",
        "/drop",
        "/file a b.txt",
        "one",
        'two @"a b.txt"',
        "no @none.txt",
        "/set temp 0",
        "/params",
        "last",
    )
    result = run("chat", text="\n".join(lines).encode())
    block = "a b.txt:\n```txt\nA\n```\n\n"
    assert sessions[0].sent == [f"{block}one", f'{block}two "a b.txt"', "last"]
    assert result.exit_code == 1
    assert "Error: there is no file none.txt" in result.stderr
    assert "Dropped a b.txt, 1 B" in result.stderr
    assert sessions[0].options.sampling.temperature == 0
    assert "temp" not in result.stdout


def test_piped_shell(run, sessions):
    """In a pipe `!cmd` is text, and a line says so; with --shell it is a command."""
    result = run("chat", text=b"!echo hi\n!!x\n")
    assert sessions[0].sent == ["!echo hi", "!!x"]
    assert "A line that begins with ! is text here; with --shell it is a command." in result.stderr
    run("chat", "--shell", text=b"!echo hi\nnow\n!!x\n")
    block = "Output of `echo hi` (exit status 0):\n```\nhi\n```\n\n"
    assert sessions[1].sent == [f"{block}now", "!x"]


def test_piped_exit(run, sessions):
    """/exit ends the chat; what follows is not read."""
    result = run("chat", text=b"hello\n/exit\nmore\n")
    assert result.exit_code == 0
    assert sessions[0].sent == ["hello"]


def test_empty_chat(run, sessions):
    """A chat without messages does nothing and is no error."""
    result = run("chat")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_each_answer_is_flushed():
    """A program can talk with the chat: each JSON line is there before the next message is sent."""
    with program("chat", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for text in ("one", "two"):
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == f"you said: {text}"
        process.stdin.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


# --- the ends of the pipes


def test_dev_null_is_not_read():
    """A command waits for stdin only where it is a pipe or a file."""
    process = program("generate", "hi", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.communicate(timeout=20) == (b"you said: hi\n", b"")


def test_file_as_stdin(tmp_path):
    """A file on stdin is a part of the prompt; an empty one is none."""
    (tmp_path / "full").write_text("text\n")
    (tmp_path / "empty").touch()
    for name, answer in (("full", b"you said: hi\n\ntext\n"), ("empty", b"you said: hi\n")):
        with (tmp_path / name).open() as file:
            process = program("generate", "hi", stdin=file, stdout=subprocess.PIPE)
            assert process.communicate(timeout=20) == (answer, b"")


def test_the_reader_goes_away():
    """When the reader of stdout goes away the program ends quietly."""
    with program("generate", "long", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        process.stdout.read(5)
        process.stdout.close()
        assert process.wait(20) == 1
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_disk_is_full():
    """An answer that cannot be written is one line."""
    with open("/dev/full", "wb") as full:
        process = program("generate", "hi", stdin=subprocess.DEVNULL, stdout=full)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert error == b"Error: No space left on device; check space and permissions\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_closed_streams(closed):
    """A stream that is closed from the start is no reason to crash."""
    done = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' '{FAKES}' generate hi --timing {closed}"],
        env=dict(os.environ, PYTHONPATH=str(Path(FAKES).parents[1])),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
    assert b"Error" not in done.stderr
    assert done.stdout == (b"" if closed == ">&-" else b"you said: hi\n")


def test_narrow_encoding():
    """A stdout that is not UTF-8 gets escapes instead of an error."""
    done = subprocess.run(
        [sys.executable, FAKES, "generate", "ö"],
        env=dict(os.environ, PYTHONPATH=str(Path(FAKES).parents[1]), PYTHONIOENCODING="ascii"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"you said: \\xf6\n")


# --- doctor


def test_doctor(run, mlxchat_home):
    """`doctor` names versions, backend, places and the default model."""
    config('model = "a/b"')
    result = run("doctor", "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == 0
    assert rows["default model"] == "a/b"
    assert rows["settings"] == str(mlxchat_home / "config" / "config.toml")
    assert {"mlxchat", "python", "mlx", "backend", "memory", "models"} <= rows.keys()
    table = run("doctor").stdout
    assert all(name in table and value in table for name, value in rows.items())


def test_doctor_without_mlx(run, monkeypatch):
    """Without MLX `doctor` still shows the rest, then says what to install; exit code 1."""

    def describe():
        raise BackendError("MLX cannot be loaded; install one backend")

    monkeypatch.setattr("mlxchat.model.device.describe", describe)
    result = run("doctor")
    assert result.exit_code == 1
    assert "backend" in result.stdout
    assert result.stderr == "Error: MLX cannot be loaded; install one backend\n"


def test_a_model_that_cannot_be_loaded_ends_piped_chat(run):
    """Its error is told once, not for each line."""
    result = run("chat", "-m", "missing", text=b"one\ntwo\nthree\n")
    assert result.exit_code == 1
    assert result.stderr.count("there is no model") == 1


def test_ctrl_c_during_the_imports():
    """Ctrl-C before the program has begun ends it with 130 and without a traceback."""
    code = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "mlxchat.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("mlxchat", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
