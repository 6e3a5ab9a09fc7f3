"""A node as the user of a volume: claims it, makes or assembles its array, keeps it whole. Pure.

Three rules keep data. An array runs only where the record names the node as active, and that is written
before it is assembled. A volume is started without a member that the record calls in sync only when an
operator says so, since MD may have acknowledged writes that this member alone has. And a member whose
bytes may differ without the bitmap knowing (`whole`) is wiped before it is added again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping

import attrs

from holdfast.interfaces.policy import Policy
from holdfast.units import NodeName
from holdfast_transport_nvmeof.kernel.fabrics import Import, best_port
from holdfast_transport_nvmeof.kernel.target import Port
from holdfast_transport_nvmeof.md import commands, serving
from holdfast_transport_nvmeof.md.members import Members, User
from holdfast_transport_nvmeof.md.model import (
    NOBODY,
    MdMember,
    MdNode,
    MdVolume,
    MemberState,
    nqn_of,
)
from holdfast_transport_nvmeof.md.observed import Array, Observed
from holdfast_transport_nvmeof.md.placing import GONE, fits, place_again
from holdfast_transport_nvmeof.md.plan import Plan
from holdfast_transport_nvmeof.md.providing import SERVING


def uses(volume: MdVolume, node: NodeName) -> bool:
    """Whether the record lets this node have the volume's array now, or make it its own."""
    if volume.active:
        return volume.active == node
    return volume.consumer == node and not volume.deleting


def imports(
    volumes: Iterable[MdVolume], user: User, seen: Observed, failed: frozenset[str] = frozenset()
) -> list[Import]:
    """Return what this node is to import: the members elsewhere of the volumes that it uses."""
    wanted = []
    for volume in volumes:
        if not uses(volume, user.node) and volume.array_uuid not in seen.arrays:
            continue
        for member in volume.members:
            if member.node == user.node or member.state not in SERVING:
                continue
            ports = [Port.parse(text) for text in member.ports]
            port = best_port(ports, rdma=user.rdma, failed=failed)
            if port is not None:
                wanted.append(Import(nqn_of(user.cluster, member.node, member.id), port))
    return wanted


def plan_consuming(
    volume: MdVolume,
    user: User,
    seen: Observed,
    nodes: Mapping[NodeName, MdNode],
    policy: Policy,
) -> Plan | None:
    """Return the next thing that this node, as the user of `volume`, has to do, or None."""
    return _Consuming(volume, user, seen, nodes, policy).plan()


class _Consuming(Members):
    """One look at one volume."""

    def plan(self) -> Plan | None:
        volume = self.volume
        array = self.seen.arrays.get(volume.array_uuid)
        if not uses(volume, self.me):
            # A node that finds itself deposed lets go before anything else.
            return None if array is None else self.release(array)
        if volume.active == self.me and (volume.consumer != self.me or volume.deleting):
            # The next user has to know which members lack something.
            lost = None if array is None else self.lost(array)
            if lost is not None and lost.after is not None:
                return attrs.evolve(lost, steps=())
            return self.release(array)
        if array is None:
            return self.assemble() if volume.created else self.create()
        if volume.active == self.me:
            return next((plan for plan in self.upkeep(array) if plan is not None), None)
        if not self.is_current(array):
            return self.release(array)
        # A daemon before this one had it, or the machine assembled it by itself.
        return Plan(f"Node {self.me} takes up the running array.", claim=self.claimed())

    def upkeep(self, array: Array) -> Iterator[Plan | None]:
        """Yield what keeps a running array whole, the most urgent first."""
        yield self.made(array)
        yield self.lost(array)
        yield self.thawed(array)
        yield serving.access(self.volume, array, self.policy, self.seen.now)
        yield self.joined(array)
        yield self.returned(array)
        yield self.synced(array)
        yield self.superseded(array)
        yield self.added(array)
        yield self.overdue(array)
        yield self.relocated(array)
        yield serving.formatted(self.volume, array)
        yield serving.mounted(self.volume, self.user.mounts, array)
        yield self.grown(array)

    # -- having the array --------------------------------------------------------------------------

    def is_current(self, array: Array) -> bool:
        """Whether a running array that the record gives to nobody has what the record calls in sync.

        It may be left from before another node took the volume over, and lack all since.
        """
        there = {id_ for id_, (device, _) in self.known.items() if array.leg(device) is not None}
        members = [m for m in self.volume.members if m.id in there]
        in_sync = any(m.state is MemberState.SYNCED for m in members)
        return in_sync and not any(m.whole for m in members)

    def claimed(self) -> MdVolume:
        return attrs.evolve(self.volume, active=self.me, epoch=self.volume.epoch + 1)

    def release(self, array: Array | None) -> Plan:
        volume = self.volume
        after = None
        if volume.active == self.me:
            after = attrs.evolve(volume, active=NOBODY, previous=self.me)
        why = f"Node {self.me} lets go of the volume."
        steps = () if array is None else tuple(commands.stop(array))
        return Plan(why, kind="released", steps=steps, after=after)

    def create(self) -> Plan | None:
        volume = self.volume
        wanted = [m for m in volume.members if m.state is MemberState.CREATED]
        slots = {m.slot: self.devices[m.id][0] for m in wanted if m.id in self.devices}
        if set(slots) != set(volume.wanted_slots):
            return None
        if volume.active != self.me:
            return Plan(f"Node {self.me} makes the array.", claim=self.claimed(), quiet=True)
        device = commands.free_device(self.seen.devices_taken)
        members = [slots.get(slot, "missing") for slot in range(volume.slots)]
        done = attrs.evolve(volume, created=True)
        for member in wanted:
            done = done.with_member(self.at(member, MemberState.SYNCED))
        why = f"The array {device} is made of {len(slots)} members."
        return Plan(
            why, kind="created", steps=(commands.create(volume, device, members),), after=done
        )

    def made(self, array: Array) -> Plan | None:
        """Note that the array was made, after a crash right then: it must not be made again."""
        if self.volume.created:
            return None
        done = attrs.evolve(self.volume, created=True)
        for member in self.volume.members:
            if array.leg(self.devices.get(member.id, ("", 0))[0]) is not None:
                done = done.with_member(self.at(member, MemberState.SYNCED))
        return Plan(f"The array {array.device} is there already.", kind="created", after=done)

    def assemble(self) -> Plan | None:
        volume = self.volume
        needed = [m for m in volume.members if m.state is MemberState.SYNCED]
        absent = [m for m in needed if m.id not in self.devices]
        if not needed or len(absent) == len(needed) or (absent and not volume.force):
            return None
        if volume.active != self.me:
            return Plan(f"Node {self.me} takes the volume.", kind="taken", claim=self.claimed())
        # What was being synced is left out: MD takes it up again when it is added.
        present = [self.devices[m.id][0] for m in needed if m.id in self.devices]
        device = commands.free_device(self.seen.devices_taken)
        done = attrs.evolve(volume, force=False)
        for member in absent:
            # It may hold writes that were acknowledged and are now given up: never by bitmap.
            done = done.with_member(self.at(member, MemberState.MISSING, whole=True))
        for member in volume.members:
            if member.state is MemberState.SYNCING:
                done = done.with_member(self.at(member, MemberState.MISSING))
        why = f"The array {device} runs with {len(present)} members."
        step = commands.assemble(volume, device, present)
        return Plan(why, kind="assembled", steps=(step,), after=done)

    # -- members -----------------------------------------------------------------------------------

    def overdue(self, array: Array) -> Plan | None:
        """Replace a member that was missing for too long, if a node can take another."""
        patience = self.volume.member_missing_timeout_s
        for member in self.volume.members:
            late = self.seen.now - member.since >= patience
            if member.state is not MemberState.MISSING or not late:
                continue
            without = self.volume.with_member(self.at(member, MemberState.FAULTY))
            target = place_again(without, member.slot, self.nodes, avoid=(member.node,))
            if target is None:
                continue
            new = MdMember(str(uuid.uuid4()), member.slot, target, since=self.seen.now)
            why = (
                f"The member on {member.node} was missing for {patience:.0f} s and is given up as "
                f"faulty; another one is made on {target}."
            )
            return Plan(why, kind="replacing", after=without.with_member(new))
        return None

    def relocated(self, array: Array) -> Plan | None:
        """Bring a copy to the node that uses the volume, in the place of the former user's."""
        volume = self.volume
        quiet = all(m.state is MemberState.SYNCED for m in volume.members)
        here = any(m.node == self.me for m in volume.members)
        mine = self.nodes.get(self.me)
        if not quiet or here or mine is None or not fits(mine, volume, volume.drives_per_copy):
            return None
        homes = {m.node for m in volume.members}
        leaving = volume.previous if volume.previous in homes else min(homes)
        done = volume
        for member in volume.members:
            if member.node == leaving:
                new = MdMember(
                    str(uuid.uuid4()), member.slot, self.me, since=self.seen.now, replaces=member.id
                )
                done = done.with_member(new)
        why = f"The copy on {leaving} moves to {self.me}, where the volume is used."
        return Plan(why, kind="relocating", after=done)

    def grown(self, array: Array) -> Plan | None:
        volume = self.volume
        if volume.component_bytes <= array.component_bytes:
            return None
        legs = [m for m in volume.members if m.state not in GONE]
        small = [m for m in legs if self.devices.get(m.id, ("", 0))[1] < volume.member_bytes]
        if small or any(m.state is not MemberState.SYNCED for m in legs):
            return None
        return serving.grown(volume, array)
