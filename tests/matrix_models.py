"""The models that play the script of `matrix.py`: tiny, random, each with the same tokenizer.

Knows how to build them and what cannot be built; nothing of sessions or steps.
"""

from __future__ import annotations

import tempfile
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from architectures import ARCHITECTURES, VOCAB_SIZE, make_config, make_model
from mlx.utils import tree_flatten, tree_unflatten
from small_templates import EXACT, THINK_OPENED
from test_parity import FAMILIES, SMALL, load, make_oracle, save
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mlxchat.model.kv_cache import RowCache
from mlxchat.model.language_model import LanguageModel
from mlxchat.model.loader import LoadedModel
from mlxchat.model.sequence_cache import SequenceCache
from mlxchat.model.tokenizer import Tokenizer
from mlxchat.model.zoo import ZooModel

# Buffers grow by this many rows, so that windows and chunks really drop rows in a short script.
GROWTH_ROWS = 8
NATIVE = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral-window",
    "smollm3",
    "phi3",
    "gemma2",
    "gemma3_text",
    "granite",
    "olmo2",
)
# Models whose keys and values are quantised here: heads of 32, which the others are too small for.
QUANTISED: dict[str, dict[str, Any]] = {
    "native:qwen3": {},  # full, our own transformer
    "native:mistral-window": {},  # window and full, our own transformer
    "native:gemma2": {},  # full, with capped scores
    "zoo:phi": {"num_attention_heads": 2, "num_key_value_heads": 2},  # crashes with mlx-lm's own
    "zoo:deepseek_v3": {"kv_lora_rank": 32, "qk_rope_head_dim": 32},  # latents
    "zoo:gpt_oss": {"head_dim": 32},  # window and full
    "zoo:llama4": {"text_config": {**make_config("llama4")["text_config"], "head_dim": 32}},
    "zoo:qwen3_next": {"head_dim": 32},  # full, beside recurrent layers that stay
}
TEMPLATES = {"exact": EXACT, "stripped": THINK_OPENED}

# What cannot play, each with the reason; `test_matrix.py` shows that it is refused or handled.
EXCEPTIONS = {
    "phi3small": "refused: mlx-lm's prefill lets tokens see later ones, so nothing can be reused",
    "dynamic NTK": "past its limit keys are rotated with another base, so the context ends there",
    "plamo3": "plays, with a window one row wider than mlx-lm's own cache",
    "bitnet": "its matrix product exists as a Metal kernel only",
    "muse_spark": "its kernels exist for Metal only; plays there",
    "prism_hadamard_qwen35": "takes 2-bit packed weights only, and random ones do not fit it",
    "olmo": "its module ends the process unless the package ai2-olmo is installed",
}


_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_THINKING = ("<think>", "</think>")
_TEXTS = [
    "system\nuser\nassistant\nuser\nassistant\n",
    "the user thinks that the answer is in this one; and then there are others",
    "Hello there, how would you like to go on with it today? Not so well, I should say.",
]


@cache
def _backend() -> str:
    """A byte-level BPE of 160 ids: ASCII, some bytes that are no text alone, some merges."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    typed = "".join(map(chr, range(32, 127))) + "\né€\ufffd"
    letters = {c for piece, _ in backend.pre_tokenizer.pre_tokenize_str(typed) for c in piece}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(_SPECIAL) - len(_THINKING),
        initial_alphabet=sorted(letters),
        min_frequency=1,
        show_progress=False,
    )
    backend.train_from_iterator(_TEXTS, trainer)
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL])
    backend.add_tokens([AddedToken(name, normalized=False) for name in _THINKING])
    return str(backend.to_str())


def make_tokenizer(template: str) -> Tokenizer:
    """The tokenizer of all models here.

    Args:
        template: Key of `TEMPLATES`.
    """
    backend = Backend.from_str(_backend())
    assert backend.get_vocab_size() == VOCAB_SIZE
    return Tokenizer(
        backend,
        special_tokens={"eos_token": "<|im_end|>"},
        eos_ids=[backend.token_to_id("<|endoftext|>")],
        chat_templates={"default": TEMPLATES[template]},
    )


# Random states forget within ten tokens; with these parameters lower they remember fifty, and a
# state that came back wrong shows.
_FORGETTING = ("A_log", "w_lora.lora.2.bias")


def build(name: str, **changes: Any) -> LanguageModel:
    """Builds a model by its name in `names()`; `changes` replace values of its config."""
    kind, _, name = name.partition(":")
    if kind == "zoo":
        model = make_model(name, **changes)
        weights = dict(tree_flatten(model.parameters()))
        slower = {k: v - 4.0 for k, v in weights.items() if k.endswith(_FORGETTING)}
        model.update(tree_unflatten(list(slower.items())))
        mx.eval(model.parameters())
        return ZooModel(model, {**make_config(name), **changes})
    config = {**SMALL, **FAMILIES[name], "max_position_embeddings": 512, **changes}
    with tempfile.TemporaryDirectory() as folder:
        save(make_oracle(config), config, Path(folder))
        return load(Path(folder))


def measure_sensitivity(model: LanguageModel, back: int = 20) -> float:
    """How far one other id, `back` ids before the end of a prompt, moves the logits."""
    ids = [(7 * i * i + 3 * i) % VOCAB_SIZE for i in range(60)]
    other = [*ids[:-back], (ids[-back] + 1) % VOCAB_SIZE, *ids[1 - back :]]
    here, there = (model.forward(mx.array([x]), model.make_cache()) for x in (ids, other))
    return float(mx.where(here == there, 0, mx.abs(here - there)).max().item())


def names() -> list[str]:
    """All models: `zoo:NAME` for mlx-lm's, `native:NAME` for our transformer's families."""
    return [f"native:{name}" for name in NATIVE] + [f"zoo:{name}" for name in ARCHITECTURES]


class CountingModel:
    """Any model; counts the ids that it is fed, and lets buffers grow in small steps.

    Attributes:
        num_fed: Ids fed so far, in all caches.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.info = model.info
        self.num_fed = 0

    def make_cache(self) -> SequenceCache:
        cache = self.model.make_cache()
        for layer in cache.layers:
            if isinstance(layer, RowCache):
                layer.step = GROWTH_ROWS
        return cache

    def prefill(self, token_ids: mx.array, cache: SequenceCache) -> None:
        self.num_fed += token_ids.size
        self.model.prefill(token_ids, cache)

    def forward_all(self, token_ids: mx.array, cache: SequenceCache, *taps: Any) -> mx.array:
        self.num_fed += token_ids.size
        return self.model.forward_all(token_ids, cache, *taps)

    def forward(self, token_ids: mx.array, cache: SequenceCache) -> mx.array:
        self.num_fed += token_ids.size
        return self.model.forward(token_ids, cache)


def make_loaded(model: LanguageModel, template: str = "stripped") -> LoadedModel:
    """A model made by `build`, counted, with its tokenizer."""
    fingerprint = uuid.uuid4().hex  # what one play stores is not the next one's
    return LoadedModel(CountingModel(model), make_tokenizer(template), {}, fingerprint, 0.0)
