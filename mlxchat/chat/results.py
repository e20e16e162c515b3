"""What a session tells: events while it works, and the result of a turn (JSON contract)."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlxchat.engine.timing import Timing

Way = Literal["cold", "warm", "disk"]
StopReason = Literal["eos_token", "stop_string", "token_limit", "user_cancelled", "context_full"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A model is being fetched or loaded; bytes, or steps of the warm-up."""

    phase: Literal["download", "load", "warm-up"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """New ids of the prompt that were read, of those to read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class SummaryProgress:
    """A summary is being written: its next piece, and the characters with that."""

    done: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer, as soon as it is final.

    Attributes:
        text: The piece.
        kind: What it belongs to.
        num_reasoning_tokens: Ids of reasoning in the whole answer so far; 0 where not counted.
    """

    text: str
    kind: Literal["reasoning", "answer"]
    num_reasoning_tokens: int = 0


def merge_text(events: list[Any]) -> list[Any]:
    """Returns the events with neighbouring pieces of text made one."""
    merged: list[Any] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and last.kind == event.kind:
            merged[-1] = replace(event, text=last.text + event.text)
        else:
            merged.append(event)
    return merged


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Answers that are decoded together: how many have ended, and how many tokens they have."""

    done: int
    total: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Notice:
    """One line that the person should see."""

    text: str


@dataclass(frozen=True, slots=True)
class Compaction:
    """What came of summarising the oldest turns.

    Attributes:
        summary: The text that stands for them.
        num_turns: How many they were.
        num_before: Tokens of the conversation before.
        num_after: Tokens of the conversation now.
        old_head: The message under which the old branch is found.
    """

    summary: str
    num_turns: int
    num_before: int
    num_after: int
    old_head: int


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known once the model is loaded.

    Attributes:
        backend: A line for people.
        source: The name under which the same model is opened again: a Hub id or a whole path.
        commit: The Hub commit, where there is one.
        fingerprint: Identity of config and weights.
        adapter: The folder of what changes the weights, if anything.
    """

    model: str
    family: str
    n_params: int
    weight_bytes: int
    context_limit: int
    backend: str
    is_builtin: bool
    load_s: float
    notices: tuple[str, ...] = ()
    source: str | None = None
    commit: str | None = None
    fingerprint: str | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Ids of one turn, by what happened to them."""

    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    typeahead_tokens: int
    settle_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Where cached ids came from, and why there were not more."""

    source: Literal["none", "live", "checkpoint", "disk"]
    reason: str


@dataclass(frozen=True, slots=True)
class Verify:
    """What `--verify` found: a from-scratch prefill of the same ids beside the cached one.

    `holds` says whether the difference is rounding; it is no part of the JSON contract.
    `kv_logit_diff` is the difference to a cache that is not quantised, where this one is.
    """

    tokens_equal: bool
    max_abs_logit_diff: float
    prompt_ids: tuple[int, ...]
    holds: bool = True
    kv_logit_diff: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the `verify` object of the JSON contract."""
        cost = {} if self.kv_logit_diff is None else {"kv_logit_diff": self.kv_logit_diff}
        return {
            "tokens_equal": self.tokens_equal,
            "max_abs_logit_diff": self.max_abs_logit_diff,
            **cost,
            "prompt_ids": list(self.prompt_ids),
        }


@dataclass(frozen=True, slots=True)
class Speculation:
    """Tokens of one answer that were foreseen.

    Attributes:
        kind: By what: earlier text, or a draft model.
        drafted: Tokens that were foreseen and judged.
        accepted: Those that stood.
        saved_s: Seconds less than step by step, as measured; no part of the JSON contract.
        forced: Those of the drafted that a grammar left no choice about; no part of it either.
    """

    kind: Literal["lookup", "draft"]
    drafted: int
    accepted: int
    saved_s: float
    forced: int = 0

    @property
    def source(self) -> str:
        """What foresaw them, for people."""
        if self.forced == self.drafted > 0:
            return "grammar"
        return f"grammar and {self.kind}" if self.forced else self.kind

    def to_json(self) -> dict[str, Any]:
        """Returns the `speculation` object of the JSON contract."""
        return {"kind": self.kind, "drafted": self.drafted, "accepted": self.accepted}


@dataclass(frozen=True, slots=True)
class TurnResult:
    """One answer with all that is known of it."""

    model: str
    text: str
    reasoning: str | None
    stop_reason: StopReason
    usage: Usage
    timing: "Timing"
    cache: CacheUse
    verify: Verify | None
    tokens: tuple[int, ...]
    speculation: Speculation | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the object of the JSON contract."""
        return {
            "model": self.model,
            "text": self.text,
            "reasoning": self.reasoning,
            "stop_reason": self.stop_reason,
            "usage": asdict(self.usage),
            "timing": self.timing.to_json(),
            "cache": asdict(self.cache),
            "speculation": None if self.speculation is None else self.speculation.to_json(),
            "verify": None if self.verify is None else self.verify.to_json(),
            "tokens": list(self.tokens),
        }


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One way to the first token of a turn.

    Attributes:
        seconds: From the message to the token, the median of the repetitions.
        samples: Each of them.
        num_read: Ids that were read; the others of the prompt were cached.
    """

    seconds: float
    samples: tuple[float, ...]
    num_read: int


@dataclass(frozen=True, slots=True)
class ReplayedTurn:
    """One turn of the conversation.

    Attributes:
        number: Counted from 1.
        num_prompt: Ids of the whole prompt.
        ways: The ways that there are: before the first turn nothing can be warm.
    """

    number: int
    num_prompt: int
    ways: dict[Way, FirstToken]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Several answers to one question.

    Attributes:
        results: The answers.
        nodes: Their messages in the tree; None where the template refused one.
        old: The answer at the head before, where there was one.
        errors: What ended the other answers that were asked for; JobCancelledError is Ctrl-C.
    """

    results: tuple[TurnResult, ...]
    nodes: tuple[int | None, ...]
    old: int | None = None
    errors: tuple[Exception, ...] = ()
