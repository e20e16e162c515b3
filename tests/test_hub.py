"""From a name to a folder: local folders, the Hub cache without a network, downloads that fail."""

import errno
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bad_folders import BAD_FOLDERS, make_good_folder, split_into_shards
from fake_hub import COMMIT, FakeHub, put_in_cache

from mlxchat.errors import HubError, MlxchatError, ModelNotFoundError
from mlxchat.model import hub
from mlxchat.model.hub import ModelFolder, find_missing, list_cached_repos, resolve_model
from mlxchat.model.hub_download import _Bar, _Meter, _StoppedError, explain_failure, is_wanted

REPO = "owner/tiny"
OTHER_COMMIT = "f" * 40


@pytest.fixture(autouse=True)
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives each test an empty Hub cache and a clean environment."""
    for name in (
        *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
        *("HF_TOKEN", "HF_ENDPOINT"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any use of a socket, and of the Hub client, fail."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small sharded model, by name."""
    folder = split_into_shards(make_good_folder(tmp_path_factory.mktemp("model")), 2)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class TestLocal:
    @pytest.mark.parametrize("form", ["absolute", "dotted", "bare", "home", "trailing"])
    def test_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, no_network: None
    ) -> None:
        """A folder is found in every way of writing it, before the Hub is thought of."""
        (tmp_path / "some" / "model").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        name = {
            "absolute": str(tmp_path / "some" / "model"),
            "dotted": "./some/model",
            "bare": "some/model",
            "home": "~/some/model",
            "trailing": "some/model/",
        }[form]
        found = resolve_model(name)
        assert found == ModelFolder((tmp_path / "some" / "model").resolve(), name)

    @pytest.mark.parametrize("name", ["/no/such", "./no", "../no", "~/no/such", "no/such/", "~x"])
    def test_missing_folder(self, name: str, no_network: None) -> None:
        """What can only be a folder is never looked up on the Hub."""
        with pytest.raises(ModelNotFoundError, match=r"there is no folder .*; name a"):
            resolve_model(name)

    def test_file_instead_of_folder(self, tmp_path: Path, no_network: None) -> None:
        """A file is refused with what to name instead."""
        (tmp_path / "model.gguf").write_bytes(b"x")
        with pytest.raises(ModelNotFoundError, match=r"model\.gguf is a file; name the folder"):
            resolve_model(str(tmp_path / "model.gguf"))

    @pytest.mark.parametrize(
        "bad", [b for b in BAD_FOLDERS if b.part == "hub"], ids=lambda b: b.name
    )
    def test_bad_folder(self, bad: Any, tmp_path: Path, no_network: None) -> None:
        """The damaged folders that this module must notice give their line."""
        with pytest.raises(MlxchatError, match=bad.fragment):
            resolve_model(str(bad.make(tmp_path / "m")))

    @pytest.mark.parametrize("name", [None, "builtin"])
    def test_builtin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, no_network: None
    ) -> None:
        """Without a name the embedded model is meant; an incomplete installation is told."""
        monkeypatch.setattr(hub, "__file__", str(tmp_path / "hub.py"))
        with pytest.raises(ModelNotFoundError, match="built-in model is missing"):
            resolve_model(name)
        make_good_folder(tmp_path / "builtin")
        assert resolve_model(name) == ModelFolder(tmp_path / "builtin", "builtin", None, True)

    @pytest.mark.parametrize(
        "name",
        [
            *("", "tiny", "a/b/c", "owner/", "own er/x", "owner/x.git", "-owner/x", "owner/x-"),
            *("owner/a--b", "owner/a..b", "owner/tiny@", "owner/tiny@../x", "owner/tiny@a b"),
            *("https://hub.invalid/owner/tiny", "владелец/модель", "a/" + "b" * 100, "a\0b/c"),
            *("owner/x\x1b[31m", "x" * 10_000),
        ],
    )
    def test_malformed_name(self, name: str, no_network: None) -> None:
        """What is neither folder nor Hub id is told in one printable line, without the Hub."""
        with pytest.raises(ModelNotFoundError) as caught:
            resolve_model(name)
        message = str(caught.value)
        assert "; name a model folder or a Hub id like owner/name" in message
        assert message.isprintable()
        assert len(message) < 300


class TestCache:
    @pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
    def test_cached_model_needs_no_network(
        self, hub_home: Path, model_files: dict[str, bytes], no_network: None, revision: str
    ) -> None:
        """A complete snapshot is used as it is: no socket, and not even the Hub client."""
        snapshot = put_in_cache(hub_home, REPO, model_files)
        found = resolve_model(REPO + revision)
        assert found == ModelFolder(snapshot, REPO + revision, COMMIT)

    def test_start_in_a_fresh_process(self, hub_home: Path, model_files: dict[str, bytes]) -> None:
        """The same holds for a whole process in which every socket raises."""
        put_in_cache(hub_home, REPO, model_files)
        code = (
            "import sys, socket\n"
            "def refuse(*a, **k): raise SystemExit('socket used')\n"
            "sys.addaudithook(lambda e, a: refuse() if e.startswith('socket.') else None)\n"
            "from mlxchat.model.hub import resolve_model\n"
            f"print(resolve_model({REPO!r}).commit, 'huggingface_hub' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout.split() == [COMMIT, "False"], done.stderr

    @pytest.mark.parametrize(
        ("environment", "place"),
        [
            ({"HF_HUB_CACHE": "{}/a"}, "a"),
            ({"HUGGINGFACE_HUB_CACHE": "{}/b"}, "b"),
            ({"HF_HOME": "{}/c"}, "c/hub"),
            ({"XDG_CACHE_HOME": "{}/d"}, "d/huggingface/hub"),
            ({"HOME": "{}/e"}, "e/.cache/huggingface/hub"),
            ({"HOME": "{}", "HF_HOME": "~/f"}, "f/hub"),
            ({"XX": "{}/g", "HF_HUB_CACHE": "$XX/h"}, "g/h"),
            ({"HF_HUB_CACHE": "{}/a", "HF_HOME": "{}/c"}, "a"),
        ],
    )
    def test_place_of_the_cache(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        environment: dict[str, str],
        place: str,
    ) -> None:
        """The cache is where huggingface_hub itself finds it."""
        monkeypatch.delenv("HF_HOME")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        for key, value in environment.items():
            monkeypatch.setenv(key, value.format(tmp_path))
        assert hub.hub_cache_dir() == tmp_path / place
        code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert Path(done.stdout.strip()) == tmp_path / place

    @pytest.mark.parametrize(
        ("lost", "problem"),
        [
            ("config.json", "config.json is missing"),
            ("model-00002-of-00002.safetensors", "lacks model-00002-of-00002"),
            ("tokenizer.json", "the tokenizer is missing"),
        ],
    )
    @pytest.mark.parametrize("how", ["no link", "no blob"])
    def test_incomplete_snapshot_offline(
        self,
        hub_home: Path,
        model_files: dict[str, bytes],
        monkeypatch: pytest.MonkeyPatch,
        no_network: None,
        lost: str,
        problem: str,
        how: str,
    ) -> None:
        """A snapshot without one of its parts is not started; offline the lack is named."""
        snapshot = put_in_cache(hub_home, REPO, model_files)
        ((snapshot / lost).resolve() if how == "no blob" else snapshot / lost).unlink()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(HubError) as caught:
            resolve_model(REPO)
        assert problem in str(caught.value)
        assert "offline mode" in str(caught.value)

    @pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
    def test_nothing_cached_offline(
        self, monkeypatch: pytest.MonkeyPatch, no_network: None, switch: str
    ) -> None:
        """Offline with nothing cached ends at once, in one line with what to do."""
        monkeypatch.setenv(switch, "yes")
        with pytest.raises(HubError, match=r"offline mode, .* is empty; unset HF_HUB_OFFLINE"):
            resolve_model(REPO)

    def test_older_snapshot_offline(
        self,
        hub_home: Path,
        model_files: dict[str, bytes],
        monkeypatch: pytest.MonkeyPatch,
        no_network: None,
    ) -> None:
        """Offline, a complete older snapshot serves where the newest was fetched only in part."""
        old = put_in_cache(hub_home, REPO, model_files)
        put_in_cache(hub_home, REPO, {"config.json": b"{}"}, commit=OTHER_COMMIT)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert resolve_model(REPO) == ModelFolder(old, REPO, COMMIT)
        with pytest.raises(HubError):
            resolve_model(f"{REPO}@{OTHER_COMMIT}")

    def test_similar_names_are_offered(
        self, hub_home: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
    ) -> None:
        """A cached model with a close name is offered, also without its owner."""
        put_in_cache(hub_home, "mlx-community/Qwen3-0.6B-4bit", {})
        assert list_cached_repos() == ["mlx-community/Qwen3-0.6B-4bit"]
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("mlx-community/qwen3-0.6b-4bt", "Qwen3-0.6B-4bit"):
            with pytest.raises(MlxchatError, match=r"\(cached: mlx-community/Qwen3-0\.6B-4bit\)"):
                resolve_model(name)

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../..", b"main"])
    def test_broken_ref(
        self, hub_home: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, content: bytes
    ) -> None:
        """A ref that holds no commit is as good as none, and leads nowhere."""
        snapshot = put_in_cache(hub_home, REPO, {})
        (snapshot.parents[1] / "refs" / "main").write_bytes(content)
        assert hub.find_snapshot(REPO, None) is None

    def test_complete_folder(self, tmp_path: Path) -> None:
        """A folder with config, weights and tokenizer lacks nothing; SentencePiece counts too."""
        folder = make_good_folder(tmp_path / "m")
        assert find_missing(folder) is None
        (folder / "tokenizer.json").rename(folder / "tokenizer.model")
        assert find_missing(folder) is None


class TestWanted:
    @pytest.mark.parametrize(
        "name",
        [
            *("model.safetensors", "model-00001-of-00002.safetensors", "config.json"),
            *("model.safetensors.index.json", "tokenizer.model", "chat_template.jinja"),
            *("merges.txt", "qwen.tiktoken", "vocab.txt", "modules.json", "1_Pooling/config.json"),
            *("README.md", "LICENSE", "LICENSE.txt"),
        ],
    )
    def test_needed_files(self, name: str) -> None:
        """Weights, configs, templates, tokenizers, card and licence are fetched."""
        assert is_wanted(name)

    @pytest.mark.parametrize(
        "name",
        [
            *("pytorch_model.bin", "model.pt", "modeling_x.py", "consolidated.00.pth", "notes.md"),
            *("onnx/config.json", "original/model.safetensors", "model.gguf", "a.pkl"),
            *("2_Dense/model.safetensors", "1_Pooling/onnx/config.json"),
        ],
    )
    def test_other_files(self, name: str) -> None:
        """Pickles, code and other formats of the model are never fetched."""
        assert not is_wanted(name)


def hub_errors() -> dict[str, tuple[Callable[[], BaseException], type[MlxchatError], str]]:
    """What the client can raise, by name, with our exception and a fragment of its line."""
    from huggingface_hub import errors

    httpx = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])

    def answer(kind: type[Exception], status: int) -> Exception:
        request = httpx.Request("GET", "http://hub.invalid")
        return kind("x", response=httpx.Response(status, request=request))  # type: ignore[call-arg]

    def caused(error: BaseException, cause: BaseException) -> BaseException:
        error.__cause__ = cause
        return error

    http = errors.HfHubHTTPError
    lost = errors.LocalEntryNotFoundError("lost")
    return {
        "gated": (lambda: answer(errors.GatedRepoError, 403), HubError, "accept its terms"),
        "missing": (
            lambda: answer(errors.RepositoryNotFoundError, 401),
            ModelNotFoundError,
            "check the spelling",
        ),
        "revision": (
            lambda: answer(errors.RevisionNotFoundError, 404),
            ModelNotFoundError,
            "no revision v9",
        ),
        "disabled": (lambda: answer(errors.DisabledRepoError, 403), HubError, "disabled"),
        "malformed": (lambda: errors.HFValidationError("x"), ModelNotFoundError, "not a Hub id"),
        "forbidden": (lambda: answer(http, 403), HubError, "hf auth login"),
        "slow down": (lambda: answer(http, 429), HubError, "slow down"),
        "trouble": (lambda: answer(http, 503), HubError, "try again later"),
        "other answer": (lambda: answer(http, 410), HubError, "status 410"),
        "offline": (lambda: errors.OfflineModeIsEnabled("x"), HubError, "unset HF_HUB_OFFLINE"),
        "not cached": (lambda: lost, HubError, "check the connection"),
        "trouble behind": (lambda: caused(lost, answer(http, 500)), HubError, "status 500"),
        "incomplete": (
            lambda: type("IncompleteSnapshotError", (FileNotFoundError,), {})("x"),
            HubError,
            "check the connection",
        ),
        "no route": (lambda: httpx.ConnectError("x"), HubError, "cannot reach the Hub"),
        "timeout": (lambda: httpx.ReadTimeout("x"), HubError, "cannot reach the Hub"),
        "proxy": (lambda: httpx.ProxyError("x"), HubError, "proxy"),
        "reset": (lambda: ConnectionResetError(104, "x"), HubError, "cannot reach the Hub"),
        "disk full": (lambda: OSError(errno.ENOSPC, "x"), HubError, "full; free some space"),
        "quota": (lambda: OSError(errno.EDQUOT, "x", "f"), HubError, "full; free some space"),
        "xet disk": (lambda: RuntimeError("No space left on device"), HubError, "full"),
        "read-only": (lambda: OSError(errno.EROFS, "x", "f"), HubError, "HF_HOME"),
        "forbidden place": (lambda: PermissionError(errno.EACCES, "x", "f"), HubError, "HF_HOME"),
        "no client": (lambda: ModuleNotFoundError("x"), HubError, "install mlxchat again"),
        "damaged": (lambda: OSError("size\x1b[31m\nline 2"), HubError, r"size\x1b[31m); try"),
        "unknown": (lambda: KeyError("x"), HubError, "KeyError"),
    }


@pytest.mark.parametrize("name", hub_errors())
@pytest.mark.parametrize("where", ["model_info", "snapshot_download"])
def test_failed_download(
    monkeypatch: pytest.MonkeyPatch, hub_home: Path, name: str, where: str
) -> None:
    """Each exception of the client becomes one line that says what to try; nothing is written."""
    import huggingface_hub

    make, kind, fragment = hub_errors()[name]

    def fail(*_: object, **__: object) -> None:
        raise make()

    siblings = [SimpleNamespace(rfilename="model.safetensors", size=10)]
    info = SimpleNamespace(sha=COMMIT, siblings=siblings)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    target = huggingface_hub.HfApi if where == "model_info" else huggingface_hub
    monkeypatch.setattr(target, where, fail)
    with pytest.raises(kind) as caught:
        resolve_model(f"{REPO}@v9")
    message = str(caught.value)
    assert fragment in message
    assert ";" in message
    assert message.isprintable()
    assert not hub_home.exists()


def test_stopped_bars_end_the_clients_threads() -> None:
    """After a cancel every sign of progress raises, in whatever thread of Python it comes."""
    meter = _Meter()
    kind = type("_TestBar", (_Bar,), {"meter": meter})
    bar = kind(total=10, initial=3, unit="B")
    files = kind([1, 2])
    bar.update(4)
    assert list(files) == [1, 2]
    meter.total = 10
    assert meter.state() == (7, 10)
    meter.stopped = True
    for act in (bar.update, bar.refresh, lambda: list(files)):
        with pytest.raises(_StoppedError):
            act()


def test_our_own_errors_pass_unchanged(tmp_path: Path) -> None:
    """A line that is already ours is not wrapped again."""
    error = HubError("x; y")
    assert explain_failure(error, REPO, None, tmp_path) is error


@pytest.mark.parametrize(
    ("files", "fragment"),
    [
        (["config.json", "pytorch_model.bin"], "pickled"),
        (["x-q4.gguf"], "GGUF"),
        (["adapter.safetensors"], "no model*.safetensors"),
        ([], "no model*.safetensors"),
    ],
)
def test_repository_without_weights(
    monkeypatch: pytest.MonkeyPatch, files: list[str], fragment: str
) -> None:
    """A repository without usable weights is refused before anything is downloaded."""
    import huggingface_hub

    info = SimpleNamespace(
        sha=COMMIT, siblings=[SimpleNamespace(rfilename=f, size=1) for f in files]
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("called")
    )
    with pytest.raises(HubError) as caught:
        resolve_model(REPO)
    assert fragment in str(caught.value)


def test_disk_too_small(monkeypatch: pytest.MonkeyPatch, hub_home: Path) -> None:
    """A model that does not fit on the disk is refused before anything is downloaded."""
    import huggingface_hub

    siblings = [SimpleNamespace(rfilename="model.safetensors", size=5 << 30)]
    info = SimpleNamespace(sha=COMMIT, siblings=siblings)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    usage = SimpleNamespace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match=r"needs 5\.0 GiB, .* has 1\.0 GiB free; free some"):
        resolve_model(REPO)
    assert not hub_home.exists()


def test_cached_copy_serves_when_the_hub_is_silent(
    monkeypatch: pytest.MonkeyPatch, hub_home: Path, model_files: dict[str, bytes]
) -> None:
    """An older complete snapshot is used when the newer one cannot be completed."""
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    old = put_in_cache(hub_home, REPO, model_files)
    put_in_cache(hub_home, REPO, {"config.json": b"{}"}, commit=OTHER_COMMIT)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    assert resolve_model(REPO) == ModelFolder(old, REPO, COMMIT)


def test_cancel_while_the_hub_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel comes through although the client still waits for its first answer."""
    import huggingface_hub

    monkeypatch.setattr("mlxchat.model.hub_download._STOP_S", 0.05)
    silence = threading.Event()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: silence.wait(30))

    def check_cancel() -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        resolve_model(REPO, check_cancel=check_cancel)
    silence.set()
    assert time.monotonic() - started < 5


CLIENT = """
import json, sys, time
from mlxchat.errors import MlxchatError
from mlxchat.model.hub import resolve_model
progress, threads, started = [], set(), time.monotonic()
def check_cancel():
    if sys.argv[2] == "cancel" and progress and progress[-1][0] > 2 << 20:
        raise KeyboardInterrupt
    if sys.argv[2] == "cancel late" and progress and progress[-1][0] > 0:
        time.sleep(0.5)
        raise KeyboardInterrupt
def on_progress(done, total):
    import threading
    progress.append((done, total)); threads.add(threading.current_thread().name)
try:
    model = resolve_model(sys.argv[1], on_progress=on_progress, check_cancel=check_cancel)
    result = str(model.path)
except (MlxchatError, KeyboardInterrupt) as error:
    result = f"{type(error).__name__}: {error}"
print(json.dumps({"result": result, "progress": progress, "threads": sorted(threads)}))
"""


def run_client(fake: FakeHub, home: Path, name: str = REPO, mode: str = "") -> dict[str, Any]:
    """Runs the real Hub client against the fake Hub in a process of its own."""
    environment = {**os.environ, "HF_ENDPOINT": fake.url, "HF_HOME": str(home), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, name, mode],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class TestRealClient:
    """The installed huggingface_hub against a Hub on the loopback."""

    @pytest.fixture
    def fake(self, model_files: dict[str, bytes]) -> Iterator[FakeHub]:
        extra = {"pytorch_model.bin": b"x", "code.py": b"x", "onnx/config.json": b"{}"}
        with FakeHub(REPO, {**model_files, **extra}).serving() as fake:
            yield fake

    def test_download_then_start_without_hub(
        self, fake: FakeHub, tmp_path: Path, model_files: dict[str, bytes]
    ) -> None:
        """Exactly the wanted files arrive, with progress to the end; the next start asks nobody."""
        first = run_client(fake, tmp_path / "home")
        snapshot = Path(first["result"])
        assert snapshot.name == COMMIT
        assert {f.name: f.read_bytes() for f in snapshot.iterdir()} == model_files
        assert sorted(fake.fetched) == sorted(model_files)
        total = sum(map(len, model_files.values()))
        assert first["progress"][-1] == [total, total]
        assert first["progress"] == sorted(first["progress"])
        assert first["threads"] == ["MainThread"]
        fake.status = 500
        assert run_client(fake, tmp_path / "home")["result"] == str(snapshot)

    def test_cancel_leaves_nothing_half_written(self, fake: FakeHub, tmp_path: Path) -> None:
        """A cancelled download leaves whole files only, and can be taken up again."""
        big = bytes(8 << 20)
        fake.files["model-00001-of-00002.safetensors"] = big
        fake.chunk_delay_s = 0.02
        result = run_client(fake, tmp_path / "home", mode="cancel")
        assert result["result"].startswith("KeyboardInterrupt")
        blobs = list((tmp_path / "home" / "hub").glob("models--*/blobs/*"))
        whole = {name for name, d in fake.files.items() if d in [b.read_bytes() for b in blobs]}
        assert len(whole) == len(blobs)
        assert "model-00001-of-00002.safetensors" not in whole
        fake.chunk_delay_s = 0
        fake.fetched.clear()
        again = run_client(fake, tmp_path / "home")
        assert Path(again["result"]).name == COMMIT
        assert "model-00001-of-00002.safetensors" in fake.fetched
        assert whole.isdisjoint(fake.fetched)

    def test_cancel_on_a_stalled_line(self, fake: FakeHub, tmp_path: Path) -> None:
        """A cancelled download that hears nothing more does not hold up the end of the process."""
        fake.files["model-00001-of-00002.safetensors"] = bytes(8 << 20)
        fake.chunk_delay_s = 30
        started = time.monotonic()
        result = run_client(fake, tmp_path / "home", mode="cancel late")
        assert result["result"].startswith("KeyboardInterrupt")
        assert time.monotonic() - started < 8  # the client's own timeout is 10 s

    def test_unknown_model_and_revision(self, fake: FakeHub, tmp_path: Path) -> None:
        """The Hub's own answers become our lines."""
        missing = run_client(fake, tmp_path / "home", "owner/nope")["result"]
        assert missing.startswith("ModelNotFoundError: the Hub has no public model owner/nope")
        revision = run_client(fake, tmp_path / "home", f"{REPO}@v9")["result"]
        assert revision.startswith("ModelNotFoundError: owner/tiny has no revision v9")

    def test_gated_model(self, fake: FakeHub, tmp_path: Path) -> None:
        """A gated model's line says how to get in."""
        fake.status, fake.error_code = 403, "GatedRepo"
        result = run_client(fake, tmp_path / "home")["result"]
        assert "accept its terms" in result
        assert "hf auth login" in result

    def test_nobody_listens(self, fake: FakeHub, tmp_path: Path) -> None:
        """Without a connection the line says what to check."""
        fake.url = "http://127.0.0.1:9"
        result = run_client(fake, tmp_path / "home")["result"]
        assert result.startswith("HubUnreachableError: cannot reach the Hub")
