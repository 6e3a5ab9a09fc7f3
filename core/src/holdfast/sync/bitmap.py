"""A set of small numbers as bits: which chunks are dirty, which regions carry write intent.

The maps here reach 16 million bits (a 1 TiB volume's chunks) and are nearly always nearly empty, so
what matters is to cross empty and full stretches at the speed of `memcmp` and to set a few bits in a
fraction of a microsecond. Knows nothing of what a bit stands for, nor where the bytes are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Self

_BLOCK: Final = 4096
"""Bytes compared at once: `startswith` takes 60 ns of call and 90 ns of memcmp for this many."""
_WORD: Final = 64
"""Bytes taken as one integer: small enough that finding its lowest bit costs about 100 ns."""
_ZEROS: Final = bytes(_BLOCK)
_ONES: Final = b"\xff" * _BLOCK
_ZERO_WORD: Final = bytes(_WORD)
_ONE_WORD: Final = b"\xff" * _WORD


class Bitmap:
    """A fixed number of bits, all clear at first; bit `i` is bit `i % 8` of byte `i // 8`.

    Ranges that reach outside are a mistake of the caller (`assert`). Not safe for use from several
    threads at once, except that `test` and `next_set` may run beside anything.
    """

    __slots__ = ("_bytes", "_size")

    def __init__(self, size: int) -> None:
        """Make a map of `size` clear bits."""
        assert size >= 0
        self._size = size
        self._bytes = bytearray((size + 7) >> 3)
        # Invariant: the bits of the last byte beyond `_size` are clear.

    # --- as bytes --------------------------------------------------------------------------

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview, size: int) -> Self:
        """Return the map of `size` bits kept in `raw`, little-endian in bits and bytes.

        Bytes that `raw` has too few are clear (the map has grown since); bits that it has too many
        are ignored.
        """
        bitmap = cls(size)
        length = min(len(raw), len(bitmap._bytes))
        bitmap._bytes[:length] = raw[:length]
        bitmap._trim()
        return bitmap

    def to_bytes(self) -> bytes:
        """Return the bits as `ceil(size / 8)` bytes, little-endian; the spare ones are zero."""
        return bytes(self._bytes)

    def bytes_between(self, start: int, stop: int) -> bytes:
        """Return the bytes `start` to `stop` of `to_bytes`, for writing a part of a map."""
        return bytes(self._bytes[start:stop])

    # --- changing --------------------------------------------------------------------------

    def set_range(self, start: int, length: int = 1) -> None:
        """Set `length` bits from `start` on."""
        end = start + length
        assert 0 <= start <= end <= self._size, (start, length, self._size)
        first, last = start >> 3, (end - 1) >> 3
        if length <= 0:
            return
        low = 0xFF & (0xFF << (start & 7))
        high = 0xFF >> (7 - ((end - 1) & 7))
        data = self._bytes
        if first == last:
            data[first] |= low & high
            return
        data[first] |= low
        data[last] |= high
        if last - first > 1:
            data[first + 1 : last] = b"\xff" * (last - first - 1)

    def clear(self, start: int, length: int = 1) -> None:
        """Clear `length` bits from `start` on."""
        end = start + length
        assert 0 <= start <= end <= self._size, (start, length, self._size)
        if length <= 0:
            return
        first, last = start >> 3, (end - 1) >> 3
        keep_low = ~(0xFF << (start & 7)) & 0xFF
        keep_high = ~(0xFF >> (7 - ((end - 1) & 7))) & 0xFF
        data = self._bytes
        if first == last:
            data[first] &= keep_low | keep_high
            return
        data[first] &= keep_low
        data[last] &= keep_high
        if last - first > 1:
            data[first + 1 : last] = bytes(last - first - 1)

    def union(self, other: Bitmap) -> None:
        """Set here every bit that is set in `other`, which may be shorter but not longer."""
        assert other._size <= self._size
        theirs = other._bytes
        # By blocks, so that two nearly empty maps cost no integer of their full size.
        for at in range(0, len(theirs), _BLOCK):
            if theirs.startswith(_ZEROS, at):
                continue
            piece = theirs[at : at + _BLOCK]
            both = int.from_bytes(piece, "little") | int.from_bytes(
                self._bytes[at : at + len(piece)], "little"
            )
            self._bytes[at : at + len(piece)] = both.to_bytes(len(piece), "little")

    def subtract(self, other: Bitmap) -> None:
        """Clear here every bit that is set in `other`, which may be of another size."""
        theirs = other._bytes
        for at in range(0, min(len(theirs), len(self._bytes)), _BLOCK):
            if theirs.startswith(_ZEROS, at):
                continue
            mine = self._bytes[at : at + _BLOCK]
            gone = int.from_bytes(theirs[at : at + len(mine)], "little")
            left = int.from_bytes(mine, "little") & ~gone
            self._bytes[at : at + len(mine)] = left.to_bytes(len(mine), "little")

    def resize(self, size: int) -> None:
        """Make the map `size` bits long; new bits are clear, bits beyond are forgotten."""
        assert size >= 0
        length = (size + 7) >> 3
        if length > len(self._bytes):
            self._bytes.extend(bytes(length - len(self._bytes)))
        else:
            del self._bytes[length:]
        self._size = size
        self._trim()

    def copy(self) -> Bitmap:
        """Return an independent map with the same bits."""
        return Bitmap.from_bytes(self._bytes, self._size)

    # --- asking ----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of bits, set or not."""
        return self._size

    def __eq__(self, other: object) -> bool:
        """Compare size and bits."""
        if not isinstance(other, Bitmap):
            return NotImplemented
        return self._size == other._size and self._bytes == other._bytes

    __hash__ = None  # type: ignore[assignment]  # It changes.

    def __repr__(self) -> str:
        """Return the size and the number of set bits."""
        return f"Bitmap({self._size} bits, {self.count()} set)"

    def test(self, index: int) -> bool:
        """Return whether the bit `index` is set."""
        assert 0 <= index < self._size, (index, self._size)
        return bool(self._bytes[index >> 3] >> (index & 7) & 1)

    __contains__ = test

    def any(self, start: int = 0, stop: int | None = None) -> bool:
        """Return whether any bit from `start` up to `stop` (default: the end) is set."""
        return self.next_set(start, stop) is not None

    def count(self, start: int = 0, stop: int | None = None) -> int:
        """Return how many bits from `start` up to `stop` (default: the end) are set."""
        stop = self._size if stop is None else min(stop, self._size)
        if start >= stop:
            return 0
        first, last = start >> 3, (stop + 7) >> 3
        total = 0
        for at in range(first, last, _BLOCK):
            if not self._bytes.startswith(_ZEROS, at):
                piece = self._bytes[at : min(at + _BLOCK, last)]
                total += int.from_bytes(piece, "little").bit_count()
        total -= (self._bytes[first] & ~(0xFF << (start & 7)) & 0xFF).bit_count()
        if stop & 7:
            total -= (self._bytes[last - 1] >> (stop & 7)).bit_count()
        return total

    def next_set(self, start: int, stop: int | None = None) -> int | None:
        """Return the first set bit from `start` on and below `stop`, or None."""
        stop = self._size if stop is None else min(stop, self._size)
        if start >= stop:
            return None
        data = self._bytes
        at = start >> 3
        found = data[at] >> (start & 7)
        if found:
            index = start + (found & -found).bit_length() - 1
            return index if index < stop else None
        end = (stop + 7) >> 3
        at += 1
        while at < end:
            if data.startswith(_ZEROS, at):
                at += _BLOCK
            elif data.startswith(_ZERO_WORD, at):
                at += _WORD
            else:
                found = int.from_bytes(data[at : at + _WORD], "little")
                if found:
                    index = (at << 3) + (found & -found).bit_length() - 1
                    return index if index < stop else None
                at += _WORD
        return None

    def next_clear(self, start: int, stop: int | None = None) -> int:
        """Return the first clear bit from `start` on, or `stop` (default: the end) if none is."""
        stop = self._size if stop is None else min(stop, self._size)
        if start >= stop:
            return stop
        data = self._bytes
        at = start >> 3
        # The zeros that a shift brings in are above the byte; only its own bits may answer.
        found = ~data[at] & 0xFF & (0xFF << (start & 7))
        if found:
            return min((at << 3) + (found & -found).bit_length() - 1, stop)
        end = (stop + 7) >> 3
        at += 1
        while at < end:
            if data.startswith(_ONES, at):
                at += _BLOCK
            elif data.startswith(_ONE_WORD, at):
                at += _WORD
            else:
                # Above the last byte `~` brings in ones, which `min` cuts to `stop`.
                found = ~int.from_bytes(data[at : at + _WORD], "little")
                index = (at << 3) + (found & -found).bit_length() - 1
                if index < (at + _WORD) << 3:
                    return min(index, stop)
                at += _WORD
        return stop

    def runs(
        self, start: int = 0, stop: int | None = None, *, longest: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Return the stretches of set bits as (first, length), in rising order.

        Bits may change while the iteration goes on: it never goes back, and sees what is set when
        it arrives. About 1 us per run; empty and full stretches cost next to nothing.

        Args:
            start: The first bit looked at.
            stop: The bit before which to end; None is the end of the map.
            longest: Longer stretches are told in pieces of this many bits; None tells them whole.
        """
        first = self.next_set(start, stop)
        while first is not None:
            limit = self._size if stop is None else min(stop, self._size)
            if longest is not None:
                limit = min(limit, first + longest)
            end = self.next_clear(first, limit)
            if end > first:
                yield first, end - first
            first = self.next_set(end, stop)

    def __iter__(self) -> Iterator[int]:
        """Return the set bits in rising order."""
        for first, length in self.runs():
            yield from range(first, first + length)

    def _trim(self) -> None:
        """Clear the spare bits of the last byte."""
        if self._size & 7:
            self._bytes[-1] &= 0xFF >> (8 - (self._size & 7))


def consecutive(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Return numbers, in their order, as runs (first, count) in which each is one more."""
    first, count = 0, 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
