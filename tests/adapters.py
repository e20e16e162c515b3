"""Adapters for tests: random ones as mlx-lm's trainer would save them, and the same as PEFT's."""

import json
from pathlib import Path
from typing import Any

from mlxchat.model.device import load_mlx

mx = load_mlx()

from mlx.utils import tree_flatten  # noqa: E402

ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]
LEAVES = {"lora_a", "lora_b", "m"}


def write_adapter(
    folder: Path,
    model: Any,
    *,
    kind: str = "lora",
    keys: list[str] | None = None,
    num_layers: int = 2,
    rank: int = 4,
    scale: float = 10.0,
    base: str = "some/base",
) -> Path:
    """Puts low-rank layers into mlx-lm's model and saves them with random weights.

    Args:
        folder: Is made.
        model: An instance of mlx-lm's; it keeps what was put in.
        kind: "lora", "dora", or "full", which saves the last layers' own weights, changed.
        keys: Paths of modules within a layer, or of the whole model; None is all.
        num_layers: The last ones.
        rank: Of the matrices.
        scale: Of their product.
        base: The model's name, as the adapter's config has it.
    """
    from mlx_lm.tuner.utils import linear_to_lora_layers

    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.5, "keys": keys}
    config = {
        "fine_tune_type": kind,
        "model": base,
        "num_layers": num_layers,
        "lora_parameters": parameters,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if kind != "full":
        own = {**parameters, "keys": None if keys is None else set(keys)}
        linear_to_lora_layers(model, num_layers, own, use_dora=kind == "dora")
    key, fresh = mx.random.key(5), {}
    last = len(model.layers) - num_layers
    for name, value in tree_flatten(model.parameters()):
        key, sub = mx.random.split(key)
        leaf = name.rsplit(".", 1)[-1]
        if kind != "full" and leaf in LEAVES:
            noise = mx.random.normal(value.shape, key=sub) * (0.3 if leaf == "m" else 0.1)
            fresh[name] = value + noise if leaf == "m" else noise
        elif (
            kind == "full" and name.startswith("model.layers.") and int(name.split(".")[2]) >= last
        ):
            fresh[name] = value + 0.1 * mx.random.normal(value.shape, key=sub)
    model.load_weights(list(fresh.items()), strict=False)
    model.eval()
    mx.save_safetensors(str(folder / "adapters.safetensors"), fresh)
    return folder


def write_peft(folder: Path, source: Path, **config: Any) -> Path:
    """Writes the adapter of mlx-lm's layout in PEFT's, where the scale is alpha / r."""
    folder.mkdir(parents=True, exist_ok=True)
    theirs = json.loads((source / "adapter_config.json").read_text())
    rank, scale = theirs["lora_parameters"]["rank"], theirs["lora_parameters"]["scale"]
    plain = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "use_dora": theirs["fine_tune_type"] == "dora",
        "bias": "none",
        "base_model_name_or_path": theirs["model"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    weights = {}
    loaded = mx.load(str(source / "adapters.safetensors"))
    for name, value in loaded.items():
        path, _, leaf = name.rpartition(".")
        is_embedding = path.endswith("embed_tokens")
        ends = {
            "m": "lora_magnitude_vector",
            "lora_a": "lora_embedding_A" if is_embedding else "lora_A.weight",
            "lora_b": "lora_embedding_B" if is_embedding else "lora_B.weight",
        }
        weights[f"base_model.model.{path}.{ends[leaf]}"] = mx.contiguous(value.T)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), weights)
    return folder
