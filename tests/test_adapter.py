"""LoRA, DoRA and full adapters against mlx-lm, which has loaded the same ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from adapters import write_adapter, write_peft
from architectures import make_config, make_model, write_folder
from test_parity import FAMILIES, SMALL, check, make_oracle, save
from tiny import make_tiny_folder

from mlxchat.errors import CheckpointError
from mlxchat.model.adapter import Adapter
from mlxchat.model.checkpoint import Checkpoint, read_config
from mlxchat.model.device import DevicePlan, load_mlx, make_device_plan
from mlxchat.model.loader import load_model, load_native
from mlxchat.model.quantization import read_quantization
from mlxchat.model.tables import output_table
from mlxchat.model.transformer import Transformer
from mlxchat.model.zoo import ZooModel
from mlxchat.model.zoo_loading import load_zoo_model

mx = load_mlx()

KEPT = DevicePlan("cpu", "bundled", False, False, "row", 2**33)  # nothing becomes float32
QKV_ALONE = ["self_attn.q_proj", "self_attn.v_proj"]


def load(folder: Path, adapter: Path | None, plan: DevicePlan | None = None) -> Transformer:
    config = read_config(folder)
    return load_native(
        config,
        Checkpoint.open(folder),
        read_quantization(config),
        lambda *_: None,
        plan,
        adapter=None if adapter is None else Adapter.open(adapter),
    )


def reload_oracle(folder: Path, adapter: Path) -> Any:
    """The same folder and adapter through mlx-lm itself, then float32 as in `test_parity`."""
    from mlx.utils import tree_map
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    model = load_adapters(load_theirs(folder)[0], str(adapter))
    model.eval()
    widen = lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a  # noqa: E731
    model.update(tree_map(widen, model.parameters()))
    return model


def make(tmp_path: Path, name: str, bits: int | None = None, **adapter: Any) -> tuple[Path, Path]:
    """Writes a random model, perhaps quantised, and an adapter for it."""
    from mlx_lm.utils import quantize_model

    config = {**SMALL, **FAMILIES[name]}
    model = make_oracle(config)
    if bits is not None:
        model, config = quantize_model(model, config, 32, bits)
    save(model, config, tmp_path)
    return tmp_path, write_adapter(tmp_path / "tone", model, **adapter)


def differs(model: Transformer, folder: Path) -> bool:
    """Whether the adapter changes what is computed at all."""
    plain = load(folder, None, model.plan)
    ids = mx.array([[3, 1, 4, 1, 5]])
    a, b = (m.forward(ids, m.make_cache()) for m in (model, plain))
    return bool(mx.abs(a - b).max().item() > 1e-2)


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
@pytest.mark.parametrize("name", ["llama-tied-biased", "qwen3", "phi3", "gemma3_text", "olmo2"])
def test_logits_equal_mlx_lm(name: str, kind: str, tmp_path: Path) -> None:
    """Fused into float32 weights, every kind gives mlx-lm's logits to 1e-4."""
    folder, adapter = make(tmp_path, name, kind=kind)
    model = load(folder, adapter)
    assert differs(model, folder)
    check(model, reload_oracle(folder, adapter))


@pytest.mark.parametrize("keys", [None, QKV_ALONE], ids=["all", "q and v"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("kept", [False, True], ids=["dequantised", "kept quantised"])
def test_quantised_models(kind: str, kept: bool, keys: list[str] | None, tmp_path: Path) -> None:
    """Beside quantised weights too, where q, k and v are one matrix and k has no change."""
    folder, adapter = make(tmp_path, "qwen3", 4, kind=kind, keys=keys)
    model = load(folder, adapter, KEPT if kept else None)
    changed = model.weights.layers[-1].qkv[0]
    assert (changed.extra, changed.quant is not None) == ((kind, True) if kept else ("", False))
    assert len(model.weights.layers[-1].qkv) == 1
    assert model.weights.layers[0].qkv[0].extra == ""  # the first layer is not changed
    assert differs(model, folder)
    check(model, reload_oracle(folder, adapter))


def test_matrices_that_are_not_joined(tmp_path: Path) -> None:
    """Where q, k and v are quantised otherwise, each has its own change beside it."""
    from mlx_lm.utils import quantize_model

    config = {**SMALL, **FAMILIES["llama"]}
    predicate = lambda path, module: {"group_size": 32, "bits": 8 if "v_proj" in path else 4}  # noqa: E731
    model, config = quantize_model(make_oracle(config), config, 32, 4, quant_predicate=predicate)
    save(model, config, tmp_path)
    adapter = write_adapter(tmp_path / "tone", model)
    ours = load(tmp_path, adapter, KEPT)
    assert [spec.extra for spec in ours.weights.layers[-1].qkv] == ["lora"] * 3
    check(ours, reload_oracle(tmp_path, adapter))


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("bits", [None, 4])
def test_embedding_and_head(name: str, bits: int | None, tmp_path: Path) -> None:
    """An adapter may change them too, also where they are one; views of the head show it."""
    keys = ["model.embed_tokens"] + (["lm_head"] if name == "llama" else [])
    folder, adapter = make(tmp_path, name, bits, keys=keys)
    model = load(folder, adapter, KEPT if bits else None)
    assert differs(model, folder)
    check(model, reload_oracle(folder, adapter))
    head = output_table(model)
    if head is not None:
        x = mx.random.normal((1, 1, 64), key=mx.random.key(0))
        normed = model.final_norm(x)
        assert mx.abs(model.unembed(x) - normed @ head.T).max().item() < 1e-4


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_half_precision_keeps_the_change_beside(kind: str, tmp_path: Path) -> None:
    """Small changes would round away in the sum of bfloat16 weights."""
    config = {**SMALL, **FAMILIES["qwen3"]}
    oracle = make_oracle(config, mx.bfloat16)
    save(oracle, config, tmp_path)
    adapter = write_adapter(tmp_path / "tone", oracle, kind=kind)
    model = load(tmp_path, adapter, KEPT)
    assert model.weights.layers[-1].down.extra == kind
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model as load_theirs

    theirs = load_adapters(load_theirs(tmp_path)[0], str(adapter))
    theirs.eval()
    ids = mx.array([[3, 1, 4, 1, 5]])
    ours, want = model.forward_all(ids, model.make_cache())[0], theirs(ids)[0]
    exact = reload_oracle(tmp_path, adapter)(ids)[0]
    # No further from the float32 result than mlx-lm in bfloat16 is, but for rounding's luck.
    error = lambda logits: mx.abs(logits.astype(mx.float32) - exact).max().item()  # noqa: E731
    assert error(ours) <= 2 * error(want) + 1e-3


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("bits", [None, 4])
def test_peft_is_the_same_adapter(kind: str, bits: int | None, tmp_path: Path) -> None:
    """PEFT's layout of the same numbers gives the same logits."""
    keys = None if kind == "dora" else ["model.embed_tokens", *map_layers(QKV_ALONE)]
    folder, adapter = make(tmp_path, "llama", bits, kind=kind, keys=keys)
    peft = write_peft(tmp_path / "peft", adapter)
    opened = Adapter.open(peft)
    assert (opened.kind, opened.layout, opened.base) == (kind, "PEFT", "some/base")
    check(load(folder, peft, KEPT if bits else None), reload_oracle(folder, adapter))


def map_layers(names: list[str]) -> list[str]:
    return [f"model.layers.{i}.{name}" for i in range(SMALL["num_hidden_layers"]) for name in names]


def test_scales_of_peft(tmp_path: Path) -> None:
    """Alpha / r, alpha / sqrt(r), and an alpha of its own for some modules."""
    _, adapter = make(tmp_path, "llama", rank=4, scale=3.0)
    one = "model.layers.2.self_attn.q_proj"
    other = "model.layers.2.mlp.up_proj"

    def scales(**config: Any) -> tuple[float, float]:
        opened = Adapter.open(write_peft(tmp_path / "peft", adapter, **config))
        return opened.scales[one], opened.scales[other]

    assert scales() == (3.0, 3.0)
    assert scales(use_rslora=True) == (6.0, 6.0)
    assert scales(alpha_pattern={"q_proj": 8, "k": 1}) == (2.0, 3.0)


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_oss", "mamba2"])
def test_models_of_mlx_lm(name: str, tmp_path: Path) -> None:
    """mlx-lm's own loader applies it, experts' matrices included; nothing drops out at random."""
    theirs = make_model(name)
    folder = write_folder(name, tmp_path / "model", theirs)
    adapter = write_adapter(tmp_path / "tone", theirs)
    zoo = load_zoo_model(folder, make_config(name), adapter=Adapter.open(adapter))
    plain = load_zoo_model(folder, make_config(name))
    ids = mx.array([[3, 1, 4, 1, 5]])

    def logits(model: ZooModel) -> Any:
        return model.forward(ids, model.make_cache())

    assert mx.abs(logits(zoo) - theirs(ids)[:, -1]).max().item() < 1e-3
    assert mx.abs(logits(zoo) - logits(plain)).max().item() > 1e-2


def test_a_quantised_model_of_mlx_lm(tmp_path: Path) -> None:
    """On a float32 plan the layers inside the adapter's are dequantised as all others."""
    from mlx_lm.utils import quantize_model

    theirs, config = quantize_model(make_model("gpt_oss"), make_config("gpt_oss"), 32, 8)
    folder = write_folder("gpt_oss", tmp_path / "model", theirs, config)
    adapter = write_adapter(tmp_path / "tone", theirs)
    zoo = load_zoo_model(folder, config, adapter=Adapter.open(adapter))
    ids = mx.array([[3, 1, 4, 1, 5]])
    got = zoo.forward(ids, zoo.make_cache())
    assert mx.abs(got - theirs(ids)[:, -1]).max().item() < 1e-3


def test_the_fingerprint_knows_the_adapter(tmp_path: Path) -> None:
    """The model alone, with one, with another, with the same again."""
    folder = make_tiny_folder(tmp_path / "tiny")
    adapters = []
    for rank in (2, 3):
        oracle = make_oracle(read_config(folder))
        adapters.append(str(write_adapter(tmp_path / f"rank{rank}", oracle, rank=rank)))
    names = [None, adapters[0], adapters[1], adapters[0]]
    found = [load_model(folder, adapter=name).fingerprint for name in names]
    assert len(set(found)) == 3
    assert found[1] == found[3]


def refusal(folder: Path, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, adapter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    """Says which tensor has which shape, what was expected, and what it was trained on."""
    (tmp_path / "a").mkdir()
    folder, _ = make(tmp_path / "a", "llama")
    wide = {**SMALL, "model_type": "llama", "hidden_size": 96}
    foreign = write_adapter(tmp_path / "foreign", make_oracle(wide))
    line = refusal(folder, foreign)
    assert "adapter foreign has model.layers.1.mlp.down_proj.lora_b of shape (4, 96)" in line
    assert "the model asks for (4, 64); it was trained on some/base" in line
    deep = write_adapter(tmp_path / "deep", make_oracle({**SMALL, **FAMILIES["llama"]}))
    rename(deep, lambda name: name.replace("layers.2", "layers.7"))
    assert "the model has no matrix model.layers.7.mlp.down_proj" in refusal(folder, deep)
    peft = write_peft(tmp_path / "peft", foreign)
    assert "(96, 4), but the model asks for (64, 4)" in refusal(folder, peft)


def rename(adapter: Path, change: Any) -> None:
    file = adapter / "adapters.safetensors"
    arrays = {name: mx.array(value) for name, value in mx.load(str(file)).items()}
    mx.eval(arrays)
    mx.save_safetensors(str(file), {change(name): value for name, value in arrays.items()})


def test_folders_that_are_no_adapter(tmp_path: Path) -> None:
    """Each is refused in one line that says what is missing or unknown."""
    folder, good = make(tmp_path, "llama")
    assert "nowhere is not there; name a folder" in refusal(folder, tmp_path / "nowhere")
    assert "config.json is a file" in refusal(folder, good / "adapter_config.json")
    assert "has no adapter_config.json" in refusal(folder, folder)
    config = json.loads((good / "adapter_config.json").read_text())

    def with_config(**changes: Any) -> str:
        (good / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        return refusal(folder, good)

    assert "of kind adalora; known are lora, dora, full" in with_config(fine_tune_type="adalora")
    assert "with a number as scale" in with_config(lora_parameters={"rank": 4, "alpha": 8})
    assert "PEFT's kind IA3; only LORA" in with_config(peft_type="IA3")
    assert "bias = all is not known" in with_config(peft_type="LORA", bias="all")
    assert "no adapter_model.safetensors" in with_config(peft_type="LORA")
    (good / "adapter_config.json").write_text(json.dumps(config))
    rename(good, lambda name: name.replace("q_proj.lora_b", "q_proj.weight"))
    assert "q_proj.weight, which is no low-rank matrix" in refusal(folder, good)
    (good / "adapters.safetensors").write_bytes(b"no weights")
    assert "adapters.safetensors" in refusal(folder, good)


def test_a_full_adapter_that_does_not_fit(tmp_path: Path) -> None:
    """One for float weights cannot take the place of quantised ones."""
    config = {**SMALL, **FAMILIES["llama"]}
    full = write_adapter(tmp_path / "full", make_oracle(config), kind="full")
    (tmp_path / "q").mkdir()
    folder, _ = make(tmp_path / "q", "llama", 4)
    line = refusal(folder, full)
    assert "down_proj.weight of shape (64, 128), but the model asks for (64, 16)" in line


def test_refusals_beside_mlx_lm(tmp_path: Path) -> None:
    """What mlx-lm says of a misfit becomes one line; PEFT's layout is not for its models."""
    theirs = make_model("gpt_oss")
    folder = write_folder("gpt_oss", tmp_path / "model", theirs)
    adapter = write_adapter(tmp_path / "tone", theirs)
    rename(adapter, lambda name: name.replace("q_proj", "w_proj"))

    def refuse(adapter: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_zoo_model(folder, make_config("gpt_oss"), adapter=Adapter.open(adapter))
        return str(caught.value)

    line = refuse(adapter)
    assert "w_proj" in line
    assert line.endswith("it was trained on some/base")
    _, llama = make(tmp_path, "llama")
    assert "in PEFT's layout" in refuse(write_peft(tmp_path / "peft", llama))


def test_the_plan_of_this_machine_is_float32(tmp_path: Path) -> None:
    """Where it is, a fused model holds no more than the plain one: decoding costs the same."""
    if not make_device_plan().float32:
        pytest.skip("weights stay as stored here")
    folder, adapter = make(tmp_path, "qwen3", 4)
    fused, plain = load(folder, adapter), load(folder, None)
    assert fused.weights.num_bytes == plain.weights.num_bytes
