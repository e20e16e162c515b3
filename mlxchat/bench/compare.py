"""Two sets of measurements against each other: ratios with intervals, by the bootstrap.

Repetitions within one process are more alike than repetitions of different processes. So whole
rounds are drawn first, then repetitions within each, and the interval shows both kinds of noise.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxchat.bench.figures import percentile
from mlxchat.bench.workload import Case, Sample

Rounds = Sequence[Sequence[float]]

NUM_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Ratio:
    """How a test went on two systems.

    Attributes:
        name: Of the test, with the unit.
        ours: Median, in that unit.
        peer: Median of the other.
        ratio: How many times better ours is: above 1 is faster (or less).
        low: Lower end of the interval of the ratio.
        high: Upper end.
    """

    name: str
    ours: float
    peer: float
    ratio: float
    low: float
    high: float


def by_round(samples: Sequence[Sample], values: Sequence[float]) -> list[list[float]]:
    """Returns values grouped by the process that their samples come from."""
    rounds: dict[int, list[float]] = {}
    for sample, value in zip(samples, values, strict=True):
        rounds.setdefault(sample.round, []).append(value)
    return [rounds[number] for number in sorted(rounds)]


def bootstrap_ratio(
    ours: Rounds, peer: Rounds, *, level: float = 0.95, percent: float = 50, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the ratio of two medians, ours over the peer's, with its interval.

    Args:
        ours: Positive values by round.
        peer: The other's.
        level: Of the interval.
        percent: Compares this percentile instead of the median.
        seed: The same values give the same interval.
    """
    rng = random.Random(seed)

    def place(rounds: Rounds) -> float:
        return percentile([value for round_ in rounds for value in round_], percent)

    draws = [place(_draw(ours, rng)) / place(_draw(peer, rng)) for _ in range(NUM_DRAWS)]
    tail = 100 * (1 - level) / 2
    ratio = place(ours) / place(peer)
    return ratio, percentile(draws, tail), percentile(draws, 100 - tail)


def _draw(rounds: Rounds, rng: random.Random) -> Rounds:
    """Returns one draw with replacement: of rounds, then of values in each."""
    drawn = rng.choices(rounds, k=len(rounds))
    return [rng.choices(round_, k=len(round_)) for round_ in drawn]


def compare_systems(
    tests: Sequence[Case], ours: Sequence[Sample], peer: Sequence[Sample]
) -> list[Ratio]:
    """Returns for each test that both did how many times faster ours is, the host's part, peaks.

    Args:
        tests: By number.
        ours: Our samples.
        peer: The other's, of the same tests.
    """
    ratios = []
    for number, test in enumerate(tests):
        mine = [s for s in ours if s.test == number]
        theirs = [s for s in peer if s.test == number]
        if not mine or not theirs:
            continue
        if test.kind == "ttft":
            ratios.append(_less(f"{test.name}, ms", mine, theirs, lambda s: 1e3 * s.seconds))
            continue
        rates, others = [s.tok_per_s for s in mine], [s.tok_per_s for s in theirs]
        found = bootstrap_ratio(by_round(mine, rates), by_round(theirs, others))
        ratios.append(_ratio(f"{test.name}, t/s", rates, others, found))
        if test.kind == "tg":
            name = f"{test.name}, host ms/token"
            ratios.append(_less(name, mine, theirs, lambda s: 1e3 * s.host_s / s.num_done))
        elif all(s.peak_memory_bytes and s.num_done == test.num_tokens for s in (*mine, *theirs)):
            name = f"{test.name}, peak MiB"
            ratios.append(_less(name, mine, theirs, lambda s: s.peak_memory_bytes / (1 << 20)))
    return ratios


def _less(
    name: str, mine: Sequence[Sample], theirs: Sequence[Sample], cost: Callable[[Sample], float]
) -> Ratio:
    """Returns how many times less ours takes."""
    low, high = [cost(s) for s in mine], [cost(s) for s in theirs]
    return _ratio(name, low, high, bootstrap_ratio(by_round(theirs, high), by_round(mine, low)))


def _ratio(
    name: str, ours: list[float], peer: list[float], found: tuple[float, float, float]
) -> Ratio:
    return Ratio(name, statistics.median(ours), statistics.median(peer), *found)
