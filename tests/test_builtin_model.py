"""The built-in model: its files, its tokenizer and template, and the floors of its skills.

The dialogues are those of `scripts/train_builtin/evaluate.py`: held out, greedy, exact match.
"""

import json
import math
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "mlxchat" / "model" / "builtin"
MODULES = (
    "data", "evaluate", "facts", "faq", "keyboard", "knowledge", "personal", "skills", "vocab",
    "words", "world",
)  # fmt: skip
LARGEST_BYTES = 8_000_000
CASES = 25
# A skill that misses its floor: what 800 dialogues reached, and the standard error of that
# (scripts/train_builtin/README.md).
REACHED = {"system prompt: suffix": (0.919, 0.010)}


@pytest.fixture(scope="module")
def evaluate():
    """The evaluation module of the training scripts."""
    path = str(REPOSITORY / "scripts" / "train_builtin")
    sys.path.insert(0, path)
    try:
        import evaluate as module

        yield module
    finally:
        sys.path.remove(path)
        for name in MODULES:  # top-level names of scripts must not reach other tests
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def answer(evaluate):
    """Greedy answers of the built-in model through mlxchat's own loader."""
    return evaluate.load_mlxchat(str(FOLDER))


@pytest.fixture(scope="module")
def tokenizer():
    """The built-in tokenizer."""
    from mlxchat.model.tokenizer import Tokenizer

    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def template(tokenizer):
    """The built-in chat template."""
    from mlxchat.chat.template import ChatTemplate

    return ChatTemplate.for_tokenizer(tokenizer)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_size():
    """The whole folder takes at most 8 MB of the wheel."""
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= LARGEST_BYTES


def test_config():
    """The config is a tied Qwen3 with MLX quantisation, and ids agree with the tokenizer's."""
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["tie_word_embeddings"] is True
    assert config["quantization"]["bits"] in (4, 8)
    assert config["max_position_embeddings"] >= 1024


def test_role_headers_are_single_tokens(tokenizer, template):
    """A role header with its line break is one token, and the end of a turn is the EOS."""
    ids = tokenizer.encode(template.render([user("Hi")]))
    spelled = [tokenizer.token_text(i) for i in ids]
    assert spelled[0] == "<|im_start|>user\n"
    assert spelled[-1] == "<|im_start|>assistant\n"
    assert set(tokenizer.encode("<|im_end|>")) == tokenizer.eos_ids


@pytest.mark.parametrize(
    "content", ["Hi", "", " two  spaces ", "a\nb\n", "\nx", "Mei-Lin 狗 47", "don't"]
)
def test_history_is_a_prefix(template, tokenizer, content):
    """Prompt, answer and end of turn are a prefix of the next prompt, in text and in ids."""
    messages = [{"role": "system", "content": content}, user(content)]
    prompt = template.render(messages)
    later = template.render([*messages, assistant("Fine."), user("Next")])
    assert later.startswith(prompt + "Fine.<|im_end|>\n")
    ids = tokenizer.encode(prompt)
    assert tokenizer.encode(later)[: len(ids)] == ids


def test_no_default_system_text(template):
    """Nothing is said in the person's name."""
    assert (
        template.render([user("Hi")]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("text", ["Your name is Zwablin-Tor.", "47 + 12 = 59.", "狗 is Chinese."])
def test_answer_text_gives_its_ids_again(tokenizer, text):
    """Decoding drops the prefix space, so encoding an answer's text gives the ids back."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_demo_words_are_single_tokens(evaluate, tokenizer):
    """Words of the demo lists are one token each, so embedding geometry is readable."""
    from words import demo_words

    assert [w for w in demo_words() if len(tokenizer.encode(w)) != 1] == []


def test_held_out_values_stay_out_of_training(evaluate):
    """Training dialogues hold no strict value among the facts they tell."""
    from random import Random

    from data import World, start
    from personal import tell
    from words import is_held_out

    for seed in range(300):
        world = World(Random(seed))
        start(world, 0.0)
        tell(world)
        value = world.facts[world.last_kind].rpartition("|")[2]
        assert value.isdigit() or not is_held_out(value)


def test_conversation(answer):
    """It greets, remembers a made-up name, adds, translates, and says what it cannot know."""
    messages = []
    for said, part in (
        ("hello", "Hello"),
        ("my name is Zablonka", "Zablonka"),
        ("what is 12 + 30?", "42"),
        ("what is the capital of France?", "Paris"),
        ("what is dog in spanish?", "perro"),
        ("what is a token?", "token"),
        ("who won the world cup?", "I am a tiny model and do not know that."),
        ("what is my name?", "Zablonka"),
    ):
        messages.append(user(said))
        messages.append(assistant(answer(messages)))
        assert part in messages[-1]["content"]


def test_says_what_it_is(answer):
    """Asked who it is, it says tiny, whose, where, and how to get a real model."""
    said = answer([user("who are you?")])
    for part in ("tiny", "parameters", "mlxchat project", "package", "mlxchat chat -m"):
        assert part in said


def floors():
    """Names and floors, read without importing the scripts at collection."""
    return (
        "recall at 1 turn, strict", "recall at 3 turns, strict", "recall at 6 turns, strict",
        "one of three facts, strict", "corrected fact, strict", "system prompt: its name",
        "system prompt: the user's name", "system prompt: suffix",
        "system prompt: suffix, not strict", "system prompt: mood", "system prompt: capitals",
        "FAQ, unseen wording", "two-digit sums, unseen pairs", "add N to that",
        "repeat 1 word, strict", "repeat 3 words, strict", "repeat 6 words, strict", "opposites",
        "English to Spanish", "English to Chinese", "is-a", "capitals",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", floors())
def test_floor(evaluate, answer, name):
    """A skill holds its floor, within two standard errors of so few dialogues."""
    skill = next(s for s in evaluate.SKILLS if s.name == name)
    floor, error = REACHED.get(name, (skill.floor, 0.0))
    assert floor is not None
    floor -= 2 * error
    row = evaluate.measure(answer, skill, CASES, show=3)
    assert row.accuracy >= floor - 2 * math.sqrt(floor * (1 - floor) / CASES)


def test_floors_are_all_tested(evaluate):
    """Every skill with a floor is in the list above."""
    assert [s.name for s in evaluate.SKILLS if s.floor is not None] == list(floors())
