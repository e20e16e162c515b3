"""Verdicts against a baseline: noise is no regression, a regression is, others are refused."""

import json
import random
from dataclasses import replace

import pytest
from command_line import CommandLine
from tiny import make_tiny_folder

from mlxchat.bench.baseline import Baseline, confirmed, judge
from mlxchat.bench.workload import Case, Sample
from mlxchat.cli.bench_baseline import baseline_path
from mlxchat.errors import MlxchatError

TESTS = (Case("pp", 512), Case("tg", 128), Case("ttft", 32, 512, "live"))


def samples(seed, *, slower=1.0, busy=1.0, noise=0.03, rounds=3, repetitions=3, memory=1000):
    """Three tests in three processes; `busy` slows the machine, `slower` the code alone."""
    rng = random.Random(seed)
    made = []
    for round_ in range(rounds):
        machine = busy * rng.gauss(1, noise)
        for number, case in enumerate(TESTS):
            for _ in range(repetitions):
                seconds = machine * slower * rng.gauss(1, noise)
                made.append(
                    Sample(
                        number,
                        seconds,
                        case.num_tokens,
                        host_s=0.2 * seconds,
                        peak_memory_bytes=memory,
                        reference_s=0.01 * machine * rng.gauss(1, noise),
                        round=round_,
                    )
                )
    return made


def outcomes(old, new, **how):
    return {verdict.outcome for verdict in judge(TESTS, old, new, **how)}


def test_noise_is_no_regression():
    """Of 25 checks of unchanged code at 3 % of noise none finds anything slower."""
    for seed in range(25):
        assert "slower" not in outcomes(samples(seed), samples(1000 + seed)), seed


def test_more_noise_is_no_regression_either():
    """At 15 % of noise the intervals are wide: of 15 checks none accuses twice."""
    for seed in range(15):
        old = samples(seed, noise=0.15)
        first = judge(TESTS, old, samples(1000 + seed, noise=0.15))
        second = judge(TESTS, old, samples(2000 + seed, noise=0.15))
        assert confirmed(first, second) == [], seed


@pytest.mark.parametrize(("slower", "noise"), [(1.2, 0.01), (1.5, 0.03), (3.0, 0.1)])
def test_slower_code_is_found(slower, noise):
    """Code that is slower by far more than the noise is found in every figure, every time."""
    for seed in range(6):
        old = samples(seed, noise=noise)
        verdicts = judge(TESTS, old, samples(1000 + seed, slower=slower, noise=noise))
        timed = [verdict for verdict in verdicts if "MiB" not in verdict.name]
        assert {verdict.outcome for verdict in timed} == {"slower"}
        assert len(timed) == 4
        for verdict in timed:
            assert verdict.low < verdict.ratio < verdict.high
            assert verdict.ratio == pytest.approx(slower, rel=4 * noise)


def test_a_busier_machine_is_not_blamed_on_the_code():
    """What the reference work next to it suffers too is unclear at most, never slower."""
    for seed in range(8):
        found = outcomes(samples(seed), samples(1000 + seed, busy=2.0))
        assert "slower" not in found
        assert "unclear" in found


def test_slower_code_is_found_on_a_busier_machine():
    """A regression beyond what the machine explains is still found."""
    assert "slower" in outcomes(samples(1), samples(2, slower=1.5, busy=2.0))


def test_a_quieter_machine_hides_nothing_as_better():
    """A gain that the reference work has too is not the code's."""
    assert outcomes(samples(1), samples(2, busy=0.5)) == {"same"}


def test_faster_code_is_said():
    """An improvement is no error and is called one."""
    assert "faster" in outcomes(samples(1), samples(2, slower=0.6))


def test_small_changes_are_tolerated():
    """Two per cent, however certain, are not worth a red build; a smaller tolerance sees them."""
    old, new = samples(1, noise=0.001), samples(2, slower=1.02, noise=0.001)
    assert outcomes(old, new) == {"same"}
    assert "slower" in outcomes(old, new, tolerance=0.005)


def test_memory_has_no_noise():
    """A peak that grew by more than five per cent is worse."""
    found = judge(TESTS, samples(1), samples(2, memory=1100))
    worse = [verdict.name for verdict in found if verdict.outcome == "slower"]
    assert worse == ["pp512, peak MiB", "tg128, peak MiB", "ttft live @ d512, peak MiB"]


def with_chunk(samples, chunk):
    return [replace(sample, longest_chunk=chunk) for sample in samples]


def test_memory_is_compared_at_equal_chunks():
    """A busy machine shortens the chunks, and with them the peak: that is not the code's."""
    busy = with_chunk(samples(1, memory=800), 128)
    quiet = with_chunk(samples(2), 256)
    assert outcomes(busy, quiet) == {"same", "unclear"}
    assert outcomes(quiet, busy) == {"same"}
    mixed = [*with_chunk(samples(3, memory=800), 128)[:6], *with_chunk(samples(3), 256)]
    assert outcomes(mixed, quiet) == {"same"}
    worse = with_chunk(samples(2, memory=1100), 256)
    assert "slower" in outcomes(mixed, worse)


def test_one_odd_repetition_is_no_memory_regression():
    """A single low peak in the baseline accuses nobody."""
    old = samples(1)
    old[0] = replace(old[0], peak_memory_bytes=500)
    assert outcomes(old, samples(2)) == {"same"}


def test_what_interrupts_some_repetitions_is_not_judged():
    """Where other programs hold up every fifth repetition, the others still find what is slower."""

    def disturbed(seed, **how):
        return [
            replace(s, seconds=s.seconds * 4, host_s=s.host_s * 2) if number % 5 == 0 else s
            for number, s in enumerate(samples(seed, **how))
        ]

    for seed in range(5):
        old = disturbed(seed)
        assert "slower" not in outcomes(old, disturbed(1000 + seed)), seed
        assert "slower" in outcomes(old, disturbed(2000 + seed, slower=1.4)), seed


def test_without_reference_work_the_times_decide():
    """Samples without it are judged as they are."""
    old = [replace(sample, reference_s=0.0) for sample in samples(1)]
    new = [replace(sample, reference_s=0.0) for sample in samples(2, slower=2)]
    assert "slower" in outcomes(old, new)
    assert "unclear" not in outcomes(old, new)


def test_what_was_not_measured_is_not_judged():
    """A test without samples on one side has no verdict."""
    only_first = [sample for sample in samples(2) if sample.test == 0]
    names = [verdict.name for verdict in judge(TESTS, samples(1), only_first)]
    assert names == ["pp512, ms/token", "pp512, peak MiB"]


def test_only_what_is_found_twice_is_confirmed():
    """A second measurement that does not find it clears a figure."""
    bad = judge(TESTS, samples(1), samples(2, slower=2))
    good = judge(TESTS, samples(1), samples(3))
    assert confirmed(bad, good) == []
    assert confirmed(bad, bad) == [verdict for verdict in bad if verdict.outcome == "slower"]


MACHINE = {
    "system": "Linux x86_64",
    "cpu": "A",
    "cores": 2,
    "backend": "Metal",
    "blas_threads": "all",
    "mlxchat": "0.1",
    "commit": "abc",
    "python": "3.11",
    "packages": {"mlx": "0.32"},
}


def make_baseline(**changes):
    values = {"model": "m", "fingerprint": "f", "machine": MACHINE, "settings": {"rounds": 3}}
    return Baseline(**{**values, "tests": TESTS, "samples": tuple(samples(1)), **changes})


def test_a_baseline_survives_the_disk(tmp_path):
    """What is saved is what is loaded; nothing else is left in the folder."""
    path = tmp_path / "new" / "base.json"
    make_baseline().save(path)
    assert Baseline.load(path) == make_baseline()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "there is no baseline in"),
        ("no json", r"is no baseline \(it is not JSON\)"),
        ("[]", "is no baseline of this version"),
        ('{"format": 99}', "is no baseline of this version"),
        ('{"format": 2}', "is a broken baseline"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path, content, line):
    """A file that is none, broken or of another version is refused with what to do."""
    path = tmp_path / "base.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MlxchatError, match=line) as refusal:
        Baseline.load(path)
    assert "--baseline save" in str(refusal.value)


def test_another_model_is_refused():
    """Other weights cannot be compared."""
    with pytest.raises(MlxchatError, match="another model"):
        make_baseline().refuse_other("g", MACHINE)
    make_baseline().refuse_other("f", MACHINE)


@pytest.mark.parametrize(("name", "why"), [(".", "Is a directory"), ("f/g", "File exists")])
def test_a_place_that_cannot_be_written_is_refused_before_measuring(folder, tmp_path, name, why):
    """Nothing is measured for a baseline that could not be saved."""
    (tmp_path / "f").touch()
    path = tmp_path / name
    assert run("--baseline", "save", path, "-m", folder, code=1) == ""
    assert run.stderr == f"Error: {path} cannot be written ({why}); name another FILE\n"
    with pytest.raises(MlxchatError, match="cannot be read as a baseline"):
        Baseline.load(path)


@pytest.mark.parametrize("name", ["system", "cpu", "cores", "backend", "blas_threads"])
def test_another_machine_is_refused(name):
    """What makes a machine another one is named, with both values."""
    with pytest.raises(MlxchatError, match=r"another machine or setting: .*'elsewhere'"):
        make_baseline().refuse_other("f", MACHINE | {name: "elsewhere"})


def test_other_versions_are_only_said():
    """New versions are what a baseline is for; they are listed."""
    new = MACHINE | {"commit": "def", "packages": {"mlx": "0.33", "mlx-lm": "1"}}
    assert make_baseline().version_changes(new) == [
        "commit: abc then, def now",
        "mlx: 0.32 then, 0.33 now",
        "mlx-lm: none then, 1 now",
    ]


run = CommandLine("bench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def save_small(folder, path):
    run("--baseline", "save", path, "-m", folder, "-p", 24, "-n", 4, "-d", "0", "-r", 3)


def test_save_and_check(folder, tmp_path):
    """A check after a save measures the same tests; made impossibly fast, it says what is worse."""
    path = tmp_path / "base.json"
    save_small(folder, path)
    assert run.stderr == f"Saved to {path}.\n"
    data = json.loads(path.read_text())
    assert data["settings"] == {
        "repetitions": 3,
        "rounds": 3,
        "budget_s": 4.0,
        "has_openblas": True,
    }
    for sample in data["samples"]:
        sample |= {"seconds": sample["seconds"] / 1000, "peak_memory_bytes": 1 << 40}
    path.write_text(json.dumps(data))
    text = run("--baseline", "check", path, "-m", folder, code=1)
    assert "| pp24, ms/token " in text
    assert "WORSE" in text
    assert "measuring once more" in run.stderr
    assert "Error: worse than the baseline: pp24, ms/token" in run.stderr


def test_check_refuses_before_it_measures_long(folder, tmp_path):
    """Another machine is refused when the model is loaded, in one line."""
    path = tmp_path / "base.json"
    save_small(folder, path)
    data = json.loads(path.read_text())
    data["machine"]["cores"] += 1
    path.write_text(json.dumps(data))
    assert run("--baseline", "check", path, "-m", folder, code=1) == ""
    assert "number of cores" in run.stderr


def test_a_check_decides_itself_what_it_measures(tmp_path):
    """Options that ask for other tests are refused."""
    run("--baseline", "check", tmp_path / "b.json", "-p", 3, code=2)
    assert "measures what the baseline holds" in run.stderr


def test_a_baseline_has_a_place_of_its_own(mlxchat_home):
    """Without FILE each model has its own file among our data."""
    assert baseline_path(None, "org/name").parent == mlxchat_home / "data" / "baselines"
    assert baseline_path(None, "org/name").name == "org_name.json"
    assert str(baseline_path("here.json", "x")) == "here.json"
