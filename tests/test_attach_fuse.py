"""A real block device over nbdfuse and the loop driver, with a real file system on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from holdfast.errors import ConflictError, UnavailableError
from holdfast.local import attach_fuse
from holdfast.local.attach_fuse import FuseAttach
from holdfast.messages import RequestKind
from holdfast.node.nbd import NbdFrontendDriver, NbdOptions
from holdfast.testing.memory_volume import MemoryVolume, MemoryVolumeProvider

pytestmark = [pytest.mark.anyio, pytest.mark.alone]
DEADLINE_S = 60.0
SIZE = 64 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _needs_fuse() -> None:
    lacking = FuseAttach().unavailable()
    if lacking is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(lacking)
        pytest.skip(lacking)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[MemoryVolume, str]]:
    """Serve one volume and yield it with its URI."""
    provider = MemoryVolumeProvider()
    volume = provider.add("db", SIZE)
    frontend = await NbdFrontendDriver.open(NbdOptions(listen="127.0.0.1:0"), provider)
    try:
        with anyio.fail_after(DEADLINE_S):
            yield volume, frontend.uri("db", "127.0.0.1")
    finally:
        await frontend.aclose()


async def run(*command: str, ok: bool = True) -> str:
    done = await anyio.run_process(command, check=False)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return (done.stdout + done.stderr).decode()


def device_read(device: str, length: int) -> bytes:
    with Path(device).open("rb") as file:
        return file.read(length)


async def test_a_file_system_lives_on_the_device(tmp_path: Path) -> None:
    attach, directory, mount = FuseAttach(), str(tmp_path / "a"), tmp_path / "mount"
    mount.mkdir()
    async with serving() as (volume, uri):
        device = await attach.attach(uri, directory)
        try:
            assert int(await run("lsblk", "-bno", "SIZE", device)) == SIZE
            assert await run("losetup", "-nO", "DIO", device) == "  1\n"
            await run("mkfs.ext4", "-q", device)
            await run("mount", device, str(mount))
            try:
                flushed = volume.served[RequestKind.FLUSH]
                await run(
                    *("dd", "if=/dev/urandom", f"of={mount}/file", "bs=1M", "count=16"),
                    "conv=fsync",
                )
                assert volume.served[RequestKind.FLUSH] > flushed
                await run("cp", f"{mount}/file", f"{mount}/again")
                await run("rm", f"{mount}/file")
                await run("sync", "-f", str(mount))
                discarded = volume.served[RequestKind.DISCARD]
                await run("fstrim", "-v", str(mount))
                assert volume.served[RequestKind.DISCARD] > discarded
                digest = await run("md5sum", f"{mount}/again")
            finally:
                await run("umount", str(mount))
            await run("fsck.ext4", "-fn", device)
        finally:
            await attach.detach(directory)
        assert not any((tmp_path / "a").iterdir())
        # Attached anew, by a driver that remembers nothing, it is all still there.
        device = await attach.attach(uri, directory, read_only=True)
        try:
            await run("mount", "-o", "ro,noload", device, str(mount))
            assert await run("md5sum", f"{mount}/again") == digest
            await run("umount", str(mount))
            await run("dd", "if=/dev/zero", f"of={device}", "bs=4k", "count=1", ok=False)
        finally:
            await attach.detach(directory)


async def _reap(child: subprocess.Popen[bytes]) -> None:
    await anyio.to_thread.run_sync(child.wait)


async def test_another_process_detaches(tmp_path: Path) -> None:
    directory = str(tmp_path / "a b")
    async with serving() as (volume, uri):
        device = await FuseAttach().attach(uri, directory)
        pid = int((tmp_path / "a b" / "pid").read_text())
        await run("dd", "if=/dev/urandom", f"of={device}", "bs=64k", "count=2")
        child = attach_fuse._children.pop(pid)  # As if another process had attached.
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                # Whoever started nbdfuse reaps it; in life that is init.
                group.start_soon(_reap, child)
                await FuseAttach().detach(directory)
        assert volume.read(0, 65536) != bytes(65536)
        await FuseAttach().detach(directory)


async def test_a_device_in_use_is_not_torn_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach_fuse, "DETACH_DEADLINE_S", 0.2)
    directory = str(tmp_path / "a")
    async with serving() as (_, uri):
        device = await FuseAttach().attach(uri, directory)
        with pytest.raises(ConflictError, match="already holds"):
            await FuseAttach().attach(uri, directory)
        holder = await anyio.to_thread.run_sync(Path(device).open, "rb")
        try:
            with pytest.raises(ConflictError, match=f"{device} is still in use"):
                await FuseAttach().detach(directory)
        finally:
            holder.close()
        await FuseAttach().detach(directory)


async def test_an_export_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with serving() as (_, uri):
        with pytest.raises(UnavailableError, match=r"nbdfuse cannot serve .*/nix"):
            await FuseAttach().attach(uri.replace("/db", "/nix"), str(tmp_path / "a"))
        assert list((tmp_path / "a").iterdir()) == []


async def test_what_died_is_cleared_away(tmp_path: Path) -> None:
    directory = str(tmp_path / "a")
    async with serving() as (_, uri):
        await FuseAttach().attach(uri, directory)
        attach_fuse._children[int((tmp_path / "a" / "pid").read_text())].kill()
        await FuseAttach().detach(directory)
        assert list((tmp_path / "a").iterdir()) == []


def test_missing_tools_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    said = FuseAttach().unavailable()
    assert said is not None
    assert "nbdfuse" in said
    assert "apt install" in said
    assert "libnbd-bin" in said
