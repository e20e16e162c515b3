"""The planner against brute force, and marks, stashes and budgets on real caches."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import KINDS, VOCAB_SIZE, WINDOW, CountingModel, bounded, make_model

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine.chunking import PrefillChunker  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.prefix_cache import (  # noqa: E402
    MIN_STASH_TOKENS,
    PrefixCache,
    Stash,
    choose_mark_to_drop,
)
from mlxchat.engine.reuse_plan import Held, Plan, make_plan  # noqa: E402
from mlxchat.engine.token_ids import count_common  # noqa: E402
from mlxchat.model.kv_cache import RowCache  # noqa: E402

# -- the planner -----------------------------------------------------------------------------------

# Few different ids, so that sequences share long beginnings.
IDS = st.lists(st.integers(0, 1), max_size=12)


@st.composite
def held_sequences(draw: st.DrawFn, *, is_stash: bool = False) -> Held:
    ids = draw(IDS)
    base = draw(st.integers(0, len(ids))) if is_stash else 0
    rewind_from = draw(st.integers(base, len(ids)))
    marks = draw(st.sets(st.integers(base + 1, len(ids)))) if base < len(ids) else set()
    return Held(tuple(ids), rewind_from, tuple(sorted(marks)), base)


def lcp(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))


def positions_of(held: Held) -> set[int]:
    """Every position that a held sequence can be brought to."""
    size = len(held.token_ids)
    can = {p for p in range(held.base + 1, size + 1) if p >= held.rewind_from}
    return can | set(held.marks) | ({size} if size > held.base else set())


def best_reuse(live: Held, stashes: list[Held], new: list[int], leave: int) -> int:
    """The assumed to be perfect planner: tries every position of every sequence."""
    limit = max(len(new) - leave, 0)
    can_live = positions_of(live) | {0}
    found = [p for p in can_live if p <= min(lcp(live.token_ids, new), limit)]
    for stash in stashes:
        is_whole = lcp(stash.token_ids, live.token_ids) >= stash.base and stash.base in can_live
        if is_whole:
            common = min(lcp(stash.token_ids, new), limit)
            found += [p for p in positions_of(stash) if p <= common]
    return max(found)


@bounded(max_examples=400)
@given(
    live=held_sequences(),
    stashes=st.lists(held_sequences(is_stash=True), max_size=3),
    new=IDS,
    marks=st.sets(st.integers(0, 14), max_size=4),
    leave=st.integers(0, 1),
)
def test_no_longer_reuse_is_possible(
    live: Held, stashes: list[Held], new: list[int], marks: set[int], leave: int
) -> None:
    """The plan reuses as much as any way to reuse can, and never more than is right."""
    plan = make_plan(live, new, stashes=stashes, marks=marks, leave=leave)
    assert plan.start == best_reuse(live, stashes, new, leave)
    source = live if plan.stash is None else stashes[plan.stash]
    assert plan.start <= lcp(source.token_ids, new)
    assert plan.start <= max(len(new) - leave, 0)
    assert plan.start == 0 or plan.start in positions_of(source)
    assert (plan.action == "resume") == (plan.stash is not None)
    assert plan.num_held == len(source.token_ids)
    limit = max(len(new) - leave, 0)
    assert set(plan.marks) == {m for m in marks if plan.start < m <= limit}
    assert list(plan.marks) == sorted(plan.marks)


@bounded(max_examples=200)
@given(live=held_sequences(), new=IDS, leave=st.integers(0, 1))
def test_the_action_says_how(live: Held, new: list[int], leave: int) -> None:
    """Going on, trimming, restoring and starting afresh are told apart by what must be done."""
    plan = make_plan(live, new, leave=leave)
    if plan.action == "continue":
        assert plan.start == len(live.token_ids) > 0
    elif plan.action == "trim":
        assert live.rewind_from <= plan.start
    elif plan.action == "restore":
        assert plan.start in live.marks
    else:
        assert plan.start == 0
    assert (plan.source == "none") == (plan.start == 0)
    assert (plan.source == "checkpoint") == (plan.action == "restore")


@bounded(max_examples=200)
@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_count_common(a: list[int], b: list[int]) -> None:
    """The bisection finds what a loop finds, for lists and tuples."""
    assert count_common(a, b) == lcp(a, b)
    assert count_common(tuple(a), [*a, *b]) == len(a)
    assert count_common([*a, 9, *b], (*a, 8, *b)) == len(a)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan("fresh", 0, 0, 0), "nothing was cached"),
        (Plan("fresh", 0, 0, 9), "nothing in common"),
        (Plan("fresh", 0, 5, 9), "5 ids in common, but this cache cannot go back"),
        (Plan("continue", 9, 9, 9), "goes on"),
        (Plan("trim", 7, 7, 9), "2 cached ids no longer stand in the prompt"),
        (Plan("restore", 4, 7, 9), "7 ids in common; .* its checkpoint at 4"),
        (Plan("restore", 7, 7, 9), "2 cached ids no longer stand in the prompt"),
        (Plan("resume", 8, 8, 9, stash=0), "a branch left earlier goes on"),
        (Plan("resume", 9, 9, 9, stash=0), "a branch left earlier goes on"),
    ],
)
def test_reasons(plan: Plan, reason: str) -> None:
    """Each way has its words."""
    assert re.search(reason, plan.reason)


# -- thinning --------------------------------------------------------------------------------------


@bounded(max_examples=100)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(3, 9))
def test_thinning_keeps_the_ends(steps: list[int], capacity: int) -> None:
    """However marks come, the first and the last two are never the ones that are dropped."""
    marks: list[int] = []
    position = 0
    for step in steps:
        position += step
        marks.append(position)
        while len(marks) > capacity:
            dropped = choose_mark_to_drop(marks)
            assert dropped in marks[1:-2] or len(marks) <= 3
            marks.remove(dropped)
    first = steps[0]
    assert marks[0] == first
    assert marks[-2:] == [position - steps[-1], position][-min(2, len(steps)) :]


def test_thinned_marks_are_spaced_exponentially() -> None:
    """After many turns the way back to an old place costs at most its distance from the end."""
    marks: list[int] = []
    for position in range(10, 4001, 10):
        marks.append(position)
        if len(marks) > 12:
            marks.remove(choose_mark_to_drop(marks))
    gaps = [b - a for a, b in itertools.pairwise(marks)]
    assert gaps[-1] == 10
    assert gaps[0] > 500
    for place in range(10, 4000, 7):
        nearest = max(m for m in marks if m <= place)
        assert place - nearest <= 1.5 * (4000 - place) + 20


def test_the_last_marks_go_in_the_end() -> None:
    """Where even three are too many, the middle one goes, then the first."""
    assert choose_mark_to_drop([10, 20, 30]) == 20
    assert choose_mark_to_drop([10, 30]) == 10
    assert choose_mark_to_drop([30]) == 30


# -- on real caches --------------------------------------------------------------------------------

# No id in common: where one takes over from the other, the common prefix ends.
LONG = mx.random.randint(0, VOCAB_SIZE // 2, (400,), key=mx.random.key(2)).tolist()
OTHER = mx.random.randint(VOCAB_SIZE // 2, VOCAB_SIZE, (400,), key=mx.random.key(3)).tolist()


@dataclass
class Feeder:
    """An engine whose every prefill is compared with a fresh one."""

    engine: Engine

    @property
    def prefix(self) -> PrefixCache:
        return self.engine.prefix

    def go(
        self, ids: Sequence[int], *, marks: Sequence[int] = (), keep_branch: bool = False
    ) -> Plan:
        plan = self.prefix.plan(ids, marks=marks)
        self.prefix.apply(plan, keep_branch=keep_branch)
        assert self.prefix.token_ids == list(ids[: plan.start])
        assert self.prefix.cache.offsets() <= {plan.start}
        self.prefix.cache.pin(min([plan.start, *plan.marks]))
        logits = self.engine.prefill(ids, plan)
        found = self.engine.verify(ids, logits)
        assert found.holds, found
        return plan


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CountingModel]:
    return {k: make_model(k, tmp_path_factory.mktemp(k)) for k in KINDS}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def feeder(kind: str, models: dict[str, CountingModel]) -> Feeder:
    return Feeder(Engine(models[kind], PrefillChunker(size=16, largest=16)))


def test_marks_are_for_what_cannot_be_trimmed(feeder: Feeder, kind: str) -> None:
    """A trimmable cache takes none; the others take those that were asked for."""
    feeder.go(LONG[:60], marks=(20, 40))
    assert feeder.prefix.is_trimmable == (kind == "full")
    assert set(feeder.prefix.marks) == (set() if kind == "full" else {20, 40})


def test_going_back_without_a_stash(feeder: Feeder, kind: str) -> None:
    """Back to a shorter common prefix: trimmed, restored from a mark, or read again; all exact."""
    feeder.go(LONG[:100], marks=(30, 60, 99))
    plan = feeder.go(LONG[:70] + OTHER[:20], marks=(75,))
    assert (plan.action, plan.start) == {
        "full": ("trim", 70),
        "window": ("trim", 70),  # the pin of the first turn keeps its rows
        "recurrent": ("restore", 60),
    }[kind]
    plan = feeder.go(LONG[:30] + OTHER[:5])
    assert plan.start == 30
    plan = feeder.go(OTHER[:40])
    assert (plan.action, plan.start) == ("fresh", 0)
    assert feeder.prefix.token_ids == OTHER[:40]


def test_the_same_prompt_again(feeder: Feeder, kind: str) -> None:
    """One id is left to feed for the logits; a cache that cannot give it up needs its mark."""
    feeder.go(LONG[:50], marks=(49,))
    assert feeder.go(LONG[:50]).start == 49
    assert feeder.go(LONG[:50]).start == 49
    if kind == "recurrent":
        feeder.prefix.marks.clear()
        assert feeder.go(LONG[:50]).start == 0


def test_a_window_that_moved_on_comes_back_from_its_mark(models: dict[str, CountingModel]) -> None:
    """When rows that a position needs are gone, only a mark leads back, exactly."""
    feeder = Feeder(Engine(models["window"], PrefillChunker(size=16, largest=16)))
    for size in (40, 80, 120, 160, 200):
        feeder.go(LONG[:size], marks=(size - 1,))
    window = feeder.prefix.cache.layers[0]
    assert isinstance(window, RowCache)
    assert window.origin > 79 - WINDOW
    assert not feeder.prefix.cache.can_rewind(79)
    assert feeder.prefix.held().rewind_from > 79
    plan = feeder.go(LONG[:100] + OTHER[:10])
    assert (plan.action, plan.start) == ("restore", 79)


def test_a_branch_left_behind_comes_back(feeder: Feeder, kind: str) -> None:
    """A stashed branch is resumed whole, and the one left for it is stashed in turn."""
    a, b = LONG[:100], LONG[:40] + OTHER[:60]
    feeder.go(a, marks=(40, 70))
    feeder.go(b, marks=(40, 60), keep_branch=True)
    for ids in (a, b, a, b):
        longer = [*ids, 5, 6, 7]
        plan = feeder.go(longer, keep_branch=True)
        assert (plan.action, plan.start) == ("resume", 100)
        assert plan.reason == "a branch left earlier goes on"
        feeder.prefix.apply(feeder.prefix.plan(ids, leave=0))  # as an undo would
        if kind != "full":
            feeder.go(ids)
    assert len(feeder.prefix.stashes) <= 2


@pytest.mark.parametrize("extra", [0, 1, 25])
def test_a_stash_is_used_in_part(feeder: Feeder, kind: str, extra: int) -> None:
    """A prompt that leaves the stashed branch midway reuses it up to there, or up to a mark."""
    a, b = LONG[:100], LONG[:30] + OTHER[:60]
    feeder.go(a, marks=(30, 60, 90))
    feeder.go(b, marks=(30,), keep_branch=True)
    plan = feeder.go(a[:95] + OTHER[:extra])
    assert plan.action == "resume"
    assert plan.start == (90 if kind != "full" else 95 if extra else 94)
    assert feeder.go(a[:60] + OTHER[9:20]).start == 60


def test_resuming_after_the_window_wrapped(models: dict[str, CountingModel]) -> None:
    """A branch is kept and comes back although the window dropped the rows at its start."""
    feeder = Feeder(Engine(models["window"], PrefillChunker(size=16, largest=16)))
    a = LONG[:40]
    feeder.go(a, marks=(39,))
    for size in (80, 120, 160):  # turns of one branch: the pin moves on
        a = LONG[:size]
        feeder.go(a, marks=(size - 1,))
    window = feeder.prefix.cache.layers[0]
    assert isinstance(window, RowCache)
    assert window.origin > 39
    feeder.go(LONG[:39] + OTHER[:50], keep_branch=True, marks=(45,))
    plan = feeder.go([*a, 3], keep_branch=True)
    assert (plan.action, plan.start) == ("resume", 160)
    plan = feeder.go(LONG[:119] + OTHER[:9], keep_branch=True)  # a mark of the resumed branch
    assert (plan.action, plan.start) == ("restore", 119)


def test_a_branch_is_kept_once(feeder: Feeder) -> None:
    """A branch that is left again, read anew meanwhile, takes the place of what was kept of it."""
    a, b, prefix = LONG[:100], LONG[:30] + OTHER[:60], feeder.prefix
    kept: list[Stash] = []
    for _ in range(3):
        feeder.go(a, marks=(30,))
        prefix.stashes = [*kept]  # as when something else brought the branch back
        feeder.go(b, marks=(30,), keep_branch=True)
        kept, prefix.stashes = prefix.stashes, []
    assert [(stash.base, stash.token_ids) for stash in kept] == [(30, a)]


def test_short_branches_are_not_kept(feeder: Feeder) -> None:
    """What is read again sooner than copied is not stashed; nor is anything without being asked."""
    feeder.go(LONG[: 20 + MIN_STASH_TOKENS - 1], marks=(20,))
    feeder.go(LONG[:20] + OTHER[:50], marks=(20,), keep_branch=True)
    assert feeder.prefix.stashes == []
    feeder.go(LONG[:20] + OTHER[100:150], marks=(20,))
    assert feeder.prefix.stashes == []
    feeder.go(LONG[:20] + OTHER[200:210], marks=(20,), keep_branch=True)
    assert [(s.base, len(s.token_ids)) for s in feeder.prefix.stashes] == [(20, 70)]


def test_a_stash_without_its_base_is_not_resumed(feeder: Feeder) -> None:
    """Where the live sequence no longer holds the stash's beginning, it waits."""
    a = LONG[:90]
    feeder.go(a, marks=(40,))
    feeder.go(a[:40] + OTHER[:30], marks=(40,), keep_branch=True)
    feeder.go(OTHER[:50], marks=(10,))
    assert feeder.go([*a, 1]).action in ("fresh", "restore", "trim")
    assert feeder.prefix.token_ids == [*a, 1]


# -- budget ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 200, 3000, 20_000])
def test_the_budget_holds(feeder: Feeder, kind: str, budget: int) -> None:
    """Whatever is kept and left behind, marks and stashes stay within their bytes, and exact."""
    feeder.prefix.budget_bytes = budget
    a, b = LONG[:100], LONG[:40] + OTHER[:60]
    feeder.go(a, marks=(20, 40, 60, 80, 99))
    assert feeder.prefix.mark_bytes <= budget
    for ids in (b, [*a, 1], [*b, 1], LONG[:40] + OTHER[100:150], [*a, 2]):
        feeder.go(ids, marks=(20, 40, len(ids) - 1), keep_branch=True)
        assert feeder.prefix.mark_bytes <= budget
    if budget == 0:
        assert feeder.prefix.stashes == []
        assert feeder.prefix.marks == {}
    if budget == 20_000:
        assert feeder.prefix.stashes


def test_keeping_a_branch_spares_the_mark_that_is_needed(models: dict[str, CountingModel]) -> None:
    """The budget is held after the way back was gone, so that its mark and stash are still there.

    With a budget that holds the marks but not the copy of the branch too, thinning first would
    drop the mark at 40, or the stash that is about to be resumed.
    """
    feeder = Feeder(Engine(models["recurrent"], PrefillChunker(size=16, largest=16)))
    feeder.go(LONG[:100], marks=(20, 40, 60, 80))
    feeder.prefix.budget_bytes = feeder.prefix.mark_bytes
    plan = feeder.go(LONG[:40] + OTHER[:60], marks=(41,), keep_branch=True)
    assert (plan.action, plan.start) == ("restore", 40)
    feeder.prefix.budget_bytes = feeder.prefix.mark_bytes
    assert feeder.go([*LONG[:100], 1], keep_branch=True).action in ("resume", "restore")


def test_a_stash_leaves_marks_their_half(models: dict[str, CountingModel]) -> None:
    """A branch larger than half the budget is dropped before any mark is."""
    feeder = Feeder(Engine(models["window"], PrefillChunker(size=16, largest=16)))
    feeder.go(LONG[:300], marks=(20, 40, 299))
    mark_bytes = sum(size for p, size in feeder.prefix.report().marks if p <= 40)
    feeder.prefix.budget_bytes = 2 * mark_bytes
    feeder.go(LONG[:40] + OTHER[:4], keep_branch=True)
    assert feeder.prefix.stashes == []
    assert set(feeder.prefix.marks) == {20, 40}


def test_report(feeder: Feeder, kind: str) -> None:
    """Lengths, kinds, bytes, marks and stashes are those that are held."""
    empty = feeder.prefix.report()
    assert (empty.num_tokens, empty.live_bytes, empty.marks, empty.stashes) == (0, 0, (), ())
    feeder.go(LONG[:100], marks=(40, 70))
    feeder.go(LONG[:40] + OTHER[:10], marks=(45,), keep_branch=True)
    report = feeder.prefix.report()
    assert report.num_tokens == 50
    assert (
        report.kinds
        == {
            "full": ("full",),
            "window": ("full", "window"),
            "recurrent": ("recurrent",),
        }[kind]
    )
    assert report.live_bytes == feeder.prefix.cache.nbytes > 0
    assert [p for p, _ in report.marks] == ([] if kind == "full" else [40, 45])
    assert all(size > 0 for _, size in report.marks)
    ((base, size, num_bytes),) = report.stashes
    assert (base, size) == (40, 100)
    assert num_bytes > 0
    assert report.budget_bytes == feeder.prefix.budget_bytes
    total = sum(s for _, s in report.marks) + num_bytes
    assert feeder.prefix.mark_bytes == total


def test_reset(feeder: Feeder) -> None:
    """Nothing is left of anything, and the cache works."""
    feeder.go(LONG[:100], marks=(40, 70))
    feeder.go(LONG[:40] + OTHER[:10], marks=(45,), keep_branch=True)
    feeder.prefix.reset()
    report = feeder.prefix.report()
    assert (report.num_tokens, report.live_bytes, report.marks, report.stashes) == (0, 0, (), ())
    assert feeder.go(LONG[:30]).action == "fresh"
