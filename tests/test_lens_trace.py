"""The lens and the engine run the same blocks: what is recorded, replaced and added."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxchat.model.device import load_mlx, make_device_plan

mx = load_mlx()

from architectures import ARCHITECTURES, VOCAB_SIZE, make_config  # noqa: E402
from architectures import make_model as make_zoo_model  # noqa: E402
from test_parity import FAMILIES, SMALL, load, make_oracle, save  # noqa: E402

from mlxchat.engine.engine import HALF_TOLERANCE_SHARE, Engine  # noqa: E402
from mlxchat.engine.reuse_plan import Plan  # noqa: E402
from mlxchat.errors import ContextFullError, UnsupportedModelError, UsageError  # noqa: E402
from mlxchat.lens.edits import Add, Both, Replace  # noqa: E402
from mlxchat.lens.trace import Recorder, trace, unembed  # noqa: E402
from mlxchat.model.taps import BLOCK_POINTS  # noqa: E402
from mlxchat.model.zoo import ZooModel  # noqa: E402

IDS = [int(i) for i in mx.random.randint(0, 160, (21,), key=mx.random.key(3)).tolist()]
CLOSE = 1e-4  # of logits that span several units: rounding
ONE_STREAM = ["qwen3", "gpt_oss", "qwen3_next", "mamba2", "gptj", "olmo_hybrid", "deepseek_v32"]

# Whose layers pass several streams, run in loops, or are followed by more layers of another list.
MANY_STREAMS = {
    *("afm7", "deepseek_v41", "gemma3n", "gemma4", "gemma4_text", "hunyuan", "iquestloopcoder"),
    *("kimi_k3", "nanbeige", "rwkv7"),
}


def far(left: Any, right: Any) -> float:
    return float(mx.where(left == right, 0, mx.abs(left - right)).max().item())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_family("qwen3", tmp_path_factory.mktemp("qwen3"))


def make_family(name: str, folder: Path) -> Any:
    config = {**SMALL, **FAMILIES[name]}
    save(make_oracle(config), config, folder)
    return load(folder)


def engine_logits(model: Any, ids: list[int]) -> Any:
    """The last logits, as a turn gets them."""
    engine = Engine(model)
    plan = engine.prefix.plan(ids)
    assert isinstance(plan, Plan)
    engine.prefix.apply(plan)
    return engine.prefill(ids, plan)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recorded_run_equals_the_engine(name: str, tmp_path: Path) -> None:
    """Recording everything gives the engine's logits, and the parts of a block add up."""
    model = make_family(name, tmp_path)
    seen = trace(model, IDS, BLOCK_POINTS)
    assert far(seen.logits[-1], engine_logits(model, IDS)) <= CLOSE
    for layer in range(model.info.n_layers):
        mid = seen["resid_pre", layer] + seen["attn_out", layer]
        assert far(mid, seen["resid_mid", layer]) <= 1e-5
        assert far(mid + seen["mlp_out", layer], seen["resid_post", layer]) <= 1e-5
        pattern = seen["pattern", layer]
        assert far(pattern.sum(-1), mx.ones(pattern.shape[:2])) <= 1e-5
        assert far(pattern, mx.tril(pattern)) == 0


def test_watching_the_stream_leaves_the_fast_path_in_place(model: Any) -> None:
    """A recorder of the residual stream changes no bit of the engine's logits."""
    plain, taps = model.make_cache(), Recorder(["resid_pre", "resid_post"])
    watched = model.make_cache()
    ids = mx.array([IDS])
    assert far(model.forward(ids, plain), model.forward(ids, watched, taps)) == 0
    after = mx.array([[7]])
    assert far(model.forward(after, plain), model.forward(after, watched, Add({}))) == 0
    assert sorted(taps.seen) == [
        (p, layer) for p in ("resid_post", "resid_pre") for layer in range(3)
    ]


def test_without_taps_no_point_is_visited(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain pass hands nothing out: neither inside a block nor beside it."""

    def fail(*_: object) -> None:
        raise AssertionError("visited")

    monkeypatch.setattr(Recorder, "visit", fail)
    mx.eval(model.forward(mx.array([IDS]), model.make_cache()))
    with pytest.raises(AssertionError, match="visited"):
        trace(model, IDS)


def test_putting_a_state_onto_itself_changes_nothing(model: Any) -> None:
    """A replacement by what was there keeps the logits bit for bit; by another it moves them."""
    seen = trace(model, IDS)
    for layer in range(3):
        same = trace(model, IDS, edits=Replace(layer, 5, seen["resid_post", layer][5]))
        assert far(same.logits, seen.logits) == 0
        other = trace(model, IDS, edits=Replace(layer, 5, seen["resid_post", layer][9]))
        assert far(other.logits[:5], seen.logits[:5]) == 0
        assert far(other.logits[5], seen.logits[5]) > 0.1
        assert far(other["resid_post", layer][5], seen["resid_post", layer][9]) == 0


def test_a_replaced_position_counts_from_the_end_too(model: Any) -> None:
    """Position -1 is the last one."""
    row = mx.ones(64)
    last = trace(model, IDS, edits=Replace(1, -1, row)).logits
    assert far(last, trace(model, IDS, edits=Replace(1, len(IDS) - 1, row)).logits) == 0


def test_an_added_row_enters_at_every_position(model: Any) -> None:
    """resid_post grows by the row in its layer; a row of zeros changes no bit."""
    seen, row = trace(model, IDS), mx.linspace(-1, 1, 64)
    steered = trace(model, IDS, edits=Add({1: row}))
    assert far(steered["resid_post", 0], seen["resid_post", 0]) == 0
    assert far(steered["resid_post", 1], seen["resid_post", 1] + row) == 0
    assert far(steered.logits, seen.logits) > 0.1
    assert far(trace(model, IDS, edits=Add({1: 0 * row})).logits, seen.logits) == 0


def test_taps_follow_each_other(model: Any) -> None:
    """Both hands the changed stream on, and asks for the points of all."""
    row, recorder = mx.ones(64), Recorder(["resid_mid"])
    both = Both(Add({0: row}), None, Add({0: row}), recorder)
    assert both.points == {"resid_post", "resid_mid"}
    twice = trace(model, IDS, edits=both)
    assert far(twice.logits, trace(model, IDS, edits=Add({0: 2 * row})).logits) <= CLOSE
    assert len(recorder.seen) == 3


def test_a_part_can_be_recorded(model: Any) -> None:
    """Layers and positions narrow down what is kept."""
    seen = trace(model, IDS)
    some = trace(model, IDS, layers=[2], positions=slice(-4, None), logits=False)
    assert list(some.seen) == [("resid_post", 2)]
    assert far(some["resid_post", 2], seen["resid_post", 2][-4:]) == 0
    assert some.logits is None
    assert seen.stack("resid_post").shape == (3, len(IDS), 64)
    assert far(unembed(model, seen["resid_post", 2]), seen.logits) == 0


@pytest.mark.parametrize("name", ONE_STREAM)
def test_the_stream_of_a_zoo_model(name: str) -> None:
    """mlx-lm's models show the stream between layers; it ends in their own logits."""
    model = ZooModel(make_zoo_model(name), make_config(name))
    ids = [i % VOCAB_SIZE for i in IDS]
    expected = model.model(mx.array([ids]), cache=model.make_cache().raw)[0]
    seen = trace(model, ids, ["resid_pre", "resid_post"])
    assert far(seen.logits, expected) <= CLOSE
    assert far(seen["resid_pre", 0], model.embed(mx.array([ids]))[0]) == 0
    assert far(seen["resid_pre", 1], seen["resid_post", 0]) == 0
    assert far(model.forward(mx.array([ids]), model.make_cache(), Recorder(["resid_post"]))[0],
               expected[-1]) <= CLOSE  # fmt: skip
    row = seen["resid_post", 0][3]
    same = trace(model, ids, edits=Replace(0, 3, row))
    assert far(same.logits, seen.logits) == 0
    other = trace(model, ids, edits=Add({0: mx.linspace(-1, 1, row.size)}))
    assert far(other.logits, seen.logits) > 1e-3
    left = model.model(mx.array([ids]), cache=model.make_cache().raw)[0]
    assert far(left, expected) == 0  # the layers are back in their places


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_zoo_architecture_shows_its_stream_or_says_why(name: str) -> None:
    """Whatever mlx-lm knows is traced exactly, or refused in one line."""
    model = ZooModel(make_zoo_model(name), make_config(name))
    ids = [i % VOCAB_SIZE for i in IDS]
    expected = model.model(mx.array([ids]), cache=model.make_cache().raw)[0]
    reason = ""
    try:
        assert far(trace(model, ids).logits, expected) <= CLOSE
    except UnsupportedModelError as refusal:
        reason = str(refusal)
    assert not reason or "cannot be read: its " in reason
    assert bool(reason) == (name in MANY_STREAMS)


def test_what_cannot_be_read_is_said() -> None:
    """Points inside mlx-lm's blocks, empty texts and texts too long end in one line."""
    model = ZooModel(make_zoo_model("qwen3_moe"), make_config("qwen3_moe"))
    with pytest.raises(UnsupportedModelError, match="pattern of qwen3_moe cannot be read"):
        trace(model, IDS, ["pattern"])
    with pytest.raises(UsageError, match="no tokens"):
        trace(model, [])
    with pytest.raises(ContextFullError, match="513 tokens"):
        trace(model, [1] * 513)
    twisted = ZooModel(make_zoo_model("gemma3n"), make_config("gemma3n"))
    with pytest.raises(UnsupportedModelError, match="more than one stream"):
        trace(twisted, IDS)


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3_text"])
def test_the_kernels_of_a_gpu_are_watched_too(name: str, tmp_path: Path) -> None:
    """With the functions that a GPU runs, everything recorded leads to the same logits."""
    config = {**SMALL, **FAMILIES[name]}
    save(make_oracle(config), config, tmp_path)
    model = load(tmp_path, replace(make_device_plan(), fast_kernels=True, transposes=False))
    plain = trace(model, IDS, [])
    seen = trace(model, IDS, BLOCK_POINTS)
    assert far(seen.logits, plain.logits) <= CLOSE
    assert far(seen.logits[-1], engine_logits(model, IDS)) <= CLOSE


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_half_precision_keeps_its_maps_exact(name: str, tmp_path: Path) -> None:
    """In bfloat16 the rows of a map sum to 1 as in float32, and the logits stay close."""
    config = {**SMALL, **FAMILIES[name]}
    save(make_oracle(config, mx.bfloat16), config, tmp_path)
    model = load(tmp_path, replace(make_device_plan(), float32=False))
    seen = trace(model, IDS, ["pattern", "resid_post"])
    assert seen["resid_post", 0].dtype == mx.bfloat16
    rows = seen["pattern", 2].sum(-1)
    assert far(rows, mx.ones(rows.shape)) <= 1e-5
    wanted = trace(model, IDS, []).logits.astype(mx.float32)
    bound = HALF_TOLERANCE_SHARE * mx.abs(wanted).max().item()  # what `--verify` allows
    assert far(seen.logits.astype(mx.float32), wanted) <= bound


def test_the_end_of_a_text_is_read_alone(model: Any) -> None:
    """What comes before `start` is fed, edits included, but not recorded."""
    whole = trace(model, IDS, edits=Add({0: mx.linspace(-1, 1, 64)}))
    end = trace(model, IDS, edits=Add({0: mx.linspace(-1, 1, 64)}), start=15)
    for layer in range(3):
        assert far(end["resid_post", layer], whole["resid_post", layer][15:]) <= CLOSE
    assert far(end.logits, whole.logits[15:]) <= CLOSE
