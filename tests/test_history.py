"""The history: what a session writes, how it comes back, search, deletion, migration."""

import contextlib
import itertools
import json
import shutil
import sqlite3
import stat
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import FINGERPRINT, ScriptedSession

from mlxchat.chat import history_file, history_search, recorder
from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.results import Notice, PrefillProgress, TextDelta, merge_text
from mlxchat.chat.session import ChatOptions
from mlxchat.engine.options import SamplingSettings
from mlxchat.errors import HistoryError, MlxchatError


@pytest.fixture
def open_session():
    """Opens sessions that are recorded; closes them at the end."""
    with contextlib.ExitStack() as stack:

        def open_session(options=None, kind="chat", session_class=ScriptedSession, model=None):
            session = session_class(model, options or ChatOptions(), Recorder(kind))
            stack.enter_context(contextlib.closing(session))
            return session

        yield open_session


@pytest.fixture
def say(open_session):
    """Says some lines in a conversation of their own; returns its number."""

    def say(*lines, **options):
        session = open_session(**options)
        for line in lines:
            session.send(line).result()
        session.close()
        return session.recorder.conversation_id

    return say


@contextlib.contextmanager
def history():
    with contextlib.closing(History()) as found:
        yield found


def record(number=1):
    with history() as found:
        return found.record(number)


def restore(number=1):
    with history() as found:
        return found.restore(number)


def texts(number=1):
    return [(m.role, m.state, m.content) for m in record(number).messages]


# -- what is written


def test_a_turn_is_stored_whole(open_session):
    """Question, answer, ids, reasoning, settings, model, commit, timing and result are stored."""
    sampling = SamplingSettings(temperature=0.5, seed=7)
    session = open_session(ChatOptions(system="Be brief.", sampling=sampling, max_tokens=99))
    result = session.send("think hard").result()
    stored = record()
    (turn,) = stored.turns
    question, answer = stored.messages
    assert (question.role, question.content) == ("user", "think hard")
    assert (answer.content, answer.reasoning) == (result.text, result.reasoning)
    assert answer.content_ids == result.tokens
    assert stored.system == "Be brief."
    assert turn.settings["sampling"] == {"temperature": 0.5, "seed": 7}
    assert turn.settings["max_tokens"] == 99
    assert (turn.model, turn.commit, turn.fingerprint) == ("builtin", "c0ffee", FINGERPRINT)
    assert turn.state == "done"
    assert turn.result == json.loads(json.dumps(result.to_json()))
    assert list(turn.result) == list(result.to_json())


def test_the_file_is_private(say):
    """Only its owner can read the history and its folder, the write-ahead log included."""
    history_file.history_path().parent.mkdir(parents=True, mode=0o755)
    session = ScriptedSession(None, ChatOptions(), Recorder("chat"))
    session.send("hello").result()
    folder = history_file.history_path().parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [path for path in folder.iterdir() if path.name.startswith("history.db")]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    session.close()


def test_text_is_stored_before_it_is_seen(open_session):
    """Whatever a follower of a job has seen is in the database at that moment."""
    job = open_session().send("slow one two three")
    seen = ""
    for event in job:
        if isinstance(event, TextDelta):
            seen += event.text
            question, answer = record().messages
            assert question.content == "slow one two three"
            assert (answer.content, answer.state) == (seen, "partial")
    assert seen == "you said: slow one two three"
    assert texts()[-1] == ("assistant", "kept", seen)


def test_what_is_shown_survives_a_power_cut(open_session, monkeypatch, tmp_path):
    """What the disk holds since the last sync has all text that was shown, thinking too."""
    disk = tmp_path / "disk"
    disk.mkdir()
    transaction = history_file.transaction

    @contextlib.contextmanager
    def synced(db, *, durable):
        with transaction(db, durable=durable):
            yield
        for name in ("history.db", "history.db-wal") if durable else ():
            shutil.copy(history_file.history_path().with_name(name), disk)

    monkeypatch.setattr(history_file, "transaction", synced)
    seen = {"reasoning": "", "answer": ""}
    for event in open_session().send("think slow " + "word " * 300):
        if isinstance(event, TextDelta):
            seen[event.kind] += event.text
            with contextlib.closing(History(disk / "history.db")) as found:
                answer = found.record(1).messages[-1]
            assert (answer.reasoning or "").startswith(seen["reasoning"])
            assert answer.content.startswith(seen["answer"])
    assert all(seen.values())


def test_a_slow_disk_makes_the_text_come_in_larger_pieces():
    """Syncs take a share of the time; however slow they are, text comes four times a second."""
    kept = Recorder("chat")
    paces = []
    for kept._sync_s in (0.001, 0.02, 5.0):
        paces.append(kept.pace_s())
    assert paces == [0.03, 0.08, 0.25]


def test_the_turn_is_committed_when_the_events_end(open_session):
    """When the last event was taken, before the result is asked for, the turn is complete."""
    for _ in open_session().send("hello"):
        pass
    assert record().turns[0].state == "done"


def test_events_are_joined_but_complete(open_session, monkeypatch):
    """Pieces that come faster than the screen is drawn are written and shown together."""
    monkeypatch.setattr(recorder, "BATCH_S", 0.2)
    events = list(open_session().send("think " + "word " * 50))
    kinds = [getattr(event, "kind", type(event).__name__) for event in events]
    assert kinds[0] == PrefillProgress.__name__
    assert sorted(set(kinds)) == ["PrefillProgress", "answer", "reasoning"]
    assert len(kinds) <= 8
    said = "".join(event.text for event in events if getattr(event, "kind", "") == "answer")
    assert said == "you said: think " + "word " * 50


def test_a_stopped_answer_is_kept_as_the_session_keeps_it(open_session):
    """Ctrl-C with an answer begun keeps it; its stop reason says so."""
    session = open_session()
    job = session.send("slow " + "word " * 100)
    for event in job:
        if isinstance(event, TextDelta):
            job.cancel()
    stored = record()
    assert stored.messages[-1].state == "kept"
    assert stored.messages[-1].content == session.conversation.path()[-1].message.content
    assert stored.turns[0].result["stop_reason"] == "user_cancelled"


@pytest.mark.parametrize(
    ("line", "state", "part"),
    [
        ("fail now", "failed", "this message fails"),
        ("crash now", "failed", "ValueError: a bug"),
        ("forbidden", "failed", "refuses"),
    ],
)
def test_a_failed_turn_is_kept_but_no_part_of_the_conversation(open_session, line, state, part):
    """A turn that fails is stored as dropped, with the error; the conversation goes on without."""
    session = open_session()
    session.send("hello").result()
    with pytest.raises((MlxchatError, ValueError)):
        session.send(line).result()
    session.send("again").result()
    stored = record()
    assert [m.state for m in stored.messages[2:4]] == ["dropped", "dropped"]
    assert stored.turns[1].state == state
    assert part in stored.turns[1].error
    contents = [node.message.content for node in restore().conversation.path()]
    assert contents == ["hello", "you said: hello", "again", "you said: again"]


def test_what_a_failed_turn_had_shown_is_kept(open_session):
    """Text that was on the screen when a turn failed can be read in the history."""
    session = open_session()
    session.send("hello").result()
    job = session.send("forbidden fruit")
    list(job)
    with pytest.raises(MlxchatError):
        job.result()
    assert texts()[-1] == ("assistant", "dropped", "you said: forbidden fruit")


def test_nothing_said_nothing_stored(open_session):
    """A session without a turn, or whose first turn fails with nothing shown, leaves no trace."""
    open_session().close()
    assert not history_file.history_path().exists()
    session = open_session()
    with pytest.raises(MlxchatError):
        session.send("fail").result()
    with history() as found:
        assert found.summaries() == []
    session.send("hello").result()
    with history() as found:
        assert [summary.title for summary in found.summaries()] == ["hello"]


def test_a_session_without_recorder_writes_nothing(open_session):
    """Without a recorder nothing is written."""
    session = ScriptedSession(None, ChatOptions(keeps_history=False))
    session.send("hello").result()
    session.close()
    assert not history_file.history_path().exists()


def test_an_unfollowed_turn_is_stored_at_the_end(open_session):
    """A job that nobody followed or waited for is committed when the session ends."""
    session = open_session()
    job = session.send("hello")
    while not job.done:
        time.sleep(0.01)
    session.close()
    assert texts() == [("user", "kept", "hello"), ("assistant", "kept", "you said: hello")]


def test_queued_turns_follow_each_other(open_session):
    """Two messages sent at once are stored one after the other."""
    session = open_session()
    jobs = [session.send("one"), session.send("two")]
    for job in jobs:
        job.result()
    contents = [node.message.content for node in restore().conversation.path()]
    assert contents == ["one", "you said: one", "two", "you said: two"]


def test_a_changed_system_prompt_is_not_lost(open_session):
    """Each turn names the system prompt it was given; the last one is the conversation's."""
    session = open_session(ChatOptions(system="First."))
    session.send("one").result()
    session.set_system("Second.")
    session.send("two").result()
    session.send("three").result()
    assert record().system == "Second."
    db = sqlite3.connect(history_file.history_path())
    rows = db.execute(
        "SELECT content FROM turns JOIN messages ON messages.id = turns.system ORDER BY turns.id"
    ).fetchall()
    num = db.execute("SELECT count(*) FROM messages WHERE role = 'system'").fetchone()[0]
    db.close()
    assert rows == [("First.",), ("Second.",), ("Second.",)]
    assert num == 2


# -- the tree


def test_the_tree_comes_back(open_session):
    """Retries, edits and undone turns come back as the branches they were, head and all."""
    session = open_session()
    session.send("one").result()
    session.send("two").result()
    session.retry().result()
    session.edit(1, "uno").result()
    session.send("dos").result()
    session.undo()
    before = session.conversation
    session.close()
    after = restore().conversation
    assert after == before


def test_moves_are_stored_at_once(open_session):
    """/undo and /goto hold after a restart, without another turn."""
    session = open_session()
    for line in ("one", "two", "three"):
        session.send(line).result()
    session.undo(2)
    assert restore().conversation.head == 2
    session.goto(4)
    assert restore().conversation.head == 4


def test_reset_begins_another_conversation(open_session):
    """After /reset the old conversation is complete and a new one is stored."""
    session = open_session(ChatOptions(system="Be brief."))
    session.send("one").result()
    session.reset()
    session.send("two").result()
    with history() as found:
        assert [summary.title for summary in found.summaries()] == ["two", "one"]
    assert record(2).system == "Be brief."


random_moves = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.text(min_size=1).filter(lambda text: text.split())),
        st.tuples(st.sampled_from(["retry", "undo", "fork"]), st.just("")),
        st.tuples(st.just("goto"), st.integers(1, 8)),
    ),
    max_size=8,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(random_moves)
def test_any_conversation_comes_back(tmp_path, moves):
    """After any turns and moves, what is restored is the tree that the session held."""
    path = tmp_path / "any.db"
    path.unlink(missing_ok=True)
    session = ScriptedSession(None, ChatOptions(), Recorder("chat", path))
    with contextlib.closing(session):
        for move, value in moves:
            with contextlib.suppress(MlxchatError, ValueError):
                if move == "send":
                    session.send(value).result()
                elif move == "goto":
                    session.goto(value)
                else:
                    start = getattr(session, move)()
                    if move == "retry":
                        start.result()
        before, number = session.conversation, session.recorder.conversation_id
    if number is not None:
        with contextlib.closing(History(path)) as found:
            restored = found.restore(number)
            assert restored.conversation.head == before.head
            for node in before.nodes.values():
                after = restored.conversation.nodes[node.id]
                assert after.parent == node.parent
                assert after.message.content == history_file.clean(node.message.content)
                assert after.message.content_ids == node.message.content_ids
            assert found.check() == []


# -- going on


def test_a_conversation_goes_on(open_session, say):
    """A restored conversation has its messages, its ids, its switches and its date; it grows."""
    number = say("think", options=ChatOptions(system="Be brief.", think=True, keep_thinking=True))
    first = record(number)
    session = open_session()
    session.restore(restore(number))
    assert session.options.think is True
    assert session.options.keep_thinking is True
    assert session.options.now == first.template_now
    session.send("more").result()
    asked = session._runner.prompts[0]
    assert [m.role for m in asked] == ["system", "user", "assistant", "user"]
    assert asked[2].content_ids == first.messages[1].content_ids
    assert asked[2].reasoning == first.messages[1].reasoning
    stored = record(number)
    assert [m.content for m in stored.path()] == [
        "think",
        "you said: think",
        "more",
        "you said: more",
    ]
    with history() as found:
        assert len(found.summaries()) == 1


def test_ids_of_another_model_do_not_count(open_session, say):
    """Where another model goes on, the generated ids are dropped and the text stays."""
    number = say("hello")

    class Other(ScriptedSession):
        fingerprint = "0" * 64

    session = open_session(session_class=Other)
    session.restore(restore(number))
    session.send("more").result()
    answer = session._runner.prompts[0][1]
    assert (answer.content, answer.content_ids) == ("you said: hello", None)
    assert record(number).messages[1].content_ids is not None


def test_an_unfinished_answer_comes_back_as_partial(open_session):
    """What was shown before the end of the program is there and marked, and can be gone on from."""
    session = open_session()
    job = iter(session.send("slow one two three four five"))
    while not isinstance(next(job), TextDelta):
        pass
    restored = restore()
    assert restored.partial == {2}
    assert restored.conversation.head == 2
    assert restored.conversation.nodes[2].message.content.startswith("you")
    other = open_session()
    other.restore(restored)
    other.send("go on").result()
    assert [m.content for m in record().path()][-2:] == ["go on", "you said: go on"]
    list(job)


def test_a_question_without_an_answer_comes_back(open_session):
    """A question that nothing was answered to is in the tree, with the head before it."""
    session = open_session()
    session.send("hello").result()
    job = session.send("slow question")
    restored = restore()
    assert restored.unanswered == 3
    assert restored.conversation.head == 2
    assert restored.conversation.nodes[3].message.content == "slow question"
    job.result()


def test_two_processes_on_one_conversation(open_session, say):
    """Both go on; nothing is lost; the tree holds both branches; the last turn has the head."""
    number = say("hello")
    sessions = [open_session(), open_session()]
    for session in sessions:
        session.restore(restore(number))
    for count, (session, name) in enumerate(itertools.product(sessions, "ab")):
        session.send(f"{name}{count}").result()
    conversation = restore(number).conversation
    assert len(conversation.nodes) == 2 + 8
    assert [n.message.content for n in conversation.children(2)] == ["a0", "a2"]
    contents = [node.message.content for node in conversation.path()]
    assert contents[2::2] == ["a2", "b3"]


def test_a_conversation_that_was_deleted_meanwhile(open_session, say):
    """What the person deleted does not come back; what is said from then on is kept."""
    session = open_session()
    session.send("secret").result()
    with history() as found:
        found.delete([1])
    session.send("after").result()
    assert texts(2) == [("user", "kept", "after"), ("assistant", "kept", "you said: after")]


def test_saving_what_was_not_kept(open_session):
    """/save writes the whole conversation, and what follows is kept too."""
    session = ScriptedSession(None, ChatOptions(keeps_history=False))
    session.send("one").result()
    number = session.save("Kept after all")
    session.send("two").result()
    session.close()
    stored = record(number)
    assert stored.summary.title == "Kept after all"
    assert [m.content for m in stored.path()] == ["one", "you said: one", "two", "you said: two"]


# -- order, titles, lists


def test_the_order_does_not_hang_on_the_clock(say, monkeypatch):
    """When the clock goes backwards, messages and conversations stay in the order of arrival."""
    clock = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for name in ("first", "second", "third"):
        say(f"{name} one", f"{name} two")
    with history() as found:
        assert [s.title for s in found.summaries()] == ["third one", "second one", "first one"]
        assert found.newest("chat") == 3
    assert [m.content for m in record(2).path()][::2] == ["second one", "second two"]


def test_the_last_turn_makes_a_conversation_the_last(open_session, say):
    """An old conversation that goes on is the newest again."""
    say("one")
    say("two")
    session = open_session()
    session.restore(restore(1))
    session.send("more").result()
    with history() as found:
        assert [summary.id for summary in found.summaries()] == [1, 2]
        assert found.newest() == 1


def test_titles(open_session):
    """A title can be set before and after the first turn; else the first question stands for it."""
    session = open_session()
    session.set_title("Early")
    session.send("hello").result()
    assert record().summary.title == "Early"
    session.set_title("Late")
    assert record().summary.title == "Late"
    with history() as found:
        found.rename(1, None)
    assert record().summary.title == "hello"
    assert not record().summary.is_titled


def test_a_title_without_what_is_attached(open_session):
    """The title is the person's words, also where the message begins with a file."""
    session = open_session()
    session.send("notes.md:\n```md\n" + "some notes\n" * 99 + "```\n\nwhat do they say?").result()
    assert record().summary.title == "what do they say?"
    with history() as found:
        assert [summary.title for summary in found.summaries()] == ["what do they say?"]
        assert {hit.title for hit in history_search.search(found, ["notes"]).hits} == {
            "what do they say?"
        }


def test_numbers_are_never_used_again(say):
    """The number of a deleted conversation is not given to another."""
    say("one")
    assert say("two") == 2
    with history() as found:
        found.delete([2])
    assert say("three") == 3


@pytest.mark.parametrize("reference", ["7", "x", "", "-1", "1.0", "9" * 40, "²"])
def test_unknown_numbers(say, reference):
    """A conversation that is not there is one line that says where the numbers are."""
    say("hello")
    with history() as found, pytest.raises(HistoryError, match="history list"):
        found.find(reference)


def test_find(say):
    """A conversation is found by its number, with a sign or blanks around it too."""
    say("hello")
    with history() as found:
        assert [found.find(text) for text in ("1", "#1", " 1 ")] == [1, 1, 1]


def test_stats(say):
    """Turns, messages and tokens are summed up, turns by model."""
    say("one", "two")
    say("three", model="a/b")
    with history() as found:
        stats = found.stats()
    assert (stats.num_conversations, stats.num_messages, stats.num_turns) == (2, 6, 3)
    assert (stats.prompt_tokens, stats.cached_tokens) == (3 * 2310, 3 * 2290)
    assert stats.turns_by_model == {"builtin": 2, "a/b": 1}
    assert stats.file_bytes > 4096


# -- search


def found_texts(*words, **options):
    with history() as found:
        return [hit.snippet for hit in history_search.search(found, words, **options).hits]


def test_search(say):
    """All words must stand in a message; beginnings of words count; phrases hold together."""
    say("the quick brown fox", "a brown bear is quick")
    assert len(found_texts("quick", "brown")) == 4
    assert len(found_texts("quick brown")) == 2
    assert len(found_texts("QUI")) == 4
    assert found_texts("uick") == []
    assert found_texts("fox", "bear") == []
    (hit, _) = found_texts("fox")
    assert f"{history_search.OPEN}fox{history_search.CLOSE}" in hit
    assert len(found_texts("brown", limit=1)) == 1


def test_search_finds_the_newest_and_no_deleted_ones(say):
    """The index follows what is said and what is deleted."""
    say("first apple")
    assert len(found_texts("apple")) == 2
    number = say("second apple")
    assert len(found_texts("apple")) == 4
    with history() as found:
        found.delete([number])
    assert len(found_texts("apple")) == 2


def test_search_finds_reasoning_and_accents(say):
    """Reasoning is searched too; accents and case do not matter."""
    say("think größer CAFÉ")
    assert len(found_texts("see")) == 1
    assert len(found_texts("grosser")) == 0
    assert len(found_texts("cafe")) == 2


def test_search_in_scripts_without_spaces(say):
    """Chinese and Thai words are found inside sentences."""
    say("今天天气很好吗", "สวัสดีชาวโลก")
    assert len(found_texts("天气")) == 2
    assert len(found_texts("ชาว")) == 2


def test_search_finds_partial_answers(open_session):
    """The text of an answer that is being written is found; afterwards the answer is whole."""
    session = open_session()
    job = iter(session.send("slow unicorn walks by the lake"))
    while True:
        event = next(job)
        if isinstance(event, TextDelta) and "said" in event.text:
            break
    assert len(found_texts("unicorn")) >= 1
    assert any("said" in snippet for snippet in found_texts("said"))
    list(job)
    assert texts()[-1][2] == "you said: slow unicorn walks by the lake"
    assert len(found_texts("lake")) == 2


def test_search_without_fts5(say, monkeypatch):
    """Where SQLite has no FTS5 the texts are looked through, and the person is told."""
    say("the quick brown fox", "100% sure_thing")
    monkeypatch.setattr(history_search, "_has_fts5", lambda db: False)
    with history() as found:
        result = history_search.search(found, ["quick", "fox"])
        assert "no FTS5" in result.notice
        assert len(result.hits) == 2
        assert len(history_search.search(found, ["100%", "sure_thing"]).hits) == 2
        assert history_search.search(found, ["sureXthing"]).hits == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_words_can_be_searched(tmp_path, words):
    """Whatever is searched, quotes and operators included, gives hits or none, never an error."""
    path = tmp_path / "search.db"
    if not path.exists():
        session = ScriptedSession(None, ChatOptions(), Recorder("chat", path))
        session.send('some "words" AND (more) NEAR* text').result()
        session.close()
    with contextlib.closing(History(path)) as found:
        history_search.search(found, words)


# -- strip, delete


def test_strip_keeps_the_text(open_session, say):
    """After strip the ids are gone, the text is whole, and the conversation goes on."""
    number = say("hello")
    with history() as found:
        found.strip([number])
    stored = record(number)
    assert [m.content_ids for m in stored.messages] == [None, None]
    assert stored.turns[0].result["tokens"] == []
    session = open_session()
    session.restore(restore(number))
    session.send("more").result()
    assert session._runner.prompts[0][1].content == "you said: hello"


def test_deleted_text_is_gone_from_the_file(say):
    """After delete the words are nowhere in the file, the search index included."""
    say("xylophonesecret", "think of another")
    found_texts("xylophonesecret")
    with history() as found:
        found.delete([1])
    for path in history_file.history_path().parent.glob("history.db*"):
        assert b"xylophonesecret" not in path.read_bytes()


# -- versions of the tables

VERSION_1 = """
CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, title TEXT,
    model TEXT, head INTEGER, system INTEGER, template_now TEXT, think INTEGER,
    keep_thinking INTEGER NOT NULL DEFAULT 0, activity INTEGER NOT NULL, created_at REAL NOT NULL,
    updated_at REAL NOT NULL);
CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE, parent INTEGER,
    role TEXT NOT NULL, state TEXT NOT NULL, content TEXT NOT NULL, reasoning TEXT, inline TEXT,
    content_ids BLOB, reasoning_ids BLOB, created_at REAL NOT NULL);
CREATE INDEX messages_of_conversation ON messages (conversation);
CREATE TABLE turns (id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE, question INTEGER,
    answer INTEGER NOT NULL, system INTEGER, state TEXT NOT NULL, model TEXT, model_commit TEXT,
    fingerprint TEXT, settings TEXT NOT NULL, result TEXT, tokens BLOB, error TEXT,
    started_at REAL NOT NULL, ended_at REAL);
CREATE INDEX turns_of_conversation ON turns (conversation);
CREATE TABLE deltas (id INTEGER PRIMARY KEY AUTOINCREMENT,
    message INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE, kind TEXT NOT NULL,
    text TEXT NOT NULL);
INSERT INTO conversations VALUES (3, 'chat', NULL, 'a/b', 8, NULL, NULL, NULL, 0, 5, 1e9, 1e9);
INSERT INTO messages VALUES (7, 3, NULL, 'user', 'kept', 'old question', NULL, NULL, NULL, NULL, 1);
INSERT INTO messages VALUES (8, 3, 7, 'assistant', 'partial', 'old ', NULL, NULL, NULL, NULL, 2);
INSERT INTO deltas VALUES (1, 8, 'answer', 'answer');
PRAGMA user_version = 1;
"""


def make_version_1():
    path = history_file.history_path()
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(VERSION_1)
    return path


def test_migration_from_version_1(say):
    """A history of the first version is migrated with all that it holds, and goes on."""
    path = make_version_1()
    assert texts(3) == [("user", "kept", "old question"), ("assistant", "partial", "old answer")]
    assert len(found_texts("old")) == 2
    assert say("new") == 4
    with contextlib.closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        assert version == len(history_file.MIGRATIONS)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_migration_is_whole_or_not_at_all(monkeypatch):
    """A migration that fails half way leaves the version and the tables as they were."""
    path = make_version_1()
    broken = (*history_file.MIGRATIONS, ("CREATE TABLE extra (a)", "nonsense"))
    monkeypatch.setattr(history_file, "MIGRATIONS", broken)
    with pytest.raises(HistoryError):
        History()
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_schema")}
    assert "extra" not in names
    assert "conversations_by_source" not in names


def test_a_newer_history_is_refused(open_session, say):
    """A history of a newer program is left alone: one line, and the chat goes on unrecorded."""
    say("hello")
    path = history_file.history_path()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(HistoryError, match=r"newer mlxchat .*; update mlxchat"):
        History()
    events = list(open_session().send("more"))
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len(notices) == 1
    assert "newer mlxchat" in notices[0]
    assert path.read_bytes() == before


def test_merged_text_keeps_the_newest_count():
    """Pieces that are shown together tell how many tokens were thought up to the last of them."""
    pieces = [
        TextDelta("let ", "reasoning", 1),
        TextDelta("me see", "reasoning", 3),
        TextDelta("Well", "answer", 3),
        TextDelta(", yes", "answer", 3),
    ]
    assert merge_text(pieces) == [
        TextDelta("let me see", "reasoning", 3),
        TextDelta("Well, yes", "answer", 3),
    ]
