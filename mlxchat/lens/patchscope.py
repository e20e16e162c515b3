"""Patchscope (Ghandeharioun et al. 2024): one state, put into another prompt, told in words.

The residual stream of one token of a source text is taken after a block and put in the place of a
token of another prompt, after the same block or another. What the model then writes shows what the
state holds.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.lens.edits import Replace
from mlxchat.lens.logit_lens import divergence, top_ids
from mlxchat.lens.trace import check_layer, to_lists, to_number, trace
from mlxchat.lens.writing import write_tokens
from mlxchat.model.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Patched:
    """What the model makes of one state.

    Attributes:
        layer: The block after which the state was taken; None: nothing was put in.
        into: The block after which it was put in.
        token_ids: What was written.
        top: The likeliest first tokens with their probabilities.
        divergence: Kullback-Leibler divergence of the first token from that without the state.
    """

    layer: int | None
    into: int | None
    token_ids: tuple[int, ...]
    top: tuple[tuple[int, float], ...]
    divergence: float


@dataclass(frozen=True, slots=True)
class Place:
    """A token of a text: its ids and which of them is meant."""

    token_ids: Sequence[int]
    position: int


def patch_states(
    model: LanguageModel,
    source: Place,
    target: Place,
    *,
    layers: Sequence[int] | None = None,
    into: int | None = None,
    max_tokens: int = 12,
    eos_ids: Collection[int] = (),
    num_top: int = 3,
    check: Callable[[], None] = lambda: None,
) -> tuple[Patched, list[Patched]]:
    """Puts the state of a token into another prompt, once for each layer.

    Args:
        model: Native, or a zoo model whose residual stream can be changed.
        source: Where the states come from.
        target: The prompt, and the token whose state gives way.
        layers: After which blocks states are taken; None is all.
        into: After which block they are put in; None is the same.
        max_tokens: Written for each.
        eos_ids: End what is written.
        num_top: Likeliest first tokens that are told.
        check: Called between tokens; what it raises ends the work.

    Returns:
        What is written without a state, and what is written with each.

    Raises:
        UsageError: A layer does not exist.
        UnsupportedModelError: The residual stream cannot be changed.
    """
    wanted = range(model.info.n_layers) if layers is None else layers
    for layer in (*wanted, 0 if into is None else into):
        check_layer(model, layer)
    states = trace(model, source.token_ids, ["resid_post"], logits=False, layers=list(wanted))
    plain_probs = _first_token(model, target, None)

    def run(layer: int | None) -> Patched:
        edit, place = None, None
        if layer is not None:
            place = layer if into is None else into
            edit = Replace(place, target.position, states["resid_post", layer][source.position])
        probs = plain_probs if edit is None else _first_token(model, target, edit)
        written = write_tokens(
            model,
            target.token_ids,
            max_tokens=max_tokens,
            eos_ids=eos_ids,
            prompt_taps=edit,
            check=check,
        )
        moved = to_number(divergence(probs, plain_probs))
        return Patched(layer, place, tuple(written), _top(probs, num_top), moved)

    return run(None), [run(layer) for layer in wanted]


def _first_token(model: LanguageModel, target: Place, edit: Replace | None) -> mx.array:
    """Returns the distribution of the token after the prompt, (V,)."""
    x = model.hidden(mx.array([list(target.token_ids)]), model.make_cache(), edit)
    return mx.softmax(model.unembed(x[:, -1:])[0, 0].astype(mx.float32))


def _top(probs: mx.array, count: int) -> tuple[tuple[int, float], ...]:
    ids = top_ids(probs[None], count)[0]
    return tuple(zip(to_lists(ids), to_lists(probs[ids]), strict=True))
