"""Prefill and decode on tiny models: exact for any chunking, interruptible, and never half done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import KINDS, VOCAB_SIZE, CountingModel, bounded, make_model, slow_tokens

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.reuse_plan import Plan  # noqa: E402
from mlxchat.engine.sampling import Sampler, Sampling  # noqa: E402
from mlxchat.model.kv_cache import RowCache  # noqa: E402

IDS = mx.random.randint(0, VOCAB_SIZE, (200,), key=mx.random.key(9)).tolist()
GREEDY = Sampling(temperature=0.0)
SEEDED = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1, seed=4)


class StopError(Exception):
    """Ctrl-C, as `check` raises it."""


class ListChunker:
    """Gives chunk lengths from a list, the last one for ever."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)

    @property
    def size(self) -> int:
        return self.sizes[0]

    @contextmanager
    def measure(self, num_tokens: int) -> Iterator[None]:
        yield
        if len(self.sizes) > 1:
            self.sizes.pop(0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CountingModel]:
    return {kind: make_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: dict[str, CountingModel]) -> CountingModel:
    model = models[request.param]
    model.hook = None
    model.calls.clear()
    return model


def make_engine(model: Any, sizes: Sequence[int] = (8,)) -> Engine:
    return Engine(model, chunker=ListChunker(sizes))  # type: ignore[arg-type]


def feed(engine: Engine, ids: Sequence[int], *, leave: int = 1, **options: Any) -> Any:
    plan = engine.prefix.plan(ids, leave=leave)
    engine.prefix.apply(plan)
    return engine.prefill(ids, plan, **options)


def one_shot(model: Any, ids: Sequence[int]) -> Any:
    return model.forward(mx.array([list(ids)]), model.make_cache())


def difference(a: Any, b: Any) -> float:
    return mx.abs(a - b).max().item()


def raise_after(num: int) -> Callable[..., None]:
    """A check or hook that raises when it is called for the time after `num`."""
    left = [num]

    def call(*_: object) -> None:
        if left[0] == 0:
            raise StopError
        left[0] -= 1

    return call


# -- prefill ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@bounded(max_examples=15)
@given(
    length=st.integers(1, 70),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    marks=st.lists(st.integers(1, 70), max_size=2),
)
def test_any_chunking_equals_one_shot(
    models: dict[str, CountingModel], kind: str, length: int, sizes: list[int], marks: list[int]
) -> None:
    """Chunks of any lengths, cut at any marks, give the logits of a single forward pass."""
    model, ids = models[kind], IDS[:length]
    engine = make_engine(model, sizes)
    plan = Plan("fresh", 0, 0, 0, marks=tuple(sorted({m for m in marks if m < length})))
    logits = engine.prefill(ids, plan)
    assert engine.prefix.token_ids == ids
    assert difference(logits, one_shot(model, ids)) <= 1e-4
    assert set(engine.prefix.marks) == (set() if kind == "full" else set(plan.marks))


def test_chunks_are_fed_as_planned(model: CountingModel) -> None:
    """Chunks have the chunker's lengths, end at marks, and report what is done."""
    engine, seen = make_engine(model, [16, 8]), []
    engine.prefill(
        IDS[:50],
        Plan("fresh", 0, 0, 0, marks=(20, 33)),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert model.calls == [16, 4, 8, 5, 8, 8, 1]
    assert seen == [(16, 50), (20, 50), (28, 50), (33, 50), (41, 50), (49, 50), (50, 50)]
    feed(engine, IDS[:60], on_progress=lambda done, total: seen.append((done, total)))
    assert seen[7:] == [(8, 10), (10, 10)]  # counted from what was new


def test_nothing_to_feed(model: CountingModel) -> None:
    """Settling on what is already there feeds nothing and gives no logits."""
    engine = make_engine(model)
    feed(engine, IDS[:20])
    model.calls.clear()
    assert feed(engine, IDS[:20], leave=0) is None
    assert model.calls == []


def test_only_new_ids_are_fed(model: CountingModel) -> None:
    """A prompt that goes on costs what is new, and gives the logits of the whole."""
    engine = make_engine(model)
    feed(engine, IDS[:40])
    model.calls.clear()
    logits = feed(engine, IDS[:47])
    assert sum(model.calls) == 7
    assert difference(logits, one_shot(model, IDS[:47])) <= 1e-4


@pytest.mark.parametrize("num_checks", [0, 1, 3])
def test_a_stop_between_chunks_keeps_a_valid_prefix(model: CountingModel, num_checks: int) -> None:
    """What was fed before the stop stays; the next prefill goes on from there, exactly."""
    engine = make_engine(model)
    with pytest.raises(StopError):
        feed(engine, IDS[:50], check=raise_after(num_checks))
    assert engine.prefix.token_ids == IDS[: 8 * num_checks]
    model.calls.clear()
    logits = feed(engine, IDS[:50])
    assert sum(model.calls) == 50 - 8 * num_checks
    assert engine.verify(IDS[:50], logits).holds


@pytest.mark.parametrize("start", [0, 24])
@pytest.mark.parametrize("failing_update", [1, 2, 5])
def test_a_forward_pass_that_breaks_off_resets(
    models: dict[str, CountingModel],
    monkeypatch: pytest.MonkeyPatch,
    start: int,
    failing_update: int,
) -> None:
    """Some layers hold more rows than others then: nothing of it may be used."""
    engine = make_engine(models["window"])
    if start:
        feed(engine, IDS[:start])
    append, left = RowCache.append, [failing_update]

    def fail(self: RowCache, *rows: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise StopError
        return append(self, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(RowCache, "append", fail)
        with pytest.raises(StopError):
            feed(engine, IDS[:50])
    assert engine.prefix.token_ids == []
    assert engine.prefix.cache.offsets() <= {0}
    logits = feed(engine, IDS[:50])
    assert engine.verify(IDS[:50], logits).holds


def test_an_exception_of_the_model_resets(model: CountingModel) -> None:
    """Whatever the model raises, in prefill or decode, leaves an empty cache that works."""
    engine = make_engine(model)
    for ids in (IDS[:30], IDS[:40]):
        model.hook = raise_after(1)
        with pytest.raises(StopError):
            feed(engine, ids)
        assert engine.prefix.token_ids == []
    model.hook = None
    logits = feed(engine, IDS[:30])
    decoding = engine.decode(logits, Sampler(GREEDY, VOCAB_SIZE), max_tokens=9)
    next(decoding)
    model.hook = raise_after(1)
    next(decoding)
    with pytest.raises(StopError):
        next(decoding)
    assert engine.prefix.token_ids == []
    model.hook = None
    assert engine.verify(IDS[:30], feed(engine, IDS[:30])).holds


# -- decode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("length", [1, 45])
def test_decode_equals_the_slow_loop(model: CountingModel, sampling: Sampling, length: int) -> None:
    """Token by token, one step ahead, gives what reading everything again gives."""
    ids = IDS[:length]
    engine = make_engine(model)
    logits = feed(engine, ids)
    sampler = Sampler(sampling, VOCAB_SIZE, ids)
    got = list(engine.decode(logits, sampler, max_tokens=24))
    want = slow_tokens(model, ids, Sampler(sampling, VOCAB_SIZE, ids), 24)
    assert got == want
    if sampling is SEEDED:
        assert len(set(got)) > 6  # else the test would show nothing


@pytest.mark.parametrize("num", [0, 1, 2, 7])
def test_max_tokens(model: CountingModel, num: int) -> None:
    """Exactly so many tokens come; the last is not fed, since nothing follows it."""
    engine = make_engine(model)
    logits = feed(engine, IDS[:20])
    model.calls.clear()
    tokens = list(engine.decode(logits, Sampler(SEEDED, VOCAB_SIZE), max_tokens=num))
    assert len(tokens) == num
    assert engine.prefix.token_ids == IDS[:20] + tokens[:-1]
    assert model.calls == [1] * max(num - 1, 0)


def test_decode_is_one_step_ahead(model: CountingModel) -> None:
    """When a token is handed over, the pass that computes its successor is already under way."""
    engine = make_engine(model)
    logits = feed(engine, IDS[:20])
    model.calls.clear()
    for num, token in enumerate(engine.decode(logits, Sampler(SEEDED, VOCAB_SIZE), max_tokens=5)):
        assert len(model.calls) == min(num + 1, 4)
        if num < 4:
            assert engine.prefix.token_ids[-1] == token


@pytest.mark.parametrize("num", [1, 5])
def test_the_first_token_is_told_before_it_is_fed(model: CountingModel, num: int) -> None:
    """Nobody waits for the second step to see the first token."""
    engine, told = make_engine(model), []
    logits = feed(engine, IDS[:20])
    model.calls.clear()
    tokens = list(
        engine.decode(
            logits,
            Sampler(SEEDED, VOCAB_SIZE),
            max_tokens=num,
            on_first=lambda token: told.append((token, list(model.calls))),
        )
    )
    assert told == [(tokens[0], [])]


def test_no_token_is_told_after_a_stop(model: CountingModel) -> None:
    """A stop that comes before the first token shows nothing."""
    engine, told = make_engine(model), []
    decoding = engine.decode(
        feed(engine, IDS[:20]),
        Sampler(SEEDED, VOCAB_SIZE),
        max_tokens=5,
        check=raise_after(0),
        on_first=told.append,
    )
    with pytest.raises(StopError):
        next(decoding)
    assert told == []


@pytest.mark.parametrize("num", [1, 2, 6])
def test_closing_decode_leaves_what_was_yielded(model: CountingModel, num: int) -> None:
    """After a stop token the consumer leaves; the cache holds prompt and tokens, no more."""
    engine = make_engine(model)
    decoding = engine.decode(feed(engine, IDS[:30]), Sampler(SEEDED, VOCAB_SIZE), max_tokens=50)
    tokens = [next(decoding) for _ in range(num)]
    decoding.close()
    assert engine.prefix.token_ids == IDS[:30] + tokens
    ids = [*IDS[:30], *tokens, 7, 8, 9]
    model.calls.clear()
    logits = feed(engine, ids)
    assert sum(model.calls) == 3
    assert engine.verify(ids, logits).holds


@pytest.mark.parametrize("num_checks", [0, 1, 4])
def test_a_stop_between_tokens_keeps_what_was_yielded(
    model: CountingModel, num_checks: int
) -> None:
    """The stop comes out of the generator; what was yielded is in the cache, and goes on."""
    engine, tokens = make_engine(model), []
    logits = feed(engine, IDS[:30])
    with pytest.raises(StopError):
        tokens.extend(
            engine.decode(
                logits, Sampler(SEEDED, VOCAB_SIZE), max_tokens=9, check=raise_after(num_checks)
            )
        )
    assert len(engine.prefix.token_ids) == 30 + num_checks
    ids = [*engine.prefix.token_ids, 7]
    assert engine.verify(ids, feed(engine, ids)).holds


# -- verify ----------------------------------------------------------------------------------------


def test_verify_leaves_the_live_cache_alone(model: CountingModel) -> None:
    """A check between two turns costs the turns nothing."""
    engine = make_engine(model)
    logits = feed(engine, IDS[:30])
    held = engine.prefix.cache.nbytes
    found = engine.verify(IDS[:30], logits)
    assert found.holds
    assert found.ids_equal
    assert found.max_abs_logit_diff <= 1e-4
    assert engine.prefix.token_ids == IDS[:30]
    assert engine.prefix.cache.nbytes == held
    model.calls.clear()
    feed(engine, IDS[:34])
    assert sum(model.calls) == 4


def test_verify_sees_one_wrong_id(model: CountingModel) -> None:
    """A single id that the cache holds and the prompt does not is found, by ids and by logits."""
    engine = make_engine(model)
    wrong = [*IDS[:25], IDS[25] ^ 1, *IDS[26:30]]
    logits = feed(engine, wrong)
    found = engine.verify(IDS[:30], logits)
    assert not found.ids_equal
    assert not found.holds
    engine.prefix.token_ids[:] = IDS[:30]  # the ids lie, the logits do not
    found = engine.verify(IDS[:30], logits)
    assert found.ids_equal
    assert found.max_abs_logit_diff > 1e-3
    assert not found.holds


def test_verify_allows_half_precision_its_rounding(models: dict[str, CountingModel]) -> None:
    """In bfloat16 the tolerance is a share of the largest logit; in float32 it is not."""
    engine = make_engine(models["full"])
    logits = feed(engine, IDS[:30])
    share = 0.02 * mx.abs(logits).max().item()
    assert not engine.verify(IDS[:30], logits + share).holds
    assert engine.verify(IDS[:30], (logits + share).astype(mx.bfloat16)).holds
    assert not engine.verify(IDS[:30], (logits + 5 * share).astype(mx.bfloat16)).holds
