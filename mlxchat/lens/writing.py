"""Writes a few tokens greedily, with changes of the model: what the lens does with an edit."""

from collections.abc import Callable, Collection, Sequence
from typing import cast

import mlx.core as mx

from mlxchat.lens.trace import check_length
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Taps


def write_tokens(
    model: LanguageModel,
    token_ids: Sequence[int],
    *,
    max_tokens: int,
    eos_ids: Collection[int] = (),
    taps: Taps | None = None,
    prompt_taps: Taps | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[int]:
    """Returns the likeliest next tokens, one after the other, in a cache of its own.

    Args:
        model: Native or zoo.
        token_ids: The prompt.
        max_tokens: At most so many are written.
        eos_ids: End the text, and are left out of it.
        taps: Change every pass.
        prompt_taps: In their place while the prompt is read, such as a state that is put into it.
        check: Called between tokens; what it raises ends the work.
    """
    check_length(model, len(token_ids) + max_tokens, ())
    cache, written = model.make_cache(), list[int]()
    first = prompt_taps if prompt_taps is not None else taps
    if first is None:
        logits = model.forward(mx.array([list(token_ids)]), cache)
    else:
        # Not by `forward`: the zoo's feeds the last id apart, and positions would shift.
        x = model.hidden(mx.array([list(token_ids)]), cache, first)
        logits = model.unembed(x[:, -1:])[:, 0]
    while len(written) < max_tokens:
        check()
        token = cast(int, mx.argmax(logits[0]).item())
        if token in eos_ids:
            break
        written.append(token)
        if len(written) < max_tokens:
            logits = model.forward(mx.array([[token]]), cache, taps)
    return written
