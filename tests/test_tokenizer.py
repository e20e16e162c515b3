"""Encoding, decoding and loading, on tokenizers that are trained here in a moment."""

import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from mlxchat.errors import TokenizerError
from mlxchat.model.detokenizer import make_decoder_plan
from mlxchat.model.tokenizer import Tokenizer

TEXTS = [
    "Hello there, how are you today? The cat sat on the mat.",
    "A model reads tokens; a token is a piece of a word. 1 2 3 42",
    "Grüße aus Köln, 你好世界, こんにちは 🙂🙃 and\n\nnew lines\tand tabs",
] * 3
UNK, WORD_UNK = "<unk>", "[UNK]"
SPECIAL = [
    AddedToken("<s>", special=True, normalized=False),
    AddedToken("</s>", special=True, normalized=False),
    AddedToken("<｜User｜>", special=True, normalized=False),
    AddedToken("<plain｜ é>", special=False, normalized=False),
]


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=["<pad>"]
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens(SPECIAL)
    return backend


def byte_level_with_prefix() -> Backend:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def byte_level_with_sections() -> Backend:
    """A space before every stretch of text between special tokens; the first is stripped."""
    backend = byte_level()
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return backend


def sentencepiece(*, strip: bool = True, prepend: bool = True) -> Backend:
    """Llama-2's form: spaces as a sign, unknown characters as byte tokens."""
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    backend = Backend(models.BPE(byte_fallback=True, unk_token=UNK, fuse_unk=True))
    steps = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), *steps] if prepend else steps
    )
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<unk>", *byte_tokens]
    )
    backend.train_from_iterator(["▁" + text.replace(" ", "▁") for text in TEXTS[:2]], trainer)
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(stages + ([decoders.Strip(" ", 1, 0)] if strip else []))
    # The byte tokens are ordinary tokens of the model, not special ones.
    state = json.loads(backend.to_str())
    state["added_tokens"] = []
    backend = Backend.from_str(json.dumps(state))
    backend.add_tokens(SPECIAL)
    return backend


def metaspace(scheme: str) -> Backend:
    backend = Backend(models.BPE(unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens(SPECIAL)
    return backend


def word_piece() -> Backend:
    """A decoder that is known to no plan: the window takes it."""
    backend = Backend(models.WordPiece(unk_token=WORD_UNK))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, show_progress=False, special_tokens=["[UNK]"]
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


KINDS = {
    "byte-level": byte_level,
    "byte-level-prefix": byte_level_with_prefix,
    "byte-level-sections": byte_level_with_sections,
    "sentencepiece": sentencepiece,
    "sentencepiece-no-strip": lambda: sentencepiece(strip=False, prepend=False),
    "metaspace-first": lambda: metaspace("first"),
    "metaspace-always": lambda: metaspace("always"),
    "metaspace-never": lambda: metaspace("never"),
    "word-piece": word_piece,
}
TOKENIZERS = {name: Tokenizer(make()) for name, make in KINDS.items()}


@pytest.fixture(params=TOKENIZERS, name="tokenizer")
def tokenizer_fixture(request) -> Tokenizer:
    return TOKENIZERS[request.param]


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> str:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return "".join([stream.push(token_id) for token_id in ids] + [stream.finish()])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(TOKENIZERS)), skip=st.booleans())
def test_streamed_text_is_the_full_decode(data, name, skip):
    """For any ids, special ones and broken bytes included, the stream loses and adds nothing."""
    tokenizer = TOKENIZERS[name]
    some_id = st.integers(0, tokenizer.vocab_size - 1)
    if "sentencepiece" in name:
        some_id |= st.integers(1, 257)
    ids = data.draw(st.lists(some_id, max_size=30))
    assert streamed(tokenizer, ids, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), name=st.sampled_from(["byte-level", "sentencepiece-no-strip"]))
def test_byte_tokenizers_give_any_text_back(text, name):
    """Text survives encode and a streamed decode where the vocabulary has all bytes."""
    tokenizer = TOKENIZERS[name]
    if "▁" in text and name != "byte-level":
        return
    assert streamed(tokenizer, tokenizer.encode(text), skip=False) == text


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece"])
def test_a_character_over_several_tokens_is_never_split(name):
    """An emoji arrives whole, and U+FFFD shows up only when the text ends inside one."""
    tokenizer = TOKENIZERS[name]
    if name == "byte-level":
        ids = [tokenizer.token_id(char) for char in "ðŁĺĢ"]
    else:
        ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "😀".encode()]
    stream = tokenizer.stream()
    assert [stream.push(token_id) for token_id in ids[:3]] == ["", "", ""]
    assert stream.push(ids[3]) + stream.finish() == "😀"
    assert set(streamed(tokenizer, ids[:2])) == {"\ufffd"}


def test_special_ids_are_left_out_of_the_text(tokenizer):
    """Special tokens in the text are parsed to their ids and do not come back as text."""
    if tokenizer is TOKENIZERS["word-piece"]:
        pytest.skip("has no special tokens")
    ids = tokenizer.encode("<s>Hello<｜User｜>")
    assert {tokenizer.token_id("<s>"), tokenizer.token_id("<｜User｜>")} <= set(ids)
    assert "<" not in streamed(tokenizer, ids)
    assert "<｜User｜>" in streamed(tokenizer, ids, skip=False)


@settings(max_examples=80, deadline=None)
@given(
    head=st.sampled_from(["Hello", "a b.", "<s>", "Grüße", "mat\n"]),
    tail=st.sampled_from(["Hello", " Hello", "\nHello", "</s>x", " </s>", "", "\n\nnew", "  two"]),
    name=st.sampled_from(sorted(set(TOKENIZERS) - {"word-piece"})),
)
def test_a_continuation_gets_no_prefix_space(head, tail, name):
    """Pieces of a text, encoded one after the other, decode as the whole text does."""
    tokenizer = TOKENIZERS[name]
    pieces = tokenizer.encode(head) + tokenizer.encode(tail, is_continuation=True)
    whole = tokenizer.encode(head + tail)
    if "always" in name or "prefix" in name:
        # These put a space after every special token, which belongs to the whole text alone.
        return
    if name in ("sentencepiece", "byte-level-sections") and "<" in head:
        return
    assert tokenizer.decode(pieces, skip_special_tokens=False) == tokenizer.decode(
        whole, skip_special_tokens=False
    )


def test_decode_continuation_keeps_the_leading_space():
    """Inside a text the first word keeps the space that decoding alone strips."""
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = tokenizer.encode("Hello there")
    assert tokenizer.decode(ids) == "Hello there"
    assert tokenizer.decode_continuation(ids) == " Hello there"
    assert TOKENIZERS["byte-level"].decode_continuation([]) == ""


def test_decode_continuation_refuses_bytes_that_melt_into_a_neighbour():
    """A broken byte run before a newline byte has no text of its own."""
    tokenizer = TOKENIZERS["sentencepiece"]
    assert tokenizer.decode_continuation([tokenizer.token_id("<0xE4>")]) is None


def test_token_text_shows_spaces_and_special_names():
    """A single token reads as it stands in a text."""
    for name in ("byte-level", "sentencepiece"):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer.encode("mat the", is_continuation=True)
        assert "".join(map(tokenizer.token_text, ids)) == "mat the"
        assert tokenizer.token_text(tokenizer.token_id("</s>")) == "</s>"
        assert tokenizer.token_text(10**6) == ""


def test_lone_surrogates_are_encoded_as_the_replacement_sign():
    """Text that is no valid Unicode is read as well as it can be."""
    tokenizer = TOKENIZERS["byte-level"]
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


def test_unknown_decoder_chains_use_the_window():
    """Only chains known to be exact are streamed piece by piece."""
    replace = decoders.Replace("▁", " ")
    odd = decoders.Sequence([replace, decoders.Strip(" ", 1, 0)])
    assert make_decoder_plan(odd.__getstate__()).kind == "window"
    assert make_decoder_plan(None).kind == "window"
    kinds = {name: tokenizer._plan.kind for name, tokenizer in TOKENIZERS.items()}
    assert [name for name, kind in kinds.items() if kind == "window"] == ["word-piece"]


@pytest.fixture(name="folder")
def folder_fixture(tmp_path):
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config = {
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "bos_token": "<s>",
        "chat_template": "inside",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_load_reads_tokens_and_template(folder):
    """A folder with tokenizer.json gives the same ids as the backend it was saved from."""
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("Hello <s>") == TOKENIZERS["byte-level"].encode("Hello <s>")
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.eos_ids == {tokenizer.token_id("</s>")}
    assert tokenizer.chat_template == "inside"
    assert tokenizer.fingerprint == Tokenizer.load(folder).fingerprint


def test_eos_ids_come_from_all_files(folder):
    """Numbers and lists are both read; ids outside the vocabulary and null are left out."""
    (folder / "config.json").write_text('{"eos_token_id": 5, "text_config": {"eos_token_id": 6}}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, null, true, 99999, -1]}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == {5, 6, 7, tokenizer.token_id("</s>")}


def test_tokens_only_in_the_config_are_added(folder):
    """Tokens that tokenizer.json lacks are added with their properties."""
    config = {
        "added_tokens_decoder": {
            "9000": {"content": "<|call|>", "special": True, "normalized": False}
        },
        "eos_token": "<|stop|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(folder)
    for token in ("<|call|>", "<|stop|>"):
        assert tokenizer.encode(token) == [tokenizer.token_id(token)]
        assert tokenizer.token_id(token) in tokenizer.special_ids
    assert tokenizer.eos_ids == {tokenizer.token_id("<|stop|>")}


def test_same_special_tokens_as_transformers(folder):
    """Strings handed to templates and ids agree with AutoTokenizer on the same folder."""
    transformers = pytest.importorskip("transformers")
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>", "unk_token": "<unk>"}')
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = Tokenizer.load(folder)
    assert ours.special_tokens == theirs.special_tokens_map
    text = "<s>Hello 你好 <unk></s> <plain｜ é>🙂"
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_template_files_win_over_the_config(folder):
    """chat_template.jinja wins; named files are kept beside it; old files come last."""
    (folder / "chat_template.json").write_text('{"chat_template": "legacy"}')
    assert Tokenizer.load(folder).chat_template == "inside"
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("documents")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_template == "file"
    assert tokenizer.chat_templates == {"default": "file", "rag": "documents"}


def test_named_templates_in_the_config(folder):
    """Of a list of templates the one named default is used."""
    entries = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": entries}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.chat_template == "d"
    assert tokenizer.chat_templates["tool_use"] == "t"


def test_legacy_template_file_is_the_last_resort(folder):
    """Without any other template the processor's file is read."""
    (folder / "tokenizer_config.json").write_text("{}")
    assert Tokenizer.load(folder).chat_template is None
    (folder / "chat_template.json").write_text('{"chat_template": "legacy"}')
    assert Tokenizer.load(folder).chat_template == "legacy"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b'{"version": "1.0", "trunc'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b""),
        ("tokenizer_config.json", b'{"eos_token": '),
        ("tokenizer_config.json", b"\xff\xfe{}"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("config.json", b"{"),
        ("generation_config.json", b"null"),
        ("special_tokens_map.json", b"\x80"),
        ("chat_template.jinja", b"\xff\xff"),
    ],
)
def test_broken_files_give_one_clear_line(folder, name, content):
    """Each damaged file is named in one line; no other exception escapes."""
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tokenizer_is_named(tmp_path):
    """An empty folder and a folder that is not there give one clear line."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json is missing"):
            Tokenizer.load(folder)


def test_a_folder_without_tokenizer_json_goes_through_mlx_lm(tmp_path):
    """vocab.json and merges.txt alone are converted, with the same ids as the backend."""
    pytest.importorskip("transformers")
    backend = byte_level()
    backend.model.save(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<pad>", "bos_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "<pad>"}))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = Tokenizer.load(tmp_path)
    text = "Hello there, 你好"
    assert tokenizer.encode(text) == TOKENIZERS["byte-level"].encode(text)
    assert streamed(tokenizer, tokenizer.encode(text)) == text


def test_the_fast_path_imports_neither_transformers_nor_mlx(folder):
    """Loading a folder with tokenizer.json stays light."""
    code = (
        "import sys, pathlib; from mlxchat.model.tokenizer import Tokenizer;"
        f"Tokenizer.load(pathlib.Path({str(folder)!r})).encode('Hi');"
        "print([m for m in ('transformers', 'mlx_lm', 'mlx.core') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_streaming_costs_the_same_for_every_token():
    """Decoding 20 000 tokens takes far less than quadratic work would."""
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("Hello there, how are you? ") * 2500
    start = time.perf_counter()
    text = streamed(tokenizer, ids)
    assert time.perf_counter() - start < 2
    assert text == tokenizer.decode(ids)
