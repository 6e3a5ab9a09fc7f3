"""Our host against the kernel's own target: what another implementation makes of our bytes.

Needs root, the module nvmet-tcp and losetup; `make guest` boots a kernel that has them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from plugins.transport_nvmeof.tests.test_authentication import text_of

from holdfast.units import MIB
from holdfast_transport_nvmeof.commands import IoOpcode
from holdfast_transport_nvmeof.controller import Feature
from holdfast_transport_nvmeof.dhchap import Secret
from holdfast_transport_nvmeof.fabrics import DISCOVERY_NQN
from holdfast_transport_nvmeof.identify import Cns
from holdfast_transport_nvmeof.initiator import NvmeTcpHost
from holdfast_transport_nvmeof.kernel import steps
from holdfast_transport_nvmeof.kernel.target import (
    CONFIGFS,
    Export,
    Port,
    found_target,
    plan_target,
)
from holdfast_transport_nvmeof.logpages import LogPage
from holdfast_transport_nvmeof.status import NvmeStatusError, Status

SIZE = 32 * MIB
PREFIX = "nqn.2026-11.io.holdfast.test"
NQN, HOST = f"{PREFIX}:nvmet", f"{PREFIX}:host"
PORT = Port("tcp", "127.0.0.1", "4477")
DEADLINE_S = 120.0
pytestmark = [
    pytest.mark.alone,
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="exporting a device needs root"),
    pytest.mark.skipif(not Path(CONFIGFS).exists(), reason="the module nvmet is not loaded"),
    pytest.mark.skipif(shutil.which("losetup") is None, reason="needs losetup"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def export(*devices: str) -> None:
    """Have nvmet export the devices, or nothing of ours."""
    wanted = [
        Export(NQN, each, str(uuid.uuid5(uuid.NAMESPACE_DNS, NQN)), HOST, (PORT,))
        for each in devices
    ]
    plan = plan_target(wanted, found_target(), prefix=PREFIX, host_prefix=PREFIX)
    await steps.carry_out(plan)


@asynccontextmanager
async def exported() -> AsyncIterator[str]:
    """Give a device that nvmet exports."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(SIZE)
        found = subprocess.run(  # noqa: ASYNC221 - the test is all that runs.
            ["losetup", "-f", "--show", f"/proc/{os.getpid()}/fd/{file.fileno()}"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        device = found.stdout.strip()
        try:
            await export(device)
            with anyio.fail_after(DEADLINE_S):
                yield device
        finally:
            await export()
            subprocess.run(["losetup", "-d", device], check=True)  # noqa: ASYNC221 - as above.


@asynccontextmanager
async def connected(**options: object) -> AsyncIterator[NvmeTcpHost]:
    host = await NvmeTcpHost.connect(
        *(PORT.traddr, int(PORT.trsvcid), str(options.pop("nqn", NQN))),
        host=HOST,
        **options,  # type: ignore[arg-type]
    )
    try:
        yield host
    finally:
        await host.aclose()


@pytest.mark.parametrize("digests", [0, 1, 2, 3])
@pytest.mark.parametrize("flow_control", [False, True])
async def test_every_command_does_what_it_says(*, digests: int, flow_control: bool) -> None:
    async with (
        exported(),
        connected(queues=2, digests=digests, sq_flow_control=flow_control) as host,
    ):
        assert host.queues[0].queue.digests == digests
        page = await host.identify(Cns.CONTROLLER)
        assert page[768:].startswith(NQN.encode() + b"\0")
        space = await host.identify(Cns.NAMESPACE, nsid=1)
        assert struct.unpack_from("<Q", space)[0] == SIZE // 512
        assert (await host.identify(Cns.ACTIVE_NAMESPACES))[:8] == b"\1\0\0\0\0\0\0\0"
        assert await host.get_feature(Feature.KEEP_ALIVE_TIMER) == 5000
        await host.log_page(LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 52)
        data = os.urandom(3 * MIB)
        await host.write(MIB, data)
        await host.write(8192, data[:4096], fua=True)
        await host.flush()
        assert await host.read(MIB, len(data)) == data
        assert await host.read(8192, 4096) == data[:4096]
        await host.write_zeroes(MIB, MIB)
        await host.deallocate([(2 * MIB, MIB), (3 * MIB, 512 * 1024)])
        await host.flush()
        assert await host.read(MIB, len(data)) == bytes(2 * MIB + 512 * 1024) + data[-512 * 1024 :]
        with pytest.raises(NvmeStatusError) as caught:
            await host.read(SIZE, 512)
        # What ours would say; the kernel has no better word for a block device.
        assert caught.value.status in {Status.LBA_OUT_OF_RANGE, Status.INTERNAL_ERROR}
        compared = host.compare(8192, data[:4096])
        if struct.unpack_from("<H", page, 520)[0] & 1:
            await compared
        else:
            with pytest.raises(NvmeStatusError, match="INVALID_COMMAND_OPCODE"):
                await compared


async def test_reservations_work_as_far_as_there_are_any() -> None:
    async with exported(), connected() as host:
        (oncs,) = struct.unpack_from("<H", await host.identify(Cns.CONTROLLER), 520)
        register = host.reserve(
            IoOpcode.RESERVATION_REGISTER, cdw10=0, keys=struct.pack("<QQ", 0, 42)
        )
        if oncs >> 5 & 1:
            await register
            report = await host.reserve(
                IoOpcode.RESERVATION_REPORT, cdw10=1023, cdw11=1, reads=4096
            )
            assert struct.unpack_from("<IBH", report)[2] == 1
        else:
            with pytest.raises(NvmeStatusError, match="INVALID_COMMAND_OPCODE"):
                await register


async def test_the_target_tells_where_its_volumes_are() -> None:
    async with exported(), connected(nqn=DISCOVERY_NQN) as host:
        assert NQN in {entry.nqn for entry in await host.discover()}


async def test_a_target_that_comes_back_is_found_and_what_waited_is_done() -> None:
    async with exported() as device, connected(queues=2, reconnect_s=DEADLINE_S) as host:
        await host.write(0, b"1" * MIB)
        await export()
        writing = asyncio.ensure_future(host.write(MIB, b"2" * MIB))
        await asyncio.wait([writing], timeout=0.3)
        assert not writing.done()
        await export(device)
        await writing
        assert await host.read(0, 2 * MIB) == b"1" * MIB + b"2" * MIB
        assert len(host.queues) == 2


async def test_a_host_that_keeps_silent_is_sent_away() -> None:
    async with exported(), connected(kato_ms=1000) as host:
        await host.read(0, 512)
        for task in list(host._tasks):
            task.cancel()
        await host.admin.closed.wait()
        with pytest.raises(ConnectionError):
            await host.read(0, 512)


@pytest.mark.parametrize("group", ["null", "ffdhe2048", "ffdhe4096"])
@pytest.mark.parametrize("kind", ["sha256", "sha512"])
async def test_both_ends_authenticate(group: str, kind: str) -> None:
    secret, own = (text_of(bytes([n]) * 32, "01") for n in range(2))
    async with exported():
        home = Path(CONFIGFS, "hosts", HOST)
        for name, value in (
            *(("dhchap_hash", f"hmac({kind})"), ("dhchap_dhgroup", group)),
            *(("dhchap_key", secret), ("dhchap_ctrl_key", own)),
        ):
            (home / name).write_text(value)
        keys = (Secret.parse(secret), Secret.parse(own))
        async with connected(queues=2, secret=keys[0], controller_secret=keys[1]) as host:
            await host.write(0, b"a" * 4096)
        async with connected(secret=keys[0]) as host:
            assert await host.read(0, 4096) == b"a" * 4096
        for wrong in ((None, None), (keys[1], None), (keys[0], keys[0])):
            # The kernel may close the connection before it has sent why.
            with pytest.raises(Exception, match=r"(?i)authentication|own secret"):
                async with connected(secret=wrong[0], controller_secret=wrong[1]):
                    pass
