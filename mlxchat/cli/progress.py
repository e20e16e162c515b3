"""How far a job has come, in one line, and commands that show it while they wait for one."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mlxchat.cli.render import format_progress
from mlxchat.cli.screen import Screen

if TYPE_CHECKING:
    from mlxchat.engine.worker import JobContext

T = TypeVar("T")


class PhaseClock:
    """Tells how long the phase of a job has taken that its events are about."""

    def __init__(self) -> None:
        self._phase: object = None
        self._started = 0.0

    def elapsed_s(self, event: object) -> float:
        """Returns the seconds since the first event of this one's phase, or of its kind."""
        now, phase = time.monotonic(), getattr(event, "phase", type(event))
        if phase != self._phase:
            self._phase, self._started = phase, now
        return now - self._started


def run_job(
    work: "Callable[[JobContext], T]", to_text: Callable[[Any, float], str] = format_progress
) -> T:
    """Does work on a worker thread of its own, with a progress line; Ctrl-C ends it.

    Args:
        work: Returns plain data: arrays belong to the worker.
        to_text: Returns the line of an event, from it and the seconds of its phase.
    """
    from mlxchat.engine.worker import Worker

    screen, worker, clock = Screen(sys.stdout, sys.stderr), Worker(), PhaseClock()
    job = worker.submit(work)
    try:
        for event in job:
            screen.progress(to_text(event, clock.elapsed_s(event)))
        return job.result()
    finally:
        job.cancel()
        screen.clear_progress()
        worker.close()
