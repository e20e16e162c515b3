"""The models on this disk: what each is and who would run it, without loading or fetching any.

Reads configs, headers and model cards; MLX and mlx-lm stay out, and the Hub is never asked.
"""

import contextlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxchat.errors import MlxchatError, ModelNotFoundError
from mlxchat.model import hub
from mlxchat.model.checkpoint import find_context, find_weight_files, read_config
from mlxchat.model.families import is_encoder, is_native, make_model_config
from mlxchat.model.quantization import QuantizationPlan, read_quantization
from mlxchat.model.safetensors_file import read_header, shown

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "fp8"}
_CARD_MAX_CHARS = 1 << 20
# `license: mit` of the block between two `---` that begins a model card.
_CARD_BLOCK = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_CARD_LINE = re.compile(r"^([\w-]+):[ \t]*(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this disk.

    Attributes:
        name: As `--model` takes it.
        path: Its folder.
        commit: Of a snapshot in the Hub cache, else None.
        num_bytes: Of all files in the folder.
        architecture: The `model_type` of its config.
        weights: How they are stored, in words.
        runs_in: `mlxchat` or `mlx-lm`; `embed` gives vectors only; nothing runs what is empty.
        context: The longest that it was made for; None where it does not say.
        problem: Why it cannot be used; empty where it can.
    """

    name: str
    path: Path
    commit: str | None
    num_bytes: int
    architecture: str = ""
    weights: str = ""
    runs_in: str = ""
    context: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What the model card and the licence file in a model's folder say; empty where nothing."""

    license: str = ""
    base_model: str = ""
    license_text: str = ""


def list_models(folders: Iterable[str] = ()) -> list[LocalModel]:
    """Lists the built-in model, those of the Hub cache by name, and other folders.

    Args:
        folders: Paths that may hold models; those that do not are left out.
    """
    found = [find_model(None)]
    for repo in hub.list_cached_repos():
        found += _describe_repo(repo)
    paths = {Path(folder) for folder in folders if Path(folder, "config.json").is_file()}
    return found + [describe(str(path), path) for path in sorted(paths)]


def find_model(name: str | None, commit: str | None = None) -> LocalModel:
    """Describes the model of a name; nothing is fetched.

    Args:
        name: A folder, a Hub id, or None for the built-in model.
        commit: Of the Hub snapshot; None is that of the name's revision.

    Raises:
        ModelNotFoundError: It is not on this disk.
    """
    folder = hub.find_folder(name, commit)
    if folder is None:
        raise ModelNotFoundError(
            f"{shown(str(name))} is not on this disk; mlxchat models lists what is"
        )
    return describe(folder.name, folder.path)


def describe(name: str, path: Path) -> LocalModel:
    """Describes a model folder by its files."""
    commit = path.name if path.parent.name == "snapshots" else None
    num_bytes, what = 0, dict[str, Any]()
    try:
        num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        config = read_config(path)
        what["architecture"] = shown(str(config.get("model_type") or "unknown"), 40)
        what["context"] = find_context(config)
        if (missing := hub.find_missing(path)) is not None:
            what["problem"] = missing
        plan = read_quantization(config)
        what["weights"] = describe_weights(plan, path)
        what["runs_in"] = find_runner(config, plan)
        if what["runs_in"] == "mlxchat":
            what["context"] = make_model_config(config).max_exact_context
        elif not what["runs_in"]:
            what.setdefault("problem", "neither mlxchat nor mlx-lm knows the architecture")
    except MlxchatError as error:
        what.setdefault("problem", str(error).partition(";")[0])
    except OSError as error:
        what.setdefault("problem", error.strerror or "it cannot be read")
    return LocalModel(name, path, commit, num_bytes, **what)


def _describe_repo(repo: str) -> list[LocalModel]:
    """Describes the snapshot that the repository's name means, or else the newest whole one."""
    snapshot = hub.find_snapshot(repo, None)
    if snapshot is None and (other := hub.find_older_snapshot(repo)) is not None:
        return [describe(f"{repo}@{other.name}", other)]
    return [] if snapshot is None else [describe(repo, snapshot)]


def find_runner(config: dict[str, Any], plan: QuantizationPlan) -> str:
    """Returns who runs a model of this config; nothing where nobody does."""
    if is_encoder(config):
        return "embed"
    if is_native(config) and not plan.needs_mlx_lm:
        return "mlxchat"
    return "mlx-lm" if is_known_to_mlx_lm(str(config.get("model_type"))) else ""


def is_known_to_mlx_lm(model_type: str) -> bool:
    """Whether mlx-lm has a module of that name, or another name for one; it is not imported."""
    spec = importlib.util.find_spec("mlx_lm")
    places = None if spec is None else spec.submodule_search_locations
    if not places or not re.fullmatch(r"[\w-]+", model_type):
        return False
    root = Path(places[0])
    if (root / "models" / f"{model_type}.py").is_file():
        return True
    with contextlib.suppress(OSError):  # the table of other names
        return f'"{model_type}": "' in (root / "utils.py").read_text()
    return False


def describe_weights(plan: QuantizationPlan, path: Path) -> str:
    """Returns how the weights of a folder are stored: `4 bit`, `bfloat16`."""
    if plan.default is not None:
        spec = plan.default
        others = {other.bits for other in plan.overrides.values() if other is not None}
        bits = "/".join(map(str, sorted(others | {spec.bits})))
        return f"{bits} bit" + (f" {spec.mode}" if spec.mode != "affine" else "")
    if plan.method is not None:
        return plan.method
    sizes: dict[str, int] = {}
    for tensor in read_header(find_weight_files(path)[0]).tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype], default="")
    return _DTYPES.get(most, most)


def read_card(path: Path) -> Card:
    """Reads model card and licence of a folder, as far as they were fetched."""
    card = _read_text(path / "README.md")
    block = _CARD_BLOCK.match(card)
    facts = {} if block is None else dict(_CARD_LINE.findall(block[1]))
    files = sorted(path.glob("LICEN[SC]E*"))
    clean = {key: shown(value.strip().strip("\"'")) for key, value in facts.items()}
    name = clean.get("license", "")
    if name == "other":
        name = clean.get("license_name") or name
    return Card(name, clean.get("base_model", ""), _read_text(files[0]) if files else "")


def _read_text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_CARD_MAX_CHARS)
    except OSError:
        return ""
