"""What keeping the history costs: decode rate with and without it, ratios in one process.

Each piece of text is synced to the disk before it is shown. Chats with and without history answer
in turns (A B A B); the medians count. Prints a table and, as the last line, JSON.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from markdown_table import print_header, print_row
from random_model import make_talker

from mlxchat.model.device import load_mlx

SHAPES = {"4 layers, width 256": (4, 256, 4), "12 layers, width 512": (12, 512, 8)}


def measure(folder: Path, rounds: int, num_tokens: int) -> dict[str, Any]:
    """Returns the medians of both rates, their ratio, and what one write takes.

    The rate on a busy machine says little, so the program's own processor time per token is
    compared too: what the writes take of it is what they can take from decoding.
    """
    from mlxchat.chat.recorder import Recorder
    from mlxchat.chat.session import ChatOptions, Session
    from mlxchat.engine.options import SamplingSettings

    sampling = SamplingSettings(temperature=1.0, seed=1)
    options = ChatOptions(sampling=sampling, max_tokens=num_tokens, idle_work=False)
    recorder = Recorder("chat")
    session = Session(str(folder), options)
    rates: list[list[float]] = [[], []]
    work_s: list[list[float]] = [[], []]
    writes: list[float] = []
    for round_ in range(rounds + 1):
        for which in (0, 1) if round_ % 2 else (1, 0):
            session.recorder = recorder if which else None
            session.reset()
            before_s = time.process_time()
            job = session.send("Go on.")
            for _ in job:
                if which:
                    writes.append(recorder._sync_s)
            result = job.result()
            rate = result.timing.decode_tok_per_s
            if round_ and rate:  # the first round warms up
                rates[which].append(rate)
                work_s[which].append((time.process_time() - before_s) / len(result.tokens))
    session.close()
    recorder.close()
    without, with_ = (statistics.median(r) for r in rates)
    write_ms = 1e3 * statistics.median(writes)
    pairs = [[b / a for a, b in zip(*both, strict=True)] for both in (rates, work_s)]
    ratio, work = (statistics.median(p) for p in pairs)
    return {"without": without, "with": with_, "ratio": ratio, "cpu": work, "write_ms": write_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    load_mlx()  # before anything else imports MLX, as the program does
    results = {}
    print_header("model", "tok/s without history", "with", "ratio", "processor time", "one write")
    with tempfile.TemporaryDirectory() as name:
        os.environ["MLXCHAT_HOME"] = str(Path(name) / "home")
        for shape, sizes in SHAPES.items():
            folder = Path(name) / shape.replace(" ", "-")
            folder.mkdir()
            make_talker(folder, *sizes)
            row = results[shape] = measure(folder, args.rounds, args.tokens)
            rates = f"{row['without']:.1f}", f"{row['with']:.1f}"
            ratios = f"{row['ratio']:.3f}", f"{row['cpu']:.3f}"
            print_row(shape, *rates, *ratios, f"{row['write_ms']:.1f} ms")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
