"""Reading and checking a model folder: config, files, headers, loading, identity."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from bad_folders import (
    BAD_FOLDERS,
    BadFolder,
    header_bytes,
    llama_shapes,
    make_good_folder,
    split_into_shards,
    write_json,
    write_safetensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxchat.errors import CheckpointError, MlxchatError
from mlxchat.model.checkpoint import (
    Checkpoint,
    compute_fingerprint,
    evaluate_arrays,
    find_weight_files,
    read_config,
    read_generation_config,
)
from mlxchat.model.quantization import read_quantization
from mlxchat.model.safetensors_file import BITS_PER_ELEMENT, read_header

CHECKED_HERE = [bad for bad in BAD_FOLDERS if bad.part == "checkpoint"]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_good_folder(tmp_path / "good")


def inspect(folder: Path) -> Checkpoint:
    """Does what a loader does before it evaluates anything."""
    config = read_config(folder)
    read_quantization(config)
    read_generation_config(folder)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("bad", CHECKED_HERE, ids=lambda bad: bad.name)
def test_bad_folder_gives_one_line(bad: BadFolder, tmp_path: Path) -> None:
    """Each damage is noticed, in one line that says what is wrong and what to try."""
    with pytest.raises(MlxchatError) as caught:
        inspect(bad.make(tmp_path / "m"))
    message = str(caught.value)
    assert bad.fragment.lower() in message.lower()
    assert "\n" not in message
    assert ";" in message
    assert caught.value.exit_code == 1


def test_missing_folder_names_it(tmp_path: Path) -> None:
    """A folder that is not there is named."""
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        read_config(tmp_path / "nowhere")


def test_good_folder_is_described(good: Path) -> None:
    """The tensors, their files, shapes and sizes are those that were written."""
    checkpoint = inspect(good)
    shapes = llama_shapes(read_config(good))
    assert {name: t.shape for name, t in checkpoint.tensors.items()} == shapes
    assert checkpoint.metadata == {"format": "mlx"}
    assert checkpoint.total_bytes == sum(t.nbytes for t in checkpoint.tensors.values())
    assert {t.dtype for t in checkpoint.tensors.values()} == {"F32"}
    checkpoint.require(shapes)


def test_require_names_wrong_shape(good: Path) -> None:
    """The first tensor of another shape is named with both shapes."""
    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(good).require({"model.norm.weight": (32,), name: (64, 64)})
    assert str(caught.value).startswith(
        f"{name} has shape (32, 32), but config.json asks for (64, 64); the files in "
    )


def test_require_names_missing_tensor(good: Path) -> None:
    """A tensor that is not there is named."""
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        Checkpoint.open(good).require({"lm_head.weight": (260, 32)})


def test_config_numbers_beyond_json(good: Path) -> None:
    """Non-finite numbers in transformers' notation become numbers, also inside lists."""
    write_json(good / "config.json", {"a": [{"__float__": "-Infinity"}], "b": {"__float__": "x"}})
    assert read_config(good) == {"a": [float("-inf")], "b": {"__float__": "x"}}


def test_config_with_byte_order_mark(good: Path) -> None:
    """A byte order mark, as some editors write it, is no error."""
    (good / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_config(good) == {"a": 1}


def test_generation_config_is_optional(good: Path) -> None:
    """A missing file reads as empty; a broken one is named."""
    assert read_generation_config(good) == {"eos_token_id": [0, 1]}
    (good / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not valid JSON"):
        read_generation_config(good)
    (good / "generation_config.json").unlink()
    assert read_generation_config(good) == {}


class TestFiles:
    def test_shards_come_from_the_index(self, good: Path) -> None:
        """With an index, exactly its files are read, and hold the same tensors as one file."""
        whole = {name: t.shape for name, t in Checkpoint.open(good).tensors.items()}
        split_into_shards(good, 3)
        write_safetensors(good / "model-extra.safetensors", {"other": ("U8", (1,), b"x")})
        checkpoint = Checkpoint.open(good)
        assert {name: t.shape for name, t in checkpoint.tensors.items()} == whole
        assert len(checkpoint.files) == 3

    def test_shards_without_index(self, good: Path) -> None:
        """Numbered shards are found without an index, and a gap in the numbers is named."""
        split_into_shards(good, 3)
        (good / "model.safetensors.index.json").unlink()
        assert len(find_weight_files(good)) == 3
        (good / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"lacks the shard 00002-of-00003; "):
            find_weight_files(good)

    def test_shards_numbered_from_zero(self, good: Path) -> None:
        """Shards that count from 0 are complete too."""
        split_into_shards(good, 2)
        (good / "model.safetensors.index.json").unlink()
        (good / "model-00002-of-00002.safetensors").rename(
            good / "model-00000-of-00002.safetensors"
        )
        assert len(find_weight_files(good)) == 2

    def test_stale_index_beside_whole_file(self, good: Path) -> None:
        """An index that a conversion left behind gives way to the one whole file."""
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}}
        write_json(good / "model.safetensors.index.json", index)
        assert find_weight_files(good) == [good / "model.safetensors"]
        assert len(Checkpoint.open(good).files) == 1

    @pytest.mark.parametrize(
        "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "", 3, None]
    )
    def test_index_cannot_leave_the_folder(self, good: Path, file: object) -> None:
        """An index that names anything but a safetensors file beside it is refused."""
        write_json(good / "model.safetensors.index.json", {"weight_map": {"a": file}})
        with pytest.raises(CheckpointError, match="of the same folder"):
            find_weight_files(good)

    @pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}])
    def test_empty_index(self, good: Path, index: object) -> None:
        """An index without a map is refused."""
        write_json(good / "model.safetensors.index.json", index)
        with pytest.raises(CheckpointError, match="no weight_map"):
            find_weight_files(good)

    def test_tensor_in_two_files(self, good: Path) -> None:
        """A tensor that two files hold is named with both."""
        split_into_shards(good, 2)
        (good / "model.safetensors.index.json").unlink()
        data = {"model.norm.weight": ("U8", (1,), b"x")}
        write_safetensors(good / "model-a.safetensors", data)
        with pytest.raises(CheckpointError, match=r"norm\.weight is in .* and in .*; remove"):
            Checkpoint.open(good)

    def test_file_without_tensors(self, good: Path) -> None:
        """A valid file with nothing in it is no model."""
        write_safetensors(good / "model.safetensors", {})
        with pytest.raises(CheckpointError, match="hold no tensors"):
            Checkpoint.open(good)


def read_one(tmp_path: Path, header: object, data: bytes = b"") -> dict[str, Any]:
    """Writes a file with this header and reads it back."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return dict(read_header(file).tensors)


def entry(dtype: object = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class TestHeader:
    @pytest.mark.parametrize(
        ("header", "data", "fragment"),
        [
            ([], b"", "not a JSON object"),
            (b'{"a": 1', b"", "not JSON"),
            (b"\xff\xfe{}", b"", "not JSON"),
            (b"[" * 200_000, b"", "not JSON"),
            (b'{"a":' + b"9" * 5000 + b"}", b"", "not JSON"),
            ({"a": 1}, b"", "tensor a has no description"),
            ({"a": {}}, b"", "unknown type None"),
            ({"a": entry(dtype="F7")}, b"x", "unknown type F7"),
            ({"a": entry(dtype=["F32"])}, b"x", "unknown type"),
            ({"a": entry("F64", (1,), (0, 8))}, b"12345678", "F64, which MLX cannot read"),
            ({"a": entry(shape="1")}, b"x", "no usable shape"),
            ({"a": entry(shape=[-1])}, b"x", "no usable shape"),
            ({"a": entry(shape=[True])}, b"x", "no usable shape"),
            ({"a": entry(shape=[1.0])}, b"x", "no usable shape"),
            ({"a": entry(shape=[1] * 17)}, b"x", "no usable shape"),
            ({"a": entry(shape=[0, 1 << 31], offsets=[0, 0])}, b"", "no usable shape"),
            ({"a": entry(offsets=[0])}, b"x", "no usable offsets"),
            ({"a": entry(offsets=[1, 0])}, b"x", "no usable offsets"),
            ({"a": entry(offsets=[-1, 0])}, b"x", "no usable offsets"),
            ({"a": entry(offsets=[0, 1 << 63])}, b"x", "no usable offsets"),
            ({"a": entry(shape=[2])}, b"x", "cannot have 1 bytes"),
            ({"a": entry("F16", [3], [0, 5])}, b"12345", "cannot have 5 bytes"),
            ({"a": entry()}, b"", "reaches to byte"),
            ({"a": entry()}, b"xy", "1 bytes that belong to no tensor"),
            ({"a": entry(offsets=[1, 2])}, b"xy", "tensor a leaves a gap"),
            ({"a": entry(), "b": entry()}, b"x", "overlaps another"),
            (b'{"a": 1, "a": 2}', b"", "names a twice"),
            ({"\ud800": entry()}, b"x", "not valid text"),
            ({"__metadata__": {"a": 1}}, b"", "metadata is not"),
            ({"__metadata__": []}, b"", "metadata is not"),
        ],
    )
    def test_bad_header(self, tmp_path: Path, header: object, data: bytes, fragment: str) -> None:
        """Each false claim of a header is found, and the file is named."""
        with pytest.raises(CheckpointError) as caught:
            read_one(tmp_path, header, data)
        assert fragment in str(caught.value)
        assert str(caught.value).startswith("model.safetensors: ")

    def test_odd_names(self, tmp_path: Path) -> None:
        """Any text is a name; in messages control characters are written out."""
        names = ["", " ", "a\nb", "\x1b[31mred", "ключ", "x" * 5000]
        tensors = {n: entry(offsets=[i, i + 1]) for i, n in enumerate(names)}
        assert list(read_one(tmp_path, tensors, b"x" * len(names))) == names
        with pytest.raises(CheckpointError) as caught:
            read_one(tmp_path, {"\x1b[31mred": 1})
        assert "\x1b" not in str(caught.value)
        assert r"\x1b[31mred" in str(caught.value)

    def test_empty_tensors(self, tmp_path: Path) -> None:
        """Tensors without elements share an offset with their neighbour."""
        header = {
            "b": entry(),
            "a": entry(shape=[0], offsets=[0, 0]),
            "c": entry("F32", [], [1, 5]),
        }
        assert list(read_one(tmp_path, header, b"x" * 5)) == ["a", "b", "c"]

    def test_padded_header(self, tmp_path: Path) -> None:
        """Spaces after the JSON, as writers align data, are part of the header."""
        header = json.dumps({"a": entry()}).encode() + b"   "
        assert read_one(tmp_path, header, b"x")["a"].offset == 8 + len(header)

    @pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E8M0", "BF16", "C64", "U32"])
    def test_known_types(self, tmp_path: Path, dtype: str) -> None:
        """The format's types that MLX reads are accepted with their sizes."""
        nbytes = 4 * BITS_PER_ELEMENT[dtype] // 8
        tensor = read_one(tmp_path, {"a": entry(dtype, [4], [0, nbytes])}, b"x" * nbytes)["a"]
        assert (tensor.dtype, tensor.nbytes) == (dtype, nbytes)

    def test_unreadable_file(self, tmp_path: Path) -> None:
        """A file that cannot be opened gives our error."""
        with pytest.raises(CheckpointError, match=r"cannot read .*; check the folder"):
            read_header(tmp_path)


SMALL = {
    "model.norm.weight": ("F32", (4,), bytes(range(16))),
    "model.embed.weight": ("BF16", (3, 5), bytes(30)),
    "flag": ("BOOL", (), b"\x01"),
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage_is_found_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Flipped, cut, moved or added bytes give our error or a header that fits the file exactly."""
    file = tmp_path / "model.safetensors"
    write_safetensors(file, SMALL)
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "length"]))
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        if kind == "flip" and raw:
            raw[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del raw[place:]
        elif kind == "insert":
            raw[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del raw[place : place + data.draw(st.integers(1, 9))]
        else:
            raw[:8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    file.write_bytes(raw)
    try:
        header = read_header(file)
    except CheckpointError:
        return
    spans = sorted((t.offset, t.offset + t.nbytes) for t in header.tensors.values())
    ends = [8 + int.from_bytes(raw[:8], "little"), *(end for _, end in spans)]
    assert [start for start, _ in spans] == ends[:-1]
    assert ends[-1] == len(raw)


class TestLoad:
    def test_arrays_are_the_written_ones(self, good: Path) -> None:
        """Every tensor arrives with its values, in the order of the files."""
        import mlx.core as mx

        split_into_shards(good, 2)
        checkpoint = Checkpoint.open(good)
        arrays = checkpoint.load()
        assert list(arrays) == list(checkpoint.tensors)
        name = "model.layers.1.mlp.up_proj.weight"
        tensor = checkpoint.tensors[name]
        data = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
        written = struct.unpack(f"<{tensor.nbytes // 4}f", data)
        assert arrays[name].shape == tensor.shape
        assert mx.array(written).reshape(tensor.shape).tolist() == arrays[name].tolist()

    def test_every_readable_type_loads(self, tmp_path: Path) -> None:
        """MLX reads each type that the header check lets through."""
        from mlxchat.model.safetensors_file import UNREADABLE_BY_MLX

        folder = tmp_path / "types"
        folder.mkdir()
        types = sorted(BITS_PER_ELEMENT.keys() - UNREADABLE_BY_MLX)
        tensors = {t: (t, (8,), bytes(BITS_PER_ELEMENT[t])) for t in types}
        write_safetensors(folder / "model.safetensors", tensors)
        arrays = Checkpoint.open(folder).load()
        evaluate_arrays(arrays.values())
        assert {a.shape for a in arrays.values()} == {(8,)}
        assert sorted(arrays) == types

    def test_progress_reaches_the_total(self, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Progress rises batch by batch to the size of all tensors."""
        monkeypatch.setattr("mlxchat.model.checkpoint._EVALUATE_BYTES", 8192)
        checkpoint = Checkpoint.open(good)
        seen: list[tuple[int, int]] = []
        evaluate_arrays(checkpoint.load().values(), on_progress=lambda d, t: seen.append((d, t)))
        total = checkpoint.total_bytes
        assert len(seen) > 3
        assert seen == sorted(seen)
        assert seen[-1] == (total, total)

    def test_cancel_ends_the_work(self, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What check_cancel raises comes out before the next batch is read."""
        monkeypatch.setattr("mlxchat.model.checkpoint._EVALUATE_BYTES", 1)
        calls: list[int] = []

        def check_cancel() -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt

        done: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            evaluate_arrays(
                Checkpoint.open(good).load().values(),
                on_progress=lambda d, _: done.append(d),
                check_cancel=check_cancel,
            )
        assert len(done) == 2

    def test_file_cut_after_the_check(self, good: Path) -> None:
        """A file that changes between check and load gives our error, not MLX's."""
        checkpoint = Checkpoint.open(good)
        (good / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"{broken}")
        with pytest.raises(CheckpointError, match="MLX cannot read"):
            checkpoint.load()
        write_safetensors(good / "model.safetensors", SMALL)
        with pytest.raises(CheckpointError, match="changed while it was read"):
            checkpoint.load()


class TestFingerprint:
    def test_same_content_same_identity(self, good: Path, tmp_path: Path) -> None:
        """Another folder with the same files is the same model."""
        twin = make_good_folder(tmp_path / "twin")
        os.utime(twin / "model.safetensors", (1, 1))
        same = compute_fingerprint(Checkpoint.open(twin))
        assert compute_fingerprint(Checkpoint.open(good)) == same
        assert len(same) == 64

    @pytest.mark.parametrize("hash_all_bytes", [1 << 20, 0])
    def test_any_change_is_another_model(
        self, good: Path, monkeypatch: pytest.MonkeyPatch, hash_all_bytes: int
    ) -> None:
        """A changed config or one changed weight gives another identity, for large files too."""
        monkeypatch.setattr("mlxchat.model.checkpoint._HASH_ALL_BYTES", hash_all_bytes)
        file = good / "model.safetensors"
        os.utime(file, ns=(10**18, 10**18))
        seen = {compute_fingerprint(Checkpoint.open(good))}
        assert compute_fingerprint(Checkpoint.open(good)) in seen
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        seen.add(compute_fingerprint(Checkpoint.open(good)))
        config = read_config(good) | {"rope_theta": 5e5}
        write_json(good / "config.json", config)
        seen.add(compute_fingerprint(Checkpoint.open(good)))
        assert len(seen) == 3

    def test_hub_blob_is_its_own_identity(self, good: Path, tmp_path: Path) -> None:
        """A file of the Hub cache is known by its blob's name, so its content is not read."""
        blob = tmp_path / "blobs" / ("a" * 64)
        blob.parent.mkdir()
        (good / "model.safetensors").rename(blob)
        (good / "model.safetensors").symlink_to(blob)
        first = compute_fingerprint(Checkpoint.open(good))
        os.utime(blob, (1, 1))
        assert compute_fingerprint(Checkpoint.open(good)) == first
        other = blob.with_name("b" * 64)
        blob.rename(other)
        (good / "model.safetensors").unlink()
        (good / "model.safetensors").symlink_to(other)
        assert compute_fingerprint(Checkpoint.open(good)) != first


def test_reading_does_not_import_mlx(good: Path) -> None:
    """A folder is checked and identified without MLX, so that `models list` stays quick."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from mlxchat.model.checkpoint import *;"
        "import mlxchat.model.hub;"
        "f = Path(sys.argv[1]); read_config(f); compute_fingerprint(Checkpoint.open(f));"
        "heavy = {'mlx', 'huggingface_hub', 'numpy', 'safetensors'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(good)], check=True, timeout=60)


def test_written_file_is_what_others_read(tmp_path: Path) -> None:
    """The tests' own writer agrees with the length field of the format."""
    raw = header_bytes({"a": entry()})
    assert int.from_bytes(raw[:8], "little") == len(raw) - 8
