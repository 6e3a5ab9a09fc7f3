"""The flush half of I4, asked of disks: what a flush covers is on the platters, or something newer.

A primary that answers is asked about what every consumer was told since the last loss that no copy
survived. A session is asked about what it was told itself, across all losses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from holdfast.testing.simulation.disk import ZERO_BLOCK, CopyDisk
from holdfast.testing.simulation.history import NEVER, Access, VolumeHistory, value_of
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, NodeName

_BLOCKS_PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES


def not_kept(
    history: VolumeHistory,
    disks: Iterable[tuple[NodeName, CopyDisk]],
    asked: int,
    damaged: Collection[int],
) -> str | None:
    """Return what a flush that was asked for at `asked` covers and a disk has not kept, or None.

    Args:
        history: What consumers of the volume were told.
        disks: Those of which it is promised; one that has lost power says nothing.
        asked: The flush's place in the history.
        damaged: Chunks of which nothing is promised.
    """
    newest_loss = max(history.losses, default=-1)
    for node, disk in disks:
        if disk.tainted or disk.rotten:
            continue
        for block in {number for number, _ in disk.log}:
            # A block that was damaged and written since may have nothing but damage there.
            if block // _BLOCKS_PER_CHUNK in damaged:
                continue
            newest = -1
            for access in history.blocks.get(block, ()):
                # What was asked for before a loss may have been answered before it, and be lost.
                if access.is_write and access.end < asked and access.start > newest_loss:
                    newest = max(newest, access.start)
            have = value_of(disk.stable.get(block, ZERO_BLOCK))
            if newest >= 0 and isinstance(have, int) and is_older(history, block, have, newest):
                return f"the copy on {node} has an older value {have} of block {block} on stable storage"
    return None


def not_kept_of(
    history: VolumeHistory,
    disks: Iterable[tuple[NodeName, CopyDisk]],
    changes: Iterable[tuple[int, Access]],
    damaged: Collection[int],
) -> str | None:
    """Return which of a session's own changes a disk has not kept, or None.

    Args:
        history: What consumers of the volume were told.
        disks: Those of which it is promised; one that has lost power says nothing.
        changes: Blocks, and the changes to them that a flush of the session covers.
        damaged: Chunks of which nothing is promised.
    """
    sound = [(node, disk) for node, disk in disks if not (disk.tainted or disk.rotten)]
    for block, access in changes:
        if block // _BLOCKS_PER_CHUNK in damaged:
            continue
        for node, disk in sound:
            have = value_of(disk.stable.get(block, ZERO_BLOCK))
            if isinstance(have, int) and is_older(history, block, have, access.start):
                return (
                    f"{access.value} of block {block}, answered at [{access.end}], and the copy on "
                    f"{node} has the older {have}"
                )
    return None


def is_older(history: VolumeHistory, block: int, have: int, start: int) -> bool:
    """Return whether the value `have` was certainly overwritten before `start`."""
    if have == 0:
        return block not in history.zeroed
    writer = history.writers.get(have)
    return writer is not None and writer.end != NEVER and writer.end < start
