"""How many tokens one prefill chunk takes: short enough to interrupt, long enough to be fast."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# A chunk cannot be cut, so its length is how long Ctrl-C may take.
TARGET_S = 0.15
FIRST_CHUNK = 16
# mlx-lm's own step; longer chunks gain nothing there and cost memory.
LARGEST_CHUNK = 2048
# A doubled chunk that raises the rate by this much is worth its latency on devices that are fast
# anyway.
WORTHWHILE_GAIN = 1.1


@dataclass(slots=True)
class PrefillChunker:
    """Chooses chunk lengths from the rates that were measured.

    Lengths are powers of two, since each new length is compiled once. The first chunk has 16
    tokens. While a chunk stays below `TARGET_S`, the next is longer, as far as the measured rate
    promises to stay below it. At the target it still doubles once where doubling has just raised
    the rate by a tenth.

    Attributes:
        size: Length of the next chunk, in tokens.
        largest: Upper limit, in tokens.
        tok_per_s: Rate of the last full chunk, or None before the first.
    """

    size: int = FIRST_CHUNK
    largest: int = LARGEST_CHUNK
    tok_per_s: float | None = None

    @contextmanager
    def measure(self, num_tokens: int) -> Iterator[None]:
        """Times the synchronised work of one chunk and adapts `size`."""
        start = time.perf_counter()
        yield
        self.observe(num_tokens, time.perf_counter() - start)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes in one measurement; chunks shorter than asked for say nothing about the next."""
        if num_tokens != self.size or seconds <= 0:
            return
        rate, before = num_tokens / seconds, self.tok_per_s
        self.tok_per_s = rate
        if seconds > TARGET_S:
            self.size = max(self.size // 2, FIRST_CHUNK)
        elif 2 * self.size <= rate * TARGET_S:
            # Jump at most fourfold: rates of very short chunks promise too little, not too much.
            fits = int(rate * TARGET_S)
            self.size = min(1 << (fits.bit_length() - 1), 4 * self.size, self.largest)
        elif before is not None and rate >= WORTHWHILE_GAIN * before and seconds <= TARGET_S / 2:
            self.size = min(2 * self.size, self.largest)
