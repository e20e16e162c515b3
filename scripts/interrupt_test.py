"""Presses Ctrl-C at random moments of chats with tiny models; checks the turn after each.

Each seed is a chat of 25 presses, so a run goes on where another ended: `--first-seed`. The last
line is a JSON object with what happened.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from interrupts import InterruptTest  # noqa: E402  # found by the line above

PER_CHAT = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presses", nargs="?", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=1)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    most, seed, started = 0, arguments.first_seed, time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        os.environ["MLXCHAT_HOME"] = home
        while total["presses"] < arguments.presses:
            test = InterruptTest(Path(home) / f"model{seed}", seed)
            for _ in range(min(PER_CHAT, arguments.presses - total["presses"])):
                test.run()
            test.close()
            tally = test.tally
            total.update(presses=tally.num_presses, stopped=tally.num_stopped)
            total.update(kept=tally.num_kept, refused=tally.num_refused)
            total.update(ties=tally.num_ties)
            phases.update(tally.phases)
            most = max(most, tally.most_passes_after)
            print(f"seed {seed}: {dict(total)}", flush=True)
            seed += 1
    seconds = round(time.monotonic() - started, 1)
    figures = {**total, "phases": phases, "most_passes_after": most, "seconds": seconds}
    print(json.dumps({**figures, "next_seed": seed}))


if __name__ == "__main__":
    main()
