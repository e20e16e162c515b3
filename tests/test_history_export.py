"""Conversations in and out: Markdown, JSON, HTML; messages of other programs; llm's logs.db."""

import contextlib
import json
import sqlite3
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import checked
from scripted import ScriptedSession

from mlxchat.chat import history_file
from mlxchat.chat.export import FORMATS, format_export, to_json
from mlxchat.chat.history import History
from mlxchat.chat.history_import import import_file
from mlxchat.chat.history_record import Record
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.session import ChatOptions
from mlxchat.cli.render import sanitize
from mlxchat.errors import HistoryError


def read(number=1, path=None) -> Record:
    with contextlib.closing(History(path)) as found:
        return found.record(number)


@pytest.fixture
def branched():
    """The record of a conversation with thinking, branches, a failure and terminal escapes."""
    session = ScriptedSession(None, ChatOptions(system="Be <brief>."), Recorder("chat"))
    session.send("hello \x1b[31m<script>alert(1)</script> & more").result()
    session.send("think twice").result()
    session.retry().result()
    job = session.send("forbidden fruit")
    list(job)
    session.edit(2, "another question").result()
    session.close()
    return read()


# -- out


def test_markdown(branched):
    """Speakers are headings; thinking is quoted; branches, failures and figures are marked."""
    text = format_export([branched], "md", sanitize)
    assert text.startswith("# hello ␛[31m<script>alert(1)</script> & more\n\nconversation 1 · ")
    assert "## System\n\nBe <brief>.\n" in text
    assert "## Model (another branch)\n\n> *thinking*\n>\n> let me see\n\nyou said: think" in text
    assert "forbidden fruit\n\n*not part of the conversation: the template refuses this" in text
    assert "*312 tokens · ttft 0.08 s · 54.1 tok/s · reused 2290, read 20*" in text
    assert text.index("think twice") < text.index("another question")
    assert "\x1b" not in text


def test_html(branched):
    """The page is whole, loads nothing from elsewhere, and runs nothing of what was said."""
    text = format_export([branched, branched], "html", sanitize)
    page = checked(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert "\x1b" not in text
    assert page.names.count("article") == 2 * len(branched.messages)


def test_json(branched):
    """The JSON form holds messages as chat APIs write them, the tree, and each turn's result."""
    exported = json.loads(format_export([branched], "json", sanitize))
    system, first, answer, *_ = exported["messages"]
    assert system == {"role": "system", "content": "Be <brief>."}
    assert (first["role"], first["parent"]) == ("user", None)
    assert (answer["role"], answer["parent"]) == ("assistant", first["id"])
    assert exported["turns"][0]["result"]["timing"]["ttft_s"] == 0.081
    assert datetime.fromisoformat(exported["created_at"]).tzinfo is not None
    assert exported == json.loads(json.dumps(to_json(branched)))


def test_many_conversations(branched):
    """Many conversations are a JSON list, or one JSON object per line."""
    assert len(json.loads(format_export([branched] * 3, "json", sanitize))) == 3
    lines = format_export([branched] * 3, "jsonl", sanitize).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 1, 1]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(min_size=1).filter(str.split))
def test_nothing_escapes(tmp_path, text):
    """Whatever was said, no format holds a character that a terminal obeys."""
    path = tmp_path / "one.db"
    session = ScriptedSession(None, ChatOptions(), Recorder("chat", path))
    with contextlib.suppress(Exception):
        session.send(text).result()
    number = session.recorder.conversation_id
    session.close()
    if number is not None:
        record = read(number, path)
        for form in FORMATS:
            exported = format_export([record], form, sanitize)
            assert not [c for c in exported if ord(c) < 32 and c not in "\n\t"]
            assert not [c for c in exported if 0x7F <= ord(c) < 0xA0]


# -- in


def test_an_export_can_be_imported(branched, tmp_path):
    """The tree, the reasoning, the head and what was dropped come back from a JSON export."""
    file, other = tmp_path / "export.json", tmp_path / "other.db"
    file.write_text(format_export([branched], "json", sanitize))
    assert import_file(file, other) == (1, 0)
    again = read(1, other)

    def shape(record):
        places = {m.id: place for place, m in enumerate(record.messages)}
        kept = [m for m in record.messages if m.state == "dropped" or not m.is_empty]
        return [
            (m.role, m.content, m.reasoning, m.state, places.get(m.parent)) for m in kept
        ], places[record.head]

    assert shape(again) == shape(branched)
    assert again.system == branched.system
    assert import_file(file, other) == (0, 1)


def test_what_was_said_here_is_not_imported(branched, tmp_path):
    """The export of a conversation that the history still has brings nothing new."""
    with contextlib.closing(History()) as found:
        records = [found.record(summary.id) for summary in found.summaries()]
    file = tmp_path / "export.json"
    file.write_text(format_export(records, "json", sanitize))
    assert import_file(file) == (0, len(records))


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."},
    {"role": "tool", "content": "42"},
    {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url"}]},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "assistant", "content": "I see."},
]
SHARED = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(MESSAGES),
        json.dumps({"messages": MESSAGES, "title": None}),
        json.dumps([MESSAGES]),
        json.dumps({"messages": MESSAGES}) + "\n",
        "\ufeff" + json.dumps(MESSAGES, indent=2),
    ],
)
def test_import_messages(tmp_path, text):
    """A list of messages, alone, in an object, in a list or in lines, is one conversation."""
    file = tmp_path / "messages.json"
    file.write_text(text)
    assert import_file(file) == (1, 0)
    record = read()
    assert record.system == "Be brief."
    assert [m.content for m in record.path()] == ["Hi", "Hello!", "Look", "I see."]
    assert record.messages[1].reasoning == "A greeting."
    assert record.summary.kind == "import"


def test_import_lines(tmp_path):
    """A file of training examples is one conversation per line; equal ones count once."""
    file = tmp_path / "train.jsonl"
    lines = [{"messages": MESSAGES}, SHARED, SHARED]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert import_file(file) == (2, 1)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"{", "no JSON"),
        (b"", "no conversation in"),
        (b"[]", "no conversation in"),
        (b"3", "no list of messages"),
        (b'{"messages": []}', "no list of messages"),
        (b'[{"role": "tool", "content": "x"}]', "no message in it"),
        (b'[[{"role": "user", "content": "x"}], 7]', "conversation 2"),
        (b"\xff\xfe\x00", "neither JSON nor a logs.db"),
        (b"[" * 100_000, "no JSON"),
        (b"SQLite format 3\0" + b"x" * 100, "logs.db of llm"),
    ],
)
def test_what_cannot_be_imported(tmp_path, data, part):
    """A file that is nothing we know is one line, and nothing of it is imported."""
    file = tmp_path / "file"
    file.write_bytes(data)
    with pytest.raises(HistoryError, match="; ") as caught:
        import_file(file)
    assert part in str(caught.value)
    assert not history_file.history_path().exists()


def test_a_file_that_is_not_there(tmp_path):
    """A wrong name is one line."""
    with pytest.raises(HistoryError, match="check the name"):
        import_file(tmp_path / "nothing.json")


def test_imported_ones_stand_behind_our_own(branched, tmp_path):
    """Imported conversations come after those that took place here, the newest first."""
    for name, date in (("old", "2020-01-01T00:00:00"), ("new", "2024-01-01T00:00:00+00:00")):
        file = tmp_path / f"{name}.json"
        message = {"role": "user", "content": name}
        file.write_text(json.dumps({"messages": [message], "created_at": date}))
    for name in ("new", "old"):
        import_file(tmp_path / f"{name}.json")
    with contextlib.closing(History()) as found:
        titles = [summary.title for summary in found.summaries()]
        assert titles[1:] == ["new", "old"]
        assert found.newest("chat") == 1


# -- llm

OLD_TABLES = """
CREATE TABLE conversations (id TEXT PRIMARY KEY, name TEXT, model TEXT);
CREATE TABLE responses (id TEXT PRIMARY KEY, model TEXT, prompt TEXT, system TEXT, prompt_json TEXT,
    options_json TEXT, response TEXT, response_json TEXT, conversation_id TEXT, duration_ms INTEGER,
    datetime_utc TEXT, input_tokens INTEGER, output_tokens INTEGER, reasoning TEXT);
CREATE TABLE fragments (id INTEGER PRIMARY KEY, hash TEXT, content TEXT, datetime_utc TEXT,
    source TEXT);
CREATE TABLE prompt_fragments (response_id TEXT, fragment_id INTEGER, "order" INTEGER);
INSERT INTO conversations VALUES ('c1', 'Cakes', 'gpt-x'), ('c2', 'Both', 'gpt-x');
INSERT INTO fragments VALUES (1, 'h', 'A long text.', NULL, 'f.txt'), (2, 'i', 'FRAG', NULL, NULL);
INSERT INTO prompt_fragments VALUES ('r1', 1, 0);
INSERT INTO responses
    (id, model, prompt, system, response, conversation_id, datetime_utc, reasoning)
VALUES ('r2', 'gpt-x', 'More', NULL, 'Yes.', 'c1', '2024-01-02T03:05:00.123456+00:00', 'Hm.'),
    ('r1', 'gpt-x', 'Names?', 'Be kind.', 'Lemon.', 'c1', '2024-01-02T03:04:00.123456', NULL),
    ('r3', 'gpt-y', 'Alone', NULL, 'Here.', NULL, '2024-01-03T00:00:00', NULL),
    ('r4', 'gpt-x', 'Old half', NULL, 'Half.', 'c2', '2024-01-04T00:00:00', NULL);
"""
NEW_TABLES = """
CREATE TABLE messages (hash TEXT PRIMARY KEY, parent_hash TEXT, role TEXT, provider_metadata TEXT);
CREATE TABLE parts (id INTEGER PRIMARY KEY, message_hash TEXT, position INTEGER, type TEXT,
    tool_name TEXT, text TEXT, payload TEXT);
CREATE TABLE threads (id TEXT PRIMARY KEY, name TEXT, tip_message_hash TEXT, forked_from TEXT,
    datetime_utc TEXT);
CREATE TABLE turns (id TEXT PRIMARY KEY, thread_id TEXT, parent_message_hash TEXT,
    tip_message_hash TEXT, model TEXT, datetime_utc TEXT);
INSERT INTO messages VALUES ('s', NULL, 'system', NULL), ('u', 's', 'user', NULL),
    ('a', 'u', 'assistant', NULL), ('t', 'a', 'tool', NULL), ('b', 't', 'assistant', NULL);
INSERT INTO parts VALUES (1, 's', 0, 'text', NULL, 'Be kind.', NULL),
    (2, 'u', 0, 'text', NULL, NULL,
        '{"text_ref": [{"literal": "See "}, {"fragment": 2}, {"literal": "!"}]}'),
    (3, 'a', 0, 'reasoning', NULL, 'Think.', NULL), (4, 'a', 1, 'text', NULL, 'I look.', NULL),
    (5, 'a', 2, 'tool_call', 'f', NULL, '{}'), (6, 't', 0, 'tool_result', 'f', NULL, '{}'),
    (7, 'b', 0, 'text', NULL, 'Done.', NULL);
INSERT INTO threads VALUES ('c2', 'Both', 'b', NULL, '2024-01-04T00:00:00+00:00');
INSERT INTO turns VALUES ('n1', 'c2', 'u', 'b', 'gpt-z', '2024-01-04T00:00:00+00:00');
"""


@pytest.fixture
def make_logs(tmp_path):
    """Makes a logs.db of llm."""

    def make(*scripts):
        path = tmp_path / "logs.db"
        with contextlib.closing(sqlite3.connect(path)) as db:
            for script in scripts:
                db.executescript(script)
        return path

    return make


def imported_by_title():
    with contextlib.closing(History()) as found:
        return {s.title: found.record(s.id) for s in found.summaries()}


def test_import_llm(make_logs):
    """Conversations and lone responses come with names, models, fragments, reasoning and times."""
    path = make_logs(OLD_TABLES)
    before = path.read_bytes()
    assert import_file(path) == (3, 0)
    assert import_file(path) == (0, 3)
    records = imported_by_title()
    cakes = records["Cakes"]
    contents = [m.content for m in cakes.path()]
    assert contents == ["A long text.\nNames?", "Lemon.", "More", "Yes."]
    assert cakes.messages[3].reasoning == "Hm."
    assert (cakes.system, cakes.summary.model) == ("Be kind.", "gpt-x")
    expected = datetime(2024, 1, 2, 3, 4, 0, 123456, UTC).timestamp()
    assert cakes.summary.created_at == pytest.approx(expected)
    assert [m.content for m in records["Alone"].path()] == ["Alone", "Here."]
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("logs.db*")] == ["logs.db"]


def test_import_newer_llm(make_logs):
    """The message store is read; a conversation that is in both is taken from there."""
    assert import_file(make_logs(OLD_TABLES, NEW_TABLES)) == (3, 0)
    both = imported_by_title()["Both"]
    assert [m.content for m in both.path()] == ["See FRAG!", "I look.", "Done."]
    assert both.messages[1].reasoning == "Think."
    assert (both.system, both.summary.model) == ("Be kind.", "gpt-z")


def test_import_the_newest_llm_alone(make_logs):
    """A logs.db that was made by a new llm may lack the older tables."""
    assert import_file(make_logs(NEW_TABLES)) == (1, 0)


def test_another_database(make_logs):
    """A database that is no logs.db is refused."""
    with pytest.raises(HistoryError, match="is no logs"):
        import_file(make_logs("CREATE TABLE a (b);"))
