"""What a person may set about a conversation. Free of MLX, so that the command line can use it."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mlxchat.engine.grammar import Grammar
from mlxchat.engine.options import SamplingSettings


@dataclass(frozen=True, slots=True)
class Steer:
    """A steering vector by its name, and how strongly it is added."""

    name: str
    coeff: float


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a person may set about a conversation; None leaves the choice to the model.

    Attributes:
        max_tokens: Longest answer; None lets it fill the context.
        max_context: Tokens that prompt and answer may take together.
        think: Thinking on or off, where the template has a switch.
        think_budget: Tokens of thinking after which the answer must come; None is no limit.
        keep_thinking: Earlier thinking stays in the prompt, where the template can.
        overflow: At the context limit, refuse the message or drop the oldest turns.
        checks_memory: Refuse a turn, or end an answer, that would not fit into memory.
        verify: Compare every turn with a from-scratch prefill.
        idle_work: After an answer, bring the cache to what the next turn will render, and store it.
        keeps_history: The conversation may be on disk, its keys and values too.
        kv_bits: Hold keys and values in 8 or 4 bits; None as they are. Decided with the load.
        cache_max_gib: What all stored prompt caches may take of the disk; None is the default.
        speculate: One of `SPECULATE`: where several tokens may come from one step.
        draft_model: Foresees tokens for this model; decided with the load.
        adapter: A folder that changes the model's weights; decided with the load.
        now: The date that the template shows for the whole conversation; None is now.
        steering: What is added to the residual stream.
        grammar: What answers must match.
    """

    system: str | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    max_context: int | None = None
    think: bool | None = None
    think_budget: int | None = None
    keep_thinking: bool = False
    overflow: Literal["error", "drop-oldest"] = "error"
    checks_memory: bool = True
    verify: bool = False
    idle_work: bool = True
    keeps_history: bool = True
    kv_bits: int | None = None
    speculate: str = "off"
    draft_model: str | None = None
    adapter: str | None = None
    cache_max_gib: float | None = None
    now: datetime | None = None
    steering: tuple[Steer, ...] = ()
    grammar: Grammar | None = None

    @property
    def stores_conversation(self) -> bool:
        """Whether the conversation's keys and values are read from disk and written to it."""
        return self.keeps_history and self.idle_work


def pick_seed() -> int:
    """Returns a seed that nobody chose."""
    return int.from_bytes(os.urandom(4), "little")
