"""What a checkpoint holds: every tensor by name, shape, bits, bytes, and its part of the model."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlxchat.model.adapter import Adapter
from mlxchat.model.checkpoint import Checkpoint, read_config
from mlxchat.model.families import is_native
from mlxchat.model.quantization import QuantizationPlan, read_quantization
from mlxchat.model.safetensors_file import TensorInfo

Group = Literal["embedding", "attention", "feed-forward", "norm", "head", "other", "adapter"]
GROUPS: tuple[Group, ...] = ("embedding", "attention", "feed-forward", "norm", "head", "other")
ADAPTER: Group = "adapter"

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|unembed)\.")
_EMBED = re.compile(r"embed|(^|\.)(wte|wpe)\.")
_ATTENTION = re.compile(r"(^|\.)(self_attn|attn|attention|self_attention|mixer|linear_attn)\.")
_FEED_FORWARD = re.compile(r"(^|\.)(mlp|feed_forward|ffn|block_sparse_moe|experts|moe)\b")
_NORM = re.compile(r"norm|(^|\.)ln_")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor as it is stored.

    Attributes:
        name: In the checkpoint.
        shape: As stored; quantised weights are packed into 32-bit words.
        dtype: As the file says.
        bits: Of one parameter; of packed ones fewer than of the words.
        nbytes: In the file.
        params: How many parameters it holds: scales and biases of quantisation are none, and a
            head that is the embedding counts there.
        group: Its part of the model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    nbytes: int
    params: int
    group: Group


@dataclass(frozen=True, slots=True)
class ParameterView:
    """All tensors of a checkpoint.

    Attributes:
        tensors: In the order of the files.
        is_tied: The head is the embedding.
        adapter: What an adapter is called whose tensors are the last, or stand in the model's
            place; empty without one.
    """

    tensors: tuple[Parameter, ...]
    is_tied: bool
    adapter: str = ""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The parts of the model, and the adapter where it adds tensors."""
        adds = any(t.group == ADAPTER for t in self.tensors)
        return (*GROUPS, ADAPTER) if adds else GROUPS

    @property
    def total_params(self) -> int:
        """Parameters, tied rows once."""
        return sum(t.params for t in self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(t.nbytes for t in self.tensors)

    def group(self, name: Group) -> tuple[int, int, int]:
        """Returns tensors, parameters and bytes of a part of the model."""
        part = [t for t in self.tensors if t.group == name]
        return len(part), sum(t.params for t in part), sum(t.nbytes for t in part)


def read_parameters(folder: Path, adapter: str | None = None) -> ParameterView:
    """Reads the headers of a model folder; no tensor is read, and MLX is not needed.

    Args:
        folder: The model's.
        adapter: The folder of an adapter.

    Raises:
        CheckpointError: Files are missing or damaged, or the adapter does not fit the model.
    """
    checkpoint, config = Checkpoint.open(folder), read_config(folder)
    quantization = read_quantization(config)
    names = set(checkpoint.tensors)
    has_head = any(_group_of(name) == "head" for name in names)
    says_tied = _find_tied(config)
    tensors = tuple(
        _describe(tensor, name, checkpoint.tensors, quantization, says_tied)
        for name, tensor in checkpoint.tensors.items()
    )
    if adapter is None:
        return ParameterView(tensors, says_tied or not has_head)
    opened = Adapter.open(adapter)
    if is_native(config):  # mlx-lm may give the tensors of others other names
        whole = {t.name: (t.shape[0], t.params // t.shape[0]) for t in tensors if len(t.shape) == 2}
        opened.check(whole, checkpoint.tensors)
    return ParameterView(_add(opened, tensors), says_tied or not has_head, opened.name)


def _add(adapter: Adapter, tensors: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """Returns a model's tensors with those of an adapter, which may stand in their place."""
    places = {tensor.name: tensor for tensor in tensors}
    for name, tensor in adapter.tensors.items():
        there = places.get(name)
        group = ADAPTER if there is None else there.group
        places[name] = replace(_describe(tensor, name, {}, QuantizationPlan(), False), group=group)
    return tuple(places.values())


def _find_tied(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}
    return bool(config.get("tie_word_embeddings", inner.get("tie_word_embeddings", False)))


def _group_of(name: str) -> Group:
    if _HEAD.search(name):
        return "head"
    if _ATTENTION.search(name):
        return "attention"
    if _FEED_FORWARD.search(name):
        return "feed-forward"
    if _NORM.search(name):
        return "norm"
    return "embedding" if _EMBED.search(name) else "other"


def _describe(
    tensor: TensorInfo,
    name: str,
    tensors: Mapping[str, TensorInfo],
    quantization: QuantizationPlan,
    is_tied: bool,
) -> Parameter:
    group = _group_of(name)
    stored = math.prod(tensor.shape)
    bits = 8 * tensor.nbytes // stored if stored else 0
    params = stored
    path, _, leaf = name.rpartition(".")
    if f"{path}.scales" in tensors and leaf in ("weight", "scales", "biases"):
        if leaf == "weight":
            bits = _packed_bits(path, tensor, tensors[f"{path}.scales"], quantization)
            params = tensor.nbytes * 8 // bits
        else:
            params = 0
    if group == "head" and is_tied:
        params = 0
    return Parameter(name, tensor.shape, tensor.dtype, bits, tensor.nbytes, params, group)


def _packed_bits(
    path: str, weight: TensorInfo, scales: TensorInfo, quantization: QuantizationPlan
) -> int:
    """Returns the bits of a packed weight: what the config says, where the shapes agree."""
    words, groups = weight.shape[-1], scales.shape[-1]
    spec = quantization.overrides.get(path, quantization.default)
    if spec is not None and words * 32 == groups * spec.group_size * spec.bits:
        return spec.bits
    # Each group of `size` weights takes bits * size / 32 words.
    for size in (64, 32, 128, 16):
        bits, rest = divmod(words * 32, groups * size)
        if not rest and bits in (1, 2, 3, 4, 5, 6, 8):
            return bits
    return 32
