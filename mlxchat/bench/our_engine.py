"""Our engine under measurement; `peer_process.py` is mlx-lm's."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxchat.bench.measure import (
    Clock,
    Limit,
    NotMeasuredError,
    OverBudgetError,
    make_ids,
)
from mlxchat.bench.workload import Case

if TYPE_CHECKING:
    from mlxchat.engine.speculation import Speculator
    from mlxchat.model.loader import LoadedModel


class OurEngine:
    """mlxchat's engine on one model.

    Args:
        loaded: The model.
    """

    def __init__(self, loaded: "LoadedModel") -> None:
        from mlxchat.engine.engine import Engine
        from mlxchat.engine.sampling import Sampler, Sampling

        self.loaded = loaded
        self.model = loaded.model
        self.engine = Engine(self.model)
        self._largest_chunk = self.engine.chunker.largest
        self._sampler = Sampler(Sampling(temperature=0.0), self.model.info.vocab_size)
        self._ids: list[int] = []
        self._speculator: Speculator | None = None
        self._store: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def load(cls, folder: Path, adapter: str | None = None) -> "OurEngine":
        """Loads the model of a folder, perhaps with an adapter."""
        from mlxchat.model.device import load_mlx

        load_mlx()
        from mlxchat.model.loader import load_model

        return cls(load_model(folder, adapter=adapter))

    @property
    def max_context(self) -> int:
        """Tokens that the model can hold."""
        return self.model.info.max_context

    def facts(self) -> dict[str, Any]:
        """Returns what was loaded and on what, with the rates that bound it, measured now."""
        from mlxchat.model import device

        device.measure_bandwidth.cache_clear()
        device.measure_matmul_rate.cache_clear()

        info = self.model.info
        return {
            "model_type": info.family,
            "model_size": info.weight_bytes,
            "model_n_params": info.n_params,
            "bytes_per_token": info.bytes_per_token,
            "matmul_params": info.matmul_params,
            "fingerprint": self.loaded.fingerprint,
            "load_s": self.loaded.load_s,
            "backend": device.format_backend(device.make_device_plan()),
            "bandwidth": device.measure_bandwidth(),
            "matmul_flops": device.measure_matmul_rate(),
            "smallest_stream": device.SMALLEST_STREAM,
        }

    def prepare(self, test: Case, limit: Limit) -> None:
        """Brings the live sequence to the test's depth; what is common with the last one stays."""
        from mlxchat.engine.engine import Engine, reset_peak_memory

        if test.kv_bits != self.engine.kv_bits:
            self.engine = Engine(self.model, self.engine.chunker, test.kv_bits)
        self.engine.speculator = self._make_speculator() if test.speculate else None
        chunker = self.engine.chunker
        if test.chunk is not None:
            chunker.size = chunker.largest = test.chunk
        elif chunker.largest != self._largest_chunk:
            self.engine.chunker = type(chunker)()
        depth = 0 if test.source in ("cold", "disk") else test.depth
        # The id before the first decoded token is fed by the test itself.
        self._go_to(max(depth - 1, 0) if test.kind == "tg" else depth, limit)
        if test.source == "disk":
            self._store_history(test.depth, limit)
        reset_peak_memory()

    def _make_speculator(self) -> "Speculator":
        from mlxchat.engine.lookup import PromptLookup
        from mlxchat.engine.speculation import Speculator, explain_unfit

        if problem := explain_unfit(self.model, self.engine.prefix.cache):
            raise NotMeasuredError(problem)
        if self._speculator is None:  # what its controller learns serves all repetitions
            self._speculator = Speculator(PromptLookup())
        return self._speculator

    def drafts(self) -> tuple[int, int]:
        """Returns how many tokens the last run foresaw, and how many of them stood."""
        if self.engine.speculator is None:
            return 0, 0
        stats = self.engine.speculator.stats
        return stats.drafted, stats.accepted

    def notice(self) -> str:
        """Returns which layers are not quantised, and why."""
        return self.engine.kv_notice

    def _first_ids(self, num_ids: int) -> list[int]:
        """Returns the first ids of the one text that all tests read."""
        if len(self._ids) < num_ids:
            self._ids = make_ids(2 * num_ids, self.model.info.vocab_size)
        return self._ids[:num_ids]

    def _go_to(self, depth: int, limit: Limit) -> None:
        """Fills or rewinds the cache to exactly `depth` ids."""
        prefix = self.engine.prefix
        ids = self._first_ids(depth)
        if not ids:
            prefix.reset()
            return
        plan = prefix.plan(ids, marks=(depth,), leave=0)
        prefix.apply(plan)
        self.engine.prefill(ids, plan, check=limit)

    def run(self, test: Case, limit: Limit, num_tokens: int) -> Clock:
        """Does the timed part."""
        if test.kind == "tg":
            return self._decode(test, limit, num_tokens)
        if test.kind == "ttft":
            return self._first_token(test)
        ids = self._first_ids(test.depth + num_tokens)
        prefix = self.engine.prefix
        clock = Clock()
        plan = prefix.plan(ids, leave=0)
        prefix.apply(plan)
        try:
            self.engine.prefill(ids, plan, on_progress=clock.chunk, check=_after(limit, 1))
        except OverBudgetError:
            return clock.stop(len(prefix.token_ids) - test.depth)
        return clock.stop(num_tokens)

    def _decode(self, test: Case, limit: Limit, num_tokens: int) -> Clock:
        prefix = self.engine.prefix
        ids = self._first_ids(max(test.depth, 1))
        logits = self.engine.prefill(ids, prefix.plan(ids, leave=0))
        assert logits is not None
        clock, num_made = Clock(), -1  # the first token belongs to the prefill
        try:
            for _ in self.engine.decode(
                logits, self._sampler, max_tokens=num_tokens + 1, check=_after(limit, 2)
            ):
                num_made += 1
                if num_made:
                    clock.token()
                else:
                    clock.start()
        except OverBudgetError:
            pass
        return clock.stop(max(num_made, 0))

    def _first_token(self, test: Case) -> Clock:
        """From the message, as ids, to the first token in hand."""
        prefix = self.engine.prefix
        ids = self._first_ids(test.depth + test.num_tokens)
        clock = Clock()
        if test.source == "disk":
            num_loaded = self._stored().restore(
                ids[: test.depth], at_least=1, kinds=("conversation",), check=lambda: None
            )
            if num_loaded != test.depth:
                raise NotMeasuredError("nothing could be loaded from disk")
        plan = prefix.plan(ids)
        prefix.apply(plan)
        logits = self.engine.prefill(ids, plan, on_progress=clock.chunk)
        assert logits is not None
        next(self.engine.decode(logits, self._sampler, max_tokens=1))
        return clock.stop(test.num_tokens)

    # -- the store ---------------------------------------------------------------------------------

    def _stored(self) -> Any:
        """Returns our own store of prefixes: the person's is left alone."""
        from mlxchat.engine.prompt_store import PromptStore
        from mlxchat.engine.stored_prefix import StoredPrefixes, make_key

        if self._store is None:
            self._store = tempfile.TemporaryDirectory(prefix="mlxchat-bench-")
        store = PromptStore(Path(self._store.name))
        key = make_key(self.loaded.fingerprint, self.model, self.engine.kv_bits)
        return StoredPrefixes(store, key, "bench", self.engine.prefix)

    def _store_history(self, depth: int, limit: Limit) -> None:
        """Stores the first `depth` ids, unless they are, and empties the cache."""
        from mlxchat.engine.stored_name import MIN_IDS

        if depth < MIN_IDS:
            raise NotMeasuredError(f"less than {MIN_IDS} tokens are not stored")
        stored = self._stored()
        ids = self._first_ids(depth)
        if not stored.is_stored(ids, "conversation"):
            self._go_to(depth, limit)
            for _ in stored.save(depth, "conversation", "bench"):
                pass
            stored.wait()
            if not stored.is_stored(ids, "conversation"):
                reason = "; ".join(stored.store.notices) or stored.unstorable
                raise NotMeasuredError(reason or stored.store.explain_refusal())
        self.engine.prefix.reset()

    def memory(self) -> tuple[int, int]:
        """Returns the peak since the last `prepare` and what the cache holds, in bytes."""
        from mlxchat.engine.engine import peak_memory_bytes

        return peak_memory_bytes(), self.engine.prefix.cache.nbytes

    def reference_s(self) -> float:
        """Times a fixed piece of work."""
        from mlxchat.model.device import time_reference_work

        return time_reference_work()

    def close(self) -> None:
        """Removes what was stored."""
        if self._store is not None:
            self._store.cleanup()


def _after(limit: Limit, num_free: int) -> Callable[[], None]:
    """Lets so many steps pass before the limit may end anything: each sample has something."""
    steps = itertools.count()

    def check() -> None:
        if next(steps) >= num_free:
            limit()

    return check
