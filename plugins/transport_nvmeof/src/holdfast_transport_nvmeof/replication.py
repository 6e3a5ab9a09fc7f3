"""What the transport `nvme-tcp` adds to plain NVMe: names, opcodes, fields; the tables of the docs.

A link is a controller of its own: an admin queue and one I/O queue. The stream of a primary goes over
the I/O queue as Write, Write Zeroes, Dataset Management and Flush on namespace 1. Fields that these
commands leave unused say where in the stream an operation stands; vendor-specific commands carry what
is no operation. Both ends say that they speak this: the controller in the vendor-specific bytes of
Identify, the host by connecting to the subsystem NQN of its cluster.

Everything that another implementation must know stands here, in `frames.py` (the contents of SEND and
RECEIVE) and in the NVM Express specifications. This module moves no bytes.

Source: NVM Express Base Specification 2.0, sections 3.3.3.1 (common command format) and 5.17.2.1
(Identify Controller, bytes 3072 to 4095: vendor specific); NVM Command Set 1.0, section 3.2.
"""

from __future__ import annotations

import enum
import struct
from urllib.parse import quote, unquote

import attrs

from holdfast.cold import ColdCodec
from holdfast.messages import OpKind
from holdfast.units import MIB, REQUEST_BYTES_MAX
from holdfast_transport_nvmeof.commands import AD, DEAC, IoOpcode

VERSION = 1
NQN_PREFIX = "nqn.2026-11.io.holdfast.replication:"

ENTRIES_MAX = 65_535
"""Entries of an I/O queue; what MAXCMD can say."""
STREAM_COMMANDS_MAX = 32_768
"""Operations outstanding, which have the command identifiers below it; SENDs have those above."""
RECEIVE_CID = 0xFF00
"""RECEIVEs have the command identifiers from here on."""
RECEIVES = 2
"""RECEIVEs outstanding: one is filled while the other waits."""
RECEIVE_BYTES = 0xFFFF_F000
"""What one RECEIVE takes in all before it is completed; the offset of C2HData has 32 bits."""
CAPSULE_BYTES_MAX = REQUEST_BYTES_MAX + 2 * MIB
"""Data of one capsule, and of one C2HData: the largest request with room for its frame."""


class ReplicationOpcode(enum.IntEnum):
    """Vendor-specific I/O commands; the low two bits say which way data goes, as for all opcodes."""

    SEND = 0x81
    """Host to controller: one frame in the capsule; completed with whatever is sent next."""
    RECEIVE = 0x82
    """Controller to host: each C2HData carries one frame, for as long as there is room."""
    COMMIT = 0x84
    """No data: tells the commit point alone; completed with whatever is sent next."""


class Mark(enum.IntFlag):
    """Vendor-specific bits of CDW13 (15:8) of operations."""

    FIRST = 1 << 8
    """A batch of the stream begins with this command."""
    SYNC = 1 << 9
    """It belongs to a sync: the primary's bytes, verbatim."""


MARKS_MASK = 0xFF00
BLOCKS_SHIFT = 16
"""CDW13 31:16 of Write Zeroes: the high bits of its number of blocks (0-based), below them NLB."""

SQE = struct.Struct("<BBHIQQQI3xBQIIQ")
"""Opcode, flags, CID, NSID, **epoch** (CDW2-3), **sequence** (MPTR), SGL address, length, type,
SLBA (CDW10-11), CDW12, CDW13 with the marks, **commit** (CDW14-15)."""
assert SQE.size == 64

OPERATIONS: dict[int, tuple[int, int, int]] = {
    OpKind.WRITE: (IoOpcode.WRITE, 0, 0),
    OpKind.SYNC_WRITE: (IoOpcode.WRITE, 0, int(Mark.SYNC)),
    OpKind.DISCARD: (IoOpcode.DATASET_MANAGEMENT, AD, 0),
    OpKind.ZERO: (IoOpcode.WRITE_ZEROES, 0, 0),
    OpKind.SYNC_ZERO: (IoOpcode.WRITE_ZEROES, DEAC, int(Mark.SYNC)),
    OpKind.FLUSH: (IoOpcode.FLUSH, 0, 0),
}
"""By kind: opcode, flag (AD in CDW11 or DEAC in CDW12), marks."""
KINDS: dict[tuple[int, int], int] = {
    (opcode, marks): int(kind) for kind, (opcode, _, marks) in OPERATIONS.items()
}
"""The way back."""

_ADVERTISED = struct.Struct("<4sHH")
_MAGIC = b"HFst"


@attrs.frozen
class Advertised:
    """What the controller says of itself in Identify, bytes 3072 on: "HFst", version, length, JSON."""

    cluster: str
    node: str
    capabilities: tuple[str, ...] = ()
    """What it can do beyond version 1."""

    def pack(self) -> bytes:
        """Return the vendor-specific bytes."""
        body = _CODEC.encode(self)
        return _ADVERTISED.pack(_MAGIC, VERSION, len(body)) + body

    @classmethod
    def unpack(cls, area: bytes) -> tuple[int, Advertised | None]:
        """Return the version in `area`, 0 if it is none of ours, and what is said if we know it.

        Raises:
            ValueError: It begins as ours and is damaged.
        """
        magic, version, length = _ADVERTISED.unpack_from(area)
        if magic != _MAGIC:
            return 0, None
        if version != VERSION:
            return version, None
        found: Advertised = _CODEC.decode(area[_ADVERTISED.size : _ADVERTISED.size + length])
        return version, found


_CODEC = ColdCodec(Advertised)


def subsystem_of(cluster: str) -> str:
    """Return the NQN of the subsystem to which the nodes of a cluster connect."""
    return NQN_PREFIX + quote(cluster, safe="")


def host_of(cluster: str, node: str) -> str:
    """Return the host NQN with which a node presents itself."""
    return f"{NQN_PREFIX}{quote(cluster, safe='')}:{quote(node, safe='')}"


def cluster_of(subsystem: str) -> str | None:
    """Return the cluster whose subsystem that is, or None."""
    rest = subsystem.removeprefix(NQN_PREFIX)
    return unquote(rest) if rest != subsystem and ":" not in rest else None


def node_of(host: str, cluster: str) -> str | None:
    """Return the node of `cluster` that a host NQN names, or None."""
    prefix = f"{subsystem_of(cluster)}:"
    return unquote(host.removeprefix(prefix)) if host.startswith(prefix) else None


def tables() -> str:
    """Return what is vendor-specific as Markdown tables."""
    lines = ["| command | opcode | data | completed |", "|---|---|---|---|"]
    rows = {
        ReplicationOpcode.SEND: ("one frame, in the capsule", "with what is sent next"),
        ReplicationOpcode.RECEIVE: ("C2HData PDUs of one frame each", "when its room is used up"),
        ReplicationOpcode.COMMIT: ("none", "with what is sent next"),
    }
    for opcode, (data, when) in rows.items():
        lines.append(f"| {opcode.name} | {opcode.value:02X}h | {data} | {when} |")
    lines += ["", "| operation | command | marks |", "|---|---|---|"]
    for kind, (code, _, marks) in OPERATIONS.items():
        name = IoOpcode(code).name.replace("_", " ").title()
        lines.append(f"| {OpKind(kind).name} | {name} ({code:02X}h) | {Mark(marks).name or '-'} |")
    fields = (
        ("CDW2-3", "epoch"),
        ("MPTR", "sequence: the operation's place in the stream"),
        ("CDW13, bit 8", "FIRST: a batch begins"),
        ("CDW13, bit 9", "SYNC: of a sync, not of a consumer"),
        ("CDW13, bits 31:16", "Write Zeroes: number of blocks, high bits"),
        ("CDW14-15", "commit: applied by every in-sync copy up to here"),
    )
    lines += ["", "| field of an operation | holds |", "|---|---|"]
    lines += [f"| {field} | {what} |" for field, what in fields]
    return "\n".join([*lines, ""])
