"""Every value that crosses a link between two nodes, and the operations inside them.

Three kinds of link carry them, all ordered and reliable while they live:

- *replication*, from a primary to one other copy: opened by `Attach`, answered by `Attached` or
  `Refused`; then batches, epoch changes and queries one way, acknowledgements and answers back;
- *session*, from a consumer's node to the primary: opened by `SessionOpen`, answered by
  `SessionOpened` or `Refused`; then requests one way, replies back;
- *peer*, between two nodes: opened by `PeerHello`; heartbeats one way, their answers back.

This module knows no bytes: a transport's codec turns messages into frames. The hot ones (`Op`,
`Request`, `Reply`, and the messages that carry lists of them) are named tuples because those are the
cheapest immutable records that CPython has; one list of them is one batch, and nothing on the way
makes an object per request beside them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import attrs

from holdfast.units import CopyId, Epoch, NodeName, Sequence, VolumeId

Payload = bytes | bytearray | memoryview
"""Bytes on their way through; a memoryview keeps the receive buffer that it points into alive."""


class OpKind(enum.IntEnum):
    """What an operation in the replication stream does to a copy."""

    WRITE = 1
    DISCARD = 2
    """The range reads as zeros afterwards and its space is given back."""
    ZERO = 3
    """The range reads as zeros afterwards and its space stays allocated."""
    FLUSH = 4
    """Everything before it is on stable storage when it is durable; offset and length are 0."""
    SYNC_WRITE = 5
    """A chunk run of a sync or a reconcile: the primary's bytes, verbatim."""
    SYNC_ZERO = 6
    """The same, for a run that is zeros: a hole."""


class Op(NamedTuple):
    """One operation of the replication stream; its sequence is its place in the batch."""

    kind: int
    offset: int
    """Bytes from the start of the volume, a multiple of 512."""
    length: int
    """Bytes, a multiple of 512."""
    data: Payload = b""
    """`length` bytes for WRITE and SYNC_WRITE, empty for the others."""


class RequestKind(enum.IntEnum):
    """What a consumer asks of a volume."""

    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    ZERO = 5
    EXTENTS = 6
    """Which ranges are holes; the reply's data is `pack_extents` of them."""


class RequestFlag(enum.IntFlag):
    """Options of a request."""

    NONE = 0
    FUA = 1
    """Acknowledged when on stable storage everywhere."""
    NO_HOLE = 2
    """ZERO must keep the space allocated."""


class Request(NamedTuple):
    """One request of a consumer; `id` is unique among the unanswered ones of its session."""

    id: int
    kind: int
    flags: int
    offset: int
    length: int
    data: Payload = b""

    def meets(self, ops: Iterable[Op]) -> bool:
        """Return whether any of `ops` touches the bytes of this request."""
        end = self.offset + self.length
        return any(op.offset < end and self.offset < op.offset + op.length for op in ops)


class Reply(NamedTuple):
    """The answer to one request."""

    id: int
    errno: int
    """0 or an errno of `errno.h`."""
    data: Payload = b""


class Extent(NamedTuple):
    """A run of bytes that is all hole or all data; what EXTENTS replies list, packed big-endian."""

    length: int
    is_hole: bool


EXTENT = struct.Struct(">QI")
"""One extent in the data of an EXTENTS reply: length in bytes, 1 for a hole or 0 for data."""


def pack_extents(extents: Iterable[tuple[int, bool]]) -> bytes:
    """Return the data of an EXTENTS reply: `EXTENT` structs, neighbours of one kind made one."""
    merged: list[list[int]] = []
    for length, is_hole in extents:
        if merged and merged[-1][1] == is_hole:
            merged[-1][0] += length
        elif length:
            merged.append([length, int(is_hole)])
    return b"".join(EXTENT.pack(length, is_hole) for length, is_hole in merged)


def unpack_extents(data: Payload) -> list[Extent]:
    """Return the extents in the data of an EXTENTS reply, in the order of their offsets.

    Raises:
        ValueError: The data is not a whole number of `EXTENT` structs.
    """
    if len(data) % EXTENT.size:
        raise ValueError(f"{len(data)} bytes are not a list of extents")
    return [Extent(length, bool(is_hole)) for length, is_hole in EXTENT.iter_unpack(data)]


# --- replication -------------------------------------------------------------------------------


@attrs.frozen
class Attach:
    """Primary to copy: this is me, by this record; present yourself."""

    cluster: str
    volume: VolumeId
    epoch: Epoch
    node: NodeName
    """The sender."""
    session: str
    """The sender's process."""
    primary: CopyId
    target: CopyId
    """The copy that is meant."""
    record: bytes
    """The group record in force, as stored."""
    spec: bytes
    """The volume's specification, as stored."""
    resume: bool
    """A stream was cut and is to go on: the copy keeps its state and tells what it has applied."""


@attrs.frozen
class Attached:
    """Copy to primary: my identity and what I hold (R8)."""

    epoch: Epoch
    incarnation: str
    boot: str
    """The machine's boot id: another one means that unflushed writes may be gone."""
    session: str
    """The process: another one means that the window of recent writes is gone."""
    state: str
    """`CopyState` as marked on the copy's own disk."""
    applied: Sequence
    durable: Sequence
    clean: bool
    """Closed in order, so nothing is suspect."""
    rebooted: bool
    """The boot id differs from the one on disk: unflushed writes may be gone."""
    fresh: bool
    """Just made, nothing but zeros."""
    suspects: tuple[tuple[int, int], ...]
    """Extents (offset, length) that may differ from the other copies: the window of recent writes,
    or after a restart the intent regions."""
    size_bytes: int
    """How large the copy is; it may have missed that the volume has grown."""


@attrs.frozen
class Refused:
    """Either way: no, with the reason; the link is closed after it."""

    code: str
    """`stale-epoch`, `not-primary`, `wrong-cluster`, `no-such-volume`, `attached-elsewhere`, …"""
    sentence: str
    epoch: Epoch = Epoch(0)
    """The epoch that the sender knows, so that a deposed primary learns of it."""


class Batch(NamedTuple):
    """Primary to copy: operations `first`, `first` + 1, … of the stream, to be applied in order."""

    epoch: Epoch
    first: Sequence
    commit: Sequence
    """Every in-sync copy has applied up to here; the window may be forgotten up to here."""
    ops: SequenceOf[Op]
    """May be empty, to tell the commit alone."""


class Ack(NamedTuple):
    """Copy to primary, cumulative."""

    epoch: Epoch
    applied: Sequence
    durable: Sequence


@attrs.frozen
class EpochChange:
    """Primary to copy: from here on the stream is of this epoch, by this record."""

    epoch: Epoch
    record: bytes


@attrs.frozen
class BeginSync:
    """Primary to copy: mark yourself as syncing, durably, then answer `SyncBegun`."""

    epoch: Epoch
    first: Sequence
    """The stream begins here: the next batch's first sequence."""


@attrs.frozen
class SyncBegun:
    """Copy to primary: the mark is on disk."""

    epoch: Epoch


@attrs.frozen
class Resize:
    """Primary to copy: grow to this size, durably, then answer `Resized`."""

    epoch: Epoch
    size_bytes: int


@attrs.frozen
class Resized:
    """Copy to primary: it is at least this large, durably."""

    epoch: Epoch
    size_bytes: int


DATA_LEVEL = 255
"""As the level of a `HashQuery`: chunks, hashed from the data itself whatever the hash list says."""


@attrs.frozen
class HashQuery:
    """Primary to copy: hash these nodes of your tree as of this place in the stream."""

    epoch: Epoch
    id: int
    level: int
    """0: chunks; 1: groups of 256 chunks; and so on."""
    indexes: tuple[int, ...]


@attrs.frozen
class HashAnswer:
    """Copy to primary: 16 bytes for each index of the query, in its order."""

    epoch: Epoch
    id: int
    hashes: bytes


@attrs.frozen
class ReadQuery:
    """Primary to copy: read this range as of this place in the stream (repair)."""

    epoch: Epoch
    id: int
    offset: int
    length: int


@attrs.frozen
class ReadAnswer:
    """Copy to primary: the bytes, or an errno."""

    epoch: Epoch
    id: int
    errno: int
    data: Payload


@attrs.frozen
class CopyFailed:
    """Copy to primary: I cannot go on; `reason` is a `FaultReason`."""

    epoch: Epoch
    reason: str
    sentence: str


@attrs.frozen
class ReadLeaseQuery:
    """Copy to primary: consumers here would read from this copy; for how long may it answer them?"""

    epoch: Epoch
    number: int
    """Rises with every query of the copy's process."""


@attrs.frozen
class ReadLease:
    """Primary to copy: the answer to the query of this number."""

    epoch: Epoch
    number: int
    for_s: float
    """Seconds from when the query was *sent*, by the copy's own clock; 0: not now."""


# --- sessions ----------------------------------------------------------------------------------


@attrs.frozen
class SessionOpen:
    """Consumer's node to primary: serve this volume to me."""

    cluster: str
    volume: VolumeId
    node: NodeName
    session: str
    """The consumer session's id; survives reconnects."""
    process: str
    """The node's process session, as in its `NodeRecord`."""
    read_only: bool
    force: bool
    """Take the writer session over from whoever holds it (R11)."""
    resume_generation: int
    """The generation held before a reconnect; 0 at first."""


@attrs.frozen
class SessionOpened:
    """Primary to consumer's node: go on."""

    epoch: Epoch
    generation: int
    size_bytes: int
    access: str
    """`Access` in force."""
    loss_epoch: int = 0
    """The last epoch that began when no copy had kept what was not flushed; a session with writes
    that were acknowledged before it and not flushed fails its flushes from here on."""


class Requests(NamedTuple):
    """Consumer's node to primary, in the consumer's order."""

    generation: int
    requests: SequenceOf[Request]


class Replies(NamedTuple):
    """Primary to consumer's node, in any order."""

    replies: SequenceOf[Reply]


@attrs.frozen
class VolumeChanged:
    """Primary to consumer's node: size or access is now this."""

    epoch: Epoch
    size_bytes: int
    access: str


@attrs.frozen
class SessionClose:
    """Consumer's node to primary: the last client has gone; the writer session is free."""

    generation: int


# --- peers -------------------------------------------------------------------------------------


@attrs.frozen
class PeerHello:
    """Node to node: whose heartbeats follow."""

    cluster: str
    node: NodeName
    session: str
    worker: int = 0
    """Which worker of its node sends."""
    to_worker: int = 0
    """Which worker of the other node it sends to."""


@attrs.frozen
class Heartbeat:
    """Node to node: I live, and I am primary of the groups in my lease set."""

    number: int
    version: int
    """Version of the sender's lease set for this peer."""
    leases: tuple[tuple[VolumeId, Epoch], ...] | None
    """The lease set when it changed or the peer asked for it, else None."""
    stall_s: float
    """How long the sender's slowest disk has been without an answer."""


@attrs.frozen
class HeartbeatAnswer:
    """Answer to the heartbeat `number`."""

    number: int
    version: int
    """The version of the lease set that this answers for; -1 asks for the set."""
    refused: tuple[tuple[VolumeId, Epoch], ...]
    """Groups of the set that this node does not grant, with the epoch that it knows."""
    stall_s: float


Message = (
    Attach
    | Attached
    | Refused
    | Batch
    | Ack
    | EpochChange
    | BeginSync
    | SyncBegun
    | Resize
    | Resized
    | HashQuery
    | HashAnswer
    | ReadQuery
    | ReadAnswer
    | CopyFailed
    | ReadLeaseQuery
    | ReadLease
    | SessionOpen
    | SessionOpened
    | Requests
    | Replies
    | VolumeChanged
    | SessionClose
    | PeerHello
    | Heartbeat
    | HeartbeatAnswer
)
Hello = Attach | SessionOpen | PeerHello
"""What may open a link."""
