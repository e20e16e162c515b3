"""Decode against the measured memory bandwidth, prefill against the measured matmul rate.

Makes a random checkpoint whose weights no processor cache holds, and measures it with `mlxchat
bench`: the last column of the second table is the share of what this machine can do. On a GPU the
shape is that of Qwen3-0.6B in 4 bits, on the CPU backend a smaller one in float32.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from random_model import make_checkpoint

GPU = {"num_hidden_layers": 28, "hidden_size": 1024, "intermediate_size": 3072}
GPU |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
CPU = {"num_hidden_layers": 8, "hidden_size": 768, "intermediate_size": 2304}
CPU |= {"num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64}


def make(folder: Path) -> None:
    """Writes the checkpoint that suits this machine."""
    import mlx.core as mx

    is_gpu = mx.default_device() == mx.Device(mx.gpu)
    if is_gpu:
        make_checkpoint(folder, bits=4, **GPU)
    else:
        make_checkpoint(folder, **CPU)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args, others = parser.parse_known_args()
    if args.child:
        make(args.child)
        return 0
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "random"  # the name that the table shows
        folder.mkdir()
        subprocess.run([sys.executable, __file__, "--child", folder], check=True)
        bench = [sys.executable, "-m", "mlxchat", "bench", "-m", folder, "-d", "0,2048", *others]
        return subprocess.run(bench, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
