"""The NBD frontend of one node: listens, answers handshakes, and keeps one session per volume.

What happens per connection and per option is here, with tasks and awaits as is comfortable; what
happens per request is in `connection.py`. It knows no copies, groups or primaries.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import attrs

from holdfast.errors import (
    ConflictError,
    HoldfastError,
    NotFoundError,
    UnavailableError,
)
from holdfast.interfaces.frontend import PassTo, VolumeProvider
from holdfast.interfaces.passing import Passed
from holdfast.node.nbd.connection import Connection, Limits
from holdfast.node.nbd.export import Export
from holdfast.node.nbd.handshake import (
    ExportInfo,
    Handshake,
    ListQuestion,
    Phase,
    Question,
)
from holdfast.node.nbd.protocol import Rep
from holdfast.sockets import bracketed, split_address
from holdfast.units import MIB, REQUEST_BYTES_MAX, counted

_log = logging.getLogger("holdfast.nbd")

CLOSE_TIMEOUT_S = 5.0
"""How long closing waits for connections to end."""


@attrs.frozen
class NbdOptions:
    """`[frontend.nbd]`: network block devices."""

    listen: str = "127.0.0.1:10809"
    """Address and port to listen at; port 0 takes a free one."""
    handshake_timeout_s: float = attrs.field(
        default=30.0, validator=attrs.validators.gt(0), metadata={"unit": "s"}
    )
    """How long a client may take to choose an export."""
    connections_max: int = attrs.field(default=256, validator=attrs.validators.ge(1))
    """Client connections at a time, all volumes together; more are turned away."""
    inflight_bytes_max: int = attrs.field(
        default=2 * REQUEST_BYTES_MAX,
        validator=attrs.validators.ge(MIB),
        metadata={"unit": "bytes"},
    )
    """Bytes of unanswered reads and writes per connection beyond which no more are taken."""
    inflight_requests_max: int = attrs.field(default=1024, validator=attrs.validators.ge(1))
    """Unanswered requests per connection beyond which no more are taken."""

    def __attrs_post_init__(self) -> None:
        """Refuse what is no address."""
        split_address(self.listen)


class NbdFrontendDriver:
    """The entry point `nbd` of `holdfast.frontend`."""

    API_VERSION: ClassVar[int] = 1
    name: ClassVar[str] = "nbd"
    Options: ClassVar[type[NbdOptions]] = NbdOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {
        "options": {"listen": "127.0.0.1:0"},
        "client": "holdfast.node.nbd.client:NbdClient.connect",
    }

    @staticmethod
    async def open(options: NbdOptions, provider: VolumeProvider) -> NbdFrontend:
        """Listen, and return the frontend.

        Raises:
            UnavailableError: The address cannot be had.
        """
        frontend = NbdFrontend(options, provider)
        await frontend.listen()
        return frontend

    @staticmethod
    def open_adopting(options: NbdOptions, provider: VolumeProvider) -> NbdFrontend:
        """Return a frontend that listens to nothing and serves the clients given to `adopt`."""
        return NbdFrontend(options, provider)


@attrs.define(eq=False)
class NbdFrontend:
    """A running NBD frontend; open it with `NbdFrontendDriver.open`."""

    options: NbdOptions
    provider: VolumeProvider = attrs.field(repr=False)
    address: str = ""
    _server: asyncio.Server | None = attrs.field(default=None, repr=False)
    _connections: set[Connection] = attrs.field(factory=set, repr=False)
    _exports: dict[str, Export] = attrs.field(factory=dict)
    _locks: dict[str, asyncio.Lock] = attrs.field(factory=dict, repr=False)
    """One per volume name: opening and giving up its session take turns."""
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set, repr=False)
    _is_closing: bool = False
    _emptied: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)
    """Set when the last connection has gone after `aclose` began."""
    _totals: dict[str, float] = attrs.field(factory=dict)
    """Counters of connections that are gone."""
    pass_to: PassTo | None = attrs.field(default=None, repr=False)

    async def listen(self) -> None:
        """Begin to listen; raises `UnavailableError` naming the address when it cannot be had."""
        host, port = split_address(self.options.listen)
        limits = self._limits()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Connection(self, limits), host, port)
        except OSError as error:
            raise UnavailableError(
                f"The NBD frontend cannot listen at {self.options.listen}: {error.strerror}.",
                hint="Choose another address with frontend.nbd.listen, or end what holds it.",
            ) from error
        bound = self._server.sockets[0].getsockname()
        self.address = f"{bracketed(bound[0])}:{bound[1]}"

    def _limits(self) -> Limits:
        return Limits(
            handshake_timeout_s=self.options.handshake_timeout_s,
            inflight_bytes_max=self.options.inflight_bytes_max,
            inflight_requests_max=self.options.inflight_requests_max,
        )

    async def adopt(self, passed: Passed) -> None:
        """Go on with a client that another process of this node has accepted."""
        adopted = socket.socket(fileno=passed.fd)
        try:
            adopted.setblocking(False)
            handshake = Handshake.resumed(passed.state)
            await asyncio.get_running_loop().create_connection(
                lambda: Connection(self, self._limits(), handshake=handshake), sock=adopted
            )
        except BaseException:
            adopted.close()
            raise

    def uri(self, volume: str, host: str) -> str:
        """Return the URI at which clients on other machines find the volume."""
        port = split_address(self.address)[1]
        return f"nbd://{bracketed(host)}:{port}/{quote(volume, safe='')}"

    def metrics(self) -> Mapping[str, float]:
        """Return gauges of now and counters since the start."""
        totals = dict(self._totals)
        for connection in self._connections:
            _count(totals, connection)
        return {
            "connections": len(self._connections),
            "sessions": len(self._exports),
            "connections_total": totals.get("connections_total", 0),
            "requests_total": totals.get("requests_total", 0),
            "read_bytes_total": totals.get("read_bytes_total", 0),
            "written_bytes_total": totals.get("written_bytes_total", 0),
            "errors_total": totals.get("errors_total", 0),
        }

    async def aclose(self) -> None:
        """Stop listening, close every connection, give every session up. Idempotent."""
        self._is_closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        # Every lost connection leaves its export, and the last one's task gives the session up.
        if self._connections:
            await self._emptied.wait()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --- connections -----------------------------------------------------------------------

    def on_connected(self, connection: Connection) -> bool:
        """Take a new connection in; False when there are too many."""
        self._connections.add(connection)
        return len(self._connections) <= self.options.connections_max and not self._is_closing

    def on_question(self, connection: Connection, question: Question) -> None:
        """Answer a question of a handshake in a task of its own."""
        self._spawn(self._answer(connection, question))

    def on_disconnected(self, connection: Connection) -> None:
        """Count what the connection did; give its session up when it was the last one."""
        self._connections.discard(connection)
        if not connection.is_passed_on:
            _count(self._totals, connection)
        if self._is_closing and not self._connections:
            self._emptied.set()
        export = connection.export
        if export is not None and connection.machine is not None:
            del export.connections[connection.machine.number]
            if not export.connections and not export.is_ended:
                self._spawn(self._give_up(export))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("NBD: a session could not be given up in order", exc_info=task.exception())

    # --- handshakes ------------------------------------------------------------------------

    async def _answer(self, connection: Connection, question: Question) -> None:
        handshake = connection.handshake
        try:
            if isinstance(question, ListQuestion):
                handshake.answer_list(await self.provider.names())
            elif question.enters:
                await self._enter(connection, question.name)
                return
            else:
                handshake.answer_export(await self._describe(question.name))
        except HoldfastError as error:
            handshake.refuse(_rep_of(error), str(error))
        except Exception:  # noqa: BLE001 - a provider's bug must not leave the client waiting.
            _log.exception("NBD client %s: its question could not be answered", connection.peer)
            if handshake.phase is not Phase.ASKING:
                connection.abort()  # It was answered already: the session broke under it.
                return
            handshake.refuse(Rep.ERR_PLATFORM, "The node failed to answer; its log says why.")
        connection.answered()

    async def _describe(self, asked: str) -> ExportInfo:
        spec = await self.provider.describe(await self._resolve(asked))
        export = self._exports.get(spec.name)
        return ExportInfo(
            name=spec.name,
            size_bytes=export.size_bytes if export else spec.size_bytes,
            read_only=export is not None and not export.writable,
            description=f"Holdfast volume {spec.name}, {counted(spec.replicas, 'replica')}",
        )

    async def _resolve(self, asked: str) -> str:
        """Return the volume that a name means: the empty one means the only one there is."""
        if asked:
            return asked
        names = await self.provider.names()
        if len(names) == 1:
            return names[0]
        raise NotFoundError(
            f"There are {len(names)} volumes, so the default export names none.",
            hint="Name the volume: nbd://HOST:PORT/VOLUME.",
        )

    async def _enter(self, connection: Connection, asked: str) -> None:
        """Begin transmission on the shared session, which is opened when there is none."""
        info = await self._describe(asked)
        if self.pass_to is not None:
            spec = await self.provider.describe(info.name)
            if connection.is_open and self.pass_to(spec.id, connection.pass_on):
                return
        async with self._locks.setdefault(info.name, asyncio.Lock()):
            export = self._exports.get(info.name)
            if export is None:
                export = Export(info.name, self._on_ended)
                export.session = await self.provider.open(info.name, export)
                if export.is_ended:
                    raise UnavailableError(f"Volume {info.name} was closed just now.")
                self._exports[info.name] = export
            if connection.is_open and not self._is_closing:
                connection.enter(
                    export,
                    attrs.evolve(info, size_bytes=export.size_bytes, read_only=not export.writable),
                )
        if not export.connections:
            await self._give_up(export)  # The client left while the session was being opened.

    async def _give_up(self, export: Export) -> None:
        """Give the session up unless a new connection came meanwhile."""
        async with self._locks[export.name]:
            if export.connections or self._exports.get(export.name) is not export:
                return
            del self._exports[export.name]
            assert export.session is not None
            await export.session.aclose()

    def _on_ended(self, export: Export, sentence: str) -> None:
        _log.info("NBD export %s: its session ended. %s", export.name, sentence)
        if self._exports.get(export.name) is export:
            del self._exports[export.name]


def _rep_of(error: HoldfastError) -> Rep:
    if isinstance(error, NotFoundError):
        return Rep.ERR_UNKNOWN
    if isinstance(error, ConflictError):
        return Rep.ERR_POLICY
    if isinstance(error, UnavailableError):
        return Rep.ERR_SHUTDOWN  # "Not now": libnbd tells its user ESHUTDOWN.
    return Rep.ERR_PLATFORM


def _count(totals: dict[str, float], connection: Connection) -> None:
    totals["connections_total"] = totals.get("connections_total", 0) + 1
    machine = connection.machine
    if machine is not None:
        for key, value in (
            ("requests_total", machine.requests_taken),
            ("read_bytes_total", machine.read_bytes),
            ("written_bytes_total", machine.written_bytes),
            ("errors_total", machine.errors_sent),
        ):
            totals[key] = totals.get(key, 0) + value
