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

from holdfast.interfaces.policy import Policy, PolicyView
from holdfast.model import Access
from holdfast.units import NodeName, format_size
from holdfast_transport_nvmeof.kernel.fabrics import Import, best_port
from holdfast_transport_nvmeof.kernel.target import Port
from holdfast_transport_nvmeof.md import commands
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

IN_ARRAY = (MemberState.SYNCING, MemberState.SYNCED)


@attrs.frozen
class User:
    """What a node's configuration says of how it uses volumes."""

    cluster: str
    node: NodeName
    mounts: str = ""
    """Volumes with a file system are mounted below this folder; empty leaves that to others."""
    rdma: bool = False


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


def devices_of(
    volume: MdVolume, user: User, seen: Observed, *, live: bool = True
) -> dict[str, tuple[str, int]]:
    """Return path and size of the device of each member, by member id.

    Args:
        volume: The volume.
        user: This node.
        seen: What it sees.
        live: Only devices that answer; else also those whose controller is reconnecting, which MD
            has not given up.
    """
    found = {}
    controllers = {
        each.nqn: each
        for each in seen.controllers
        if each.device and (each.state == "live" or not live)
    }
    for member in volume.members:
        if member.node == user.node:
            slice_ = seen.slices.get(member.id)
            if slice_ is not None and slice_.ready:
                found[member.id] = (slice_.path, slice_.size_bytes)
        else:
            controller = controllers.get(nqn_of(user.cluster, member.node, member.id))
            if controller is not None:
                found[member.id] = (controller.device, controller.size_bytes)
    return found


def copies_in(volume: MdVolume, array: Array) -> tuple[int, int]:
    """Return how many copies are online, and how many of those are in sync.

    That is the fewest members that any stripe of the array has.
    """
    online, in_sync = [], []
    for first in range(0, volume.slots, volume.mirrors):
        mirrors = range(first, first + volume.mirrors)
        legs = [leg for leg in array.legs if leg.slot in mirrors and not leg.faulty]
        online.append(len({leg.slot for leg in legs}))
        in_sync.append(len({leg.slot for leg in legs if leg.in_sync}))
    return min(online, default=0), min(in_sync, default=0)


class _Consuming:
    """One look at one volume."""

    def __init__(
        self,
        volume: MdVolume,
        user: User,
        seen: Observed,
        nodes: Mapping[NodeName, MdNode],
        policy: Policy,
    ) -> None:
        self.volume = volume
        self.user = user
        self.seen = seen
        self.nodes = nodes
        self.policy = policy
        self.me = user.node
        self.devices = devices_of(volume, user, seen)
        self.known = devices_of(volume, user, seen, live=False)

    def plan(self) -> Plan | None:
        volume = self.volume
        array = self.seen.arrays.get(volume.array_uuid)
        if not uses(volume, self.me):
            # A node that finds itself deposed lets go before anything else.
            return None if array is None else self.release(array)
        if volume.active == self.me and (volume.consumer != self.me or volume.deleting):
            return self.release(array)
        if array is None:
            return self.assemble() if volume.created else self.create()
        if volume.active != self.me:
            # A daemon before this one had it, or the machine assembled it by itself.
            return Plan(f"Node {self.me} takes up the running array.", claim=self.claimed())
        return next((plan for plan in self.upkeep(array) if plan is not None), None)

    def upkeep(self, array: Array) -> Iterator[Plan | None]:
        """Yield what keeps a running array whole, the most urgent first."""
        yield self.lost(array)
        yield self.access(array)
        yield self.returned(array)
        yield self.synced(array)
        yield self.superseded(array)
        yield self.added(array)
        yield self.overdue(array)
        yield self.relocated(array)
        yield self.formatted(array)
        yield self.mounted(array)
        yield self.grown(array)

    # -- having the array --------------------------------------------------------------------------

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

    def at(self, member: MdMember, state: MemberState, *, whole: bool | None = None) -> MdMember:
        """Return a member in a new state that begins now."""
        is_whole = member.whole if whole is None else whole
        return attrs.evolve(member, state=state, since=self.seen.now, whole=is_whole)

    # -- members -----------------------------------------------------------------------------------

    def lost(self, array: Array) -> Plan | None:
        """Take dead devices out of the array, and say so of their members."""
        steps = tuple(commands.clear_failed(array))
        alive = {leg.device for leg in array.legs if leg.there and not leg.faulty}
        gone = [
            m
            for m in self.volume.members
            if m.state in IN_ARRAY and self.known.get(m.id, ("", 0))[0] not in alive
        ]
        if not steps and not gone:
            return None
        done = self.volume
        for member in gone:
            done = done.with_member(self.at(member, MemberState.MISSING))
        nodes = " and ".join(sorted({m.node for m in gone})) or "a node"
        why = f"The member on {nodes} is missing; the volume goes on without it."
        return Plan(why, kind="missing", steps=steps, after=done if gone else None, quiet=not gone)

    def returned(self, array: Array) -> Plan | None:
        # MD takes a member that was replaced for faulty; it is not wanted back.
        replaced = {m.replaces for m in self.volume.members if m.state in IN_ARRAY}
        for member in self.volume.members:
            device = self.free(member, array)
            if member.state is not MemberState.MISSING or device is None or member.id in replaced:
                continue
            done = self.volume.with_member(self.at(member, MemberState.SYNCING, whole=False))
            if member.whole:
                why = f"The member on {member.node} is back and is synced as a whole."
                steps = commands.add(array, device)
                return Plan(why, kind="returned", steps=tuple(steps), after=done)
            why = f"The member on {member.node} is back; what changed meanwhile is copied."
            failed = self.volume.with_member(attrs.evolve(member, whole=True))
            steps = commands.re_add(array, device)
            return Plan(why, kind="returned", steps=tuple(steps), after=done, on_failure=failed)
        return None

    def free(self, member: MdMember, array: Array) -> str | None:
        """Return a member's device if it can be added."""
        device, size = self.devices.get(member.id, ("", 0))
        large = size >= array.component_bytes + (
            self.volume.member_bytes - self.volume.component_bytes
        )
        return device if device and large and array.leg(device) is None else None

    def synced(self, array: Array) -> Plan | None:
        for member in self.volume.members:
            leg = array.leg(self.devices.get(member.id, ("", 0))[0])
            waits = member.state in {MemberState.SYNCING, MemberState.MISSING} and not member.whole
            if waits and leg is not None and leg.in_sync and not leg.faulty:
                done = self.volume.with_member(self.at(member, MemberState.SYNCED))
                return Plan(f"The member on {member.node} is in sync.", kind="synced", after=done)
        return None

    def superseded(self, array: Array) -> Plan | None:
        """Remove a member whose replacement is in sync."""
        for new in self.volume.members:
            old = self.volume.member(new.replaces) if new.replaces else None
            if new.state is not MemberState.SYNCED or not new.replaces:
                continue
            done = self.volume.with_member(attrs.evolve(new, replaces=""))
            if old is None:
                return Plan(f"The member on {new.node} stands alone.", after=done, quiet=True)
            leg = array.leg(self.devices.get(old.id, ("", 0))[0])
            steps = () if leg is None else tuple(commands.take_out(array, leg.device))
            done = done.with_member(self.at(old, MemberState.DELETING))
            why = f"The member on {new.node} has taken the place of the one on {old.node}."
            return Plan(why, kind="replaced", steps=steps, after=done)
        return None

    def added(self, array: Array) -> Plan | None:
        for member in self.volume.members:
            device = self.free(member, array)
            if member.state is not MemberState.CREATED or device is None:
                continue
            steps = commands.add(array, device)
            old = self.volume.member(member.replaces) if member.replaces else None
            leg = None if old is None else array.leg(self.devices.get(old.id, ("", 0))[0])
            if leg is not None and leg.in_sync and array.in_sync == array.raid_disks:
                steps.append(commands.replace(array, leg.device, device))
            done = self.volume.with_member(self.at(member, MemberState.SYNCING))
            why = f"The member on {member.node} is added and synced."
            return Plan(why, kind="added", steps=tuple(steps), after=done)
        return None

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

    # -- what is on it -----------------------------------------------------------------------------

    def formatted(self, array: Array) -> Plan | None:
        volume = self.volume
        if volume.formatted or volume.filesystem == "none":
            return None
        steps = (commands.make_filesystem(volume, array.device),)
        done = attrs.evolve(volume, formatted=True)
        return Plan("The file system is made.", kind="formatted", steps=steps, after=done)

    def mounted(self, array: Array) -> Plan | None:
        volume = self.volume
        if not self.user.mounts or volume.filesystem == "none" or array.mounted:
            return None
        folder = f"{self.user.mounts}/{volume.name}"
        steps = tuple(commands.mount(array.device, folder))
        return Plan(f"It is mounted at {folder}.", kind="mounted", steps=steps)

    def grown(self, array: Array) -> Plan | None:
        volume = self.volume
        if volume.component_bytes <= array.component_bytes:
            return None
        legs = [m for m in volume.members if m.state not in GONE]
        small = [m for m in legs if self.devices.get(m.id, ("", 0))[1] < volume.member_bytes]
        if small or any(m.state is not MemberState.SYNCED for m in legs):
            return None
        why = f"The volume is {format_size(volume.size_bytes)} now."
        return Plan(why, kind="grown", steps=tuple(commands.grow(array, volume)))

    def access(self, array: Array) -> Plan | None:
        """Let the policy judge, and hold writes in MD when it says so."""
        volume = self.volume
        online, in_sync = copies_in(volume, array)
        view = PolicyView(
            declared=volume.copies - 1,
            online=max(min(online, volume.copies) - 1, 0),
            in_sync=max(min(in_sync, volume.copies) - 1, 0),
            access=Access(volume.access),
            below_since=volume.grace_started_at,
            attached_anew=volume.anew,
        )
        verdict = self.policy.decide(view, self.seen.now)
        started = volume.grace_started_at if verdict.below else None
        if verdict.below and started is None:
            started = self.seen.now
        held = verdict.access is not Access.READ_WRITE
        changed = verdict.access.value != volume.access
        same = not changed and started == volume.grace_started_at and not volume.anew
        if same and held == array.held:
            return None
        after = attrs.evolve(
            volume, access=verdict.access.value, grace_started_at=started, anew=False
        )
        steps = () if held == array.held else (commands.hold(array, held=held),)
        return Plan(verdict.reason, kind="access", steps=steps, after=after, quiet=not changed)
