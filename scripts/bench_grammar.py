"""Decoding that is held to a JSON schema against free decoding, in turns (A B A B).

Both are greedy, over the engine's own loop. Free decoding is one step ahead; a held one waits for
each token, finds the mask while the device computes the logits, and applies it. Models: the one
that ships, and random float32 ones of 12 layers, with a small and with a large vocabulary. Medians
over rounds, by the wall clock and by the processor time of the process. The last line is JSON.
"""

import argparse
import functools
import itertools
import json
import statistics
import string
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlxchat.model.device import load_mlx  # noqa: E402

mx = load_mlx()

from markdown_table import print_header, print_row  # noqa: E402
from random_model import make_checkpoint  # noqa: E402

from mlxchat.engine.constraint import Constraint  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.grammar import Grammar, TokenTable  # noqa: E402
from mlxchat.engine.sampling import Sampler, Sampling  # noqa: E402
from mlxchat.model.loader import load_model  # noqa: E402

PROMPT = list(range(10, 74))
# Long enough for any number of tokens: keys, numbers, strings and lists in turns.
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 5, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["person", "animal", "machine"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
GRAMMAR = Grammar("json_schema", json.dumps({"type": "array", "items": ITEM, "minItems": 500}))


def make_tokens(size: int) -> list[bytes]:
    """Returns a vocabulary: the bytes, then words of letters, digits and marks of JSON."""
    letters = (string.ascii_lowercase + string.digits + ' ":,{}').encode()
    words = (bytes(w) for n in itertools.count(2) for w in itertools.product(letters, repeat=n))
    singles = [bytes([i]) for i in range(256)]
    return [b"", *singles, *itertools.islice(words, size - 257)]


def make_table(model: Any, tokenizer: Any) -> TokenTable:
    """Makes the table of a model's tokens; a random model gets a vocabulary of ours."""
    size = model.info.vocab_size
    if tokenizer is None:
        return TokenTable(make_tokens(size), {0}, {0}, lambda text: [i + 1 for i in text.encode()])
    tokens = [tokenizer.token_bytes(i) for i in range(size)]
    encode = functools.partial(tokenizer.encode, is_continuation=True)
    return TokenTable(tokens, tokenizer.eos_ids, tokenizer.special_ids, encode)


def measure(model: Any, table: TokenTable | None, num: int) -> list[float]:
    """Tokens per second by both clocks, from the first token to the last."""
    engine = Engine(model)
    logits = engine.prefill(PROMPT, engine.prefix.plan(PROMPT))
    assert logits is not None
    held = None if table is None else Constraint(table, GRAMMAR)
    sampler = Sampler(Sampling(temperature=0.0), model.info.vocab_size, (), held)
    tokens = engine.decode(logits, sampler, max_tokens=num + 1, check=lambda: None)
    next(tokens)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(num - 1):
        next(tokens)
    wall, processor = time.perf_counter() - start, time.process_time() - busy
    tokens.close()
    return [(num - 1) / wall, (num - 1) / processor]


def compare(model: Any, tokenizer: Any, rounds: int, num: int) -> dict[str, Any]:
    """Measures one model."""
    start = time.perf_counter()
    table = make_table(model, tokenizer)
    result: dict[str, Any] = {"table_s": time.perf_counter() - start}
    rates: dict[str, list[list[float]]] = {"free": [], "held": []}
    for round_ in range(rounds + 1):
        for name, tokens in (("free", None), ("held", table)):
            rate = measure(model, tokens, num)
            if round_:  # the first one compiles
                rates[name].append(rate)
    for i, clock in enumerate(("wall", "processor")):
        medians = {name: statistics.median(r[i] for r in runs) for name, runs in rates.items()}
        result[clock] = medians | {"ratio": medians["held"] / medians["free"]}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "head_dim": 64}
    results: dict[str, Any] = {"tokens": args.tokens, "rounds": args.rounds}
    print_header("model", "vocabulary", "free tok/s", "held tok/s", "wall", "processor", "table")
    for name, size in (("built-in", 0), ("12 layers, d = 512", 3072), ("the same", 151_936)):
        if size:
            with tempfile.TemporaryDirectory() as folder:
                make_checkpoint(Path(folder), **shape, vocab_size=size)
                loaded = load_model(Path(folder))
        else:
            loaded = load_model(ROOT / "mlxchat" / "model" / "builtin")
        tokenizer = None if size else loaded.tokenizer
        found = compare(loaded.model, tokenizer, args.rounds, args.tokens)
        wall = found["wall"]
        results[f"{name}, {loaded.model.info.vocab_size}"] = found
        print_row(
            name,
            loaded.model.info.vocab_size,
            f"{wall['free']:.0f}",
            f"{wall['held']:.0f}",
            f"{wall['ratio']:.2f}",
            f"{found['processor']['ratio']:.2f}",
            f"{found['table_s']:.2f} s",
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
