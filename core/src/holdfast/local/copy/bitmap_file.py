"""A bitmap in a file whose damage shows: write intent, and which chunk hashes are stale.

Both maps are safe in one direction: a bit set too many costs some rehashing, a bit set too few can
cost data. So each 512-byte sector carries 4,064 bits and its own CRC-32, seeded with what the map is,
whose it is, and the sector's number; a sector that is torn, rotten, misplaced or missing counts as
all bits set. 512 bytes, because that is the most that every disk writes in one go or not at all.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from holdfast.local.copy import files
from holdfast.sync.bitmap import Bitmap, consecutive

SECTOR_BYTES: Final = 512
_PAYLOAD: Final = SECTOR_BYTES - 4
BITS_PER_SECTOR: Final = _PAYLOAD * 8
_CREATE_SECTORS: Final = 2048
"""A new map is written in pieces of 1 MiB."""


class BitmapFile:
    """A bitmap in memory and its file. Changing `bits` directly needs a `touch` beside it."""

    __slots__ = ("_changed", "_fd", "_seed", "_unsynced", "_where", "bits")

    def __init__(self, fd: int, where: str, bits: Bitmap, seed: int) -> None:
        """Take over an open file that holds `bits`, but for what is touched."""
        self.bits = bits
        self._fd = fd
        self._where = where
        self._seed = seed
        self._changed: set[int] = set()
        self._unsynced = False

    @classmethod
    def create(cls, fd: int, path: Path, size: int, identity: str) -> Self:
        """Write a map of `size` clear bits and flush it.

        Args:
            fd: The file, empty and open for writing.
            path: Its name, for errors.
            size: Number of bits.
            identity: What and whose the map is; the same at every opening.
        """
        created = cls(fd, str(path), Bitmap(size), zlib.crc32(identity.encode()))
        created._write_new(0, created._sectors)
        files.sync(fd, created._where)
        return created

    @classmethod
    def open(cls, fd: int, path: Path, size: int, identity: str) -> tuple[Self, tuple[str, ...]]:
        """Return the map in the file, and what was found damaged, as sentences.

        Damaged sectors count as all set, and are written anew at the next `write`.
        """
        opened = cls(fd, str(path), Bitmap(size), zlib.crc32(identity.encode()))
        with files.errors_named(str(path)):
            raw = _read(fd, opened._sectors * SECTOR_BYTES)
        payload = bytearray()
        damaged: list[int] = []
        for sector in range(opened._sectors):
            at = sector * SECTOR_BYTES
            part = raw[at : at + _PAYLOAD]
            crc = raw[at + _PAYLOAD : at + SECTOR_BYTES]
            if len(crc) < 4 or opened._crc(sector, part) != int.from_bytes(crc, "little"):
                damaged.append(sector)
                part = b"\xff" * _PAYLOAD
            payload += part
        opened.bits = Bitmap.from_bytes(payload, size)
        opened._changed.update(damaged)
        if not damaged:
            return opened, ()
        count = f"{len(damaged)} of {opened._sectors} sectors"
        return opened, (f"{count} of {path} are damaged; what they cover is checked anew.",)

    def set_bits(self, indexes: Iterable[int]) -> None:
        """Set bits; only sectors in which one was clear will be written."""
        for index in indexes:
            if not self.bits.test(index):
                self.bits.set_range(index)
                self._changed.add(index // BITS_PER_SECTOR)

    def clear_bits(self, indexes: Iterable[int]) -> None:
        """Clear bits; only sectors in which one was set will be written."""
        for index in indexes:
            if self.bits.test(index):
                self.bits.clear(index)
                self._changed.add(index // BITS_PER_SECTOR)

    def touch(self, start: int, length: int) -> None:
        """Note that `bits` was changed in a range."""
        if length > 0:
            first, last = start // BITS_PER_SECTOR, (start + length - 1) // BITS_PER_SECTOR
            self._changed.update(range(first, last + 1))

    def write(self) -> None:
        """Write the changed sectors, neighbours together; not durable before `sync`."""
        with files.errors_named(self._where):
            for first, count in consecutive(sorted(self._changed)):
                data = b"".join(self._sector(s) for s in range(first, first + count))
                files.write_all(self._fd, data, first * SECTOR_BYTES)
                self._unsynced = True
        self._changed.clear()

    def sync(self) -> None:
        """Put what was written on stable storage; costs nothing when nothing was."""
        if self._unsynced:
            files.sync(self._fd, self._where)
            self._unsynced = False

    def resize(self, size: int) -> None:
        """Grow; new bits are clear. Durable on return."""
        before = self._sectors
        self.bits.resize(size)
        if self._sectors > before:
            self._write_new(before, self._sectors)
        self.sync()

    @property
    def _sectors(self) -> int:
        return max(1, -(-len(self.bits) // BITS_PER_SECTOR))

    def _sector(self, sector: int) -> bytes:
        part = self.bits.bytes_between(sector * _PAYLOAD, (sector + 1) * _PAYLOAD)
        part = part.ljust(_PAYLOAD, b"\0")
        return part + self._crc(sector, part).to_bytes(4, "little")

    def _crc(self, sector: int, part: bytes) -> int:
        return zlib.crc32(part, zlib.crc32(sector.to_bytes(8, "little"), self._seed))

    def _write_new(self, first: int, stop: int) -> None:
        with files.errors_named(self._where):
            for at in range(first, stop, _CREATE_SECTORS):
                sectors = range(at, min(at + _CREATE_SECTORS, stop))
                data = b"".join(self._sector(s) for s in sectors)
                files.write_all(self._fd, data, at * SECTOR_BYTES)
                self._unsynced = True


def _read(fd: int, length: int) -> bytes:
    """Return the first `length` bytes of a file, or fewer where it ends before."""
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(fd, length, sum(map(len, parts)))
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
