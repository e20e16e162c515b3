# ruff: noqa: E501, SIM905 - tables of phrases are kept compact, as one text per table
"""Turns of small skills: sums, copying, word pairs, and a few with many right answers."""

from __future__ import annotations

from random import Random

from words import CAPITALS, IS_A, OPPOSITES, TRANSLATIONS, is_held_out, pick_value, pick_word
from world import World, upper_first

PLUS = (
    "what is A + B?;A + B;A+B;A + B = ?;how much is A + B?;what is A plus B?;A plus B;add A and B;"
    "what's A+B?;calculate A + B;sum of A and B;what is the sum of A and B?;how much is A plus B?;"
    "can you add A and B?;compute A + B;A and B makes?;A+B=?;tell me A + B"
).split(";")
MINUS = (
    "what is A - B?;A - B;A-B;how much is A - B?;what is A minus B?;A minus B;subtract B from A;"
    "take B from A;how much is A minus B?;calculate A - B"
).split(";")
TIMES = (
    "what is A times B?;A times B;A * B;A x B;how much is A x B?;what is A * B?;multiply A by B;"
    "A*B;calculate A x B;what's A x B?"
).split(";")
ADD_MORE = (
    "add N to that;add N;plus N;and N more;now add N;add N more;add another N;and plus N?;+ N;"
    "what if you add N?;and with N more?;add N to it;plus N?;N more;now plus N;add N to the result"
).split(";")
TAKE_AWAY = (
    "take N away;minus N;subtract N;now subtract N;take N from that;subtract N from that;- N;"
    "take away N;and minus N?;N less"
).split(";")
TOO_BIG = "I can only do small sums, with plus, minus and times."


def _fill_sum(pattern: str, a: int, b: int) -> str:
    return pattern.replace("A", f"\ue000{a}\ue001").replace("B", f"\ue000{b}\ue001")


def _result(w: World, text: str, left: str, value: int) -> None:
    w.say(text, f"{left} = {value}.", f"{value}.")
    w.number = value


def pick_pair(rng: Random, strict: bool = False) -> tuple[int, int]:
    """Pick two numbers to add; of two-digit pairs one in ten is held out, in either order."""
    while True:
        low = rng.choice((0, 10, 10))
        a, b = rng.randint(low, 99), rng.randint(rng.choice((0, 10, 10)), 99)
        if strict and min(a, b) < 10:
            continue
        held = min(a, b) >= 10 and is_held_out("{}+{}".format(*sorted((a, b))))
        if held == strict:
            return a, b


def plus(w: World) -> None:
    a, b = pick_pair(w.rng, w.strict)
    _result(w, _fill_sum(w.rng.choice(PLUS), a, b), f"{a} + {b}", a + b)


def minus(w: World) -> None:
    a = w.rng.randint(1, 99)
    b = w.rng.randint(0, a)
    _result(w, _fill_sum(w.rng.choice(MINUS), a, b), f"{a} - {b}", a - b)


def times(w: World) -> None:
    a, b = w.rng.randint(0, 10), w.rng.randint(0, 10)
    _result(w, _fill_sum(w.rng.choice(TIMES), a, b), f"{a} x {b}", a * b)


def chain(w: World) -> None:
    """Go on with the last result."""
    last = w.number
    if last is None or last > 180:
        return plus(w)
    n = w.rng.randint(1, 20) if w.rng.random() < 0.7 else w.rng.randint(1, 99)
    if w.rng.random() < 0.25 and last >= n:
        text = w.rng.choice(TAKE_AWAY).replace("N", f"\ue000{n}\ue001")
        return _result(w, text, f"{last} - {n}", last - n)
    text = w.rng.choice(ADD_MORE).replace("N", f"\ue000{n}\ue001")
    return _result(w, text, f"{last} + {n}", last + n)


def too_big(w: World) -> None:
    a, b = w.rng.randint(100, 9999), w.rng.randint(2, 9999)
    text = w.rng.choice((
        f"what is {a} + {b}?", f"{a} * {b}", f"{a} / {b}", f"what is {b} divided by {b % 9 + 1}?",
        f"{a}+{b}", f"how much is {a} times {b}?", f"{a} - {b}", f"{b % 90 + 11} / {b % 7 + 2}",
        f"what is {a} plus {b}?", f"calculate {a} x {b}", f"{b % 80 + 20} * {a % 80 + 20}",
    ))  # fmt: skip
    w.say(text, TOO_BIG)


REPEAT = (
    "repeat after me: W;repeat: W;say W;please repeat: W;repeat W;say: W;can you say W?;echo W;"
    "repeat the words W;write W;repeat after me W;just say W;say this: W;now say W;please say W"
).split(";")


def repeat(w: World, count: int = 0) -> None:
    count = count or w.rng.choice((1, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8))
    repeat_words(w, [pick_word(w.rng, w.strict) for _ in range(count)])


def repeat_words(w: World, chosen: list[str]) -> None:
    words = " ".join(chosen)
    w.say(w.rng.choice(REPEAT).replace("W", f"\ue000{words}\ue001"), words, words)


def say_hello(w: World) -> None:
    name = pick_value(w.rng, "name", w.strict)
    text = w.rng.choice(("say hello to {n}", "greet {n}", "say hi to {n}", "greet my friend {n}"))
    w.say(text.format(n=f"\ue000{name}\ue001"), f"Hello, {name}!", f"Hello, {name}!")


OPPOSITE_OF: dict[str, str] = {}
for _a, _b in OPPOSITES:
    OPPOSITE_OF.setdefault(_a, _b)
for _a, _b in OPPOSITES:
    OPPOSITE_OF.setdefault(_b, _a)
UNCOUNTED = {"water", "tea", "coffee", "milk", "gold", "silver", "iron", "copper",
             "red", "blue", "green", "yellow", "purple"}  # fmt: skip


def _x(pattern: str, x: str, y: str = "") -> str:
    return pattern.replace("X", f"\ue000{x}\ue001").replace("Y", f"\ue000{y}\ue001")


def opposite(w: World) -> None:
    x = w.rng.choice(list(OPPOSITE_OF))
    y = OPPOSITE_OF[x]
    text = w.rng.choice((
        "what is the opposite of X?", "opposite of X", "X, opposite?", "the opposite of X?",
        "what's the contrary of X?", "antonym of X", "tell me the opposite of X", "opposite of X?",
        "what is the contrary of X?", "do you know the opposite of X?", "and the opposite of X?",
    ))  # fmt: skip
    w.say(_x(text, x), f"The opposite of {x} is {y}.", f"{y}.")


def translate(w: World, target: int = 0) -> None:
    target = target or w.rng.choice((1, 2))
    item = w.rng.choice(TRANSLATIONS)
    lang = ("", "Spanish", "Chinese")[target]
    text = w.rng.choice((
        "what is X in L?", "X in L", "L for X", "translate X to L", "how do you say X in L?",
        "what is the L word for X?", "translate X into L", "what's X in L?", "X in L?",
        "the L word for X", "tell me the L word for X", "and X in L?", "how do I say X in L?",
    )).replace("L", lang)  # fmt: skip
    w.say(
        _x(text, item[0]), f"The {lang} word for {item[0]} is {item[target]}.", f"{item[target]}."
    )


def translate_back(w: World) -> None:
    target = w.rng.choice((1, 2))
    item = w.rng.choice(TRANSLATIONS)
    lang = ("", "Spanish", "Chinese")[target]
    text = w.rng.choice((
        "what does X mean?", "what is X in English?", "translate X to English", "X in English",
        "what does the L word X mean?", "what is the English word for X?", "X means?",
    )).replace("L", lang)  # fmt: skip
    w.say(_x(text, item[target]), f"{item[target]} is {lang} for {item[0]}.", f"{item[0]}.")


def _a(word: str) -> str:
    return word if word in UNCOUNTED else f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def is_a(w: World, yes_no: float = 0.4) -> None:
    x, y = w.rng.choice(IS_A)
    statement_ = f"{upper_first(_a(x))} is {'an' if y[0] in 'aeiou' else 'a'} {y}."
    if y == "furniture":
        statement_ = f"{upper_first(_a(x))} is furniture."
    if w.rng.random() < yes_no:
        z = y if w.rng.random() < 0.5 else w.rng.choice(IS_A)[1]
        text = f"is \ue000{_a(x)} {_a(z) if z != 'furniture' else z}\ue001?"
        yes = "Yes" if z == y else "No"
        return w.say(text, f"{yes}, {statement_[0].lower() + statement_[1:]}", f"{yes}.")
    text = w.rng.choice((
        "what is X?", "what is X?", "what kind of thing is X?", "X is what?", "what's X?",
        "what sort of thing is X?", "tell me what X is",
    ))  # fmt: skip
    return w.say(_x(text, _a(x)), statement_, f"{y}.")


def capital(w: World) -> None:
    country, city = w.rng.choice(CAPITALS)
    if w.rng.random() < 0.3:
        text = w.rng.choice((
            "X is the capital of which country?", "which country has the capital X?",
            "what country is X the capital of?", "X is the capital of?", "in which country is X?",
        ))  # fmt: skip
        fenced = text.replace("X", city)
        return w.say(fenced, f"{city} is the capital of {country}.", f"{country}.")
    text = w.rng.choice((
        "what is the capital of X?", "capital of X", "capital of X?", "what's the capital of X?",
        "X's capital?", "tell me the capital of X", "which city is the capital of X?",
        "do you know the capital of X?", "the capital of X?", "and the capital of X?",
        "name the capital of X",
    ))  # fmt: skip
    return w.say(text.replace("X", country), f"The capital of {country} is {city}.", f"{city}.")


JOKES = (
    "Why did the token cross the context? To be attended to.",
    "What does a model eat? Layers of cake.", "I told my cache a joke. It remembers every word.",
    "Why are heads never lonely? They always attend to someone.",
    "How many models fit in a lightbulb? None, they need more memory.",
    "A logit walks into a softmax and comes out as a probability.",
    "Why was the prompt so calm? It had a good template.",
    "My temperature is zero. I never lose my head.",
)  # fmt: skip
TRIVIA = (
    "A dog is an animal, and so is a cat.", "The moon is luna in Spanish.",
    "The capital of Japan is Tokyo.", "I read every token only once.",
    "The opposite of always is never.", "My vocabulary has 3072 tokens.", "I have 6 layers.",
    "A token is often shorter than a word.",
)  # fmt: skip


def fun(w: World) -> None:
    """Ask for something with many right answers."""
    r = w.rng
    kind = r.choice(("joke", "fact", "number", "coin", "dice", "story", "name", "colour", "count"))
    if kind == "joke":
        return w.say(r.choice(("tell me a joke", "do you know a joke?", "make me laugh", "a joke please",
                               "say something funny", "another joke")), r.choice(JOKES))  # fmt: skip
    if kind == "fact":
        return w.say(r.choice(("tell me a fact", "tell me something", "say something", "surprise me",
                               "tell me something interesting", "talk to me")), r.choice(TRIVIA))  # fmt: skip
    if kind == "number":
        return w.say(r.choice(("pick a number", "give me a random number", "say a number",
                               "pick a number from 1 to 10")), f"{r.randint(1, 10)}.")  # fmt: skip
    if kind == "coin":
        return w.say(r.choice(("flip a coin", "toss a coin", "heads or tails?")),
                     r.choice(("Heads.", "Tails.")))  # fmt: skip
    if kind == "dice":
        return w.say(r.choice(("roll a die", "roll a dice", "throw a die")), f"{r.randint(1, 6)}.")
    if kind == "name":
        return w.say(r.choice(("suggest a name", "give me a name", "pick a name for my cat")),
                     f"How about {pick_value(r, 'pet_name', made_up=0.2)}?")  # fmt: skip
    if kind == "colour":
        return w.say(r.choice(("pick a colour", "suggest a colour", "name a colour")),
                     f"{upper_first(pick_value(r, 'colour', made_up=0))}.")  # fmt: skip
    if kind == "count":
        n = r.randint(3, 20)
        text = r.choice(("count to N", "count up to N", "please count to N", "can you count to N?"))
        return w.say(text.replace("N", str(n)), ", ".join(map(str, range(1, n + 1))) + ".")
    return story(w)


def story(w: World) -> None:
    r = w.rng
    hero = r.choice(
        ("fox", "cat", "dog", "bear", "owl", "rabbit", "wolf", "mouse", "king", "queen")
    )
    told = r.random() < 0.5
    text = r.choice(
        ("tell me a story about a X", "a story about a X please", "write a story about a X")
    )
    if not told:
        text = r.choice(
            ("tell me a story", "write a short story", "a story please", "write a story")
        )
    name = pick_value(r, "pet_name", made_up=0.2)
    place = r.choice(("forest", "castle", "city", "garden", "house by the sea", "mountain village"))
    want = r.choice(
        ("the moon", "a friend", "a warm bed", "a golden key", "the sea", "a red apple")
    )
    day = r.choice(("One morning", "One night", "One winter day", "Then one day"))
    met = r.choice(("an old owl", "a small bird", "a kind child", "a tired horse", "a wise fish"))
    end = r.choice((
        "and they were friends from that day on.", "and that was enough.", "and went home happy.",
        "and never felt alone again.",
    ))  # fmt: skip
    answer = (
        f"Once there was a {hero} called {name} who lived in a {place} and wished for {want}. "
        f"{day} {name} met {met}. They looked for {want} together, {end}"
    )
    w.say(text.replace("X", hero), answer)
