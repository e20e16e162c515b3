"""Fetches one snapshot from the Hub: progress, cancel, and one clear line for whatever goes wrong.

The only module that imports huggingface_hub, and only when something must be fetched. The client
works on a thread of its own: the caller's thread reports progress and can stop waiting at any
moment, also while the network is silent. The client moves a file into place once it is whole.
"""

import contextlib
import errno
import fnmatch
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import thread as pools
from pathlib import Path
from typing import Any

from mlxchat.errors import HubError, MlxchatError, ModelNotFoundError
from mlxchat.model.safetensors_file import shown

Progress = Callable[[int, int], None]
CheckCancel = Callable[[], None]

# Weights, configs, templates, tokenizers. Never pickles (.bin, .pt) and never code (.py).
ALLOW_PATTERNS = (
    *("model*.safetensors", "*.json", "*.jinja"),
    *("tokenizer.model", "*.tiktoken", "vocab.txt", "merges.txt"),
    *("README.md", "LICENSE*"),  # small, and they say what one may do with the model
)
# Folders inside a repository hold other formats of the same model (onnx, original); numbered ones
# say how an embedding model pools (1_Pooling/config.json).
IGNORE_PATTERNS = ("[!0-9]*/*", "*/*/*")

_POLL_S = 0.1  # ten progress reports a second; also how late a cancel can be
_STOP_S = 1.0  # what a stopped download gets to remove its unfinished files
_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 64 << 20  # room to leave on the disk
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class HubUnreachableError(HubError):
    """The Hub gave no answer: what is cached may still do."""


class _StoppedError(Exception):
    """Ends the client's threads after a cancel."""


def is_wanted(name: str) -> bool:
    """Tells whether a file of a repository is one that is downloaded."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOW_PATTERNS) and not any(
        fnmatch.fnmatchcase(name, pattern) for pattern in IGNORE_PATTERNS
    )


def download_snapshot(
    repo: str,
    revision: str | None,
    cache_dir: Path,
    *,
    on_progress: Progress | None = None,
    check_cancel: CheckCancel | None = None,
) -> Path:
    """Downloads what a model needs into the Hub cache.

    Args:
        repo: Hub id, `owner/name`.
        revision: Branch, tag or commit; None is `main`.
        cache_dir: The Hub cache.
        on_progress: Called on this thread with (done, total) bytes.
        check_cancel: Called on this thread ten times a second; what it raises ends the download.

    Returns:
        The snapshot's folder.

    Raises:
        ModelNotFoundError: The Hub has no such model or revision.
        HubUnreachableError: The Hub gave no answer.
        HubError: Anything else that stops the download.
    """
    task = _Download(repo, revision, cache_dir)
    task.start()
    reported = (-1, -1)
    while True:
        ended = task.ended.wait(_POLL_S)
        if check_cancel is not None and not ended:
            try:
                check_cancel()
            except BaseException:
                task.stop()
                raise
        if on_progress is not None and task.meter.total and task.meter.state() != reported:
            reported = task.meter.state()
            on_progress(*reported)
        if ended:
            return task.result()


class _Meter:
    """Sums the client's progress bars into one count of bytes."""

    def __init__(self) -> None:
        self.total = 0
        self.stopped = False
        self.bars: list[_Bar] = []

    def state(self) -> tuple[int, int]:
        """Returns (done, total) bytes; of the bars that count the same bytes the fastest leads."""
        done = max((int(bar.n) for bar in list(self.bars)), default=0)
        return min(max(done, 0), self.total), self.total

    def check(self) -> None:
        # In a thread that Python did not start (hf_xet's) an exception would only be printed.
        is_ours = not isinstance(threading.current_thread(), threading._DummyThread)
        if self.stopped and is_ours:
            raise _StoppedError


class _Bar:
    """What huggingface_hub wants of a tqdm class, without drawing anything."""

    meter: _Meter  # set by the subclass that one download makes
    _lock: Any = threading.RLock()

    @classmethod
    def get_lock(cls) -> Any:
        return cls._lock

    @classmethod
    def set_lock(cls, lock: Any) -> None:
        cls._lock = lock

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *_: object,
        total: float | None = None,
        initial: float = 0,
        unit: str = "it",
        **__: object,
    ) -> None:
        self.iterable = iterable
        self.total = total
        self.n: float = initial
        self.format_dict: dict[str, Any] = {"rate": None}
        if unit == "B":
            self.meter.bars.append(self)

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable or ():
            yield item
            self.update(1)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        self.n += n or 0
        self.meter.check()

    def refresh(self, *_: object, **__: object) -> None:
        self.meter.check()

    def reset(self, total: float | None = None) -> None:
        self.n, self.total = 0, total if total is not None else self.total

    def close(self) -> None: ...

    def clear(self, *_: object, **__: object) -> None: ...

    def set_description(self, *_: object, **__: object) -> None: ...

    def set_description_str(self, *_: object, **__: object) -> None: ...

    def set_postfix(self, *_: object, **__: object) -> None: ...

    def set_postfix_str(self, *_: object, **__: object) -> None: ...


class _Download:
    """One download on its own thread."""

    def __init__(self, repo: str, revision: str | None, cache_dir: Path) -> None:
        self.repo = repo
        self.revision = revision
        self.cache_dir = cache_dir
        self.meter = _Meter()
        self.ended = threading.Event()
        self._earlier_threads = set(_pool_threads())
        self._path: Path | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="hub-download", daemon=True).start()

    def stop(self) -> None:
        self.meter.stopped = True
        for close in (_abort_xet, _close_session):
            # Best effort: without them the client's threads stop at their next chunk.
            with contextlib.suppress(Exception):
                close()
        if not self.ended.wait(_STOP_S):
            _forget_pool_threads(self._earlier_threads)

    def result(self) -> Path:
        if self._error is not None:
            raise explain_failure(self._error, self.repo, self.revision, self.cache_dir) from None
        assert self._path is not None
        return self._path

    def _run(self) -> None:
        try:
            self._path = self._fetch()
        except BaseException as error:  # raised again, in words, on the caller's thread
            self._error = error
        finally:
            self.ended.set()

    def _fetch(self) -> Path:
        import huggingface_hub

        # The client's notes on retries would land in the middle of the screen.
        huggingface_hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        # A chunk is what lies between two progress reports, and between a cancel and its effect.
        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
        info = huggingface_hub.HfApi().model_info(
            self.repo, revision=self.revision, files_metadata=True
        )
        self.meter.check()
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        wanted = {name: size for name, size in sizes.items() if is_wanted(name)}
        _check_formats(self.repo, sizes, wanted)
        snapshot = self._storage() / "snapshots" / str(info.sha)
        self.meter.total = sum(s for name, s in wanted.items() if not (snapshot / name).exists())
        _check_space(self.repo, self.meter.total, self.cache_dir)
        bar = type("_DownloadBar", (_Bar,), {"meter": self.meter})
        return Path(
            huggingface_hub.snapshot_download(
                self.repo,
                revision=self.revision,
                cache_dir=self.cache_dir,
                allow_patterns=list(ALLOW_PATTERNS),
                ignore_patterns=list(IGNORE_PATTERNS),
                tqdm_class=bar,
            )
        )

    def _storage(self) -> Path:
        return self.cache_dir / f"models--{self.repo.replace('/', '--')}"


def _abort_xet() -> None:
    from huggingface_hub.utils._xet import abort_xet_session

    abort_xet_session()  # type: ignore[no-untyped-call]


def _close_session() -> None:
    import huggingface_hub

    huggingface_hub.close_session()


def _pool_threads() -> MutableMapping[threading.Thread, Any]:
    found: MutableMapping[threading.Thread, Any] = getattr(pools, "_threads_queues", {})
    return found


def _forget_pool_threads(earlier: set[threading.Thread]) -> None:
    # Python joins pool threads at exit; one that reads from a silent socket would hold the exit up
    # for a minute (measured: 65 s). They are daemons, so the exit can end them.
    for thread in [t for t in list(_pool_threads()) if t.daemon and t not in earlier]:
        _pool_threads().pop(thread, None)


def _check_formats(repo: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    if any(name.endswith(".safetensors") for name in wanted):
        return
    suffixes = {Path(name).suffix for name in names}
    if ".gguf" in suffixes:
        problem = "has only GGUF weights"
    elif suffixes & {".bin", ".pt", ".pth", ".ckpt"}:
        problem = "has only pickled weights, which are never loaded"
    else:
        problem = "has no model*.safetensors"
    raise HubError(f"{repo} {problem}; choose its safetensors or MLX version on the Hub")


def _check_space(repo: str, needed: int, cache_dir: Path) -> None:
    place = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed + _SPARE_BYTES > free:
        raise HubError(
            f"{repo} needs {needed / 2**30:.1f} GiB, {place} has {free / 2**30:.1f} GiB free; "
            "free some space, or move the cache with HF_HOME"
        )


def explain_failure(
    error: BaseException, repo: str, revision: str | None, cache_dir: Path
) -> MlxchatError:
    """Turns what the Hub client raised into one line: what was wrong, what to try."""
    if isinstance(error, MlxchatError):
        return error
    chain = list(_causes(error))
    for explain in (_explain_disk, _explain_name, _explain_answer, _explain_silence):
        for cause in chain:
            if (told := explain(cause, repo, revision, cache_dir)) is not None:
                return told
    reason = shown((str(error).splitlines() or [""])[0], 160)
    return HubError(f"{repo} could not be fetched ({type(error).__name__}: {reason}); try again")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _explain_disk(
    error: BaseException, repo: str, revision: str | None, cache_dir: Path
) -> MlxchatError | None:
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return HubError(
            f"the disk of {cache_dir} is full; free some space, or move the cache with HF_HOME"
        )
    is_file_error = isinstance(error, OSError) and error.filename is not None
    if is_file_error and code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return HubError(f"{cache_dir} cannot be written; set HF_HOME to a folder that can")
    return None


def _explain_name(
    error: BaseException, repo: str, revision: str | None, cache_dir: Path
) -> MlxchatError | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        return HubError(f"{repo} is gated; accept its terms on its Hub page, then {_LOGIN}")
    if "RevisionNotFoundError" in names:
        return ModelNotFoundError(f"{repo} has no revision {revision}; leave out @{revision}")
    if "RepositoryNotFoundError" in names:
        return ModelNotFoundError(
            f"the Hub has no public model {repo}, and here is no such folder; "
            f"check the spelling, or {_LOGIN} if it is private"
        )
    if "DisabledRepoError" in names:
        return HubError(f"{repo} was disabled on the Hub; choose another model")
    if "HFValidationError" in names:
        return ModelNotFoundError(f"{repo} is not a Hub id; name a folder or an id like owner/name")
    if "ModuleNotFoundError" in names:
        return HubError("huggingface_hub is not installed; install mlxchat again")
    return None


def _explain_answer(
    error: BaseException, repo: str, revision: str | None, cache_dir: Path
) -> MlxchatError | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int):
        return None
    if status in (401, 403):
        return HubError(f"the Hub refuses access to {repo} (status {status}); {_LOGIN}")
    if status == 429:
        return HubError(f"the Hub asks to slow down (status 429); wait a few minutes, or {_LOGIN}")
    if status >= 500:
        return HubUnreachableError(f"the Hub has trouble (status {status}); try again later")
    return HubError(f"the Hub refused to send {repo} (status {status}); try again later")


def _explain_silence(
    error: BaseException, repo: str, revision: str | None, cache_dir: Path
) -> MlxchatError | None:
    kind = type(error)
    if kind.__name__ == "OfflineModeIsEnabled":
        return HubUnreachableError(f"{repo} is not cached and the Hub is off; unset HF_HUB_OFFLINE")
    # The client's HTTP library has changed its name twice; its classes are known by their package.
    is_network = kind.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")
    if is_network or isinstance(error, ConnectionError | TimeoutError):
        return HubUnreachableError(
            f"cannot reach the Hub to fetch {repo} ({kind.__name__}); check the connection and "
            "proxy, or name a model folder on this disk"
        )
    if kind.__name__ in ("LocalEntryNotFoundError", "IncompleteSnapshotError"):
        return HubUnreachableError(
            f"the Hub does not answer and {repo} is not cached; check the connection"
        )
    return None
