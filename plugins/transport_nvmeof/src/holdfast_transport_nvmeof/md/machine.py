"""The machine under an agent: looks at everything, and says what it lacks. Decides nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

from holdfast_transport_nvmeof.kernel.drives import found_drives, udev_context
from holdfast_transport_nvmeof.kernel.fabrics import Host, found_controllers
from holdfast_transport_nvmeof.kernel.slices import slices_in, slices_on
from holdfast_transport_nvmeof.kernel.steps import FABRICS, PATH, StepError
from holdfast_transport_nvmeof.kernel.target import CONFIGFS, found_target
from holdfast_transport_nvmeof.md.observed import Array, Observed, found_arrays
from holdfast_transport_nvmeof.md.options import MdOptions

PROGRAMS = {
    "mdadm": "mdadm",
    "sfdisk": "fdisk",
    "blkid": "util-linux",
    "losetup": "mount",
    "mkfs.xfs": "xfsprogs",
}
"""What plans call, and the Debian package of each."""
SOFT_RDMA = "For soft RoCE: modprobe rdma_rxe; rdma link add …"
"""How to have RDMA without a device for it."""


def lacks(options: MdOptions) -> Iterator[tuple[str, str]]:
    """Yield what this machine lacks for the replicator md, each as a sentence with its remedy."""
    if os.geteuid() != 0:
        yield "Arrays, exports and imports need root.", "Run the node as root."
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=PATH) is None:
            yield f"{program} is not installed.", f"apt-get install {package}"
    try:
        udev_context()
    except StepError as error:
        yield error.message, error.hint
    if not Path("/proc/mdstat").exists():
        yield "The kernel has no MD.", "modprobe -a raid1 raid10"
    if not Path(FABRICS).exists():
        yield f"{FABRICS} is not there: no imports.", "modprobe -a nvme-tcp"
    if not Path(CONFIGFS).exists():
        yield f"{CONFIGFS} is not there: no exports.", "modprobe -a nvmet nvmet-tcp"
    if options.rdma_address and not has_rdma():
        yield "There is no RDMA device.", SOFT_RDMA


def has_rdma() -> bool:
    """Whether this machine can export and import over RDMA."""
    return any(Path("/sys/class/infiniband").glob("*"))


def auto_assembly() -> str | None:
    """Return why udev may assemble our arrays behind our back, or None when it cannot."""
    rules = [Path(folder, "64-md-raid-assembly.rules") for folder in ("/lib/udev/rules.d",)]
    masked = Path("/etc/udev/rules.d/64-md-raid-assembly.rules").exists()
    if masked or not any(rule.exists() for rule in rules):
        return None
    return "udev assembles arrays as their members appear."


async def look(options: MdOptions, host: Host) -> Observed:
    """Return what is there now.

    Raises:
        StepError: A program is missing or fails; says which.
    """
    drives = await found_drives(options.drives)
    slices = slices_on(drives)
    if options.files:
        slices += await slices_in(Path(options.files))
    arrays, taken = await found_arrays()
    controllers, target = await asyncio.to_thread(
        lambda: (found_controllers(host.nqn), found_target())
    )
    devices = {each.path for each in slices} | {each.device for each in controllers}
    return Observed(
        now=time.time(),
        slices={each.uuid: each for each in slices},
        drives=tuple(drives),
        controllers=tuple(controllers),
        target=target,
        arrays={uuid: each for uuid, each in arrays.items() if _is_ours(each, devices)},
        devices_taken=taken,
    )


def _is_ours(array: Array, devices: Collection[str]) -> bool:
    """Whether an array is of this node's devices, or has lost all that it had.

    Several nodes may share a kernel, as they do in tests.
    """
    there = [leg.device for leg in array.legs if leg.there]
    return not there or any(device in devices for device in there)


async def block_events() -> AsyncIterator[str]:
    """Yield a line whenever a block device comes, goes or changes, as pyudev tells it.

    Where udevd runs its events are taken, which come when links and properties are there; else the
    kernel's own.
    """
    import pyudev  # noqa: PLC0415 - it fails on import where libudev is missing.

    context: Any = udev_context()
    source = "udev" if await asyncio.to_thread(os.path.exists, "/run/udev/control") else "kernel"
    monitor = pyudev.Monitor.from_netlink(context, source=source)
    monitor.filter_by("block")
    monitor.start()
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(monitor.fileno(), ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            while (device := monitor.poll(timeout=0)) is not None:
                yield f"{device.action} {device.device_node}"
    finally:
        loop.remove_reader(monitor.fileno())
