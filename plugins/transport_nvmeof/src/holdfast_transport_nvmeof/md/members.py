"""The members of a running array: lost, back, added, in sync, replaced. Pure.

A member whose bytes may differ without the bitmap knowing (`whole`) is wiped before it is added again.
RAID10 asks for more care than RAID1. Some kernels from 6.12 on forget, once they have recovered one
member, what another one lacks (drivers/md/raid10.c, `still_degraded` in raid10_sync_request), so members
return together or as a whole. And MD puts a spare into any free slot, which must not be one whose mirror
is on the same node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from holdfast.interfaces.policy import Policy
from holdfast.units import NodeName
from holdfast_transport_nvmeof.kernel.steps import Step
from holdfast_transport_nvmeof.md import commands
from holdfast_transport_nvmeof.md.model import MdMember, MdNode, MdVolume, MemberState, nqn_of
from holdfast_transport_nvmeof.md.observed import Array, Leg, Observed
from holdfast_transport_nvmeof.md.plan import Plan

IN_ARRAY = (MemberState.SYNCING, MemberState.SYNCED)


@attrs.frozen
class User:
    """What a node's configuration says of how it uses volumes."""

    cluster: str
    node: NodeName
    mounts: str = ""
    """Volumes with a file system are mounted below this folder; empty leaves that to others."""
    rdma: bool = False


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


class Members:
    """One look at one volume, by the node that has its array."""

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

    def at(self, member: MdMember, state: MemberState, *, whole: bool | None = None) -> MdMember:
        """Return a member in a new state that begins now."""
        is_whole = member.whole if whole is None else whole
        return attrs.evolve(member, state=state, since=self.seen.now, whole=is_whole)

    def leg(self, member: MdMember | None, array: Array) -> Leg | None:
        """Return where MD has a member, or None."""
        return None if member is None else array.leg(self.known.get(member.id, ("", 0))[0])

    @property
    def is_striped(self) -> bool:
        """Whether it is RAID10."""
        return self.volume.drives_per_copy > 1

    def lost(self, array: Array) -> Plan | None:
        """Take dead devices out of the array, and say so of their members."""
        steps = tuple(commands.clear_failed(array))
        alive = [leg for leg in array.legs if leg.there and not leg.faulty]
        replaced = {
            m.replaces
            for m in self.volume.members
            if m.replaces and (leg := self.leg(m, array)) in alive and leg and leg.in_sync
        }
        gone = [
            m
            for m in self.volume.members
            # MD itself takes out a member that it has copied to another.
            if m.state in IN_ARRAY and self.leg(m, array) not in alive and m.id not in replaced
        ]
        if not steps and not gone:
            return None
        recovers = any(not leg.in_sync for leg in alive) or any(
            m.state is MemberState.SYNCING for m in self.volume.members
        )
        whole = True if self.is_striped and recovers else None
        done = self.volume
        for member in gone:
            done = done.with_member(self.at(member, MemberState.MISSING, whole=whole))
        if not gone:
            return Plan("A dead device is taken out.", steps=steps, quiet=True)
        nodes = " and ".join(sorted({m.node for m in gone}))
        why = f"The member on {nodes} is missing; the volume goes on without it."
        return Plan(why, kind="missing", steps=steps, after=done)

    def thawed(self, array: Array) -> Plan | None:
        """Let MD sync again where an addition has ended halfway."""
        if not self.is_striped or array.action != "frozen":
            return None
        return Plan("MD goes on syncing.", steps=(commands.thaw(array),), quiet=True)

    def forgotten(self, back: Iterable[MdMember] = ()) -> Plan | None:
        """Before RAID10 recovers a member, note that those that stay away are then out of date."""
        away = [
            m
            for m in self.volume.members
            if m.state is MemberState.MISSING and not m.whole and m not in back
        ]
        if not self.is_striped or not away:
            return None
        done = self.volume
        for member in away:
            done = done.with_member(attrs.evolve(member, whole=True))
        return Plan("What stays away is synced as a whole later.", claim=done, quiet=True)

    @property
    def waits(self) -> bool:
        """Whether a recovery has to end before RAID10 is given another member."""
        return self.is_striped and any(m.state is MemberState.SYNCING for m in self.volume.members)

    def joined(self, array: Array) -> Plan | None:
        """Note a member that MD has, though nobody says that it was added.

        That was right before a crash, or by steps of which only the first succeeded.
        """
        for member in self.volume.members:
            waited_for = member.state in {MemberState.CREATED, MemberState.MISSING}
            if waited_for and self.leg(member, array) is not None:
                now = self.at(member, MemberState.SYNCING, whole=False)
                why = f"MD has the member on {member.node}."
                return Plan(why, after=self.volume.with_member(now), quiet=True)
        return None

    def returned(self, array: Array) -> Plan | None:
        """Add members that are back: by the bitmap, or as a whole where that knows nothing."""
        # MD takes a member that was replaced for faulty; it is not wanted back.
        replaced = {m.replaces for m in self.volume.members if m.state in IN_ARRAY}
        back = [
            m
            for m in self.volume.members
            if m.state is MemberState.MISSING
            and m.id not in replaced
            and self.free(m, array) is not None
        ]
        known = [m for m in back if not m.whole]
        if not back or self.waits:
            return None
        together = (known if self.is_striped else known[:1]) or back[:1]
        before = self.forgotten(together)
        if before is not None:
            return before
        done = failed = self.volume
        for member in together:
            done = done.with_member(self.at(member, MemberState.SYNCING, whole=False))
            failed = failed.with_member(attrs.evolve(member, whole=True))
        devices = [self.devices[m.id][0] for m in together]
        nodes = " and ".join(sorted({m.node for m in together}))
        if not known:
            why = f"The member on {nodes} is back and is synced as a whole."
            added = self.addition(together[0], devices[0], array)
            return None if added is None else Plan(why, kind="returned", steps=added, after=done)
        why = f"The member on {nodes} is back; what changed meanwhile is copied."
        steps = tuple(commands.re_add(array, devices))
        return Plan(why, kind="returned", steps=steps, after=done, on_failure=failed)

    def addition(self, member: MdMember, device: str, array: Array) -> tuple[Step, ...] | None:
        """Return the steps that add a member as a whole; None while there is no place for it."""
        old = self.volume.member(member.replaces) if member.replaces else None
        leg = self.leg(old, array)
        plain = commands.add(array, device)
        copied = leg is not None and leg.in_sync
        if copied and leg and array.in_sync == array.raid_disks:
            return (*plain, commands.replace(array, leg.device, device))
        if not self.is_striped:
            return tuple(plain)
        slot = leg.slot if leg is not None and leg.slot >= 0 else member.slot
        taken = {each.slot for each in array.legs}
        free = [each for each in self.mirrors_of(slot) if each not in taken]
        if free:
            place: Step = commands.pin(array, device, free[0])
        elif copied and leg:
            place = commands.replace(array, leg.device, device)
        else:
            return None
        return (commands.freeze(array), *plain, place, commands.thaw(array))

    def mirrors_of(self, slot: int) -> range:
        """Return the slots that hold the same bytes as `slot`, and itself."""
        first = slot - slot % self.volume.mirrors
        return range(first, first + self.volume.mirrors)

    def free(self, member: MdMember, array: Array) -> str | None:
        """Return a member's device if it can be added."""
        device, size = self.devices.get(member.id, ("", 0))
        large = size >= array.component_bytes + (
            self.volume.member_bytes - self.volume.component_bytes
        )
        return device if device and large and array.leg(device) is None else None

    def synced(self, array: Array) -> Plan | None:
        """Say of members that MD has synced that they are."""
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
            leg = self.leg(old, array)
            if leg is not None and not self.is_spared(leg, array):
                continue  # MD would fail the whole array with its last member of these bytes.
            steps = () if leg is None else tuple(commands.take_out(array, leg.device))
            done = done.with_member(self.at(old, MemberState.DELETING))
            why = f"The member on {new.node} has taken the place of the one on {old.node}."
            return Plan(why, kind="replaced", steps=steps, after=done)
        return None

    def is_spared(self, leg: Leg, array: Array) -> bool:
        """Whether the array has the bytes of a member without it."""
        if not leg.in_sync or leg.faulty or leg.slot < 0:
            return True
        return any(
            each.slot in self.mirrors_of(leg.slot) and each.in_sync and not each.faulty
            for each in array.legs
            if each.device != leg.device and each.there
        )

    def added(self, array: Array) -> Plan | None:
        """Add members that were made since."""
        for member in self.volume.members:
            device = self.free(member, array)
            if member.state is not MemberState.CREATED or device is None or self.waits:
                continue
            steps = self.addition(member, device, array)
            if steps is None:
                continue
            before = self.forgotten()
            if before is not None:
                return before
            done = self.volume.with_member(self.at(member, MemberState.SYNCING))
            why = f"The member on {member.node} is added and synced."
            return Plan(why, kind="added", steps=steps, after=done)
        return None
