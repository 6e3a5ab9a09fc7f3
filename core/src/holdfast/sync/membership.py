"""How a group record may change, as pure functions from record to record.

Every function keeps the record's own invariants: the primary is in sync, at most one member per
node, the epoch rises exactly when primary or in-sync set change, the last in-sync copy stays.
`check` states them, and every result passes through it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import attrs

from holdfast.errors import FaultReason
from holdfast.model import CopyState, GroupRecord, Member
from holdfast.units import CopyId, Epoch, NodeName, VolumeId


def check(record: GroupRecord) -> GroupRecord:
    """Return `record`, having asserted what must hold of every group record."""
    assert record.epoch >= 1
    assert record.primary in record.in_sync
    assert len({m.node for m in record.members}) == len(record.members)
    assert len({m.copy for m in record.members}) == len(record.members)
    return record


def promote(record: GroupRecord, me: CopyId, wall: float) -> GroupRecord | None:
    """Return the record with `me` as primary and the old primary out, or None where R4 forbids it.

    The old primary leaves the in-sync set in the same step, because the new one is not going to wait
    for the acknowledgements of a copy that it believes dead. When the old primary is `me` (its
    process restarted), only the epoch rises. A suspect copy begins with a loss: what was not flushed
    may be gone, from it and from all that will be made equal to it.
    """
    mine = record.find(me)
    if mine is None or mine.state is not CopyState.IN_SYNC:
        return None
    epoch = Epoch(record.epoch + 1)
    members = []
    for member in record.members:
        if member.copy == record.primary and member.copy != me:
            members.append(_offline(member, epoch, FaultReason.LINK_LOST, wall))
        elif member.copy == me:
            members.append(attrs.evolve(member, suspect=False))
        else:
            members.append(member)
    return check(
        attrs.evolve(
            record,
            epoch=epoch,
            primary=me,
            members=tuple(members),
            loss_epoch=epoch if mine.suspect else record.loss_epoch,
        )
    )


def may_promote(record: GroupRecord, me: CopyId) -> bool:
    """Return whether `me` may take over without risking acknowledged writes.

    A copy whose machine restarted may have lost acknowledged writes that nobody flushed; another
    in-sync copy may still hold them. It takes over only when every in-sync copy is in that state,
    because then only flushed writes were ever promised (I4).
    """
    mine = record.find(me)
    if mine is None or mine.state is not CopyState.IN_SYNC:
        return False
    return not mine.suspect or all(
        m.suspect for m in record.members if m.state is CopyState.IN_SYNC
    )


def hand_over(
    record: GroupRecord,
    target: CopyId,
    *,
    leave: bool,
    wall: float,
    reason: FaultReason = FaultReason.REMOVED,
) -> GroupRecord:
    """Return the record with `target` as primary; the old one stays in sync unless it leaves."""
    assert target in record.in_sync
    assert target != record.primary
    epoch = Epoch(record.epoch + 1)
    members = record.members
    if leave:
        members = tuple(
            _offline(m, epoch, reason, wall) if m.copy == record.primary else m for m in members
        )
    return check(attrs.evolve(record, epoch=epoch, primary=target, members=members))


def drop(record: GroupRecord, faults: Mapping[CopyId, FaultReason], wall: float) -> GroupRecord:
    """Return the record with the copies of `faults` offline (R2); the primary is never dropped."""
    assert record.primary not in faults
    lost_in_sync = any(copy in faults for copy in record.in_sync)
    epoch = Epoch(record.epoch + 1) if lost_in_sync else record.epoch
    return check(
        attrs.evolve(
            record,
            epoch=epoch,
            members=tuple(
                _offline(m, epoch, faults[m.copy], wall)
                if m.copy in faults and m.state is not CopyState.OFFLINE
                else m
                for m in record.members
            ),
        )
    )


def begin_sync(record: GroupRecord, copy: CopyId, incarnation: str, wall: float) -> GroupRecord:
    """Return the record with `copy` syncing as the incarnation that presented itself (R8)."""
    member = record.member(copy)
    assert member.state is not CopyState.IN_SYNC
    return check(
        record.with_member(
            attrs.evolve(
                member,
                state=CopyState.SYNCING,
                incarnation=incarnation,
                since=member.since if member.state is CopyState.SYNCING else wall,
                suspect=False,
            )
        )
    )


def join(record: GroupRecord, copies: frozenset[CopyId], wall: float) -> GroupRecord:
    """Return the record with these syncing copies in sync; they hold every acknowledged write."""
    return check(
        attrs.evolve(
            record,
            epoch=Epoch(record.epoch + 1),
            members=tuple(
                attrs.evolve(
                    m, state=CopyState.IN_SYNC, since=wall, left_epoch=0, reason=None, suspect=False
                )
                if m.copy in copies
                else m
                for m in record.members
            ),
        )
    )


def add(record: GroupRecord, copy: CopyId, node: NodeName, wall: float) -> GroupRecord:
    """Return the record with a new copy on `node`, syncing."""
    assert record.on_node(node) is None
    return check(
        record.with_member(Member(copy=copy, node=node, state=CopyState.SYNCING, since=wall))
    )


def remove(record: GroupRecord, copy: CopyId) -> GroupRecord:
    """Return the record without `copy`; its data may be deleted once this is the record."""
    in_sync = copy in record.in_sync
    record = record.without(copy)
    if in_sync:
        record = attrs.evolve(record, epoch=Epoch(record.epoch + 1))
    return check(record)


def mark_leaving(record: GroupRecord, copy: CopyId, *, leaving: bool = True) -> GroupRecord:
    """Return the record with `copy` to go once enough others are in sync, or to stay after all."""
    return check(record.with_member(attrs.evolve(record.member(copy), leaving=leaving)))


def mark_suspect(record: GroupRecord, copy: CopyId) -> GroupRecord:
    """Return the record with the in-sync `copy` marked as having lost what was not flushed."""
    return check(record.with_member(attrs.evolve(record.member(copy), suspect=True)))


def new_copy_id(volume: VolumeId, version: int, node: NodeName) -> CopyId:
    """Return an id for a copy to be made on `node`.

    Derived, not drawn: the machines may not roll dice. The record's version makes it new each time.
    """
    text = f"{volume}/{version}/{node}".encode()
    return CopyId(hashlib.blake2b(text, digest_size=16).hexdigest())


def _offline(member: Member, epoch: Epoch, reason: FaultReason, wall: float) -> Member:
    return attrs.evolve(
        member,
        state=CopyState.OFFLINE,
        since=wall,
        left_epoch=epoch if member.state is CopyState.IN_SYNC else member.left_epoch,
        reason=reason,
        suspect=False,
    )
