"""The encoder against a slow one in NumPy that is written from the paper's formulas."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bert import CONFIG, random_weights, write_encoder

from mlxchat.cli.main import cli
from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.bert_files import _FAMILIES, make_bert_config
from mlxchat.model.device import load_mlx
from mlxchat.model.families import ENCODERS, is_encoder

mx = load_mlx()

from mlxchat.model.embedder import load_embedder  # noqa: E402

IDS = [[2, 5, 6, 8, 9, 3], [2, 7, 3], [2, 11, 12, 13, 14, 15, 16, 17, 18, 3]]


def padded(rows):
    """Returns the ids padded on the right and which of them are tokens."""
    longest = max(map(len, rows))
    ids = np.array([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, np.array([[i < len(row) for i in range(longest)] for row in rows])


def layer_norm(x, weight, bias, eps):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias


def slow_bias(table, i, j):
    """Returns what MPNet adds for each head when token i looks at j: buckets as T5 has them."""
    half = len(table) // 2
    exact, far = half // 2, abs(j - i)
    if far >= exact:
        far = exact + int(math.log(far / exact) / math.log(128 / exact) * (half - exact))
    return table[min(far, half - 1) + (half if j > i else 0)]


def slow_states(config, weights, row, first_position=0, distances=None):
    """Returns the states (T, D) of one sequence after 0, 1, ... blocks, token by token."""
    w = {name: np.array(array, np.float64) for name, array in weights.items()}
    eps, n_heads = config["layer_norm_eps"], config["num_attention_heads"]
    head_dim = config["hidden_size"] // n_heads

    def norm(x, name):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return np.array([w[f"{name}.weight"] @ token + w[f"{name}.bias"] for token in x])

    x = np.array(
        [
            w["embeddings.word_embeddings.weight"][id_]
            + w["embeddings.position_embeddings.weight"][i + first_position]
            + w.get("embeddings.token_type_embeddings.weight", np.zeros((1, 1)))[0]
            for i, id_ in enumerate(row)
        ]
    )
    x = norm(x, "embeddings.LayerNorm")
    states = [x]
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q, k, v = (linear(x, f"{at}.attention.self.{n}") for n in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(n_heads):
            cut = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(len(row)):
                scores = np.array([q[i, cut] @ k[j, cut] for j in range(len(row))])
                scores = scores / math.sqrt(head_dim)
                if distances is not None:
                    scores += [slow_bias(distances, i, j)[head] for j in range(len(row))]
                shares = np.exp(scores)
                shares /= shares.sum()
                mixed[i, cut] = sum(share * v[j, cut] for j, share in enumerate(shares))
        x = norm(
            x + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{at}.intermediate.dense")
        inner = np.vectorize(lambda t: t * (1 + math.erf(t / math.sqrt(2))) / 2)(inner)
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        states.append(x)
    return states


def fast_states(folder, rows, layer=None):
    ids, is_token = padded(rows)
    model = load_embedder(folder).model
    return np.array(model.hidden(mx.array(ids), mx.array(is_token), layer))


@pytest.mark.parametrize("layer", [0, 1, 2, None])
def test_equals_the_slow_encoder(tmp_path, layer):
    """Every layer of a padded batch equals the slow encoder of each text alone, to 1e-5."""
    weights = random_weights(CONFIG)
    states = fast_states(write_encoder(tmp_path, weights=weights), IDS, layer)
    for row, seen in zip(IDS, states, strict=True):
        slow = slow_states(CONFIG, weights, row)[-1 if layer is None else layer]
        np.testing.assert_allclose(seen[: len(row)], slow, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta"])
def test_roberta_positions_begin_after_the_padding_id(tmp_path, kind):
    """Its first token has position `pad_token_id` + 1, so two positions fewer can be read."""
    config = CONFIG | {"model_type": kind, "pad_token_id": 1, "type_vocab_size": 1}
    weights = random_weights(config)
    named = {f"roberta.{name}": array for name, array in weights.items()}
    folder = write_encoder(tmp_path, config=config, weights=named)
    states = fast_states(folder, IDS)
    for row, seen in zip(IDS, states, strict=True):
        slow = slow_states(config, weights, row, first_position=2)[-1]
        np.testing.assert_allclose(seen[: len(row)], slow, atol=1e-5, rtol=0)
    assert load_embedder(folder).max_tokens == CONFIG["max_position_embeddings"] - 2


def write_distilbert(folder, weights):
    """Writes weights under DistilBERT's names, which has no kinds of text."""
    changes = {
        "encoder.layer": "transformer.layer",
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    config = {
        "model_type": "distilbert",
        **dict(zip(("dim", "hidden_dim", "n_layers", "n_heads"), (24, 40, 3, 4), strict=True)),
        "activation": "gelu",
        **{key: CONFIG[key] for key in ("vocab_size", "max_position_embeddings")},
    }
    named = {}
    for name, array in weights.items():
        for old, new in changes.items():
            name = name.replace(old, new)
        named["distilbert." + name] = array
    write_encoder(folder, weights=named)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_distilbert(tmp_path):
    """DistilBERT's names of config and weights are understood; it has no kinds of text."""
    weights = random_weights(CONFIG)
    del weights["embeddings.token_type_embeddings.weight"]
    states = fast_states(write_distilbert(tmp_path, weights), IDS)
    for row, seen in zip(IDS, states, strict=True):
        slow = slow_states(CONFIG, weights, row)[-1]
        np.testing.assert_allclose(seen[: len(row)], slow, atol=1e-5, rtol=0)


def test_mpnet(tmp_path):
    """MPNet adds a bias for the distance of two tokens, near and far, before and behind."""
    config = CONFIG | {"model_type": "mpnet", "relative_attention_num_buckets": 8}
    config |= {"pad_token_id": 1, "layer_norm_eps": 1e-5}
    weights = random_weights(config)
    del weights["embeddings.token_type_embeddings.weight"]
    table = mx.random.normal((8, 4), key=mx.random.key(7))
    named = {"encoder.relative_attention_bias.weight": table}
    for name, array in weights.items():
        for part in ("query", "key", "value"):
            name = name.replace(f"attention.self.{part}", f"attention.attn.{part[0]}")
        name = name.replace("attention.output.dense", "attention.attn.o")
        named[name.replace("attention.output.LayerNorm", "attention.LayerNorm")] = array
    long = [2, *range(5, 35), 3]
    states = fast_states(write_encoder(tmp_path, config=config, weights=named), [*IDS, long])
    for row, seen in zip([*IDS, long], states, strict=True):
        slow = slow_states(config, weights, row, 2, np.array(table, np.float64))[-1]
        np.testing.assert_allclose(seen[: len(row)], slow, atol=1e-5, rtol=0)


def test_names_of_older_checkpoints(tmp_path):
    """`bert.` before every name, and gamma and beta for LayerNorm, are understood."""
    weights = random_weights(CONFIG)
    old = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for n, array in weights.items()
    }
    new_folder = write_encoder(tmp_path / "new", weights=weights)
    old_folder = write_encoder(tmp_path / "old", weights=old)
    np.testing.assert_array_equal(fast_states(new_folder, IDS), fast_states(old_folder, IDS))


def test_quantised_weights(tmp_path):
    """4-bit matrices, as mlx conversions have them, become float32."""
    config = CONFIG | {"hidden_size": 64, "intermediate_size": 128}
    weights, packed = random_weights(config), {}
    for name, array in weights.items():
        path = name.removesuffix(".weight")
        if array.ndim == 2 and "position" not in name and "token_type" not in name:
            w, scales, biases = mx.quantize(array, group_size=32, bits=4)
            packed |= {name: w, f"{path}.scales": scales, f"{path}.biases": biases}
            weights[name] = mx.dequantize(w, scales, biases, group_size=32, bits=4)
        else:
            packed[name] = array
    quantized = config | {"quantization": {"group_size": 32, "bits": 4}}
    states = fast_states(write_encoder(tmp_path, config=quantized, weights=packed), IDS)
    for row, seen in zip(IDS, states, strict=True):
        slow = slow_states(config, weights, row)[-1]
        np.testing.assert_allclose(seen[: len(row)], slow, atol=2e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_other_activations(tmp_path, activation):
    """Each known activation gives other states than the exact GELU."""
    weights = random_weights(CONFIG)
    plain = fast_states(write_encoder(tmp_path / "a", weights=weights), IDS[:1])
    config = {"hidden_act": activation}
    other = fast_states(write_encoder(tmp_path / "b", config=config, weights=weights), IDS[:1])
    difference = np.abs(plain - other).max()
    assert (1e-6 if activation.startswith("gelu") else 1e-2) < difference


def test_pattern_rebuilds_attention(tmp_path):
    """Rows of a pattern sum to 1 over tokens alone, and the pattern gives the block's output."""
    model = load_embedder(write_encoder(tmp_path)).model
    ids, is_token = (mx.array(a) for a in padded(IDS))
    x = model.embed(ids)
    for layer in range(CONFIG["num_hidden_layers"]):
        pattern = model.pattern(layer, x, is_token)
        assert pattern.shape == (3, CONFIG["num_attention_heads"], 10, 10)
        np.testing.assert_allclose(np.array(pattern.sum(-1)), 1, atol=1e-6)
        assert mx.where(is_token[:, None, None, :], 0, pattern).max().item() == 0
        assert mx.abs(mx.triu(pattern[2, 0], 1)).max().item() > 0.01  # tokens see later ones
        rebuilt = model.finish(layer, x, model.mix(layer, x, pattern))
        x = model.block(layer, x, is_token)
        np.testing.assert_allclose(np.array(rebuilt), np.array(x), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"position_embedding_type": "relative_key"}, UnsupportedModelError, "positions"),
        ({"is_decoder": True}, UnsupportedModelError, "decoder"),
        ({"hidden_act": "swish_glu"}, UnsupportedModelError, "activation"),
        ({"num_attention_heads": 5}, CheckpointError, "multiple"),
        ({"hidden_size": None}, CheckpointError, "hidden_size"),
        ({"num_hidden_layers": 4}, CheckpointError, "encoder.layer.3"),
        ({"intermediate_size": 41}, CheckpointError, "has shape"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, change, error, says):
    """A config that is a variant, is broken, or does not fit the weights, is refused in words."""
    folder = write_encoder(tmp_path, weights=random_weights(CONFIG))
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(error, match=says):
        load_embedder(folder)


def test_families():
    """The BERT family is told by its model_type."""
    assert all(is_encoder({"model_type": kind}) for kind in ("bert", "mpnet", "distilbert"))
    assert not is_encoder({"model_type": "llama"})
    assert set(_FAMILIES) == ENCODERS
    assert make_bert_config(CONFIG).max_tokens == 48


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"])
def test_equals_transformers(tmp_path, kind):
    """A model saved by transformers gives transformers' states to 1e-5."""
    torch = pytest.importorskip(
        "torch", reason="transformers runs BERT on PyTorch, which mlxchat does not need"
    )
    import transformers

    torch.manual_seed(0)
    settings = {k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type")}
    if kind == "distilbert":
        settings |= {"dim": 24, "hidden_dim": 40, "n_layers": 3, "n_heads": 4}
        settings = {k: settings[k] for k in settings if not k.startswith(("num_", "hidden_", "in"))}
        settings["hidden_dim"] = 40
    elif kind != "bert":
        settings["pad_token_id"] = 1
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModel.from_config(config).eval()
    folder = write_encoder(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, safe_serialization=True)
    rows = [*IDS, [2, *range(5, 35), 3]]
    ids, is_token = padded(rows)
    ids = np.where(is_token, ids, config.pad_token_id)
    with torch.no_grad():
        theirs = model(torch.tensor(ids), attention_mask=torch.tensor(is_token).long())
    ours = fast_states(folder, rows)
    expected = theirs.last_hidden_state.numpy()
    np.testing.assert_allclose(ours[is_token], expected[is_token], atol=1e-5, rtol=0)


def test_inspect_attention_looks_both_ways(tmp_path, monkeypatch):
    """`inspect attention` shows an encoder's maps: rows sum to 1, later tokens are seen."""
    folder = str(write_encoder(tmp_path))
    page = tmp_path / "page.html"
    arguments = ["inspect", "attention", "the cat sat on the mat", "-m", folder]
    done = CliRunner().invoke(cli, [*arguments, "--json", "--html", str(page)])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["tokens"] == ["[CLS]", *["the", "cat", "sat", "on", "the", "mat"], "[SEP]"]
    assert len(facts["maps"]) == CONFIG["num_hidden_layers"] * CONFIG["num_attention_heads"]
    patterns = np.array([one["pattern"] for one in facts["maps"]])
    np.testing.assert_allclose(patterns.sum(-1), 1, atol=1e-5)
    assert np.triu(patterns[0], 1).sum() > 0.5
    assert "LayerNorm" in page.read_text()
    monkeypatch.setenv("COLUMNS", "100")
    shown = CliRunner().invoke(cli, [*arguments, "--word", "cat"]).stdout
    assert "all tokens, both ways" in shown
    assert "who looks at cat" in shown
    refused = CliRunner().invoke(cli, [*arguments, "--chat"])
    assert "an encoder has no chat template" in refused.stderr
    long = CliRunner().invoke(cli, [*arguments[:2], "cat " * 60, "-m", folder])
    assert "this model reads 1 to 48" in long.stderr
