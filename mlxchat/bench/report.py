"""A measurement as tables for people, in Markdown. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxchat.bench.baseline import TOLERANCE, Verdict
from mlxchat.bench.compare import Ratio
from mlxchat.bench.figures import Row
from mlxchat.bench.tables import make_table, wrap_lines
from mlxchat.bench.workload import System

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Report:
    """All that is told of a measurement.

    Attributes:
        model: Its name.
        machine: From `describe_machine`.
        facts: Of the model and the device.
        rows: By system; ours comes first.
        ratios: Ours to the peer's, by test.
        settings: Repetitions, rounds, seconds per test.
        notes: What was shortened or left out.
        peers: What differs from `facts` with each system: the size of the weights, the backend.
    """

    model: str
    machine: dict[str, Any]
    facts: dict[str, Any]
    rows: dict[System, list[Row]]
    ratios: list[Ratio] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    peers: dict[System, dict[str, Any]] = field(default_factory=dict)

    def facts_of(self, system: System) -> dict[str, Any]:
        """Returns what holds for one system."""
        return self.facts | self.peers.get(system, {})


def format_markdown(report: Report, width: int | None = None) -> str:
    """Returns the tables: llama-bench's own, then what it lacks, then how it was measured.

    Args:
        report: What to tell.
        width: Of the terminal; None is a file, where tables may be as wide as they are.
    """
    parts = [_rates(report, width), _details(report, width), _first_tokens(report, width)]
    parts += [_ratios(report, width), _conditions(report, width)]
    return "\n".join(part for part in parts if part)


def format_remarks(report: Report) -> str:
    """Returns what records do not hold: ratios, and what was shortened or left out."""
    parts = [_ratios(report, None), "\n".join(report.notes)]
    return "\n".join(part.rstrip("\n") for part in parts if part)


def _rates(report: Report, width: int | None) -> str:
    many = len(report.rows) > 1
    rows: list[tuple[str, ...]] = []
    about = []  # what all rows of a system have in common
    for system, found in report.rows.items():
        facts = report.facts_of(system)
        size = facts.get("model_size")
        same = (
            f"{report.model} {facts.get('model_type', '')}".strip(),
            "-" if size is None else format_size(size),
            "-" if not facts.get("model_n_params") else f"{facts['model_n_params'] / 1e6:,.2f} M",
            str(facts.get("backend", "-")),
        )
        named = (*same[:2], f"{same[2]} parameters", same[3])
        known = ", ".join(part for part in named if not part.startswith("-"))
        about.append(f"{system}: {known}" if many else known)
        for row in found:
            if row.test.kind != "ttft":
                engine = (system,) if many else ()
                rate = f"{row.mean_tok_per_s:,.2f} ± {row.sd_tok_per_s:,.2f}"
                rows.append((*same, *engine, row.test.name, rate))
    header = ("model", "size", "params", "backend", *(("engine",) if many else ()), "test", "t/s")
    if not rows:
        return ""
    table = make_table(header, rows, len(header) - 1)
    if width is None or table.index("\n") <= width:
        return table
    rows = [row[len(same) :] for row in rows]
    lines = wrap_lines(about, width)
    return "\n".join([*lines, "", make_table(header[len(same) :], rows, 1 + many, width)])


def _details(report: Report, width: int | None) -> str:
    """Returns what llama-bench lacks, of our own engine."""
    rows = []
    for row in next(iter(report.rows.values()), []):
        if row.test.kind == "ttft":
            continue
        gaps = row.gaps_ms
        is_decode = row.test.kind == "tg"
        rows.append(
            (
                row.test.name,
                "-" if gaps is None else " / ".join(f"{gap:.2f}" for gap in gaps.values()),
                f"{row.host_ms:.3f}" if is_decode else "-",
                f"{row.peak_memory_bytes / _MIB:,.1f}",
                f"{row.kv_bytes / _MIB:,.1f}",
                "-" if row.bytes_per_token is None else f"{row.bytes_per_token / _MIB:,.1f}",
                _share(row),
            )
        )
    header = (
        "test",
        "p50 / p95 / p99 ms",
        "host ms/token",
        "peak MiB",
        "KV MiB",
        "MiB/token",
        "of the machine",
    )
    return make_table(header, rows, width=width) if rows else ""


def _share(row: Row) -> str:
    if row.bandwidth_use is not None:
        return f"{100 * row.bandwidth_use:.0f} % bandwidth"
    if row.matmul_use is not None:
        return f"{100 * row.matmul_use:.0f} % matmul"
    return "-"


def _first_tokens(report: Report, width: int | None) -> str:
    rows = []
    cold: dict[int | None, float] = {}  # by how keys and values are held
    for row in next(iter(report.rows.values()), []):
        if row.test.kind == "ttft":
            bits = row.test.kv_bits
            if row.test.source == "cold":
                cold[bits] = row.mean_s
            share = row.mean_s / cold[bits] if bits in cold else None
            where = {"cold": "cold: all is read", "live": "live cache", "disk": "from disk"}
            rows.append(
                (
                    where[row.test.source] + (f", kv {bits} bit" if bits else ""),
                    f"{row.test.depth:,}",
                    str(row.test.num_tokens),
                    f"{row.mean_s * 1e3:,.1f} ± {row.sd_s * 1e3:,.1f}",
                    "-" if share is None else f"{share:.3f}",
                )
            )
    header = ("first token", "history", "message", "ms", "of cold")
    return make_table(header, rows, width=width) if rows else ""


def _ratios(report: Report, width: int | None) -> str:
    rows = [
        (
            ratio.name,
            f"{ratio.ours:,.2f}",
            f"{ratio.peer:,.2f}",
            f"{ratio.ratio:.2f}x",
            f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.low < ratio.high else "-",
        )
        for ratio in report.ratios
    ]
    peer = next((system for system in report.rows if system != "mlxchat"), "peer")
    header = ("test (medians)", "mlxchat", peer, "ratio", "95 %")
    return make_table(header, rows, width=width) if rows else ""


def _conditions(report: Report, width: int | None) -> str:
    """Returns machine, versions, settings and what was shortened, a line each."""
    facts = report.facts
    lines = format_machine(report.machine)
    if facts.get("bandwidth"):
        lines.append(
            f"measured here: {facts['bandwidth'] / 1e9:,.1f} GB/s of memory,"
            f" {facts['matmul_flops'] / 1e9:,.0f} GFLOP/s of products; loaded in"
            f" {facts.get('load_s', 0):.2f} s"
        )
        if (facts.get("bytes_per_token") or 0) < facts.get("smallest_stream", 0):
            lines.append(
                "no share of bandwidth: the weights are small enough for the processor's caches"
            )
    if report.settings:
        lines.append(
            "settings: " + ", ".join(f"{name} {value}" for name, value in report.settings.items())
        )
    for row in next(iter(report.rows.values()), []):
        if row.test.speculate:
            drafted = sum(sample.num_drafted for sample in row.samples)
            accepted = sum(sample.num_accepted for sample in row.samples)
            lines.append(f"{row.test.name}: {accepted} of {drafted} drafts accepted")
    lines += report.notes
    return "\n".join(wrap_lines(lines, width)) + "\n"


def format_machine(machine: dict[str, Any]) -> list[str]:
    """Returns what a measurement was made on, a line each."""
    packages = "".join(f", {name} {v}" for name, v in machine.get("packages", {}).items())
    commit = f" ({machine['commit']})" if machine.get("commit") else ""
    core = f", OPENBLAS_CORETYPE={machine['blas_core']}" if machine.get("blas_core") else ""
    return [
        f"machine: {machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('system')};"
        f" load {machine.get('load')}; BLAS threads {machine.get('blas_threads')}{core}",
        f"versions: mlxchat {machine.get('mlxchat')}{commit}{packages},"
        f" Python {machine.get('python')}; {machine.get('time')}",
    ]


def format_size(num_bytes: int) -> str:
    """Returns a size in MiB or GiB, as llama-bench writes it."""
    if num_bytes >= 1 << 30:
        return f"{num_bytes / (1 << 30):.2f} GiB"
    return f"{num_bytes / _MIB:.2f} MiB"


_WORDS = {
    "same": "no change shown",
    "slower": "WORSE",
    "faster": "better",
    "unclear": "unclear",
}


def format_verdicts(
    verdicts: Sequence[Verdict], changes: Sequence[str], width: int | None = None
) -> str:
    """Returns what a check against a baseline found.

    Args:
        verdicts: One for each figure.
        changes: Versions that differ.
        width: Of the terminal; None is a file.
    """
    rows = [
        (
            verdict.name,
            _WORDS[verdict.outcome],
            f"{100 * (verdict.ratio - 1):+.1f} %",
            f"{100 * (verdict.low - 1):+.1f} to {100 * (verdict.high - 1):+.1f} %",
            f"{verdict.old:,.3f}",
            f"{verdict.new:,.3f}",
        )
        for verdict in verdicts
    ]
    header = ("figure (less is better)", "verdict", "change", "interval", "then", "now")
    lines = ["changed since: " + "; ".join(changes)] if changes else []
    outcomes = {verdict.outcome for verdict in verdicts}
    if "unclear" in outcomes:
        lines.append(
            "unclear: it looked worse once, but not again, or only as long as the machine was"
            " busier; check again when it is quiet"
        )
    elif "slower" not in outcomes:
        lines.append(
            f"nothing is worse; a change counts where all of its interval is beyond"
            f" {100 * TOLERANCE:.0f} %"
        )
    return "\n".join([make_table(header, rows, 2, width), *wrap_lines(lines, width)]) + "\n"
