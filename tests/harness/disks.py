"""Small file systems on loop devices, to be filled up or to lose power under a node: needs root."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs
from tests.harness.waiting import wait_until

BLOCK_BYTES = 4096
DISK_BYTES = 1536 << 20
"""Holds some small volumes beside the 1 GiB that a node keeps free."""
_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN of the kernel's fs/ext4/ext4.h: what xfstests cut the power with."""
_NOTHING_MORE = 2
"""EXT4_GOING_FLAGS_NOLOGFLUSH: the journal is not written either."""


@attrs.define
class LoopDisk:
    """An ext4 file system in a sparse file, mounted while the context lasts."""

    image: Path
    at: Path
    """Where it is mounted; made if need be."""
    size_bytes: int = DISK_BYTES

    def __enter__(self) -> Self:
        """Make and mount it."""
        make_image(self.image, self.size_bytes)
        self._mount()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unmount it and remove the file."""
        if kind is None:
            _unmount(self.at)
        else:
            _succeeds(("umount", "--lazy", str(self.at)))
        self.image.unlink(missing_ok=True)

    def cut_power(self) -> None:
        """Let nothing more reach the disk, from this very moment on, and drop what is in caches.

        Whoever has files open gets errors from here on, so it had better not run.
        """
        fd = os.open(self.at, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NOTHING_MORE))
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """Mount what is on the disk; nothing may have files open there."""
        _unmount(self.at)
        self._mount()

    def _mount(self) -> None:
        self.at.mkdir(parents=True, exist_ok=True)
        # The kernel lets go of a loop device a moment after the file system is unmounted.
        command = ("mount", "-o", "loop", str(self.image), str(self.at))
        wait_until(lambda: _succeeds(command), 10, f"{self.image} to be mounted")

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


def make_image(image: Path, size_bytes: int = DISK_BYTES) -> None:
    """Make a sparse file with an empty file system."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    # No blocks kept for root, who would otherwise go on where others find the disk full.
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, timeout=60)


def copy_image(image: Path) -> Path:
    """Copy what a disk holds at this moment, if nothing writes to it, and return the copy."""
    copy = image.with_suffix(".copy")
    subprocess.run(["cp", "--sparse=always", image, copy], check=True, timeout=60)
    return copy


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """Mount an image that nobody needs afterwards, with its journal replayed."""
    at = image.with_suffix(".mounted")
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True, timeout=60)
    try:
        yield at
    finally:
        _unmount(at)
        image.unlink()


def can_make_disks() -> bool:
    """Return whether this process may mount loop devices and has the tools for it."""
    tools = all(map(shutil.which, ("mount", "umount", "mkfs.ext4")))
    return os.geteuid() == 0 and tools and Path("/dev/loop-control").exists()


def _unmount(at: Path) -> None:
    # The threads of a process that was killed have files open for a moment longer.
    wait_until(lambda: _succeeds(("umount", str(at))), 10, f"{at} to be unmounted")


def _succeeds(command: tuple[str, ...]) -> bool:
    return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0
