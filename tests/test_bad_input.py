"""Bad input end to end, through `mlxchat generate`: one clear line, an exit code, no traceback."""

import contextlib
import json
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_folders import BAD_FOLDERS, BadFolder, make_good_folder
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHATML, bounded, make_tiny_folder

from mlxchat.cli.main import cli

Generate = Callable[..., Result]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may look at, or for, models elsewhere."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


def generate(*arguments: object, stdin: bytes = b"") -> Result:
    """Runs `mlxchat generate` in this process."""
    return CliRunner().invoke(cli, ["generate", *map(str, arguments)], input=stdin)


def check_error(result: Result, code: int, fragment: str = "") -> None:
    """One line on stderr that says what was wrong and what to do; nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    assert fragment.lower() in result.stderr.lower()


def what_is_kept(home: Path) -> list[object]:
    """The files of a home, but instead of the history file the rows in it."""
    history = home / "data" / "history.db"
    kept: list[object] = [
        file for file in home.rglob("*") if file.is_file() and history.name not in file.name
    ]
    if history.exists():
        with contextlib.closing(sqlite3.connect(history)) as database:
            for table in ("conversations", "messages", "turns"):
                kept += database.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
    return kept


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("models") / "good")


def test_the_good_folder_answers(good: Path, mlxchat_home: Path) -> None:
    """What the bad ones are made from works, so they fail for what is bad about them."""
    result = generate("-m", good, "--max-tokens", 3, "--json", "--verify", "hi")
    assert result.exit_code == 0
    assert what_is_kept(mlxchat_home)
    answer = json.loads(result.stdout)
    assert len(answer["tokens"]) <= 3
    assert answer["verify"]["tokens_equal"]
    plain = make_good_folder(good.parent / "plain")
    assert generate("-m", plain, "--max-tokens", 3, "hi").exit_code == 0


@pytest.mark.parametrize("bad", BAD_FOLDERS, ids=lambda bad: bad.name)
def test_bad_folders(bad: BadFolder, tmp_path: Path, mlxchat_home: Path) -> None:
    """Each says what is wrong with it, and leaves nothing behind."""
    folder = bad.make(tmp_path / "model")
    check_error(generate("-m", folder, "hi"), 1, bad.fragment)
    kept = [file.name for file in mlxchat_home.rglob("*") if file.is_file()]
    assert all(name.startswith("history.db") for name in kept)  # the question, nothing else
    assert not (tmp_path / "hub").exists()


def damage_config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"hidden_size": -16}, "hidden_size"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"type": "warp"}}, "'warp' is unknown"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"sliding_window": "x", "model_type": "mistral"}, "sliding_window"),
        ({"model_type": None}, "model_type"),
        ({"model_type": 7}, "model_type"),
        ({"vocab_size": 200}, "embed_tokens"),
        ({"quantization": {"bits": 4, "group_size": 7}}, "groups of 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_configs(changes: dict[str, object], fragment: str, tmp_path: Path) -> None:
    """Values that make no model are named."""
    folder = make_tiny_folder(tmp_path / "model")
    damage_config(**changes)(folder)
    check_error(generate("-m", folder, "hi"), 1, fragment)


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    """A tokenizer of another model is found before any token is fed."""
    folder = make_tiny_folder(tmp_path / "model", vocab_size=290)
    check_error(generate("-m", folder, "hi"), 1, "tokenizer has 300 entries, but the model has 290")


def test_a_prompt_longer_than_the_context(good: Path) -> None:
    """It says how long the prompt is and what the context holds, also for text from a pipe."""
    check_error(generate("-m", good, "--max-context", 20, "x" * 300), 1, "the context holds 20")
    check_error(generate("-m", good, stdin=b"word " * 2000), 1, "the context holds 1 024")


def test_a_template_that_refuses_this_message(tmp_path: Path) -> None:
    """The template's own words are in the line."""
    template = (
        "{% if messages[0].content == 'hi' %}{{ raise_exception('never hi') }}{% endif %}" + CHATML
    )
    folder = make_tiny_folder(tmp_path / "model", template=template)
    check_error(generate("-m", folder, "hi"), 1, "never hi")
    assert generate("-m", folder, "--max-tokens", 2, "hello").exit_code == 0


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content.upper(1) }}{% endfor %}",
        "{{ messages[0].nope.nope }}",
        "{{ ''.__class__.__mro__ }}",
        "{% include 'other' %}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ undefined_function() }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_hostile_templates(template: str, tmp_path: Path) -> None:
    """A template that breaks, runs away or reaches for the machine is refused in one line."""
    folder = make_tiny_folder(tmp_path / "model", template=template)
    check_error(generate("-m", folder, "hi"), 1, "template")


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing@v2"])
def test_offline_with_nothing_cached(name: str) -> None:
    """The name and the switch are in the line."""
    check_error(generate("-m", name, "hi"), 1, "HF_HUB_OFFLINE")


@pytest.mark.parametrize(
    "name", ["no-such-model", "./nowhere", "a/b/c", "../x/y", "-x", "a b", "\x1b[31mred/x"]
)
def test_names_that_name_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is allowed is said in one line, and escapes in the name do not reach the screen."""
    monkeypatch.chdir(tmp_path)
    result = generate(f"--model={name}", "hi")
    check_error(result, 1)
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-tokens", "0"],
        ["--max-tokens", "-1"],
        ["--max-tokens", "many"],
        ["--max-tokens", "1.5"],
        ["--max-tokens", ""],
        ["--temp", "-0.1"],
        ["--temp", "nan"],
        ["--temp", "inf"],
        ["--temp", "1e999"],
        ["--top-p", "0"],
        ["--top-p", "1.01"],
        ["--top-k", "-1"],
        ["--min-p", "2"],
        ["--repetition-penalty", "0"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--seed", "9" * 5000],
        ["--stop", ""],
        ["--max-context", "0"],
        ["--no-such-option"],
        ["--temp"],
        ["one", "two"],
    ],
    ids=lambda arguments: " ".join(arguments)[:24],
)
def test_option_values_that_are_not_allowed(arguments: list[str], good: Path) -> None:
    """Wrong usage ends with code 2 before anything is loaded."""
    extra = ["hi"] if len(arguments) != 2 or arguments[0].startswith("-") else []
    if arguments == ["--temp"]:
        extra = []
    check_error(generate("-m", good, *extra, *arguments), 2)


@pytest.mark.parametrize(
    ("name", "value"), [("--temp", "0.0"), ("--top-k", "0"), ("--max-tokens", "9" * 300)]
)
def test_the_edges_of_what_is_allowed(name: str, value: str, good: Path) -> None:
    """Values at the border work, however large."""
    result = generate("-m", good, "--max-context", 30, name, value, "hi")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("stdin", [b"\xff\xfe", b"caf\xe9", b"ok so far \xed\xa0\x80", b"\x80"])
def test_stdin_that_is_not_utf8(stdin: bytes, good: Path) -> None:
    """The place of the first wrong byte, and what to do."""
    check_error(generate("-m", good, stdin=stdin), 1, "not UTF-8")
    check_error(generate("-m", good, "and this:", stdin=stdin), 1, "not UTF-8")


@pytest.mark.parametrize("stdin", [b"", b"\n", b"  \n\n"])
def test_no_prompt_at_all(stdin: bytes, good: Path) -> None:
    """Neither an argument nor text on stdin is wrong usage."""
    check_error(generate("-m", good, stdin=stdin), 2, "no prompt")


# -- fuzz ------------------------------------------------------------------------------------------

FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]


@bounded(max_examples=60)
@given(
    name=st.sampled_from(FILES),
    place=st.floats(0, 1, exclude_max=True),
    junk=st.binary(min_size=1, max_size=6),
    cut=st.booleans(),
)
def test_damaged_files(good: Path, name: str, place: float, junk: bytes, cut: bool) -> None:
    """A few wrong bytes anywhere give an answer or an error of ours, never a traceback."""
    original = (good / name).read_bytes()
    # Of the weights only the header can be wrong: any other bytes are numbers.
    (header,) = struct.unpack("<Q", original[:8]) if name.endswith("safetensors") else (0,)
    at = int(place * (header + 8 if header else len(original)))
    damaged = original[:at] + junk + (b"" if cut else original[at + len(junk) :])
    try:
        (good / name).write_bytes(damaged)
        result = generate("-m", good, "--max-tokens", 2, "hi")
    finally:
        (good / name).write_bytes(original)
    if result.exit_code != 0:
        check_error(result, 1)
