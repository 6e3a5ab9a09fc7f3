"""The dirty maps that a copy keeps of other copies, one small file each.

    offset  size  field
         0     8  magic and format, `HFDIRTY1`
         8     4  CRC-32 (zlib) of all that follows, little-endian
        12     8  length of the bits in bytes, little-endian
        20     -  the bits, compressed with zlib: a map is nearly all zeros

A map is replaced by a rename, so it is the old or the new one. One that is damaged all the same
comes back with every bit set: hashes then tell what really differs, and no difference is missed.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast.errors import UsageError
from holdfast.local.copy import files
from holdfast.units import VOLUME_BYTES_MAX, CopyId, chunks_of

_HEAD: Final = struct.Struct("<8sIQ")
_MAGIC: Final = b"HFDIRTY1"
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,99}")
"""A copy's id comes over the network and must not lead out of the directory."""
_NEW: Final = ".new"
_MAP_BYTES_MAX: Final = chunks_of(VOLUME_BYTES_MAX) // 8 + 4096
"""Of the largest volume, with what its owner puts before the bits; more is never unpacked."""


class DirtyMaps:
    """The directory `dirty` of a copy."""

    __slots__ = ("_directory",)

    def __init__(self, directory: Path) -> None:
        """Use a directory that exists; leftovers of interrupted saves are removed, durably."""
        self._directory = directory
        with files.errors_named(str(directory)):
            for leftover in directory.glob("*" + _NEW):
                files.port.unlink(leftover)
            # A process that was killed may have left renamed or removed what is not so on disk yet.
            # What is read here is acted upon, so a power loss must not bring back what was before.
            files.sync_directory(directory)

    def names(self) -> Sequence[CopyId]:
        """Return the copies for which a map is kept, sorted."""
        with files.errors_named(str(self._directory)):
            names = [path.name for path in self._directory.iterdir()]
        return tuple(CopyId(name) for name in sorted(names) if _NAME.fullmatch(name))

    def load(self, copy: CopyId, size_bytes: int) -> bytes | None:
        """Return the map kept for `copy`, or None; a damaged one has a bit set for every chunk."""
        path = self._path(copy)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise files.copy_error(error, str(path)) from error
        bits = _decode(raw)
        return b"\xff" * -(-chunks_of(size_bytes) // 8) if bits is None else bits

    def save(self, copy: CopyId, bits: bytes) -> None:
        """Keep a map; durable on return."""
        path = self._path(copy)
        new = path.with_name(path.name + _NEW)
        body = len(bits).to_bytes(8, "little") + zlib.compress(bits, 1)
        where = str(path)
        with files.errors_named(where):
            fd = files.port.create(new)
            try:
                head = _MAGIC + zlib.crc32(body).to_bytes(4, "little")
                files.write_all(fd, head + body, 0)
                files.sync(fd, where)
            finally:
                os.close(fd)
            files.port.rename(new, path)
        files.sync_directory(self._directory)

    def drop(self, copy: CopyId) -> None:
        """Forget a map, durably: one that came back after a crash would be taken for complete."""
        path = self._path(copy)
        try:
            files.port.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise files.copy_error(error, str(path)) from error
        files.sync_directory(self._directory)

    def _path(self, copy: CopyId) -> Path:
        if not _NAME.fullmatch(copy):
            raise UsageError(f"{copy!r} cannot be the id of a copy.")
        return self._directory / copy


def _decode(raw: bytes) -> bytes | None:
    """Return the bits in a file, or None when it is damaged."""
    if len(raw) < _HEAD.size:
        return None
    magic, crc, length = _HEAD.unpack_from(raw)
    if magic != _MAGIC or zlib.crc32(raw[12:]) != crc or length > _MAP_BYTES_MAX:
        return None
    unpacker = zlib.decompressobj()
    try:
        bits = unpacker.decompress(raw[_HEAD.size :], length + 1)
    except zlib.error:
        return None
    return bits if len(bits) == length and unpacker.eof else None
