"""Who a copy is and what it last knew, kept so that no crash and no single bad sector loses it.

The file `superblock` has two slots of 4 KiB:

    offset  size  field
         0     8  magic, `HFCOPYSB`
         8     4  format version, little-endian as all numbers here
        12     4  CRC-32 (zlib) of the slot with these four bytes zero
        16     8  generation
        24     4  length of the payload
        28     -  payload: the superblock as a JSON object, in UTF-8
         -     -  zeros up to 4,096

Later format versions keep the first 16 bytes, so that an older program can tell "newer" from
"damaged". A save writes and flushes the slot that was flushed longer ago; only then is the other one
written with the same bytes, not flushed. So one valid slot is on disk at every moment, and, but for
the moments after a save, both hold the newest: a single bad sector forgets neither an epoch nor a
`syncing` mark. When neither is valid, the copy is lost; nothing is guessed.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Final, Self

import attrs

from holdfast.cold import ColdCodec
from holdfast.errors import CopyError, FaultReason, IntegrityError
from holdfast.interfaces.copy import Superblock
from holdfast.local.copy import files

FORMAT_VERSION: Final = 2
"""Of the whole directory: 2 has checksums in `hashes`; a copy of format 1 is made one of format 2 when
it is opened."""
SLOT_BYTES: Final = 4096
_MAGIC: Final = b"HFCOPYSB"
_HEAD: Final = struct.Struct("<8sIIQI")
_CRC_AT: Final = 12
_PAYLOAD_MAX: Final = SLOT_BYTES - _HEAD.size
assert _HEAD.size == 28
_CODEC: Final = ColdCodec(Superblock)


class _NewerFormatError(Exception):
    """A valid slot of a format that this version does not know; its argument is that format."""


def encode_slot(superblock: Superblock) -> bytes:
    """Return the 4 KiB of a slot; raises `AssertionError` when the names in it are absurdly long."""
    payload = json.dumps(attrs.asdict(superblock), sort_keys=True).encode()
    assert len(payload) <= _PAYLOAD_MAX, "the names in a superblock are bounded elsewhere"
    generation = superblock.generation
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, 0, generation, len(payload))
    slot = bytearray((head + payload).ljust(SLOT_BYTES, b"\0"))
    slot[_CRC_AT : _CRC_AT + 4] = zlib.crc32(slot).to_bytes(4, "little")
    return bytes(slot)


def decode_slot(raw: bytes) -> Superblock:
    """Return the superblock in a slot.

    Raises:
        ValueError: The slot is damaged; the message says how.
        _NewerFormatError: The slot is whole and newer than this version.
    """
    if len(raw) != SLOT_BYTES:
        raise ValueError("it is cut short")
    magic, version, crc, generation, length = _HEAD.unpack_from(raw)
    if magic != _MAGIC:
        raise ValueError("it does not begin as a superblock does")
    plain = bytearray(raw)
    plain[_CRC_AT : _CRC_AT + 4] = bytes(4)
    if zlib.crc32(plain) != crc:
        raise ValueError("its checksum does not match")
    if version > FORMAT_VERSION:
        raise _NewerFormatError(version)
    try:
        # A new field needs a new format version: unknown ones are an error here.
        superblock: Superblock = _CODEC.decode(raw[_HEAD.size : _HEAD.size + length])
    except ValueError as error:
        raise ValueError("its content is not a superblock") from error
    if superblock.generation != generation:
        raise ValueError("its generation is told twice and differs")
    return superblock


class SuperblockFile:
    """The open file and which slot is to be written next."""

    __slots__ = ("_durable_slot", "_fd", "_where", "current", "format_version")

    def __init__(
        self,
        fd: int,
        where: str,
        current: Superblock,
        durable_slot: int,
        format_version: int = FORMAT_VERSION,
    ) -> None:
        """Go on from a superblock of `format_version` that is known to be durable in its slot."""
        self._fd = fd
        self._where = where
        self.current = current
        self._durable_slot = durable_slot
        self.format_version = format_version

    @classmethod
    def create(cls, fd: int, path: Path, superblock: Superblock) -> Self:
        """Write both slots of a new file and flush them."""
        current = attrs.evolve(superblock, generation=1)
        where = str(path)
        with files.errors_named(where):
            files.write_all(fd, encode_slot(current) * 2, 0)
        files.sync(fd, where)
        return cls(fd, where, current, durable_slot=0)

    @classmethod
    def open(cls, fd: int, path: Path) -> tuple[Self, tuple[str, ...]]:
        """Return the file with the newest valid slot, and what was found damaged, as sentences.

        What is in the file must be on stable storage: the next save writes over the older slot.

        Raises:
            IntegrityError: Neither slot is valid, or both claim the same generation and differ.
            CopyError: A newer version of Holdfast has written it, or the file cannot be read.
        """
        superblock, slot, damage = _choose(fd, path)
        with files.errors_named(str(path)):
            raw = os.pread(fd, _HEAD.size, slot * SLOT_BYTES)
        return cls(fd, str(path), superblock, slot, _HEAD.unpack(raw)[1]), damage

    def save(self, superblock: Superblock) -> None:
        """Write the next generation; durable on return.

        Raises:
            CopyError: NO_SPACE, IO_ERROR or FLUSH_FAILED; what is on disk is then the old or the
                new superblock, whole.
        """
        current = attrs.evolve(superblock, generation=self.current.generation + 1)
        slot = encode_slot(current)
        target = 1 - self._durable_slot
        with files.errors_named(self._where):
            files.write_all(self._fd, slot, target * SLOT_BYTES)
        files.sync(self._fd, self._where)
        self._durable_slot = target
        self.current = current
        self.format_version = FORMAT_VERSION
        with files.errors_named(self._where):
            files.write_all(self._fd, slot, (1 - target) * SLOT_BYTES)


def read_superblock_file(path: Path) -> Superblock:
    """Return the newest superblock in the file `path` without holding it open; errors as `open`."""
    with files.errors_named(str(path)):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _choose(fd, path)[0]
    finally:
        os.close(fd)


def _choose(fd: int, path: Path) -> tuple[Superblock, int, tuple[str, ...]]:
    with files.errors_named(str(path)):
        raw = os.pread(fd, 2 * SLOT_BYTES, 0)
    found: list[tuple[Superblock, int]] = []
    damage: list[str] = []
    for slot in (0, 1):
        try:
            found.append((decode_slot(raw[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]), slot))
        except ValueError as error:
            damage.append(f"Slot {slot} of {path} is damaged: {error}.")
        except _NewerFormatError as error:
            raise CopyError(
                f"The copy in {path.parent} has format {error.args[0]}; this version of Holdfast"
                f" knows formats up to {FORMAT_VERSION}.",
                reason=FaultReason.WRONG_IDENTITY,
                hint="Upgrade Holdfast on this node; nothing was changed.",
            ) from None
    if not found:
        raise IntegrityError(
            f"The copy in {path.parent} is lost: neither slot of its superblock is valid.",
            reason=FaultReason.CORRUPT,
            hint="Nothing was changed. Remove the copy from its group and let a new one be made;"
            " its data file is still there for a last resort.",
        )
    newest, slot = max(found, key=lambda each: each[0].generation)
    if any(s.generation == newest.generation and s != newest for s, _ in found):
        raise IntegrityError(
            f"The copy in {path.parent} is lost: its superblock says two things at once.",
            reason=FaultReason.CORRUPT,
            hint="Nothing was changed. Remove the copy from its group and let a new one be made.",
        )
    return newest, slot, tuple(damage)
