"""Model folders for tests: one tiny good one, and every way of being bad with what must be said.

The files are written here by hand, byte by byte, so that the tests of reading do not lean on the
code that they test. `BAD_FOLDERS` is for tests of one module and for end-to-end tests alike.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Part = Literal["hub", "checkpoint", "families", "loader", "tokenizer", "template"]

N_LAYERS, D_MODEL, D_MLP, N_HEADS, N_KV_HEADS = 2, 32, 64, 4, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """Returns the length field and the header of a safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def write_safetensors(
    file: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]
) -> None:
    """Writes (dtype, shape, data) by name as a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        end = position + len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    file.write_bytes(header_bytes(header) + b"".join(data for _, _, data in tensors.values()))


def llama_config(vocab_size: int) -> dict[str, Any]:
    """Returns the config of a two-layer Llama."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV_HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of that Llama."""
    d, kv = D_MODEL, D_MODEL // N_HEADS * N_KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for layer in range(config["num_hidden_layers"]):
        parts: dict[str, tuple[int, ...]] = {
            "input_layernorm": (d,),
            "post_attention_layernorm": (d,),
            "self_attn.q_proj": (d, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (D_MLP, d),
            "mlp.up_proj": (D_MLP, d),
            "mlp.down_proj": (d, D_MLP),
        }
        shapes |= {f"model.layers.{layer}.{part}.weight": s for part, s in parts.items()}
    return shapes | {"model.norm.weight": (d,)}


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Returns float32 tensors: ones for norms, small random numbers for matrices."""
    rng = random.Random(seed)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0 if len(shape) == 1 else rng.gauss(0.0, 0.1) for _ in range(count)]
        tensors[name] = ("F32", shape, struct.pack(f"<{count}f", *values))
    return tensors


def tokenizer_json() -> dict[str, Any]:
    """Returns a byte-level tokenizer without merges: four special tokens and the 256 bytes."""
    specials = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|pad|>"]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    vocab = {token: index for index, token in enumerate(specials + letters)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True, **flags}
            for i, token in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "ignore_merges": False},
    }


def write_json(file: Path, value: object) -> None:
    """Writes a value as JSON."""
    file.write_text(json.dumps(value), encoding="utf-8")


def make_good_folder(folder: Path) -> Path:
    """Writes a tiny random Llama with tokenizer and ChatML template, and returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_json()
    config = llama_config(len(tokenizer["model"]["vocab"]))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [0, 1]})
    write_safetensors(folder / "model.safetensors", random_tensors(llama_shapes(config)))
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return folder


def split_into_shards(folder: Path, count: int = 2) -> Path:
    """Turns the single weight file of a good folder into shards with an index."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").unlink()
    tensors = random_tensors(llama_shapes(config))
    weight_map: dict[str, str] = {}
    for shard in range(count):
        name = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(tensors.items())[shard::count])
        write_safetensors(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return folder


@dataclass(frozen=True)
class BadFolder:
    """One way for a model folder to be bad.

    Attributes:
        name: For the test's id.
        part: The module that must notice.
        fragment: Text that the one error line must contain, in any case of letters.
        damage: Makes a good folder bad.
    """

    name: str
    part: Part
    fragment: str
    damage: Callable[[Path], object]

    def make(self, folder: Path) -> Path:
        """Writes a good folder, damages it and returns it."""
        self.damage(make_good_folder(folder))
        return folder


def _edit_json(name: str, **changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        write_json(folder / name, value | changes)

    return damage


def _put(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def _cut(name: str, keep: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return damage


def _only(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def _reshape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    shapes = llama_shapes(config)
    shapes["model.layers.1.mlp.down_proj.weight"] = (D_MODEL, D_MLP // 2)
    write_safetensors(folder / "model.safetensors", random_tensors(shapes))


def _drop_tensor(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    shapes = llama_shapes(config)
    del shapes["model.layers.1.self_attn.k_proj.weight"]
    write_safetensors(folder / "model.safetensors", random_tensors(shapes))


def _shrink_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 100}
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", random_tensors(llama_shapes(config)))


def _lose_shard(folder: Path) -> None:
    (split_into_shards(folder) / "model-00002-of-00002.safetensors").unlink()


def _wrong_index(folder: Path) -> None:
    file = split_into_shards(folder) / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["model.embed_tokens.weight"] = "model-00002-of-00002.safetensors"
    write_json(file, index)


_WEIGHTS = "model.safetensors"
_DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

BAD_FOLDERS: list[BadFolder] = [
    BadFolder("missing-folder", "hub", "no folder", shutil.rmtree),
    BadFolder("missing-config", "checkpoint", "no config.json", _remove("config.json")),
    BadFolder("broken-config", "checkpoint", "not valid JSON", _cut("config.json", 0.5)),
    BadFolder("empty-config", "checkpoint", "not valid JSON", _put("config.json", b"")),
    BadFolder("list-config", "checkpoint", "no JSON object", _put("config.json", b"[1]")),
    BadFolder("latin1-config", "checkpoint", "not UTF-8", _put("config.json", b'{"a": "\xe9"}')),
    BadFolder("deep-config", "checkpoint", "not usable JSON", _put("config.json", _DEEP)),
    BadFolder(
        "unknown-architecture",
        "families",
        "florp",
        _edit_json("config.json", model_type="florp", architectures=["FlorpForCausalLM"]),
    ),
    BadFolder(
        "bitsandbytes",
        "checkpoint",
        "bitsandbytes",
        _edit_json("config.json", quantization_config={"quant_method": "bitsandbytes", "bits": 4}),
    ),
    BadFolder("no-weights", "checkpoint", "no model.safetensors", _remove(_WEIGHTS)),
    BadFolder("only-pickle", "checkpoint", "never loaded", _only("pytorch_model.bin")),
    BadFolder("only-gguf", "checkpoint", "GGUF", _only("model-q4.gguf")),
    BadFolder("zero-weights", "checkpoint", "is empty", _put(_WEIGHTS, b"")),
    BadFolder("short-weights", "checkpoint", "bytes long", _put(_WEIGHTS, b"abc")),
    BadFolder("truncated-weights", "checkpoint", "reaches to byte", _cut(_WEIGHTS, 0.7)),
    BadFolder("truncated-header", "checkpoint", "header claims", _cut(_WEIGHTS, 0.01)),
    BadFolder("absurd-header", "checkpoint", "header claims", _put(_WEIGHTS, b"\xff" * 64)),
    BadFolder(
        "corrupt-header",
        "checkpoint",
        "not JSON",
        _put(_WEIGHTS, struct.pack("<Q", 16) + b"\x00" * 64),
    ),
    BadFolder(
        "lfs-pointer",
        "checkpoint",
        "git lfs",
        _put(_WEIGHTS, b"version https://git-lfs.invalid/spec/v1\noid sha256:00\nsize 1\n"),
    ),
    BadFolder("missing-shard", "checkpoint", "lacks model-00002-of-00002", _lose_shard),
    BadFolder("wrong-index", "checkpoint", "but it is not", _wrong_index),
    BadFolder("missing-tensor", "loader", "model.layers.1.self_attn.k_proj.weight", _drop_tensor),
    BadFolder("wrong-shape", "loader", "model.layers.1.mlp.down_proj.weight", _reshape),
    BadFolder(
        "wrong-width",
        "loader",
        "config.json asks for",
        _edit_json("config.json", hidden_size=2 * D_MODEL),
    ),
    BadFolder(
        "vocabulary-mismatch",
        "loader",
        "model.embed_tokens.weight",
        _edit_json("config.json", vocab_size=1000),
    ),
    BadFolder("small-vocabulary", "loader", "tokenizer", _shrink_vocabulary),
    BadFolder("missing-tokenizer", "tokenizer", "tokenizer", _remove("tokenizer.json")),
    BadFolder("broken-tokenizer", "tokenizer", "tokenizer", _cut("tokenizer.json", 0.5)),
    BadFolder(
        "broken-template",
        "template",
        "template",
        _edit_json("tokenizer_config.json", chat_template="{% for m in messages %}{{ m"),
    ),
    BadFolder(
        "raising-template",
        "template",
        "only odd questions",
        _edit_json(
            "tokenizer_config.json",
            chat_template="{{ raise_exception('only odd questions') }}",
        ),
    ),
]
