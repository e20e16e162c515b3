"""Runs measurements in processes of their own and gathers what they print.

Systems that are compared take turns, A B A B, so that whatever else the machine does meets both.
Free of MLX.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from mlxchat.bench.workload import Case, Measured, Request, System, make_sample
from mlxchat.errors import MlxchatError, UsageError

# Called with the system, its tests, and where it is: test and repetition; test -1 is the load.
OnProgress = Callable[[System, Sequence[Case], int, int], None]


class Run:
    """A whole measurement: what each system gave so far, also after Ctrl-C.

    Args:
        request: What each system measures; repetitions are dealt out over the rounds.
        systems: What is measured, in this order.
        rounds: Processes of each system.
        on_progress: Told where the run is.
        on_facts: Told what each process says of model and machine; may raise to end the run.
    """

    def __init__(
        self,
        request: Request,
        systems: Sequence[System] = ("mlxchat",),
        rounds: int = 1,
        on_progress: OnProgress = lambda *_: None,
        on_facts: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.request = request
        self.systems = tuple(systems)
        self.rounds = max(1, min(rounds, request.repetitions))
        self.measured: dict[System, Measured] = {system: Measured() for system in self.systems}
        self.tests: tuple[Case, ...] = request.tests
        self.on_facts = on_facts
        self.num_ended = 0  # processes of this run
        self.repetitions = 0  # of each test in the process that runs
        self._on_progress = on_progress
        self._num_rounds = 0

    @property
    def num_processes(self) -> int:
        """Processes of one run."""
        return self.rounds * len(self.systems)

    def measure(self) -> None:
        """Does all rounds; may be interrupted, and called again for more rounds.

        Raises:
            MlxchatError: A process failed; says what it said.
        """
        self.num_ended = 0
        for round_ in range(self.rounds):
            self.repetitions = _deal(self.request.repetitions, self.rounds, round_)
            for system in self.systems:
                self._measure_round(system, self.repetitions)
                self.num_ended += 1
            self._num_rounds += 1

    def _measure_round(self, system: System, repetitions: int) -> None:
        request = replace(self.request, tests=self.tests, repetitions=repetitions)
        measured = self.measured[system]
        self._on_progress(system, self.tests, -1, 0)
        with contextlib.closing(_events(system, request)) as events:
            for kind, data in events:
                if kind == "facts":
                    measured.facts = _best_rates(measured.facts, data)
                    self.on_facts(data)
                elif kind == "tests":
                    self.tests = tuple(Case(**test) for test in data)
                elif kind == "note" and data not in measured.notes:
                    measured.notes.append(data)
                elif kind == "sample":
                    measured.samples.append(make_sample(data, self._num_rounds))
                elif kind == "at":
                    self._on_progress(system, self.tests, data["test"], data["repetition"])


def _best_rates(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Joins what processes said of the machine; of its rates the best is what it can do."""
    known = [name for name in ("bandwidth", "matmul_flops") if old.get(name) and new.get(name)]
    return old | new | {name: max(old[name], new[name]) for name in known}


def _deal(repetitions: int, rounds: int, round_: int) -> int:
    """Returns how many repetitions a round gets: all together make `repetitions`."""
    return repetitions // rounds + (round_ < repetitions % rounds)


def _events(system: System, request: Request) -> Generator[tuple[str, Any], None, None]:
    """Runs one process and yields what it prints; ends the process when it is closed.

    Raises:
        MlxchatError: It failed.
    """
    command = [sys.executable, "-m", "mlxchat.bench.child", system]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[str] = []

    def listen() -> None:
        with process.stderr or contextlib.nullcontext(()) as lines:  # closed by whoever reads it
            said.extend(lines)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request.to_json()) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            ((kind, data),) = json.loads(line).items()
            if kind == "error":
                raise (UsageError if process.wait() == UsageError.exit_code else MlxchatError)(data)
            yield kind, data
        if process.wait():
            listener.join(1)
            raise MlxchatError(_explain(system, process.returncode, said))
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        listener.join(1)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()


def _explain(system: System, code: int, said: Sequence[str]) -> str:
    """Returns one line on why a process failed."""
    if code < 0:
        return (
            f"the process that measured {system} was ended by signal {-code}; was memory short?"
            " Try a smaller depth"
        )
    last = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
    return (
        f"the process that measured {system} failed ({last}); MLXCHAT_DEBUG=1 shows all of it"
        + ("\n" + "".join(said) if os.environ.get("MLXCHAT_DEBUG") == "1" else "")
    )
