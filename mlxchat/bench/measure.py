"""The loop that measures any system test by test, and what it asks of one.

Runs in a child process (`child.py`), on its main thread: nothing else happens there. A system
that cannot do a test raises `NotMeasuredError`; the loop says so and goes on.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from mlxchat.bench.workload import FILL_BUDGETS, Case, Request, Sample, fit_tests

if TYPE_CHECKING:
    pass

Emit = Callable[[str, Any], None]

# Ids of ordinary text lie low in most vocabularies; any will do.
LARGEST_ID = 2000
# A decode test that warms up makes so many tokens: buffers and kernels are there then.
WARM_UP_TOKENS = 8


class OverBudgetError(Exception):
    """Raised by a limit when the time of a test is up."""


class Limit:
    """Called between chunks and tokens, ends what takes too long.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self._end - time.perf_counter()

    def __call__(self) -> None:
        """Raises OverBudgetError when the time is up."""
        if self.left_s < 0:
            raise OverBudgetError


class NotMeasuredError(Exception):
    """A system cannot do a test; says why, unless that goes without saying."""


class Measurable(Protocol):
    """What can be measured: our engine, or mlx-lm's."""

    def facts(self) -> dict[str, Any]:
        """Returns what was loaded and on what."""

    @property
    def max_context(self) -> int:
        """Tokens that the model can hold."""

    def prepare(self, test: Case, limit: Limit) -> None:
        """Brings the cache to the test's depth, untimed; `limit` may raise between chunks."""

    def run(self, test: Case, limit: Limit, num_tokens: int) -> "Clock":
        """Does the timed part; where `limit` is reached it ends early.

        Args:
            test: What to do.
            limit: Called between chunks and tokens.
            num_tokens: As the test says, or less for a warm-up.
        """

    def memory(self) -> tuple[int, int]:
        """Returns the peak since the last `prepare` and what the cache holds, in bytes."""

    def drafts(self) -> tuple[int, int]:
        """Returns how many tokens the last run foresaw, and how many of them stood."""

    def notice(self) -> str:
        """Returns what the last `prepare` could not do as asked; empty where it could."""

    def reference_s(self) -> float:
        """Times a fixed piece of work."""


class Clock:
    """Wall and processor time of a measured part, and of each token in it."""

    def __init__(self) -> None:
        self.num_done = self.longest_chunk = self._num_read = 0
        self.seconds = self.host_s = 0.0
        self.times: list[float] = []
        self._host = time.thread_time()
        self._start = time.perf_counter()

    def start(self) -> None:
        """Begins anew: what was before is not measured."""
        self.times.clear()
        self._host = time.thread_time()
        self._start = time.perf_counter()

    def token(self) -> None:
        """Notes that a token is in hand."""
        self.times.append(time.perf_counter())

    def chunk(self, num_read: int, total: int) -> None:
        """Notes that so many tokens of a prefill are read."""
        self.longest_chunk = max(self.longest_chunk, num_read - self._num_read)
        self._num_read = num_read

    def stop(self, num_done: int) -> "Clock":
        """Ends the measured part, in which so many tokens were read or made."""
        self.seconds = time.perf_counter() - self._start
        self.host_s = time.thread_time() - self._host
        self.num_done = num_done
        return self

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """Milliseconds from the start to the first noted token, and from token to token."""
        before = [self._start, *self.times[:-1]]
        return tuple(round((b - a) * 1e3, 4) for a, b in zip(before, self.times, strict=True))


def make_ids(num_ids: int, vocab_size: int, salt: int = 0) -> list[int]:
    """Returns token ids that are the same on every run."""
    rng = random.Random(salt)
    highest = max(1, min(LARGEST_ID, vocab_size - 1))
    return [rng.randint(1, highest) for _ in range(num_ids)]


def measure(system: Measurable, request: Request, emit: Emit) -> None:
    """Runs the tests of a request and emits samples as they come.

    Args:
        system: What is measured.
        request: What to do.
        emit: Called with a kind ("facts", "tests", "note", "at", "sample") and its data.
    """
    emit("facts", system.facts())
    tests, notes = fit_tests(request.tests, system.max_context)
    emit("tests", tests)
    for note in notes:
        emit("note", note)
    too_deep: int | None = None
    left_out: list[str] = []
    for number, test in enumerate(tests):
        if too_deep is not None and test.depth >= too_deep:
            left_out.append(test.name)
            continue
        try:
            _measure_test(system, test, number, request, emit)
        except NotMeasuredError as problem:
            if str(problem):
                emit("note", f"{test.name} left out: {problem}")
        except OverBudgetError:
            too_deep = test.depth
            left_out.append(test.name)
    if left_out:
        emit(
            "note",
            f"{', '.join(left_out)} left out: reading so many tokens takes more than"
            f" {FILL_BUDGETS * request.budget_s:g} s; --budget 0 takes the time",
        )
    emit("facts", system.facts())  # rates once more: what else the machine did may have ended


def _measure_test(
    system: Measurable, test: Case, number: int, request: Request, emit: Emit
) -> None:
    budget_s = request.budget_s or float("inf")
    fill = Limit(FILL_BUDGETS * budget_s)
    emit("at", {"test": number, "repetition": 0})
    system.prepare(test, fill)
    if notice := system.notice():
        emit("note", notice)
    warm_up = min(WARM_UP_TOKENS, test.num_tokens) if test.kind == "tg" else test.num_tokens
    system.run(test, Limit(budget_s), warm_up)
    spent_s, num_samples, is_cut = 0.0, 0, False
    for repetition in range(request.repetitions):
        emit("at", {"test": number, "repetition": repetition + 1})
        system.prepare(test, fill)
        before_s = system.reference_s()
        clock = system.run(test, Limit(budget_s), test.num_tokens)
        after_s = system.reference_s()
        peak, kv = system.memory()
        drafted, accepted = system.drafts()
        if not clock.num_done:
            raise NotMeasuredError(f"one step takes more than {budget_s:.0f} s")
        sample = Sample(
            number,
            clock.seconds,
            clock.num_done,
            clock.gaps_ms if test.kind == "tg" else (),
            clock.host_s,
            peak,
            kv,
            (before_s + after_s) / 2,
            num_drafted=drafted,
            num_accepted=accepted,
            longest_chunk=clock.longest_chunk,
        )
        emit("sample", sample)
        num_samples += 1
        is_cut = is_cut or clock.num_done < test.num_tokens
        spent_s += clock.seconds
        if spent_s > budget_s:
            break
    if is_cut:
        emit("note", f"{test.name} ended early: {budget_s:g} s were up; --budget 0 takes the time")
    elif num_samples < request.repetitions:
        emit(
            "note",
            f"{test.name} has {num_samples} of {request.repetitions} repetitions:"
            f" {budget_s:g} s were up; --budget 0 takes the time",
        )


@contextmanager
def opened(system: Any) -> Iterator[Any]:
    """Closes a system at the end, where it has something to close."""
    try:
        yield system
    finally:
        close = getattr(system, "close", None)
        if close is not None:
            close()
