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

PROBES: Final = 8
"""Slabs tried at each end of the shelf; one that is in use costs 0.4 us."""


def is_free(slab: bytearray) -> bool:
    """Return whether no view of `slab` exists."""
    try:
        slab.append(0)
    except BufferError:
        return False
    slab.pop()
    return True


class Shelf:
    """The slabs of one transport that no link is receiving into, some of them still looked at.

    A link that goes on receiving keeps its slab; `collect` takes back those of links that do not, so
    that a thousand idle links hold none.
    """

    def __init__(self) -> None:
        self._slabs: list[bytearray] = []
        self._bytes = 0
        self.lent: set[Inbox] = set()
        """Who holds a slab."""

    def collect(self) -> bool:
        """Take back slabs from which everything was read before the last call; whether any is out."""
        for inbox in tuple(self.lent):
            if inbox.start < inbox.end or not inbox.is_resting:
                inbox.is_resting = True
            else:
                inbox.clear()
        return bool(self.lent)

    def take(self, size: int) -> bytearray:
        """Return a slab of at least `size` bytes that nobody looks at; its contents are old.

        The latest ones are tried first, because the processor's cache has them, then the oldest,
        because those are the likeliest to be free. `PROBES` of each bound the search.
        """
        slabs = self._slabs
        count = len(slabs)
        latest = range(count - 1, max(-1, count - 1 - PROBES), -1)
        oldest = range(min(PROBES, max(0, count - PROBES)))
        for index in (*latest, *oldest):
            slab: bytearray = slabs[index]
            if size <= len(slab) <= 4 * size and is_free(slab):
                del slabs[index]
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

    Invariant: `0 <= start <= end <= len(slab)`; the bytes between are the unread ones. Nobody looks
    at what is behind `end`, so that receiving goes on there while earlier frames are still in use.
    """

    __slots__ = ("_shelf", "_size", "end", "is_resting", "needed", "slab", "start")

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._size = SLAB_BYTES_MIN
        self.slab = bytearray()
        self.start = 0
        self.end = 0
        self.needed = 0
        """Length of the frame that begins at `start`, once its header is known, else 0."""
        self.is_resting = False
        """Nothing was received since the shelf looked last."""

    def buffer(self) -> memoryview:
        """Return where the next bytes go: room for the rest of the frame, or as much as there is."""
        self.is_resting = False
        slab = self.slab
        size = len(slab)
        if not size:
            self._shelf.lent.add(self)
            slab = self.slab = self._shelf.take(self._size)
        elif size - self.end < ROOM_BYTES_MIN or self.start + self.needed > size:
            self._turn_over()
            slab = self.slab
        return memoryview(slab)[self.end :]

    def clear(self) -> None:
        """Forget what is unread and give the slab back; whoever looks at it keeps it as it is."""
        if self.slab:
            self._shelf.lent.discard(self)
            self._shelf.put(self.slab)
            self.slab = bytearray()
        self.start = self.end = self.needed = 0

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
        # Between views, because those may overlap.
        memoryview(self.slab)[:unread] = memoryview(old)[self.start : self.end]
        self.start, self.end = 0, unread
