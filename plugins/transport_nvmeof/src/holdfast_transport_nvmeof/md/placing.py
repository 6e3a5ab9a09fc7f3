"""Where members go: one copy per node, the consumer's node first, then where most room is."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping

import attrs

from holdfast.errors import ConflictError
from holdfast.units import NodeName, format_size
from holdfast_transport_nvmeof.md.model import MdMember, MdNode, MdVolume, MemberState

NewId = Callable[[], str]
GONE = (MemberState.FAULTY, MemberState.DELETING)


def reaches(user: MdNode | None, node: MdNode) -> bool:
    """Whether the node that uses a volume, None for one not known yet, could import from `node`."""
    if user is not None and user.name == node.name:
        return True
    rdma = user is None or user.rdma
    return any(port.startswith("tcp:") or rdma for port in node.ports)


def fits(node: MdNode, volume: MdVolume, drives: int = 1) -> bool:
    """Whether a node has `drives` drives with room for one member each."""
    return not node.lacks and len(_fitting(node, volume)) >= drives


def _fitting(node: MdNode, volume: MdVolume) -> list[int]:
    return [
        free
        for free, sector in node.free
        if free >= volume.member_bytes and sector in {0, volume.sector_size}
    ]


def first_members(
    volume: MdVolume,
    nodes: Mapping[NodeName, MdNode],
    now: float,
    new_id: NewId = lambda: str(uuid.uuid4()),
) -> MdVolume:
    """Return the volume with its members requested, and its consumer chosen if it has none.

    Raises:
        ConflictError: There are not enough nodes with enough drives; says what each lacks.
    """
    able = [node for node in nodes.values() if fits(node, volume, volume.drives_per_copy)]
    able.sort(key=lambda each: (each.name != volume.consumer, -_room(each, volume), each.name))
    able = [node for node in able if reaches(able[0], node)]
    if volume.consumer and (not able or able[0].name != volume.consumer):
        why = reasons(volume, nodes).get(volume.consumer, "it runs no md replicator")
        raise ConflictError(
            f"Node {volume.consumer} cannot hold a copy of {volume.name}: {why}.",
            hint="Name another with --node, or make room there.",
        )
    if len(able) < volume.copies:
        chosen = attrs.evolve(volume, consumer=able[0].name if able else volume.consumer)
        told = "; ".join(f"{name}: {why}" for name, why in sorted(reasons(chosen, nodes).items()))
        raise ConflictError(
            f"Volume {volume.name} wants {volume.copies} copies on as many nodes, and "
            f"{len(able)} can take one.",
            hint=f"{told}." if told else "Add nodes with the replicator md.",
        )
    members = tuple(
        MdMember(new_id(), slot, able[slot % volume.mirrors].name, since=now)
        for slot in volume.wanted_slots
    )
    return attrs.evolve(volume, consumer=able[0].name, members=members)


def reasons(volume: MdVolume, nodes: Mapping[NodeName, MdNode]) -> dict[NodeName, str]:
    """Return why each node cannot take a copy; nothing of those that can."""
    found = {}
    for name, node in nodes.items():
        if node.lacks:
            found[name] = node.lacks.rstrip(".")
        elif not fits(node, volume, volume.drives_per_copy):
            wanted = format_size(volume.member_bytes)
            found[name] = (
                f"it has {len(_fitting(node, volume))} drives with {wanted} free and sectors of "
                f"{volume.sector_size} bytes; {volume.drives_per_copy} are wanted"
            )
        elif not reaches(nodes.get(volume.consumer), node):
            found[name] = (
                f"{volume.consumer} cannot do RDMA, and it exports over nothing else"
                if node.ports
                else "it has no address in [replicator.md], so no other node could reach a copy there"
            )
    return found


def _room(node: MdNode, volume: MdVolume) -> int:
    return sum(sorted(_fitting(node, volume))[-volume.drives_per_copy :])


def place_again(
    volume: MdVolume, slot: int, nodes: Mapping[NodeName, MdNode], avoid: Collection[NodeName] = ()
) -> NodeName | None:
    """Return the best node for a new member in `slot`, or None.

    A node that holds another copy is out of the question: two copies would die with it.
    """
    others = {
        member.node
        for member in volume.members
        if member.state not in GONE and member.slot % volume.mirrors != slot % volume.mirrors
    }
    held = [member.node for member in volume.members if member.state not in GONE]
    able = [
        node
        for node in nodes.values()
        # No drive takes two members of a volume.
        if fits(node, volume, 1 + held.count(node.name))
        and reaches(nodes.get(volume.consumer), node)
        and node.name not in others
        and node.name not in avoid
    ]
    able.sort(
        key=lambda each: (each.name != volume.consumer, -max(_fitting(each, volume)), each.name)
    )
    return able[0].name if able else None


def moved_away(
    volume: MdVolume, node: NodeName, nodes: Mapping[NodeName, MdNode], now: float
) -> MdVolume:
    """Return the volume with new members elsewhere in the place of those on `node`.

    Those that serve go when the new ones are in sync; those that are missing are given up.

    Raises:
        ConflictError: No other node can take one of them.
    """
    done = volume
    for member in volume.members:
        if member.node != node or member.state in GONE:
            continue
        target = place_again(done, member.slot, nodes, avoid=(node,))
        if target is None:
            raise ConflictError(
                f"No other node can take the copy of {volume.name} on {node}.",
                hint="; ".join(f"{n}: {w}" for n, w in sorted(reasons(volume, nodes).items())),
            )
        lost = member.state is MemberState.MISSING
        replaces = "" if lost else member.id
        done = done.with_member(
            MdMember(str(uuid.uuid4()), member.slot, target, since=now, replaces=replaces)
        )
        if lost:
            done = done.with_member(attrs.evolve(member, state=MemberState.FAULTY))
    return done


def heir(volume: MdVolume, node: NodeName, nodes: Mapping[NodeName, MdNode]) -> NodeName | None:
    """Return who is to use a volume instead of `node`: who has a copy, else who can take one."""
    holding = sorted(m.node for m in volume.members if m.state is MemberState.SYNCED)
    for each in holding:
        if each != node and each in nodes:
            return each
    slots = [m.slot for m in volume.members if m.node == node]
    return place_again(volume, slots[0], nodes, avoid=(node,)) if slots else None
