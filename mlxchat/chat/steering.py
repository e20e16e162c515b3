"""What steers a conversation: named vectors with coefficients, from text to a change of the model.

The change is part of what keys and values depend on, so it comes with a key for stored ones.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlxchat.chat.options import Steer
from mlxchat.errors import UsageError

if TYPE_CHECKING:
    from mlxchat.lens.edits import Add

_MOST = 1000.0


def parse_steer(text: str) -> Steer:
    """Reads `NAME:0.6`, also `NAME 0.6`.

    Raises:
        UsageError: It has another form.
    """
    name, _, number = text.strip().replace(" ", ":", 1).rpartition(":")
    try:
        coeff = float(number)
    except ValueError:
        coeff = math.nan
    if not name or not abs(coeff) <= _MOST:
        raise UsageError(
            f"{text!r} steers nothing; give a vector's name and a number, such as formal:0.6"
        )
    return Steer(name.strip(), coeff)


def check_steers(steers: Sequence[Steer]) -> None:
    """Checks that the vectors exist; needs no MLX.

    Raises:
        UsageError: One does not.
    """
    from mlxchat.lens.steering_file import find_vector

    for steer in steers:
        find_vector(steer.name)


def format_steers(steers: Sequence[Steer]) -> str:
    """Returns what steers, in words."""
    return " and ".join(f"{steer.name} at {steer.coeff:g}" for steer in steers)


def make_taps(steers: Sequence[Steer], fingerprint: str, model: str) -> "tuple[Add | None, str]":
    """Loads the vectors and joins them to one change of the model; on the worker thread.

    Args:
        steers: What was asked for; coefficient 0 is the plain model.
        fingerprint: Of the model in memory.
        model: Its name, for people.

    Returns:
        The change, and the key of what is computed with it; None and nothing for the plain model.

    Raises:
        UsageError: A vector is not there, or was made on another model.
    """
    from mlxchat.lens.edits import Add
    from mlxchat.lens.steering_file import find_vector, load_vector

    rows: dict[int, Any] = {}
    binds = []
    for steer in steers:
        info = find_vector(steer.name)
        taps = load_vector(info, fingerprint, model).taps(steer.coeff)
        if taps is None:
            continue
        for layer, row in taps.rows.items():
            rows[layer] = rows[layer] + row if layer in rows else row
        binds.append([hashlib.sha256(info.path.read_bytes()).hexdigest(), steer.coeff])
    return (Add(rows), json.dumps(sorted(binds))) if rows else (None, "")
