"""The bytes of protocol version 1: structs, type numbers and limits; the tables of the documentation.

Everything that another implementation must know to read a frame stands here and only here, so that
`docs/protocol.md` can be generated from it. This module knows no message's meaning and moves no bytes.

A frame is a header of 56 bytes, a table of `count` fixed entries (for the kinds that have one), and
one block of data. The table is never compressed, so that one large payload needs no copy to stand
beside it; the block is stored as it is, or compressed as a whole.

Several messages never share a frame, except that a `Batch` carries all its operations in one. A
message whose items pass `BATCH_BYTES_MAX` goes as several frames, each a whole message of the same
type. A single item is never split: its frame alone may hold up to `FRAME_BYTES_MAX`.
"""

from __future__ import annotations

import enum
import struct

from holdfast.op_table import OP_ENTRY
from holdfast.units import KIB, MIB, REQUEST_BYTES_MAX

MAGIC = b"HFst"
VERSION = 1

HEADER = struct.Struct(">4sBBBBQQQIIIQI")
assert HEADER.size == 56
HEADER_CHECKED_BYTES = HEADER.size - 4
"""What the header's own checksum covers: all of it but itself."""

REQUEST_ENTRY = struct.Struct(">QBHQQ")
assert REQUEST_ENTRY.size == 27
REPLY_ENTRY = struct.Struct(">QiI")
assert REPLY_ENTRY.size == 16
HASH_INDEX_BYTES = 4

BATCH_BYTES_MAX = 4 * MIB
"""Table and plain data of a frame with more than one item; design, section 17."""
FRAME_BYTES_MAX = 33 * MIB
"""Table and plain data of any frame: one item of `REQUEST_BYTES_MAX` with room for its entry."""
assert FRAME_BYTES_MAX >= REQUEST_BYTES_MAX + MIB
HELLO_BYTES_MAX = 1 * MIB
"""The first message of a link: a group record and a specification are a few KiB."""
PREFACE_BYTES_MAX = 16 * KIB
"""What a stranger may make this node hold before it has named its cluster."""
ITEMS_MAX = 65_536
"""Entries in one frame's table; 65,536 operations without data are 1.1 MiB of table."""


class FrameType(enum.IntEnum):
    """The type byte of a header."""

    PREFACE = 1
    WELCOME = 2
    READ_LEASE_QUERY = 14
    READ_LEASE = 15
    ATTACH = 16
    ATTACHED = 17
    REFUSED = 18
    BATCH = 19
    ACK = 20
    EPOCH_CHANGE = 21
    BEGIN_SYNC = 22
    SYNC_BEGUN = 23
    HASH_QUERY = 24
    HASH_ANSWER = 25
    READ_QUERY = 26
    READ_ANSWER = 27
    COPY_FAILED = 28
    RESIZE = 29
    RESIZED = 30
    SESSION_OPEN = 32
    SESSION_OPENED = 33
    REQUESTS = 34
    REPLIES = 35
    VOLUME_CHANGED = 36
    SESSION_CLOSE = 37
    PEER_HELLO = 48
    HEARTBEAT = 49
    HEARTBEAT_ANSWER = 50


class Stored(enum.IntEnum):
    """The flags byte of a header: how the data block is stored. Other bits are 0."""

    PLAIN = 0
    LZ4 = 1
    """One LZ4 block without a size in front; the header's plain length is its size."""
    ZSTD = 2
    """One Zstandard frame that declares its content size."""


HEADER_FIELDS = (
    ("magic", "4s", 'the bytes "HFst"'),
    ("version", "B", "1; another version changes everything behind this byte"),
    ("type", "B", "see the table of types"),
    ("flags", "B", "how the data is stored: 0 plain, 1 LZ4 block, 2 Zstandard frame"),
    ("reserved", "B", "0"),
    ("epoch", "Q", "the message's epoch, 0 where it has none or has it in its JSON"),
    ("first", "Q", "see the table of types; 0 where unused"),
    ("mark", "Q", "see the table of types; 0 where unused"),
    ("count", "I", "entries in the table, or items in the data; see the table of types"),
    ("stored", "I", "bytes of the data block as it stands in the frame"),
    ("plain", "I", "bytes of the data block when unpacked; equals `stored` when flags is 0"),
    ("checksum", "Q", "XXH3-64 (seed 0) of the table and the plain data; 0 when both are empty"),
    ("header checksum", "I", "low 32 bits of XXH3-64 of the 52 bytes before it"),
)
OP_FIELDS = (
    ("kind", "B", "`OpKind`"),
    ("offset", "Q", "bytes from the start of the volume"),
    ("length", "Q", "bytes; WRITE and SYNC_WRITE take as many from the data, the others none"),
)
REQUEST_FIELDS = (
    ("id", "Q", "chosen by the consumer"),
    ("kind", "B", "`RequestKind`"),
    ("flags", "H", "`RequestFlag`"),
    ("offset", "Q", "bytes from the start of the volume"),
    ("length", "Q", "bytes; WRITE takes as many from the data, the others none"),
)
REPLY_FIELDS = (
    ("id", "Q", "of the request"),
    ("errno", "i", "0 or an errno"),
    ("length", "I", "bytes that this reply takes from the data"),
)
TYPE_USES = (
    (FrameType.BATCH, "sequence of the first operation", "commit", "operations", "their payloads"),
    (FrameType.ACK, "applied", "durable", "0", "none"),
    (FrameType.HASH_QUERY, "id", "level", "indexes", "indexes, 4 bytes each"),
    (FrameType.HASH_ANSWER, "id", "0", "1", "hashes, 16 bytes each"),
    (FrameType.READ_ANSWER, "id", "errno", "1", "the bytes read"),
    (FrameType.REQUESTS, "generation", "0", "requests", "their payloads"),
    (FrameType.REPLIES, "0", "0", "replies", "their payloads"),
)


def layout_tables() -> str:
    """Return the byte layout as Markdown tables, for `docs/protocol.md`."""
    parts = [
        _fields_table("Frame header", HEADER, HEADER_FIELDS),
        _fields_table("Table entry of a Batch", OP_ENTRY, OP_FIELDS),
        _fields_table("Table entry of Requests", REQUEST_ENTRY, REQUEST_FIELDS),
        _fields_table("Table entry of Replies", REPLY_ENTRY, REPLY_FIELDS),
        _types_table(),
        _limits_table(),
    ]
    return "\n".join(parts)


def _fields_table(
    title: str, layout: struct.Struct, fields: tuple[tuple[str, str, str], ...]
) -> str:
    assert layout.format == ">" + "".join(code for _, code, _ in fields)
    lines = [f"### {title} ({layout.size} bytes, big-endian)", ""]
    lines += ["| offset | bytes | field | meaning |", "|---:|---:|---|---|"]
    offset = 0
    for name, code, meaning in fields:
        size = struct.calcsize(">" + code)
        lines.append(f"| {offset} | {size} | {name} | {meaning} |")
        offset += size
    return "\n".join([*lines, ""])


def _types_table() -> str:
    lines = ["### Frame types", "", "| type | message | first | mark | count | data |"]
    lines.append("|---:|---|---|---|---|---|")
    used = {kind: rest for kind, *rest in TYPE_USES}
    for kind in FrameType:
        name = "".join(part.title() for part in kind.name.split("_"))
        first, mark, count, data = used.get(kind, ["0", "0", "1", "JSON object of its fields"])
        lines.append(f"| {kind.value} | {name} | {first} | {mark} | {count} | {data} |")
    return "\n".join([*lines, ""])


def _limits_table() -> str:
    rows = (
        ("frame with one item", FRAME_BYTES_MAX, "bytes of table and plain data"),
        ("frame with several items", BATCH_BYTES_MAX, "bytes of table and plain data"),
        ("first message of a link", HELLO_BYTES_MAX, "bytes"),
        ("preface, welcome", PREFACE_BYTES_MAX, "bytes"),
        ("entries in a table", ITEMS_MAX, "entries"),
    )
    lines = ["### Limits", "", "| what | most | unit |", "|---|---:|---|"]
    lines += [f"| {what} | {most:,} | {unit} |" for what, most, unit in rows]
    return "\n".join([*lines, ""])
