"""Random checkpoints that measurements run, with the built-in model's tokenizer and template."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = ROOT / "mlxchat" / "model" / "builtin"
SHAPE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def make_checkpoint(
    folder: Path, *, bits: int | None = None, scale: float = 1.0, **shape: Any
) -> None:
    """Writes a random model: float32, or bfloat16 quantised by mlx-lm itself.

    Args:
        folder: Must be there.
        bits: Of quantised weights.
        scale: Weights are so many times larger than at the start of a training.
        shape: What differs from `SHAPE`.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path
    from mlx_lm.models import qwen3
    from mlx_lm.utils import quantize_model

    mx.random.seed(0)
    config = SHAPE | shape
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    if scale != 1:
        larger = tree_map_with_path(
            lambda name, array: array * scale if array.ndim > 1 and "embed" not in name else array,
            model.parameters(),
        )
        model.update(larger)
    if bits is not None:
        model.set_dtype(mx.bfloat16)
        model, config = quantize_model(model, config, 64, bits)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for file in BUILTIN.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)


def make_talker(folder: Path, n_layers: int, d_model: int, n_kv_heads: int) -> None:
    """Writes a random float32 model that writes text, and for which every token counts."""
    make_checkpoint(
        folder,
        scale=3,
        hidden_size=d_model,
        num_hidden_layers=n_layers,
        intermediate_size=3 * d_model,
        num_attention_heads=d_model // 64,
        num_key_value_heads=n_kv_heads,
        head_dim=64,
        vocab_size=json.loads((BUILTIN / "config.json").read_text())["vocab_size"],
        max_position_embeddings=16384,
        rope_theta=1e6,
    )


def make_text(num_tokens: int) -> str:
    """Returns words that are about as many tokens with the built-in tokenizer."""
    from mlxchat.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(BUILTIN)
    rng = random.Random(1)
    words = [w for w in (ROOT / "README.md").read_text().split() if w.isalpha()]
    text = ""
    while len(tokenizer.encode(text)) < num_tokens:
        text += " ".join(rng.choices(words, k=20)) + ". "
    return text
