"""How many tokens one prefill chunk takes: short enough to interrupt, long enough to be fast."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# A chunk cannot be cut, so its length is how long Ctrl-C may take.
TARGET_S = 0.15
FIRST_CHUNK = 16
# mlx-lm's own step; longer chunks gain nothing there and cost memory.
LARGEST_CHUNK = 2048
# From this rate on a chunk may take twice the target where that pays: each doubling of the length
# must raise the rate by the gain.
FAST_TOK_PER_S = 1000.0
WORTHWHILE_GAIN = 1.1
# Where a doubling raises the rate so much, the time is that of the pass and not of its tokens:
# shorter chunks would make a prompt slower, and Ctrl-C hardly faster.
OVERHEAD_GAIN = 1.6
# The rate of shorter chunks says nothing about long ones.
SHORTEST_TELLING = 8


@dataclass(slots=True)
class PrefillChunker:
    """Chooses chunk lengths from the rates that were measured.

    Lengths are powers of two, since each new length is compiled once. The first chunk has 16
    tokens. While a chunk stays below `TARGET_S`, the next is longer, as far as the measured rate
    promises to stay below it. A fast device may then double once more, and stays there while that
    raises the rate by a tenth. Where even the first length takes longer than `TARGET_S`, the double
    is tried once: if each pass has a high cost of its own, lengths grow until tokens cost as much.

    Attributes:
        size: Length of the next chunk, in tokens.
        largest: Upper limit, in tokens.
        tok_per_s: Latest rate by length, of full chunks.
        short_tok_per_s: Latest rate by length, rounded down to a power of two, of other chunks.
    """

    size: int = FIRST_CHUNK
    largest: int = LARGEST_CHUNK
    tok_per_s: dict[int, float] = field(default_factory=dict)
    short_tok_per_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = min(self.size, self.largest)

    @contextmanager
    def measure(self, num_tokens: int) -> Iterator[None]:
        """Times the synchronised work of one chunk and adapts `size`."""
        start = time.perf_counter()
        yield
        self.observe(num_tokens, time.perf_counter() - start)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Takes in one measurement; chunks shorter than asked for say nothing about the next."""
        if seconds <= 0:
            return
        if num_tokens != self.size:
            if num_tokens >= SHORTEST_TELLING:
                self.short_tok_per_s[1 << num_tokens.bit_length() - 1] = num_tokens / seconds
            return
        rate = self.tok_per_s[self.size] = num_tokens / seconds
        fits = int(rate * TARGET_S)
        pays = rate >= FAST_TOK_PER_S and self._pays(self.size)
        if seconds > (2 * TARGET_S if pays else TARGET_S):
            self.size = self._next_beyond_target()
        elif 2 * self.size <= fits:
            # Jump at most fourfold: rates of very short chunks promise too little, not too much.
            self.size = min(1 << (fits.bit_length() - 1), 4 * self.size, self.largest)
        elif pays and seconds <= TARGET_S and self._pays(2 * self.size):
            self.size = min(2 * self.size, self.largest)

    def estimate_s(self, num_tokens: int) -> float | None:
        """Returns how long so many tokens take by the measured rates; None before any was.

        Any thread may ask.
        """
        rates = self.short_tok_per_s | self.tok_per_s
        if not rates:
            return None
        shorter = [size for size in rates if size <= num_tokens]
        return num_tokens / rates[max(shorter, default=min(rates))]

    def _next_beyond_target(self) -> int:
        """Returns the next length after a chunk that took too long."""
        size, longer = self.size, min(2 * self.size, self.largest)
        is_shortest = size <= FIRST_CHUNK
        if not is_shortest and not self._is_overhead(size):
            return size // 2
        is_tried = longer in self.tok_per_s
        return longer if not is_tried or self._is_overhead(longer) else size

    def _is_overhead(self, size: int) -> bool:
        """Whether chunks of this length take hardly longer than those of half of it."""
        rate, half = self.tok_per_s.get(size), self.tok_per_s.get(size // 2)
        return rate is not None and half is not None and rate >= OVERHEAD_GAIN * half

    def _pays(self, size: int) -> bool:
        """Whether chunks of this length gain enough over shorter ones; True where not yet known."""
        shorter = [s for s in self.tok_per_s if s < size]
        if size not in self.tok_per_s or not shorter:
            return True
        doublings = size.bit_length() - max(shorter).bit_length()
        gain = self.tok_per_s[size] / self.tok_per_s[max(shorter)]
        return bool(gain >= WORTHWHILE_GAIN**doublings)
