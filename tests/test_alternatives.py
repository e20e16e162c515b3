"""Several answers at once: what a session gives, keeps and caches, and how they are shown."""

import contextlib
import io
import json
import time

import pytest
from chats import CTRL_C, ENTER, chats
from click.testing import CliRunner
from fakes import FakeSession, StuckConstraint, make_result
from tiny import CHATML, REASONING, TinySession, make_tiny_folder

from mlxchat.chat.history import History
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.recorder import Recorder
from mlxchat.chat.results import Alternatives, BatchProgress, TextDelta
from mlxchat.chat.turn import TurnRunner
from mlxchat.cli.choose import PREVIEW_ROWS, format_preview
from mlxchat.cli.main import cli
from mlxchat.cli.screen import Screen
from mlxchat.cli.turn import Answers
from mlxchat.engine.worker import JobCancelledError, Worker
from mlxchat.errors import MemoryShortError, MlxchatError

KINDS = ["full", "window", "recurrent"]


@pytest.fixture
def start(tmp_path):
    """Opens sessions over tiny models."""
    with contextlib.ExitStack() as stack:

        def start(kind="full", template=CHATML, recorder=None, **options):
            folder = tmp_path / f"{kind}-{len(template)}"
            if not folder.exists():
                make_tiny_folder(folder, "full" if kind == "recurrent" else kind, template=template)
            session = TinySession(folder, kind, **{"idle_work": True} | options)
            if recorder is not None:
                session.recorder = recorder
                recorder.begin(session.conversation)
            return stack.enter_context(contextlib.closing(session))

        yield start


def texts(offered):
    return [result.text for result in offered.results]


@pytest.mark.parametrize("template", [CHATML, REASONING], ids=["plain", "reasoning"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_what_retries_would_have_given(start, kind, template):
    """Ids, text and stop reason of each are those of a /retry of its own; the prompt is exact."""
    options = {"template": template, "max_tokens": 60}
    single, many = start(kind, **options), start(kind, **options)
    single.send("When do you open?").result(60)
    many.send("When do you open?").result(60)
    expected = [single.retry().result(60) for _ in range(4)]
    offered = many.retry_many(4).result(60)
    assert [r.tokens for r in offered.results] == [r.tokens for r in expected]
    assert texts(offered) == [r.text for r in expected]
    assert [r.stop_reason for r in offered.results] == [r.stop_reason for r in expected]
    assert all(r.verify.holds for r in offered.results)
    assert len({r.tokens for r in offered.results}) > 1
    assert many.conversation.nodes == single.conversation.nodes


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_with_any_of_them_is_exact_and_reads_none_again(start, kind):
    """Whichever is chosen, the next turn holds in --verify and reuses what was decoded."""
    session = start(kind, max_tokens=60)
    session.send("When do you open?").result(60)
    offered = session.retry_many(3).result(60)
    for number in (2, 3, 1, 2):
        session.choose(offered, number)
        assert session.conversation.head == offered.nodes[number - 1]
        assert session.last == offered.results[number - 1]
        session.wait_until_idle()
        num_read = sum(session.model_.calls)
        result = session.send("And the oldest ship?").result(60)
        assert result.verify.holds
        held = offered.results[number - 1].usage
        assert result.usage.cached_tokens >= held.prompt_tokens + held.completion_tokens - 1
        assert sum(session.model_.calls) > num_read
        session.undo()


def test_what_is_read_again_is_laid_to_the_choice(start):
    """The reuse line names what the person did: /retry, and not /goto, which nobody wrote."""
    session = start(max_tokens=60, idle_work=False)
    session.send("When do you open?").result(60)
    session.choose(session.retry_many(3).result(60), 2)
    assert "(/retry: " in session.send("And the oldest ship?").result(60).cache.reason


def test_the_old_answer_can_stay(start):
    """Choice 0 is the answer before; all others stand in the tree beside it."""
    session = start(max_tokens=20)
    session.send("When do you open?").result(60)
    old = session.conversation.head
    offered = session.retry_many(3).result(60)
    assert offered.old == old
    assert session.conversation.head == offered.nodes[0]
    session.choose(offered, 0)
    assert session.conversation.head == old
    question = session.conversation.nodes[old].parent
    assert [n.id for n in session.conversation.children(question)] == [old, *offered.nodes]


def test_a_message_answered_several_times(start):
    """The question stands in the tree once; what is counted as read is read once."""
    single, many = start(max_tokens=30), start(max_tokens=30)
    expected = [single.send("Hello there.").result(60), single.retry().result(60)]
    offered = many.send_many("Hello there.", 2).result(60)
    assert [r.tokens for r in offered.results] == [r.tokens for r in expected]
    first, second = (result.usage for result in offered.results)
    assert first.prefill_tokens == first.prompt_tokens
    assert (second.cached_tokens, second.prefill_tokens) == (second.prompt_tokens, 0)
    roles = [node.message.role for node in many.conversation.nodes.values()]
    assert roles == ["user", "assistant", "assistant"]


def test_stop_strings_and_limits_hold_for_each(start):
    """A stop string ends its own row only, and --max-tokens ends each."""
    session = start(max_tokens=40)
    session.send("When do you open?").result(60)
    plain = session.retry_many(4).result(60)
    stop = next(text for text in texts(plain) if len(text) > 8)[3:5]
    other = start(max_tokens=40, stop=(stop,))
    other.send("When do you open?").result(60)
    cut = other.retry_many(4).result(60)
    assert all(stop not in text for text in texts(cut))
    assert "stop_string" in [result.stop_reason for result in cut.results]
    assert all(len(result.tokens) <= 40 for result in cut.results)


def test_nothing_is_shown_before_all_have_ended(start):
    """While they are decoded only progress is told; Ctrl-C leaves everything as it was."""
    session = start(max_tokens=300)
    session.send("When do you open?").result(60)
    head, count = session.conversation.head, len(session.conversation.nodes)
    job = session.retry_many(3)
    events = []
    for event in job:
        events.append(event)
        if isinstance(event, BatchProgress) and event.num_tokens > 6:
            job.cancel()
    assert not [event for event in events if isinstance(event, TextDelta)]
    with pytest.raises(JobCancelledError):
        job.result(60)
    assert (session.conversation.head, len(session.conversation.nodes)) == (head, count)
    assert session.send("And now?").result(60).verify.holds


@pytest.mark.parametrize("together", [True, False])
def test_ctrl_c_keeps_those_that_have_ended(start, together, monkeypatch):
    """They can be chosen; the others were stopped, and nothing of them stays."""
    if not together:
        monkeypatch.setattr("mlxchat.chat.alternatives.can_batch", lambda *_: False)
    session = start(max_tokens=40)
    session.send("When do you open?").result(60)
    num_nodes, make, made = len(session.conversation.nodes), TurnRunner.make_decoder, []

    def prepare(runner, reading, context, sampler):
        decoder = make(runner, reading, context, sampler)
        made.append(decoder)
        step = decoder.step

        def wait(token):
            while not context.cancelled:
                time.sleep(0.001)
            return step(token)

        # The first ends with its first token; the others then wait for Ctrl-C.
        monkeypatch.setattr(decoder, "step", wait if len(made) > 1 else lambda _: "eos_token")
        return decoder

    monkeypatch.setattr(TurnRunner, "make_decoder", prepare)
    job = session.retry_many(3)
    for event in job:
        if isinstance(event, BatchProgress) and event.done == 1:
            job.cancel()
    offered = job.result(60)
    assert len(offered.results) == 1
    assert [type(error) for error in offered.errors] == [JobCancelledError] * 2
    assert len(session.conversation.nodes) == num_nodes + 1
    monkeypatch.undo()
    session.choose(offered, 0)
    assert session.send("And now?").result(60).verify.holds


def test_a_thinking_budget_is_kept(start):
    """Where thinking must be closed they are decoded one by one, and are the same as retries."""
    options = {"template": REASONING, "max_tokens": 40, "think_budget": 5}
    single, many = start(**options), start(**options)
    single.send("Hello.").result(60)
    many.send("Hello.").result(60)
    expected = [single.retry().result(60) for _ in range(3)]
    offered = many.retry_many(3).result(60)
    assert [r.tokens for r in offered.results] == [r.tokens for r in expected]


@pytest.mark.parametrize("asks", [True, False])
def test_all_of_them_are_in_the_history(start, asks):
    """Each has a turn of its own with its figures; the head is the first, or the chosen one."""
    recorder = Recorder("chat")
    session = start(max_tokens=20, recorder=recorder)
    if asks:
        offered = session.send_many("Hello there.", 3).result(60)
    else:
        session.send("Hello there.").result(60)
        offered = session.retry_many(3).result(60)
    with contextlib.closing(History()) as found:
        stored = found.record(1)
        turns = stored.turns[-3:]
        answers = {message.id: message.content for message in stored.messages}
        assert [answers[turn.answer] for turn in turns] == texts(offered)
        assert [turn.result for turn in turns] == [
            json.loads(json.dumps(result.to_json())) for result in offered.results
        ]
        assert {turn.state for turn in turns} == {"done"}
        assert stored.head == turns[0].answer
        shape = [(n.parent, n.message.content) for n in session.conversation.nodes.values()]
        again = found.restore(1).conversation.nodes.values()
        assert [(n.parent, n.message.content) for n in again] == shape
    session.choose(offered, 3)
    with contextlib.closing(History()) as found:
        assert found.record(1).head == turns[2].answer


# -- some fail


@pytest.fixture
def stick(monkeypatch):
    """Has the answers of some places come to where their grammar allows nothing."""
    make = TurnRunner.make_decoder

    def stick(*places):
        made = []

        def hold(runner, reading, context, sampler):
            if len(made) in places:
                sampler.constraint = StuckConstraint(2)
            made.append(reading)
            return make(runner, reading, context, sampler)

        monkeypatch.setattr(TurnRunner, "make_decoder", hold)

    return stick


@pytest.mark.parametrize("together", [True, False])
def test_one_that_fails_leaves_the_others(start, stick, together, monkeypatch):
    """An answer that cannot go on is told of; the others are what they are without it."""
    if not together:
        monkeypatch.setattr("mlxchat.chat.alternatives.can_batch", lambda *_: False)
    options = {"max_tokens": 20}
    expected, session = start(**options), start(**options)
    for one in (expected, session):
        one.send("When do you open?").result(60)
    wanted = expected.retry_many(3).result(60)
    stick(1)
    offered = session.retry_many(3).result(60)
    assert [str(error) for error in offered.errors] == ["the answer cannot go on"]
    assert texts(offered) == [wanted.results[0].text, wanted.results[2].text]
    session.choose(offered, 2)
    assert session.send("And now?").result(60).verify.holds


def test_where_all_fail_that_is_the_error(start, stick):
    """The question stands as it did, and the old answer with it."""
    session = start(max_tokens=20)
    session.send("When do you open?").result(60)
    head, num_nodes = session.conversation.head, len(session.conversation.nodes)
    stick(0, 1)
    with pytest.raises(MlxchatError, match="the answer cannot go on"):
        session.retry_many(2).result(60)
    assert session.conversation.head == head
    assert len(session.conversation.nodes) == num_nodes
    assert session.send("And now?").result(60).verify.holds


@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_prints_those_that_have_ended(as_json):
    """In a pipe they are printed, a line says how many there are, and it ends as Ctrl-C does."""
    stopped = (JobCancelledError(), JobCancelledError())
    offered = Alternatives((make_result("red"),), (1,), errors=stopped)
    out, notes, worker = io.StringIO(), io.StringIO(), Worker()
    answers = Answers(FakeSession(None, ChatOptions()), Screen(out, notes), as_json=as_json)
    with contextlib.closing(worker), pytest.raises(KeyboardInterrupt):
        answers.give(lambda: worker.submit(lambda _: offered))
    if as_json:
        assert json.loads(out.getvalue())["text"] == "red"
    else:
        assert out.getvalue() == "[1]\nred\n"
    assert notes.getvalue() == "Stopped; 1 of 3 answers had ended.\n"


def test_one_that_cannot_end_leaves_the_others(start, monkeypatch):
    """Where memory is short all end with what they have; one that cannot has an error instead."""
    session, looks, made, make = start(max_tokens=20), [], [], TurnRunner.make_decoder
    session.send("When do you open?").result(60)

    def spoil(*arguments):
        made.append(make(*arguments))
        if len(made) == 2:
            monkeypatch.setattr(made[-1], "finish", fail)
        return made[-1]

    def fail(*_):
        raise MlxchatError("it cannot end")

    def watch(batch, check):
        def look():
            looks.append(check())
            if len(looks) == 4:
                raise MemoryShortError("memory is short")

        return look

    monkeypatch.setattr(TurnRunner, "make_decoder", spoil)
    monkeypatch.setattr(session.runner.memory, "watch_batch", watch)
    offered = session.retry_many(3).result(60)
    assert [str(error) for error in offered.errors] == ["it cannot end"]
    assert [r.stop_reason for r in offered.results] == ["context_full"] * 2


def test_those_that_failed_are_told_of(stick):
    """`--samples` prints the others, says how many failed and why, and its exit code is 1."""
    stick(0)
    arguments = ["generate", "tell me a story", "--samples", "3", "--max-tokens", "5", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == "Error: 1 of 3 answers failed: the answer cannot go on\n"


# -- shown, and chosen from


@pytest.fixture
def chat():
    with chats() as make:
        yield make()


@pytest.mark.parametrize(
    ("keys", "number", "said"),
    [
        (ENTER, 1, "Answer 1 it is"),
        (f"2{ENTER}", 2, "Answer 2 it is"),
        (f"9{ENTER}\x15 3 {ENTER}", 3, "Answer 3 it is"),
        (f"x{ENTER}{CTRL_C}", 0, "The old answer stays; /tree shows the others."),
        (CTRL_C, 0, "The old answer stays"),
    ],
)
def test_the_person_chooses(chat, keys, number, said):
    """After /retry N the answers stand there with their numbers, and a number takes one."""
    shown = chat.run(f"hi{ENTER}/retry 3{ENTER}{keys}")
    for count in (1, 2, 3):
        assert f"[{count}] " in shown
        assert f"hi answer {count}" in shown
    assert said in shown
    assert chat.session.chosen == number


def test_once_is_a_plain_retry(chat):
    """/retry 1 is /retry, and a number out of range is an error that names the range."""
    shown = chat.run(f"hi{ENTER}/retry 1{ENTER}/retry 65{ENTER}")
    assert chat.session.sent == ["hi again"]
    assert "65 answers are not allowed; give a number from 1 to 64" in shown


def test_a_preview_is_cut():
    """A long answer shows its first rows, broken between words, and how many there are more."""
    long = make_result("one two three four five six seven\n" * 4)
    head, *rows = format_preview(2, long, 20).split("\n")
    assert head.startswith("[2] ")
    assert rows[0] == "one two three four"
    assert rows[PREVIEW_ROWS:] == ["... 2 more rows"]
    assert all(len(row) <= 20 for row in rows)
    short = format_preview(1, make_result("yes"), 20).split("\n")
    assert short[1:] == ["yes"]
    assert "\x1b" not in format_preview(1, make_result("\x1b[31mred"), 20)


def run(*arguments, text=""):
    result = CliRunner().invoke(cli, [*arguments], input=text)
    assert result.exit_code == 0, result.stderr
    return result.stdout, result.stderr


def test_in_a_pipe_all_are_printed():
    """Piped, /retry N prints all with their numbers, keeps the first and says so."""
    out, said = run("chat", "--temp", "0", text="what is my name?\n/retry 2\n")
    answer, *rest = out.splitlines()
    assert rest == ["[1]", answer, "", "[2]", answer]
    assert "2 answers; the first is kept, /tree shows the others." in said


def test_samples():
    """`generate --samples N` prints N answers; with --json one object each, in order."""
    options = ["--samples", "3", "--temp", "1.5", "--top-p", "1", "--seed", "5"]
    out, _ = run("generate", "tell me a story", *options, "--max-tokens", "12")
    parts = out.rstrip("\n").split("\n\n")
    assert [part.split("\n")[0] for part in parts] == ["[1]", "[2]", "[3]"]
    lines, said = run(
        "generate", "tell me a story", *options, "--max-tokens", "12", "--json", "--verify"
    )
    objects = [json.loads(line) for line in lines.splitlines()]
    assert [f"[{n}]\n{o['text']}" for n, o in enumerate(objects, start=1)] == [
        part.rstrip("\n") for part in parts
    ]
    assert len({o["text"] for o in objects}) == 3
    assert all(o["verify"]["tokens_equal"] for o in objects)
    assert "kept" not in said
