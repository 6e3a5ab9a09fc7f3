"""Drives for people, and slices that nobody owns any more."""

from __future__ import annotations

from collections.abc import AsyncIterator

from holdfast.interfaces.replicator import Json
from holdfast.interfaces.state import StateStore
from holdfast_transport_nvmeof.kernel import slices
from holdfast_transport_nvmeof.kernel.drives import Drive, found_drives
from holdfast_transport_nvmeof.kernel.fabrics import Host
from holdfast_transport_nvmeof.kernel.steps import StepError, carry_out, shell
from holdfast_transport_nvmeof.md import machine
from holdfast_transport_nvmeof.md.model import MdVolume, host_of
from holdfast_transport_nvmeof.md.options import MdOptions

VOLUMES = "md/volume/"
"""Where the store keeps md volumes, by name."""


async def drives(options: MdOptions) -> list[Json]:
    """Return every drive of this machine."""
    return [_told(each) for each in await found_drives(options.drives, others=True)]


def _told(drive: Drive) -> Json:
    return {
        "path": drive.path,
        "model": drive.model,
        "serial": drive.serial,
        "size_bytes": drive.size_bytes,
        "free_bytes": drive.free_bytes,
        "sector_bytes": drive.sector_bytes,
        "usable": drive.usable,
        "told": drive.told,
        "links": list(drive.links),
        "partitions": [
            {
                "path": part.path,
                "label": part.label,
                "uuid": part.uuid,
                "size_bytes": part.size_bytes,
                "use": part.use,
                "ours": part.is_ours,
            }
            for part in drive.partitions
        ],
    }


async def events(options: MdOptions) -> AsyncIterator[Json]:
    """Yield drives as they come, go and change."""
    async for line in machine.block_events():
        action, _, path = line.partition(" ")
        found: list[Drive] = []
        if action != "remove":
            # It may be gone again by the time it is looked at.
            found = [d for d in await found_drives(options.drives, others=True) if d.path == path]
        if found or action == "remove":
            told = found[0].told if found else "gone"
            yield {"action": action, "path": path, "told": told}


async def cleanup(
    options: MdOptions, cluster: str, node: str, store: StateStore, *, apply: bool
) -> list[Json]:
    """Return the slices of this machine that no volume has; remove them if `apply`.

    Only what bears our label is looked at at all. A slice that something holds, or that is exported, is
    told and never removed; each other one is compared with the volumes anew, then with itself.
    """
    nqn, id_ = host_of(cluster, node)
    seen = await machine.look(options, Host(nqn, id_))
    rows = []
    for each in seen.slices.values():
        if each.uuid in await _owned(store):
            continue
        exported = any(name.endswith(f":{each.uuid}") for name in seen.target.subsystems)
        use = each.use or ("exported" if exported else "")
        told = f"in no volume, but {use}" if use else "in no volume"
        if apply and not use:
            told = await _removed(each, store)
        row = {"path": each.path or each.drive, "label": each.label, "told": told}
        commands = [shell(step) for step in slices.unmake(each)]
        rows.append({**row, "size_bytes": each.size_bytes, "commands": commands})
    return rows


async def _removed(each: slices.Slice, store: StateStore) -> str:
    try:
        if each.uuid in await _owned(store):
            return "kept: a volume has it now"
        await slices.check_removable(each)
        await carry_out(slices.unmake(each))
    except StepError as error:
        return f"kept: {error.message}"
    return "removed"


async def _owned(store: StateStore) -> set[str]:
    """Return the ids of all members of all volumes, as the store has them now."""
    volumes = [MdVolume.from_bytes(entry.value) for entry in await store.list(VOLUMES)]
    return {member.id for volume in volumes for member in volume.members}
