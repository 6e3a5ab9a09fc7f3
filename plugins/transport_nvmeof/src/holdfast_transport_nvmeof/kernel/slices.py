"""Slices: the pieces of storage that members of arrays live in, made and unmade as steps.

A slice is a GPT partition on a drive, or a file behind a loop device where there are no drives. Each is
named twice, by label and by UUID; before anything is removed both are read again, and so is who holds
it, because between a plan and its step a machine may have changed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path

import attrs

from holdfast.units import MIB
from holdfast_transport_nvmeof.kernel.drives import LABEL_PREFIX, Drive, use_of
from holdfast_transport_nvmeof.kernel.steps import Run, Step, StepError, Unlink, output, run

RAID_TYPE = "A19D880F-05FC-4D3B-A006-743F0F84911E"
"""GPT's type of Linux RAID members."""
NEW = "-new"
"""Ends the label of a slice that may still hold old bytes."""
_FILE = re.compile(rf"{LABEL_PREFIX}([0-9a-f-]{{36}})({NEW})?\.img")


@attrs.frozen
class Slice:
    """A piece of storage of ours on this machine."""

    uuid: str
    """The member's id, and the partition's UUID."""
    path: str
    """Its block device; empty for a file that has none yet."""
    label: str
    size_bytes: int
    drive: str
    """The drive's path, or the file's."""
    number: int = 0
    """Of the partition; 0 for a file."""
    room_bytes: int = 0
    """How large it could become where it is, at least `size_bytes`."""
    use: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file behind a loop device."""
        return self.number == 0

    @property
    def ready(self) -> bool:
        """Whether it was zeroed to its end and has a device."""
        return not self.label.endswith(NEW) and bool(self.path)


def label_of(volume: str, slot: int) -> str:
    """Return the GPT name of a member: at most 36 characters, of which people read the first."""
    return f"{LABEL_PREFIX}{volume[:20]}-{slot}"


def slices_on(drives: Sequence[Drive]) -> list[Slice]:
    """Return our partitions on drives."""
    return [
        Slice(
            part.uuid, part.path, part.label, part.size_bytes, drive.path, part.number,
            _room(drive, part.start_bytes, part.size_bytes), part.use,
        )
        for drive in drives
        for part in drive.partitions
        if part.is_ours
    ]  # fmt: skip


def _room(drive: Drive, start: int, size: int) -> int:
    after = [gap for gap_start, gap in drive.gaps if 0 <= gap_start - (start + size) < MIB]
    return size + (after[0] if after else 0)


async def slices_in(folder: Path) -> list[Slice]:
    """Return our files in `folder`, with their loop devices."""
    files = await asyncio.to_thread(lambda: sorted(folder.glob(f"{LABEL_PREFIX}*.img")))
    if not files:
        return []
    loops = await _loops()
    found = []
    for file in files:
        named = _FILE.fullmatch(file.name)
        if named is None:
            continue
        # The file keeps its inode when it is renamed, and losetup tells that.
        status = file.stat()
        device = loops.get((status.st_ino, str(file)), "") or loops.get((status.st_ino, ""), "")
        use = use_of(Path("/sys/class/block", Path(device).name)) if device else ""
        label = f"{LABEL_PREFIX}{named[1]}{named[2] or ''}"
        size = status.st_size
        found.append(Slice(named[1], device, label, size, str(file), 0, 1 << 62, use))
    return found


async def _loops() -> dict[tuple[int, str], str]:
    """Return loop devices by inode and name of their file."""
    told = await output("losetup", "--json", "--list", "--output", "NAME,BACK-INO,BACK-FILE")
    found = {}
    for each in json.loads(told or "{}").get("loopdevices", ()):
        found[int(each["back-ino"]), str(each["back-file"])] = str(each["name"])
    return found


def make_on_drive(
    drive: Drive, start: int, size: int, uuid: str, label: str, *, zeroed: bool
) -> list[Step]:
    """Return the steps that make a partition, whose bytes are all zero in the end if `zeroed`.

    Only members of an array that is still to be made must be equal from birth. A drive with nothing
    on it gets a GPT first; sfdisk refuses by itself when that is not so.
    """
    steps: list[Step] = []
    number = 1 + max((part.number for part in drive.partitions), default=0)
    if not drive.table:
        steps.append(run("sfdisk", "--quiet", "--wipe", "never", drive.path, stdin="label: gpt\n"))
    sector = drive.sector_bytes
    line = (
        f"start={start // sector}, size={size // sector}, type={RAID_TYPE}, "
        f'uuid={uuid.upper()}, name="{label}{NEW if zeroed else ""}"\n'
    )
    steps.append(_sfdisk(drive.path, line, "--append"))
    path = partition_path(drive.path, number)
    return [*steps, *zero(path), rename(drive.path, number, label)] if zeroed else steps


def zero(path: str) -> list[Step]:
    """Return the step after which every byte reads as zero: members are then equal from birth."""
    return [run("blkdiscard", "--force", "--zeroout", path)]


def rename(drive: str, number: int, label: str) -> Run:
    """Return the step that says by its label that a partition is ready."""
    return run("sfdisk", "--quiet", "--no-reread", "--part-label", drive, str(number), label)


def finish(found: Slice) -> list[Step]:
    """Return the steps that a crash left out when `found` was made."""
    label = found.label.removesuffix(NEW)
    if not found.is_file:
        return [*zero(found.path), rename(found.drive, found.number, label)]
    return [run("mv", "--no-clobber", found.drive, found.drive.replace(f"{NEW}.img", ".img"))]


def partition_path(drive: str, number: int) -> str:
    """Return the path of a partition: `nvme0n1p3`, but `sda3`."""
    return f"{drive}p{number}" if drive[-1].isdecimal() else f"{drive}{number}"


def make_file(folder: str, size: int, uuid: str, sector: int) -> list[Step]:
    """Return the steps that make a sparse file, which is zero from the start, and its device."""
    file = f"{folder}/{LABEL_PREFIX}{uuid}.img"
    return [run("truncate", f"--size={size}", file), attach_file(file, sector)]


def attach_file(file: str, sector: int) -> Run:
    """Return the step that gives a file its loop device."""
    return run(
        "losetup", "--find", "--nooverlap", "--direct-io=on", f"--sector-size={sector}", file
    )


def grow(found: Slice, drive: Drive | None, size: int) -> Step:
    """Return the step that makes a slice larger where it is; the new bytes read as zero or old.

    The kernel goes on with the former size until `take_note`.
    """
    if found.is_file:
        return run("truncate", f"--size={size}", found.drive)
    assert drive is not None
    line = f", {size // drive.sector_bytes}\n"
    return _sfdisk(found.drive, line, "--no-reread", "-N", str(found.number))


def take_note(found: Slice) -> Step:
    """Return the step by which the kernel takes note of a slice's size; once more does no harm."""
    if found.is_file:
        return run("losetup", "--set-capacity", found.path)
    return run("partx", "--update", "--nr", str(found.number), found.drive)


def _sfdisk(drive: str, line: str, *options: str) -> Run:
    quiet = ("--quiet", "--wipe", "never", "--wipe-partitions", "never", "--force")
    return run("sfdisk", *quiet, *options, drive, stdin=line)


def unmake(found: Slice) -> list[Step]:
    """Return the steps that remove a slice; `check_removable` comes right before them."""
    if found.is_file:
        detach = [run("losetup", "--detach", found.path)] if found.path else []
        return [*detach, Unlink(found.drive)]
    return [
        run("wipefs", "--all", "--quiet", found.path),
        run(
            "sfdisk",
            "--quiet",
            "--force",
            "--no-reread",
            "--delete",
            found.drive,
            str(found.number),
        ),
        run("partx", "--delete", "--nr", str(found.number), found.drive),
    ]


async def check_removable(found: Slice) -> None:
    """Look again, right before a removal, whether this is what it was when it was planned.

    Raises:
        StepError: It is not ours, not the same one, or something holds it; nothing was removed.
    """
    if found.is_file:
        name = Path(found.drive).name
        if _FILE.fullmatch(name) is None or found.uuid not in name:
            raise StepError(f"{found.drive} is not removed: its name is not one of ours.")
    else:
        told = json.loads(await output("sfdisk", "--json", found.drive))["partitiontable"]
        now = [each for each in told.get("partitions", ()) if each["node"] == found.path]
        same = now and str(now[0].get("uuid", "")).lower() == found.uuid
        if not same or not str(now[0].get("name", "")).startswith(LABEL_PREFIX):
            raise StepError(f"{found.path} is not removed: it is not what it was, or not ours.")
    use = use_of(Path("/sys/class/block", Path(found.path).name)) if found.path else ""
    if use:
        raise StepError(f"{found.path} is not removed: it is {use}.")
