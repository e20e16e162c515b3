"""OpenBLAS goes before MLX, whichever module imports that first."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxchat.openblas import _NAMES


def has_openblas():
    for name in _NAMES:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not has_openblas(), reason="needs the system's OpenBLAS"
)

TELL = """
from mlxchat.model.device import describe, make_device_plan
print(make_device_plan().backend, dict(describe()).get("OpenBLAS"))
"""


def run(code, environ):
    """Returns what Python code prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MLXCHAT_NO_OPENBLAS": "", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def told_by(code, **environ):
    """Returns the backend and what `doctor` says of OpenBLAS."""
    backend, told = run(code + TELL, environ).split(" ", 1)
    if backend != "cpu":
        pytest.skip("MLX multiplies on a GPU here")
    return told


@pytest.mark.parametrize(
    "code",
    [
        "from mlxchat.model.device import load_mlx; load_mlx()",
        "import mlxchat.engine.vectors",
        "import mlxchat, mlx.core",
    ],
)
def test_it_goes_before_mlx(code):
    """It is loaded through `load_mlx`, and where a module of the engine comes first."""
    name, core = told_by(code, OPENBLAS_CORETYPE="Haswell").split(", ")
    assert name in _NAMES
    assert core == "for Haswell"


def test_too_late_is_told():
    """Where MLX was there before mlxchat, it cannot serve, and `doctor` says why."""
    assert told_by("import mlx.core").startswith("not used: mlx.core was imported before mlxchat")


def test_it_can_be_left_out():
    """MLXCHAT_NO_OPENBLAS leaves MLX the BLAS that it brings along."""
    assert told_by("", MLXCHAT_NO_OPENBLAS="1") == "not used: MLXCHAT_NO_OPENBLAS is set"


@pytest.mark.parametrize(
    ("environ", "plan"),
    [
        ({"OPENBLAS_CORETYPE": "Haswell"}, "True None"),
        ({"OPENBLAS_CORETYPE": "SkylakeX", "OPENBLAS_NUM_THREADS": "1"}, "False SmallProduct"),
        ({"OPENBLAS_CORETYPE": "SkylakeX", "MLXCHAT_NO_OPENBLAS": "1"}, "True None"),
    ],
)
def test_products_are_such_as_the_kernels_want_them(environ, plan):
    """The processor that OpenBLAS works for decides, and that it works at all."""
    if plan.startswith("False") and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX-512")
    code = "from mlxchat.model.device import *; load_mlx(); plan = make_device_plan()"
    code += "; print(plan.transposes, plan.small and type(plan.small).__name__)"
    assert run(code, environ) == plan
