"""Average checkpoints of one run: `average.py OUT.safetensors IN.safetensors ...`."""

from __future__ import annotations

import sys

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def main() -> None:
    out, *files = sys.argv[1:]
    parts = [load_file(f) for f in files]
    with safe_open(files[0], "pt") as first:
        meta = first.metadata()
    save_file({k: sum(p[k] for p in parts) / len(parts) for k in parts[0]}, out, metadata=meta)


if __name__ == "__main__":
    main()
