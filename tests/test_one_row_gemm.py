"""Our own product of one row: right for every shape, and left out where it cannot be trusted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_openblas import has_openblas

HERE = sys.platform == "linux" and has_openblas() and shutil.which("g++") is not None
pytestmark = pytest.mark.skipif(
    not HERE or "avx2" not in Path("/proc/cpuinfo").read_text(),
    reason="needs OpenBLAS, a compiler and a processor with AVX2",
)
TELL = """
from mlxchat.model.device import load_mlx
mx = load_mlx()
from mlxchat.openblas import describe_openblas
print(describe_openblas())
"""
MULTIPLY = """
mx.set_default_device(mx.cpu)
shapes = [(1, 1), (2, 3), (3, 5), (4, 8), (7, 33), (64, 256), (1535, 257), (1100, 1000)]
for n_out, n_in in shapes:
    w, x = mx.random.normal((n_out, n_in)), mx.random.normal((n_in, 1))
    wide = (w.astype(mx.float64) @ x.astype(mx.float64)).astype(mx.float32)  # is not sgemm
    for number, y in enumerate((
        w @ x,
        (x.T @ w.T).T,
        (x.T @ mx.contiguous(w.T)).T,
        mx.stack([w, 2 * w])[1] @ x / 2,
        (mx.stack([w, 2 * w]) @ x[None])[1] / 2,
        mx.addmm(wide, w, x, alpha=2.0, beta=-1.0),
        mx.contiguous(mx.repeat(w, 2, axis=0))[::2] @ x,
    )):
        error = mx.abs(y - wide).max().item()
        assert error <= 1e-6 * n_in + 1e-6, (n_out, n_in, number, error)
w = mx.ones((6, 40))
w[1, 3], w[5, 39] = mx.nan, mx.inf
y = (w @ mx.ones((40, 1)))[:, 0].tolist()
assert y[0] == 40 and y[1] != y[1] and y[5] == mx.inf, y
many = mx.ones((6, 40)) @ mx.ones((40, 3))
assert (many == 40).all().item()
"""


def run(code: str, folder: Path, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", TELL + code],
        env={
            **os.environ,
            "OPENBLAS_CORETYPE": "Haswell",
            "MLXCHAT_NO_OPENBLAS": "",
            "MLXCHAT_PLAIN_OPENBLAS": "",
            "TMPDIR": str(folder),
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_multiplies_as_others_do(tmp_path: Path) -> None:
    """Any shape, either way round, scaled, added, with numbers that are none."""
    assert run(MULTIPLY, tmp_path).endswith("for Haswell; one row by our own product")
    file = next(tmp_path.glob("mlxchat-*/*.so"))
    made = file.stat().st_mtime_ns
    assert "our own product" in run("", tmp_path)
    assert file.stat().st_mtime_ns == made
    assert [f.name for f in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "environ",
    [
        {"PATH": "/nowhere"},
        {"MLXCHAT_PLAIN_OPENBLAS": "1"},
        {"OPENBLAS_CORETYPE": "Nehalem"},
    ],
)
def test_openblas_serves_alone(environ: dict[str, str], tmp_path: Path) -> None:
    """Without a compiler, where it is not wanted, for other processors."""
    told = run("", tmp_path, **environ)
    assert "for " in told
    assert "our own" not in told


def test_a_folder_that_others_can_change_is_not_used(tmp_path: Path) -> None:
    """Somebody else could have put a library there."""
    folder = tmp_path / f"mlxchat-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert "our own" not in run("", tmp_path)
    assert not list(folder.iterdir())
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert "our own" not in run("", tmp_path)
