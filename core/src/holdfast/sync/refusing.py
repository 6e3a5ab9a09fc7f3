"""What a consumer's request is refused with: errno values by access, and for requests out of bounds."""

from __future__ import annotations

import errno

from holdfast.model import Access
from holdfast.units import REQUEST_BYTES_MAX, SECTOR_BYTES

MISALIGNED = SECTOR_BYTES - 1
"""The bits that offsets and lengths must not have."""

ERRNOS = {
    Access.READ_ONLY: (0, errno.EPERM),
    Access.ERROR: (0, errno.EIO),
    Access.NONE: (errno.EIO, errno.EIO),
}
"""Access to (errno of reads, errno of writes); what is not listed is served or waits."""


def write_errno(offset: int, length: int, size_bytes: int) -> int:
    """Return why a write of `length` bytes at `offset` of a volume of `size_bytes` cannot be."""
    if (offset | length) & MISALIGNED or length <= 0 or length > REQUEST_BYTES_MAX:
        return errno.EINVAL
    return errno.ENOSPC if offset + length > size_bytes else errno.EINVAL
