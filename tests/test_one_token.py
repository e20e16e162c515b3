"""One token by itself against the way of many, for every native family."""

from pathlib import Path
from typing import Any

import pytest
from test_parity import FAMILIES, SMALL, load, make_oracle, save

from mlxchat.model.device import DevicePlan, load_mlx

mx = load_mlx()

from mlxchat.engine.engine import KV_TOLERANCE_SHARE  # noqa: E402
from mlxchat.model import one_token  # noqa: E402
from mlxchat.model.batch_cache import Strand, stack  # noqa: E402
from mlxchat.model.kv_quantization import make_kv_plan  # noqa: E402
from mlxchat.model.linear import multiply_rows  # noqa: E402
from mlxchat.model.transformer import Transformer  # noqa: E402
from mlxchat.openblas import SmallProduct  # noqa: E402

IDS = mx.random.randint(0, 160, (1, 30), key=mx.random.key(5))


def make(folder: Path, name: str, **plan: Any) -> Transformer:
    config = {**SMALL, **FAMILIES[name]}
    save(make_oracle(config), config, folder)
    settings = {"transposes": False} | plan
    return load(folder, DevicePlan("cpu", "bundled", True, False, memory_bytes=2**33, **settings))


def assert_equal_steps(model: Transformer, make_cache: Any, tolerance: float) -> None:
    """Feeds a text's second half one by one, in both ways."""
    short, usual = make_cache(), make_cache()
    for cache in (short, usual):
        model.prefill(IDS[:, :9], cache)
    for i in range(9, IDS.shape[1]):
        got = model.forward(IDS[:, i : i + 1], short)
        want = model.forward_all(IDS[:, i : i + 1], usual)[:, -1]
        assert got.shape == want.shape
        assert mx.abs(got - want).max().item() <= tolerance * mx.abs(want).max().item()


@pytest.mark.parametrize("transposes", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_gives_the_logits_of_many_rows(name: str, transposes: bool, tmp_path: Path) -> None:
    """Both layouts of the weights, over full caches and windows; only a soft-cap is refused."""
    model = make(tmp_path, name, transposes=transposes)
    assert (model._one_token is None) == (model.config.attn_softcap is not None)
    assert_equal_steps(model, model.make_cache, 1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_decodes_rows_of_different_lengths(name: str, tmp_path: Path) -> None:
    """Padded rows of a batch too, past the end of a window."""
    model = make(tmp_path, name, small=SmallProduct(5000, 400))
    strands = []
    for length in (9, 4, 7):
        cache = model.make_cache()
        model.prefill(IDS[:, :length], cache)
        strands.append(Strand(cache, length))
    short, usual = stack(model.make_cache(), strands), stack(model.make_cache(), strands)
    for i in range(16):
        ids = mx.stack([IDS[0, i], IDS[0, i + 1], IDS[0, i + 2]])[:, None]
        got, want = model.forward(ids, short), model.forward_all(ids, usual)[:, -1]
        assert got.shape == want.shape
        assert mx.abs(got - want).max().item() <= 1e-5 * mx.abs(want).max().item()


@pytest.mark.parametrize("bits", [8, 4])
def test_it_reads_quantised_rows(bits: int, tmp_path: Path) -> None:
    """Keys and values may be quantised: rounding moves a value to the next step now and then."""
    model = make(tmp_path, "qwen3", small=SmallProduct(5000, 64))
    plan = make_kv_plan(model, bits)
    assert_equal_steps(model, lambda: plan.apply(model.make_cache()), KV_TOLERANCE_SHARE[bits])


class Watch:
    """Notes where it is asked, and doubles what the first block hands on."""

    def __init__(self, *points: Any) -> None:
        self.points = frozenset(points)
        self.seen: list[Any] = []

    def visit(self, point: Any, layer: int, value: Any) -> Any:
        self.seen.append((point, layer, value.shape))
        return value * 2 if (point, layer) == ("resid_post", 0) else value


def test_the_stream_can_be_watched_and_changed(tmp_path: Path) -> None:
    """It looks as on the other way, and what is put in its place has the same effect."""
    model = make(tmp_path, "qwen3")
    logits, seen = [], []
    for run in (model.forward, model.forward_all):
        cache, watch = model.make_cache(), Watch("resid_pre", "resid_post")
        model.prefill(IDS[:, :9], cache)
        logits.append(run(IDS[:, 9:10], cache, watch).reshape(-1))
        seen.append(watch.seen)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 6
    assert mx.abs(logits[0] - logits[1]).max().item() <= 1e-5
    cache = model.make_cache()
    model.prefill(IDS[:, :9], cache)
    assert mx.abs(model.forward(IDS[:, 9:10], cache)[0] - logits[0]).max().item() > 1e-2


def test_who_looks_inside_is_shown_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps inside a block go the way of many rows."""
    model = make(tmp_path, "qwen3")
    cache = model.make_cache()
    model.prefill(IDS[:, :9], cache)

    def refuse(*_: Any) -> None:
        raise AssertionError("nobody can look inside")

    monkeypatch.setattr(one_token.OneToken, "forward", refuse)
    watch = Watch("z")
    model.forward(IDS[:, 9:10], cache, watch)
    assert [layer for _, layer, _ in watch.seen] == [0, 1, 2]
    with pytest.raises(AssertionError):
        model.forward(IDS[:, 11:12], cache)


def test_it_takes_few_operations(tmp_path: Path) -> None:
    """Each costs its dispatch; SiLU of a larger model would be another seven more."""
    counts = []
    for forward in ("forward", "forward_all"):
        model = make(tmp_path, "qwen3")
        cache = model.make_cache()
        model.prefill(IDS[:, :9], cache)
        mx.eval(cache.arrays())
        logits = getattr(model, forward)(IDS[:, 9:10], cache)
        mx.export_to_dot(str(tmp_path / "graph.dot"), logits)
        counts.append((tmp_path / "graph.dot").read_text().count("shape=rectangle"))
    assert counts[1] - counts[0] > 10 * SMALL["num_hidden_layers"]


@pytest.mark.parametrize("num_rows", [1, 3, 8, 20])
@pytest.mark.parametrize("n_out", [16, 160, 161, 1031])
def test_parts_of_a_matrix_are_its_product(n_out: int, num_rows: int) -> None:
    """Whether the parts are even (160), leave a rest, or one holds all."""
    keys = mx.random.split(mx.random.key(n_out))
    x, weight = (
        mx.random.normal((num_rows, 48), key=keys[0]),
        mx.random.normal((n_out, 48), key=keys[1]),
    )
    got, want = multiply_rows(x, weight, SmallProduct(48 * 400, 300)), x @ weight.T
    assert got.shape == want.shape
    assert mx.allclose(got, want, atol=1e-4)
