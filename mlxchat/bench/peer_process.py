"""mlx-lm under measurement, on the same weights; runs in a child process (`child.py`) only.

It feeds ids to mlx-lm's own `generate_step` and uses its caches as mlx-lm itself does, with our
clock: mlx-lm's rates count one token more than lies between its times.
"""

import sys
import time
from pathlib import Path
from typing import Any

from mlxchat.bench.measure import (
    Clock,
    Limit,
    NotMeasuredError,
    OverBudgetError,
    make_ids,
)
from mlxchat.bench.workload import Case

# Its own default, and the most that our chunks have.
STEP = 2048
# Tells how slow it is: on the CPU backend it may read ten tokens in a second.
PROBE_TOKENS = 16
UNLIMITED = 1 << 30


class Peer:
    """mlx-lm on one model.

    Args:
        folder: Of the model.
        adapter: A folder that changes its weights.
    """

    def __init__(self, folder: Path, adapter: str | None = None) -> None:
        import mlx.core as mx
        import mlx_lm

        self._mx = mx
        model, tokenizer = mlx_lm.load(str(folder), adapter_path=adapter)[:2]
        self.model: Any = model
        self._vocab_size = len(tokenizer.get_vocab())
        self._version = mlx_lm.__version__
        self._cache: Any = None
        self._ids: list[int] = []
        self._held = 0  # ids in the cache, all from the beginning of the one text
        self._tok_per_s = self._measure_rate()

    @property
    def max_context(self) -> int:
        """mlx-lm knows no limit; the tests have been fitted already."""
        return UNLIMITED

    def notice(self) -> str:
        """Returns nothing: the peer does as asked, or says that it cannot."""
        return ""

    def facts(self) -> dict[str, Any]:
        """Returns the version, and what its weights are here: it computes with them as stored."""
        from mlx.utils import tree_flatten

        from mlxchat.model.device import format_backend, make_device_plan

        arrays = list(dict(tree_flatten(self.model.parameters())).values())
        kinds = {str(array.dtype).removeprefix("mlx.core.") for array in arrays}
        names = [*sorted(kinds - {"uint32"}), *(["quantised"] if "uint32" in kinds else [])]
        where = format_backend(make_device_plan()).partition(",")[0]
        return {
            "mlx_lm": self._version,
            "model_size": sum(array.nbytes for array in arrays),
            "backend": ", ".join((where, *names)) if where.startswith("CPU") else where,
            "bytes_per_token": None,  # not known: no share of the bandwidth
        }

    def _first_ids(self, num_ids: int) -> Any:
        if len(self._ids) < num_ids:
            self._ids = make_ids(2 * num_ids, self._vocab_size)
        return self._mx.array(self._ids[:num_ids])

    def prepare(self, test: Case, limit: Limit) -> None:
        """Brings the cache to the test's depth."""
        if test.source in ("live", "disk") or test.kv_bits or test.speculate:
            raise NotMeasuredError("")  # nothing to say: these are measured of ours alone
        depth = 0 if test.source == "cold" else test.depth
        self._go_to(max(depth - 1, 0) if test.kind == "tg" else depth, test, limit)
        self._mx.reset_peak_memory()

    def _go_to(self, depth: int, test: Case, limit: Limit) -> None:
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        if 0 < depth <= self._held and can_trim_prompt_cache(self._cache):
            trim_prompt_cache(self._cache, self._held - depth)
            self._held = depth
        elif depth != self._held or not depth:
            self._empty()
        if depth - self._held > self._affordable(limit):
            raise OverBudgetError
        while self._held < depth:
            limit()
            # About a second's worth, so that the limit is looked at in time.
            step = test.chunk or min(STEP, max(PROBE_TOKENS, int(self._tok_per_s)))
            self._feed(min(step, depth - self._held))

    def _empty(self) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        self._cache, self._held = make_prompt_cache(self.model), 0

    def _feed(self, num_ids: int) -> None:
        ids = self._first_ids(self._held + num_ids)[self._held :]
        self.model(ids[None], cache=self._cache)
        self._mx.eval([layer.state for layer in self._cache])
        self._held += num_ids

    def _measure_rate(self) -> float:
        """Returns how many tokens of a short prefill take a second."""
        rate = 0.0
        for _ in range(2):  # the first run compiles
            self._empty()
            start = time.perf_counter()
            self._feed(PROBE_TOKENS)
            rate = PROBE_TOKENS / (time.perf_counter() - start)
        return rate

    def _affordable(self, limit: Limit) -> int:
        """Returns how many tokens can be read in the time that is left, by what was measured."""
        return int(min(max(self._tok_per_s * limit.left_s, PROBE_TOKENS), UNLIMITED))

    def run(self, test: Case, limit: Limit, num_tokens: int) -> Clock:
        """Does the timed part; mlx-lm's prefill cannot be ended early, so it may be shorter."""
        from mlx_lm.generate import generate_step

        if test.kind == "tg":
            return self._decode(test, limit, num_tokens)
        is_prefill = test.kind == "pp"
        history = test.depth if test.source == "cold" else 0
        if is_prefill:
            num_tokens = min(num_tokens, self._affordable(limit))
        elif history + num_tokens > self._affordable(limit):
            raise OverBudgetError
        ids = self._first_ids(self._held + history + num_tokens)[self._held :]
        self._mx.eval(ids)
        clock = Clock()
        # With no tokens to make it reads the prompt, draws the first token and stops there.
        steps = generate_step(
            ids,
            self.model,
            max_tokens=0 if is_prefill else 1,
            prompt_cache=self._cache,
            prefill_step_size=test.chunk or STEP,
        )
        next(steps, None)
        clock.stop(num_tokens)
        steps.close()
        if is_prefill:
            self._tok_per_s = max(self._tok_per_s, num_tokens / clock.seconds)
        self._held = self._cache_size(default=self._held + len(ids))
        return clock

    def _decode(self, test: Case, limit: Limit, num_tokens: int) -> Clock:
        from mlx_lm.generate import generate_step

        ids = self._first_ids(max(test.depth, 1))[self._held :]
        clock, num_made = Clock(), -1
        steps = generate_step(ids, self.model, max_tokens=num_tokens + 1, prompt_cache=self._cache)
        try:
            for _ in steps:
                num_made += 1
                if num_made:
                    clock.token()
                else:
                    clock.start()
                limit()
        except OverBudgetError:
            pass
        clock.stop(max(num_made, 0))
        steps.close()
        self._held = self._cache_size(default=0)
        return clock

    def _cache_size(self, default: int) -> int:
        """Returns how many ids the cache holds: generated ones are fed one step ahead."""
        offsets = {getattr(layer, "offset", None) for layer in self._cache}
        offset = offsets.pop() if len(offsets) == 1 else None
        return offset if isinstance(offset, int) else default

    def memory(self) -> tuple[int, int]:
        """Returns the peak since the last `prepare` and what the cache holds, in bytes."""
        held = sum(getattr(layer, "nbytes", 0) for layer in self._cache)
        return self._mx.get_peak_memory(), held

    def drafts(self) -> tuple[int, int]:
        """It does not speculate here."""
        return 0, 0

    def reference_s(self) -> float:
        """Is timed beside our own engine only."""
        return 0.0


def is_installed() -> bool:
    """Whether mlx-lm can be imported here."""
    from importlib.util import find_spec

    return "mlx_lm" in sys.modules or find_spec("mlx_lm") is not None
