"""A draft model: a smaller model that foresees what a larger one will say.

Its cache follows the text: what it drafted and the text did not take is cut off, what the text got
without it is read when it is asked again. It names its likeliest tokens, whatever the sampling.
"""

from collections.abc import Sequence
from typing import Literal, cast

import mlx.core as mx

from mlxchat.engine.engine import Check, Engine
from mlxchat.engine.reuse_plan import Plan
from mlxchat.engine.token_ids import count_common


class DraftModel:
    """Drafts with a model of the same vocabulary.

    Args:
        engine: Of the draft model; its sequence follows the text.
    """

    kind: Literal["lookup", "draft"] = "draft"
    strength = 1  # as good a guess at one place as at another

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._text: list[int] = []
        self._num_agreed = 0  # ids at the beginning of the cache that are those of the text

    def begin(self, token_ids: Sequence[int], check: Check) -> None:
        """Takes the text so far, and reads what is new of it.

        Args:
            token_ids: Of the text.
            check: Called between chunks; what it raises ends the reading, and what was read stays.
        """
        self._text = list(token_ids)
        self._num_agreed = count_common(self._engine.prefix.token_ids, self._text)
        if self._text:
            self._read(check)

    def push(self, token_id: int) -> None:
        """Takes the next id of the text."""
        place, held = len(self._text), self._engine.prefix.token_ids
        self._text.append(token_id)
        if self._num_agreed == place and place < len(held) and held[place] == token_id:
            self._num_agreed += 1

    def expects(self) -> int | None:
        """Returns None: to know it takes a pass."""
        return None

    def draft(self, num: int) -> list[int]:
        """Returns the `num` tokens that the draft model takes for the likeliest."""
        engine, prefix = self._engine, self._engine.prefix
        logits = self._read(check=lambda: None)  # a few ids
        tokens: list[mx.array] = []
        try:
            for _ in range(num - 1):
                tokens.append(mx.argmax(logits, axis=-1))
                logits = engine.model.forward(tokens[-1][:, None], prefix.cache)
            tokens.append(mx.argmax(logits, axis=-1))
            drafts = cast(list[int], mx.concatenate(tokens).tolist())
        except BaseException:
            prefix.reset()
            raise
        prefix.extend(drafts[:-1])
        return drafts

    def _read(self, check: Check) -> mx.array:
        """Brings the cache to the text; returns the logits after its last id."""
        prefix = self._engine.prefix
        # The last id is always fed: its logits are wanted.
        keep = min(self._num_agreed, len(self._text) - 1, len(prefix.token_ids))
        if not prefix.cache.can_rewind(keep):  # a window has moved on
            keep = 0
        if keep == 0:
            prefix.reset()
        elif keep < len(prefix.token_ids):
            prefix.cache.rewind(keep)
            del prefix.token_ids[keep:]
        plan = Plan("trim", keep, keep, keep)
        logits = self._engine.prefill(self._text, plan, check=check)
        assert logits is not None
        prefix.cache.pin(len(self._text) - 1)
        self._num_agreed = len(self._text)
        return logits
