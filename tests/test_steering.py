"""Steering: directions by their formulas, files, and a conversation whose cache stays honest."""

import json

import numpy as np
import pytest
from stored import ROOMY
from test_speculation import Always
from tiny import make_tiny_folder

from mlxchat import paths
from mlxchat.chat.options import ChatOptions, Steer
from mlxchat.chat.session import Session
from mlxchat.chat.steering import parse_steer
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.prompt_store import PromptStore
from mlxchat.errors import MlxchatError, UsageError
from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.chat.loading import load_runner  # noqa: E402
from mlxchat.chat.template import Message  # noqa: E402
from mlxchat.lens import steering_file as files  # noqa: E402
from mlxchat.lens.edits import Add  # noqa: E402
from mlxchat.lens.steering import SWEEP, make_vector  # noqa: E402
from mlxchat.lens.trace import trace  # noqa: E402
from mlxchat.lens.writing import write_tokens  # noqa: E402
from mlxchat.model.loader import load_model  # noqa: E402
from mlxchat.model.zoo_loading import load_zoo_model  # noqa: E402

POSITIVE = [[7, 8, 9 + i, 10] for i in range(6)]
NEGATIVE = [[7, 8, 9 + i, 20 + i, 30] for i in range(6)]
SYSTEM = "You are the keeper of a small museum by the sea. Answer in short sentences, and be kind."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def vector(loaded):
    return make_vector(loaded.model, POSITIVE, NEGATIVE)


def store(loaded, vector, name="odd"):
    return files.save_vector(
        vector,
        name=name,
        model="tiny",
        fingerprint=loaded.fingerprint,
        positive=["yes"],
        negative=["no"],
    )


def states(model, ids):
    """Returns resid_post of all layers at the last token, (L, D)."""
    seen = trace(model, ids, ["resid_post"], logits=False)
    return np.array(seen.stack("resid_post"))[:, -1]


def test_directions_equal_numpy(loaded, vector):
    """The mean difference and the first component equal NumPy's on the recorded states."""
    differences = np.stack(
        [
            states(loaded.model, a) - states(loaded.model, b)
            for a, b in zip(POSITIVE, NEGATIVE, strict=True)
        ]
    )
    np.testing.assert_allclose(np.array(vector.mean), differences.mean(0), atol=1e-4)
    for layer, facts in enumerate(vector.layers):
        one, mean = differences[:, layer], differences[:, layer].mean(0)
        _, scales, basis = np.linalg.svd(one)
        first = basis[0] * np.sign(basis[0] @ mean) * np.linalg.norm(mean)
        np.testing.assert_allclose(np.array(vector.pca)[layer], first, atol=1e-3)
        assert facts.norm == pytest.approx(np.linalg.norm(mean), rel=1e-4)
        assert facts.explained == pytest.approx(scales[0] ** 2 / (scales**2).sum(), rel=1e-3)
        others = [np.delete(one, i, 0).mean(0) @ one[i] > 0 for i in range(len(one))]
        assert facts.separation == pytest.approx(np.mean(others))
        along = one @ mean / np.linalg.norm(mean)
        assert facts.gap == pytest.approx(along.mean() / along.std(), rel=1e-3)
        cosine = mean @ first / np.linalg.norm(mean) / np.linalg.norm(first)
        assert facts.agreement == pytest.approx(cosine, abs=1e-4)


def test_effects_are_measured_on_pairs_kept_back(loaded, vector):
    """The effect at a layer equals a slow measurement on the fourth pair with the others' mean."""
    model, kept = loaded.model, 3

    def distributions(prompt, answer, edit):
        x = model.hidden(mx.array([[*prompt, *answer]]), model.make_cache(), edit)
        probs = mx.softmax(model.unembed(x)[0], axis=-1)
        return np.array(probs, np.float64)[-len(answer) - 1 :]

    def apart(p, q):
        m = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            halves = [np.nansum(np.where(a > 0, a * np.log(a / m), 0), -1) for a in (p, q)]
        return (halves[0] + halves[1]).mean() / 2

    answer = write_tokens(model, POSITIVE[kept], max_tokens=8)
    rows = [
        states(model, a) - states(model, b)
        for i, (a, b) in enumerate(zip(POSITIVE, NEGATIVE, strict=True))
        if i != kept
    ]
    mean = mx.array(np.mean(rows, axis=0))
    goal = distributions(POSITIVE[kept], answer, None)
    plain = distributions(NEGATIVE[kept], answer, None)
    assert vector.held_out
    for layer, facts in enumerate(vector.layers):
        steered = distributions(NEGATIVE[kept], answer, Add({layer: mean[layer]}))
        share = 1 - apart(steered, goal) / apart(plain, goal)
        assert facts.effect == pytest.approx(share, abs=2e-3)
    assert vector.layer == max(range(2), key=lambda at: vector.layers[at].effect)
    at_one = next(s for s in vector.sweep if s.coeff == 1)
    assert at_one.effect == pytest.approx(vector.layers[vector.layer].effect, abs=1e-4)
    assert [s.coeff for s in vector.sweep] == list(SWEEP)


def test_coefficient_zero_is_the_plain_model(loaded, vector):
    """Coefficient 0 changes nothing at all; a row of zeros gives bit-equal logits."""
    assert vector.taps(0.0) is None
    model, ids = loaded.model, mx.array([POSITIVE[0]])
    plain = model.forward(ids, model.make_cache())
    zero = model.forward(ids, model.make_cache(), Add({0: mx.zeros(16), 1: mx.zeros(16)}))
    assert mx.array_equal(plain, zero).item()
    other = model.forward(ids, model.make_cache(), vector.taps(1.0))
    assert mx.abs(plain - other).max().item() > 1e-3


def test_steered_chunks_equal_one_pass(loaded, vector):
    """A steered prefill in pieces, and token by token, gives the logits of one steered pass."""
    model, ids, taps = loaded.model, [5 + i for i in range(23)], vector.taps(0.7)
    whole = model.forward(mx.array([ids]), model.make_cache(), taps)
    for size in (1, 5):
        cache = model.make_cache()
        for start in range(0, len(ids), size):
            logits = model.forward(mx.array([ids[start : start + size]]), cache, taps)
        np.testing.assert_allclose(np.array(logits), np.array(whole), atol=1e-4)


def test_models_of_mlx_lm_are_steered_alike(folder, loaded, vector):
    """Through mlx-lm's own blocks the same vector is made, and it writes the same tokens."""
    zoo = load_zoo_model(folder, json.loads((folder / "config.json").read_text()))
    other = make_vector(zoo, POSITIVE, NEGATIVE)
    np.testing.assert_allclose(np.array(other.mean), np.array(vector.mean), atol=1e-3)
    effects = [[facts.effect for facts in v.layers] for v in (other, vector)]
    np.testing.assert_allclose(effects[0], effects[1], atol=1e-2)
    for coeff in (0.0, 1.5):
        written = [
            write_tokens(model, NEGATIVE[0], max_tokens=8, taps=vector.taps(coeff))
            for model in (zoo, loaded.model)
        ]
        assert written[0] == written[1]


def test_pairs_must_pair(loaded):
    """As many negative as positive prompts are needed, and layers that exist."""
    with pytest.raises(UsageError, match="2 positive and 1 negative"):
        make_vector(loaded.model, POSITIVE[:2], NEGATIVE[:1])
    with pytest.raises(UsageError, match="0 to 1"):
        make_vector(loaded.model, POSITIVE, NEGATIVE, layer=2)


def test_one_pair_is_enough(loaded):
    """A single pair gives a vector, whose separation nobody knows."""
    vector = make_vector(loaded.model, POSITIVE[:1], NEGATIVE[:1], layer=1)
    assert (vector.layer, vector.held_out) == (1, False)
    assert vector.layers[0].separation is None
    assert vector.layers[0].effect is None


def test_files(loaded, vector, mlxchat_home):
    """A stored vector comes back with its facts; its header is read without MLX."""
    path = store(loaded, vector)
    assert path.is_relative_to(mlxchat_home)
    info = files.find_vector("odd")
    assert (info.model, info.layer, info.num_pairs) == ("tiny", vector.layer, 6)
    back = files.load_vector(info, loaded.fingerprint, "tiny")
    assert (back.layers, back.sweep, back.held_out) == (vector.layers, vector.sweep, True)
    np.testing.assert_array_equal(np.array(back.mean), np.array(vector.mean))
    np.testing.assert_array_equal(np.array(back.pca), np.array(vector.pca))
    assert [i.name for i in files.list_vectors()] == ["odd"]


def test_files_that_are_refused(loaded, vector):
    """Another model's vector, a damaged file, a missing one and a bad name give one line each."""
    path = store(loaded, vector)
    info = files.find_vector("odd")
    with pytest.raises(UsageError, match="was made on tiny, not on other"):
        files.load_vector(info, "another fingerprint", "other")
    with pytest.raises(UsageError, match="there are odd"):
        files.find_vector("none")
    for name in ("../odd", "", ".hidden", "off", "a/b"):
        with pytest.raises(UsageError, match="is no name"):
            files.find_vector(name)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(MlxchatError, match="damaged"):
        files.find_vector("odd")
    assert files.list_vectors() == []


@pytest.mark.parametrize(
    ("text", "name", "coeff"),
    [("formal:0.6", "formal", 0.6), ("formal -2", "formal", -2), ("a.b:1e-1", "a.b", 0.1)],
)
def test_what_steers(text, name, coeff):
    """A name and a number, with a colon or a blank between."""
    assert parse_steer(text) == Steer(name, coeff)


@pytest.mark.parametrize(
    "text", ["formal", "formal:", ":1", "formal:x", "formal:nan", "formal:inf"]
)
def test_what_steers_nothing(text):
    """Anything else is refused."""
    with pytest.raises(UsageError, match=r"formal:0\.6"):
        parse_steer(text)


# -- in a conversation -----------------------------------------------------------------------------


@pytest.fixture
def start(folder, loaded, vector, monkeypatch):
    """Opens sessions over the tiny model, whose vector is stored, and closes them."""
    monkeypatch.setattr(
        "mlxchat.chat.prompt_keeping.PromptStore",
        lambda budget: PromptStore(paths.cache_dir() / "prompts", ROOMY),
    )
    store(loaded, vector)
    sessions = []

    def start(*steers, **options):
        defaults = {
            "sampling": SamplingSettings(temperature=0.0),
            "max_tokens": 8,
            "verify": True,
            "idle_work": False,
            "steering": tuple(steers),
        }
        sessions.append(Session(str(folder), ChatOptions(**{**defaults, **options})))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def say(session, text):
    """The answer to a message, proved by a from-scratch prefill."""
    result = session.send(text).result(60)
    assert result.verify.holds
    return result


TEXTS = ["When do you open?", "And on Sundays?", "Thank you, that is all."]
ODD = Steer("odd", 1.5)


def test_a_steered_conversation_is_exact(start):
    """With steering on every turn is proved, reuses what was read, and differs from the plain."""
    steered, plain = start(ODD), start()
    answers = [(say(steered, text), say(plain, text)) for text in TEXTS]
    assert all(a.cache.source == "live" for a, _ in answers[1:])
    assert any(a.tokens != b.tokens for a, b in answers)


def test_passes_that_judge_drafts_are_steered(start):
    """Speculation under steering gives the text that steering alone gives, and stays exact."""
    options = {"max_tokens": 40, "sampling": SamplingSettings(temperature=0.0)}
    steered, foreseen = start(ODD, **options), start(ODD, speculate="lookup", **options)
    foreseen.load().result()
    foreseen._runner.foresight.lookup.controller = Always()
    answers = [(say(steered, text), say(foreseen, text)) for text in TEXTS]
    assert all(a.tokens == b.tokens for a, b in answers)
    assert any(b.speculation.drafted for _, b in answers)


def test_steering_takes_effect_on_the_next_turn(start):
    """After a change the cache is empty, and the answer is that of a session steered all along."""
    session = start()
    say(session, TEXTS[0])
    session.set_steering((ODD,))
    second = say(session, TEXTS[1])
    assert second.usage.cached_tokens == 0
    assert "(/steer: nothing was cached)" in second.cache.reason
    session.undo(1)
    session.set_steering(())
    plain, fresh = say(session, TEXTS[1]), start()
    assert plain.usage.cached_tokens == 0
    say(fresh, TEXTS[0])
    assert plain.tokens == say(fresh, TEXTS[1]).tokens
    again = start(ODD)
    again.conversation = fresh.conversation
    again.undo(1)
    assert say(again, TEXTS[1]).tokens == second.tokens


def test_the_same_steering_keeps_the_cache(start):
    """Asking for what is in force already costs nothing."""
    session = start(ODD)
    say(session, TEXTS[0])
    session.set_steering((ODD,))
    assert say(session, TEXTS[1]).usage.cached_tokens > 0


def test_coefficient_zero_in_a_conversation(start):
    """Coefficient 0 gives the plain model's answers, and its stored prompts."""
    zero, plain = start(Steer("odd", 0.0)), start()
    assert [say(zero, t).tokens for t in TEXTS] == [say(plain, t).tokens for t in TEXTS]


def test_stored_prompts_are_of_one_steering(start):
    """A stored prompt serves only the steering that it was computed with."""
    options = {"system": SYSTEM, "idle_work": True}
    sources = []
    for steers in ((), (ODD,), (ODD,), (Steer("odd", 1.0),), ()):
        session = start(*steers, **options)
        sources.append(say(session, TEXTS[0]).cache.source)
        session.wait_until_idle()
        session.close()
    assert sources == ["none", "none", "disk", "none", "disk"]


def test_settling_in_idle_time_is_steered(start):
    """What idle time reads after a change is read with the new steering."""
    session = start(idle_work=True)
    say(session, TEXTS[0])
    session.set_steering((ODD,))
    session.wait_until_idle()
    steered = say(session, TEXTS[1])
    assert steered.usage.cached_tokens > 0
    assert (
        "(/steer: no keys and values were stored, the text was read again)" in steered.cache.reason
    )
    session.set_steering(())
    session.wait_until_idle()
    say(session, TEXTS[2])


def test_a_vector_of_another_model_is_refused(start, loaded, vector, tmp_path):
    """It changes nothing: the conversation goes on as before."""
    files.save_vector(
        vector, name="foreign", model="big", fingerprint="0", positive=[], negative=[]
    )
    session = start()
    first = say(session, TEXTS[0])
    with pytest.raises(UsageError, match="foreign was made on big"):
        session.set_steering((Steer("foreign", 1.0),))
    assert session.options.steering == ()
    assert say(session, TEXTS[1]).usage.cached_tokens > first.usage.prompt_tokens - 1


def test_another_model_under_steering_is_refused(start, tmp_path):
    """`/model` with a vector in force leaves the old model, steered, as it was."""
    session = start(ODD)
    say(session, TEXTS[0])
    other = make_tiny_folder(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="was made on tiny, not on"):
        session.switch_model(str(other)).result(60)
    assert session.options.steering == (ODD,)
    assert say(session, TEXTS[1]).usage.cached_tokens > 0
    session.set_steering(())
    session.switch_model(str(other)).result(60)
    say(session, TEXTS[1])


# -- the built-in model ----------------------------------------------------------------------------

MADE_OF = [
    *("what is prefill?", "what is the capital of France?", "how are you?", "who are you?"),
    *("what is a token?", "what is 3 plus 4?", "hello", "what is the opposite of hot?"),
]
HELD_OUT = [
    *("what is a KV cache?", "what is the capital of Japan?", "what is decode?"),
    *("good morning", "what is attention?", "what is the capital of Italy?"),
]


def test_a_style_direction_changes_style_on_held_out_prompts():
    """A direction to capitals, made from eight prompts, writes other answers in capitals."""
    options = ChatOptions(idle_work=False, keeps_history=False)
    runner, _ = load_runner(None, options, lambda event: None, lambda: None)
    model, tokenizer = runner.loaded.model, runner.tokenizer

    def ids(text, system=None):
        messages = [Message("system", system)] if system else []
        return list(runner.renderer.render_ids([*messages, Message("user", text)]).token_ids)

    def share_of_capitals(taps):
        letters = []
        for text in HELD_OUT:
            eos = tokenizer.eos_ids
            written = write_tokens(model, ids(text), max_tokens=12, eos_ids=eos, taps=taps)
            letters += [c for c in tokenizer.decode(written) if c.isalpha()]
        return sum(c.isupper() for c in letters) / len(letters)

    shouting = [ids(text, "Write in capitals.") for text in MADE_OF]
    vector = make_vector(model, shouting, [ids(text) for text in MADE_OF])
    strongest = max(vector.sweep, key=lambda s: s.effect)
    assert vector.held_out
    assert strongest.effect > 0.4
    assert share_of_capitals(None) < 0.15
    assert share_of_capitals(vector.taps(strongest.coeff)) > 0.5
