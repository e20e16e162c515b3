"""What a measurement was made on: machine, versions, settings. Free of MLX."""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("mlx", "mlx-cpu", "mlx-metal", "mlx-cuda-13", "mlx-lm")


def describe_machine() -> dict[str, Any]:
    """Returns the machine, the versions and how busy the machine is now."""
    from mlxchat import __version__

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "mlxchat": __version__,
        "commit": commit(),
        "packages": versions(_PACKAGES),
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS") or "all",
        "blas_core": os.environ.get("OPENBLAS_CORETYPE") or "",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """Returns the name of the processor: `Apple M4 Max`."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def commit() -> str:
    """Returns the commit of a clone, with `+` where files were changed; nothing elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    name = _output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return f"{name}{'+' if name and changed else ''}"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
