"""What an array gives to its user: whether writes go on, a file system, its mount, its size. Pure."""

from __future__ import annotations

import attrs

from holdfast.interfaces.policy import Policy, PolicyView
from holdfast.model import Access
from holdfast.units import format_size
from holdfast_transport_nvmeof.md import commands
from holdfast_transport_nvmeof.md.model import MdVolume
from holdfast_transport_nvmeof.md.observed import Array, Content
from holdfast_transport_nvmeof.md.plan import Plan


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


def access(volume: MdVolume, array: Array, policy: Policy, now: float) -> Plan | None:
    """Let the policy judge, and hold writes in MD when it says so."""
    online, in_sync = copies_in(volume, array)
    view = PolicyView(
        declared=volume.copies - 1,
        online=max(min(online, volume.copies) - 1, 0),
        in_sync=max(min(in_sync, volume.copies) - 1, 0),
        access=Access(volume.access),
        below_since=volume.grace_started_at,
        attached_anew=volume.anew,
    )
    verdict = policy.decide(view, now)
    started = volume.grace_started_at if verdict.below else None
    if verdict.below and started is None:
        started = now
    held = verdict.access is not Access.READ_WRITE
    changed = verdict.access.value != volume.access
    same = not changed and started == volume.grace_started_at and not volume.anew
    if same and held == array.held:
        return None
    after = attrs.evolve(volume, access=verdict.access.value, grace_started_at=started, anew=False)
    steps = () if held == array.held else (commands.hold(array, held=held),)
    return Plan(verdict.reason, kind="access", steps=steps, after=after, quiet=not changed)


def formatted(volume: MdVolume, array: Array) -> Plan | None:
    """Make the file system once.

    One that is there already was made right before a crash: nobody but us has had this array, whose
    members were zeroed.
    """
    if volume.formatted or volume.filesystem == "none":
        return None
    done = attrs.evolve(volume, formatted=True)
    if array.content is Content.XFS:
        return Plan("The file system is there.", after=done, quiet=True)
    anew = array.content is Content.HALF_AN_XFS
    steps = (commands.make_filesystem(volume, array.device, anew=anew),)
    return Plan("The file system is made.", kind="formatted", steps=steps, after=done)


def mounted(volume: MdVolume, mounts: str, array: Array) -> Plan | None:
    """Mount the file system below the folder `mounts`; an empty text leaves that to others."""
    if not mounts or volume.filesystem == "none" or array.mounted:
        return None
    folder = f"{mounts}/{volume.name}"
    steps = tuple(commands.mount(array.device, folder))
    return Plan(f"It is mounted at {folder}.", kind="mounted", steps=steps)


def grown(volume: MdVolume, array: Array) -> Plan:
    """Let an array whose members have all grown use what they have."""
    why = f"The volume is {format_size(volume.size_bytes)} now."
    return Plan(why, kind="grown", steps=tuple(commands.grow(array, volume)))
