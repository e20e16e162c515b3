"""The one thread that owns MLX: loads, builds and evaluates, job after job.

A lazy MLX array belongs to the thread that built it, so every MLX call of the program runs here.
A job is a function that gets a `JobContext`; what it emits is read by iterating over the `Job` on
the caller's thread. Foreground jobs go first; an idle job is told to stop as soon as a foreground
job is waiting.
"""

import atexit
import contextlib
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()


class JobCancelledError(Exception):
    """Raised by `JobContext.check` inside a job whose cancel flag is set."""


class JobContext:
    """What a running job sees of the outside: its cancel flag and its event queue."""

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._hand_on: Callable[[object], None] = self._events.put

    def emit(self, event: object) -> None:
        """Hands an event to whoever iterates over the job."""
        self._hand_on(event)

    def progress(self, event: object) -> None:
        """Hands on how far the job has come, unless it was asked to stop.

        Raises:
            JobCancelledError: It was.
        """
        self.check()
        self.emit(event)

    def redirect(self, hand_on: Callable[[object], None]) -> "JobContext":
        """Returns a context of the same job for a part of it whose events go elsewhere."""
        part = JobContext()
        part._cancel, part._hand_on = self._cancel, hand_on
        return part

    @property
    def cancelled(self) -> bool:
        """Whether the job was asked to stop; tested between tokens and prefill chunks."""
        return self._cancel.is_set()

    def check(self) -> None:
        """Raises JobCancelledError when the job was asked to stop."""
        if self._cancel.is_set():
            raise JobCancelledError


class Job(Generic[T]):
    """A job's handle on the caller's thread: iterate for its events, then take `result()`."""

    def __init__(self, function: Callable[[JobContext], T], *, idle: bool) -> None:
        self._function = function
        self._context = JobContext()
        self._done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self.idle = idle

    def cancel(self) -> None:
        """Asks the job to stop at its next check; returns at once."""
        self._context._cancel.set()

    @property
    def done(self) -> bool:
        """Whether the job has ended, well or not."""
        return self._done.is_set()

    def __iter__(self) -> Iterator[Any]:
        """Yields the job's events as they come, until it ends."""
        while (event := self._context._events.get()) is not _END:
            yield event
        self._context._events.put(_END)  # a second iteration ends at once

    def batches(self, interval_s: Callable[[], float]) -> Iterator[list[Any]]:
        """Yields the job's events in lists, at most one in each interval.

        The first event comes at once; the next ones wait until the interval since the last list is
        over, or the job. So a consumer whose work costs the same for one event and for many keeps
        up, and is woken no more often.

        Args:
            interval_s: Returns the seconds from one list to the next; asked for each.
        """
        due = 0.0
        while True:
            batch = [self._context._events.get()]
            if batch[0] is not _END and (wait_s := due - time.monotonic()) > 0:
                self._done.wait(wait_s)
            with contextlib.suppress(queue.Empty):
                while batch[-1] is not _END:
                    batch.append(self._context._events.get_nowait())
            if batch[-1] is _END:
                self._context._events.put(_END)
                if batch[:-1]:
                    yield batch[:-1]
                return
            came = time.monotonic()
            yield batch
            due = came + interval_s()

    def result(self, timeout_s: float | None = None) -> T:
        """Waits for the job and returns its value, or raises what it raised.

        Raises:
            TimeoutError: The job did not end within `timeout_s` seconds.
        """
        if not self._done.wait(timeout_s):
            raise TimeoutError("the job is still running")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._context.check()
            self._result = self._function(self._context)
        except BaseException as error:  # handed to the caller by result()
            self._error = error
        finally:
            self._done.set()
            self._context._events.put(_END)


@dataclass(frozen=True, slots=True)
class _Queues:
    foreground: deque[Job[Any]]
    idle: deque[Job[Any]]


def release_streams() -> None:
    """Ends MLX's own threads for the calling thread, if MLX was used at all.

    Left to the end of the process, one exit in four aborted with "terminate called without an
    active exception" (mlx 0.32.4 on Linux, 15 runs).
    """
    mlx = sys.modules.get("mlx.core")
    if mlx is not None and hasattr(mlx, "clear_streams"):
        mlx.synchronize()
        mlx.clear_streams()


class Worker:
    """Runs jobs one at a time on its own daemon thread."""

    def __init__(self) -> None:
        self._queues = _Queues(deque(), deque())
        self._changed = threading.Condition()
        self._running: Job[Any] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="mlx-worker", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, function: Callable[[JobContext], T], *, idle: bool = False) -> Job[T]:
        """Queues a job.

        Args:
            function: Called on the worker thread with the job's context.
            idle: Background work: runs when nothing else waits and is cancelled by a foreground
                job.

        Returns:
            The job's handle.
        """
        job = Job(function, idle=idle)
        with self._changed:
            if self._closed:
                raise RuntimeError("the worker is closed")
            (self._queues.idle if idle else self._queues.foreground).append(job)
            if not idle and self._running is not None and self._running.idle:
                self._running.cancel()
            self._changed.notify_all()
        return job

    def run(self, function: Callable[[JobContext], T]) -> T:
        """Runs a job to its end and returns its value."""
        return self.submit(function).result()

    def cancel_idle(self) -> None:
        """Cancels the idle jobs that run or wait."""
        with self._changed:
            for job in self._queues.idle:
                job.cancel()
            if self._running is not None and self._running.idle:
                self._running.cancel()

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancels what runs or waits and ends the thread."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            for job in (*self._queues.foreground, *self._queues.idle):
                job.cancel()
            if self._running is not None:
                self._running.cancel()
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _next(self) -> Job[Any] | None:
        with self._changed:
            while True:
                for jobs in (self._queues.foreground, self._queues.idle):
                    if jobs:
                        self._running = jobs.popleft()
                        return self._running
                if self._closed:
                    return None
                self._changed.wait()

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            job._run()
            with self._changed:
                self._running = None
        del job
        release_streams()
