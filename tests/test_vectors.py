"""Pooling by its formulas, batches, likeness, shorter vectors, and what a model's files ask for."""

import json
import random

import numpy as np
import pytest
from tiny import make_tiny_folder
from tiny_bert import write_encoder

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlxchat.engine import vectors as v  # noqa: E402
from mlxchat.model import embedder as embedder_module  # noqa: E402
from mlxchat.model.embedder import load_embedder  # noqa: E402
from mlxchat.model.embedding_files import POOLINGS, read_embedding_files  # noqa: E402

LENGTHS = [3, 1, 5]


def by_formula(rows, pooling):
    """Pools the tokens (T, D) of one text."""
    return {
        "mean": rows.mean(0),
        "last": rows[-1],
        "first": rows[0],
        "max": rows.max(0),
        "mean+max": np.concatenate([rows.mean(0), rows.max(0)]),
    }[pooling]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_equals_the_formula(pooling):
    """Each way of pooling equals its formula over the tokens alone, whatever padding holds."""
    hidden = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32) - 2
    is_token = np.arange(6)[None] < np.array(LENGTHS)[:, None]
    hidden[~is_token] = 1000
    pooled = np.array(v.pool(mx.array(hidden), mx.array(is_token), pooling))
    expected = [by_formula(hidden[i, :n], pooling) for i, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(pooled, np.stack(expected), rtol=1e-6)


def write_decoder(folder, *, bare=True, pooling="lasttoken"):
    """Writes a decoder as Qwen3-Embedding is saved: no head, names without `model.`, an end token.

    Args:
        folder: Where.
        bare: Off leaves the names as a chat model has them.
        pooling: What 1_Pooling/config.json says; None writes none.
    """
    make_tiny_folder(folder, model_type="qwen3", head_dim=8)
    weights = dict(mx.load(str(folder / "model.safetensors")))
    weights.pop("lm_head.weight")
    if bare:
        weights = {name.removeprefix("model."): array for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    end = tokenizer["added_tokens"][0]
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": end["content"], "type_id": 0}},
    ]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [pieces[0], {"Sequence": {"id": "B", "type_id": 1}}, pieces[1]],
        "special_tokens": {
            end["content"]: {"id": end["content"], "ids": [end["id"]], "tokens": [end["content"]]}
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if pooling is not None:
        steps = [
            {"idx": 0, "name": "0", "path": "", "type": "st.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "st.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "st.models.Normalize"},
        ]
        (folder / "modules.json").write_text(json.dumps(steps))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({f"pooling_mode_{pooling}": True, "pooling_mode_mean_tokens": False})
        )
    return folder


KINDS = {"encoder": lambda folder: write_encoder(folder), "decoder": write_decoder}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_batched_equals_one_by_one(tmp_path, kind, pooling, monkeypatch):
    """The vectors of many texts of many lengths are those of each text alone, in order."""
    embedder = load_embedder(KINDS[kind](tmp_path / "model"))
    rng = random.Random(1)
    texts = [[rng.randrange(5, 60) for _ in range(rng.randrange(1, 40))] for _ in range(23)]
    monkeypatch.setattr(v, "MAX_BATCH", 5)
    together = np.array(v.embed_ids(embedder, texts, pooling=pooling))
    alone = [np.array(v.embed_ids(embedder, [text], pooling=pooling))[0] for text in texts]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_batches_are_small_enough():
    """A batch has no more texts and padded tokens than allowed, and none is forgotten."""
    texts = [[1] * n for n in (1, 2000, 3000, 9000, *[3] * 200)]
    order, batches = sorted(range(len(texts)), key=lambda i: len(texts[i])), []
    while order:
        batches.append(v._next_batch(texts, order))
        order = order[len(batches[-1]) :]
    assert sorted(i for batch in batches for i in batch) == list(range(len(texts)))
    for batch in batches:
        longest = max(len(texts[i]) for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= v.MAX_BATCH_TOKENS
        assert len(batch) <= v.MAX_BATCH


def test_decoder_vectors_are_the_models_own_states(tmp_path):
    """A headless decoder's last-token vector is its normed residual stream at the end token."""
    embedder = load_embedder(write_decoder(tmp_path / "model"))
    assert (embedder.pooling, embedder.files.normalize) == ("last", True)
    ids = embedder.tokenizer.encode("the cat", add_special_tokens=True)
    assert ids[-1] in embedder.tokenizer.eos_ids
    model = embedder.model.model
    whole = model.final_norm(model.hidden(mx.array([ids]), model.make_cache()))
    vector = v.embed_ids(embedder, [ids], pooling="last")
    np.testing.assert_allclose(np.array(vector), np.array(whole[:, -1]), atol=1e-5)
    after_one = v.embed_ids(embedder, [ids], pooling="last", layer=1)
    step_cache = model.make_cache()
    x = model.block(0, model.embed(mx.array([ids])), model.begin(len(ids), step_cache), step_cache)
    np.testing.assert_allclose(np.array(after_one), np.array(x[:, -1]), atol=1e-5)


def test_names_without_prefix_make_no_difference(tmp_path):
    """A decoder saved without `model.` before its names gives the vectors of the same weights."""
    ids = [[7, 8, 9, 10, 0]]
    folders = [write_decoder(tmp_path / str(bare), bare=bare) for bare in (True, False)]
    a, b = (v.embed_ids(load_embedder(f), ids, pooling="mean") for f in folders)
    np.testing.assert_array_equal(np.array(a), np.array(b))


def test_default_pooling(tmp_path):
    """Without files, a decoder whose tokenizer appends an end pools by it; all others by mean."""
    assert load_embedder(write_encoder(tmp_path / "a")).pooling == "mean"
    assert load_embedder(write_decoder(tmp_path / "b", pooling=None)).pooling == "last"
    assert load_embedder(make_tiny_folder(tmp_path / "c")).pooling == "mean"


@pytest.mark.parametrize(
    ("says", "pooling", "other"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first", None),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean", None),
        ({"pooling_mode_max_tokens": True}, "max", None),
        ({"pooling_mode_lasttoken": True}, "last", None),
        ({"pooling_mode": "cls"}, "first", None),
        ({"pooling_mode_weightedmean_tokens": True}, None, "weightedmean_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, None, "first+max"),
    ],
)
def test_pooling_of_the_files(tmp_path, says, pooling, other):
    """1_Pooling/config.json names the pooling; what is not known here is told, not guessed."""
    files = read_embedding_files(write_encoder(tmp_path, pooling=says), {})
    assert (files.pooling, files.other_pooling) == (pooling, other)


def test_what_the_files_say(tmp_path):
    """Normalisation, the longest text, prefixes and trained lengths are read."""
    about = {
        "prompts": {"query": "query: ", "passage": "passage: ", "odd": 3},
        "default_prompt_name": None,
    }
    pooling = {"pooling_mode_mean_tokens": True}
    folder = write_encoder(
        tmp_path, pooling=pooling, normalize=False, about=about, max_seq_length=16
    )
    files = read_embedding_files(folder, {"matryoshka_dimensions": [8, 16]})
    assert not files.normalize
    assert (files.query_prefix, files.prefix) == ("query: ", "passage: ")
    assert (files.max_tokens, files.trained_dims) == (16, (8, 16))
    assert load_embedder(folder).max_tokens == 16


def test_unknown_steps_and_broken_files(tmp_path):
    """A step after pooling that is not known is refused, and a broken file is named."""
    folder = write_encoder(tmp_path, pooling={"pooling_mode_mean_tokens": True})
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": "st.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="Dense"):
        load_embedder(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"modules\.json holds no JSON list"):
        load_embedder(folder)


def test_bidirectional_decoders_are_refused(tmp_path):
    """A decoder that was trained to look both ways would give wrong vectors."""
    folder = make_tiny_folder(tmp_path, use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match="both directions"):
        load_embedder(folder)


@pytest.mark.parametrize("metric", v.METRICS)
def test_likeness_equals_the_formula(metric):
    """Cosine, L2 distance and dot product equal NumPy's; ranking puts the nearest first."""
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(n, 7)).astype(np.float32) for n in (3, 5))
    unit_a, unit_b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    expected = {
        "cosine": unit_a @ unit_b.T,
        "dot": a @ b.T,
        "l2": np.linalg.norm(a[:, None] - b[None], axis=-1),
    }[metric]
    scores = np.array(v.similarity(mx.array(a), mx.array(b), metric))
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    order, ranked = v.rank(mx.array(a[0]), mx.array(b), metric)
    sign = 1 if metric == "l2" else -1
    assert order == list(np.argsort(sign * expected[0]))
    np.testing.assert_allclose(ranked, expected[0][order], atol=1e-5)


def test_length_one():
    """Normalised vectors have length 1, and zeros stay zeros."""
    vectors = v.normalize(mx.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(np.array(vectors), [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_truncation_loss_equals_brute_force():
    """The loss is the share of nearest neighbours that change, counted the slow way."""
    vectors = np.random.default_rng(3).normal(size=(40, 12)).astype(np.float32)

    def neighbours(x):
        found = []
        for i, row in enumerate(x):
            cosines = [row @ y / np.linalg.norm(row) / np.linalg.norm(y) for y in x]
            order = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosines[j])
            found.append(order[:5])
        return found

    whole, short = neighbours(vectors), neighbours(vectors[:, :4])
    loss = v.measure_truncation(mx.array(vectors), 4)
    assert (loss.num_texts, loss.k) == (40, 5)
    same = sum(a[0] == b[0] for a, b in zip(whole, short, strict=True)) / 40
    kept = sum(len(set(a) & set(b)) for a, b in zip(whole, short, strict=True)) / 200
    assert (loss.nearest_kept, loss.neighbours_kept) == (pytest.approx(same), pytest.approx(kept))
    assert 0 < same < 1
    assert v.measure_truncation(mx.array(vectors), 12).nearest_kept == 1
    assert v.measure_truncation(mx.array(vectors[:2]), 4) is None


def test_zoo_models_give_vectors(tmp_path, monkeypatch):
    """A decoder that runs through mlx-lm gives its normed last states, or those of a layer."""
    folder, ids = make_tiny_folder(tmp_path), [[7, 8, 9, 10, 11], [12, 13]]
    native = load_embedder(folder)
    monkeypatch.setattr(embedder_module, "is_native", lambda config: False)
    zoo = load_embedder(folder)
    assert zoo.model.model.__class__.__name__ == "ZooModel"
    assert (zoo.n_layers, zoo.n_dims) == (native.n_layers, native.n_dims)
    for layer in (None, 0, 1, 2):
        a, b = (v.embed_ids(e, ids, pooling="mean", layer=layer) for e in (native, zoo))
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-4)


def test_what_gives_no_vectors(tmp_path):
    """An architecture that nobody knows is refused with those that give vectors."""
    folder = write_encoder(tmp_path, config={"model_type": "modernbert"})
    with pytest.raises(UnsupportedModelError, match="modernbert gives no vectors here; BERT"):
        load_embedder(folder)
