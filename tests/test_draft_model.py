"""Draft models: the text stays the model's own, and only a model of the same tokens may draft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_speculation import IDS, WAYS, Always, check_cache, start
from tiny import CountingModel, TinySession, make_model, make_tiny_folder

from mlxchat.chat.drafting import load_draft_model
from mlxchat.engine.chunking import PrefillChunker
from mlxchat.engine.draft_model import DraftModel
from mlxchat.engine.engine import Engine
from mlxchat.engine.speculation import Speculator
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import UsageError
from mlxchat.model.loader import load_model


def nothing() -> None:
    pass


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["full", "window"])
def test_the_text_is_that_of_plain_decoding(kind: str, way: str, seed: int, tmp_path: Path) -> None:
    """The same model drafts all, another one little; the tokens are the same in both cases."""
    model = make_model(kind, tmp_path / "model")
    folder = make_tiny_folder(tmp_path / "draft", kind, seed=seed)
    engine, logits, sampler = start(model, WAYS[way])
    plain = list(engine.decode(logits, sampler, max_tokens=60))
    drafter = DraftModel(Engine(load_model(folder).model))
    for _ in range(2):  # the second time its cache is ahead of the text
        speculator = Speculator(drafter, Always())
        engine, logits, sampler = start(model, WAYS[way], speculator=speculator)
        assert list(engine.decode(logits, sampler, max_tokens=60)) == plain
        check_cache(engine, [*IDS, *plain[:-1]])
    stats = speculator.stats
    assert stats.kind == "draft"
    if seed == 0 and way == "greedy":
        assert stats.accepted >= 0.8 * stats.drafted > 0
    if seed == 1:
        assert stats.accepted < stats.drafted


def test_its_cache_follows_the_text(tmp_path: Path) -> None:
    """After any pushes its drafts are those of a draft model that reads the text afresh."""
    model = load_model(make_tiny_folder(tmp_path / "draft")).model
    drafter = DraftModel(Engine(model))
    drafter.begin(IDS[:20], nothing)
    text = list(IDS[:20])
    for num_right, other in ((2, 50), (0, 60), (5, 70), (3, None)):
        drafts = drafter.draft(5)
        for token_id in [*drafts[:num_right], *([] if other is None else [other])]:
            drafter.push(token_id)
            text.append(token_id)
        fresh = DraftModel(Engine(model))
        fresh.begin(text, nothing)
        assert drafter.draft(4) == fresh.draft(4)


def test_reading_the_text_can_be_stopped(tmp_path: Path) -> None:
    """Ctrl-C ends the reading within a chunk; what was read stays and is not read again."""
    model = CountingModel(load_model(make_tiny_folder(tmp_path / "draft")).model)
    drafter = DraftModel(Engine(model, PrefillChunker(size=8, largest=8)))

    def check() -> None:
        if len(model.calls) == 3:
            raise JobCancelledError

    with pytest.raises(JobCancelledError):
        drafter.begin(IDS, check)
    assert model.calls == [8, 8, 8]
    model.calls.clear()
    drafter.begin(IDS, nothing)
    assert sum(model.calls) == len(IDS) - 24
    fresh = DraftModel(Engine(model))
    fresh.begin(IDS, nothing)
    assert drafter.draft(4) == fresh.draft(4)


def test_only_the_same_tokens(tmp_path: Path) -> None:
    """Another vocabulary is refused with the first token that differs."""
    loaded = load_model(make_tiny_folder(tmp_path / "model"))
    folder = make_tiny_folder(tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab: dict[str, Any] = tokenizer["model"]["vocab"]
    (a, i), (b, j) = list(vocab.items())[-2:]
    vocab |= {a: j, b: i}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match=r"has another tokenizer than the model .*same family"):
        load_draft_model(str(folder), loaded, lambda _: None)
    assert load_draft_model(str(tmp_path / "model"), loaded, lambda _: None).kind == "draft"


def test_in_a_session(tmp_path: Path) -> None:
    """Turns with a draft model are those without, and say that it drafted."""
    folder = make_tiny_folder(tmp_path / "m")
    told = []
    for options in ({"speculate": "off"}, {"speculate": "auto", "draft_model": str(folder)}):
        session = TinySession(folder, **options)
        try:
            if session.runner.foresight.drafting is not None:
                session.runner.foresight.drafting.controller = Always()
            told.append([session.say(text) for text in ("one", "two")])
        finally:
            session.close()
    assert [r.tokens for r in told[0]] == [r.tokens for r in told[1]]
    assert [r.speculation for r in told[0]] == [None, None]
    assert all(r.speculation.kind == "draft" and r.speculation.drafted for r in told[1])
