"""The header of one safetensors file: what it says, and whether the file can be believed.

Knows the format (eight bytes of length, a JSON header, the data) and checks every claim of the
header against the size of the file, in pure Python and before MLX touches the file. Which files
belong to a model is `checkpoint.py`'s business.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from mlxchat.errors import CheckpointError

# The format's own limit: a longer header is a damaged length field, not a model.
MAX_HEADER_BYTES = 100_000_000

BITS_PER_ELEMENT: Mapping[str, int] = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
# Measured with mlx 0.32: names of the format that `mx.load` refuses.
UNREADABLE_BY_MLX = frozenset({"F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F64"})

# MLX keeps lengths in 32 bits and offsets in 64; no model has tensors of more than a few axes.
_MAX_LENGTH = 1 << 31
_MAX_OFFSET = 1 << 62
_MAX_AXES = 16

_FETCH_AGAIN = "the file is damaged or its download was cut short; fetch it again"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its file's header describes it.

    Attributes:
        name: The tensor's name, unique within a checkpoint.
        dtype: The format's name of the element type, such as `BF16`.
        shape: Length of each axis.
        nbytes: Size of the data in bytes.
        file: The file that holds the data.
        offset: Where the data begins, in bytes from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The checked header of one file.

    Attributes:
        tensors: By name, in the order of their data in the file.
        metadata: The file's free-form text entries.
        digest: SHA-256 of the raw header bytes.
        file_bytes: Size of the whole file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    digest: str
    file_bytes: int


class _BadHeaderError(ValueError):
    """What is wrong with a header, without the name of the file."""


def shown(name: str, limit: int = 120) -> str:
    """Returns a name fit for one line of a terminal: no control characters, not too long."""
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name[:limit])
    return clean + "..." if len(name) > limit else clean


def read_header(file: Path) -> SafetensorsHeader:
    """Reads and checks the header of a safetensors file; the data stays on disk.

    Raises:
        CheckpointError: The file cannot be read, or its header and size disagree.
    """
    try:
        with file.open("rb") as stream:
            return read_open_header(stream, file)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"cannot read {file} ({reason}); check the folder") from None


def read_open_header(stream: BinaryIO, file: Path) -> SafetensorsHeader:
    """Reads and checks the header of a file that is open already, from its first byte.

    Raises:
        CheckpointError: Header and size disagree.
        OSError: The file cannot be read.
    """
    try:
        file_bytes = os.fstat(stream.fileno()).st_size
        raw = _read_raw(stream.read, file_bytes)
        entries = _parse(raw)
        metadata = _take_metadata(entries)
        tensors = _check_tensors(entries, file, 8 + len(raw), file_bytes)
    except _BadHeaderError as error:
        raise CheckpointError(f"{file.name}: {error} (in {file.parent})") from None
    return SafetensorsHeader(tensors, metadata, hashlib.sha256(raw).hexdigest(), file_bytes)


def _read_raw(read: Any, file_bytes: int) -> bytes:
    if file_bytes == 0:
        raise _BadHeaderError(f"is empty; {_FETCH_AGAIN}")
    start = read(8)
    if len(start) < 8:
        raise _BadHeaderError(f"is only {file_bytes} bytes long; {_FETCH_AGAIN}")
    if start.startswith(b"version "):
        raise _BadHeaderError("is a Git LFS pointer, not the weights; run `git lfs pull`")
    length = int.from_bytes(start, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise _BadHeaderError(
            f"its header claims {length} bytes, the file has {file_bytes}; {_FETCH_AGAIN}"
        )
    raw: bytes = read(length)
    if len(raw) != length:
        raise _BadHeaderError(f"ends inside its header; {_FETCH_AGAIN}")
    return raw


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except _BadHeaderError:
        raise
    except (ValueError, RecursionError):
        raise _BadHeaderError(f"its header is not JSON; {_FETCH_AGAIN}") from None
    if not isinstance(entries, dict):
        raise _BadHeaderError(f"its header is not a JSON object; {_FETCH_AGAIN}")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise _BadHeaderError(f"its header names {shown(name)} twice; {_FETCH_AGAIN}")
        entries[name] = value
    return entries


def _take_metadata(entries: dict[str, Any]) -> dict[str, str]:
    metadata = entries.pop("__metadata__", None)
    if metadata is None:  # MLX writes null where it is given none
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _BadHeaderError(f"its metadata is not a table of texts; {_FETCH_AGAIN}")
    return metadata


def _check_tensors(
    entries: dict[str, Any], file: Path, data_start: int, file_bytes: int
) -> dict[str, TensorInfo]:
    tensors = [_tensor(name, entry, file, data_start) for name, entry in entries.items()]
    # Empty tensors share their neighbour's offset: the shorter one comes first.
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    position = data_start
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > file_bytes:
            raise _BadHeaderError(
                f"ends at byte {file_bytes}, but tensor {shown(tensor.name)} reaches to byte "
                f"{tensor.offset + tensor.nbytes}; {_FETCH_AGAIN}"
            )
        if tensor.offset != position:
            problem = "overlaps another" if tensor.offset < position else "leaves a gap before it"
            raise _BadHeaderError(f"tensor {shown(tensor.name)} {problem}; {_FETCH_AGAIN}")
        position += tensor.nbytes
    if position != file_bytes:
        raise _BadHeaderError(
            f"has {file_bytes - position} bytes that belong to no tensor; {_FETCH_AGAIN}"
        )
    return {tensor.name: tensor for tensor in tensors}


def _tensor(name: str, entry: Any, file: Path, data_start: int) -> TensorInfo:
    label = f"tensor {shown(name)}"
    if not _is_utf8(name):
        raise _BadHeaderError(f"{label} has a name that is not valid text; {_FETCH_AGAIN}")
    if not isinstance(entry, dict):
        raise _BadHeaderError(f"{label} has no description; {_FETCH_AGAIN}")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS_PER_ELEMENT:
        raise _BadHeaderError(
            f"{label} has the unknown type {shown(str(dtype), 20)}; {_FETCH_AGAIN}"
        )
    if dtype in UNREADABLE_BY_MLX:
        raise _BadHeaderError(
            f"{label} is stored as {dtype}, which MLX cannot read; use another conversion"
        )
    shape = _sizes(entry.get("shape"), _MAX_LENGTH)
    offsets = _sizes(entry.get("data_offsets"), _MAX_OFFSET)
    if shape is None or len(shape) > _MAX_AXES:
        raise _BadHeaderError(f"{label} has no usable shape; {_FETCH_AGAIN}")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _BadHeaderError(f"{label} has no usable offsets; {_FETCH_AGAIN}")
    nbytes = offsets[1] - offsets[0]
    if prod(shape) * BITS_PER_ELEMENT[dtype] != nbytes * 8:
        raise _BadHeaderError(
            f"{label} of shape {shape} and type {dtype} cannot have {nbytes} bytes; {_FETCH_AGAIN}"
        )
    return TensorInfo(name, dtype, shape, nbytes, file, data_start + offsets[0])


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape
        return False
    return True


def _sizes(value: Any, limit: int) -> tuple[int, ...] | None:
    # type() because True is an int to isinstance
    if isinstance(value, list) and all(type(n) is int and 0 <= n < limit for n in value):
        return tuple(value)
    return None
