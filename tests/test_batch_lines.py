"""The lines of a batch file: what may stand in one, and the answers of a session to many."""

import contextlib
import json

import architectures
import pytest
from fakes import StuckConstraint
from tiny import CHATML, REASONING, VOCAB_SIZE, TinySession, make_tiny_folder

from mlxchat.chat.batch_lines import BatchLine, LineAnswer, read_lines
from mlxchat.chat.line_reading import LineReader
from mlxchat.chat.options import ChatOptions
from mlxchat.chat.results import BatchProgress, Notice, TextDelta
from mlxchat.chat.template import Message
from mlxchat.chat.turn import TurnRunner
from mlxchat.engine.engine import Engine
from mlxchat.engine.options import SamplingSettings
from mlxchat.engine.worker import JobCancelledError
from mlxchat.errors import ContextFullError, MemoryShortError
from mlxchat.model.zoo import ZooModel


def read_one(**fields):
    (line,) = read_lines(json.dumps(fields).encode())
    return line


# -- what may stand in a line


def test_a_line_with_everything():
    """Each field is taken; what is not said, or null, is left to the options."""
    line = read_one(
        id="a", prompt="hi", system="S", max_tokens=3, temperature=0, seed=5, stop="x", top_k=None
    )
    assert (line.error, line.id, line.question, line.system) == (None, "a", "hi", "S")
    options = line.choose_options(ChatOptions(stop=("y",), max_tokens=9))
    assert (options.max_tokens, options.stop) == (3, ("x",))
    assert options.sampling == SamplingSettings(temperature=0.0, seed=5)
    plain = read_one(prompt="hi").choose_options(ChatOptions(stop=("y",), max_tokens=9))
    assert (plain.max_tokens, plain.stop) == (9, ("y",))


def test_messages_become_a_conversation():
    """A system message at the start is the system prompt; the last message is the question."""
    said = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    line = read_one(messages=[{"role": role, "content": text} for role, text in said])
    conversation = line.make_conversation("of the options")
    assert conversation.messages() == [
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "b"),
    ]
    assert line.question == "c"
    assert read_one(prompt="c").make_conversation("of the options").system == "of the options"
    assert read_one(prompt="c", system="").make_conversation("of the options").system is None


def test_places_and_numbers():
    """Blank lines are left out; line breaks of Windows, a BOM and U+2028 do no harm."""
    data = '\ufeff{"prompt": "a"}\r\n\n  \r\n{"prompt": "b\u2028c"}'.encode()
    lines = read_lines(data)
    assert [(line.index, line.number, line.question) for line in lines] == [
        (0, 1, "a"),
        (1, 4, "b\u2028c"),
    ]


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": 1' + "0" * 5000 + "}", "not JSON"),
        ("3", "not an object"),
        ("{}", "it has no 'prompt'"),
        ({"prompt": "a", "messages": [USER]}, "both 'prompt' and 'messages'"),
        ({"promt": "a"}, "there is no field 'promt'"),
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": 3}, "'prompt' is no text"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": "a", "id": []}, "'id' is neither text nor a number"),
        ({"prompt": "a", "max_tokens": 0}, "'max_tokens' is 0; give a whole number >= 1"),
        ({"prompt": "a", "max_tokens": 2.0}, "'max_tokens' is 2.0"),
        ({"prompt": "a", "temperature": True}, "'temperature' is true; give a number >= 0"),
        ('{"prompt": "a", "temperature": NaN}', "'temperature' is NaN"),
        ('{"prompt": "a", "id": NaN}', "'id' is neither text nor a number"),
        ('{"prompt": "a", "id": -1e999}', "'id' is neither text nor a number"),
        ({"prompt": "a", "top_p": "1"}, "'top_p' is"),
        ({"prompt": "a", "stop": ["x", ""]}, "'stop' is neither"),
        ({"messages": {}}, "'messages' is no list"),
        ({"messages": []}, "the last message is not the user's"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "the last message is not"),
        ({"messages": [USER, {"role": "system", "content": "a"}]}, "stands behind others"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "there is no role 'robot'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "there is no role ['user']"),
        ({"messages": ["hi"]}, "a message is no object"),
        ({"messages": [{**USER, "name": "x"}]}, "a message is no object of two fields"),
        ({"messages": [{"role": "user", "content": None}]}, "'content' is no text"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, USER]}, "two system"),
    ],
)
def test_a_broken_line_says_what_is_wrong(raw, said):
    """The error names the line in the file, what is wrong, and what to give instead."""
    data = raw if isinstance(raw, str) else json.dumps(raw)
    good, bad, after = read_lines(f'{{"prompt": "a"}}\n{data}\n{{"prompt": "b"}}'.encode())
    assert (good.error, after.error, after.index) == (None, None, 2)
    assert str(bad.error).startswith("line 2: ")
    assert said in str(bad.error)
    assert "; " in str(bad.error)


def test_bytes_that_are_no_text_break_one_line():
    """A line that is not UTF-8 leaves the others as they are, and an id that is known is kept."""
    broken, named, good = read_lines(
        b'{"prompt": "\xff"}\n{"id": 7, "prompt": ""}\n{"prompt": "a"}'
    )
    assert "not UTF-8 (byte 12)" in str(broken.error)
    assert (named.id, good.error) == (7, None)


def test_without_a_seed_each_line_has_its_own():
    """Equal prompts get different answers, as they would alone; a seed makes them equal."""
    line, options = read_one(prompt="a"), ChatOptions()
    seeds = {line.choose_options(options).sampling.seed for _ in range(5)}
    assert len(seeds) == 5
    seeded = ChatOptions(sampling=SamplingSettings(seed=4))
    assert line.choose_options(seeded).sampling.seed == 4


# -- answers


KINDS = ["full", "window", "recurrent"]
PROMPTS = [
    "Hello.",
    "When do you open on Sundays, and is there a ship?",
    "Why?",
    "the end of the day is near and there is nothing to eat in the other inn, is there?",
    "Why?",
    "One two three four five.",
    "no",
]


@pytest.fixture
def start(tmp_path):
    """Opens sessions over tiny models."""
    with contextlib.ExitStack() as stack:

        def start(kind="full", template=CHATML, **options):
            folder = tmp_path / f"{kind}-{len(template)}"
            if not folder.exists():
                make_tiny_folder(folder, "full" if kind == "recurrent" else kind, template=template)
            return stack.enter_context(contextlib.closing(TinySession(folder, kind, **options)))

        yield start


@pytest.fixture
def groups(monkeypatch):
    """The indices of lines that are read in one pass, group by group."""
    seen, read = [], LineReader._read_group

    def note(reader, start, group):
        seen.append([one.line.index for one in group])
        return read(reader, start, group)

    monkeypatch.setattr(LineReader, "_read_group", note)
    return seen


def make_lines(*changes):
    """Lines with the prompts above; `changes` are fields of each."""
    fields = [{"prompt": text, **more} for text, more in zip(PROMPTS, changes, strict=False)]
    return read_lines("\n".join(map(json.dumps, fields)).encode())


def answer(session, lines, size):
    """The answers by index, and all events."""
    job = session.answer_lines(lines, size)
    events = list(job)
    job.result(60)
    answers = [event for event in events if isinstance(event, LineAnswer)]
    assert sorted(a.line.index for a in answers) == [line.index for line in lines]
    return {a.line.index: a for a in answers}, events


VARIED = [
    {},
    {"max_tokens": 3},
    {"temperature": 0},
    {"seed": 77, "system": "Speak like a pirate."},
    {"stop": ["e"]},
    {"max_tokens": 40, "repetition_penalty": 1.3},
    {"top_k": 3},
]


@pytest.mark.parametrize("template", [CHATML, REASONING], ids=["plain", "reasoning"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [[{}] * 7, VARIED], ids=["alike", "varied"])
def test_each_line_gets_what_it_gets_alone(start, kind, template, settings, groups):
    """Ids, text and stop reason are those of a session of its own; each prompt is exact."""
    lines = make_lines(*settings)
    session = start(kind, template, system="Be kind.", max_tokens=25)
    answers, events = answer(session, lines, 3)
    assert not [event for event in events if isinstance(event, TextDelta)]
    assert bool(groups) == (kind != "recurrent")
    for line in lines:
        options = line.choose_options(session.options)
        system = "Be kind." if line.system is None else line.system
        alone = start(
            kind,
            template,
            system=system,
            sampling=options.sampling,
            max_tokens=options.max_tokens,
            stop=options.stop,
        )
        expected, got = alone.send(line.question).result(60), answers[line.index].result
        assert got is not None, answers[line.index].error
        assert (got.tokens, got.text, got.reasoning, got.stop_reason) == (
            *(expected.tokens, expected.text, expected.reasoning, expected.stop_reason),
        )
        assert got.usage.prompt_tokens == expected.usage.prompt_tokens
        assert got.verify.holds
        assert got.to_json().keys() == expected.to_json().keys()


@pytest.mark.parametrize("name", ["starcoder2", "gpt_oss", "qwen3_next"])
def test_models_of_mlx_lm_answer_together(start, name, monkeypatch, groups):
    """In mlx-lm's caches each line gets what it gets alone: full rows, windows, recurrent states.

    Lines that join late, lines of different settings, and shared system prompts included.
    """

    def make():
        model = architectures.make_model(name, vocab_size=VOCAB_SIZE)
        return ZooModel(model, {**architectures.make_config(name), "vocab_size": VOCAB_SIZE})

    monkeypatch.setattr("tiny.RecurrentModel", make)
    lines = make_lines({}, {"max_tokens": 3}, {"temperature": 0}, {"seed": 77}, {"top_k": 3}, {})
    both = []
    for size in (3, 1):
        session = start("recurrent", system="Be kind.", max_tokens=20)
        answers, events = answer(session, lines, size)
        assert not [event for event in events if isinstance(event, Notice)]
        assert all(a.error is None and a.result.verify.holds for a in answers.values())
        assert all(answers[i].result.usage.cached_tokens > 10 for i in range(1, 6))
        both.append([answers[i].result.tokens for i in range(6)])
    assert both[0] == both[1]
    assert len(set(both[0])) == 6
    assert bool(groups) == (name != "qwen3_next")  # whose states have no end but the last


@pytest.mark.parametrize("kind", KINDS)
def test_what_lines_have_in_common_is_read_once(start, kind, groups):
    """The system prompt is read for the first line only, whether together or one by one."""
    lines = make_lines(*[{}] * 7)
    for size in (4, 1):
        session = start(kind, system="You keep an inn by the sea, and you are kind.", verify=False)
        answers, _ = answer(session, lines, size)
        usages = [answers[i].result.usage for i in range(7)]
        assert usages[0].cached_tokens == 0
        assert all(usage.cached_tokens >= 45 for usage in usages[1:])
        if size == 4 and kind != "recurrent":  # there each token is a pass of its own
            aside = {i for group in groups for i in group}  # not through the live sequence
            prefilled = sum(u.prefill_tokens for i, u in enumerate(usages) if i not in aside)
            assert len(aside) > 2
            assert sum(session.model_.calls) == prefilled


@pytest.mark.parametrize("size", [3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_examples_before_all_prompts_are_read_once(start, kind, size):
    """What all prompts begin with is reused without a system prompt too, by every kind of cache."""
    shots = "\n".join(f"Question: {i} + {i}\nAnswer: {i + i}" for i in range(4))
    asked = [f"{shots}\nQuestion: {text}" for text in PROMPTS[:4]]
    lines = read_lines("\n".join(json.dumps({"prompt": text}) for text in asked).encode())
    answers, _ = answer(start(kind), lines, size)
    usages = [answers[i].result.usage for i in range(4)]
    assert all(answers[i].result.verify.holds for i in range(4))
    assert all(usage.cached_tokens >= len(shots) // 2 for usage in usages[1:])
    assert all(usage.prefill_tokens < usages[0].prefill_tokens // 2 for usage in usages[1:3])


def test_only_models_that_cannot_are_answered_one_by_one(start):
    """The reason is told once; nothing is told where it was asked for, or for a single line."""
    lines = make_lines(*[{}] * 3)

    def notices(session, lines, size):
        _, events = answer(session, lines, size)
        return [event.text for event in events if isinstance(event, Notice)]

    one_by_one = "The lines are answered one by one: "
    assert notices(start("recurrent"), lines, 3) == [
        f"{one_by_one}the caches of this model cannot be padded."
    ]
    (said,) = notices(start("full", REASONING, think_budget=5), lines, 3)
    assert said.startswith(f"{one_by_one}a --think-budget")
    for session, some, size in (("full", lines, 3), ("recurrent", lines, 1)):
        assert notices(start(session), some, size) == []
    assert notices(start("recurrent"), lines[:1], 3) == []


@pytest.mark.parametrize("size", [3, 1])
def test_a_line_that_fails_leaves_the_others(start, size, monkeypatch):
    """A prompt that does not fit the context is that line's error; so is one that fails oddly."""
    session = start(max_context=60, max_tokens=5)
    render = session.runner.renderer.render_ids

    def fail_once(messages):
        if messages[-1].content == PROMPTS[5]:
            raise ZeroDivisionError
        return render(messages)

    monkeypatch.setattr(session.runner.renderer, "render_ids", fail_once)
    answers, _ = answer(session, make_lines(*[{}] * 7), size)
    errors = {i: type(a.error) for i, a in answers.items() if a.error is not None}
    assert errors == {3: ContextFullError, 5: ZeroDivisionError}
    assert all(len(answers[i].result.tokens) == 5 for i in (0, 2, 4, 6))


def test_a_line_waits_for_memory(start, monkeypatch):
    """What does not fit beside the others is read when one of them has ended."""
    session, asked = start(verify=False), []

    def check(engine, num_prompt, *_):
        asked.append(num_prompt)
        if len(asked) in (3, 4):
            raise MemoryShortError("too little; wait")

    monkeypatch.setattr(session.runner.memory, "check", check)
    monkeypatch.setattr("mlxchat.chat.line_reading.can_read_together", lambda engine: False)
    answers, _ = answer(session, make_lines(*[{}] * 5), 4)
    assert all(a.error is None for a in answers.values())
    assert len(asked) == 7


def test_no_more_lines_together_than_memory_holds(start, monkeypatch):
    """Where eight would not fit as many as do are decoded together, and all are answered."""
    free = 40_000  # bytes; a position of the tiny model takes 128
    monkeypatch.setattr("mlxchat.chat.memory.SMALL_TURN", 0)
    session, most = start(verify=False, max_tokens=12), []
    monkeypatch.setattr(session.runner.memory, "_working_bytes", 0)
    monkeypatch.setattr(session.runner.memory, "note", lambda *_: None)
    monkeypatch.setattr("mlxchat.chat.memory.available_memory_bytes", lambda: free)
    check = session.runner.memory.check_batch

    def count(engine, rows):
        check(engine, rows)
        most.append(len(rows))

    monkeypatch.setattr(session.runner.memory, "check_batch", count)
    answers, _ = answer(session, make_lines(*[{}] * 7), 7)
    assert all(a.error is None for a in answers.values())
    assert 1 < max(most) < 7
    free = 5_000
    answers, _ = answer(session, make_lines(*[{}] * 2), 7)
    assert isinstance(answers[1].error, MemoryShortError)


@pytest.mark.parametrize("room", [1, 2])
def test_memory_that_is_always_short_ends(start, room, monkeypatch):
    """Batches become smaller until they fit; a line that does not fit alone has the error."""
    session, most = start(verify=False), []

    def watch(batch, check):
        def look():
            check()
            most.append(0 if batch.num_rows else len(batch._waiting))
            if most[-1] > room:
                raise MemoryShortError("memory is short")

        return look

    monkeypatch.setattr(session.runner.memory, "watch_batch", watch)
    answers, _ = answer(session, make_lines(*[{}] * 6), 4)
    assert all(a.error is None for a in answers.values())
    assert [n for n in most if n > room] == ([4] if room == 2 else [4, 2])
    monkeypatch.setattr(session.runner.memory, "watch_batch", lambda *_: refuse)
    answers, _ = answer(session, make_lines(*[{}] * 6), 4)
    assert {type(a.error) for a in answers.values()} == {MemoryShortError}


def refuse():
    raise MemoryShortError("memory is short")


def test_a_line_that_never_fits_fails(start, monkeypatch):
    """Where nothing else is there, too little memory is the line's error."""
    session = start(verify=False)

    def check(engine, num_prompt, *_):
        if num_prompt > 60:
            raise MemoryShortError("too little; wait")

    monkeypatch.setattr(session.runner.memory, "check", check)
    answers, _ = answer(session, make_lines(*[{}] * 6), 4)
    assert [i for i, a in answers.items() if isinstance(a.error, MemoryShortError)] == [3]


def test_ctrl_c_keeps_what_was_finished(start):
    """Lines that had ended have been told when the job is cancelled; the session goes on."""
    session = start(max_tokens=300, verify=False)
    lines = make_lines({"max_tokens": 2}, {}, {"max_tokens": 4}, {}, {})
    job, done = session.answer_lines(lines, 3), []
    for event in job:
        if isinstance(event, LineAnswer):
            done.append(event.line.index)
            if len(done) == 2:
                job.cancel()
    with pytest.raises(JobCancelledError):
        job.result(60)
    assert done == [0, 2]
    again = start(max_tokens=8)
    session._use(again.options)
    assert session.send("Hello.").result(60).tokens == again.send("Hello.").result(60).tokens


def tokens_of(answers):
    return {i: a.result.tokens for i, a in answers.items() if a.result is not None}


@pytest.mark.parametrize("method", ["step", "finish"])
def test_a_row_that_fails_leaves_the_others(start, method, monkeypatch):
    """What one line's text raises while it is decoded ends that line with the error."""
    lines = make_lines(*[{}] * 7)
    expected, _ = answer(start(verify=False), lines, 3)
    session, made, make = start(verify=False), [], TurnRunner.make_decoder

    def spoil(runner, reading, *rest):
        decoder = make(runner, reading, *rest)
        made.append(decoder)
        if reading.messages[-1].content == PROMPTS[2] and len(made) < 4:
            monkeypatch.setattr(decoder, method, fail)
        return decoder

    def fail(*_):
        raise ZeroDivisionError("of this row")

    monkeypatch.setattr(TurnRunner, "make_decoder", spoil)
    answers, _ = answer(session, lines, 3)
    failed = {i: type(a.error) for i, a in answers.items() if a.error is not None}
    assert failed in ({2: ZeroDivisionError}, {4: ZeroDivisionError})  # the prompts are the same
    assert tokens_of(answers) == {i: t for i, t in tokens_of(expected).items() if i not in failed}


def test_a_row_that_fails_where_memory_is_short_leaves_the_others(start, monkeypatch):
    """When all lines are ended at once, one that cannot even end has its error alone."""
    session, looks, make = start(verify=False), [], TurnRunner.make_decoder

    def spoil(runner, reading, *rest):
        decoder = make(runner, reading, *rest)
        if reading.messages[-1].content == PROMPTS[1]:
            monkeypatch.setattr(decoder, "finish", fail)
        return decoder

    def fail(*_):
        raise ZeroDivisionError

    def watch(batch, check):
        def look():
            check()
            looks.append(batch.num_rows)
            if len(looks) == 4:
                refuse()

        return look

    monkeypatch.setattr(TurnRunner, "make_decoder", spoil)
    monkeypatch.setattr(session.runner.memory, "watch_batch", watch)
    answers, _ = answer(session, make_lines(*[{"max_tokens": 12}] * 3), 3)
    assert looks[3] == 3
    assert type(answers[1].error) is ZeroDivisionError
    assert {answers[i].result.stop_reason for i in (0, 2)} == {"context_full"}


@pytest.mark.parametrize("num_tokens", [0, 1, 5])
def test_a_grammar_that_gets_stuck_ends_its_line_alone(start, num_tokens, monkeypatch):
    """What cannot be drawn for one row is that line's error; the others get what they get."""
    lines = make_lines(*[{"max_tokens": 12}] * 7)
    expected, _ = answer(start(verify=False), lines, 3)
    make = TurnRunner.make_decoder

    def hold(runner, reading, context, sampler):
        if reading.messages[-1].content == PROMPTS[1]:
            sampler.constraint = StuckConstraint(num_tokens)
        return make(runner, reading, context, sampler)

    monkeypatch.setattr(TurnRunner, "make_decoder", hold)
    session = start(verify=False)
    answers, _ = answer(session, lines, 3)
    assert str(answers.pop(1).error) == "the answer cannot go on"
    assert tokens_of(answers) == {i: t for i, t in tokens_of(expected).items() if i != 1}
    assert len(answers) == 6


def test_a_pass_that_fails_ends_the_lines_in_it(start):
    """Lines that are being decoded have its error; those that come later are answered."""
    lines = make_lines(*[{}] * 7)
    expected, _ = answer(start(verify=False), lines, 3)
    session = start(verify=False)
    forward, num_passes = Engine.forward, 0

    def fail_once(engine, token_ids, cache):
        nonlocal num_passes
        num_passes += token_ids.shape[0] > 1
        if num_passes == 5 and token_ids.shape[0] > 1:
            raise RuntimeError("out of memory")
        return forward(engine, token_ids, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "forward", fail_once)
        answers, _ = answer(session, lines, 3)
    failed = {i for i, a in answers.items() if a.error is not None}
    assert len(failed) == 3
    assert {str(answers[i].error) for i in failed} == {"out of memory"}
    assert tokens_of(answers) == {i: t for i, t in tokens_of(expected).items() if i not in failed}


def test_prompts_that_cannot_be_read_together_are_read_alone(start, monkeypatch):
    """An error of a pass over several prompts costs that pass, not the lines."""
    lines = make_lines(*[{}] * 7)
    expected, _ = answer(start(verify=False), lines, 3)

    def fail(*_):
        raise RuntimeError("a shape that nobody thought of")

    monkeypatch.setattr("mlxchat.chat.line_reading.read_together", fail)
    answers, _ = answer(start(verify=False), lines, 3)
    assert tokens_of(answers) == tokens_of(expected)


def test_as_many_are_read_together_as_memory_holds(start, monkeypatch, groups):
    """A group is halved until it fits; what does not fit at all waits or is read alone."""
    session = start(verify=False)
    check = session.runner.memory.check_batch

    def refuse(engine, rows):
        check(engine, rows)
        if len(rows) > 2:
            raise MemoryShortError("too little; wait")

    monkeypatch.setattr(session.runner.memory, "check_batch", refuse)
    lines = read_lines("\n".join(json.dumps({"prompt": f"No {i}?"}) for i in range(9)).encode())
    answers, _ = answer(session, lines, 8)
    assert all(a.error is None for a in answers.values())
    assert all(len(group) <= 2 for group in groups)


@pytest.mark.parametrize("together", [True, False])
def test_lines_that_come_again_come_once_and_in_order(start, together, monkeypatch):
    """Where memory is short, those with a token end, and those without one are answered later."""
    if not together:
        monkeypatch.setattr("mlxchat.chat.line_reading.can_read_together", lambda engine: False)
    session, begun, make = start(verify=False, max_tokens=20), [], TurnRunner.make_decoder

    def note(runner, reading, *rest):
        begun.append(reading.messages[-1].content)
        return make(runner, reading, *rest)

    def watch(batch, check):
        def look():
            check()
            # Before the first token of the first batch; later while some have tokens, others none.
            if len(short) < 2 and (not short or len(begun) == 5 + 4):
                short.append(begun.copy())
                raise MemoryShortError("memory is short")

        return look

    short = []
    monkeypatch.setattr(TurnRunner, "make_decoder", note)
    monkeypatch.setattr(session.runner.memory, "watch_batch", watch)
    texts = [f"Number {i:02}?" for i in range(9)]
    lines = read_lines(
        "\n".join(
            json.dumps({"prompt": text, "max_tokens": 3 if i == 1 else 12})
            for i, text in enumerate(texts)
        ).encode()
    )
    answers, events = answer(session, lines, 4)
    assert len(short) == 2
    assert sum(isinstance(event, Notice) for event in events) == 2
    assert begun[:4] == texts[:4]
    assert begun[4:8] == texts[:4]  # none had a token: all of them again, in their order
    assert all(a.error is None for a in answers.values())
    reasons = [answers[i].result.stop_reason for i in range(9)]
    assert reasons.count("context_full") == 1  # in batches of two then
    # The one that had just joined came again, before those that had not come yet.
    assert begun[8] == begun[9] == texts[4]
    assert begun[9:] == texts[4:]


def test_progress_is_told(start):
    """While lines are decoded it is told how many have ended."""
    _, events = answer(start(max_tokens=60, verify=False), make_lines(*[{}] * 6), 2)
    told = [event for event in events if isinstance(event, BatchProgress)]
    assert told
    assert {event.total for event in told} == {6}
    assert [event.done for event in told] == sorted(event.done for event in told)


def test_a_conversation_goes_on_beside_the_lines(start):
    """Lines leave the conversation of the session, its settings and its tree as they were."""
    session, alone = start(), start()
    first = session.send("Hello.").result(60)
    assert first.tokens == alone.send("Hello.").result(60).tokens
    answer(session, make_lines(*VARIED), 3)
    assert len(session.conversation.nodes) == 2
    assert session.send("And now?").result(60).tokens == alone.send("And now?").result(60).tokens


def test_an_empty_line_object_is_one_of_options():
    """A line without fields of its own changes nothing but the seed."""
    options = ChatOptions(sampling=SamplingSettings(seed=1))
    assert BatchLine(0, 1, messages=(Message("user", "a"),)).choose_options(options) == options
