"""Several prompts read in one pass: which of them, and how.

Prompts stand side by side, each from where they depart from the live sequence, with something
behind the shorter ones that no token of theirs sees; so nothing needs a mask, and layers with rows
of any model can do it.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlxchat.engine.engine import Check, Engine, Logits
from mlxchat.engine.token_ids import count_common
from mlxchat.model.batch_cache import Strand, can_cut, stack

# A pass costs as much as so many ids more in another one: measured 16 to 20 on a CPU, where it is
# least. With less than that to gain a prompt is not read by itself.
PASS_IDS = 16
# Ids of all prompts that are read together, at most: what is read waits in memory to be decoded.
_MOST_IDS = 4096
# A pass is so many chunks long: prompts that are as long as a chunk would gain nothing else. Nobody
# watches the answers of a batch, so that Ctrl-C may take as much longer.
_CHUNKS_AT_ONCE = 4


def can_read_together(engine: Engine) -> bool:
    """Whether prompts of different lengths can be read in one pass."""
    is_plain = engine.kv_bits is None and can_cut(engine.prefix.cache)
    return is_plain and engine.model.can_read_rows()


def choose_prompts(
    held: Sequence[int], prompts: Sequence[Sequence[int]], most: int
) -> tuple[int, list[int]]:
    """Chooses which prompts are read together with the first one.

    Prompts that have more in common with each other than with what is held are not: the first goes
    through the live sequence, and the others reuse it.

    Args:
        held: Ids of the live sequence.
        prompts: In their order, none of them empty.
        most: How many, at most.

    Returns:
        How many ids at the start of all are held, and the places of the prompts, ascending; of the
        first alone where it is better read by itself.
    """
    # Two ids at least are left: one to read, and one for the batch.
    shared = [min(count_common(held, ids), len(ids) - 2) for ids in prompts]
    near = [i for i, num in enumerate(shared) if num >= max(shared[0] - PASS_IDS, 0)]
    if near[:1] != [0]:
        return 0, [0]
    start = min(shared[i] for i in near)
    group = _find_run({i: len(prompts[i]) - start for i in near}, most)
    if any(_overlap(prompts[0], prompts[i]) > start + PASS_IDS for i in near[1:]):
        return start, [0]
    kept: list[int] = []
    num_ids = 0
    for i in group:
        num_ids += len(prompts[i]) - start
        is_own = all(_overlap(prompts[i], prompts[j]) <= start + PASS_IDS for j in kept)
        if not kept or (is_own and num_ids <= _MOST_IDS):
            kept.append(i)
    return start, kept


def _overlap(a: Sequence[int], b: Sequence[int]) -> int:
    return min(count_common(a, b), len(b) - 2)


def _find_run(lengths: dict[int, int], most: int) -> list[int]:
    """Parts prompts of like lengths into passes that are cheapest together; returns that of 0."""
    order = sorted(lengths, key=lambda i: (lengths[i], i))
    # For the first n in order: the least cost, and where the last pass begins.
    best = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        starts = range(max(0, end - most), end)
        costs = {s: best[s][0] + PASS_IDS + (end - s) * longest for s in starts}
        # Of equal ones the last start, so that the first pass is full.
        best.append(min(((cost, s) for s, cost in costs.items()), key=lambda c: (c[0], -c[1])))
    end = len(order)
    while True:
        start = best[end][1]
        if 0 in order[start:end]:
            return sorted(order[start:end])
        end = start


def read_together(
    engine: Engine, num_common: int, prompts: Sequence[Sequence[int]], check: Check
) -> list[tuple[Strand, Logits | int]]:
    """Reads prompts side by side; the live sequence stays as it is.

    Args:
        engine: Reads; its live sequence begins with what all prompts begin with.
        num_common: Ids of that.
        prompts: Each has two ids more at least.
        check: Called between chunks; what it raises ends the reading.

    Raises:
        ValueError: The live sequence does not hold what goes on from those ids.

    Returns:
        Of each the sequence, and the logits (1, V) after it; models of mlx-lm tell those of one
        place only, so that there the last id is left, and returned in their place.
    """
    prefix, cache = engine.prefix, engine.prefix.make_cache()
    forward_at = getattr(engine.model, "forward_at", None)  # ours has it
    num_left = 0 if forward_at is not None else 1
    lengths = [len(ids) - num_common - num_left for ids in prompts]
    width = max(lengths)
    if num_common:
        if not prefix.cache.can_rewind(num_common):
            raise ValueError(f"the live sequence cannot go back to {num_common}")
        live = Strand(prefix.cache, num_common, tail=len(prefix.token_ids) - num_common)
        cache = stack(cache, [live] * len(prompts))
    cache.pin(num_common + min(lengths))
    # Real ids stand behind the shorter ones: their keys and values are finite.
    rows = [[*ids[num_common:], *[ids[-1]] * width][:width] for ids in prompts]
    firsts: list[Logits | int] = [ids[-1] for ids in prompts]
    taps = () if engine.taps is None else (engine.taps,)
    start = 0
    while start < width:
        check()
        columns = max(1, _CHUNKS_AT_ONCE * engine.chunker.size // len(rows))
        ids = mx.array([row[start : start + columns] for row in rows])
        ends = [row for row, num in enumerate(lengths) if start < num <= start + columns]
        with engine.chunker.measure(ids.size):
            if forward_at is not None and ends:
                places = [(row, lengths[row] - 1 - start) for row in ends]
                logits = forward_at(ids, cache, places, *taps)
                for i, row in enumerate(ends):
                    firsts[row] = logits[i : i + 1]
                mx.eval(cache.arrays(), logits)
            else:
                engine.model.prefill(ids, cache, *taps)
                mx.eval(cache.arrays())
        start += columns
    strands = (Strand(cache, num_common + num, row, width - num) for row, num in enumerate(lengths))
    return list(zip(strands, firsts, strict=True))
