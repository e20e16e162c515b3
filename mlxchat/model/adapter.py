"""An adapter folder on disk: a low-rank change to a model (LoRA, DoRA), or tensors in its place.

Two layouts are read: mlx-lm's (`adapter_config.json` and `adapters.safetensors`) and PEFT's
(`adapter_config.json` with a `peft_type`, and `adapter_model.safetensors`). Knows their names and
checks them against a model before anything is evaluated; what is done with the matrices is
`low_rank.py`'s business. MLX is imported on use.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlxchat.errors import CheckpointError
from mlxchat.model.checkpoint import read_json_object
from mlxchat.model.safetensors_file import TensorInfo, read_header, shown

if TYPE_CHECKING:
    import mlx.core as mx

Part = Literal["a", "b", "m"]
Shape = tuple[int, ...]

CONFIG_NAME = "adapter_config.json"
_MLX_LM_WEIGHTS, _PEFT_WEIGHTS = "adapters.safetensors", "adapter_model.safetensors"
_KINDS = ("lora", "dora", "full")
_EMBEDDING = "model.embed_tokens"
_MLX_LM_PARTS: Mapping[str, Part] = {"lora_a": "a", "lora_b": "b", "m": "m"}
_PEFT_PARTS: Mapping[str, Part] = {"A": "a", "B": "b"}
_PEFT_NAME = re.compile(
    r"base_model\.model\.(.+)\.lora_"
    r"(?:([AB])(?:\.default)?\.weight|embedding_([AB])(?:\.default)?"
    r"|magnitude_vector(?:\.default)?(?:\.weight)?)"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change to one matrix: W + a b, in rows scaled to the lengths `m` where there are any.

    Attributes:
        a: (rows, r) for an embedding, else (columns, r).
        b: (r, columns) for an embedding, else (r, rows); scaled.
        m: (rows,) of DoRA, else None.
    """

    a: "mx.array"
    b: "mx.array"
    m: "mx.array | None" = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter folder holds, checked by itself; no tensor is read yet.

    Attributes:
        folder: Holds its config and weights.
        kind: Low-rank matrices, those with lengths of rows (DoRA), or whole tensors.
        layout: Who wrote it.
        base: The model that it was trained on, as its config names it.
        file: The weights.
        tensors: Headers of the weights by name.
        parts: Name of the tensor by module and part; none of `full`.
        scales: What each module's product is multiplied with.
        fingerprint: Identity of config and weights.
    """

    folder: Path
    kind: str
    layout: Literal["mlx-lm", "PEFT"]
    base: str | None
    file: Path
    tensors: Mapping[str, TensorInfo]
    parts: Mapping[str, Mapping[Part, str]]
    scales: Mapping[str, float]
    fingerprint: str

    @property
    def name(self) -> str:
        """What it is called beside its model."""
        return self.folder.name

    @property
    def ranks(self) -> set[int]:
        """The ranks of its products."""
        axis = 0 if self.layout == "PEFT" else -1
        return {self.tensors[own["a"]].shape[axis] for own in self.parts.values()}

    @classmethod
    def open(cls, path: str | Path) -> "Adapter":
        """Reads config and headers of an adapter folder.

        Raises:
            CheckpointError: The folder lacks something, is damaged, or holds another kind.
        """
        folder = Path(path).expanduser()
        if not folder.is_dir():
            what = "is a file" if folder.is_file() else "is not there"
            raise CheckpointError(
                f"the adapter {shown(str(path))} {what}; name a folder that holds {CONFIG_NAME}"
            )
        folder = folder.resolve()
        if not (folder / CONFIG_NAME).is_file():
            raise CheckpointError(f"{folder} has no {CONFIG_NAME}; an adapter folder needs one")
        config = read_json_object(folder / CONFIG_NAME)
        is_peft = "peft_type" in config
        kind = _read_peft_kind(config, folder) if is_peft else _read_kind(config, folder)
        file = folder / (_PEFT_WEIGHTS if is_peft else _MLX_LM_WEIGHTS)
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {file.name}; its {CONFIG_NAME} asks for it")
        # By name, so that the same tensor is the first that does not fit.
        tensors = dict(sorted(read_header(file).tensors.items()))
        find = _find_peft_part if is_peft else _find_part
        parts = {} if kind == "full" else _group(tensors, find, folder)
        scales = {
            path: _read_peft_scale(config, path, tensors[own["a"]]) if is_peft else _scale(config)
            for path, own in parts.items()
        }
        base = config.get("base_model_name_or_path" if is_peft else "model")
        return cls(
            folder,
            kind,
            "PEFT" if is_peft else "mlx-lm",
            base if isinstance(base, str) and base else None,
            file,
            tensors,
            parts,
            scales,
            _compute_fingerprint(folder, file),
        )

    def check(self, expected: Mapping[str, Shape], stored: Mapping[str, TensorInfo]) -> None:
        """Checks every tensor against a model.

        Args:
            expected: The unpacked shape of the model's tensors by name.
            stored: The model's tensors as they are stored.

        Raises:
            CheckpointError: Names the first tensor that has no place in the model.
        """
        if self.kind == "full":
            for name, tensor in self.tensors.items():
                there = stored.get(name)
                self._require(name, tensor.shape, None if there is None else there.shape)
        for path, own in self.parts.items():
            whole = expected.get(f"{path}.weight", ())
            if len(whole) != 2:
                self._refuse(f"has {shown(own['a'])}, but the model has no matrix {shown(path)}")
            rows, columns = whole if path == _EMBEDDING else (whole[1], whole[0])
            rank = self.tensors[own["a"]].shape[-1 if self.layout == "mlx-lm" else 0]
            shapes: dict[Part, Shape] = {"a": (rows, rank), "b": (rank, columns), "m": whole[:1]}
            for part, name in own.items():
                shape = shapes[part]
                wanted = shape[::-1] if self.layout == "PEFT" and part != "m" else shape
                self._require(name, self.tensors[name].shape, wanted)

    def _require(self, name: str, shape: Shape, wanted: Shape | None) -> None:
        if wanted is None:
            self._refuse(f"has {shown(name)}, which the model has not")
        elif shape != wanted:
            self._refuse(f"has {shown(name)} of shape {shape}, but the model asks for {wanted}")

    def _refuse(self, problem: str) -> None:
        base = f"; it was trained on {shown(self.base)}" if self.base else ""
        raise CheckpointError(f"adapter {self.name} {problem}{base or '; take its own model'}")

    def load(self) -> dict[str, "mx.array"]:
        """Returns all tensors as lazy arrays.

        Raises:
            CheckpointError: MLX refuses the file.
        """
        import mlx.core as mx

        try:
            loaded = mx.load(str(self.file), format="safetensors")
        except (RuntimeError, ValueError, OSError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"MLX cannot read {self.file} ({shown(line)})") from None
        assert isinstance(loaded, dict)
        return loaded

    def load_changes(self) -> dict[str, LowRank]:
        """Returns the changes by the name of the module, lazily, all laid out as mlx-lm does."""
        import mlx.core as mx

        arrays, changes = self.load(), {}
        for path, own in self.parts.items():
            a, b = arrays[own["a"]], arrays[own["b"]]
            if self.layout == "PEFT":
                a, b = a.T, b.T
            # In float32: a scale such as 20 / 3 would round in half precision.
            b = (b.astype(mx.float32) * self.scales[path]).astype(b.dtype)
            changes[path] = LowRank(a, b, arrays[own["m"]] if "m" in own else None)
        return changes


def _read_kind(config: dict[str, Any], folder: Path) -> str:
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise CheckpointError(
            f"{folder} holds an adapter of kind {shown(str(kind))}; known are {', '.join(_KINDS)}"
        )
    parameters = config.get("lora_parameters")
    if kind == "full":
        return str(kind)
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise CheckpointError(
            f"{folder / CONFIG_NAME} has no lora_parameters with a number as scale; name an adapter"
            " of mlx-lm or PEFT"
        )
    return str(kind)


def _scale(config: dict[str, Any]) -> float:
    return float(config["lora_parameters"]["scale"])


def _read_peft_kind(config: dict[str, Any], folder: Path) -> str:
    kind = config["peft_type"]
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} holds an adapter of PEFT's kind {shown(str(kind))}; only LORA is known"
        )
    for name, none in (("bias", ("none", None)), ("fan_in_fan_out", (False, None))):
        if config.get(name) not in none:
            value = shown(str(config[name]))
            raise CheckpointError(f"{folder / CONFIG_NAME}: {name} = {value} is not known here")
    return "dora" if config.get("use_dora") else "lora"


def _read_peft_scale(config: dict[str, Any], path: str, a: TensorInfo) -> float:
    """Returns PEFT's alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA (Kalajdzievski 2023)."""
    patterns = config.get("alpha_pattern") or {}
    alpha = config.get("lora_alpha", 8)
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"lora_alpha {shown(str(alpha))} is no number; give one")
    rank = a.shape[0]
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _find_part(name: str) -> tuple[str, Part] | None:
    path, _, last = name.rpartition(".")
    return (path, _MLX_LM_PARTS[last]) if last in _MLX_LM_PARTS else None


def _find_peft_part(name: str) -> tuple[str, Part] | None:
    match = _PEFT_NAME.fullmatch(name)
    if match is None:
        return None
    path, plain, embedding = match.groups()
    return path, _PEFT_PARTS.get(plain or embedding or "", "m")


def _group(
    tensors: Mapping[str, TensorInfo], find: Any, folder: Path
) -> dict[str, dict[Part, str]]:
    """Returns the names of the tensors by module and part."""
    parts: dict[str, dict[Part, str]] = {}
    for name, tensor in tensors.items():
        found = find(name)
        if found is None:
            raise CheckpointError(
                f"the adapter in {folder} has {shown(name)}, which is no low-rank matrix; only LoRA"
                " and DoRA are known"
            )
        path, part = found
        if len(tensor.shape) != (1 if part == "m" else 2) and not _is_of_experts(tensor, part):
            raise CheckpointError(
                f"{shown(name)} in {folder} has shape {tensor.shape}; a matrix was expected"
            )
        parts.setdefault(path, {})[part] = name
    for path, own in parts.items():
        if not {"a", "b"} <= own.keys():
            raise CheckpointError(
                f"the adapter in {folder} has one half of {shown(path)} alone; copy it again"
            )
    if not parts:
        raise CheckpointError(f"the adapter in {folder} holds no tensors; copy it again")
    return parts


def _is_of_experts(tensor: TensorInfo, part: Part) -> bool:
    """Whether it is a stack of matrices, one for each expert, as mlx-lm writes them."""
    return part != "m" and len(tensor.shape) == 3


def _compute_fingerprint(folder: Path, file: Path) -> str:
    digest = hashlib.sha256(b"mlxchat-adapter-1")
    try:
        digest.update(hashlib.sha256((folder / CONFIG_NAME).read_bytes()).digest())
        with file.open("rb") as stream:  # adapters are small: the whole content counts
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise CheckpointError(f"cannot read {file} ({error.strerror}); check it") from None
    return digest.hexdigest()


def join_fingerprints(model: str, adapter: Adapter | None) -> str:
    """Returns the identity of a model with its adapter."""
    if adapter is None:
        return model
    return hashlib.sha256(f"{model}\n{adapter.fingerprint}".encode()).hexdigest()
