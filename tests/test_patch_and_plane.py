"""Patchscope and planes against slow references."""

import json

import numpy as np
import pytest
from tiny import make_tiny_folder

from mlxchat.errors import UsageError
from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.lens import plane  # noqa: E402
from mlxchat.lens.edits import Replace  # noqa: E402
from mlxchat.lens.patchscope import Place, patch_states  # noqa: E402
from mlxchat.lens.trace import trace  # noqa: E402
from mlxchat.lens.writing import write_tokens  # noqa: E402
from mlxchat.model.loader import load_model  # noqa: E402
from mlxchat.model.zoo_loading import load_zoo_model  # noqa: E402

SOURCE, TARGET = [7, 30, 31, 40, 41], [9, 50, 51, 52]


@pytest.fixture(scope="module", params=["full", "window"])
def model(request, tmp_path_factory):
    folder = make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny", request.param)
    return load_model(folder).model


def test_a_state_onto_itself_changes_nothing(model):
    """The state of a token put back in its own place gives bit-equal logits and the same text."""
    for position in (0, 3, 4):
        plain, patched = patch_states(
            model, Place(SOURCE, position), Place(SOURCE, position), max_tokens=6
        )
        assert [p.token_ids for p in patched] == [plain.token_ids] * 2
        for layer in range(2):
            state = trace(model, SOURCE, ["resid_post"])["resid_post", layer][position]
            edited = trace(model, SOURCE, [], edits=Replace(layer, position, state))
            assert mx.array_equal(edited.logits, trace(model, SOURCE, []).logits).item()
        assert all(p.divergence == 0 for p in patched)


def slow_patched(model, layer, into):
    """Runs the blocks one by one and swaps the state by hand; returns the next token's odds."""
    state = trace(model, SOURCE, ["resid_post"])["resid_post", layer][3]
    cache, ids = model.make_cache(), mx.array([TARGET])
    x, step = model.embed(ids), model.begin(len(TARGET), cache)
    for index in range(2):
        x = model.block(index, x, step, cache)
        if index == into:
            x = mx.concatenate([x[:, :2], state[None, None], x[:, 3:]], axis=1)
    return np.array(mx.softmax(model.unembed(x)[0, -1]))


@pytest.mark.parametrize("into", [None, 0, 1])
def test_a_patch_equals_blocks_by_hand(model, into):
    """The first token's odds equal those of blocks run one by one with the state put in."""
    plain, patched = patch_states(
        model, Place(SOURCE, 3), Place(TARGET, 2), into=into, max_tokens=4, num_top=5
    )
    assert [p.layer for p in patched] == [0, 1]
    assert plain.token_ids == tuple(write_tokens(model, TARGET, max_tokens=4))
    for found in patched:
        place = found.layer if into is None else into
        odds = slow_patched(model, found.layer, place)
        assert (found.into, found.token_ids[0]) == (place, int(odds.argmax()))
        np.testing.assert_allclose([p for _, p in found.top], np.sort(odds)[::-1][:5], atol=1e-5)
        # After the last block a state is seen by its own token alone.
        assert (found.divergence > 1e-6) == (place == 0)


def test_what_is_written_after_a_patch(model):
    """The state is put in while the prompt is read; the tokens written after it see the change."""
    _, (first, *_) = patch_states(model, Place(SOURCE, 3), Place(TARGET, 2), max_tokens=5)
    state = trace(model, SOURCE, ["resid_post"])["resid_post", 0][3]
    ids = list(TARGET)
    for token in first.token_ids:
        logits = trace(model, ids, [], edits=Replace(0, 2, state)).logits
        assert token == int(mx.argmax(logits[-1]).item())
        ids.append(token)


def test_models_of_mlx_lm_are_patched_alike(tmp_path):
    """Through mlx-lm's blocks the same is written, and a state onto itself changes nothing."""
    folder = make_tiny_folder(tmp_path)
    native = load_model(folder).model
    zoo = load_zoo_model(folder, json.loads((folder / "config.json").read_text()))
    found = [
        patch_states(one, Place(SOURCE, 3), Place(TARGET, 2), max_tokens=5)[1]
        for one in (native, zoo)
    ]
    assert [p.token_ids for p in found[0]] == [p.token_ids for p in found[1]]
    plain, same = patch_states(zoo, Place(SOURCE, 3), Place(SOURCE, 3), max_tokens=5)
    assert {p.token_ids for p in same} == {plain.token_ids}
    assert all(p.divergence == 0 for p in same)


def test_layers_that_do_not_exist(model):
    """A layer beyond the model's is refused with what is allowed."""
    for more in ({"layers": [2]}, {"into": 2}, {"layers": [-1]}):
        with pytest.raises(UsageError, match="0 to 1"):
            patch_states(model, Place(SOURCE, 0), Place(TARGET, 0), **more)


def test_states_by_layer(model):
    """Row 0 is the embedding, the others are resid_post of each block, at the token asked for."""
    states = plane.read_states(model, [(SOURCE, 1), (TARGET, -1)])
    assert states.shape == (3, 2, 16)
    np.testing.assert_array_equal(
        np.array(states[0, 0]), np.array(model.embed(mx.array([SOURCE]))[0, 1])
    )
    seen = trace(model, TARGET, ["resid_post"])
    for layer in (0, 1):
        np.testing.assert_array_equal(
            np.array(states[layer + 1, 1]), np.array(seen["resid_post", layer][-1])
        )


RNG = np.random.default_rng(4)
DATA = RNG.normal(size=(23, 40)).astype(np.float32) * np.linspace(3, 0.1, 40, dtype=np.float32)


def test_components_equal_numpy():
    """The plane of principal components equals NumPy's but for signs, and so do the shares."""
    found = plane.map_components(mx.array(DATA), 3)
    centred = DATA - DATA.mean(0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * scales[:2]
    points = np.array(found.points)
    for axis in (0, 1):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(points[:, axis], sign * expected[:, axis], atol=1e-3)
    shares = scales**2 / (scales**2).sum()
    np.testing.assert_allclose(found.explained, shares[:2], rtol=1e-4)
    assert (found.layer, found.score) == (3, None)


def numpy_told(targets, data=DATA):
    """Tells each row by a ridge map in D dimensions that is made from the other folds."""
    told = np.zeros_like(targets)
    for start in range(10):
        fold = np.arange(start, len(data), 10)
        others = np.setdiff1d(np.arange(len(data)), fold)
        x, y = data[others].astype(np.float64), targets[others].astype(np.float64)
        centred = x - x.mean(0)
        weight = 0.1 * (centred**2).sum() / len(others)
        grams = centred.T @ centred + weight * np.eye(x.shape[1])
        matrix = np.linalg.solve(grams, centred.T @ (y - y.mean(0)))
        told[fold] = (data[fold] - x.mean(0)) @ matrix + y.mean(0)
    return told


def test_a_map_onto_coordinates_equals_numpy():
    """Held-out points and R squared equal those of a ridge regression written out in NumPy."""
    targets = DATA[:, :2] @ np.array([[1, 2], [-1, 0.5]]) + RNG.normal(size=(23, 2)) * 0.1
    targets = targets.astype(np.float32)
    found = plane.map_onto(mx.array(DATA), mx.array(targets), 0)
    told = numpy_told(targets)
    np.testing.assert_allclose(found.points, told, atol=1e-3)
    means = np.zeros_like(targets)
    for start in range(10):
        fold = np.arange(start, 23, 10)
        means[fold] = targets[np.setdiff1d(np.arange(23), fold)].mean(0)
    score = 1 - ((targets - told) ** 2).sum() / ((targets - means) ** 2).sum()
    assert found.score == pytest.approx(score, abs=1e-3)
    assert score > 0.5
    noise = plane.map_onto(mx.array(DATA), mx.array(RNG.normal(size=(23, 2)).astype("f4")), 0)
    assert noise.score < 0.3


def test_a_map_onto_labels_equals_numpy():
    """The share of labels told right on held-out words equals NumPy's."""
    labels = np.arange(23) % 4
    data = 0.3 * DATA + 3 * np.eye(40, dtype=np.float32)[labels + 20]
    found = plane.map_labels(mx.array(data), labels.tolist(), 0)
    told = numpy_told(np.eye(4, dtype=np.float32)[labels], data)
    assert found.score == pytest.approx((told.argmax(1) == labels).mean())
    assert found.score > 0.6


def test_folds():
    """Every word is held out exactly once; of a few words each is alone."""
    for num in (3, 10, 23):
        folds = plane.folds_of(num)
        assert sorted(i for fold in folds for i in fold) == list(range(num))
        assert len(folds) == min(num, 10)
