"""`mlxchat models`, /model and /show: what is on this disk, without loading or asking the Hub."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest
from architectures import ARCHITECTURES
from command_line import CommandLine
from fake_hub import COMMIT, put_in_cache
from tiny import make_tiny_folder
from tiny_bert import write_encoder

from mlxchat.cli.completion import find_models
from mlxchat.model.families import FAMILIES
from mlxchat.model.library import find_runner, is_known_to_mlx_lm
from mlxchat.model.quantization import read_quantization

run = CommandLine()
CARD = "---\nlanguage: en\nlicense: apache-2.0\nbase_model: owner/big\n---\n# Tiny\nlicense: none\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was used")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "hub"


def files_of(folder: Path, **more: bytes) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    return found | {name.replace("__", "."): data for name, data in more.items()}


def listed() -> dict[str, dict[str, Any]]:
    found = json.loads(run("models", "list", "--json"))
    return {model["name"]: model for model in found["models"]}


def test_the_list(cache: Path, tmp_path: Path) -> None:
    """The built-in model, the Hub's, and folders that were used; when, and who runs them."""
    tiny = make_tiny_folder(tmp_path / "tiny")
    put_in_cache(cache, "owner/tiny", files_of(tiny))
    config = json.loads((tiny / "config.json").read_text())
    zoo = json.dumps({**config, "model_type": "mamba2"}).encode()
    put_in_cache(cache, "owner/zoo", files_of(tiny) | {"config.json": zoo})
    alien = json.dumps({**config, "model_type": "whatever"}).encode()
    put_in_cache(cache, "owner/alien", files_of(tiny) | {"config.json": alien})
    half = {name: data for name, data in files_of(tiny).items() if "safetensors" not in name}
    put_in_cache(cache, "owner/half", half)
    write_encoder(tmp_path / "bert")
    put_in_cache(cache, "owner/bert", files_of(tmp_path / "bert"))
    run("generate", "hi", "-m", tiny, "--max-tokens", "1")
    run("generate", "hi", "-m", "owner/tiny", "--max-tokens", "1")
    found = listed()
    names = [f"owner/{name}" for name in ("alien", "bert", "half", "tiny", "zoo")]
    assert list(found) == ["builtin", *names, str(tiny)]
    runs = {name: model["runs_in"] for name, model in found.items()}
    assert list(runs.values()) == ["mlxchat", None, "embed", None, "mlxchat", "mlx-lm", "mlxchat"]
    tiny_row = found["owner/tiny"]
    assert (tiny_row["architecture"], tiny_row["weights"]) == ("llama", "float32")
    assert (tiny_row["context"], tiny_row["commit"]) == (1024, COMMIT)
    assert tiny_row["num_bytes"] == sum(file.stat().st_size for file in tiny.iterdir())
    assert tiny_row["used_s_ago"] is not None
    assert found["builtin"]["used_s_ago"] is None
    assert (found["builtin"]["weights"], found["builtin"]["context"]) == ("8 bit", 2048)
    assert "knows the architecture" in found["owner/alien"]["problem"]
    assert "safetensors" in found["owner/half"]["problem"]
    table = run("models")
    assert table.splitlines()[0].split()[:3] == ["model", "size", "weights"]
    assert "builtin *" in table
    assert "0 s ago" in table or "1 s ago" in table


def test_other_revisions(cache: Path, tmp_path: Path) -> None:
    """Where only another revision is whole, the name says which."""
    files = files_of(make_tiny_folder(tmp_path / "tiny"))
    put_in_cache(cache, "owner/old", files, ref=None)
    (name,) = [name for name in listed() if name != "builtin"]
    assert name == f"owner/old@{COMMIT}"
    shown = json.loads(run("models", "show", name, "--json"))
    assert (shown["name"], shown["commit"]) == (name, COMMIT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read(cache: Path, tmp_path: Path) -> None:
    """It is listed with the reason; the others are as ever."""
    snapshot = put_in_cache(cache, "owner/tiny", files_of(make_tiny_folder(tmp_path / "tiny")))
    snapshot.chmod(0)
    try:
        assert "denied" in listed()["owner/tiny"]["problem"]
    finally:
        snapshot.chmod(0o700)


def test_broken_files(cache: Path, tmp_path: Path) -> None:
    """What is wrong stands in the place of what they hold."""
    files = files_of(make_tiny_folder(tmp_path / "tiny"))
    put_in_cache(cache, "owner/one", files | {"config.json": b"[]"})
    put_in_cache(cache, "owner/two", files | {"model.safetensors": b"no weights"})
    found = listed()
    assert "holds no JSON object" in found["owner/one"]["problem"]
    assert "model.safetensors" in found["owner/two"]["problem"]
    assert "(" in run("models").splitlines()[-1]


def test_what_one_brings_along(cache: Path, tmp_path: Path) -> None:
    """Licence, origin, templates and sampling; each in full where it is asked for."""
    tiny = make_tiny_folder(tmp_path / "tiny", template="{{ messages }} \x1b[31m")
    (tiny / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    more = {"README.md": CARD.encode(), "LICENSE": b"Do what you like.\n"}
    put_in_cache(cache, "owner/tiny", files_of(tiny) | more)
    text = run("models", "show", "owner/tiny")
    rows = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert (rows["licence"], rows["templates"]) == ("apache-2.0", "default")
    assert rows["made"].split() == ["from", "owner/big"]
    assert rows["sampling"] == "temperature 0.6"
    data = json.loads(run("models", "show", "owner/tiny", "--json"))
    assert (data["license"], data["base_model"]) == ("apache-2.0", "owner/big")
    assert run("models", "show", "owner/tiny", "--license") == "Do what you like.\n"
    template = run("models", "show", "owner/tiny", "--template")
    assert template.startswith("{{ messages }}")
    assert "\x1b" not in template
    bare = make_tiny_folder(tmp_path / "bare", template=None)
    run("models", "show", bare, "--license", code=1)
    assert "has no licence among its files" in run.stderr
    run("models", "show", bare, "--template", code=1)
    assert "has no chat template" in run.stderr
    assert run("models", "show", "--license") == "mit\n"
    assert "<|im_start|>" in run("models", "show", "--template")


def test_what_is_not_here() -> None:
    """It is not fetched; the error says where to look."""
    run("models", "show", "owner/none", code=1)
    assert run.stderr == "Error: owner/none is not on this disk; mlxchat models lists what is\n"
    run("models", "show", "./none", code=1)
    assert "there is no folder ./none" in run.stderr


def test_in_the_chat(cache: Path, tmp_path: Path) -> None:
    """/model lists what there is, /show tells of the model that answers."""
    tiny = make_tiny_folder(tmp_path / "tiny")
    put_in_cache(cache, "owner/tiny", files_of(tiny, README__md=CARD.encode()))
    lines = "/model\n/show\n/show template\n/show licence\n/show parameters\n/show x\n"
    run("chat", "-m", "owner/tiny", text=lines, code=1)
    said = run.stderr
    assert "owner/tiny *" in said
    assert "8 bit" in said
    assert "made from" in said
    assert "<|im_start|>" in said
    assert "\napache-2.0\n" in said
    assert "repetition-penalty" in said
    assert "/show x is not allowed; write /show, /show license or /show template" in said


def test_tab(cache: Path, tmp_path: Path) -> None:
    """Names come with size, weights and architecture, in the chat as in the shell."""
    put_in_cache(cache, "owner/tiny", files_of(make_tiny_folder(tmp_path / "tiny")))
    found = dict(find_models(None, ""))
    assert found["owner/tiny"].endswith("KiB, float32, llama")
    assert "qwen3" in found["builtin"]
    assert list(dict(find_models(None, "own"))) == ["owner/tiny"]


def test_who_runs_it_is_what_happens() -> None:
    """Native families, and every architecture of mlx-lm under any of its names."""
    for name in FAMILIES:
        config = {"model_type": name}
        assert find_runner(config, read_quantization(config)) == "mlxchat"
    assert all(is_known_to_mlx_lm(ARCHITECTURES[n].config["model_type"]) for n in ARCHITECTURES)
    assert all(map(is_known_to_mlx_lm, mlx_lm.utils.MODEL_REMAPPING))
    assert not any(map(is_known_to_mlx_lm, ("whisper_x", "../utils", "", "utils")))


def test_neither_mlx_nor_mlx_lm_is_imported() -> None:
    """The list is there at once."""
    code = (
        "import contextlib, sys\nfrom mlxchat.cli.main import cli\n"
        "with contextlib.suppress(SystemExit):\n    cli(['models', 'list'])\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules}"
        " & {'mlx', 'mlx_lm', 'transformers', 'huggingface_hub', 'rich', 'numpy', 'jinja2'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
