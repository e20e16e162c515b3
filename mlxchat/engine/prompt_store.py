"""The folder of stored prefixes: search, chains, eviction. Safe for several processes.

One file per stored prefix (`stored_file.py`), whose name tells all that a search needs
(`stored_name.py`). So there is no index that could be wrong: listing the folder is the index. Free
of MLX; what the files mean is `stored_prefix.py`'s business, when one is written `chat/`'s.
"""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlxchat import paths
from mlxchat.engine.store_budget import Budget, Usage
from mlxchat.engine.stored_file import (
    TEMPORARY_PREFIX,
    BadFileError,
    Description,
    StoredFile,
)
from mlxchat.engine.stored_name import (
    MIN_IDS,
    Entry,
    What,
    hash_first,
    make_entry,
    make_name,
    parse_name,
)
from mlxchat.engine.token_ids import count_common, pack_ids

LABEL_CHARS = 60
# Where sequences can be trimmed, so many of the files last used are tried for a common beginning.
MAX_PARTIAL_TRIES = 256
# A temporary file that nobody has written to for this long belongs to a process that is gone.
ABANDONED_S = 3600.0


class BrokenChainError(Exception):
    """A stored prefix cannot be used, for itself or for a file that it builds on.

    Args:
        damaged: The file that must not be believed; None where one has merely gone.
        problem: What is wrong.
    """

    def __init__(self, damaged: Entry | None, problem: str) -> None:
        super().__init__(problem)
        self.damaged = damaged


@dataclass(frozen=True, slots=True)
class Match:
    """A stored prefix that begins as wanted, for `num_common` ids."""

    entry: Entry
    num_common: int


@dataclass(slots=True)
class PromptStore:
    """Finds, admits and gives up stored prefixes.

    Attributes:
        folder: Where the files lie; made when something is written.
        budget: How much they may take.
        notices: What the person should hear, each once; whoever shows them empties the list.
        is_writable: False after a write failed: it is not tried again and again.
    """

    folder: Path = field(default_factory=lambda: paths.cache_dir() / "prompts")
    budget: Budget = field(default_factory=Budget)
    notices: list[str] = field(default_factory=list)
    is_writable: bool = True
    _given_up: set[str] = field(default_factory=set)

    # -- what is there -----------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Lists what is stored, in no order; other files of the folder are passed over."""
        found = []
        try:
            with os.scandir(self.folder) as items:
                for item in items:
                    match = parse_name(item.name)
                    if match is None or item.name in self._given_up:
                        continue
                    with contextlib.suppress(OSError):  # another process has just removed it
                        status = item.stat(follow_symlinks=False)
                        found.append(make_entry(match, status))
        except OSError:
            return []
        return found

    def describe(self, entry: Entry) -> Description:
        """Reads what a file says about itself; its values are not checked.

        Raises:
            BadFileError: It is not what its name promises.
            OSError: It is gone or cannot be read.
        """
        with self.open(entry) as file:
            return file.description

    def open(self, entry: Entry) -> StoredFile:
        """Opens a file, whose header must agree with its name.

        Raises:
            BadFileError: It does not.
            OSError: It is gone or cannot be read.
        """
        file = StoredFile(self.folder / entry.name)
        says = file.description
        promised = (entry.key, entry.num_ids, entry.what)
        if (says.key[: len(entry.key)], says.num_ids, says.what) != promised:
            file.__exit__()
            raise BadFileError("its name and its content are not of the same prefix")
        return file

    def find(
        self,
        key: str,
        token_ids: Sequence[int],
        *,
        at_least: int = MIN_IDS,
        partly: bool = False,
        kinds: Iterable[What] = ("system", "conversation"),
    ) -> Match | None:
        """Finds the stored prefix that serves most of the ids.

        Args:
            key: Of the model.
            token_ids: What the cache shall hold.
            at_least: Shorter prefixes are of no use.
            partly: A longer prefix may serve that only begins as wanted.
            kinds: What may serve.
        """
        if len(token_ids) < max(at_least, MIN_IDS):
            return None
        first = hash_first(token_ids)
        allowed = set(kinds)
        near = [
            e
            for e in self.entries()
            if e.key == key[:32] and e.first == first and e.what in allowed
        ]
        best = self._find_whole(near, token_ids)
        if best is not None and best.num_common < at_least:
            best = None
        if partly:
            best = self._find_longer(near, token_ids, best, at_least)
        return best

    @staticmethod
    def _find_whole(near: list[Entry], token_ids: Sequence[int]) -> Match | None:
        """The longest entry that the ids begin with; only hashes are compared."""
        best, done, running = None, 0, hashlib.sha256()
        for entry in sorted(near, key=lambda e: e.num_ids):
            if entry.num_ids > len(token_ids):
                break
            running.update(pack_ids(token_ids[done : entry.num_ids]))
            done = entry.num_ids
            if running.hexdigest()[:32] == entry.ids_hash:
                best = Match(entry, done)
        return best

    def _find_longer(
        self, near: list[Entry], token_ids: Sequence[int], best: Match | None, at_least: int
    ) -> Match | None:
        """An entry that has more ids in common than `best`, though not all of its own."""
        enough = max(at_least, best.num_common + MIN_IDS if best else 0)
        longer = [e for e in near if e.num_ids > enough]
        longer.sort(key=lambda e: e.used, reverse=True)
        for entry in longer[:MAX_PARTIAL_TRIES]:
            with contextlib.suppress(OSError, BadFileError), self.open(entry) as file:
                common = count_common(file.read_ids(), token_ids)
                if common >= enough:
                    best, enough = Match(entry, common), common + 1
        return best

    def chain(self, entry: Entry) -> list[Entry]:
        """Returns a file's ancestors and itself, the first one first.

        Raises:
            BrokenChainError: One of them is gone, cannot be read, or is not what it should be.
        """
        links = [entry]
        says = self._describe_link(entry)
        while says.parent:
            match = parse_name(says.parent)
            if match is None:
                raise BrokenChainError(links[0], "it names an impossible parent")
            try:
                links.insert(0, make_entry(match, os.lstat(self.folder / says.parent)))
            except OSError:
                raise BrokenChainError(None, "its parent is gone") from None
            above, says = says, self._describe_link(links[0])
            if (says.depth, says.num_ids) != (above.depth - 1, above.start):
                raise BrokenChainError(links[1], "it names an impossible parent")
        return links

    def _describe_link(self, entry: Entry) -> Description:
        with self.link(entry) as file:
            return file.description

    @contextlib.contextmanager
    def link(self, entry: Entry) -> Iterator[StoredFile]:
        """Opens a file of a chain.

        Raises:
            BrokenChainError: What went wrong, inside the block too.
        """
        try:
            with self.open(entry) as file:
                yield file
        except BadFileError as problem:
            raise BrokenChainError(entry, str(problem)) from None
        except FileNotFoundError:
            raise BrokenChainError(None, "it is gone") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise BrokenChainError(entry, f"cannot be read: {reason}") from None

    # -- changes -----------------------------------------------------------------------------------

    def touch(self, chain: Sequence[Entry]) -> None:
        """Notes that files were used; ancestors count as used later, so they are given up last."""
        now = time.time_ns()
        for age, entry in enumerate(chain):
            moment = now - age * 1000
            with contextlib.suppress(OSError):
                os.utime(self.folder / entry.name, ns=(moment, moment))

    def give_up(self, entry: Entry, broken: BrokenChainError) -> None:
        """Removes a file that cannot be used; one that must not be believed is named, once.

        What cannot be removed is not looked at again.
        """
        damaged = broken.damaged
        if damaged is not None and damaged.name not in self._given_up:
            self.notices.append(
                f"a stored prompt cache was not used and is removed ({broken});"
                " its tokens are read again"
            )
        gone = [entry] if damaged is None else [entry, damaged]
        self._given_up.update(e.name for e in gone)
        self.remove(gone)

    def remove(self, entries: Iterable[Entry]) -> list[Entry]:
        """Removes files; returns those that are gone now."""
        gone = []
        for entry in entries:
            try:
                (self.folder / entry.name).unlink(missing_ok=True)
            except OSError:
                continue
            gone.append(entry)
        return gone

    def make_room(self, num_bytes: int, keep: Iterable[str] = ()) -> bool:
        """Gives up the files least recently used until `num_bytes` more fit.

        Args:
            num_bytes: Size of a file that shall be written.
            keep: Names of files that it needs.

        Returns:
            Whether they fit. If they would not fit even then, nothing is given up.
        """
        entries, needed, usage = self.entries(), set(keep), self.usage()
        excess = usage.used + num_bytes - usage.allowed
        victims = []
        for entry in sorted(entries, key=lambda e: e.used):
            if excess <= 0:
                break
            if entry.name not in needed:
                victims.append(entry)
                excess -= entry.num_bytes
        if excess > 0 and num_bytes:
            return False
        self.remove(victims)
        return excess <= 0

    def note_use(self, name: str, used: Sequence[Entry] = ()) -> None:
        """Notes that a file was written, and which files it builds on, the nearest first."""
        match = parse_name(name)
        if match is not None:
            self._given_up.discard(name)
            with contextlib.suppress(OSError):
                self.touch([make_entry(match, os.lstat(self.folder / name)), *used])

    def usage(self) -> Usage:
        """Returns what is taken and what may be taken."""
        return self.budget.measure(self.folder, sum(e.num_bytes for e in self.entries()))

    def explain_refusal(self) -> str:
        """Returns why something was not stored though nothing failed."""
        return self.budget.explain_refusal(self.usage())

    def prepare(self) -> None:
        """Makes the folder, for its owner only.

        Raises:
            OSError: It cannot be made.
        """
        paths.make_private_dir(self.folder)
        status = os.lstat(self.folder)
        if status.st_mode & 0o077:
            self.folder.chmod(0o700)
        self._remove_temporary(ABANDONED_S)

    def path_of(self, key: str, token_ids: Sequence[int], what: What) -> Path:
        """Returns where a prefix is stored."""
        return self.folder / make_name(key, token_ids, what)

    def note_failure(self, error: OSError) -> None:
        """Stops writing for this process, and says why once."""
        if self.is_writable:
            self.is_writable = False
            reason = error.strerror or type(error).__name__
            hint = "free some space" if error.errno == errno.ENOSPC else "check its permissions"
            self.notices.append(
                f"prompt caches cannot be stored in {self.folder} ({reason}); {hint}."
                " The chat goes on without"
            )

    # -- tidying -----------------------------------------------------------------------------------

    def prune(self) -> list[Entry]:
        """Removes what is of no use: broken headers, files without their parent, files over budget.

        Left-over temporary files go too, uncounted.
        """
        self._remove_temporary(ABANDONED_S)
        unusable = []
        for entry in self.entries():
            try:
                self.chain(entry)
            except BrokenChainError:
                unusable.append(entry)
        gone = self.remove(unusable)
        before = {e.name: e for e in self.entries()}
        self.make_room(0)
        left = {e.name for e in self.entries()}
        return gone + [e for name, e in before.items() if name not in left]

    def forget(self, owners: Iterable[int] | None = None) -> list[Entry]:
        """Removes what is stored of conversations; returns what was removed.

        Args:
            owners: Their numbers in the history; None for all.
        """
        if owners is None:
            return self.remove(e for e in self.entries() if e.what == "conversation")
        wanted = {str(number) for number in owners}
        return self._remove_where("conversation", lambda says: says.owner in wanted)

    def forget_systems(self, labels: Collection[str]) -> list[Entry]:
        """Removes the system prompts with some labels (`make_label`); returns what was removed."""
        return self._remove_where("system", lambda says: says.label in labels)

    def _remove_where(self, what: What, is_meant: Callable[[Description], bool]) -> list[Entry]:
        mine = []
        for entry in self.entries():
            with contextlib.suppress(BadFileError, OSError):
                if entry.what == what and is_meant(self.describe(entry)):
                    mine.append(entry)
        return self.remove(mine)

    def clear(self) -> list[Entry]:
        """Removes every stored prefix; returns what was removed."""
        self._remove_temporary(0)
        return self.remove(self.entries())

    def _remove_temporary(self, older_than_s: float) -> None:
        with contextlib.suppress(OSError), os.scandir(self.folder) as items:
            for item in items:
                if item.name.startswith(TEMPORARY_PREFIX):
                    with contextlib.suppress(OSError):
                        age = time.time() - item.stat(follow_symlinks=False).st_mtime
                        if age >= older_than_s:
                            os.unlink(item.path)


def make_label(first: str) -> str:
    """Returns what a stored prompt is called: the beginning of its first message, in one line."""
    return " ".join(first.split())[:LABEL_CHARS]
