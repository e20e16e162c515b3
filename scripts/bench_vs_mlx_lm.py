"""mlxchat against mlx-lm: the same checkpoints, one machine, one run, ratios.

Every measurement is a process of its own, since a BLAS cannot be unloaded; peers alternate (ABAB)
and the median of the rounds counts. Prints a Markdown table and, as the last line, JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = ROOT / "mlxchat" / "model" / "builtin"
PREFILL_TOKENS, DECODE_TOKENS, DEPTH = 512, 64, 128
SHAPE = {
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


def make_checkpoint(folder: Path, bits: int | None) -> None:
    """Writes a random model: float32, or bfloat16 quantised by mlx-lm itself."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import qwen3
    from mlx_lm.utils import quantize_model

    mx.random.seed(0)
    config: dict[str, Any] = dict(SHAPE)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    if bits is not None:
        model.set_dtype(mx.bfloat16)
        model, config = quantize_model(model, config, 64, bits)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    (folder / "config.json").write_text(json.dumps(config))
    # Any tokenizer will do: ids are fed directly.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUILTIN / name).read_bytes())


def preload() -> None:
    """Gives MLX the system's OpenBLAS, as mlxchat does, for the peer too."""
    import ctypes

    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)


def measure_ours(folder: Path) -> dict[str, float]:
    """Prefill and decode rates of mlxchat's engine."""
    from mlxchat.model.device import load_mlx

    load_mlx()
    import mlx.core as mx

    from mlxchat.engine.engine import Engine
    from mlxchat.engine.sampling import Sampler, Sampling
    from mlxchat.model.loader import load_model

    model = load_model(folder).model
    ids = mx.random.randint(0, 2000, (PREFILL_TOKENS,), key=mx.random.key(1)).tolist()
    prefill, decode = [], []
    for _ in range(3):
        engine = Engine(model)
        engine.chunker.size = engine.chunker.largest = PREFILL_TOKENS
        start = time.perf_counter()
        engine.prefill(ids, engine.prefix.plan(ids))
        prefill.append(PREFILL_TOKENS / (time.perf_counter() - start))
        engine = Engine(model)
        logits = engine.prefill(ids[:DEPTH], engine.prefix.plan(ids[:DEPTH]))
        assert logits is not None
        times = []
        sampler = Sampler(Sampling(temperature=0.0), SHAPE["vocab_size"])  # type: ignore[arg-type]
        for _token in engine.decode(logits, sampler, max_tokens=DECODE_TOKENS + 1):
            times.append(time.perf_counter())
        decode.append((len(times) - 1) / (times[-1] - times[0]))
    return {"prefill": max(prefill), "decode": max(decode)}


def measure_peer(folder: Path) -> dict[str, float]:
    """The same through mlx_lm.stream_generate, its own clock replaced by ours."""
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    model, tokenizer = mlx_lm.load(str(folder))
    ids = mx.random.randint(0, 2000, (PREFILL_TOKENS,), key=mx.random.key(1))
    tokenizer.eos_token_ids = set()
    prefill, decode = [], []
    for _ in range(3):
        cache = make_prompt_cache(model)
        start = time.perf_counter()
        next(generate_step(ids, model, max_tokens=1, prompt_cache=cache))
        prefill.append(PREFILL_TOKENS / (time.perf_counter() - start))
        times = []
        for _response in mlx_lm.stream_generate(
            model, tokenizer, ids[:DEPTH].tolist(), max_tokens=DECODE_TOKENS + 1
        ):
            times.append(time.perf_counter())
        times = times[: DECODE_TOKENS + 1]
        decode.append((len(times) - 1) / (times[-1] - times[0]))
    return {"prefill": max(prefill), "decode": max(decode)}


def run_child(kind: str, folder: Path, blas: str) -> dict[str, float]:
    """Measures in a process of its own."""
    env = {**os.environ, "MLXCHAT_NO_OPENBLAS": "1" if blas == "without" else ""}
    command = [sys.executable, __file__, "--child", kind, "--folder", str(folder), "--blas", blas]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(folder: Path, rounds: int, ours_blas: str, peer_blas: str) -> dict[str, float]:
    """Ratios ours / peer of the medians over alternating rounds."""
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(run_child("ours", folder, ours_blas))
        peer.append(run_child("peer", folder, peer_blas))
    ratio = {}
    for name in ("prefill", "decode"):
        a, b = (statistics.median(r[name] for r in runs) for runs in (ours, peer))
        ratio |= {name: a / b, f"{name}_ours": a, f"{name}_peer": b}
    return ratio


def time_command(command: list[str]) -> float:
    """Wall time of a whole process."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def compare_start(rounds: int) -> dict[str, float]:
    """Whole-process time of one token from the built-in model, and of --help."""
    binaries = Path(sys.executable).parent
    one = [str(binaries / "mlxchat"), "generate", "-m", str(BUILTIN), "--max-tokens", "1", "hello"]
    peer = [str(binaries / "mlx_lm.generate"), "--model", str(BUILTIN)]
    peer += ["--max-tokens", "1", "--prompt", "hello"]
    pairs = [(time_command(one), time_command(peer)) for _ in range(rounds + 1)][1:]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"ratio": ours / theirs, "ours_s": ours, "peer_s": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=["ours", "peer", "make"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--blas", choices=["with", "without"], default="with")
    parser.add_argument("--bits", type=int)
    args = parser.parse_args()
    if args.child == "make":
        make_checkpoint(args.folder, args.bits)
        return
    if args.child:
        if args.child == "peer" and args.blas == "with":
            preload()
        measure = measure_ours if args.child == "ours" else measure_peer
        print(json.dumps(measure(args.folder)))
        return
    results: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for label, bits in (("float32", None), ("4-bit bfloat16", 4)):
            folder = Path(name) / label.replace(" ", "-")
            folder.mkdir()
            extra = ["--bits", str(bits)] if bits else []
            make = [sys.executable, __file__, "--child", "make", "--folder", str(folder), *extra]
            subprocess.run(make, check=True)
            for title, ours, peer in (
                ("as installed, OpenBLAS present", "with", "without"),
                ("both with OpenBLAS", "with", "with"),
                ("both without", "without", "without"),
            ):
                ratio = compare(folder, args.rounds, ours, peer)
                results[f"{label}, {title}"] = ratio
                rows.append(
                    f"| {label} | {title} | {ratio['prefill']:.2f}x | {ratio['decode']:.2f}x |"
                )
                print(rows[-1], file=sys.stderr, flush=True)
    results["start"] = compare_start(args.rounds)
    print("| checkpoint (8 layers, d = 256) | BLAS | prefill of 512 | decode at depth 128 |")
    print("|---|---|---|---|")
    print("\n".join(rows))
    print(f"\nOne token, whole process: {results['start']['ratio']:.2f}x of mlx_lm.generate's time")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
