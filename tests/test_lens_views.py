"""What the lens computes: against the model, slow references and checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mlxchat.model.device import load_mlx

mx = load_mlx()

import numpy as np  # noqa: E402
from test_parity import FAMILIES, SMALL, load, make_oracle, save  # noqa: E402
from tiny import make_tiny_folder  # noqa: E402

import mlxchat.model  # noqa: E402
from mlxchat.cli.words import find_token, find_word, spellings_of  # noqa: E402
from mlxchat.errors import UnsupportedModelError, UsageError  # noqa: E402
from mlxchat.lens.attention import read_attention, read_last_attention  # noqa: E402
from mlxchat.lens.context import compare_contexts  # noqa: E402
from mlxchat.lens.cost import (  # noqa: E402
    _feed,
    compute_cost,
    fit_rates,
    kv_itemsize,
    measure_rates,
    need_native,
)
from mlxchat.lens.embeddings import find_analogy, find_neighbours, make_table  # noqa: E402
from mlxchat.lens.logit_lens import read_lens  # noqa: E402
from mlxchat.lens.neurons import read_neurons, unit_columns  # noqa: E402
from mlxchat.lens.parameters import read_parameters  # noqa: E402
from mlxchat.lens.trace import trace  # noqa: E402
from mlxchat.lens.walk import walk  # noqa: E402
from mlxchat.model.bpe import replay_merges  # noqa: E402
from mlxchat.model.linear import apply_linear  # noqa: E402
from mlxchat.model.loader import load_model  # noqa: E402
from mlxchat.model.tables import input_table, output_table  # noqa: E402
from mlxchat.model.tokenizer import Tokenizer  # noqa: E402
from mlxchat.model.zoo import ZooModel  # noqa: E402

BUILTIN = Path(mlxchat.model.__file__).parent / "builtin"
IDS = [int(i) for i in mx.random.randint(0, 160, (19,), key=mx.random.key(4)).tolist()]
TEXTS = (
    "What is the capital of France?",
    "Unbelievable tokenisation in 北京, naïve café; 3.14159\n\n\tx",
    "  two  spaces and 👩‍👩‍👧 a family",
    "a<|im_end|>b",
)
# One of each kind of block: norms before, on both sides and after; soft-caps; windows; scales.
KINDS = ("llama", "qwen3", "gemma2", "gemma3_text", "granite", "olmo2", "llama-window")


@pytest.fixture(scope="module")
def builtin() -> Any:
    return load_model(BUILTIN)


@pytest.fixture(scope="module", params=KINDS)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    config = {**SMALL, **FAMILIES[request.param]}
    save(make_oracle(config), config, folder)
    return load(folder)


def array(values: Any) -> Any:
    return np.array(values, dtype=np.float64)


# -- logit lens, walk ------------------------------------------------------------------------------


def test_the_last_layer_of_the_lens_is_the_model(model: Any) -> None:
    """Top tokens, ranks and entropies of the last layer are those of the model's logits."""
    view = read_lens(model, IDS, top=160)
    logits = array(trace(model, IDS).logits)
    probs = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    assert view.final == tuple(logits.argmax(-1))
    for position, reading in enumerate(view.layers[-1]):
        assert reading.rank == 1
        for token, prob in reading.top:
            assert prob == pytest.approx(probs[position, token], abs=1e-5)
        assert [t for t, _ in reading.top[:1]] == [view.final[position]]
        p = probs[position]
        assert reading.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-3)


def test_ranks_count_the_likelier_tokens(model: Any) -> None:
    """In each layer the rank of the final token is that of a full sort."""
    view, seen = read_lens(model, IDS, top=3), trace(model, IDS)
    for layer in range(model.info.n_layers):
        logits = array(model.unembed(seen["resid_post", layer][None])[0])
        for position, reading in enumerate(view.layers[layer]):
            own = logits[position, view.final[position]]
            assert reading.rank == 1 + int((logits[position] > own).sum())
            assert len(reading.top) == 3


def test_some_positions_are_read_alone(model: Any) -> None:
    """The lens at chosen positions shows what the whole lens shows there."""
    whole, part = read_lens(model, IDS), read_lens(model, IDS, positions=[-1, 3])
    assert part.positions == (len(IDS) - 1, 3)
    for layer, some in zip(whole.layers, part.layers, strict=True):
        for reading, wanted in zip(some, (layer[-1], layer[3]), strict=True):
            assert [i for i, _ in reading.top] == [i for i, _ in wanted.top]
            assert reading.prob == pytest.approx(wanted.prob, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0])
def test_the_walk_ends_where_the_engine_does(model: Any, temperature: float) -> None:
    """The distribution at the end is the softmax of the engine's logits at the temperature."""
    seen = walk(model, IDS, temperature=temperature, top=160)
    logits = array(model.forward(mx.array([IDS]), model.make_cache())[0])
    if temperature:
        probs = np.exp(logits / temperature - np.logaddexp.reduce(logits / temperature))
    else:
        probs = (np.arange(160) == logits.argmax()).astype(float)
    assert len(seen.top) == 160
    for token, prob in seen.top:
        assert prob == pytest.approx(probs[token], abs=1e-5)
    assert sum(p for _, p in seen.top) == pytest.approx(1, abs=1e-4)


def test_the_walk_passes_every_part(model: Any) -> None:
    """Each block shows its fourteen parts with their shapes, and what it added."""
    seen = walk(model, IDS)
    shapes = {s.name: s.shape for s in seen.steps}
    c, size = model.config, len(IDS)
    assert shapes["embed"] == shapes["2.resid_post"] == (size, c.d_model)
    assert shapes["1.q"] == (c.n_heads, size, c.head_dim)
    assert shapes["1.k"] == shapes["1.v"] == (c.n_kv_heads, size, c.head_dim)
    assert shapes["0.pattern"] == (c.n_heads, size, size)
    assert shapes["0.mlp_act"] == (size, c.d_mlp)
    assert shapes["logits"] == (size, c.vocab_size)
    assert len([n for n in shapes if n.startswith("1.")]) == 14
    assert all(math.isfinite(s.norm) for s in seen.steps)
    assert len(seen.added) == c.n_layers
    rope = next(k.rope for k in c.layers if k.rope)
    assert seen.angles == tuple((size - 1) / p for p in rope.periods)


# -- attention, neurons ----------------------------------------------------------------------------


def test_maps_are_distributions_and_rebuild_the_block(model: Any) -> None:
    """Rows sum to 1, nothing looks ahead, and maps times values give what the block added."""
    view = read_attention(model, IDS)
    seen = trace(model, IDS, ["v", "attn_out"])
    for layer in range(model.info.n_layers):
        maps = array(view.maps[layer])
        assert np.abs(maps.sum(-1) - 1).max() <= 1e-5
        assert np.triu(maps, 1).max() == 0
        c, weights = model.config, model.weights.layers[layer]
        values = np.repeat(array(seen["v", layer]), c.n_heads // c.n_kv_heads, axis=0)
        mixed = (maps @ values).transpose(1, 0, 2).reshape(1, len(IDS), -1)
        out = apply_linear(weights.o, weights.after["o"], mx.array(mixed, mx.float32))
        if "post_attn_norm" in weights.after:
            out = model._norm(out, weights.after["post_attn_norm"])
        out = out * c.residual_scale
        assert mx.abs(out[0] - seen["attn_out", layer]).max().item() <= 1e-4


def test_what_is_told_of_maps(builtin: Any) -> None:
    """Sinks, means, pairs and looks are those of the maps."""
    view = read_attention(builtin.model, builtin.tokenizer.encode(TEXTS[0]))
    maps = array(view.maps)
    assert np.allclose(array(view.sinks()), maps[:, :, 1:, 0].mean(-1))
    assert np.allclose(array(view.mean()), maps.mean((0, 1)))
    assert np.allclose(array(view.mean(2)), maps[2].mean(0))
    assert np.allclose(array(view.looks_at([2, 3])), maps[:, :, :, 2:4].sum(-1).max(1))
    assert np.allclose(array(view.looks_from(5)), maps[:, :, 5].mean(1))
    for p in view.strongest(5):
        assert p.key not in (0, p.query)
        assert p.weight == maps[:, :, p.query, p.key].max() == maps[p.layer, p.head, p.query, p.key]


def test_the_last_look_alone(model: Any) -> None:
    """What the last token looks at is the last row of the maps, windows included."""
    last = array(read_last_attention(model, IDS))
    assert np.abs(last - array(read_attention(model, IDS).maps)[:, :, -1]).max() <= 1e-5


def test_units_are_those_of_the_block(model: Any) -> None:
    """Activations are the block's own, and all units together are what it added."""
    view = read_neurons(model, IDS, count=3)
    seen = trace(model, IDS, ["mlp_act", "mlp_out"])
    for layer in range(model.info.n_layers):
        acts = array(seen["mlp_act", layer])
        strongest = np.sort(np.abs(acts).max(0))[::-1][:3]
        for unit, size in zip(view.layers[layer], strongest, strict=True):
            assert abs(unit.activation) == pytest.approx(size)
            assert unit.activation == pytest.approx(acts[unit.position, unit.unit])
            assert unit.activations == pytest.approx(tuple(acts[:, unit.unit]))
        weights = model.weights.layers[layer]
        if "post_mlp_norm" not in weights.after:
            columns = array(unit_columns(model, layer, mx.arange(model.config.d_mlp)))
            assert np.abs(acts @ columns - array(seen["mlp_out", layer])).max() <= 1e-3


def test_units_at_one_position(model: Any) -> None:
    """Ranked at a position, the units are those most active there."""
    view = read_neurons(model, IDS, count=2, position=7)
    acts = np.abs(array(trace(model, IDS, ["mlp_act"])["mlp_act", 1])[7])
    assert [u.unit for u in view.layers[1]] == list(np.argsort(-acts)[:2])
    assert {u.position for u in view.layers[1]} == {7}


def test_zoo_models_say_what_they_cannot_show() -> None:
    """Inside mlx-lm's blocks nothing is seen; the lens and the walk between them work."""
    from architectures import make_config
    from architectures import make_model as make_zoo_model

    model = ZooModel(make_zoo_model("qwen3_moe"), make_config("qwen3_moe"))
    for read in (read_attention, read_neurons, read_last_attention):
        with pytest.raises(UnsupportedModelError, match="cannot be read"):
            read(model, IDS)
    with pytest.raises(UnsupportedModelError, match="not counted"):
        need_native(model)
    expected = model.model(mx.array([IDS]), cache=model.make_cache().raw)[0, -1]
    seen = walk(model, IDS, top=1)
    assert seen.top[0][0] == mx.argmax(expected).item()
    assert seen.added == ()
    assert read_lens(model, IDS).final[-1] == seen.top[0][0]
    table = input_table(model)
    assert table.shape == (160, 64)
    assert mx.array_equal(table[mx.array(IDS)], model.embed(mx.array([IDS]))[0])
    head = output_table(model)
    assert head is not None
    assert head.shape == (160, 64)


# -- the embedding table ---------------------------------------------------------------------------


def test_tables_are_the_checkpoint(tmp_path: Path) -> None:
    """Input and output tables are the stored rows; a tied head is no table of its own."""
    folder = make_tiny_folder(tmp_path / "tiny")
    stored = mx.load(str(folder / "model.safetensors"))
    model = load_model(folder).model
    assert mx.array_equal(input_table(model), stored["model.embed_tokens.weight"])
    assert mx.array_equal(output_table(model), stored["lm_head.weight"])
    assert output_table(load_model(BUILTIN).model) is None


def test_neighbours_and_analogies_equal_brute_force(builtin: Any) -> None:
    """The nearest rows are those of a full sort with numpy."""
    table = make_table(input_table(builtin.model), builtin.tokenizer.vocab_size)
    rows = array(table.rows)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    paris, france, norway = (find_token(builtin.tokenizer, w)[0] for w in PLACES)
    for metric, scores in (("cosine", units @ units[paris]), ("dot", rows @ rows[paris])):
        scores[paris] = -np.inf
        found = find_neighbours(table, paris, metric=metric)  # type: ignore[arg-type]
        assert [i for i, _ in found] == list(np.argsort(-scores)[:10])
        assert [s for _, s in found] == pytest.approx(sorted(scores)[::-1][:10], abs=1e-4)
    wanted = units[paris] - units[france] + units[norway]
    scores = units @ (wanted / np.linalg.norm(wanted))
    scores[[paris, france, norway]] = -np.inf
    found = find_analogy(table, paris, france, norway)
    assert [i for i, _ in found] == list(np.argsort(-scores)[:10])
    assert builtin.tokenizer.token_text(found[0][0]) == " Oslo"


PLACES = ("Paris", "France", "Norway")


# -- one word in many texts ------------------------------------------------------------------------


def test_a_word_is_equal_at_layer_0_and_then_apart(model: Any) -> None:
    """Layer 0 is 1 to 1e-6, from bit-equal rows; the curves are those of a slow reference."""
    texts = [[5, 9, 77, 3], [8, 8, 12, 77], [5, 9, 77, 3, 4]]
    places = [2, 3, 2]
    view = compare_contexts(model, texts, places)
    assert view.pairs == ((0, 1), (0, 2), (1, 2))
    rows = []
    for ids, place in zip(texts, places, strict=True):
        seen = trace(model, ids, ["resid_pre", "resid_post"])
        layers = [seen["resid_pre", 0], *(seen["resid_post", n] for n in range(3))]
        rows.append([layer[place] for layer in layers])
    assert mx.array_equal(rows[0][0], rows[1][0])
    assert view.layers[0] == pytest.approx([1, 1, 1], abs=1e-6)
    for layer, cosines in enumerate(view.layers):
        for (a, b), cosine in zip(view.pairs, cosines, strict=True):
            x, y = array(rows[a][layer]), array(rows[b][layer])
            slow = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            assert cosine == pytest.approx(slow, abs=1e-6)
    assert view.layers[-1][0] < 0.999
    assert view.layers[-1][1] == pytest.approx(1, abs=1e-5)  # what follows changes nothing


def test_another_token_is_no_context(model: Any) -> None:
    """Two tokens that are not the same are refused."""
    with pytest.raises(UsageError, match="not the same token"):
        compare_contexts(model, [[1, 2], [1, 3]], [1, 1])


# -- words -----------------------------------------------------------------------------------------


def test_words_are_found(builtin: Any) -> None:
    """A word is found whole, at its last place, with all its tokens; what is not there is said."""
    t = builtin.tokenizer
    ids = t.encode("a capital of capitals is the capital, 北京 too")
    assert [t.token_text(ids[p]) for p in find_word(t, ids, "capital")] == [" capital"]
    assert find_word(t, ids, "capital")[0] == ids.index(t.encode("capital")[0], 4)
    chinese = find_word(t, ids, "北京")
    assert t.decode([ids[p] for p in chinese]).strip() == "北京"
    assert [t.token_text(ids[p]) for p in find_word(t, ids, "capitals")] == [" capital", "s"]
    with pytest.raises(UsageError, match="no 'Oslo'"):
        find_word(t, ids, "Oslo")


def test_a_word_stands_for_one_token(builtin: Any) -> None:
    """A word is its token inside a text; of several tokens the last one, with a note."""
    t = builtin.tokenizer
    assert find_token(t, "Paris") == (t.encode(" Paris")[0], "")
    token, note = find_token(t, "unbelievable")
    assert t.token_text(token) == "able"
    assert "5 tokens" in note
    spelled = {t.token_text(i).strip().lower() for i in spellings_of(t, [t.encode("the")[0]])}
    assert spelled == {"the"}


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_merges_replay_to_the_pieces(builtin: Any, tmp_path: Path, text: str) -> None:
    """Replaying the merges gives exactly the tokens; the bytes join to the text."""
    tiny = Tokenizer.load(make_tiny_folder(tmp_path / "tiny"))
    for tokenizer in (builtin.tokenizer, tiny):
        merging, ids = replay_merges(tokenizer, text), tokenizer.encode(text)
        pieces = [piece for word in merging.pieces for piece in word]
        assert pieces == [tokenizer.spelling(i) for i in ids]
        symbols = [list(word) for word in merging.words]
        for merge in merging.merges:
            word = symbols[merge.word]
            assert word[merge.position : merge.position + 2] == [merge.left, merge.right]
            word[merge.position : merge.position + 2] = [merge.left + merge.right]
        assert [tuple(word) for word in symbols] == list(merging.pieces)
        whole = b"".join(tokenizer.token_bytes(i) for i in ids).decode()
        assert whole.strip(" ") == tokenizer.decode(ids, skip_special_tokens=False).strip(" ")


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_sum_to_the_checkpoint(tmp_path: Path, tied: bool) -> None:
    """Bytes are the file's, parameters the model's; tied rows count once."""
    folder = make_tiny_folder(tmp_path / "tiny", tie_word_embeddings=tied)
    view, info = read_parameters(folder), load_model(folder).model.info
    stored = mx.load(str(folder / "model.safetensors"))
    assert {t.name: t.shape for t in view.tensors} == {n: a.shape for n, a in stored.items()}
    assert view.total_bytes == sum(a.nbytes for a in stored.values())
    assert view.total_params == info.n_params == sum(a.size for a in stored.values())
    assert view.is_tied == tied
    assert view.group("head")[1] == (0 if tied else 300 * 16)
    assert view.group("embedding")[1] == 300 * 16


def test_parameters_of_a_quantised_checkpoint() -> None:
    """Packed weights count unpacked, scales not at all; every byte is counted."""
    view = read_parameters(BUILTIN)
    stored = mx.load(str(BUILTIN / "model.safetensors"))
    assert view.total_bytes == sum(a.nbytes for a in stored.values())
    assert view.total_params == load_model(BUILTIN).model.info.n_params
    assert {t.bits for t in view.tensors if t.dtype == "U32"} == {8}


def test_a_tied_head_that_is_stored_counts_once(tmp_path: Path) -> None:
    """Some checkpoints store the embedding twice; it is one."""
    folder = make_tiny_folder(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    view = read_parameters(folder)
    assert view.is_tied
    assert view.group("head") == (1, 0, 300 * 16 * 4)


# -- cost ------------------------------------------------------------------------------------------


def test_costs_are_the_closed_forms(builtin: Any) -> None:
    """Operations and bytes are what one counts by hand for the built-in model."""
    config, n = builtin.model.config, 1000
    cost = compute_cost(config, n, 2)
    d, heads, width, kv, mlp, layers = 256, 8, 32, 2, 640, 6
    assert cost.attention == layers * 4 * n * n * heads * width
    assert cost.feed_forward == layers * 2 * n * 3 * d * mlp
    weights = d * heads * width + 2 * d * kv * width + heads * width * d
    assert cost.projections == layers * 2 * n * weights
    assert cost.head == 2 * d * config.vocab_size
    assert cost.kv_bytes == layers * 2 * kv * width * n * 2
    assert compute_cost(config, 2 * n, 2).attention == 4 * cost.attention
    assert cost.total == cost.attention + cost.feed_forward + cost.projections + cost.head


def test_kv_bytes_are_those_of_the_cache(model: Any) -> None:
    """The closed form is what the cache's rows take, and windows bound both."""
    cache = model.make_cache()
    model.prefill(mx.array([IDS + IDS]), cache)
    mx.eval(cache.arrays())
    size = kv_itemsize(model)
    exported = cache.export()
    assert exported is not None
    held = sum(a.nbytes for a in exported[1].values())
    cost = compute_cost(model.config, 2 * len(IDS), size)
    # A window's last row is the one that is being read.
    windows = sum(kind.window is not None for kind in model.config.layers)
    row = 2 * model.config.n_kv_heads * model.config.head_dim * size
    assert held == cost.kv_bytes - windows * row


def test_rates_explain_what_was_measured(builtin: Any) -> None:
    """From times that two rates made, exactly these rates are found; noise gives no negative."""
    costs = [compute_cost(builtin.model.config, n, 4) for n in (64, 256, 1024)]
    times = [2e-11 * (c.linear + c.head) + 7e-11 * c.attention for c in costs]
    rates = fit_rates(costs, times, [(100, 0.01), (300, 0.03)])
    assert rates.linear_s == pytest.approx(2e-11)
    assert rates.attention_s == pytest.approx(7e-11)
    assert rates.decode_s == pytest.approx(0, abs=1e-12)
    assert rates.decode_byte_s == pytest.approx(1e-4)
    longer = compute_cost(builtin.model.config, 50_000, 4)
    wanted = 2e-11 * (longer.linear + longer.head) + 7e-11 * longer.attention
    assert rates.prefill_s(longer) == pytest.approx(wanted)
    odd = fit_rates(costs, [0.1, 0.11, 0.12], [(1, 0.1), (2, 0.1)])
    assert odd.linear_s > 0
    assert odd.attention_s >= 0


def test_rates_are_measured_on_the_model(tmp_path: Path) -> None:
    """Measuring feeds real prefills and decodes; the clock is what the times come from."""
    model = load_model(make_tiny_folder(tmp_path / "tiny", max_position_embeddings=2048)).model
    ticks = iter(range(100_000))
    rates = measure_rates(model, clock=lambda: float(next(ticks)) / 10)  # type: ignore[arg-type]
    assert [n for n, _ in rates.measured] == [64, 256, 512, 1024]
    assert {round(s, 6) for _, s in rates.measured} == {0.1}
    assert rates.decode_s == pytest.approx(0.1)
    slow = measure_rates(model, clock=lambda: float(next(ticks)))  # type: ignore[arg-type]
    assert [n for n, _ in slow.measured] == [64]  # 256 would take more than a person waits
    assert slow.linear_s == slow.attention_s > 0


def test_the_estimate_is_near_what_a_machine_takes(
    builtin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of known habits a longer prefill is estimated within 30 %.

    Its clock counts what is fed: each pass costs a start, each product its time, and attention
    skips what the mask hides, in blocks.
    """
    now = [0.0]
    model, config = builtin.model, builtin.model.config

    def feed(token_ids: Any, cache: Any, *_: Any) -> Any:
        new, held = token_ids.shape[1], cache.offset
        cache.offset += new
        one = compute_cost(config, new, 4)
        blocks = sum(min(64, new - b) * (held + b + 64) for b in range(0, new, 64))
        attention = blocks * 4 * config.n_layers * config.n_heads * config.head_dim
        now[0] += 4e-4 + (one.linear + one.head) / 80e9 + attention / 30e9
        return mx.zeros((1, config.vocab_size))

    class Held:
        offset = 0

        def reserve(self, total: int) -> None: ...

        def arrays(self) -> list[Any]:
            return []

    monkeypatch.setattr(model, "forward", feed)
    monkeypatch.setattr(model, "make_cache", Held)
    rates = measure_rates(model, clock=lambda: now[0])
    for length in (300, 700, 1500, 2000):
        cost, before = compute_cost(config, length, 4), now[0]
        _feed(model, length, Held())  # type: ignore[arg-type]
        assert rates.prefill_s(cost) == pytest.approx(now[0] - before, rel=0.3)
