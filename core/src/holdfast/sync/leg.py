"""One leg: the primary's side of the stream to one other copy.

A leg keeps every batch that the copy has not acknowledged, so that a broken connection is resumed
where it stood; it is bounded (R12), and what a syncing copy cannot take becomes dirty bits instead.
"""

from __future__ import annotations

import enum
from collections import deque

from attrs import define, field

from holdfast.errors import FaultReason
from holdfast.messages import Attached, Batch, EpochChange, Message, Resize
from holdfast.model import CopyState
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.delta import SyncJob, mark_extents
from holdfast.sync.events import CloseLink, Effect, LinkId, Send
from holdfast.sync.peers import Peers
from holdfast.units import MIB, CopyId, Epoch, NodeName, VolumeId
from holdfast.units import Sequence as Position

WINDOW_BYTES = 32 * MIB
"""Unacknowledged bytes beyond which a syncing copy gets dirty bits instead of live writes (R12)."""
WINDOW_FRAMES = 4096
"""The same in batches."""
SYNC_IN_FLIGHT_BYTES = 4 * MIB
"""Sync data on its way to one copy; enough for 10 Gbit/s at 3 ms."""
SYNC_BUSY_BYTES = MIB
"""The same while consumers write."""
OPEN_PATIENCE_S = 10.0
"""How long a copy may take to present itself before its link is opened anew."""
RETRY_S = 0.1
RETRY_OFFLINE_S = 1.0


_new = tuple.__new__  # Half the cost of calling the named tuple.


class Phase(enum.Enum):
    """How far the link of a leg has come."""

    CLOSED = "closed"
    """No link; one is opened when it is due."""
    OPENING = "opening"
    """A connection is being made."""
    ATTACHING = "attaching"
    """`Attach` is on its way, or the copy has not answered."""
    READY = "ready"
    """The copy has presented itself; nothing flows yet."""
    STREAMING = "streaming"
    """Batches flow."""


_STREAMING = Phase.STREAMING  # Looked up in its enum it costs more than a call, on the hot path.


@define
class Leg:
    """The stream to one copy."""

    copy: CopyId
    node: NodeName
    state: CopyState
    """As in the record in force."""
    required_since: float
    """Monotonic time since which acknowledgements need this copy; silence counts from here."""
    phase: Phase = Phase.CLOSED
    link: LinkId | None = None
    retry_at: float = 0.0
    opened_at: float = 0.0
    gone_since: float | None = None
    """Since when its process has refused connections."""
    lost_since: float | None = None
    """Since when there was no streaming link."""
    identity: Attached | None = None
    process: str = ""
    """The process that the stream was begun with; a resume is possible with no other."""
    applied: Position = Position(0)
    durable: Position = Position(0)
    unacked: deque[tuple[Batch, int]] = field(factory=deque)
    """What was sent and not acknowledged, each batch with the bytes that it counts."""
    unacked_bytes: int = 0
    progress_at: float = 0.0
    """When the copy last acknowledged something, or was first asked to again."""
    job: SyncJob | None = None
    last_job: SyncJob | None = None
    """The sync that ended last, so that its cost can be read."""
    equal: bool = False
    """Reconciled (in sync) or caught up and flushed (syncing): it may be counted on."""
    joining: bool = False
    """Caught up: acknowledgements need it already, the record does not say so yet."""
    counted_on: bool = False
    """A compare-and-set under way counts it in sync: the record may say so already, whatever becomes
    of the leg, and acknowledgements and reads must reckon with that."""
    fault: tuple[FaultReason, str] | None = None
    wants_sync: bool = False
    """Presented itself while not in sync; the record is to say that it is syncing."""
    settled_at: Position = Position(0)
    """What the local disk must have applied before anything of it is compared or read for this leg."""
    size_bytes: int = 0
    """How large the copy has said that it is."""
    size_asked: int = 0
    """What it was last asked to grow to on this link."""
    queries: dict[int, int] = field(factory=dict)
    """Local disk token to query id of the job."""
    reads_until: float = float("-inf")
    """Until when the copy may answer reads by itself, as far as this primary can know; monotonic."""
    reads_ended: bool = False
    """It is to leave the in-sync set: it gets no read lease any more."""
    read_token: int | None = None
    read_again_at: float = 0.0
    """The own disk cannot read some of what this copy needs; not before then is that tried again."""

    @property
    def in_sync(self) -> bool:
        """Whether the record counts it in."""
        return self.state is CopyState.IN_SYNC

    def stream(self, batch: Batch, size_bytes: int, now: float, out: list[Effect]) -> None:
        """Send a batch of live writes, or note what it would have brought (R12)."""
        if (
            self.job is not None
            and not (self.joining or self.in_sync or self.counted_on)
            and (self.unacked_bytes > WINDOW_BYTES or len(self.unacked) > WINDOW_FRAMES)
        ):
            for op in batch.ops:
                if op.length:
                    self.job.skip(op.offset, op.length)
            return
        if self.job is not None and self.job.reading:
            self.job.overtake(batch.ops)
        self.push(batch, size_bytes, now, out)

    def push(self, batch: Batch, size_bytes: int, now: float, out: list[Effect]) -> None:
        """Send a batch and keep it until it is acknowledged."""
        if not self.unacked:
            self.progress_at = now
        self.unacked.append((batch, size_bytes))
        self.unacked_bytes += size_bytes
        if self.phase is _STREAMING and self.link is not None:
            out.append(_new(Send, (self.link, (batch,))))

    def on_ack(self, applied: Position, durable: Position, now: float) -> None:
        """Take a cumulative acknowledgement."""
        if applied > self.applied:
            self.applied = applied
            unacked = self.unacked
            while unacked:
                (_, first, _, ops), size_bytes = unacked[0]
                if first + len(ops) - 1 > applied:
                    break
                unacked.popleft()
                self.unacked_bytes -= size_bytes
            self.progress_at = now
            if self.job is not None:
                self.job.on_applied(applied)
        if durable > self.durable:
            self.durable = durable
            self.progress_at = now

    def resume(self, applied: Position, durable: Position, now: float, out: list[Effect]) -> None:
        """Go on after a cut: everything above what the copy has applied is sent again.

        What it says of itself stands for the acknowledgements that the cut has swallowed; it will
        not repeat them.
        """
        self.phase = Phase.STREAMING
        self.lost_since = self.gone_since = None
        self.on_ack(applied, durable, now)
        assert self.link is not None
        if self.unacked:
            self.progress_at = now
            out.append(Send(self.link, tuple(batch for batch, _ in self.unacked)))

    def restart_at(self, before: Position) -> None:
        """Begin a stream whose next sequence is `before` + 1.

        Nothing is known to be durable there until the copy says so: a flush that a consumer asks for
        after a failover must cover what was acknowledged before it.
        """
        self.applied = before
        self.durable = Position(0)
        self.unacked.clear()
        self.unacked_bytes = 0
        self.read_token = None
        self.queries.clear()

    def send(self, message: Message, out: list[Effect]) -> None:
        """Send something that is not kept for a resume, if the stream stands."""
        if self.phase is Phase.STREAMING and self.link is not None:
            out.append(Send(self.link, (message,)))

    def ask_size(self, epoch: Epoch, size_bytes: int, now: float, out: list[Effect]) -> None:
        """Ask the copy to grow, once on each link."""
        if max(self.size_bytes, self.size_asked) < size_bytes and self.link is not None:
            if not self.unacked and not self.growing:
                self.progress_at = now
            self.size_asked = size_bytes
            out.append(Send(self.link, (Resize(epoch, size_bytes),)))

    @property
    def growing(self) -> bool:
        """Whether the copy was asked to grow and has not answered."""
        return self.size_asked > self.size_bytes

    def change_epoch(self, change: EpochChange, out: list[Effect]) -> None:
        """Tell the new epoch; unacknowledged batches are of it from here on.

        What was sent under the old epoch arrives before the change and counts; what a resume sends
        again must carry the new one.
        """
        self.unacked = deque(
            (Batch(change.epoch, b.first, b.commit, b.ops), size) for b, size in self.unacked
        )
        if self.phase in {Phase.READY, Phase.STREAMING} and self.link is not None:
            out.append(Send(self.link, (change,)))

    def silent_since(self, peers: Peers, volume: VolumeId, now: float) -> float:
        """Return since when the copy's node has answered no heartbeat; monotonic."""
        return max(peers.silent_since(self.node, volume, now), self.required_since)

    def close(self, why: str, out: list[Effect]) -> None:
        """Close the link, if any, and forget what belonged to it alone."""
        if self.link is not None:
            out.append(CloseLink(self.link, why))
        self.drop_link()

    def drop_link(self) -> None:
        """The link is gone."""
        self.link = None
        self.size_asked = 0
        self.phase = Phase.CLOSED
        self.identity = None

    def has_on_disk(self, flushed: Position) -> bool:
        """Whether the copy has, too, what was flushed while acknowledgements did not need it (I4)."""
        return self.durable >= flushed

    def missed(self, size_bytes: int) -> Bitmap | None:
        """Return what the copy lacks of its sync and of what was sent to it; None: not known."""
        if self.job is None or not self.job.counted:
            return None
        missed = self.job.dirty.copy()
        for batch, _ in self.unacked:
            mark_extents(missed, [(op.offset, op.length) for op in batch.ops], size_bytes)
        return missed


def batch_bytes(batch: Batch) -> int:
    """Return the payload of a batch in bytes."""
    total = 0
    for op in batch.ops:
        total += len(op.data)
    return total
