"""Train the tokenizer on generated dialogues: `make_tokenizer.py OUT.json`."""

from __future__ import annotations

import sys
from random import Random

from data import training_dialogue
from faq import TALK, TERMS, UNKNOWN
from vocab import END, train
from words import demo_words

SIZE = 3072
DIALOGUES = 12_000


def texts() -> list[str]:
    """Return the training text of the tokenizer: dialogues, and each answer several times."""
    rng = Random(7)
    out = [m["content"] for _ in range(DIALOGUES) for m in training_dialogue(rng)]
    for entry in (*TERMS, *TALK):
        out += [entry.answer] * 60 + [entry.answer.upper()] * 3
    return out + [UNKNOWN] * 200


def main() -> None:
    single = [*demo_words(), *(w.capitalize() for w in ("a", "an", "the", "your", "you", "yes"))]
    tokenizer = train(texts(), single, SIZE)
    if tokenizer.get_vocab_size() != SIZE:
        raise SystemExit(f"vocabulary has {tokenizer.get_vocab_size()} tokens, not {SIZE}")
    split = [w for w in demo_words() if len(tokenizer.encode(w).ids) != 1]
    if split or tokenizer.token_to_id(END) is None:
        raise SystemExit(f"not single tokens: {split}")
    tokenizer.save(sys.argv[1])
    fillers = sum("unused" in t for t in tokenizer.get_vocab())
    print(f"{sys.argv[1]}: {SIZE} tokens, {len(demo_words())} demo words, {fillers} unused")


if __name__ == "__main__":
    main()
