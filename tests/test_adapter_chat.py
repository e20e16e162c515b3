"""Adapters in conversations and commands: what they change, what is told, what is refused."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from adapters import write_adapter
from command_line import CommandLine
from test_parity import make_oracle
from tiny import make_tiny_folder
from tiny_bert import write_encoder

from mlxchat.chat import switching
from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.engine.options import SamplingSettings
from mlxchat.errors import CheckpointError
from mlxchat.model.checkpoint import read_config
from mlxchat.settings import settings_path

run = CommandLine()
GREEDY = ("--temp", "0", "--max-tokens", "6")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_folder(tmp_path / "tiny")


@pytest.fixture
def make_adapter(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes adapters of any name and seed for the tiny model."""

    def make(name: str, **settings: object) -> Path:
        oracle = make_oracle(read_config(model))
        return write_adapter(tmp_path / name, oracle, base=str(model), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def session(model: Path, tmp_path: Path) -> Iterator[Session]:
    options = ChatOptions(sampling=SamplingSettings(temperature=0.0), max_tokens=8, verify=True)
    session = Session(str(model), options, Recorder("chat", tmp_path / "history.db"))
    yield session
    session.close()


def check_verified(session: Session, text: str, name: str) -> int:
    result = session.send(text).result(30)
    assert result.verify is not None
    assert result.verify.holds
    assert result.model.rpartition("/")[2] == name
    return result.usage.cached_tokens


@pytest.mark.parametrize("fits", [True, False])
def test_the_conversation_goes_on(
    session: Session,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: bool,
) -> None:
    """Nothing that was read with other weights serves; the history knows the adapter."""
    monkeypatch.setattr(switching, "fits_beside", lambda folder: fits)
    tone = str(make_adapter("tone"))
    check_verified(session, "hello", "tiny")
    info = session.switch_adapter(tone).result(30)
    assert info.adapter == session.options.adapter == tone
    assert session.conversation.nodes[2].message.content_ids is None
    # What idle time reads again comes from the new weights.
    check_verified(session, "and you?", "tiny+tone")
    session.switch_adapter(None).result(30)
    check_verified(session, "back", "tiny")
    with closing(History(tmp_path / "history.db")) as history:
        turns = history.record(1).turns
    assert [turn.settings.get("adapter") for turn in turns] == [None, tone, None]
    prints = [turn.fingerprint for turn in turns]
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("fits", [True, False])
def test_one_that_does_not_fit(
    session: Session,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: bool,
) -> None:
    """The old adapter answers on, its cache too unless the weights had to leave memory."""
    monkeypatch.setattr(switching, "fits_beside", lambda folder: fits)
    tone = str(make_adapter("tone"))
    other = make_oracle({**read_config(tmp_path / "tiny"), "hidden_size": 32})
    wide = str(write_adapter(tmp_path / "wide", other))
    session.switch_adapter(tone).result(30)
    check_verified(session, "hello", "tiny+tone")
    with pytest.raises(CheckpointError, match="is not there; name a folder"):
        session.switch_adapter(str(tmp_path / "nowhere")).result(30)
    assert check_verified(session, "more", "tiny+tone") > 0
    with pytest.raises(CheckpointError, match="but the model asks for"):
        session.switch_adapter(wide).result(30)
    assert session.options.adapter == tone
    assert (check_verified(session, "go on", "tiny+tone") > 0) or not fits


def test_another_model_leaves_it(
    session: Session, make_adapter: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    """An adapter belongs to its model; asked for the same model again, nothing happens."""
    tone = str(make_adapter("tone"))
    info = session.switch_adapter(tone).result(30)
    assert session.switch_model(str(model)).result(30) is info
    session.switch_model(str(make_tiny_folder(tmp_path / "two", seed=1))).result(30)
    assert session.options.adapter is None
    check_verified(session, "hello", "two")


def test_answers_of_the_commands(
    model: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`generate` answers with it, the same as a chat does; `--json` names it."""
    make_adapter("tone")
    monkeypatch.chdir(tmp_path)
    options = ("-m", model, "--adapter", "tone", "--json", *GREEDY)
    first = json.loads(run("generate", "hello", *options))
    assert first["model"] == f"{model}+tone"
    plain = json.loads(run("generate", "hello", "-m", model, "--json", *GREEDY))
    assert plain["tokens"] != first["tokens"]
    assert plain["model"] == str(model)
    lines = run(
        "chat", *options, text="hello\n/adapter off\n/edit 1 hello\n/adapter tone\n/params\n"
    )
    tokens = [json.loads(line)["tokens"] for line in lines.splitlines()]
    assert tokens == [first["tokens"], plain["tokens"]]
    assert "From here" in run.stderr
    assert any(row.split() == ["adapter", "tone", "/adapter"] for row in run.stderr.splitlines())


def test_what_is_shown(model: Path, make_adapter: Callable[..., Path]) -> None:
    """/adapter tells kind, rank, size and base; without one that there is none."""
    tone = make_adapter("tone")
    text = f"/adapter\n/adapter {tone}\n/adapter\n/adapter {tone}\n/set adapter x\n"
    run("chat", "-m", model, text=text, code=1)
    assert "There is no adapter; /adapter PATH." in run.stderr
    assert "tone (lora, rank 4 on 14 matrices, " in run.stderr
    assert str(model) in run.stderr.split("trained on")[1]
    assert "It is loaded already." in run.stderr
    assert "use /adapter PATH, or off" in run.stderr
    assert "may say nonsense" not in run.stderr
    foreign = make_adapter("foreign", rank=2)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "model": "a/b"}))
    run("chat", "-m", model, text=f"/adapter {foreign}\n")
    assert "adapter foreign was trained on a/b; on another model it may say nonsense" in run.stderr


def test_errors_are_one_line(model: Path, tmp_path: Path) -> None:
    """A folder that is not there, and one that is no adapter."""
    run("generate", "hi", "-m", model, "--adapter", tmp_path / "none", code=1)
    assert run.stderr.startswith("Error: the adapter ")
    assert run.stderr.count("\n") == 1
    run("bench", "-m", model, "--adapter", model, "-p", "4", "-n", "0", "-d", "0", code=1)
    assert "has no adapter_config.json" in run.stderr


def test_resumed_conversations(model: Path, make_adapter: Callable[..., Path]) -> None:
    """A chat goes on with the adapter that it had; where that is gone, it says so."""
    tone = make_adapter("tone")
    given = ("--json", *GREEDY)
    run("chat", "-m", model, "--adapter", tone, *given, text="hello\n")
    name = lambda text: json.loads(text)["model"].rpartition("/")[2]  # noqa: E731
    assert name(run("chat", "-c", *given, text="more\n")) == "tiny+tone"
    assert name(run("chat", "-c", "--adapter", "off", *given, text="more\n")) == "tiny"
    run("chat", "-c", "--adapter", tone, *given, text="more\n")
    tone.rename(tone.with_name("away"))
    assert name(run("chat", "-c", *given, text="more\n")) == "tiny"
    assert "is not there any more; it goes on without" in run.stderr


def test_the_settings_name_one(
    model: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """A model's own table: on the start, after /model, in doctor; the command line goes before."""
    tone = make_adapter("tone")
    run("config", "set", f'models."{model}".adapter', tone)
    run("config", "set", "model", model)
    assert f'adapter = "{tone}"' in settings_path().read_text()
    assert json.loads(run("generate", "hi", "--json", *GREEDY))["model"] == f"{model}+tone"
    plain = run("generate", "hi", "--json", "--adapter", "off", *GREEDY)
    assert json.loads(plain)["model"] == str(model)
    lines = run("chat", "-m", "builtin", "--json", *GREEDY, text=f"/model {model}\nhi\n/params\n")
    assert json.loads(lines)["model"] == f"{model}+tone"
    assert "config.toml, for this model" in run.stderr
    assert f"{model} with adapter {tone}" in run("doctor")


def test_stored_prompts_are_apart(model: Path, make_adapter: Callable[..., Path]) -> None:
    """A system prompt that was read without the adapter does not serve with it."""
    tone = make_adapter("tone")
    system = "Be brief and kind. " * 8
    warm = ("cache", "warm", "-m", model, "-s", system, "--json")
    assert json.loads(run(*warm))["num_read"] > 0
    assert json.loads(run(*warm))["num_read"] == 0
    assert json.loads(run(*warm, "--adapter", tone))["num_read"] > 0
    assert json.loads(run(*warm, "--adapter", tone))["num_read"] == 0


def test_measured(model: Path, make_adapter: Callable[..., Path]) -> None:
    """`bench` runs with it, mlx-lm too, and names it."""
    tone = make_adapter("tone")
    options = ("-p", "8", "-n", "4", "-d", "0", "-r", "1", "--against", "mlx-lm")
    table = run("bench", "-m", model, "--adapter", tone, *options)
    assert "tiny+tone" in table


def test_looked_into(model: Path, make_adapter: Callable[..., Path]) -> None:
    """`inspect` and `embed` see the model with its adapter: the option's, else the settings'."""
    tone = make_adapter("tone", scale=40.0)
    added = ("-m", model, "--adapter", tone)

    def look(*arguments: object) -> Any:
        return json.loads(run(*arguments, "--json"))

    def ranks(*options: object) -> Any:
        return look("inspect", "lens", "hello", "--chat", *options)["layers"][-1]["positions"][-1]

    assert ranks(*added) != ranks("-m", model)
    first = look("generate", "hello", *added, "--no-think", *GREEDY)["tokens"][0]
    assert ranks(*added)["top"][0][0] == first
    plain, changed = look("embed", "hello", "-m", model), look("embed", "hello", *added)
    assert plain["vectors"] != changed["vectors"]
    for looking in (("embed", "hello"), ("inspect", "walk", "hello")):
        assert "tiny+tone" in run(*looking, *added).replace("\n", "")  # a long path is broken
    run("config", "set", f'models."{model}".adapter', tone)
    assert look("embed", "hello", "-m", model) == changed
    assert look("embed", "hello", "-m", model, "--adapter", "off") == plain


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_parameters(model: Path, make_adapter: Callable[..., Path], kind: str) -> None:
    """What an adapter adds is listed apart; whole tensors stand in the place of the model's."""
    tone = make_adapter("tone", kind=kind)
    parameters = ("inspect", "parameters", "-m", model, "--json")
    plain, added = json.loads(run(*parameters)), json.loads(run(*parameters, "--adapter", tone))
    names = [tensor["name"] for tensor in added["tensors"]]
    assert len(set(names)) == len(names)
    if kind == "full":
        assert added["total_params"] == plain["total_params"]
        assert added["groups"].keys() == plain["groups"].keys()
    else:
        group = added["groups"]["adapter"]
        assert group["tensors"] == len(names) - len(plain["tensors"]) > 0
        assert group["params"] == added["total_params"] - plain["total_params"] > 0
        shown = run("inspect", "parameters", "-m", model, "--adapter", tone)
        assert "tiny+tone" in shown.replace("\n", "")  # a long path is broken
        assert any(row.startswith("adapter ") for row in shown.splitlines())


@pytest.mark.parametrize(
    "command", [("inspect", "lens", "hi"), ("inspect", "parameters"), ("embed", "hi")]
)
def test_what_looks_is_refused_alike(
    command: tuple[str, ...], model: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """An adapter that is missing, or is not for the model, is refused as `generate` refuses it."""
    tone, other = make_adapter("tone"), make_oracle({**read_config(model), "hidden_size": 32})
    wide = write_adapter(tmp_path / "wide", other)
    for adapter in (tmp_path / "none", wide):
        options = ("-m", model, "--adapter", adapter)
        run("generate", "hi", *options, code=1)
        wanted = run.stderr
        run(*command, *options, code=1)
        assert run.stderr == wanted
    config = json.loads((tone / "adapter_config.json").read_text())
    (tone / "adapter_config.json").write_text(json.dumps({**config, "model": "a/b"}))
    run(*command, "-m", model, "--adapter", tone)
    if command[-1] != "parameters":
        assert "adapter tone was trained on a/b; on another model it may say" in run.stderr


def test_an_encoder_takes_no_adapter(
    model: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """An adapter beside an encoder is refused with what to do."""
    encoder, tone = write_encoder(tmp_path / "encoder"), make_adapter("tone")
    for command in (("embed", "hi"), ("inspect", "attention", "hi")):
        run(*command, "-m", encoder, "--adapter", tone, code=1)
        assert "is an encoder, and adapters are for models that chat; leave tone" in run.stderr
