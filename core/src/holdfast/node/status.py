"""What a volume's state looks like to people and scripts: JSON from record, specification and machine.

The record says who holds what; only the primary's machine knows how far a sync is and why something
waits. Any node can tell the former, the primary's node adds the latter.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from holdfast.model import Access, CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.node.explain_words import FAULTS
from holdfast.node.service import Json
from holdfast.sync.healing import health_of
from holdfast.sync.leg import Leg
from holdfast.sync.member import GroupMember
from holdfast.units import NodeName, format_size


def declared(spec: VolumeSpec) -> Json:
    """Return what a volume's status says of its specification."""
    return {
        "name": spec.name,
        "id": spec.id,
        "size": spec.size_bytes,
        "declared_replicas": spec.replicas,
        "policy": spec.policy,
        "policy_options": dict(spec.policy_options),
        "transport": spec.transport,
        "transports": dict(spec.transports),
        "shared": spec.shared,
        "read_from": spec.read_from,
        "labels": dict(spec.labels),
        "member_missing_timeout_s": spec.member_missing_timeout_s,
        "created_at": spec.created_at,
    }


def volume_status(
    spec: VolumeSpec,
    record: GroupRecord | None,
    alive: dict[NodeName, NodeRecord],
    member: GroupMember | None,
    *,
    silent: bool = False,
) -> Json:
    """Return the status of a volume.

    Args:
        spec: Its specification.
        record: Its group record; None while it is being made.
        alive: The nodes whose leases live.
        member: The machine of the copy that is primary by the record, when it is in this process.
        silent: The primary's node was asked and did not answer, whatever its lease says.
    """
    served = None if member is None else member.ctx.size_bytes
    status: Json = {**declared(spec), "served_size": served}
    if record is None:
        return status | {
            "health": "offline",
            "access": Access.NONE.value,
            "epoch": 0,
            "primary": None,
            "attached": None,
            "reason": "The volume is being made.",
            "copies": [],
        }
    primary = record.primary_member
    serving = primary.node in alive and not silent
    if member is not None:
        serving = member.primary is not None and member.primary.serving
    health = health_of(record, spec) if serving else "offline"
    return status | {
        "health": health,
        "access": record.access.value if serving else Access.NONE.value,
        "epoch": record.epoch,
        "primary": primary.node,
        "attached": _holder(record, alive),
        "reason": _offline(spec, record, alive, silent=silent)
        if health == "offline"
        else _reason(spec, record, member),
        "copies": [_copy(m, record, member) | {"alive": m.node in alive} for m in record.members],
    }


def _holder(record: GroupRecord, alive: Mapping[NodeName, NodeRecord]) -> NodeName | None:
    """Return where the volume is in use, as far as is known.

    A process that was killed leaves its name in the record until somebody else attaches. Once its
    node has another process it is certain that this use is over.
    """
    holder = record.attached_node
    node = None if holder is None else alive.get(holder)
    if node is not None and record.attached_process not in {"", node.process, *node.workers}:
        return None
    return holder


def _copy(entry: Member, record: GroupRecord, member: GroupMember | None) -> Json:
    leg = None
    if member is not None and member.primary is not None:
        leg = member.primary.legs.get(entry.copy)
    return {
        "node": entry.node,
        "role": "primary" if entry.copy == record.primary else "replica",
        "state": entry.state.value,
        "copy": entry.copy,
        "since": entry.since,
        "reason": None if entry.reason is None else entry.reason.value,
        "sync": None if leg is None else _sync(leg),
    }


def _sync(leg: Leg) -> Json | None:
    job = leg.job if leg.job is not None else leg.last_job
    if job is None or job.how == "reconcile":
        return None
    ended = job.finished_at if job.finished_at is not None else time.monotonic()
    elapsed = max(ended - job.started_at, 1e-6)
    rate = job.sent_bytes / elapsed
    left = job.left_bytes if leg.job is not None else 0
    total = max(job.total_bytes, job.sent_bytes)
    # What is skipped counts for how far it is, though nothing of it was sent.
    done = (total - left) / elapsed
    return {
        "how": job.how,
        "bytes_left": left,
        "bytes_sent": job.sent_bytes,
        "bytes_total": total,
        "rate": rate,
        "seconds_left": left / done if done > 0 and job.counted else (0.0 if left == 0 else None),
        "seconds": elapsed,
    }


def _offline(
    spec: VolumeSpec, record: GroupRecord, alive: Mapping[NodeName, NodeRecord], *, silent: bool
) -> str:
    """Return who was the last to serve, and whether another one can."""
    last = record.primary_member.node
    if record.epoch == 1 and last in alive and not silent:
        # Only its first primary writes the next one: a volume that was made a moment ago.
        return f"No primary serves yet: {last} is about to."
    holders = sorted(m.node for m in record.members if m.state is CopyState.IN_SYNC)
    if any(node in alive for node in holders if node != last):
        coming = "An in-sync copy takes over as soon as it may"
    else:
        coming = f"Nobody but {' and '.join(holders)} can serve without losing writes"
    return (
        f"No primary serves: {last} was the last one. {coming}; `holdfast explain {spec.name}` "
        "tells more."
    )


def _reason(spec: VolumeSpec, record: GroupRecord, member: GroupMember | None) -> str:
    """Return in sentences what is missing while somebody serves."""
    verdict: Any = None
    if member is not None and member.healing is not None:
        verdict = member.healing.verdict
    parts = []
    missing = [m for m in record.members if m.state is CopyState.OFFLINE]
    syncing = [m for m in record.members if m.state is CopyState.SYNCING]
    for entry in missing:
        why = f": {FAULTS[entry.reason.value]}" if entry.reason else ""
        parts.append(f"The copy on {entry.node} is offline{why}.")
    for entry in syncing:
        leg = None
        if member is not None and member.primary is not None:
            leg = member.primary.legs.get(entry.copy)
        left = (
            f", {format_size(leg.job.left_bytes)} left"
            if leg is not None and leg.job is not None and leg.job.counted
            else ""
        )
        parts.append(f"The copy on {entry.node} is syncing{left}.")
    short = spec.replicas - (len(record.members) - 1)
    if short > 0:
        parts.append(f"{short} more {'copies wait' if short > 1 else 'copy waits'} for a node.")
    if verdict is not None and (verdict.below or record.access is not Access.READ_WRITE):
        parts.append(verdict.reason)
    return " ".join(parts) or "All copies are in sync."
