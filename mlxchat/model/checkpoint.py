"""A model folder on disk: its config and its tensors, checked before anything is evaluated.

Knows config.json, generation_config.json and which safetensors files make up a model. It leaves
the format of one file to `safetensors_file.py`, the meaning of the config to `families.py` and
`quantization.py`, and fusing and dequantising to `loader.py`. MLX is imported on use, so that a
folder can be looked at without it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxchat.errors import CheckpointError
from mlxchat.model.safetensors_file import SafetensorsHeader, TensorInfo, read_header, shown

if TYPE_CHECKING:
    import mlx.core as mx

INDEX_NAME = "model.safetensors.index.json"
_SINGLE_NAME = "model.safetensors"
_NUMBERED = re.compile(r"model.*-(\d{3,})-of-(\d{3,})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# transformers writes non-finite numbers as {"__float__": "Infinity"}: JSON has no other way.
_TAGGED_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
# Below this size the whole content is hashed for the fingerprint: 64 MiB take about 0.1 s.
_HASH_ALL_BYTES = 64 << 20
_SAMPLE_BYTES = 1024
# One evaluation of this many bytes keeps the progress bar and Ctrl-C alive on slow disks.
_EVALUATE_BYTES = 64 << 20
# Under which names configs say how long a text may be.
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
    "model_max_length",
    "max_context_length",
)

Progress = Callable[[int, int], None]
CheckCancel = Callable[[], None]


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a model folder.

    Raises:
        CheckpointError: The folder or the file is missing, or the file holds no JSON object.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; name a folder that holds config.json")
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json; a model folder needs one")
    config: dict[str, Any] = read_json_object(file)
    return config


def read_generation_config(folder: Path) -> dict[str, Any]:
    """Reads generation_config.json of a model folder; a missing file is an empty one.

    Raises:
        CheckpointError: The file holds no JSON object.
    """
    file = folder / "generation_config.json"
    return read_json_object(file) if file.is_file() else {}


def find_context(config: Mapping[str, Any]) -> int | None:
    """Returns how long a text a config allows; None where it does not say."""
    nested = [config, *(v for v in config.values() if isinstance(v, dict))]
    limits = [c[key] for c in nested for key in _CONTEXT_KEYS if isinstance(c.get(key), int)]
    return limits[0] if limits else None


def find_weight_files(folder: Path) -> list[Path]:
    """Finds the safetensors files that make up the model in a folder.

    The index decides where there is one; else `model.safetensors`, else all `model*.safetensors`.

    Raises:
        CheckpointError: There are none, or a shard is missing.
    """
    single = folder / _SINGLE_NAME
    if (folder / INDEX_NAME).is_file():
        files = sorted({folder / name for name in _read_index(folder).values()})
        missing = [file for file in files if not file.is_file()]
        if not missing:
            return files
        # Conversions leave the index of the original behind; one whole file then holds all.
        if not single.is_file():
            raise CheckpointError(_missing_shard(folder, missing[0].name, len(missing)))
    if single.is_file():
        return [single]
    files = sorted(file for file in folder.glob("model*.safetensors") if file.is_file())
    if not files:
        raise CheckpointError(_no_weights(folder))
    _check_numbering(folder, files)
    return files


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a model folder, as their files' headers describe them.

    Attributes:
        folder: The model folder.
        files: Headers by file, in reading order.
        tensors: All tensors by name, in the order of their data on disk.
        metadata: The files' free-form text entries, merged.
        total_bytes: Size of all tensors.
        prefix: What was put before every name; see `_missing_prefix`.
    """

    folder: Path
    files: dict[Path, SafetensorsHeader]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    total_bytes: int
    prefix: str = ""

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Reads and checks all headers; no tensor is read.

        Raises:
            CheckpointError: Files are missing, damaged, or contradict each other.
        """
        files = {file: read_header(file) for file in find_weight_files(folder)}
        tensors: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        for file, header in files.items():
            for name, tensor in header.tensors.items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {shown(name)} is in {tensors[name].file.name} and in {file.name}; "
                        f"remove the file that does not belong to the model in {folder}"
                    )
                tensors[name] = tensor
            metadata |= header.metadata
        if not tensors:
            raise CheckpointError(f"the weight files in {folder} hold no tensors; fetch them again")
        _check_index(folder, files, tensors)
        prefix = _missing_prefix(tensors)
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
        total_bytes = sum(t.nbytes for t in tensors.values())
        return cls(folder, files, tensors, metadata, total_bytes, prefix)

    def require(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Checks that tensors are there with the shapes that the config asks for.

        Args:
            expected: Shape by tensor name.

        Raises:
            CheckpointError: Names the first tensor that is missing or has another shape.
        """
        for name, shape in expected.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                raise CheckpointError(
                    f"the weights have no tensor {name}, which config.json asks for; "
                    f"the files in {self.folder} do not belong together"
                )
            if tensor.shape != tuple(shape):
                raise CheckpointError(
                    f"{name} has shape {tensor.shape}, but config.json asks for {tuple(shape)}; "
                    f"the files in {self.folder} do not belong together"
                )

    def load(self) -> dict[str, "mx.array"]:
        """Returns all tensors as lazy arrays; each is read from disk when it is evaluated.

        Call it on the thread that evaluates them.

        Raises:
            CheckpointError: MLX refuses a file.
        """
        import mlx.core as mx

        arrays: dict[str, mx.array] = {}
        for file, header in self.files.items():
            try:
                loaded = mx.load(str(file), format="safetensors")
            except (RuntimeError, ValueError, OSError) as error:
                raise CheckpointError(f"MLX cannot read {file} ({_first_line(error)})") from None
            assert isinstance(loaded, dict)
            if loaded.keys() != header.tensors.keys():
                raise CheckpointError(f"{file} changed while it was read; try again")
            arrays.update((self.prefix + name, loaded[name]) for name in header.tensors)
        return arrays


def evaluate_arrays(
    arrays: Iterable["mx.array"],
    *,
    on_progress: Progress | None = None,
    check_cancel: CheckCancel | None = None,
    total_bytes: int | None = None,
) -> None:
    """Evaluates arrays in batches of some 64 MiB, in the order given, which reads them from disk.

    Args:
        arrays: Lazy arrays, such as the values of `Checkpoint.load()` or what was made from them.
        on_progress: Called with (done, total) bytes after each batch.
        check_cancel: Called before each batch; what it raises ends the work.
        total_bytes: The total to report; default: the size of all arrays.

    Raises:
        CheckpointError: The data cannot be read.
    """
    import mlx.core as mx

    waiting = list(arrays)
    total = sum(array.nbytes for array in waiting) if total_bytes is None else total_bytes
    done = 0
    for batch in _batches(waiting):
        if check_cancel is not None:
            check_cancel()
        try:
            mx.eval(batch)
        except RuntimeError as error:
            raise CheckpointError(f"the weights cannot be read ({_first_line(error)})") from None
        done += sum(array.nbytes for array in batch)
        if on_progress is not None:
            on_progress(done, total)


def compute_fingerprint(checkpoint: Checkpoint) -> str:
    """Computes the identity of a model: equal for equal config and weights, on any day.

    A file of the Hub cache is known by its content's own hash; small files are hashed whole; of
    large files the header, size, time of change and a sample of every tensor stand for the content,
    so a copy may count as another model, but a changed model not as the same.

    Returns:
        A SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256(b"mlxchat-model-1")
    try:
        digest.update(hashlib.sha256((checkpoint.folder / "config.json").read_bytes()).digest())
        for file, header in checkpoint.files.items():
            digest.update(f"\n{file.name}\n{header.file_bytes}\n{header.digest}\n".encode())
            digest.update(_content_identity(file, header))
    except OSError as error:
        raise CheckpointError(
            f"cannot read the files of {checkpoint.folder} ({error.strerror}); check the folder"
        ) from None
    return digest.hexdigest()


def _content_identity(file: Path, header: SafetensorsHeader) -> bytes:
    if file.is_symlink() and (target := file.resolve()).parent.name == "blobs":
        return target.name.encode()  # the Hub names blobs by the hash of their content
    with file.open("rb") as stream:
        if header.file_bytes <= _HASH_ALL_BYTES:
            return hashlib.file_digest(stream, "sha256").digest()
        digest = hashlib.sha256(str(file.stat().st_mtime_ns).encode())
        for tensor in header.tensors.values():
            stream.seek(tensor.offset + tensor.nbytes // 2)
            digest.update(stream.read(min(_SAMPLE_BYTES, tensor.nbytes - tensor.nbytes // 2)))
    return digest.digest()


def _batches(arrays: list["mx.array"]) -> Iterator[list["mx.array"]]:
    batch: list[mx.array] = []
    size = 0
    for array in arrays:
        batch.append(array)
        size += array.nbytes
        if size >= _EVALUATE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def read_json_object(file: Path, kind: type[dict[Any, Any]] | type[list[Any]] = dict) -> Any:
    """Reads a JSON file of a model folder.

    Args:
        file: An existing file.
        kind: What it must hold.

    Raises:
        CheckpointError: It holds something else, or is broken.
    """
    try:
        value = _untag_floats(json.loads(file.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError:
        raise CheckpointError(f"{file} is not UTF-8 text; fetch the file again") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise CheckpointError(f"{file} is not valid JSON ({place}); fetch the file again") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{file} is not usable JSON; fetch the file again") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {file} ({error.strerror}); check the folder") from None
    if not isinstance(value, kind):
        name = "object" if kind is dict else "list"
        raise CheckpointError(f"{file} holds no JSON {name}; fetch the file again")
    return value


def _untag_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_untag_floats(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        tag = value["__float__"]
        return _TAGGED_FLOATS.get(tag, value) if isinstance(tag, str) else value
    return {key: _untag_floats(item) for key, item in value.items()}


def _missing_prefix(names: Iterable[str]) -> str:
    """Returns what the names of a decoder saved without its head lack (embedding models)."""
    return "model." if "embed_tokens.weight" in names else ""


def _read_index(folder: Path) -> dict[str, str]:
    weight_map = read_json_object(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_NAME} has no weight_map; fetch the file again")
    for name, file in weight_map.items():
        # A path in the index could lead out of the folder.
        is_plain = isinstance(file, str) and re.fullmatch(r"[\w.+-]+\.safetensors", file)
        if not is_plain:
            raise CheckpointError(
                f"{folder / INDEX_NAME} puts {shown(name)} into {shown(str(file), 60)!r}; "
                "only .safetensors files of the same folder are read"
            )
    return weight_map


def _check_index(
    folder: Path, files: Mapping[Path, SafetensorsHeader], tensors: Mapping[str, TensorInfo]
) -> None:
    if not (folder / INDEX_NAME).is_file():
        return
    weight_map = _read_index(folder)
    if {folder / name for name in weight_map.values()} != files.keys():
        return  # the index of another conversion, see find_weight_files
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(
                f"{INDEX_NAME} says that {shown(name)} is in {file}, but it is not; "
                f"fetch the files in {folder} again"
            )


def _check_numbering(folder: Path, files: list[Path]) -> None:
    matches = [match for file in files if (match := _NUMBERED.fullmatch(file.name))]
    if not matches:
        return
    count = int(matches[0][2])
    present = {int(match[1]) for match in matches}
    # A damaged name must not make us build a set of a million numbers.
    absent = [] if count > 10_000 else sorted(set(range(1, count + 1)) - present)
    # Shards are numbered from 1 by transformers and mlx-lm, from 0 by a few others.
    if absent and not (len(present) == count and min(present) == 0):
        number = f"{absent[0]:0{len(matches[0][1])}d}-of-{matches[0][2]}"
        raise CheckpointError(
            _missing_shard(folder, f"the shard {number}", max(1, count - len(present)))
        )


def _missing_shard(folder: Path, name: str, count: int) -> str:
    others = f" and {count - 1} more" if count > 1 else ""
    return f"{folder} lacks {name}{others}; the download is incomplete, fetch the model again"


def _no_weights(folder: Path) -> str:
    suffixes = {file.suffix for file in folder.iterdir()} if folder.is_dir() else set()
    if suffixes & set(_PICKLES):
        return (
            f"{folder} has only pickled weights ({', '.join(sorted(suffixes & set(_PICKLES)))}), "
            "which are never loaded; convert the model with mlx_lm.convert"
        )
    if ".gguf" in suffixes:
        return f"{folder} has only GGUF weights; use the model's safetensors or an MLX conversion"
    return f"{folder} has no model.safetensors; a model folder needs its weights in safetensors"


def _first_line(error: Exception) -> str:
    return shown((str(error).splitlines() or [type(error).__name__])[0], 200)
