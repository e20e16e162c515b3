"""What all tests share: a home of their own, and where the material outside the repository lies."""

import os
from pathlib import Path

import pytest

import mlxchat  # noqa: F401  # before a test imports mlx.core, so that OpenBLAS serves it

REPOSITORY = Path(__file__).parents[1]
MLXCHAT_SHARED = Path(os.environ.get("MLXCHAT_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(autouse=True)
def mlxchat_home(tmp_path, monkeypatch):
    """Settings, history and caches of each test lie in its own folder, which is returned."""
    home = tmp_path / "mlxchat-home"
    monkeypatch.setenv("MLXCHAT_HOME", str(home))
    for name in ("MLXCHAT_MODEL", "MLXCHAT_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def shared():
    """The folder of shared material; a test that needs it is skipped without it."""
    if not MLXCHAT_SHARED.is_dir():
        pytest.skip(f"needs the shared folder, which is not at {MLXCHAT_SHARED}")
    return MLXCHAT_SHARED


def pytest_collection_modifyitems(config, items):
    """Tests that fetch a real checkpoint run only when asked for: `pytest -m model`."""
    if "model" in config.getoption("-m"):
        return
    for item in items:
        if item.get_closest_marker("model"):
            item.add_marker(pytest.mark.skip(reason="needs a real checkpoint; run with -m model"))
