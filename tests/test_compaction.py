"""/compact: the oldest turns become a summary, the newest stay, nothing that was said is lost."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_templates import SMALL_TEMPLATES
from tiny import (
    END_THINK,
    IM_END,
    KINDS,
    REASONING,
    Open,
    TinySession,
    biased,
    checked,
    open_sessions,
)

from mlxchat.chat.compaction import REQUEST
from mlxchat.chat.history import History
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.results import SummaryProgress
from mlxchat.cli.main import cli
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import ContextFullError, MlxchatError

QUESTIONS = [f"question {number}, with some words" for number in range(5)]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions on tiny folders and closes them."""
    with open_sessions(tmp_path, max_tokens=8) as open_:
        yield open_


def contents(session: TinySession) -> list[str]:
    return [message.content for message in session.conversation.messages()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_newest_turns_stay(open_session: Open, kind: str) -> None:
    """The new branch is the request, the summary and the newest turns; /goto brings all back."""
    session = open_session(kind, system="be brief")
    answers = [session.say(text).text for text in QUESTIONS]
    before = session.conversation.head
    job = session.compact(2)
    events = [event for event in job if isinstance(event, SummaryProgress)]
    done = job.result(30)
    shown = "".join(event.text for event in events)
    assert shown.strip() == done.summary.strip()
    assert events[-1].done == len(shown)
    assert done.num_turns == 3
    kept = [QUESTIONS[3], answers[3], QUESTIONS[4], answers[4]]
    assert contents(session) == ["be brief", REQUEST, done.summary, *kept]
    session.settle()
    after = session.say("go on")
    assert done.num_after < after.usage.prompt_tokens
    session.goto(done.old_head)
    assert done.old_head == before
    whole = [text for pair in zip(QUESTIONS, answers, strict=True) for text in pair]
    assert contents(session) == ["be brief", *whole]
    session.say("and back")
    assert len(session.tree()) == len(session.conversation.nodes)


def test_what_is_held_afterwards(open_session: Open) -> None:
    """Idle time reads the shorter conversation, and whoever shows how much is held hears of it."""
    session = open_session(idle_work=True)
    for text in QUESTIONS:
        session.say(text)
    session.wait_until_idle()
    held: list[int] = []
    session.on_settled = lambda: held.append(session.context_used)
    done = session.compact(1).result(30)
    session.wait_until_idle()
    assert held == [session.context_used]
    assert done.num_after <= held[0] < done.num_after + 10  # and where the next question begins


def test_a_cache_that_proved_wrong_is_not_summarised_from(open_session: Open) -> None:
    """Where reuse is off, the summary reads everything again too."""
    read = []
    for reuses in (True, False):
        session = open_session()
        session.say("one")
        session.say("two")
        held = len(session.prefix.token_ids)
        session.runner.reuses = reuses
        session.model_.calls.clear()
        session.model_.is_live = lambda cache: True
        session.compact(0).result(20)
        read.append(sum(session.model_.calls))
    assert read[1] >= read[0] + held - 1


def test_an_exact_summary(open_session: Open) -> None:
    """The summary keeps the ids that were generated; kept turns keep theirs."""
    session = open_session()
    for text in QUESTIONS:
        session.say(text)
    newest = session.conversation.path()[-1]
    session.compact(1).result(30)
    path = session.conversation.path()
    assert path[1].message.content_ids
    assert path[-1].message is newest.message
    assert path[-1].origin == newest.origin
    assert session.go_on().result(30).text.startswith(newest.message.content)


@pytest.mark.parametrize("num_calls", [0, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_leaves_all_as_it_was(open_session: Open, kind: str, num_calls: int) -> None:
    """While reading and while writing the summary."""
    session = open_session(kind)
    for text in QUESTIONS:
        session.say(text)
    nodes, head = dict(session.conversation.nodes), session.conversation.head
    with pytest.raises(JobCancelledError):
        session.interrupted(lambda: session.compact(2), num_calls).result(30)
    assert (session.conversation.nodes, session.conversation.head) == (nodes, head)
    session.say("go on")


@pytest.mark.parametrize("name", ["trimmed", "system-moves", "harmony", "think-stripped"])
def test_templates(open_session: Open, name: str) -> None:
    """Roles alternate, so templates that insist on it take the new branch too."""
    session = open_session(template=SMALL_TEMPLATES[name], system="be brief")
    for text in QUESTIONS[:3]:
        session.say(text)
    session.compact(1).result(30)
    session.say("go on")


def test_thinking_is_no_part_of_the_summary(open_session: Open) -> None:
    """A model that thinks before its summary leaves only the summary."""
    sampling = biased((END_THINK, 6.5))
    session = open_session(template=REASONING, sampling=sampling, max_tokens=60)
    for text in QUESTIONS[:3]:
        session.say(text)
    session.compact(1).result(30)
    message = session.conversation.path()[1].message
    assert message.content
    assert message.reasoning is None
    session.say("go on")


def test_a_full_context(open_session: Open) -> None:
    """What no longer fits is read in pieces; then there is room, and the cut answer goes on."""
    session = open_session(max_context=512, max_tokens=None, sampling=biased((IM_END, 4.0)))
    while True:
        try:
            if session.say(QUESTIONS[0]).stop_reason == "context_full":
                break
        except ContextFullError:
            break
    done = session.compact(1).result(60)
    assert done.num_after < 512 * 3 // 4
    session.say("go on")


def test_an_answer_that_filled_the_context_goes_on(open_session: Open) -> None:
    """/compact makes room, then /continue goes on with it."""
    session = open_session(max_tokens=8)
    for text in QUESTIONS * 2:
        session.say(text)
    used = session.context_used
    session.set_options(replace(session.options, max_tokens=None))
    session.runner.context_limit = limit = used + 250
    cut = session.say("hi " * 20)
    assert cut.stop_reason == "context_full"
    session.set_options(replace(session.options, sampling=biased((IM_END, 4.5))))
    session.compact(1).result(30)
    assert session.context_used < limit
    more = checked(session, session.go_on())
    assert more.text.startswith(cut.text)
    assert more.usage.completion_tokens > 0


def test_refusals(open_session: Open) -> None:
    """Nothing to summarise, no summary, a turn that is too long: one line, nothing changed."""
    session = open_session(sampling=biased((IM_END, 1e9)), max_context=360)
    with pytest.raises(MlxchatError, match="no turn to summarise; say"):
        session.compact(2).result(30)
    session.say("hello")
    with pytest.raises(MlxchatError, match="wrote no summary, nothing was changed; try"):
        session.compact(2).result(30)
    assert contents(session) == ["hello", ""]


def test_a_turn_that_is_too_long(open_session: Open) -> None:
    """Its middle is left out of what the summary is made of; too small a context is refused."""
    session = open_session(max_context=400, max_tokens=None)
    assert session.say("hello").stop_reason == "context_full"
    done = session.compact(1).result(30)
    assert done.num_turns == 1
    session.say("go on")
    session = open_session(max_context=128)
    session.say("hello")
    with pytest.raises(ContextFullError, match="a context of 128 tokens is too small"):
        session.compact(1).result(30)


def test_it_is_kept(open_session: Open, tmp_path: Path) -> None:
    """A conversation that is resumed goes on from the summary, with the exact ids."""
    session = open_session()
    session.recorder = Recorder("chat", tmp_path / "history.db")
    session.recorder.begin(session.conversation)
    for text in QUESTIONS:
        session.say(text)
    session.compact(2).result(30)
    session.recorder.close()
    with closing(History(tmp_path / "history.db")) as history:
        restored = history.restore(1)
        assert history.record(1).summary.title == QUESTIONS[0]
    assert restored.conversation == session.conversation
    session.say("go on")


def test_in_a_pipe() -> None:
    """The summary goes to stderr; stdout has the answers alone."""
    lines = "hi, my name is Mei-Lin\nwhat is a KV cache?\nhello\n/compact\n/compact 0\nhello\n"
    result = CliRunner().invoke(cli, ["chat", "--temp", "0"], input=lines)
    assert len(result.stdout.splitlines()) == 4
    assert "Turn 1 is now this summary:" in result.stderr
    assert "/goto 6 brings all of it back" in result.stderr
    assert "write /compact [N] with a whole number >= 1" in result.stderr
    assert result.exit_code == 1
