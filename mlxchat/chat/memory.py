"""A turn that would not fit into memory is refused, or ends, before it hurts the machine."""

from collections.abc import Callable, Sequence

from mlxchat.counts import format_count
from mlxchat.engine.batch import Batch
from mlxchat.engine.engine import Engine
from mlxchat.engine.kv_memory import (
    count_rows,
    growth_bytes,
    has_room,
    measure_kv_bytes_per_token,
)
from mlxchat.errors import MemoryShortError
from mlxchat.model.device import available_memory_bytes
from mlxchat.model.sequence_cache import SequenceCache

# Turns that end below this many tokens are never refused.
SMALL_TURN = 4096
# Nobody knows how long an answer will be that nothing limits; most are shorter.
USUAL_ANSWER = 1024
# An answer ends so many rows before its buffers would grow: a pass over drafts, and what closes the
# turn, still find room.
_MARGIN = 48
_PAUSE = 8  # tokens between two looks there
# What reading a prompt takes besides, until it was measured; of small models much less.
_WORKING_BYTES = 512 << 20


class MemoryGuard:
    """Compares what a turn will take with what is free.

    Args:
        weight_bytes: Of the model.
    """

    def __init__(self, weight_bytes: int) -> None:
        self._weight_bytes = weight_bytes
        self._working_bytes = min(_WORKING_BYTES, weight_bytes // 4)
        self._bytes_per_token: float | None = None

    def note(self, peak_bytes: int, kv_bytes: int) -> None:
        """Takes in what a turn has taken at most besides weights, keys and values."""
        used = peak_bytes - kv_bytes - self._weight_bytes
        self._working_bytes = max(self._working_bytes, min(used, _WORKING_BYTES))

    def check(self, engine: Engine, num_prompt: int, room: int, max_tokens: int | None) -> None:
        """Checks a turn before anything is read.

        Args:
            engine: Whose cache grows.
            num_prompt: Tokens of the prompt.
            room: Tokens that the context leaves for the answer.
            max_tokens: Longest answer, where that was said.

        Raises:
            MemoryShortError: It would not fit; the line has the figures.
        """
        answer = min(max_tokens or USUAL_ANSWER, room)
        total = num_prompt + answer
        if total < SMALL_TURN or has_room(engine.prefix.cache, total):
            return
        # The old buffers are there until the larger ones are filled.
        needed, free = self._needed(engine, total), available_memory_bytes()
        if needed > free:
            raise MemoryShortError(
                f"this turn would take {_gib(needed)} GiB more memory (keys and values of"
                f" {format_count(num_prompt)} tokens and an answer of {format_count(answer)}), but"
                f" {_gib(free)} GiB are free;"
                " shorten the message, /compact the conversation, set a smaller --max-tokens, try"
                " --kv-bits 8 or a smaller /model, or do without this check:"
                " mlxchat config set context.memory_check false"
            )

    def check_batch(self, engine: Engine, rows: Sequence[tuple[int, int]]) -> None:
        """Checks a batch before its last row joins it.

        Args:
            engine: Whose model decodes.
            rows: Of each the tokens of its prompt, and the most that its answer may have.

        Raises:
            MemoryShortError: All rows together would not fit; the line has the figures.
        """
        total = sum(prompt + min(answer, USUAL_ANSWER) for prompt, answer in rows)
        if total < SMALL_TURN:
            return
        # Rows are copied into new buffers when one joins.
        needed, free = self._needed(engine, total), available_memory_bytes()
        if needed > free:
            raise MemoryShortError(
                f"{len(rows)} lines together would take {_gib(needed)} GiB more memory, but"
                f" {_gib(free)} GiB are free; set a smaller --batch-size or --max-tokens"
            )

    def _needed(self, engine: Engine, num_tokens: int) -> int:
        if self._bytes_per_token is None:
            self._bytes_per_token = measure_kv_bytes_per_token(engine)
        return int(num_tokens * self._bytes_per_token) + self._working_bytes

    def watch(self, engine: Engine, check: Callable[[], None]) -> Callable[[], None]:
        """Returns a check for between the tokens of an answer, which adds ours to another one.

        It looks only where the buffers are about to grow, and raises MemoryShortError with the
        figures where they could not.
        """
        prefix = engine.prefix
        return _watch(lambda: (prefix.cache, len(prefix.token_ids), 1), check)

    def watch_batch(self, batch: Batch, check: Callable[[], None]) -> Callable[[], None]:
        """Returns the same for between the steps of a batch, whose rows grow together."""
        return _watch(lambda: (batch.cache, batch.longest, batch.num_rows), check)


def _watch(
    look: Callable[[], tuple[SequenceCache | None, int, int]], check: Callable[[], None]
) -> Callable[[], None]:
    """Returns a check that looks whether the buffers may grow.

    Args:
        look: Returns a cache, the positions that it holds, and of how many sequences.
        check: Is called first.
    """
    due, seen = 0, None

    def check_both() -> None:
        nonlocal due, seen
        check()
        cache, held, num_sequences = look()
        if cache is not seen:  # other buffers
            due, seen = 0, cache
        if cache is None or held < due:
            return
        num_rows = count_rows(cache)
        if num_rows is None:
            return
        due = num_rows - _MARGIN
        if held >= due:
            if num_rows * num_sequences >= SMALL_TURN:
                _check_growth(growth_bytes(cache), available_memory_bytes())
            due = held + _PAUSE

    return check_both


def _check_growth(needed: int, free: int) -> None:
    if needed > free:
        raise MemoryShortError(
            f"memory is short: to hold more tokens would take {_gib(needed)} GiB at once, but"
            f" {_gib(free)} GiB are free"
        )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f}"
