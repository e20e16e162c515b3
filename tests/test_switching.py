"""/model: another model goes on with the conversation; where that fails, the old one does."""

import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import CHATML, REASONING, make_tiny_folder

from mlxchat.chat import switching
from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.results import LoadProgress
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.cli.main import cli
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import CheckpointError, ModelNotFoundError


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two models of different weights and templates."""
    return [
        str(make_tiny_folder(tmp_path / name, seed=seed, template=template))
        for seed, (name, template) in enumerate((("one", CHATML), ("two", REASONING)))
    ]


@pytest.fixture(params=[True, False])
def fits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether two models are in memory at once while one is exchanged for the other."""
    fits: bool = request.param
    monkeypatch.setattr(switching, "fits_beside", lambda folder: fits)
    return fits


@pytest.fixture
def session(folders: list[str], tmp_path: Path) -> Iterator[Session]:
    options = ChatOptions(sampling=SamplingSettings(temperature=0.0), max_tokens=8, verify=True)
    session = Session(folders[0], options, Recorder("chat", tmp_path / "history.db"))
    yield session
    session.close()


def check_verified(session: Session, text: str) -> None:
    result = session.send(text).result(30)
    assert result.verify is not None
    assert result.verify.holds
    assert session.info is not None
    assert result.model == session.info.model


def test_the_conversation_goes_on(session: Session, folders: list[str], tmp_path: Path) -> None:
    """The text stays, the ids of the other model go, and the history knows who answered."""
    first = session.send("hello").result(30)
    info = session.switch_model(folders[1]).result(30)
    assert info is session.info
    assert info.model == folders[1]
    answer = session.conversation.nodes[2]
    assert (answer.message.content, answer.message.content_ids) == (first.text, None)
    check_verified(session, "and you?")
    session.switch_model(folders[0]).result(30)
    check_verified(session, "back")
    with closing(History(tmp_path / "history.db")) as history:
        turns = history.record(1).turns
    assert [turn.model for turn in turns] == [folders[0], folders[1], folders[0]]
    assert len({turn.fingerprint for turn in turns}) == 2


def test_before_anything_is_loaded(session: Session, folders: list[str]) -> None:
    """The first model is then never loaded."""
    session.switch_model(folders[1]).result(30)
    check_verified(session, "hello")


def test_a_load_that_fails(session: Session, folders: list[str], fits: bool) -> None:
    """No such model, or a broken one: the old one answers, its cache too where it stayed."""
    session.send("hello").result(30)
    with pytest.raises(ModelNotFoundError):
        session.switch_model("./nowhere").result(30)
    assert session.send("more").result(30).usage.cached_tokens > 0
    Path(folders[1], "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError):
        session.switch_model(folders[1]).result(30)
    after = session.send("go on").result(30)
    assert after.model == folders[0]
    assert (after.usage.cached_tokens > 0) or not fits
    assert session.conversation.nodes[2].message.content_ids is not None


def test_ctrl_c_during_the_load(session: Session, folders: list[str], fits: bool) -> None:
    """The old model stays, or comes back."""
    session.send("hello").result(30)
    job = session.switch_model(folders[1])
    for event in job:
        if isinstance(event, LoadProgress):
            job.cancel()
    with pytest.raises(JobCancelledError):
        job.result(30)
    check_verified(session, "go on")
    assert session.model == folders[0]


def test_the_old_model_leaves_memory(
    session: Session, folders: list[str], monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """Before the new one is loaded where both do not fit, else after it."""
    session.send("hello").result(30)
    session.wait_until_idle()
    assert session._runner is not None
    old = weakref.ref(session._runner.loaded.model)
    is_there = []
    load = switching.load_folder
    monkeypatch.setattr(
        switching,
        "load_folder",
        lambda *arguments: (is_there.append(old() is not None), load(*arguments))[1],
    )
    session.switch_model(folders[1]).result(30)
    gc.collect()
    assert is_there == [fits]
    assert old() is None


def test_the_same_model_again(session: Session, folders: list[str]) -> None:
    """Nothing is loaded twice."""
    session.send("hello").result(30)
    info = session.info
    assert session.switch_model(folders[0]).result(30) is info


def test_estimates(folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a folder takes is its weights, as many times as they grow; a giant fits nowhere."""
    folder = switching.find_model(folders[0], lambda event: None, lambda: None)
    size = Path(folders[0], "model.safetensors").stat().st_size
    assert switching.estimate_bytes(folder) >= size
    assert switching.fits_beside(folder)
    monkeypatch.setattr(switching, "available_memory_bytes", lambda: size // 2)
    assert not switching.fits_beside(folder)


def test_in_a_pipe(folders: list[str]) -> None:
    """/model works between lines; a name that is none is an error of its line alone."""
    lines = f"hello\n/model {folders[1]}\nmore\n/model ./nowhere\n/model\nlast\n"
    arguments = ["chat", "-m", folders[0], "--json", "--max-tokens", "4"]
    result = CliRunner().invoke(cli, arguments, input=lines)
    models = [json.loads(line)["model"] for line in result.stdout.splitlines()]
    assert models == [folders[0], folders[1], folders[1]]
    assert result.exit_code == 1
    assert f"From here {folders[1]} answers" in result.stderr
    assert "there is no folder ./nowhere" in result.stderr
    assert "1 024 tokens" in result.stderr
