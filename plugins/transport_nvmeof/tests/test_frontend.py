"""The frontend over real sockets: discovery, paths, silence, takeovers, hostile hosts."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from plugins.transport_nvmeof.tests.test_authentication import text_of

from holdfast.errors import RemoteProtocolError, UnavailableError
from holdfast.interfaces.frontend import PathState
from holdfast.messages import RequestKind
from holdfast.sockets import split_address
from holdfast.testing.memory_volume import MemoryVolumeProvider
from holdfast.units import MIB
from holdfast_transport_nvmeof import NvmeTcpFrontend, NvmeTcpFrontendDriver, NvmeTcpOptions
from holdfast_transport_nvmeof.commands import IoOpcode
from holdfast_transport_nvmeof.dhchap import Secret
from holdfast_transport_nvmeof.fabrics import DISCOVERY_NQN
from holdfast_transport_nvmeof.identify import Cns, Oaes
from holdfast_transport_nvmeof.initiator import NvmeTcpHost
from holdfast_transport_nvmeof.logpages import LogPage, Subtype
from holdfast_transport_nvmeof.namespace import AnaState, nqn_of
from holdfast_transport_nvmeof.status import ConnectStatus, NvmeStatusError, Status

pytestmark = pytest.mark.anyio
SIZE = 64 * MIB
DEADLINE_S = 20.0
HOST_ID = bytes(range(16))


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@asynccontextmanager
async def serving(
    provider: MemoryVolumeProvider, **options: object
) -> AsyncIterator[NvmeTcpFrontend]:
    options = {"listen": "127.0.0.1:0", "discovery_listen": "127.0.0.1:0", **options}
    chosen = NvmeTcpOptions(**options)  # type: ignore[arg-type]
    frontend = await NvmeTcpFrontendDriver.open(chosen, provider)
    try:
        with anyio.fail_after(DEADLINE_S):
            yield frontend
    finally:
        await frontend.aclose()
        assert not any(volume.sessions for volume in provider.volumes.values())


@asynccontextmanager
async def connected(
    frontend: NvmeTcpFrontend, nqn: str = nqn_of("db"), **options: object
) -> AsyncIterator[NvmeTcpHost]:
    where = frontend.discovery_address if nqn == DISCOVERY_NQN else frontend.address
    address, port = split_address(where)
    host = await NvmeTcpHost.connect(
        address,
        port,
        nqn,
        **{"host_id": HOST_ID, **options},  # type: ignore[arg-type]
    )
    try:
        yield host
    finally:
        await host.aclose()


def volumes(*names: str) -> MemoryVolumeProvider:
    provider = MemoryVolumeProvider()
    for name in names or ("db",):
        provider.add(name, SIZE)
    return provider


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - nobody tells.
        await anyio.sleep(0.01)


async def test_discovery_lists_volumes_at_every_node_and_tells_of_changes() -> None:
    provider = volumes("db", "logs")
    provider.others = ["192.0.2.9:4420"]
    async with (
        serving(provider, referrals=("192.0.2.50:8009",)) as frontend,
        connected(frontend, DISCOVERY_NQN) as host,
    ):
        port = split_address(frontend.address)[1]
        entries = await host.discover()
        assert {(e.nqn, e.host, e.port) for e in entries} == {
            (nqn_of("db"), "127.0.0.1", port),
            (nqn_of("db"), "192.0.2.9", 4420),
            (nqn_of("logs"), "127.0.0.1", port),
            (nqn_of("logs"), "192.0.2.9", 4420),
            (DISCOVERY_NQN, "192.0.2.50", 8009),
        }
        assert [e.subtype for e in entries].count(Subtype.REFERRAL) == 1
        await host.watch(Oaes.DISCOVERY_LOG_CHANGE)
        provider.add("new", SIZE)
        assert await host.events.get() == LogPage.DISCOVERY << 16 | 0xF002
        assert nqn_of("new") in {e.nqn for e in await host.discover()}


async def test_a_path_that_changes_is_told_and_followed() -> None:
    provider = volumes()
    async with serving(provider) as frontend, connected(frontend) as host:
        await host.watch(Oaes.ANA_CHANGE | Oaes.NAMESPACE_ATTRIBUTE)
        await host.write(0, b"1" * 512)
        for path, state in (
            (PathState.NON_OPTIMIZED, AnaState.NON_OPTIMIZED),
            (PathState.INACCESSIBLE, AnaState.INACCESSIBLE),
        ):
            provider.paths["db"] = path
            assert await host.events.get() == LogPage.ASYMMETRIC_NAMESPACE_ACCESS << 16 | 0x302
            page = await host.log_page(LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 52)
            assert page[32] == state
        with pytest.raises(NvmeStatusError) as caught:
            await host.read(0, 512)
        assert caught.value.status == Status.ASYMMETRIC_ACCESS_INACCESSIBLE
        provider.paths["db"] = PathState.OPTIMIZED
        await host.events.get()
        assert await host.read(0, 512) == b"1" * 512


async def test_growth_is_told_and_seen() -> None:
    provider = volumes()
    async with serving(provider) as frontend, connected(frontend) as host:
        await host.read(0, 512)
        await host.watch(Oaes.NAMESPACE_ATTRIBUTE)
        with pytest.raises(NvmeStatusError, match="LBA_OUT_OF_RANGE"):
            await host.write(SIZE, bytes(512))
        provider.volumes["db"].change(size_bytes=2 * SIZE)
        assert await host.events.get() == LogPage.CHANGED_NAMESPACE_LIST << 16 | 0x002
        page = await host.identify(Cns.NAMESPACE, nsid=1)
        assert struct.unpack_from("<Q", page) == (2 * SIZE // 512,)
        await host.write(SIZE, b"n" * 512)


async def test_a_silent_host_loses_its_controller() -> None:
    async with serving(volumes()) as frontend, connected(frontend, kato_ms=100) as host:
        await host.read(0, 512)
        for task in list(host._tasks):
            task.cancel()
        await host.admin.closed.wait()
        await host.queues[0].closed.wait()
        assert frontend.metrics()["controllers"] == 0


async def test_a_host_that_keeps_alive_stays() -> None:
    async with serving(volumes()) as frontend, connected(frontend, kato_ms=100) as host:
        await anyio.sleep(1.4)  # Longer than the timeout and its unit: silence would have ended it.
        assert await host.read(0, 512) == bytes(512)


async def test_commands_of_every_kind_reach_the_volume() -> None:
    provider = volumes()
    async with serving(provider) as frontend, connected(frontend, queues=3, digests=3) as host:
        volume = provider.volumes["db"]
        await host.write(0, b"c" * 3 * MIB, fua=True)
        await host.compare(0, b"c" * 3 * MIB)
        with pytest.raises(NvmeStatusError, match="COMPARE_FAILURE"):
            await host.compare(MIB, b"c" * 512 + b"d" * 512)
        await host.write_zeroes(0, MIB, fua=True)
        await host.deallocate([(MIB, MIB), (2 * MIB, MIB)])
        await host.flush()
        assert volume.read(0, 3 * MIB) == bytes(3 * MIB)
        kinds = (RequestKind.ZERO, RequestKind.DISCARD, RequestKind.FLUSH)
        assert [volume.served[kind] for kind in kinds] == [1, 2, 1]
        await host.disconnect_queue(0)
        assert await host.read(0, 512) == bytes(512)


async def test_a_session_is_opened_by_the_first_command_and_not_by_connecting() -> None:
    provider = volumes()
    async with serving(provider) as frontend, connected(frontend) as host:
        assert provider.volumes["db"].opened == 0
        await asyncio.gather(*(host.read(0, 512) for _ in range(10)))
        assert provider.volumes["db"].opened == 1


async def test_another_host_is_a_reservation_conflict_until_the_first_one_leaves() -> None:
    async with serving(volumes()) as frontend, connected(frontend) as first:
        await first.write(0, b"1" * 512)
        async with connected(frontend, host_id=bytes(16)) as other:
            with pytest.raises(NvmeStatusError) as caught:
                await other.read(0, 512)
            assert caught.value.status == Status.RESERVATION_CONFLICT
            assert caught.value.errno == errno.EBUSY


async def test_a_takeover_is_a_fault_of_this_path_and_ends_the_connections() -> None:
    provider = volumes()
    async with serving(provider) as frontend, connected(frontend) as host:
        volume = provider.volumes["db"]
        await host.read(0, 512)
        volume.hold()
        writing = asyncio.ensure_future(host.write(0, bytes(512)))
        await until(lambda: volume.served[RequestKind.WRITE] == 1)
        session = volume.sessions[0]
        session._replies = [reply._replace(errno=errno.EIO) for reply in session._replies]
        volume.end_sessions("Another session took volume db over.")
        with pytest.raises(NvmeStatusError) as caught:
            await writing
        assert caught.value.status == Status.ASYMMETRIC_ACCESS_INACCESSIBLE
        await host.admin.closed.wait()


async def test_who_may_connect_is_said_in_the_refusal() -> None:
    provider = volumes()
    async with serving(provider, allowed_hosts=("nqn.good",), queues_max=2) as frontend:
        with pytest.raises(NvmeStatusError, match="CONNECT_INVALID_HOST"):
            async with connected(frontend):
                pass
        async with connected(frontend, host="nqn.good", queues=8) as host:
            assert len(host.queues) == 2
        for nqn in (nqn_of("nothing"), "nqn.2014-08.org.example:db"):
            with pytest.raises(NvmeStatusError) as caught:
                async with connected(frontend, nqn, host="nqn.good"):
                    pass
            assert caught.value.status == ConnectStatus.CONNECT_INVALID_PARAMETERS


async def test_hosts_authenticate_where_there_is_a_file_of_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, own, wrong = (Secret(bytes([n]) * 32) for n in range(3))
    path = tmp_path / "secrets"
    path.touch(mode=0o600)
    nqn = "nqn.2014-08.org.example:host"
    path.write_text(f"{nqn} {text_of(known.key)} {text_of(own.key)}\n")
    as_known: dict[str, Any] = {"host": nqn, "secret": known, "controller_secret": own}
    async with serving(volumes(), dhchap_file=str(path)) as frontend:
        for digests in (0, 3):
            async with connected(frontend, queues=2, digests=digests, **as_known) as host:
                await host.write(0, b"a" * 4096)
                assert await host.read(0, 4096) == b"a" * 4096
        async with connected(frontend, DISCOVERY_NQN, host=nqn) as host:
            assert len(await host.discover()) == 1, "a known name is enough to be told"
        with pytest.raises(NvmeStatusError, match="CONNECT_INVALID_HOST"):
            async with connected(frontend, DISCOVERY_NQN):
                pass
        refused: list[tuple[dict[str, Any], str]] = [
            ({"secret": None}, "AUTHENTICATION_REQUIRED"),
            ({"host": "nqn.2014-08.org.example:other"}, "CONNECT_INVALID_HOST"),
            ({"secret": wrong}, "AUTHENTICATION_FAILED"),
            ({"controller_secret": wrong}, "does not know its own secret"),
        ]
        for change, why in refused:
            with pytest.raises((NvmeStatusError, RemoteProtocolError), match=why):
                async with connected(frontend, **{**as_known, **change}):
                    pass
        await until(lambda: frontend.metrics()["connections"] == 0)
        assert "did not authenticate: AUTHENTICATION_FAILED" in caplog.text
        path.write_text(f"{nqn} {text_of(wrong.key)}\n")
        async with connected(frontend, host=nqn, secret=wrong) as host:
            assert await host.read(0, 512) == b"a" * 512
        path.chmod(0o644)
        with pytest.raises(NvmeStatusError, match="CONNECT_CONTROLLER_BUSY"):
            async with connected(frontend, host=nqn, secret=wrong):
                pass
        assert "may be read by others" in caplog.text
    for secret in (known, own, wrong):
        assert text_of(secret.key)[12:40] not in caplog.text


async def test_a_host_that_reconnects_goes_on_where_it_was() -> None:
    provider = volumes()
    options: dict[str, Any] = {"queues": 2, "reconnect_s": DEADLINE_S}
    async with serving(provider) as first, connected(first, **options) as host:
        await host.write(0, b"1" * 4096)
        provider.volumes["db"].hold()
        writing = asyncio.ensure_future(host.write(4096, b"2" * 4096))
        await until(lambda: provider.volumes["db"].served[RequestKind.WRITE] == 2)
        await first.aclose()
        provider.volumes["db"].release()
        async with serving(provider, listen=first.address):
            await writing
            assert await host.read(0, 8192) == b"1" * 4096 + b"2" * 4096
            with pytest.raises(NvmeStatusError, match="LBA_OUT_OF_RANGE"):
                await host.read(SIZE, 512)
            assert len(host.queues) == 2


async def test_a_silent_controller_is_given_up() -> None:
    async with serving(volumes()) as frontend, connected(frontend, kato_ms=200) as host:
        (connection,) = (c for c in frontend._connections if c.queue.io is None)
        connection._transport.pause_reading()
        await host.admin.closed.wait()
        with pytest.raises(ConnectionError):
            await host.read(0, 512)


async def test_reservations_are_offered_when_switched_on() -> None:
    keys = struct.pack("<QQ", 0, 42)
    async with serving(volumes()) as frontend, connected(frontend) as host:
        with pytest.raises(NvmeStatusError, match="INVALID_COMMAND_OPCODE"):
            await host.reserve(IoOpcode.RESERVATION_REGISTER, cdw10=0, keys=keys)
    async with serving(volumes(), reservations=True) as frontend, connected(frontend) as host:
        await host.reserve(IoOpcode.RESERVATION_REGISTER, cdw10=0, keys=keys)
        await host.reserve(
            IoOpcode.RESERVATION_ACQUIRE, cdw10=1 << 8, keys=struct.pack("<QQ", 42, 0)
        )
        await host.write(0, b"r" * 512)
        report = await host.reserve(IoOpcode.RESERVATION_REPORT, cdw10=1023, cdw11=1, reads=4096)
        assert struct.unpack_from("<IBH", report) == (1, 1, 1)


async def test_reservations_are_refused_where_other_nodes_would_not_know_of_them() -> None:
    provider = volumes()
    keys = struct.pack("<QQ", 0, 42)
    async with serving(provider, reservations=True) as frontend, connected(frontend) as host:
        await host.reserve(IoOpcode.RESERVATION_REGISTER, cdw10=0, keys=keys)
        provider.others = ["127.0.0.1:4421"]
        with pytest.raises(NvmeStatusError, match="INVALID_COMMAND_OPCODE"):
            await host.reserve(IoOpcode.RESERVATION_REGISTER, cdw10=0, keys=keys)
        async with connected(frontend, host_id=bytes(16)) as other:
            (oncs,) = struct.unpack_from("<H", await other.identify(Cns.CONTROLLER), 520)
            assert not oncs >> 5 & 1


async def test_what_is_under_way_when_a_path_is_lost_is_given_back_to_the_host() -> None:
    provider = volumes()
    async with serving(provider) as frontend, connected(frontend) as host:
        volume = provider.volumes["db"]
        await host.read(0, 512)
        volume.hold()
        writing = asyncio.ensure_future(host.write(0, bytes(512)))
        await until(lambda: volume.served[RequestKind.WRITE] == 1)
        provider.paths["db"] = PathState.INACCESSIBLE
        with pytest.raises(ConnectionResetError):
            await writing
        await until(lambda: not volume.sessions)


async def test_a_hostile_host_is_told_why_and_disconnected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(volumes()) as frontend:
        reader, writer = await asyncio.open_connection(*split_address(frontend.address))
        with caplog.at_level(logging.WARNING, "holdfast.nvme_tcp"):
            writer.write(struct.pack("<BBBBI", 0, 0, 128, 0, 1 << 31) + bytes(500))
            term = await reader.readexactly(24)
            assert (term[0], term[8], term[10]) == (3, 1, 4)
        assert "PLEN" in caplog.text
        assert "is terminated" in caplog.text
        writer.close()
        await writer.wait_closed()
        await until(lambda: frontend.metrics()["connections"] == 0)
        async with connected(frontend) as host:
            assert await host.read(0, 512) == bytes(512)


async def test_commands_that_fail_are_told_of_in_the_log_but_do_not_fill_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "holdfast.nvme_tcp")
    async with serving(volumes()) as frontend:
        async with connected(frontend) as host:
            await host.write(0, b"a" * 512)
            for _ in range(50):
                with pytest.raises(NvmeStatusError, match="LBA_OUT_OF_RANGE"):
                    await host.write(SIZE, b"b" * 512)
            assert await host.read(0, 512) == b"a" * 512
        await until(lambda: frontend.metrics()["connections"] == 0)
        told = [line for line in caplog.messages if "LBA_OUT_OF_RANGE" in line]
        assert 1 <= len(told) < 50
        assert sum(int(re.findall(r"(\d+) command", line)[0]) for line in told) == 50
        assert frontend.metrics()["errors_total"] == 50


async def test_who_connects_no_queue_is_sent_away() -> None:
    async with serving(volumes(), connect_timeout_s=0.05) as frontend:
        reader, writer = await asyncio.open_connection(*split_address(frontend.address))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_an_address_in_use_is_named() -> None:
    async with serving(volumes()) as frontend:
        with pytest.raises(UnavailableError, match=frontend.address):
            await NvmeTcpFrontendDriver.open(
                NvmeTcpOptions(listen=frontend.address, discovery_listen=""), volumes()
            )


async def test_a_session_that_answers_at_once_is_as_good() -> None:
    provider = volumes()
    provider.answers_at_once = True
    async with serving(provider) as frontend, connected(frontend, queues=2) as host:
        await asyncio.gather(*(host.write(n * 4096, bytes([n]) * 4096) for n in range(200)))
        await host.discard(32 * MIB, 32 * MIB)
        got = await asyncio.gather(*(host.read(n * 4096, 4096) for n in range(200)))
        assert got == [bytes([n]) * 4096 for n in range(200)]
