"""The network in PyTorch: a small Qwen3 (grouped-query attention, q/k norm, SwiGLU, tied head).

Parameter names are those of Hugging Face checkpoints, so that export only has to quantise.
Training needs no cache; `generate` keeps one, for evaluation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED_FROM = 300  # row length from which the fused attention kernel is faster


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the ones that were trained."""

    vocab_size: int = 3072
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 32
    d_mlp: int = 640
    rope_theta: float = 10_000.0
    eps: float = 1e-6
    context: int = 2048

    def as_dict(self) -> dict:
        return asdict(self)


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (B, H, T, Dh), halves paired as Hugging Face does."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Grouped-query attention of q (B, H, T, Dh) over k, v (B, K, S, Dh).

    On a CPU plain products win for short rows and the fused kernel for long ones (measured).
    """
    b, h, t, d = q.shape
    n, size = k.shape[1], k.shape[2]
    if size > FUSED_FROM:
        k, v = (x.repeat_interleave(h // n, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    q = q.reshape(b, n, h // n * t, d)
    scores = ((q @ k.transpose(-1, -2)) * d**-0.5).view(b, h, t, size) + mask
    pattern = scores.softmax(dim=-1).view(b, n, h // n * t, size)
    return (pattern @ v).view(b, h, t, d)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.d_model, width, bias=False)
        self.k_proj = nn.Linear(shape.d_model, kv, bias=False)
        self.v_proj = nn.Linear(shape.d_model, kv, bias=False)
        self.o_proj = nn.Linear(width, shape.d_model, bias=False)
        self.q_norm = Norm(shape.head_dim, shape.eps)
        self.k_norm = Norm(shape.head_dim, shape.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, cache: list | None):
        s, (b, t, _) = self.shape, x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, s.n_heads, s.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(b, t, s.n_kv_heads, s.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(b, t, s.n_kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
            cache[:] = [k, v]
        out = attend(q, k, v, mask)  # (B, H, T, Dh)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.d_model, shape.d_mlp, bias=False)
        self.up_proj = nn.Linear(shape.d_model, shape.d_mlp, bias=False)
        self.down_proj = nn.Linear(shape.d_mlp, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.d_model, shape.eps)
        self.post_attention_layernorm = Norm(shape.d_model, shape.eps)

    def forward(self, x: Tensor, rope, mask: Tensor, cache: list | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = Norm(shape.d_model, shape.eps)


class Model(nn.Module):
    """Token ids (B, T) in, hidden states or logits out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.5 * p.shape[1] ** -0.5 / (2 * shape.n_layers) ** (0.5 if last else 0)
                nn.init.normal_(p, std=0.05 if "embed" in name else std)
        half = shape.head_dim // 2
        rates = shape.rope_theta ** (-torch.arange(half) / half)
        angles = torch.arange(shape.context)[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def hidden(
        self, ids: Tensor, mask: Tensor, caches: list | None = None, start: int = 0
    ) -> Tensor:
        """Return the final normed states (B, T, D); `mask` is added to the scores."""
        t = ids.shape[1]
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        rope = tuple(c[start : start + t].to(x.dtype) for c in (self.cos, self.sin))
        mask = mask.to(x.dtype)
        for i, layer in enumerate(self.model.layers):
            x = layer(x, rope, mask, None if caches is None else caches[i])
        return self.model.norm(x)

    def score(self, states: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of states (N, D) against targets (N,)."""
        return F.cross_entropy(F.linear(states, self.model.embed_tokens.weight).float(), targets)

    @torch.no_grad()
    def generate(self, ids: list[int], stop: int, limit: int = 160) -> list[int]:
        """Continue `ids` greedily until `stop`, which is left out."""
        caches: list = [[] for _ in self.model.layers]
        out: list[int] = []
        new, start = torch.tensor([ids]), 0
        while len(out) < limit and start + new.shape[1] <= self.shape.context:
            t = new.shape[1]
            mask = torch.full((t, start + t), -1e4).triu(start + 1)
            x = self.hidden(new, mask, caches, start)[0, -1]
            start += new.shape[1]
            token = int(F.linear(x, self.model.embed_tokens.weight.to(x.dtype)).argmax())
            if token == stop:
                break
            out.append(token)
            new = torch.tensor([[token]])
        return out
