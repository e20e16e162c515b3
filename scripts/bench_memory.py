"""Peak memory of a long prefill: mlxchat, with keys and values in 16/32, 8 and 4 bits, and mlx-lm.

Each measurement is a process of its own on the same random checkpoint, chunks of equal length,
`mx.get_peak_memory` from before the prefill to its end. Prints a Markdown table and, as the last
line, JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_vs_mlx_lm import preload
from markdown_table import print_header, print_row
from random_model import make_checkpoint

NUM_TOKENS = 8192
WAYS = ("mlxchat", "mlxchat --kv-bits 8", "mlxchat --kv-bits 4", "mlx-lm", "mlx-lm --kv-bits 8")


def make_ids() -> list[int]:
    import mlx.core as mx

    ids = mx.random.randint(0, 2000, (NUM_TOKENS,), key=mx.random.key(1)).tolist()
    return list(ids)  # type: ignore[arg-type]


def measure(way: str, folder: Path, chunk: int) -> dict[str, float]:
    """Bytes and seconds of one prefill."""
    program, _, bits = way.partition(" --kv-bits ")
    prepare = prepare_ours if program == "mlxchat" else prepare_peer
    run = prepare(folder, chunk, int(bits) if bits else None)
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    before, start = mx.get_active_memory(), time.perf_counter()
    kv_bytes = run()
    seconds = time.perf_counter() - start
    peak = mx.get_peak_memory()
    return {"peak": peak, "weights": before, "kv": kv_bytes, "seconds": seconds}


def prepare_ours(folder: Path, chunk: int, bits: int | None) -> Any:
    from mlxchat.model.device import load_mlx

    load_mlx()
    from mlxchat.engine.engine import Engine
    from mlxchat.model.loader import load_model

    engine = Engine(load_model(folder).model, kv_bits=bits)
    ids = make_ids()

    def run() -> int:
        for end in range(chunk, NUM_TOKENS + 1, chunk):  # equal chunks, whatever the rates are
            engine.chunker.size = engine.chunker.largest = chunk
            engine.prefix.cache.reserve(NUM_TOKENS)
            engine.prefill(ids[:end], engine.prefix.plan(ids[:end]))
        return engine.prefix.cache.nbytes

    return run


def prepare_peer(folder: Path, chunk: int, bits: int | None) -> Any:
    preload()
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    model, _ = mlx_lm.load(str(folder))
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    ids = mx.array(make_ids())

    def run() -> int:
        cache = make_prompt_cache(model)
        settings: dict[str, Any] = {"prefill_step_size": chunk, "prompt_cache": cache}
        if bits is not None:
            settings |= {"kv_bits": bits, "kv_group_size": 32, "quantized_kv_start": 0}
        next(generate_step(ids, model, max_tokens=1, **settings))
        return sum(layer.nbytes for layer in cache)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], Path(args.child[1]), args.chunk)))
        return
    results: dict[str, Any] = {"tokens": NUM_TOKENS, "chunk": args.chunk}
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), max_position_embeddings=2 * NUM_TOKENS)
        for way in WAYS:
            command = [sys.executable, __file__, "--chunk", str(args.chunk), "--child", way, name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{way} failed:\n{done.stderr}")
            results[way] = json.loads(done.stdout.splitlines()[-1])
    peer = results["mlx-lm"]["peak"]
    what = f"{NUM_TOKENS} tokens in chunks of {args.chunk}"
    print_header(what, "peak", "keys and values", "to mlx-lm")
    for way in WAYS:
        row = results[way]
        sizes = [f"{row[name] / 2**20:.0f} MiB" for name in ("peak", "kv")]
        print_row(way, *sizes, f"{row['peak'] / peer:.2f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
