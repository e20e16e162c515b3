# ruff: noqa: E501, SIM905 - tables of phrases are kept compact, as one text per table
"""Turns about what the model knows, and about what it does not."""

from __future__ import annotations

from random import Random

from faq import FRAMES, TALK, TERMS, UNKNOWN, UNKNOWN_SHORT, Entry, frame_term
from words import is_held_out, make_up, pick_topic, pick_value
from world import World


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
    "what does T mean?;define T;do you know T?;how far is T?;where is T?;what can you tell me about T?;show me T;I want to know about T;info on T"
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
    "what does {X} mean?;spell {X} backwards;how many letters are in {X}?;"
    "what is the {biggest|tallest|longest|oldest|fastest} {city|river|animal|building|country}?;"
    "what happened in {1492|1789|1914|1969|2001}?;explain {X} to me;what do you think about N?;how is the weather?;can you code?;what is love?;tell me about N;is N a good {city|person|band}?;"
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
    "I went to T yesterday;I saw T yesterday;I read about T today;I bought T;I need T;I lost my keys;"
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
    w.say(text, "I see. Tell me more, or ask me about mlxchat.", "I see.")
