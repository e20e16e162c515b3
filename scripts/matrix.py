"""The whole matrix of exact reuse: every architecture, chunks of 1, 7 and 64, sampled and greedy.

Models with each kind of cache play with keys and values in 8 and in 4 bits too.

Each play is the script of `tests/matrix.py`, which checks every step. Results are lines of JSON in
the file given by --out; what stands there for the same versions of MLX and mlx-lm is not played
again, failures excepted. Prints a table by kind of cache; exits with 1 where something failed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import mlx.core as mx  # noqa: E402
from markdown_table import print_header, print_row  # noqa: E402
from matrix import play_model  # noqa: E402
from matrix_models import QUANTISED, build, names  # noqa: E402

CHUNKS = (1, 7, 64)
# How answers are chosen, the template that goes with it, and bits of keys and values: each has to
# meet each kind of cache.
WAYS: dict[str, tuple[str, bool, int | None]] = {
    "sampled": ("stripped", False, None),
    "greedy": ("exact", True, None),
    "8 bits": ("stripped", False, 8),
    "4 bits": ("exact", False, 4),
}

Result = dict[str, Any]
Key = tuple[str, int, str]


def read_results(file: Path) -> dict[Key, Result]:
    """Reads earlier results of these versions; a later line replaces an earlier one."""
    found: dict[Key, Result] = {}
    if file.exists():
        for line in file.read_text().splitlines():
            result = json.loads(line)
            if result["versions"] == versions():
                found[(result["model"], result["chunk"], result["way"])] = result
    return found


def versions() -> list[str]:
    return [version("mlx"), version("mlx-lm"), str(mx.default_device().type).rpartition(".")[2]]


def play_all(todo: list[Key]) -> Iterator[Result]:
    """Plays in order; a model is built once for neighbours in the list."""
    built, model = "", None
    for name, chunk, way in todo:
        if name != built:
            model = None
            mx.clear_cache()
            built, model = name, build(name)
        if WAYS[way][2] is not None:
            built, model = "", build(name, **QUANTISED[name])
        assert model is not None
        template, is_greedy, kv_bits = WAYS[way]
        start = time.perf_counter()
        result: Result = {
            "model": name,
            "chunk": chunk,
            "way": way,
            "kinds": sorted(model.make_cache().kinds),
            "versions": versions(),
            "error": None,
        }
        try:
            played = play_model(
                model, chunk, template=template, is_greedy=is_greedy, kv_bits=kv_bits
            )
            result |= asdict(played)
        except Exception as error:  # whatever goes wrong is a result
            said = str(error).splitlines() or [""]
            result["error"] = f"{type(error).__name__}: {said[0]}"
        yield {**result, "seconds": round(time.perf_counter() - start, 2)}


def print_table(results: list[Result]) -> None:
    """Prints one line for each kind of cache."""
    columns = ("cache", "models", "plays", "failed", "worst difference", "of", "read / new")
    print()
    print_header(*columns, "read / prompt")
    for kinds in sorted({tuple(r["kinds"]) for r in results}):
        mine = [r for r in results if tuple(r["kinds"]) == kinds]
        good = [r for r in mine if not r["error"]]
        row = [" + ".join(kinds), len({r["model"] for r in mine}), len(mine), len(mine) - len(good)]
        if good:
            worst = max(good, key=lambda r: r["worst"])
            total = {k: sum(r[k] for r in good) for k in ("num_read", "num_new", "num_prompt")}
            row += [f"{worst['worst']:.1e}", worst["model"]]
            row += [f"{total['num_read'] / total['num_new']:.2f}"]
            row += [f"{total['num_read'] / total['num_prompt']:.2f}"]
        print_row(*row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; read and appended to")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS)
    args = parser.parse_args()
    wanted = [
        (name, chunk, way)
        for name in names()
        for chunk in args.chunks
        for way in WAYS
        if args.only in name and (WAYS[way][2] is None or name in QUANTISED)
    ]
    results = read_results(args.out)
    todo = [key for key in wanted if key not in results or results[key]["error"]]
    print(f"{len(wanted)} plays, {len(wanted) - len(todo)} known, {len(todo)} to do", flush=True)
    with args.out.open("a") as out, tempfile.TemporaryDirectory() as home:
        os.environ["MLXCHAT_HOME"] = home
        for result in play_all(todo):
            results[(result["model"], result["chunk"], result["way"])] = result
            print(json.dumps(result), file=out, flush=True)
            if result["error"]:
                name = f"{result['model']} chunk {result['chunk']} {result['way']}"
                print(f"FAILED {name}: {result['error']}", flush=True)
    chosen = [results[key] for key in wanted]
    print_table(chosen)
    failed = sum(bool(r["error"]) for r in chosen)
    print(f"\n{len(chosen)} plays, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
