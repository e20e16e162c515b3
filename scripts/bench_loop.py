"""The engine's decoding loop against a bare loop over the same model, in turns (A B A B).

The bare loop feeds the likeliest token and starts the next step before it waits for the last one;
the engine's samples greedily, checks for Ctrl-C, and keeps its sequence. Medians over rounds, by
the wall clock and by the processor time of the process. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlxchat.model.device import load_mlx  # noqa: E402

mx = load_mlx()

from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.sampling import Sampler, Sampling  # noqa: E402
from mlxchat.model.loader import load_model  # noqa: E402

PROMPT = list(range(10, 74))


def decode_bare(model: Any, num: int) -> Iterator[int]:
    """The least that decoding takes."""
    cache = model.make_cache()
    cache.reserve(len(PROMPT))
    token = mx.argmax(model.forward(mx.array([PROMPT]), cache), axis=-1)
    mx.async_eval(token)
    for _ in range(num):
        ahead = mx.argmax(model.forward(token[:, None], cache), axis=-1)
        mx.async_eval(ahead)
        yield token.item()
        token = ahead


def decode_engine(model: Any, num: int) -> Iterator[int]:
    """What a turn runs."""
    engine = Engine(model)
    logits = engine.prefill(PROMPT, engine.prefix.plan(PROMPT))
    assert logits is not None
    sampler = Sampler(Sampling(temperature=0.0), model.info.vocab_size)
    yield from engine.decode(logits, sampler, max_tokens=num + 1, check=lambda: None)


def measure(decode: Callable[[Any, int], Iterator[int]], model: Any, num: int) -> list[float]:
    """Tokens per second by both clocks, from the first token to the last."""
    tokens = decode(model, num)
    next(tokens)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(num - 1):
        next(tokens)
    wall, processor = time.perf_counter() - start, time.process_time() - busy
    tokens.close()  # type: ignore[attr-defined]  # it is a generator
    return [(num - 1) / wall, (num - 1) / processor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "mlxchat" / "model" / "builtin")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    model = load_model(args.model).model
    rates: dict[str, list[list[float]]] = {"bare": [], "engine": []}
    for round_ in range(args.rounds + 1):
        for name, decode in (("bare", decode_bare), ("engine", decode_engine)):
            rate = measure(decode, model, args.tokens)
            if round_:  # the first one compiles
                rates[name].append(rate)
    result: dict[str, Any] = {"tokens": args.tokens, "rounds": args.rounds}
    for i, clock in enumerate(("wall", "processor")):
        medians = {name: statistics.median(r[i] for r in runs) for name, runs in rates.items()}
        result[clock] = medians | {"ratio": medians["engine"] / medians["bare"]}
        print(
            f"{clock}: engine {medians['engine']:.1f}, bare {medians['bare']:.1f} tok/s,"
            f" ratio {result[clock]['ratio']:.3f}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
