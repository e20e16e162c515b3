"""Thinking and answer come apart at the markers, however the tokens fall."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_templates import SMALL_TEMPLATES
from template_fixtures import Example, stand_in

from mlxchat.chat.reasoning import ReasoningSplitter
from mlxchat.chat.reasoning_markers import Markers, find_markers, is_closed_by, opened_by
from mlxchat.chat.template import ChatTemplate

# In `PLAIN` the markers are ordinary text; in `CONTROL` they are special tokens.
PLAIN = stand_in(Example("plain", "no markers"))
CONTROL = stand_in(
    Example(
        "control",
        "<think> </think> <|channel|> <|message|> <|end|> <|start|> <|return|> "
        "<|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|> <|END_RESPONSE|>",
    )
)
THINK = Markers("<think>", ("</think>",))
PARTS = ["Let me see.\n", "ab", " ", "\n", "<", "</", "think>", "</thin", "你好", "🙂", "x = 1"]


def split(tokenizer, markers, ids, prompt=""):
    """All deltas and the result of a stream."""
    splitter = ReasoningSplitter(tokenizer, markers, prompt)
    deltas = [delta for token_id in ids for delta in splitter.push(token_id)]
    last, result = splitter.finish()
    return deltas + last, result


def char_ids(tokenizer, text):
    """Ids that cut a text into single bytes, so that markers fall apart; control tokens stay."""
    ids = []
    for token_id in tokenizer.encode(text):
        if token_id in tokenizer.special_ids:
            ids.append(token_id)
        else:
            spelled = tokenizer.spelling(token_id)
            ids += [tokenizer.token_id(char) for char in spelled]
    return ids


@pytest.mark.parametrize("cut", [lambda t, text: t.encode(text), char_ids], ids=["ids", "bytes"])
@pytest.mark.parametrize("tokenizer", [PLAIN, CONTROL], ids=["text", "control"])
def test_thinking_comes_apart_from_the_answer(tokenizer, cut):
    """Markers are found as control tokens and as text spread over many tokens."""
    ids = cut(tokenizer, "<think>\nLet me see. 🙂\n</think>\n\nHello there.\n")
    deltas, result = split(tokenizer, THINK, ids)
    assert result.reasoning == "Let me see. 🙂"
    assert result.text == "Hello there.\n"
    assert result.token_ids == tuple(ids)
    assert "".join(d.text for d in deltas if d.kind == "reasoning") == result.reasoning
    assert "".join(d.text for d in deltas if d.kind == "answer") == result.text


def test_the_ids_of_thinking_are_counted():
    """While it streams the thinking's ids are counted; the answer's and the markers' are not."""
    splitter = ReasoningSplitter(CONTROL, THINK)
    ids = CONTROL.encode("<think>\nLet me see.\n</think>\n\nHello there")
    counts = []
    for token_id in ids:
        splitter.push(token_id)
        counts.append(splitter.num_reasoning_tokens)
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == len(splitter.finish()[1].reasoning_ids) < len(ids)


def test_the_ids_of_the_parts_keep_the_white_space_of_the_markers():
    """Ids are never cut: what lies between the markers is there to be put back."""
    ids = CONTROL.encode("<think>\nHm\n</think>\n\nHello")
    _, result = split(CONTROL, THINK, ids)
    assert CONTROL.decode(result.reasoning_ids) == "\nHm\n"
    assert CONTROL.decode(result.content_ids) == "\n\nHello"


@pytest.mark.parametrize("prompt", ["user\nassistant\n<think>\n", "assistant <think>"])
def test_a_prompt_that_opened_thinking(prompt):
    """Without an opener in the stream the first text is thinking."""
    ids = CONTROL.encode("Hm, well\n</think>\n\nHello")
    deltas, result = split(CONTROL, THINK, ids, prompt)
    assert (result.reasoning, result.text) == ("Hm, well", "Hello")
    assert result.opened == prompt[prompt.index("<think>") :]
    assert deltas[0].kind == "reasoning"


def test_a_prompt_that_closed_thinking():
    """An empty think block at the end of the prompt opens nothing."""
    prompt = "assistant\n<think>\n\n</think>\n\n"
    assert opened_by(THINK, prompt) is None
    assert is_closed_by(THINK, prompt)
    _, result = split(CONTROL, THINK, CONTROL.encode("Hello"), prompt)
    assert (result.reasoning, result.text) == (None, "Hello")


@pytest.mark.parametrize("text", ["Hello <think>not</think>", "  <thin air", "<", "\n\n", ""])
def test_an_answer_without_thinking_is_left_alone(text):
    """Markers count only at the start; what looked like one is given out in full."""
    deltas, result = split(PLAIN, THINK, PLAIN.encode(text))
    assert (result.reasoning, result.text) == (None, text)
    assert "".join(delta.text for delta in deltas) == text


def test_a_limit_inside_thinking_leaves_an_empty_answer():
    """What was thought so far is kept as reasoning; nothing held back is lost."""
    for end in ("", " ", "\n", "</th"):
        _, result = split(PLAIN, THINK, PLAIN.encode("<think>\nLet me" + end))
        assert (result.reasoning, result.text) == ("Let me" + end, "")
        assert result.content_ids == ()


def test_thinking_that_is_empty():
    """An empty think block gives empty reasoning and the answer."""
    _, result = split(CONTROL, THINK, CONTROL.encode("<think>\n\n</think>\n\nHello"))
    assert (result.reasoning, result.text) == ("", "Hello")


def test_partial_markers_are_held_back():
    """Text that may become the closer is not given out as thinking."""
    splitter = ReasoningSplitter(PLAIN, THINK, "<think>")
    given = []
    for token_id in char_ids(PLAIN, "abc</think"):
        given += splitter.push(token_id)
    assert "".join(delta.text for delta in given) == "abc"
    assert splitter.is_thinking
    for token_id in char_ids(PLAIN, "s</think>x"):
        given += splitter.push(token_id)
    assert "".join(d.text for d in given if d.kind == "reasoning") == "abc</thinks"
    assert not splitter.is_thinking


def test_harmony_channels():
    """Analysis is thinking, final is the answer; the channel headers are neither."""
    template = ChatTemplate(SMALL_TEMPLATES["harmony"])
    markers = find_markers(template, CONTROL)
    link = "<|end|><|start|>assistant<|channel|>"
    text = (
        f"<|channel|>analysis<|message|>Hm.{link}analysis<|message|> Well.{link}final<|message|>Hi"
    )
    _, result = split(CONTROL, markers, CONTROL.encode(text), "<|start|>assistant")
    assert (result.reasoning, result.text) == ("Hm. Well.", "Hi")
    _, result = split(CONTROL, markers, CONTROL.encode("<|channel|>final<|message|>Hi"), "")
    assert (result.reasoning, result.text) == (None, "Hi")


def test_response_markers_are_no_part_of_the_answer():
    """Models that mark the answer too (Command-A) show neither marker."""
    markers = find_markers(ChatTemplate("<|START_THINKING|> <|END_THINKING|>"), CONTROL)
    text = "<|START_THINKING|>Hm<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>"
    _, result = split(CONTROL, markers, CONTROL.encode(text))
    assert (result.reasoning, result.text) == ("Hm", "Hi")
    text = "<|START_RESPONSE|>Hi<|END_RESPONSE|>"
    _, result = split(CONTROL, markers, CONTROL.encode(text))
    assert (result.reasoning, result.text) == (None, "Hi")


@settings(max_examples=200, deadline=None)
@given(
    thought=st.lists(st.sampled_from(PARTS), max_size=6).map("".join),
    answer=st.lists(st.sampled_from(PARTS), max_size=6).map("".join),
    control=st.booleans(),
    data=st.data(),
)
def test_no_text_is_lost_or_added(thought, answer, control, data):
    """For any thought and answer and any cut into ids, both come back whole."""
    tokenizer = CONTROL if control else PLAIN
    control_tokens = ("<think>", "</think>") if control else ()
    assume("</think>" not in thought and not any(t in thought + answer for t in control_tokens))
    text = f"<think>\n{thought}\n</think>\n\n{answer}"
    ids = tokenizer.encode(text) if data.draw(st.booleans()) else char_ids(tokenizer, text)
    _, result = split(tokenizer, THINK, ids)
    assert result.reasoning == thought
    assert result.text == answer


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, PLAIN.vocab_size - 1), max_size=25))
def test_a_plain_answer_is_the_full_decode(ids):
    """Without markers the text is exactly what the tokenizer decodes, for any ids."""
    _, result = split(PLAIN, THINK, ids)
    if result.reasoning is None:
        assert result.text == PLAIN.decode(ids)
        assert result.content_ids == tuple(ids)


@settings(max_examples=100, deadline=None)
@given(
    thought=st.lists(st.integers(0, 255), max_size=12),
    answer=st.lists(st.integers(0, 255), max_size=12),
)
def test_parts_decode_alone(thought, answer):
    """Each part's text is the decode of its own ids, broken bytes included."""
    markers = Markers("<think>", ("</think>",), after_opener="", before_closer="", after_closer="")
    first, last = (CONTROL.token_id(name) for name in ("<think>", "</think>"))
    _, result = split(CONTROL, markers, [first, *thought, last, *answer])
    assert result.reasoning == CONTROL.decode(thought)
    assert result.text == CONTROL.decode(answer)


def test_markers_are_read_off_the_template():
    """The white space that a template puts around the markers belongs to them."""
    kept = find_markers(ChatTemplate(SMALL_TEMPLATES["think-stripped"]), PLAIN)
    assert kept == Markers("<think>", ("</think>",))
    seed = ChatTemplate(SMALL_TEMPLATES["think-kept"], special_tokens={"bos_token": "<s>"})
    found = find_markers(seed, PLAIN)
    assert (found.opener, found.closers) == ("<seed:think>", ("</seed:think>",))
    assert (found.after_opener, found.before_closer, found.after_closer) == ("", "", "\n")
    as_content = find_markers(ChatTemplate(SMALL_TEMPLATES["think-as-content"]), PLAIN)
    assert as_content.opener == "[THINK]"


def test_markers_are_found_among_the_tokens():
    """Where the template is silent the vocabulary tells; else `<think>` is assumed."""
    silent = ChatTemplate(SMALL_TEMPLATES["exact"])
    seed = stand_in(Example("seed", "<seed:think> </seed:think>"))
    assert find_markers(silent, seed).opener == "<seed:think>"
    assert find_markers(silent, PLAIN).opener == "<think>"
