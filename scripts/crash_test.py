"""Kills the real program at random moments, and checks after each what is on the disk.

Nothing shown is missing, every stored prompt cache is whole, and damaged ones are not believed.

The last line is a JSON object with what happened.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from crash import BUILT_IN, make_crash_test  # noqa: E402  # found by the line above


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="?", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        test = make_crash_test(Path(home), arguments.seed)
        for number in range(1, arguments.runs + 1):
            match number % 10:
                case 0:
                    test.run_piped(BUILT_IN, as_json=number % 20 == 0)
                case 5:
                    test.run_terminal()
                case 3 | 7:
                    test.run_piped(as_json=True)
                case _:
                    test.run_piped()
            if number % 50 == 0:
                print(f"{number} runs: {test.tally}", flush=True)
        seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"seed": arguments.seed, "seconds": seconds, **asdict(test.tally)}))


if __name__ == "__main__":
    main()
