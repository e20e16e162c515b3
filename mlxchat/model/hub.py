"""From the name of a model to its folder: built-in, local, in the Hub cache, or downloaded.

Knows how the Hub cache lies on disk, so a model that is there starts without the Hub client and
without a single network call. The client is imported only when something must be fetched; the
download itself is `hub_download.py`. What is inside the folder is `checkpoint.py`'s business.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxchat.errors import CheckpointError, HubError, ModelNotFoundError
from mlxchat.model.checkpoint import find_weight_files
from mlxchat.model.safetensors_file import shown

BUILTIN_NAME = "builtin"
Progress = Callable[[int, int], None]
CheckCancel = Callable[[], None]

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_ID_CHARS = 96  # the Hub's own limit
_TRUE = {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads its switches
# One of these makes a tokenizer; tokenizer_config.json alone does not.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_TOKENIZER_SUFFIXES = (".tiktoken", ".tekken", ".model")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a model's files are.

    Attributes:
        path: The folder with config.json, weights and tokenizer.
        name: The model as the person named it; `builtin` for the embedded one.
        commit: The Hub commit of a cached snapshot, else None.
        is_builtin: Whether it is the embedded model.
    """

    path: Path
    name: str
    commit: str | None = None
    is_builtin: bool = False

    def name_with(self, adapter: str | None) -> str:
        """Returns the name as it is shown, with that of an adapter if there is one."""
        return f"{self.name}+{adapter}" if adapter else self.name


def resolve_model(
    name: str | None,
    *,
    on_progress: Progress | None = None,
    check_cancel: CheckCancel | None = None,
) -> ModelFolder:
    """Finds the folder of a model, and downloads it if it is a Hub id that is not on this disk.

    Args:
        name: None or `builtin`, a folder, or a Hub id `owner/name` with an optional `@revision`.
        on_progress: Called on this thread with (done, total) bytes while something is downloaded.
        check_cancel: Called on this thread while it downloads; what it raises ends the work.

    Raises:
        ModelNotFoundError: There is no such folder and no such model on the Hub.
        HubError: The Hub cannot be reached, refuses, or the disk is full.
    """
    if name is None or name == BUILTIN_NAME:
        return _builtin()
    if (folder := _local_folder(name)) is not None:
        return ModelFolder(folder, name)
    repo, revision = _parse_hub_id(name)
    snapshot = find_snapshot(repo, revision)
    if snapshot is not None and find_missing(snapshot) is None:
        return ModelFolder(snapshot, name, snapshot.name)
    if not is_offline():
        snapshot = _fetch(repo, revision, on_progress, check_cancel)
        return ModelFolder(snapshot, name, snapshot.name)
    if (other := _older_snapshot(repo, revision)) is not None:
        return ModelFolder(other, name, other.name)
    problem = f"incomplete ({find_missing(snapshot)})" if snapshot else f"empty{_similar(repo)}"
    raise HubError(
        f"{name} cannot be fetched in offline mode, and its local cache is {problem}; "
        "unset HF_HUB_OFFLINE, or name a model folder"
    )


def find_folder(name: str | None, commit: str | None = None) -> ModelFolder | None:
    """Finds the folder of a model on this disk, complete or not; nothing is fetched.

    Args:
        name: As in `resolve_model`.
        commit: Of a Hub snapshot; None is that of the name's revision.

    Raises:
        ModelNotFoundError: It names a folder that is not there, or is no Hub id either.
    """
    if name is None or name == BUILTIN_NAME:
        return _builtin()
    if (folder := _local_folder(name)) is not None:
        return ModelFolder(folder, name)
    repo, revision = _parse_hub_id(name)
    snapshot = find_snapshot(repo, commit or revision)
    if snapshot is None and revision is None:
        snapshot = find_older_snapshot(repo)
    return None if snapshot is None else ModelFolder(snapshot, name, snapshot.name)


def check_name(name: str | None) -> None:
    """Checks that a name can be a model's; nothing is fetched, and the Hub is not asked.

    Raises:
        ModelNotFoundError: It names a folder that is not there, or is no Hub id either.
    """
    if name not in (None, BUILTIN_NAME) and _local_folder(name) is None:
        _parse_hub_id(name)


def _fetch(
    repo: str,
    revision: str | None,
    on_progress: Progress | None,
    check_cancel: CheckCancel | None,
) -> Path:
    from mlxchat.model.hub_download import HubUnreachableError, download_snapshot

    try:
        path = download_snapshot(
            repo, revision, hub_cache_dir(), on_progress=on_progress, check_cancel=check_cancel
        )
    except HubUnreachableError:
        if (other := _older_snapshot(repo, revision)) is not None:
            return other
        raise
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}{_similar(repo)}") from None
    if (missing := find_missing(path)) is not None:
        raise HubError(f"{repo} on the Hub is not a complete model ({missing}); choose another")
    return path


def hub_cache_dir() -> Path:
    """Returns the Hub cache's folder, found as huggingface_hub finds it."""
    environ = os.environ
    home = environ.get("HF_HOME") or os.path.join(
        environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface"
    )
    place = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(place or os.path.join(home, "hub"))))


def is_offline() -> bool:
    """Tells whether the person has switched the Hub off."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE


def list_cached_repos() -> list[str]:
    """Lists the Hub ids that the local cache has anything of, sorted."""
    folders = hub_cache_dir().glob("models--*--*")
    return sorted(f.name.removeprefix("models--").replace("--", "/", 1) for f in folders)


def find_snapshot(repo: str, revision: str | None) -> Path | None:
    """Finds the cached snapshot of a revision, without any network call.

    Args:
        repo: Hub id, `owner/name`.
        revision: Branch, tag or commit; None is `main`.

    Returns:
        The snapshot's folder, complete or not, or None.
    """
    storage = _storage(repo)
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (storage / "refs" / commit).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = storage / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def find_missing(folder: Path) -> str | None:
    """Tells what a downloaded folder lacks to be a model: config, a shard, the tokenizer.

    Returns:
        The missing part in words, or None when the folder is complete.
    """
    if not (folder / "config.json").is_file():
        return "config.json is missing"
    try:
        find_weight_files(folder)
    except CheckpointError as error:
        return str(error).replace(f"{folder} ", "it ").split(";")[0]
    files = [file for file in folder.iterdir() if file.is_file()]
    is_tokenizer = (
        file.name in _TOKENIZER_FILES or file.suffix in _TOKENIZER_SUFFIXES for file in files
    )
    return None if any(is_tokenizer) else "the tokenizer is missing"


def _builtin() -> ModelFolder:
    # Not importlib.resources: MLX needs a real file, and that import costs 10 ms.
    path = Path(__file__).parent / "builtin"
    if not (path / "config.json").is_file():
        raise ModelNotFoundError("the built-in model is missing; install mlxchat again")
    return ModelFolder(path, BUILTIN_NAME, is_builtin=True)


def _local_folder(name: str) -> Path | None:
    """Returns the folder that `name` means, or None if it must be a Hub id."""
    path = Path(os.path.expanduser(name))
    try:
        if name and path.is_dir():
            return path.resolve()
        exists = bool(name) and path.exists()
    except (OSError, ValueError):  # a name with a NUL, or too long for the file system
        exists = False
    if exists:
        raise ModelNotFoundError(
            f"{shown(name)} is a file; name the folder that holds config.json and the weights"
        )
    if name.startswith(("/", "~", "./", "../")) or name in (".", "..") or name.endswith("/"):
        raise ModelNotFoundError(
            f"there is no folder {shown(name)}; name a model folder or a Hub id like owner/name"
        )
    return None


def _parse_hub_id(name: str) -> tuple[str, str | None]:
    repo, at, revision = name.partition("@")
    if "://" in name:
        problem = "is a web address"
    elif not _HUB_ID.fullmatch(repo) or repo.endswith((".git", ".", "-")):
        problem = "is neither a folder nor a Hub id"
    elif "--" in repo or ".." in repo or len(repo) > _MAX_ID_CHARS:
        problem = "is not a Hub id"
    elif at and (".." in revision or not _REVISION.fullmatch(revision)):
        problem = "has a revision that is not a branch, tag or commit"
    else:
        return repo, revision or None
    raise ModelNotFoundError(
        f"{shown(name) or 'an empty model name'} {problem}; "
        f"name a model folder or a Hub id like owner/name{_similar(repo)}"
    )


def _similar(repo: str) -> str:
    import difflib

    cached = {other.lower(): other for other in list_cached_repos()}
    by_name = {other.split("/")[1].lower(): other for other in cached.values()}
    close = difflib.get_close_matches(repo.lower(), cached, 1, 0.8)
    if close:
        return f" (cached: {shown(cached[close[0]])})"
    close = difflib.get_close_matches(repo.split("/")[-1].lower(), by_name, 1, 0.8)
    return f" (cached: {shown(by_name[close[0]])})" if close else ""


def _storage(repo: str) -> Path:
    return hub_cache_dir() / f"models--{repo.replace('/', '--')}"


def _older_snapshot(repo: str, revision: str | None) -> Path | None:
    """Returns the newest complete snapshot: another tool may have begun to fetch a newer one."""
    return find_older_snapshot(repo) if revision is None else None


def find_older_snapshot(repo: str) -> Path | None:
    """Returns the newest complete snapshot of a repository, whatever refers to it."""
    folders = sorted(
        (folder for folder in _storage(repo).glob("snapshots/*") if _COMMIT.fullmatch(folder.name)),
        key=lambda folder: folder.stat().st_mtime,
        reverse=True,
    )
    return next((folder for folder in folders if find_missing(folder) is None), None)
