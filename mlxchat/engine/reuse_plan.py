"""Which cached prefix to reuse for new ids, and why: pure planning, nothing is held here.

The planner finds the longest common prefix with what is held and how to get there: go on, trim,
restore a mark, resume a stashed branch, or start afresh. `prefix_cache.py` does it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mlxchat.engine.token_ids import count_common

Action = Literal["continue", "trim", "restore", "resume", "load", "fresh"]


@dataclass(frozen=True, slots=True)
class Held:
    """What the planner may know of a held sequence.

    Attributes:
        token_ids: Every id that was fed.
        rewind_from: Smallest position that all layers can rewind to without a snapshot.
        marks: Positions that can be restored, ascending.
        base: For a stash the position where its rows begin; 0 for the live sequence.
    """

    token_ids: Sequence[int]
    rewind_from: int
    marks: tuple[int, ...] = ()
    base: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How to bring the cache to a prefix of the new ids.

    Attributes:
        action: What is done with the cache before anything is fed.
        start: Ids that stay cached; the new ids from here on are fed.
        num_common: Length of the common prefix of held and new ids.
        num_held: Length of the held sequence.
        stash: Index of the stash to resume, for "resume".
        marks: Positions after `start` at which to take a mark while feeding.
    """

    action: Action
    start: int
    num_common: int
    num_held: int
    stash: int | None = None
    marks: tuple[int, ...] = ()

    @property
    def source(self) -> Literal["none", "live", "checkpoint", "disk"]:
        """Where the reused ids come from, in the words of the JSON contract."""
        if self.start == 0:
            return "none"
        if self.action == "load":
            return "disk"
        return "checkpoint" if self.action in ("restore", "resume") else "live"

    @property
    def reason(self) -> str:
        """Why as many ids are reused as are, in words; nothing where that needs no words."""
        if self.action == "load":
            return ""
        if self.num_held == 0:
            return "nothing was cached"
        if self.action == "fresh":
            if self.num_common == 0:
                return "nothing in common with what was cached"
            return f"{self.num_common} ids in common, but this cache cannot go back to them"
        lost = self.num_held - self.start
        if self.action == "resume":
            return "a branch left earlier goes on"
        if self.action == "continue" or lost <= 0:
            return "the whole cached sequence goes on"
        if self.action == "restore" and self.start < self.num_common:
            return (
                f"{self.num_common} ids in common; this cache cannot be trimmed,"
                f" so it went back to its checkpoint at {self.start}"
            )
        if lost == 1:
            return "1 cached id no longer stands in the prompt"
        return f"{lost} cached ids no longer stand in the prompt"


def reachable(held: Held, common: int) -> tuple[Action, int]:
    """Returns how far a held sequence can serve `common` common ids, and by which action."""
    if common == len(held.token_ids) and common > 0:
        return "continue", common
    if common >= held.rewind_from and common > held.base:
        return "trim", common
    usable = [m for m in held.marks if m <= common]
    if usable:
        return "restore", usable[-1]
    return "fresh", 0


def make_plan(
    live: Held,
    new_ids: Sequence[int],
    *,
    stashes: Sequence[Held] = (),
    marks: Iterable[int] = (),
    leave: int = 1,
) -> Plan:
    """Plans the reuse of cached ids for a new prompt.

    Args:
        live: The live sequence.
        new_ids: What the cache shall hold in the end.
        stashes: Branches left behind; each can be resumed where the live sequence still holds its
            first `base` ids.
        marks: Positions of `new_ids` that will be wanted again.
        leave: Ids that must be left to feed: 1 when logits are wanted, 0 when settling.
    """
    limit = max(len(new_ids) - leave, 0)
    live_common = count_common(live.token_ids, new_ids)
    common = min(live_common, limit)
    action, start = reachable(live, common)
    best = Plan(action, start, common, len(live.token_ids))
    for index, stash in enumerate(stashes):
        shared = count_common(stash.token_ids, new_ids)
        if count_common(stash.token_ids, live.token_ids) < stash.base:
            continue
        if reachable(live, stash.base)[1] != stash.base:
            continue
        _, start = reachable(stash, min(shared, limit))
        if start > max(best.start, stash.base):
            best = Plan("resume", start, min(shared, limit), len(stash.token_ids), index)
    inside = tuple(sorted({m for m in marks if best.start < m <= limit}))
    return Plan(best.action, best.start, best.num_common, best.num_held, best.stash, inside)
