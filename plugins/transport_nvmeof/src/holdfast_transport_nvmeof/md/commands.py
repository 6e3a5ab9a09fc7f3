"""The commands that make, run and change an array and its file system, as steps.

The flags are those that MeshStor documents, but for `--data-offset` and `--size`, which
are fixed here so that every member of a volume has its data at the same place, whatever mdadm's version.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.units import GIB, KIB, MIB
from holdfast_transport_nvmeof.kernel.steps import Run, Step, Write, run
from holdfast_transport_nvmeof.md.model import DATA_OFFSET_BYTES, MdVolume
from holdfast_transport_nvmeof.md.observed import Array

FIRST_NUMBER = 100
"""Of our md devices; distributions count down from 127, or up from 0."""
HELD_SECTORS = 1 << 62
"""Beyond every array, so that all writes wait; 0 lets them through."""


def free_device(taken: frozenset[str]) -> str:
    """Return the path of an md device that does not exist yet."""
    names = (f"/dev/md{number}" for number in range(FIRST_NUMBER, FIRST_NUMBER + len(taken) + 1))
    return next(name for name in names if name not in taken)


def bitmap_chunk_bytes(volume: MdVolume) -> int:
    """Return what one bit of the bitmap covers: MeshStor's 128 MiB, less for small members."""
    chunk = MIB
    while chunk * 1024 < volume.component_bytes and chunk < 128 * MIB:
        chunk *= 2
    return chunk


def create(volume: MdVolume, device: str, members: Sequence[str]) -> Run:
    """Return the step that makes an array of zeroed members; `missing` stands for an empty slot."""
    raid10 = ["--level=10", f"--layout=n{volume.mirrors}", "--chunk=64K"]
    return run(
        "mdadm", "--create", device, "--run", "--quiet", "--metadata=1.2", "--homehost=any",
        f"--name={volume.name[:32]}", f"--uuid={volume.array_uuid}",
        *(["--level=1"] if volume.drives_per_copy == 1 else raid10),
        f"--raid-devices={volume.slots}", f"--size={volume.component_bytes // KIB}K",
        f"--data-offset={DATA_OFFSET_BYTES // KIB}K", "--assume-clean", "--bitmap=internal",
        f"--bitmap-chunk={bitmap_chunk_bytes(volume) // KIB}K", "--failfast", *members,
    )  # fmt: skip


def assemble(volume: MdVolume, device: str, members: Sequence[str]) -> Run:
    """Return the step that runs an array that was made before, of just these members."""
    return run(
        "mdadm", "--assemble", device, "--run", "--quiet", "--homehost=any",
        f"--uuid={volume.array_uuid}", *members,
    )  # fmt: skip


def stop(array: Array) -> list[Step]:
    """Return the steps that end an array; MD puts everything on stable storage first."""
    steps: list[Step] = []
    if array.held:
        steps.append(hold(array, held=False))
    if array.mounted:
        steps.append(run("umount", array.mounted))
    return [*steps, run("mdadm", "--stop", "--quiet", array.device)]


def clear_failed(array: Array) -> list[Step]:
    """Return the steps that take members out whose device is gone, or has failed.

    Through sysfs: mdadm wants to open a device, and these may have none any more.
    """
    steps: list[Step] = []
    for leg in array.legs:
        state = f"{_folder(array)}/{leg.sysfs}/state"
        if not leg.there and not leg.faulty:
            steps.append(Write(state, "faulty"))
        if not leg.there or leg.faulty:
            steps.append(Write(state, "remove"))
    return steps


def re_add(array: Array, devices: Sequence[str]) -> list[Step]:
    """Return the step that brings members back by the bitmap; no recovery begins before all are."""
    return [run("mdadm", "--manage", "--quiet", array.device, "--re-add", *devices)]


def add(array: Array, device: str) -> list[Step]:
    """Return the steps that add a member as a whole: what it was before is forgotten first."""
    return [
        run("wipefs", "--all", "--quiet", "--force", "--types=linux_raid_member", device),
        run("mdadm", "--manage", "--quiet", array.device, "--failfast", "--add", device),
    ]


def replace(array: Array, old: str, new: str) -> Run:
    """Return the step that copies `old` to the spare `new`, with no time of fewer copies."""
    return run("mdadm", "--manage", "--quiet", array.device, "--replace", old, "--with", new)


def freeze(array: Array) -> Write:
    """Return the step after which MD recovers nothing until `thaw`."""
    return Write(f"{_folder(array)}/sync_action", "frozen")


def thaw(array: Array) -> Write:
    """Return the step that lets MD recover what there is to recover."""
    return Write(f"{_folder(array)}/sync_action", "idle")


def pin(array: Array, device: str, slot: int) -> Write:
    """Return the step that gives a spare its slot; MD must be frozen, or it has chosen one itself.

    Source: drivers/md/md.c, `slot_store`.
    """
    leg = device.removeprefix("/dev/").replace("/", "!")
    return Write(f"{_folder(array)}/dev-{leg}/slot", str(slot))


def _folder(array: Array) -> str:
    return f"/sys/block/{array.device.removeprefix('/dev/')}/md"


def take_out(array: Array, device: str) -> list[Step]:
    """Return the steps that remove a member which is no longer needed."""
    manage = ("mdadm", "--manage", "--quiet", array.device)
    return [run(*manage, "--fail", device), run(*manage, "--remove", device)]


def hold(array: Array, *, held: bool) -> Write:
    """Return the step that lets writes wait in MD itself, or go on; reads are not touched.

    Source: drivers/md/md.c, `suspend_hi_store` and `is_suspended`.
    """
    return Write(f"{_folder(array)}/suspend_hi", str(HELD_SECTORS if held else 0))


def grow(array: Array, volume: MdVolume) -> list[Step]:
    """Return the steps that let an array, and what is mounted on it, use its larger members."""
    size = f"--size={volume.component_bytes // KIB}K"
    steps: list[Step] = [run("mdadm", "--grow", "--quiet", array.device, size)]
    if array.mounted and volume.filesystem == "xfs":
        steps.append(run("xfs_growfs", array.mounted))
    return steps


def make_filesystem(volume: MdVolume, device: str, *, anew: bool = False) -> Run:
    """Return the step that makes an XFS; unless `anew`, it refuses a device that carries anything."""
    size = volume.size_bytes
    options = [
        *("-s", f"size={volume.sector_size}", "-b", "size=4096", "-i", "size=512"),
        *("-m", "crc=1,finobt=1,reflink=0,rmapbt=0,bigtime=1,inobtcount=1"),
    ]
    log = "internal,version=2,lazy-count=1" + (",size=1g" if size >= 40 * GIB else "")
    if GIB <= size <= 80 * GIB:
        options += ["-d", "agcount=16"]
    return run("mkfs.xfs", "-q", *(["-f"] if anew else []), *options, "-l", log, device)


def mount(device: str, folder: str) -> list[Step]:
    """Return the steps that mount a volume's XFS, and give it what a crash kept from it."""
    options = "noatime,nodiratime,logbufs=8,logbsize=256k,inode64,noquota"
    return [
        run("mkdir", "-p", folder),
        run("mount", "-t", "xfs", "-o", options, device, folder),
        run("xfs_growfs", folder),
    ]
