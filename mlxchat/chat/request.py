"""What a turn is asked to do. Free of MLX: the main thread makes it, the worker reads it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxchat.chat.conversation import Node


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn as it was asked for.

    Attributes:
        question: The message, or None where the head is a question to be answered again.
        start: Clock time at which it came.
        keep_branch: What the cache holds beyond the common prefix may be wanted again.
        cut_off: An answer to the question that goes on.
        cause: What the person changed since the last turn, for the reason.
        marks: How many ids of the prompt will be wanted again without the others, where known.
    """

    question: str | None
    start: float
    keep_branch: bool = False
    cut_off: "Node | None" = None
    cause: str = ""
    marks: tuple[int, ...] = ()
