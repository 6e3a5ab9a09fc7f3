"""Attach a volume as /dev/nbdN with the kernel's own NBD client, where the kernel has one.

    DIRECTORY/uri      what is attached
    DIRECTORY/device   the device

Source: nbd-client(8).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from holdfast.errors import ConflictError, UnavailableError, UsageError
from holdfast.local.commands import clause, missing_tools, run, until

CONNECTIONS = 2
"""Per device; one connection is served by one core, and two keep a node's core busy."""
_TOOLS = {"nbd-client": "nbd-client", "blockdev": "util-linux"}
_PORT = 10809
"""What a URI without a port means (IANA)."""


class NbdAttach:
    """The entry point `nbd` of `holdfast.attach`."""

    API_VERSION: ClassVar[int] = 1
    name: ClassVar[str] = "nbd"

    def unavailable(self) -> str | None:
        """Return what this machine lacks and how to get it, or None when it can attach."""
        missing = missing_tools(_TOOLS)
        if missing:
            return missing
        if not Path("/dev/nbd0").exists():
            return "There is no /dev/nbd0; load the module with: modprobe nbd"
        if os.geteuid() != 0:
            return "Setting up /dev/nbd0 needs root; run the command with sudo."
        return None

    async def attach(self, uri: str, directory: str, *, read_only: bool = False) -> str:
        """Return the path of an NBD device that reads and writes `uri`.

        Args:
            uri: `nbd://HOST[:PORT]/NAME`.
            directory: An empty directory, made if it is missing.
            read_only: Whether writes are refused.

        Raises:
            ConflictError: Something is attached in the directory.
            UsageError: The URI is not one that nbd-client can use.
            UnavailableError: The machine lacks something, every device is taken, or the export
                cannot be had; says which.
        """
        lacking = self.unavailable()
        if lacking is not None:
            raise UnavailableError(f"This machine cannot attach over kernel NBD: {lacking}")
        host, port, export = _parts_of(uri)
        place = Path(directory)
        if (place / "uri").exists():
            raise ConflictError(
                f"{directory} already holds an attachment of {(place / 'uri').read_text()}.",
                hint="Detach it first.",
            )
        place.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a local directory, once.
        options = ["-N", export, "-b", "512", "-C", str(CONNECTIONS)]
        options += ["-readonly"] if read_only else []
        said = "all devices are in use"
        for device in _free_devices():
            code, output, said = await run("nbd-client", host, str(port), device, *options)
            if not code:
                (place / "device").write_text(device)
                (place / "uri").write_text(uri)
                return device
            said = said or output
            if _size(device) == 0:
                break  # The server said no; another device would hear the same.
        raise UnavailableError(
            f"nbd-client cannot attach {uri}: {clause(said)}.",
            hint="See whether `nbdinfo` can reach that URI.",
        )

    async def detach(self, directory: str) -> None:
        """Flush, disconnect the device, and empty the directory. Idempotent.

        Raises:
            ConflictError: The device is still in use, such as mounted.
        """
        place = Path(directory)
        if not (place / "uri").exists():
            return
        device = (place / "device").read_text()
        if _size(device) > 0:
            if _is_mounted(device):
                raise ConflictError(
                    f"{device} is mounted.", hint=f"Unmount it, then detach: umount {device}"
                )
            await run("blockdev", "--flushbufs", device)
            code, _, said = await run("nbd-client", "-d", device)
            if code:
                raise UnavailableError(f"nbd-client cannot disconnect {device}: {clause(said)}.")
            await until(lambda: _size(device) == 0)
        for name in ("device", "uri"):
            (place / name).unlink(missing_ok=True)


def _parts_of(uri: str) -> tuple[str, int, str]:
    """Return host, port and export name; raises `UsageError`."""
    parts = urlsplit(uri)
    if parts.scheme != "nbd" or not parts.hostname:
        raise UsageError(f"{uri} is no URI of an NBD export.", hint="Write nbd://HOST:PORT/NAME.")
    return parts.hostname, parts.port or _PORT, unquote(parts.path.removeprefix("/"))


def _size(device: str) -> int:
    """Return a device's size in sectors; 0 when nothing is attached to it."""
    try:
        return int((Path("/sys/block") / Path(device).name / "size").read_text())
    except (OSError, ValueError):
        return 0


def _is_mounted(device: str) -> bool:
    return device in Path("/proc/self/mounts").read_text().split()


def _free_devices() -> list[str]:
    """Return the NBD devices that nobody uses, lowest number first."""
    names = sorted((p.name for p in Path("/sys/block").glob("nbd*")), key=lambda n: int(n[3:]))
    return [
        f"/dev/{name}"
        for name in names
        if not (Path("/sys/block") / name / "pid").exists() and _size(name) == 0
    ]
