"""What speculation gains where tokens can be foreseen, and what it costs where they cannot.

The model is random, float32, 12 layers of width 512, so what it says of itself is noise. A sampler
therefore takes each token from a script, whatever the logits are: a copy of a part of the prompt
with an edit in every hundred tokens, or ids in random order. Forward passes, drawing, drafts,
rejections and the controller's clock are the real ones; only the share of accepted tokens is the
script's and not a model's. For the draft model, random too and of 2 layers of width 256, a script
says how often it agrees with the model; the passes of both are real. Plain decoding and speculation
alternate (A B A B) in one process over the same script; the ratio is that of the sums of their
times, once by the wall clock and once by the processor time of the process, which other programs
disturb less. The last line is JSON.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mlxchat.model.device import load_mlx  # noqa: E402

mx = load_mlx()

from markdown_table import print_header, print_row  # noqa: E402
from random_model import make_checkpoint  # noqa: E402

from mlxchat.engine.draft_model import DraftModel  # noqa: E402
from mlxchat.engine.engine import Engine  # noqa: E402
from mlxchat.engine.lookup import PromptLookup  # noqa: E402
from mlxchat.engine.sampling import Sampler, Sampling  # noqa: E402
from mlxchat.engine.speculation import Speculator  # noqa: E402
from mlxchat.model.loader import load_model  # noqa: E402

PROMPT_TOKENS = 600
EDIT_EVERY = 100


class ScriptedSampler(Sampler):
    """Draws as ever, then says what the script says."""

    def __init__(self, script: Sequence[int], vocab_size: int) -> None:
        super().__init__(Sampling(temperature=0.0), vocab_size)
        self._script, self._place = [*script, *[0] * 64], 0

    def sample(self, logits: Any) -> Any:
        token = super().sample(logits)
        self._place += 1
        return mx.depends(mx.array([self._script[self._place - 1]]), token)

    def sample_ahead(self, logits: Any, drafts: Sequence[int]) -> Any:
        tokens, near = super().sample_ahead(logits, drafts)
        said = mx.array(self._script[self._place : self._place + len(drafts) + 1])
        return mx.depends([said, near & False], [tokens, near])

    def accept(self, token_ids: Sequence[int]) -> None:
        super().accept(token_ids)
        self._place += len(token_ids)


class ScriptedDraftModel(DraftModel):
    """Computes every pass, then foresees what the script says, and something else now and then."""

    def __init__(self, model: Any, agreement: float) -> None:
        self._model, self._agreement = model, agreement
        self._guesses = mx.zeros((1,), dtype=mx.int32)
        super().__init__(Engine(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def foresee(self, prompt: list[int], script: list[int]) -> None:
        """Takes the text that comes."""
        dice, size = random.Random(len(script)), self._model.info.vocab_size
        guesses = [t if dice.random() < self._agreement else (t + 1) % size for t in script]
        self._guesses = mx.array([*prompt, *guesses, *[0] * 64])

    def forward(self, token_ids: mx.array, cache: Any, taps: Any = None) -> mx.array:
        """Returns the logits (1, V) of the model, with the script's guess above all."""
        logits = self._model.forward(token_ids, cache, taps)
        (place,) = cache.offsets()
        is_guess = mx.arange(logits.shape[-1]) == self._guesses[place]
        return mx.where(is_guess, mx.max(logits) + 1.0, logits)


def decode(engine: Engine, prompt: list[int], script: list[int]) -> tuple[float, float]:
    """Decodes a script after a prompt; returns the seconds it took, and those of the processor."""
    engine.prefix.apply(engine.prefix.plan(prompt))
    logits = engine.prefill(prompt, engine.prefix.plan(prompt))
    assert logits is not None
    sampler = ScriptedSampler(script, engine.model.info.vocab_size)
    start, busy = time.perf_counter(), time.process_time()
    said = list(engine.decode(logits, sampler, max_tokens=len(script)))
    seconds = time.perf_counter() - start, time.process_time() - busy
    assert said == script, "the text is not the script's"
    return seconds


def compare(model: Any, drafter: Any, script: Any, rounds: int) -> dict[str, Any]:
    """Plays a kind of text, plain and speculating in turns."""
    speculator = Speculator(drafter)
    plain, ours = Engine(model), Engine(model, speculator=speculator)
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    drafted = accepted = 0
    for round_ in range(rounds + 1):
        prompt, text = script(round_)
        if isinstance(drafter, ScriptedDraftModel):
            drafter.foresee(prompt, text)
        pair = decode(plain, prompt, text), decode(ours, prompt, text)
        if round_:  # the first one compiles
            times.append(pair)
            drafted += speculator.stats.drafted
            accepted += speculator.stats.accepted
    wall, busy = ([sum(t[way][clock] for t in times) for way in (0, 1)] for clock in (0, 1))
    return {
        "ratio": wall[0] / wall[1],
        "cpu_ratio": busy[0] / busy[1],
        "rounds": [round(a[0] / b[0], 2) for a, b in times],
        "plain_tok_per_s": rounds * len(text) / wall[0],
        "drafted": drafted,
        "accepted": accepted,
    }


def make_copy(num: int, vocab_size: int) -> Any:
    """A part of the prompt again, with an edit now and then."""

    def script(round_: int) -> tuple[list[int], list[int]]:
        dice = random.Random(round_)
        prompt = [dice.randrange(vocab_size) for _ in range(PROMPT_TOKENS)]
        text = prompt[50 : 50 + num]
        for place in range(EDIT_EVERY // 2, num, EDIT_EVERY):
            text[place] = dice.randrange(vocab_size)
        return prompt, text

    return script


def make_noise(num: int, vocab_size: int, few: int | None = None) -> Any:
    """Nothing of the prompt; of `few` ids chance repeats some, as common words are repeated."""

    def script(round_: int) -> tuple[list[int], list[int]]:
        dice = random.Random(1000 + round_)
        ids = [dice.randrange(few or vocab_size) for _ in range(PROMPT_TOKENS + num)]
        return ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:]

    return script


def make_model(width: int, num_layers: int, head_dim: int) -> Any:
    """Returns a random float32 model, loaded as any other."""
    shape = {"hidden_size": width, "intermediate_size": 3 * width}
    shape |= {"num_hidden_layers": num_layers, "head_dim": head_dim}
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name), **shape)
        return load_model(Path(name)).model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=300)
    args = parser.parse_args()
    model, small = make_model(512, 12, 64), make_model(256, 2, 32)
    size = model.info.vocab_size
    noise = make_noise(args.tokens, size)
    kinds = {
        "a copy, an edit in every 100 tokens": (make_copy(args.tokens, size), PromptLookup()),
        "nothing to copy, random ids": (noise, PromptLookup()),
        "nothing to copy, 12 ids in random order": (
            make_noise(args.tokens, size, few=12),
            PromptLookup(),
        ),
    }
    for agreement in (0.9, 0.7, 0.1):
        kind = f"a draft model that agrees on {agreement:.0%} of the tokens"
        kinds[kind] = noise, ScriptedDraftModel(small, agreement)
    results: dict[str, Any] = {"machine": platform.machine(), "tokens": args.tokens}
    print_header("text", "plain tok/s", "wall", "rounds", "processor", "accepted of drafted")
    for kind, (script, drafter) in kinds.items():
        # One speculator for each kind: what it learned of copies would not help the others.
        found = results[kind] = compare(model, drafter, script, args.rounds)
        wall = f"{found['plain_tok_per_s']:.0f}", f"{found['ratio']:.2f}x"
        rounds, busy = " ".join(map(str, found["rounds"])), f"{found['cpu_ratio']:.2f}x"
        print_row(kind, *wall, rounds, busy, f"{found['accepted']} of {found['drafted']}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
