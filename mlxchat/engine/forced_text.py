"""Foresees what a grammar leaves no choice about: the key of an object, a long constant.

That text can be cut into tokens in several ways, so it is foreseen like any other and judged by
the model; only how likely the hit is differs. Elsewhere another drafter is asked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from mlxchat.engine.constraint import Constraint

if TYPE_CHECKING:
    from mlxchat.engine.speculation import Drafter

# Hits are counted apart by the bit length of the strength; no other drafter is that sure.
_STRENGTH = 1 << 30


class ForcedText:
    """Drafts of one answer that is held to a grammar; a `Drafter` of `speculation.py`.

    Args:
        other: Foresees where the grammar leaves a choice.
        constraint: What the answer is held to.
        shortest: A forced text is foreseen where it has so many ids after the next one.
    """

    def __init__(self, other: "Drafter", constraint: Constraint, *, shortest: int) -> None:
        self._other, self._constraint, self._shortest = other, constraint, shortest
        self._forced: list[int] = []
        self._asked_at = -1  # ids that the constraint knew then
        self._unknown: list[int] = []  # ids that were pushed and that it does not know yet
        self._num_pushed = constraint.num_taken
        self.was_forced = False  # the last draft

    @property
    def kind(self) -> Literal["lookup", "draft"]:
        """What the report calls it."""
        return self._other.kind

    @property
    def strength(self) -> int:
        """How good the reasons are for what is expected next; 0 is none at all."""
        return _STRENGTH if len(self._ahead()) > self._shortest else self._other.strength

    def begin(self, token_ids: Sequence[int], check: Callable[[], None]) -> None:
        """Takes the text so far."""
        self._other.begin(token_ids, check)
        self._num_pushed = self._constraint.num_taken

    def push(self, token_id: int) -> None:
        """Takes the next id of the text."""
        self._other.push(token_id)
        self._num_pushed += 1
        self._unknown.append(token_id)

    def expects(self) -> int | None:
        """Returns the id that is expected next, where it is known without work."""
        ahead = self._ahead()
        return ahead[0] if len(ahead) > self._shortest else self._other.expects()

    def draft(self, num: int) -> list[int]:
        """Returns up to `num` ids that probably come next."""
        ahead = self._ahead()
        self.was_forced = len(ahead) >= self._shortest
        return ahead[:num] if self.was_forced else self._other.draft(num)

    def _ahead(self) -> list[int]:
        """Returns the ids that are forced after those that were pushed."""
        constraint = self._constraint
        if self._asked_at != constraint.num_taken:
            self._asked_at, self._forced = constraint.num_taken, constraint.forced_ids()
        num_unknown = max(self._num_pushed - constraint.num_taken, 0)
        said = self._unknown = self._unknown[len(self._unknown) - num_unknown :]
        return self._forced[num_unknown:] if self._forced[:num_unknown] == said else []
