"""A node as the home of members: makes, exports, grows and removes slices. Pure.

A member's slice is the node's own business until it is in an array; what the record says of it is
changed here only from requested to created, in its size and address, and at its end.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from holdfast.units import NodeName, format_size
from holdfast_transport_nvmeof.kernel import slices
from holdfast_transport_nvmeof.kernel.drives import best_drive
from holdfast_transport_nvmeof.kernel.slices import Slice, label_of
from holdfast_transport_nvmeof.kernel.steps import Step, Write
from holdfast_transport_nvmeof.kernel.target import CONFIGFS, Export, Port
from holdfast_transport_nvmeof.md.model import (
    MdMember,
    MdNode,
    MdVolume,
    MemberState,
    host_of,
    nqn_of,
)
from holdfast_transport_nvmeof.md.observed import Observed
from holdfast_transport_nvmeof.md.placing import GONE, place_again
from holdfast_transport_nvmeof.md.plan import Plan

SERVING = (MemberState.CREATED, MemberState.SYNCING, MemberState.SYNCED, MemberState.MISSING)
"""States in which the node that uses the volume may reach a member."""


@attrs.frozen
class Home:
    """What a node's configuration says of where members live."""

    cluster: str
    node: NodeName
    ports: tuple[Port, ...] = ()
    folder: str = ""
    """Where files are made when no drive is chosen; empty for never."""


def exports(volumes: Iterable[MdVolume], home: Home, seen: Observed) -> list[Export]:
    """Return what this node is to export: each member to the one node that uses its volume.

    While one node lets go of a volume only that one may reach its members, then the next. A slice
    that something on this machine holds is never exported.
    """
    wanted = []
    for volume in volumes:
        user = volume.active or ("" if volume.deleting else volume.consumer)
        for member in volume.members:
            found = seen.slices.get(member.id)
            if member.node != home.node or member.state not in SERVING or found is None:
                continue
            if user and user != home.node and found.ready and not found.use:
                host, _ = host_of(home.cluster, user)
                nqn = nqn_of(home.cluster, home.node, member.id)
                wanted.append(Export(nqn, found.path, member.id, host, home.ports))
    return wanted


def plan_providing(
    volume: MdVolume,
    home: Home,
    seen: Observed,
    nodes: Mapping[NodeName, MdNode],
    busy: Collection[str] = (),
) -> Plan | None:
    """Return the next thing to do for a member of `volume` on this node, or None.

    Args:
        volume: The volume.
        home: This node.
        seen: What it sees.
        nodes: The living nodes, for a member that has no room to grow.
        busy: Members to which something long is being done.
    """
    for member in volume.members:
        if member.node == home.node and member.id not in busy:
            plan = _plan_member(volume, member, home, seen, nodes)
            if plan is not None:
                return plan
    if volume.deleting and not volume.members and not volume.active:
        return Plan(f"Volume {volume.name} is deleted.", kind="deleted", ends=True)
    return None


def _plan_member(
    volume: MdVolume,
    member: MdMember,
    home: Home,
    seen: Observed,
    nodes: Mapping[NodeName, MdNode],
) -> Plan | None:
    found = seen.slices.get(member.id)
    if _may_go(volume, member):
        return _removed(volume, member, found)
    if member.state in GONE:
        return None
    if found is None:
        if member.state is not MemberState.REQUESTED:
            return None  # Its drive is away; the consumer sees that by itself.
        return _made(volume, member, home, seen)
    if found.is_file and not found.path:
        step = slices.attach_file(found.drive, volume.sector_size)
        return Plan(f"{found.drive} gets a device.", steps=(step,), quiet=True)
    if not found.ready:
        steps = tuple(slices.finish(found))
        return Plan(f"{found.path} is zeroed.", steps=steps, background=member.id)
    ports = tuple(str(port) for port in home.ports)
    if member.state is MemberState.REQUESTED:
        done = attrs.evolve(
            member, state=MemberState.CREATED, since=seen.now, drive=found.drive, ports=ports,
            size_bytes=found.size_bytes,
        )  # fmt: skip
        why = f"Node {home.node} has made a member on {found.drive}."
        return Plan(why, kind="member", after=volume.with_member(done))
    if member.ports != ports or member.size_bytes != found.size_bytes:
        now = attrs.evolve(member, ports=ports, size_bytes=found.size_bytes)
        why = f"The member on {home.node} is {format_size(found.size_bytes)} at {_listed(ports)}."
        # With the record, not with the growth: a crash between the two must not leave the kernel behind.
        steps = _noted(found, seen) if member.size_bytes != found.size_bytes else ()
        return Plan(why, steps=steps, after=volume.with_member(now), quiet=True)
    if found.size_bytes < volume.member_bytes:
        return _grown(volume, member, found, seen, nodes)
    return None


def _may_go(volume: MdVolume, member: MdMember) -> bool:
    """Whether a member is of no more use: a faulty one is kept until another has taken its place."""
    if member.state is MemberState.FAULTY:
        return any(
            each.slot == member.slot and each.state is MemberState.SYNCED for each in volume.members
        )
    return member.state is MemberState.DELETING or (volume.deleting and not volume.active)


def _listed(ports: Sequence[str]) -> str:
    return " and ".join(ports) or "no address"


def _made(volume: MdVolume, member: MdMember, home: Home, seen: Observed) -> Plan | None:
    siblings = {seen.slices[each.id].drive for each in volume.members if each.id in seen.slices}
    chosen = best_drive(seen.drives, volume.member_bytes, volume.sector_size, siblings)
    if chosen is not None:
        drive, start = chosen
        label = label_of(volume.name, member.slot)
        steps = slices.make_on_drive(
            drive, start, volume.member_bytes, member.id, label, zeroed=not volume.created
        )
        why = f"A partition of {format_size(volume.member_bytes)} is made on {drive.path}."
        return Plan(why, steps=tuple(steps), background=member.id)
    if not home.folder:
        return None  # Told by `MdNode.free`, which placement reads.
    steps = slices.make_file(home.folder, volume.member_bytes, member.id, volume.sector_size)
    why = f"A file of {format_size(volume.member_bytes)} is made in {home.folder}."
    return Plan(why, steps=tuple(steps))


def _removed(volume: MdVolume, member: MdMember, found: Slice | None) -> Plan | None:
    gone = volume.without(member.id)
    if found is None:
        return Plan(f"The member on {member.node} is no more.", kind="member", after=gone)
    if found.use:
        return None  # Whoever holds it lets go first.
    why = f"The member on {member.node} ({found.drive}) is removed."
    steps = tuple(slices.unmake(found))
    return Plan(why, kind="member", check=found, steps=steps, after=gone)


def _noted(found: Slice, seen: Observed) -> tuple[Step, ...]:
    """Return the steps by which the kernel, and who imports a slice, take note of its size."""
    exported = (name for name in seen.target.subsystems if name.endswith(f":{found.uuid}"))
    spaces = (f"{CONFIGFS}/subsystems/{name}/namespaces/1" for name in exported)
    return (slices.take_note(found), *(Write(f"{each}/revalidate_size", "1") for each in spaces))


def _grown(
    volume: MdVolume,
    member: MdMember,
    found: Slice,
    seen: Observed,
    nodes: Mapping[NodeName, MdNode],
) -> Plan | None:
    size = volume.member_bytes
    if found.room_bytes >= size:
        drive = next((each for each in seen.drives if each.path == found.drive), None)
        why = f"The member on {member.node} grows to {format_size(size)} where it is."
        return Plan(why, kind="member", steps=(slices.grow(found, drive, size),))
    if any(each.replaces == member.id for each in volume.members):
        return None
    target = place_again(volume, member.slot, nodes)
    if target is None:
        return None
    new = MdMember(str(uuid.uuid4()), member.slot, target, since=seen.now, replaces=member.id)
    why = f"{found.drive} has no room behind the member; a larger one is made on {target}."
    return Plan(why, kind="member", after=volume.with_member(new))
