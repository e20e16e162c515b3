"""What the machine runs on: a draft is not read ahead at the expense of a battery."""

import subprocess
import sys
import time
from pathlib import Path

# Asking takes 10 ms on a Mac; a cable is plugged in seldom.
_ASK_EVERY_S = 30.0
_SUPPLIES = Path("/sys/class/power_supply")


class PowerSupply:
    """Knows whether the machine runs on its battery; asks anew after a while.

    Args:
        folder: Where Linux tells of its supplies.
        platform: As `sys.platform`.
    """

    def __init__(self, folder: Path = _SUPPLIES, platform: str = sys.platform) -> None:
        self._folder, self._platform = folder, platform
        self._asked_at: float | None = None
        self._is_battery = False

    @property
    def is_battery(self) -> bool:
        """Whether no cable feeds the machine; False where nothing can be known. May take a while.

        Not to be asked on the thread that takes the keys.
        """
        now = time.monotonic()
        if self._asked_at is None or now - self._asked_at > _ASK_EVERY_S:
            self._asked_at = now
            is_mac = self._platform == "darwin"
            self._is_battery = ask_pmset() if is_mac else read_supplies(self._folder)
        return self._is_battery


def ask_pmset(program: str = "pmset") -> bool:
    """Asks macOS whether it draws battery power."""
    try:
        done = subprocess.run(
            [program, "-g", "batt"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"'Battery Power'" in done.stdout.partition(b"\n")[0]


def read_supplies(folder: Path) -> bool:
    """Reads Linux's supplies: a battery of the machine discharges, and no other supply is on."""
    is_discharging = False
    try:
        supplies = list(folder.iterdir())
    except OSError:
        return False
    for supply in supplies:
        if _read(supply / "scope") == "Device":  # that of a mouse
            continue
        if _read(supply / "type") == "Battery":
            is_discharging |= _read(supply / "status") == "Discharging"
        elif _read(supply / "online") == "1":
            return False
    return is_discharging


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
