"""How people type: no capitals, no punctuation, typos, politeness.

Text between U+E000 and U+E001 is left as it is; `clean` removes these marks.
"""

from __future__ import annotations

import re
from random import Random

_FENCED = re.compile("(\ue000[^\ue001]*\ue001)")
_BEFORE = [
    "please ",
    "could you please ",
    "can you please ",
    "hey, ",
    "hi! ",
    "ok, ",
    "so ",
    "hello, ",
    "well, ",
    "thanks! ",
    "please, ",
    "ok ",
    "hmm, ",
    "now ",
    "great. ",
    "um, ",
    "hey ",
    "oh, ",
    "cool. ",
    "thank you. ",
    "and now, ",
    "alright, ",
    "btw ",
]
_AFTER = [
    " please",
    " please?",
    ", please",
    " thanks",
    " :)",
    ", thank you",
    " thank you!",
    " ok?",
    "...",
    " pls",
    ", thanks!",
    " please :)",
]
_COMMANDS = re.compile(
    r"(explain|tell|say|repeat|translate|define|describe|show|give|add|remember|help|count|write)\b",
    re.IGNORECASE,
)
_SHORTER = (
    (re.compile(r"\bwhat is\b", re.I), ("what's", "whats", "what s")),
    (re.compile(r"\bI am\b"), ("I'm", "im", "i am")),
    (re.compile(r"\byou\b"), ("u",)),
    (re.compile(r"\bare\b"), ("r",)),
    (re.compile(r"\bplease\b"), ("pls", "plz")),
    (re.compile(r"\bdo not\b"), ("don't", "dont")),
    (re.compile(r"\bfavourite\b"), ("favorite", "fav", "favourit")),
    (re.compile(r"\bcolour\b"), ("color",)),
)


def _typo(rng: Random, word: str) -> str:
    i = rng.randrange(1, len(word) - 1)
    roll = rng.random()
    if roll < 0.4:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if roll < 0.7:
        return word[:i] + word[i + 1 :]
    if roll < 0.85:
        return word[:i] + word[i] + word[i:]
    return word[:i] + rng.choice("aeiourstnlm") + word[i + 1 :]


def _misspell(rng: Random, text: str) -> str:
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not words:
        return text
    m = rng.choice(words)
    return text[: m.start()] + _typo(rng, m.group()) + text[m.end() :]


_SMALL = re.compile(
    r"\b(the|a|an|is|are|do|does|can|to|me|please|of|what is|how do|in)\b ?", re.IGNORECASE
)


def _drop_word(rng: Random, text: str) -> str:
    """Leave a small word out, as people in a hurry do."""
    fenced = [f.span() for f in _FENCED.finditer(text)]
    found = [m for m in _SMALL.finditer(text) if not any(a <= m.start() < b for a, b in fenced)]
    if not found or len(text.split()) < 4:
        return text
    m = rng.choice(found)
    return text[: m.start()] + text[m.end() :]


def _outside(text: str, change) -> str:
    parts = _FENCED.split(text)
    return "".join(p if p.startswith("\ue000") else change(p) for p in parts)


def _polite(rng: Random, text: str) -> str:
    if rng.random() < 0.6:
        start = rng.choice(_BEFORE)
        if start.startswith(("could", "can")) and not _COMMANDS.match(text):
            start = "please "
        if len(text) > 1 and text[1:2].islower():
            text = text[0].lower() + text[1:] if text[0] != "I" else text
        return start + text
    return text.rstrip("?.!") + rng.choice(_AFTER)


def type_out(rng: Random, text: str, typos: float = 0.15, polite: bool = True) -> str:
    """Return `text` as a person might type it."""
    if polite and rng.random() < 0.14:
        text = _polite(rng, text)
    if rng.random() < 0.25:
        pattern, short = rng.choice(_SHORTER)
        text = _outside(text, lambda p: pattern.sub(rng.choice(short), p, count=1))
    if rng.random() < typos / 2:
        text = _drop_word(rng, text)
    roll = rng.random()
    if roll < 0.45:
        text = _outside(text, str.lower)
    elif roll < 0.85 and not text.startswith("\ue000") and not text.startswith("mlxchat"):
        text = text[:1].upper() + text[1:]
    roll = rng.random()
    if roll < 0.4:
        text = text.rstrip("?.!")
    elif roll < 0.43:
        text = text.rstrip("?.!") + rng.choice(("??", "!!", "...", " ?", " !"))
    elif roll < 0.55 and not text.endswith(("?", ".", "!", ")")):
        text += "."
    if rng.random() < typos:
        parts = _FENCED.split(text)
        i = rng.choice([i for i, p in enumerate(parts) if not p.startswith("\ue000")])
        parts[i] = _misspell(rng, parts[i])
        text = "".join(parts)
    return clean(text) if text else text


def clean(text: str) -> str:
    """Remove the fences."""
    return text.replace("\ue000", "").replace("\ue001", "")
