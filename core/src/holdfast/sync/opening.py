"""From what is on disk to a group member: the same for the node and for the simulator."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from holdfast.interfaces.copy import Superblock
from holdfast.model import CopyState, GroupRecord, VolumeSpec
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.context import MAP_TAG_BYTES, Context, map_tag
from holdfast.sync.delta import mark_extents
from holdfast.sync.disk import DiskQueue
from holdfast.sync.healing import PolicyOf
from holdfast.sync.member import GroupMember
from holdfast.sync.pace import PaceLimits
from holdfast.sync.peers import Peers
from holdfast.sync.placement import ScoreOf
from holdfast.units import REGION_BYTES, CopyId, NodeName, chunks_of


def opened(superblock: Superblock, boot: str) -> Superblock:
    """Return what must be on disk before an opened copy does anything.

    After an unclean stop the old boot id stays until the copy is known to hold what it should: a
    loss of power must not be forgotten because the process was started twice since.
    """
    return attrs.evolve(superblock, clean=False, boot=boot if superblock.clean else superblock.boot)


def regions_in_doubt(superblock: Superblock, record: GroupRecord, *, fresh: bool) -> range:
    """Return the regions to be marked durably before `open_member`: all of an outdated disk, or none.

    A disk is outdated when it does not know the epoch before the one in which its copy left, or that
    now is, where it counts as in sync: it was restored from a backup, and neither its marks nor the
    others' maps say what it lacks. A copy acknowledges only what it has taken in an epoch that is
    durable on its disk (R3); one that died during a change of epoch may be one behind, and more than
    that is compared in vain, at worst: a copy is in sync, too, when its primary died after two changes
    of epoch of which it had not heard, so nothing else may be concluded. The marks outlive another
    death in the middle of the comparison.
    """
    member = record.find(superblock.copy)
    if member is None or fresh:
        return range(0)
    known = record.epoch if member.state is CopyState.IN_SYNC else member.left_epoch
    if superblock.epoch >= known - 1:
        return range(0)
    return range(-(-superblock.size_bytes // REGION_BYTES))


def open_member(
    *,
    node: NodeName,
    process: str,
    boot: str,
    superblock: Superblock,
    was_clean: bool,
    rebooted: bool,
    fresh: bool,
    marked_regions: Collection[int],
    dirty_maps: Mapping[CopyId, bytes],
    record: GroupRecord,
    version: int,
    spec: VolumeSpec,
    peers: Peers,
    policy_of: PolicyOf,
    now: float,
    score_of: ScoreOf | None = None,
    pace_limits: PaceLimits | None = None,
) -> GroupMember:
    """Return the member for a copy that was just opened.

    After an unclean stop the window is gone and the regions with write intent stand for it: they are
    pinned until the copies are equal again, and every dirty map that was kept is widened by them,
    because its last changes may not have reached the disk. The same goes for all of an outdated disk.

    Args:
        node: This node.
        process: This process' session.
        boot: The machine's boot id.
        superblock: As on disk; the caller has already saved what `opened` returns of it.
        was_clean: Whether the superblock said `clean` before that.
        rebooted: Whether the boot id had changed.
        fresh: Whether the copy was just made.
        marked_regions: Regions with write intent on disk.
        dirty_maps: The dirty maps on disk.
        record: The group record in force.
        version: Its version.
        spec: The volume's specification.
        peers: The node's heartbeats.
        policy_of: Makes the policy of a specification.
        now: Monotonic time.
        score_of: Adds to the score of a node for one more copy; None: nothing does.
        pace_limits: What syncs may send; None: the defaults.
    """
    doubtful = regions_in_doubt(superblock, record, fresh=fresh)
    marked = {*marked_regions, *doubtful}
    unclean = bool(doubtful) or (not was_clean and not fresh)
    disk = DiskQueue(
        marked=marked,
        pinned=set(marked) if unclean else set(),
        applied=superblock.applied,
        durable=superblock.durable,
        submitted=superblock.applied,
        commit=superblock.applied,
    )
    if not unclean:
        # Marks that a clean stop left are only waiting to be cleared.
        for region in marked:
            disk.touch(region)
    ctx = Context(
        cluster=superblock.cluster,
        node=node,
        process=process,
        boot=boot,
        copy=superblock.copy,
        superblock=superblock,
        record=record,
        version=version,
        spec=spec,
        peers=peers,
        disk=disk,
        restarted_unclean=unclean,
        rebooted=rebooted and unclean,
        fresh=fresh,
        score_of=score_of,
        pace_limits=PaceLimits() if pace_limits is None else pace_limits,
        absent=_widened(dirty_maps, record, disk, superblock.size_bytes),
        saved_epoch=superblock.epoch,
    )
    # The record may be ahead of the disk: whoever it has deposed gets no promise here.
    known = max(superblock.epoch, record.epoch)
    peers.follow(record.volume, known, record.primary_member.node)
    return GroupMember(ctx, policy_of, started_at=now)


def _widened(
    dirty_maps: Mapping[CopyId, bytes], record: GroupRecord, disk: DiskQueue, size_bytes: int
) -> dict[CopyId, Bitmap]:
    """Return the dirty maps that still say something, with what is pinned on the own disk."""
    pinned = [(region * REGION_BYTES, REGION_BYTES) for region in disk.pinned]
    maps: dict[CopyId, Bitmap] = {}
    for copy, raw in dirty_maps.items():
        if raw[:MAP_TAG_BYTES] != map_tag(record.find(copy)):
            continue  # About another disk, or an earlier absence; the hash tree tells instead.
        maps[copy] = Bitmap.from_bytes(raw[MAP_TAG_BYTES:], chunks_of(size_bytes))
        mark_extents(maps[copy], pinned, size_bytes)
    return maps
