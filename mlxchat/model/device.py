"""What machine this is, and what follows from it: backend, dtype plan, memory, BLAS.

On Linux the system's OpenBLAS serves MLX's CPU products (see `openblas.py`); the reference BLAS in
MLX's wheel is forty times as slow.
"""

import contextlib
import gc
import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mlxchat.errors import BackendError
from mlxchat.openblas import (
    SmallProduct,
    explain_absence,
    has_small_kernels,
    openblas,
    openblas_core,
    small_product,
)

Backend = Literal["metal", "cuda", "cpu"]
Blas = Literal["accelerate", "openblas", "bundled", "none"]

# Weights below this stay in processor caches: their rate says nothing of memory.
SMALLEST_STREAM = 64 << 20

# Share of the machine's memory that float32 copies of quantised weights may take on the CPU
# backend.
DEQUANTISE_MEMORY_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """How weights are kept and which kernels run, decided once per process.

    Attributes:
        backend: Where MLX evaluates.
        blas: What serves CPU matrix products.
        float32: Weights become float32 at load, quantised ones where memory allows.
        fast_kernels: `mx.fast` has kernels of its own (GPU); else norms and rotations are written
            out and compiled, which measured 2 to 3 times faster on the CPU backend.
        transposes: Matrices are kept as W.T, for a BLAS that copies them before it multiplies
            (OpenBLAS for AVX2: one row 1.1 to 1.2x faster) or walks through them (reference: 2.8x).
        memory_bytes: Memory that the backend can use.
        small: What a few rows are multiplied with at once (`multiply_rows`); None if with all.
    """

    backend: Backend
    blas: Blas
    float32: bool
    fast_kernels: bool
    transposes: bool
    memory_bytes: int
    small: SmallProduct | None = None

    def can_dequantise(self, num_bytes: int) -> bool:
        """Whether float32 copies of this many bytes fit."""
        return self.float32 and num_bytes <= self.memory_bytes * DEQUANTISE_MEMORY_SHARE


def load_mlx() -> Any:
    """Imports `mlx.core` and returns it.

    Raises:
        BackendError: MLX or its backend library is missing; says what to install.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        fix = (
            "install it with pip install mlx"
            if sys.platform == "darwin"
            else "install one backend: pip install 'mlxchat[cpu]' or 'mlxchat[cuda]', never both"
        )
        raise BackendError(f"MLX cannot be loaded ({error}); {fix}") from error
    return mx


def total_memory_bytes() -> int:
    """Returns the machine's memory in bytes, a container's limit included."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(limit_file).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def available_memory_bytes() -> int:
    """Returns the memory in bytes that arrays can still take without hurting the machine.

    Metal: what is left of the recommended working set; CUDA: of the device's memory. On the CPU
    backend what the system calls available, a container's limit included.
    """
    mx = load_mlx()
    plan = make_device_plan()
    if plan.backend != "cpu":
        return max(plan.memory_bytes - int(mx.get_active_memory()), 0)
    free = plan.memory_bytes - int(mx.get_active_memory())
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free = min(free, int(line.split()[1]) * 1024)
    # What MLX keeps for its next arrays is taken, but can be had.
    return max(free + int(mx.get_cache_memory()), 0)


def release_memory() -> None:
    """Gives memory of arrays that nobody holds any more back to the machine."""
    gc.collect()  # a model holds itself in circles
    load_mlx().clear_cache()


@cache
def make_device_plan() -> DevicePlan:
    """Looks at the loaded MLX and decides how models run. Call on the worker thread."""
    mx = load_mlx()
    if mx.default_device() == mx.Device(mx.gpu):
        backend: Backend = "metal" if mx.metal.is_available() else "cuda"
        info = mx.device_info()
        memory = int(
            info.get("max_recommended_working_set_size")
            or info.get("memory_size")
            or info.get("total_memory")
            or total_memory_bytes()
        )
        if backend == "metal":
            mx.set_wired_limit(memory)  # keeps weights resident between turns
        return DevicePlan(backend, "none", False, True, False, memory)
    blas: Blas = "accelerate" if sys.platform == "darwin" else "bundled"
    if openblas() is not None:
        blas = "openblas"
    return DevicePlan(
        backend="cpu",
        blas=blas,
        float32=True,
        fast_kernels=False,
        transposes=not (blas == "accelerate" or has_small_kernels()),
        memory_bytes=total_memory_bytes(),
        small=small_product(),
    )


@cache
def measure_bandwidth() -> float:
    """Measures how fast this device reads memory, once per process, in bytes per second.

    Decoding reads all weights for each token, so this is what bounds it. The product of a vector
    and a matrix larger than any cache, either way round, and part by part; the best of five.
    """
    mx = load_mlx()
    num_bytes = SMALLEST_STREAM if make_device_plan().backend == "cpu" else 4 * SMALLEST_STREAM
    matrix = mx.ones((num_bytes // 4096, 1024), mx.float32)
    row, column = mx.ones((1, matrix.shape[0])), mx.ones((1024, 1))
    parts = matrix.reshape(-1, 512, 1024)
    mx.eval(matrix, row, column, parts)
    times = []
    for _ in range(5):
        for left, right in ((matrix, column), (row, matrix), (parts, column[None])):
            start = time.perf_counter()
            mx.eval(left @ right)
            times.append(time.perf_counter() - start)
    return num_bytes / min(times)


@cache
def measure_matmul_rate() -> float:
    """Measures how fast this device multiplies matrices, once per process, in FLOP per second.

    A prefill multiplies all its tokens with each weight, so this is what bounds it. The largest
    product that a chunk of 512 tokens meets in a model of medium width, in the type that weights
    have here; a multiplication and an addition count as two. The best of five.
    """
    mx = load_mlx()
    rows, width = 512, 1024
    dtype = mx.float32
    if make_device_plan().backend != "cpu":
        width, dtype = 4096, mx.bfloat16
    left, right = mx.ones((rows, width), dtype), mx.ones((width, width), dtype)
    mx.eval(left, right)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(left @ right)
        times.append(time.perf_counter() - start)
    return 2 * rows * width * width / min(times)


def time_reference_work() -> float:
    """Returns the seconds that a fixed piece of work takes now: small products and what is between.

    It depends on the machine and what else that does, and on MLX, but on nothing of ours, and it
    never changes: measured beside something of ours it tells a busy machine from slower code.
    """
    mx = load_mlx()
    weights = _reference_weights()
    start = time.perf_counter()
    for _ in range(4):
        row = mx.ones((1, 512), mx.float32)
        for _ in range(16):
            row = mx.tanh(row @ weights) + 1.0
        mx.eval(row)
    return time.perf_counter() - start


@cache
def _reference_weights() -> Any:
    mx = load_mlx()
    weights = mx.full((512, 512), 0.001, mx.float32)
    mx.eval(weights)
    return weights


def format_backend(plan: DevicePlan) -> str:
    """Returns one line such as "CPU (OpenBLAS), float32" for banners and reports."""
    if plan.backend != "cpu":
        return {"metal": "Metal", "cuda": "CUDA"}[plan.backend]
    blas = {"openblas": "OpenBLAS", "accelerate": "Accelerate", "bundled": "reference BLAS"}
    return f"CPU ({blas[plan.blas]}), float32"


def describe() -> list[tuple[str, str]]:
    """Returns what `doctor` shows of the machine and its backend, as (label, value) rows."""
    mx = load_mlx()
    plan = make_device_plan()
    rows = [
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("memory", f"{total_memory_bytes() / 2**30:.1f} GiB"),
        ("backend", format_backend(plan)),
        ("mlx device", str(mx.default_device())),
    ]
    if plan.backend == "cpu" and sys.platform == "linux":
        found = f"{openblas()}, for {openblas_core()}" if openblas() else explain_absence()
        rows.append(("OpenBLAS", found))
        compiler = shutil.which("g++")
        rows.append(
            (
                "g++",
                compiler or "not found: MLX runs uncompiled, each token costs more; install g++",
            )
        )
    return rows
