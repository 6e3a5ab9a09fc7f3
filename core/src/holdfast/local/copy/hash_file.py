"""The bytes of a hash list in a file whose damage shows.

Each 512-byte sector carries the hashes of 31 chunks and a checksum:

    offset  size  field
         0   496  the hashes of 31 chunks, 16 bytes each
       496    12  zeros
       508     4  CRC-32 (zlib) of all before, seeded with whose list it is and the sector's number

A sector of zeros, such as a hole in the file is made of, has 31 times the hash of zeros: the list of
a sparse volume is sparse itself. Any other sector whose checksum is wrong is told as damaged, and
its hashes count as unknown. 512 bytes, because that is the most that every disk writes in one go or
not at all: a power loss during a write damages no hash beside those that were written.
"""

from __future__ import annotations

import zlib
from typing import Final

from holdfast.local.copy import files
from holdfast.sync.hashlist import HASH_BYTES

SECTOR_BYTES: Final = 512
HASHES_PER_SECTOR: Final = 31
_PAYLOAD: Final = HASHES_PER_SECTOR * HASH_BYTES
_CRC_AT: Final = SECTOR_BYTES - 4
_SPARE: Final = bytes(_CRC_AT - _PAYLOAD)
_ZERO_SECTOR: Final = bytes(SECTOR_BYTES)
_ZERO_HASHES: Final = bytes(_PAYLOAD)
assert len(_SPARE) == 12


def file_bytes(chunks: int) -> int:
    """Return how long the file is for a volume of `chunks` chunks."""
    return -(-chunks // HASHES_PER_SECTOR) * SECTOR_BYTES


class DamagedHashesError(Exception):
    """A sector was found damaged for the first time; `first` and `count` name its chunks.

    From now on it reads as zeros, so whoever meets this first marks those chunks stale, durably,
    and then goes on.
    """

    def __init__(self, first: int) -> None:
        """Tell which chunks the sector's hashes are those of; some may be beyond the end."""
        super().__init__(first)
        self.first = first
        self.count = HASHES_PER_SECTOR


class HashFile:
    """A `HashBuffer` over a file: slices are read and written at their place, checksums apart.

    Not an mmap: a full disk or a bad sector under a mapped page is a signal that kills the process,
    and with it every other copy it serves. Here it is a `CopyError`.
    """

    __slots__ = ("_damaged", "_fd", "_length", "_seed", "_unsynced", "_where")

    def __init__(self, fd: int, chunks: int, where: str, identity: str) -> None:
        """Take over an open file.

        Args:
            fd: Open for reading and writing; what is missing at its end reads as zeros.
            chunks: How many hashes it has.
            where: Its name, for errors.
            identity: Whose list it is; the same at every opening.
        """
        self._fd = fd
        self._length = chunks * HASH_BYTES
        self._where = where
        self._seed = zlib.crc32(identity.encode())
        self._unsynced = False
        self._damaged: set[int] = set()
        """Sectors that were told as damaged and were not written since."""

    def __len__(self) -> int:
        """Return the number of bytes of the hashes."""
        return self._length

    def __getitem__(self, where: slice, /) -> bytes:
        """Read a slice.

        Raises:
            DamagedHashesError: The first time that a damaged sector is met.
            CopyError: The file cannot be read.
        """
        start, stop, _ = where.indices(self._length)
        first = start // _PAYLOAD
        hashes = self._read(first, -(-stop // _PAYLOAD))
        return hashes[start - first * _PAYLOAD : stop - first * _PAYLOAD]

    def __setitem__(self, where: slice, value: bytes, /) -> None:
        """Write a slice; errors as in reading, for the sectors at its ends."""
        start, stop, _ = where.indices(self._length)
        assert stop - start == len(value)
        if not value:
            return
        first, end = start // _PAYLOAD, -(-stop // _PAYLOAD)
        before, after = start - first * _PAYLOAD, end * _PAYLOAD - stop
        if before:
            value = self._read(first, first + 1)[:before] + value
        if after:
            value += self._read(end - 1, end)[-after:]
        raw = b"".join(self._sector(sector, value, first) for sector in range(first, end))
        self._unsynced = True
        with files.errors_named(self._where):
            files.write_all(self._fd, raw, first * SECTOR_BYTES)
        self._damaged.difference_update(range(first, end))

    def sync(self) -> None:
        """Put what was written on stable storage; costs nothing when nothing was."""
        if self._unsynced:
            files.sync(self._fd, self._where)
            self._unsynced = False

    def grow(self, chunks: int) -> None:
        """Make room for the hashes of more chunks, which are zeros; durable on return."""
        self._resize_file(file_bytes(chunks))
        self._length = chunks * HASH_BYTES
        self.sync()

    def clear(self) -> None:
        """Make every hash that of zeros; not durable before `sync`."""
        self._resize_file(0)
        self._resize_file(file_bytes(self._length // HASH_BYTES))
        self._damaged.clear()

    def _resize_file(self, length: int) -> None:
        self._unsynced = True
        with files.errors_named(self._where):
            files.port.ftruncate(self._fd, length)

    def _read(self, first: int, end: int) -> bytes:
        """Return the hashes of the sectors from `first` up to `end`."""
        length = (end - first) * SECTOR_BYTES
        with files.errors_named(self._where):
            raw = files.read_filled(self._fd, length, first * SECTOR_BYTES)
        # A long run of zeros, which is what a sparse volume has, costs one comparison.
        if not raw.strip(b"\0"):
            return bytes((end - first) * _PAYLOAD)
        parts = []
        for sector in range(first, end):
            at = (sector - first) * SECTOR_BYTES
            plain = raw[at : at + _CRC_AT]
            crc = raw[at + _CRC_AT : at + SECTOR_BYTES]
            if self._crc(sector, plain) == int.from_bytes(crc, "little"):
                parts.append(plain[:_PAYLOAD])
            elif raw[at : at + SECTOR_BYTES] == _ZERO_SECTOR or sector in self._damaged:
                parts.append(_ZERO_HASHES)
            else:
                self._damaged.add(sector)
                raise DamagedHashesError(sector * HASHES_PER_SECTOR)
        return b"".join(parts)

    def _sector(self, sector: int, hashes: bytes, first: int) -> bytes:
        at = (sector - first) * _PAYLOAD
        plain = hashes[at : at + _PAYLOAD] + _SPARE
        return plain + self._crc(sector, plain).to_bytes(4, "little")

    def _crc(self, sector: int, plain: bytes) -> int:
        return zlib.crc32(plain, zlib.crc32(sector.to_bytes(8, "little"), self._seed))
