"""Stored prefixes in a conversation: what a second start does not read again, and what it may."""

import json
import os
import time
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
from stored import ROOMY
from tiny import CHATML, REASONING, TinySession, make_tiny_folder

from mlxchat import paths
from mlxchat.engine.prompt_store import PromptStore
from mlxchat.engine.stored_file import FileWriter, TensorShape
from mlxchat.engine.stored_name import MIN_IDS

SYSTEM = "You are the keeper of a small museum by the sea. Answer in short sentences, and be kind."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """The machine's free disk does not matter here."""
    monkeypatch.setattr(
        "mlxchat.chat.prompt_keeping.PromptStore",
        lambda budget: PromptStore(paths.cache_dir() / "prompts", ROOMY),
    )


@pytest.fixture
def start(folder):
    """Opens sessions and closes those that are left open."""
    sessions = []

    def start(kind="full", model=folder, **options):
        sessions.append(
            TinySession(model, kind, **{"system": SYSTEM, "idle_work": True, **options})
        )
        return sessions[-1]

    yield start
    for session in sessions:
        if not session._worker._closed:
            session.close()


def say(session, text):
    """The answer to a message, proved by a from-scratch prefill."""
    result = session.send(text).result(60)
    assert result.verify.holds
    return result


def stored():
    return sorted(PromptStore().entries(), key=lambda e: e.num_ids)


def continued(session, before):
    """Puts a session where another one ended, as `--continue` does."""
    session.conversation = before.conversation
    return session


@pytest.mark.parametrize("kind", ["full", "window", "recurrent"])
def test_a_second_start_reads_only_the_question(start, tmp_path, kind):
    """The system prompt comes from disk, the answer is the same, and the report says so."""
    model = make_tiny_folder(tmp_path / kind, "window" if kind == "window" else "full")
    first = start(kind, model)
    cold = say(first, "When do you open?")
    first.close()
    assert (cold.cache.source, cold.usage.cached_tokens) == ("none", 0)
    second = start(kind, model)
    warm = say(second, "When do you open?")
    assert warm.tokens == cold.tokens
    assert warm.cache.source == "disk"
    num_system = stored()[0].num_ids
    assert num_system >= MIN_IDS
    usage = warm.usage
    assert usage.cached_tokens >= num_system
    assert usage.cached_tokens + sum(second.model_.calls[: -len(warm.tokens) - 1]) > 0
    assert warm.cache.reason.startswith(
        f"reused {usage.cached_tokens} from disk, read {usage.prefill_tokens}"
    )
    assert warm.timing.restore_s > 0
    assert usage.prefill_tokens < cold.usage.prefill_tokens / 2


@pytest.mark.parametrize("template", [CHATML, REASONING], ids=["plain", "drops thinking"])
@pytest.mark.parametrize("kind", ["full", "window", "recurrent"])
def test_a_conversation_goes_on_from_disk(start, tmp_path, kind, template):
    """After leaving and coming back the first turn reads only what is new."""
    model = make_tiny_folder(
        tmp_path / kind, "window" if kind == "window" else "full", template=template
    )
    first = start(kind, model)
    for text in ("When do you open?", "And the oldest ship?"):
        say(first, text)
    first.wait_until_idle()
    held = len(first.prefix.token_ids)
    first.close()
    second = continued(start(kind, model), first)
    result = say(second, "Thank you, and goodbye.")
    assert result.cache.source == "disk"
    assert result.usage.cached_tokens == held


def test_what_follows_is_stored_on_top(start):
    """A longer conversation adds a file with the new rows, it does not write the old ones again."""
    first = start()
    say(first, "When do you open?")
    first.close()
    sizes = {e.name: e.num_bytes for e in stored()}
    second = continued(start(), first)
    say(second, "And the oldest ship?")
    second.close()
    entries = stored()
    assert len(entries) == len(sizes) + 1
    assert sizes.items() <= {e.name: e.num_bytes for e in entries}.items()
    assert PromptStore().describe(entries[-1]).depth == 2
    rows = {e.num_ids: PromptStore().describe(e).start for e in entries}
    assert list(rows.values()) == [0, *list(rows)[:-1]]


def test_no_history_keeps_the_conversation_off_the_disk(start):
    """Nothing of it is written or read; the system prompt still is."""
    open_ = start()
    say(open_, "When do you open?")
    open_.close()
    whole = len(stored())
    private = continued(start(keeps_history=False), open_)
    result = say(private, "And the oldest ship?")
    assert result.cache.source == "disk"
    assert result.usage.cached_tokens == stored()[0].num_ids
    private.close()
    assert len(stored()) == whole == 2


def test_a_single_answer_stores_its_system_prompt_only(start):
    """Without idle work, as in `generate`, no conversation is stored."""
    session = start(idle_work=False)
    say(session, "When do you open?")
    session.close()
    assert [e.what for e in stored()] == ["system"]


def test_short_prompts_are_not_stored(start):
    """Without a system prompt and with little said there is nothing worth a file."""
    session = start(system=None)
    say(session, "Hi")
    session.close()
    assert all(e.num_ids >= MIN_IDS for e in stored())
    assert "system" not in [e.what for e in stored()]


def test_idle_time_is_enough(start):
    """The system prompt is on disk soon after the answer; the conversation after a pause."""
    session = start()
    session._pause._pause_s = 0.05
    say(session, "When do you open?")
    deadline = time.monotonic() + 20
    while len(stored()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [e.what for e in stored()] == ["system", "conversation"]


def test_damage_is_told_in_the_next_turn(start, monkeypatch):
    """A damaged file is one notice; the turn reads everything, and the file is made again."""
    # A file holds when it was made, in as many digits as that has: its size goes with the clock.
    monkeypatch.setattr("mlxchat.engine.stored_prefix.time", SimpleNamespace(time=lambda: 1.5))
    first = start(idle_work=False)
    say(first, "When do you open?")
    first.close()
    (entry,) = stored()
    path = PromptStore().folder / entry.name
    path.write_bytes(path.read_bytes()[:-1])
    second = start(idle_work=False)
    job = second.send("When do you open?")
    notices = [event.text for event in job if type(event).__name__ == "Notice"]
    assert len(notices) == 1
    assert "stored prompt cache" in notices[0]
    assert job.result().cache.source == "none"
    second.close()
    assert stored() == [replace(entry, used=stored()[0].used)]


def test_wrong_values_with_a_right_checksum_fail_verify(start):
    """Where `--verify` finds that a stored prefix was wrong, it is removed and not used again."""
    first = start(idle_work=False)
    say(first, "When do you open?")
    first.close()
    store, (entry,) = PromptStore(), stored()
    with store.open(entry) as file:
        says, ids = file.description, file.read_ids()
        tensors = [(info, bytearray(data)) for info, data in file.read_tensors()]
    shapes = [TensorShape(i.name, i.dtype, i.shape, i.nbytes) for i, _ in tensors]
    writer = FileWriter(store.folder / entry.name, says, ids, shapes)
    for _, data in tensors:
        data[2::4] = bytes(b ^ 0x40 for b in data[2::4])
        writer.write(data)
    writer.commit()
    second = start(idle_work=False)
    job = second.send("When do you open?")
    notices = [event.text for event in job if type(event).__name__ == "Notice"]
    result = job.result()
    assert result.cache.source == "disk"
    assert not result.verify.holds
    assert any("not exact" in text for text in notices)
    assert stored() == []
    assert say(second, "And now?").cache.source == "none"


def test_a_budget_of_nothing_stores_nothing(folder, monkeypatch):
    """With `max_gib = 0` a chat writes no prompt cache, and says nothing about it."""
    monkeypatch.setattr("mlxchat.chat.prompt_keeping.PromptStore", PromptStore)
    with closing(TinySession(folder, system=SYSTEM, idle_work=True, cache_max_gib=0)) as session:
        job = session.send("When do you open?")
        assert [event for event in job if type(event).__name__ == "Notice"] == []
        session.wait_until_idle()
    assert stored() == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_folder_that_cannot_be_written(start, mlxchat_home):
    """One notice, and the chat goes on."""
    mlxchat_home.mkdir(parents=True)
    (mlxchat_home / "cache").write_text("a file where the folder should be")
    session = start()
    notices = []
    for text in ("When do you open?", "And the oldest ship?", "Goodbye."):
        job = session.send(text)
        notices += [event.text for event in job if type(event).__name__ == "Notice"]
        job.result()
        session.wait_until_idle()
    assert len(notices) == 1
    assert "cannot be stored" in notices[0]
    session.close()


def test_warm_stores_what_a_chat_then_uses(start):
    """After `warm` the first answer reads only the question; a second `warm` reads nothing."""
    warmed = start().warm(SYSTEM).result()
    assert warmed.num_read == warmed.num_tokens == stored()[0].num_ids
    assert start().warm(SYSTEM).result().num_read == 0
    result = say(start(), "When do you open?")
    assert (result.cache.source, result.usage.cached_tokens) == ("disk", warmed.num_tokens)
    assert json.dumps(result.to_json())


def test_idle_time_loads_what_a_conversation_needs(start):
    """Coming back, idle time loads from disk what it would else read, and the turn says so."""
    first = start()
    say(first, "When do you open?")
    first.wait_until_idle()
    held = len(first.prefix.token_ids)
    first.close()
    second = continued(start(), first)
    second.model_.calls.clear()
    second._settle_when_idle()
    second.wait_until_idle()
    assert second.model_.calls == []
    assert len(second.prefix.token_ids) == held
    result = say(second, "And the oldest ship?")
    assert (result.cache.source, result.usage.cached_tokens) == ("disk", held)
    assert result.usage.settle_tokens == 0
    assert say(second, "And the letters?").cache.source == "live"


def test_a_conversation_that_is_left_is_stored(start):
    """After `/reset` the old conversation's KV comes to the disk in idle time."""
    session = start()
    say(session, "When do you open?")
    session.wait_until_idle()
    session.reset()
    session.wait_until_idle()
    session.runner.keeping.finish(10)
    assert [e.what for e in stored()] == ["system", "conversation"]


def test_kv_of_one_conversation_is_forgotten(start):
    """What the history calls stripped or deleted loses its KV; other files stay."""
    numbers = iter([7, 8])
    for text in ("When do you open?", "Who are you?"):
        session = start()
        number = next(numbers)
        session.recorder = type("Numbered", (), {"conversation_id": number, "close": id})
        session.recorder.start = lambda turn, job: job
        session.recorder.close = list
        say(session, text)
        session.wait_until_idle()
        session.close()
    store = PromptStore()
    owners = {store.describe(e).owner for e in stored()}
    assert owners == {"", "7", "8"}
    assert len(store.forget([7])) == 1
    assert {store.describe(e).owner for e in stored()} == {"", "8"}
    store.forget()
    assert [e.what for e in stored()] == ["system"]


@pytest.mark.parametrize("kind", ["full", "window", "recurrent"])
def test_going_to_a_branch_on_disk_keeps_the_one_left(start, tmp_path, kind):
    """/goto to a branch that comes from disk and back reads nothing of either again."""
    model = make_tiny_folder(tmp_path / kind, "window" if kind == "window" else "full")
    first = start(kind, model)
    say(first, "When do you open? " + "Tell me all about the ships. " * 4)
    stored_head = first.conversation.head
    first.close()
    second = continued(start(kind, model), first)
    second.undo()
    say(second, "How much is a ticket? " + "We are many and we have no money. " * 4)
    second.wait_until_idle()
    other_head = second.conversation.head
    second.goto(stored_head)
    second.wait_until_idle()
    assert second.prefix.stashes
    second.goto(other_head)
    held = say(second, "Thank you.").usage
    assert held.settle_tokens < 20  # the turn before, not the branches
    assert held.prefill_tokens < 40
