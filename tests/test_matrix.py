"""Never read twice, on every architecture: one script through the real session, every step checked.

Chunks of 7 on all models here; 1 and 64, and greedy answers, on models of each kind of cache.
`scripts/matrix` plays everything with everything.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from architectures import LEFT_OUT, NEEDS_METAL
from matrix import TOLERANCE, Player, Tally, make_options, play_model, replaced
from matrix_models import (
    EXCEPTIONS,
    QUANTISED,
    build,
    make_loaded,
    measure_sensitivity,
    names,
)

from mlxchat.engine import prefix_cache
from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.reuse_plan import Plan
from mlxchat.errors import ContextFullError, UnsupportedModelError
from mlxchat.model import zoo
from mlxchat.model.kv_cache import FullKV, RowCache
from mlxchat.model.state_cache import Opaque, RecurrentState
from mlxchat.model.window_cache import ChunkedKV, WindowKV
from mlxchat.model.zoo_loading import validate_architecture
from mlxchat.settings import KV_BITS

ONE_PER_KIND = [
    "native:qwen3",  # full, our own transformer
    "native:mistral-window",  # window and full, our own transformer
    "zoo:deepseek_v32",  # full, in lists
    "zoo:gpt_oss",  # window and full
    "zoo:plamo3",  # window one row wider
    "zoo:gemma3n",  # window, with layers that share keys and values
    "zoo:llama4",  # chunked
    "zoo:qwen3_next",  # recurrent and full
    "zoo:mamba2",  # recurrent
    "zoo:baichuan_m1",  # recurrent and window, in lists
    "zoo:deepseek_v41",  # opaque
]


def check_tally(tally: Tally) -> None:
    """What a whole play must show, beyond what each of its turns was checked for."""
    assert tally.num_turns == 15
    assert (tally.sources["none"], tally.sources["disk"]) == (1, 1), "a turn began afresh"
    assert tally.stops["user_cancelled"] == 1
    assert tally.num_read < 0.4 * tally.num_prompt
    # The next question's header, read ahead by settling, is lost by each of five moves.
    assert tally.num_read <= 1.25 * tally.num_new


@pytest.mark.parametrize("name", names())
def test_every_model_plays_the_script(name: str) -> None:
    """After every step, cached ids and logits are those of a prefill from scratch."""
    model = build(name)
    assert measure_sensitivity(model) > 10 * TOLERANCE, "wrong ids far back would not show"
    check_tally(play_model(model, 7))


@pytest.mark.parametrize(("chunk", "is_greedy"), [(1, False), (64, True)])
@pytest.mark.parametrize("name", ONE_PER_KIND)
def test_each_kind_plays_at_other_chunk_sizes(name: str, chunk: int, is_greedy: bool) -> None:
    """The same holds one by one, and in chunks longer than the window with greedy answers."""
    check_tally(play_model(build(name), chunk, template="exact", is_greedy=is_greedy))


@pytest.mark.parametrize("bits", KV_BITS)
@pytest.mark.parametrize("name", QUANTISED)
def test_each_kind_plays_quantised(name: str, bits: int) -> None:
    """Quantised rows are trimmed, stashed, restored and stored like plain ones."""
    check_tally(play_model(build(name, **QUANTISED[name]), 7, kv_bits=bits))


# -- the checks themselves -------------------------------------------------------------------------

TOO_MUCH, WRONG = "ids, but [0-9]+ are enough", "the logits differ by"


def always_fresh(self: PrefixCache, new_ids: Any, **_: Any) -> Plan:
    return Plan("fresh", 0, 0, len(self.token_ids))


def the_end(cache: Any, size: int) -> int:
    return size


def nothing(*_: Any) -> None:
    pass


def rewind_to_wrong_rows(self: FullKV, pos: int) -> None:
    RowCache.rewind(self, pos)
    if self.keys is not None:
        self.keys = mx.roll(self.keys, 1, axis=2)


BREAKS: dict[str, tuple[str, Any, str, Any, str]] = {
    "always fresh, full": ("native:qwen3", PrefixCache, "plan", always_fresh, TOO_MUCH),
    "always fresh, recurrent": ("zoo:mamba2", PrefixCache, "plan", always_fresh, TOO_MUCH),
    "no marks": ("zoo:qwen3_next", PrefixCache, "mark", nothing, TOO_MUCH),
    "no way back to rows": ("native:qwen3", prefix_cache, "_first_rewindable", the_end, TOO_MUCH),
    "branches lost": ("native:qwen3", PrefixCache, "_copy_branch", nothing, "was read again"),
    "wrong rows": ("native:qwen3", FullKV, "rewind", rewind_to_wrong_rows, WRONG),
    "window not restored": ("zoo:gpt_oss", WindowKV, "restore", nothing, WRONG),
    "chunk not restored": ("zoo:llama4", ChunkedKV, "restore", nothing, WRONG),
    "state not restored": ("zoo:mamba2", RecurrentState, "restore", nothing, WRONG),
    "state not restored, rwkv": ("zoo:rwkv7", RecurrentState, "restore", nothing, WRONG),
    "object not restored": ("zoo:deepseek_v41", Opaque, "restore", nothing, WRONG),
    "window as wide as mlx-lm's": ("zoo:plamo3", zoo, "WINDOW_ONE_WIDER", frozenset(), WRONG),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_cache_fails(case: str) -> None:
    """Caches that read too much, or hold something else than they say, do not get through."""
    name, owner, attribute, broken, says = BREAKS[case]
    with replaced(owner, attribute, broken), pytest.raises(AssertionError, match=says):
        play_model(build(name), 7)


# -- known exceptions ------------------------------------------------------------------------------


def test_every_model_of_mlx_lm_plays_or_has_a_reason() -> None:
    """The exceptions are those of the table of architectures, and each is explained."""
    left_out = set(LEFT_OUT) | (NEEDS_METAL - {name.partition(":")[2] for name in names()})
    assert left_out <= set(EXCEPTIONS)
    assert len(names()) >= 95 + 10


def test_phi3small_is_refused() -> None:
    """No cache can be exact where prefill sees later tokens, so the model is not loaded."""
    with pytest.raises(UnsupportedModelError, match="phi3small is refused"):
        validate_architecture({"model_type": "phi3small"})


def test_dynamic_ntk_ends_at_its_limit() -> None:
    """Up to the limit every turn is exact; the next is refused before anything is read."""
    scaling = {"rope_type": "dynamic", "type": "dynamic", "factor": 2.0}
    model = build("zoo:internlm3", rope_scaling=scaling, max_position_embeddings=96)
    player = Player(make_loaded(model, "exact"), make_options(), 7)
    for turn in range(10):
        try:
            player.send("And then?", label=f"turn {turn}", settles=False)
        except ContextFullError as error:
            assert "the context holds 96" in str(error)  # noqa: PT017  # any turn may be the last
            break
    else:
        pytest.fail("the limit was passed")
    assert player.tally.num_turns >= 3
    assert 48 < len(player.prefix.token_ids) <= 96


# -- what a long conversation costs ----------------------------------------------------------------


def test_thirty_turns_read_each_id_once() -> None:
    """On a cache that can be trimmed, turns and settling read what was not generated, no more."""
    model = build("native:qwen3", max_position_embeddings=2048, num_hidden_layers=1)
    player = Player(make_loaded(model, "exact"), make_options(), 7)
    for turn in range(30):
        player.send(f"And then, {turn}?", label=f"turn {turn}")
    distinct = len(player.prefix.token_ids) - player.tally.num_generated
    assert player.tally.num_turns == 30
    assert len(player.prefix.token_ids) > 600
    assert distinct <= player.tally.num_read <= 1.02 * distinct


@pytest.mark.parametrize("name", ["zoo:qwen3_next", "zoo:gpt_oss"])
def test_checkpoints_stay_within_their_budget(name: str) -> None:
    """Over twenty turns marks are thinned to the budget, and the turns that follow read no more."""
    player = Player(make_loaded(build(name)), make_options(max_tokens=4), 7)
    player.send("Hello there", label="turn 0")
    player.prefix.budget_bytes = 4 * player.prefix.mark_bytes // len(player.prefix.marks)
    num_marks = []
    for turn in range(1, 21):
        player.send("And then?", label=f"turn {turn}")
        assert player.prefix.mark_bytes <= player.prefix.budget_bytes
        num_marks.append(len(player.prefix.marks))
    assert max(num_marks) <= 4
    assert min(num_marks) >= 2
    assert player.tally.num_read <= 1.1 * player.tally.num_new
