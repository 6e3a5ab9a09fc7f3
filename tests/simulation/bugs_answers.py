"""Bugs in what is answered, and when: acknowledgements, flushes, leases, sessions, intent."""

from __future__ import annotations

from typing import Any

import attrs
from tests.simulation.planting import Patch, bug

from holdfast.errors import FaultReason
from holdfast.messages import RequestFlag, RequestKind, SessionOpen, SessionOpened
from holdfast.sync import attachments, membership, primary, reconciling
from holdfast.sync.consumer import ConsumerSession, Hang, SessionPhase
from holdfast.sync.leg import Leg
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.replica import ReplicaRole
from holdfast.sync.roles import Role, Roles
from holdfast.testing.simulation.disk import CopyDisk
from holdfast.testing.simulation.pump import Pump


@bug()
def ack_before_record(patch: Patch) -> None:
    """Acknowledge without a failed copy before the record says that it is out."""

    def require(self: PrimaryRole) -> None:
        self._required = tuple(
            leg for leg in self.legs.values() if (leg.in_sync or leg.joining) and leg.fault is None
        )

    patch(PrimaryRole, "require", require)


@bug(
    (5.0, "isolate", "@primary", 16.0, 0.1),
    (8.0, "takeover", "@replica", 0.0, 0.5),
    nodes=3,
    clients=3,
    reads=0.85,
    depth=64,
    think_s=0.02,
)
def forget_lease(patch: Patch) -> None:
    """Serve reads and acknowledge after the lease has run out."""
    patch(PrimaryRole, "lease_until", lambda _self: float("inf"))


@bug()
def ignored_flush(patch: Patch) -> None:
    """Answer a flush as soon as its sequence is applied."""
    original = PrimaryRole.advance

    def advance(self: PrimaryRole, *args: Any) -> None:
        self.durable = max(self.durable, self.commit)
        original(self, *args)

    patch(PrimaryRole, "advance", advance)


@bug()
def idle_first_flush(patch: Patch) -> None:
    """Take a new primary's first flush for one that has nothing to do."""
    original = reconciling.begin

    def begin(primary: PrimaryRole, *args: Any) -> None:
        original(primary, *args)
        primary.written = type(primary.written)(0)

    patch(reconciling, "begin", begin)


@bug()
def flush_sent_before(patch: Patch) -> None:
    """Answer a flush when one has ended that was sent before the last write."""
    original = PrimaryRole._write

    def write(self: PrimaryRole, link: Any, requests: Any, *args: Any) -> None:
        written = self.written
        if self._flush_at and all(r.kind == RequestKind.FLUSH for r in requests):
            self.written = min(written, self._flush_at)
        original(self, link, requests, *args)
        self.written = max(self.written, written)

    patch(PrimaryRole, "_write", write)


@bug()
def local_ack_alone(patch: Patch) -> None:
    """Acknowledge when the primary alone has applied a write."""
    patch(PrimaryRole, "require", lambda self: setattr(self, "_required", ()))


@bug()
def ack_before_applied(patch: Patch) -> None:
    """Let a replica acknowledge what it has received and not applied."""
    original = ReplicaRole.on_messages

    def on_messages(self: ReplicaRole, messages: Any, now: Any, out: Any) -> None:
        original(self, messages, now, out)
        disk = self.ctx.disk
        if not disk.blocked:
            disk.applied = disk.submitted
            self.on_progress(out)

    patch(ReplicaRole, "on_messages", on_messages)


@bug()
def unheld_commit(patch: Patch) -> None:
    """Forget the window at once instead of when every copy has the writes."""
    original = PrimaryRole.advance

    def advance(self: PrimaryRole, *args: Any) -> None:
        original(self, *args)
        disk = self.ctx.disk
        disk.advance_commit(disk.applied)

    patch(PrimaryRole, "advance", advance)


@bug()
def lost_is_in_sync(patch: Patch) -> None:
    """Leave a lost copy in the in-sync set and go on without it."""

    def drop(record: Any, _faults: Any, _wall: float) -> Any:
        return record

    patch(membership, "drop", drop)
    ack_before_record(patch)


@bug(
    (4.0, "isolate", "@writer", 16.0, 0.9),
    (4.5, "takeover", "@replica", 0.0, 0.5),
    (6.5, "kill", "@writer", 18.0, 0.5),
    nodes=4,
    replicas=1,
    clients=2,
    depth=16,
    think_s=0.01,
)
def fenced_session(patch: Patch) -> None:
    """Let a session that another one has fenced come back."""
    patch(attachments, "_was_fenced", lambda _record, _hello: False)


@bug(
    (4.0, "kill", "@replica", 9.0, 0.5),
    (6.5, "fsync-error", "@primary", 0.0, 0.1),
    nodes=2,
    replicas=1,
    faults_s=12.0,
)
def unheard_loss(patch: Patch) -> None:
    """Let a session that is resumed pay no attention to losses meanwhile."""
    original = ConsumerSession._on_opened

    def on_opened(self: ConsumerSession, message: SessionOpened) -> Any:
        return original(self, attrs.evolve(message, loss_epoch=0))

    patch(ConsumerSession, "_on_opened", on_opened)


@bug()
def untold_loss(patch: Patch) -> None:
    """Begin to serve without the mark of a loss, though no copy has kept what was not flushed."""
    original = membership.promote

    def promote(record: Any, *args: Any) -> Any:
        promoted = original(record, *args)
        return promoted and attrs.evolve(promoted, loss_epoch=record.loss_epoch)

    patch(membership, "promote", promote)


@bug(
    (4.0, "kill", "@replica", 9.0, 0.5),
    *((5.5 + at, "fsync-error", "@primary", 0.0, 0.1) for at in (0.0, 8.0, 16.0)),
    nodes=2,
    replicas=1,
    flush_s=0.05,
    depth=16,
)
def flush_of_what_came_behind(patch: Patch) -> None:
    """Let a consumer count on a flush for what it was told while the flush was under way."""
    original = ConsumerSession._settled

    def settled(self: ConsumerSession, request: Any, reply: Any) -> Any:
        if request.kind == RequestKind.FLUSH:
            self._flushing[request.id] = self._changed
        return original(self, request, reply)

    patch(ConsumerSession, "_settled", settled)


@bug()
def forgetful_consumer(patch: Patch) -> None:
    """Forget what was asked when the link to the primary breaks."""
    original = ConsumerSession.on_lost

    def on_lost(self: ConsumerSession, now: float) -> Any:
        self.unanswered.clear()
        return original(self, now)

    patch(ConsumerSession, "on_lost", on_lost)


@bug()
def late_answer(patch: Patch) -> None:
    """Keep the link to the primary when a request is given up, and use its number anew."""
    original = ConsumerSession.tick

    def tick(self: ConsumerSession, now: float) -> Any:
        was = self.phase
        outcomes = original(self, now)
        if was is SessionPhase.OPEN:
            self.phase = was
        return [outcome for outcome in outcomes if not isinstance(outcome, Hang)]

    patch(ConsumerSession, "tick", tick)


@bug()
def given_up_and_sent(patch: Patch) -> None:
    """Send to the next primary what was given up already."""

    def forget(self: ConsumerSession, request_id: int) -> None:
        self._since.pop(request_id, None)

    patch(ConsumerSession, "_forget", forget)


@bug(
    *((4.0 + 2 * at, "clog2", "@writer", 0.1, 0.45) for at in range(9)),
    nodes=3,
    replicas=1,
    depth=8,
    think_s=0.01,
    deadline_s=0.3,
)
def older_link_counts(patch: Patch) -> None:
    """Take what is left on an older link of a session after what it sends on its newer one."""
    original = attachments.Attachments.add

    def add(self: attachments.Attachments, link: Any, hello: SessionOpen, _out: Any) -> None:
        kept = dict(self.open)
        original(self, link, hello, [])
        self.open.update(kept)

    patch(attachments.Attachments, "add", add)


@bug()
def forget_intent(patch: Patch) -> None:
    """Let write intent be forgotten by a crash."""
    patch(CopyDisk, "mark", lambda _self, _regions: None)


@bug()
def failed_disk_returns(patch: Patch) -> None:
    """Let a copy whose disk has failed follow the next primary."""
    original = Roles._take_record

    def take_record(self: Roles, *args: Any) -> None:
        if self.role is Role.FAILED:
            self.role = Role.REPLICA
        original(self, *args)

    patch(Roles, "_take_record", take_record)


@bug()
def trust_after_failed_flush(patch: Patch) -> None:
    """Flush once more after a failed fsync, and trust what the second one says."""
    original = Pump._fails

    def fails(self: Pump, kind: str) -> bool:
        if self.faults.get(kind) is not FaultReason.FLUSH_FAILED:
            return original(self, kind)
        del self.faults[kind]
        self.disk.flush_failed(self.process.world.rng)
        return False

    patch(Pump, "_fails", fails)


@bug(
    (4.0, "clog2", "@replica", 12.0, 0.05),
    (6.0, "reset2", "@replica", 0.0, 0.5),
    (6.001, "kill", "@writer", 9.0, 0.5),
    (6.001, "kill", "@primary", 9.0, 0.5),
    nodes=4,
    replicas=1,
    clients=4,
    depth=64,
    think_s=0.01,
    reads=0.8,
    ordered=False,
)
def read_unacknowledged(patch: Patch) -> None:
    """Answer a read with a write that some copy may not have."""
    original = PrimaryRole._read

    def read(self: PrimaryRole, *args: Any) -> None:
        commit, self.commit = self.commit, self.next
        original(self, *args)
        self.commit = commit

    patch(PrimaryRole, "_read", read)


@bug()
def ignored_fua(patch: Patch) -> None:
    """Answer a write with FUA like any other."""
    assert primary._FUA == RequestFlag.FUA
    patch(primary, "_FUA", 0)


@bug()
def nothing_sent_again(patch: Patch) -> None:
    """Resume a stream without sending again what was not acknowledged."""
    original = Leg.resume

    def resume(self: Leg, *args: Any) -> None:
        self.unacked.clear()
        original(self, *args)

    patch(Leg, "resume", resume)


@bug()
def writer_of_before(patch: Patch) -> None:
    """Serve a session on although another one has taken its volume over."""
    patch(attachments.Attachments, "on_record", lambda _self, _record, _out: None)


@bug()
def joins_unheard(patch: Patch) -> None:
    """Let a copy join before acknowledgements need it."""

    def require(self: PrimaryRole) -> None:
        self._required = tuple(leg for leg in self.legs.values() if leg.in_sync)

    patch(PrimaryRole, "require", require)


@bug(
    (4.0, "store-slow", "", 16.0, 0.7),
    *((4.2 + 2.3 * at, "kill", "@replica", 0.3, 0.5) for at in range(7)),
    nodes=2,
    replicas=1,
)
def asked_is_nothing(patch: Patch) -> None:
    """Reckon with a compare-and-set only once its outcome is known."""
    patch(PrimaryRole, "count_on", lambda _self, _record: None)
