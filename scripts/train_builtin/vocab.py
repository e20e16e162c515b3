"""The tokenizer: byte-level BPE, trained on generated dialogues, and the chat template.

Digits stay single, each role header is one special token, and the words of the demo lists
(opposites, translations, capitals) are merged until each is one token. A leading space is put
before text that starts with a letter, so a value has the same ids everywhere; a piece that starts
with white space (the line break after a turn) is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken as Added
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, END = "<|endoftext|>", "<|im_end|>"
ROLES = ("system", "user", "assistant")
HEADERS = {role: f"<|im_start|>{role}\n" for role in ROLES}
SPECIAL = (PAD, END, *HEADERS.values())

# Every message is rendered alike and nothing is trimmed, so a conversation's text only ever grows.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_PIECES = r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _pipeline(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A (?=\s)"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])


def train(texts: Iterable[str], single: Iterable[str], size: int) -> Tokenizer:
    """Train on `texts`; each word of `single` becomes one token; `size` counts everything."""
    words = sorted(set(single))
    target = size
    for _ in range(8):
        tokenizer = _train_base(texts, target - 0)
        merged = _merge_words(tokenizer, words)
        over = merged.get_vocab_size() - size
        if over <= 0:
            break
        target -= over + 8
    merged.add_special_tokens(_fillers(size - merged.get_vocab_size()))
    return merged


def _fillers(count: int) -> list[Added]:
    return [Added(f"<|unused_{i}|>", special=True, normalized=False) for i in range(count)]


def _train_base(texts: Iterable[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    _pipeline(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _merge_words(base: Tokenizer, words: list[str]) -> Tokenizer:
    """Return a tokenizer with merges added at the end until each word is one token."""
    for _ in range(6):  # a later word's merges can change an earlier one's pieces
        data = json.loads(base.to_str())
        vocab, merges = data["model"]["vocab"], data["model"]["merges"]
        added = False
        for word in words:
            pieces = base.encode(word).tokens
            while len(pieces) > 1:
                joined = pieces[0] + pieces[1]
                if joined not in vocab:
                    vocab[joined] = len(vocab)
                if [pieces[0], pieces[1]] not in merges:
                    merges.append([pieces[0], pieces[1]])
                    added = True
                pieces = [joined, *pieces[2:]]
        base = Tokenizer.from_str(json.dumps(data))
        if not added:
            break
    specials = [Added(text, special=True, normalized=False) for text in SPECIAL]
    base.add_special_tokens(specials)
    return base


def encode_turns(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """Encode a dialogue as the chat template does; also say which ids the model must predict."""
    ids: list[int] = []
    learn: list[bool] = []
    end, newline = tokenizer.token_to_id(END), tokenizer.encode("\n").ids
    for message in messages:
        body = tokenizer.encode(message["content"]).ids
        mine = message["role"] == "assistant"
        ids += [tokenizer.token_to_id(HEADERS[message["role"]]), *body, end, *newline]
        learn += [False, *[mine] * (len(body) + 1), *[False] * len(newline)]
    return ids, learn


def prompt_ids(tokenizer: Tokenizer, messages: list[dict]) -> list[int]:
    """Encode a dialogue with the assistant's header at its end."""
    ids, _ = encode_turns(tokenizer, messages)
    return [*ids, tokenizer.token_to_id(HEADERS["assistant"])]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "bos_token": None,
        "unk_token": None,
        "additional_special_tokens": list(HEADERS.values()),
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
