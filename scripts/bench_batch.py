"""Eight answers decoded together against one by one: tokens a second, ratios in one process.

Both ways go on from the same prefilled prompt with the same seeds, in turns (A B A B); the medians
count, prefill does not. The ratio of processor time stands beside that of the clock, since other
programs disturb it less. Prints a table and, as the last line, JSON; the exit code is 1 where
together is less than three times as fast.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from markdown_table import print_header, print_row  # noqa: E402
from random_model import BUILTIN, make_talker, make_text  # noqa: E402

from mlxchat.model.device import load_mlx  # noqa: E402

LIMIT = 3.0


def measure(folder: Path, rows: int, num_tokens: int, depth: int, rounds: int) -> dict[str, Any]:
    """Returns both rates and their ratio."""
    from mlxchat.engine.batch import Batch
    from mlxchat.engine.engine import Engine
    from mlxchat.engine.sampling import Sampler, Sampling
    from mlxchat.model.loader import load_model

    loaded = load_model(folder)
    engine, size = Engine(loaded.model), loaded.model.info.vocab_size
    ids = loaded.tokenizer.encode(make_text(depth))[:depth]

    def read() -> Any:
        plan = engine.prefix.plan(ids)
        engine.prefix.apply(plan)
        return engine.prefill(ids, plan)

    def samplers() -> list[Sampler]:
        return [Sampler(Sampling(temperature=1.0, seed=row), size, ids) for row in range(rows)]

    def alone() -> tuple[float, float]:
        clock = work = 0.0
        for sampler in samplers():
            logits, start, before = read(), time.perf_counter(), time.process_time()
            for _ in engine.decode(logits, sampler, max_tokens=num_tokens):
                pass
            clock += time.perf_counter() - start
            work += time.process_time() - before
        return clock, work

    def together() -> tuple[float, float]:
        logits, start, before = read(), time.perf_counter(), time.process_time()
        batch = Batch(engine, samplers(), [num_tokens] * rows)
        batch.fill([engine.prefix.cache] * rows, [len(ids)] * rows, [logits] * rows)
        for _ in batch.decode(lambda: None):
            pass
        return time.perf_counter() - start, time.process_time() - before

    pairs = [(alone(), together()) for _ in range(rounds + 1)][1:]  # the first round compiles
    single, many = (rows * num_tokens / statistics.median(p[i][0] for p in pairs) for i in (0, 1))
    ratio, work = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
    return {"alone": single, "together": many, "ratio": ratio, "work": work}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load_mlx()  # before anything else imports MLX, as the program does
    results = {}
    print_header("model", "tok/s one by one", "tok/s together", "ratio", "processor time")
    with tempfile.TemporaryDirectory() as name:
        os.environ["MLXCHAT_HOME"] = str(Path(name) / "home")
        random = Path(name) / "random"
        random.mkdir()
        make_talker(random, 12, 512, 8)
        folders = {"12 layers, width 512, float32": random, "built-in": BUILTIN}
        for label, folder in folders.items():
            row = measure(folder, args.rows, args.tokens, args.depth, args.rounds)
            results[label] = row
            rates = f"{row['alone']:.1f}", f"{row['together']:.1f}"
            print_row(label, *rates, f"{row['ratio']:.2f}", f"{row['work']:.2f}")
    print(json.dumps({"rows": args.rows, **results}))
    return int(min(row["ratio"] for row in results.values()) < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
