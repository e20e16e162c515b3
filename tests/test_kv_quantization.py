"""Quantised keys and values: the same rows as plain ones that were rounded, whatever happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import bounded, make_tiny_folder, mx

from mlxchat.engine.engine import Engine
from mlxchat.model.kv_cache import FullKV, RowCache
from mlxchat.model.kv_quantization import KVFormat, make_kv_plan
from mlxchat.model.loader import load_model
from mlxchat.model.window_cache import ChunkedKV, WindowKV
from mlxchat.settings import KV_BITS

MAKERS = {
    "full": lambda: FullKV(step=8),
    "window": lambda: WindowKV(6, step=8),
    "chunked": lambda: ChunkedKV(5, step=8),
}
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["append", "rewind", "mark", "store"]), st.integers(1, 20)),
    min_size=3,
    max_size=12,
)
WIDE = {"hidden_size": 64, "head_dim": 32, "num_key_value_heads": 2, "num_attention_heads": 4}


def make_rows(first: int, count: int) -> tuple[Any, Any]:
    """Random keys (1, 2, T, 64) and values (1, 2, T, 32) that follow from their positions."""
    parts = []
    for pos in range(first, first + count):
        keys = mx.random.split(mx.random.key(pos), 2)
        parts.append([mx.random.normal((1, 2, 1, w), key=k) for w, k in zip((64, 32), keys)])  # noqa: B905
    keys, values = (mx.concatenate(list(p), axis=2) for p in zip(*parts, strict=True))
    return keys, values


def rounded(kv: KVFormat, keys: Any, values: Any) -> tuple[Any, Any]:
    return kv.dequantise(kv.quantise(keys, values))


@bounded(max_examples=40)
@given(OPERATIONS, st.sampled_from(list(MAKERS)), st.sampled_from(KV_BITS))
def test_quantised_rows_are_rounded_rows(
    operations: list[tuple[str, int]], kind: str, bits: int
) -> None:
    """After any history the rows are, bit for bit, those of a plain cache fed with rounded rows."""
    kv = KVFormat(bits, 64, 32)
    caches: list[RowCache] = [MAKERS[kind](), MAKERS[kind]()]
    caches[0].format = kv
    for operation, number in operations:
        offset = caches[0].offset
        if operation == "append":
            rows = make_rows(offset, number)
            seen = [
                caches[0].update_and_fetch(*rows),
                caches[1].update_and_fetch(*rounded(kv, *rows)),
            ]
            for ours, plain in zip(*seen, strict=True):
                assert mx.array_equal(ours, plain)
        elif operation == "rewind":
            pos = max(0, offset - number)
            assert caches[0].can_rewind(pos) == caches[1].can_rewind(pos)
            if caches[0].can_rewind(pos):
                for cache in caches:
                    cache.rewind(pos)
        elif operation == "mark":
            for i, cache in enumerate(caches):
                if (mark := cache.snapshot()) is not None and offset:
                    fresh = MAKERS[kind]()
                    fresh.format = cache.format
                    fresh.restore(offset, mark)
                    caches[i] = fresh
        elif offset:
            for i, cache in enumerate(caches):
                meta, arrays = cache.export()
                fresh = MAKERS[kind]()
                fresh.format = cache.format
                fresh.load_export({n: str(v) for n, v in meta.items()}, arrays)
                caches[i] = fresh


class Rounding(KVFormat):
    """Keeps plain rows, rounded: the oracle of attention over packed ones."""

    def quantise(self, keys: Any, values: Any) -> dict[str, Any]:
        rows = rounded(KVFormat(self.bits, self.key_group, self.value_group), keys, values)
        return dict(zip(("keys", "values"), rows, strict=True))


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "window": {
        "model_type": "mistral",
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "capped": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 32,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.parametrize("bits", KV_BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_over_packed_rows(family: str, bits: int, tmp_path: Path) -> None:
    """Prefill and decode over packed rows give the logits of plain attention over rounded rows."""
    model: Any = load_model(make_tiny_folder(tmp_path / "m", **{**WIDE, **FAMILIES[family]})).model
    ours = make_kv_plan(model, bits).apply(model.make_cache())
    plain = model.make_cache()
    for layer, kv in zip(plain.layers, (layer.format for layer in ours.layers), strict=True):
        oracle, quantise = layer, Rounding(kv.bits, kv.key_group, kv.value_group).quantise

        def append(keys: Any, values: Any, oracle: Any = oracle, quantise: Any = quantise) -> None:
            oracle.append_rows(quantise(keys, values))

        layer.append = append
    position = 0
    for count in (70, 1, 1, 3, 1):
        ids = mx.array([[6 + (5 * i * i + i) % 290 for i in range(position, position + count)]])
        a, b = model.forward(ids, ours), model.forward(ids, plain)
        assert mx.abs(a - b).max().item() < 1e-2 * mx.abs(b).max().item()
        assert mx.median(mx.abs(a - b)).item() < 1e-5
        position += count
    assert ours.nbytes < (0.4 if bits == 8 else 0.25) * plain.nbytes


def test_narrow_heads_stay_as_they_are(tmp_path: Path) -> None:
    """Heads of 8 values hold no group of 32: the engine says so and goes on unquantised."""
    model = load_model(make_tiny_folder(tmp_path / "m")).model
    engine = Engine(model, kv_bits=8)
    assert "no layer (heads of 8 values are no multiple of 32)" in engine.kv_notice
    assert engine.prefix.cache.kv_bits is None
    ids = list(range(6, 40))
    logits = engine.prefill(ids, engine.prefix.plan(ids))
    assert logits is not None
    assert engine.verify(ids, logits).kv_logit_diff is None


@pytest.mark.parametrize("bits", KV_BITS)
def test_verify_names_the_cost(bits: int, tmp_path: Path) -> None:
    """Chunks make no difference, quantisation does; both are told, and the first is judged."""
    model = load_model(make_tiny_folder(tmp_path / "m", **WIDE)).model
    engine = Engine(model, kv_bits=bits)
    assert (engine.kv_notice, engine.prefix.cache.kv_bits) == ("", bits)
    ids = [6 + (5 * i * i + i) % 290 for i in range(150)]
    engine.chunker.size = engine.chunker.largest = 16
    logits = engine.prefill(ids, engine.prefix.plan(ids))
    assert logits is not None
    found = engine.verify(ids, logits)
    assert found.holds
    assert found.kv_logit_diff is not None
    assert found.max_abs_logit_diff < 0.1 * found.kv_logit_diff
    assert not engine.verify([*ids[:75], 7, *ids[76:]], logits).holds
