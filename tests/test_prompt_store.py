"""The folder of stored prefixes: search, budget, damage, faults, several processes. No model."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import KEY, is_right, make_ids, make_store, read, write

from mlxchat.engine.prompt_store import BrokenChainError
from mlxchat.engine.store_budget import Budget
from mlxchat.engine.stored_file import TEMPORARY_PREFIX, BadFileError, FileWriter
from mlxchat.engine.stored_name import MIN_IDS

IDS = make_ids(0, 100)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "prompts")


# --- one file


def test_what_was_written_is_read(store):
    """A file gives back its ids and tensors, and MLX can read it too."""
    entry = write(store, IDS)
    assert is_right(store, entry)
    from mlxchat.model.device import load_mlx

    loaded = load_mlx().load(str(store.folder / entry.name))
    assert loaded["token_ids"].tolist() == IDS
    assert loaded["0.0"].shape == (300,)


def test_only_the_owner_can_read(store):
    """Files are 0600 in a folder of 0700, whatever the folder was before."""
    store.folder.mkdir(mode=0o755)
    entry = write(store, IDS)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert (store.folder / entry.name).stat().st_mode & 0o777 == 0o600


@st.composite
def edits(draw):
    """A function that changes bytes."""
    kind = draw(st.sampled_from(["flip", "insert", "delete", "truncate", "swap", "zero"]))
    place, size = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    mask, extra = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=40))

    def edit(data):
        at = min(int(place * len(data)), len(data) - 1)
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]
        if kind == "insert":
            return data[:at] + extra + data[at:]
        if kind == "delete":
            return data[:at] + data[at + size :]
        if kind == "truncate":
            return data[:at]
        if kind == "swap":
            return data[:at] + data[at : at + size][::-1] + data[at + size :]
        return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]

    return edit


@given(edit=st.lists(edits(), min_size=1, max_size=3))
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_edited_file_is_believed(store, edit):
    """Whatever bytes are flipped, inserted, deleted or cut off, the file is refused."""
    path = store.path_of(KEY, IDS, "system")
    if not path.with_suffix(".good").exists():
        write(store, IDS)
        path.with_suffix(".good").write_bytes(path.read_bytes())
    (entry,) = store.entries()
    good = data = path.with_suffix(".good").read_bytes()
    for change in edit:
        data = change(data) or b"\0"
    path.write_bytes(data)
    if data == good:
        assert is_right(store, entry)
    else:
        with pytest.raises(BadFileError):
            read(store, entry)


@pytest.mark.parametrize("place", ["the length", "the header", "the digest", "the ids", "the data"])
def test_single_bits(store, place):
    """Each bit of a region counts."""
    entry = write(store, IDS)
    path = store.folder / entry.name
    good = path.read_bytes()
    header = int.from_bytes(good[:8], "little")
    digest = good.index(b'"digest":"') + 10
    spans = {
        "the length": range(8),
        "the header": range(8, 8 + header, 7),
        "the digest": range(digest, digest + 64, 3),
        "the ids": range(8 + header, 8 + header + 4 * len(IDS), 17),
        "the data": range(8 + header + 4 * len(IDS), len(good), 13),
    }
    for at in spans[place]:
        data = bytearray(good)
        data[at] ^= 1 << (at % 8)
        path.write_bytes(data)
        with pytest.raises(BadFileError):
            read(store, entry)


def test_a_renamed_file_is_refused(store):
    """A file under the name of another prefix is not believed."""
    one, other = write(store, IDS), write(store, make_ids(1, 99))
    (store.folder / one.name).rename(store.folder / other.name)
    with pytest.raises(BadFileError):
        store.open(other)


def test_what_is_no_file_is_refused(store, tmp_path):
    """A pipe, a link or a folder with a name of ours is refused, and nothing waits for it."""
    store.prepare()
    path = store.path_of(KEY, IDS, "system")
    os.mkfifo(path)
    (entry,) = store.entries()
    with pytest.raises(BadFileError):
        store.open(entry)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        store.open(entry)
    path.unlink()
    path.mkdir()
    with pytest.raises((OSError, BadFileError)):
        store.open(entry)


# --- search


def test_the_longest_stored_prefix_wins(store):
    """Of the prefixes that the ids begin with, the longest is found; longer limits are kept."""
    for length in (40, 60, 80):
        write(store, IDS[:length])
    write(store, [*IDS[:50], 7, *IDS[51:90]])
    assert store.find(KEY, IDS).num_common == 80
    assert store.find(KEY, IDS[:79]).num_common == 60
    assert store.find(KEY, IDS[:39]) is None
    assert store.find(KEY, IDS, at_least=81) is None


def test_part_of_a_prefix_serves_where_sequences_can_be_trimmed(store):
    """With `partly` a stored prefix that goes on otherwise is found, with what it has in common."""
    write(store, IDS[:40])
    longer = write(store, [*IDS[:90], 7, 8, 9])
    assert store.find(KEY, IDS).num_common == 40
    match = store.find(KEY, IDS, partly=True)
    assert (match.entry, match.num_common) == (longer, 90)
    assert store.find(KEY, IDS[:45], partly=True).num_common == 40  # 5 more are not worth a search


def test_other_models_and_kinds_are_misses(store):
    """Another key, other first ids, or a conversation where only system prompts may serve."""
    write(store, IDS, what="conversation")
    assert store.find(KEY, IDS) is not None
    assert store.find("f" * 64, IDS) is None
    assert store.find(KEY, [1, *IDS[1:]], partly=True) is None
    assert store.find(KEY, IDS, kinds=["system"]) is None


def test_thousands_of_entries_are_quick(store):
    """Three thousand entries of the same model and beginning do not slow the search down."""
    write(store, IDS)
    store.prepare()
    for i in range(3000):
        store.path_of(KEY, [*IDS[:MIN_IDS], *range(i, i + 40)], "conversation").touch()
    start = time.perf_counter()
    assert store.find(KEY, IDS, partly=True).num_common == 100
    assert time.perf_counter() - start < 2  # 0.03 s on an idle machine
    assert len(store.entries()) == 3001


def test_foreign_names_are_left_alone(store):
    """Files that are not named like ours are neither listed nor removed."""
    write(store, IDS)
    (store.folder / "notes.txt").write_text("mine")
    assert len(store.entries()) == 1
    store.clear()
    assert [p.name for p in store.folder.iterdir()] == ["notes.txt"]


# --- chains


def test_a_chain_is_read_from_its_first_file(store):
    """A file that continues another names it; a parent that is gone or wrong breaks the chain."""
    first = write(store, IDS[:40])
    second = write(store, IDS[:60], parent=first)
    third = write(store, IDS, parent=second)
    assert store.chain(third) == [first, second, third]
    store.remove([second])
    with pytest.raises(BrokenChainError) as broken:
        store.chain(third)
    assert broken.value.damaged is None
    write(store, IDS[:60])  # whole, where the third expects what begins at 40
    assert store.prune() == [third]


def test_a_damaged_parent_is_named_once(store):
    """Giving up a chain removes the damaged file and the one that needs it, with one notice."""
    first = write(store, IDS[:40])
    second = write(store, IDS, parent=first)
    (store.folder / first.name).write_bytes(b"junk")
    for _ in range(2):
        with pytest.raises(BrokenChainError) as broken:
            store.chain(second)
        store.give_up(second, broken.value)
        (store.folder / first.name).write_bytes(b"junk")
        (store.folder / second.name).touch()
    assert len(store.notices) == 1
    assert store.entries() == []


# --- the budget


def sized(tmp_path, max_bytes, **budget):
    return make_store(tmp_path / "prompts", Budget(max_bytes, 1.0, 0, **budget))


def age(store, entry, seconds):
    then = time.time() - seconds
    os.utime(store.folder / entry.name, (then, then))


def test_the_least_recently_used_goes_first(tmp_path):
    """Room is made by giving up what was not used for longest."""
    store = sized(tmp_path, 100_000)
    old, used, new = (write(store, make_ids(i), size=30_000) for i in range(3))
    for entry, seconds in ((old, 30), (used, 60), (new, 10)):
        age(store, entry, seconds)
    store.touch([used])
    assert store.make_room(30_000)
    assert {e.name for e in store.entries()} == {used.name, new.name}


def test_too_large_an_entry_evicts_nothing(tmp_path):
    """What does not fit the budget even alone is refused, and the others stay."""
    store = sized(tmp_path, 100_000)
    write(store, IDS, size=30_000)
    assert not store.make_room(100_001)
    assert len(store.entries()) == 1


def test_what_is_needed_is_kept(tmp_path):
    """A file that the new one builds on is not given up for it."""
    store = sized(tmp_path, 70_000)
    parent = write(store, IDS, size=30_000)
    age(store, parent, 100)
    other = write(store, make_ids(1), size=30_000)
    assert store.make_room(35_000, keep=[parent.name])
    assert [e.name for e in store.entries()] == [parent.name]
    assert not store.make_room(60_000, keep=[parent.name, other.name])


@pytest.mark.parametrize(
    ("used", "free", "allowed"),
    [
        (0, 1000 << 30, 10 << 30),
        (0, 50 << 30, 5 << 30),
        (5 << 30, 45 << 30, 5 << 30),
        (0, 12 << 30, 12 * (1 << 30) // 10),
        (0, 11 << 30, 1 << 30),
        (0, 10 << 30, 0),
        (0, 1 << 30, 0),
        (3 << 30, 8 << 30, 1 << 30),
    ],
)
def test_the_default_budget(used, free, allowed):
    """The smaller of 10 GiB and a tenth of the free disk, and 10 GiB stay free."""
    assert Budget().allowed(used, free) == pytest.approx(allowed, abs=2)


def test_prune_brings_the_folder_under_the_budget(tmp_path):
    """Pruning gives up the oldest, the broken and old temporary files."""
    roomy = make_store(tmp_path / "prompts")
    entries = [write(roomy, make_ids(i), size=30_000) for i in range(3)]
    for i, entry in enumerate(entries):
        age(roomy, entry, 100 - i)
    (roomy.folder / roomy.path_of(KEY, make_ids(9), "system").name).write_bytes(b"junk")
    left_over = roomy.folder / f"{TEMPORARY_PREFIX}1-2"
    left_over.touch()
    os.utime(left_over, (0, 0))
    store = sized(tmp_path, 70_000)
    assert len(store.prune()) == 2
    assert {e.name for e in store.entries()} == {entries[1].name, entries[2].name}
    assert not left_over.exists()


# --- faults


def test_an_abandoned_file_leaves_nothing(store):
    """Without `commit` neither the file nor its temporary one is there."""
    writer = write(store, IDS, commit=False)
    assert store.entries() == []
    writer.abandon()
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk(store, monkeypatch, step):
    """When the disk is full nothing is left behind, and the person hears of it once."""

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "write":
        monkeypatch.setattr(FileWriter, "_put", fail)
    else:
        monkeypatch.setattr(f"mlxchat.engine.stored_file.os.{step}", fail)
    with pytest.raises(OSError, match="No space") as failure:
        write(store, IDS)
    assert list(store.folder.iterdir()) == []
    for _ in range(2):
        store.note_failure(failure.value)
    assert len(store.notices) == 1
    assert "free some space" in store.notices[0]
    assert not store.is_writable


def test_a_disk_that_is_really_full(tmp_path):
    """On a small file system a file that does not fit leaves nothing; a smaller one still fits."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        store = make_store(folder / "prompts")
        with pytest.raises(OSError, match="No space"):
            write(store, IDS, size=400_000)
        assert store.entries() == []
        assert list(store.folder.iterdir()) == []
        assert is_right(store, write(store, IDS))
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def test_an_unwritable_folder(tmp_path):
    """Where the folder cannot be made, that is an OSError with a reason."""
    (tmp_path / "file").touch()
    store = make_store(tmp_path / "file" / "prompts")
    with pytest.raises(OSError) as failure:
        store.prepare()
    store.note_failure(failure.value)
    assert "check its permissions" in store.notices[0]
    assert store.find(KEY, IDS) is None
    assert store.entries() == store.prune() == store.clear() == []


# --- several processes


def start(folder, seed):
    return subprocess.Popen(
        [sys.executable, stored.__file__, str(folder), str(seed)],
        env={**os.environ, "PYTHONPATH": str(Path(stored.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once(store):
    """Two processes that store, read and give up in one folder never see a wrong file."""
    processes = [start(store.folder, seed) for seed in (1, 2)]
    try:
        for process in processes:
            for _ in range(25):
                assert process.stdout.readline() == "round\n", process.stderr.read()
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_kill_during_writes(store):
    """Killed at any moment, a process leaves files that are right, and temporary ones at most."""
    rng = random.Random(3)
    for seed in range(6):
        process = start(store.folder, seed)
        assert process.stdout.readline() == "round\n", process.stderr.read()
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        entries = store.entries()
        assert entries
        assert all(is_right(store, entry) for entry in entries)
        others = {p.name for p in store.folder.iterdir()} - {e.name for e in entries}
        assert all(name.startswith(TEMPORARY_PREFIX) for name in others)
    store.clear()
    assert list(store.folder.iterdir()) == []
