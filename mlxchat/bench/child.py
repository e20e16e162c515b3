"""One process that measures one system: a request on stdin, JSON lines on stdout.

    python -m mlxchat.bench.child mlxchat|mlx-lm

A process of its own gives honest memory peaks, lets Ctrl-C end it at any moment, and lets each
system have the BLAS it would have by itself: a library cannot be unloaded.
"""

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from mlxchat.bench.measure import Measurable, measure, opened
from mlxchat.bench.our_engine import OurEngine
from mlxchat.bench.workload import Request
from mlxchat.errors import MlxchatError


def emit(kind: str, data: Any) -> None:
    """Prints one event."""
    if isinstance(data, tuple):
        data = [asdict(item) for item in data]
    elif is_dataclass(data) and not isinstance(data, type):
        data = asdict(data)
    print(json.dumps({kind: data}), flush=True)


def open_system(name: str, request: Request) -> Measurable:
    """Loads the model in the system of that name."""
    if name == "mlxchat":
        return OurEngine.load(Path(request.folder), request.adapter)
    from mlxchat.bench.peer_process import Peer

    return Peer(Path(request.folder), request.adapter)


def _end_with_parent() -> None:
    """Waits until the parent closes stdin, or is no more; what was to come nobody will read."""
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """Does what the request on stdin says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no event
    sys.stdout = os.fdopen(out, "w")
    request = Request.from_json(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if not request.has_openblas:
        os.environ["MLXCHAT_NO_OPENBLAS"] = "1"
    try:
        with opened(open_system(sys.argv[1], request)) as system:
            measure(system, request, emit)
    except MlxchatError as error:
        emit("error", str(error))
        return 1
    finally:
        from mlxchat.engine.worker import release_streams

        release_streams()
    return 0


if __name__ == "__main__":
    sys.exit(main())
