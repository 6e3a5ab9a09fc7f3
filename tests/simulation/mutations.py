"""Deliberate bugs in the group machines, each a patch of one rule; the simulator must catch them all.

`python tests/simulation/mutations.py` prints which invariant catches which one after how many seeds,
and keeps the seeds in `caught.json`, where the test begins to look.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from holdfast.model import CopyState
from holdfast.sync import attachments, context, member, membership, opening, primary
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.consumer import ConsumerSession
from holdfast.sync.context import Context
from holdfast.sync.delta import SyncJob
from holdfast.sync.disk import DiskQueue
from holdfast.sync.events import CasDone
from holdfast.sync.keeper import Keeper
from holdfast.sync.leg import Leg
from holdfast.sync.member import GroupMember
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.replica import ReplicaRole
from holdfast.testing.simulation import node
from holdfast.testing.simulation.disk import CopyDisk
from holdfast.testing.simulation.faults import Fault
from holdfast.testing.simulation.runner import Outcome, run_seed
from holdfast.testing.simulation.world import Config
from holdfast.units import MIB, NodeName, VolumeId
from holdfast.units import Sequence as Position

SEEDS_MAX = 400
CAUGHT = Path(__file__).parent / "caught.json"
Patch = Callable[[Any, str, Any], None]
Mutation = Callable[[Patch], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    """Register a bug under the sentence in its docstring."""
    assert function.__doc__
    MUTATIONS[function.__doc__.rstrip(".")] = function
    return function


@mutation
def ack_before_record(patch: Patch) -> None:
    """Acknowledge without a failed copy before the record says that it is out."""

    def require(self: PrimaryRole) -> None:
        self._required = tuple(
            leg for leg in self.legs.values() if (leg.in_sync or leg.joining) and leg.fault is None
        )

    patch(PrimaryRole, "require", require)


@mutation
def promote_syncing(patch: Patch) -> None:
    """Promote a copy that is still syncing."""
    may, promote = membership.may_promote, membership.promote

    def whole(record: Any, me: Any) -> Any:
        mine = record.find(me)
        if mine is None or mine.state is CopyState.OFFLINE:
            return record
        return record.with_member(attrs.evolve(mine, state=CopyState.IN_SYNC))

    def asked(self: GroupMember) -> bool:
        return membership.may_promote(self.ctx.record, self.ctx.copy)

    patch(GroupMember, "_may_promote", asked)
    patch(membership, "may_promote", lambda record, me: may(whole(record, me), me))
    patch(membership, "promote", lambda record, me, wall: promote(whole(record, me), me, wall))


@mutation
def promote_offline(patch: Patch) -> None:
    """Promote whoever asks, also a copy that was dropped."""
    promote = membership.promote

    def whole(record: Any, me: Any) -> Any:
        return record.with_member(attrs.evolve(record.member(me), state=CopyState.IN_SYNC))

    patch(membership, "may_promote", lambda record, me: record.find(me) is not None)
    patch(membership, "promote", lambda record, me, wall: promote(whole(record, me), me, wall))


@mutation
def trust_after_power_loss(patch: Patch) -> None:
    """Promote a copy that has lost power though another one has not."""
    patch(
        membership,
        "may_promote",
        lambda record, me: me in record.in_sync,
    )


@mutation
def forget_lease(patch: Patch) -> None:
    """Serve reads and acknowledge after the lease has run out."""
    patch(PrimaryRole, "lease_until", lambda _self: float("inf"))


@mutation
def impatient_replica(patch: Patch) -> None:
    """Take over while the primary still holds a lease."""

    def stand_at(self: GroupMember) -> float:
        heard = max(self.ctx.peers.heard_at(self.ctx.record.volume), self.replica.heard_since)
        return heard + 0.6

    patch(GroupMember, "_stand_at", stand_at)


@mutation
def forget_intent(patch: Patch) -> None:
    """Let write intent be forgotten by a crash."""
    patch(CopyDisk, "mark", lambda _self, _regions: None)


@mutation
def forget_window(patch: Patch) -> None:
    """Keep no window of recent writes."""

    def suspects(self: DiskQueue) -> list[tuple[int, int]]:
        self.window.clear()
        return []

    patch(DiskQueue, "suspects", suspects)


@mutation
def skip_reconcile(patch: Patch) -> None:
    """Serve after a failover without making the copies equal."""
    original = SyncJob.confirming.__func__  # type: ignore[attr-defined]

    def confirming(cls: Any, how: str, size: int, extents: Any, known: Any, now: float) -> Any:
        return original(cls, how, size, [] if how == "reconcile" else extents, known, now)

    patch(SyncJob, "confirming", classmethod(confirming))


@mutation
def no_dirty_bits(patch: Patch) -> None:
    """Mark no dirty bits for copies that are absent."""
    patch(Context, "mark_absent", lambda _self, _ops: None)


@mutation
def no_window_in_map(patch: Patch) -> None:
    """Begin a dirty map without what the lost copy may not have received."""
    patch(context, "mark_extents", lambda _bitmap, _extents, _size: None)


@mutation
def no_intent_in_map(patch: Patch) -> None:
    """Do not widen the dirty maps on disk by what may have been marked after they were saved."""
    patch(opening, "mark_extents", lambda _bitmap, _extents, _size: None)
    patch(primary, "_clip", lambda _extents, _ctx: [])


@mutation
def no_hold(patch: Patch) -> None:
    """Let writes pass a chunk that was read for a sync and is not enqueued yet."""
    original = PrimaryRole.on_requests

    def on_requests(self: PrimaryRole, *args: Any) -> None:
        holds, self.holds = self.holds, 0
        original(self, *args)
        self.holds += holds

    patch(PrimaryRole, "on_requests", on_requests)


@mutation
def early_hash(patch: Patch) -> None:
    """Compare for a sync before the local disk has what precedes the stream."""
    patch(Leg, "settled_at", property(lambda _self: 0, lambda _self, _value: None))


@mutation
def ignored_flush(patch: Patch) -> None:
    """Answer a flush as soon as its sequence is applied."""
    original = PrimaryRole.advance

    def advance(self: PrimaryRole, *args: Any) -> None:
        self.durable = max(self.durable, self.commit)
        original(self, *args)

    patch(PrimaryRole, "advance", advance)


@mutation
def idle_first_flush(patch: Patch) -> None:
    """Take a new primary's first flush for one that has nothing to do."""
    original = PrimaryRole.reconcile_jobs

    def reconcile_jobs(self: PrimaryRole, *args: Any) -> None:
        original(self, *args)
        self.written = type(self.written)(0)

    patch(PrimaryRole, "reconcile_jobs", reconcile_jobs)


@mutation
def local_ack_alone(patch: Patch) -> None:
    """Acknowledge when the primary alone has applied a write."""
    patch(PrimaryRole, "require", lambda self: setattr(self, "_required", ()))


@mutation
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


@mutation
def unsure_is_won(patch: Patch) -> None:
    """Take a compare-and-set of unknown outcome for one that took place."""
    original = GroupMember._on_cas_done

    def on_cas_done(self: GroupMember, event: CasDone, now: Any, out: Any) -> None:
        if event.outcome == "unknown":
            event = attrs.evolve(event, outcome="ok", version=self.ctx.version + 1)
        original(self, event, now, out)

    patch(GroupMember, "_on_cas_done", on_cas_done)


@mutation
def conflict_is_won(patch: Patch) -> None:
    """Take a lost compare-and-set for one that took place."""
    original = GroupMember._on_cas_done

    def on_cas_done(self: GroupMember, event: CasDone, now: Any, out: Any) -> None:
        if event.outcome == "conflict":
            event = attrs.evolve(event, outcome="ok")
        original(self, event, now, out)

    patch(GroupMember, "_on_cas_done", on_cas_done)


@mutation
def strange_disk(patch: Patch) -> None:
    """Count a disk that was wiped under its old name as the in-sync copy."""
    original = Keeper._on_attached

    def on_attached(self: Keeper, leg: Leg, identity: Any, *args: Any) -> None:
        known = self.ctx.record.member(leg.copy).incarnation
        identity = attrs.evolve(
            identity,
            incarnation=known or identity.incarnation,
            session=leg.process or identity.session,
        )
        original(self, leg, identity, *args)

    patch(Keeper, "_on_attached", on_attached)


@mutation
def trust_restarted(patch: Patch) -> None:
    """Resume the stream to a copy whose machine has restarted."""
    original = Keeper._on_attached

    def on_attached(self: Keeper, leg: Leg, identity: Any, *args: Any) -> None:
        if leg.process:
            identity = attrs.evolve(identity, session=leg.process)
        original(self, leg, identity, *args)

    def opened(**known: Any) -> GroupMember:
        return opening.open_member(**{**known, "rebooted": False})

    patch(Keeper, "_on_attached", on_attached)
    patch(node, "open_member", opened)


@mutation
def old_map(patch: Patch) -> None:
    """Use a dirty map for another disk than it was kept for."""
    patch(context, "_is_another", lambda _old, _member: False)
    patch(opening, "map_tag", lambda _member: b"-" * 8)
    patch(context, "map_tag", lambda _member: b"-" * 8)


@mutation
def lost_is_in_sync(patch: Patch) -> None:
    """Leave a lost copy in the in-sync set and go on without it."""

    def drop(record: Any, _faults: Any, _wall: float) -> Any:
        return record

    patch(membership, "drop", drop)
    ack_before_record(patch)


@mutation
def fenced_session(patch: Patch) -> None:
    """Let a session that another one has fenced come back."""
    patch(attachments, "_was_fenced", lambda _record, _hello: False)


@mutation
def forgetful_consumer(patch: Patch) -> None:
    """Forget what was asked when the link to the primary breaks."""
    original = ConsumerSession.on_lost

    def on_lost(self: ConsumerSession, now: float) -> Any:
        self.unanswered.clear()
        return original(self, now)

    patch(ConsumerSession, "on_lost", on_lost)


@mutation
def unheld_commit(patch: Patch) -> None:
    """Forget the window at once instead of when every copy has the writes."""
    original = PrimaryRole.advance

    def advance(self: PrimaryRole, *args: Any) -> None:
        original(self, *args)
        disk = self.ctx.disk
        disk.advance_commit(disk.applied)

    patch(PrimaryRole, "advance", advance)


@mutation
def failed_disk_returns(patch: Patch) -> None:
    """Let a copy whose disk has failed follow the next primary."""
    original = GroupMember._take_record

    def take_record(self: GroupMember, *args: Any) -> None:
        if self.role is member.Role.FAILED:
            self.role = member.Role.REPLICA
        original(self, *args)

    patch(GroupMember, "_take_record", take_record)


@mutation
def join_unflushed(patch: Patch) -> None:
    """Let a copy join before what it has received is on stable storage."""
    original = Keeper._on_equal

    def on_equal(self: Keeper, leg: Leg, now: Any, out: Any) -> None:
        if leg.job is not None:
            leg.job.flush_at = Position(0)
        original(self, leg, now, out)

    patch(Keeper, "_on_equal", on_equal)


@mutation
def empty_holes(patch: Patch) -> None:
    """Take every chunk of a tree comparison for equal."""
    patch(SyncJob, "_descend", lambda *_args: None)


@mutation
def clear_on_send(patch: Patch) -> None:
    """Clear a dirty bit when the chunk is sent instead of when it is applied."""
    original = SyncJob.on_read

    def on_read(self: SyncJob, data: bytes, first: Any) -> Any:
        assert self.reading is not None
        chunk, count = self.reading
        self.dirty.clear(chunk, count)
        return original(self, data, first)

    def missed(self: Leg, _size_bytes: int) -> Bitmap | None:
        return None if self.job is None else self.job.dirty.copy()

    patch(SyncJob, "on_read", on_read)
    patch(Leg, "missed", missed)


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Plant one bug for as long as the block runs."""
    undo: list[tuple[Any, str, Any]] = []

    def patch(owner: Any, attribute: str, value: Any) -> None:
        undo.append((owner, attribute, vars(owner)[attribute]))
        setattr(owner, attribute, value)

    try:
        MUTATIONS[name](patch)
        yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


Step = tuple[float, str, str, float, float]
"""Seconds, kind, node, duration, amount."""
DIRECTED: dict[str, tuple[dict[str, Any], list[Step]]] = {
    "Serve reads and acknowledge after the lease has run out": (
        {"nodes": 3, "clients": 3, "reads": 0.85, "depth": 64, "think_s": 0.02},
        [(5.0, "isolate", "@primary", 16.0, 0.1), (8.0, "takeover", "@replica", 0.0, 0.5)],
    ),
    "Let a session that another one has fenced come back": (
        {"nodes": 4, "replicas": 1, "clients": 2, "depth": 16, "think_s": 0.01},
        [
            (4.0, "isolate", "@writer", 16.0, 0.9),
            (4.5, "takeover", "@replica", 0.0, 0.5),
            (6.5, "kill", "@writer", 18.0, 0.5),
        ],
    ),
    "Do not widen the dirty maps on disk by what may have been marked after they were saved": (
        {"nodes": 2, "replicas": 1, "size_bytes": 256 * MIB},
        [(4.0, "kill", "@replica", 8.0, 0.5), (7.0, "kill", "@primary", 0.3, 0.5)],
    ),
    "Resume the stream to a copy whose machine has restarted": (
        {"nodes": 3, "depth": 16, "think_s": 0.01},
        [(4.0, "power", "@replica", 0.02, 0.5), (8.0, "power", "@replica", 0.02, 0.5)],
    ),
    "Clear a dirty bit when the chunk is sent instead of when it is applied": (
        {"nodes": 3, "think_s": 0.01, "size_bytes": 256 * MIB},
        [
            (4.0, "kill", "@replica", 4.0, 0.5),
            (7.5, "clog2", "@replica", 14.0, 0.03),
            *((8.3 + at * (0.3 + at * 0.011), "reset2", "@replica", 0.0, 0.5) for at in range(20)),
        ],
    ),
    "Count a disk that was wiped under its old name as the in-sync copy": (
        {"nodes": 3},
        [(5.0, "wipe", "@replica", 0.02, 0.5)],
    ),
    "Use a dirty map for another disk than it was kept for": (
        {"nodes": 3},
        [
            (6.0, "wipe", "@replica", 0.3, 0.5),
            (6.45, "store-slow", "@replica", 4.0, 0.2),
            (8.3, "kill", "@replica", 0.1, 0.5),
        ],
    ),
    "Promote a copy that is still syncing": (
        {"nodes": 2, "replicas": 1},
        [
            (5.0, "kill", "@replica", 2.0, 0.5),
            (6.0, "clog2", "@replica", 14.0, 0.4),
            (9.0, "kill", "@primary", 8.0, 0.5),
        ],
    ),
    "Let writes pass a chunk that was read for a sync and is not enqueued yet": (
        {"nodes": 3, "depth": 16, "think_s": 0.002},
        [(5.0, "wipe", "@replica", 0.3, 0.5), (8.0, "wipe", "@replica", 0.3, 0.5)],
    ),
    "Let a copy join before what it has received is on stable storage": (
        {"nodes": 2, "replicas": 1, "think_s": 0.1},
        [(6.0, "wipe", "@replica", 0.5, 0.5), (6.62, "power-all", "@replica", 1.0, 0.5)],
    ),
}
"""Worlds in which a bug that hides well must show; the others show in the worlds of plain seeds."""


def run(name: str, seed: int) -> Outcome:
    """Run one of the worlds in which the bug is looked for."""
    if name not in DIRECTED:
        return run_seed(seed)
    shape, steps = DIRECTED[name]
    schedule = []
    for number, (time, kind, which, duration, amount) in enumerate(steps):
        nodes = ("@primary", which) if kind.endswith("2") else (which,)
        schedule.append(
            Fault(
                number,
                time,
                kind.removesuffix("2"),
                tuple(NodeName(n) for n in nodes),
                duration,
                amount,
                VolumeId("v1"),
            )
        )
    return run_seed(seed, config=Config(seed=seed, faults_s=22.0, **shape), schedule=schedule)


def caught(name: str, seeds_max: int = SEEDS_MAX) -> tuple[int, Outcome] | None:
    """Return the seed that catches the bug, with the outcome; None: none does.

    The seed that caught it last is tried first.
    """
    known = json.loads(CAUGHT.read_text()).get(name, 1) if CAUGHT.exists() else 1
    with planted(name):
        for seed in (known, *range(1, seeds_max + 1)):
            outcome = run(name, seed)
            if outcome.violation is not None:
                return seed, outcome
    return None


def main() -> int:
    """Print the table and keep the seeds; return 1 when a bug got away."""
    seeds: dict[str, int] = {}
    CAUGHT.unlink(missing_ok=True)
    sys.stdout.write("| bug | caught by | at seed |\n|---|---|---|\n")
    for name in MUTATIONS:
        found = caught(name)
        if found is None:
            sys.stdout.write(f"| {name} | nothing | |\n")
        else:
            seeds[name], outcome = found
            assert outcome.violation is not None
            sys.stdout.write(f"| {name} | {outcome.violation.invariant} | {seeds[name]} |\n")
        sys.stdout.flush()
    CAUGHT.write_text(json.dumps(seeds, indent=1) + "\n")
    return int(len(seeds) < len(MUTATIONS))


if __name__ == "__main__":
    sys.exit(main())
