"""Prompt lookup: what followed the last few tokens when they stood in the text before.

An index from every three ids to where they last ended, kept over turns as far as the text stays. A
match is followed as long as it proves right, so each token costs the same however long the text is.
After "Prompt Lookup Decoding" (Saxena 2023). Free of MLX.
"""

from collections.abc import Sequence
from typing import Literal

from mlxchat.engine.token_ids import count_common

# Two ids meet by chance too often, four find the beginning of a copy late.
NUM_IDS = 3
_BITS = 21  # of an id; vocabularies have at most 2^18
_MASK = (1 << _BITS * NUM_IDS) - 1


class PromptLookup:
    """Foresees tokens from earlier ones."""

    kind: Literal["lookup", "draft"] = "lookup"

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._ends: dict[int, int] = {}  # where three ids last ended
        self._recent = 0  # the last three ids, packed
        self._next = 0  # the place whose id is expected next
        self.strength = 0

    def begin(self, token_ids: Sequence[int], check: object) -> None:
        """Takes the text so far; what it shares with the last text is indexed already.

        It is quick: there is nothing to check.
        """
        common = count_common(self._ids, token_ids)
        del self._ids[common:]
        self._recent, self.strength = 0, 0
        for token_id in self._ids[-NUM_IDS:]:
            self._recent = self._recent << _BITS | token_id
        for token_id in token_ids[common:]:
            self._append(token_id)
        self._find()

    def push(self, token_id: int) -> None:
        """Takes the next id of the text; `strength` then tells how many ids agree with a match."""
        if self.strength and self._ids[self._next] == token_id:
            self._next += 1
            self.strength += 1
            self._append(token_id)
        else:
            self._append(token_id)
            self._find()

    def expects(self) -> int | None:
        """Returns the id that is expected next; None without a match."""
        return self._ids[self._next] if self.strength else None

    def draft(self, num: int) -> list[int]:
        """Returns the next `num` expected ids; a match that reaches the end goes round."""
        if not self.strength:
            return []
        drafts: list[int] = []
        for place in range(self._next, self._next + num):
            past = place - len(self._ids)
            drafts.append(self._ids[place] if past < 0 else drafts[past])
        return drafts

    def _append(self, token_id: int) -> None:
        # Entered one id late: the last three ids must find an earlier place, not themselves.
        if len(self._ids) >= NUM_IDS:
            self._ends[self._recent] = len(self._ids)
        self._ids.append(token_id)
        self._recent = (self._recent << _BITS | token_id) & _MASK

    def _find(self) -> None:
        end = self._ends.get(self._recent, 0)
        # An entry may be of a text that is gone.
        is_here = NUM_IDS <= end < len(self._ids)
        if is_here and self._ids[end - NUM_IDS : end] == self._ids[-NUM_IDS:]:
            self._next, self.strength = end, NUM_IDS
        else:
            self.strength = 0
