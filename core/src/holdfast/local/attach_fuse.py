"""Attach a volume as a loop device over nbdfuse: for machines whose kernel has no NBD.

nbdfuse shows the export as one file, the loop driver makes a block device of that file with direct I/O,
so that the page cache is kept once. Flushes of the device reach the volume as NBD flushes, discards as
trims. Everything needed to detach is in the directory, because another process may do it.

    DIRECTORY/uri          what is attached
    DIRECTORY/mount/disk   the export as a file
    DIRECTORY/pid          nbdfuse's process id, written by itself once it serves
    DIRECTORY/device       the loop device
    DIRECTORY/nbdfuse.log  what nbdfuse said

Source: nbdfuse(1) of libnbd, losetup(8).
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.to_thread

from holdfast.errors import ConflictError, UnavailableError
from holdfast.local.commands import clause, missing_tools, run, until

DETACH_DEADLINE_S = 10.0
"""How long somebody may go on using the device that is being detached."""
_TOOLS = {"nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "losetup": "mount"}
_children: dict[int, subprocess.Popen[bytes]] = {}
"""nbdfuse processes of this process: kept so that `detach` can reap them."""


class FuseAttach:
    """The entry point `fuse` of `holdfast.attach`."""

    API_VERSION: ClassVar[int] = 1
    name: ClassVar[str] = "fuse"

    def unavailable(self) -> str | None:
        """Return what this machine lacks and how to get it, or None when it can attach."""
        missing = missing_tools(_TOOLS)
        if missing:
            return missing
        for device, remedy in (
            ("/dev/fuse", "load the module with: modprobe fuse"),
            ("/dev/loop-control", "load the module with: modprobe loop"),
        ):
            if not Path(device).exists():
                return f"There is no {device}; {remedy}."
        if os.geteuid() != 0:
            return "Making a loop device needs root; run the command with sudo."
        return None

    async def attach(self, uri: str, directory: str, *, read_only: bool = False) -> str:
        """Return the path of a loop device that reads and writes `uri`.

        Args:
            uri: An NBD URI.
            directory: An empty directory, made if it is missing.
            read_only: Whether writes are refused.

        Raises:
            ConflictError: Something is attached in the directory.
            UnavailableError: The machine lacks something, or the export cannot be had; says what.
        """
        lacking = self.unavailable()
        if lacking is not None:
            raise UnavailableError(f"This machine cannot attach over FUSE: {lacking}")
        place = Path(directory)
        if (place / "uri").exists():
            raise ConflictError(
                f"{directory} already holds an attachment of {(place / 'uri').read_text()}.",
                hint="Detach it first.",
            )
        (place / "mount").mkdir(parents=True, exist_ok=True)
        (place / "uri").write_text(uri)
        try:
            await self._start_nbdfuse(uri, place, read_only=read_only)
            return await self._make_loop(place, read_only=read_only)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.detach(directory)
            raise

    async def detach(self, directory: str) -> None:
        """Flush, remove the loop device, end nbdfuse, and empty the directory. Idempotent.

        Raises:
            ConflictError: The device is still in use, such as mounted.
        """
        place = Path(directory)
        if not (place / "uri").exists():
            return
        device = _text(place / "device")
        if device and _backing(device) == str(place / "mount" / "disk"):
            await run("blockdev", "--flushbufs", device)
            await run("losetup", "--detach", device)
            # The kernel lets go of a device that somebody has open only when they close it.
            if not await until(lambda: _backing(device) is None, deadline_s=DETACH_DEADLINE_S):
                raise ConflictError(
                    f"{device} is still in use.", hint=f"Unmount it, then detach: umount {device}"
                )
        await self._end_nbdfuse(place)
        for name in ("device", "pid", "nbdfuse.log", "uri"):
            (place / name).unlink(missing_ok=True)
        with suppress(OSError):
            (place / "mount").rmdir()

    async def _start_nbdfuse(self, uri: str, place: Path, *, read_only: bool) -> None:
        """Start nbdfuse and wait until it serves the file."""
        # One connection: nbdfuse sends a flush over one of several only, which our multi-conn
        # allows, but its requests all take the first one anyway (measured with 1.14).
        command = ["nbdfuse", "--connections", "1", "--pidfile", str(place / "pid")]
        if read_only:
            command.append("--readonly")
        command += [str(place / "mount" / "disk"), uri]
        child = await anyio.to_thread.run_sync(_spawn, command, place / "nbdfuse.log")
        disk = place / "mount" / "disk"
        served = await until(
            lambda: child.poll() is not None or bool(_text(place / "pid") and _size(disk) > 0)
        )
        if child.poll() is not None or not served:
            _kill(child)
            _children.pop(child.pid, None)
            raise UnavailableError(
                f"nbdfuse cannot serve {uri}: {clause(_text(place / 'nbdfuse.log'))}.",
                hint="See whether `nbdinfo` can reach that URI.",
            )

    async def _make_loop(self, place: Path, *, read_only: bool) -> str:
        command = ["losetup", "--find", "--show", "--nooverlap"]
        if read_only:
            command.append("--read-only")
        disk = str(place / "mount" / "disk")
        code, device, _ = await run(*command, "--direct-io=on", disk)
        if code:
            # Some kernels have no direct I/O on FUSE files; then the data is cached twice.
            code, device, said = await run(*command, disk)
            if code:
                raise UnavailableError(
                    f"No loop device could be made of {disk}: {clause(said)}.",
                    hint="See `losetup --list` for devices that are no longer needed.",
                )
        (place / "device").write_text(device)
        return device

    async def _end_nbdfuse(self, place: Path) -> None:
        mount = place / "mount"
        if _is_mounted(mount):
            code, _, said = await run("fusermount3", "-u", str(mount))
            if code and _is_mounted(mount):
                raise ConflictError(
                    f"{mount} cannot be unmounted: {clause(said)}.",
                    hint="End the programs that have files open there.",
                )
        pid = int(_text(place / "pid") or 0)
        if pid and not await until(lambda: not _is_nbdfuse(pid, mount)):
            raise UnavailableError(
                f"nbdfuse (process {pid}) does not end.", hint=f"End it yourself: kill -9 {pid}"
            )
        child = _children.pop(pid, None)
        if child is not None:
            child.wait()


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a helper that outlives this process and is not hit by its terminal's Ctrl-C."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    _children[child.pid] = child
    return child


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
    child.wait()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _backing(device: str) -> str | None:
    """Return the file behind a loop device, or None when it has none."""
    return _text(Path("/sys/block") / Path(device).name / "loop" / "backing_file") or None


def _is_mounted(mount: Path) -> bool:
    """Return whether something is mounted there, also when what serves it has died."""
    escaped = str(mount).replace("\\", "\\134").replace(" ", "\\040")
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split(" ")[1] == escaped for line in lines)


def _is_nbdfuse(pid: int, mount: Path) -> bool:
    """Return whether `pid` is still the nbdfuse of `mount`: ids are used again by others."""
    child = _children.get(pid)
    if child is not None:
        return child.poll() is None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return os.fsencode(mount) in command  # A zombie's is empty.
