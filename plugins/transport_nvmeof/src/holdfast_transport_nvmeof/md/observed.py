"""What a node sees of its arrays, drives, exports and imports: read from sysfs, changed nowhere.

Values only; how they came about is the business of `observe`. A plan never looks at anything else.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from holdfast_transport_nvmeof.kernel.drives import Drive
from holdfast_transport_nvmeof.kernel.fabrics import FoundController
from holdfast_transport_nvmeof.kernel.slices import Slice
from holdfast_transport_nvmeof.kernel.steps import output
from holdfast_transport_nvmeof.kernel.target import FoundTarget


class Content(enum.Enum):
    """What an array begins with."""

    UNKNOWN = "unknown"
    XFS = "xfs"
    HALF_AN_XFS = "half an xfs"
    """mkfs.xfs did not end."""


@attrs.frozen
class Leg:
    """One member device as MD has it."""

    device: str
    """Such as `/dev/nvme1n1`; a device that is gone keeps its name here."""
    slot: int
    """-1 while it has none."""
    in_sync: bool
    faulty: bool = False
    replacement: bool = False
    there: bool = True
    """Whether the kernel still has the device."""

    @property
    def sysfs(self) -> str:
        """The folder of this leg below the array's `md` folder."""
        return "dev-" + self.device.removeprefix("/dev/").replace("/", "!")


@attrs.frozen
class Array:
    """A running array."""

    device: str
    uuid: str
    level: str
    raid_disks: int
    component_bytes: int
    legs: tuple[Leg, ...] = ()
    action: str = "idle"
    """`idle`, `recover`, `resync`, `check`, `reshape`…"""
    done_percent: float | None = None
    state: str = "clean"
    held: bool = False
    """Writes wait: `suspend_hi` is above 0."""
    mounted: str = ""
    size_bytes: int = 0
    content: Content = Content.UNKNOWN
    """Looked at while it is not mounted."""

    @property
    def degraded(self) -> bool:
        """Whether a slot has no member in sync."""
        return self.in_sync < self.raid_disks

    @property
    def in_sync(self) -> int:
        """Slots with a member in sync."""
        return len({leg.slot for leg in self.legs if leg.in_sync and not leg.faulty})

    def leg(self, device: str) -> Leg | None:
        """Return the leg on a device, or None."""
        return next((each for each in self.legs if each.device == device), None)


@attrs.frozen
class Observed:
    """Everything that a plan may look at."""

    now: float
    """Unix seconds."""
    slices: Mapping[str, Slice] = attrs.field(factory=dict)
    """By member id; only those of this machine."""
    drives: tuple[Drive, ...] = ()
    controllers: tuple[FoundController, ...] = ()
    target: FoundTarget = attrs.field(factory=FoundTarget)
    arrays: Mapping[str, Array] = attrs.field(factory=dict)
    """By UUID."""
    devices_taken: frozenset[str] = frozenset()
    """Names of md devices that exist, ours or not."""


async def found_arrays(root: str = "/sys") -> tuple[dict[str, Array], frozenset[str]]:
    """Return the running arrays by UUID, and the names of all md devices.

    Raises:
        StepError: mdadm is missing.
    """
    arrays, taken = {}, set()
    for folder in await asyncio.to_thread(lambda: sorted(Path(root, "block").glob("md*"))):
        taken.add(f"/dev/{folder.name}")
        state = _text(folder / "md/array_state")
        if not (folder / "md").is_dir() or state in {"", "clear", "inactive"}:
            continue
        told = await output("mdadm", "--detail", "--export", f"/dev/{folder.name}")
        words = dict(line.partition("=")[::2] for line in told.splitlines())
        array = read_array(folder, words.get("MD_UUID", ""))
        if not array.mounted:
            content = await asyncio.to_thread(content_of, array.device)
            array = attrs.evolve(array, content=content)
        arrays[array.uuid] = array
    return arrays, frozenset(taken)


def read_array(folder: Path, uuid: str) -> Array:
    """Return the array with the sysfs folder `folder`; `uuid` as mdadm writes it."""
    md = folder / "md"
    done, _, total = _text(md / "sync_completed").partition(" / ")
    percent = 100.0 * int(done) / int(total) if done.isdecimal() and int(total or 0) else None
    plain = uuid.replace(":", "")
    return Array(
        device=f"/dev/{folder.name}",
        uuid="-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:])),
        level=_text(md / "level"),
        raid_disks=int((_text(md / "raid_disks") or "0").split()[0]),
        component_bytes=int(_text(md / "component_size") or 0) * 1024,
        legs=tuple(_legs(md)),
        action=_text(md / "sync_action") or "idle",
        done_percent=percent,
        state=_text(md / "array_state"),
        held=int(_text(md / "suspend_hi") or 0) > 0,
        mounted=mount_of(folder),
        size_bytes=int(_text(folder / "size") or 0) * 512,
    )


def _legs(md: Path) -> Iterator[Leg]:
    for folder in sorted(md.glob("dev-*")):
        words = _text(folder / "state").split(",")
        slot = _text(folder / "slot")
        yield Leg(
            device="/dev/" + folder.name.removeprefix("dev-").replace("!", "/"),
            slot=int(slot) if slot.isdecimal() else -1,
            in_sync="in_sync" in words,
            faulty="faulty" in words,
            replacement="replacement" in words,
            there=(folder / "block").exists(),
        )


def content_of(device: str) -> Content:
    """Return what a device begins with, as XFS's superblock says it.

    Source: fs/xfs/libxfs/xfs_format.h, `sb_magicnum` at 0 and `sb_inprogress` at 126.
    """
    try:
        with Path(device).open("rb") as file:
            head = file.read(512)
    except OSError:
        return Content.UNKNOWN
    if head[:4] != b"XFSB":
        return Content.UNKNOWN
    return Content.HALF_AN_XFS if head[126] else Content.XFS


def mount_of(folder: Path) -> str:
    """Return where the block device of a sysfs folder is mounted, or an empty text."""
    number = _text(folder / "dev")
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        fields = line.split()
        if number and fields[2] == number:
            return fields[4].encode().decode("unicode_escape")
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
