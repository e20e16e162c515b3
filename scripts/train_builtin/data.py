# ruff: noqa: E501, SIM905 - tables of phrases are kept compact, as one text per table
"""Dialogues for training: system prompts, the choice of turns, and the mix of lengths.

Every turn has one right answer, given what was said before, except those of `fun`, which are there
so that sampling has something to choose from.
"""

from __future__ import annotations

from random import Random

from facts import FACTS, fill, pick_fact_value, pick_kind
from knowledge import statement, talk, term, unknown
from personal import (
    ask,
    ask_many,
    ask_missing,
    correct,
    greet,
    name_me,
    summary,
    tell,
    tell_many,
    who_are_you,
    who_is,
    yes_no,
    your_name,
)
from skills import (
    capital,
    chain,
    fun,
    is_a,
    minus,
    opposite,
    plus,
    repeat,
    repeat_words,
    say_hello,
    times,
    too_big,
    translate,
    translate_back,
)
from words import PIECES, is_held_out, mix_up, pick_value, pick_word
from world import MOODS, Turn, World

SUFFIXES = (
    "Over.;Meow!;Arrr!;my friend.;Sir.;Amen.;Woof!;Cheers!;OK?;Beep.;Captain!;You know.;"
    "That is all.;End.;Stop.;Have a nice day!;Madam.;Done.;boss;Peace.;Bingo!;over and out"
).split(";")


def make_style(w: World) -> str:
    """Give the world a style; return the system prompt that asks for it."""
    r, s, asked = w.rng, w.style, []
    if r.random() < 0.5:
        s.bot = pick_value(r, "name", w.strict)
        asked.append(r.choice((
            "You are {}.", "Your name is {}.", "You are called {}.", "You are {}, a helpful assistant.",
            "You are a helpful assistant called {}.", "Call yourself {}.", "You are an assistant named {}.",
        )).format(s.bot))  # fmt: skip
    if r.random() < 0.35:
        kind = "name" if r.random() < 0.7 else pick_kind(r, {"name"})
        w.facts[kind] = pick_fact_value(r, kind, w.strict)
        asked.append(fill(r.choice(FACTS[kind].system.split(";")), w.facts[kind]))
    if r.random() < 0.32:
        ask_suffix(w, asked)
    if r.random() < 0.2:
        ask_mood(w, asked)
    if r.random() < 0.32:
        ask_caps(w, asked)
    if r.random() < 0.12:
        s.short = True
        asked.append(r.choice((
            "Be brief.", "Keep answers short.", "Answer in few words.", "Short answers only.",
            "Be very short.", "Answer as briefly as you can.",
        )))  # fmt: skip
    if not asked or r.random() < 0.1:
        asked.append(r.choice((
            "You are a helpful assistant.", "Be nice.", "Answer in English.", "Help the user.",
            "You are a friendly assistant.", "Answer the questions of the user.",
        )))  # fmt: skip
    r.shuffle(asked)
    return " ".join(asked)


def ask_suffix(w: World, asked: list[str], word: str = "") -> None:
    r = w.rng
    w.style.suffix = r.choice(SUFFIXES)
    if word or w.strict or r.random() < 0.5:
        w.style.suffix = (word or pick_word(r, w.strict)) + r.choice(("", ".", "!"))
    asked.append(r.choice((
        'End every answer with "{}".', "End every answer with {}", "Finish each reply with {}",
        'Always end with "{}"', "Put {} at the end of each answer.", 'Say "{}" at the end of every answer.',
        "Close every message with {}",
    )).format(w.style.suffix))  # fmt: skip


def ask_mood(w: World, asked: list[str]) -> None:
    w.style.mood = w.rng.choice(list(MOODS))
    adverb = "" if w.style.mood.startswith("a ") else w.rng.choice(("", "always ", "very "))
    asked.append(w.rng.choice((
        "You are {}.", "Be {}.", "Sound {}.", "Answer as if you were {}.", "Your mood: {}.",
        "You feel {} today.",
    )).format(adverb + w.style.mood))  # fmt: skip


def ask_caps(w: World, asked: list[str]) -> None:
    w.style.caps = True
    asked.append(w.rng.choice((
        "Answer in capital letters.", "Write everything in capitals.", "USE CAPITALS ONLY.",
        "Always answer in capital letters.", "Shout: only capital letters.", "Answer in upper case.",
    )))  # fmt: skip


BASE: dict[Turn, float] = {
    term: 3.6, talk: 3.6, unknown: 1.8, statement: 0.5, plus: 2.6, minus: 0.7, times: 0.6,
    too_big: 0.2, repeat: 4.0, say_hello: 0.2, opposite: 0.8, translate: 1.4, translate_back: 0.4,
    is_a: 1.3, capital: 0.8, fun: 0.3, who_are_you: 0.5, your_name: 0.45, name_me: 0.12,
    tell: 2.2, tell_many: 0.9, ask_missing: 0.45, greet: 0.3, summary: 0.5, who_is: 0.15,
}  # fmt: skip


def next_turn(w: World, last: bool) -> Turn:
    """Pick the next kind of turn, given what has happened."""
    weights = dict(BASE)
    if not w.messages or len(w.messages) == 1:
        weights[greet] += 3
        weights[tell] += 2
    if w.number is not None:
        weights[chain] = 9.0
    if w.facts:
        weights |= {ask: 3.6, correct: 1.2, yes_no: 1.0, who_is: 0.3}
        weights[ask_missing] = 0.6
        if w.last_kind:
            weights[correct] = 2.2
        if last:
            weights[ask] = 9.0
    if len(w.facts) > 1:
        weights |= {ask_many: 0.6, summary: 1.3}
    if len(w.facts) > 5:
        weights |= {tell: 0.4, tell_many: 0.1, summary: 0.05}
    if w.style.bot:
        weights[your_name] = 1.2
    return w.rng.choices(list(weights), list(weights.values()))[0]


def start(w: World, system: float = 0.35) -> None:
    """Open the dialogue, perhaps with a system prompt."""
    if w.rng.random() < system:
        w.messages.append({"role": "system", "content": make_style(w)})


def dialogue(rng: Random, turns: int, system: float = 0.45) -> list[dict]:
    """Make one training dialogue."""
    w = World(rng)
    start(w, system)
    for i in range(turns):
        next_turn(w, i == turns - 1)(w)
    return w.messages


def recall_dialogue(rng: Random) -> list[dict]:
    """Make a short dialogue of telling, asking and repeating (the first lessons)."""
    w = World(rng, typos=0.05)
    start(w, 0.15)
    for _ in range(rng.randint(1, 4)):
        turn = rng.choice((tell, tell, tell_many, repeat, repeat, say_hello, name_me))
        if w.facts:
            turn = rng.choice((turn, ask, ask, ask, correct))
        turn(w)
    if w.facts:
        ask(w)
    return w.messages


def drill_word(rng: Random) -> str:
    """Pick a word of rare tokens more often than `pick_word` does."""
    while True:
        roll = rng.random()
        word = mix_up(rng, capital=rng.random() < 0.15) if roll < 0.5 else pick_word(rng)
        if PIECES[0] and roll > 0.7:
            word = rng.choice(PIECES[0])  # one token, perhaps of those that are rarely written
        if not is_held_out(word):
            return word


def drill_repeat(w: World) -> None:
    """Repeat words of rare tokens, some of them twice in a row."""
    words = [drill_word(w.rng) for _ in range(w.rng.randint(1, 8))]
    if w.rng.random() < 0.45:
        at = w.rng.randrange(len(words))
        words.insert(at, words[at])
    repeat_words(w, words)


def drill_is_a(w: World) -> None:
    is_a(w, yes_no=0.9)


def drill_copying(rng: Random) -> list[dict]:
    """Make a short dialogue of rare words and styles."""
    w = World(rng, typos=0.05)
    asked: list[str] = []
    style = rng.choices(("suffix", "caps", "mood", ""), (0.42, 0.35, 0.03, 0.2))[0]
    if style == "suffix":
        ask_suffix(w, asked, drill_word(rng) if rng.random() < 0.85 else "")
    elif style:
        (ask_caps if style == "caps" else ask_mood)(w, asked)
    if asked:
        w.messages.append({"role": "system", "content": asked[0]})
    for _ in range(rng.randint(1, 3)):
        turn = rng.choice(
            (drill_repeat, drill_repeat, repeat, drill_is_a, term, talk, tell, tell, opposite,
             capital, translate, greet, say_hello, minus)
        )  # fmt: skip
        (ask if w.facts and rng.random() < 0.2 else turn)(w)
    return w.messages


def drill_facts(rng: Random) -> list[dict]:
    """Make a short dialogue of facts: which of them are true, and all of them."""
    w = World(rng, typos=0.05)
    start(w, 0.15)
    for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4))):
        rng.choice((tell, tell, tell, tell_many))(w)
        if rng.random() < 0.15:
            rng.choice((plus, repeat, opposite, correct))(w)
    for _ in range(rng.randint(1, 3)):
        rng.choice((yes_no, yes_no, ask, summary if len(w.facts) > 1 else yes_no))(w)
    return w.messages


def training_dialogue(rng: Random, drills: float = 0.42) -> list[dict]:
    """Draw a dialogue of the main course, or a drill; a few are as long as the context."""
    if rng.random() < drills:
        return drill_copying(rng) if rng.random() < 0.64 else drill_facts(rng)
    roll = rng.random()
    if roll < 0.14:
        return recall_dialogue(rng)
    if roll < 0.62:
        return dialogue(rng, rng.randint(1, 7))
    if roll < 0.966:
        return dialogue(rng, rng.randint(8, 13))
    if roll < 0.995:
        return dialogue(rng, rng.randint(14, 32))
    return dialogue(rng, rng.randint(33, 75))
