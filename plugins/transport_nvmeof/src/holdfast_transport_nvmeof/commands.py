"""Opcodes and the layout of a command, by the names that the specifications give them.

Only numbers and structs: what a command does is in `controller.py` (admin queue) and `queue.py` (I/O).

Source: NVM Express Base Specification 2.0, section 3.3.3.1 (figure 88: common command format) and
figures 138, 346; NVM Command Set Specification 1.0, section 3.2; NVMe over Fabrics, section 6.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

SQE = struct.Struct("<BBHIQQQI3xBIIIIII")
"""Opcode, flags, CID, NSID, CDW2-3, MPTR, SGL address, length, SGL type, CDW10 to CDW15."""
assert SQE.size == 64


class AdminOpcode(enum.IntEnum):
    """Commands of the admin queue."""

    GET_LOG_PAGE = 0x02
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNCHRONOUS_EVENT_REQUEST = 0x0C
    KEEP_ALIVE = 0x18
    FABRICS = 0x7F


class IoOpcode(enum.IntEnum):
    """Commands of an I/O queue, NVM command set."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    RESERVATION_REGISTER = 0x0D
    RESERVATION_REPORT = 0x0E
    RESERVATION_ACQUIRE = 0x11
    RESERVATION_RELEASE = 0x15
    FABRICS = 0x7F


class SglType(enum.IntEnum):
    """Byte 15 of an SGL descriptor: type in bits 7:4, subtype in bits 3:0."""

    DATA_BLOCK_ADDRESS = 0x00
    DATA_BLOCK_OFFSET = 0x01
    """The data is in the capsule; the address is an offset from ICDOFF."""
    TRANSPORT_DATA_BLOCK = 0x5A
    """The data is carried by data PDUs."""


PSDT_SGL = 0x40
"""Flags bits 7:6: SGLs are used, MPTR holds an address; the only form that fabrics allow."""
PSDT_MASK = 0xC0
FUSE_MASK = 0x03
FUA = 1 << 30
"""In CDW12 of Read, Write, Write Zeroes and Compare: Force Unit Access."""
DEAC = 1 << 25
"""In CDW12 of Write Zeroes: Deallocate."""
AD = 1 << 2
"""In CDW11 of Dataset Management: Attribute - Deallocate."""
NSID_ALL = 0xFFFFFFFF
DSM_RANGE = struct.Struct("<IIQ")
"""Context attributes, length in logical blocks, starting LBA."""
DSM_RANGES_MAX = 256


class Command(NamedTuple):
    """A submission queue entry, unpacked."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    cdw23: int
    mptr: int
    sgl_address: int
    sgl_length: int
    sgl_type: int
    cdw10: int = 0
    cdw11: int = 0
    cdw12: int = 0
    cdw13: int = 0
    cdw14: int = 0
    cdw15: int = 0

    @property
    def fctype(self) -> int:
        """Of a Fabrics command: its type, which stands where others have the namespace."""
        return self.nsid & 0xFF

    @classmethod
    def unpack(cls, view: memoryview | bytes, position: int = 0) -> Command:
        """Return the command at `position`."""
        return cls._make(SQE.unpack_from(view, position))

    def pack(self) -> bytes:
        """Return its 64 bytes."""
        return SQE.pack(*self)


class Completion(NamedTuple):
    """What a command is answered with, but for what the queue adds."""

    status: int = 0
    """A `Status` or `ConnectStatus`."""
    dw0: int = 0
    dw1: int = 0
    data: bytes = b""
    """For commands that read from the controller; cut to what the host made room for."""
