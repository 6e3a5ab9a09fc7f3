"""The words and layouts of the NBD protocol, under the names that its specification gives them.

Only numbers and structs: what they mean is in `handshake.py` (until an export is chosen) and
`transmission.py` (from then on). All integers are big-endian.

Source: NetworkBlockDevice/nbd, doc/proto.md ("Newstyle negotiation", "Transmission", "Values").
"""

from __future__ import annotations

import enum
import struct

from holdfast.units import CHUNK_BYTES, REQUEST_BYTES_MAX, SECTOR_BYTES

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
NBD_OPT_REPLY_MAGIC = 0x0003E889045565A9
NBD_REQUEST_MAGIC = 0x25609513
NBD_SIMPLE_REPLY_MAGIC = 0x67446698
NBD_STRUCTURED_REPLY_MAGIC = 0x668E33EF

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
"""IHAVEOPT, option, length of its data."""
OPTION_REPLY = struct.Struct(">QIII")
"""Magic, option, reply type, length of its data."""
EXPORT_NAME_REPLY = struct.Struct(">QH")
"""Size in bytes, transmission flags; 124 zeros follow unless both sides agreed on none."""
REQUEST = struct.Struct(">IHHQQI")
"""Magic, command flags, command, cookie, offset, length."""
SIMPLE_REPLY = struct.Struct(">IIQ")
"""Magic, error, cookie."""
CHUNK = struct.Struct(">IHHQI")
"""Magic, flags, type, cookie, length of what follows."""
OFFSET_DATA = struct.Struct(">IHHQIQ")
"""A chunk header with the offset that begins an NBD_REPLY_TYPE_OFFSET_DATA payload."""
ERROR_CHUNK = struct.Struct(">IHHQIIH")
"""A chunk header with error and message length, which begin an NBD_REPLY_TYPE_ERROR payload."""
DESCRIPTOR = struct.Struct(">II")
"""Length in bytes, status flags: one extent of a block status reply."""
INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")

assert GREETING.size == 18
assert OPTION.size == 16
assert OPTION_REPLY.size == 20
assert REQUEST.size == 28
assert SIMPLE_REPLY.size == 16
assert CHUNK.size == 20

NAME_BYTES_MAX = 4096
"""The specification's limit on strings."""
OPTION_BYTES_MAX = 64 * 1024
"""Longest option taken: a name and many meta context queries; nbdkit's limit is the same."""
BLOCK_SIZES = (SECTOR_BYTES, CHUNK_BYTES, REQUEST_BYTES_MAX)
"""Minimum, preferred, maximum, as NBD_INFO_BLOCK_SIZE announces them."""
BASE_ALLOCATION = b"base:allocation"
BASE_ALLOCATION_ID = 1
"""Our choice; ids are per connection."""


class HandshakeFlag(enum.IntFlag):
    """NBD_FLAG_* of the greeting, and NBD_FLAG_C_* of the client's answer to it."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(enum.IntEnum):
    """NBD_OPT_*."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Rep(enum.IntEnum):
    """NBD_REP_*."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    """NBD_INFO_*."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(enum.IntFlag):
    """NBD_FLAG_*: what an export offers."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(enum.IntEnum):
    """NBD_CMD_*."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(enum.IntFlag):
    """NBD_CMD_FLAG_*."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class ReplyFlag(enum.IntFlag):
    """NBD_REPLY_FLAG_*."""

    NONE = 0
    DONE = 1


class ReplyType(enum.IntEnum):
    """NBD_REPLY_TYPE_*."""

    NONE = 0
    OFFSET_DATA = 1
    BLOCK_STATUS = 5
    ERROR = 0x8001


class State(enum.IntFlag):
    """NBD_STATE_*: what base:allocation says of an extent."""

    DATA = 0
    HOLE = 1
    ZERO = 2


class Errno(enum.IntEnum):
    """The errors that may be sent; their numbers are the protocol's, whatever the platform's are."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
