"""Write a checkpoint as an MLX model folder: quantised weights, configs, tokenizer, template.

Needs mlx (CPU is enough) and no torch. `mlx_lm.load(folder)` reads the result as it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer
from vocab import END, PAD, write_tokenizer

GROUP = 64


def config(shape: dict, bits: int, tokenizer: Tokenizer) -> dict:
    """Return config.json in the terms of Hugging Face's Qwen3 and MLX's quantisation."""
    quantization = {"group_size": GROUP, "bits": bits, "mode": "affine"}
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape["vocab_size"],
        "hidden_size": shape["d_model"],
        "num_hidden_layers": shape["n_layers"],
        "num_attention_heads": shape["n_heads"],
        "num_key_value_heads": shape["n_kv_heads"],
        "head_dim": shape["head_dim"],
        "intermediate_size": shape["d_mlp"],
        "hidden_act": "silu",
        "rms_norm_eps": shape["eps"],
        "rope_theta": shape["rope_theta"],
        "rope_scaling": None,
        "attention_bias": False,
        "max_position_embeddings": shape["context"],
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "float16",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "quantization": quantization,
        "quantization_config": quantization,
    }


def generation_config(tokenizer: Tokenizer) -> dict:
    """Return generation_config.json: mild sampling, since its world is narrow."""
    return {
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.8,
        "eos_token_id": [tokenizer.token_to_id(END)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def quantise(weights: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    """Quantise every matrix (embedding too); vectors stay float16."""
    out = {}
    for name, w in weights.items():
        if w.ndim == 2:
            base = name.removesuffix(".weight")
            packed, scales, biases = mx.quantize(w.astype(mx.float32), GROUP, bits)
            out[name] = packed
            out[f"{base}.scales"] = scales.astype(mx.float16)
            out[f"{base}.biases"] = biases.astype(mx.float16)
        else:
            out[name] = w.astype(mx.float16)
    return out


def export(checkpoint: Path, tokenizer_file: Path, folder: Path, bits: int) -> int:
    """Write the folder and return its size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, meta = mx.load(str(checkpoint), return_metadata=True)
    shape = json.loads(meta["shape"])
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    write_tokenizer(tokenizer, folder, shape["context"])
    for name, data in (
        ("config.json", config(shape, bits, tokenizer)),
        ("generation_config.json", generation_config(tokenizer)),
    ):
        (folder / name).write_text(json.dumps(data, indent=2) + "\n")
    parts = quantise(weights, bits)
    mx.save_safetensors(str(folder / "model.safetensors"), parts, metadata={"format": "mlx"})
    return sum(f.stat().st_size for f in folder.iterdir() if f.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    args = parser.parse_args()
    size = export(args.checkpoint, args.tokenizer, args.folder, args.bits)
    print(f"{args.folder}: {size / 1e6:.2f} MB at {args.bits} bits")


if __name__ == "__main__":
    main()
