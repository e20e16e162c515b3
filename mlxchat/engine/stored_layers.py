"""The layers of a live sequence as the tensors of a file, and back.

Rows that never change may be stored in part, behind a parent's; windows, chunks and recurrent
states are stored whole, as they are at the end of the prefix.
"""

import json
from collections.abc import Iterator

import mlx.core as mx

from mlxchat.engine.prefix_cache import PrefixCache
from mlxchat.engine.stored_file import BadFileError, Description, TensorShape
from mlxchat.model.kv_cache import Meta
from mlxchat.model.safetensors_file import TensorInfo

Arrays = dict[str, mx.array]

# Written between two looks at whether a turn is waiting: about 10 ms.
PIECE_BYTES = 8 << 20

_NAMES = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.float32: "F32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.complex64: "C64",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class LiveLayers:
    """What will be stored of a live sequence: shapes first, then bytes.

    `problem` says why it has no stored form, or nothing.

    Args:
        prefix: The live sequence.
        end: Length of the prefix.
        start: Rows before this position are stored elsewhere.
    """

    def __init__(self, prefix: PrefixCache, end: int, start: int) -> None:
        self._prefix, self._end, self.start = prefix, end, start
        self.meta: Meta = {"layers": len(prefix.cache.layers)}
        self.shapes: list[TensorShape] = []
        self._held: dict[int, Arrays] = {}
        self.problem = ""
        self._num_layers = len(prefix.cache.layers)
        self._collect()

    def _collect(self) -> None:
        """Learns all shapes, and copies what is not rows: it changes with every token."""
        if self._prefix.cache.offsets() - {len(self._prefix.token_ids)}:
            self.problem = "its layers count positions in ways of their own"
            return
        marks = self._prefix.marks.get(self._end)
        for i, layer in enumerate(self._prefix.cache.layers):
            mark = marks[i] if marks and self._end < len(self._prefix.token_ids) else None
            exported = layer.export(self._end, mark, self.start)
            if exported is None:
                self.problem = f"a layer of kind {layer.kind} has no stored form"
                return
            meta, arrays = exported
            self.meta.update({f"{i}.{name}": value for name, value in meta.items()})
            for name, array in arrays.items():
                if array.dtype not in _NAMES:
                    self.problem = f"{array.dtype} has no stored form"
                    return
                self.shapes.append(
                    TensorShape(f"{i}.{name}", _NAMES[array.dtype], array.shape, array.nbytes)
                )
            if layer.kind != "full":
                self._held[i] = arrays
        mx.eval([list(arrays.values()) for arrays in self._held.values()])

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays; ids and header are small beside them."""
        return sum(shape.nbytes for shape in self.shapes)

    def pieces(self) -> Iterator[memoryview]:
        """Yields the bytes of all arrays in order; each array is copied when its turn comes."""
        for i in range(self._num_layers):
            arrays = self._held.pop(i, None)
            if arrays is None:
                exported = self._prefix.cache.layers[i].export(self._end, None, self.start)
                assert exported is not None
                arrays = exported[1]
            # A lazy slice that is kept across a write of the buffer would have it copied.
            mx.eval(list(arrays.values()))
            for name in list(arrays):
                yield from _split(arrays.pop(name))


def _split(array: mx.array) -> Iterator[memoryview]:
    if array.size:
        data = memoryview(array.reshape(-1).view(mx.uint8))  # type: ignore[arg-type]
        for first in range(0, len(data), PIECE_BYTES):
            yield data[first : first + PIECE_BYTES]


def make_array(info: TensorInfo, data: bytes) -> mx.array:
    """Returns the array that a file holds.

    Raises:
        BadFileError: Its type is none that a cache has.
    """
    if info.dtype not in _DTYPES:
        raise BadFileError(f"it holds {info.dtype}, which no cache does")
    dtype = _DTYPES[info.dtype]
    if not info.nbytes:
        return mx.zeros(info.shape, dtype)
    raw = mx.array(memoryview(data))  # type: ignore[arg-type]  # any buffer will do
    return raw.view(dtype).reshape(info.shape)


def read_meta(description: Description) -> Meta:
    """Reads what the layers said of themselves.

    Raises:
        BadFileError: It cannot be read.
    """
    try:
        meta = json.loads(description.cache)
        if isinstance(meta, dict) and isinstance(meta["layers"], int):
            return meta
    except (ValueError, KeyError):
        pass
    raise BadFileError("it does not describe its layers")


def full_layers(meta: Meta) -> set[str]:
    """The numbers of the layers whose rows continue those of the parent."""
    return {str(i) for i in range(int(meta["layers"])) if meta.get(f"{i}.kind") == "full"}
