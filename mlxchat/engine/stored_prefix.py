"""Between a live sequence and the store: prefixes stored and loaded, a piece at a time.

Runs on the worker thread. Rows that never change are stored once: a longer prefix is stored as
what its longest stored beginning lacks. What a file holds is taken over only after its checksum was
found right. What layers are in a file is `stored_layers.py`'s business.
"""

import contextlib
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from mlxchat import __version__
from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.prompt_store import BrokenChainError, Match, PromptStore
from mlxchat.engine.stored_file import (
    FORMAT,
    BadFileError,
    Description,
    FileWriter,
)
from mlxchat.engine.stored_layers import LiveLayers, full_layers, make_array, read_meta
from mlxchat.engine.stored_name import MIN_IDS, Entry, What
from mlxchat.model.device import make_device_plan
from mlxchat.model.kv_cache import Meta
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.sequence_cache import SequenceCache

# Files that are read one after the other for one prefix; a longer chain is written anew.
MAX_DEPTH = 8


def make_key(
    fingerprint: str, model: LanguageModel, kv_bits: int | None = None, *, steering: str = ""
) -> str:
    """Returns the hash of all that keys and values depend on, apart from the token ids.

    Args:
        fingerprint: Of config and weights; rope and attention settings are in the config.
        model: As it was loaded: how its weights are kept changes the rounding.
        kv_bits: Of quantised keys and values.
        steering: What is added to its residual stream; nothing for the plain model.
    """
    plan = make_device_plan()
    binds = {
        "format": FORMAT,
        "model": fingerprint,
        "implementation": f"{type(model).__name__} {__version__} {_zoo_version(model)}",
        "mlx": getattr(mx, "__version__", ""),
        "backend": plan.backend,
        "float32": plan.float32,
        "weight_bytes": model.info.weight_bytes,
        "adapter": None,
        "kv_bits": kv_bits,
    }
    if steering:
        binds["steering"] = steering
    return hashlib.sha256(json.dumps(binds, sort_keys=True).encode()).hexdigest()


def _zoo_version(model: LanguageModel) -> str:
    """The version of mlx-lm, for models whose code is in it."""
    if not hasattr(model, "module_name"):
        return ""
    package = sys.modules.get("mlx_lm")
    return str(getattr(package, "__version__", ""))


@dataclass(slots=True)
class StoredPrefixes:
    """Stores prefixes of one model's live sequence, and loads them.

    Attributes:
        store: The folder.
        key: From `make_key`.
        model_name: For people.
        prefix: The live sequence.
        unstorable: Why this model's cache has no stored form, once that was found.
    """

    store: PromptStore
    key: str
    model_name: str
    prefix: PrefixCache
    unstorable: str = ""
    _loaded: list[Entry] = field(default_factory=list)
    _finishing: list[threading.Thread] = field(default_factory=list)

    # -- loading -----------------------------------------------------------------------------------

    def restore(
        self,
        token_ids: Sequence[int],
        *,
        at_least: int,
        kinds: Iterable[What],
        check: Callable[[], None],
        keep_branch: bool = False,
    ) -> int:
        """Makes the longest stored prefix of some ids the live sequence.

        Damaged files are given up on the way.

        Args:
            token_ids: The ids that may be held afterwards.
            at_least: A shorter prefix is not worth it; the live sequence stays.
            kinds: What may serve.
            check: Called between pieces; may raise to stop.
            keep_branch: Stash what the live sequence held, since the person may come back.

        Returns:
            How many ids are held now; 0 where nothing was changed.
        """
        partly, allowed = self.prefix.is_trimmable, tuple(kinds)
        while match := self.store.find(
            self.key, token_ids, at_least=at_least, partly=partly, kinds=allowed
        ):
            try:
                cache, chain = self._load(match, token_ids, check)
            except BrokenChainError as broken:
                self.store.give_up(match.entry, broken)
            else:
                ids = token_ids[: match.num_common]
                self.prefix.adopt(cache, ids, keep_branch=keep_branch)
                self.store.touch(chain[::-1])
                self._loaded = chain
                return match.num_common
        return 0

    def _load(
        self, match: Match, token_ids: Sequence[int], check: Callable[[], None]
    ) -> tuple[SequenceCache, list[Entry]]:
        """Reads a stored prefix into a new cache; also returns the files that were read."""
        chain, wanted = self.store.chain(match.entry), match.num_common
        while len(chain) > 1 and chain[-2].num_ids >= wanted:
            chain.pop()
        meta: Meta = {}
        parts: dict[str, list[mx.array]] = {}
        for link in chain:
            with self.store.link(link) as file:
                if file.description.key != self.key:
                    raise BadFileError("it is of another model")
                common = min(wanted, link.num_ids)
                if file.read_ids()[:common] != list(token_ids[:common]):
                    raise BadFileError("it is of other token ids")
                meta = read_meta(file.description)
                full = full_layers(meta)
                for info, data in file.read_tensors(check):
                    is_rows = info.name.partition(".")[0] in full
                    before = parts.get(info.name, []) if is_rows else []
                    parts[info.name] = [*before, make_array(info, data)]
        with _names_problem(chain[-1]):
            return self._fill(meta, parts, chain[-1].num_ids, wanted), chain

    def _fill(
        self, meta: Meta, parts: dict[str, list[mx.array]], held: int, wanted: int
    ) -> SequenceCache:
        """Puts what was read into a new cache, and goes back to the ids that are wanted."""
        arrays = {n: p[0] if len(p) == 1 else mx.concatenate(p, axis=2) for n, p in parts.items()}
        parts.clear()
        for layer in full_layers(meta):
            meta[f"{layer}.start"] = 0
        cache = self.prefix.make_cache()
        cache.load_export(meta, arrays)
        arrays.clear()
        mx.eval(cache.arrays())
        if cache.offsets() - {held}:
            raise BadFileError("its rows are not as many as its ids")
        if wanted < held:
            cache.rewind(wanted)
        return cache

    def remove_loaded(self) -> None:
        """Removes the files that were loaded last."""
        self.store.remove(self._loaded)
        self._loaded = []

    # -- storing -----------------------------------------------------------------------------------

    def reachable(self, wanted: int) -> int:
        """Returns the last position up to `wanted` at which the live sequence can be stored."""
        held = self.prefix.held()
        if wanted >= len(held.token_ids):
            return len(held.token_ids)
        if wanted >= held.rewind_from:
            return wanted
        return max((m for m in held.marks if m <= wanted), default=0)

    def save(self, end: int, what: What, label: str, owner: str = "") -> Iterator[None]:
        """Stores the first `end` ids of the live sequence, a piece per step.

        Between two steps turns may run; storing ends when they changed these ids. Closing the
        generator early leaves nothing behind. The file gets its name on a thread of its own.

        Args:
            end: From `reachable`.
            what: What the ids are.
            label: The beginning of the system prompt, for people.
            owner: Number of the conversation in the history.
        """
        prefix, store = self.prefix, self.store
        token_ids = prefix.token_ids[:end]
        while self._is_finishing():  # what comes to the disk now may be what this builds on
            yield
        is_held = prefix.token_ids[:end] == token_ids and self.reachable(end) == end
        if end < MIN_IDS or not is_held or not store.is_writable or self.unstorable:
            return
        path = store.path_of(self.key, token_ids, what)
        parent = self._find_parent(token_ids, what)
        if parent and parent[-1].num_ids == end:
            store.touch(parent[::-1])
            return
        replaced: list[Entry] = []
        if len(parent) > MAX_DEPTH:
            parent, replaced = parent[:1], parent[1:]
        source = LiveLayers(prefix, end, parent[-1].num_ids if parent else 0)
        if source.problem:
            self.unstorable = source.problem
            store.notices.append(f"this model's cache is not stored: {source.problem}")
            return
        description = Description(
            key=self.key,
            model=self.model_name,
            label=label,
            owner=owner,
            what=what,
            num_ids=end,
            start=source.start,
            parent=parent[-1].name if parent else "",
            depth=len(parent),
            created=time.time(),
            cache=json.dumps(source.meta),
        )
        try:
            yield from self._write(path, description, token_ids, source, parent, replaced)
        except OSError as error:
            store.note_failure(error)

    def _write(
        self,
        path: Path,
        description: Description,
        token_ids: list[int],
        source: LiveLayers,
        parent: list[Entry],
        replaced: list[Entry],
    ) -> Iterator[None]:
        """Writes a file, a piece per step, as long as the live sequence begins with its ids."""
        self.store.prepare()
        if not self.store.make_room(source.num_bytes, [e.name for e in parent]):
            return
        writer: FileWriter | None = FileWriter(path, description, token_ids, source.shapes)
        assert writer is not None
        try:
            for piece in source.pieces():
                writer.write(piece)
                yield
                if self.prefix.token_ids[: len(token_ids)] != token_ids:
                    return
            self._finish(writer, parent[::-1], replaced)
            writer = None
        finally:
            if writer is not None:
                writer.abandon()

    def is_stored(self, token_ids: Sequence[int], what: What) -> bool:
        """Says whether there is a file of exactly these ids."""
        return self.store.path_of(self.key, token_ids, what).exists()

    def _find_parent(self, token_ids: Sequence[int], what: What) -> list[Entry]:
        """The files of the longest stored beginning of the ids, if there is one."""
        kinds: tuple[What, ...] = ("system",) if what == "system" else ("system", "conversation")
        match = self.store.find(self.key, token_ids, kinds=kinds)
        if match is None:
            return []
        try:
            return self.store.chain(match.entry)
        except BrokenChainError as broken:
            self.store.give_up(match.entry, broken)
            return []

    def _finish(self, writer: FileWriter, used: list[Entry], replaced: list[Entry]) -> None:
        """Brings a file to the disk while the worker goes on: that may take seconds."""

        def finish() -> None:
            try:
                writer.commit()
            except FileNotFoundError:
                return  # the folder was cleared meanwhile
            except OSError as error:
                self.store.note_failure(error)
                return
            self.store.remove(replaced)
            self.store.note_use(writer.path.name, used)

        thread = threading.Thread(target=finish, name="prompt-store")
        thread.start()
        self._finishing.append(thread)

    def _is_finishing(self, patience_s: float = 0.01) -> bool:
        self._finishing = [thread for thread in self._finishing if thread.is_alive()]
        for thread in self._finishing:
            thread.join(patience_s)
        return bool(self._finishing)

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until everything that was stored is on the disk."""
        for thread in self._finishing:
            thread.join(timeout_s)


@contextlib.contextmanager
def _names_problem(entry: Entry) -> Iterator[None]:
    """Turns what goes wrong with a file whose bytes are right into a broken chain."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RuntimeError, BadFileError) as error:
        raise BrokenChainError(entry, f"it does not fit the model: {error}") from None
