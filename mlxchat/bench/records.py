"""A measurement as records: llama-bench's csv, json, jsonl and sql.

Where llama-bench has a field for something it has the same name and unit here, so that tools that
read its output read ours. Pure functions.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mlxchat.bench.figures import Row
from mlxchat.bench.report import Report, format_markdown
from mlxchat.bench.workload import System

Form = Literal["md", "csv", "json", "jsonl", "sql"]
FORMS: tuple[Form, ...] = ("md", "csv", "json", "jsonl", "sql")


def format_report(report: Report, form: Form, width: int | None = None) -> str:
    """Returns the report in one of the formats, with a line feed at its end.

    Args:
        report: What to tell.
        form: How.
        width: Of the terminal that shows tables; None is a file.
    """
    if form == "md":
        return format_markdown(report, width)
    records = make_records(report)
    if form == "json":
        return json.dumps(records, indent=2) + "\n"
    if form == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records)
    flat = [
        {name: value for name, value in record.items() if not isinstance(value, list)}
        for record in records
    ]
    return _sql(flat) if form == "sql" else _csv(flat)


def make_records(report: Report) -> list[dict[str, Any]]:
    """Returns one flat object per test and system; lists hold the single repetitions."""
    return [_record(report, system, row) for system, rows in report.rows.items() for row in rows]


def _record(report: Report, system: System, row: Row) -> dict[str, Any]:
    machine, facts, test = report.machine, report.facts_of(system), row.test
    gaps = {name: round(gap, 6) for name, gap in (row.gaps_ms or {}).items()}
    is_gpu = facts.get("backend") in ("Metal", "CUDA")
    return {
        "build_commit": machine.get("commit") or machine.get("mlxchat", ""),
        "cpu_info": machine.get("cpu", ""),
        "gpu_info": machine.get("cpu", "") if is_gpu else "",
        "backends": facts.get("backend", ""),
        "engine": system,
        "mlxchat_version": machine.get("mlxchat", ""),
        "mlx_version": machine.get("packages", {}).get("mlx", ""),
        "mlx_lm_version": machine.get("packages", {}).get("mlx-lm", ""),
        "python_version": machine.get("python", ""),
        "system": machine.get("system", ""),
        "blas_threads": str(machine.get("blas_threads", "")),
        "model_filename": report.model,
        "model_type": facts.get("model_type", ""),
        "model_size": facts.get("model_size"),
        "model_n_params": facts.get("model_n_params"),
        "n_batch": test.chunk,
        "kv_bits": test.kv_bits,
        "speculate": test.speculate or None,
        "n_prompt": 0 if test.kind == "tg" else test.num_tokens,
        "n_gen": test.num_tokens if test.kind == "tg" else int(test.kind == "ttft"),
        "n_depth": test.depth,
        "test": test.name,
        "cache": test.source or None,
        "test_time": machine.get("time", ""),
        "avg_ns": round(row.mean_s * 1e9),
        "stddev_ns": round(row.sd_s * 1e9),
        "avg_ts": round(row.mean_tok_per_s, 6),
        "stddev_ts": round(row.sd_tok_per_s, 6),
        "repetitions": len(row.samples),
        "p50_ms": gaps.get("p50"),
        "p95_ms": gaps.get("p95"),
        "p99_ms": gaps.get("p99"),
        "host_ms_per_token": round(row.host_ms, 6) if test.kind == "tg" else None,
        "peak_memory_bytes": row.peak_memory_bytes,
        "kv_bytes": row.kv_bytes,
        "bytes_per_token": row.bytes_per_token,
        "bandwidth_use": row.bandwidth_use,
        "matmul_use": row.matmul_use,
        "bandwidth_bytes_per_s": facts.get("bandwidth"),
        "matmul_flops_per_s": facts.get("matmul_flops"),
        "n_drafted": sum(sample.num_drafted for sample in row.samples),
        "n_accepted": sum(sample.num_accepted for sample in row.samples),
        "samples_ns": [round(sample.seconds * 1e9) for sample in row.samples],
        "samples_ts": [round(sample.tok_per_s, 6) for sample in row.samples],
        "tokens_done": [sample.num_done for sample in row.samples],
    }


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(
        out, list(records[0]), quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows({n: "" if v is None else v for n, v in record.items()} for record in records)
    return out.getvalue()


_TEXTS = frozenset(
    [
        "build_commit",
        "cpu_info",
        "gpu_info",
        "backends",
        "engine",
        "mlxchat_version",
        "mlx_version",
        "mlx_lm_version",
        "python_version",
        "system",
        "blas_threads",
        "model_filename",
        "model_type",
        "test",
        "cache",
        "speculate",
        "test_time",
    ]
)
_REALS = frozenset(
    [
        "avg_ts",
        "stddev_ts",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "host_ms_per_token",
        "bandwidth_use",
        "matmul_use",
        "bandwidth_bytes_per_s",
        "matmul_flops_per_s",
    ]
)


def _sql(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return ""
    kinds = {n: "TEXT" if n in _TEXTS else "REAL" if n in _REALS else "INTEGER" for n in records[0]}
    columns = ",\n".join(f"  {name} {kind}" for name, kind in kinds.items())
    lines = [f"CREATE TABLE IF NOT EXISTS mlxchat_bench (\n{columns}\n);\n"]
    for record in records:
        values = ", ".join(_sql_value(value) for value in record.values())
        names = ", ".join(record)
        lines.append(f"INSERT INTO mlxchat_bench ({names}) VALUES ({values});")  # noqa: S608
    return "\n".join(lines) + "\n"


def _sql_value(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
