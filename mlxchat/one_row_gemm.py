"""Our own product of one row and a matrix, where OpenBLAS's copies the matrix first.

MLX multiplies through `cblas_sgemm` only. For processors with AVX2 OpenBLAS's takes three times as
long for one row as reading the weights does, and every decoded token is one row. A small library
(`one_row_gemm.cpp`) goes before OpenBLAS, multiplies one row, and hands on the rest. The compiler
that MLX itself needs on Linux makes it, once, and it is kept beside MLX's own in the folder for
temporary files; without a compiler OpenBLAS serves alone.
"""

import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".cpp")
# Sums in any order, as every BLAS does; nothing that changes how numbers are treated elsewhere.
_FLAGS = (
    *("-shared", "-fPIC", "-O3", "-mavx2", "-mfma"),
    *("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno"),
)


def put_before(openblas: ctypes.CDLL) -> bool:
    """Loads the library, where it can be made, and returns whether MLX will find it.

    Args:
        openblas: Loaded, but not yet where MLX looks.
    """
    if os.environ.get("MLXCHAT_PLAIN_OPENBLAS"):
        return False
    try:
        file = _make()
        if file is None:
            return False
        library = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    functions = (openblas.cblas_sgemm, openblas.cblas_sgemv)
    library.mlxchat_hand_on(*(ctypes.cast(f, ctypes.c_void_p) for f in functions))
    return True


def _make() -> Path | None:
    """Returns the compiled library; None where it cannot be made, or others could change it."""
    folder = Path(tempfile.gettempdir()) / f"mlxchat-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & 0o022:
        return None
    source = _SOURCE.read_bytes()
    digest = hashlib.sha256(source + " ".join(_FLAGS).encode()).hexdigest()[:16]
    file = folder / f"one_row_gemm-{digest}.so"
    return file if file.exists() or _compile(file) else None


def _compile(file: Path) -> bool:
    compiler = shutil.which("g++")
    if compiler is None:
        return False
    import subprocess

    unfinished = file.with_suffix(f".{os.getpid()}")
    command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(unfinished)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.SubprocessError:
        return False
    unfinished.rename(file)
    return True
