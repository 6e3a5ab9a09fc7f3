"""Small file systems on loop devices, to be filled up under a node: needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

BLOCK_BYTES = 4096


@attrs.define
class LoopDisk:
    """An ext4 file system in a sparse file, mounted while the context lasts."""

    image: Path
    at: Path
    """Where it is mounted; made if need be."""
    size_bytes: int

    def __enter__(self) -> Self:
        """Make and mount it."""
        self.at.mkdir(parents=True, exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(self.size_bytes)
        # No blocks kept for root, who would otherwise go on where others find the disk full.
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self.image], check=True, timeout=60)
        subprocess.run(["mount", "-o", "loop", self.image, self.at], check=True, timeout=60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmount it and remove the file."""
        subprocess.run(["umount", self.at], check=False, timeout=60)
        self.image.unlink(missing_ok=True)

    def fill(self) -> None:
        """Leave no room on it."""
        ballast = os.open(self._ballast, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            piece = self.size_bytes
            while piece >= BLOCK_BYTES:
                try:
                    os.posix_fallocate(ballast, os.fstat(ballast).st_size, piece)
                except OSError:
                    piece //= 2
        finally:
            os.close(ballast)

    def empty(self) -> None:
        """Give the room back. Idempotent."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.at / "ballast"


def can_make_disks() -> bool:
    """Return whether this process may mount loop devices and has the tools for it."""
    tools = all(map(shutil.which, ("mount", "umount", "mkfs.ext4")))
    return os.geteuid() == 0 and tools and Path("/dev/loop-control").exists()
