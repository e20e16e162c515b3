"""Prompts read in one pass: which of them, and that each is read as it is alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batch import NATIVE, SETTINGS, alone, ids_of, open_zoo, prefill, seeded
from tiny import bounded, make_model

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine import batch_prefill  # noqa: E402
from mlxchat.engine.batch import Batch, find_stack  # noqa: E402
from mlxchat.engine.batch_prefill import (  # noqa: E402
    PASS_IDS,
    can_read_together,
    choose_prompts,
    read_together,
)
from mlxchat.engine.chunking import PrefillChunker  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.sampling import Sampler  # noqa: E402

# -- which


def prompts_of(lengths, *, shared=3):
    """Prompts of these lengths with as many equal ids at their start."""
    return [[*range(shared), *range(1000 * i, 1000 * i + n)] for i, n in enumerate(lengths, 1)]


def test_prompts_of_like_lengths_go_together():
    """Those that are much longer or shorter than the first are left for another pass."""
    prompts = prompts_of([20, 200, 24, 19, 210, 22])
    assert choose_prompts(range(50), prompts, 8) == (3, [0, 2, 3, 5])
    assert choose_prompts(range(50), prompts[1:], 8) == (3, [0, 3])


def test_no_more_than_asked_for():
    """Never more than a batch has places; the first is always among them."""
    start, group = choose_prompts([0, 1, 2], prompts_of([20] * 9), 4)
    assert (start, len(group), group[0]) == (3, 4, 0)


def test_what_prompts_have_in_common_is_read_once():
    """The first goes through the live sequence where others begin with what it begins with."""
    prompts = prompts_of([20] * 5, shared=60)
    assert choose_prompts([0, 1, 2], prompts, 8) == (3, [0])
    assert choose_prompts(prompts[0], prompts[1:], 8) == (60, [0, 1, 2, 3])


def test_of_prompts_with_more_in_common_one_is_read():
    """The others come later, when the live sequence holds what they share."""
    document = list(range(5000, 5060))
    odd, *about = [[0, 1, 2, *range(6000, 6062)], *([*document, 9000 + i, 1] for i in range(3))]
    assert choose_prompts([0, 1, 2], [odd, *about], 8) == (0, [0, 1])


def test_prompts_far_from_what_is_held_do_not_spoil_it():
    """What the first reuses is not given up for others that begin otherwise."""
    near, far = prompts_of([20, 20], shared=80), prompts_of([30], shared=2)
    assert choose_prompts(range(80), [near[0], far[0], near[1]], 8) == (80, [0, 2])
    assert choose_prompts(range(80), [far[0], *near], 8) == (2, [0])


@pytest.mark.parametrize("first", [[5], [0, 1]])
def test_prompts_of_an_id_or_two(first):
    """There is always an id to read and one after it."""
    start, group = choose_prompts([0, 1, 2], [first, [0, 1, 2, 3]], 8)
    assert group[0] == 0
    assert all(len([first, [0, 1, 2, 3]][i]) - start >= 2 for i in group if len(group) > 1)


@bounded(max_examples=200)
@given(
    held=st.lists(st.integers(0, 1), max_size=40),
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=9),
    most=st.integers(1, 5),
)
def test_a_group_is_sound(held, prompts, most):
    """All begin with held ids, have two more, and lose hardly more than a pass costs."""
    start, group = choose_prompts(held, prompts, most)
    assert group == sorted(set(group))
    assert group[0] == 0
    assert len(group) <= most
    if len(group) > 1:
        for i in group:
            assert prompts[i][:start] == held[:start]
            assert len(prompts[i]) >= start + 2
        first = next((n for n, (a, b) in enumerate(zip(held, prompts[0])) if a != b), start)  # noqa: B905
        assert start >= min(first, len(prompts[0]) - 2) - 2 * PASS_IDS


# -- how

LENGTHS = (40, 21, 33, 12, 90)


@pytest.mark.parametrize("common", [0, 10])
@pytest.mark.parametrize("kind", [*NATIVE, "llama", "gpt_oss", "gemma3n", "deepseek_v32"])
def test_prompts_read_together_are_read_as_alone(kind, common, tmp_path):
    """Each then gives the tokens that it gives alone, whatever stands behind it in the pass."""
    model = make_model(kind, tmp_path / kind) if kind in NATIVE else open_zoo(kind)
    size = model.info.vocab_size
    shared = ids_of(99, common, size)
    prompts = [[*shared, *ids_of(seed, length, size)] for seed, length in enumerate(LENGTHS)]
    samplings = seeded(SETTINGS["penalties"], len(prompts))
    expected = [alone(model, ids, s, 12) for ids, s in zip(prompts, samplings, strict=True)]
    engine, held = Engine(model), [*shared, *ids_of(50, 30, size)]
    plan = engine.prefix.plan(held)
    engine.prefix.cache.pin(common)
    engine.prefill(held, plan)
    stack, _ = find_stack(engine)
    assert stack is not None
    assert can_read_together(engine)
    # So short that it takes several passes, which end inside of prompts.
    engine.chunker = PrefillChunker(size=16, largest=16)
    checks = []
    read = read_together(engine, common, prompts, lambda: checks.append(1))
    assert len(checks) > 3
    batch = Batch(engine, stack, keeps_logits=True)
    for (strand, first), ids, sampling in zip(read, prompts, samplings, strict=True):
        batch.add(strand, first, Sampler(sampling, size, ids), 12)
    tokens = [[] for _ in prompts]
    for token in batch.decode(lambda: None):
        tokens[token.row].append(token.token_id)
    assert tokens == expected
    assert engine.prefix.token_ids == held
    for row, ids in enumerate(prompts):
        first = read[row][1]
        logits = batch.prompt_logits[row] if isinstance(first, int) else first
        assert engine.verify(ids, logits, held=ids).holds


@pytest.mark.parametrize("name", ["qwen3_next", "mamba2", "llama4", "deepseek_v41"])
def test_caches_that_cannot_be_cut(name):
    """Recurrent states, chunks and unknown kinds have no way back from what stands behind."""
    assert not can_read_together(Engine(open_zoo(name)))


def test_an_architecture_that_reads_rows_otherwise(monkeypatch):
    """A model whose passes over several rows differ is found out, and only decoded together."""
    model = open_zoo("llama")
    run = model.model.__class__.__call__

    def mix(self, ids, cache=None, **options):
        if ids.shape[0] > 1 and ids.shape[1] > 1:
            ids = ids[:, ::-1]
        return run(self, ids, cache=cache, **options)

    monkeypatch.setattr(model.model.__class__, "__call__", mix)
    assert model.find_stack() is not None
    assert not model.can_read_rows()


def test_steering_holds_for_prompts_read_together(tmp_path):
    """What is added to the residual stream is added to each prompt of a pass."""
    from mlxchat.lens.edits import Add

    model = make_model("full", tmp_path / "full")
    prompts = [ids_of(seed, 20 + seed) for seed in range(3)]
    engine = Engine(model)
    engine.steer(Add({1: 3.0 * mx.random.normal((16,), key=mx.random.key(9))}))
    for ids, (_, logits) in zip(
        prompts, read_together(engine, 0, prompts, lambda: None), strict=True
    ):
        plan = engine.prefix.plan(ids)
        engine.prefix.apply(plan)
        assert mx.abs(engine.prefill(ids, plan) - logits).max().item() < 1e-4


def test_where_windows_have_moved_on_nothing_is_read(tmp_path):
    """Rows that slid out of the live sequence are no beginning of others."""
    engine, held = (
        prefill(make_model("window", tmp_path / "window"), ids_of(1, 40))[0],
        ids_of(1, 5),
    )
    with pytest.raises(ValueError, match="cannot go back to 5"):
        read_together(engine, 5, [[*held[:5], 1, 2], [*held[:5], 3, 4]], lambda: None)


def test_a_check_ends_the_reading(tmp_path):
    """What the check raises comes through, and the live sequence is as it was."""
    engine, _ = prefill(make_model("full", tmp_path / "full"), ids_of(1, 20))

    def check():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_together(engine, 0, [ids_of(2, 9), ids_of(3, 8)], check)
    assert engine.prefix.token_ids == ids_of(1, 20)
    assert engine.prefix.cache.offsets() == {20}


def test_no_pass_holds_more_ids_than_memory_should(monkeypatch):
    """Long prompts are read in smaller groups."""
    monkeypatch.setattr(batch_prefill, "_MOST_IDS", 250)
    assert choose_prompts([0, 1, 2], prompts_of([100] * 6), 8) == (3, [0, 1])
