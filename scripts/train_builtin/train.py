"""Train the built-in model: Muon for matrices, Adam for the rest, dialogues made on the fly.

The schedule runs on this process's own CPU seconds, so a pause (kill -STOP) does no harm.
`state.pt` in the output folder resumes; `model.safetensors` there is what `export.py` reads.
Writing a number of seconds to the file `budget` there changes the end while it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import torch
from data import recall_dialogue, training_dialogue
from model import Model, Shape
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from vocab import encode_turns
from words import use_pieces

ROWS = (256, 512, 1024, 2048)
BATCH_TOKENS = 4096
COMPILED_TO = 512
FIRST_LESSONS = 0.08  # share of the time spent on short recall dialogues only


class Muon:
    """Momentum whose update is made orthogonal by five Newton-Schulz steps."""

    def __init__(self, params: list[Tensor], momentum: float = 0.95) -> None:
        self.groups: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for p in params:
            self.groups[p.shape].append(p)
        self.momentum = momentum
        self.state = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float, decay: float = 0.01) -> None:
        for shape, params in self.groups.items():
            grad = torch.stack([p.grad for p in params])
            buffer = self.state[shape].mul_(self.momentum).add_(grad)
            update = orthogonal(grad.add_(buffer, alpha=self.momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - lr * decay).add_(u.to(p.dtype), alpha=-lr * scale)


def orthogonal(g: Tensor) -> Tensor:
    """Return the nearest orthogonal matrices of a stack (N, R, C), roughly."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.mT if tall else x


def pack(docs: list[tuple[list[int], list[bool]]], length: int) -> list[list]:
    """Put dialogues into rows of at most `length` ids, first fit."""
    rows: list[list] = []
    space: list[int] = []
    for doc in sorted(docs, key=lambda d: -len(d[0])):
        for i, free in enumerate(space):
            if free >= len(doc[0]):
                rows[i].append(doc)
                space[i] -= len(doc[0])
                break
        else:
            rows.append([doc])
            space.append(length - len(doc[0]))
    return rows


def collate(rows: list[list], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ids (B, T), mask (B, 1, T, T), and the flat positions with their targets."""
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    part = torch.full((len(rows), length), -1)
    where, target = [], []
    for i, row in enumerate(rows):
        at = 0
        for j, (doc, learn) in enumerate(row):
            ids[i, at : at + len(doc)] = torch.tensor(doc)
            part[i, at : at + len(doc)] = j
            for k in range(1, len(doc)):
                if learn[k]:
                    where.append(i * length + at + k - 1)
                    target.append(doc[k])
            at += len(doc)
    apart = part[:, :, None] != part[:, None, :]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = torch.zeros(apart.shape, dtype=torch.bfloat16).masked_fill_(apart | later, -1e4)
    return ids, mask[:, None], torch.tensor(where), torch.tensor(target)


def dequantised(folder: Path) -> dict[str, Tensor]:
    """Return the float32 weights of a folder that `export.py` wrote with 8 bits."""
    parts = load_file(folder / "model.safetensors")
    weights = {}
    for name, packed in parts.items():
        base = name.removesuffix(".weight")
        if f"{base}.scales" in parts:
            scales, biases = (parts[f"{base}.{k}"].float()[..., None] for k in ("scales", "biases"))
            levels = packed.view(torch.uint8).float().reshape(*scales.shape[:2], -1)
            weights[name] = (levels * scales + biases).flatten(1)
        elif name.endswith("weight"):
            weights[name] = packed.float()
    return weights


def batches(
    tokenizer: Tokenizer,
    seed: int,
    chunk: int,
    progress: list[float],
    lessons: float,
    drills: float,
) -> Iterator[tuple]:
    """Yield batches for ever; first lessons until `progress[0]` reaches `lessons`."""

    def main_course(rng: Random) -> list[dict]:
        return training_dialogue(rng, drills)

    left: dict[int, list] = defaultdict(list)
    for number in count(chunk):
        rng = Random(seed * 1_000_003 + number)
        make = recall_dialogue if progress[0] < lessons else main_course
        docs = defaultdict(list)
        for _ in range(1200):
            doc = encode_turns(tokenizer, make(rng))
            fits = [r for r in ROWS if r >= len(doc[0])]
            if fits:
                docs[fits[0]].append(doc)
        ready = []
        for length in ROWS:
            rows = left[length] + pack(docs[length], length)
            size = BATCH_TOKENS // length
            rng.shuffle(rows)
            while len(rows) >= size:
                ready.append((length, rows[:size]))
                rows = rows[size:]
            left[length] = rows
        rng.shuffle(ready)
        for length, rows in ready:
            yield number, collate(rows, length)


def rate(step: int, progress: float) -> float:
    """Return the learning rate's factor: warm-up, flat, linear decay over the last half."""
    return min(1.0, (step + 1) / 40) * min(1.0, max(0.0, (1 - progress) / 0.5))


class Trainer:
    """The model, its optimisers and the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.tokenizer = Tokenizer.from_file(str(args.tokenizer))
        use_pieces(list(self.tokenizer.get_vocab()))
        self.model = Model(Shape(vocab_size=self.tokenizer.get_vocab_size()))
        named = dict(self.model.named_parameters())
        matrices = [p for n, p in named.items() if p.ndim == 2 and "embed" not in n]
        rest = [p for n, p in named.items() if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices)
        self.adam = torch.optim.Adam(rest, betas=(0.9, 0.98), eps=1e-10)
        self.step = self.chunk = self.tokens = 0
        self.seconds, self.budget = 0.0, args.minutes * 60
        self.seen: set[torch.Size] = set()
        self.stopped = False
        signal.signal(signal.SIGTERM, self.stop)
        self.hidden, self.score = self.model.hidden, self.model.score
        if args.compile:
            self.hidden = torch.compile(self.hidden)
            self.score = torch.compile(self.score, dynamic=True)
        self.first_lessons = 0.0 if args.start else FIRST_LESSONS
        if args.start:
            self.model.load_state_dict(dequantised(args.start))
        self.resume()

    def resume(self) -> None:
        file = self.out / "state.pt"
        if file.exists():
            state = torch.load(file)
            self.model.load_state_dict(state["model"])
            self.muon.state = state["muon"]
            self.adam.load_state_dict(state["adam"])
            self.step, self.chunk, self.tokens, self.seconds = state["counts"]
            self.chunk += 1

    def stop(self, *_: object) -> None:
        """Save and leave after the step under way."""
        self.stopped = True

    def save(self) -> None:
        counts = (self.step, self.chunk, self.tokens, self.seconds)
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state,
            "adam": self.adam.state_dict(),
            "counts": counts,
        }
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")
        weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        meta = {"shape": json.dumps(self.model.shape.as_dict()), "step": str(self.step)}
        save_file(weights, self.out / "model.tmp", metadata=meta)
        os.replace(self.out / "model.tmp", self.out / "model.safetensors")

    def train_step(self, batch: tuple) -> float:
        ids, mask, where, target = batch
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            # Long rows are rare: compiling for them would cost more than it saves.
            hidden = self.hidden if ids.shape[1] <= COMPILED_TO else self.model.hidden
            states = hidden(ids, mask)
            loss = self.score(states.flatten(0, 1)[where], target)
        loss.backward()
        lr = rate(self.step, self.seconds / self.budget)
        self.muon.step(self.args.muon_lr * lr)
        for group in self.adam.param_groups:
            group["lr"] = self.args.adam_lr * lr
        self.adam.step()
        self.model.zero_grad(set_to_none=True)
        if ids.shape in self.seen:  # the first of a shape pays for compilation
            self.seconds += time.process_time() - start
        self.seen.add(ids.shape)
        self.step += 1
        self.tokens += ids.numel()
        return float(loss.detach())

    def run(self) -> None:
        progress = [self.seconds / self.budget]
        mean, saved, wall = None, time.time(), time.time()
        for chunk, batch in batches(
            self.tokenizer,
            self.args.seed,
            self.chunk,
            progress,
            self.first_lessons,
            self.args.drills,
        ):
            self.chunk = chunk
            before = self.seconds
            loss = self.train_step(batch)
            speed = batch[0].numel() / max(1e-9, self.seconds - before)
            mean = loss if mean is None else 0.95 * mean + 0.05 * loss
            if not math.isfinite(loss):
                raise SystemExit(f"loss is {loss} at step {self.step}")
            if self.step % 20 == 0:
                change = self.out / "budget"
                self.budget = float(change.read_text()) if change.exists() else self.budget
                print(
                    f"step {self.step} rows {batch[0].shape[1]} loss {loss:.4f} mean {mean:.4f} "
                    f"active {self.seconds:.0f}/{self.budget:.0f} s "
                    f"wall {time.time() - wall:.0f} s "
                    f"tokens {self.tokens / 1e6:.2f}M {speed:.0f} tok/s",
                    flush=True,
                )
            progress[0] = self.seconds / self.budget
            done = self.stopped or progress[0] >= 1
            if done or time.time() - saved > 240:
                self.save()
                saved = time.time()
            if done:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="go on from this exported 8-bit folder")
    parser.add_argument("--drills", type=float, default=0.42, help="share of drills")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    Trainer(args).run()


if __name__ == "__main__":
    main()
