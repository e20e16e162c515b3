"""Rows decoded together: the same tokens as one by one, for every kind of cache."""

import architectures
import pytest
from tiny import VOCAB_SIZE, make_model

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine.batch import Batch, can_batch, find_stack  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.sampling import Sampler, Sampling, sample_rows  # noqa: E402
from mlxchat.model.batch_cache import Strand  # noqa: E402
from mlxchat.model.zoo import ZooModel  # noqa: E402

NATIVE = ["full", "window"]

ZOO = ["deepseek_v32", "gpt_oss", "gemma3n", "llama4", "qwen3_next", "mamba2", "baichuan_m1"]


def ids_of(seed, length, size=VOCAB_SIZE):
    return [int(i) for i in mx.random.randint(0, size, (length,), key=mx.random.key(seed)).tolist()]


def open_zoo(name):
    return ZooModel(architectures.make_model(name), architectures.make_config(name))


def prefill(model, ids):
    engine = Engine(model)
    plan = engine.prefix.plan(ids)
    engine.prefix.apply(plan)
    return engine, engine.prefill(ids, plan)


def alone(model, ids, sampling, num):
    """The tokens of one row by itself."""
    engine, logits = prefill(model, ids)
    sampler = Sampler(sampling, model.info.vocab_size, ids)
    return list(engine.decode(logits, sampler, max_tokens=num))


def together(model, prompts, samplings, nums, stack=None):
    """The tokens of all rows of a batch."""
    engines, logits = zip(*(prefill(model, ids) for ids in prompts), strict=True)
    batch = Batch(engines[0], stack)
    for engine, ids, after, sampling, num in zip(
        engines, prompts, logits, samplings, nums, strict=True
    ):
        sampler = Sampler(sampling, model.info.vocab_size, ids)
        batch.add(Strand(engine.prefix.cache, len(ids)), after, sampler, num)
    tokens = [[] for _ in prompts]
    for token in batch.decode(lambda: None):
        tokens[token.row].append(token.token_id)
    for engine, ids in zip(engines, prompts, strict=True):
        assert engine.prefix.token_ids == ids
        assert engine.prefix.cache.offsets() <= {len(ids)}
    return tokens


SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(temperature=1.0, top_p=0.9),
    "top-k": Sampling(temperature=0.8, top_k=20, top_p=1.0, min_p=0.01),
    "xtc": Sampling(
        temperature=1.0, top_p=0.95, xtc_probability=0.5, xtc_threshold=0.05, xtc_spared=(9, 10)
    ),
    "penalties": Sampling(
        temperature=1.0, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.3
    ),
}


def seeded(sampling, count):
    from dataclasses import replace

    return [replace(sampling, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", NATIVE)
def test_rows_of_one_prompt(kind, settings, tmp_path):
    """Each row gives what it gives alone; each has its own seed, penalties and length."""
    model, ids = make_model(kind, tmp_path / kind), ids_of(1, 40)
    samplings, nums = seeded(SETTINGS[settings], 5), [30, 7, 30, 1, 12]
    expected = [alone(model, ids, s, n) for s, n in zip(samplings, nums, strict=True)]
    assert together(model, [ids] * 5, samplings, nums) == expected
    assert settings == "greedy" or len({tuple(t[:7]) for t in expected if len(t) > 6}) > 1


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", NATIVE)
def test_rows_of_different_prompts(kind, settings, tmp_path):
    """Prompts of different lengths, shorter and longer than the window, are padded unseen."""
    model = make_model(kind, tmp_path / kind)
    prompts = [ids_of(seed, length) for seed, length in enumerate((40, 3, 17, 1, 90))]
    samplings, nums = seeded(SETTINGS[settings], 5), [25, 25, 3, 40, 10]
    expected = [alone(model, ids, s, n) for ids, s, n in zip(prompts, samplings, nums, strict=True)]
    assert together(model, prompts, samplings, nums) == expected


@pytest.mark.parametrize("name", ZOO)
def test_rows_of_one_prompt_with_models_of_mlx_lm(name):
    """The same for every kind of cache that mlx-lm's models have; lengths must be equal there."""
    model = open_zoo(name)
    ids = ids_of(1, 24, architectures.VOCAB_SIZE)
    samplings = seeded(SETTINGS["sampled"], 3)
    expected = [alone(model, ids, s, 12) for s in samplings]
    assert can_batch(Engine(model), [24, 24])
    assert not can_batch(Engine(model), [24, 25])
    assert together(model, [ids] * 3, samplings, [12] * 3) == expected


def test_a_cache_of_unknown_kind_is_not_batched():
    """What is not known to hold rows is decoded one by one."""
    assert not can_batch(Engine(open_zoo("deepseek_v41")), [5, 5])


def test_a_row_that_ends_leaves_the_others_alone(tmp_path):
    """Rows that the program ends give no more tokens, and the rest go on as they would."""
    model, ids = make_model("full", tmp_path / "full"), ids_of(1, 10)
    samplings = seeded(SETTINGS["sampled"], 6)
    expected = [alone(model, ids, s, 20) for s in samplings]
    engine, logits = prefill(model, ids)
    batch, strand = Batch(engine), Strand(engine.prefix.cache, len(ids))
    for sampling in samplings:
        batch.add(strand, logits, Sampler(sampling, VOCAB_SIZE, ids), 20)
    tokens = [[] for _ in samplings]
    for token in batch.decode(lambda: None):
        tokens[token.row].append(token.token_id)
        if len(tokens[token.row]) == 3 * token.row + 1:
            batch.end(token.row)
    assert tokens == [row[: 3 * i + 1] for i, row in enumerate(expected)]


@pytest.mark.parametrize("kind", ["full", "window", "qwen3_next", "gpt_oss", "baichuan_m1"])
def test_a_row_goes_on_as_a_branch(kind, tmp_path):
    """A row that was taken out is a branch of the live sequence, which resumes without reading."""
    model = make_model(kind, tmp_path / kind) if kind in NATIVE else open_zoo(kind)
    ids = ids_of(1, 40, model.info.vocab_size)
    samplings = seeded(SETTINGS["sampled"], 3)
    engine, logits = prefill(model, ids)
    batch, strand = Batch(engine), Strand(engine.prefix.cache, len(ids))
    for sampling, num in zip(samplings, (50, 38, 45), strict=True):
        batch.add(strand, logits, Sampler(sampling, model.info.vocab_size, ids), num)
    fed = [list(ids) for _ in samplings]
    for token in batch.decode(lambda: None):
        if token.is_fed:
            fed[token.row].append(token.token_id)
        if len(fed[token.row]) == len(ids) + (36, 37, 40)[token.row]:
            engine.prefix.add_branch(batch.take(token.row), fed[token.row])
            batch.end(token.row)
    for row in (1, 0, 2, 1):
        target = [*fed[row], 5, 6]
        plan = engine.prefix.plan(target)
        assert plan.action == "resume"
        assert plan.start >= len(fed[row])
        engine.prefix.apply(plan, keep_branch=True)
        got = engine.prefill(target, plan)
        _, fresh = prefill(model, target)
        assert mx.abs(got - fresh).max().item() <= 1e-4 * max(mx.abs(fresh).max().item(), 1.0)


def test_drawing_together_is_drawing_alone():
    """Each row draws with its own key what its sampler alone would draw."""
    logits = mx.random.normal((4, 50), key=mx.random.key(3)) * 3
    for sampling in SETTINGS.values():
        many = [Sampler(s, 50, [1, 2, 2]) for s in seeded(sampling, 4)]
        single = [Sampler(s, 50, [1, 2, 2]) for s in seeded(sampling, 4)]
        for _ in range(70):
            tokens = sample_rows(many, logits).tolist()
            assert tokens == [s.sample(logits[i : i + 1]).item() for i, s in enumerate(single)]


# -- rows that join while others are decoded


def one_after_another(model, prompts, samplings, nums, stack, *, size):
    """The tokens of all rows, never more than `size` at once."""
    engine, tokens, todo = Engine(model), [[] for _ in prompts], list(range(len(prompts)))
    batch, numbers = Batch(engine, stack), {}

    def join():
        i = todo.pop(0)
        reader, logits = prefill(model, prompts[i])
        strand = Strand(reader.prefix.cache, len(prompts[i]))
        sampler = Sampler(samplings[i], model.info.vocab_size, prompts[i])
        numbers[batch.add(strand, logits, sampler, nums[i])] = i

    for _ in range(size):
        join()
    for token in batch.decode(lambda: None):
        i = numbers[token.row]
        tokens[i].append(token.token_id)
        if len(tokens[i]) == nums[i] and todo:
            join()
    return tokens, batch


LENGTHS, NUMS = (40, 3, 90, 17, 1, 33, 60), (9, 25, 3, 14, 30, 12, 5)


@pytest.mark.parametrize("settings", ["greedy", "penalties"])
@pytest.mark.parametrize("kind", [*NATIVE, "llama", "gpt_oss", "gemma3n", "qwen3_next", "mamba2"])
def test_rows_that_join_later(kind, settings, tmp_path):
    """A row in the place of one that has ended gives what it gives alone, ours and mlx-lm's."""
    model = make_model(kind, tmp_path / kind) if kind in NATIVE else open_zoo(kind)
    size = model.info.vocab_size
    prompts = [ids_of(seed, length, size) for seed, length in enumerate(LENGTHS)]
    samplings = seeded(SETTINGS[settings], len(prompts))
    rows = zip(prompts, samplings, NUMS, strict=True)
    expected = [alone(model, ids, s, n) for ids, s, n in rows]
    stack, reason = find_stack(Engine(model))
    assert (stack is not None, reason) == (True, "")
    got, _ = one_after_another(model, prompts, samplings, NUMS, stack, size=3)
    assert got == expected


def test_padding_does_not_grow_with_the_text(tmp_path):
    """However many rows came and went, the cache is as long as the longest of those there are."""
    model = make_model("full", tmp_path / "full")
    prompts = [ids_of(seed, 5) for seed in range(30)]
    nums = [10 + seed % 3 for seed in range(30)]
    stack, _ = find_stack(Engine(model))
    _, batch = one_after_another(
        model, prompts, seeded(SETTINGS["greedy"], 30), nums, stack, size=3
    )
    assert max(batch.cache.offsets()) <= 5 + 12


def test_each_row_may_have_settings_of_its_own(tmp_path):
    """Rows of different temperatures and penalties draw what they draw alone."""
    model, settings = make_model("full", tmp_path / "full"), list(SETTINGS.values())
    prompts = [ids_of(seed, 10 + seed) for seed in range(len(settings))]
    nums = [12] * len(settings)
    rows = zip(prompts, settings, strict=True)
    expected = [alone(model, ids, sampling, 12) for ids, sampling in rows]
    assert together(model, prompts, settings, nums) == expected


def test_steering_holds_for_rows(tmp_path):
    """What is added to the residual stream is added to each row of a batch too."""
    from mlxchat.lens.edits import Add

    model, ids = make_model("full", tmp_path / "full"), ids_of(1, 12)
    taps = Add({1: 3.0 * mx.random.normal((16,), key=mx.random.key(9))})

    def decode(engine, wants_batch):
        plan = engine.prefix.plan(ids)
        engine.prefix.apply(plan)
        logits, sampler = engine.prefill(ids, plan), Sampler(SETTINGS["greedy"], VOCAB_SIZE, ids)
        if not wants_batch:
            return list(engine.decode(logits, sampler, max_tokens=15))
        batch = Batch(engine)
        batch.add(Strand(engine.prefix.cache, len(ids)), logits, sampler, 15)
        return [token.token_id for token in batch.decode(lambda: None)]

    answers = []
    for steer in (taps, None):
        engine = Engine(model)
        engine.steer(steer)
        answers.append(decode(engine, wants_batch=True))
        engine.prefix.reset()
        assert answers[-1] == decode(engine, wants_batch=False)
    assert answers[0] != answers[1]


@pytest.mark.parametrize("name", ["afm7", "gpt_bigcode", "llama4", "deepseek_v41", "minimax_m3_vl"])
def test_models_that_do_not_know_padding(name):
    """Where an architecture computes otherwise with padding, or cannot, nothing is batched."""
    stack, reason = find_stack(Engine(open_zoo(name)))
    assert stack is None
    assert reason == "the caches of this model cannot be padded"


def test_quantised_rows_are_not_padded(tmp_path):
    """With --kv-bits sequences of different lengths are decoded one by one."""
    stack, reason = find_stack(Engine(make_model("full", tmp_path / "full"), kv_bits=8))
    assert stack is None
    assert "few bits" in reason
