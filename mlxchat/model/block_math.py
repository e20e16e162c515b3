"""What blocks compute alike on either way through them (`transformer.py`, `one_token.py`)."""

import mlx.core as mx

from mlxchat.model.families import ModelConfig


def rms_norm(x: mx.array, weight: mx.array | None, epsilon: float) -> mx.array:
    """RMSNorm over the last axis (Zhang and Sennrich 2019), written out, to be compiled."""
    wide = x.astype(mx.float32)
    y = wide * mx.rsqrt(mx.mean(mx.square(wide), axis=-1, keepdims=True) + epsilon)
    y = y.astype(x.dtype)
    return y if weight is None else y * weight


def scale_output(config: ModelConfig, y: mx.array) -> mx.array:
    """Scales what a block adds to the residual stream, as the family does."""
    return y if config.residual_scale == 1.0 else y * config.residual_scale


def add_output(config: ModelConfig, x: mx.array, y: mx.array) -> mx.array:
    """Adds to the residual stream, clipped where the family clips it."""
    if config.clip_residual and x.dtype == mx.float16:  # Gemma 3 overflows float16
        bound = mx.finfo(mx.float16).max
        wide = x.astype(mx.float32) + y.astype(mx.float32)
        return mx.clip(wide, -bound, bound).astype(x.dtype)
    return x + y


def finish_logits(config: ModelConfig, logits: mx.array) -> mx.array:
    """Scales and caps what the LM head gives, as the family does."""
    if config.logit_divisor != 1.0:
        logits = logits / config.logit_divisor
    if config.final_softcap is not None:
        logits = mx.tanh(logits / config.final_softcap) * config.final_softcap
    return logits
