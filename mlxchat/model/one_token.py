"""One token of a sequence, or of a few, on MLX's CPU backend: only what its products leave to do.

Every operation costs its dispatch there, views too: about 3 us, and a block as `transformer.py` has
it takes 59 of them. Here it takes 37, with the same weights, and the same numbers up to rounding:
vectors stay rows, and heads are normed, scaled and turned by one multiplication and one sum. Of
taps only those of the residual stream fit in.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxchat.model import exponential
from mlxchat.model.attention import attend_heads
from mlxchat.model.batch_cache import mask_padding
from mlxchat.model.block_math import add_output, finish_logits, rms_norm, scale_output
from mlxchat.model.device import DevicePlan
from mlxchat.model.families import ModelConfig
from mlxchat.model.linear import Arrays, LinearSpec, apply_joined, apply_linear
from mlxchat.model.rope import Rope
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.taps import Point, Taps
from mlxchat.model.weights import LayerWeights, ModelWeights, Params

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
Projected = tuple[mx.array, mx.array, mx.array]  # q (B, K, H / K, Dh), scaled; k, v (B, K, 1, Dh)


class OneToken:
    """Runs one token of each sequence through a transformer's weights.

    Args:
        config: The model's shape.
        weights: Its arrays.
        plan: The device's choices.
        compile_: `mx.compile`, or what leaves functions as they are.
    """

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, plan: DevicePlan, compile_: Compile
    ) -> None:
        self.config = config
        self.plan = plan
        self._first_alike = [config.layers.index(kind) for kind in config.layers]
        ropes = [kind.rope for kind in config.layers]
        self._ropes = list(dict.fromkeys(rope for rope in ropes if rope is not None))
        self._table_of = [None if rope is None else self._ropes.index(rope) for rope in ropes]
        self._periods = [mx.array(rope.periods) for rope in self._ropes]
        self._tables: Callable[..., list[mx.array]] = compile_(self._make_tables)
        pairs = list(zip(weights.layers, ropes, strict=True))
        self._before = [self._view_before(layer, rope) for layer, rope in pairs]
        self._after = [self._view_after(layer) for layer in weights.layers]
        self._end = _as_row(weights.final_norm), _view(weights.head[1])
        mx.eval(self._before, self._after, self._end)
        self._functions: list[tuple[Callable[..., Projected], Callable[..., mx.array]]] = []
        shared: dict[Any, tuple[Callable[..., Projected], Callable[..., mx.array]]] = {}
        for layer, rope in pairs:
            key = layer.static, 0 if rope is None else rope.dims
            if key not in shared:
                makers = self._make_before(layer, key[1]), self._make_after(layer)
                shared[key] = compile_(makers[0]), compile_(makers[1])
            self._functions.append(shared[key])
        self._unembed: Callable[..., mx.array] = compile_(self._make_unembed(weights.head[0]))

    @staticmethod
    def can_run(config: ModelConfig, weights: ModelWeights, plan: DevicePlan) -> bool:
        """Whether this device and these weights are such as this module is made for."""
        specs = [weights.head[0]]
        for layer in weights.layers:
            specs += [*layer.qkv, layer.o, *layer.gate_up, layer.down]
        is_plain = all(spec.quant is None and not spec.extra for spec in specs)
        is_cpu = plan.float32 and not plan.fast_kernels
        return is_cpu and is_plain and config.attn_softcap is None

    def forward(self, x: mx.array, cache: SequenceCache, taps: Taps | None = None) -> mx.array:
        """Feeds an embedded token of each row, (B, 1, D), and returns their logits (B, V), lazily.

        Args:
            x: The tokens.
            cache: Of the same rows.
            taps: Of the residual stream alone (`STREAM_POINTS`).
        """
        layers, padding = cache.raw, cache.padding
        offset, masks = mx.array(layers[0].offset), {}
        if padding is not None:
            offset = offset - padding
            masks = {i: mask_padding(layers[i], None, 1, padding) for i in set(self._first_alike)}
        tables = self._tables(offset, self._periods)
        turns: list[Any] = [[] if i is None else tables[i] for i in self._table_of]
        x = x[:, 0]
        for i, held in enumerate(layers):
            before, after = self._functions[i]
            x = _visit(taps, "resid_pre", i, x)
            q, k, v = before(self._before[i], turns[i], x)
            held.append(k, v)
            rows, mask = held.visible(), masks.get(self._first_alike[i])
            if held.format is None:
                attended = attend_heads(q, rows["keys"], rows["values"], mask)
            else:
                heads = q.reshape(-1, self.config.n_heads, 1, self.config.head_dim)
                attended = held.format.attend_one(heads, rows, mask)
            x = _visit(taps, "resid_post", i, after(self._after[i], x, attended))
        return self._unembed(*self._end, x)

    # -- arrays as they are needed here: views, but for small ones --------------------------------

    def _view_before(self, layer: LayerWeights, rope: Rope | None) -> Params:
        c = self.config
        params: Params = {"qkv": [_view(arrays) for arrays in layer.before["qkv"]]}
        for name in ("norm", "q_norm", "k_norm"):
            if name in layer.before:
                params[name] = _as_row(layer.before[name])
        num_heads = c.n_heads + c.n_kv_heads
        scales = mx.array([c.attn_scale] * c.n_heads + [1.0] * c.n_kv_heads)[:, None, None]
        scales = mx.broadcast_to(scales, (num_heads, 1, c.head_dim))
        if c.qk_norm == "head":
            scales = scales * layer.before["qk_norm"]
        dims = 0 if rope is None else rope.dims
        params["turned"] = scales[..., :dims].reshape(num_heads, 1, 2, dims // 2)
        params["kept"] = scales[..., None, dims:]
        return params

    def _view_after(self, layer: LayerWeights) -> Params:
        params: Params = {"gate_up": [_view(arrays) for arrays in layer.after["gate_up"]]}
        for name, value in layer.after.items():
            if name in ("o", "down"):
                params[name] = _view(value)
            elif name != "gate_up":
                params[name] = _as_row(value)
        return params

    # -- makers of the functions that are compiled ------------------------------------------------

    def _make_tables(self, offset: mx.array, periods: list[mx.array]) -> list[mx.array]:
        """Returns for each row of periods what turns a pair, (B, 1, 2, 2, dims / 2).

        B is 1 where `offset` is one number for all sequences.
        """
        tables = []
        for rope, row in zip(self._ropes, periods, strict=True):
            angle = offset.reshape(-1, 1, 1).astype(mx.float32) / row
            cos, sin = mx.cos(angle) * rope.mscale, mx.sin(angle) * rope.mscale
            turns = [mx.stack([cos, -sin], axis=-2), mx.stack([sin, cos], axis=-2)]
            tables.append(mx.stack(turns, axis=-3))
        return tables

    def _norm(self, x: mx.array, weight: mx.array) -> mx.array:
        return rms_norm(x, weight, self.config.norm_eps)

    def _turn(self, dims: int, params: Params, table: Any, qk: mx.array) -> mx.array:
        """Norms, scales and turns all heads of queries and keys: (B, H + K, 1, Dh)."""
        c = self.config
        is_whole = dims == c.head_dim
        num_rows, num_heads = qk.shape[0], c.n_heads + c.n_kv_heads
        shape = (2, dims // 2) if is_whole else (1, c.head_dim)
        heads = qk.reshape(num_rows, num_heads, 1, *shape)
        turned_by, kept_by = params["turned"], params["kept"]
        if c.qk_norm == "head":
            mean = mx.mean(mx.square(heads), axis=(-1, -2), keepdims=True)
            inverse = mx.rsqrt(mean + c.norm_eps)
            turned_by, kept_by = inverse * turned_by, inverse * kept_by
        parts = []
        if dims:
            pairs = heads if is_whole else heads[..., :dims].reshape(*heads.shape[:3], 2, -1)
            parts.append(mx.sum(pairs * turned_by * table, axis=-2, keepdims=True))
        if not is_whole:
            parts = [part.reshape(*heads.shape[:4], dims) for part in parts]
            parts.append(heads[..., dims:] * kept_by)
        joined = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
        return joined.reshape(num_rows, num_heads, 1, c.head_dim)

    def _make_before(
        self, layer: LayerWeights, dims: int
    ) -> Callable[[Params, Any, mx.array], Projected]:
        c, specs = self.config, layer.qkv
        q_width, k_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim

        def before(params: Params, table: Any, x: mx.array) -> Projected:
            if "norm" in params:
                x = self._norm(x, params["norm"])
            h = apply_joined(specs, map(_widen, params["qkv"]), x, self.plan)
            qk, v = h[:, : q_width + k_width], h[:, q_width + k_width :]
            if c.qk_norm == "full":
                q = self._norm(qk[:, :q_width], params["q_norm"])
                k = self._norm(qk[:, q_width:], params["k_norm"])
                qk = mx.concatenate([q, k], axis=1)
            heads = self._turn(dims, params, table, qk)
            q, k = heads[:, : c.n_heads], heads[:, c.n_heads :]
            q = q.reshape(-1, c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim)
            return q, k, v.reshape(k.shape)

        return before

    def _make_after(self, layer: LayerWeights) -> Callable[[Params, mx.array, mx.array], mx.array]:
        c, o_spec, gate_up_specs, down_spec = self.config, layer.o, layer.gate_up, layer.down
        activation = exponential.silu if c.activation == "silu" else exponential.gelu

        def after(params: Params, x: mx.array, attended: mx.array) -> mx.array:
            attended = attended.reshape(x.shape[0], -1)
            y = apply_linear(o_spec, _widen(params["o"]), attended, self.plan)
            if "post_attn_norm" in params:
                y = self._norm(y, params["post_attn_norm"])
            x = add_output(c, x, scale_output(c, y))
            y = self._norm(x, params["pre_mlp_norm"]) if "pre_mlp_norm" in params else x
            y = apply_joined(gate_up_specs, map(_widen, params["gate_up"]), y, self.plan)
            y = activation(y[:, : c.d_mlp]) * y[:, c.d_mlp :]
            y = apply_linear(down_spec, _widen(params["down"]), y, self.plan)
            if "post_mlp_norm" in params:
                y = self._norm(y, params["post_mlp_norm"])
            return add_output(c, x, scale_output(c, y))

        return after

    def _make_unembed(self, spec: LinearSpec) -> Callable[..., mx.array]:
        c = self.config

        def unembed(norm: mx.array, head: list[mx.array], x: mx.array) -> mx.array:
            logits = apply_linear(spec, _widen(head), self._norm(x, norm), self.plan)
            return finish_logits(c, logits)

        return unembed


def _visit(taps: Taps | None, point: Point, layer: int, x: mx.array) -> mx.array:
    """Shows the residual stream as the other way has it."""
    if taps is None or point not in taps.points:
        return x
    return taps.visit(point, layer, x[:, None])[:, 0]


def _as_row(array: mx.array) -> mx.array:
    return array.reshape(1, -1)


def _view(arrays: Arrays) -> list[mx.array]:
    """Returns weight and bias of a plain matrix, without Nones: each costs a call some time."""
    weight, _, _, bias = arrays
    assert weight is not None
    return [weight] if bias is None else [weight, _as_row(bias)]


def _widen(view: list[mx.array]) -> Arrays:
    """Returns the arrays that `_view` was made of."""
    return [view[0], None, None, view[1] if len(view) > 1 else None]
