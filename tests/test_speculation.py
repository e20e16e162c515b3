"""Speculation gives the tokens of plain decoding, and takes back what it fed in vain."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import (
    VOCAB_SIZE,
    CountingModel,
    RecurrentModel,
    TinySession,
    bounded,
    check_turn,
    make_model,
    make_tiny_folder,
    mx,
)

from mlxchat.engine import speculation
from mlxchat.engine.engine import Engine
from mlxchat.engine.lookup import NUM_IDS, PromptLookup
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.sampling import Sampler, Sampling
from mlxchat.engine.speculation import SIZES, Controller, Speculator

IDS = [6 + (5 * i * i + i) % 290 for i in range(60)]
WAYS = {
    "greedy": Sampling(temperature=0.0),
    "greedy, penalties": Sampling(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.1),
    "sampled": Sampling(temperature=0.7, top_p=0.9, seed=3),
    "sampled, all of it": Sampling(
        temperature=1.2,
        top_p=0.95,
        top_k=40,
        min_p=0.01,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        logit_bias=((20, 3.0), (30, -2.0)),
        seed=11,
    ),
    "sampled, xtc": Sampling(
        temperature=1.0, top_p=1.0, xtc_probability=0.5, xtc_threshold=0.05, seed=4
    ),
}


class Always(Controller):
    """Judges as many drafts as there is room for, whatever it costs."""

    def choose(self, strength: int, room: int) -> int:
        self.plain_s = 1.0
        return max((s for s in SIZES if strength and s <= room), default=0)


class Script:
    """Foresees a known text, with mistakes."""

    kind: Any = "lookup"

    def __init__(self, text: Sequence[int], mistakes: float, seed: int = 0) -> None:
        self.text, self.mistakes, self.random = list(text), mistakes, random.Random(seed)
        self.strength, self.place = 1, -1  # begins at 0

    def begin(self, token_ids: Sequence[int], check: Any) -> None:
        self.place = 0

    def push(self, token_id: int) -> None:
        assert self.text[self.place] == token_id, "another text than plain decoding's"
        self.place += 1

    def expects(self) -> int | None:
        return None

    def draft(self, num: int) -> list[int]:
        drafts = self.text[self.place : self.place + num]
        return [(x + 1) % VOCAB_SIZE if self.random.random() < self.mistakes else x for x in drafts]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CountingModel]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_model(kind, folder / kind) for kind in ("full", "window")}


def start(model: Any, sampling: Sampling, **kwargs: Any) -> tuple[Engine, Any, Sampler]:
    engine = Engine(model, **kwargs)
    engine.chunker.size = engine.chunker.largest = 16
    logits = engine.prefill(IDS, engine.prefix.plan(IDS))
    return engine, logits, Sampler(sampling, VOCAB_SIZE, IDS)


def check_cache(engine: Engine, token_ids: Sequence[int]) -> None:
    """The cache holds these ids and goes on as if read from scratch."""
    prefix = engine.prefix
    assert prefix.token_ids == list(token_ids)
    assert prefix.cache.offsets() == {len(token_ids)}
    here = engine.model.forward(mx.array([[7]]), prefix.cache)
    fresh = engine.model.forward(mx.array([[*token_ids, 7]]), engine.model.make_cache())
    assert mx.abs(here - fresh).max().item() < 1e-3


@pytest.mark.parametrize("mistakes", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["full", "window"])
def test_the_text_is_that_of_plain_decoding(
    models: dict[str, CountingModel], kind: str, way: str, mistakes: float
) -> None:
    """Whatever is foreseen, tokens are the same, greedy and sampled, and the cache holds them."""
    engine, logits, sampler = start(models[kind], WAYS[way])
    plain = list(engine.decode(logits, sampler, max_tokens=90))
    script = Script([*plain, *[9] * 20], mistakes)
    speculator = Speculator(script, Always())
    engine, logits, sampler = start(models[kind], WAYS[way], speculator=speculator)
    calls = len(models[kind].calls)
    assert list(engine.decode(logits, sampler, max_tokens=90)) == plain
    passes = len(models[kind].calls) - calls
    check_cache(engine, [*IDS, *plain[:-1]])
    stats = speculator.stats
    assert stats.accepted <= stats.drafted
    if mistakes == 0.0:
        assert stats.accepted >= 0.9 * stats.drafted
        assert passes < 20, "a near tie or two at most"
    if mistakes == 1.0:
        assert stats.accepted == 0


@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_lookup_finds_what_repeats(models: dict[str, CountingModel], way: str) -> None:
    """A biased model that says one thing again and again is foreseen, with the same text."""
    bias = tuple((i, 40.0) for i in range(20, 23))
    sampling = Sampling(temperature=0.0, repetition_penalty=1.0, logit_bias=bias, seed=2)
    engine, logits, sampler = start(models["full"], sampling)
    plain = list(engine.decode(logits, sampler, max_tokens=120))
    speculator = Speculator(PromptLookup(), Always())
    engine, logits, sampler = start(models["full"], sampling, speculator=speculator)
    assert list(engine.decode(logits, sampler, max_tokens=120)) == plain
    assert speculator.stats.accepted > 60
    check_cache(engine, [*IDS, *plain[:-1]])


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("kind", ["full", "window"])
def test_an_answer_that_ends_early(models: dict[str, CountingModel], kind: str, num: int) -> None:
    """Closed after any token, the cache holds the text up to that token and no draft."""
    engine, logits, sampler = start(models[kind], WAYS["greedy"])
    plain = list(engine.decode(logits, sampler, max_tokens=40))
    speculator = Speculator(Script(plain, 0.0), Always())
    engine, logits, sampler = start(models[kind], WAYS["greedy"], speculator=speculator)
    decoding = engine.decode(logits, sampler, max_tokens=40)
    got = [next(decoding) for _ in range(num)]
    decoding.close()
    assert got == plain[:num]
    check_cache(engine, [*IDS, *plain[:num]])


@pytest.mark.parametrize("num", [0, 1, 2])
def test_short_answers(models: dict[str, CountingModel], num: int) -> None:
    """So many tokens come and no more; the first is told before the drafter reads the text."""
    engine, logits, sampler = start(models["full"], WAYS["greedy"])
    plain = list(engine.decode(logits, sampler, max_tokens=9))
    script = Script(plain, 0.0)
    engine, logits, sampler = start(
        models["full"], WAYS["greedy"], speculator=Speculator(script, Always())
    )
    told: list[tuple[int, int]] = []

    def tell(token_id: int) -> None:
        told.append((token_id, script.place))

    assert list(engine.decode(logits, sampler, max_tokens=num, on_first=tell)) == plain[:num]
    assert told == ([(plain[0], -1)] if num else [])


def test_cancelled_between_tokens_of_one_pass(models: dict[str, CountingModel]) -> None:
    """Ctrl-C works between the tokens of a pass, too."""

    class StopError(Exception):
        pass

    checks = [0]

    def check() -> None:
        checks[0] += 1
        if checks[0] == 6:
            raise StopError

    engine, logits, sampler = start(models["full"], WAYS["greedy"])
    plain = list(engine.decode(logits, sampler, max_tokens=40))
    speculator = Speculator(Script(plain, 0.0), Always())
    engine, logits, sampler = start(models["full"], WAYS["greedy"], speculator=speculator)
    got: list[int] = []
    with pytest.raises(StopError):
        got.extend(engine.decode(logits, sampler, max_tokens=40, check=check))
    assert 1 <= len(got) < 15
    check_cache(engine, [*IDS, *plain[: len(got)]])


def test_a_near_tie_is_decided_by_a_pass_of_its_own(models: dict[str, CountingModel]) -> None:
    """Where the two best are as near as rounding, the pass over drafts decides nothing."""
    pair = ((40, 1000.0), (41, 1000.0))  # what is left between them is below the share of a tie
    engine, logits, sampler = start(models["full"], Sampling(temperature=0.0, logit_bias=pair))
    plain = list(engine.decode(logits, sampler, max_tokens=30))
    row = mx.zeros((1, VOCAB_SIZE)).at[0, 40].add(5.0).at[0, 41].add(5.0 + 1e-6)
    _, near = Sampler(Sampling(temperature=0.0), VOCAB_SIZE).sample_ahead(row, [])
    assert near.tolist() == [True]
    speculator = Speculator(Script([*plain, 40, 40], 0.0), Always())
    engine, logits, sampler = start(
        models["full"], Sampling(temperature=0.0, logit_bias=pair), speculator=speculator
    )
    assert list(engine.decode(logits, sampler, max_tokens=30)) == plain
    check_cache(engine, [*IDS, *plain[:-1]])


class OneStepModel:
    """Logits that depend on the last id only: a Markov chain, so every probability is known."""

    def __init__(self, num: int = 5) -> None:
        self.table = 2.0 * mx.random.normal((num, num), key=mx.random.key(4))

    def rows(self, ids: Sequence[int]) -> Any:
        return self.table[mx.array(list(ids))]


@pytest.mark.parametrize("draft", [0, 1, 4])
def test_the_distribution_is_the_models(draft: int) -> None:
    """Chi-square: after any draft the next two tokens are distributed as the model says."""
    model, sampling = OneStepModel(), Sampling(temperature=0.9, top_p=1.0, seed=0)
    num, counts, accepted = 1200, Counter(), 0
    logits = model.rows([0, draft])
    for seed in range(num):
        sampler = Sampler(Sampling(temperature=0.9, top_p=1.0, seed=seed), 5)
        first, second = sampler.sample_ahead(logits, [draft])[0].tolist()
        if first != draft:  # the draft falls: the token that was drawn goes on
            sampler.accept([first])
            second = sampler.sample(model.rows([first])).item()
        accepted += first == draft
        counts[first, second] += 1
    probs = mx.softmax(model.table / sampling.temperature, axis=-1)
    pairs = [(a, b) for a in range(5) for b in range(5)]
    expected = {(a, b): num * (probs[0, a] * probs[a, b]).item() for a, b in pairs}
    cells = [(counts[key], want) for key, want in expected.items() if want >= 5]
    statistic = sum((got - want) ** 2 / want for got, want in cells)
    # Mean n - 1, variance 2 (n - 1): six standard deviations above.
    assert statistic < len(cells) - 1 + 6 * (2 * (len(cells) - 1)) ** 0.5
    share = probs[0, draft].item()
    assert abs(accepted / num - share) < 6 * (share * (1 - share) / num) ** 0.5


# -- lookup ----------------------------------------------------------------------------------------


@bounded(max_examples=150)
@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=40))
def test_lookup_expects_what_followed(before: list[int], after: list[int]) -> None:
    """A match is an earlier place that ends with the same ids, and its length is no boast."""
    lookup, text = PromptLookup(), list(before)
    lookup.begin(before, None)
    for token_id in [*after, 0]:
        expected = lookup.expects()
        if lookup.strength:
            assert lookup.strength >= NUM_IDS
            tail = text[-NUM_IDS:]
            places = [i for i in range(NUM_IDS, len(text)) if text[i - NUM_IDS : i] == tail]
            assert expected in {text[i] for i in places}
            drafts = lookup.draft(7)
            assert len(drafts) == 7
            assert drafts[0] == expected
        else:
            assert expected is None
            assert not lookup.draft(3)
        lookup.push(token_id)
        text.append(token_id)


def test_lookup_keeps_its_index_over_turns() -> None:
    """What a text shares with the last is not indexed again, and what is gone is not found."""
    lookup = PromptLookup()
    lookup.begin([1, 2, 3, 4, 5, 1, 2, 3], None)
    assert lookup.draft(2) == [4, 5]
    lookup.begin([1, 2, 3, 9, 9, 9, 4, 1, 2, 3], None)
    assert lookup.draft(3) == [9, 9, 9]
    lookup.begin([7, 8, 9], None)
    assert not lookup.strength
    lookup.begin([5, 6, 7, 5, 6, 7], None)
    assert lookup.draft(8) == [5, 6, 7] * 2 + [5, 6]


# -- the controller, on a clock of its own ---------------------------------------------------------


class Device:
    """A model and a clock: a pass takes `base_s`, and `each_s` for each token after the first."""

    def __init__(self, base_s: float, each_s: float) -> None:
        self.now, self.base_s, self.each_s = 0.0, base_s, each_s

    def forward(self, num: int) -> None:
        self.now += self.base_s + self.each_s * (num - 1)


def simulate(device: Device, text: Sequence[int], prompt: Sequence[int]) -> tuple[float, Any]:
    """Speculates over a given text; returns how many times as fast as plain steps it was."""
    lookup, controller = PromptLookup(), Controller()
    lookup.begin(prompt, None)
    controller.begin()
    place, start_s = 0, device.now
    while place < len(text):
        began = device.now
        num = controller.choose(lookup.strength, len(text) - place - 2)
        strength, expected = lookup.strength, lookup.expects()
        if expected is not None:
            controller.note_hits(strength, int(expected == text[place]), 1)
        lookup.push(text[place])
        drafts = lookup.draft(num) if num and lookup.strength else []
        if not drafts:
            device.forward(1)
            controller.note_plain(device.now - began)
            place += 1
            continue
        device.forward(1 + len(drafts))
        real = list(text[place + 1 : place + 1 + len(drafts)])
        hit = next((i for i, x in enumerate(drafts) if i >= len(real) or x != real[i]), len(drafts))
        controller.note_hits(strength, hit, min(hit + 1, len(drafts)))
        for token_id in real[:hit]:
            lookup.push(token_id)
        controller.note_pass(len(drafts), 1 + hit, device.now - began)
        place += 1 + hit
    return len(text) * device.base_s / (device.now - start_s), controller


@pytest.mark.parametrize("each", [0.0, 0.02, 0.1])
def test_copies_are_fast(each: float) -> None:
    """A text that stands in the prompt is decoded several times as fast."""
    dice = random.Random(1)
    prompt = [dice.randrange(1000) for _ in range(600)]
    speed, _ = simulate(Device(1.0, each), [*prompt[100:500]], prompt)
    assert speed > (3.5 if each == 0.1 else 5)


@pytest.mark.parametrize("each", [0.0, 0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("alphabet", [2, 3, 4, 8, 1000])
def test_text_with_nothing_to_copy_loses_next_to_nothing(alphabet: int, each: float) -> None:
    """However often chance repeats three ids, no more than 3 % are lost."""
    dice = random.Random(alphabet)
    prompt, text = ([dice.randrange(alphabet) for _ in range(400)] for _ in range(2))
    speed, _ = simulate(Device(1.0, each), text, prompt)
    assert speed >= 0.97


def test_a_device_on_which_passes_cost_what_they_give_is_left_alone() -> None:
    """Where a token more costs a step more, copies are hardly tried."""
    dice = random.Random(1)
    prompt = [dice.randrange(1000) for _ in range(600)]
    speed, controller = simulate(Device(1.0, 1.0), prompt[100:500], prompt)
    assert speed >= 0.97
    assert controller.choose(100, 100) == 0


# -- in a session ----------------------------------------------------------------------------------


def make_session(folder: Path, speculate: str, **options: Any) -> TinySession:
    """A session whose answers repeat themselves, so that lookup has something to find."""
    repeating = SamplingSettings(
        temperature=0.8, top_p=1.0, seed=4, logit_bias=tuple((i, 12.0) for i in range(40, 43))
    )
    defaults = {"sampling": repeating, "max_tokens": 60, "speculate": speculate}
    session = TinySession(folder, **{**defaults, **options})
    session.runner.foresight.lookup.controller = Always()
    return session


@pytest.mark.parametrize("stops", [False, True])
def test_turns_are_those_without(tmp_path: Path, *, stops: bool) -> None:
    """Texts, stop reasons and reuse over several turns are the same, and every turn verifies."""
    make_tiny_folder(tmp_path / "m")
    session = make_session(tmp_path / "m", "off")
    stop = (session.say("one").text[30:34],) if stops else ()
    session.close()
    told = {}
    for speculate in ("off", "auto"):
        session = make_session(tmp_path / "m", speculate, stop=stop)
        try:
            results = [session.say(text) for text in ("one", "two", "three")]
            told[speculate] = [(r.text, r.stop_reason, r.tokens, r.usage) for r in results]
            found = [r.to_json()["speculation"] for r in results]
        finally:
            session.close()
    assert told["auto"] == told["off"]
    assert all(f["kind"] == "lookup" for f in found)
    assert any(f["drafted"] >= f["accepted"] > 0 for f in found)
    assert ("stop_string" in {reason for _, reason, *_ in told["off"]}) == stops


def test_interrupted_answers_stay_exact(tmp_path: Path) -> None:
    """Ctrl-C while passes judge drafts: what was shown is kept, and the next turn verifies."""
    session = make_session(make_tiny_folder(tmp_path / "m"), "lookup", max_tokens=200)
    try:
        session.say("one")
        job = session.interrupted(lambda: session.send("two"), 12)
        assert job.result().stop_reason == "user_cancelled"
        check_turn(session, job.result())
        session.say("three")
    finally:
        session.close()


def test_a_cache_that_takes_nothing_back_is_left_alone(tmp_path: Path) -> None:
    """Recurrent states: no speculation, and why is told to those who asked for it."""
    cache = RecurrentModel().make_cache()
    model = make_model("full", tmp_path / "full")
    assert "cannot take tokens back" in speculation.explain_unfit(model, cache)
    session = make_session(make_tiny_folder(tmp_path / "m"), "lookup")
    try:
        session.runner.foresight.unfit = "this model's cache cannot take tokens back"
        assert session.runner.foresight.explain_off(session.options).startswith(
            "speculation is off: this model's"
        )
        assert session.say("one").speculation is None
    finally:
        session.close()
