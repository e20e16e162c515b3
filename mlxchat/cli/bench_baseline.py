"""`mlxchat bench --baseline`: keeps what was measured, and says later whether it got slower."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from mlxchat import paths
from mlxchat.bench.baseline import Baseline, Verdict, check_place, confirmed, judge
from mlxchat.bench.report import format_verdicts
from mlxchat.bench.tables import wrap_lines
from mlxchat.bench.workload import Request
from mlxchat.cli.bench_run import Measurement, open_folder, table_width
from mlxchat.cli.failures import INTERRUPTED, Stopped
from mlxchat.cli.screen import Screen
from mlxchat.errors import MlxchatError, UsageError

# A baseline wants to know how much processes differ.
ROUNDS, REPETITIONS = 3, 9
# What a check takes from the baseline.
_FIXED = frozenset(
    (
        *("prompts", "answers", "depths", "repetitions"),
        *("chunks", "kv_bits", "speculate", "budget_s"),
    )
)


def baseline_path(file: str | None, model: str) -> Path:
    """Returns where a baseline lies: FILE, or a place of the model's own."""
    if file is not None:
        return Path(file)
    name = "".join(c if c.isalnum() or c in "-." else "_" for c in model.strip("/"))
    return paths.data_dir() / "baselines" / f"{name[-80:]}.json"


def save_baseline(file: str | None, params: dict[str, Any]) -> int:
    """Measures and saves."""
    params = {**params, "repetitions": params["repetitions"] or REPETITIONS}
    measurement = Measurement(params, rounds=ROUNDS)
    path = baseline_path(file, measurement.model)
    check_place(path)  # before the minutes that measuring takes
    is_stopped = measurement.measure()
    if measurement.has_samples:
        measurement.tell(params["form"])
    if is_stopped:
        click.echo("Stopped; nothing was saved.", err=True)
        return INTERRUPTED
    run, facts = measurement.run, measurement.ours.facts
    Baseline(
        measurement.model,
        facts["fingerprint"],
        measurement.machine | {"backend": facts["backend"]},
        {
            "repetitions": run.request.repetitions,
            "rounds": run.rounds,
            "budget_s": run.request.budget_s,
            "has_openblas": run.request.has_openblas,
        },
        run.tests,
        tuple(measurement.ours.samples),
    ).save(path)
    click.echo(f"Saved to {path}.", err=True)
    return 0


def check_baseline(file: str | None, given: set[str], params: dict[str, Any]) -> int:
    """Measures what the baseline holds once more, and judges.

    Raises:
        MlxchatError: Something got worse, or the two cannot be compared.
        UsageError: Options ask for other tests.
    """
    if given & _FIXED:
        raise UsageError(
            "--baseline check measures what the baseline holds; leave -p, -n, -d, -r, --chunk,"
            " --kv-bits, --speculate and --budget out"
        )
    model, folder, _ = open_folder(params, Screen(sys.stdout, sys.stderr))
    baseline = Baseline.load(baseline_path(file, model))
    machine: dict[str, Any] = {}

    def measure() -> list[Verdict]:
        settings = baseline.settings
        request = Request(
            str(folder),
            baseline.tests,
            settings["repetitions"],
            settings["budget_s"],
            has_openblas=settings["has_openblas"],
        )
        measurement = Measurement(params, rounds=settings["rounds"], request=request)
        machine.update(measurement.machine)
        measurement.run.on_facts = lambda facts: baseline.refuse_other(
            facts["fingerprint"], machine | {"backend": facts["backend"]}
        )
        if measurement.measure():
            raise Stopped
        return judge(baseline.tests, baseline.samples, measurement.ours.samples)

    try:
        verdicts = measure()
        is_suspect = any(verdict.outcome == "slower" for verdict in verdicts)
        if is_suspect:
            click.echo("Something seems worse; measuring once more to be sure.", err=True)
        again = measure() if is_suspect else []
    except Stopped:
        click.echo("Stopped; nothing was judged.", err=True)
        return INTERRUPTED
    if is_suspect:
        real = confirmed(verdicts, again)
        verdicts = [
            replace(v, outcome="unclear") if v.outcome == "slower" and v not in real else v
            for v in verdicts
        ]
    _tell(baseline, verdicts, baseline.version_changes(machine), params["form"])
    worse = [verdict.name for verdict in verdicts if verdict.outcome == "slower"]
    if worse:
        raise MlxchatError(
            f"worse than the baseline: {' · '.join(worse)}; save a new baseline if that is meant"
        )
    return 0


def _tell(baseline: Baseline, verdicts: list[Verdict], changes: list[str], form: str) -> None:
    if form in ("json", "jsonl"):
        data = {"verdicts": [asdict(verdict) for verdict in verdicts], "changes": changes}
        click.echo(json.dumps(data, indent=2 if form == "json" else None))
        return
    machine = baseline.machine
    width = table_width()
    head = (
        f"Against {baseline.model} of {machine.get('time')}"
        f" (mlxchat {machine.get('mlxchat')} {machine.get('commit', '')}), same machine:"
    )
    click.echo("\n".join([*wrap_lines([head], width), ""]))
    click.echo(format_verdicts(verdicts, changes, width), nl=False)
