# ruff: noqa: E501 - tables of phrases are kept compact, as one text per table
"""What a person may tell about themselves: how it is told, asked and answered.

`{v}` is the value, `{a}` the value with its article, `{o}` the value it replaces, `{s}` the kind
of pet. `part` is the clause that answers and summaries are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from words import is_held_out, pick_value, pick_word

PETS = ("dog", "cat", "parrot", "rabbit", "hamster", "horse", "fish", "turtle")


@dataclass(frozen=True)
class Fact:
    """One kind of fact."""

    pool: str
    clauses: tuple[str, ...]  # said inside a sentence, alone or joined
    part: str
    ask: tuple[str, ...]
    clause_ask: str  # "what is my name", to be joined with others
    system: str
    ack: str
    missing: str
    fix: tuple[str, ...] = ()  # further ways to correct it
    who: str = ""


def _s(text: str) -> tuple[str, ...]:
    return tuple(t.strip() for t in text.split(";"))


FACTS: dict[str, Fact] = {
    "name": Fact(
        "name",
        _s(
            "my name is {v};I am {v};I'm {v};my name's {v};I am called {v};you can call me {v};"
            "call me {v};people call me {v};this is {v}"
        ),
        "your name is {v}",
        _s(
            "what is my name?;what's my name?;who am I?;do you know my name?;do you remember my name?;"
            "tell me my name;what am I called?;can you tell me my name?;say my name;"
            "what was my name?;what was my name again?;did I tell you my name?;how am I called?;"
            "and my name?;do you still know my name?;do you remember who I am?;my name?"
        ),
        "what is my name",
        "The user is called {v}.;The user's name is {v}.;You are talking to {v}.;The user is {v}.",
        "Nice to meet you, {v}!",
        "You have not told me your name.",
        _s("call me {v} instead;I am {v}, not {o};my name is {v}, not {o};I go by {v} now"),
    ),
    "city": Fact(
        "city",
        _s(
            "I live in {v};I am from {v};my home is in {v};my home town is {v};I'm from {v};"
            "I am living in {v};my city is {v};I come from {v}"
        ),
        "you live in {v}",
        _s(
            "where do I live?;where am I from?;what is my city?;which city do I live in?;"
            "where do I come from?;do you know where I live?;do you remember where I live?;"
            "tell me where I live;what city am I from?;where is my home?;in which city do I live?;"
            "where was I from again?;and where do I live?;what is my home town?"
        ),
        "where do I live",
        "The user lives in {v}.;The user is from {v}.",
        "{v} sounds like a nice place.",
        "You have not told me where you live.",
        _s("I moved to {v};I live in {v} now;I moved from {o} to {v};I live in {v}, not in {o}"),
    ),
    "colour": Fact(
        "colour",
        _s(
            "my favourite colour is {v};my favorite color is {v};the colour I like best is {v};"
            "I like the colour {v};I love the colour {v};{v} is my favourite colour"
        ),
        "your favourite colour is {v}",
        _s(
            "what is my favourite colour?;what's my favorite color?;which colour do I like?;"
            "what colour do I like best?;do you remember my favourite colour?;tell me my favourite colour;"
            "do you know my favourite color?;what was my favourite colour?;and my favourite colour?;"
            "which color did I say I like?"
        ),
        "what is my favourite colour",
        "The user's favourite colour is {v}.",
        "{v} is a beautiful colour.",
        "You have not told me your favourite colour.",
        _s("now I like {v} more;I like {v} better than {o} now"),
    ),
    "pet": Fact(
        "pet_name",
        _s(
            "I have a {s} called {v};my {s} is called {v};I have a {s} named {v};my {s}'s name is {v};"
            "my pet is a {s} called {v};{v} is my {s};I own a {s}, its name is {v}"
        ),
        "your {s} is called {v}",
        _s(
            "what is my {s} called?;what is my {s}'s name?;what is the name of my {s}?;"
            "what's my {s} called?;do you remember my {s}'s name?;tell me the name of my {s};"
            "what is my pet called?;what is my pet's name?;do you know what my {s} is called?;"
            "how is my {s} called?;what was the name of my {s}?;and my {s}?;what pet do I have?;"
            "do I have a pet?"
        ),
        "what is my {s} called",
        "The user has a {s} called {v}.",
        "{v} is a lovely name for a {s}.",
        "You have not told me about a pet.",
        _s("my {s} is not called {o} but {v};its name is {v}, not {o}"),
        "{v} is your {s}.",
    ),
    "job": Fact(
        "job",
        _s(
            "I am {a};I work as {a};I'm {a};my job is {v};I am {a} by profession;I earn my money as {a}"
        ),
        "you work as {a}",
        _s(
            "what is my job?;what do I do for a living?;what's my job?;what do I work as?;"
            "do you remember my job?;what is my profession?;tell me what I do for work;"
            "do you know what my job is?;what was my job?;and my job?;"
            "what do I do?"
        ),
        "what is my job",
        "The user works as {a}.;The user is {a}.",
        "It must be interesting to work as {a}.",
        "You have not told me your job.",
        _s("now I work as {a};I changed jobs, I am {a} now;I work as {a}, not as {o}"),
    ),
    "food": Fact(
        "food",
        _s(
            "my favourite food is {v};my favorite food is {v};I like to eat {v};I love eating {v};"
            "the food I like best is {v};{v} is my favourite food;I love to eat {v}"
        ),
        "your favourite food is {v}",
        _s(
            "what is my favourite food?;what's my favorite food?;what do I like to eat?;"
            "which food do I like best?;do you remember my favourite food?;tell me my favourite food;"
            "what food do I like?;what do I love eating?;what was my favourite food?;and my favourite food?"
        ),
        "what is my favourite food",
        "The user's favourite food is {v}.;The user likes to eat {v}.",
        "{v}, that sounds tasty.",
        "You have not told me your favourite food.",
        _s("now I like {v} better;I prefer {v} to {o} now"),
    ),
    "hobby": Fact(
        "hobby",
        _s(
            "my hobby is {v};my favourite hobby is {v};in my free time I do {v};{v} is my hobby;"
            "my hobbies are {v};what I do for fun is {v}"
        ),
        "your hobby is {v}",
        _s(
            "what is my hobby?;what's my hobby?;what do I do in my free time?;what do I do for fun?;"
            "do you remember my hobby?;tell me my hobby;which hobby do I have?;what was my hobby?;"
            "what are my hobbies?;and my hobby?"
        ),
        "what is my hobby",
        "The user's hobby is {v}.",
        "{v} sounds like fun.",
        "You have not told me your hobby.",
        _s("my new hobby is {v};I gave up {o}, my hobby is {v}"),
    ),
    "drink": Fact(
        "drink",
        _s(
            "my favourite drink is {v};my favorite drink is {v};I like to drink {v};I love drinking {v};"
            "{v} is my favourite drink;the drink I like best is {v}"
        ),
        "your favourite drink is {v}",
        _s(
            "what is my favourite drink?;what's my favorite drink?;what do I like to drink?;"
            "do you remember my favourite drink?;which drink do I like?;tell me my favourite drink;"
            "what do I love drinking?;what was my favourite drink?;and my favourite drink?"
        ),
        "what is my favourite drink",
        "The user's favourite drink is {v}.",
        "{v}, good choice.",
        "You have not told me your favourite drink.",
        _s("now I like {v} more;I prefer {v} to {o}"),
    ),
    "animal": Fact(
        "animal",
        _s(
            "my favourite animal is the {v};my favorite animal is the {v};the animal I like best is the {v};"
            "I like the {v} best of all animals;the {v} is my favourite animal"
        ),
        "your favourite animal is the {v}",
        _s(
            "what is my favourite animal?;what's my favorite animal?;which animal do I like best?;"
            "do you remember my favourite animal?;tell me my favourite animal;"
            "what was my favourite animal?;which animal do I like?;and my favourite animal?"
        ),
        "what is my favourite animal",
        "The user's favourite animal is the {v}.",
        "The {v} is a fine animal.",
        "You have not told me your favourite animal.",
        _s("now I like the {v} more;I like the {v} better than the {o}"),
    ),
    "band": Fact(
        "band",
        _s(
            "my favourite band is {v};my favorite band is {v};I listen to {v};the band I like best is {v};"
            "I am a fan of {v};{v} is my favourite band"
        ),
        "your favourite band is {v}",
        _s(
            "what is my favourite band?;what's my favorite band?;which band do I like?;"
            "what music do I listen to?;do you remember my favourite band?;tell me my favourite band;"
            "what was my favourite band?;and my favourite band?"
        ),
        "what is my favourite band",
        "The user's favourite band is {v}.",
        "I have never heard {v}, but I believe you.",
        "You have not told me your favourite band.",
        _s("now I listen to {v};I like {v} more than {o} now"),
    ),
    "language": Fact(
        "language",
        _s(
            "I program in {v};I write code in {v};my programming language is {v};I code in {v};"
            "my favourite programming language is {v};I am learning {v}"
        ),
        "you program in {v}",
        _s(
            "which language do I program in?;what do I code in?;what is my programming language?;"
            "what's my favorite programming language?;do you remember my programming language?;"
            "what language do I write code in?;tell me my programming language;and my programming language?"
        ),
        "what is my programming language",
        "The user programs in {v}.",
        "{v} is a good language.",
        "You have not told me your programming language.",
        _s("I switched to {v};I switched from {o} to {v};I program in {v} now"),
    ),
    "age": Fact(
        "#",
        _s("I am {v} years old;I'm {v} years old;my age is {v};I am {v}"),
        "you are {v} years old",
        _s(
            "how old am I?;what is my age?;what's my age?;do you remember my age?;tell me my age;"
            "do you know how old I am?;tell me how old I am;and my age?"
        ),
        "how old am I",
        "The user is {v} years old.",
        "{v} is a good age.",
        "You have not told me your age.",
        _s("I turned {v} today;I am {v}, not {o}"),
    ),
    "number": Fact(
        "#",
        _s(
            "my favourite number is {v};my favorite number is {v};my lucky number is {v};"
            "{v} is my lucky number;the number I like best is {v}"
        ),
        "your favourite number is {v}",
        _s(
            "what is my favourite number?;what's my lucky number?;which number do I like?;"
            "what is my lucky number?;do you remember my favourite number?;tell me my favourite number;"
            "what was my favorite number?;and my lucky number?"
        ),
        "what is my favourite number",
        "The user's favourite number is {v}.",
        "{v} is a fine number.",
        "You have not told me your favourite number.",
        _s("now my lucky number is {v}"),
    ),
    "word": Fact(
        "word",
        _s(
            "the secret word is {v};the password is {v};the code word is {v};remember the word {v};"
            "please remember {v};my secret word is {v};keep the word {v} in mind;the magic word is {v}"
        ),
        "the word is {v}",
        _s(
            "what is the secret word?;what is the password?;what was the word?;which word did I tell you?;"
            "what is the code word?;what was the secret word?;do you remember the word?;"
            "what word should you remember?;tell me the secret word;what is the magic word?"
        ),
        "what is the secret word",
        "The secret word is {v}.",
        "I will remember the word {v}.",
        "You have not told me a word.",
        _s("the word is {v}, not {o};the new word is {v};forget {o}, the word is {v}"),
    ),
}
for _who, _plural in (
    ("friend", "best friend"),
    ("sister", "sister"),
    ("brother", "brother"),
    ("boss", "boss"),
):
    FACTS[_who] = Fact(
        "name",
        _s(
            f"my {_plural} is called {{v}};my {_who}'s name is {{v}};I have a {_who} called {{v}};"
            f"{{v}} is my {_plural};my {_who} is {{v}};the name of my {_who} is {{v}}"
        ),
        f"your {_who} is called {{v}}",
        _s(
            f"what is my {_who} called?;what is my {_who}'s name?;who is my {_who}?;"
            f"what is the name of my {_who}?;do you remember my {_who}'s name?;tell me my {_who}'s name;"
            f"what was my {_who} called?;and my {_who}?;do you know my {_who}'s name?"
        ),
        f"what is my {_who} called",
        f"The user's {_who} is called {{v}}.",
        f"Say hello to your {_who} {{v}} from me.",
        f"You have not told me about a {_who}.",
        _s(f"my {_who} is not called {{o}} but {{v}}"),
        f"{{v}} is your {_who}.",
    )

# People speak most often of these.
WEIGHTS = {"name": 6, "city": 3, "colour": 2, "pet": 3, "job": 2, "food": 2}


def pick_kind(rng: Random, taken: set[str] | dict[str, str]) -> str:
    """Pick a kind of fact that is not among `taken`."""
    kinds = [k for k in FACTS if k not in taken]
    return rng.choices(kinds, [WEIGHTS.get(k, 1) for k in kinds])[0]


def pick_fact_value(rng: Random, kind: str, strict: bool = False) -> str:
    """Pick a value for a kind of fact; a pet's is "dog|Rex"."""
    pool = FACTS[kind].pool
    if pool == "#":
        return str(rng.randint(5, 99))
    if pool == "word":
        return pick_word(rng, strict)
    value = pick_value(rng, pool, strict)
    if rng.random() < 0.12 and not strict and not is_held_out(value):
        value = value.lower()  # people do not always write capitals
    return f"{rng.choice(PETS)}|{value}" if kind == "pet" else value


def article(word: str) -> str:
    """Return the word with a or an."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def fill(pattern: str, value: str, old: str = "", mark: bool = False) -> str:
    """Fill a pattern; with `mark` the values are fenced so that typing noise spares them."""
    kind, _, name = value.rpartition("|")
    before = old.rpartition("|")[2]
    fence = (lambda t: f"\ue000{t}\ue001") if mark else (lambda t: t)
    return pattern.format(
        v=fence(name), a=fence(article(name)), o=fence(before), s=fence(kind) or "pet"
    )
