"""The name of a stored prefix's file: all that a search needs to know without opening it.

The key of the model, a hash of the first ids, the length, a hash of all ids, and what it is.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlxchat.engine.token_ids import hash_ids

What = Literal["system", "conversation"]

# Shorter prefixes are computed again as fast as a file is opened and checked.
MIN_IDS = 32
_NAME = re.compile(
    r"(?P<key>[0-9a-f]{32})-(?P<first>[0-9a-f]{16})-(?P<num>[1-9][0-9]{0,8})"
    r"-(?P<ids>[0-9a-f]{32})-(?P<what>[sc])\.safetensors"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored prefix as its name and its directory entry describe it.

    Attributes:
        name: Of the file.
        key: First half of the key of its model.
        first: Hash of its first `MIN_IDS` ids.
        num_ids: Its length.
        ids_hash: Hash of all its ids.
        what: A system prompt or a conversation.
        num_bytes: Size of the file.
        used: When it was last used, in seconds since the epoch.
    """

    name: str
    key: str
    first: str
    num_ids: int
    ids_hash: str
    what: What
    num_bytes: int
    used: float


def make_name(key: str, token_ids: Sequence[int], what: What) -> str:
    """Returns the name of a file.

    Args:
        key: Of the model.
        token_ids: The prefix.
        what: What the ids are.
    """
    first, whole = hash_first(token_ids), hash_ids(token_ids)[:32]
    return f"{key[:32]}-{first}-{len(token_ids)}-{whole}-{what[0]}.safetensors"


def hash_first(token_ids: Sequence[int]) -> str:
    """Returns what stands in the names of all prefixes that begin with the same `MIN_IDS` ids."""
    return hash_ids(token_ids[:MIN_IDS])[:16]


def parse_name(name: str) -> re.Match[str] | None:
    """Returns what a name says, or None where it is not one of a stored prefix."""
    return _NAME.fullmatch(name)


def make_entry(match: re.Match[str], status: os.stat_result) -> Entry:
    """Returns what a name and its directory entry say together."""
    return Entry(
        name=match.string,
        key=match["key"],
        first=match["first"],
        num_ids=int(match["num"]),
        ids_hash=match["ids"],
        what="system" if match["what"] == "s" else "conversation",
        num_bytes=status.st_size,
        used=status.st_mtime,
    )
