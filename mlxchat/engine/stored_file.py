"""One stored prefix as a safetensors file: how it is written piece by piece, and how it is checked.

A file holds the token ids of a prefix and, layer by layer, what a cache needs to go on after them:
the rows of positions `start` to the end where rows never change, the whole state elsewhere. Rows
before `start` are in the file's parent. The header's text entries say what the values depend on. A
digest covers every byte; a file is believed only when it is right.

Knows bytes and the format. Which file to look for, and how many there may be, is
`prompt_store.py`'s business; what the arrays mean is `stored_layers.py`'s. Free of MLX.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlxchat.engine.token_ids import pack_ids, unpack_ids
from mlxchat.errors import CheckpointError
from mlxchat.model.safetensors_file import SafetensorsHeader, TensorInfo, read_open_header

FORMAT = "mlxchat-prompt-1"
TEMPORARY_PREFIX = ".writing-"
_IDS_NAME = "token_ids"
_BLANK_DIGEST = "0" * 64
_HEX = frozenset("0123456789abcdef")
# Digests are computed while the next tensor is read. One thread reads and digests 0.8 GB/s on the
# machine where this was measured, four keep up with a fast disk, more only take memory.
_READERS = min(4, os.cpu_count() or 1)


class BadFileError(Exception):
    """A file is not what its name promises: torn, damaged, altered or foreign."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a stored file says about itself.

    Attributes:
        key: Hash of all that the values depend on apart from the token ids.
        model: The model's name, for people.
        label: The beginning of the system prompt, for people.
        owner: Number of the conversation in the history, "" where it is in none.
        what: "system" for a system prompt, "conversation" for more than that.
        num_ids: Length of the prefix.
        start: Position of the first row; rows before it are in the parent.
        parent: Name of the file that holds them, "" where `start` is 0.
        depth: Files that must be read before this one.
        created: Seconds since the epoch.
        cache: What the layers said of themselves, as JSON.
    """

    key: str
    model: str
    label: str
    owner: str
    what: str
    num_ids: int
    start: int
    parent: str
    depth: int
    created: float
    cache: str


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor that will be written: its name, its type in the format's words, and its size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class FileWriter:
    """Writes one file under a temporary name; only `commit` gives it its own.

    Args:
        path: Its own name.
        description: Goes into the header.
        token_ids: The whole prefix.
        tensors: What will be written, in this order.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        description: Description,
        token_ids: Sequence[int],
        tensors: Sequence[TensorShape],
    ) -> None:
        self.path = path
        ids = pack_ids(token_ids)
        shapes = [TensorShape(_IDS_NAME, "I32", (len(token_ids),), len(ids)), *tensors]
        self._header = _make_header(description, shapes)
        self._digests = hashlib.sha256(self._header)
        self._tensor = hashlib.sha256()
        self._left = [shape.nbytes for shape in shapes]
        self.num_bytes = len(self._header) + sum(self._left)
        self._temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._stream: BinaryIO | None = open(  # noqa: SIM115  # closed by commit or abandon
            os.open(self._temporary, flags, 0o600), "w+b", buffering=0
        )
        try:
            self._put(self._header)
            self.write(ids)
        except BaseException:
            self.abandon()
            raise

    def write(self, data: Any) -> None:
        """Appends bytes of the tensors, in order, in pieces of any size within one tensor.

        Args:
            data: Anything with a contiguous buffer of bytes.

        Raises:
            OSError: It could not be written; nothing is left behind.
        """
        try:
            self._put(data)
        except OSError:
            self.abandon()
            raise
        self._tensor.update(data)
        self._left[0] -= len(data)
        while self._left and self._left[0] == 0:
            self._digests.update(self._tensor.digest())
            self._tensor = hashlib.sha256()
            self._left.pop(0)

    def _put(self, data: Any) -> None:
        view = memoryview(data)
        while len(view):  # a write may be cut short, when the disk is full for example
            assert self._stream is not None
            view = view[self._stream.write(view) :]

    def commit(self) -> None:
        """Enters the digest, brings everything to the disk and gives the file its name.

        Raises:
            OSError: It could not be written; nothing is left behind.
        """
        assert self._stream is not None
        assert not self._left
        try:
            place = self._header.index(_BLANK_DIGEST.encode())
            os.pwrite(self._stream.fileno(), self._digests.hexdigest().encode(), place)
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.replace(self._temporary, self.path)
        except BaseException:
            self.abandon()
            raise
        _sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Removes what was written."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Brings a new name to the disk; file systems that know no such thing are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_header(description: Description, tensors: Sequence[TensorShape]) -> bytes:
    """Returns length and JSON header, with a blank digest before all else."""
    texts = {name: str(value) for name, value in asdict(description).items()}
    entries: dict[str, Any] = {"__metadata__": {"digest": _BLANK_DIGEST, "format": FORMAT, **texts}}
    position = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


class StoredFile:
    """A file that is open for reading; its header has been read, but nothing is believed yet.

    Use it as a context manager.

    Args:
        path: Where it lies.

    Raises:
        BadFileError: It is no file of ours.
        OSError: It is gone or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Without blocking: what has a name of ours might be a pipe.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._stream = open(os.open(path, flags), "rb", buffering=0)  # noqa: SIM115
        try:
            self.header = self._read_header()
            self.description = _read_description(self.header)
        except BaseException:
            self._stream.close()
            raise

    def _read_header(self) -> SafetensorsHeader:
        if not stat.S_ISREG(os.fstat(self._stream.fileno()).st_mode):
            raise BadFileError("it is no ordinary file")
        try:
            return read_open_header(self._stream, self.path)
        except CheckpointError as error:
            raise BadFileError(str(error)) from None

    def __enter__(self) -> "StoredFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.header.file_bytes

    def read_ids(self) -> list[int]:
        """Reads the token ids, unchecked."""
        info = self.header.tensors.get(_IDS_NAME)
        if info is None or info.dtype != "I32" or info.shape != (self.description.num_ids,):
            raise BadFileError("it has no token ids")
        return unpack_ids(self._read(info))

    def read_tensors(
        self, check: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[TensorInfo, bytes]]:
        """Reads everything, in order; what came is to be believed when the iteration has ended.

        Args:
            check: Called between tensors; may raise to stop.

        Yields:
            Each tensor with its bytes, the token ids left out.

        Raises:
            BadFileError: The digest is wrong.
        """
        digests = hashlib.sha256(self._read_blanked_header())
        waiting: deque[tuple[TensorInfo, Future[tuple[bytes, bytes]]]] = deque()
        todo = iter(self.header.tensors.values())
        with ThreadPoolExecutor(_READERS) as pool:
            try:
                while True:
                    while len(waiting) <= _READERS and (info := next(todo, None)) is not None:
                        waiting.append((info, pool.submit(self._read_and_digest, info)))
                    if not waiting:
                        break
                    check()
                    info, future = waiting.popleft()
                    data, digest = future.result()
                    digests.update(digest)
                    if info.name != _IDS_NAME:
                        yield info, data
            finally:
                for _, future in waiting:
                    future.cancel()
        if digests.hexdigest() != self.header.metadata["digest"]:
            raise BadFileError("its checksum is wrong")

    def _read_blanked_header(self) -> bytes:
        """The header as it was before the digest was known."""
        size = min((t.offset for t in self.header.tensors.values()), default=self.num_bytes)
        raw = os.pread(self._stream.fileno(), size, 0)
        digest = self.header.metadata["digest"].encode()
        if raw.count(digest) != 1:
            raise BadFileError("its header was altered")
        return raw.replace(digest, _BLANK_DIGEST.encode())

    def _read_and_digest(self, info: TensorInfo) -> tuple[bytes, bytes]:
        data = self._read(info)
        return data, hashlib.sha256(data).digest()

    def _read(self, info: TensorInfo) -> bytes:
        # Not mapped: a mapped file that someone cuts short kills the process.
        data = os.pread(self._stream.fileno(), info.nbytes, info.offset)
        while len(data) < info.nbytes:  # one call reads 2 GiB at most
            more = os.pread(self._stream.fileno(), info.nbytes - len(data), info.offset + len(data))
            if not more:
                raise BadFileError("it was cut short")
            data += more
        return data


def _read_description(header: SafetensorsHeader) -> Description:
    texts = header.metadata
    if texts.get("format") != FORMAT:
        raise BadFileError("it is of another program or version")
    digest = texts.get("digest", "")
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise BadFileError("it has no checksum")
    try:
        return Description(
            key=texts["key"],
            model=texts["model"],
            label=texts["label"],
            owner=texts["owner"],
            what=texts["what"],
            num_ids=int(texts["num_ids"]),
            start=int(texts["start"]),
            parent=texts["parent"],
            depth=int(texts["depth"]),
            created=float(texts["created"]),
            cache=texts["cache"],
        )
    except (KeyError, ValueError):
        raise BadFileError("its description is not complete") from None
