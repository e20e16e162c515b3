"""A baseline on disk, and whether today's figures are really worse: noise-aware, paired.

Each measurement stands beside a fixed piece of work measured around it, so a figure is judged
twice: as it is, and in units of that work. A machine that is busier today makes the first worse
and leaves the second; only what both call slower counts. Bootstrap intervals over processes and
repetitions say whether a difference is more than noise. Free of MLX.
"""

import errno
import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mlxchat.bench.compare import Rounds, bootstrap_ratio
from mlxchat.bench.figures import percentile
from mlxchat.bench.workload import Case, Sample, make_sample
from mlxchat.errors import MlxchatError

FORMAT = 2
# Of all figures together: one check in twenty may accuse wrongly, before it is confirmed.
ERROR_RATE = 0.05
# A difference below this is not worth a red build.
TOLERANCE = 0.05
# Memory repeats but for the allocator, where the prefill chunks are of one length.
MEMORY_TOLERANCE = 0.05
# What else a machine does only makes a repetition slower, so the faster ones say most of the code.
FASTEST_PERCENT = 25

Outcome = Literal["same", "slower", "faster", "unclear"]

# What must be equal for two measurements to be comparable at all, and how it is called.
_SAME_MACHINE = {
    "system": "system",
    "cpu": "processor",
    "cores": "number of cores",
    "backend": "backend",
    "blas_threads": "number of BLAS threads (OPENBLAS_NUM_THREADS)",
}


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was measured once.

    Attributes:
        model: Its name.
        fingerprint: Of its config and weights.
        machine: From `describe_machine`, with the backend.
        settings: Of the measurement: repetitions, rounds, seconds per test.
        tests: By number.
        samples: Ours.
    """

    model: str
    fingerprint: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    tests: tuple[Case, ...]
    samples: tuple[Sample, ...]

    def save(self, path: Path) -> None:
        """Writes it to a file, whole or not at all."""
        data = {"format": FORMAT, **asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part-{os.getpid()}")
        try:
            part.write_text(json.dumps(data), encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "Baseline":
        """Reads what `save` wrote.

        Raises:
            MlxchatError: There is none, or it is no baseline.
        """
        again = "`mlxchat bench --baseline save` makes one"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MlxchatError(f"there is no baseline in {path}; {again}") from None
        except OSError as error:
            why = error.strerror
            raise MlxchatError(f"{path} cannot be read as a baseline ({why}); {again}") from None
        except ValueError:
            raise MlxchatError(f"{path} is no baseline (it is not JSON); {again}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise MlxchatError(f"{path} is no baseline of this version; {again}")
        try:
            return cls(
                data["model"],
                data["fingerprint"],
                data["machine"],
                data["settings"],
                tuple(Case(**test) for test in data["tests"]),
                tuple(make_sample(sample, sample["round"]) for sample in data["samples"]),
            )
        except (KeyError, TypeError) as error:
            raise MlxchatError(f"{path} is a broken baseline ({error!r}); {again}") from None

    def refuse_other(self, fingerprint: str, machine: dict[str, Any]) -> None:
        """Refuses to be compared with another model or machine.

        Raises:
            MlxchatError: Says what differs.
        """
        if fingerprint != self.fingerprint:
            raise MlxchatError(
                f"the baseline is of another model, or of other weights ({self.model});"
                " check with that one, or save a baseline of this one"
            )
        for name, words in _SAME_MACHINE.items():
            old, new = self.machine.get(name), machine.get(name)
            if old != new:
                raise MlxchatError(
                    f"the baseline was made on another machine or setting: the {words} was {old!r},"
                    f" here it is {new!r}; figures of the two say nothing about the code, save a"
                    " baseline here"
                )

    def version_changes(self, machine: dict[str, Any]) -> list[str]:
        """Returns what else differs, for the person: versions of what mlxchat stands on."""
        old, new = _versions(self.machine), _versions(machine)
        return [
            f"{name}: {old.get(name) or 'none'} then, {new.get(name) or 'none'} now"
            for name in dict.fromkeys([*old, *new])
            if old.get(name) != new.get(name)
        ]


def check_place(path: Path) -> None:
    """Finds out whether a baseline can be written there.

    Raises:
        MlxchatError: It cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise MlxchatError(
            f"{path} cannot be written ({error.strerror}); name another FILE"
        ) from None


def _versions(machine: dict[str, Any]) -> dict[str, str]:
    own = {name: str(machine.get(name, "")) for name in ("mlxchat", "commit", "python")}
    return own | dict(machine.get("packages", {}))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one figure; less is better for all of them.

    Attributes:
        name: Of the test and the figure, with its unit.
        old: Of the baseline: the lower quartile of a time, the median of a memory peak.
        new: The same now.
        ratio: New over old, as measured.
        low: Lower end of its interval.
        high: Upper end.
        outcome: "unclear" where only one of the two ways of judging calls it slower.
    """

    name: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    outcome: Outcome


Cost = Callable[[Sample], float]


def judge(
    tests: Sequence[Case],
    old: Sequence[Sample],
    new: Sequence[Sample],
    tolerance: float = TOLERANCE,
) -> list[Verdict]:
    """Judges every figure that both measurements have.

    Args:
        tests: By number, of both.
        old: The baseline's samples.
        new: Today's.
        tolerance: A smaller change is none.
    """
    figures: list[tuple[int, str, Cost]] = []
    for number, test in enumerate(tests):
        if test.kind == "ttft":
            figures.append((number, f"{test.name}, ms", lambda s: 1e3 * s.seconds))
            continue
        figures.append((number, f"{test.name}, ms/token", lambda s: 1e3 * s.seconds / s.num_done))
        if test.kind == "tg":
            host = "host ms/token"
            figures.append((number, f"{test.name}, {host}", lambda s: 1e3 * s.host_s / s.num_done))
    level = 1 - ERROR_RATE / max(1, len(figures))
    verdicts = []
    for number, name, cost in figures:
        before = [s for s in old if s.test == number]
        after = [s for s in new if s.test == number]
        if before and after:
            verdicts.append(_judge_time(name, before, after, cost, level, tolerance))
    for number, test in enumerate(tests):
        before = [s for s in old if s.test == number]
        after = [s for s in new if s.test == number]
        if before and after:
            verdicts.append(_judge_memory(test, before, after))
    return verdicts


def _judge_time(
    name: str,
    old: Sequence[Sample],
    new: Sequence[Sample],
    cost: Cost,
    level: float,
    tolerance: float,
) -> Verdict:
    plain = bootstrap_ratio(
        _costs(new, cost), _costs(old, cost), level=level, percent=FASTEST_PERCENT
    )
    outcomes = {_outcome(plain, tolerance)}
    if all(sample.reference_s > 0 for sample in (*old, *new)):
        paired = bootstrap_ratio(
            _costs(new, cost, is_paired=True),
            _costs(old, cost, is_paired=True),
            level=level,
            percent=FASTEST_PERCENT,
        )
        outcomes.add(_outcome(paired, tolerance))
    outcome: Outcome
    if len(outcomes) == 1:
        outcome = outcomes.pop()
    else:
        outcome = "unclear" if "slower" in outcomes else "same"
    before, after = (
        percentile([cost(s) for s in samples], FASTEST_PERCENT) for samples in (old, new)
    )
    return Verdict(name, before, after, *plain, outcome)


def _costs(samples: Sequence[Sample], cost: Cost, *, is_paired: bool = False) -> Rounds:
    """Returns costs by round; paired ones in units of the work measured in the same round."""
    rounds: dict[int, list[Sample]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, []).append(sample)
    result = []
    for _, group in sorted(rounds.items()):
        unit = statistics.median(s.reference_s for s in group) if is_paired else 1.0
        result.append([cost(sample) / unit for sample in group])
    return result


def _outcome(found: tuple[float, float, float], tolerance: float) -> Outcome:
    _, low, high = found
    if low > 1 + tolerance:
        return "slower"
    return "faster" if high < 1 - tolerance else "same"


def _judge_memory(test: Case, old: Sequence[Sample], new: Sequence[Sample]) -> Verdict:
    """Compares the peaks of repetitions with equal chunks: a busy machine makes them shorter."""
    counts = [Counter(sample.longest_chunk for sample in samples) for samples in (old, new)]
    common = counts[0] & counts[1]
    if common:
        ((chunk, _),) = common.most_common(1)
        old, new = ([s for s in samples if s.longest_chunk == chunk] for samples in (old, new))
    before, after = (
        statistics.median(sample.peak_memory_bytes for sample in samples) / (1 << 20)
        for samples in (old, new)
    )
    ratio = after / before if before else 1.0
    outcome: Outcome = "same"
    if ratio > 1 + MEMORY_TOLERANCE:
        outcome = "slower" if common else "unclear"
    elif ratio < 1 - MEMORY_TOLERANCE and common:
        outcome = "faster"
    return Verdict(f"{test.name}, peak MiB", before, after, ratio, ratio, ratio, outcome)


def confirmed(first: Sequence[Verdict], second: Sequence[Verdict]) -> list[Verdict]:
    """Returns the regressions that a second measurement found again.

    Args:
        first: Of the first measurement.
        second: Of another one, with more processes.
    """
    again = {verdict.name for verdict in second if verdict.outcome == "slower"}
    return [v for v in first if v.outcome == "slower" and v.name in again]
