"""Dialogues: a small world with a style and facts, and the kinds of turns that happen in it.

`dialogue` makes one for training. Every turn has one right answer, given what was said before,
except the few in `FUN`, which are there so that sampling has something to choose from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from facts import FACTS, PETS, fill, pick_fact_value, pick_kind
from faq import FRAMES, PARAMS, REAL, TALK, TERMS, UNKNOWN, UNKNOWN_SHORT, Entry, frame_term
from keyboard import clean, type_out
from words import (
    CAPITALS,
    COMMON,
    IS_A,
    OPPOSITES,
    TRANSLATIONS,
    is_held_out,
    make_up,
    pick_topic,
    pick_value,
    pick_word,
)

MOODS = {
    "cheerful": "Yay!", "grumpy": "Hmpf.", "sleepy": "Yawn.", "polite": "Certainly.",
    "sad": "Sigh.", "a pirate": "Arrr!", "a robot": "Beep.", "excited": "Wow!",
    "mysterious": "Hmm...", "friendly": "My friend,",
}  # fmt: skip
SUFFIXES = (
    "Over.;Meow!;Arrr!;my friend.;Sir.;Amen.;Woof!;Cheers!;OK?;Beep.;Captain!;You know.;"
    "That is all.;End.;Stop.;Have a nice day!;Madam.;Done.;boss;Peace.;Bingo!;over and out"
).split(";")
GREETINGS = (
    "hi;hello;hey;hi there;hello there;good morning;good evening;good afternoon;hey there;hiya;yo;"
    "howdy;greetings;hello!;hi!;hello mlxchat;hi mlxchat;hallo;hey you;good day;hello computer;heya;"
    "hello again;hi again;hello model;morning;hi bot"
).split(";")


@dataclass
class Style:
    """What the system prompt asks for."""

    bot: str = ""
    suffix: str = ""
    mood: str = ""
    caps: bool = False
    short: bool = False

    def dress(self, text: str) -> str:
        """Put an answer into this style."""
        if self.mood:
            text = f"{MOODS[self.mood]} {text}"
        if self.suffix:
            text = f"{text} {self.suffix}"
        # A command keeps its letters, or it could not be typed.
        return text.upper().replace(REAL.upper(), REAL) if self.caps else text


@dataclass
class World:
    """The state of one dialogue; `strict` draws values that training never saw."""

    rng: Random
    strict: bool = False
    typos: float = 0.15
    polite: bool = True
    style: Style = field(default_factory=Style)
    facts: dict[str, str] = field(default_factory=dict)
    number: int | None = None  # the last result, while it is the last thing said
    last_kind: str = ""  # the fact told just now, which "sorry, I meant ..." would mend
    messages: list[dict] = field(default_factory=list)

    def say(self, user: str, answer: str, short: str = "") -> None:
        """Add a turn: `user` as typed by a person, the answer dressed in the style."""
        text = short if short and self.style.short else answer
        typed = type_out(self.rng, user, self.typos, self.polite)
        self.messages.append({"role": "user", "content": typed})
        self.messages.append({"role": "assistant", "content": self.style.dress(text)})
        self.number, self.last_kind = None, ""


Turn = Callable[[World], None]


def upper_first(text: str) -> str:
    """Return the text with a capital at its start."""
    return text[:1].upper() + text[1:]


def part(kind: str, value: str) -> str:
    """Return the clause that states a fact to its owner."""
    return fill(FACTS[kind].part, value)


def join(parts: list[str]) -> str:
    """Join clauses with commas and an and."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def bare(kind: str, value: str) -> str:
    """Return the value alone, as short answers give it."""
    return value.rpartition("|")[2] + "."


# --- facts ---------------------------------------------------------------------------------------


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
    if subject.endswith(" called"):
        question = f"is {subject} \ue000{said.rpartition('|')[2]}\ue001?"
    truth = part(kind, value)
    return w.say(question, f"Yes, {truth}." if right else f"No, {truth}.", "Yes." if right else "No.")


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


# --- who it is -----------------------------------------------------------------------------------


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
    w.say(pattern.format(n=f"\ue000{w.style.bot}\ue001"), f"All right, my name is {w.style.bot}.", "OK.")


# --- what it knows -------------------------------------------------------------------------------


def pick_frame(rng: Random, entry: Entry, strict: bool = False) -> str:
    """Pick a frame for a term; one in ten of the pairs is kept for the evaluation."""
    while True:
        frame = rng.choice(FRAMES[:40] if rng.random() < 0.8 else FRAMES)
        if is_held_out(f"{frame}|{entry.terms[0]}") == strict:
            return frame


def term(w: World) -> None:
    entry = w.rng.choice(TERMS)
    name = entry.terms[0] if w.rng.random() < 0.5 else w.rng.choice(entry.terms)
    w.say(frame_term(pick_frame(w.rng, entry), name), entry.answer, entry.short)


TALK_WEIGHTS = [len(e.train) ** 0.4 for e in TALK]


def talk(w: World) -> None:
    entry = w.rng.choices(TALK, TALK_WEIGHTS)[0]
    wording = w.rng.choice(entry.train)
    while is_held_out(wording):
        wording = w.rng.choice(entry.train)
    w.say(wording, entry.answer, entry.short)


def _unknown(w: World, question: str) -> None:
    w.say(question, UNKNOWN, UNKNOWN_SHORT)


UNKNOWN_FRAMES = (
    "what is T?;tell me about T;who invented T?;explain T;what do you think of T?;when did T begin?;"
    "how do I learn T?;write a poem about T;write an essay about T;what do you know about T?;"
    "can you explain T?;how does T work?;why is T important?;what is the history of T?;describe T;"
    "give me facts about T;where can I find T?;who is the best at T?;what is the best book about T?;"
    "how much does T cost?;is T good?;help me with T;I have a question about T;let's talk about T;"
    "who discovered T?;when was T?;compare T and S;what is the difference between T and S?;"
    "what causes T?;how old is T?;how do I fix T?;teach me T;summarise T;what happened to T?;"
    "do you like T?;have you heard of T?;should I care about T?;what are the rules of T?;"
    "how many people like T?;why T?;what about T?;and T?;which is better, T or S?;who wrote T?;"
    "what does T mean?;define T;do you know T?;how far is T?;who is T?;where is T?"
).split(";")
UNKNOWN_ASK = (
    "what is the weather like {|today|tomorrow|in N}?;who won the {game|match|race|election|cup}?;"
    "write a {python|javascript|rust|java} {function|program|script}{| that sorts a list| for me}?;"
    "who is the {president|king|mayor|prime minister} of N?;how many people live in N?;"
    "what is the square root of {17|2|81|99}?;translate this {sentence|text|letter} to {french|german};"
    "how do i {cook|bake|make} {pasta|bread|a cake|soup|pizza|coffee}?;what should i {eat|cook|wear|read|buy} {today|tonight}?;"
    "where can i buy {shoes|a bike|a car|milk}?;what is the {price|value} of {gold|bitcoin|a house|oil}?;"
    "who {wrote|painted|composed|directed} N?;when was N {born|built|founded}?;how far is it {to the moon|to N}?;"
    "what is the {population|area|currency|language} of N?;summarise this {text|article|book};"
    "why is the sky blue?;why do cats purr?;how do airplanes fly?;how tall is {N|the tower}?;"
    "can you {draw|paint} {a picture|a cat|me}?;book {a flight|a hotel|a table} {|for me|to N};"
    "what is the news{| today}?;recommend me a {book|movie|song|restaurant};how do i {lose weight|get rich|sleep better|find a job}?;"
    "fix my {code|bug|program|computer};what is the derivative of x squared?;solve this equation;"
    "how do you say {hello|goodbye|thank you} in {french|german|italian|japanese|russian}?;"
    "what is {X} in spanish?;what is the opposite of {X}?;what is the capital of N?;translate {X} to chinese;"
    "what does {X} mean?;spell {X} backwards;how many letters are in {X}?;who is N?;do you know N?;"
    "what is the {biggest|tallest|longest|oldest|fastest} {city|river|animal|building|country}?;"
    "what happened in {1492|1789|1914|1969|2001}?;explain {X} to me;is N a good {city|person|band}?;"
    "correct this sentence;what rhymes with {X}?;give me a recipe{| for X};set {a timer|an alarm};"
    "open {the browser|a file|spotify};send {a mail|an email} to N;play {music|a song|chess};"
    "call N;remind me {tomorrow|later};search the web{| for X};what is the chemical formula of water?"
).split(";")


def _unknown_question(rng: Random, strict: bool) -> str:
    if rng.random() < 0.6:
        frame = rng.choice(UNKNOWN_FRAMES)
        return frame.replace("T", pick_topic(rng, strict)).replace("S", pick_topic(rng, strict))
    text = rng.choice(UNKNOWN_ASK)
    while "{" in text:
        start, end = text.index("{"), text.index("}")
        text = text[:start] + rng.choice(text[start + 1 : end].split("|")) + text[end + 1 :]
    words = []
    for word in text.split():
        core = word.rstrip("?;")
        if core == "N":
            word = word.replace("N", make_up(rng) if strict else pick_value(rng, "city"))
            if rng.random() < 0.3:
                word = make_up(rng) + " " + word
        elif core == "X":
            word = word.replace("X", make_up(rng, capital=False))
        words.append(word)
    return " ".join(words)


def unknown(w: World) -> None:
    """Ask something out of its world."""
    _unknown(w, _unknown_question(w.rng, w.strict))


STATEMENTS = (
    "I went to T yesterday;I saw T on TV;I read about T today;I bought T;I need T;I lost my keys;"
    "my car is broken;the train was late;it is raining here;I am going on holiday;I am at work;"
    "my friend likes T;I hate T;I am learning about T;we talked about T at school;"
    "I think T is great;T is boring;I dreamed of T;I watched a film about T;I was at home all day;"
    "my neighbour is loud;I have to work tomorrow;I had lunch;I am waiting for the bus;"
    "the sun is shining;I slept well;my phone is new;I am drinking tea;I wrote a letter;"
    "my computer is slow;I have an exam tomorrow;T is my passion;people say T is important;"
    "yesterday I heard about T;I just woke up;I am in the kitchen;my team won;we had a party"
).split(";")


def statement(w: World) -> None:
    text = w.rng.choice(STATEMENTS).replace("T", pick_topic(w.rng, w.strict), 1)
    text = text if "TV" not in text else text
    w.say(text, "I see. Tell me more, or ask me about mlxchat.", "I see.")


# --- sums ----------------------------------------------------------------------------------------

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


# --- copying and word pairs ----------------------------------------------------------------------

REPEAT = (
    "repeat after me: W;repeat: W;say W;please repeat: W;repeat W;say: W;can you say W?;echo W;"
    "repeat the words W;write W;repeat after me W;just say W;say this: W;now say W;please say W"
).split(";")


def repeat(w: World, count: int = 0) -> None:
    count = count or w.rng.choice((1, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8))
    words = " ".join(pick_word(w.rng, w.strict) for _ in range(count))
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
    w.say(_x(text, item[0]), f"The {lang} word for {item[0]} is {item[target]}.", f"{item[target]}.")


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


def is_a(w: World) -> None:
    x, y = w.rng.choice(IS_A)
    y = "fish" if x == "fish" else y
    statement_ = f"{upper_first(_a(x))} is {'an' if y[0] in 'aeiou' else 'a'} {y}."
    if y == "furniture":
        statement_ = f"{upper_first(_a(x))} is furniture."
    if w.rng.random() < 0.25:
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


# --- turns with several right answers ------------------------------------------------------------

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
    hero = r.choice(("fox", "cat", "dog", "bear", "owl", "rabbit", "wolf", "mouse", "king", "queen"))
    told = r.random() < 0.5
    text = r.choice(("tell me a story about a X", "a story about a X please", "write a story about a X"))
    if not told:
        text = r.choice(("tell me a story", "write a short story", "a story please", "write a story"))
    name = pick_value(r, "pet_name", made_up=0.2)
    place = r.choice(("forest", "castle", "city", "garden", "house by the sea", "mountain village"))
    want = r.choice(("the moon", "a friend", "a warm bed", "a golden key", "the sea", "a red apple"))
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


# --- dialogues -----------------------------------------------------------------------------------


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
    if r.random() < 0.22:
        ask_suffix(w, asked)
    if r.random() < 0.2:
        ask_mood(w, asked)
    if r.random() < 0.1:
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


def ask_suffix(w: World, asked: list[str]) -> None:
    r = w.rng
    w.style.suffix = r.choice(SUFFIXES)
    if w.strict or r.random() < 0.5:
        w.style.suffix = pick_word(r, w.strict) + r.choice(("", ".", "!"))
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
    term: 3.6, talk: 3.6, unknown: 1.8, statement: 0.5, plus: 1.5, minus: 0.35, times: 0.35,
    too_big: 0.2, repeat: 1.3, say_hello: 0.2, opposite: 0.8, translate: 1.4, translate_back: 0.4,
    is_a: 0.6, capital: 0.8, fun: 0.6, who_are_you: 0.5, your_name: 0.45, name_me: 0.12,
    tell: 2.2, tell_many: 0.9, ask_missing: 0.45, greet: 0.3, summary: 0.25, who_is: 0.15,
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
        weights |= {ask: 3.6, correct: 1.2, yes_no: 0.35, who_is: 0.3}
        weights[ask_missing] = 0.6
        if w.last_kind:
            weights[correct] = 2.2
        if last:
            weights[ask] = 9.0
    if len(w.facts) > 1:
        weights |= {ask_many: 0.6, summary: 0.5}
    if len(w.facts) > 5:
        weights |= {tell: 0.4, tell_many: 0.1, summary: 0.05}
    if w.style.bot:
        weights[your_name] = 1.2
    return w.rng.choices(list(weights), list(weights.values()))[0]


def start(w: World, system: float = 0.35) -> None:
    """Open the dialogue, perhaps with a system prompt."""
    if w.rng.random() < system:
        w.messages.append({"role": "system", "content": make_style(w)})


def dialogue(rng: Random, turns: int, system: float = 0.35) -> list[dict]:
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


def training_dialogue(rng: Random) -> list[dict]:
    """Draw a dialogue of the main course; a few are as long as the context."""
    roll = rng.random()
    if roll < 0.18:
        return recall_dialogue(rng)
    if roll < 0.60:
        return dialogue(rng, rng.randint(1, 7))
    if roll < 0.93:
        return dialogue(rng, rng.randint(8, 13))
    if roll < 0.988:
        return dialogue(rng, rng.randint(14, 32))
    return dialogue(rng, rng.randint(33, 75))


def plain(text: str) -> str:
    """Return text without typing marks (for those who build messages by hand)."""
    return clean(text)


__all__ = ["COMMON", "World", "dialogue", "plain", "recall_dialogue", "training_dialogue"]
