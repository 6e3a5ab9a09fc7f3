"""What a group member is told (events) and what it asks for (effects).

The order of the effects of one step is part of the contract: the pump starts them in order. A
message sent before an `ApplyOps` is on its way before the local disk is touched; an acknowledgement
listed after nothing else needs nothing else, because the machine asks for it only when the events
that it depends on have come back. A pump may carry an effect out at once and step the machine with
its outcome, or later from a thread; the machine does not know the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import attrs

from holdfast.errors import FaultReason
from holdfast.interfaces.copy import Superblock
from holdfast.messages import Attach, Extent, Hello, Message, Op, Reply, Request
from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.units import CopyId, NodeName
from holdfast.units import Sequence as Position

LinkId = int
"""Names a link for as long as the process lives; drawn by whoever opens or accepts it."""


class Instant(NamedTuple):
    """The time of an event on this node."""

    mono: float
    """Seconds of the monotonic clock: leases, timeouts."""
    wall: float
    """Unix seconds: only what must survive a change of machine (grace)."""


# --- events ------------------------------------------------------------------------------------


@attrs.frozen
class RecordSeen:
    """The store showed this record; None: it was deleted."""

    record: GroupRecord | None
    version: int


@attrs.frozen
class SpecSeen:
    """The store showed this specification."""

    spec: VolumeSpec


@attrs.frozen
class CasDone:
    """The compare-and-set came back.

    `record` and `version` are what is in force now, if the store could tell.
    """

    outcome: str
    """`ok`, `conflict`, or `unknown` when the store could not be reached."""
    record: GroupRecord | None
    version: int


@attrs.frozen
class NodesSeen:
    """The nodes of the cluster whose sessions live, by name."""

    nodes: Mapping[NodeName, NodeRecord]


@attrs.frozen
class LinkOpened:
    """A link asked for by `OpenLink` stands; the hello is on its way."""

    link: LinkId


@attrs.frozen
class LinkLost:
    """A link broke, or could not be opened."""

    link: LinkId
    gone: bool
    """The peer's process is certainly gone or not listening (connection refused)."""
    sentence: str


class Received(NamedTuple):
    """Messages arrived, in order."""

    link: LinkId
    messages: Sequence[Message]


class LocalReads(NamedTuple):
    """A consumer on this node asks to read from this very copy (READ only), under its read lease.

    Answered in the same step, by `ServeReads` and `Unserved`.
    """

    link: LinkId
    requests: Sequence[Request]


@attrs.frozen
class AttachReceived:
    """Another node, as primary, opened a link to this copy."""

    link: LinkId
    hello: Attach


@attrs.frozen
class SessionLinked:
    """A consumer's node opened a session link to this group."""

    link: LinkId
    hello: Hello


@attrs.frozen
class RegionsMarked:
    """`MarkRegions` is durable."""


class Applied(NamedTuple):
    """`ApplyOps` up to this sequence is in the page cache."""

    through: Position
    flushed: bool = False
    """And, with all before it, on stable storage: the operations ended with a flush that took no time."""


@attrs.frozen
class Flushed:
    """`FlushDisk` finished: everything applied when it started is on stable storage."""

    token: int


@attrs.frozen
class Saved:
    """`SaveSuperblock` is durable."""

    token: int


@attrs.frozen
class ReadDone:
    """`ReadDisk` finished."""

    token: int
    data: bytes


@attrs.frozen
class ReadFailed:
    """`ReadDisk` met a media error; the copy goes on."""

    token: int


@attrs.frozen
class ReadsFailed:
    """These requests of a `ServeReads` were not answered.

    They met media errors, or would have had to wait for the disk though they may not.
    """

    link: LinkId
    requests: Sequence[Request]
    at_once: bool = False
    """As the `ServeReads` said."""


@attrs.frozen
class LateReads:
    """Requests of a `ServeReads` that the disk has kept waiting, and what it answered at last.

    What may be said of them is decided now, not when they were asked: the primary may have lost its
    lease, and what was read of a place that was written meanwhile may be bytes of which nothing is
    promised yet.
    """

    link: LinkId
    requests: Sequence[Request]
    replies: Sequence[Reply]
    """To those of `requests` whose place was not written meanwhile."""


@attrs.frozen
class DiskStalled:
    """The disk of this copy has answered nothing for so long; 0: it answers again."""

    for_s: float


@attrs.frozen
class RunsRead:
    """`ReadRuns` finished."""

    token: int
    pieces: Sequence[bytes | None]
    """The bytes of each run; None: the medium has lost some of them."""


@attrs.frozen
class HashesDone:
    """`HashDisk` finished: 16 bytes for each index."""

    token: int
    hashes: bytes


@attrs.frozen
class MapDone:
    """`MapDisk` finished."""

    token: int
    extents: Sequence[Extent]


@attrs.frozen
class DiskFailed:
    """The store of this copy failed; it is lost (R1), whatever was asked of it."""

    reason: FaultReason
    sentence: str


@attrs.frozen
class Fenced:
    """A node refused our lease and knows this epoch."""

    epoch: int


@attrs.frozen
class Tick:
    """The deadline came, or something that the machine polls (leases) may have changed."""


@attrs.frozen
class Handover:
    """Operator or node: make the copy on `node` the primary, without a pause."""

    node: NodeName | None
    """None: any in-sync replica."""
    leave: bool
    """This copy leaves the in-sync set in the same step: its node is stopping."""


@attrs.frozen
class Evict:
    """Operator: take the copy on `node` out of the group and delete its data."""

    node: NodeName


@attrs.frozen
class AddCopy:
    """Operator: make one more copy on `node`."""

    node: NodeName


@attrs.frozen
class MoveCopy:
    """Operator: make a copy on `target`, and once it is in sync take out the one on `source`.

    With `target` the same as `source` the copy there stays: a move is called off.
    """

    source: NodeName
    target: NodeName


@attrs.frozen
class ForcePromote:
    """Operator: promote this in-sync copy though unflushed writes may be lost with the others."""


@attrs.frozen
class Verify:
    """Operator: compare all copies; answered by `Verified` with this token."""

    token: int
    repair: bool = False
    """Put right what has rotted or diverged."""
    pace_s: float = 0.0
    """The least time between two batches of 8 MiB."""


@attrs.frozen
class Stop:
    """The node is stopping: come to rest, then `Stopped`."""

    handover: bool
    """Hand over or leave the in-sync set first; False when the whole cluster goes down, so that
    every copy stays what it is."""


Event = (
    RecordSeen
    | SpecSeen
    | CasDone
    | NodesSeen
    | LinkOpened
    | LinkLost
    | Received
    | LocalReads
    | AttachReceived
    | SessionLinked
    | RegionsMarked
    | Applied
    | Flushed
    | Saved
    | ReadDone
    | ReadFailed
    | ReadsFailed
    | LateReads
    | DiskStalled
    | RunsRead
    | HashesDone
    | MapDone
    | DiskFailed
    | Fenced
    | Tick
    | Handover
    | Evict
    | AddCopy
    | MoveCopy
    | ForcePromote
    | Verify
    | Stop
)


# --- effects -----------------------------------------------------------------------------------


class Send(NamedTuple):
    """Send messages on a link, in order."""

    link: LinkId
    messages: Sequence[Message]


class ApplyOps(NamedTuple):
    """Apply operations to the local copy in order, then tell `Applied(through)`."""

    ops: Sequence[Op]
    through: Position


class MarkRegions(NamedTuple):
    """Mark write intent durably, then tell `RegionsMarked`."""

    regions: Sequence[int]


class ClearRegions(NamedTuple):
    """Unmark write intent lazily, after all earlier effects on the intent; no outcome is told."""

    regions: Sequence[int]


class FlushDisk(NamedTuple):
    """fdatasync, then tell `Flushed(token)`."""

    token: int


class SaveSuperblock(NamedTuple):
    """Write the superblock durably, then tell `Saved(token)`."""

    token: int
    superblock: Superblock


class ReadDisk(NamedTuple):
    """Read a range of the local copy, then tell `ReadDone(token)`."""

    token: int
    offset: int
    length: int


class ReadRuns(NamedTuple):
    """Read several ranges of the local copy for a sync, then tell `RunsRead(token)`."""

    token: int
    runs: Sequence[tuple[int, int]]
    """(offset, length) of each."""


class HashDisk(NamedTuple):
    """Hash nodes of the local tree, then tell `HashesDone(token)`."""

    token: int
    level: int
    indexes: Sequence[int]


class MapDisk(NamedTuple):
    """List holes and data of the whole local copy by chunk, then tell `MapDone(token)`."""

    token: int


class ServeReads(NamedTuple):
    """Read the local copy for these requests (READ and EXTENTS) and reply on the link."""

    link: LinkId
    requests: Sequence[Request]
    at_once: bool = False
    """Now or not at all: what the disk would keep waiting for is told by `ReadsFailed` instead. What
    a replica answers by itself is right at this moment, and need not be later."""


class Unserved(NamedTuple):
    """These requests of a `LocalReads` are for the primary; say so on the link."""

    link: LinkId
    requests: Sequence[Request]


class SendReplies(NamedTuple):
    """Answer requests on a session link."""

    link: LinkId
    replies: Sequence[Reply]


class OpenLink(NamedTuple):
    """Connect to a node and send the hello, then tell `LinkOpened` or `LinkLost`."""

    link: LinkId
    node: NodeName
    hello: Attach


class CloseLink(NamedTuple):
    """Close a link after what was sent; nothing more is told about it."""

    link: LinkId
    reason: str


class CompareAndSet(NamedTuple):
    """Write the record if `version` is in force, then tell `CasDone`."""

    record: GroupRecord
    version: int


class ReadRecord(NamedTuple):
    """Read the record, then tell `RecordSeen`; told again and again until the store answers."""


class SaveDirty(NamedTuple):
    """Keep the dirty map of another copy on disk, lazily."""

    copy: CopyId
    bits: bytes


class DropDirty(NamedTuple):
    """Forget the dirty map of another copy."""

    copy: CopyId


class ResizeDisk(NamedTuple):
    """Grow the local copy; told by `Saved(token)`."""

    token: int
    size_bytes: int


class Note(NamedTuple):
    """Tell people: one line in the volume's event log."""

    kind: str
    """Short name such as `copy-dropped`."""
    sentence: str


class Verified(NamedTuple):
    """How far a verification is; the last one has `differing`, or `failed`."""

    token: int
    chunks_done: int
    chunks_total: int
    copies: int
    """How many copies were compared, the primary's included."""
    differing: tuple[tuple[int, tuple[NodeName, ...]], ...] | None
    """(chunk, nodes whose copy differs from the primary's), at the end."""
    failed: bool = False
    """The primary changed; begin again at the new one."""
    rotten: tuple[tuple[int, tuple[NodeName, ...]], ...] = ()
    """(chunk, nodes where its bytes do not match their own hash any longer)."""
    repaired: tuple[int, ...] = ()
    """The chunks of both kinds that were put right on every copy."""


class Assign(NamedTuple):
    """Tell a node that the group wants a copy there (before the record names it)."""

    node: NodeName
    copy: CopyId


class RemoveCopy(NamedTuple):
    """The record proves this copy superseded: delete its data."""


class Stopped(NamedTuple):
    """The machine has come to rest; the store may be closed."""

    superblock: Superblock


Effect = (
    Send
    | ApplyOps
    | MarkRegions
    | ClearRegions
    | FlushDisk
    | SaveSuperblock
    | ReadDisk
    | ReadRuns
    | HashDisk
    | MapDisk
    | ServeReads
    | Unserved
    | SendReplies
    | OpenLink
    | CloseLink
    | CompareAndSet
    | ReadRecord
    | SaveDirty
    | DropDirty
    | ResizeDisk
    | Note
    | Verified
    | Assign
    | RemoveCopy
    | Stopped
)
