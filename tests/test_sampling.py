"""Sampling against plain Python: the sets that truncation keeps, penalties, seeds, defaults."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine import truncation  # noqa: E402
from mlxchat.engine.options import SamplingSettings  # noqa: E402
from mlxchat.engine.sampling import (  # noqa: E402
    Sampler,
    Sampling,
    resolve_sampling,
    sample_rows,
)
from mlxchat.engine.truncation import truncated_logprobs  # noqa: E402

PLAIN = Sampling(temperature=1.0, top_p=1.0)
# Distances between values are far above float32 rounding, so that borders are not a matter of luck.
LOGITS = st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True).map(
    lambda values: [value / 8 for value in values]
)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def kept_by_reference(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """Top-k, then top-p over what is left, then min-p: the definitions, one after the other."""
    kept = sorted(range(len(logits)), key=lambda i: -logits[i])
    if top_k:
        kept = kept[:top_k]
    probs = dict(zip(kept, softmax([logits[i] / temperature for i in kept]), strict=True))
    if top_p < 1:
        nucleus, mass = [], 0.0
        for i in kept:
            if nucleus and mass >= top_p:
                break
            nucleus.append(i)
            mass += probs[i]
        kept = nucleus
    return {i for i in kept if probs[i] >= min_p * max(probs.values())}


def is_near_border(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> bool:
    """Whether rounding could decide: then either set is right."""
    sets = [
        kept_by_reference(logits, temperature, top_k, top_p + dp, min_p * (1 + dm))
        for dp in (-1e-4, 1e-4)
        for dm in (-1e-4, 1e-4)
    ]
    return any(s != sets[0] for s in sets)


def kept_by_us(logits: list[float], **limits: float) -> set[int]:
    logprobs, ids = truncated_logprobs(mx.array([logits]), **limits)
    row = logprobs[0].tolist()
    names = list(range(len(logits))) if ids is None else ids[0].tolist()
    return {name for name, value in zip(names, row, strict=True) if value > -math.inf}


def sample_many(sampling: Sampling, logits: list[float], num: int) -> list[int]:
    sampler = Sampler(sampling, len(logits))
    tokens = [sampler.sample(mx.array([logits])) for _ in range(num)]
    return mx.concatenate(tokens).tolist()


@bounded(max_examples=150)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.integers(0, 13),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]),
)
def test_truncation_keeps_exactly_the_right_set(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Any combination of top-k, top-p and min-p keeps what the definitions keep."""
    limits = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    if not is_near_border(logits, **limits):
        assert kept_by_us(logits, **limits) == kept_by_reference(logits, **limits)


@bounded(max_examples=60)
@given(logits=LOGITS, top_k=st.integers(0, 5), top_p=st.sampled_from([0.2, 0.8, 1.0]))
def test_truncation_keeps_the_proportions(logits: list[float], top_k: int, top_p: float) -> None:
    """What is kept has the tempered logits it had, under its own id."""
    logprobs, ids = truncated_logprobs(
        mx.array([logits]), temperature=0.5, top_k=top_k, top_p=top_p, min_p=0.0
    )
    names = list(range(len(logits))) if ids is None else ids[0].tolist()
    for name, value in zip(names, logprobs[0].tolist(), strict=True):
        if value > -math.inf:
            assert value == pytest.approx(logits[name] / 0.5, rel=1e-6)


@bounded(max_examples=60)
@given(
    logits=LOGITS,
    top_k=st.integers(0, 4),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**64 - 1),
)
def test_only_kept_tokens_are_drawn(
    logits: list[float], top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    """No draw ever leaves the kept set."""
    limits = {"temperature": 1.5, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    drawn = sample_many(Sampling(**limits, seed=seed), logits, 20)
    assert set(drawn) <= kept_by_us(logits, **limits)


@bounded(max_examples=60)
@given(logits=LOGITS, seed=st.integers(0, 1000))
def test_greedy_is_argmax(logits: list[float], seed: int) -> None:
    """Temperature 0, top-k 1 and a vanishing temperature all take the likeliest token."""
    best = max(range(len(logits)), key=lambda i: logits[i])
    for sampling in (
        Sampling(temperature=0.0, seed=seed),
        Sampling(temperature=1.3, top_k=1, seed=seed),
        Sampling(temperature=1e-3, seed=seed),
        Sampling(temperature=1e-45, seed=seed),
        Sampling(temperature=1.0, min_p=1.0, top_p=1.0, seed=seed),
        Sampling(temperature=1.0, top_p=1e-6, seed=seed),
    ):
        assert sample_many(sampling, logits, 3) == [best] * 3


@pytest.mark.parametrize(("top_p", "num"), [(0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.8, 4)])
def test_the_nucleus_is_the_smallest_that_reaches(top_p: float, num: int) -> None:
    """Of four equal tokens exactly as many are kept as reach top-p, the border included."""
    kept = kept_by_us([1.0] * 4, temperature=1.0, top_k=0, top_p=top_p, min_p=0.0)
    assert len(kept) == num


def make_wide(shape: str, size: int, seed: int) -> np.ndarray:
    """Logits of a large vocabulary, of the kinds that a search for the nucleus may stumble over."""
    rng = np.random.default_rng(seed)
    if shape == "flat":
        return np.zeros(size)
    if shape == "peaked":
        logits = rng.normal(size=size)
        logits[rng.integers(size)] = 40.0
        return logits
    if shape == "tied":  # bfloat16 has few values near its largest
        return rng.integers(-3, 4, size).astype(float)
    if shape == "banned":
        logits = rng.normal(size=size) * 2
        logits[rng.random(size) < 0.7] = -np.inf
        return logits
    if shape == "sorted":
        return -np.sort(rng.exponential(size=size) * 3)
    return rng.normal(size=size) * {"mild": 1.0, "usual": 3.0, "steep": 10.0}[shape]


def make_nucleus(logits: np.ndarray, top_p: float) -> tuple[set[int], float]:
    """The nucleus nearest to a top-p that rounding cannot blur, and that top-p; by sorting."""
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    reached = np.cumsum(probs[order])
    clear = np.flatnonzero(probs[order] > 4e-5)  # far above the rounding of a sum
    num = clear[np.argmin(np.abs(reached[clear] - top_p))]
    return set(order[: num + 1].tolist()), float(reached[num] - probs[order[num]] / 2)


WIDE = ["flat", "peaked", "tied", "banned", "sorted", "mild", "usual", "steep"]


@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("size", [4097, 8192, 8193, 20_001])
def test_large_vocabularies_have_the_nucleus_of_sorting(size: int, top_p: float) -> None:
    """Without a sort the same tokens are kept, of equal ones the first; in rows of their own."""
    rows = [make_wide(shape, size, seed) for seed, shape in enumerate(WIDE)]
    limits = {"temperature": 1.0, "top_k": 0, "min_p": 0.0}
    for shape, row in zip(WIDE, rows, strict=True):
        expected, clear = make_nucleus(row, top_p)
        logprobs, _ = truncated_logprobs(
            mx.array(row[None].astype(np.float32)), top_p=clear, **limits
        )
        kept = np.flatnonzero(np.isfinite(np.array(logprobs)[0]))
        assert set(kept.tolist()) == expected, shape
        assert np.array_equal(np.array(logprobs)[0, kept], row.astype(np.float32)[kept])
    together, ids = truncated_logprobs(mx.array(np.array(rows, np.float32)), top_p=top_p, **limits)
    assert ids is None
    for row, got in zip(rows, together, strict=True):
        alone, _ = truncated_logprobs(mx.array(row[None].astype(np.float32)), top_p=top_p, **limits)
        assert mx.array_equal(got, alone[0])


@bounded(max_examples=150)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=2, max_size=40),
    top_p=st.sampled_from([1e-6, 0.05, 0.3, 0.5, 0.9, 0.99, 1 - 1e-7]),
    min_p=st.sampled_from([0.0, 0.02, 0.7]),
    most=st.integers(1, 9),
)
def test_however_few_are_sorted(
    monkeypatch: pytest.MonkeyPatch, logits: list[int], top_p: float, min_p: float, most: int
) -> None:
    """Ties, padding and any number of halvings keep what the definitions keep."""
    row = [x / 8 for x in logits]
    limits = {"temperature": 0.7, "top_k": 0, "top_p": top_p, "min_p": min_p}
    monkeypatch.setattr(truncation, "_MOST_SORTED", most)
    if not is_near_border(row, **limits):
        assert kept_by_us(row, **limits) == kept_by_reference(row, **limits)


@pytest.mark.parametrize("top_k", [0, 5000])
def test_draws_from_a_large_vocabulary(top_k: int) -> None:
    """They follow the distribution, depend on the seed alone, and top-k goes before top-p."""
    logits = np.full(6000, -3.0)
    logits[[5999, 17, 4000]] = [8.0, 8.0, 7.0]  # 0.41, 0.41 and 0.15 of all
    limits = {"temperature": 1.0, "top_p": 0.9, "top_k": top_k}
    sampler = Sampler(Sampling(**limits, seed=3), 6000)
    rows = mx.array(np.array([logits] * 20, np.float32))
    drawn = mx.concatenate([sampler.sample(rows) for _ in range(40)]).tolist()
    counts = Counter(drawn)
    assert set(counts) == {5999, 17, 4000}
    whole = 2 * math.exp(1) + 1
    expected = {5999: 800 * math.e / whole, 17: 800 * math.e / whole, 4000: 800 / whole}
    assert sum((counts[i] - e) ** 2 / e for i, e in expected.items()) < 13.8  # once in a thousand
    again = Sampler(Sampling(**limits, seed=3), 6000)
    assert mx.concatenate([again.sample(rows) for _ in range(40)]).tolist() == drawn


@pytest.mark.parametrize("size", [7, 900])
def test_draws_are_those_of_mlx(size: int) -> None:
    """Alone and in rows a seed draws what `mx.random.categorical` draws with the same keys."""
    logits = mx.random.normal((5, size), key=mx.random.key(2)) * 4
    logits = mx.where(mx.arange(size) % 3 == 0, -mx.inf, logits)
    plain = [Sampling(temperature=1.0, top_p=1.0, seed=seed) for seed in range(5)]
    keys, singles, rows = ([Sampler(s, size) for s in plain] for _ in range(3))
    for _ in range(60):
        expected = [
            mx.random.categorical(logits[i : i + 1], key=sampler.next_key()).item()
            for i, sampler in enumerate(keys)
        ]
        assert [s.sample(logits[i : i + 1]).item() for i, s in enumerate(singles)] == expected
        assert sample_rows(rows, logits).tolist() == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Counts over many keys agree with the probabilities (chi-square)."""
    logits, num = [2.0, 1.0, 0.0, -1.0, 1.5], 4000
    limits = {"temperature": temperature, "top_p": top_p, "top_k": 0, "min_p": 0.0}
    kept = sorted(kept_by_reference(logits, **limits))
    probs = softmax([logits[i] / temperature for i in kept])
    sampler = Sampler(Sampling(**limits, seed=11), len(logits))
    rows = mx.array([logits] * (num // 80))
    counts = Counter(mx.concatenate([sampler.sample(rows) for _ in range(80)]).tolist())
    expected = {i: p * num for i, p in zip(kept, probs, strict=True)}
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in expected.items())
    assert set(counts) <= set(expected)
    assert chi_square < 18.5  # 4 degrees of freedom at most: exceeded once in a thousand seeds


@bounded(max_examples=60)
@given(
    logits=st.lists(st.integers(-20, 20), min_size=6, max_size=6),
    context=st.lists(st.integers(0, 5), max_size=8),
    later=st.lists(st.integers(0, 5), max_size=3),
    repetition=st.sampled_from([1.0, 1.3, 0.5]),
    presence=st.sampled_from([0.0, 0.7, -0.4]),
    frequency=st.sampled_from([0.0, 0.25]),
)
def test_penalties_equal_their_formulas(
    logits: list[int],
    context: list[int],
    later: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Repetition divides or multiplies, presence and frequency subtract, by what was seen."""
    sampling = replace(
        PLAIN,
        temperature=0.0,
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
    )
    sampler = Sampler(sampling, 6, context)
    for token in later:  # sampled tokens count from then on
        bare = mx.full((1, 6), -1e9).at[0, token].add(2e9)
        assert sampler.sample(bare).item() == token
    counts = Counter([*context, *later])
    want = []
    for i, logit in enumerate(logits):
        value = float(logit)
        if counts[i]:
            value = value / repetition if value > 0 else value * repetition
            value -= presence
        want.append(value - frequency * counts[i])
    got = sampler.process(mx.array([logits], mx.float32))[0].tolist()
    assert got == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_logit_bias_is_added() -> None:
    """Biases add up by id; ids outside the vocabulary change nothing."""
    sampling = replace(PLAIN, logit_bias=((0, 2.0), (2, -1.5), (2, -1.0), (7, 9.0), (-1, 9.0)))
    got = Sampler(sampling, 3).process(mx.array([[1.0, 1.0, 1.0]]))
    assert got[0].tolist() == [3.0, 1.0, -1.5]
    banned = replace(PLAIN, logit_bias=((1, -math.inf),), seed=3)
    assert set(sample_many(banned, [0.0, 9.0, 0.0], 50)) == {0, 2}


def test_the_same_seed_draws_the_same_tokens() -> None:
    """Draws depend on the seed alone: also far beyond the keys that one split gives."""
    logits = [0.1 * i for i in range(30)]
    first = sample_many(replace(PLAIN, seed=5), logits, 200)
    assert sample_many(replace(PLAIN, seed=5), logits, 200) == first
    assert len(set(first)) > 10
    for seed in (6, 5 + 2**32, 2**64 - 1, 2**64):
        assert sample_many(replace(PLAIN, seed=seed), logits, 200) != first


def test_keys_never_repeat() -> None:
    """Each token has a key of its own, across the borders of splits."""
    sampler = Sampler(PLAIN, 4)
    keys = [tuple(sampler.next_key().tolist()) for _ in range(300)]
    assert len(set(keys)) == 300


def test_the_global_random_state_is_left_alone() -> None:
    """Draws neither read nor move MLX's global generator."""
    logits = [0.1 * i for i in range(30)]
    mx.random.seed(1)
    untouched = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(1)
    first = sample_many(PLAIN, logits, 70)
    assert mx.random.uniform(shape=(4,)).tolist() == untouched
    mx.random.seed(2)
    assert sample_many(PLAIN, logits, 70) == first


def test_half_precision_logits_are_sampled_in_float32() -> None:
    """A bfloat16 model's logits keep their order and set."""
    logits = [3.0, 2.5, 0.0, -4.0]
    limits = {"temperature": 0.7, "top_k": 3, "top_p": 0.95, "min_p": 0.0}
    half, _ = truncated_logprobs(mx.array([logits], mx.bfloat16), **limits)
    assert half.dtype == mx.float32
    row = Sampler(replace(PLAIN, repetition_penalty=1.2), 4).process(
        mx.array([logits], mx.bfloat16)
    )
    assert row.shape == (1, 4)


class TestResolve:
    """What is sampled with: the person's word, then generation_config.json, then our defaults."""

    def resolve(self, config: Mapping[str, Any], **settings: Any) -> Sampling:
        return resolve_sampling(SamplingSettings(**settings), config, seed=1)

    def test_defaults(self) -> None:
        """Without any word it is temperature 0.7 and top-p 0.95."""
        got = self.resolve({})
        assert (got.temperature, got.top_p, got.top_k, got.min_p) == (0.7, 0.95, 0, 0.0)
        assert not got.has_penalties
        assert got.seed == 1

    def test_generation_config(self) -> None:
        """The checkpoint's values replace the defaults, and our top-p is not mixed in."""
        got = self.resolve({"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05})
        assert got == Sampling(0.6, 1.0, 20, repetition_penalty=1.05, seed=1)
        assert self.resolve({"top_p": 0.8}).top_p == 0.8
        assert self.resolve({"top_k": 20.0}).top_k == 20

    def test_do_sample_false_is_greedy(self) -> None:
        """A checkpoint that does not sample is greedy, whatever else it names."""
        assert self.resolve({"do_sample": False, "temperature": 0.6}).temperature == 0.0
        assert self.resolve({"do_sample": False}, temperature=0.9).temperature == 0.9

    def test_a_penalty_alone(self) -> None:
        """A checkpoint's penalty counts when it is greedy too, and leaves our truncation alone."""
        got = self.resolve({"do_sample": False, "repetition_penalty": 1.1})
        assert (got.temperature, got.repetition_penalty) == (0.0, 1.1)
        got = self.resolve({"repetition_penalty": 1.1})
        assert (got.temperature, got.top_p, got.repetition_penalty) == (0.7, 0.95, 1.1)

    def test_the_person_wins(self) -> None:
        """What was asked for wins over the checkpoint, 0 included."""
        config = {"temperature": 0.6, "top_k": 20, "top_p": 0.9}
        got = self.resolve(config, temperature=0.0, top_k=0, frequency_penalty=0.5)
        assert (got.temperature, got.top_k, got.top_p) == (0.0, 0, 0.9)
        assert got.frequency_penalty == 0.5
        assert self.resolve(config, seed=77).seed == 1  # seeds are handed in per answer

    @pytest.mark.parametrize(
        "value",
        ["0.3", None, True, [0.3], {"a": 1}, math.nan, math.inf, -math.inf, -0.5],
        ids=lambda value: str(value)[:6],
    )
    @pytest.mark.parametrize(
        "name", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]
    )
    def test_wrong_values_are_ignored(self, name: str, value: object) -> None:
        """A value of a wrong type or out of bounds counts as not there."""
        assert self.resolve({name: value}) == self.resolve({})

    def test_values_that_would_break_sampling_are_ignored(self) -> None:
        """No division by zero, and no min-p that drops every token."""
        assert self.resolve({"repetition_penalty": 0}) == self.resolve({})
        assert self.resolve({"min_p": 1.5}) == self.resolve({})
        assert self.resolve({"temperature": 10**400}) == self.resolve({})
