"""mlxchat against mlx-lm: the same checkpoints, one machine, one run, ratios.

Measures as `mlxchat bench --against mlx-lm` does: every measurement is a process of its own, since
a BLAS cannot be unloaded, and processes alternate (A B A B). Ratios are of the fastest repetition,
which other programs disturb least, and of the medians, with bootstrap intervals. Prints a Markdown
table as it comes and, as the last line, JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from markdown_table import print_header, print_row
from random_model import BUILTIN, make_checkpoint

from mlxchat.bench.compare import compare_systems
from mlxchat.bench.machine import describe_machine
from mlxchat.bench.report import format_machine
from mlxchat.bench.runs import Run
from mlxchat.bench.workload import Case, Request, System

SYSTEMS: tuple[System, ...] = ("mlxchat", "mlx-lm")
TESTS = (Case("pp", 512), Case("tg", 64, depth=128))
# A repetition of mlx-lm's 4-bit prefill takes many seconds on the CPU.
REPETITIONS = {None: 5, 4: 2}


def preload() -> None:
    """Gives MLX the system's OpenBLAS, as mlxchat does, for the peer too."""
    import ctypes

    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)


def compare(
    folder: Path, rounds: int, repetitions: int, ours: bool, peer: bool
) -> dict[str, float]:
    """Ratios ours / peer over alternating processes: of the medians, and of the best.

    Args:
        folder: The checkpoint.
        rounds: Processes of each.
        repetitions: In each process.
        ours: Ours may use OpenBLAS.
        peer: mlx-lm may.
    """
    runs = {
        name: Run(Request(str(folder), TESTS, repetitions, has_openblas=has), (name,))
        for name, has in zip(SYSTEMS, (ours, peer), strict=True)
    }
    for _ in range(rounds):
        for run in runs.values():
            run.measure()
    samples = [run.measured[name].samples for name, run in runs.items()]
    ratio: dict[str, float] = {}
    for found in compare_systems(TESTS, *samples):
        name = {"pp": "prefill", "tg": "decode"}[found.name[:2]]
        name += next((f"_{kind}" for kind in ("host", "peak") if kind in found.name), "")
        ratio |= {name: found.ratio, f"{name}_ours": found.ours, f"{name}_peer": found.peer}
        ratio |= {f"{name}_low": found.low, f"{name}_high": found.high}
    for number, name in enumerate(("prefill", "decode")):
        best = [max(s.tok_per_s for s in side if s.test == number) for side in samples]
        ratio[f"{name}_best"] = best[0] / best[1]
        ratio |= {f"{name}_best_ours": best[0], f"{name}_best_peer": best[1]}
    return ratio


def time_command(command: list[str]) -> float:
    """Wall time of a whole process."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def compare_start(rounds: int) -> dict[str, float]:
    """Whole-process time of one token from the built-in model, and of --help."""
    binaries = Path(sys.executable).parent
    one = [str(binaries / "mlxchat"), "generate", "-m", str(BUILTIN), "--max-tokens", "1", "hello"]
    peer = [str(binaries / "mlx_lm.generate"), "--model", str(BUILTIN)]
    peer += ["--max-tokens", "1", "--prompt", "hello"]
    pairs = [(time_command(one), time_command(peer)) for _ in range(rounds + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"ratio": ours / theirs, "ours_s": ours, "peer_s": theirs}


def show(ratio: dict[str, float], name: str) -> str:
    """The ratio of the best, where there is one, and that of the medians with its interval."""
    best = f"{ratio[name + '_best']:.2f}x best, " if f"{name}_best" in ratio else ""
    low, high = ratio[f"{name}_low"], ratio[f"{name}_high"]
    return f"{best}{ratio[name]:.2f}x ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=["make"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bits", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "make":
        make_checkpoint(args.folder, bits=args.bits)
        return
    results: dict[str, Any] = {"machine": describe_machine()}
    names = ("prefill", "decode", "decode_host")
    measured = ("prefill of 512", "decode of 64 at depth 128", "host time per token")
    print_header("checkpoint (8 layers, d = 256)", "OpenBLAS", *measured)
    with tempfile.TemporaryDirectory() as name:
        for label, bits in (("float32", None), ("4-bit bfloat16", 4)):
            folder = Path(name) / label.replace(" ", "-")
            folder.mkdir()
            extra = ["--bits", str(bits)] if bits else []
            make = [sys.executable, __file__, "--child", "make", "--folder", str(folder), *extra]
            subprocess.run(make, check=True)
            for title, ours, peer in (
                ("as installed: mlxchat finds it, mlx-lm does not", True, False),
                ("both with", True, True),
                ("both without", False, False),
            ):
                ratio = results[f"{label}, {title}"] = compare(
                    folder, args.rounds, REPETITIONS[bits], ours, peer
                )
                print_row(label, title, *(show(ratio, name) for name in names))
    results["start"] = compare_start(args.rounds)
    start = results["start"]
    print(
        f"\nOne token, whole process: {start['ratio']:.2f} of mlx_lm.generate's time"
        f" ({start['ours_s']:.2f} s to {start['peer_s']:.2f} s)\n"
    )
    print("\n".join(format_machine(results["machine"])))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
