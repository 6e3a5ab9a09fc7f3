"""A stock Linux kernel against our target: what `nvme connect` and a file system need.

Runs where the kernel's NVMe/TCP host is: as root, with the module nvme-tcp loaded, nvme-cli and xfsprogs
installed; elsewhere it is skipped. `pytest plugins/transport_nvmeof/tests/test_kernel.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from plugins.transport_nvmeof.tests.test_authentication import text_of

from holdfast.messages import RequestKind
from holdfast.sockets import split_address
from holdfast.testing.memory_volume import MemoryVolume, MemoryVolumeProvider
from holdfast.units import MIB
from holdfast_transport_nvmeof import NvmeTcpFrontend, NvmeTcpFrontendDriver, NvmeTcpOptions
from holdfast_transport_nvmeof.namespace import nqn_of

TOOLS = ("nvme", "mkfs.xfs", "xfs_repair", "fstrim", "blkdiscard", "mount", "umount")
DEADLINE_S = 60.0
SIZE = 400 * MIB
"""More than the 300 MiB that mkfs.xfs wants at least."""
HOST_ID = str(uuid.uuid4())
HOST = ("--hostnqn", f"nqn.2014-08.org.nvmexpress:uuid:{HOST_ID}", "--hostid", HOST_ID)
pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="attaching a device needs root"),
    pytest.mark.skipif(
        not Path("/dev/nvme-fabrics").exists(), reason="the module nvme-tcp is not loaded"
    ),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
    ),
]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def until(found: Callable[[], Path | None], what: str) -> Path:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        path = found()
        if path is not None:
            return path
        time.sleep(0.05)
    raise AssertionError(f"{what} did not appear")


@contextmanager
def serving(**options: object) -> Iterator[tuple[NvmeTcpFrontend, MemoryVolume]]:
    """Serve one volume from a thread of its own: the test waits for the kernel."""
    provider = MemoryVolumeProvider()
    volume = provider.add("kernel", SIZE)
    options = {"listen": "127.0.0.1:0", "discovery_listen": "127.0.0.1:0", **options}
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opening = NvmeTcpFrontendDriver.open(NvmeTcpOptions(**options), provider)  # type: ignore[arg-type]
    frontend = asyncio.run_coroutine_threadsafe(opening, loop).result(DEADLINE_S)
    try:
        yield frontend, volume
    finally:
        asyncio.run_coroutine_threadsafe(frontend.aclose(), loop).result(DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def target() -> Iterator[tuple[NvmeTcpFrontend, MemoryVolume]]:
    with serving() as served:
        yield served


@contextmanager
def attached(frontend: NvmeTcpFrontend, *options: str) -> Iterator[str]:
    """Give the block device of the volume."""
    host, port = split_address(frontend.address)
    nqn = nqn_of("kernel")
    run("nvme", "connect", "-t", "tcp", "-a", host, "-s", str(port), "-n", nqn, *HOST, *options)
    try:
        yield f"/dev/{until(lambda: _namespace(nqn), 'the device').name}"
    finally:
        run("nvme", "disconnect", "-n", nqn)


def _namespace(nqn: str) -> Path | None:
    for subsystem in Path("/sys/class/nvme-subsystem").glob("*"):
        if (subsystem / "subsysnqn").read_text().strip() == nqn:
            for found in subsystem.glob("nvme*n*"):
                if Path("/dev", found.name).exists():
                    return found
    return None


def test_discovery_lists_the_volume(target: tuple[NvmeTcpFrontend, MemoryVolume]) -> None:
    frontend, _ = target
    host, port = split_address(frontend.discovery_address)
    listed = run("nvme", "discover", "-t", "tcp", "-a", host, "-s", str(port), *HOST)
    assert nqn_of("kernel") in listed
    assert f"trsvcid: {split_address(frontend.address)[1]}" in listed


@pytest.mark.parametrize("digests", [(), ("--hdr-digest", "--data-digest")], ids=["bare", "both"])
def test_a_file_system_lives_on_it(
    target: tuple[NvmeTcpFrontend, MemoryVolume], digests: tuple[str, ...], tmp_path: Path
) -> None:
    frontend, volume = target
    with attached(frontend, "--nr-io-queues", "4", *digests) as device:
        run("mkfs.xfs", "-q", "-f", device)
        run("mount", device, str(tmp_path))
        try:
            data = os.urandom(16 * MIB)
            file = tmp_path / "file"
            file.write_bytes(data)
            os.sync()
            assert data[: 64 * 1024] in volume.read(0, SIZE)
            file.unlink()
            run("fstrim", str(tmp_path))
        finally:
            run("umount", str(tmp_path))
        run("xfs_repair", "-n", device)
        run("blkdiscard", "-f", device)
        assert not any(volume.read(0, MIB))


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs fio")
def test_fio_finds_what_it_wrote(target: tuple[NvmeTcpFrontend, MemoryVolume]) -> None:
    frontend, _ = target
    with attached(frontend, "--nr-io-queues", "4", "--hdr-digest", "--data-digest") as device:
        run(
            "fio", "--name=verify", f"--filename={device}", "--rw=randwrite", "--size=32M",
            "--bs=16k", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--verify=crc32c",
            "--verify_fatal=1", "--verify_state_save=0",
        )  # fmt: skip


def test_nvme_cli_reads_what_a_controller_tells_and_its_commands_do_what_they_say(
    target: tuple[NvmeTcpFrontend, MemoryVolume], tmp_path: Path
) -> None:
    frontend, volume = target
    with attached(frontend) as device:
        told = json.loads(run("nvme", "id-ctrl", device, "-o", "json"))
        space = json.loads(run("nvme", "id-ns", device, "-o", "json"))
        assert (told["subnqn"], space["nsze"] * 512) == (nqn_of("kernel"), SIZE)
        assert space["nguid"] in run("nvme", "ns-descs", device).replace("-", "")
        for log in ("error", "fw", "changed-ns-list", "effects", "ana", "smart"):
            run("nvme", f"{log}-log", device)
        assert "Asymmetric" in run("nvme", "supported-log-pages", device)
        data = tmp_path / "data"
        data.write_bytes(os.urandom(4096))
        run("dd", f"if={data}", f"of={device}", "bs=4k", "count=1", "oflag=direct")
        run("nvme", "flush", device)
        compare = ("nvme", "compare", device, "-s", "0", "-c", "7", "-z", "4096", "-d", str(data))
        run(*compare)
        run("nvme", "write-zeroes", device, "-s", "0", "-c", "0")
        run("nvme", "dsm", device, "--ad", "-s", "4", "-b", "4")
        assert volume.read(0, 4096) == bytes(512) + data.read_bytes()[512:2048] + bytes(2048)
        with pytest.raises(AssertionError, match=r"(?i)compare"):
            run(*compare)
        assert json.loads(run("nvme", "error-log", device, "-e", "1", "-o", "json"))["errors"][0]


def test_a_stock_host_reserves_a_volume_where_that_is_switched_on() -> None:
    with serving(reservations=True) as (frontend, _), attached(frontend) as device:
        run("nvme", "resv-register", device, "--nrkey=42", "--rrega=0")
        run("nvme", "resv-acquire", device, "--crkey=42", "--rtype=1", "--racqa=0")
        report = json.loads(run("nvme", "resv-report", device, "--eds", "-o", "json"))
        assert (report["rtype"], report["regctl"]) == (1, 1)
        run("nvme", "resv-release", device, "--crkey=42", "--rtype=1", "--rrela=0")
        run("nvme", "resv-register", device, "--crkey=42", "--rrega=1")
        report = json.loads(run("nvme", "resv-report", device, "--eds", "-o", "json"))
        assert (report["rtype"], report["regctl"]) == (0, 0)


@pytest.mark.parametrize("kind", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("group", ["null", "ffdhe2048", "ffdhe3072", "ffdhe8192"])
def test_the_kernel_and_a_volume_authenticate_each_other(
    kind: str, group: str, tmp_path: Path
) -> None:
    host, own = (text_of(bytes([n]) * 48, "02") for n in range(2))
    secrets = tmp_path / "secrets"
    secrets.touch(mode=0o600)
    secrets.write_text(f"{HOST[1]} {host} {own}\n")
    chosen = {"dhchap_hashes": (kind,), "dhchap_groups": (group,)}
    with serving(dhchap_file=str(secrets), **chosen) as (frontend, volume):
        with attached(frontend, "-S", host, "-C", own, "--nr-io-queues", "2") as device:
            run("dd", "if=/dev/zero", f"of={device}", "bs=64k", "count=4", "oflag=direct")
            assert volume.served[RequestKind.WRITE]
        if (kind, group) != ("sha256", "ffdhe2048"):
            return
        address, port = split_address(frontend.discovery_address)
        where = ("-t", "tcp", "-a", address, "-s", str(port), *HOST)
        assert nqn_of("kernel") in run("nvme", "discover", *where)
        for secrets_given in ((), ("-S", own), ("-S", host, "-C", host)):
            with pytest.raises(AssertionError), attached(frontend, *secrets_given):
                pass
