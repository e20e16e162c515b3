"""What samples become: rates, percentiles, shares, ratios with intervals, formats."""

import csv
import io
import json
import random
import sqlite3

import pytest

from mlxchat.bench.compare import bootstrap_ratio, compare_systems
from mlxchat.bench.figures import make_rows, percentile, spread
from mlxchat.bench.records import format_report, make_records
from mlxchat.bench.report import Report
from mlxchat.bench.workload import Case, Request, Sample, fit_tests, make_tests

PP, TG = Case("pp", 100), Case("tg", 10, 50)
COLD, LIVE = Case("ttft", 32, 500, "cold"), Case("ttft", 32, 500, "live")
FACTS = {
    "model_type": "qwen3",
    "model_size": 10 << 20,
    "model_n_params": 1_000_000,
    "backend": "CPU (OpenBLAS), float32",
    "bytes_per_token": 1000,
    "smallest_stream": 500,
    "bandwidth": 1e6,
    "matmul_params": 500,
    "matmul_flops": 1e6,
    "load_s": 0.5,
}
MACHINE = {
    "system": "Linux x86_64",
    "cpu": "Some 'quoted' CPU",
    "cores": 2,
    "python": "3.11",
    "mlxchat": "0.1",
    "commit": "abc",
    "packages": {"mlx": "0.32"},
    "blas_threads": "1",
    "load": 0.5,
    "time": "2026-11-21T00:00:00+00:00",
}


def samples():
    """Two repetitions of each of three tests."""
    gaps = (10.0,) * 9 + (20.0,)
    return [
        Sample(0, 1.0, 100, host_s=0.1, peak_memory_bytes=5, kv_bytes=7),
        Sample(0, 0.5, 100, host_s=0.1, peak_memory_bytes=9, kv_bytes=7),
        Sample(1, 0.1, 10, gaps, 0.02, 6, 500),
        Sample(1, 0.1, 10, gaps, 0.04, 6, 500),
        Sample(2, 2.0, 32),
        Sample(2, 2.0, 32),
    ]


def test_rows():
    """Means and spreads are over repetitions; the host's part and the gaps are per token."""
    prefill, decode, first = make_rows((PP, TG, COLD, LIVE), samples(), FACTS)
    assert prefill.mean_tok_per_s == 150
    assert prefill.sd_tok_per_s == pytest.approx(70.71, abs=0.01)
    assert prefill.mean_s == 0.75
    assert prefill.peak_memory_bytes == 9
    assert prefill.gaps_ms is None
    assert decode.gaps_ms == {"p50": 10.0, "p95": 20.0, "p99": 20.0}
    assert decode.host_ms == pytest.approx(3.0)
    assert (first.mean_s, first.sd_s, first.test) == (2.0, 0.0, COLD)


def test_shares_of_the_machine():
    """Decode is held against bandwidth (weights and KV), prefill against the matmul rate."""
    prefill, decode, _ = make_rows((PP, TG, COLD), samples(), FACTS)
    assert prefill.matmul_use == pytest.approx(2 * 500 * 150 / 1e6)
    assert prefill.bandwidth_use is None
    assert decode.bytes_per_token == 1500
    assert decode.bandwidth_use == pytest.approx(1500 * 100 / 1e6)
    assert decode.matmul_use is None


@pytest.mark.parametrize("unknown", [{"bytes_per_token": None}, {"smallest_stream": 10_000}])
def test_no_share_where_it_would_say_nothing(unknown):
    """Experts of unknown use, and weights that fit the processor's caches, have no share."""
    decode = make_rows((PP, TG), samples(), FACTS | unknown)[1]
    assert decode.bandwidth_use is None


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2.5), (100, 4), (25, 1.75)])
def test_percentile(percent, value):
    """Percentiles are interpolated, whatever the order."""
    assert percentile([4, 1, 3, 2], percent) == value


def test_one_value_has_no_spread():
    """A single repetition has the spread 0."""
    assert spread([3.0]) == 0


def noisy(mean, rounds, num, seed, between=0.05, within=0.02):
    """Values by round: each round has an offset of its own."""
    rng = random.Random(seed)
    result = []
    for _ in range(rounds):
        centre = mean * rng.gauss(1, between)
        result.append([centre * rng.gauss(1, within) for _ in range(num)])
    return result


def test_ratio_and_its_interval():
    """The interval lies around the ratio and says the same each time."""
    ours, peer = noisy(200, 4, 5, 1), noisy(100, 4, 5, 2)
    ratio, low, high = bootstrap_ratio(ours, peer)
    assert low < ratio < high
    assert 1.8 < low < 2.2
    assert bootstrap_ratio(ours, peer) == (ratio, low, high)


def test_interval_shows_the_noise_between_processes():
    """Processes that differ make the interval wide, however well repetitions agree."""
    calm = bootstrap_ratio(noisy(100, 4, 5, 1, between=0), noisy(100, 4, 5, 2, between=0))
    rough = bootstrap_ratio(
        noisy(100, 4, 5, 1, 0.2, within=0.001), noisy(100, 4, 5, 2, 0.2, within=0.001)
    )
    assert rough[2] - rough[1] > 3 * (calm[2] - calm[1])


def test_ratios_above_one_are_better():
    """Rates and times alike: a ratio above 1 says that ours is better."""
    ours = [Sample(0, 1.0, 100, peak_memory_bytes=3 << 20)]
    ours += [Sample(1, 1.0, 10, host_s=0.1), Sample(2, 1.0, 32)]
    peer = [Sample(0, 2.0, 100, peak_memory_bytes=6 << 20)]
    peer += [Sample(1, 4.0, 10, host_s=0.3), Sample(2, 5.0, 32)]
    found = compare_systems((PP, TG, COLD), ours, peer)
    assert [(r.name, round(r.ratio, 6)) for r in found] == [
        ("pp100, t/s", 2),
        ("pp100, peak MiB", 2),
        ("tg10 @ d50, t/s", 4),
        ("tg10 @ d50, host ms/token", 3),
        ("ttft cold @ d500, ms", 5),
    ]


def test_a_prefill_that_was_cut_has_no_peak_to_compare():
    """A prefill of fewer tokens takes less memory: only whole ones are compared."""
    ours = [Sample(0, 1.0, 100, peak_memory_bytes=3 << 20)]
    peer = [Sample(0, 2.0, 9, peak_memory_bytes=1 << 20)]
    assert [ratio.name for ratio in compare_systems((PP,), ours, peer)] == ["pp100, t/s"]


def test_what_the_peer_did_not_do_has_no_ratio():
    """A test that one of the two left out is not compared."""
    assert compare_systems((PP, TG), [Sample(0, 1.0, 100)], [Sample(1, 1.0, 10)]) == []


def test_tests_of_a_run():
    """Every length at every depth with every chunk, then the first token after the deepest."""
    names = [test.name for test in make_tests([512], [128], [0, 4096], [None, 64])]
    assert names == [
        "pp512",
        "pp512, chunk 64",
        "tg128",
        "pp512 @ d4096",
        "pp512 @ d4096, chunk 64",
        "tg128 @ d4096",
        "ttft cold @ d4096",
        "ttft live @ d4096",
        "ttft disk @ d4096",
    ]


def test_sweep_of_kv_bits():
    """Every way of holding keys and values runs all tests."""
    names = [test.name for test in make_tests([8], [4], [0], kv_bits=[None, 8], has_ttft=False)]
    assert names == ["pp8", "tg4", "pp8, kv 8 bit", "tg4, kv 8 bit"]


def test_nothing_is_measured_twice():
    """Lengths that are named twice are measured once; 0 leaves a kind out."""
    assert [test.name for test in make_tests([8, 8], [0], [0], has_ttft=False)] == ["pp8"]


def test_depths_are_fitted_to_the_context():
    """Depths are shortened to what the context holds, longer lengths are left out, said each."""
    fitted, notes = fit_tests((PP, Case("pp", 100, 5000), Case("tg", 3000)), 2000)
    assert [test.name for test in fitted] == ["pp100", "pp100 @ d1868"]
    assert notes == [
        "depth 5000 shortened to 1868: the model's context is 2000 tokens",
        "tg3000 left out: the model's context is 2000 tokens",
    ]


def test_request_survives_json():
    """The child gets the request that the parent made."""
    request = Request("folder", (PP, COLD), 3, 1.5, has_openblas=False)
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def make_report(**changes):
    rows = make_rows((PP, TG, COLD), samples(), FACTS)
    return Report("model", MACHINE, FACTS, **({"rows": {"mlxchat": rows}} | changes))


def test_markdown_has_llama_bench_columns_and_the_rest():
    """The first table is llama-bench's; the others hold what that lacks; then the conditions."""
    text = format_report(make_report(notes=["depth 9 shortened"]), "md")
    rates, details, first, conditions = text.split("\n\n")
    header = [cell.strip() for cell in rates.splitlines()[0].strip("|").split("|")]
    assert header == ["model", "size", "params", "backend", "test", "t/s"]
    assert "150.00 ± 70.71" in rates
    assert "10.00 / 20.00 / 20.00" in details
    assert "15 % bandwidth" in details
    assert "15 % matmul" in details
    assert "2,000.0 ± 0.0" in first
    assert "Some 'quoted' CPU, 2 cores" in conditions
    assert conditions.endswith("depth 9 shortened\n")
    for table in (rates, details, first):
        assert len({len(line) for line in table.strip().splitlines()}) == 1


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("systems", [["mlxchat"], ["mlxchat", "mlx-lm"]])
def test_tables_fit_the_terminal(width, systems):
    """What is too wide says once what all rows share, and stands in several tables."""
    note = "a long note about what was shortened, left out, or measured in another way than asked"
    rows = make_report().rows["mlxchat"]
    report = make_report(rows=dict.fromkeys(systems, rows), notes=[note])
    wide, narrow = format_report(report, "md"), format_report(report, "md", width)
    assert max(map(len, wide.splitlines())) > 80
    assert max(map(len, narrow.splitlines())) <= width
    about = "model qwen3, 10.00 MiB, 1.00 M parameters, CPU (OpenBLAS), float32"
    named = [f"{name}: {about}" if len(systems) > 1 else about for name in systems]
    words = " ".join(narrow.split())
    assert all(line in words for line in [*named, note])
    values = {cell.strip() for line in wide.splitlines()[2:] for cell in line.split("|")[5:-1]}
    assert values <= {cell.strip() for line in narrow.splitlines() for cell in line.split("|")}


def test_json_and_jsonl_agree():
    """Both hold one object per test, with the names and units of llama-bench and the samples."""
    report = make_report()
    records = json.loads(format_report(report, "json"))
    assert records == [json.loads(line) for line in format_report(report, "jsonl").splitlines()]
    assert records == make_records(report)
    first = records[0]
    assert (first["n_prompt"], first["n_gen"], first["n_depth"]) == (100, 0, 0)
    assert first["avg_ns"] == 750_000_000
    assert first["samples_ns"] == [1_000_000_000, 500_000_000]
    assert (records[1]["n_gen"], records[1]["p99_ms"]) == (10, 20.0)
    assert records[2]["cache"] == "cold"


def test_csv_can_be_read():
    """The csv has a header and a row per test."""
    rows = list(csv.DictReader(io.StringIO(format_report(make_report(), "csv"))))
    assert [row["test"] for row in rows] == ["pp100", "tg10 @ d50", "ttft cold @ d500"]
    assert float(rows[0]["avg_ts"]) == 150


@pytest.mark.parametrize("form", ["md", "csv"])
def test_the_peer_has_a_size_and_a_backend_of_its_own(form):
    """What computes with other copies of the weights is not described as ours."""
    own = {"model_size": 3 << 20, "backend": "CPU (OpenBLAS), bfloat16, quantised"}
    rows = make_report().rows["mlxchat"]
    report = make_report(rows={"mlxchat": rows, "mlx-lm": rows}, peers={"mlx-lm": own})
    lines = [line for line in format_report(report, form).splitlines() if "mlx-lm" in line]
    described = [line for line in lines if "bfloat16" in line]
    assert len(described) == (2 if form == "md" else 3)
    assert all(("3.00 MiB" if form == "md" else str(3 << 20)) in line for line in described)


def test_sql_fills_a_table():
    """SQLite takes the sql as it is, quotes and all, with numbers as numbers."""
    db = sqlite3.connect(":memory:")
    db.executescript(format_report(make_report(), "sql"))
    rows = db.execute("SELECT cpu_info, n_gen, avg_ts FROM mlxchat_bench ORDER BY rowid")
    assert list(rows)[:2] == [("Some 'quoted' CPU", 0, 150.0), ("Some 'quoted' CPU", 10, 100.0)]


@pytest.mark.parametrize("form", ["md", "csv", "json", "jsonl", "sql"])
def test_nothing_measured_is_no_error(form):
    """A run that was stopped before its first sample can be told in every format."""
    text = format_report(Report("model", MACHINE, {}, {"mlxchat": []}), form)
    assert text if form in ("md", "json") else text == ""
