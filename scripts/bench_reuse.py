"""What never reading twice costs: milliseconds per turn with a long history.

A tiny random model and its conversation of `tests/matrix.py` grow to --tokens; then each of --turns
turns is taken apart: the time inside Jinja, inside the tokenizer, and our own, which is to stay
below 2 ms before the first token. The conversation runs on a cache that can be trimmed and on one
that cannot, which is probed on each turn. Prints medians and the slowest; exits with 1 where the
median of our own time before the first token is 2 ms or more.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from markdown_table import print_header, print_row  # noqa: E402
from matrix import InlineSession, make_options  # noqa: E402
from matrix_models import build, make_loaded  # noqa: E402

from mlxchat.chat import jinja_env, reading  # noqa: E402

LIMIT_MS = 2.0
MODELS = {"trimmable": "native:qwen3", "recurrent": "zoo:mamba2"}
CHANGES = {"max_position_embeddings": 1 << 14, "num_hidden_layers": 1}
QUESTION = "And then, {0}: would you go on with the others in this line? " * 2
# What happens before the first token, and what follows the answer.
BEFORE, AFTER = ("render", "plan", "restore"), ("store", "settle")


class Stopwatches:
    """Processor seconds by section of a turn, with what went to Jinja and the tokenizer.

    A busy machine would make wall-clock times of single milliseconds meaningless.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._sections: list[str] = []
        self._outside = 0

    def section(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Times calls of a function, unless another section calls it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._sections:
                return function(*args, **kwargs)
            self._sections.append(name)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name, "all"] += time.thread_time() - start
                self._sections.pop()

        return timed

    def outside(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Times calls of somebody else's function within the running section."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._sections or self._outside:
                return function(*args, **kwargs)
            self._outside += 1
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[self._sections[-1], name] += time.thread_time() - start
                self._outside -= 1

        return timed


class TimedBackend:
    """A tokenizer's Rust object whose calls are timed."""

    def __init__(self, backend: Any, watches: Stopwatches) -> None:
        self._backend, self._watches = backend, watches

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        return self._watches.outside("tokenizer", value) if callable(value) else value


def make_session(name: str, template: str, watches: Stopwatches) -> InlineSession:
    """Makes a session whose sections are timed."""
    loaded = make_loaded(build(name, **CHANGES), template)
    session = InlineSession(loaded, make_options(verify=False, keeps_history=False, max_tokens=48))
    runner = session.runner
    renderer, prefix = runner.renderer, session.prefix
    loaded.tokenizer._backend = TimedBackend(loaded.tokenizer._backend, watches)
    renderer.render_ids = watches.section("render", renderer.render_ids)
    reading.plan_prompt = watches.section("plan", reading.plan_prompt)
    renderer.stored_answer = watches.section("store", renderer.stored_answer)
    renderer.settle_target = watches.section("settle", renderer.settle_target)
    type(prefix).apply = watches.section("restore", type(prefix).apply)
    return session


def measure(name: str, template: str, num_tokens: int, num_turns: int) -> list[dict[str, float]]:
    """Returns milliseconds by section for each turn."""
    watches = Stopwatches()
    jinja_env.render = watches.outside("jinja", jinja_env.render)
    session = make_session(name, template, watches)
    rows: list[dict[str, float]] = []
    turn = 0
    while len(rows) < num_turns:
        watches.seconds.clear()
        session.send(QUESTION.format(turn)).result()
        session.worker.run_idle()
        turn += 1
        if len(session.prefix.token_ids) < num_tokens:
            continue
        row = {f"{part} {who}": 1e3 * s for (part, who), s in watches.seconds.items()}
        for parts, label in ((BEFORE, "before"), (AFTER, "after")):
            for who in ("all", "jinja", "tokenizer"):
                row[f"{label} {who}"] = sum(row.get(f"{part} {who}", 0.0) for part in parts)
        rows.append(row)
    session.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="history, in tokens")
    parser.add_argument("--turns", type=int, default=15, help="turns that are measured")
    args = parser.parse_args()
    print(
        f"Milliseconds of processor time per turn after {args.tokens} tokens, median (slowest).\n"
    )
    print_header("cache", "template", "section", "all", "Jinja", "tokenizer", "ours")
    is_slow = False
    for cache, name in MODELS.items():
        for template in ("exact", "stripped"):
            rows = measure(name, template, args.tokens, args.turns)
            for section in (*BEFORE, "before", *AFTER, "after"):
                parts = {
                    who: [row.get(f"{section} {who}", 0.0) for row in rows]
                    for who in ("all", "jinja", "tokenizer")
                }
                ours = [a - j - t for a, j, t in zip(*parts.values(), strict=True)]
                cells = [
                    f"{statistics.median(v):.2f} ({max(v):.2f})" for v in (*parts.values(), ours)
                ]
                print_row(cache, template, section, *cells)
                is_slow |= section == "before" and statistics.median(ours) >= LIMIT_MS
    print(f"\nOur own time before the first token: {'too much' if is_slow else 'within'} 2 ms")
    return int(is_slow)


if __name__ == "__main__":
    sys.exit(main())
