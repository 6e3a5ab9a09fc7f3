"""An NVMe/TCP host in user space over asyncio: connects to a subsystem and reads, writes, administers it.

For tests of our target and of others, for measuring, and for programs on machines without the kernel's
host. One connection per queue; commands go over the I/O queues in turn. It keeps itself alive, gives a
controller up that is silent, and connects anew where that is wanted.
"""

from __future__ import annotations

import asyncio
import errno
import struct
import uuid
from collections.abc import Coroutine, Sequence
from urllib.parse import unquote, urlsplit

import attrs

from holdfast.errors import UnavailableError
from holdfast.messages import Payload
from holdfast.units import SECTOR_BYTES
from holdfast_transport_nvmeof.authentication import (
    RECEIVED_BYTES,
    HostAuthentication,
    receive_command,
    send_command,
)
from holdfast_transport_nvmeof.commands import (
    AD,
    DEAC,
    DSM_RANGE,
    FUA,
    AdminOpcode,
    Command,
    IoOpcode,
)
from holdfast_transport_nvmeof.controller import Feature
from holdfast_transport_nvmeof.dhchap import AUTH_REQUIRED_MASK, Secret
from holdfast_transport_nvmeof.fabrics import (
    DISCOVERY_NQN,
    DYNAMIC_CONTROLLER,
    Connect,
    FabricsType,
    Property,
    fabrics_command,
    property_get,
    property_set,
)
from holdfast_transport_nvmeof.host import Finished, HostQueue
from holdfast_transport_nvmeof.host_connection import HostConnection
from holdfast_transport_nvmeof.identify import Cns
from holdfast_transport_nvmeof.logpages import DiscoveryEntry, LogPage
from holdfast_transport_nvmeof.namespace import NSID
from holdfast_transport_nvmeof.status import ConnectStatus, NvmeStatusError

CC_READY = 0x0046_0001
"""Enable; I/O entries of 64 and 16 bytes; 4 KiB pages; NVM command set."""
CONNECT_PATIENCE_S = 10.0
RECONNECT_DELAY_S = 0.5


@attrs.define(eq=False)
class NvmeTcpHost:
    """A controller with its queues, seen from a host; make one with `connect`."""

    host: str
    port: int
    subsystem: str
    identity: Connect
    digests: int = 0
    entries: int = 128
    cntlid: int = 0
    admin: HostConnection = attrs.field(init=False)
    queues: list[HostConnection] = attrs.field(factory=list)
    transfer_bytes_max: int = 128 << 10
    secret: Secret | None = attrs.field(default=None, repr=False)
    """By which this host authenticates, where a controller asks for it."""
    controller_secret: Secret | None = attrs.field(default=None, repr=False)
    """By which the controller has to, then."""
    events: asyncio.Queue[int] = attrs.field(factory=asyncio.Queue)
    """Dword 0 of each asynchronous event, when `watch` was called."""
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set)
    reconnect_s: float = 0.0
    """How long a lost way to the controller is sought again, and the I/O commands that waited for an
    answer are sent again then; 0: they fail at once."""
    _seeking: asyncio.Lock = attrs.field(factory=asyncio.Lock, repr=False)
    _turn: int = 0
    _capsule_units: int = 0
    """IOCCSZ."""

    @classmethod
    async def connect(
        cls,
        address: str,
        port: int,
        subsystem: str,
        *,
        queues: int = 1,
        entries: int = 128,
        digests: int = 0,
        kato_ms: int = 5000,
        host: str = "",
        host_id: bytes = b"",
        sq_flow_control: bool = False,
        secret: Secret | None = None,
        controller_secret: Secret | None = None,
        reconnect_s: float = 0.0,
    ) -> NvmeTcpHost:
        """Connect the admin queue and `queues` I/O queues, none for discovery.

        Raises:
            NvmeStatusError: The controller refused.
            RemoteProtocolError: It did not authenticate, or did not believe this host.
            UnavailableError: Nothing answers there in time.
        """
        host_id = host_id or uuid.uuid4().bytes
        host = host or f"nqn.2014-08.org.nvmexpress:uuid:{uuid.UUID(bytes=host_id)}"
        identity = Connect(
            subsystem, host, host_id, kato_ms=kato_ms, sq_flow_control=sq_flow_control
        )
        self = cls(
            *(address, port, subsystem, identity, digests, entries),
            secret=secret,
            controller_secret=controller_secret,
            reconnect_s=reconnect_s,
        )
        try:
            async with asyncio.timeout(CONNECT_PATIENCE_S):
                await self._begin(queues if subsystem != DISCOVERY_NQN else 0)
        except TimeoutError:
            await self.aclose()
            raise UnavailableError(f"No NVMe/TCP controller answers at {address}:{port}.") from None
        except BaseException:
            await self.aclose()
            raise
        return self

    @classmethod
    async def connect_uri(
        cls, uri: str, *, queues: int = 1, digests: int = 0, host_id: bytes = b""
    ) -> NvmeTcpHost:
        """Connect to what `nvme+tcp://HOST:PORT/NQN` names; raises as `connect`."""
        parts = urlsplit(uri)
        nqn = unquote(parts.path.removeprefix("/"))
        where = (parts.hostname or "127.0.0.1", parts.port or 4420, nqn)
        return await cls.connect(*where, queues=queues, digests=digests, host_id=host_id)

    async def _begin(self, queues: int) -> None:
        finished, self.admin = await self._queue(self.identity)
        self.cntlid = finished.dw0 & 0xFFFF
        cap = await self._fabrics(property_get(0, Property.CAP, is_8_bytes=True))
        entries_max = (cap.dw0 & 0xFFFF) + 1
        await self._fabrics(property_set(0, Property.CC, CC_READY))
        csts = await self._fabrics(property_get(0, Property.CSTS))
        if not csts.dw0 & 1:
            raise UnavailableError("The controller does not become ready.")
        page = await self.identify(Cns.CONTROLLER)
        if page[77]:
            self.transfer_bytes_max = 4096 << page[77]
        if self.identity.kato_ms:
            self._spawn(self._keep_alive())
        self.entries = min(self.entries, entries_max)
        (self._capsule_units,) = struct.unpack_from("<I", page, 1792)
        if queues:
            granted = await self.set_feature(Feature.NUMBER_OF_QUEUES, (queues - 1) * 0x1_0001)
            for qid in range(1, min(queues, (granted & 0xFFFF) + 1) + 1):
                await self.connect_queue(qid)

    async def connect_queue(self, qid: int) -> None:
        """Connect one I/O queue; raises `NvmeStatusError` when the controller refuses."""
        identity = attrs.evolve(
            self.identity, cntlid=self.cntlid, qid=qid, entries=self.entries, kato_ms=0
        )
        _, connection = await self._queue(identity)
        connection.queue.in_capsule_bytes = self._capsule_units * 16 - 64
        self.queues.append(connection)

    async def _queue(self, identity: Connect) -> tuple[Finished, HostConnection]:
        loop = asyncio.get_running_loop()
        queue = HostQueue(self.digests, identity.entries)
        _, connection = await loop.create_connection(
            lambda: HostConnection(queue), self.host, self.port
        )
        if identity.cntlid == DYNAMIC_CONTROLLER:
            self.admin = connection
        finished = await connection.ask(identity.command(0), identity.data())
        if finished.status:
            connection.abort()
            raise NvmeStatusError(finished.status, is_fabrics=True)
        if finished.dw0 & AUTH_REQUIRED_MASK:
            await self._authenticate(connection)
        return finished, connection

    async def _authenticate(self, connection: HostConnection) -> None:
        """Prove who this host is, and have the controller do so if its secret is known."""
        if self.secret is None:
            raise NvmeStatusError(ConnectStatus.AUTHENTICATION_REQUIRED, is_fabrics=True)
        names = (self.identity.host, self.subsystem)
        end = HostAuthentication(*names, self.secret, self.controller_secret)
        connection.queue.close_reason = "The controller broke off the authentication."

        async def send(message: bytes) -> None:
            await self._fabrics(send_command(len(message)), message, by=connection)

        async def receive() -> bytes:
            got = await self._fabrics(receive_command(), by=connection, reads=RECEIVED_BYTES)
            return bytes(got.data)

        await send(end.negotiate())
        await send(end.on_challenge(await receive()))
        if last := end.on_success1(await receive()):
            await send(last)
        connection.queue.close_reason = ""

    async def _fabrics(
        self,
        command: Command,
        data: bytes = b"",
        *,
        by: HostConnection | None = None,
        reads: int = 0,
    ) -> Finished:
        finished = await (by or self.admin).ask(command, data, reads)
        if finished.status:
            raise NvmeStatusError(finished.status, is_fabrics=True)
        return finished

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_alive(self) -> None:
        timeout_s = self.identity.kato_ms / 1000
        while self.admin.is_open:
            await asyncio.sleep(timeout_s / 2)
            try:
                async with asyncio.timeout(timeout_s):
                    await self.admin.ask(_command(AdminOpcode.KEEP_ALIVE, nsid=0))
            except (ConnectionError, TimeoutError):
                # Silent or gone: whatever waits for an answer is not to wait for ever.
                for connection in (self.admin, *self.queues):
                    if connection.is_open:
                        connection.abort()
                return

    async def _find_again(self) -> None:
        """Connect anew, once for all commands that wait for it.

        Raises:
            OSError: It is not wanted, or was not possible in time.
        """
        if not self.reconnect_s:
            raise ConnectionResetError(errno.ECONNRESET, "The controller is gone.")
        async with self._seeking:
            if self.admin.is_open and all(queue.is_open for queue in self.queues):
                return
            count = len(self.queues)
            async with asyncio.timeout(self.reconnect_s):
                while True:
                    await self.aclose()
                    self.queues.clear()
                    try:
                        await self._begin(count)
                    except (OSError, UnavailableError):
                        await asyncio.sleep(RECONNECT_DELAY_S)
                    else:
                        return

    async def aclose(self) -> None:
        """Shut the controller down and close every connection. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        admin: HostConnection | None = getattr(self, "admin", None)
        connections = [*self.queues, *([admin] if admin is not None else [])]
        for connection in connections:
            if connection.is_open:
                connection.abort()
        for connection in connections:
            await connection.closed.wait()

    # --- admin commands --------------------------------------------------------------------

    async def administer(self, command: Command, *, reads: int = 0, data: bytes = b"") -> Finished:
        """Send an admin command; raises `NvmeStatusError` when it fails."""
        finished = await self.admin.ask(command, data, reads)
        if finished.status:
            raise NvmeStatusError(finished.status)
        return finished

    async def identify(self, cns: int, *, nsid: int = 0) -> bytes:
        """Return 4096 bytes of Identify."""
        command = _command(AdminOpcode.IDENTIFY, nsid=nsid, cdw10=cns)
        return bytes((await self.administer(command, reads=4096)).data)

    async def log_page(
        self, page: int, length: int, *, offset: int = 0, specific: int = 0
    ) -> bytes:
        """Return `length` bytes of a log page from `offset` on."""
        count = length // 4 - 1
        command = _command(
            AdminOpcode.GET_LOG_PAGE,
            nsid=0xFFFFFFFF,
            cdw10=page | specific << 8 | (count & 0xFFFF) << 16,
            cdw11=count >> 16,
            cdw12=offset & 0xFFFFFFFF,
            cdw13=offset >> 32,
        )
        return bytes((await self.administer(command, reads=length)).data)

    async def set_feature(self, feature: int, value: int) -> int:
        """Set a feature and return dword 0 of the completion."""
        command = _command(AdminOpcode.SET_FEATURES, nsid=0, cdw10=feature, cdw11=value)
        return (await self.administer(command)).dw0

    async def get_feature(self, feature: int) -> int:
        """Return dword 0 of Get Features."""
        command = _command(AdminOpcode.GET_FEATURES, nsid=0, cdw10=feature)
        return (await self.administer(command)).dw0

    async def watch(self, wanted: int) -> None:
        """Ask for asynchronous events and put each into `events`."""
        await self.set_feature(Feature.ASYNCHRONOUS_EVENT_CONFIGURATION, wanted)
        self._spawn(self._watch())

    async def _watch(self) -> None:
        while self.admin.is_open:
            command = _command(AdminOpcode.ASYNCHRONOUS_EVENT_REQUEST, nsid=0)
            try:
                finished = await self.admin.ask(command)
            except ConnectionError:
                return
            if finished.status:
                return
            self.events.put_nowait(finished.dw0)

    async def discover(self) -> list[DiscoveryEntry]:
        """Return the entries of the discovery log page."""
        while True:
            head = await self.log_page(LogPage.DISCOVERY, 1024)
            generation, count = struct.unpack_from("<QQ", head)
            body = await self.log_page(LogPage.DISCOVERY, 1024 * (count + 1))
            if struct.unpack_from("<Q", body)[0] == generation:
                break
        return [
            DiscoveryEntry.unpack(body[start : start + 1024])
            for start in range(1024, 1024 * (count + 1), 1024)
        ]

    # --- I/O commands ----------------------------------------------------------------------

    def ask(
        self, command: Command, data: Payload = b"", reads: int = 0
    ) -> asyncio.Future[Finished]:
        """Send an I/O command by the next queue; the future's result is its completion."""
        self._turn = (self._turn + 1) % len(self.queues)
        return self.queues[self._turn].ask(command, data, reads)

    async def _do(self, command: Command, data: Payload = b"", reads: int = 0) -> Finished:
        while True:
            try:
                finished = await self.ask(command, data, reads)
            except ConnectionError:
                await self._find_again()
                continue
            if finished.status:
                raise NvmeStatusError(finished.status)
            return finished

    async def read(self, offset: int, length: int) -> bytes:
        """Return bytes; raises `NvmeStatusError`."""
        step = self.transfer_bytes_max
        end = offset + length
        pieces = [(at, min(step, end - at)) for at in range(offset, end, step)]
        parts = await asyncio.gather(
            *(self._do(_on_blocks(IoOpcode.READ, at, size), reads=size) for at, size in pieces)
        )
        return b"".join(part.data for part in parts)

    async def write(self, offset: int, data: bytes, *, fua: bool = False) -> None:
        """Write bytes; raises `NvmeStatusError`."""
        await self._in_pieces(IoOpcode.WRITE, offset, data, FUA if fua else 0)

    async def compare(self, offset: int, data: bytes) -> None:
        """Compare bytes; raises `NvmeStatusError` with COMPARE_FAILURE when they differ."""
        await self._in_pieces(IoOpcode.COMPARE, offset, data, 0)

    async def _in_pieces(self, opcode: int, offset: int, data: bytes, flags: int) -> None:
        step = self.transfer_bytes_max
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        await asyncio.gather(
            *(
                self._do(_on_blocks(opcode, offset + step * n, len(piece), flags), piece)
                for n, piece in enumerate(pieces)
            )
        )

    async def write_zeroes(
        self, offset: int, length: int, *, deallocate: bool = False, fua: bool = False
    ) -> None:
        """Write up to 32 MiB of zeros; raises `NvmeStatusError`."""
        flags = (DEAC if deallocate else 0) | (FUA if fua else 0)
        await self._do(_on_blocks(IoOpcode.WRITE_ZEROES, offset, length, flags))

    async def flush(self) -> None:
        """Return when everything is on stable storage; raises `NvmeStatusError`."""
        await self._do(_command(IoOpcode.FLUSH))

    async def discard(self, offset: int, length: int) -> None:
        """Deallocate a range; raises `NvmeStatusError`."""
        await self.deallocate([(offset, length)])

    async def deallocate(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Deallocate up to 256 ranges of (offset, length) in bytes; raises `NvmeStatusError`."""
        data = b"".join(
            DSM_RANGE.pack(0, length // SECTOR_BYTES, offset // SECTOR_BYTES)
            for offset, length in ranges
        )
        command = _command(IoOpcode.DATASET_MANAGEMENT, cdw10=len(ranges) - 1, cdw11=AD)
        await self._do(command, data)

    async def reserve(
        self, opcode: int, *, cdw10: int, cdw11: int = 0, keys: bytes = b"", reads: int = 0
    ) -> bytes:
        """Send a reservation command; returns what Report reads; raises `NvmeStatusError`."""
        command = _command(opcode, cdw10=cdw10, cdw11=cdw11)
        finished = await self.ask(
            command, keys, reads
        )  # Never twice: it would mean something else.
        if finished.status:
            raise NvmeStatusError(finished.status)
        return bytes(finished.data)

    async def disconnect_queue(self, index: int) -> None:
        """End one I/O queue in order."""
        connection = self.queues.pop(index)
        await connection.ask(fabrics_command(0, FabricsType.DISCONNECT))
        await connection.closed.wait()


def _command(opcode: int, *, nsid: int = NSID, **cdws: int) -> Command:
    return Command(opcode, 0, 0, nsid, 0, 0, 0, 0, 0)._replace(**cdws)


def _on_blocks(opcode: int, offset: int, length: int, flags: int = 0) -> Command:
    lba, blocks = offset // SECTOR_BYTES, length // SECTOR_BYTES
    return _command(
        opcode, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, cdw12=(blocks - 1) & 0xFFFF | flags
    )
