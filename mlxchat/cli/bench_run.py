"""One run of `mlxchat bench`: the model, the processes, the progress, what there is to tell."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxchat.bench.compare import compare_systems
from mlxchat.bench.figures import make_rows
from mlxchat.bench.machine import describe_machine
from mlxchat.bench.records import Form, format_report
from mlxchat.bench.report import Report, format_remarks
from mlxchat.bench.runs import Run
from mlxchat.bench.workload import Measured, Request, System, make_tests
from mlxchat.cli.choices import choose_adapter
from mlxchat.cli.options import resolve_model
from mlxchat.cli.render import short_model
from mlxchat.cli.screen import Screen
from mlxchat.errors import MlxchatError, UsageError
from mlxchat.settings import load_settings

if TYPE_CHECKING:
    from mlxchat.bench.workload import Case

REPETITIONS = 5


class Measurement:
    """One run with its progress on the screen.

    Args:
        params: Of the command.
        systems: What is measured; mlxchat comes first.
        rounds: Processes of each system.
        request: What is measured; None makes it from the options.
    """

    def __init__(
        self,
        params: dict[str, Any],
        systems: Sequence[System] = ("mlxchat",),
        rounds: int = 1,
        request: Request | None = None,
    ) -> None:
        self.screen = Screen(sys.stdout, sys.stderr)
        if "mlx-lm" in systems:
            _require_mlx_lm()
        self.machine = describe_machine()
        self.model, folder, adapter = open_folder(params, self.screen)
        request = replace(request or make_request(params, str(folder)), adapter=adapter)
        self.run = Run(request, systems, rounds, self._progress)

    @property
    def ours(self) -> Measured:
        """What mlxchat gave."""
        return self.run.measured["mlxchat"]

    @property
    def has_samples(self) -> bool:
        """Whether anything was measured."""
        return any(found.samples for found in self.run.measured.values())

    def _progress(
        self, system: System, tests: "Sequence[Case]", test: int, repetition: int
    ) -> None:
        from mlxchat.cli.render import format_bar

        if test < 0:
            self.screen.progress(f"{system} loading")
            return
        run = self.run
        what = f"repetition {repetition} of {run.repetitions}" if repetition else "warm-up"
        bar = format_bar((run.num_ended + (test + 0.5) / max(len(tests), 1)) / run.num_processes)
        where = f" · process {run.num_ended + 1} of {run.num_processes}"
        self.screen.progress(
            f"{system} {bar} {tests[test].name} · {what}{where if run.num_processes > 1 else ''}"
        )

    def measure(self) -> bool:
        """Measures all; returns whether Ctrl-C ended it."""
        return interruptible(self.run.measure, self.screen)

    def tell(self, form: Form) -> None:
        """Prints what there is; what records do not hold goes to stderr."""
        report = self.report()
        click.echo(format_report(report, form, table_width()), nl=False)
        if form != "md" and (remarks := format_remarks(report)):
            click.echo(remarks, err=True)

    def report(self) -> Report:
        """Returns what there is to tell."""
        run, ours = self.run, self.ours
        rows = {
            system: make_rows(run.tests, found.samples, ours.facts | found.facts)
            for system, found in run.measured.items()
        }
        ratios = [
            ratio
            for system, found in run.measured.items()
            if system != "mlxchat"
            for ratio in compare_systems(run.tests, ours.samples, found.samples)
        ]
        notes = list(ours.notes)
        for system, found in run.measured.items():
            if system != "mlxchat":
                notes += [f"{system}: {note}" for note in found.notes if note not in notes]
        peers = {name: found.facts for name, found in run.measured.items()}
        settings = settings_of(run)
        return Report(self.model, self.machine, ours.facts, rows, ratios, settings, notes, peers)


def table_width() -> int | None:
    """Returns the width of the terminal that shows tables; None where they go elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def interruptible(work: Callable[[], None], screen: Screen) -> bool:
    """Does some work; returns whether Ctrl-C ended it."""
    from mlxchat.cli.failures import Stopped, stoppable

    try:
        with stoppable():
            work()
    except Stopped:
        return True
    finally:
        screen.clear_progress()
    return False


def settings_of(run: Run) -> dict[str, Any]:
    """Returns how it was measured, for people and for baselines."""
    request = run.request
    budget = f"{request.budget_s:g} s" if request.budget_s else "none"
    settings: dict[str, Any] = {
        "repetitions": request.repetitions,
        "processes": run.rounds,
        "time per test": budget,
        "sampling": "greedy",
    }
    if not request.has_openblas:
        settings["OpenBLAS"] = "off"
    elif len(run.systems) > 1:
        settings["BLAS"] = "the same for both"
    return settings


def make_request(params: dict[str, Any], folder: str) -> Request:
    """Makes what the options ask for."""
    chunks = params["chunks"] or (None,)
    tests = make_tests(
        params["prompts"],
        params["answers"],
        params["depths"],
        chunks,
        params["kv_bits"],
        params["speculate"],
    )
    if not tests:
        raise UsageError("-p 0, -n 0 and -d 0 leave nothing to measure; give one of them")
    repetitions = params["repetitions"] or REPETITIONS
    return Request(
        folder, tests, repetitions, params["budget_s"], has_openblas=not params["no_openblas"]
    )


def open_folder(params: dict[str, Any], screen: Screen) -> tuple[str, Path, str | None]:
    """Returns the model's name and its folder, and its adapter's; fetches it where it must be."""
    from mlxchat.chat.results import LoadProgress
    from mlxchat.cli.progress import PhaseClock
    from mlxchat.cli.render import format_progress
    from mlxchat.model import hub

    clock = PhaseClock()

    def show(done: int, total: int) -> None:
        event = LoadProgress("download", done, total)
        screen.progress(format_progress(event, clock.elapsed_s(event)))

    settings = load_settings()
    model = resolve_model(params["model"], settings)
    try:
        found = hub.resolve_model(model, on_progress=show)
    finally:
        screen.clear_progress()
    is_local = found.commit is None and not found.is_builtin
    name = found.path.name if is_local else found.name
    adapter = choose_adapter(settings, model, params["adapter"])
    return name + (f"+{short_model(adapter)}" if adapter else ""), found.path, adapter


def _require_mlx_lm() -> None:
    from mlxchat.bench.peer_process import is_installed

    if not is_installed():
        raise MlxchatError("mlx-lm is not installed here; pip install mlx-lm brings it")
