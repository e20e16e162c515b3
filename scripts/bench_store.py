"""The first answer from disk against the cold one: the same model and system prompt, ratios.

Every answer is a process of its own: `mlxchat generate --json --verify` with a long system prompt,
alternating between an empty home (cold) and one where the prompt is stored (disk). The medians of
the rounds count. Prints a table and, as the last line, JSON; the exit code is 1 where the figure
does not hold.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from markdown_table import print_header, print_row
from random_model import ROOT, make_talker, make_text

LIMIT = 0.08
VERIFY_LIMIT = 1e-3  # float32; one wrong context token moves the logits by a hundred times that


def answer(folder: Path, system: Path, home: Path) -> dict[str, Any]:
    """One answer, in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from mlxchat.cli.main import main;"
        "sys.argv[1:] = ['generate', 'Go on.', '-m', sys.argv[1],"
        " '-s', Path(sys.argv[2]).read_text(), '--max-tokens', '32', '--temp', '1',"
        " '--seed', '7', '--json', '--verify']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(system)],
        env={**os.environ, "MLXCHAT_HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the answer failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def read_plainly(file: Path) -> float:
    """Seconds for reading a file whole, into one buffer that is used again."""
    buffer = bytearray(16 << 20)
    start = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--kv-heads", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, home, system = Path(name) / "random", Path(name) / "home", Path(name) / "system"
        folder.mkdir()
        make_talker(folder, args.layers, args.width, args.kv_heads)
        system.write_text(make_text(args.tokens))
        answer(folder, system, home)  # stores the prompt, and compiles kernels for all that follow
        cold, disk = [], []
        for round_ in range(args.rounds):
            cold.append(answer(folder, system, Path(name) / f"cold-{round_}"))
            shutil.rmtree(Path(name) / f"cold-{round_}")
            disk.append(answer(folder, system, home))
        file = next((home / "cache" / "prompts").glob("*.safetensors"))
        num_bytes = file.stat().st_size
        read_s = min(read_plainly(file) for _ in range(3))
    return report(cold, disk, num_bytes, read_s)


def report(
    cold: list[dict[str, Any]], disk: list[dict[str, Any]], num_bytes: int, read_s: float
) -> int:
    """Prints what was measured; returns the exit code."""

    def median(answers: list[dict[str, Any]], field: str) -> float:
        return statistics.median(a["timing"][field] for a in answers)

    ratio = median(disk, "ttft_s") / median(cold, "ttft_s")
    restore_s = median(disk, "restore_s")
    results = {
        "ratio": ratio,
        "cold_ttft_s": median(cold, "ttft_s"),
        "disk_ttft_s": median(disk, "ttft_s"),
        "restore_s": restore_s,
        "file_bytes": num_bytes,
        "restore_gb_per_s": num_bytes / restore_s / 1e9,
        "read_gb_per_s": num_bytes / read_s / 1e9,
        "cached_tokens": disk[0]["usage"]["cached_tokens"],
        "prefill_tokens": disk[0]["usage"]["prefill_tokens"],
        "same_tokens": len({tuple(a["tokens"]) for a in cold + disk}) == 1,
        "distinct_tokens": len(set(cold[0]["tokens"])),
        "max_abs_logit_diff": max(a["verify"]["max_abs_logit_diff"] for a in disk),
        "from_disk": all(a["cache"]["source"] == "disk" for a in disk),
        "from_nothing": all(a["cache"]["source"] == "none" for a in cold),
    }
    print_header("first answer", "ttft_s", "restored", "read")
    print_row("cold", f"{results['cold_ttft_s']:.2f}", 0, cold[0]["usage"]["prefill_tokens"])
    cached, read = results["cached_tokens"], results["prefill_tokens"]
    print_row("from disk", f"{results['disk_ttft_s']:.2f}", cached, read)
    print(
        f"\nratio {ratio:.3f} (at most {LIMIT}); {num_bytes / 1e6:.0f} MB restored at"
        f" {results['restore_gb_per_s']:.2f} GB/s, plain reading"
        f" {results['read_gb_per_s']:.2f} GB/s; {cold[0]['cache']} {disk[0]['cache']}"
    )
    print(json.dumps(results))
    verified = all(a["verify"]["tokens_equal"] for a in disk)
    verified = verified and results["max_abs_logit_diff"] <= VERIFY_LIMIT
    holds = results["from_disk"] and results["from_nothing"] and results["same_tokens"]
    return 0 if ratio <= LIMIT and verified and holds else 1


if __name__ == "__main__":
    sys.exit(main())
