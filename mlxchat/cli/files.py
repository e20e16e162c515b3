"""From a path or a pattern to the texts of files, with what must be refused refused.

Only regular files are opened, and never more of them is read than may be attached. A pattern stays
in its folder: it follows no links to folders and takes no linked files from outside, and it takes
hidden files only where it names them.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mlxchat.cli.render import format_bytes, format_count
from mlxchat.errors import AttachError

MAX_KIB = 256  # about 65 000 tokens: more than most models can read at once
MAX_FILES = 200
MAX_LOOKED_AT = 20_000  # a pattern that matches this many names was a mistake
# Folders inside a folder that hold nothing that a person wrote.
_HEAPS = frozenset({"__pycache__", "node_modules"})
_MAGIC = re.compile(r"[*?\[]")
_UTF_16 = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
_UTF_8_MARK = b"\xef\xbb\xbf"
_BINARY_STARTS = (b"%PDF-", b"PK\x03\x04", b"\x1f\x8b", b"GGUF", b"\x7fELF")
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\x1b\x08")


class BinaryFileError(AttachError):
    """A file holds no text."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that was read: the name that was asked for, its text, its size on disk in bytes."""

    name: str
    text: str
    size: int


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a path or pattern, and what the person should know of them."""

    files: tuple[TextFile, ...]
    notices: tuple[str, ...] = ()


def is_pattern(name: str) -> bool:
    """Returns whether a name is a pattern for many files: no file has it, and it has a wildcard."""
    return bool(_MAGIC.search(name)) and not exists(name)


def exists(name: str) -> bool:
    """Returns whether there is something of this name, a broken link included."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        return os.path.lexists(Path(name).expanduser())
    return False


def is_folder(name: str) -> bool:
    """Returns whether there is a folder of this name."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        return Path(name).expanduser().is_dir()
    return False


def find_files(name: str, max_bytes: int) -> Found:
    """Reads the file of a name, or the text files of a folder or that match a pattern.

    Args:
        name: As the person wrote it; `~` is their home.
        max_bytes: What all files may have together.

    Raises:
        AttachError: There is none, it cannot be read, is no text, or it is too large.
    """
    if is_pattern(name):
        return _find_many(name, *_match(name), max_bytes)
    if is_folder(name):
        return _find_many(name, _list_folder(name), 0, max_bytes)
    notices: list[str] = []
    file = _read(name, Path(name), max_bytes, notices)
    return Found((file,), tuple(notices))


def _find_many(pattern: str, paths: list[Path], num_outside: int, max_bytes: int) -> Found:
    files: list[TextFile] = []
    notices: list[str] = []
    num_binary, room = 0, max_bytes
    for path in paths:
        try:
            files.append(_read(str(path), path, room, notices))
        except BinaryFileError:
            num_binary += 1
            continue
        except _TooLargeError:
            raise AttachError(
                f"the {len(paths)} files of {pattern} are larger than {_limit(max_bytes)}"
            ) from None
        room -= files[-1].size
    if num_binary:
        notices.append(f"Left out as binary: {_files(num_binary)}.")
    if num_outside:
        notices.append(f"Left out as links to other places: {_files(num_outside)}.")
    if not files:
        why = f" ({' '.join(notices)})" if notices else ""
        what = "there is no text file in" if is_folder(pattern) else "no text file matches"
        raise AttachError(f"{what} {pattern}{why}; name another")
    return Found(tuple(files), tuple(notices))


def _list_folder(name: str) -> list[Path]:
    """Returns the files in a folder and its folders, sorted; hidden ones and links are left out.

    Raises:
        AttachError: There are too many.
    """
    found: list[Path] = []
    for folder, folders, names in os.walk(_expanded(name)):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _HEAPS]
        paths = (Path(folder, file) for file in names if not file.startswith("."))
        found += (path for path in paths if path.is_file() and not path.is_symlink())
        if len(found) > MAX_FILES:
            raise AttachError(
                f"{name} holds more than {MAX_FILES} files; name a pattern, such as"
                f" {name.rstrip('/')}/*.md"
            )
    return sorted(found)


def _match(pattern: str) -> tuple[list[Path], int]:
    """Returns the files that a pattern names, sorted, and how many lie elsewhere."""
    parts = _expanded(pattern).parts
    num_plain = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    base, rest = Path(*parts[:num_plain]), parts[num_plain:]
    takes_hidden = any(part.startswith(".") for part in rest)
    found: list[Path] = []
    num_outside = 0
    try:
        home = base.resolve(strict=True)
        for path in islice(base.glob(os.path.join(*rest)), MAX_LOOKED_AT):
            inner = path.relative_to(base).parts
            if not path.is_file() or (
                not takes_hidden and any(part.startswith(".") for part in inner)
            ):
                continue
            if path.resolve().is_relative_to(home):
                found.append(path)
            else:
                num_outside += 1
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise AttachError(f"{pattern} cannot be looked up: {error}; name another pattern") from None
    if len(found) > MAX_FILES:
        raise AttachError(
            f"{pattern} names {format_count(len(found))} files; {MAX_FILES} are allowed, narrow it"
        )
    return sorted(found), num_outside


class _TooLargeError(AttachError):
    """A file has more bytes than may be attached."""


def _read(name: str, path: Path, max_bytes: int, notices: list[str]) -> TextFile:
    path = _expanded(str(path))
    try:
        data = _read_bytes(name, path, max_bytes)
        real = path.resolve()
    except OSError as error:
        raise AttachError(_why_not(name, path, error)) from None
    except (ValueError, RuntimeError):
        raise AttachError(f"{name!r} is no path; correct it") from None
    text, encoding = _decode(name, data)
    if encoding:
        notices.append(f"{name} is not UTF-8; it was read as {encoding}.")
    if real != Path(os.path.abspath(path)) and path.is_symlink():
        notices.append(f"{name} is a link to {real}.")
    return TextFile(name, text, len(data))


def _read_bytes(name: str, path: Path, max_bytes: int) -> bytes:
    # Without O_NONBLOCK a named pipe would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise AttachError(f"{name} is a folder; name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise AttachError(f"{name} is no regular file; only files can be attached")
        with open(descriptor, "rb", closefd=False) as stream:
            if any(map(stream.peek(8).startswith, _BINARY_STARTS)):
                raise BinaryFileError(f"{name} is a binary file; only text can be attached")
            data = stream.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        size = format_bytes(max(status.st_size, len(data)))
        raise _TooLargeError(f"{name} has {size}, more than {_limit(max_bytes)}")
    return data


def _limit(max_bytes: int) -> str:
    return (
        f"{format_bytes(max_bytes)}, the limit; attach less, or raise it with /set max-file-kib N"
    )


def _why_not(name: str, path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no file {name}{_similar(path)}; correct the name"
    reason = (error.strerror or str(error)).lower()
    return f"{name} cannot be read ({reason}); name another file"


def _similar(path: Path) -> str:
    """Returns a hint at a file of nearly the same name."""
    import difflib

    with contextlib.suppress(OSError):
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, 1000)]
        if close := difflib.get_close_matches(path.name, names, 1):
            return f" (there is {close[0]})"
    return ""


def _decode(name: str, data: bytes) -> tuple[str, str]:
    """Returns the text and, where it was not UTF-8, the encoding."""
    if data[:2] in _UTF_16:
        with contextlib.suppress(UnicodeDecodeError):
            return _plain_lines(data[2:].decode(_UTF_16[data[:2]])), "UTF-16"
    head = data[:8192]
    num_controls = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in head)
    if b"\0" in data or num_controls * 20 > len(head):
        raise BinaryFileError(f"{name} is a binary file; only text can be attached")
    try:
        return _plain_lines(data.removeprefix(_UTF_8_MARK).decode()), ""
    except UnicodeDecodeError:
        return _plain_lines(data.decode("cp1252", "replace")), "Windows-1252"


def _plain_lines(text: str) -> str:
    return text.replace("\r\n", "\n")


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise AttachError(f"{name} names no home folder that is known; write it out") from None


def _files(count: int) -> str:
    return f"{format_count(count)} {'file' if count == 1 else 'files'}"


def complete_path(start: str, *, only_folders: bool = False) -> Iterator[str]:
    """Yields the paths that begin with what was typed; folders end with a slash.

    Hidden ones only where their dot was typed.
    """
    folder, _, name = start.rpartition("/")
    place = "/" if start.startswith("/") and not folder else folder
    prefix = start[: len(start) - len(name)]
    try:
        with os.scandir(Path(place or ".").expanduser()) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in islice(entries, 5000))
    except (OSError, ValueError, RuntimeError):
        return
    for entry_name, is_folder in found:
        is_hidden = entry_name.startswith(".") and not name.startswith(".")
        if entry_name.startswith(name) and not is_hidden and (is_folder or not only_folders):
            yield f"{prefix}{entry_name}{'/' if is_folder else ''}"
