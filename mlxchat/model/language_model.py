"""What the engine needs of a model: the one interface of the native transformer and the zoo."""

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlxchat.model.batch_cache import Stack
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.taps import Point, Taps


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model tells about itself, native or not.

    `bytes_per_token` are the weights read for one decoded token; None where only some are read and
    it is not known which (mixtures of experts). `matmul_params` are the weights that each token
    of a prefill is multiplied with, under the same condition.
    """

    family: str
    n_layers: int
    vocab_size: int
    max_context: int
    n_params: int
    weight_bytes: int
    notices: tuple[str, ...] = ()
    bytes_per_token: int | None = None
    matmul_params: int | None = None


class LanguageModel(Protocol):
    """What the engine needs of a model; the native transformer and the zoo both provide it."""

    @property
    def info(self) -> ModelInfo:
        """Sizes and limits."""

    @property
    def can_pad(self) -> bool:
        """Whether the sequences of a batch may be of different lengths."""

    def find_stack(self) -> Stack | None:
        """Returns what makes a batch of sequences of any lengths; None where nothing does."""

    def can_read_rows(self) -> bool:
        """Whether prompts can be read together, with anything behind the shorter ones."""

    def make_cache(self) -> SequenceCache:
        """Returns an empty cache for one sequence (or a batch in step)."""

    def prefill(self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None) -> None:
        """Feeds ids (B, T) whose logits nobody wants; evaluate `cache.arrays()` afterwards."""

    def forward_all(
        self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None
    ) -> mx.array:
        """Feeds ids (B, T), extends the cache, returns the logits of all, (B, T, V), lazily."""

    def forward(
        self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None
    ) -> mx.array:
        """Feeds ids (B, T), extends the cache, returns last logits (B, V), lazily."""

    # -- for looking inside ------------------------------------------------------------------------

    @property
    def points(self) -> frozenset[Point]:
        """Where `taps` can look."""

    def hidden(
        self, token_ids: mx.array, cache: SequenceCache, taps: Taps | None = None
    ) -> mx.array:
        """Feeds ids (B, T) and returns the residual stream after the last block, (B, T, D)."""

    def unembed(self, x: mx.array) -> mx.array:
        """Final norm and LM head: residual stream (B, T, D) -> logits (B, T, V)."""

    def embed(self, token_ids: mx.array) -> mx.array:
        """Looks up the embedding rows of ids (B, T), as the first block gets them: (B, T, D)."""
