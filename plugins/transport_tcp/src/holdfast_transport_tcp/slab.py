"""Receive buffers that are written once, handed out as views, and taken back when nobody looks.

A payload is never copied on its way from the socket to whoever keeps it: a frame's payloads are
views into the slab that the operating system wrote into. So a slab may be written again only when no
view of it is left. Python says so itself: a `bytearray` with views refuses to change its size.
Slabs in use are put aside, not copied, and come back warm: fresh memory costs a page fault for each
4 KiB, which is more than receiving them.
"""

from __future__ import annotations

from typing import Final

from holdfast.units import KIB, MIB

SLAB_BYTES_MIN: Final = 256 * KIB
SLAB_BYTES_LARGE: Final = 2 * MIB
"""What a link that receives large frames reads into."""
ROOM_BYTES_MIN: Final = 64 * KIB
"""Less room than this at the end of a slab is not worth a system call."""
SHELF_BYTES_MAX: Final = 64 * MIB
"""What one transport keeps aside for reuse; beyond it memory goes back to the allocator."""


def is_free(slab: bytearray) -> bool:
    """Return whether no view of `slab` exists."""
    try:
        slab.append(0)
    except BufferError:
        return False
    slab.pop()
    return True


class Shelf:
    """The slabs of one transport that no link is writing into, some of them still looked at."""

    def __init__(self) -> None:
        self._slabs: list[bytearray] = []
        self._bytes = 0

    def take(self, size: int) -> bytearray:
        """Return a slab of at least `size` bytes that nobody looks at; its contents are old."""
        for index, slab in enumerate(self._slabs):
            if size <= len(slab) <= 4 * size and is_free(slab):
                del self._slabs[index]
                self._bytes -= len(slab)
                return slab
        return bytearray(size)

    def put(self, slab: bytearray) -> None:
        """Keep `slab` for later use, forgetting the oldest ones beyond the limit."""
        self._slabs.append(slab)
        self._bytes += len(slab)
        while self._bytes > SHELF_BYTES_MAX:
            self._bytes -= len(self._slabs.pop(0))


class Inbox:
    """The bytes that one link has received and not yet turned into frames.

    Invariant: `0 <= start <= end <= len(slab)`; the bytes between are the unread ones.
    """

    __slots__ = ("_shelf", "_size", "end", "needed", "slab", "start")

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._size = SLAB_BYTES_MIN
        self.slab = shelf.take(self._size)
        self.start = 0
        self.end = 0
        self.needed = 0
        """Length of the frame that begins at `start`, once its header is known, else 0."""

    def buffer(self) -> memoryview:
        """Return where the next bytes go: room for the rest of the frame, or as much as there is."""
        if self.start == self.end and self.start and is_free(self.slab):
            self.start = self.end = 0
        room = len(self.slab) - self.end
        if room < ROOM_BYTES_MIN or self.start + self.needed > len(self.slab):
            self._turn_over()
        return memoryview(self.slab)[self.end :]

    def _turn_over(self) -> None:
        """Move the unread bytes to the beginning of this slab, or of another if this is in use."""
        unread = self.end - self.start
        if self.needed > self._size // 4:
            self._size = SLAB_BYTES_LARGE
        size = max(self._size, self.needed + ROOM_BYTES_MIN)
        old = self.slab
        if len(old) < size or not is_free(old):
            self.slab = self._shelf.take(size)
            self._shelf.put(old)
        self.slab[:unread] = memoryview(old)[self.start : self.end]
        self.start, self.end = 0, unread

    def close(self) -> None:
        """Give the slab back."""
        self._shelf.put(self.slab)
        self.slab = bytearray()
        self.start = self.end = self.needed = 0
