"""`mlxchat bench` on tiny models: what is measured, said, refused and stopped."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from command_line import CommandLine
from matrix_models import build, make_loaded
from tiny import make_tiny_folder

from mlxchat.bench import runs
from mlxchat.bench.measure import Limit, OverBudgetError, measure
from mlxchat.bench.our_engine import OurEngine
from mlxchat.bench.runs import _best_rates
from mlxchat.bench.workload import Case, Request, Sample

SHORT = ["-p", "24", "-n", "4", "-d", "0,40", "-r", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


run = CommandLine("bench")


def measured(engine, tests, repetitions=2, budget_s=0.0):
    """Measures in this process; returns notes and samples."""
    found = {"note": [], "sample": []}

    def emit(kind, data):
        if kind in found:
            found[kind].append(data)

    request = Request("", tuple(tests), repetitions, budget_s)
    try:
        measure(engine, request, emit)
    finally:
        engine.close()
    return found["note"], found["sample"]


@pytest.mark.parametrize("name", ["native:qwen3", "zoo:mamba2", "zoo:gpt_oss", "zoo:jamba"])
def test_every_kind_of_test(name):
    """Prefill, decode and first tokens are measured at their depths, whatever the cache."""
    tests = [
        Case("pp", 24, chunk=8),
        Case("tg", 5),
        Case("pp", 24, 40),
        Case("tg", 5, 40),
        Case("ttft", 8, 40, "cold"),
        Case("ttft", 8, 40, "live"),
        Case("ttft", 8, 40, "disk"),
    ]
    notes, samples = measured(OurEngine(make_loaded(build(name))), tests)
    assert notes == []
    assert [sample.test for sample in samples] == [n for n in range(7) for _ in range(2)]
    for sample in samples:
        test = tests[sample.test]
        assert sample.num_done == test.num_tokens
        assert sample.seconds > 0
        assert sample.host_s > 0
        assert sample.reference_s > 0
        assert len(sample.gaps_ms) == (5 if test.kind == "tg" else 0)
        assert sample.kv_bytes > 0


def test_what_is_too_short_to_be_stored(folder):
    """A history that a chat would not store is left out, with that as the reason."""
    notes, samples = measured(OurEngine.load(folder), [Case("ttft", 8, 16, "disk")])
    assert notes == ["ttft disk @ d16 left out: less than 32 tokens are not stored"]
    assert samples == []


def test_the_depth_is_what_it_says(folder):
    """Before the timed part the cache holds exactly the depth; decode begins at its last id."""
    engine = OurEngine.load(folder)
    limit = Limit(60)
    for test, held in ((Case("pp", 8, 40), 40), (Case("tg", 3, 40), 39), (Case("tg", 3), 0)):
        engine.prepare(test, limit)
        assert len(engine.engine.prefix.token_ids) == held
        engine.run(test, limit, test.num_tokens)
        fed = test.end if test.kind == "pp" else max(held, 0) + 1 + test.num_tokens
        assert len(engine.engine.prefix.token_ids) == fed


def test_from_disk_reads_nothing_of_the_history(folder):
    """The first token from disk feeds the message alone, and the person's own store is empty."""
    engine = OurEngine.load(folder)
    test = Case("ttft", 8, 40, "disk")
    engine.prepare(test, Limit(60))
    assert engine.engine.prefix.token_ids == []
    fed = []
    feed = type(engine.engine)._feed

    def count(self, token_ids, **how):
        fed.append(len(token_ids))
        return feed(self, token_ids, **how)

    type(engine.engine)._feed = count
    try:
        engine.run(test, Limit(60), 8)
    finally:
        type(engine.engine)._feed = feed
        engine.close()
    assert sum(fed) == 8
    assert not (os.path.exists(os.path.join(os.environ["MLXCHAT_HOME"], "cache")))


def test_a_test_that_takes_too_long_is_shortened(folder):
    """When the time is up a test keeps what it has, and says so."""
    notes, samples = measured(
        OurEngine.load(folder), [Case("pp", 600, chunk=16), Case("tg", 600)], 3, 1e-4
    )
    assert {sample.test for sample in samples} == {0, 1}
    assert all(0 < sample.num_done < 600 for sample in samples)
    assert notes == [
        "pp600, chunk 16 ended early: 0.0001 s were up; --budget 0 takes the time",
        "tg600 ended early: 0.0001 s were up; --budget 0 takes the time",
    ]


def test_a_history_that_takes_too_long_is_left_out(folder):
    """A depth that cannot be reached in time is left out with all that lie deeper, by name."""
    tests = [Case("pp", 8, 500, chunk=1), Case("tg", 8, 500), Case("pp", 8)]
    notes, samples = measured(OurEngine.load(folder), tests, 1, 1e-4)
    assert [sample.test for sample in samples] == [2]
    assert [note.split(":")[0] for note in notes] == ["pp8 @ d500, chunk 1, tg8 @ d500 left out"]


def test_a_limit_raises_when_the_time_is_up():
    """A limit lets pass what is in time and ends what is not."""
    Limit(60)()
    with pytest.raises(OverBudgetError):
        Limit(-1)()


def test_tables(folder):
    """The command prints its tables on stdout and keeps progress off it."""
    text = run("-m", folder, *SHORT)
    for name in ("pp24 ", "tg4 ", "pp24 @ d40", "tg4 @ d40", "live cache", "from disk"):
        assert f"| {name}" in text
    assert "machine: " in text
    assert run.stderr == ""


def test_what_records_do_not_hold_is_said(folder):
    """A format for programs has what was shortened on stderr, and stdout to itself."""
    text = run("-m", folder, "-p", 0, "-n", 4, "-d", "100000", "-r", 1, "-o", "csv")
    assert all(line.startswith('"') for line in text.splitlines())
    assert run.stderr.startswith("depth 100000 shortened to ")


def test_sweep_of_chunks(folder):
    """Each chunk length has a row of its own."""
    text = run("-m", folder, "-p", 24, "-n", 0, "-d", 0, "-r", 1, "--chunk", "8,16", "-o", "json")
    rows = json.loads(text)
    assert [(row["test"], row["n_batch"]) for row in rows][:2] == [
        ("pp24, chunk 8", 8),
        ("pp24, chunk 16", 16),
    ]


def test_sweep_of_kv_bits(tmp_path):
    """Keys and values in fewer bits take less memory and are measured like others."""
    folder = make_tiny_folder(tmp_path / "wide", head_dim=32)
    text = run(
        *("-m", folder, "-p", 0, "-n", 4, "-d", 64, "-r", 1, "--kv-bits", "none,8,4", "-o", "json")
    )
    sizes = {r["kv_bits"]: r["kv_bytes"] for r in json.loads(text) if r["n_gen"] == 4}
    assert sizes[None] > sizes[8] > sizes[4]


def test_sweep_of_speculation(folder):
    """Decoding with prompt lookup has a row of its own, and says how many drafts stood."""
    text = run("-m", folder, "-p", 0, "-n", 24, "-d", 64, "-r", 2, "--speculate", "off,lookup")
    assert "| tg24 @ d64 " in text
    assert "| tg24 @ d64, lookup " in text
    assert re.search(r"^tg24 @ d64, lookup: \d+ of \d+ drafts accepted$", text, re.MULTILINE)


def test_speculation_where_it_cannot_be():
    """A cache that cannot take tokens back has no such test; the reason is said."""
    engine = OurEngine(make_loaded(build("zoo:mamba2")))
    notes, samples = measured(engine, [Case("tg", 4, speculate="lookup")])
    assert samples == []
    assert notes[0].startswith("tg4, lookup left out: ")


def test_layers_that_cannot_be_quantised_are_named():
    """Figures with quantised keys and values say where nothing was quantised, and why."""
    engine = OurEngine(make_loaded(build("zoo:mamba2")))
    notes, samples = measured(engine, [Case("tg", 4), Case("tg", 4, kv_bits=8)])
    assert len(samples) == 4
    assert notes == ["KV in 8 bits: no layer (recurrent layers have no rows to quantise)"]


def test_against_mlx_lm(folder):
    """The peer runs on the same weights in turns with ours, and ratios are printed."""
    text = run("-m", folder, "-p", 24, "-n", 4, "-d", 0, "-r", 2, "--against", "mlx-lm")
    assert "| mlx-lm " in text
    assert "| pp24, t/s " in text
    assert "| tg4, host ms/token " in text
    assert "processes 2" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-p", "many"], "'many' is not allowed; give whole numbers from 0 on"),
        (["-d", "1,-2"], "'1,-2' is not allowed"),
        (["--chunk", "0"], "'0' is not allowed; give whole numbers from 1 on"),
        (["-p", "0", "-n", "0", "-d", "0"], "-p 0, -n 0 and -d 0 leave nothing to measure"),
        (["--kv-bits", "5"], "'5' is not allowed; give some of none, 8, 4"),
        (["file.json"], "'file.json' would be the FILE of a --baseline; a model goes after -m"),
    ],
)
def test_wrong_usage(arguments, line):
    """What cannot be measured is refused in one line, before anything is loaded."""
    run(*arguments, code=2)
    assert line in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_broken_model_is_one_line(tmp_path):
    """What is wrong with a model is said as everywhere else."""
    folder = make_tiny_folder(tmp_path / "broken")
    (folder / "config.json").write_text("{")
    run("-m", folder, *SHORT, code=1)
    assert run.stderr.startswith("Error: ")
    assert "config.json" in run.stderr
    assert run.stderr.count("\n") == 1


def test_ctrl_c_leaves_what_was_measured(folder, monkeypatch):
    """Ctrl-C ends the run, prints the rows that there are, ends the child and exits with 130."""
    children, samples = [], []
    popen, make_sample = subprocess.Popen, runs.make_sample

    def start(*arguments, **how):
        children.append(popen(*arguments, **how))
        return children[-1]

    def take(data, round_):
        samples.append(data)
        if len(samples) == 3:
            signal.raise_signal(signal.SIGINT)
        return make_sample(data, round_)

    monkeypatch.setattr(runs.subprocess, "Popen", start)
    monkeypatch.setattr(runs, "make_sample", take)
    text = run("-m", folder, "-p", 8, "-n", 4, "-d", 0, "-r", 1000, "--budget", 0, code=130)
    assert "| pp8 " in text
    assert "| tg4 " not in text
    assert run.stderr == "Stopped; the figures above are what was measured by then.\n"
    assert [child.poll() is not None for child in children if "bench.child" in str(child.args)] == [
        True
    ]


@pytest.mark.parametrize("form", ["md", "json"])
def test_ctrl_c_before_the_first_sample(folder, monkeypatch, form):
    """Where nothing was measured there is no table, and the line says so."""
    monkeypatch.setattr(runs, "_best_rates", lambda *_: signal.raise_signal(signal.SIGINT))
    assert run("-m", folder, *SHORT, "-o", form, code=130) == ""
    assert run.stderr == "Stopped before anything was measured.\n"


def test_a_process_that_fails_leaves_what_was_measured(folder, monkeypatch):
    """Where memory runs out in the middle, the rows that there are stand above the error."""
    popen, made, children = subprocess.Popen, runs.make_sample, []

    def start(*arguments, **how):
        children.append(popen(*arguments, **how))
        return children[-1]

    def take(data, round_):
        if data["test"] == 1:
            children[-1].kill()
        return made(data, round_)

    monkeypatch.setattr(runs.subprocess, "Popen", start)
    monkeypatch.setattr(runs, "make_sample", take)
    text = run("-m", folder, "-p", 8, "-n", 4, "-d", 0, "-r", 1000, "--budget", 0, code=1)
    assert "| pp8 " in text
    assert run.stderr.startswith("Error: the process that measured mlxchat was ended by signal 9")


def test_the_child_ends_with_its_parent(folder):
    """A measuring process does not outlive the program that would read it."""
    request = Request(str(folder), (Case("pp", 8),), 1_000_000)
    child = subprocess.Popen(
        [sys.executable, "-m", "mlxchat.bench.child", "mlxchat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child.stdin.write(json.dumps(request.to_json()) + "\n")
    child.stdin.flush()
    assert "facts" in json.loads(child.stdout.readline())
    child.stdin.close()
    child.stdout.close()
    assert child.wait(20) != 0


def test_a_sample_has_a_rate():
    """Tokens per second are those that were done, also in a shortened test."""
    assert Sample(0, 2.0, 10).tok_per_s == 5


def test_the_best_rate_of_a_machine_counts():
    """Rates are measured before and after; a busy moment makes no share above what there is."""
    first = {"backend": "CPU", "bandwidth": 2.0, "matmul_flops": 9.0, "load_s": 1.0}
    second = {"backend": "CPU", "bandwidth": 3.0, "matmul_flops": 4.0, "load_s": 2.0}
    joined = _best_rates(_best_rates({}, first), second)
    assert joined == {"backend": "CPU", "bandwidth": 3.0, "matmul_flops": 9.0, "load_s": 2.0}
    assert _best_rates({"mlx_lm": "1"}, {"mlx_lm": "1"}) == {"mlx_lm": "1"}


def test_rates_are_measured_at_both_ends(folder):
    """A run measures what bounds it before the first test and after the last."""
    engine, seen = OurEngine.load(folder), []
    measure(engine, Request("", (Case("pp", 8),), 1), lambda kind, data: seen.append((kind, data)))
    kinds = [kind for kind, _ in seen]
    assert (kinds[0], kinds[-1], kinds.count("facts")) == ("facts", "facts", 2)
    assert seen[0][1]["matmul_flops"] != seen[-1][1]["matmul_flops"]
