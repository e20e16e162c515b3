"""What a turn says about itself: the reason of its reuse, and notices of switches."""

import pytest
from tiny import REASONING, TinySession, biased, make_tiny_folder, mx

from mlxchat.chat.results import LoadProgress
from mlxchat.chat.session import ChatOptions, Session
from mlxchat.errors import CheckpointError, ContextFullError, TemplateError

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
    session._worker.run(lambda context: runner.settle(session.conversation, context))
    yield session
    session.close()


def test_what_the_template_dropped_is_named_where_the_next_turn_goes_on(thinking):
    """After idle work the next turn says what the template dropped of the last one."""
    reason = thinking.say("and now").cache.reason
    assert "the template dropped or moved" in reason


def test_the_template_is_not_blamed_for_another_change(thinking):
    """A turn that goes back for another reason, such as a system prompt, gives that one."""
    thinking.set_system("Be brief.")
    reason = thinking.say("and now").cache.reason
    assert "template" not in reason
    assert "cached ids no longer stand in the prompt" in reason


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
    assert "--max-context 5000 is more than this model's 1024" in large.info.notices
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
