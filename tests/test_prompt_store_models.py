"""Stored prefixes of real caches: continuing from disk is continuing, for every kind of layer."""

import json

import architectures
import pytest
from stored import ROOMY
from tiny import VOCAB_SIZE, make_model

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine.chunking import PrefillChunker  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.prompt_store import PromptStore  # noqa: E402
from mlxchat.engine.store_budget import Budget  # noqa: E402
from mlxchat.engine.stored_file import FileWriter  # noqa: E402
from mlxchat.engine.stored_prefix import MAX_DEPTH, StoredPrefixes, make_key  # noqa: E402
from mlxchat.model.zoo import ZooModel  # noqa: E402

KEY = "ab" * 32
SYSTEM_END, END, LENGTH = 50, 64, 76  # the window of 16 and the chunk of 8 wrap several times
ALL = ("system", "conversation")
TOLERANCE = 1e-4  # of the logits' range; one wrong token moves them by 6e-3 to 1
ZOO = {
    "qwen3": "full",
    "deepseek_v32": "full, in lists",
    "gpt_oss": "window and full",
    "gemma3n": "window, with layers that share keys and values",
    "llama4": "chunked",
    "qwen3_next": "recurrent and full",
    "mamba2": "recurrent",
    "baichuan_m1": "recurrent and window, in lists",
    "deepseek_v41": "opaque",
}


def make_ids(seed, length=LENGTH, size=architectures.VOCAB_SIZE):
    return [int(i) for i in mx.random.randint(0, size, (length,), key=mx.random.key(seed)).tolist()]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The native model with full attention."""
    return make_model("full", tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory):
    """A model with nothing but a state."""
    return make_model("recurrent", tmp_path_factory.mktemp("recurrent"))


def open_prefixes(model, folder, key=KEY, budget=ROOMY):
    engine = Engine(model, chunker=PrefillChunker(size=16, largest=16))
    return engine, StoredPrefixes(PromptStore(folder, budget), key, "tiny", engine.prefix)


def feed(engine, ids, marks=(), leave=1):
    plan = engine.prefix.plan(ids, marks=marks, leave=leave)
    engine.prefix.apply(plan)
    logits = engine.prefill(ids, plan)
    return plan, logits


def save(prefixes, end, what="system"):
    for _ in prefixes.save(end, what, "Be kind."):
        pass
    prefixes.wait()


def restore(prefixes, ids, kinds=ALL, at_least=32, keep_branch=False):
    return prefixes.restore(
        ids, at_least=at_least, kinds=kinds, check=lambda: None, keep_branch=keep_branch
    )


def continue_from_disk(model, folder, ids):
    """Restores what is stored of the ids and feeds the rest."""
    engine, prefixes = open_prefixes(model, folder)
    held = restore(prefixes, ids[:-1])
    plan, logits = feed(engine, ids)
    assert plan.start == held == len(ids) - sum(1 for _ in ids[held:])
    return held, logits, prefixes


def assert_same(model, ids, logits):
    """The logits are those of a prefill in a fresh cache."""
    _, fresh = feed(Engine(model), ids)
    scale = max(mx.abs(fresh).max().item(), 1.0)
    assert mx.abs(fresh - logits).max().item() <= TOLERANCE * scale
    assert mx.argmax(fresh).item() == mx.argmax(logits).item()


# --- exact for every kind


@pytest.mark.parametrize("name", ZOO)
def test_zoo_models_continue_from_disk(name, tmp_path):
    """The system prompt from its mark, and the conversation on top of it, go on exactly."""
    model = ZooModel(architectures.make_model(name), architectures.make_config(name))
    check_kind(model, tmp_path, make_ids(1))


@pytest.mark.parametrize("kind", ["full", "window", "recurrent"])
def test_own_models_continue_from_disk(kind, tmp_path):
    """The same for our own models."""
    check_kind(make_model(kind, tmp_path / "model"), tmp_path, make_ids(1, size=VOCAB_SIZE))


def check_kind(model, folder, ids):
    engine, prefixes = open_prefixes(model, folder)
    feed(engine, ids[:END], marks=[SYSTEM_END], leave=0)
    assert prefixes.reachable(SYSTEM_END) == SYSTEM_END
    save(prefixes, SYSTEM_END)
    if prefixes.unstorable:  # said once, and nothing is written
        save(prefixes, END, "conversation")
        assert len(prefixes.store.notices) == 1
        assert prefixes.store.entries() == []
        assert engine.prefix.cache.kinds == {"opaque"}
        return
    held, logits, _ = continue_from_disk(model, folder, ids)
    assert held == SYSTEM_END
    assert_same(model, ids, logits)
    save(prefixes, END, "conversation")
    held, logits, loaded = continue_from_disk(model, folder, ids)
    assert held == END
    assert_same(model, ids, logits)
    assert loaded.store.notices == prefixes.store.notices == []
    system, whole = sorted(prefixes.store.entries(), key=lambda e: e.num_ids)
    says = prefixes.store.describe(whole)
    assert (says.parent, says.start, says.depth) == (system.name, SYSTEM_END, 1)
    # What was stored does not hold on to what goes on: the live sequence is still exact.
    _, live = feed(engine, ids)
    assert_same(model, ids, live)


def test_half_precision_is_kept(tmp_path):
    """Rows of bfloat16 come back bit for bit."""
    model = make_model("full", tmp_path / "model")
    engine, prefixes = open_prefixes(model, tmp_path)
    ids = make_ids(1, size=VOCAB_SIZE)
    feed(engine, ids, leave=0)
    for layer in engine.prefix.cache.layers:
        layer.keys = layer.keys.astype(mx.bfloat16)
        layer.values = layer.values.astype(mx.bfloat16)
    before = [layer.keys_and_values()[0] for layer in engine.prefix.cache.layers]
    save(prefixes, len(ids))
    engine, prefixes = open_prefixes(model, tmp_path)
    assert restore(prefixes, ids) == len(ids)
    for layer, keys in zip(engine.prefix.cache.layers, before, strict=True):
        assert layer.keys.dtype == mx.bfloat16
        assert mx.array_equal(layer.keys_and_values()[0], keys)


# --- which prefix


@pytest.fixture
def stored_dense(dense, tmp_path):
    """A store with 60 ids of the dense model; its folder and the ids."""
    engine, prefixes = open_prefixes(dense, tmp_path)
    ids = make_ids(2, size=VOCAB_SIZE)
    feed(engine, ids[:60], leave=0)
    save(prefixes, 60)
    return tmp_path, ids


def test_part_of_a_stored_prefix(dense, stored_dense):
    """A dense model uses the common beginning of a stored prefix that goes on otherwise."""
    folder, ids = stored_dense
    other = [*ids[:55], 7, 8, *ids[57:]]
    held, logits, _ = continue_from_disk(dense, folder, other)
    assert held == 55
    assert_same(dense, other, logits)


def test_a_mismatch_is_a_miss(dense, stored_dense):
    """Another model, another first id or too short a gain: nothing is loaded."""
    folder, ids = stored_dense
    _, prefixes = open_prefixes(dense, folder, key="cd" * 32)
    assert restore(prefixes, ids) == 0
    _, prefixes = open_prefixes(dense, folder)
    assert restore(prefixes, [1, *ids[1:]]) == 0
    assert restore(prefixes, ids, at_least=61) == 0
    assert restore(prefixes, ids, kinds=["conversation"]) == 0
    assert prefixes.prefix.token_ids == prefixes.store.notices == []


def test_the_key_binds_what_values_depend_on(dense, recurrent, monkeypatch):
    """Fingerprint, weights in memory, versions and backend all change the key."""
    keys = {make_key("a" * 64, dense), make_key("b" * 64, dense), make_key("a" * 64, recurrent)}
    monkeypatch.setattr("mlxchat.engine.stored_prefix.__version__", "9")
    keys.add(make_key("a" * 64, dense))
    monkeypatch.setattr(mx, "__version__", "9")
    keys.add(make_key("a" * 64, dense))
    from dataclasses import replace

    from mlxchat.model.device import make_device_plan

    for change in ({"backend": "metal"}, {"float32": False}):
        plan = replace(make_device_plan(), **change)
        monkeypatch.setattr("mlxchat.engine.stored_prefix.make_device_plan", lambda plan=plan: plan)
        keys.add(make_key("a" * 64, dense))
    assert len(keys) == 7


def test_marks_survive_a_restore(recurrent, tmp_path):
    """Marks within what the live sequence and the loaded one share stay usable."""
    engine, prefixes = open_prefixes(recurrent, tmp_path)
    ids = make_ids(3, size=VOCAB_SIZE)
    feed(engine, ids[:70], marks=[40], leave=0)
    save(prefixes, 70)
    feed(engine, [*ids[:45], 1, 2], marks=[40], leave=0)
    assert restore(prefixes, ids) == 70
    assert list(engine.prefix.marks) == [40]
    changed = [*ids[:41], 9, *ids[42:60]]
    plan, logits = feed(engine, changed)
    assert (plan.action, plan.start) == ("restore", 40)
    assert_same(recurrent, changed, logits)


# --- damage


def damage(folder, entry, at=-5):
    path = folder / entry.name
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_file_is_removed_and_computed_again(dense, stored_dense):
    """One notice, the file is gone, the ids are read as if it had never been there."""
    folder, ids = stored_dense
    store = PromptStore(folder, ROOMY)
    damage(folder, store.entries()[0])
    held, logits, prefixes = continue_from_disk(dense, folder, ids)
    assert held == 0
    assert_same(dense, ids, logits)
    assert len(prefixes.store.notices) == 1
    assert "checksum" in prefixes.store.notices[0]
    assert store.entries() == []
    save(prefixes, 60)
    assert continue_from_disk(dense, folder, ids)[0] == 60


def test_a_damaged_link_leaves_what_is_before_it(dense, stored_dense):
    """Where the later file of a chain is damaged the earlier one serves; not the other way."""
    folder, ids = stored_dense
    engine, prefixes = open_prefixes(dense, folder)
    feed(engine, ids[:70], leave=0)
    save(prefixes, 70, "conversation")
    first, second = sorted(prefixes.store.entries(), key=lambda e: e.num_ids)
    damage(folder, second)
    held, logits, prefixes = continue_from_disk(dense, folder, ids)
    assert held == 60
    assert_same(dense, ids, logits)
    save(prefixes, 70, "conversation")
    damage(folder, first)
    held, logits, prefixes = continue_from_disk(dense, folder, ids)
    assert held == 0
    assert_same(dense, ids, logits)
    assert len(prefixes.store.notices) == 1
    assert prefixes.store.entries() == []


@pytest.mark.parametrize("kinds", [["full"], ["full", "window"], ["recurrent", "full"], []])
def test_a_right_checksum_is_not_enough(dense, stored_dense, kinds):
    """A file whose bytes are whole but that is of other layers is removed, never loaded."""
    folder, ids = stored_dense
    store = PromptStore(folder, ROOMY)
    (entry,) = store.entries()
    meta = {"layers": len(kinds)}
    for i, kind in enumerate(kinds):
        meta |= {f"{i}.kind": kind, f"{i}.offset": 60, f"{i}.start": 0, f"{i}.slots": 0}
    from dataclasses import replace

    forged = replace(store.describe(entry), cache=json.dumps(meta))
    FileWriter(folder / entry.name, forged, ids[:60], []).commit()
    held, _, prefixes = continue_from_disk(dense, folder, ids)
    assert held == 0
    assert len(prefixes.store.notices) == 1
    assert store.entries() == []


def test_a_file_that_cannot_be_removed_is_tried_once(dense, stored_dense, monkeypatch):
    """Where removing fails the search goes on without the file, and it is named once."""
    folder, ids = stored_dense
    damage(folder, PromptStore(folder, ROOMY).entries()[0])
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    _, prefixes = open_prefixes(dense, folder)
    assert [restore(prefixes, ids), restore(prefixes, ids)] == [0, 0]
    assert len(prefixes.store.notices) == 1


# --- storing while turns run


class StopError(Exception):
    pass


def test_storing_gives_way_and_goes_on(dense, tmp_path, monkeypatch):
    """Between two pieces the sequence may grow; what is stored is still the prefix."""
    monkeypatch.setattr("mlxchat.engine.stored_layers.PIECE_BYTES", 1024)
    engine, prefixes = open_prefixes(dense, tmp_path)
    ids = make_ids(4, size=VOCAB_SIZE)
    feed(engine, ids[:60], leave=0)
    steps = prefixes.save(60, "system", "")
    for _ in range(2):
        next(steps)
    feed(engine, ids, leave=0)
    assert sum(1 for _ in steps) > 5
    prefixes.wait()
    held, logits, _ = continue_from_disk(dense, tmp_path, ids)
    assert held == 60
    assert_same(dense, ids, logits)


@pytest.mark.parametrize("way", ["another branch", "reset", "closed"])
def test_storing_ends_when_its_ids_are_gone(dense, tmp_path, way):
    """If a turn changes the prefix meanwhile, or nobody goes on, nothing is left behind."""
    engine, prefixes = open_prefixes(dense, tmp_path / "prompts")
    ids = make_ids(4, size=VOCAB_SIZE)
    feed(engine, ids[:60], leave=0)
    steps = prefixes.save(60, "system", "")
    next(steps)
    if way == "another branch":
        feed(engine, [*ids[:50], 1, 2, 3, *ids[50:70]], leave=0)
    elif way == "reset":
        engine.prefix.reset()
    else:
        steps.close()
    assert list(steps) == []
    prefixes.wait()
    assert list((tmp_path / "prompts").iterdir()) == []


def test_stored_once(dense, stored_dense):
    """A prefix that is stored is not written again, only used."""
    folder, ids = stored_dense
    (path,) = folder.iterdir()
    before = path.stat()
    engine, prefixes = open_prefixes(dense, folder)
    feed(engine, ids, leave=0)
    save(prefixes, 60)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns > before.st_mtime_ns


def test_long_chains_are_joined(dense, tmp_path):
    """A conversation that is stored many times stays readable from a few files."""
    engine, prefixes = open_prefixes(dense, tmp_path)
    ids = make_ids(5, 40 + 3 * MAX_DEPTH, VOCAB_SIZE)
    save_at = range(40, len(ids), 2)
    for end in save_at:
        feed(engine, ids[:end], leave=0)
        save(prefixes, end, "system" if end == 40 else "conversation")
    entries = prefixes.store.entries()
    assert len(entries) <= MAX_DEPTH + 1
    assert max(prefixes.store.describe(e).depth for e in entries) <= MAX_DEPTH
    held, logits, _ = continue_from_disk(dense, tmp_path, ids)
    assert held == save_at[-1]
    assert_same(dense, ids, logits)


def test_over_the_budget_nothing_is_written(dense, stored_dense):
    """What does not fit is not stored; what is there stays."""
    folder, _ = stored_dense
    engine, prefixes = open_prefixes(dense, folder, budget=Budget(20_000, 1.0, 0))
    feed(engine, make_ids(6, 1000, VOCAB_SIZE), leave=0)
    save(prefixes, 1000)
    assert [e.num_ids for e in prefixes.store.entries()] == [60]
    assert prefixes.store.is_writable


def test_a_stop_while_loading_changes_nothing(dense, stored_dense):
    """Ctrl-C during a restore leaves the live sequence as it was."""
    folder, ids = stored_dense
    engine, prefixes = open_prefixes(dense, folder)
    feed(engine, ids[:5], leave=0)

    def stop():
        raise StopError

    with pytest.raises(StopError):
        prefixes.restore(ids, at_least=32, kinds=ALL, check=stop)
    assert engine.prefix.token_ids == ids[:5]
    assert len(prefixes.store.entries()) == 1


# --- a branch that is left while another comes from disk


@pytest.mark.parametrize("num_common", [0, 40])
@pytest.mark.parametrize("name", [name for name in ZOO if name != "deepseek_v41"])
def test_the_branch_left_for_one_on_disk_is_kept(name, num_common, tmp_path):
    """Loading another branch stashes the one that was live: it comes back without being read."""
    model = ZooModel(architectures.make_model(name), architectures.make_config(name))
    stored = make_ids(1)
    live = stored[:num_common] + make_ids(2)[num_common:]
    writer, prefixes = open_prefixes(model, tmp_path)
    feed(writer, stored[:END], leave=0)
    save(prefixes, END, "conversation")
    engine, prefixes = open_prefixes(model, tmp_path)
    feed(engine, live, marks=[num_common or 20], leave=0)
    held = restore(prefixes, stored[:-1], keep_branch=True)
    assert held == END
    plan, logits = feed(engine, stored)
    assert plan.start == END
    assert_same(model, stored, logits)
    plan, logits = feed(engine, [*live, 7])
    assert (plan.action, plan.start) == ("resume", len(live))
    assert_same(model, [*live, 7], logits)


def test_without_a_wish_nothing_is_kept_of_the_branch_left(dense, tmp_path):
    """A branch that nobody comes back to takes no memory."""
    stored, live = make_ids(1, size=VOCAB_SIZE), make_ids(2, size=VOCAB_SIZE)
    writer, prefixes = open_prefixes(dense, tmp_path)
    feed(writer, stored, leave=0)
    save(prefixes, LENGTH, "conversation")
    engine, prefixes = open_prefixes(dense, tmp_path)
    feed(engine, live, leave=0)
    assert restore(prefixes, stored)
    assert engine.prefix.stashes == []
