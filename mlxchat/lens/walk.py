"""One step of a model, part by part: from ids to the distribution of the next token."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlxchat.lens.logit_lens import LensView, read_trace, top_ids
from mlxchat.lens.trace import Trace, to_lists, to_number, trace
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.taps import Point
from mlxchat.model.transformer import Transformer

# What each point is called on the way, in order.
POINTS: tuple[tuple[Point, str], ...] = (
    ("resid_pre", "residual stream in"),
    ("attn_in", "norm"),
    ("q", "Q, rotated"),
    ("k", "K, rotated"),
    ("v", "V"),
    ("scores", "scores Q·K"),
    ("pattern", "softmax of the scores"),
    ("z", "mix of V"),
    ("attn_out", "output projection"),
    ("resid_mid", "residual stream + attention"),
    ("mlp_in", "norm"),
    ("mlp_act", "feed-forward units"),
    ("mlp_out", "feed-forward out"),
    ("resid_post", "residual stream + feed-forward"),
)


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One array on the way.

    Attributes:
        name: `embed`, `rope`, `0.q`, ..., `final`, `logits`, `probs`.
        shape: Of the whole array, without the batch axis.
        norm: Length of the last position's part of it (masked scores left out).
    """

    name: str
    shape: tuple[int, ...]
    norm: float


@dataclass(frozen=True, slots=True)
class Added:
    """What one block did to the last position.

    Attributes:
        attention: Length of what attention added.
        feed_forward: Length of what the feed-forward added.
        before: Length of the residual stream before it.
        turn: Cosine of the residual stream before and after.
    """

    attention: float
    feed_forward: float
    before: float
    turn: float


@dataclass(frozen=True, slots=True)
class Walk:
    """The way of one step.

    Attributes:
        token_ids: What was read.
        steps: All arrays in order.
        added: By block; empty where mlx-lm runs the blocks.
        angles: By pair of dimensions, the rotation of the last position in radians.
        lens: The logit lens at the last position.
        temperature: Divides the logits; 0 takes the likeliest.
        top: The likeliest next tokens as (id, probability).
    """

    token_ids: tuple[int, ...]
    steps: tuple[WalkStep, ...]
    added: tuple[Added, ...]
    angles: tuple[float, ...]
    lens: LensView
    temperature: float
    top: tuple[tuple[int, float], ...]


def walk(
    model: LanguageModel, token_ids: Sequence[int], *, temperature: float = 1.0, top: int = 10
) -> Walk:
    """Follows one step of a model.

    Zoo models show the residual stream between their blocks only.
    """
    points = [p for p, _ in POINTS if p in model.points]
    seen = trace(model, token_ids, points)
    assert seen.logits is not None
    last = seen["resid_post", model.info.n_layers - 1]
    logits = seen.logits.astype(mx.float32)
    probs = softmax_at(logits[-1], temperature)
    angles, kinds = _angles(model, len(token_ids))
    steps = [_step("embed", seen["resid_pre", 0])]
    steps += [WalkStep("rope", (len(token_ids), len(angles)), _length(angles))] if kinds else []
    for layer in range(model.info.n_layers):
        steps += [_step(f"{layer}.{p}", seen[p, layer]) for p in points]
    steps += [_step("final", last), _step("logits", logits), _step("probs", probs[None])]
    ids = top_ids(probs[None], top)[0]
    likeliest = zip(to_lists(ids), to_lists(probs[ids]), strict=True)
    lens = read_trace(model, seen, [len(token_ids) - 1], top=1)
    return Walk(
        seen.token_ids,
        tuple(steps),
        _added(model, seen),
        tuple(angles),
        lens,
        temperature,
        tuple(likeliest),
    )


def softmax_at(logits: mx.array, temperature: float) -> mx.array:
    """Returns the probabilities (V,) of logits (V,) at a temperature, as the sampler has them."""
    if temperature == 0:
        return (mx.arange(logits.size) == mx.argmax(logits)).astype(mx.float32)
    return mx.softmax(logits.astype(mx.float32) / temperature)


def _step(name: str, array: mx.array) -> WalkStep:
    last = array[..., -1, :].astype(mx.float32)
    if name.endswith(".scores"):  # the lowest number stands where a token may not look
        last = mx.where(last > -1e30, last, 0)
    return WalkStep(name, tuple(array.shape), to_number(mx.linalg.norm(last.reshape(-1))))


def _length(values: Sequence[float]) -> float:
    return float(sum(x * x for x in values) ** 0.5)


def _angles(model: LanguageModel, num_ids: int) -> tuple[list[float], int]:
    """Returns the last position's rotation in the first layer that has one."""
    if not isinstance(model, Transformer):
        return [], 0
    rope = next((k.rope for k in model.config.layers if k.rope is not None), None)
    return ([], 0) if rope is None else ([(num_ids - 1) / p for p in rope.periods], 1)


def _added(model: LanguageModel, seen: Trace) -> tuple[Added, ...]:
    if "attn_out" not in model.points:
        return ()
    added = []
    for layer in range(model.info.n_layers):
        points: tuple[Point, ...] = ("attn_out", "mlp_out", "resid_pre", "resid_post")
        rows = [seen[p, layer][-1].astype(mx.float32) for p in points]
        attn, mlp, before, after = (to_number(mx.linalg.norm(r)) for r in rows)
        turn = to_number(mx.sum(rows[2] * rows[3])) / ((before * after) or 1.0)
        added.append(Added(attn, mlp, before, turn))
    return tuple(added)
