"""The zoo against mlx-lm itself: every architecture, its own caches fed whole as the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from architectures import (
    ARCHITECTURES,
    LEFT_OUT,
    NEEDS_METAL,
    VOCAB_SIZE,
    make_config,
    make_model,
    write_folder,
)

from mlxchat.errors import CheckpointError, UnsupportedModelError
from mlxchat.model.device import make_device_plan
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.zoo import ZooModel
from mlxchat.model.zoo_float32 import convert_to_float32
from mlxchat.model.zoo_loading import load_zoo_model

LENGTH, FORK, PIN = 76, 50, 44  # the window of 16 and the chunk of 8 wrap several times
TOLERANCE = 1e-3
FLOAT32 = replace(make_device_plan(), float32=True, memory_bytes=2**30)
ONE_PER_KIND = [
    "qwen3",  # full
    "deepseek_v32",  # full, in lists
    "gpt_oss",  # window and full
    "plamo3",  # window one row wider
    "gemma3n",  # window, with layers that share keys and values
    "llama4",  # chunked
    "qwen3_next",  # recurrent and full
    "mamba2",  # recurrent
    "baichuan_m1",  # recurrent and window, in lists
    "deepseek_v41",  # opaque
]


def make_ids(seed: int, length: int = LENGTH, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Draw ids from a fixed key."""
    drawn = mx.random.randint(0, vocab_size, (length,), key=mx.random.key(seed))
    return [int(i) for i in drawn.tolist()]


def feed(
    model: ZooModel, cache: SequenceCache, ids: list[int], chunk: int | None = None
) -> mx.array:
    """Feed ids in chunks as the engine does and return the last logits (V,)."""
    chunk = chunk or len(ids)
    for start in range(0, len(ids), chunk):
        piece = mx.array([ids[start : start + chunk]])
        if start + chunk >= len(ids):
            logits = model.forward(piece, cache)
        else:
            model.prefill(piece, cache)
        mx.eval(cache.arrays())
    mx.eval(logits)
    return logits[0]


def oracle(model: ZooModel, ids: list[int]) -> mx.array:
    """Return the last logits of a whole prefill by mlx-lm alone."""
    from mlx_lm.models.cache import make_prompt_cache

    logits = model.model(mx.array([ids]), cache=make_prompt_cache(model.model))[0, -1]
    mx.eval(logits)
    return logits


def difference(left: mx.array, right: mx.array) -> float:
    """Return the largest absolute difference of two logits; ids masked in both count as equal."""
    same = left == right
    return float(mx.where(same, 0, mx.abs(left - right)).max().item())


def play(model: ZooModel, chunk: int) -> dict[str, float]:
    """Play the steps that a chat needs and return the difference from the oracle after each."""
    main, other = make_ids(1), make_ids(2)
    forked = main[:FORK] + other[: LENGTH - FORK]
    expected, expected_fork = oracle(model, main), oracle(model, forked)
    worst: dict[str, float] = {}

    cache = model.make_cache()
    feed(model, cache, main[:PIN], chunk)
    cache.pin(PIN)
    feed(model, cache, main[PIN:FORK], chunk)
    marks = cache.snapshot()
    worst["chunks"] = difference(feed(model, cache, main[FORK:], chunk), expected)
    assert cache.offsets() <= {LENGTH}

    assert cache.can_rewind(FORK) != bool(cache.kinds & {"recurrent", "opaque"})
    cache.restore(FORK, marks)  # rewinds every layer that can
    worst["rewind"] = difference(feed(model, cache, forked[FORK:], chunk), expected_fork)

    cache.pin(LENGTH)
    feed(model, cache, make_ids(3, 300), 64)  # long enough for the buffers to drop rows
    assert cache.can_rewind(FORK) == (cache.kinds == {"full"})
    cache.restore(FORK, marks)
    worst["restore"] = difference(feed(model, cache, forked[FORK:], chunk), expected_fork)

    exported = cache.export()
    assert exported is not None
    stored = model.make_cache()
    stored.load_export(
        {name: str(value) for name, value in exported[0].items()},
        {name: mx.array(value) for name, value in exported[1].items()},
    )
    tail = make_ids(4, 9)
    worst["export"] = difference(feed(model, stored, tail, chunk), feed(model, cache, tail, chunk))
    return worst


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_continues_exactly(name: str) -> None:
    """Chunks of 7, rewinds, restored marks and stored caches give the logits of a whole prefill."""
    model = ZooModel(make_model(name), make_config(name))
    assert model.make_cache().kinds == ARCHITECTURES[name].kinds
    worst = play(model, 7)
    assert max(worst.values()) <= TOLERANCE, worst
    changed = make_ids(1)
    changed[-4] = (changed[-4] + 1) % VOCAB_SIZE
    assert difference(oracle(model, make_ids(1)), oracle(model, changed)) > 10 * TOLERANCE


@pytest.mark.parametrize("chunk", [1, 64])
@pytest.mark.parametrize("name", ONE_PER_KIND)
def test_each_kind_continues_exactly_at_other_chunk_sizes(name: str, chunk: int) -> None:
    """One by one and in chunks longer than the window the logits are the same too."""
    worst = play(ZooModel(make_model(name), make_config(name)), chunk)
    assert max(worst.values()) <= TOLERANCE, worst


def test_the_table_names_every_architecture_of_mlx_lm() -> None:
    """Each module of mlx-lm has a config here or a reason; at least 95 have a config."""
    import mlx_lm.models

    folder = Path(mlx_lm.models.__file__).parent
    known = {path.stem for path in folder.glob("*.py") if "class Model(" in path.read_text()}
    covered = {name.partition("+")[0] for name in ARCHITECTURES} | NEEDS_METAL
    assert not known - covered - LEFT_OUT.keys()
    assert len(ARCHITECTURES) >= 95


def test_plamo3_needs_the_wider_window() -> None:
    """mlx-lm's own cache makes plamo3's chunks differ; once it does not, the quirk can go."""
    from mlx_lm.models.cache import make_prompt_cache

    model = ZooModel(make_model("plamo3"), make_config("plamo3"))
    ids, cache = make_ids(1), make_prompt_cache(model.model)
    for start in range(0, LENGTH, 7):
        logits = model.model(mx.array([ids[start : start + 7]]), cache=cache)[0, -1]
    assert difference(logits, oracle(model, ids)) > TOLERANCE


def test_batch_rows_do_not_mix() -> None:
    """Two sequences fed in step give each its own logits."""
    for name in ("qwen3", "gpt_oss", "qwen3_next"):
        model = ZooModel(make_model(name), make_config(name))
        both, cache = [make_ids(1, 40), make_ids(2, 40)], model.make_cache()
        model.prefill(mx.array([ids[:25] for ids in both]), cache)
        logits = model.forward(mx.array([ids[25:] for ids in both]), cache)
        for row, ids in zip(logits, both, strict=True):
            assert difference(row, oracle(model, ids)) <= TOLERANCE


def test_the_head_runs_on_one_position() -> None:
    """Neither a prefill chunk nor the last one holds logits of more than one position."""
    width, length = 20_000, 400
    changes = {"vocab_size": width}
    model = ZooModel(make_model("qwen3", **changes), {**make_config("qwen3"), **changes})
    cache = model.make_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    model.prefill(mx.array([make_ids(1, length)]), cache)
    mx.eval(cache.arrays())
    logits = model.forward(mx.array([make_ids(2, length)]), cache)
    mx.eval(logits)
    assert logits.shape == (1, width)
    assert mx.get_peak_memory() - before < length * width * 4 / 4


def test_dynamic_ntk_limits_the_context() -> None:
    """Past its limit such a rotation invalidates the cache, so the limit is the context's."""
    scaling = {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}
    changes = {"rope_scaling": scaling, "max_position_embeddings": 48}
    model = ZooModel(make_model("internlm3", **changes), {**make_config("internlm3"), **changes})
    assert model.info.max_context == 48
    assert "48 positions" in model.info.notices[0]
    assert ZooModel(make_model("llama"), make_config("llama")).info.notices == ()


def test_info_counts_what_is_there() -> None:
    """Layers, vocabulary, context and parameters come from the model itself."""
    model = ZooModel(make_model("gemma3n"), make_config("gemma3n"))
    info = model.info
    assert (info.family, info.n_layers, info.vocab_size) == ("gemma3n", 4, VOCAB_SIZE)
    assert info.max_context == 512
    assert info.weight_bytes == 4 * info.n_params
    assert len(model.make_cache().layers) == 2
    assert len(model.layers) == 4


def quantized(name: str, folder: Path, mode: str, bits: int, group_size: int) -> Path:
    """Write a bfloat16 checkpoint quantised by mlx-lm itself."""
    from mlx_lm.utils import quantize_model

    model = make_model(name)
    model.set_dtype(mx.bfloat16)
    model, config = quantize_model(
        model, make_config(name), group_size=group_size, bits=bits, mode=mode
    )
    return write_folder(name, folder, model, config)


@pytest.mark.parametrize(
    ("name", "mode", "bits", "group_size"),
    [
        ("llama", "affine", 4, 32),
        ("llama", "affine", 8, 32),
        ("gemma", "mxfp8", 8, 32),
        ("qwen3_moe", "affine", 4, 32),
        ("qwen3_moe", "mxfp4", 4, 32),
        ("deepseek_v3", "nvfp4", 4, 16),
    ],
)
def test_quantised_weights_become_float32(
    tmp_path: Path, name: str, mode: str, bits: int, group_size: int
) -> None:
    """On the CPU a quantised checkpoint gives mlx-lm's logits in float32, from plain layers."""
    from mlx_lm.utils import load_model

    folder = quantized(name, tmp_path / "model", mode, bits, group_size)
    config = json.loads((folder / "config.json").read_text())
    reference = load_model(folder)[0]
    packed = sum("scales" in module for _, module in reference.named_modules())
    reference.set_dtype(mx.float32)
    model = load_zoo_model(folder, config, plan=FLOAT32)
    assert packed > 3
    assert not any("scales" in module for _, module in model.model.named_modules())
    assert model.info.notices == ()
    assert model.info.n_params == ZooModel(make_model(name), make_config(name)).info.n_params
    logits = feed(model, model.make_cache(), make_ids(1))
    assert logits.dtype == mx.float32
    expected = oracle(ZooModel(reference, config), make_ids(1))
    assert difference(logits, expected) <= 1e-4


def test_experts_with_their_own_scale_become_float32() -> None:
    """An expert's own nvfp4 scale is part of its weight."""
    from mlx_lm.models.switch_layers import SwitchLinear

    original = SwitchLinear(64, 32, 3)
    original.weight *= mx.array([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    holder = nn.Sequential(original.to_quantized(16, 4, "nvfp4", global_scale=True))
    assert convert_to_float32(holder) == []
    plain = holder.layers[0]
    assert type(plain) is SwitchLinear
    for ours, exact in zip(plain.weight, original.weight, strict=True):
        # The 4-bit numbers 4 and 6 are a third apart at most.
        assert (mx.abs(ours - exact).max() / mx.abs(exact).max()).item() < 0.2


def test_layers_without_a_plain_form_stay_and_are_named() -> None:
    """A quantised class that nobody knows is kept as it is, and a notice names it."""

    class OddLinear(nn.QuantizedLinear):
        pass

    holder = nn.Sequential(OddLinear(64, 64), nn.QuantizedLinear(64, 64))
    assert convert_to_float32(holder) == ["Layers of kind OddLinear stay quantised."]
    assert [type(layer) for layer in holder.layers] == [OddLinear, nn.Linear]


def test_weights_stay_quantised_where_memory_is_short(tmp_path: Path) -> None:
    """Below the memory that float32 takes, the stored form is kept and a notice says so."""
    folder = quantized("llama", tmp_path, "affine", 4, 32)
    config = json.loads((folder / "config.json").read_text())
    model = load_zoo_model(folder, config, plan=replace(FLOAT32, memory_bytes=100_000))
    assert "stay as stored" in model.info.notices[0]
    assert isinstance(model.model.lm_head, nn.QuantizedLinear)
    assert model.info.n_params == ZooModel(make_model("llama"), make_config("llama")).info.n_params
    assert model.info.weight_bytes < 2 * model.info.n_params


@pytest.mark.skipif(
    mx.default_device().type != mx.DeviceType.cpu, reason="only the CPU wants float32"
)
def test_the_cpu_wants_float32(tmp_path: Path) -> None:
    """Without a word from the caller, weights become float32 on the CPU."""
    folder = quantized("llama", tmp_path, "affine", 4, 32)
    model = load_zoo_model(folder, json.loads((folder / "config.json").read_text()))
    assert model.info.weight_bytes == 4 * model.info.n_params


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    """Progress rises to the bytes of all weights."""
    calls: list[tuple[int, int]] = []
    folder = write_folder("llama", tmp_path)
    model = load_zoo_model(
        folder, make_config("llama"), progress=lambda done, total: calls.append((done, total))
    )
    assert calls == sorted(calls)
    assert calls[-1] == (model.info.weight_bytes,) * 2


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model_type": "martian"}, UnsupportedModelError, "'martian' is not among"),
        ({"model_type": "../llama"}, UnsupportedModelError, "is not among"),
        ({"model_type": "cache"}, UnsupportedModelError, "is not among"),
        ({"model_type": "olmo"}, UnsupportedModelError, "is not among"),
        ({"model_type": "phi3small"}, UnsupportedModelError, "is refused"),
        ({"model_type": None}, CheckpointError, "names no model_type"),
        ({"model_file": "model.py"}, UnsupportedModelError, "brings its own code"),
        ({"trust_remote_code": True}, UnsupportedModelError, "brings its own code"),
        ({"hidden_size": "wide"}, CheckpointError, "does not load as llama"),
        ({"num_hidden_layers": 3}, CheckpointError, "does not load as llama"),
        ({"intermediate_size": 128}, CheckpointError, "does not load as llama"),
    ],
)
def test_bad_configs_say_what_is_wrong(
    tmp_path: Path, capfd: Any, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    """A config that cannot work ends in one line that names the fault, and prints nothing."""
    config = {**make_config("llama"), **changes}
    write_folder("llama", tmp_path, config=config)
    with pytest.raises(error, match=says) as caught:
        load_zoo_model(tmp_path, config)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    assert capfd.readouterr().out == ""


def test_damaged_weights_say_so(tmp_path: Path) -> None:
    """Missing, empty, cut and foreign weight files are all reported in one line."""
    folder = write_folder("llama", tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 300):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="does not load as llama"):
            load_zoo_model(folder, make_config("llama"))
    file.unlink()
    with pytest.raises(CheckpointError, match="No safetensors"):
        load_zoo_model(folder, make_config("llama"))
