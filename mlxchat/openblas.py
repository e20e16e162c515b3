"""OpenBLAS before MLX: the system's library serves MLX's CPU products by symbol interposition.

That works only if it is loaded before `mlx.core`, and nothing would tell if it came later: float32
products would run at 5 GFLOP/s in place of about 200 (one core, measured). So whichever module
imports `mlx.core` first, this one goes before it.
"""

import os
import sys
from typing import Any, NamedTuple

# Processors (of AVX-512) with kernels for small matrices.
_CORES_WITH_SMALL_KERNELS = ("SkylakeX", "Cooperlake", "SapphireRapids")
# Beyond so many threads they copy faster together than one multiplies.
_FEW_THREADS = 4
_NAMES = ("libopenblas.so.0", "libopenblas.so", "libopenblasp.so.0")


class SmallProduct(NamedTuple):
    """The largest product of matrices that is computed without copying them first.

    Found by measuring one to eight rows times 32 to 4,096 with OpenBLAS 0.3.21 for Cooperlake; just
    beyond either bound a product takes three times as long.
    """

    multiplications: int = 1_000_000
    results: int = 1024


class _BeforeMlx:
    """An import hook that loads OpenBLAS when `mlx.core` is about to be imported.

    Attributes:
        library: What serves MLX's products; None where nothing was found or wanted.
        handle: That library, loaded.
        came: `mlx.core` was imported after us.
    """

    def __init__(self) -> None:
        self.library: str | None = None
        self.handle: Any = None
        self.came = False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Finds nothing, but sees what is imported."""
        if fullname == "mlx.core" and not self.came:
            self.came = True
            self.library, self.handle = _load() or (None, None)


_hook = _BeforeMlx()


def watch_imports() -> None:
    """From now on OpenBLAS is loaded before `mlx.core`."""
    if _hook not in sys.meta_path:
        sys.meta_path.insert(0, _hook)


def openblas() -> str | None:
    """Returns the library that serves MLX's products, once `mlx.core` was imported."""
    return _hook.library


def explain_absence() -> str:
    """Returns why there is none."""
    if not _hook.came:
        return "not used: mlx.core was imported before mlxchat; import mlxchat first"
    if os.environ.get("MLXCHAT_NO_OPENBLAS"):
        return "not used: MLXCHAT_NO_OPENBLAS is set"
    return "not found: float32 products are ~40x slower; install libopenblas0-pthread"


def openblas_core() -> str:
    """Returns the processor whose kernels OpenBLAS has chosen, or was told to take: `SkylakeX`."""
    return "" if _hook.handle is None else _hook.handle.openblas_get_corename().decode()


def has_small_kernels() -> bool:
    """Whether it multiplies small matrices as they are, where it copies them first for others."""
    return openblas_core() in _CORES_WITH_SMALL_KERNELS


def small_product() -> SmallProduct | None:
    """Returns what a few rows are best multiplied with at once; None if with all of a matrix.

    Larger matrices are faster part by part (3 times at 2048 x 2048 with two threads, measured).
    """
    if not has_small_kernels() or _hook.handle.openblas_get_num_threads() > _FEW_THREADS:
        return None
    return SmallProduct()


def _load() -> tuple[str, Any] | None:
    if sys.platform != "linux" or os.environ.get("MLXCHAT_NO_OPENBLAS"):
        return None
    import ctypes

    for name in _NAMES:
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        library.openblas_get_corename.restype = ctypes.c_char_p
        return name, library
    return None
