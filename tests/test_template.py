"""Rendering: byte for byte what transformers renders, and what happens where it cannot."""

import time
from datetime import datetime

import pytest
from small_templates import DATED, EXACT, SMALL_TEMPLATES, SYSTEM_DROPPED, TRIMMED
from template_fixtures import SKIP_REASON, Example, examples, real_examples, stand_in

from mlxchat.chat import jinja_env
from mlxchat.chat.template import ChatTemplate, Message
from mlxchat.errors import TemplateError

NOW = datetime(2025, 3, 4, 5, 6)
SYSTEM = {"role": "system", "content": "You are Bob.\nBe brief."}
USER = {"role": "user", "content": "  Hello <b>&amp;</b> 你好 '\"\n"}
ANSWER = {"role": "assistant", "content": "\n\nHi there.\n\nBye. "}
THOUGHT = ANSWER | {"reasoning_content": "\nLet me see.\n"}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "no-system": [USER, ANSWER, USER],
    "thought": [USER, THOUGHT, USER],
    "thought-last": [SYSTEM, USER, THOUGHT, USER, THOUGHT],
    "reasoning": [USER, ANSWER | {"reasoning": "Well"}, USER],
    "thinking": [USER, ANSWER | {"thinking": "Well", "name": None}, USER],
    "inline": [USER, ANSWER | {"content": "<think>\nHm\n</think>\n\nHi"}, USER],
    "empty": [USER, {"role": "assistant", "content": ""}, USER],
    "two-users": [USER, USER],
    "late-system": [USER, ANSWER, SYSTEM, USER],
    "tool-response": [USER, {"role": "user", "content": "<tool_response>x</tool_response>"}],
    "odd-role": [{"role": "wizard", "content": "hm"}],
    "system-only": [SYSTEM],
}
KWARGS = [
    {},
    {"enable_thinking": True, "thinking": True, "reasoning": True},
    {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_budget": 0},
    {"preserve_thinking": True, "clear_thinking": False, "reasoning_effort": "high"},
]


@pytest.fixture(scope="module", name="peer")
def peer_fixture():
    """`apply_chat_template` of transformers with a frozen date."""
    transformers = pytest.importorskip("transformers")
    from transformers.utils import chat_template_utils

    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    patch = pytest.MonkeyPatch()
    patch.setattr(chat_template_utils, "datetime", Frozen)

    def make(example: Example):
        backend = stand_in(example)._backend
        names = {"eos_token": example.stops[0]}
        names |= {"bos_token": example.bos} if example.bos else {}
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)

        def render(messages, add_generation_prompt, kwargs):
            return tokenizer.apply_chat_template(
                messages,
                chat_template=example.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **kwargs,
            )

        return render

    yield make
    patch.undo()


def outcome(call, *args, **kwargs):
    """What a render gives: its text, or the message of what it raised."""
    try:
        return call(*args, **kwargs)
    except TemplateError as error:
        return ("raised", str(error).removeprefix("the chat template refuses this conversation: "))
    except Exception as error:
        return ("raised", " ".join(str(error).split()))


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_same_text_and_errors_as_transformers(example, peer):
    """Every conversation, with every switch, renders to the same bytes or raises the same."""
    theirs = peer(example)
    special = stand_in(example).special_tokens
    num_texts = 0
    for kwargs in KWARGS:
        ours = ChatTemplate(example.source, special_tokens=special, kwargs=kwargs, now=NOW)
        for name, messages in CONVERSATIONS.items():
            for prompt in (True, False):
                got = outcome(ours.render, messages, add_generation_prompt=prompt)
                expected = outcome(theirs, messages, prompt, kwargs)
                assert got == expected, (name, kwargs, prompt)
                num_texts += isinstance(got, str)
    assert num_texts > 20


@pytest.mark.skipif(not real_examples(), reason=SKIP_REASON)
def test_the_real_templates_are_all_there():
    """The folder of real templates is read in full."""
    assert len(real_examples()) >= 38


LANGUAGE = {
    "json": "{{ [1, 'ä<>&', {'b': none}] | tojson }}{{ {'z': 1, 'a': 2} | tojson(indent=2) }}",
    "json-options": "{{ {'z': 'é', 'a': 2} | tojson(ensure_ascii=true, sort_keys=true) }}",
    "separators": "{{ {'z': 1} | tojson(separators=(',', ':')) }}",
    "break": "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "continue": "{% for i in range(5) %}{% if i % 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "generation": "{% generation %}a{{ messages[0].content }}{% endgeneration %}b",
    "generation-scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}",
    "namespace": "{% set n = namespace(self=1, a=2) %}{% set n.a = 3 %}{{ n.a }}",
    "namespace-private": "{% set n = namespace(_x=1) %}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys([1, 2], 3) }}{{ dict.__class__ }}",
    "date": "{{ strftime_now('%Y-%m-%d %H:%M') }}{{ strftime_now is defined }}",
    "date-in-macro": "{% macro m() %}{{ strftime_now('%Y') }}{% endmacro %}{{ m() }}",
    "raise": "{{ raise_exception('no\n  good') }}",
    "undefined": "{{ messages[0].nothing.at_all }}",
    "no-tools": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ missing }}",
    "immutable": "{{ messages.append(1) }}",
    "escape": "{{ ''.__class__.__mro__ }}",
    "escape-format": "{{ '{0.__class__}'.format(messages) }}",
    "trim": "a\n  {% if true %}\n  b\n  {% endif %}\nc",
    "division": "{{ 1 / 0 }}",
    "tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}",
    "range": "{{ range(1000000)|length }}",
    "recursion": "{% macro m(n) %}{{ n }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_language_is_the_same(name, peer):
    """Each feature that templates use behaves as in transformers, errors included."""
    source = LANGUAGE[name]
    example = Example(name, source)
    ours = ChatTemplate(source, special_tokens=stand_in(example).special_tokens, now=NOW)
    theirs = peer(example)
    expected = outcome(theirs, [USER], True, {})
    got = outcome(ours.render, [USER])
    if isinstance(expected, str):
        assert got == expected
    else:
        assert got[0] == "raised"
        if name in ("raise", "undefined", "division", "immutable"):
            assert got == expected


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ unclosed", "{% for x in y %}", "{{ x | no_such_filter }}", "{% x %}"]
)
def test_a_broken_template_is_named_in_one_line(source):
    """A syntax error says where it is."""
    with pytest.raises(TemplateError, match=r"broken in line 1: .+; fix or replace it") as caught:
        ChatTemplate(source).render([USER])
    assert "\n" not in str(caught.value)
    with pytest.raises(TemplateError):
        _ = ChatTemplate(source).switches


def test_an_empty_conversation_is_refused():
    """There is nothing to render without a message."""
    with pytest.raises(TemplateError, match="no message"):
        ChatTemplate(EXACT).render([])


def test_a_template_that_writes_without_end_is_stopped(monkeypatch):
    """Too much output ends in an error, soon."""
    monkeypatch.setattr(jinja_env, "MAX_OUTPUT_CHARS", 10_000)
    endless = (
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"
    )
    start = time.monotonic()
    with pytest.raises(TemplateError, match="without end"):
        ChatTemplate(endless).render([USER])
    assert time.monotonic() - start < 5


def test_a_template_that_computes_without_end_is_stopped(monkeypatch):
    """Where next to nothing is written, the time that the template itself took ends it."""
    monkeypatch.setattr(jinja_env, "MAX_RENDER_S", 0.01)
    nothing = "{{ messages[0].no_such_field or '' }}"
    endless = f"{{% for a in range(99999) %}}{{% for b in range(99999) %}}{nothing}" + (
        "{% endfor %}{% endfor %}"
    )
    with pytest.raises(TemplateError, match="without end"):
        ChatTemplate(endless).render([USER])


def test_the_date_is_frozen_for_the_conversation():
    """A chat over midnight keeps the date of its first turn."""
    template = ChatTemplate(DATED, special_tokens={"eos_token": "</s>"}, now=NOW)
    assert "04 March 2025" in template.render([USER])
    assert "04 March 2025" in template.with_thinking(True).render([USER])


def test_a_system_text_goes_before_the_first_message_where_there_is_no_role():
    """Templates that raise on a system message, or drop it, get it merged, with one notice."""
    for source in (TRIMMED, SYSTEM_DROPPED):
        template = ChatTemplate(source, special_tokens={"bos_token": "<s>"})
        messages = [
            Message("system", "Be brief."),
            Message("user", "Hi"),
            Message("assistant", "Yo"),
        ]
        text = template.render_messages([*messages, Message("user", "Bye")])
        assert "Be brief.\n\nHi" in text
        assert text.count("Be brief.") == 1
        template.render_messages(messages)
        assert [note for note in template.notices if "no system role" in note] == template.notices
        assert len(template.notices) == 1


def test_a_system_role_that_exists_is_used():
    """No notice and no merging where the template shows the system message."""
    template = ChatTemplate(EXACT)
    text = template.render_messages([Message("system", "S"), Message("user", "U")])
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.notices == []


def test_a_template_that_raises_on_everything_keeps_its_own_message():
    """The system fallback does not hide what is really wrong."""
    template = ChatTemplate("{{ raise_exception('never') }}")
    with pytest.raises(TemplateError, match="never"):
        template.render_messages([Message("system", "S"), Message("user", "U")])


def test_without_a_template_a_plain_form_is_used():
    """A model without template gets ChatML if it knows the tokens, else names and colons."""
    plain = stand_in(Example("none", ""))
    plain.chat_templates.clear()
    template = ChatTemplate.for_tokenizer(plain)
    messages = [Message("system", "S"), Message("user", "U"), Message("assistant", "A")]
    assert template.render_messages([*messages, Message("user", "V")]) == (
        "<s>S\n\nUser: U\n\nAssistant: A</s>\n\nUser: V\n\nAssistant:"
    )
    assert "no chat template" in template.notices[0]
    chatml = stand_in(Example("none", "<|im_start|> <|im_end|>"))
    chatml.chat_templates.clear()
    template = ChatTemplate.for_tokenizer(chatml)
    text = template.render_messages([Message("user", "U")])
    assert text == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert "ChatML" in template.notices[0]


def test_reasoning_travels_in_the_fields_that_templates_read():
    """A message hands its thinking over under all usual names; inline thinking as content."""
    message = Message("assistant", "A", reasoning="R")
    fields = {"role": "assistant", "content": "A", "reasoning_content": "R", "reasoning": "R"}
    assert message.fields == {"thinking": "R", **fields}
    assert ChatTemplate("{{ messages[0].thinking }}").render([fields]) == "R"
    template = ChatTemplate("{{ messages[0] | tojson }}")
    assert template.render([fields]) == template.render_messages([message])
    inline = Message("assistant", "A", reasoning="R", inline="<think>R</think>A")
    assert inline.fields == {"role": "assistant", "content": "<think>R</think>A"}
    assert Message("assistant", "", reasoning="").fields == {"role": "assistant", "content": ""}


def test_switches_are_those_the_template_reads():
    """Only names that the template asks for are offered."""
    assert ChatTemplate(SMALL_TEMPLATES["think-stripped"]).switches == {"enable_thinking"}
    assert ChatTemplate(SMALL_TEMPLATES["think-opened"]).switches == {"preserve_thinking"}
    assert ChatTemplate(EXACT).switches == frozenset()


def test_thinking_is_left_to_the_template_unless_asked():
    """None sets nothing; on and off set the switch; a missing switch is said."""
    template = ChatTemplate(SMALL_TEMPLATES["think-stripped"])
    assert template.with_thinking(None).kwargs == {}
    off = template.with_thinking(False)
    assert off.kwargs == {"enable_thinking": False}
    assert off.render([USER]).endswith("<think>\n\n</think>\n\n")
    assert off.with_thinking(None).kwargs == {}
    plain = ChatTemplate(EXACT)
    assert "no switch to turn thinking off" in plain.with_thinking(False).notices[0]
    assert "no switch to turn thinking on" in plain.with_thinking(True).notices[0]
    for name in ("think-opened", "think-as-content", "harmony"):
        assert ChatTemplate(SMALL_TEMPLATES[name]).with_thinking(True).notices == [], name


def test_a_switch_that_changes_nothing_is_not_set():
    """A name that the template reads without effect does not count as a switch."""
    template = ChatTemplate(EXACT + "{% if enable_thinking %}{% endif %}")
    off = template.with_thinking(False)
    assert off.kwargs == {}
    assert len(off.notices) == 1


def test_thinking_is_kept_through_the_switch_of_the_template():
    """Old reasoning shows in the prompt after the right switch was found."""
    template = ChatTemplate(SMALL_TEMPLATES["think-opened"])
    assert not template.shows_reasoning()
    kept = template.with_thinking(None, keep_thinking=True)
    assert kept.kwargs == {"preserve_thinking": True}
    assert kept.shows_reasoning()
    assert ChatTemplate(SMALL_TEMPLATES["think-kept"]).shows_reasoning()
    inline = ChatTemplate(SMALL_TEMPLATES["think-as-content"], special_tokens={"eos_token": "</s>"})
    assert not inline.shows_reasoning()
    assert inline.shows_reasoning(inline=("[THINK]", "[/THINK]"))


@pytest.mark.skipif(not real_examples(), reason=SKIP_REASON)
def test_switches_of_real_templates_are_found():
    """On and keep follow the measured index for every template that thinks."""
    import json

    for example in real_examples():
        facts = example.facts["thinking_kwargs"]
        if facts == "-":
            continue
        wanted = json.loads(facts)
        template = ChatTemplate.for_tokenizer(stand_in(example))
        off = template.with_thinking(False)
        if wanted["off"] is None:
            assert off.kwargs == {}, example.name
            assert off.notices, example.name
        else:
            assert wanted["off"].items() <= off.kwargs.items(), example.name
            assert not off.notices, example.name
        kept = template.with_thinking(None, keep_thinking=True)
        if "keepable" in example.facts["append_class"]:
            assert kept.kwargs == wanted["keep"], example.name


def test_the_fingerprint_follows_what_decides_the_text():
    """Another switch, date or text gives another fingerprint; the same gives the same."""
    template = ChatTemplate(EXACT, now=NOW)
    assert template.fingerprint == ChatTemplate(EXACT, now=NOW.replace(hour=9)).fingerprint
    assert template.fingerprint == ChatTemplate(EXACT, now=NOW.replace(day=5)).fingerprint
    others = [
        ChatTemplate(DATED, now=NOW),
        ChatTemplate(DATED, now=NOW.replace(day=5)),
        template.with_kwargs({"enable_thinking": False}),
        ChatTemplate(EXACT, now=NOW, special_tokens={"bos_token": "<s>"}),
    ]
    assert len({template.fingerprint, *(other.fingerprint for other in others)}) == 5
