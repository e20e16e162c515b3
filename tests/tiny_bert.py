"""Tiny random encoders on disk, laid out as transformers and sentence-transformers save them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mlxchat.model.device import load_mlx

mx = load_mlx()

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *("the", "cat", "dog", "sat", "on", "mat", "tree", "is"),
    *("green", "sky", "blue", "and", "runs", "fast", "slow"),
]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*_LETTERS, *(f"##{c}" for c in _LETTERS), ".", ","]
VOCABULARY = [*SPECIAL, *WORDS, *PIECES]

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}


def bert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a BertModel, by name."""
    d, m = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], d),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    linears = {
        "attention.self.query": (d, d),
        "attention.self.key": (d, d),
        "attention.self.value": (d, d),
        "attention.output.dense": (d, d),
        "intermediate.dense": (m, d),
        "output.dense": (d, m),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        for name, shape in linears.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{at}{name}.weight": (d,), f"{at}{name}.bias": (d,)}
    return shapes


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Returns random float32 tensors, large enough that every part matters."""
    mx.random.seed(seed)
    weights = {}
    for name, shape in bert_shapes(config).items():
        noise = mx.random.normal(shape) * (0.3 if len(shape) > 1 else 0.2)
        weights[name] = noise + 1 if name.endswith("LayerNorm.weight") else noise
    return weights


def make_tokenizer() -> Tokenizer:
    """Returns a WordPiece tokenizer that puts [CLS] and [SEP] around a text."""
    tokenizer = Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token=SPECIAL[1])
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write_encoder(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
    pooling: dict[str, Any] | None = None,
    normalize: bool = True,
    about: dict[str, Any] | None = None,
    max_seq_length: int | None = None,
) -> Path:
    """Writes an encoder's folder.

    Args:
        folder: Where.
        config: Changes of `CONFIG`.
        weights: In place of random ones.
        pooling: What 1_Pooling/config.json says; None writes no sentence-transformers files.
        normalize: Whether modules.json ends with Normalize.
        about: The content of config_sentence_transformers.json.
        max_seq_length: For sentence_bert_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    full = CONFIG | (config or {})
    (folder / "config.json").write_text(json.dumps(full))
    tensors = random_weights(full) if weights is None else weights
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"})
    )
    if pooling is not None:
        steps = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
        modules = [
            {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"a.b.{kind}"}
            for i, kind in enumerate(steps)
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if about is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    if max_seq_length is not None:
        (folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": max_seq_length})
        )
    return folder
