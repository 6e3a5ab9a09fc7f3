"""File systems on a volume, cut off at every flush: each must be whole, with all that was synced in it.

Between the file system and the volume QEMU's `blklogwrites` writes down every write and flush, in the
format of the kernel's dm-log-writes. The log is then replayed into an image, and at each flush a copy
of the image is mounted and checked. That the volume itself took in exactly what the log has, on every
node, is compared in the end.

Source of the format: Documentation/admin-guide/device-mapper/log-writes.rst.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import attrs
import pytest
from tests.conftest import lacking
from tests.harness import disks
from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until

from holdfast.local.attach_fuse import FuseAttach

Start = Callable[..., RunningCluster]
MIB = 1 << 20
SECTOR = 512
_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
_FLUSH, _DISCARD = 1, 4
OPERATIONS = int(os.environ.get("BLOCK_LOG_OPERATIONS", "40"))
"""More of them take longer and make more flushes; `make crash` sets 600."""


@attrs.frozen
class Kind:
    """A file system: how it is made and checked."""

    size_bytes: int
    make: tuple[str, ...]
    check: tuple[str, ...]
    options: str = "loop"


KINDS = {
    "ext4": Kind(64 * MIB, ("mkfs.ext4", "-q"), ("e2fsck", "-fn")),
    # The least that mkfs.xfs makes is 300 MiB; two mounted copies have the same UUID.
    "xfs": Kind(320 * MIB, ("mkfs.xfs", "-q"), ("xfs_repair", "-n"), "loop,nouuid"),
}


@attrs.frozen
class Synced:
    """A file that was synced and is not touched again."""

    name: str
    digest: str
    entries: int
    """How many entries the log had when the sync returned."""


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [*map(str, command)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def entries_in(log: Path) -> int:
    with log.open("rb") as file:
        magic, _, count, size = _SUPER.unpack(file.read(_SUPER.size))
    assert (magic, size) == (_MAGIC, SECTOR)
    return int(count)


def replayed(log: Path, image: Path) -> Iterator[tuple[int, bool]]:
    """Carry out one entry after the other; yield its number and whether it is a flush."""
    with log.open("rb") as file, image.open("r+b", buffering=0) as into:
        at = SECTOR
        for number in range(1, entries_in(log) + 1):
            sector, count, flags, _ = _ENTRY.unpack(os.pread(file.fileno(), _ENTRY.size, at))
            at += SECTOR
            if flags & _DISCARD:
                os.pwrite(into.fileno(), bytes(count * SECTOR), sector * SECTOR)
            else:
                data = os.pread(file.fileno(), count * SECTOR, at)
                os.pwrite(into.fileno(), data, sector * SECTOR)
                at += count * SECTOR
            yield number, bool(flags & _FLUSH)


@contextmanager
def logging(uri: str, folder: Path, program: str) -> Iterator[tuple[str, Path]]:
    """Put a log between the volume at `uri` and the URI that is yielded."""
    log, socket = folder / "writes.log", folder / "logged.sock"
    log.touch()
    at = urlsplit(uri)
    volume = (
        f"driver=nbd,node-name=volume,server.type=inet,server.host={at.hostname},"
        f"server.port={at.port},export={at.path[1:]}"
    )
    logged = (
        "driver=blklogwrites,node-name=logged,file=volume,log=log,log-sector-size=512,"
        "log-super-update-interval=1"
    )
    command = [program, "--blockdev", volume]
    command += ["--blockdev", f"driver=file,node-name=log,filename={log}", "--blockdev", logged]
    command += ["--nbd-server", f"addr.type=unix,addr.path={socket}"]
    command += ["--export", "type=nbd,id=e,node-name=logged,writable=on,name=x"]
    child = subprocess.Popen(command)
    try:
        wait_until(lambda: socket.exists() or child.poll() is not None, 30, "QEMU to serve")
        assert child.poll() is None
        yield f"nbd+unix:///x?socket={socket}", log
    finally:
        child.terminate()
        child.wait(60)


@contextmanager
def attached(uri: str, folder: Path) -> Iterator[str]:
    """Make a block device of a URI."""
    fuse = FuseAttach()
    device = anyio.run(fuse.attach, uri, str(folder))
    try:
        yield device
    finally:
        anyio.run(fuse.detach, str(folder))


@contextmanager
def mounted(device: str | Path, at: Path, options: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    run("mount", "-o", options, device, at)
    try:
        yield at
    finally:
        run("umount", at)


def work(at: Path, log: Path, dice: random.Random) -> list[Synced]:
    """Write, cut, rename and remove at random, as fsx does; sync a file of its own now and then."""
    synced: list[Synced] = []
    for number in range(OPERATIONS):
        path = at / f"live-{dice.randrange(4)}"
        match dice.randrange(6):
            case 0 | 1:
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.seek(dice.randrange(2 * MIB))
                    file.write(dice.randbytes(dice.randrange(1, 100_000)))
            case 2 if path.exists():
                os.truncate(path, dice.randrange(MIB))
            case 3 if path.exists():
                path.rename(at / f"live-{dice.randrange(4)}")
            case 4:
                path.unlink(missing_ok=True)
            case _:
                data = dice.randbytes(dice.randrange(1, 200_000))
                kept = at / f"kept-{number}"
                with kept.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                folder = os.open(at, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
                digest = hashlib.sha256(data).hexdigest()
                synced.append(Synced(kept.name, digest, entries_in(log)))
    return synced


def check(image: Path, place: Path, kind: Kind, tools: list[str], synced: list[Synced]) -> None:
    """Mount a copy of `image`, look at what must be in it, and check its structure."""
    copy = place / "cut.img"
    run("cp", "--sparse=always", image, copy)
    with mounted(copy, place / "cut", kind.options) as at:
        for each in synced:
            found = hashlib.sha256((at / each.name).read_bytes()).hexdigest()
            assert found == each.digest, f"{each} has other bytes"
    run(*tools, copy)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_system_cut_off_at_any_flush_is_whole(
    name: str, start_cluster: Start, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    kind = KINDS[name]
    missing = FuseAttach().unavailable()
    if missing is not None or not disks.can_make_disks():
        lacking(missing or "Mounting takes root and loop devices.")
    daemon = tool("qemu-storage-daemon")
    maker, checker = tool(kind.make[0]), tool(kind.check[0])
    cluster = start_cluster(nodes=3)
    cluster.create("fs", f"{kind.size_bytes >> 20}MiB", replicas=1)
    cluster.wait_healthy("fs")
    uri = cluster.url("fs", cluster.bystanders("fs")[0])
    with (
        logging(uri, tmp_path, daemon) as (logged, log),
        attached(logged, tmp_path / "device") as device,
    ):
        run(maker, *kind.make[1:], device)
        run("blockdev", "--flushbufs", device)
        made = entries_in(log)
        with mounted(device, tmp_path / "live", "defaults") as at:
            synced = work(at, log, random.Random(name))
    image = tmp_path / "replayed.img"
    with image.open("wb") as file:
        file.truncate(kind.size_bytes)
    checked = 0
    for number, is_flush in replayed(log, image):
        if is_flush and number >= made:
            durable = [each for each in synced if each.entries <= number]
            check(image, tmp_path, kind, [checker, *kind.check[1:]], durable)
            checked += 1
    assert synced
    assert checked > len(synced)
    print(f"{name}: {entries_in(log)} entries, {checked} flushes checked, {len(synced)} files")  # noqa: T201
    run(tool("qemu-img"), "compare", "-f", "raw", "-F", "raw", image, uri)
    cluster.verify("fs")
    shutil.rmtree(tmp_path / "live", ignore_errors=True)
