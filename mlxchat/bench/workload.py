"""What is measured, as plain data: tests, samples, and the request that a child process gets.

Free of MLX: the parent process plans and reports, `measure.py` and `peer_process.py` run.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

Kind = Literal["pp", "tg", "ttft"]
Source = Literal["", "cold", "live", "disk"]
System = Literal["mlxchat", "mlx-lm"]

# A message that follows a history in the tests of the first token.
MESSAGE_TOKENS = 32
# Left free behind the longest test, so that no test ends at the very limit of the context.
SPARE_TOKENS = 32
# Reading the history of a test may take so many times the test's budget.
FILL_BUDGETS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured, some times.

    Attributes:
        kind: Prefill, decode, or the time to the first token.
        num_tokens: Read by "pp", made by "tg"; the length of the message of "ttft".
        depth: Tokens in the cache before.
        source: Where the history of "ttft" comes from.
        chunk: Fixed length of prefill chunks; None is what the program itself chooses.
        kv_bits: Keys and values are held in so many bits; None holds them as they are.
        speculate: How "tg" speculates: "lookup", or "" for not at all.
    """

    kind: Kind
    num_tokens: int
    depth: int = 0
    source: Source = ""
    chunk: int | None = None
    kv_bits: int | None = None
    speculate: Literal["", "lookup"] = ""

    @property
    def name(self) -> str:
        """The name in llama-bench's manner: `pp512 @ d4096`."""
        head = f"ttft {self.source}" if self.kind == "ttft" else f"{self.kind}{self.num_tokens}"
        depth = f" @ d{self.depth}" if self.depth else ""
        chunk = f", chunk {self.chunk}" if self.chunk else ""
        kv = f", kv {self.kv_bits} bit" if self.kv_bits else ""
        speculate = f", {self.speculate}" if self.speculate else ""
        return f"{head}{depth}{chunk}{kv}{speculate}"

    @property
    def end(self) -> int:
        """Tokens that the cache holds at most."""
        return self.depth + self.num_tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Attributes:
        test: Its number in the request.
        seconds: Wall time of the measured part.
        num_done: Tokens read or made in it; fewer than asked for where time was up.
        gaps_ms: Time from token to token ("tg").
        host_s: Processor time of the thread that drives the model; waiting takes none.
        peak_memory_bytes: Most that MLX's arrays took.
        kv_bytes: Held by the cache at the end.
        reference_s: A fixed piece of work, measured right before and after; 0 is not measured.
        round: The process, counted from 0.
        num_drafted: Tokens that speculation foresaw.
        num_accepted: Those that stood.
        longest_chunk: Tokens of the longest prefill chunk, which decides over the peak; 0 is
            not known.
    """

    test: int
    seconds: float
    num_done: int
    gaps_ms: tuple[float, ...] = ()
    host_s: float = 0.0
    peak_memory_bytes: int = 0
    kv_bytes: int = 0
    reference_s: float = 0.0
    round: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    longest_chunk: int = 0

    @property
    def tok_per_s(self) -> float:
        """Tokens per second."""
        return self.num_done / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """What one process measures.

    Attributes:
        folder: Of the model.
        tests: In this order.
        repetitions: Samples of each test, after a warm-up.
        budget_s: After so many seconds a test is ended; 0 is never.
        has_openblas: MLX's products may use the system's OpenBLAS (Linux CPU).
        adapter: A folder that changes the model's weights.
    """

    folder: str
    tests: tuple[Case, ...]
    repetitions: int = 5
    budget_s: float = 0.0
    has_openblas: bool = True
    adapter: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Request":
        """Reads what `to_json` returned."""
        return cls(**{**data, "tests": tuple(Case(**test) for test in data["tests"])})


@dataclass(slots=True)
class Measured:
    """What one system gave: its machine and versions, its samples, what it had to say.

    Attributes:
        facts: Of the machine, the model and the versions.
        samples: In order of arrival.
        notes: Lines such as that a test was shortened.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def make_sample(data: dict[str, Any], round_: int) -> Sample:
    """Reads a sample that a process printed."""
    known = {f.name for f in fields(Sample)}
    values = {name: value for name, value in data.items() if name in known}
    return Sample(**{**values, "gaps_ms": tuple(values.get("gaps_ms", ())), "round": round_})


def make_tests(
    prompts: Sequence[int],
    answers: Sequence[int],
    depths: Sequence[int],
    chunks: Sequence[int | None] = (None,),
    kv_bits: Sequence[int | None] = (None,),
    speculate: Sequence[Literal["", "lookup"]] = ("",),
    *,
    has_ttft: bool = True,
) -> tuple[Case, ...]:
    """Returns the tests of a run, each once: every length at every depth in every way.

    Args:
        prompts: Lengths of "pp".
        answers: Lengths of "tg"; 0 leaves them out.
        depths: Tokens in the cache before.
        chunks: Lengths of prefill chunks.
        kv_bits: Of keys and values.
        speculate: Ways of decoding.
        has_ttft: Measure the first token after the deepest history too.
    """
    tests: list[Case] = []
    history = max(depths, default=0) or max(prompts, default=0)
    sources: tuple[Source, ...] = ("cold", "live", "disk") if has_ttft and history else ()
    for bits in kv_bits:
        for depth in depths:
            for chunk, num in itertools.product(chunks, prompts):
                if num:
                    tests.append(Case("pp", num, depth, chunk=chunk, kv_bits=bits))
            tests += [
                Case("tg", num, depth, kv_bits=bits, speculate=way)
                for way, num in itertools.product(speculate, answers)
                if num
            ]
        tests += [Case("ttft", MESSAGE_TOKENS, history, way, kv_bits=bits) for way in sources]
    return tuple(dict.fromkeys(tests))


def fit_tests(tests: Sequence[Case], max_context: int) -> tuple[tuple[Case, ...], list[str]]:
    """Returns the tests with depths and lengths that the model's context holds, and what changed.

    Args:
        tests: As asked for.
        max_context: Of the model.
    """
    notes: list[str] = []
    fitted: list[Case] = []
    short = [test for test in tests if test.num_tokens < max_context]
    room = max_context - SPARE_TOKENS - max((test.num_tokens for test in short), default=0)
    for test in tests:
        if test not in short or (test.depth and room < 1):
            notes.append(f"{test.name} left out: the model's context is {max_context} tokens")
            continue
        if test.depth > room:
            notes.append(
                f"depth {test.depth} shortened to {room}:"
                f" the model's context is {max_context} tokens"
            )
            test = replace(test, depth=room)
        fitted.append(test)
    return tuple(dict.fromkeys(fitted)), list(dict.fromkeys(notes))
