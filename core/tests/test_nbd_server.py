"""The frontend over real sockets, with a client that can misbehave as no proper one would."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from holdfast.errors import ConflictError, UnavailableError
from holdfast.interfaces.frontend import SessionHandler
from holdfast.messages import RequestKind
from holdfast.model import Access
from holdfast.node.nbd import NbdFrontend, NbdFrontendDriver, NbdOptions
from holdfast.node.nbd.protocol import (
    IHAVEOPT,
    NBD_REQUEST_MAGIC,
    OPTION,
    OPTION_REPLY,
    REQUEST,
    Command,
    Errno,
    Option,
    Rep,
    TransmissionFlag,
)
from holdfast.sockets import split_address
from holdfast.testing.memory_volume import MemorySession, MemoryVolumeProvider
from holdfast.units import MIB

pytestmark = pytest.mark.anyio
SIZE = 64 * MIB
DEADLINE_S = 20.0


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@asynccontextmanager
async def serving(provider: MemoryVolumeProvider, **options: object) -> AsyncIterator[NbdFrontend]:
    chosen = NbdOptions(listen="127.0.0.1:0", **options)  # type: ignore[arg-type]
    frontend = await NbdFrontendDriver.open(chosen, provider)
    try:
        with anyio.fail_after(DEADLINE_S):
            yield frontend
    finally:
        await frontend.aclose()
        assert not any(volume.sessions for volume in provider.volumes.values())


class Client:
    """As little of a client as a test needs."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._received = b""

    async def take(self, length: int) -> bytes:
        while len(self._received) < length:
            self._received += await self.stream.receive()
        taken, self._received = self._received[:length], self._received[length:]
        return taken

    async def ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option and return (type, data) of its replies up to the last."""
        await self.stream.send(OPTION.pack(IHAVEOPT, option, len(data)) + data)
        replies = []
        while True:
            _, _, rep, length = OPTION_REPLY.unpack(await self.take(OPTION_REPLY.size))
            replies.append((rep, await self.take(length)))
            if rep == Rep.ACK or rep >> 31:
                return replies

    async def go(self, name: str) -> list[tuple[int, bytes]]:
        raw = name.encode()
        return await self.ask(Option.GO, struct.pack(">I", len(raw)) + raw + b"\0\0")

    async def send(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"") -> None:
        await self.stream.send(REQUEST.pack(NBD_REQUEST_MAGIC, 0, kind, 7, offset, length) + data)

    async def answer(self, payload_bytes: int = 0) -> tuple[int, bytes]:
        """Return error and payload of one simple reply."""
        _, error, cookie = struct.unpack(">IIQ", await self.take(16))
        assert cookie == 7
        return error, b"" if error else await self.take(payload_bytes)

    async def is_hung_up_on(self) -> bool:
        try:
            while True:
                await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True


@asynccontextmanager
async def connected(frontend: NbdFrontend, export: str | None = None) -> AsyncIterator[Client]:
    host, port = split_address(frontend.address)
    async with await anyio.connect_tcp(host, port) as stream:
        client = Client(stream)
        assert await client.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        await stream.send(b"\0\0\0\3")
        if export is not None:
            assert (await client.go(export))[-1] == (Rep.ACK, b"")
        yield client


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - the frontend tells nobody; a deadline is around it.
        await anyio.sleep(0.001)


@pytest.fixture
def provider() -> MemoryVolumeProvider:
    provider = MemoryVolumeProvider()
    provider.add("db", SIZE)
    return provider


async def test_what_was_written_is_read(provider: MemoryVolumeProvider) -> None:
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        await client.send(Command.WRITE, 4096, 512, b"w" * 512)
        assert await client.answer() == (0, b"")
        await client.send(Command.READ, 4096, 1024)
        assert await client.answer(1024) == (0, b"w" * 512 + bytes(512))
        assert frontend.metrics() == {
            "connections": 1,
            "sessions": 1,
            "connections_total": 1,
            "requests_total": 2,
            "read_bytes_total": 1024,
            "written_bytes_total": 512,
            "errors_total": 0,
        }
    assert frontend.metrics()["requests_total"] == 2


@pytest.mark.parametrize("at_once", [False, True])
async def test_large_requests_arrive_whole(provider: MemoryVolumeProvider, at_once: bool) -> None:
    provider.answers_at_once = at_once
    payload = bytes(range(256)) * (12 * 4096)
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        for offset in (0, MIB, 512):
            await client.send(Command.WRITE, offset, len(payload), payload)
            assert await client.answer() == (0, b"")
            await client.send(Command.READ, offset, len(payload))
            assert await client.answer(len(payload)) == (0, payload)


async def test_all_connections_share_one_session_that_ends_with_the_last(
    provider: MemoryVolumeProvider,
) -> None:
    volume = provider.volumes["db"]
    async with serving(provider) as frontend:
        async with connected(frontend, "db") as first:
            async with connected(frontend, "db") as second:
                await first.send(Command.WRITE, 0, 512, b"1" * 512)
                await second.send(Command.READ, 512, 512)
                assert await first.answer() == (0, b"")
                assert await second.answer(512) == (0, bytes(512))
                assert (volume.opened, volume.closed) == (1, 0)
            await first.send(Command.FLUSH)
            assert await first.answer() == (0, b"")
        await until(lambda: volume.closed == 1)
        async with connected(frontend, "db"):
            assert volume.opened == 2


async def test_the_empty_name_is_the_only_volume_or_none(provider: MemoryVolumeProvider) -> None:
    async with serving(provider) as frontend:
        async with connected(frontend, ""):
            pass
        provider.add("another", SIZE)
        async with connected(frontend) as client:
            ((rep, sentence),) = await client.go("")
            assert rep == Rep.ERR_UNKNOWN
            assert sentence.startswith(b"There are 2 volumes")


async def test_refusals_say_why_and_leave_the_handshake_open(
    provider: MemoryVolumeProvider,
) -> None:
    async with serving(provider) as frontend, connected(frontend) as client:
        assert await client.go("dbb") == [
            (Rep.ERR_UNKNOWN, b"There is no volume named dbb. Did you mean db?")
        ]
        other = await provider.open("db", _Nobody())
        ((rep, sentence),) = await client.go("db")
        assert rep == Rep.ERR_POLICY
        assert b"in use by another session" in sentence
        await other.aclose()
        assert (await client.go("db"))[-1] == (Rep.ACK, b"")


class _Nobody:
    def on_replies(self, replies: object) -> None: ...
    def on_changed(self, size_bytes: int, access: Access) -> None: ...
    def on_closed(self, sentence: str) -> None: ...


async def test_a_bug_in_the_provider_is_logged_and_answered(
    provider: MemoryVolumeProvider,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def names(_self: MemoryVolumeProvider) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryVolumeProvider, "names", names)
    async with serving(provider) as frontend, connected(frontend) as client:
        ((rep, _),) = await client.ask(Option.LIST)
        assert rep == Rep.ERR_PLATFORM
    assert "could not be answered" in caplog.text


async def test_writing_is_withdrawn_and_given_back_at_run_time(
    provider: MemoryVolumeProvider,
) -> None:
    volume = provider.volumes["db"]
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        volume.change(access=Access.READ_ONLY)
        await client.send(Command.WRITE, 0, 512, bytes(512))
        assert await client.answer() == (Errno.EPERM, b"")
        await client.send(Command.READ, 0, 512)
        assert await client.answer(512) == (0, bytes(512))
        async with connected(frontend) as late:
            (_, info), *_ = await late.go("db")
            assert struct.unpack(">HQH", info)[2] & TransmissionFlag.READ_ONLY
        volume.change(access=Access.READ_WRITE)
        await client.send(Command.WRITE, 0, 512, bytes(512))
        assert await client.answer() == (0, b"")


async def test_a_suspended_volume_just_waits(provider: MemoryVolumeProvider) -> None:
    volume = provider.volumes["db"]
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        volume.change(access=Access.SUSPENDED)
        await client.send(Command.WRITE, 0, 512, b"s" * 512)
        with anyio.move_on_after(0.05):
            await client.answer()
            pytest.fail("a suspended volume answered")
        volume.change(access=Access.READ_WRITE)
        assert await client.answer() == (0, b"")
        assert volume.read(0, 512) == b"s" * 512


async def test_a_volume_that_grew_can_be_used_to_its_new_end(
    provider: MemoryVolumeProvider,
) -> None:
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        await client.send(Command.WRITE, SIZE, 512, bytes(512))
        assert await client.answer() == (Errno.ENOSPC, b"")
        provider.volumes["db"].change(size_bytes=2 * SIZE)
        await client.send(Command.WRITE, SIZE, 512, bytes(512))
        assert await client.answer() == (0, b"")


async def test_a_session_that_ends_takes_its_connections_with_it(
    provider: MemoryVolumeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.add("other", SIZE)
    async with (
        serving(provider) as frontend,
        connected(frontend, "other") as other,
        connected(frontend, "db") as client,
    ):
        provider.volumes["db"].end_sessions("Volume db was deleted.")
        assert await client.is_hung_up_on()
        await other.send(Command.FLUSH)
        assert await other.answer() == (0, b"")
        async with connected(frontend, "db"):
            assert provider.volumes["db"].opened == 2
    assert "Volume db was deleted." in caplog.text


async def test_garbage_costs_its_sender_the_connection_and_one_log_line(
    provider: MemoryVolumeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(provider) as frontend, connected(frontend, "db") as proper:
        host, port = split_address(frontend.address)
        async with await anyio.connect_tcp(host, port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await Client(stream).is_hung_up_on()
        async with connected(frontend, "db") as client:
            await client.stream.send(b"\0" * 28)
            assert await client.is_hung_up_on()
        await proper.send(Command.FLUSH)
        assert await proper.answer() == (0, b"")
    ours = [r for r in caplog.records if r.name == "holdfast.nbd"]
    assert len(ours) == 2


async def test_goodbye_is_said_after_the_last_answer(provider: MemoryVolumeProvider) -> None:
    volume = provider.volumes["db"]
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        volume.hold()
        await client.send(Command.WRITE, 0, 512, bytes(512))
        await client.send(Command.DISC)
        await until(lambda: volume.served[RequestKind.WRITE] == 1)
        volume.release()
        assert await client.answer() == (0, b"")
        assert await client.is_hung_up_on()


async def test_answers_to_a_client_that_left_go_nowhere(provider: MemoryVolumeProvider) -> None:
    volume = provider.volumes["db"]
    async with serving(provider) as frontend, connected(frontend, "db") as stays:
        volume.hold()
        async with connected(frontend, "db") as leaves:
            await leaves.send(Command.READ, 0, MIB)
            await until(lambda: volume.served[RequestKind.READ] == 1)
        await until(lambda: frontend.metrics()["connections"] == 1)
        volume.release()
        await stays.send(Command.READ, 0, 512)
        assert await stays.answer(512) == (0, bytes(512))


async def test_what_is_unanswered_is_bounded_however_much_is_asked(
    provider: MemoryVolumeProvider,
) -> None:
    volume = provider.volumes["db"]
    async with (
        serving(provider, inflight_requests_max=8) as frontend,
        connected(frontend, "db") as client,
    ):
        volume.hold()
        request = REQUEST.pack(NBD_REQUEST_MAGIC, 0, Command.READ, 7, 0, 512)
        await client.stream.send(request * 1000)
        await until(lambda: volume.served[RequestKind.READ] == 8)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert volume.served[RequestKind.READ] == 8
        volume.release()
        for _ in range(1000):
            assert await client.answer(512) == (0, bytes(512))


async def test_a_client_that_takes_no_answers_is_read_no_further(
    provider: MemoryVolumeProvider,
) -> None:
    volume = provider.volumes["db"]
    wanted = 100
    async with serving(provider) as frontend, connected(frontend, "db") as client:
        for _ in range(wanted):
            await client.send(Command.READ, 0, MIB)
        await until(lambda: volume.served[RequestKind.READ] >= 8)
        served = -1
        while served != volume.served[RequestKind.READ]:
            served = volume.served[RequestKind.READ]
            await anyio.sleep(0.05)
        assert served < wanted
        for _ in range(wanted):
            assert (await client.answer(MIB))[0] == 0


async def test_a_client_that_chooses_nothing_is_hung_up_on(provider: MemoryVolumeProvider) -> None:
    async with (
        serving(provider, handshake_timeout_s=0.05) as frontend,
        connected(frontend) as client,
    ):
        assert await client.is_hung_up_on()


async def test_too_many_clients_are_turned_away(provider: MemoryVolumeProvider) -> None:
    async with serving(provider, connections_max=1) as frontend, connected(frontend, "db"):
        host, port = split_address(frontend.address)
        async with await anyio.connect_tcp(host, port) as stream:
            assert await Client(stream).is_hung_up_on()
        await until(lambda: frontend.metrics()["connections"] == 1)


class _SlowProvider(MemoryVolumeProvider):
    """Opens a session only when it is let."""

    gate: asyncio.Event

    async def open(
        self,
        name: str,
        handler: SessionHandler,
        *,
        read_only: bool = False,
        force: bool = False,
        consumer: str = "",
    ) -> MemorySession:
        await self.gate.wait()
        return await super().open(
            name, handler, read_only=read_only, force=force, consumer=consumer
        )


async def test_a_session_opened_for_a_client_that_left_is_given_up() -> None:
    provider = _SlowProvider()
    provider.gate = asyncio.Event()
    volume = provider.add("db", SIZE)
    async with serving(provider) as frontend:
        async with connected(frontend) as client:
            await client.stream.send(OPTION.pack(IHAVEOPT, Option.GO, 8) + b"\0\0\0\2db" + b"\0\0")
            await until(lambda: frontend.metrics()["connections"] == 1)
        provider.gate.set()
        await until(lambda: volume.closed == 1)


async def test_an_address_that_is_taken_is_named(provider: MemoryVolumeProvider) -> None:
    async with serving(provider) as frontend:
        with pytest.raises(UnavailableError, match=frontend.address):
            await NbdFrontendDriver.open(NbdOptions(listen=frontend.address), provider)


async def test_uris_are_what_clients_parse(provider: MemoryVolumeProvider) -> None:
    async with serving(provider) as frontend:
        port = frontend.address.rpartition(":")[2]
        assert frontend.uri("db", "n1") == f"nbd://n1:{port}/db"
        assert frontend.uri("a b/ö", "::1") == f"nbd://[::1]:{port}/a%20b%2F%C3%B6"


@pytest.mark.parametrize("listen", ["", "10809", "host:port", "host:70000"])
async def test_what_is_no_address_is_no_option(listen: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        NbdOptions(listen=listen)


async def test_a_second_writer_needs_force(provider: MemoryVolumeProvider) -> None:
    first = await provider.open("db", _Nobody())
    with pytest.raises(ConflictError):
        await provider.open("db", _Nobody())
    reader = await provider.open("db", _Nobody(), read_only=True)
    second = await provider.open("db", _Nobody(), force=True)
    for session in (first, reader, second):
        await session.aclose()
    assert provider.volumes["db"].closed == 3
