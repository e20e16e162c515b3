"""What a turn says about itself: the reason of its reuse, and notices of switches."""

import re
from contextlib import closing
from dataclasses import replace

import pytest
from tiny import KINDS, REASONING, TinySession, biased, checked, make_tiny_folder, mx

from mlxchat.chat.reasons import RereadReasons
from mlxchat.chat.results import LoadProgress
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import CheckpointError, ContextFullError, TemplateError
from mlxchat.model.hub import resolve_model

NO_SWITCH = "this model's template has no switch to turn thinking off"


@pytest.fixture
def folder(tmp_path):
    return make_tiny_folder(tmp_path / "model")


@pytest.fixture
def thinking(tmp_path):
    """A session whose first turn ended inside its thinking, which the template then drops."""
    with_thinking = make_tiny_folder(tmp_path / "thinking", template=REASONING)
    session = TinySession(with_thinking, sampling=biased())
    result = session.say("hello")
    assert result.reasoning
    runner = session.runner
    session._worker.run(lambda context: runner.idle.settle(session.conversation, context))
    yield session
    session.close()


def test_what_the_template_dropped_is_named_where_the_next_turn_goes_on(thinking):
    """After idle work the next turn says what the template dropped of the last one."""
    reason = thinking.say("and now").cache.reason
    assert "the template dropped or moved" in reason


def test_the_template_is_named_where_it_changes_what_was_read(thinking):
    """A template that drops thinking is the cause, also where no idle work came before."""
    thinking.say("and now")
    reason = thinking.say("and then").cache.reason
    assert re.search(r"\(the template: \d+ cached ids no longer stand in the prompt\)", reason)


@pytest.mark.parametrize("settles", [False, True])
def test_a_stop_string_is_named(folder, settles):
    """What a stop string cut off was read, and does not stand in the next prompt; no more goes."""
    plain = TinySession(folder, max_tokens=60)
    pieces = [plain.runner.tokenizer.decode([i]) for i in plain.say("hello").tokens]
    plain.close()
    at = next(i for i, piece in enumerate(pieces) if i and piece in ("th", "er", "of", "ing"))
    stop = pieces[at][1:] + pieces[at + 1]
    session = TinySession(folder, max_tokens=60, stop=(stop,))
    first = session.say("hello")
    assert (len(first.tokens), first.text[-1]) == (at + 2, pieces[at][0])
    if settles:
        session.settle()
    follow = session.say("and now")
    lost = "dropped or moved 2 ids" if settles else "2 cached ids no longer"
    assert re.search(rf"\(the stop string:? {lost}", follow.cache.reason)
    if not settles:
        assert follow.usage.cached_tokens == first.usage.prompt_tokens + at
    session.close()


@pytest.mark.parametrize("settles", [False, True])
def test_the_tokenizer_is_named(settles):
    """Text that begins without the blank that the tokenizer puts there is encoded anew."""
    with closing(TinySession(resolve_model(None).path, max_tokens=20)) as session:
        (bracket,) = session.runner.tokenizer.encode("(", is_continuation=True)
        session.set_options(replace(session.options, sampling=biased((bracket, 1e9))))
        assert session.say("hello").text == "(" * 20
        if settles:
            session.settle()
        follow = checked(session, session.send("and now"))
    moved = r" dropped or moved \d+ ids of the last turn(; \d+ were read since)?\)"
    assert re.search(rf"\(the tokenizer{moved if settles else ': '}", follow.cache.reason)


@pytest.mark.parametrize(
    ("num_read", "is_respelled", "expected"),
    [
        (0, False, "the template dropped or moved 90 ids of the last turn"),
        (5, False, "the template dropped or moved 90 ids of the last turn"),
        (40, True, "the tokenizer dropped or moved 90 ids of the last turn; 40 were read since"),
    ],
)
def test_what_idle_time_read_again_is_told(num_read, is_respelled, expected):
    """What was lost and read again is told where it is more than every turn begins with."""
    reasons = RereadReasons(is_respelled=is_respelled)
    reasons.note_lost(90, num_read, "")
    assert reasons.settled == expected
    reasons.note_lost(90, num_read, "/undo")
    assert not reasons.settled


CHANGES = {
    "/system": lambda session: session.set_system("Be brief."),
    "/undo": lambda session: session.undo(),
    "/goto": lambda session: session.goto(2),
    "/think": lambda session: session.set_thinking(False),
    "/set keep-thinking": lambda session: session.set_options(
        replace(session.options, keep_thinking=True)
    ),
    "/reset": lambda session: session.reset(),
    "a stopped turn": lambda session: session.interrupted(
        lambda: session.send("a long message that is read in two chunks or more"), 1
    ),
}
ALWAYS = REASONING.replace("{% for", "{{ enable_thinking }}{{ preserve_thinking }}{% for", 1)


@pytest.mark.parametrize("cause", CHANGES)
def test_a_turn_that_reads_again_names_what_was_changed(cause, tmp_path):
    """Every change that a person makes is named by the turn after it, and by no later one."""
    session = TinySession(make_tiny_folder(tmp_path / "m", template=ALWAYS), sampling=biased())
    session.say("hello")
    session.say("and now")
    CHANGES[cause](session)
    reason = session.say("and then").cache.reason
    assert re.search(rf"\({cause}: (\d+ cached ids no longer|nothing in common)", reason)
    assert cause not in session.say("and on").cache.reason
    session.close()


@pytest.mark.parametrize("cause", ["/retry", "/edit", "/continue"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_that_goes_back_names_itself(cause, kind, tmp_path):
    """/retry and /edit lose the ids of the answer, /continue those of the settled end."""
    tiny = "full" if kind == "recurrent" else kind
    session = TinySession(make_tiny_folder(tmp_path / "m", tiny), kind, sampling=biased())
    session.say("hello")
    session.say("and now")
    session.settle()
    ways = {
        "/retry": session.retry,
        "/edit": lambda: session.edit(2, "or"),
        "/continue": session.go_on,
    }
    reason = checked(session, ways[cause]()).cache.reason
    assert f"({cause}: " in reason
    session.close()


def test_changes_before_one_turn_are_all_named(folder):
    """Each once, in their order; a turn that was stopped leaves them to the next."""
    session = TinySession(folder)
    session.say("hello")
    session.set_system("Be brief.")
    session.set_system("Be short.")
    with pytest.raises(JobCancelledError):
        session.interrupted(session.retry, 0).result()
    reason = session.say("and now").cache.reason
    assert "(/system, /retry, a stopped turn: the whole cached sequence goes on)" in reason
    session.close()


def test_another_model_is_named(folder, tmp_path):
    """Where idle work read everything again with another model, the next turn says so."""
    session = Session(str(folder), ChatOptions(max_tokens=8))
    session.send("hello").result()
    session.switch_model(str(make_tiny_folder(tmp_path / "other", "window"))).result()
    session.wait_until_idle()
    reason = session.send("and now").result().cache.reason
    assert "(/model: no keys and values were stored, the text was read again)" in reason
    session.close()


def test_idle_work_knows_what_was_changed(thinking):
    """The template is not blamed where the person went elsewhere before the idle work."""
    thinking.set_system("Be brief.")
    thinking._settle_when_idle()
    thinking.wait_until_idle()
    assert "template" not in thinking.say("and now").cache.reason


def test_a_switch_that_a_template_lacks_is_told_each_time_it_is_asked_for(folder):
    """Asking again gets the same answer, and the turn does not repeat it."""
    session = TinySession(folder, keep_thinking=True)  # what that finds is told at the load
    assert session.set_thinking(False) == [NO_SWITCH]
    assert session.set_thinking(False) == [NO_SWITCH]
    events = list(session.send("hello"))
    assert not [event for event in events if getattr(event, "text", "") == NO_SWITCH]
    session.close()


def test_thinking_switched_during_the_load_counts(tmp_path):
    """What is changed while the model is loaded holds for the first turn."""
    template = "{% if enable_thinking is false %}no {% endif %}" + REASONING
    session = Session(str(make_tiny_folder(tmp_path / "m", template=template)), ChatOptions())
    job = session.load()
    for event in job:
        if isinstance(event, LoadProgress):
            session.set_thinking(False)
    job.result()
    assert session._runner.renderer.template.kwargs == {"enable_thinking": False}
    session.close()


def test_a_full_context_names_only_what_helps(folder):
    """--max-context is named where more is to be had, and a larger one than the model's is told."""
    question = "word " * 400
    small = TinySession(folder, max_context=64)
    with pytest.raises(ContextFullError, match="or raise --max-context"):
        small.send(question).result()
    small.close()
    large = TinySession(folder, max_context=5000)
    with pytest.raises(ContextFullError, match="start over with /reset"):
        large.send(question * 3).result()
    assert "--max-context 5000 is more than this model's 1 024" in large.info.notices
    large.close()


def test_an_empty_conversation_uses_no_context(folder):
    """After /reset, and after taking everything back, the meter shows nothing."""
    session = TinySession(folder)
    session.say("hello")
    assert session.context_used > 0
    session.undo()
    assert session.context_used == 0
    session.say("hello")
    session.reset()
    assert session.context_used == 0
    session.close()


def test_an_empty_prompt(tmp_path):
    """A template that renders nothing is an error of the template."""
    session = TinySession(make_tiny_folder(tmp_path / "model", template=""))
    with pytest.raises(TemplateError, match="renders an empty prompt; fix or replace it"):
        session.send("hello").result()
    session.close()


def test_weights_that_are_no_numbers(tmp_path):
    """A model that computes NaN is refused at the load, before it writes nonsense."""
    folder = make_tiny_folder(tmp_path / "model")
    weights = mx.load(str(folder / "model.safetensors"))
    weights["model.norm.weight"] *= float("nan")
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    session = Session(str(folder), ChatOptions())
    with pytest.raises(CheckpointError, match=r"no numbers \(NaN\); fetch the model again"):
        session.load().result()
    session.close()
