"""Stored prefixes of made-up bytes, for tests of the folder alone; also a program that writes some.

`python tests/stored.py FOLDER SEED` stores, reads and gives up prefixes until it is killed, and
prints a line after each round.
"""

import random
import sys
from pathlib import Path

from mlxchat.engine.prompt_store import BrokenChainError, PromptStore
from mlxchat.engine.store_budget import Budget
from mlxchat.engine.stored_file import BadFileError, Description, FileWriter, TensorShape
from mlxchat.engine.stored_name import MIN_IDS

KEY = "0123456789abcdef" * 4
ROOMY = Budget(max_bytes=1 << 40, disk_share=1.0, min_free_bytes=0)


def make_store(folder, budget=ROOMY):
    return PromptStore(folder, budget)


def make_ids(seed, length=40):
    rng = random.Random(seed)
    return [rng.randrange(50_000) for _ in range(length)]


def write(store, ids, *, key=KEY, what="system", size=300, parent=None, owner="", commit=True):
    """Stores ids with two tensors of bytes that are made from them."""
    start = parent.num_ids if parent else 0
    description = Description(
        key=key,
        model="tiny",
        label="Be kind.",
        owner=owner,
        what=what,
        num_ids=len(ids),
        start=start,
        parent=parent.name if parent else "",
        depth=store.describe(parent).depth + 1 if parent else 0,
        created=0.0,
        cache='{"layers": 0}',
    )
    store.prepare()
    sizes = (size, 8)
    shapes = [TensorShape(f"0.{i}", "U8", (n,), n) for i, n in enumerate(sizes)]
    path = store.path_of(key, ids, what)
    writer = FileWriter(path, description, ids, shapes)
    for n in sizes:
        writer.write(make_bytes(ids, n))
    if not commit:
        return writer
    writer.commit()
    return next(e for e in store.entries() if e.name == path.name)


def make_bytes(ids, size):
    return random.Random(ids[0]).randbytes(size)


def read(store, entry):
    """Reads a file whole and returns its ids and tensors, all checked."""
    with store.open(entry) as file:
        ids = file.read_ids()
        tensors = {info.name: data for info, data in file.read_tensors()}
    return ids, tensors


def is_right(store, entry):
    """Whether a file that was accepted holds what was written under its name."""
    ids, tensors = read(store, entry)
    assert store.path_of(KEY, ids, entry.what).name == entry.name
    assert all(bytes(data) == make_bytes(ids, len(data)) for data in tensors.values())
    return True


def churn(folder, seed):
    """Stores, reads and gives up prefixes for ever."""
    store = make_store(Path(folder), Budget(400_000, 1.0, 0))
    rng = random.Random(seed)
    while True:
        ids = make_ids(rng.randrange(30), MIN_IDS + rng.randrange(40))
        if store.make_room(60_000):
            write(store, ids, size=rng.randrange(1, 50_000))
        for entry in store.entries():
            try:
                assert is_right(store, entry)
            except FileNotFoundError:
                continue
            except (BadFileError, BrokenChainError) as problem:
                sys.exit(f"{entry.name}: {problem}")
        if rng.random() < 0.05:
            store.prune()
        print("round", flush=True)


if __name__ == "__main__":
    churn(sys.argv[1], int(sys.argv[2]))
