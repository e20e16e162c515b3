"""Layers that drop old rows: sliding windows, and chunks that see only themselves.

A position can be reached again while its rows are held: they are back to the pin. Before that a
snapshot of the few visible rows brings it back.
"""

from __future__ import annotations

import mlx.core as mx

from mlxchat.model.kv_cache import (
    GROWTH_STEP,
    Kind,
    RowCache,
    Snapshot,
    make_causal_mask,
)


class WindowKV(RowCache):
    """Keys and values that a sliding window still sees, and those back to the pin.

    Returns the rows that a rotating buffer would: up to `window` - 1 old ones and the new ones, but
    in order of position. Old rows are dropped when the buffer is full, so the rows written since
    then pay for the copying, and what positions from the pin on need is always kept.

    Args:
        window: A token sees at most this many rows, its own included.
        step: As in `RowCache`.
    """

    kind: Kind = "window"

    def __init__(self, window: int, step: int = GROWTH_STEP) -> None:
        super().__init__(step)
        self.window = window

    def first_needed(self, pos: int) -> int:
        """Return the oldest position that a token at `pos` or later looks at."""
        return max(0, pos - (self.window - 1))

    def make_mask(
        self,
        N: int,  # noqa: N803 (mlx-lm's models name it)
        return_array: bool = False,
        window_size: int | None = None,
    ) -> mx.array | str | None:
        """Return the mask of the next `N` tokens over the rows that the update will return."""
        held = min(self.window - 1, self.offset)
        if N > 1:
            window = window_size or self.window
            if held + N > window or return_array:
                return make_causal_mask(N, held, window)
            return "causal"
        if window_size is None or window_size >= held + 1:
            return None
        return mx.arange(held + 1) >= held + 1 - window_size

    def snapshot(self, evaluate: bool = True) -> Snapshot:
        """Copy the rows that the next token sees: they will slide out of the window."""
        return self._visible_snapshot(evaluate)


class ChunkedKV(RowCache):
    """Keys and values of the current chunk of positions, and those back to the pin's chunk.

    For models whose tokens see only their own chunk (Llama 4). `start_position` is the position of
    the first row that `update_and_fetch` returns; such models build their mask from it.

    Args:
        chunk_size: Positions per chunk.
        step: As in `RowCache`.
    """

    kind: Kind = "chunked"

    def __init__(self, chunk_size: int, step: int = GROWTH_STEP) -> None:
        super().__init__(step)
        self.chunk_size = chunk_size

    def first_needed(self, pos: int) -> int:
        """Return the oldest position that a token at `pos` or later looks at."""
        return pos // self.chunk_size * self.chunk_size

    def maybe_trim_front(self) -> None:
        """Show the model the current chunk only; rows leave memory when the buffer is full."""
        self.start_position = self.first_needed(self.offset)

    def snapshot(self, evaluate: bool = True) -> Snapshot:
        """Copy the rows of the current chunk: they will be dropped after it."""
        return self._visible_snapshot(evaluate)
