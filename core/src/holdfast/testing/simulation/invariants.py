"""The invariants of the design's section 4, asked of a whole world.

What is cheap is checked whenever a primary answers; what compares copies is checked at checkpoints;
what concerns a whole history is checked when the world has come to rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from holdfast.messages import Reply, RequestKind
from holdfast.model import Access, CopyState, GroupRecord, Member
from holdfast.sync.context import Context
from holdfast.sync.healing import view_of
from holdfast.sync.opening import regions_in_doubt
from holdfast.sync.roles import Role
from holdfast.testing.simulation import rot
from holdfast.testing.simulation.disk import ZERO_BLOCK, CopyDisk
from holdfast.testing.simulation.history import value_of
from holdfast.testing.simulation.rot import Damage
from holdfast.testing.simulation.stable import is_older, not_kept
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, REGION_BYTES, CopyId, NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.pump import Pump
    from holdfast.testing.simulation.workload import Asked
    from holdfast.testing.simulation.world import World

_WRITES = frozenset({RequestKind.WRITE, RequestKind.DISCARD, RequestKind.ZERO})
POLICY_TOLD_S = 20.0
"""How long a change of policy may take until whoever asks for a record knows of it."""
_STICKY = frozenset({"hard", "soft", "threshold"})
"""Policies under which read-only is left by a new attachment alone."""
_CHUNKS_PER_REGION = REGION_BYTES // CHUNK_BYTES
_BLOCKS_PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES


class Violation(Exception):  # noqa: N818 (an invariant is violated; that is its name)
    """An invariant does not hold."""

    def __init__(self, invariant: str, sentence: str) -> None:
        """Keep the invariant's name, such as `I1`, and what was seen."""
        super().__init__(f"{invariant}: {sentence}")
        self.invariant = invariant
        self.sentence = sentence


@define(eq=False)
class Invariants:
    """Watches one world."""

    world: World
    ackers: dict[tuple[VolumeId, int], CopyId] = field(factory=dict)
    """Who has acknowledged in an epoch (I2)."""
    checks: int = 0
    damage: Damage = field(factory=Damage)

    # -- whenever a primary answers ----------------------------------------------------------------

    def on_replies(
        self, pump: Pump, asked_for: Mapping[int, Asked], replies: Sequence[Reply]
    ) -> None:
        """A primary answers what was asked on one link: I1, I2 and the flush half of I4."""
        world = self.world
        stored = world.store.records.get(pump.volume)
        if stored is None:
            return
        record = stored[0]
        for reply in replies:
            asked = asked_for.get(reply.id)
            if reply.errno or asked is None:
                continue
            self._alone(pump)
            request = asked.request
            if world.observer is not None:
                world.observer.on_answer(
                    pump, request, value_of(bytes(reply.data)) if reply.data else None
                )
            if request.kind in _WRITES:
                self._acknowledged(pump, record)
                self._is_writer(pump, asked.session)
                for at, access in enumerate(asked.accesses):
                    block = request.offset // BLOCK_BYTES + at
                    self._holds(pump.volume, record, block, access.value, access.start)
            elif request.kind == RequestKind.FLUSH:
                self._acknowledged(pump, record)
                disks = self.in_sync_disks(record)
                self._are_stable(pump.volume, disks, asked.start, "is acknowledged")

    def _acknowledged(self, pump: Pump, record: GroupRecord) -> None:
        ctx = pump.member.ctx
        key = (pump.volume, int(ctx.epoch))
        first = self.ackers.setdefault(key, ctx.copy)
        if first != ctx.copy:
            raise Violation("I2", f"{first} and {ctx.copy} both acknowledge in epoch {ctx.epoch}")
        if ctx.epoch < record.epoch and record.primary != ctx.copy:
            raise Violation(
                "I2",
                f"{ctx.node} acknowledges in epoch {ctx.epoch}, but {record.primary_member.node} "
                f"is primary of epoch {record.epoch}",
            )
        if ctx.epoch == record.epoch and pump.disk.tainted:
            # What it holds has become the truth, and the others were made equal to it.
            for _, disk in self.in_sync_disks(record):
                disk.tainted = False

    def _alone(self, pump: Pump) -> None:
        """I2: nobody answers anything while another serves under a higher epoch."""
        mine = pump.member.ctx
        for process in self.world.processes():
            other = process.pumps.get(pump.volume)
            if other is None or other is pump or other.member.primary is None:
                continue
            theirs = other.member.ctx
            if other.member.primary.serving and theirs.epoch > mine.epoch:
                raise Violation(
                    "I2",
                    f"{mine.node} answers in epoch {mine.epoch}, but {theirs.node} serves in epoch "
                    f"{theirs.epoch} already",
                )

    def _is_writer(self, pump: Pump, session: str) -> None:
        """R11: only the session that the primary knows as the writer is answered, unless all may be."""
        ctx = pump.member.ctx
        holder = ctx.record.attached_session
        if session != holder and not ctx.spec.shared:
            raise Violation(
                "R11",
                f"{pump.process.name} answers a write of session {session}, but the writer of "
                f"{pump.volume} is {holder or 'nobody'}",
            )

    def in_sync_disks(self, record: GroupRecord) -> Iterator[tuple[NodeName, CopyDisk]]:
        """Return the disks of the in-sync copies, where they still exist."""
        for member in record.members:
            if member.state is CopyState.IN_SYNC:
                disk = self.disk_of(member, record.volume)
                if disk is not None:
                    yield member.node, disk

    def disk_of(self, member: Member, volume: VolumeId) -> CopyDisk | None:
        """Return the disk that the record means (R8); None: it is gone, or another stands there."""
        disk = self.world.machines[member.node].copies.get(volume)
        if disk is None or disk.superblock.copy != member.copy:
            return None
        return disk if member.incarnation in {"", disk.superblock.incarnation} else None

    def _holds(
        self, volume: VolumeId, record: GroupRecord, block: int, value: object, start: int
    ) -> None:
        """I1: every in-sync copy has the write, or something newer."""
        history = self.world.history.of(volume)
        for node, disk in self.in_sync_disks(record):
            if disk.tainted or disk.rotten or self.damage.is_beyond(volume, block):
                continue
            have = value_of(disk.cache.get(block, ZERO_BLOCK))
            if have == value or not isinstance(have, int) or block in disk.rotted:
                continue
            if is_older(history, block, have, start):
                raise Violation(
                    "I1",
                    f"a write of {value} to block {block} of {volume} is acknowledged in epoch "
                    f"{record.epoch}, but the in-sync copy on {node} holds {have}",
                )

    def _are_stable(
        self, volume: VolumeId, disks: Iterable[tuple[NodeName, CopyDisk]], asked: int, what: str
    ) -> None:
        """I4: what was acknowledged before a flush was asked for is stable on these disks."""
        sick = self.damage.ever.get(volume, set())
        lacks = not_kept(self.world.history.of(volume), disks, asked, sick)
        if lacks is not None:
            raise Violation("I4", f"a flush of {volume} {what}, but {lacks}")

    def on_grown(self, pump: Pump) -> None:
        """A primary has grown and serves the new size: every in-sync copy has grown before it."""
        record, _ = self.world.store.records[pump.volume]
        if record.primary != pump.disk.superblock.copy:
            return
        for node, disk in self.in_sync_disks(record):
            if disk.size_bytes < pump.disk.size_bytes:
                raise Violation(
                    "I1",
                    f"{pump.process.name} serves {pump.disk.size_bytes} bytes of {pump.volume}, but "
                    f"the in-sync copy on {node} has {disk.size_bytes}",
                )

    # -- damage ------------------------------------------------------------------------------------

    def on_damage(self, volume: VolumeId, disk: CopyDisk) -> None:
        """A copy has lost what was not flushed; if that is true of all, I4 alone protects."""
        disk.tainted, disk.tainted_at = True, self.world.now
        stored = self.world.store.records.get(volume)
        if stored is None:
            return
        disks = [disk for _, disk in self.in_sync_disks(stored[0])]
        if disk in disks and all(d.tainted for d in disks):
            self._lost(volume)

    def _lost(self, volume: VolumeId) -> None:
        self.world.history.loss(volume)
        self.world.trace("loss", volume, "every in-sync copy has lost what was not flushed")

    def _lost_by_a_late_drop(self, record: GroupRecord, before: GroupRecord) -> None:
        """A drop was asked for by a copy that lost what was not flushed before it took place.

        It might as well have taken place in the moment before, and then that copy was the last.
        """
        disks = [disk for _, disk in self.in_sync_disks(record)]
        asked_at = self.world.store.asked_at
        if set(record.in_sync) < set(before.in_sync) and record.primary == before.primary:
            if disks and all(disk.tainted and asked_at <= disk.tainted_at for disk in disks):
                self._lost(record.volume)

    def on_record(self, record: GroupRecord, before: GroupRecord | None) -> None:
        """A record was written: who has joined is clean again; I6's one-way doors."""
        self.world.trace(
            "record",
            record.volume,
            f"epoch {record.epoch} primary {record.primary_member.node} "
            + " ".join(
                f"{m.node}:{m.state.value}{'?' if m.suspect else ''}" for m in record.members
            )
            + f" {record.access.value} gen {record.attachment_generation}"
            f" {record.attached_session}",
        )
        if before is None:
            return
        if record.epoch < before.epoch:
            raise Violation("I2", f"the epoch fell from {before.epoch} to {record.epoch}")
        changed = record.primary != before.primary or set(record.in_sync) != set(before.in_sync)
        if changed and record.epoch == before.epoch:
            raise Violation("I2", f"the in-sync set changed within epoch {record.epoch}")
        if record.primary not in before.in_sync:
            raise Violation(
                "R4", f"{record.primary_member.node} was promoted without being in sync"
            )
        if record.primary != before.primary:
            self.damage.on_promoted(self.world, record)
        self._suspicions(record, before)
        self._lost_by_a_late_drop(record, before)
        joined = set(record.in_sync) - set(before.in_sync)
        for node, disk in self.in_sync_disks(record):
            if disk.superblock.copy in joined:
                process = self.world.machines[node].process
                pump = None if process is None else process.pumps.get(record.volume)
                # It may have lost power, or started anew, since this was asked for.
                if pump is not None and pump.member.replica.synced:
                    disk.tainted = False
                self.world.trace("joined", node, record.volume)
                # After a loss of power of them all it may be this one that is promoted.
                flushes = self.world.history.of(record.volume).flushes
                asked = max((start for start, _ in flushes), default=-1)
                self._are_stable(record.volume, [(node, disk)], asked, "is older than the join")
        if joined:
            self.checkpoint()
        if before.access is Access.READ_ONLY and record.access is Access.READ_WRITE:
            spec = self.world.store.specs[record.volume]
            sticky = spec.policy in _STICKY and not spec.policy_options.get("auto_resume")
            # Whoever asked for this may have known the policy of a moment ago.
            changed_at = self.world.store.policy_changed_at.get(record.volume, -math.inf)
            sticky = sticky and self.world.now - changed_at > POLICY_TOLD_S
            if sticky and record.attachment_generation == before.attachment_generation:
                raise Violation("I6", "a read-only volume became writable without an attachment")

    def _suspicions(self, record: GroupRecord, before: GroupRecord) -> None:
        """I4: a copy that lost nothing is not suspect, or one that did may take its place."""
        for node, disk in self.in_sync_disks(record):
            mine, was = record.member(disk.superblock.copy), before.find(disk.superblock.copy)
            if mine.suspect and was is not None and not was.suspect and not disk.tainted:
                raise Violation(
                    "I4",
                    f"the copy on {node} is called suspect, but has lost nothing since it joined",
                )
        first = self.disk_of(record.primary_member, record.volume)
        if record.loss_epoch != before.loss_epoch and first is not None and not first.tainted:
            node = record.primary_member.node
            raise Violation("I4", f"a loss is told of, but the copy on {node} has lost nothing")

    # -- checkpoints -------------------------------------------------------------------------------

    def checkpoint(self) -> None:
        """I3: wherever two copies differ, somebody knows that they may."""
        for volume, (record, _) in self.world.store.records.items():
            self.checks += 1
            members = [
                (m, disk)
                for m in record.members
                if (disk := self.disk_of(m, volume)) is not None and not disk.rotten
            ]
            in_sync = [
                (m.node, d) for m, d in members if m.state is CopyState.IN_SYNC and not d.tainted
            ]
            if len(in_sync) > 1:
                known = self.damage.chunks(volume, [disk for _, disk in in_sync])
                for node, disk in in_sync:
                    known |= self._known(volume, node, disk)
                first_node, first = in_sync[0]
                for node, disk in in_sync[1:]:
                    for chunk in _differences(first, disk):
                        if chunk not in known:
                            raise Violation(
                                "I3",
                                f"in-sync copies of {volume} on {first_node} and {node} differ in "
                                f"chunk {chunk}, and nobody knows",
                            )
            self._check_maps(record)

    def _check_maps(self, record: GroupRecord) -> None:
        """A dirty map kept for an absent copy names everything in which it differs."""
        node = record.primary_member.node
        process = self.world.machines[node].process
        pump = None if process is None else process.pumps.get(record.volume)
        if pump is None or pump.member.primary is None or not pump.member.primary.serving:
            return
        ctx = pump.member.ctx
        if ctx.record.epoch != record.epoch:
            return
        for member in record.members:
            bitmap = ctx.absent.get(member.copy)
            disk = self.world.machines[member.node].copies.get(record.volume)
            if bitmap is None or disk is None or disk.superblock.copy != member.copy:
                continue
            if member.state is not CopyState.OFFLINE or disk.tainted or disk.rotten:
                continue
            if member.incarnation != disk.superblock.incarnation:
                continue  # Made anew; the map is not used for it.
            if regions_in_doubt(disk.superblock, record, fresh=False):
                continue  # In an older state of its own; all of it will be marked.
            known = self.damage.chunks(record.volume, [pump.disk, disk])
            known |= self._known(record.volume, member.node, disk)
            known |= self._known(record.volume, node, pump.disk)
            for chunk in _differences(pump.disk, disk):
                if not bitmap.test(chunk) and chunk not in known:
                    raise Violation(
                        "I3",
                        f"the absent copy of {record.volume} on {member.node} differs from the "
                        f"primary's in chunk {chunk}, which its dirty map does not name",
                    )

    def _known(self, volume: VolumeId, node: NodeName, disk: CopyDisk) -> set[int]:
        """Return the chunks that a copy itself holds for possibly different."""
        process = self.world.machines[node].process
        pump = None if process is None else process.pumps.get(volume)
        chunks: set[int] = set()
        if pump is None or pump.member.role is Role.FAILED:
            for region in disk.marked:
                chunks.update(range(region * _CHUNKS_PER_REGION, (region + 1) * _CHUNKS_PER_REGION))
            return chunks
        ctx: Context = pump.member.ctx
        for offset, length in ctx.disk.suspects():
            chunks.update(range(offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES + 1))
        return chunks

    # -- at rest -----------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """All faults are over: redundancy is back (I7), copies are equal, histories make sense."""
        world = self.world
        for volume, (record, _) in world.store.records.items():
            disks = list(self.in_sync_disks(record))
            first_node, first = disks[0]
            beyond = self.damage.chunks(volume, (disk for _, disk in disks))
            for node, disk in disks[1:]:
                for chunk in _differences(first, disk):
                    if chunk in beyond:
                        continue
                    raise Violation(
                        "I1",
                        f"at rest the in-sync copies of {volume} on {first_node} and {node} "
                        f"differ in chunk {chunk}",
                    )
            self._access(record)
            self.final_reads(volume, record)
        self.check_histories()

    def _access(self, record: GroupRecord) -> None:
        """I6: the access in force is the one that the policy would give now."""
        world = self.world
        spec = world.store.specs[record.volume]
        view = view_of(record, spec, attached_anew=False)
        clock = world.machines[record.primary_member.node].clock
        wanted = world.config.policy_of(spec).decide(view, clock.instant(world.now).wall).access
        if record.access is not wanted:
            raise Violation(
                "I6",
                f"access of {record.volume} is {record.access.value}, but policy {spec.policy} says "
                f"{wanted.value}",
            )

    def damage_left(self) -> str | None:
        """Return what is still damaged on some in-sync copy, or None."""
        for volume, (record, _) in self.world.store.records.items():
            disks = {str(node): disk for node, disk in self.in_sync_disks(record)}
            primary = disks.get(record.primary_member.node)
            beyond = self.damage.beyond.get(volume, set())
            if primary is None:
                continue
            told = rot.left_over(volume, disks, primary, beyond)
            if told is not None:
                return told
        return None

    def final_reads(self, volume: VolumeId, record: GroupRecord) -> None:
        """Read every block that was ever touched, as a last consumer would."""
        from holdfast.testing.simulation.history import Access as Touched  # noqa: PLC0415

        history = self.world.history
        disk = self.world.machines[record.primary_member.node].copies[volume]
        for block, accesses in history.of(volume).blocks.items():
            if self.damage.is_beyond(volume, block):
                accesses.clear()  # Nothing is promised about it; nothing is judged.
                continue
            value = value_of(disk.cache.get(block, ZERO_BLOCK))
            start = history.tick()
            accesses.append(
                Touched(start, is_write=False, value=value, end=history.tick(), time=self.world.now)
            )

    def check_histories(self) -> None:
        """I5 and I4: one copy of each block could have answered the same."""
        for volume in self.world.store.records:
            error = self.world.history.check(volume)
            if error is not None:
                raise Violation("I5", f"{volume}: {error}")


def _differences(one: CopyDisk, other: CopyDisk) -> list[int]:
    chunks = {n // _BLOCKS_PER_CHUNK for n in one.cache}
    chunks.update(n // _BLOCKS_PER_CHUNK for n in other.cache)
    return [c for c in sorted(chunks) if one.chunk_hash(c) != other.chunk_hash(c)]
