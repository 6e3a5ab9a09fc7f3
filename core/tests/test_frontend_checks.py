"""The frontend kit: our NBD frontend passes it, and every sabotaged frontend fails it."""

from __future__ import annotations

import asyncio
import errno as errnos
from collections.abc import Mapping, Sequence

import attrs
import pytest

from holdfast.errors import HoldfastError
from holdfast.interfaces.frontend import VolumeProvider, VolumeSession
from holdfast.messages import Payload, Reply, Request, RequestFlag, RequestKind
from holdfast.model import Access
from holdfast.node.nbd import NbdFrontend, NbdFrontendDriver, NbdOptions
from holdfast.node.nbd.client import NbdClient
from holdfast.testing.checks.frontend import CHECKS, Capabilities, Check, Subject, run_checks
from holdfast.testing.conformance_frontend import FrontendConformance


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestNbd(FrontendConformance):
    @pytest.fixture
    def subject(self) -> Subject:
        async def open_nbd(provider: VolumeProvider) -> NbdFrontend:
            return await NbdFrontendDriver.open(NbdOptions(listen="127.0.0.1:0"), provider)

        return Subject(open=open_nbd, connect=NbdClient.connect)


EVERYTHING = Capabilities()


# --- a frontend without a wire, easy to sabotage ------------------------------------------------


@attrs.define(eq=False)
class DirectFrontend:
    """Clients call it; it keeps every promise, and its subclasses each break one."""

    provider: VolumeProvider
    address: str = "here:0"
    sessions: dict[str, VolumeSession] = attrs.field(factory=dict)
    clients: dict[str, list[DirectClient]] = attrs.field(factory=dict)
    futures: dict[int, asyncio.Future[Payload]] = attrs.field(factory=dict)
    count: int = 0
    is_closed: bool = False

    def uri(self, volume: str, host: str) -> str:
        return volume

    def metrics(self) -> Mapping[str, float]:
        return {"requests_total": self.count}

    async def connect(self, name: str) -> DirectClient:
        if self.is_closed:
            raise OSError(errnos.ECONNREFUSED, "closed")
        client = DirectClient(self, name)
        if name not in self.sessions:
            try:
                self.sessions[name] = await self.provider.open(name, client)
            except HoldfastError as error:
                raise OSError(errnos.EACCES, error.message) from error
        self.clients.setdefault(name, []).append(client)
        return client

    async def leave(self, client: DirectClient) -> None:
        if client in self.clients.get(client.name, []):
            self.clients[client.name].remove(client)
        if not self.clients.get(client.name) and client.name in self.sessions:
            await self.sessions.pop(client.name).aclose()

    def on_replies(self, replies: Sequence[Reply]) -> None:
        for number, errno, data in replies:
            if errno:
                self.futures.pop(number).set_exception(OSError(errno, "refused"))
            else:
                self.futures.pop(number).set_result(data)

    async def submit(self, name: str, request: Request) -> Payload:
        self.count += 1
        if name not in self.sessions:
            raise OSError(errnos.EIO, "no session")
        future: asyncio.Future[Payload] = asyncio.get_running_loop().create_future()
        self.futures[self.count] = future
        self.sessions[name].submit([request._replace(id=self.count)])
        return await future

    async def aclose(self) -> None:
        self.is_closed = True
        for session in self.sessions.values():
            await session.aclose()
        self.sessions.clear()


@attrs.define(eq=False)
class DirectClient:
    frontend: DirectFrontend
    name: str

    def on_replies(self, replies: Sequence[Reply]) -> None:
        self.frontend.on_replies(replies)

    def on_changed(self, size_bytes: int, access: Access) -> None: ...

    def on_closed(self, sentence: str) -> None:
        self.frontend.sessions.pop(self.name, None)

    async def read(self, offset: int, length: int) -> bytes:
        asked = Request(0, RequestKind.READ, 0, offset, length)
        return bytes(await self.frontend.submit(self.name, asked))

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        flags = RequestFlag.FUA if fua else 0
        asked = Request(0, RequestKind.WRITE, flags, offset, len(data), data)
        await self.frontend.submit(self.name, asked)

    async def flush(self) -> None:
        await self.frontend.submit(self.name, Request(0, RequestKind.FLUSH, 0, 0, 0))

    async def discard(self, offset: int, length: int) -> None:
        asked = Request(0, RequestKind.DISCARD, 0, offset, length)
        await self.frontend.submit(self.name, asked)

    async def aclose(self) -> None:
        await self.frontend.leave(self)


class ForgetsFlushes(DirectFrontend):
    async def submit(self, name: str, request: Request) -> Payload:
        self.count += 1
        return b"" if request.kind == RequestKind.FLUSH else await super().submit(name, request)


class ForgetsFua(DirectFrontend):
    async def submit(self, name: str, request: Request) -> Payload:
        return await super().submit(name, request._replace(flags=0))


class KeepsDiscards(DirectFrontend):
    async def submit(self, name: str, request: Request) -> Payload:
        if request.kind == RequestKind.DISCARD:
            return b""
        return await super().submit(name, request)


class ShortensWrites(DirectFrontend):
    async def submit(self, name: str, request: Request) -> Payload:
        if request.kind == RequestKind.WRITE and request.length > 65536:
            request = request._replace(length=65536, data=request.data[:65536])
        return await super().submit(name, request)


class SwallowsErrors(DirectFrontend):
    def on_replies(self, replies: Sequence[Reply]) -> None:
        super().on_replies([reply._replace(errno=0) for reply in replies])


class KeepsSessions(DirectFrontend):
    async def leave(self, client: DirectClient) -> None: ...


class FailsSuspended(DirectFrontend):
    async def submit(self, name: str, request: Request) -> Payload:
        if name in self.sessions and self.sessions[name].access is Access.SUSPENDED:
            raise OSError(errnos.EIO, "suspended")
        return await super().submit(name, request)


class StaysReadOnly(DirectFrontend):
    was_read_only = False

    async def submit(self, name: str, request: Request) -> Payload:
        if name in self.sessions and self.sessions[name].access is Access.READ_ONLY:
            type(self).was_read_only = True
        if self.was_read_only and request.kind == RequestKind.WRITE:
            raise OSError(errnos.EPERM, "read-only")
        return await super().submit(name, request)


class MixesAnswersUp(DirectFrontend):
    def on_replies(self, replies: Sequence[Reply]) -> None:
        numbers = sorted(self.futures)
        if len(replies) == len(numbers) > 1:
            replies = [r._replace(id=n) for r, n in zip(replies, reversed(numbers), strict=True)]
        super().on_replies(replies)


class ServesAnything(DirectFrontend):
    async def connect(self, name: str) -> DirectClient:
        return await super().connect(name if self.provider_has(name) else "a volume")

    def provider_has(self, name: str) -> bool:
        return name != "no such volume"


class NeverCloses(DirectFrontend):
    async def aclose(self) -> None: ...


class CountsNothing(DirectFrontend):
    def metrics(self) -> Mapping[str, float]:
        return {"requests_total": 0}


class FlushesForFua(DirectFrontend):
    async def submit(self, name: str, request: Request) -> Payload:
        if request.kind == RequestKind.DISCARD:
            raise OSError(errnos.ENOTSUP, "no discards")
        data = await super().submit(name, request._replace(flags=0))
        if request.flags:
            await super().submit(name, Request(0, RequestKind.FLUSH, 0, 0, 0))
        return data


class RefusesDiscardsTooLate(FlushesForFua):
    async def submit(self, name: str, request: Request) -> Payload:
        if request.kind == RequestKind.DISCARD:
            await super().submit(
                name, request._replace(kind=RequestKind.WRITE, data=bytes(request.length))
            )
        return await super().submit(name, request)


def subject_of(kind: type[DirectFrontend], capabilities: Capabilities = EVERYTHING) -> Subject:
    running: list[DirectFrontend] = []

    async def open_direct(provider: VolumeProvider) -> DirectFrontend:
        running.append(kind(provider))
        return running[-1]

    async def connect(uri: str) -> DirectClient:
        return await running[-1].connect(uri)

    return Subject(open_direct, connect, capabilities, patience_s=0.3)


@pytest.mark.anyio
async def test_a_frontend_that_keeps_its_promises_passes() -> None:
    results = await run_checks(subject_of(DirectFrontend))
    assert {name: error for name, error in results.items() if error} == {}
    assert len(results) == len(CHECKS) == 12


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "caught_by"),
    [
        (ForgetsFlushes, "check_that_flushes_reach_the_volume"),
        (ForgetsFua, "check_that_flushes_reach_the_volume"),
        (KeepsDiscards, "check_that_discards_reach_the_volume"),
        (ShortensWrites, "check_that_what_is_written_is_read"),
        (SwallowsErrors, "check_that_errors_reach_the_client"),
        (KeepsSessions, "check_that_connections_share_one_session"),
        (FailsSuspended, "check_that_a_suspended_volume_is_waited_for"),
        (StaysReadOnly, "check_that_read_only_refuses_writes_and_serves_reads"),
        (MixesAnswersUp, "check_that_requests_may_overlap"),
        (ServesAnything, "check_that_refusals_leave_nothing"),
        (NeverCloses, "check_that_closing_leaves_nothing"),
        (CountsNothing, "check_that_metrics_count"),
    ],
)
async def test_a_sabotaged_frontend_is_caught(kind: type[DirectFrontend], caught_by: str) -> None:
    checks: dict[str, Check] = {getattr(check, "__name__", ""): check for check in CHECKS}
    results = await run_checks(subject_of(kind), [checks[caught_by]])
    assert results[caught_by] is not None


NOTHING_EXTRA = Capabilities(discard=False, fua=False)


@pytest.mark.anyio
async def test_a_frontend_without_fua_and_discards_passes_when_it_says_so() -> None:
    results = await run_checks(subject_of(FlushesForFua, NOTHING_EXTRA))
    assert {name: error for name, error in results.items() if error} == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "capabilities", "caught_by"),
    [
        (DirectFrontend, Capabilities(discard=False), "check_that_discards_reach_the_volume"),
        (RefusesDiscardsTooLate, NOTHING_EXTRA, "check_that_discards_reach_the_volume"),
        (DirectFrontend, Capabilities(fua=False), "check_that_flushes_reach_the_volume"),
        (ForgetsFua, NOTHING_EXTRA, "check_that_flushes_reach_the_volume"),
    ],
)
async def test_what_is_declared_absent_is_held_to_that(
    kind: type[DirectFrontend], capabilities: Capabilities, caught_by: str
) -> None:
    checks: dict[str, Check] = {getattr(check, "__name__", ""): check for check in CHECKS}
    results = await run_checks(subject_of(kind, capabilities), [checks[caught_by]])
    assert results[caught_by] is not None
