"""The figures of a turn: its phases, its memory, its share of the machine's bandwidth."""

from dataclasses import replace

from mlxchat.engine.engine import peak_memory_bytes
from mlxchat.engine.timing import Stopwatch, Timing
from mlxchat.model.device import SMALLEST_STREAM, measure_bandwidth
from mlxchat.model.loader import LoadedModel


class Meter:
    """Takes the figures of the turns of one model."""

    def __init__(self) -> None:
        self._is_first = True
        self._bandwidth: float | None = None  # bytes per second

    def measure_bandwidth(self, loaded: LoadedModel) -> None:
        """Measures the machine's bandwidth once, where the model is too large for its caches."""
        is_large = (loaded.model.info.bytes_per_token or 0) >= SMALLEST_STREAM
        if self._bandwidth is None and is_large:
            self._bandwidth = measure_bandwidth()

    def finish(
        self, watch: Stopwatch, num_prefilled: int, loaded: LoadedModel, kv_bytes: int
    ) -> Timing:
        """Closes a turn.

        Args:
            watch: Has taken its time.
            num_prefilled: Ids that it read.
            loaded: The model; the first turn tells what loading it took.
            kv_bytes: Of its keys and values now.
        """
        info = loaded.model.info
        timing = watch.finish(
            num_prefilled,
            load_s=loaded.load_s if self._is_first else 0.0,
            peak_memory_bytes=peak_memory_bytes(),
            kv_bytes=kv_bytes,
            weight_bytes=info.weight_bytes,
        )
        self._is_first = False
        weights_read, rate = info.bytes_per_token, timing.decode_tok_per_s
        if self._bandwidth and rate and weights_read and weights_read >= SMALLEST_STREAM:
            share = (weights_read + kv_bytes) * rate / self._bandwidth
            timing = replace(timing, bandwidth_use=share)
        return timing
