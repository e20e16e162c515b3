"""The BERT family (Devlin et al. 2018): encoders that read a text in both directions at once.

Learned positions are added to the token rows, LayerNorm follows each half of a block, and every
token sees every other but padding. MPNet also adds a learned bias for the distance of two tokens to
their scores. Everything is float32: the models are small, and their vectors are compared with those
of other programs.

Knows token ids and arrays; names and files are `bert_files.py`'s, texts belong above.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

# MPNet, as T5: distances beyond this share the last bucket.
_MAX_DISTANCE = 128

Block = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The shape of an encoder.

    Attributes:
        first_position: The position of the first token.
        n_distances: Buckets of distances that have a bias; 0 where there is none.
        max_tokens: The longest text that has positions.
    """

    family: str
    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    vocab_size: int
    n_positions: int
    n_types: int
    norm_eps: float
    activation: str
    first_position: int
    n_distances: int = 0

    @property
    def max_tokens(self) -> int:
        """The longest text that has positions."""
        return self.n_positions - self.first_position

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads


class BertEncoder:
    """An encoder of the BERT family.

    Args:
        config: Its shape.
        embeddings: The rows of tokens, positions and types, the norm after them, and the biases of
            distances.
        blocks: The arrays of each block.
    """

    def __init__(self, config: BertConfig, embeddings: Block, blocks: list[Block]) -> None:
        self.config = config
        self._embeddings = embeddings
        self._blocks = blocks
        self._block: Callable[..., mx.array] = mx.compile(self._run_block)

    def hidden(self, token_ids: mx.array, is_token: mx.array, layer: int | None = None) -> mx.array:
        """Returns the hidden states after some blocks.

        Args:
            token_ids: (B, T), padded on the right.
            is_token: (B, T), False for padding.
            layer: After how many blocks; None for all, 0 for the embeddings.

        Returns:
            (B, T, D); rows of padding hold nothing of use.
        """
        x, mask = self.embed(token_ids), self._mask(is_token)
        for index in range(self.config.n_layers if layer is None else layer):
            x = self._block(self._blocks[index], x, mask)
        return x

    def embed(self, token_ids: mx.array) -> mx.array:
        """Adds the rows of tokens, positions and the first type, and norms them: (B, T, D)."""
        e, first = self._embeddings, self.config.first_position
        x = e["tokens"][token_ids] + e["positions"][first : first + token_ids.shape[1]]
        if "types" in e:
            x = x + e["types"][0]
        return self._norm(x, e["norm"], e["norm_bias"])

    def block(self, layer: int, x: mx.array, is_token: mx.array) -> mx.array:
        """Runs one block: (B, T, D) in, (B, T, D) out."""
        return self._block(self._blocks[layer], x, self._mask(is_token))

    def _mask(self, is_token: mx.array) -> mx.array:
        """Returns what is added to the scores, (B, H or 1, T or 1, T): the lowest for padding."""
        lowest = mx.finfo(mx.float32).min
        mask = mx.where(is_token, 0.0, lowest)[:, None, None, :]
        if not self.config.n_distances:
            return mask
        buckets = _bucket_distances(is_token.shape[1], self.config.n_distances)
        biases = self._embeddings["distances"][buckets].transpose(2, 0, 1)  # (H, T, T)
        return mx.maximum(mask + biases[None], lowest)

    def pattern(self, layer: int, x: mx.array, is_token: mx.array) -> mx.array:
        """Returns how much each token of the states before a block looks at each: (B, H, T, T)."""
        q, k, _ = self._qkv(self._blocks[layer], x)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(self.config.head_dim) + self._mask(is_token)
        return mx.softmax(scores, axis=-1, precise=True)

    def mix(self, layer: int, x: mx.array, pattern: mx.array) -> mx.array:
        """Returns what attention adds to the states when it follows a pattern: (B, T, D)."""
        w = self._blocks[layer]
        return self._join(w, pattern @ self._qkv(w, x)[2])

    def _qkv(self, w: Block, x: mx.array) -> list[mx.array]:
        batch, length, _ = x.shape
        h = x @ w["qkv"].T + w["qkv_bias"]  # (B, T, 3 * H * Dh)
        h = h.reshape(batch, length, 3, self.config.n_heads, self.config.head_dim)
        return [h[:, :, i].transpose(0, 2, 1, 3) for i in range(3)]  # each (B, H, T, Dh)

    def _join(self, w: Block, attended: mx.array) -> mx.array:
        batch, _, length, _ = attended.shape
        y = attended.transpose(0, 2, 1, 3).reshape(batch, length, self.config.d_model)
        return y @ w["o"].T + w["o_bias"]

    def _run_block(self, w: Block, x: mx.array, mask: mx.array) -> mx.array:
        q, k, v = self._qkv(w, x)
        attended = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=self.config.head_dim**-0.5, mask=mask
        )
        return self._finish(w, x, self._join(w, attended))

    def finish(self, layer: int, x: mx.array, attn_out: mx.array) -> mx.array:
        """Runs what follows attention in a block: both norms and the feed-forward, (B, T, D)."""
        return self._finish(self._blocks[layer], x, attn_out)

    def _finish(self, w: Block, x: mx.array, attn_out: mx.array) -> mx.array:
        x = self._norm(x + attn_out, w["attn_norm"], w["attn_norm_bias"])
        y = ACTIVATIONS[self.config.activation](x @ w["up"].T + w["up_bias"])
        y = y @ w["down"].T + w["down_bias"]
        return self._norm(x + y, w["mlp_norm"], w["mlp_norm_bias"])

    def _norm(self, x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        return mx.fast.layer_norm(x, weight, bias, self.config.norm_eps)


def _bucket_distances(length: int, count: int) -> mx.array:
    """Returns the bucket of each pair of positions (T, T): small ones apart, large ones by log.

    One half of the buckets is for tokens before, the other for tokens behind.
    """
    where, half = mx.arange(length), count // 2
    distance = where[None] - where[:, None]
    far, near = mx.abs(distance), half // 2
    ratio = mx.log(mx.maximum(far, 1) / near) / math.log(_MAX_DISTANCE / near)
    large = mx.minimum(near + (ratio * (half - near)).astype(mx.int32), half - 1)
    return mx.where(distance > 0, half, 0) + mx.where(far < near, far, large)


def _gelu(x: mx.array) -> mx.array:
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def _gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: mx.maximum(x, 0),
    "silu": lambda x: x * mx.sigmoid(x),
}
