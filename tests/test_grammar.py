"""Masks of grammars: what they allow, and that draws follow the model's own probabilities."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_speculation import Always, Script, check_cache
from test_tokenizer import TOKENIZERS
from tiny import (
    END_OF_TEXT,
    EOS_IDS,
    IM_END,
    VOCAB_SIZE,
    CountingModel,
    RecurrentModel,
    make_model,
    make_tiny_folder,
    mx,
)

from mlxchat.engine.constraint import Constraint, apply_mask
from mlxchat.engine.engine import Engine
from mlxchat.engine.grammar import Grammar, TokenTable, check_grammar
from mlxchat.engine.sampling import Sampler, Sampling, sample_rows
from mlxchat.engine.speculation import Speculator
from mlxchat.errors import MlxchatError, UsageError
from mlxchat.model.tokenizer import Tokenizer

IDS = [6 + (5 * i * i + i) % 290 for i in range(40)]
WORDS = ("the", "then", "in a tent", "ande", "é", "it\n")
PATTERN = "|".join(WORDS)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "of": {"enum": ["in", "anderes", None, 3]},
            "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["name", "of", "list"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(make_tiny_folder(tmp_path_factory.mktemp("tokens") / "m"))


def make_table(tokenizer: Tokenizer, size: int = VOCAB_SIZE, ends: Any = EOS_IDS) -> TokenTable:
    return TokenTable(
        [tokenizer.token_bytes(i) for i in range(size)],
        ends,
        tokenizer.special_ids,
        lambda text: tokenizer.encode(text, is_continuation=True),
    )


def allowed(constraint: Constraint) -> set[int]:
    mask = constraint.mask()
    assert mask is not None
    return {i for i, is_allowed in enumerate(mask.tolist()) if is_allowed}


def brute(tokenizer: Tokenizer, size: int, said: bytes) -> set[int]:
    """The oracle: ids whose bytes keep the text a beginning of a word; the end after a word."""
    words = [word.encode() for word in WORDS]
    texts = {i: tokenizer.token_bytes(i) for i in range(size) if i not in tokenizer.special_ids}
    ids = {i for i, b in texts.items() if b and any(w.startswith(said + b) for w in words)}
    return ids | (set(EOS_IDS) if said in words else set())


@pytest.mark.parametrize("size", [VOCAB_SIZE, VOCAB_SIZE + 21])
@pytest.mark.parametrize("kind", ["regex", "grammar", "json_schema"])
def test_exactly_what_can_go_on_is_allowed(tokenizer: Tokenizer, kind: Any, size: int) -> None:
    """At every place every token that keeps a word possible, in all its spellings, and no other."""
    if kind == "json_schema":
        text = json.dumps({"type": "string", "pattern": f"^({PATTERN})$"})
    else:
        text = PATTERN if kind == "regex" else f"start: {' | '.join(map(json.dumps, WORDS))}"
    constraint = Constraint(make_table(tokenizer, size), Grammar(kind, text))
    if kind == "json_schema":  # then inside the quotes
        (quote,) = allowed(constraint) & {tokenizer.encode('"')[0]}
        constraint.take(quote)
    begun: list[int] = [quote] if kind == "json_schema" else []
    todo, seen = [(b"", list[int]())], {b""}
    while todo:
        said, ids = todo.pop()
        constraint.follow([*begun, *ids])
        want = brute(tokenizer, size, said)
        forced = constraint.forced_ids()  # looks only
        assert not forced or kind == "json_schema" or forced[0] in want
        got = allowed(constraint)
        if kind == "json_schema":
            if b"\n" in said or b"it" in said:
                continue  # written as an escape there
            plain = {i for i in want if i not in EOS_IDS and b"\n" not in tokenizer.token_bytes(i)}
            assert plain <= got
        else:
            assert got == want, said
            assert constraint.is_complete == bool(EOS_IDS & want)
        for token_id in want - EOS_IDS:
            after = said + tokenizer.token_bytes(token_id)
            if after not in seen:
                seen.add(after)
                todo.append((after, [*ids, token_id]))
    assert len(seen) > 20


def test_what_ends_an_answer_is_never_its_text(tokenizer: Tokenizer) -> None:
    """Ids that end a turn come where the grammar accepts, all of them, and nowhere else."""
    table = make_table(tokenizer, ends={END_OF_TEXT, IM_END, 40})  # 40 is an ordinary letter
    constraint = Constraint(table, Grammar("regex", "[a-zA-Z!-~]{2}"))
    ends = {END_OF_TEXT, IM_END, 40}
    assert not allowed(constraint) & ends
    for text in ("a", "b"):
        constraint.take(tokenizer.encode(text)[0])
    assert allowed(constraint) == ends
    assert constraint.is_complete
    constraint.take(40)
    assert constraint.mask() is None
    constraint.take(IM_END)  # what comes after the end is not held to anything


def test_the_mask_is_the_models_own_distribution(tokenizer: Tokenizer) -> None:
    """Chi-square: draws are distributed as the softmax over the allowed tokens alone."""
    table = make_table(tokenizer)
    logits = 2.0 * mx.random.normal((1, VOCAB_SIZE), key=mx.random.key(3))
    grammar, counts, num = Grammar("regex", "(t|th|the|a|b|c|in|an)x"), Counter[int](), 3000
    constraint = Constraint(table, grammar)
    ids = sorted(allowed(constraint))
    assert 8 <= len(ids) < 20
    for seed in range(num):
        sampling = Sampling(temperature=1.3, top_p=1.0, seed=seed)
        counts[Sampler(sampling, VOCAB_SIZE, (), constraint).sample(logits).item()] += 1
    probs = mx.softmax(logits[0, mx.array(ids)] / 1.3).tolist()
    assert set(counts) <= set(ids)
    cells = [(counts[i], num * p) for i, p in zip(ids, probs, strict=True) if num * p >= 5]
    statistic = sum((got - want) ** 2 / want for got, want in cells)
    assert statistic < len(cells) - 1 + 6 * (2 * (len(cells) - 1)) ** 0.5


@pytest.mark.parametrize("limits", [{"top_k": 2}, {"top_p": 0.3}, {"min_p": 0.9}])
def test_truncation_counts_allowed_tokens(tokenizer: Tokenizer, limits: dict[str, Any]) -> None:
    """The likeliest of the allowed stay, however likely what is forbidden is."""
    logits = mx.random.normal((1, VOCAB_SIZE), key=mx.random.key(5))
    logits = logits.at[0, 200].add(50.0)
    constraint = Constraint(make_table(tokenizer), Grammar("regex", "[a-f][x-z]"))
    ids = sorted(allowed(constraint), key=lambda i: -logits[0, i].item())
    for seed in range(40):
        sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, **limits}, seed=seed)
        assert Sampler(sampling, VOCAB_SIZE, (), constraint).sample(logits).item() in ids[:4]
    greedy = Sampler(Sampling(temperature=0.0), VOCAB_SIZE, (), constraint)
    assert greedy.sample(logits).item() == ids[0]


def test_penalties_and_biases_change_nothing_about_what_is_allowed(tokenizer: Tokenizer) -> None:
    """A forbidden token stays forbidden whatever is added to it."""
    table = make_table(tokenizer)
    sampling = Sampling(
        temperature=1.0,
        repetition_penalty=0.2,
        presence_penalty=-2.0,
        frequency_penalty=-2.0,
        logit_bias=((200, 90.0),),
    )
    constraint = Constraint(table, Grammar("regex", "[a-f]{20}"))
    sampler = Sampler(sampling, VOCAB_SIZE, [200] * 9, constraint)
    text = ""
    for i in range(20):
        token = sampler.sample(mx.random.normal((1, VOCAB_SIZE), key=mx.random.key(i))).item()
        if token in EOS_IDS:
            break
        text += tokenizer.token_text(token)
    assert len(text) >= 5
    assert set(text) <= set("abcdef")


WAYS = {
    "greedy": Sampling(temperature=0.0),
    "sampled": Sampling(temperature=1.0, top_p=1.0, seed=3),
    "all of it": Sampling(
        temperature=1.2,
        top_p=0.9,
        top_k=30,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        logit_bias=((20, 3.0),),
        seed=4,
    ),
}


def start(model: Any, table: TokenTable, sampling: Sampling, text: str, **kwargs: Any) -> Any:
    engine = Engine(model, **kwargs)
    logits = engine.prefill(IDS, engine.prefix.plan(IDS))
    constraint = Constraint(table, Grammar("json_schema", text))
    return engine, logits, Sampler(sampling, VOCAB_SIZE, IDS, constraint)


def answer(engine: Engine, logits: Any, sampler: Sampler, num: int = 200) -> list[int]:
    tokens = []
    decoding = engine.decode(logits, sampler, max_tokens=num)
    for token in decoding:
        tokens.append(token)
        if token in EOS_IDS:
            decoding.close()
    return tokens


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Any] = {kind: make_model(kind, folder / kind) for kind in ("full", "window")}
    return {**made, "recurrent": CountingModel(RecurrentModel())}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["full", "window", "recurrent"])
def test_every_token_is_the_one_that_a_slow_loop_draws(
    models: dict[str, Any], tokenizer: Tokenizer, kind: str, way: str
) -> None:
    """Decoding one step ahead draws what masking by hand draws, and the cache holds the text."""
    table = make_table(tokenizer)
    engine, logits, sampler = start(models[kind], table, WAYS[way], SCHEMA)
    tokens = answer(engine, logits, sampler)
    assert tokens[-1] in EOS_IDS
    value = json.loads(tokenizer.decode(tokens[:-1]))
    assert value["of"] in ("in", "anderes", None, 3)
    assert list(value) == ["name", "of", "list"]
    if kind != "recurrent":
        check_cache(engine, [*IDS, *tokens])
    slow = Sampler(WAYS[way], VOCAB_SIZE, IDS)
    by_hand = Constraint(table, Grammar("json_schema", SCHEMA))
    for num, token in enumerate(tokens):
        cache = models[kind].make_cache()
        logits = models[kind].forward(mx.array([[*IDS, *tokens[:num]]]), cache)
        assert slow.sample(apply_mask(logits, by_hand.mask())).item() == token
        by_hand.take(token)


class Answer(Script):
    """Foresees a known answer; what comes after its end is not looked at."""

    def push(self, token_id: int) -> None:
        if token_id in EOS_IDS or self.place >= len(self.text):
            self.text, self.place = [], 0
        else:
            super().push(token_id)


@pytest.mark.parametrize("mistakes", [0.0, 0.3])
@pytest.mark.parametrize("way", WAYS)
def test_speculation_gives_the_same_text(
    models: dict[str, Any], tokenizer: Tokenizer, way: str, mistakes: float
) -> None:
    """Drafts are judged under the masks that they would have met one by one."""
    table = make_table(tokenizer)
    plain = answer(*start(models["full"], table, WAYS[way], SCHEMA))
    speculator = Speculator(Answer([*plain, *[9] * 40], mistakes), Always())
    engine, logits, sampler = start(models["full"], table, WAYS[way], SCHEMA, speculator=speculator)
    assert answer(engine, logits, sampler) == plain
    check_cache(engine, [*IDS, *plain])
    assert speculator.stats.drafted > 0
    if not mistakes:
        assert speculator.stats.accepted > 0


class Nothing:
    """Foresees nothing itself."""

    kind: Any = "lookup"
    strength = 0

    def begin(self, token_ids: Sequence[int], check: Any) -> None: ...

    def push(self, token_id: int) -> None: ...

    def expects(self) -> int | None:
        return None

    def draft(self, num: int) -> list[int]:
        return []


@pytest.mark.parametrize("key", ["zyx_wvu_kjq", "the_andes_in_it"])
@pytest.mark.parametrize("way", WAYS)
def test_what_must_follow_is_foreseen(
    models: dict[str, Any], tokenizer: Tokenizer, way: str, key: str
) -> None:
    """Keys come in fewer passes, spelled as without; where there is one spelling all drafts hit."""
    schema = {"type": "object", "properties": {}, "required": [f"{key}{i}" for i in range(3)]}
    schema["properties"] = {name: {"enum": [1, None]} for name in schema["required"]}
    schema |= {"additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    table, text = make_table(tokenizer), json.dumps(schema)
    plain = answer(*start(models["full"], table, WAYS[way], text))
    speculator = Speculator(Nothing(), Always())
    engine, logits, sampler = start(models["full"], table, WAYS[way], text, speculator=speculator)
    calls = len(models["full"].calls)
    assert answer(engine, logits, sampler) == plain
    assert list(json.loads(tokenizer.decode(plain[:-1]))) == schema["required"]
    check_cache(engine, [*IDS, *plain])
    stats = speculator.stats
    assert stats.forced == stats.drafted > 0
    if key.startswith("z"):
        assert stats.accepted == stats.drafted
        assert len(models["full"].calls) - calls <= len(plain) - stats.accepted + 2
    else:
        assert stats.accepted < stats.drafted, "the random model spells it otherwise"


def test_masks_ahead_are_those_of_one_by_one(tokenizer: Tokenizer) -> None:
    """Looking ahead changes nothing, and behind a draft that cannot stand nothing is masked."""
    constraint = Constraint(make_table(tokenizer), Grammar("json_schema", SCHEMA))
    text = '{"name": "a", "of": "anderes", "list":[]}'
    ids = tokenizer.encode(text)
    for cut, wrong in itertools.product((0, 3, len(ids)), (None, 200)):
        drafts = ids[:cut] + ([] if wrong is None else [wrong, *ids[cut:]])
        masks = constraint.masks_ahead(drafts)
        assert len(masks) == len(drafts) + 1
        now = constraint.mask()
        assert now is not None
        assert masks[0] is not None
        assert mx.array_equal(now, masks[0])
        for num in range(cut + 1):
            constraint.follow(ids[:num])
            want, got = constraint.mask(), masks[num]
            assert want is not None
            assert got is not None
            assert mx.array_equal(got, want)
        assert masks[cut + 1 :] == [None] * (len(drafts) - cut)
        constraint.follow([])


def test_rows_of_a_batch_have_masks_of_their_own(tokenizer: Tokenizer) -> None:
    """Each row of a batch draws what its sampler alone draws, held to its own grammar or none."""
    table = make_table(tokenizer)
    texts: Sequence[str | None] = ("[a-c]{9}", "[d-f]{9}", None)

    def samplers() -> list[Sampler]:
        made = []
        for seed, text in enumerate(texts):
            held = None if text is None else Constraint(table, Grammar("regex", text))
            made.append(Sampler(Sampling(seed=seed, top_p=1.0), VOCAB_SIZE, (), held))
        return made

    together, alone = samplers(), samplers()
    for step in range(6):
        logits = mx.random.normal((3, VOCAB_SIZE), key=mx.random.key(step))
        rows = sample_rows(together, logits).tolist()
        assert rows == [s.sample(logits[i : i + 1]).item() for i, s in enumerate(alone)]


def test_white_space_between_marks_ends(tokenizer: Tokenizer) -> None:
    """A line break and an indent at most: no model can go on with white space for ever."""
    constraint = Constraint(make_table(tokenizer), Grammar("json_schema", SCHEMA))
    constraint.take(tokenizer.encode("{")[0])
    blank = tokenizer.encode(" ")[0]
    for _ in range(60):
        if blank not in allowed(constraint):
            break
        constraint.take(blank)
    assert blank not in allowed(constraint)
    indented = json.dumps({"name": "a", "of": None, "list": [True]}, indent=8)
    constraint.follow(tokenizer.encode(indented))
    assert constraint.is_complete


WRONG = [
    ("json_schema", "{", "expected"),
    ("json_schema", "3", "must be an object or boolean"),
    ("json_schema", '{"type": "obj"}', "Invalid type: obj"),
    ("json_schema", '{"if": {}}', 'Unimplemented keys: ["if"]'),
    ("json_schema", '{"type": "string", "pattern": "("}', "unclosed group"),
    ("json_schema", '{"type": "integer", "minimum": 2, "maximum": 1}', "Unsatisfiable"),
    ("regex", "(", "unclosed group"),
    ("regex", "a(?=b)", "look-around"),
    ("regex", "", "empty"),
    ("grammar", "", "Empty grammar"),
    ("grammar", "start: x", 'unknown name: "x"'),
    ("grammar", 'begin: "x"', "start"),
]


@pytest.mark.parametrize(("kind", "text", "why"), WRONG)
def test_a_broken_grammar_is_told_in_a_line(kind: Any, text: str, why: str) -> None:
    """Without a model: what is wrong with it, and what to try."""
    with pytest.raises(UsageError) as error:
        check_grammar(Grammar(kind, text))
    assert why in str(error.value)
    assert ";" in str(error.value)
    assert "|" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_model_that_cannot_end(tokenizer: Tokenizer) -> None:
    """Without an id that ends an answer there is no grammar."""
    with pytest.raises(MlxchatError, match="no token that ends"):
        make_table(tokenizer, ends=())


def test_a_token_that_does_not_match(tokenizer: Tokenizer) -> None:
    """What was fed against the grammar is an error, and beginning again helps."""
    constraint = Constraint(make_table(tokenizer), Grammar("regex", "[a-c]+"))
    with pytest.raises(MlxchatError, match="as the regular expression wants it"):
        constraint.take(tokenizer.encode("z")[0])
    constraint.follow(tokenizer.encode("ab"))
    assert constraint.is_complete


@pytest.mark.parametrize("name", [n for n, t in TOKENIZERS.items() if t.has_token_bytes])
@pytest.mark.parametrize("seed", range(4))
def test_tokenizers_of_all_forms(name: str, seed: int) -> None:
    """Byte-level and SentencePiece: what is drawn at random is, streamed, JSON of the schema."""
    tokenizer = TOKENIZERS[name]
    size, end = tokenizer.vocab_size, max(tokenizer.special_ids)
    constraint = Constraint(make_table(tokenizer, size, {end}), Grammar("json_schema", SCHEMA))
    sampler = Sampler(Sampling(seed=seed, temperature=1.0, top_p=1.0), size, (), constraint)
    if name.startswith("metaspace"):  # which has neither braces nor bytes
        with pytest.raises(MlxchatError, match="no token of this model"):
            constraint.mask()
        return
    stream, text = tokenizer.stream(), ""
    for step in range(400):
        logits = mx.random.normal((1, size), key=mx.random.key(1000 * seed + step))
        token = sampler.sample(logits).item()
        if token == end:
            break
        text += stream.push(token)
    value = json.loads(text + stream.finish())
    assert list(value) == ["name", "of", "list"]
    assert len(value["name"]) <= 8


def test_special_tokens_that_a_grammar_names(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A Lark grammar may ask for an id by its number; unknown names are refused with the model."""
    constraint = Constraint(make_table(tokenizer), Grammar("grammar", 'start: "a" <[2]>'))
    constraint.take(tokenizer.encode("a")[0])
    assert allowed(constraint) == {2}
    with pytest.raises(UsageError, match="unknown special token"):
        Constraint(make_table(tokenizer), Grammar("grammar", 'start: "a" <|nothing|>'))
