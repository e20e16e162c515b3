"""The live sequence, and the marks and stashes that bring earlier ones back.

The live sequence is one `SequenceCache` and the ids that were fed into it, nothing else. How it
goes on with new ids is planned in `reuse_plan.py` and done here: go on, trim, restore a mark,
resume a stashed branch, or start afresh. Layers that cannot be trimmed (recurrent state, wrapped
windows) come back from marks: snapshots at positions that will be needed again. A missing mark
costs time, never exactness.

Knows token ids and positions; why a position matters (messages, templates) is `chat/`'s business.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlxchat.engine.reuse_plan import Held, Plan, make_plan
from mlxchat.engine.token_ids import count_common
from mlxchat.model.kv_cache import RowCache
from mlxchat.model.kv_quantization import Rows
from mlxchat.model.sequence_cache import Marks, SequenceCache

# Shorter branches are read again sooner than their copies pay off.
MIN_STASH_TOKENS = 32


@dataclass(slots=True, eq=False)
class Stash:
    """A branch left behind: the rows after `base`, and marks that bring the other layers back."""

    base: int
    token_ids: list[int]
    rows: list[Rows | None]
    marks: dict[int, Marks]

    @property
    def nbytes(self) -> int:
        """Bytes held by copied rows and marks."""
        rows = sum(a.nbytes for held in self.rows if held for a in held.values())
        return rows + sum(_mark_bytes(m) for m in self.marks.values())


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What `/cache` shows: ids and bytes held, and where the marks are."""

    num_tokens: int
    kinds: tuple[str, ...]
    live_bytes: int
    marks: tuple[tuple[int, int], ...]
    stashes: tuple[tuple[int, int, int], ...]
    budget_bytes: int
    kv_bits: int | None = None
    num_quantised: tuple[int, int] = (0, 0)  # layers, of all


@dataclass(slots=True)
class PrefixCache:
    """The live sequence with its marks and stashes, held to a byte budget.

    Attributes:
        make_cache: Returns an empty cache of the model.
        budget_bytes: Limit for marks and stashes together.
        cache: The model's cache; holds exactly `token_ids`.
        token_ids: Every id that was fed, in order.
    """

    make_cache: Callable[[], SequenceCache]
    budget_bytes: int = 1 << 30
    cache: SequenceCache = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    marks: dict[int, Marks] = field(default_factory=dict)
    stashes: list[Stash] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = self.make_cache()

    @property
    def is_trimmable(self) -> bool:
        """Whether every position can be reached without marks, now and later."""
        return self.cache.kinds <= {"full"}

    def held(self) -> Held:
        """Describes the live sequence for the planner."""
        size = len(self.token_ids)
        marks = tuple(p for p, m in sorted(self.marks.items()) if self.cache.can_restore(p, m))
        return Held(tuple(self.token_ids), _first_rewindable(self.cache, size), marks)

    def plan(self, new_ids: Sequence[int], *, marks: Iterable[int] = (), leave: int = 1) -> Plan:
        """Plans how the cache gets to `new_ids` (see `make_plan`)."""
        stashes = [
            Held(tuple(s.token_ids), self._stash_rewind(s), tuple(sorted(s.marks)), s.base)
            for s in self.stashes
        ]
        wanted = () if self.is_trimmable else marks
        return make_plan(self.held(), new_ids, stashes=stashes, marks=wanted, leave=leave)

    def _stash_rewind(self, stash: Stash) -> int:
        """Smallest position a resumed stash can be trimmed to."""
        if self.is_trimmable:
            return stash.base
        return len(stash.token_ids)

    def apply(self, plan: Plan, *, keep_branch: bool = False) -> Stash | None:
        """Brings the cache to `plan.start` ids.

        Args:
            plan: Made by `plan` since the last change.
            keep_branch: Stash what is left behind, since the person may come back.

        Returns:
            What was stashed.
        """
        stash = self.stashes.pop(plan.stash) if plan.stash is not None else None
        target = stash.base if stash else plan.start
        left = None
        if keep_branch and len(self.token_ids) - target >= MIN_STASH_TOKENS:
            left = self._copy_branch(target)
        self._go_to(target)
        if left is not None:
            self._take_mark()  # the branch that is left is resumed from here
        if stash is not None:
            self._resume(stash)
            self._go_to(plan.start)
        if left is not None:
            self._keep(left)
        self._thin()  # last: until here any mark may be the one that is needed
        return left

    def reset(self) -> None:
        """Forgets everything, marks and stashes included."""
        self.stashes.clear()
        self.marks.clear()
        self.token_ids.clear()
        self.cache = self.make_cache()  # a forward pass that broke off may have filled some layers

    def adopt(
        self, cache: SequenceCache, token_ids: Sequence[int], *, keep_branch: bool = False
    ) -> None:
        """Makes another cache the live sequence; marks and stashes that still fit it stay.

        Args:
            cache: Made by `make_cache` and filled; holds exactly `token_ids`.
            token_ids: Every id in it.
            keep_branch: Stash what is left behind, since the person may come back.
        """
        common = count_common(self.token_ids, token_ids)
        marks = {p: m for p, m in self.marks.items() if p <= common and cache.can_restore(p, m)}
        # Where the new sequence can be brought to, to go on as the old one did.
        base = common if cache.can_rewind(common) else max(marks, default=0)
        if is_kept := keep_branch and len(self.token_ids) - base >= MIN_STASH_TOKENS:
            self._keep(self._copy_branch(base))
        self.cache, self.token_ids, self.marks = cache, list(token_ids), marks
        if is_kept and len(token_ids) == base:
            self._take_mark()
        self._thin()

    def extend(self, token_ids: Iterable[int]) -> None:
        """Notes ids that were just fed."""
        self.token_ids.extend(token_ids)

    def mark(self) -> None:
        """Takes a mark at the current position and thins old ones to the budget."""
        self._take_mark()
        self._thin()

    def drop_stash(self, stash: Stash) -> None:
        """Lets go of a stash that will not be wanted again, if it is still there."""
        self.stashes = [held for held in self.stashes if held is not stash]

    def drop_mark(self, position: int) -> None:
        """Lets go of a mark that will not be wanted again, if it is still there."""
        self.marks.pop(position, None)

    def _take_mark(self) -> None:
        position = len(self.token_ids)
        if position and not self.is_trimmable and position not in self.marks:
            self.marks[position] = self.cache.snapshot()

    def report(self) -> CacheReport:
        """Describes what is held."""
        return CacheReport(
            num_tokens=len(self.token_ids),
            kinds=tuple(sorted(self.cache.kinds)),
            live_bytes=self.cache.nbytes,
            marks=tuple((p, _mark_bytes(m)) for p, m in sorted(self.marks.items())),
            stashes=tuple((s.base, len(s.token_ids), s.nbytes) for s in self.stashes),
            budget_bytes=self.budget_bytes,
            kv_bits=self.cache.kv_bits,
            num_quantised=(self.cache.num_quantised, len(self.cache.layers)),
        )

    @property
    def mark_bytes(self) -> int:
        """Bytes held by marks and stashes together."""
        return sum(_mark_bytes(m) for m in self.marks.values()) + sum(
            s.nbytes for s in self.stashes
        )

    def _go_to(self, position: int) -> None:
        if position < len(self.token_ids):
            if position == 0:
                self.cache = self.make_cache()
            elif self.cache.can_rewind(position):
                self.cache.rewind(position)
            else:
                self.cache.restore(position, self.marks[position])
            del self.token_ids[position:]
        self.marks = {p: m for p, m in self.marks.items() if p <= position}

    def add_branch(self, cache: SequenceCache, token_ids: Sequence[int]) -> None:
        """Stashes what another cache holds beyond the live sequence, whose ids it begins with.

        Args:
            cache: Holds exactly `token_ids`.
            token_ids: The live sequence's ids, and more.
        """
        base = len(self.token_ids)
        if len(token_ids) - base >= MIN_STASH_TOKENS:
            self._take_mark()
            self._keep(self._copy(cache, token_ids, base, {}))
            self._thin()

    def _copy_branch(self, base: int) -> Stash:
        """Copies what the live sequence holds after `base`, so that it can come back."""
        marks = {p: m for p, m in self.marks.items() if p > base}
        return self._copy(self.cache, self.token_ids, base, marks)

    def _copy(
        self, cache: SequenceCache, token_ids: Sequence[int], base: int, marks: dict[int, Marks]
    ) -> Stash:
        rows: list[Rows | None] = []
        for layer in cache.layers:
            # A window that moved on no longer holds all rows; its snapshot brings it back.
            if isinstance(layer, RowCache) and layer.origin <= base:
                rows.append(layer.copy_rows(base, layer.offset))
            else:
                rows.append(None)
        if not self.is_trimmable:
            marks[len(token_ids)] = cache.snapshot()
        mx.eval([list(held.values()) for held in rows if held])
        return Stash(base, list(token_ids), rows, marks)

    def _keep(self, stash: Stash) -> None:
        """Adds a stash, in the place of those that hold nothing beyond it."""
        self.stashes = [
            old for old in self.stashes if old.base < stash.base or old.token_ids != stash.token_ids
        ]
        self.stashes.append(stash)

    def _resume(self, stash: Stash) -> None:
        """Appends a stash to the live sequence, which stands at its base."""
        end = len(stash.token_ids)
        snapshots = stash.marks.get(end, (None,) * len(stash.rows))
        for layer, rows, snapshot in zip(self.cache.layers, stash.rows, snapshots, strict=True):
            if isinstance(layer, RowCache) and rows is not None:
                if rows:
                    layer.append_rows(rows)
            elif snapshot is not None:
                layer.restore(end, snapshot)
        self.token_ids = list(stash.token_ids)
        self.marks |= stash.marks
        mx.eval(self.cache.arrays())

    def _thin(self) -> None:
        """Drops old stashes, then the mark missed least, until the budget holds."""
        while self.mark_bytes > self.budget_bytes:
            # One stash may stay, but marks serve every turn: it must leave them half the budget.
            is_large = bool(self.stashes) and self.stashes[0].nbytes > self.budget_bytes // 2
            if len(self.stashes) > 1 or is_large or (self.stashes and not self.marks):
                self.stashes.pop(0)
            elif self.marks:
                del self.marks[choose_mark_to_drop(sorted(self.marks))]
            else:
                return


def choose_mark_to_drop(positions: Sequence[int]) -> int:
    """Returns the mark whose loss costs least.

    The spacing of old marks grows exponentially. The first (end of system) and the last two are
    dropped only when nothing else is left.
    """
    inner = range(1, len(positions) - 2)
    if not inner:
        return positions[1] if len(positions) > 2 else positions[0]
    end = positions[-1]

    def cost(i: int) -> float:
        return (positions[i + 1] - positions[i - 1]) / (end - positions[i] + 1)

    return positions[min(inner, key=cost)]


def _first_rewindable(cache: SequenceCache, size: int) -> int:
    """Smallest position that all layers can rewind to; `can_rewind` is monotone above 0."""
    if cache.can_rewind(1):
        return 0
    if not cache.can_rewind(size):
        return size
    low, high = 1, size
    while high - low > 1:
        middle = (low + high) // 2
        if cache.can_rewind(middle):
            high = middle
        else:
            low = middle
    return high


def _mark_bytes(marks: Marks) -> int:
    return sum(snapshot.nbytes for snapshot in marks if snapshot is not None)
