"""Drives: what block devices this machine has, what is on them, and where there is room.

Found through pyudev, read with blkid and sfdisk, changed only by the steps of `slices`. A drive that
carries anything we did not put there is told with what it is and is never written to: room counts only
on drives that the operator's patterns name, that have a GPT, or nothing at all.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from holdfast.units import MIB
from holdfast_transport_nvmeof.kernel.steps import StepError, output

LABEL_PREFIX = "holdfast-"
"""Partitions whose GPT name begins so are ours; no other is ever changed."""
ALIGNMENT_BYTES = MIB
"""Where partitions begin and end, as MeshStor's do."""
_VIRTUAL = ("loop", "ram", "zram", "md", "dm-", "sr", "fd", "nbd")
_log = logging.getLogger("holdfast.md")


@attrs.frozen
class Partition:
    """One entry of a partition table."""

    number: int
    path: str
    label: str
    uuid: str
    """The partition's own UUID, lower case."""
    start_bytes: int
    size_bytes: int
    use: str = ""
    """What holds it now: `mounted at /srv`, `held by md127`; empty when nothing does."""

    @property
    def is_ours(self) -> bool:
        """Whether we made it."""
        return self.label.startswith(LABEL_PREFIX)


@attrs.frozen
class Drive:
    """One whole block device."""

    path: str
    model: str
    serial: str
    size_bytes: int
    sector_bytes: int
    """Logical; what partitions are aligned to is a MiB anyway."""
    table: str = ""
    """`gpt`, `dos`…; empty when there is none."""
    content: str = ""
    """What is on the whole drive: `xfs`, `linux_raid_member`…; empty when nothing is."""
    partitions: tuple[Partition, ...] = ()
    use: str = ""
    """What holds the whole drive; empty when nothing does."""
    chosen: bool = False
    """The operator's patterns name it, so we may make partitions on it."""
    links: tuple[str, ...] = ()
    """Its other names, below /dev/disk."""

    @property
    def usable(self) -> bool:
        """Whether a partition of ours may be made here."""
        blank = not self.table and not self.content and not self.use
        return self.chosen and (self.table == "gpt" or blank)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The free ranges, as start and size in bytes, aligned, in their order."""
        first, last = ALIGNMENT_BYTES, self.size_bytes - ALIGNMENT_BYTES
        found, at = [], first
        for part in sorted(self.partitions, key=lambda each: each.start_bytes):
            found.append((at, part.start_bytes - at))
            at = max(at, _up(part.start_bytes + part.size_bytes))
        found.append((at, last - at))
        down = [(start, size // ALIGNMENT_BYTES * ALIGNMENT_BYTES) for start, size in found]
        return [(start, size) for start, size in down if size > 0]

    @property
    def free_bytes(self) -> int:
        """The largest partition that could be made here now."""
        return max((size for _, size in self.gaps), default=0) if self.usable else 0

    @property
    def told(self) -> str:
        """What is on it, for people."""
        words = [word for word in (self.use, self.content) if word]
        ours = sum(part.is_ours for part in self.partitions)
        others = len(self.partitions) - ours
        if self.table:
            words.append(f"{self.table}: {ours} of ours, {others} other")
        return ", ".join(words) or "nothing"


def _up(size: int) -> int:
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


async def found_drives(patterns: Sequence[str], *, others: bool = False) -> list[Drive]:
    """Return the drives of this machine that `patterns` name, which may be used, or all of them.

    Loop, RAM and md devices are left out unless a pattern names them.

    Args:
        patterns: Shell patterns of device paths, such as `/dev/disk/by-id/nvme-*`.
        others: Also return the drives that no pattern names, for people to see.

    Raises:
        StepError: libudev is missing, or sfdisk or blkid are.
    """
    found = []
    for bare in await asyncio.to_thread(lambda: list(_enumerated(patterns))):
        if not bare.chosen and not others:
            continue
        try:
            found.append(await _read(bare))
        except StepError as error:
            # It was unplugged meanwhile, or does not answer; the others still count.
            if others:
                found.append(
                    attrs.evolve(bare, content=f"unreadable ({error.message.rstrip('.')})")
                )
            else:
                _log.warning("Drive %s is left out: %s", bare.path, error.message)
    return found


def _enumerated(patterns: Sequence[str]) -> Iterator[Drive]:
    context = udev_context()
    for device in context.list_devices(subsystem="block", DEVTYPE="disk"):
        path = device.device_node
        if path is None:
            continue  # One of the hidden paths below a multipath device.
        links = tuple(sorted(device.device_links))
        chosen = any(
            fnmatch.fnmatch(name, pattern) for name in (path, *links) for pattern in patterns
        )
        size = int(_attribute(device, "size") or 0) * 512
        if not size or (device.sys_name.startswith(_VIRTUAL) and not chosen):
            continue
        if _is_fabric(Path(device.sys_path)):
            continue
        yield Drive(
            path=path,
            model=device.properties.get("ID_MODEL") or _attribute(device, "device/model"),
            serial=device.properties.get("ID_SERIAL_SHORT") or _attribute(device, "device/serial"),
            size_bytes=size,
            sector_bytes=int(_attribute(device, "queue/logical_block_size") or 512),
            use=use_of(Path(device.sys_path)),
            chosen=chosen,
            links=links,
        )


def udev_context() -> Any:
    """Return pyudev's context; raises `StepError` where libudev is not installed."""
    try:
        import pyudev  # noqa: PLC0415 - it fails on import where libudev is missing.

        return pyudev.Context()
    except ImportError as error:
        raise StepError(
            f"Drives cannot be found: {error}.",
            hint="apt-get install libudev1; pip install pyudev",
        ) from error


def _attribute(device: Any, name: str) -> str:
    try:
        return Path(device.sys_path, name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _is_fabric(folder: Path) -> bool:
    """Whether it came over a network: the drive of another machine is not ours to divide."""
    paths = [*folder.glob("device/transport"), *folder.glob("device/nvme*/transport")]
    return any(path.read_text().strip() not in {"pcie", ""} for path in paths)


def use_of(folder: Path) -> str:
    """Return what holds a block device with this sysfs folder now: a mount, or another device."""
    holders = sorted(path.name for path in (folder / "holders").glob("*"))
    if holders:
        return f"held by {', '.join(holders)}"
    try:
        number = (folder / "dev").read_text().strip()
        with Path("/proc/self/mountinfo").open(encoding="utf-8") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[2] == number:
                    return f"mounted at {fields[4]}"
    except OSError:
        pass
    return ""


async def _read(drive: Drive) -> Drive:
    """Add what is on a drive."""
    words = await probed(drive.path)
    table = words.get("PTTYPE", "")
    content = words.get("TYPE", "")
    if table != "gpt":
        return attrs.evolve(drive, table=table, content=content)
    try:
        told = json.loads(await output("sfdisk", "--json", drive.path))["partitiontable"]
    except (ValueError, KeyError) as error:
        raise StepError(f"The partition table of {drive.path} cannot be read: {error}.") from error
    return attrs.evolve(
        drive,
        table=table,
        content=content,
        partitions=tuple(partitions_of(told, drive.sector_bytes)),
    )


async def probed(path: str) -> Mapping[str, str]:
    """Return what blkid finds on a device by looking at it anew, as its words say it."""
    # Status 2 says that it found nothing, and also that it could not look.
    try:
        told = await output("blkid", "--probe", "--output", "export", path)
    except StepError as error:
        if "failed with 2" not in error.message:
            raise
        return {} if await asyncio.to_thread(_is_blank, path) else {"TYPE": "unknown data"}
    return dict(line.partition("=")[::2] for line in told.splitlines() if "=" in line)


def _is_blank(path: str) -> bool:
    """Whether a device has only zeros where file systems and databases begin and end.

    Raises:
        StepError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for at in (0, max(size - ALIGNMENT_BYTES, 0)):
                file.seek(at)
                if file.read(ALIGNMENT_BYTES).strip(b"\0"):
                    return False
    except OSError as error:
        raise StepError(f"{path} cannot be read: {error.strerror}.") from error
    return True


def partitions_of(told: Mapping[str, Any], sector_bytes: int) -> Iterator[Partition]:
    """Yield the partitions in what `sfdisk --json` prints of a drive."""
    sector = int(told.get("sectorsize", sector_bytes))
    for each in told.get("partitions", ()):
        path = str(each["node"])
        name = path.rpartition("/")[2]
        yield Partition(
            number=int("".join(_last_digits(path))),
            path=path,
            label=str(each.get("name", "")),
            uuid=str(each.get("uuid", "")).lower(),
            start_bytes=int(each["start"]) * sector,
            size_bytes=int(each["size"]) * sector,
            use=use_of(Path("/sys/class/block", name)),
        )


def _last_digits(text: str) -> list[str]:
    digits: list[str] = []
    for letter in reversed(text):
        if not letter.isdecimal():
            break
        digits.insert(0, letter)
    return digits


def best_drive(
    drives: Collection[Drive], size_bytes: int, sector_bytes: int, taken: Collection[str] = ()
) -> tuple[Drive, int] | None:
    """Return the drive for a new partition, and where on it; None when no drive has the room.

    The drive with the most room wins, the smallest gap on it that is large enough; drives in `taken`
    hold other members of the same volume and are out of the question.
    """
    found = [
        (drive.free_bytes, drive, min(gaps, key=lambda gap: gap[1]))
        for drive in drives
        if drive.usable and drive.sector_bytes == sector_bytes and drive.path not in taken
        if (gaps := [gap for gap in drive.gaps if gap[1] >= size_bytes])
    ]
    if not found:
        return None
    _, drive, gap = max(found, key=lambda each: (each[0], each[1].path))
    return drive, gap[0]
