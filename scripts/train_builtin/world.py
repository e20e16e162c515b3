"""The state of one dialogue: its style, the facts that were told, and the messages so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from facts import FACTS, fill
from faq import REAL
from keyboard import type_out

MOODS = {
    "cheerful": "Yay!", "grumpy": "Hmpf.", "sleepy": "Yawn.", "polite": "Certainly.",
    "sad": "Sigh.", "a pirate": "Arrr!", "a robot": "Beep.", "excited": "Wow!",
    "mysterious": "Hmm...", "friendly": "My friend,",
}  # fmt: skip


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
