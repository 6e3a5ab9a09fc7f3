"""The store of one copy: data, superblock, write intent, hashes, dirty maps.

All methods block and may be called from one thread at a time, except `read`, `extents`, `hashes` and
`probe`, which may run beside `apply` from other threads. Failures are `CopyError` with a reason; a caller
treats every one of them as the loss of this copy, never as something to retry (a failed fsync may
have dropped the very pages that a second one would claim to have written).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import attrs

from holdfast.messages import Extent, Op
from holdfast.units import CopyId, Epoch, VolumeId
from holdfast.units import Sequence as Position


@attrs.frozen
class Superblock:
    """Who this copy is and what it last knew; two slots on disk, written and flushed in turn."""

    cluster: str
    """The cluster's name; a copy of another one is not opened."""
    volume: VolumeId
    """Whose bytes these are."""
    copy: CopyId
    """Which copy of it."""
    incarnation: str
    """Drawn when the directory is made; another one is another disk."""
    boot: str
    """Boot id of the machine when last opened for use."""
    epoch: Epoch
    """The highest epoch seen; anything lower is refused (R3)."""
    state: str
    """`CopyState` value: `syncing` is written before the first sync write."""
    durable: Position
    """Everything up to here was on stable storage when this was written."""
    applied: Position
    """Everything up to here was applied when this was written; exact only when `clean`."""
    clean: bool
    """Closed in order: nothing is suspect."""
    size_bytes: int
    """How large the copy is."""
    hash_key: str
    """64 hexadecimal digits."""
    generation: int = 0
    """Rises with every write of the superblock; the store sets it."""


class CopyStore(Protocol):
    """One open copy."""

    superblock: Superblock
    """As last saved."""
    rebooted: bool
    """The boot id differed from the one on disk when opened: unflushed writes may be gone."""
    was_clean: bool
    """The superblock said `clean` when opened."""
    fresh: bool
    """Made by this very open, nothing but zeros."""

    def apply(self, ops: Sequence[Op]) -> None:
        """Apply writes, discards and zeroes in order, into the page cache; FLUSH is skipped here.

        Marks the touched chunks' hashes stale. The regions touched must have been marked before.
        """
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes; holes read as zeros."""
        ...

    def flush(self) -> None:
        """Put everything applied before the call on stable storage (fdatasync)."""
        ...

    def mark_regions(self, regions: Iterable[int]) -> None:
        """Mark write intent, durable on return; one write and one fdatasync for the whole batch."""
        ...

    def clear_regions(self, regions: Iterable[int]) -> None:
        """Unmark write intent.

        Flushes data, staleness and dirty maps first, so that what the mark covered is on disk; need
        not be durable itself on return.
        """
        ...

    def marked_regions(self) -> frozenset[int]:
        """Return the regions with write intent, as on disk."""
        ...

    def save(self, superblock: Superblock) -> None:
        """Write the other slot and flush it; durable on return."""
        ...

    def hashes(self, chunks: Sequence[int]) -> bytes:
        """Return 16 bytes for each chunk, recomputing what is stale.

        Holes and chunks of zeros alike have 16 zero bytes.
        """
        ...

    def tree(self, level: int, indexes: Sequence[int]) -> bytes:
        """Return 16 bytes for each node of the fan-out-256 tree; level 0 is `hashes`."""
        ...

    def refresh_hashes(self, limit: int) -> int:
        """Recompute up to `limit` stale chunk hashes; return how many are still stale."""
        ...

    def zero_chunks(self, chunks: Sequence[int]) -> Sequence[bool]:
        """Return for each chunk whether it is a hole for certain; may say False for zeros."""
        ...

    def extents(self, offset: int, length: int, *, grain: int = 1) -> Sequence[Extent]:
        """Return the holes and data in a range; their lengths add up to `length`.

        Args:
            offset: Where the range begins.
            length: How long it is.
            grain: What is told apart: data in any part of a piece of this size, counted from the
                start of the volume, makes the whole piece data. A file of many small holes is
                told in far fewer extents that way.
        """
        ...

    def load_dirty(self, copy: CopyId) -> bytes | None:
        """Return the dirty map kept for another copy (a bit per chunk, little-endian), or None."""
        ...

    def save_dirty(self, copy: CopyId, bits: bytes) -> None:
        """Keep a dirty map; durable on return."""
        ...

    def drop_dirty(self, copy: CopyId) -> None:
        """Forget a dirty map. Idempotent."""
        ...

    def dirty_maps(self) -> Sequence[CopyId]:
        """Return the copies for which a dirty map is kept."""
        ...

    def probe(self) -> None:
        """Return when the disk itself has answered a small read; caches do not count.

        Returns at once where the disk cannot be asked past the caches. An error is not told.
        """
        ...

    def resize(self, size_bytes: int) -> None:
        """Grow the data, hashes and intent map; durable on return."""
        ...

    def used_bytes(self) -> int:
        """Return the space taken on disk."""
        ...

    def close(self) -> None:
        """Release files and the lock; writes nothing. Idempotent."""
        ...
