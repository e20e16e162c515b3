# ruff: noqa: E501, SIM905 - tables of phrases are kept compact, as one text per table
"""Turns about the person and about the model: facts told and asked, greetings, names."""

from __future__ import annotations

from facts import FACTS, PETS, fill, pick_fact_value, pick_kind
from faq import PARAMS, REAL
from words import pick_value
from world import World, bare, join, part, upper_first

GREETINGS = (
    "hi;hello;hey;hi there;hello there;good morning;good evening;good afternoon;hey there;hiya;yo;"
    "howdy;greetings;hello!;hi!;hello mlxchat;hi mlxchat;hallo;hey you;good day;hello computer;heya;"
    "hello again;hi again;hello model;morning;hi bot"
).split(";")


def tell(w: World, kind: str = "", value: str = "") -> None:
    kind = kind or pick_kind(w.rng, w.facts)
    value = value or pick_fact_value(w.rng, kind, w.strict)
    fact = FACTS[kind]
    clause = fill(w.rng.choice(fact.clauses), value, mark=True)
    if w.rng.random() < 0.12:
        clause = w.rng.choice(("hi, ", "hello! ", "hey, ", "by the way, ", "well, ", "you know, ",
                               "let me tell you: ", "remember this: ", "also, ")) + clause  # fmt: skip
    end = w.rng.choice((".", ".", ".", "!", "", ". remember that."))
    w.facts.pop(kind, None)
    w.facts[kind] = value
    w.say(clause + end, fill(fact.ack, value), "OK.")
    w.last_kind = kind


def tell_many(w: World, count: int = 0) -> None:
    count = count or w.rng.choice((2, 2, 2, 3))
    clauses, parts = [], []
    for _ in range(count):
        kind = pick_kind(w.rng, w.facts)
        value = pick_fact_value(w.rng, kind, w.strict)
        clauses.append(fill(w.rng.choice(FACTS[kind].clauses), value, mark=True))
        parts.append(part(kind, value))
        w.facts[kind] = value
    sep = w.rng.choice((", ", ". ", ", and ", " and "))
    text = sep.join(clauses[:-1]) + w.rng.choice((" and ", ", and ", ". ", " and ")) + clauses[-1]
    hello = w.rng.choice(("hi, ", "hello, ", "hi! ", "hey! ")) if w.rng.random() < 0.2 else ""
    w.say(hello + text + w.rng.choice((".", "", "!")), f"I will remember: {join(parts)}.", "OK.")


def ask(w: World, kind: str = "") -> None:
    """Ask for a fact that was told."""
    kind = kind or w.rng.choice(list(w.facts))
    value, fact = w.facts[kind], FACTS[kind]
    question = fill(w.rng.choice(fact.ask), value)
    w.say(question, upper_first(part(kind, value)) + ".", bare(kind, value))


def ask_missing(w: World) -> None:
    kind = pick_kind(w.rng, w.facts)
    question = fill(w.rng.choice(FACTS[kind].ask), w.rng.choice(PETS) + "|x")
    w.say(question, FACTS[kind].missing, FACTS[kind].missing)


def ask_many(w: World) -> None:
    kinds = w.rng.sample(list(w.facts), k=w.rng.choice((2, 2, 3)) if len(w.facts) > 2 else 2)
    questions = [fill(FACTS[k].clause_ask, w.facts[k]) for k in kinds]
    opening = w.rng.choice(("", "", "tell me: ", "do you remember: ", "quick: "))
    answer = upper_first(join([part(k, w.facts[k]) for k in kinds])) + "."
    w.say(f"{opening}{join(questions)}?", answer)


def summary(w: World) -> None:
    question = w.rng.choice((
        "what do you know about me?", "tell me what you know about me", "what did I tell you?",
        "what have I told you so far?", "do you remember what I told you?", "sum up what you know",
        "what do you remember about me?", "list what you know about me", "what have you learned?",
    ))  # fmt: skip
    parts = [part(k, v) for k, v in w.facts.items()]
    none = "You have not told me anything about you yet."
    w.say(question, upper_first(join(parts)) + "." if parts else none)


FIXES = (
    "actually, {c};no, {c};wait, {c};sorry, {c};correction: {c};I made a mistake, {c};"
    "that was wrong, {c};oh no, {c};actually {c};hold on, {c};I changed my mind, {c};no wait, {c}"
).split(";")
MEANT = (
    "sorry, I meant {v};I meant {v};no, {v};actually {v};not {o}, {v};{v}, not {o};no, it is {v};"
    "oops, {v};it's {v}, not {o};I mean {v};sorry, {v};wait, {v}"
).split(";")


def correct(w: World, kind: str = "") -> None:
    """Replace a fact by a new value."""
    kind = kind or w.rng.choice(list(w.facts))
    old, fact = w.facts[kind], FACTS[kind]
    new = old
    while new == old:
        new = pick_fact_value(w.rng, kind, w.strict)
    if kind == "pet":
        new = old.partition("|")[0] + "|" + new.partition("|")[2]
    roll = w.rng.random()
    if w.last_kind == kind and roll < 0.5:
        text = fill(w.rng.choice(MEANT), new, old, mark=True)
    elif fact.fix and roll < 0.7:
        text = fill(w.rng.choice(fact.fix), new, old, mark=True)
    else:
        clause = fill(w.rng.choice(fact.clauses), new, old, mark=True)
        text = w.rng.choice(FIXES).format(c=clause)
    w.facts.pop(kind)
    w.facts[kind] = new
    w.say(text + w.rng.choice((".", "")), f"All right, {part(kind, new)}.", "OK.")
    w.last_kind = kind


def yes_no(w: World) -> None:
    kind = w.rng.choice([k for k in w.facts if FACTS[k].clause_ask.startswith("what")] or ["-"])
    if kind == "-":
        return summary(w)
    value = w.facts[kind]
    right = w.rng.random() < 0.5
    said = value if right else pick_fact_value(w.rng, kind, w.strict)
    if not right and said.rpartition("|")[2] == value.rpartition("|")[2]:
        return ask(w, kind)
    if kind == "pet":
        said = value.partition("|")[0] + "|" + said.rpartition("|")[2]
    subject = fill(FACTS[kind].clause_ask, value).replace("what is ", "", 1)
    question = f"is {subject} \ue000{said.rpartition('|')[2]}\ue001?"
    truth = part(kind, value)
    return w.say(
        question, f"Yes, {truth}." if right else f"No, {truth}.", "Yes." if right else "No."
    )


def who_is(w: World) -> None:
    known = [k for k in w.facts if FACTS[k].who]
    if known and w.rng.random() < 0.85:
        kind = w.rng.choice(known)
        value = w.facts[kind]
        name = value.rpartition("|")[2]
        text, answer = f"who is \ue000{name}\ue001?", fill(FACTS[kind].who, value)
    else:
        name = pick_value(w.rng, "name", w.strict)
        if name in {v.rpartition("|")[2] for v in w.facts.values()} | {w.style.bot}:
            return summary(w)
        text, answer = f"who is \ue000{name}\ue001?", f"You have not told me who {name} is."
    return w.say(text, answer)


def greet(w: World) -> None:
    name = w.facts.get("name")
    hello = f"Hello, {name}!" if name else "Hello!"
    w.say(w.rng.choice(GREETINGS), f"{hello} How can I help?", hello)


WHO = (
    "who are you?;what are you?;tell me about yourself;introduce yourself;who is this?;"
    "what model are you?;which model are you?;what kind of model is this?;are you a language model?;"
    "are you ChatGPT?;are you gpt-4?;are you Qwen?;are you Claude?;are you a real model?;"
    "describe yourself;who am I talking to?;what is this model?;say something about yourself;"
    "are you llama?;which AI are you?;what sort of AI are you?;explain what you are;who r u;"
    "what exactly are you?;are you an LLM?;tell me who you are;what's your model?;"
    "who am i speaking with?;and who are you?;and you?;so who are you?;what am i talking to?"
).split(";")
NAME_ASK = (
    "what is your name?;what's your name?;do you have a name?;how are you called?;tell me your name;"
    "what are you called?;what should I call you?;your name?;how should I call you?;"
    "do you have a name at all?;what can I call you?;may I know your name?;and what is your name?"
).split(";")
SELF = f"a tiny model with about {PARAMS} parameters, trained by the mlxchat project"


def who_are_you(w: World) -> None:
    me = f"{w.style.bot}, " if w.style.bot else ""
    short = f"I am {w.style.bot}." if w.style.bot else "I am a tiny model inside mlxchat."
    answer = f"I am {me}{SELF}. I live inside its package. For a real model: {REAL}"
    w.say(w.rng.choice(WHO), answer, short)


def your_name(w: World) -> None:
    none = "I have no name. I am the tiny model inside mlxchat."
    answer = f"My name is {w.style.bot}." if w.style.bot else none
    w.say(w.rng.choice(NAME_ASK), answer, f"{w.style.bot}." if w.style.bot else none)


def name_me(w: World) -> None:
    """The person gives the model a name."""
    w.style.bot = pick_value(w.rng, "name", w.strict)
    pattern = w.rng.choice((
        "I will call you {n}", "your name is {n}", "your name is {n} now", "from now on you are {n}",
        "you are called {n}", "let me call you {n}", "your new name is {n}", "I name you {n}",
    ))  # fmt: skip
    w.say(
        pattern.format(n=f"\ue000{w.style.bot}\ue001"),
        f"All right, my name is {w.style.bot}.",
        "OK.",
    )
