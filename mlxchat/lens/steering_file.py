"""Steering vectors on disk: one safetensors file each, which knows the model that it was made on.

Name, model and measurements stand in the file's header, so that lists need no MLX.
"""

import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxchat import paths
from mlxchat.errors import CheckpointError, MlxchatError, UsageError
from mlxchat.model.safetensors_file import read_header

if TYPE_CHECKING:
    from mlxchat.lens.steering import SteeringVector

_NAME = re.compile(r"[\w][\w.-]{0,63}")
_SUFFIX = ".safetensors"
_FORMAT = "mlxchat-steering-1"


@dataclass(frozen=True, slots=True)
class SteeringInfo:
    """What the header of a stored vector says.

    Attributes:
        name: Its name.
        path: Its file.
        model: The model that it was made on, for people.
        fingerprint: Of that model's config and weights.
        created: Clock time.
        layer: Where it is added.
        num_layers: Layers that it has directions for.
        num_pairs: Pairs that it was made from.
        held_out: Whether effects were measured on pairs that were kept back.
        layers: `LayerFacts` by layer, as dictionaries.
        sweep: `Strength`s, as dictionaries.
        positive: How the first positive prompts begin.
        negative: The same of the negative ones.
    """

    name: str
    path: Path
    model: str
    fingerprint: str
    created: float
    layer: int
    num_layers: int
    num_pairs: int
    held_out: bool
    layers: list[dict[str, Any]]
    sweep: list[dict[str, Any]]
    positive: list[str]
    negative: list[str]


def steering_folder() -> Path:
    """Returns the folder of the stored vectors."""
    return paths.data_dir() / "steering"


def check_name(name: str) -> str:
    """Returns a name that a vector can have.

    Raises:
        UsageError: It cannot be the name of a file.
    """
    if not _NAME.fullmatch(name) or name == "off":
        raise UsageError(
            f"{name!r} is no name for a steering vector; use letters, digits, '-', '_' and '.'"
        )
    return name


def save_vector(
    vector: "SteeringVector",
    *,
    name: str,
    model: str,
    fingerprint: str,
    positive: list[str],
    negative: list[str],
) -> Path:
    """Writes a vector under its name, in the place of an older one; on the worker thread.

    Args:
        vector: What was made.
        name: From `check_name`.
        model: For people.
        fingerprint: Of the model.
        positive: The prompts, for people.
        negative: The same.
    """
    import mlx.core as mx

    about = {
        "model": model,
        "fingerprint": fingerprint,
        "created": time.time(),
        "layer": vector.layer,
        "num_layers": len(vector.layers),
        "num_pairs": vector.num_pairs,
        "held_out": vector.held_out,
        "layers": [asdict(facts) for facts in vector.layers],
        "sweep": [asdict(strength) for strength in vector.sweep],
        "positive": [text[:200] for text in positive[:3]],
        "negative": [text[:200] for text in negative[:3]],
    }
    folder = paths.make_private_dir(steering_folder())
    path, part = folder / f"{name}{_SUFFIX}", folder / f".{name}.part{_SUFFIX}"
    arrays = {"mean": vector.mean, "pca": vector.pca}
    mx.save_safetensors(str(part), arrays, {"format": _FORMAT, "about": json.dumps(about)})
    part.replace(path)
    return path


def read_info(path: Path) -> SteeringInfo:
    """Reads the header of a stored vector; no MLX is needed.

    Raises:
        MlxchatError: The file is damaged or no steering vector.
    """
    try:
        metadata = read_header(path).metadata
        if metadata.get("format") != _FORMAT:
            raise MlxchatError(f"{path} is no steering vector; make one with inspect steer make")
        return SteeringInfo(path.stem, path, **json.loads(metadata["about"]))
    except (CheckpointError, KeyError, ValueError, TypeError) as error:
        raise MlxchatError(
            f"the steering vector {path} is damaged ({error}); make it again"
        ) from None


def list_vectors() -> list[SteeringInfo]:
    """Returns what is stored, by name; damaged files are left out."""
    found = []
    for path in sorted(steering_folder().glob(f"[!.]*{_SUFFIX}")):
        try:
            found.append(read_info(path))
        except MlxchatError:
            continue
    return found


def find_vector(name: str) -> SteeringInfo:
    """Finds a stored vector by its name.

    Raises:
        UsageError: There is none.
        MlxchatError: It is damaged.
    """
    return read_info(_find_file(name))


def remove_vector(name: str) -> None:
    """Removes a stored vector, a damaged one too.

    Raises:
        UsageError: There is none.
        OSError: It cannot be removed.
    """
    _find_file(name).unlink()


def _find_file(name: str) -> Path:
    path = steering_folder() / f"{check_name(name)}{_SUFFIX}"
    if path.is_file():
        return path
    known = ", ".join(info.name for info in list_vectors())
    hint = f"there are {known}" if known else "make one with mlxchat inspect steer make"
    raise UsageError(f"there is no steering vector {name}; {hint}")


def load_vector(info: SteeringInfo, fingerprint: str, model: str) -> "SteeringVector":
    """Reads a stored vector for the model that is in memory; on the worker thread.

    Args:
        info: From `find_vector`.
        fingerprint: Of the model in memory.
        model: Its name, for people.

    Raises:
        UsageError: It was made on another model.
    """
    import mlx.core as mx

    from mlxchat.lens.steering import LayerFacts, SteeringVector, Strength

    if info.fingerprint != fingerprint:
        raise UsageError(
            f"the steering vector {info.name} was made on {info.model}, not on {model}; make one"
            " for this model, or switch it off with /steer off"
        )
    arrays = mx.load(str(info.path), format="safetensors")
    assert isinstance(arrays, dict)
    mx.eval(arrays)
    return SteeringVector(
        mean=arrays["mean"],
        pca=arrays["pca"],
        layer=info.layer,
        layers=tuple(LayerFacts(**facts) for facts in info.layers),
        sweep=tuple(Strength(**strength) for strength in info.sweep),
        num_pairs=info.num_pairs,
        held_out=info.held_out,
    )
