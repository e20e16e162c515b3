"""Analogies in the embedding table: is the row nearest to B - A + C the row of D?

Prints, for each relation, how often that holds over ordered pairs of pairs (A:B, C:D); A, B and C
themselves do not count as answers.
"""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path

import mlx.core as mx
import numpy as np
from skills import OPPOSITE_OF
from tokenizers import Tokenizer
from words import CAPITALS, IS_A, TRANSLATIONS


def embeddings(folder: Path) -> np.ndarray:
    """Return the embedding table (V, D) in float32."""
    weights = mx.load(str(folder / "model.safetensors"))
    q = json.loads((folder / "config.json").read_text())["quantization"]
    name = "model.embed_tokens"
    packed, scales, biases = (weights[f"{name}.{k}"] for k in ("weight", "scales", "biases"))
    table = mx.dequantize(
        packed, scales.astype(mx.float32), biases.astype(mx.float32), q["group_size"], q["bits"]
    )
    return np.array(table)


def analogies(table: np.ndarray, ids: list[tuple[int, int]]) -> float:
    """Return the share of analogies that hold among these pairs of token ids."""
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)
    right = total = 0
    for (a, b), (c, d) in permutations(ids, 2):
        if len({a, b, c, d}) < 4:
            continue
        score = rows @ (rows[b] - rows[a] + rows[c])
        score[[a, b, c]] = -np.inf
        right += int(score.argmax()) == d
        total += 1
    return right / total


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    table = embeddings(folder)
    relations = {
        "country -> capital": CAPITALS,
        "English -> Chinese": [(t[0], t[2]) for t in TRANSLATIONS],
        "English -> Spanish": [(t[0], t[1]) for t in TRANSLATIONS],
        "word -> opposite": list(OPPOSITE_OF.items()),
        "thing -> kind": [p for p in IS_A if p[0] != p[1]],
    }
    print("| relation | pairs | analogies right |\n|---|---:|---:|")
    for name, pairs in relations.items():
        ids = [tuple(tokenizer.encode(w).ids[0] for w in pair) for pair in pairs]
        print(f"| {name} | {len(ids)} | {analogies(table, ids):.3f} |")


if __name__ == "__main__":
    main()
