"""XTC against its definition in plain Python and against mlx-lm; counts, seeds, what it costs."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.chat.batch_lines import read_lines  # noqa: E402
from mlxchat.chat.session import ChatOptions, Session  # noqa: E402
from mlxchat.engine import sampling as sampling_module  # noqa: E402
from mlxchat.engine.options import SamplingSettings  # noqa: E402
from mlxchat.engine.sampling import Sampler, Sampling  # noqa: E402
from mlxchat.engine.xtc import exclude_top_choices  # noqa: E402

LOGITS = st.lists(st.integers(-30, 30), min_size=2, max_size=9).map(
    lambda values: [value / 8 for value in values]
)
ALWAYS, NEVER = mx.array([[0.0]]), mx.array([[0.999]])


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def kept_by_reference(logits: list[float], threshold: float, spared: set[int]) -> set[int]:
    """All above the threshold go but the least of them, and those as unlikely as that."""
    probs = softmax(logits)
    top = [p for p in probs if p > threshold]
    least = min(top, default=math.inf)
    return {i for i, p in enumerate(probs) if p <= least or i in spared}


@bounded(max_examples=150)
@given(
    logits=LOGITS,
    threshold=st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5]),
    spared=st.sets(st.integers(0, 8), max_size=2),
    order=st.randoms(use_true_random=False),
)
def test_the_right_choices_go(
    logits: list[float], threshold: float, spared: set[int], order: object
) -> None:
    """Exactly the definition's, in vocabulary order or another; mlx-lm keeps the same."""
    from mlx_lm.sample_utils import apply_xtc

    if any(abs(p - threshold) < 1e-5 for p in softmax(logits)):
        return  # rounding decides
    ids = list(range(len(logits)))
    order.shuffle(ids)  # type: ignore[attr-defined]
    expected = kept_by_reference(logits, threshold, spared)
    limits = {"probability": 0.5, "threshold": threshold, "spared": tuple(spared)}
    row = mx.array([logits])
    weights = mx.exp(row)
    plain = exclude_top_choices(weights, None, ALWAYS, **limits)[0].tolist()
    assert {i for i, x in enumerate(plain) if x > 0} == expected
    shuffled = mx.exp(mx.array([[logits[i] for i in ids]]))
    other = exclude_top_choices(shuffled, mx.array([ids]), ALWAYS, **limits)[0].tolist()
    assert {i for i, x in zip(ids, other, strict=True) if x > 0} == expected
    theirs = apply_xtc(row, 1.0, threshold, [i for i in spared if i < len(logits)])[0].tolist()
    assert {i for i, x in enumerate(theirs) if x > -math.inf} == expected
    assert mx.array_equal(exclude_top_choices(weights, None, NEVER, **limits), weights).item()


@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("spared", [(), (1,)])
def test_draws_follow_the_mixture(top_k: int, spared: tuple[int, ...]) -> None:
    """With probability p the reduced distribution, else the whole one (chi-square)."""
    logits, p, threshold, num = [2.0, 1.8, 1.0, 0.0, -9.0], 0.3, 0.15, 4000
    whole = [math.exp(x) if i < 4 or not top_k else 0.0 for i, x in enumerate(logits)]
    probs = [w / sum(whole) for w in whole]
    # The first three exceed the threshold; of them only the third stays, and what is spared.
    reduced = [x * (i in (2, 3, 4, *spared)) for i, x in enumerate(probs)]
    expected = [
        num * ((1 - p) * a + p * b / sum(reduced)) for a, b in zip(probs, reduced, strict=True)
    ]
    sampling = Sampling(
        temperature=1.0,
        top_p=1.0,
        top_k=top_k,
        xtc_probability=p,
        xtc_threshold=threshold,
        xtc_spared=spared,
        seed=5,
    )
    sampler = Sampler(sampling, len(logits))
    row = mx.array([logits])
    drawn = mx.concatenate([sampler.sample(row) for _ in range(num)]).tolist()
    counts = Counter(drawn)
    likely = [i for i, e in enumerate(expected) if e > 5]
    chi_square = sum((counts[i] - expected[i]) ** 2 / expected[i] for i in likely)
    assert sum(counts[i] for i in likely) >= num - 10
    assert chi_square < 18.5  # exceeded once in a thousand seeds


def test_rows_draw_what_they_draw_alone() -> None:
    """Each row of a batch has its own coin, from its own key; speculation draws the same."""
    logits = mx.random.normal((6, 30), key=mx.random.key(2)) * 2
    settings = [
        Sampling(temperature=1.0, xtc_probability=0.5, xtc_threshold=0.05, seed=seed)
        for seed in range(6)
    ]
    make = lambda: [Sampler(s, 30) for s in settings]  # noqa: E731
    together = sampling_module.sample_rows(make(), logits).tolist()
    alone = [s.sample(logits[i : i + 1]).item() for i, s in enumerate(make())]
    assert together == alone
    one, other = Sampler(settings[0], 30), Sampler(settings[0], 30)
    ahead = one.sample_ahead(logits, [0] * 5)[0].tolist()
    assert ahead == [other.sample(logits[i : i + 1]).item() for i in range(6)]


def test_nothing_is_done_where_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it no array is made for it, and a seed gives the text that it gave before."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("XTC is off")

    monkeypatch.setattr(sampling_module, "exclude_top_choices", refuse)
    row = mx.array([[1.0, 2.0, 3.0]])
    for sampling in (Sampling(seed=1), Sampling(temperature=0.0, xtc_probability=1.0)):
        Sampler(sampling, 3).sample(row).item()
    with pytest.raises(AssertionError):
        Sampler(Sampling(seed=1, xtc_probability=0.1), 3).sample(row)


def test_the_session_spares_line_breaks_and_ends() -> None:
    """What ends the answer, and a line break, stay as likely as they were."""
    sampling = SamplingSettings(seed=3, xtc_probability=1.0, xtc_threshold=0.0)
    session = Session(None, ChatOptions(sampling=sampling, max_tokens=8))
    try:
        assert session.send("hello").result(60).tokens
        runner = session._runner
        assert runner is not None
        made = runner.make_sampler(session.conversation, ()).sampling
        assert made.xtc_probability == 1.0
        spared = {*runner.tokenizer.eos_ids, *runner.tokenizer.encode("\n")}
        assert set(made.xtc_spared) == spared
        assert len(spared) >= 2
    finally:
        session.close()


def test_a_line_of_a_batch_may_name_it() -> None:
    """As all that concerns sampling."""
    (line,) = read_lines(b'{"prompt": "hi", "xtc_probability": 0.5, "xtc_threshold": 0.2}\n')
    sampling = line.choose_options(ChatOptions()).sampling
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    (line,) = read_lines(b'{"prompt": "hi", "xtc_threshold": 0.7}\n')
    assert "a number in [0, 0.5]" in str(line.error)
