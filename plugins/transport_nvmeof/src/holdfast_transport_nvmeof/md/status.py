"""How an md volume is, in the words of all replicators and in those of MD. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from holdfast.model import Access, Health
from holdfast.units import NodeName
from holdfast_transport_nvmeof.md.model import MdStatus, MdVolume, MemberState
from holdfast_transport_nvmeof.md.observed import Observed
from holdfast_transport_nvmeof.md.placing import GONE
from holdfast_transport_nvmeof.md.serving import copies_in

Json = dict[str, Any]


def status_of(volume: MdVolume, seen: Observed, error: str) -> MdStatus:
    """Return what the active node tells everybody of an array."""
    array = seen.arrays.get(volume.array_uuid)
    down = sum(m.state is MemberState.MISSING for m in volume.members)
    if array is None:
        return MdStatus(down=down, error=error, at=seen.now)
    copies, _ = copies_in(volume, array)
    sync = ""
    state = "clean" if array.state in {"clean", "active-idle", "readonly"} else "active"
    if array.action in {"recover", "resync", "reshape"}:
        state = "recovering"
        sync = "" if array.done_percent is None else f"{array.done_percent:.1f}%"
    elif copies < volume.copies:
        state = "degraded"
    return MdStatus(
        mdstate=state,
        active=array.in_sync,
        failed=sum(leg.faulty for leg in array.legs)
        + sum(m.state is MemberState.FAULTY for m in volume.members),
        down=down,
        sync=sync,
        device=array.device,
        size_bytes=array.size_bytes,
        mounted=array.mounted,
        error=error,
        at=seen.now,
    )


def phase_of(volume: MdVolume) -> str:
    """Return MeshStor's phase."""
    states = {m.state for m in volume.members}
    if volume.deleting:
        return "Deleting"
    if not volume.created:
        return "Requested"
    if any(m.replaces for m in volume.members) or MemberState.FAULTY in states:
        return "Replacing"
    if any(m.size_bytes < volume.member_bytes for m in volume.members if m.state not in GONE):
        return "Expanding"
    if volume.status.mdstate == "recovering" or states & {MemberState.SYNCING, MemberState.CREATED}:
        return "Syncing"
    return "Synced"


def health_of(volume: MdVolume, alive: Collection[NodeName]) -> Health:
    """Return the health, as `lockstep` has it."""
    if volume.deleting:
        return Health.DELETING
    if not volume.active or volume.active not in alive or volume.status.mdstate == "missing":
        return Health.OFFLINE
    if volume.access == Access.READ_ONLY.value:
        return Health.READ_ONLY
    if volume.access != Access.READ_WRITE.value:
        return Health.SUSPENDED
    live = [m for m in volume.members if m.state is not MemberState.DELETING]
    if any(m.state in {MemberState.MISSING, MemberState.FAULTY} for m in live):
        return Health.DEGRADED
    if len([m for m in live if m.state is MemberState.SYNCED]) < len(volume.wanted_slots):
        return Health.SYNCING
    return Health.SYNCING if volume.status.mdstate == "recovering" else Health.HEALTHY


def told(volume: MdVolume, alive: Collection[NodeName]) -> Json:
    """Return the status as the control API has it for every volume, with MD's words under `md`."""
    health = health_of(volume, alive)
    serving = health not in {Health.OFFLINE, Health.DELETING}
    status = volume.status
    words = {
        MemberState.SYNCED: "in-sync",
        MemberState.SYNCING: "syncing",
        MemberState.CREATED: "syncing",
        MemberState.REQUESTED: "syncing",
    }
    return {
        "name": volume.name,
        "id": volume.id,
        "size": volume.size_bytes,
        "served_size": min(volume.size_bytes, status.size_bytes) if serving else None,
        "replicator": "md",
        "declared_replicas": volume.copies - 1,
        "policy": volume.policy,
        "policy_options": dict(volume.policy_options),
        "shared": False,
        "labels": dict(volume.labels),
        "member_missing_timeout_s": volume.member_missing_timeout_s,
        "created_at": volume.created_at,
        "health": health.value,
        "access": volume.access if serving else Access.NONE.value,
        "epoch": volume.epoch,
        "primary": volume.active or volume.consumer,
        "attached": volume.active or None,
        "reason": reason(volume, alive),
        "copies": [
            {
                "node": m.node,
                "role": "primary" if m.node == volume.active else "replica",
                "state": words.get(m.state, "offline"),
                "copy": m.id,
                "since": m.since,
                "reason": m.state.value if m.state.value not in {"synced", "syncing"} else None,
                "sync": None,
                "drive": m.drive,
                "slot": m.slot,
            }
            for m in volume.members
        ],
        "md": {
            "phase": phase_of(volume),
            "mdstate": status.mdstate if serving else "missing",
            "total": volume.slots if volume.copies > 1 else len(volume.wanted_slots),
            "active": status.active,
            "failed": status.failed,
            "down": status.down,
            "sync": status.sync,
            "device": status.device,
            "mounted": status.mounted,
            "copies": volume.copies,
            "drives_per_copy": volume.drives_per_copy,
            "sector_size": volume.sector_size,
        },
    }


def reason(volume: MdVolume, alive: Collection[NodeName]) -> str:
    """Return one sentence or more: why the health is what it is."""
    parts = []
    if volume.status.error:
        parts.append(volume.status.error)
    for member in volume.members:
        if member.state is MemberState.MISSING:
            parts.append(f"The member on {member.node} is missing.")
        elif member.state is MemberState.FAULTY:
            parts.append(f"The member on {member.node} is faulty and is being replaced.")
        elif member.state is MemberState.SYNCING:
            done = f", {volume.status.sync} done" if volume.status.sync else ""
            parts.append(f"The member on {member.node} is syncing{done}.")
        elif member.state in {MemberState.REQUESTED, MemberState.CREATED}:
            parts.append(f"The member on {member.node} is being made.")
    if volume.active and volume.active not in alive:
        parts.append(f"Node {volume.active}, which has the array, does not answer.")
    elif not volume.active and volume.created:
        parts.append(f"The array is not running; node {volume.consumer} is to run it.")
    return " ".join(parts) or "All members are in sync."
