"""Sequences of token ids: what two have in common, and their form in files. Free of MLX."""

import array
import hashlib
import sys
from collections.abc import Sequence


def count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the length of the longest common prefix of two id sequences."""
    a, b = tuple(a), tuple(b)  # comparing tuples runs in C; most are tuples already
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:  # a[:low] equal, a[:high] not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def pack_ids(token_ids: Sequence[int]) -> bytes:
    """Returns token ids as little-endian 32-bit numbers."""
    packed = array.array("i", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """Returns the token ids that `pack_ids` packed."""
    packed = array.array("i")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def hash_ids(token_ids: Sequence[int]) -> str:
    """Returns a hash of token ids, as hexadecimal digits."""
    return hashlib.sha256(pack_ids(token_ids)).hexdigest()
