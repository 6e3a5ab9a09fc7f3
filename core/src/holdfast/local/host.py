"""What the node must know of the machine it runs on; knows nothing of volumes or groups.

Everything here is Linux: leases, intent maps and window identities lean on a boot id that changes
with every boot and on a monotonic clock that all processes of one boot share.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

import attrs

from holdfast.errors import UnavailableError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def boot_id() -> str:
    """Return the kernel's id of this boot, 36 characters; it cannot change while we run.

    Raises:
        UnavailableError: The kernel does not show one.
    """
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError as error:
        raise UnavailableError(
            f"The boot id of this machine cannot be read: {error}.",
            hint=f"Holdfast needs Linux with /proc mounted, and {_BOOT_ID} readable.",
        ) from error


def monotonic() -> float:
    """Return seconds on CLOCK_MONOTONIC, which all processes of one boot share.

    It stands still while the machine is suspended, so a suspended machine's leases run on afterwards.
    """
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@attrs.frozen
class Space:
    """The room of the file system under a directory, in bytes."""

    total_bytes: int
    free_bytes: int
    """What this process may still write: without the reserve that a file system keeps for root."""


def space_of(directory: Path) -> Space:
    """Return the room of the file system that holds `directory`.

    Raises:
        UnavailableError: The directory is missing or cannot be read.
    """
    try:
        stat = os.statvfs(directory)
    except OSError as error:
        raise UnavailableError(
            f"The free space of {directory} cannot be read: {error.strerror}.",
            hint="Create the directory, or name another one under [node] data.",
        ) from error
    return Space(stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize)
