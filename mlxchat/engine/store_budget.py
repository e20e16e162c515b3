"""How much of a disk stored prefixes may take, and why one of them was refused."""

import shutil
from dataclasses import dataclass
from pathlib import Path

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that stored prefixes take and may take, and bytes free on their disk."""

    used: int
    allowed: int
    free: int


@dataclass(frozen=True, slots=True)
class Budget:
    """How much disk stored prefixes may take.

    Attributes:
        max_bytes: At most this much in all.
        disk_share: At most this share of what would be free without them.
        min_free_bytes: So much of the disk stays free; where less is free, nothing is stored.
    """

    max_bytes: int = 10 * _GIB
    disk_share: float = 0.1
    min_free_bytes: int = 10 * _GIB

    @classmethod
    def of(cls, max_gib: float | None) -> "Budget":
        """Returns the budget that a person has set; None is the default one."""
        return cls() if max_gib is None else cls(int(max_gib * _GIB), disk_share=1.0)

    def allowed(self, used: int, free: int) -> int:
        """Returns how many bytes the files may take together.

        Args:
            used: Bytes that they take now.
            free: Bytes that are free on their disk now.
        """
        by_share = int((used + free) * self.disk_share)
        by_floor = used + free - self.min_free_bytes
        return max(0, min(self.max_bytes, by_share, by_floor))

    def measure(self, folder: Path, used: int) -> Usage:
        """Returns what the files of a folder take and may take.

        Args:
            folder: It need not exist yet.
            used: Bytes that they take now.
        """
        try:
            free = shutil.disk_usage(_existing(folder)).free
        except OSError:
            free = 0
        return Usage(used, self.allowed(used, free), free)

    def explain_refusal(self, usage: Usage) -> str:
        """Returns why something was not stored though nothing failed."""
        floor, mib = self.min_free_bytes / _GIB, 1 << 20
        if usage.free < self.min_free_bytes:
            return (
                f"nothing is stored while less than {floor:.0f} GiB of the disk are free"
                f" ({usage.free / _GIB:.1f} GiB are); free some space"
            )
        return (
            f"it is larger than stored prompt caches may be together"
            f" ({usage.allowed / mib:.0f} MiB); free some space,"
            " or set another limit with `mlxchat config set cache.max_gib N`"
        )


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
