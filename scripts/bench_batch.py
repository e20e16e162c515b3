"""Answers decoded together against one by one: tokens a second, ratios in one process.

First eight answers to one prompt: both ways go on from the same prefilled prompt with the same
seeds; prefill does not count. Then the lines of a batch file, as `generate --batch` answers them:
prompts and answers of different lengths, everything from the first prompt on counts. Both in turns
(A B A B); the medians count. The ratio of processor time stands beside that of the clock, since
other programs disturb it less. Prints a table and, as the last line, JSON; the exit code is 1 where
eight answers to one prompt are less than three times as fast. Of the lines' time a large part is
reading the prompts, which on a CPU is little less work where several are read in one pass.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from markdown_table import print_header, print_row  # noqa: E402
from random_model import BUILTIN, make_talker, make_text  # noqa: E402

from mlxchat.model.device import load_mlx  # noqa: E402

LIMIT = 3.0


def measure(folder: Path, rows: int, num_tokens: int, depth: int, rounds: int) -> dict[str, Any]:
    """Returns both rates and their ratio."""
    from mlxchat.engine.batch import Batch
    from mlxchat.engine.engine import Engine
    from mlxchat.engine.sampling import Sampler, Sampling
    from mlxchat.model.batch_cache import Strand
    from mlxchat.model.loader import load_model

    loaded = load_model(folder)
    engine, size = Engine(loaded.model), loaded.model.info.vocab_size
    ids = loaded.tokenizer.encode(make_text(depth))[:depth]

    def read() -> Any:
        plan = engine.prefix.plan(ids)
        engine.prefix.apply(plan)
        return engine.prefill(ids, plan)

    def samplers() -> list[Sampler]:
        return [Sampler(Sampling(temperature=1.0, seed=row), size, ids) for row in range(rows)]

    def alone() -> tuple[float, float]:
        clock = work = 0.0
        for sampler in samplers():
            logits, start, before = read(), time.perf_counter(), time.process_time()
            for _ in engine.decode(logits, sampler, max_tokens=num_tokens):
                pass
            clock += time.perf_counter() - start
            work += time.process_time() - before
        return clock, work

    def together() -> tuple[float, float]:
        logits, start, before = read(), time.perf_counter(), time.process_time()
        batch, strand = Batch(engine), Strand(engine.prefix.cache, len(ids))
        for sampler in samplers():
            batch.add(strand, logits, sampler, num_tokens)
        for _ in batch.decode(lambda: None):
            pass
        return time.perf_counter() - start, time.process_time() - before

    pairs = [(alone(), together()) for _ in range(rounds + 1)][1:]  # the first round compiles
    single, many = (rows * num_tokens / statistics.median(p[i][0] for p in pairs) for i in (0, 1))
    ratio, work = (statistics.median(a[i] / b[i] for a, b in pairs) for i in (0, 1))
    return {"alone": single, "together": many, "ratio": ratio, "work": work, "is_file": False}


def measure_lines(folder: Path, rows: int, num_tokens: int, rounds: int) -> dict[str, Any]:
    """Returns both rates and their ratio for lines that are answered `rows` at a time."""
    from mlxchat.chat.batch_lines import LineAnswer, read_lines
    from mlxchat.chat.options import ChatOptions
    from mlxchat.chat.session import Session
    from mlxchat.engine.options import SamplingSettings

    words, rng, made = make_text(400).split(), random.Random(0), []
    for seed in range(3 * rows):
        longest = rng.randint(num_tokens // 2, num_tokens * 3 // 2)
        prompt = " ".join(rng.choices(words, k=rng.randint(5, 60)))
        made.append(json.dumps({"prompt": prompt, "max_tokens": longest, "seed": seed}))
    lines = read_lines("\n".join(made).encode())
    sampling = SamplingSettings(temperature=1.0, top_p=1.0)
    options = ChatOptions(sampling=sampling, idle_work=False, keeps_history=False)

    def answer(session: Session, size: int) -> tuple[float, float, int]:
        start, before = time.perf_counter(), time.process_time()
        answers = [a for a in session.answer_lines(lines, size) if isinstance(a, LineAnswer)]
        clock, work = time.perf_counter() - start, time.process_time() - before
        results = [a.result for a in answers]
        return clock, work, sum(len(r.tokens) for r in results if r is not None)

    with contextlib.closing(Session(str(folder), options)) as session:
        session.load().result()
        pairs = [(answer(session, 1), answer(session, rows)) for _ in range(rounds + 1)][1:]
    single, many = (statistics.median(p[i][2] / p[i][0] for p in pairs) for i in (0, 1))
    # By the token: rounding may end an answer elsewhere.
    ratio, work = (statistics.median(a[i] / a[2] / (b[i] / b[2]) for a, b in pairs) for i in (0, 1))
    return {"alone": single, "together": many, "ratio": ratio, "work": work, "is_file": True}


def make_zoo_checkpoint(folder: Path, n_layers: int, d_model: int) -> None:
    """Writes a random float32 model that mlx-lm runs, with the built-in tokenizer."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import starcoder2

    make_talker(folder, 1, 64, 1)  # for the tokenizer; the rest is written over
    config = {
        "model_type": "starcoder2",
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "intermediate_size": 4 * d_model,
        "num_attention_heads": d_model // 64,
        "num_key_value_heads": d_model // 64,
        "vocab_size": json.loads((folder / "config.json").read_text())["vocab_size"],
        "max_position_embeddings": 16384,
    }
    model = starcoder2.Model(starcoder2.ModelArgs.from_dict(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load_mlx()  # before anything else imports MLX, as the program does
    results: dict[str, dict[str, Any]] = {}
    print_header("model", "tok/s one by one", "tok/s together", "ratio", "processor time")

    def tell(label: str, row: dict[str, Any]) -> None:
        results[label] = row
        rates = f"{row['alone']:.1f}", f"{row['together']:.1f}"
        print_row(label, *rates, f"{row['ratio']:.2f}", f"{row['work']:.2f}")

    with tempfile.TemporaryDirectory() as name:
        os.environ["MLXCHAT_HOME"] = str(Path(name) / "home")
        own, zoo = Path(name) / "own", Path(name) / "zoo"
        own.mkdir()
        make_talker(own, 12, 512, 8)
        zoo.mkdir()
        make_zoo_checkpoint(zoo, 12, 512)
        folders = {"12 layers, width 512, float32": own, "built-in": BUILTIN}
        for label, folder in folders.items():
            tell(label, measure(folder, args.rows, args.tokens, args.depth, args.rounds))
        folders["12 layers of mlx-lm, width 512, float32"] = zoo
        for label, folder in folders.items():
            row = measure_lines(folder, args.rows, args.tokens, args.rounds)
            tell(f"{label}; lines of a file", row)
    print(json.dumps({"rows": args.rows, **results}))
    return int(min(row["ratio"] for row in results.values() if not row["is_file"]) < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
