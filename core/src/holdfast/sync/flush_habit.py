"""Tells whether the next request behind a write is likely to be its flush.

A database that commits writes a block, waits, flushes, waits, and so again: two round trips to every
copy. A primary that has seen a few of these pairs sends the flush along with the write, and has its
answer when it is asked for. A flush at any moment is harmless, so a wrong guess costs one flush and
nothing else; a right one costs none. What a flush promises is none of this module's business.
"""

from __future__ import annotations

from attrs import define

from holdfast.units import KIB

PAIRS_MIN = 4
"""So many pairs of a write and its flush in a row make a habit; one write too many ends it."""
BYTES_MAX = 256 * KIB
"""What is written at once beyond this is no commit."""


@define
class FlushHabit:
    """What one primary has seen of its consumers."""

    _pairs: int = 0
    _batches: int = 0
    """Batches of writes since the last flush."""

    def wrote(self, size_bytes: int) -> bool:
        """Take note of a batch of writes without a flush; whether to flush it unasked."""
        self._batches += 1
        if self._batches > 1:
            self._pairs = 0
            return False
        return self._pairs >= PAIRS_MIN and size_bytes <= BYTES_MAX

    def flushed(self) -> None:
        """Take note that a consumer has asked for a flush."""
        if self._batches == 1:
            self._pairs += 1
        self._batches = 0
