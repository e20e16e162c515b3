"""Answers held to a schema, a pattern or a grammar: whole turns, thinking, batches, the CLI."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_templates import SMALL_TEMPLATES
from terminal import Terminal
from tiny import (
    END_THINK,
    EOS_IDS,
    IM_END,
    KINDS,
    REASONING,
    THINK,
    Open,
    TinySession,
    biased,
    checked,
    collect,
    make_tiny_folder,
    open_sessions,
)

from mlxchat.chat.preamble import ThinkingPreamble
from mlxchat.chat.prompt import PromptRenderer
from mlxchat.chat.results import Notice
from mlxchat.chat.template import ChatTemplate, Message
from mlxchat.cli.main import cli
from mlxchat.engine.grammar import ANY_OBJECT, Grammar
from mlxchat.engine.options import SamplingSettings
from mlxchat.errors import MlxchatError
from mlxchat.model.hub import resolve_model
from mlxchat.model.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "of": {"enum": ["Oslo", "Bergen", None]},
    },
    "required": ["name", "age", "of"],
    "additionalProperties": False,
}
LISTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]},
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "is": {"const": "node"},
                "has": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
            },
            "required": ["is", "has"],
            "additionalProperties": False,
        },
        "leaf": {"type": "number", "minimum": -1, "maximum": 1},
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = {"person": PERSON, "lists": LISTS, "tree": TREE}
# A random model would open thinking as gladly as it begins an answer, and hardly ever end it.
NEVER_THINKS = biased((THINK, -1e9))
GREEDY = SamplingSettings(temperature=0.0)
SHORT = Grammar("regex", "(yes|no), [a-z]{2,5}")


def check(schema: dict[str, Any], value: Any, root: dict[str, Any] | None = None) -> None:
    """Our own reading of the few keywords that stand above."""
    root = root or schema
    if "$ref" in schema:
        return check(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        kinds = {bool: "boolean", str: "string"}
        (fit,) = [s for s in schema["anyOf"] if s["type"] == kinds[type(value)]]
        return check(fit, value, root)
    assert value in schema.get("enum", [value])
    assert value == schema.get("const", value)
    types: dict[str | None, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": int | float,
        "boolean": bool,
    }
    assert isinstance(value, types.get(schema.get("type"), object))
    if isinstance(value, dict):
        assert set(schema["required"]) <= set(value) <= set(schema["properties"])
        for name, inner in value.items():
            check(schema["properties"][name], inner, root)
    elif isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
        for inner in value:
            check(schema["items"], inner, root)
    elif isinstance(value, str):
        assert len(value) <= schema.get("maxLength", 99)
        assert re.search(schema.get("pattern", ""), value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        assert schema["minimum"] <= value <= schema["maximum"]
    return None


def held_to(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_tiny_folder(tmp_path_factory.mktemp("tokens") / "m"))


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Open]:
    """Opens sessions on tiny folders and closes them."""
    with open_sessions(tmp_path, max_tokens=400, sampling=NEVER_THINKS) as open_:
        yield open_


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_random_model_answers_as_the_schema_wants(
    open_session: Open, kind: str, name: str
) -> None:
    """Whatever is drawn, each answer is JSON of the schema, and the cache holds what was said."""
    session = open_session(kind, grammar=held_to(SCHEMAS[name]))
    for seed in range(4):
        sampling = replace(NEVER_THINKS, seed=seed)
        session.set_options(replace(session.options, sampling=sampling))
        result = session.say("hello")
        assert result.stop_reason == "eos_token"
        check(SCHEMAS[name], json.loads(result.text))
        session.reset()


def test_the_next_turn_goes_on_from_it(open_session: Open) -> None:
    """A held answer stands in the cache as generated: little more than the new question is read."""
    session = open_session(grammar=SHORT)
    first = session.say("hello")
    second = session.say("hello")
    assert re.fullmatch(SHORT.text, first.text)
    assert re.fullmatch(SHORT.text, second.text)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens + len(first.tokens)


def test_speculation_leaves_it_valid(open_session: Open) -> None:
    """With looking up earlier text the answer is the one without, and matches."""
    one = open_session(grammar=held_to(PERSON)).say("say it")
    other = open_session(grammar=held_to(PERSON), speculate="lookup")
    assert other.say("say it").tokens == one.tokens
    for _ in range(3):
        check(PERSON, json.loads(other.say("again").text))


# -- thinking --------------------------------------------------------------------------------------


def thinking_of(result: Any, grammar: Grammar = SHORT) -> str:
    assert result.stop_reason == "eos_token"
    assert re.fullmatch(grammar.text, result.text)
    return result.reasoning


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_is_free(open_session: Open, kind: str) -> None:
    """The schema holds what comes after the thinking; an end of the turn inside waits for it."""
    sampling = biased((END_THINK, 6.5), (IM_END, 9.0))
    session = open_session(kind, REASONING, grammar=SHORT, sampling=sampling)
    result = session.say("hello")
    assert thinking_of(result)
    assert not EOS_IDS & set(result.tokens)
    thinking_of(session.say("more"))


def test_a_budget_and_a_key_begin_the_answer(open_session: Open) -> None:
    """Thinking that we close is followed by the answer, from its first character on."""
    never = biased((END_THINK, -1e9))
    session = open_session(template=REASONING, grammar=SHORT, sampling=never, think_budget=6)
    thought = thinking_of(session.say("hello"))
    assert len(thought) <= 6 * 8
    session = open_session(template=REASONING, grammar=SHORT, sampling=never)
    session.model_.after(7, session.end_thinking)
    assert thinking_of(session.say("hello"))


@pytest.mark.parametrize("bias", [9.0, -1e9])
def test_the_model_may_open_the_thinking(open_session: Open, bias: float) -> None:
    """Where the model writes the opener itself it may, or answers at once."""
    template = SMALL_TEMPLATES["think-stripped"]
    sampling = biased((THINK, bias), (END_THINK, 6.5))
    result = open_session(template=template, grammar=SHORT, sampling=sampling).say("hello")
    assert (thinking_of(result) is not None) == (bias > 0)
    off = open_session(template=template, grammar=SHORT, sampling=sampling, think=False)
    assert thinking_of(off.say("hello")) is None


def make_wide_tokenizer(folder: Path) -> Tokenizer:
    """The tiny tokenizer with tokens that hold the end of a marker and something behind it."""
    make_tiny_folder(folder)
    made = json.loads((folder / "tokenizer.json").read_text())
    vocab = made["model"]["vocab"]
    for token in (">a", ">Ċ", ">ĊĊ"):
        vocab[token] = vocab.pop(next(name for name in vocab if "unused" in name))
    (folder / "tokenizer.json").write_text(json.dumps(made))
    return Tokenizer.load(folder)


def test_markers_of_several_tokens(tmp_path: Path) -> None:
    """No token may end such a marker and begin the answer with what nobody has checked."""
    tokenizer = make_wide_tokenizer(tmp_path / "m")
    template = ChatTemplate(SMALL_TEMPLATES["think-kept"])
    renderer = PromptRenderer(template, tokenizer)
    prompt = renderer.render_ids([Message("user", "hi")])
    preamble = ThinkingPreamble(renderer, prompt)
    assert preamble.may_end
    assert not preamble.is_over
    opener = tokenizer.encode("<seed:think>")
    assert len(opener) > 3
    for token_id in opener:
        assert token_id in (preamble.next_ids or ())
        assert preamble.push(token_id)
    assert preamble.next_ids is None
    for token_id in tokenizer.encode("so, a <b> </seed:think"):
        assert not preamble.banned_ids & {token_id}
        assert preamble.push(token_id)
        assert not preamble.may_end
    names = tokenizer.vocabulary()
    assert preamble.banned_ids == {names[">a"], names[">ĊĊ"]}  # one line break is the template's
    assert preamble.push(names[">Ċ"])
    assert preamble.is_over


@pytest.mark.parametrize("space", ["", "\n", "\n\n"])
def test_white_space_of_the_template_may_follow(tokenizer: Tokenizer, space: str) -> None:
    """Behind the closer the template's white space may stand, or part of it, then the text."""
    renderer = PromptRenderer(ChatTemplate(REASONING), tokenizer)
    markers = renderer.markers
    renderer.markers = replace(markers, after_closer="\n\n")
    preamble = ThinkingPreamble(renderer, renderer.render_ids([Message("user", "hi")]))
    assert preamble.next_ids is None
    preamble.push(END_THINK)
    for token_id in tokenizer.encode(space):
        assert preamble.may_end
        assert token_id in (preamble.next_ids or ())
        assert preamble.push(token_id)
    assert preamble.is_over == (space == "\n\n")
    if not preamble.is_over:
        assert not preamble.push(tokenizer.encode("a")[0])
        assert preamble.is_over
    preamble.restart()
    assert preamble.next_ids is None


def test_harmony_channels(open_session: Open) -> None:
    """Openers of the answer itself may stand before it, and are no part of the text."""
    template = SMALL_TEMPLATES["harmony"]
    result = open_session(template=template, grammar=SHORT).say("hello")
    thinking_of(result)


# -- cut off ---------------------------------------------------------------------------------------


def test_a_cut_answer_says_so_and_goes_on(open_session: Open) -> None:
    """At the token limit a notice tells that it does not match; /continue makes it whole."""
    session = open_session(grammar=held_to(PERSON), max_tokens=10)
    job = session.send("hello")
    notices = [event.text for event in job if isinstance(event, Notice)]
    assert "the answer was cut off, so it does not match the JSON schema" in notices
    cut = checked(session, job)
    assert cut.stop_reason == "token_limit"
    for _ in range(60):
        result = checked(session, session.go_on())
        if result.stop_reason == "eos_token":
            break
    assert result.text.startswith(cut.text)
    check(PERSON, json.loads(result.text))


def test_an_answer_that_is_whole_at_the_limit(open_session: Open) -> None:
    """Where the limit falls on the last character nothing is missing, and nothing is told."""
    session = open_session(grammar=Grammar("regex", "[a-c]{3}"), max_tokens=3)
    job = session.send("hello")
    assert not [event for event in job if isinstance(event, Notice)]
    assert re.fullmatch("[a-c]{3}", job.result(60).text)


def test_ctrl_c_keeps_what_there_is(open_session: Open) -> None:
    """A stopped answer is kept as a beginning, and goes on to a valid one."""
    session = open_session(grammar=held_to(PERSON))
    job = session.interrupted(lambda: session.send("hello"), 9)
    cut = checked(session, job)
    assert cut.stop_reason == "user_cancelled"
    result = checked(session, session.go_on())
    assert result.text.startswith(cut.text)
    check(PERSON, json.loads(result.text))


def test_an_answer_that_was_free_cannot_go_on_held(open_session: Open) -> None:
    """/continue refuses to go on with a text that the grammar does not know, in one line."""
    session = open_session(max_tokens=6)
    session.say("hello")
    session.set_options(replace(session.options, grammar=Grammar("regex", "[0-9]{40}")))
    with pytest.raises(MlxchatError, match="cannot go on as the regular expression wants it"):
        session.go_on().result(60)
    session.set_options(replace(session.options, grammar=None))
    checked(session, session.go_on())


# -- several answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_several_answers_are_all_held(open_session: Open, kind: str) -> None:
    """/retry N: each answer matches, and is what a retry of its own would give."""
    session = open_session(kind, grammar=held_to(LISTS))
    found = session.send_many("hello", 3).result(60)
    for result in found.results:
        check(LISTS, json.loads(result.text))
    alone = open_session(kind, grammar=held_to(LISTS))
    assert alone.say("hello").tokens == found.results[0].tokens


@pytest.fixture
def builtin() -> Iterator[TinySession]:
    """The built-in model, whose tokenizer puts a blank before each text and does not show it."""
    with closing(TinySession(resolve_model(None).path, sampling=GREEDY, max_tokens=60)) as session:
        yield session


def proven(job: Any) -> Any:
    """Returns the result of a turn that a fresh prefill confirms."""
    result = job.result(30)
    assert result.verify.holds
    return result


def test_held_text_begins_as_all_text_does(builtin: TinySession) -> None:
    """Where the grammar takes what the model says anyway, held and free tokens are the same."""
    free = proven(builtin.send("What is the capital of Norway?"))
    for pattern in ("(The|A) [a-z]+ of Norway is [A-Z][a-z]+[.]", "The.*"):
        grammar = Grammar("regex", pattern)
        builtin.set_options(replace(builtin.options, grammar=grammar))
        held = proven(builtin.retry())
        assert (held.text, held.tokens) == (free.text, free.tokens)
        assert re.fullmatch(pattern, held.text)


def test_held_text_stays_in_the_cache_after_a_blank(builtin: TinySession) -> None:
    """The next turn goes on behind the held answer; one that was cut off goes on where it was."""
    builtin.set_options(replace(builtin.options, grammar=held_to(PERSON), max_tokens=9))
    cut = proven(builtin.send("hello"))
    builtin.settle()
    builtin.set_options(replace(builtin.options, max_tokens=200))
    whole = proven(builtin.go_on())
    assert whole.usage.prefill_tokens == 1
    check(PERSON, json.loads(whole.text))
    assert whole.text.startswith(cut.text)
    builtin.settle()
    builtin.set_options(replace(builtin.options, grammar=None))
    follow = proven(builtin.send("hello"))
    assert "dropped" not in follow.cache.reason
    assert follow.usage.cached_tokens > whole.usage.completion_tokens


def test_text_that_began_without_the_blank_goes_on(builtin: TinySession) -> None:
    """The text of another model may have come without it, and is held all the same."""
    runner = builtin.runner
    prompt = runner.renderer.render_ids([Message("user", "hello")])
    constraint = runner.grammars.constrain(held_to(PERSON), runner.renderer, prompt)
    for text in ('{"name"', ' {"name"', '{"name"'):
        constraint.follow(runner.tokenizer.encode(text, is_continuation=True))
        assert not constraint.is_complete
        assert constraint.mask() is not None


def run(*arguments: str, text: str = "") -> Any:
    return CliRunner().invoke(cli, ["generate", *arguments], input=text)


def test_lines_of_a_batch_have_grammars_of_their_own() -> None:
    """Each line is held to its own grammar or that of the command line, as it would be alone."""
    lines: list[dict[str, Any]] = [
        {"prompt": "hello", "json_schema": PERSON},
        {"prompt": "hi", "regex": SHORT.text, "temperature": 1.5},
        {"prompt": "hello", "grammar": 'start: "a" | "b" start'},
        {"prompt": "hello", "json_schema": "any", "max_tokens": 2},
        {"prompt": "who are you?"},
        {"prompt": "hello", "json_schema": {"type": "nothing"}},
        {"prompt": "hello", "regex": "a", "grammar": "b"},
        {"prompt": "hello", "json_schema": 3},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    options = ("--seed", "3", "--regex", "(I am|We are)[a-z ]{3,30}[.]", "--batch-size", "3")
    result = run("--batch", "-", *options, text=text)
    assert result.exit_code == 1
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    check(PERSON, json.loads(answers[0]["text"]))
    assert re.fullmatch(SHORT.text, answers[1]["text"])
    assert re.fullmatch("b*a", answers[2]["text"])
    assert answers[3]["stop_reason"] == "token_limit"
    assert "line 4: the answer was cut off" in result.stderr
    assert re.fullmatch(options[3], answers[4]["text"])
    errors = [answer["error"] for answer in answers[5:]]
    assert "line 6: the JSON schema cannot be used: Invalid type: nothing" in errors[0]
    assert "'regex' and 'grammar' do not go together" in errors[1]
    assert "'json_schema' is no JSON schema" in errors[2]
    alone = run("hi", "--regex", SHORT.text, "--temp", "1.5", "--seed", "3", "--json")
    assert json.loads(alone.stdout)["tokens"] == answers[1]["tokens"]


# -- the command line ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_built_in_model(tmp_path: Path, seed: int) -> None:
    """The demo model writes JSON of a schema in a file, at temperature 1."""
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON), encoding="utf-8-sig")
    options = ("--json-schema", str(file), "--temp", "1", "--seed", str(seed), "--json")
    result = run("my name is Mei-Lin", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert answer["stop_reason"] == "eos_token"
    check(PERSON, json.loads(answer["text"]))


def test_any_object_and_a_grammar_in_a_file(tmp_path: Path) -> None:
    """`any` is any JSON object; a Lark grammar comes from a file."""
    result = run("hello", "--json-schema", "any", "--temp", "1", "--max-tokens", "20", "--json")
    answer = json.loads(result.stdout)
    assert answer["text"].startswith("{")
    assert (answer["stop_reason"] == "token_limit") == ("was cut off" in result.stderr)
    file = tmp_path / "g.lark"
    file.write_text('start: "move " STEP+\nSTEP: "left;" | "right;"\n')
    result = run("hello", "--grammar", str(file), "--temp", "0", "--max-tokens", "30")
    assert re.match("move ((left|right);)+", result.stdout)
    result = run("hello", "--samples", "2", "--regex", SHORT.text, "--temp", "1", "--seed", "4")
    assert len(re.findall(f"^{SHORT.text}$", result.stdout, re.MULTILINE)) == 2


def test_wrong_usage_needs_no_model(tmp_path: Path) -> None:
    """One line and exit code 2, though the model that is named cannot be loaded."""
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"\xff\xfe")
    for options, why in [
        (("--json-schema", "nowhere.json"), "'nowhere.json' cannot be read"),
        (("--json-schema", str(tmp_path)), "Is a directory"),
        (("--json-schema", str(broken)), "no text in UTF-8"),
        (("--json-schema", '{"type": "obj"}'), "Invalid type: obj"),
        (("--json-schema", '{"type": '), "the JSON schema cannot be used"),
        (("--regex", "("), "unclosed group"),
        (("--grammar", "nowhere.lark"), "give a file with a Lark grammar"),
        (("--regex", "a", "--json-schema", "any"), "cannot hold one answer together"),
    ]:
        result = run("hi", "-m", str(tmp_path / "no-model"), *options)
        assert result.exit_code == 2
        assert why in result.stderr
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


def test_a_tokenizer_without_bytes(tmp_path: Path) -> None:
    """A tokenizer whose tokens change beside each other is refused with a line."""
    folder = make_tiny_folder(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = run("hi", "-m", str(folder), "--regex", "a")
    assert result.exit_code == 1
    assert "tokenizer has no bytes for each token" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_chat_sets_it_and_takes_it_back() -> None:
    """/schema holds answers from the next turn on, says what is in force, and goes off."""
    lines = [
        "/schema",
        "/schema regex (yes|no), [a-z]{2,5}",
        "hello",
        "/params",
        "/schema any",
        "/schema",
        "/schema off",
        "hello",
        "/schema nowhere.json",
        "/schema regex",
    ]
    result = CliRunner().invoke(
        cli, ["chat", "--json-schema", ANY_OBJECT, "--temp", "0"], input="\n".join(lines)
    )
    assert result.exit_code == 1
    first, second = result.stdout.splitlines()
    assert re.fullmatch(SHORT.text, first)
    assert second == "Hello! How can I help?"
    said = result.stderr
    assert f"Schema: JSON schema {ANY_OBJECT}." in said
    assert "Schema: regular expression (yes|no), [a-z]{2,5}, from the next turn on." in said
    assert re.search(r"^schema +regular expression \(yes\|no\).* +/schema$", said, re.MULTILINE)
    assert "Schema: JSON schema any object." in said
    assert "Schema: off." in said
    assert "'nowhere.json' cannot be read" in said
    assert "/schema regex names nothing" in said


def test_in_a_terminal() -> None:
    """The chat in a pseudo-terminal: Tab offers, an error leaves what was set, Ctrl-C keeps."""
    with Terminal("-m", "mlxchat", "--temp", "0", "--no-history") as terminal:
        terminal.wait_for("builtin · 0 of")
        terminal.send("/schema regex (yes|no), [a-z]{2,5}\r")
        terminal.wait_for("[a-z]{2,5}, from the next turn on.")
        terminal.send("/schema regex (\r")
        terminal.wait_for("unclosed group")
        terminal.send("hello\r")
        terminal.wait_for("tok/s at depth")
        assert re.search(r"^(yes|no), [a-z]{2,5}$", terminal.text, re.MULTILINE)
        terminal.send("/schema regex (on and ){900}\r")
        terminal.wait_for("{900}, from the next turn on.")
        terminal.send("who are you?\r")
        terminal.wait_for("on and on and on and")
        terminal.send("\x03")
        terminal.wait_for("the answer was cut off, so it does not match the regular expression")
        terminal.wait_for("(stopped)")
        terminal.send("/schema off\r")
        terminal.wait_for("Schema: off.")


def test_streamed_text_is_the_answer(open_session: Open) -> None:
    """What is shown while it comes is the text of the result."""
    session = open_session(template=REASONING, grammar=SHORT, sampling=biased((END_THINK, 6.5)))
    job = session.send("hello")
    shown = collect(job)
    result = checked(session, job)
    assert shown == {"reasoning": result.reasoning, "answer": result.text}
