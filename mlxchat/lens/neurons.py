"""Feed-forward units: which are most active, and which tokens they write (Geva et al. 2021).

A unit's activation times its column of the down projection is what it adds to the residual
stream; that column through the final norm and the head names the tokens that it makes likelier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.lens.logit_lens import top_ids
from mlxchat.lens.trace import to_lists, trace
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.linear import apply_linear
from mlxchat.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class Unit:
    """One feed-forward unit at its most active position.

    Attributes:
        unit: Its number.
        position: Where in the text it is most active.
        activation: Its value there; a negative one writes the opposite of its column.
        share: Of the length of what the feed-forward adds there.
        writes: The tokens that it makes likelier there, as (id, score); scores are comparable
            within a unit only.
        activations: At all positions.
    """

    unit: int
    position: int
    activation: float
    share: float
    writes: tuple[tuple[int, float], ...]
    activations: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NeuronView:
    """The most active units by layer."""

    token_ids: tuple[int, ...]
    d_mlp: int
    layers: tuple[tuple[Unit, ...], ...]


def read_neurons(
    model: LanguageModel,
    token_ids: Sequence[int],
    *,
    count: int = 5,
    num_tokens: int = 6,
    position: int | None = None,
) -> NeuronView:
    """Reads the most active units of every layer.

    Args:
        model: Of a native family.
        token_ids: The text.
        count: Units of each layer.
        num_tokens: Tokens that are named of what a unit writes.
        position: Rank units by their activation here; None takes each where it is most active.

    Raises:
        UnsupportedModelError: mlx-lm runs the model's blocks.
    """
    seen = trace(model, token_ids, ["mlp_act", "mlp_out"], logits=False)
    assert isinstance(model, Transformer)  # only it shows mlp_act
    layers = []
    for layer in range(model.info.n_layers):
        acts = seen["mlp_act", layer].astype(mx.float32)  # (T, d_mlp)
        lengths = to_lists(mx.linalg.norm(seen["mlp_out", layer].astype(mx.float32), axis=-1))
        size = mx.abs(acts) if position is None else mx.abs(acts[position])[None]
        units = top_ids(size.max(axis=0)[None], count)[0]
        columns = unit_columns(model, layer, units)
        rows = acts[:, units].T  # (N, T)
        peaks = mx.argmax(mx.abs(rows), axis=1)
        if position is not None:
            peaks = mx.full(peaks.shape, position % acts.shape[0])
        values = mx.take_along_axis(rows, peaks[:, None], axis=1)  # (N, 1)
        scores = model.unembed((columns * mx.sign(values))[None])[0].astype(mx.float32)
        ids = top_ids(scores, num_tokens)
        added = mx.abs(values[:, 0]) * mx.linalg.norm(columns, axis=-1)
        told = (units, peaks, values[:, 0], added, ids, mx.take_along_axis(scores, ids, 1), rows)
        layers.append(
            tuple(
                Unit(u, p, v, a / (lengths[p] or 1.0), tuple(zip(i, s, strict=True)), tuple(row))
                for u, p, v, a, i, s, row in zip(*map(to_lists, told), strict=True)
            )
        )
    return NeuronView(seen.token_ids, model.config.d_mlp, tuple(layers))


def unit_columns(model: Transformer, layer: int, units: mx.array) -> mx.array:
    """Returns what units (N,) add to the residual stream per activation of 1: (N, D).

    Norms after the feed-forward (Gemma, OLMo) divide by a length that the whole output decides;
    here only their weights count.
    """
    weights = model.weights.layers[layer]
    dtype = model.weights.final_norm.dtype
    ones = (mx.arange(model.config.d_mlp)[None] == units[:, None]).astype(dtype)  # (N, d_mlp)
    none = mx.zeros((1, model.config.d_mlp), dtype)
    columns, offset = (
        apply_linear(weights.down, weights.after["down"], rows[None])[0] for rows in (ones, none)
    )
    columns = (columns - offset) * model.config.residual_scale
    if "post_mlp_norm" in weights.after:
        columns = columns * weights.after["post_mlp_norm"]
    return columns.astype(mx.float32)
