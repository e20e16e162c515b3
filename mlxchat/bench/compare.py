"""Two sets of measurements against each other: ratios with intervals, by the bootstrap.

Repetitions within one process are more alike than repetitions of different processes. So whole
rounds are drawn first, then repetitions within each, and the interval shows both kinds of noise.
"""

import random
import statistics
from collections.abc import Sequence
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
    ours: Rounds, peer: Rounds, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the ratio of two medians, ours over the peer's, with its interval.

    Args:
        ours: Positive values by round.
        peer: The other's.
        level: Of the interval.
        seed: The same values give the same interval.
    """
    rng = random.Random(seed)
    draws = [_draw(ours, rng) / _draw(peer, rng) for _ in range(NUM_DRAWS)]
    tail = 100 * (1 - level) / 2
    ratio = _median(ours) / _median(peer)
    return ratio, percentile(draws, tail), percentile(draws, 100 - tail)


def _median(rounds: Rounds) -> float:
    return statistics.median(value for round_ in rounds for value in round_)


def _draw(rounds: Rounds, rng: random.Random) -> float:
    """Returns the median of one draw with replacement: of rounds, then of values in each."""
    return statistics.median(
        value
        for round_ in rng.choices(rounds, k=len(rounds))
        for value in rng.choices(round_, k=len(round_))
    )


def compare_systems(
    tests: Sequence[Case], ours: Sequence[Sample], peer: Sequence[Sample]
) -> list[Ratio]:
    """Returns for each test that both did how many times faster ours is, and the host's part.

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
            # Less is better: the peer's time over ours.
            low, high = [s.seconds * 1e3 for s in mine], [s.seconds * 1e3 for s in theirs]
            found = bootstrap_ratio(by_round(theirs, high), by_round(mine, low))
            ratios.append(_ratio(f"{test.name}, ms", low, high, found))
            continue
        rates, others = [s.tok_per_s for s in mine], [s.tok_per_s for s in theirs]
        found = bootstrap_ratio(by_round(mine, rates), by_round(theirs, others))
        ratios.append(_ratio(f"{test.name}, t/s", rates, others, found))
        if test.kind == "tg":
            host = [1e3 * s.host_s / s.num_done for s in mine]
            other = [1e3 * s.host_s / s.num_done for s in theirs]
            found = bootstrap_ratio(by_round(theirs, other), by_round(mine, host))
            ratios.append(_ratio(f"{test.name}, host ms/token", host, other, found))
    return ratios


def _ratio(
    name: str, ours: list[float], peer: list[float], found: tuple[float, float, float]
) -> Ratio:
    return Ratio(name, statistics.median(ours), statistics.median(peer), *found)
