"""What every frontend must do; see `interfaces/frontend.py` for the promises checked here.

The frontend under test serves volumes in memory, and a client of its own protocol, which the driver's
author brings, talks to it. Each check opens a frontend for itself and closes it.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import attrs

from holdfast.interfaces.frontend import Frontend, VolumeProvider
from holdfast.messages import Reply, RequestKind
from holdfast.model import Access
from holdfast.testing.checks import CheckFailedError, expect, run_each
from holdfast.testing.memory_volume import MemoryVolume, MemoryVolumeProvider
from holdfast.units import KIB, MIB

SIZE_BYTES = 64 * MIB
NAME = "a volume"
"""With a space, so that a URI must quote it."""
_PAUSE_S = 0.01


class Client(Protocol):
    """A consumer of the frontend's protocol; every call raises `OSError` with the errno it met."""

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes."""
        ...

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write bytes."""
        ...

    async def flush(self) -> None:
        """Return when everything is on stable storage."""
        ...

    async def discard(self, offset: int, length: int) -> None:
        """Give space back."""
        ...

    async def aclose(self) -> None:
        """Disconnect."""
        ...


@attrs.frozen
class Capabilities:
    """What a frontend declares, so that nothing has to be skipped."""

    discard: bool = True
    """Clients may give space back; if not, asking for it is an error to them."""
    fua: bool = True
    """A write may ask to be on stable storage; if not, the frontend flushes after such a write."""


@attrs.frozen
class Subject:
    """A frontend under test, and what it declares of itself."""

    open: Callable[[VolumeProvider], Awaitable[Frontend]]
    """Opens it on a free port of the loopback address."""
    connect: Callable[[str], Awaitable[Client]]
    """Connects to a URI that the frontend gave; raises `OSError` when it is refused."""
    capabilities: Capabilities = Capabilities()
    patience_s: float = 5.0


@attrs.define
class Bench:
    """One frontend and its volume, for one check."""

    subject: Subject
    provider: MemoryVolumeProvider
    volume: MemoryVolume
    frontend: Frontend

    @asynccontextmanager
    async def client(self, name: str = NAME) -> AsyncIterator[Client]:
        """Give a connected client, and disconnect it."""
        client = await self.subject.connect(self.frontend.uri(name, "127.0.0.1"))
        try:
            yield client
        finally:
            await client.aclose()

    async def until(self, holds: Callable[[], bool], sentence: str) -> None:
        """Fail with `sentence` unless `holds()` within the subject's patience."""
        with anyio.move_on_after(self.subject.patience_s):
            while not holds():  # noqa: ASYNC110 - a frontend tells nobody when it is done.
                await anyio.sleep(_PAUSE_S)
            return
        raise CheckFailedError(sentence)


@asynccontextmanager
async def _bench(subject: Subject) -> AsyncIterator[Bench]:
    provider = MemoryVolumeProvider()
    volume = provider.add(NAME, SIZE_BYTES)
    frontend = await subject.open(provider)
    try:
        with anyio.fail_after(6 * subject.patience_s):
            yield Bench(subject, provider, volume, frontend)
    finally:
        await frontend.aclose()


async def _errno_of(request: Awaitable[object]) -> int:
    """Return the errno that a request meets, 0 for none."""
    try:
        await request
    except OSError as error:
        return error.errno or errnos.EIO
    return 0


async def check_that_what_is_written_is_read(subject: Subject) -> None:
    """Bytes come back as they were written, of every size, and from another connection too."""
    async with _bench(subject) as bench, bench.client() as client, bench.client() as other:
        for length in (512, 4 * KIB, 64 * KIB, MIB, 3 * MIB):
            data = (length // 512).to_bytes(4, "big") * (length // 4)
            await client.write(512, data)
            expect(bench.volume.read(512, length) == data, f"A write of {length} bytes is wrong.")
            expect(await client.read(512, length) == data, f"A read of {length} bytes is wrong.")
            expect(await other.read(512, length) == data, "Another connection reads otherwise.")


async def check_that_requests_may_overlap(subject: Subject) -> None:
    """Many requests of one connection at once are each answered with their own bytes."""
    async with _bench(subject) as bench, bench.client() as client:
        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(client.write, number * 4096, bytes([number]) * 4096)
        got: dict[int, bytes] = {}

        async def read(number: int) -> None:
            got[number] = await client.read(number * 4096, 4096)

        async with anyio.create_task_group() as group:
            for number in range(64):
                group.start_soon(read, number)
        expect(
            all(got[number] == bytes([number]) * 4096 for number in range(64)),
            "Answers were given to the wrong requests.",
        )


async def check_that_flushes_reach_the_volume(subject: Subject) -> None:
    """FLUSH is passed on, and FUA as well or, for a frontend without it, as a flush."""
    async with _bench(subject) as bench, bench.client() as client:
        await client.write(0, bytes(512))
        before = bench.volume.served[RequestKind.FLUSH]
        await client.flush()
        expect(bench.volume.served[RequestKind.FLUSH] > before, "A flush did not reach the volume.")
        if subject.capabilities.fua:
            await client.write(0, bytes(512), fua=True)
            expect(bench.volume.fua_served == 1, "FUA did not reach the volume.")
        else:
            before = bench.volume.served[RequestKind.FLUSH]
            await client.write(0, bytes(512), fua=True)
            expect(
                bench.volume.fua_served == 0, "FUA is declared absent, and yet it was passed on."
            )
            expect(
                bench.volume.served[RequestKind.FLUSH] > before,
                "A write that must be stable was acknowledged without FUA and without a flush.",
            )


async def check_that_discards_reach_the_volume(subject: Subject) -> None:
    """A discarded range reads as zeros and its space is given back, or a discard is refused."""
    async with _bench(subject) as bench, bench.client() as client:
        await client.write(0, b"d" * MIB)
        if not subject.capabilities.discard:
            try:
                await client.discard(0, MIB)
            except OSError:
                expect(await client.read(0, MIB) == b"d" * MIB, "A refused discard changed bytes.")
                return
            raise CheckFailedError("Discards are declared absent, and yet one was taken.")
        await client.discard(0, MIB)
        expect(await client.read(0, MIB) == bytes(MIB), "A discarded range is not zeros.")
        expect(bool(bench.volume.served[RequestKind.DISCARD]), "A discard came as another request.")


async def check_that_connections_share_one_session(subject: Subject) -> None:
    """A volume's session is opened for the first connection and given up after the last (R11)."""
    async with _bench(subject) as bench:
        async with bench.client() as first:
            await first.read(0, 512)
            async with bench.client() as second:
                await second.read(0, 512)
                expect(bench.volume.opened == 1, "A second connection opened a second session.")
            await first.read(0, 512)
            expect(bench.volume.closed == 0, "The session was given up while a client was there.")
        await bench.until(
            lambda: bench.volume.closed == 1, "The session was kept after the last client left."
        )
        async with bench.client() as again:
            await again.read(0, 512)
            expect(bench.volume.opened == 2, "A client that came back has no session.")


async def check_that_read_only_refuses_writes_and_serves_reads(subject: Subject) -> None:
    """Access is followed at run time, both ways."""
    async with _bench(subject) as bench, bench.client() as client:
        await client.write(0, b"1" * 512)
        bench.volume.change(access=Access.READ_ONLY)
        errno = await _errno_of(client.write(0, b"2" * 512))
        expect(errno in {errnos.EPERM, errnos.EROFS}, f"A read-only volume answered {errno}.")
        expect(await client.read(0, 512) == b"1" * 512, "A read-only volume was not read.")
        bench.volume.change(access=Access.READ_WRITE)
        expect(not await _errno_of(client.write(0, b"3" * 512)), "Writing was not given back.")


async def check_that_a_suspended_volume_is_waited_for(subject: Subject) -> None:
    """Suspension is a pause for the consumer, never an error (R7)."""
    async with _bench(subject) as bench, bench.client() as client:
        bench.volume.change(access=Access.SUSPENDED)
        errno = -1

        async def write() -> None:
            nonlocal errno
            errno = await _errno_of(client.write(0, b"s" * 512))

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            await anyio.sleep(10 * _PAUSE_S)
            expect(errno == -1, f"A request on a suspended volume was answered with {errno}.")
            bench.volume.change(access=Access.READ_WRITE)
        expect(errno == 0, f"A request that had waited was answered with {errno}.")
        expect(bench.volume.read(0, 512) == b"s" * 512, "A request that had waited was lost.")


async def check_that_errors_reach_the_client(subject: Subject) -> None:
    """A request that fails is answered with an error, and the next one is served."""
    async with _bench(subject) as bench, bench.client() as client:
        kinds = {
            RequestKind.WRITE: lambda: client.write(0, bytes(512)),
            RequestKind.READ: lambda: client.read(0, 512),
            RequestKind.FLUSH: client.flush,
        }
        for kind, request in kinds.items():
            bench.volume.fail(kind, errnos.EIO)
            expect(bool(await _errno_of(request())), f"A failed {kind.name} was called good.")
            expect(not await _errno_of(request()), f"After a failed {kind.name} nothing works.")


async def check_that_refusals_leave_nothing(subject: Subject) -> None:
    """A volume that is not there, or is in use elsewhere, is refused; later it is served."""
    async with _bench(subject) as bench:
        expect(
            bool(await _errno_of(_touch(bench, "no such volume"))), "A missing volume was served."
        )
        other = await bench.provider.open(NAME, _Nobody())
        refused = await _errno_of(_touch(bench, NAME))
        expect(bool(refused), "A volume that another session writes to was served.")
        await other.aclose()
        expect(not await _errno_of(_touch(bench, NAME)), "A volume that became free is refused.")


async def check_that_a_session_that_ends_ends_its_clients(subject: Subject) -> None:
    """When a volume is deleted or taken over its clients get errors, and the frontend goes on."""
    async with _bench(subject) as bench:
        async with bench.client() as client:
            await client.read(0, 512)
            bench.volume.end_sessions("The volume was taken over.")
            expect(bool(await _errno_of(client.read(0, 512))), "A client reads without a session.")
        expect(not await _errno_of(_touch(bench, NAME)), "The volume cannot be had any more.")


async def check_that_closing_leaves_nothing(subject: Subject) -> None:
    """`aclose` ends clients and sessions, and may be called twice."""
    async with _bench(subject) as bench, bench.client() as client:
        await client.read(0, 512)
        await bench.frontend.aclose()
        expect(not bench.volume.sessions, "A session was left open.")
        expect(bool(await _errno_of(client.read(0, 512))), "A closed frontend serves on.")
        await bench.frontend.aclose()
        expect(bool(await _errno_of(_touch(bench, NAME))), "A closed frontend takes clients.")


async def check_that_metrics_count(subject: Subject) -> None:
    """Metrics are numbers by name, and some of them grow with use."""
    async with _bench(subject) as bench, bench.client() as client:
        before = dict(bench.frontend.metrics())
        await client.write(0, bytes(4096))
        after = dict(bench.frontend.metrics())
        expect(any(after[key] > before.get(key, 0) for key in after), "No counter counts.")


async def _touch(bench: Bench, name: str) -> None:
    async with bench.client(name) as client:
        await client.read(0, 512)


class _Nobody:
    """The handler of a session that nobody uses."""

    def on_replies(self, replies: Iterable[Reply]) -> None:
        """Take nothing."""

    def on_changed(self, size_bytes: int, access: Access) -> None:
        """Note nothing."""

    def on_closed(self, sentence: str) -> None:
        """Mourn nothing."""


Check = Callable[[Subject], Awaitable[None]]
CHECKS: tuple[Check, ...] = tuple(
    check for name, check in list(globals().items()) if name.startswith("check_")
)
"""Every check, in the order of this module."""


async def run_checks(
    subject: Subject, checks: Iterable[Check] = CHECKS
) -> dict[str, BaseException | None]:
    """Run `checks`, as `run_each`."""
    return await run_each("frontend", subject, checks)
