"""The session's types (stand-in: take main's file on merge; it has the same names)."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mlxchat.engine.sampling import SamplingSettings
from mlxchat.engine.worker import Job
from mlxchat.errors import BackendError

IS_STAND_IN = True


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a person may set about a conversation."""

    system: str | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    max_context: int | None = None
    think: bool | None = None
    keep_thinking: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a download (bytes), a load (bytes) or the warm-up (steps) has come."""

    phase: Literal["download", "load", "warm-up"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """How many prompt tokens have been read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer or of the reasoning before it."""

    text: str
    kind: Literal["reasoning", "answer"]


@dataclass(frozen=True, slots=True)
class Notice:
    """One line that a person should know."""

    text: str


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What was loaded."""

    model: str
    family: str
    n_params: int
    weight_bytes: int
    context_limit: int
    backend: str
    is_builtin: bool
    load_s: float
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a turn."""

    prompt_tokens: int
    cached_tokens: int
    prefill_tokens: int
    typeahead_tokens: int
    settle_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall time of a turn's phases."""

    load_s: float
    template_s: float
    restore_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    total_s: float
    prefill_tok_per_s: float | None
    decode_tok_per_s: float | None
    inter_token_ms: dict[str, float] | None
    peak_memory_bytes: int
    kv_bytes: int
    weight_bytes: int
    bandwidth_use: float | None


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Where the reused tokens came from and why no more were."""

    source: Literal["none", "live", "checkpoint", "disk"]
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What the from-scratch prefill said about the cached one."""

    tokens_equal: bool
    max_abs_logit_diff: float
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TurnResult:
    """One answer with its counts and timings."""

    model: str
    text: str
    reasoning: str | None
    stop_reason: str
    usage: Usage
    timing: Timing
    cache: CacheUse
    speculation: None
    verify: VerifyResult | None
    tokens: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON contract."""
        return asdict(self)


class Session:
    """One conversation with one model."""

    info: SessionInfo | None = None
    last: TurnResult | None = None
    system: str | None = None
    num_turns: int = 0
    context_used: int = 0

    def __init__(self, model: str | None, options: ChatOptions) -> None:
        raise BackendError("this build has no engine yet; wait for chat/session.py")

    def load(self) -> Job[SessionInfo]:
        """Loads the model; idempotent."""
        raise NotImplementedError

    def send(self, text: str) -> Job[TurnResult]:
        """Answers a message."""
        raise NotImplementedError

    def retry(self) -> Job[TurnResult]:
        """Answers the last question again."""
        raise NotImplementedError

    def edit(self, turn: int | None, text: str) -> Job[TurnResult]:
        """Replaces the text of a turn and answers it."""
        raise NotImplementedError

    def undo(self, count: int = 1) -> int:
        """Takes turns back and returns how many."""
        raise NotImplementedError

    def set_system(self, text: str | None) -> None:
        """Sets the system prompt for the next turn."""
        raise NotImplementedError

    def reset(self) -> None:
        """Empties the conversation."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the session."""
        raise NotImplementedError
