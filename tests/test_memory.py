"""A turn that would not fit into memory is refused with figures; nothing small ever is."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import KINDS, TinySession, checked, make_tiny_folder

from mlxchat.chat import memory
from mlxchat.chat.batch_lines import LineAnswer, read_lines
from mlxchat.chat.results import Notice
from mlxchat.cli.main import cli
from mlxchat.engine.engine import Engine
from mlxchat.engine.kv_memory import count_rows, has_room, measure_kv_bytes_per_token
from mlxchat.engine.options import SamplingSettings
from mlxchat.errors import MemoryShortError
from mlxchat.model.device import available_memory_bytes, load_mlx, total_memory_bytes
from mlxchat.model.loader import load_model

GIB = 2**30


@pytest.fixture
def session(tmp_path: Path):
    """A session on a tiny model with full attention."""
    session = TinySession(make_tiny_folder(tmp_path / "model"))
    yield session
    session.close()


def test_bytes_per_token(tmp_path: Path) -> None:
    """Keys and values of every layer that grows: layers x heads x width x 2 x 4 bytes."""
    load_mlx()
    for kind, layers in (("full", 2), ("window", 1)):
        model = load_model(make_tiny_folder(tmp_path / kind, kind)).model
        engine = Engine(model)
        assert measure_kv_bytes_per_token(engine) == layers * 1 * 8 * 2 * 4
        assert engine.prefix.token_ids == []
        assert not has_room(engine.prefix.cache, 1)


def test_quantised_keys_take_less(tmp_path: Path) -> None:
    """The measure follows the form in which keys and values are kept."""
    load_mlx()
    model = load_model(make_tiny_folder(tmp_path / "model", hidden_size=128)).model
    plain = measure_kv_bytes_per_token(Engine(model))
    assert measure_kv_bytes_per_token(Engine(model, kv_bits=8)) < plain / 2


def test_the_refusal(session: TinySession, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has both figures and what to try; the conversation and the cache are as they were."""
    session.say("hello")
    held = list(session.prefix.token_ids)
    monkeypatch.setattr(memory, "SMALL_TURN", 100)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: GIB // 2)
    monkeypatch.setattr(memory, "measure_kv_bytes_per_token", lambda engine: GIB / 100)
    with pytest.raises(MemoryShortError) as caught:
        session.send("word " * 60).result(20)
    message = str(caught.value)
    assert "0.5 GiB are free; shorten the message, /compact" in message
    assert "context.memory_check false" in message
    assert session.num_turns == 1
    assert session.prefix.token_ids == held
    session.say("hi")


def test_small_turns_are_never_refused(
    session: TinySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is free."""
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 0)
    session.say("hello")


def test_what_is_there_already_takes_nothing(
    session: TinySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the buffers are large enough nothing more is needed."""
    monkeypatch.setattr(memory, "SMALL_TURN", 10)
    session.say("word " * 60)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 0)
    assert session.undo() == 1
    session.say("hi")


@pytest.mark.parametrize("speculate", ["off", "auto"])
def test_an_answer_ends_before_its_buffers_outgrow_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speculate: str
) -> None:
    """It is kept with the figures and goes on once there is room; the buffers have not grown."""
    monkeypatch.setattr(memory, "SMALL_TURN", 100)
    folder = make_tiny_folder(tmp_path / "model")
    greedy = SamplingSettings(temperature=0.0)
    session = TinySession(folder, max_tokens=400, sampling=greedy, speculate=speculate)
    whole = TinySession(folder, max_tokens=400, sampling=greedy, speculate=speculate)
    try:
        expected = whole.say("hello").tokens
        assert len(expected) == 400
        for layer in session.prefix.cache.layers:
            layer.step = 256
        monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000)
        monkeypatch.setattr(memory, "has_room", lambda cache, num_tokens: True)  # before the turn
        job = session.send("hello")
        notices = [event.text for event in job if isinstance(event, Notice)]
        first = checked(session, job)
        assert first.stop_reason == "context_full"
        assert len(notices) == 1
        assert "to hold more tokens would take 0.0 GiB at once, but 0.0 GiB are free" in notices[0]
        assert first.tokens == expected[: len(first.tokens)]
        assert 200 - first.usage.prompt_tokens < len(first.tokens) < 256
        session.settle()
        assert count_rows(session.prefix.cache) == 256
        monkeypatch.setattr(memory, "available_memory_bytes", lambda: GIB)
        second = checked(session, session.go_on())
        assert second.usage.prefill_tokens == 1
        both = first.tokens + second.tokens
        assert both[:400] == expected[: len(both)]
    finally:
        session.close()
        whole.close()


def test_an_answer_is_not_ended_where_nobody_wants_that(
    session: TinySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the check, and below the small turn, it goes on."""
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 0)
    session.set_options(replace(session.options, max_tokens=300))
    assert session.say("hello").stop_reason == "token_limit"
    monkeypatch.setattr(memory, "SMALL_TURN", 50)
    session.set_options(replace(session.options, checks_memory=False))
    assert session.say("hello again").stop_reason == "token_limit"


def test_what_is_free() -> None:
    """More than nothing and less than the machine has."""
    load_mlx()
    assert 0 < available_memory_bytes() <= total_memory_bytes() + GIB


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_the_check(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real figures a tiny model is never refused, whatever its cache."""
    monkeypatch.setattr(memory, "SMALL_TURN", 1)
    folder_kind = "full" if kind == "recurrent" else kind
    session = TinySession(make_tiny_folder(tmp_path / "model", folder_kind), kind)
    try:
        session.say("hello")
        session.say("and more " * 20)
    finally:
        session.close()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By /set and by the setting; without either the turn is refused and the chat goes on."""
    monkeypatch.setattr(memory, "SMALL_TURN", 1)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000)
    result = CliRunner().invoke(cli, ["chat"], input="hello\n/set memory-check off\nhello\n")
    assert "Error: this turn would take" in result.stderr
    assert len(result.stdout.splitlines()) == 1
    assert result.exit_code == 1
    assert (
        CliRunner().invoke(cli, ["config", "set", "context.memory_check", "false"]).exit_code == 0
    )
    result = CliRunner().invoke(cli, ["chat"], input="hello\n/params\n")
    assert result.exit_code == 0
    assert "config.toml" in next(x for x in result.stderr.split("\n") if x.startswith("memory-"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that hold 100 positions together cannot grow."""
    monkeypatch.setattr(memory, "SMALL_TURN", 100)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 1000)
    monkeypatch.setattr(memory.MemoryGuard, "check", lambda *_: None)  # before the turn
    monkeypatch.setattr(memory.MemoryGuard, "check_batch", lambda *_: None)


ENDLESS = SamplingSettings(temperature=1.0, seed=5, logit_bias=((0, -99.0), (1, -99.0)))


@pytest.mark.parametrize("think_budget", [None, 400], ids=["together", "in turn"])
def test_several_answers_end_before_their_buffers_outgrow_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None, think_budget: int | None
) -> None:
    """All are kept, as far as they were decoded, with the figures; each goes on with room."""
    folder = make_tiny_folder(tmp_path / "model")
    options = {"max_tokens": 600, "sampling": ENDLESS, "think_budget": think_budget}
    whole = TinySession(folder, **options)
    session = TinySession(folder, **options)
    try:
        whole.set_options(replace(whole.options, checks_memory=False))
        expected = whole.send_many("hello", 3).result(60)
        job = session.send_many("hello", 3)
        notices = [event.text for event in job if isinstance(event, Notice)]
        offered = job.result(60)
        assert {r.stop_reason for r in expected.results} == {"token_limit"}
        assert {r.stop_reason for r in offered.results} == {"context_full"}
        assert len(notices) == (1 if think_budget is None else 3)
        assert "to hold more tokens would take 0.0 GiB at once" in notices[0]
        for got, all_of_it in zip(offered.results, expected.results, strict=True):
            assert got.tokens == all_of_it.tokens[: len(got.tokens)]
            assert 10 < len(got.tokens) < 600
        monkeypatch.setattr(memory, "available_memory_bytes", lambda: GIB)
        assert len(checked(session, session.go_on()).tokens) > 50
    finally:
        session.close()
        whole.close()


@pytest.mark.parametrize("size", [3, 1])
def test_lines_end_before_their_buffers_outgrow_the_memory(
    tmp_path: Path, short: None, size: int
) -> None:
    """Those that are decoded then end with what they have; the lines after them are answered."""
    session = TinySession(make_tiny_folder(tmp_path / "model"), max_tokens=500, sampling=ENDLESS)
    texts = ['{"prompt": "hello"}', '{"prompt": "you", "max_tokens": 5}', '{"prompt": "who"}']
    lines = read_lines("\n".join(texts * 2).encode())
    try:
        job = session.answer_lines(lines, size)
        events = list(job)
        job.result(60)
        found = {e.line.index: e.result for e in events if isinstance(e, LineAnswer)}
        assert sorted(found) == list(range(6))
        reasons = [found[i].stop_reason for i in range(6)]
        assert reasons == ["context_full", "token_limit", "context_full"] * 2
        assert all(len(found[i].tokens) > 10 for i in (0, 2, 3, 5))
        notices = [e.text for e in events if isinstance(e, Notice)]
        assert len(notices) == (2 if size == 3 else 4)
        assert all("to hold more tokens would take" in text for text in notices)
    finally:
        session.close()
