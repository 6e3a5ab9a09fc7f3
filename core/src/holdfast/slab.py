"""The buffer that a connection receives into, made so that payloads are handed on without a copy.

Requests point into the slab by memoryviews. A slab that is still pointed into is never written again:
another one takes its place, and it comes back once nobody refers to it. It knows no protocol.
"""

from __future__ import annotations

import attrs

from holdfast.units import KIB, MIB

SLAB_BYTES = 512 * KIB
"""Holds 120 requests of 4 KiB; smaller ones were measured to be replaced too often."""
SPARE_BYTES_MAX = 16 * MIB
"""Slabs kept to be used again, per connection: their pages are already there."""


@attrs.define
class Slab:
    """Receives at `end`, is read from `start`; what lies between is not parsed yet."""

    start: int = 0
    end: int = 0
    _memory: bytearray = attrs.field(factory=lambda: bytearray(SLAB_BYTES), repr=False)
    view: memoryview = attrs.field(init=False, repr=False)
    _spares: list[bytearray] = attrs.field(factory=list, repr=False)

    def __attrs_post_init__(self) -> None:
        """Open the view."""
        self.view = memoryview(self._memory)

    def space(self, wanted: int) -> memoryview:
        """Return where to receive: room for at least the rest of `wanted` bytes from `start` on.

        Args:
            wanted: Bytes that the request at `start` takes in all, as far as known.
        """
        if self.start + wanted > len(self._memory) or (
            self.start == self.end and 2 * self.end > len(self._memory)
        ):
            self._replace(wanted)
        return self.view[self.end :]

    def _replace(self, wanted: int) -> None:
        """Continue at the beginning of a slab that nobody points into."""
        old, rest = self._memory, self.view[self.start : self.end]
        self._spares.append(old)
        for index, spare in enumerate(self._spares):
            if len(spare) < wanted or (spare is old and rest):
                continue
            if spare is old:
                rest.release()
                self.view.release()
            if _is_free(spare):
                self._memory = self._spares.pop(index)
                break
        else:
            self._memory = bytearray(_size_for(wanted))
        self.view = memoryview(self._memory)
        self.end -= self.start
        if self.end:
            self.view[: self.end] = rest
        self.start = 0
        while sum(map(len, self._spares)) > SPARE_BYTES_MAX:
            self._spares.pop(0)


def _size_for(wanted: int) -> int:
    """Return the size of a slab that takes requests of `wanted` bytes: several, unless huge."""
    if wanted <= SLAB_BYTES // 8:
        return SLAB_BYTES
    return max(wanted, min(4 * wanted, 8 * MIB))


def _is_free(memory: bytearray) -> bool:
    """Return whether no memoryview points into `memory`."""
    try:
        # A bytearray refuses to change its length while it is pointed into. Taking one byte off and
        # putting it back moves nothing, because its allocation stays.
        memory.pop()
    except BufferError:
        return False
    memory.append(0)
    return True
