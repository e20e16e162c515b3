# ruff: noqa: E501 - tables of phrases are kept compact, as one text per table
"""Held-out evaluation: exact match of the last answer, and free-running conversations.

The core takes `answer(messages) -> str` and knows no framework; the adapters at the end plug in
an MLX folder (through mlx-lm, in float32) or a PyTorch checkpoint. Strict values occur nowhere in
the training text; history is gold, except in the free-running rows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import data as d
from facts import FACTS, fill, pick_fact_value
from faq import FRAMES, TALK, TERMS, UNSEEN_FRAMES, frame_term
from skills import ADD_MORE
from words import is_held_out, pick_value
from world import World

Answer = Callable[[list[dict]], str]
Build = Callable[[World], None]


@dataclass(frozen=True)
class Skill:
    """One row of the table: how its dialogues are made, and its floor."""

    name: str
    build: Build
    floor: float | None = None
    strict: bool = True
    typos: float = 0.0


@dataclass(frozen=True)
class Row:
    """One measured row."""

    name: str
    n: int
    accuracy: float
    floor: float | None

    @property
    def error(self) -> float:
        """Return the standard error of the accuracy, with one pseudo-failure at the edges."""
        p = min(max(self.accuracy, 0.5 / self.n), 1 - 0.5 / self.n)
        return math.sqrt(p * (1 - p) / self.n)


FILLERS = (d.term, d.talk, d.plus, d.repeat, d.opposite, d.capital, d.translate, d.unknown)


def _fill(w: World, turns: int) -> None:
    strict, w.strict = w.strict, False
    for _ in range(turns):
        w.rng.choice(FILLERS)(w)
    w.strict = strict


def recall(turns: int) -> Build:
    """Tell one fact; ask for it `turns` turns later."""

    def build(w: World) -> None:
        d.tell(w)
        kind = w.last_kind
        _fill(w, turns - 1)
        d.ask(w, kind)

    return build


def one_of(count: int) -> Build:
    def build(w: World) -> None:
        for _ in range(count):
            d.tell(w)
        d.ask(w)

    return build


def many(count: int) -> Build:
    def build(w: World) -> None:
        d.tell_many(w, count)
        d.ask(w)

    return build


def many_echo(w: World) -> None:
    d.tell_many(w, 2)


def corrected(w: World) -> None:
    d.tell(w)
    kind = w.last_kind
    d.correct(w, kind)
    _fill(w, w.rng.randint(0, 2))
    d.ask(w, kind)


def hyphenated(w: World) -> None:
    value = ""
    while "-" not in value:
        value = pick_value(w.rng, "name", w.strict)
    d.tell(w, "name", value)
    _fill(w, w.rng.randint(0, 2))
    d.ask(w, "name")


def _system(w: World, text: str) -> None:
    w.messages.append({"role": "system", "content": text})


def system_bot(w: World) -> None:
    w.style.bot = pick_value(w.rng, "name", w.strict)
    _system(w, w.rng.choice(("You are {}.", "Your name is {}.", "You are called {}.",
                             "You are a helpful assistant called {}.")).format(w.style.bot))  # fmt: skip
    _fill(w, w.rng.randint(0, 2))
    w.rng.choice((d.your_name, d.your_name, d.who_are_you))(w)


def system_user(w: World) -> None:
    w.facts["name"] = pick_fact_value(w.rng, "name", w.strict)
    _system(w, fill(w.rng.choice(FACTS["name"].system.split(";")), w.facts["name"]))
    _fill(w, w.rng.randint(0, 2))
    d.ask(w, "name")


def styled(ask_for: Callable[[World, list[str]], None]) -> Build:
    """Ask for a style in the system prompt; then one turn of any kind."""

    def build(w: World) -> None:
        asked: list[str] = []
        ask_for(w, asked)
        _system(w, asked[0])
        turn = w.rng.choice(
            (d.greet, d.opposite, d.capital, d.plus, d.repeat, d.tell, d.term, d.talk)
        )
        if w.rng.random() < 0.5:
            d.tell(w)
            turn = w.rng.choice((d.ask, turn))
        w.strict = w.strict and turn not in (d.plus,)
        turn(w)

    return build


def short_style(w: World) -> None:
    w.style.short = True
    _system(w, w.rng.choice(("Be brief.", "Keep answers short.", "Short answers only.")))
    d.tell(w)
    w.rng.choice((d.ask, d.capital, d.opposite, d.term))(w)


def faq(w: World) -> None:
    """Ask a known thing in a wording that training never showed for it."""
    if w.rng.random() < 0.5:
        entry = w.rng.choice(TERMS)
        frame = w.rng.choice(UNSEEN_FRAMES)
        if w.rng.random() < 0.5:
            held = [f for f in FRAMES if is_held_out(f"{f}|{entry.terms[0]}")]
            frame = w.rng.choice(held or UNSEEN_FRAMES)
        w.say(frame_term(frame, w.rng.choice(entry.terms)), entry.answer)
        return
    held = []
    while not held:
        entry = w.rng.choice(TALK)
        held = [t for t in entry.train if is_held_out(t)]
    w.say(w.rng.choice(held), entry.answer)


def faq_by_hand(w: World) -> None:
    """Ask with one of the hand-written wordings that no pattern covers."""
    entry = w.rng.choice(TALK)
    w.say(w.rng.choice(entry.unseen), entry.answer)


def add_more(w: World) -> None:
    d.plus(w)
    last, n = w.number or 0, w.rng.randint(1, 20)
    w.say(w.rng.choice(ADD_MORE).replace("N", str(n)), f"{last} + {n} = {last + n}.")


def mid_unknown(w: World) -> None:
    d.tell(w)
    _fill(w, 2)
    d.unknown(w)


def then(first: Build, *rest: Build) -> Build:
    """Build one turn after another."""

    def build(w: World) -> None:
        for turn in (first, *rest):
            turn(w)

    return build


def repeat(count: int) -> Build:
    return lambda w: d.repeat(w, count)


SKILLS = (
    Skill("recall at 1 turn, strict", recall(1), 0.97),
    Skill("recall at 3 turns, strict", recall(3), 0.97),
    Skill("recall at 6 turns, strict", recall(6), 0.97),
    Skill("one of three facts, strict", one_of(3), 0.95),
    Skill("corrected fact, strict", corrected, 0.92),
    Skill("system prompt: its name", system_bot, 0.98),
    Skill("system prompt: the user's name", system_user, 0.98),
    Skill("system prompt: suffix", styled(d.ask_suffix), 0.95),
    Skill("system prompt: suffix, not strict", styled(d.ask_suffix), 0.95, strict=False),
    Skill("system prompt: mood", styled(d.ask_mood), 0.95),
    Skill("system prompt: capitals", styled(d.ask_caps), 0.95),
    Skill("FAQ, unseen wording", faq, 0.95),
    Skill("two-digit sums, unseen pairs", d.plus, 0.98),
    Skill("add N to that", add_more, 0.95),
    Skill("repeat 1 word, strict", repeat(1), 0.99),
    Skill("repeat 3 words, strict", repeat(3), 0.97),
    Skill("repeat 6 words, strict", repeat(6), 0.93),
    Skill("opposites", d.opposite, 0.99),
    Skill("English to Spanish", lambda w: d.translate(w, 1), 0.99),
    Skill("English to Chinese", lambda w: d.translate(w, 2), 0.99),
    Skill("is-a", d.is_a, 0.99),
    Skill("capitals", d.capital, 0.99),
    # Beyond the floors.
    Skill("two facts in one message, echo", many_echo),
    Skill("two facts in one message, recall", many(2)),
    Skill("three facts in one message, recall", many(3)),
    Skill("hyphenated names", hyphenated),
    Skill("two facts asked at once", then(d.tell, d.tell, d.ask_many)),
    Skill("what do you know about me", then(d.tell, d.tell, d.summary)),
    Skill("a fact that was not told", then(d.tell, d.ask_missing)),
    Skill("is my ... X? yes or no", then(d.tell, d.tell, d.yes_no)),
    Skill("who is X?", then(d.tell, d.tell, d.who_is)),
    Skill("a name given in the chat", then(d.name_me, d.plus, d.your_name)),
    Skill("FAQ, wordings by hand", faq_by_hand),
    Skill("FAQ, with typos", faq, typos=1.0),
    Skill("who are you", d.who_are_you, strict=False),
    Skill("greeting", then(d.tell, d.greet)),
    Skill("unknown question", d.unknown),
    Skill("unknown question in a dialogue", mid_unknown),
    Skill("statement out of its world", d.statement),
    Skill("differences", d.minus, strict=False),
    Skill("products to 10 x 10", d.times, strict=False),
    Skill("too big a sum", d.too_big, strict=False),
    Skill("Spanish or Chinese to English", d.translate_back),
    Skill("short answers", short_style),
)


def cases(skill: Skill, n: int, seed: int = 1) -> list[tuple[list[dict], str]]:
    """Make `n` dialogues of a skill: the messages, and the answer that must come."""
    out = []
    for i in range(n):
        w = World(Random(f"{seed} {skill.name} {i}"), strict=skill.strict, typos=skill.typos)
        skill.build(w)
        out.append((w.messages[:-1], w.messages[-1]["content"]))
    return out


def measure(answer: Answer, skill: Skill, n: int, seed: int = 1, show: int = 0) -> Row:
    """Measure one skill; print the first `show` failures."""
    right = 0
    for messages, expected in cases(skill, n, seed):
        got = answer(messages)
        right += got == expected
        if got != expected and show > 0:
            show -= 1
            print(
                f"  [{skill.name}] {messages[-1]['content']!r}\n    want {expected!r}\n    got  {got!r}"
            )
    return Row(skill.name, n, right / n, skill.floor)


def conversation(rng: Random, turns: int, typos: float) -> tuple[list[dict], list[str]]:
    """Make the person's side of a conversation and the answers that fit."""
    w = World(rng, strict=True, typos=typos)
    d.start(w, 0.3)
    weights = {t: v for t, v in d.BASE.items() if t is not d.fun}
    held, d.BASE = d.BASE, weights
    try:
        for i in range(turns):
            d.next_turn(w, i == turns - 1)(w)
    finally:
        d.BASE = held
    answers = [m["content"] for m in w.messages if m["role"] == "assistant"]
    return [m for m in w.messages if m["role"] != "assistant"], answers


def free_running(
    answer: Answer, n: int, seed: int = 1, typos: float = 0.15, show: int = 0
) -> list[Row]:
    """Hold `n` conversations of 8-12 turns on the model's own answers."""
    right = total = perfect = last = 0
    for i in range(n):
        rng = Random(f"{seed} free {typos} {i}")
        given, wanted = conversation(rng, rng.randint(8, 12), typos)
        messages = [given.pop(0)] if given[0]["role"] == "system" else []
        good = 0
        for said, expected in zip(given, wanted, strict=True):
            messages.append(said)
            got = answer(messages)
            messages.append({"role": "assistant", "content": got})
            good += got == expected
            if got != expected and show > 0:
                show -= 1
                print(f"  [free] {said['content']!r}\n    want {expected!r}\n    got  {got!r}")
        last += got == expected
        right, total, perfect = right + good, total + len(wanted), perfect + (good == len(wanted))
    name = "free-running 8-12 turns" + (", no typos" if not typos else "")
    return [
        Row(f"{name}: turns", total, right / total, None),
        Row(f"{name}: whole dialogues", n, perfect / n, None),
        Row(f"{name}: last turn", n, last / n, None),
    ]


def format_table(rows: list[Row]) -> str:
    """Return the table in Markdown."""
    lines = ["| skill | n | accuracy | s.e. | floor | |", "|---|---:|---:|---:|---:|---|"]
    for r in rows:
        floor = "" if r.floor is None else f"{r.floor:.2f}"
        mark = "" if r.floor is None else ("ok" if r.accuracy >= r.floor else "missed")
        lines.append(f"| {r.name} | {r.n} | {r.accuracy:.3f} | {r.error:.3f} | {floor} | {mark} |")
    return "\n".join(lines)


# --- adapters ------------------------------------------------------------------------------------


def load_mlx(folder: str) -> Answer:
    """Load an MLX folder through mlx-lm, dequantised to float32 (fast on a CPU)."""
    import ctypes
    import ctypes.util

    if sys.platform == "linux" and ctypes.util.find_library("openblas"):
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm import load
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import dequantize_model

    model, tokenizer = load(folder)
    model.apply(lambda x: x.astype(mx.float32) if x.dtype == mx.float16 else x)
    if any(isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding)) for m in model.modules()):
        model = dequantize_model(model)
    model.apply(lambda x: x.astype(mx.float32))
    stop = set(tokenizer.eos_token_ids)

    def answer(messages: list[dict]) -> str:
        new = mx.array([tokenizer.apply_chat_template(messages, add_generation_prompt=True)])
        cache, out = make_prompt_cache(model), []
        while len(out) < 200:
            token = int(mx.argmax(model(new, cache=cache)[0, -1]))
            if token in stop:
                break
            out.append(token)
            new = mx.array([[token]])
        return tokenizer.decode(out)

    return answer


def load_mlxchat(folder: str) -> Answer:
    """Load an MLX folder through mlxchat's own engine."""
    import mlx.core as mx

    from mlxchat.chat.template import ChatTemplate
    from mlxchat.model.loader import load_model

    loaded = load_model(Path(folder))
    model, tokenizer = loaded.model, loaded.tokenizer
    template = ChatTemplate.for_tokenizer(tokenizer)

    def answer(messages: list[dict]) -> str:
        ids, cache, out = tokenizer.encode(template.render(messages)), model.make_cache(), []
        while len(out) < 200:
            size = 1 << min(8, len(ids).bit_length() - 1)  # few lengths: each is compiled once
            logits = model.forward(mx.array([ids[:size]]), cache)
            ids = ids[size:]
            if not ids:
                ids = [int(mx.argmax(logits[0]).item())]
                if ids[0] in tokenizer.eos_ids:
                    break
                out += ids
        return tokenizer.decode(out)

    return answer


def load_torch(checkpoint: str, tokenizer_file: str) -> Answer:
    """Load a training checkpoint."""
    import torch
    from model import Model, Shape
    from safetensors import safe_open
    from tokenizers import Tokenizer
    from vocab import END, prompt_ids

    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(tokenizer_file)
    with safe_open(checkpoint, "pt") as file:
        model = Model(Shape(**json.loads(file.metadata()["shape"])))
        model.load_state_dict({k: file.get_tensor(k) for k in file.keys()})  # noqa: SIM118
    stop = tokenizer.token_to_id(END)
    return lambda messages: tokenizer.decode(model.generate(prompt_ids(tokenizer, messages), stop))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="an MLX folder, or a checkpoint together with --tokenizer")
    parser.add_argument("--tokenizer", help="tokenizer.json of a PyTorch checkpoint")
    parser.add_argument("--engine", choices=("mlx-lm", "mlxchat"), default="mlx-lm")
    parser.add_argument("-n", type=int, default=200, help="dialogues per skill")
    parser.add_argument("--free", type=int, default=None, help="free-running conversations (n / 4)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="failures to print per skill")
    parser.add_argument("--only", default="", help="only skills whose name holds this text")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    args = parser.parse_args()
    loaders = {"mlx-lm": load_mlx, "mlxchat": load_mlxchat}
    if args.tokenizer:
        answer = load_torch(args.model, args.tokenizer)
    else:
        answer = loaders[args.engine](args.model)
    start = time.time()
    skills = [s for s in SKILLS if args.only in s.name]
    rows = [measure(answer, s, args.n, args.seed, args.show) for s in skills]
    if not args.only or "free" in args.only:
        conversations = max(1, args.n // 4) if args.free is None else args.free
        rows += free_running(answer, conversations, args.seed, 0.15, args.show)
        rows += free_running(answer, conversations, args.seed, 0.0, args.show)
    table = format_table(rows)
    print(table)
    print(f"{time.time() - start:.0f} s")
    if args.out:
        args.out.write_text(table + "\n")


if __name__ == "__main__":
    main()
