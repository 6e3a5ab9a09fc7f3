"""Bytes that go wrong on a disk without a word, and the scrub that an operator runs after them.

Holdfast does not check what it reads for consumers against a hash; it promises that a scrub finds
what has rotted, mends it from a copy that has not, and spreads nothing. So only copies that are not
primary rot here. One that is made primary before it was scrubbed turns the damage into the truth:
from then on nothing is asked about those chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import define, field

from holdfast.model import GroupRecord
from holdfast.sync import events as ev
from holdfast.testing.simulation.disk import ZERO_BLOCK, CopyDisk
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.faults import Fault
    from holdfast.testing.simulation.world import World

_BLOCKS_PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES


@define(eq=False)
class Damage:
    """Which chunks of which volume no promise speaks of any more."""

    beyond: dict[VolumeId, set[int]] = field(factory=dict)
    """Chunks whose damaged bytes became the primary's."""
    ever: dict[VolumeId, set[int]] = field(factory=dict)
    """Chunks that were damaged on any copy at any time."""

    def chunks(self, volume: VolumeId, disks: Iterable[CopyDisk]) -> set[int]:
        """Return the chunks in which these copies may differ because of damage."""
        chunks = set(self.beyond.get(volume, ()))
        for disk in disks:
            if disk.rotted:
                chunks |= {block // _BLOCKS_PER_CHUNK for block in disk.rotted}
        return chunks

    def is_beyond(self, volume: VolumeId, block: int) -> bool:
        """Return whether nothing is promised about a block."""
        beyond = self.beyond.get(volume)
        return beyond is not None and block // _BLOCKS_PER_CHUNK in beyond

    def on_promoted(self, world: World, record: GroupRecord) -> None:
        """The bytes of another copy are the truth now."""
        disk = world.machines[record.primary_member.node].copies.get(record.volume)
        if disk is not None and disk.rotted:
            self.beyond.setdefault(record.volume, set()).update(
                block // _BLOCKS_PER_CHUNK for block in disk.rotted
            )


def strike(world: World, fault: Fault) -> None:
    """Damage a block of a replica, then scrub in a while."""
    record, _ = world.store.records[fault.volume]
    disks = dict(world.invariants.in_sync_disks(record))
    disk = disks.get(fault.nodes[0])
    primary = disks.get(record.primary_member.node)
    if disk is None or primary is None or disk is primary or disk.tainted or primary.tainted:
        return
    hot = world.loads[fault.volume].hot
    first = int(fault.amount * len(hot))
    block, other = hot[first], hot[(first + 11) % len(hot)]
    chunks = {block // _BLOCKS_PER_CHUNK, other // _BLOCKS_PER_CHUNK}
    sick = world.invariants.damage.chunks(fault.volume, disks.values())
    unreadable = {n // _BLOCKS_PER_CHUNK for each in disks.values() for n in each.unreadable}
    if not chunks.isdisjoint(sick | unreadable):
        return
    world.invariants.damage.ever.setdefault(fault.volume, set()).update(chunks)
    if fault.kind == "rot":
        disk.rot(block)
    else:
        disk.misdirect(block, other)
    world.after(fault.duration, scrub, world, fault.volume)


def scrub(world: World, volume: VolumeId) -> None:
    """Let the primary compare all copies and repair what is not right."""
    for process in world.processes():
        pump = process.pumps.get(volume)
        if pump is not None and pump.is_primary():
            process.run(pump.feed, ev.Verify(world.draw_id(), repair=True))


def left_over(
    volume: VolumeId, disks: dict[str, CopyDisk], primary: CopyDisk, beyond: set[int]
) -> str | None:
    """Return what a scrub has left damaged, or None."""
    for node, disk in disks.items():
        for block in sorted(disk.rotted):
            if block // _BLOCKS_PER_CHUNK in beyond:
                continue
            here, there = (each.cache.get(block, ZERO_BLOCK) for each in (disk, primary))
            if here != there:
                return (
                    f"block {block} of {volume} on {node} was damaged, and no scrub has mended it"
                )
    return None
