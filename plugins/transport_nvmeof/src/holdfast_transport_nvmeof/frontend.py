"""The NVMe/TCP frontend of one node: listens, answers Connect, keeps one session per volume.

What happens per connection is here, with tasks and awaits as is comfortable; what happens per command
is in `connection.py` and the machines. It knows no copies or groups; of primaries only whether this
node's path is the best one, which it tells hosts as ANA states.

One timer runs while hosts are connected: it ends controllers whose hosts are silent, and lets hosts
know of changed paths and volumes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import ClassVar
from urllib.parse import quote

import attrs

from holdfast.errors import ConfigError, HoldfastError, NotFoundError, UnavailableError
from holdfast.interfaces.frontend import VolumeProvider
from holdfast.messages import Request
from holdfast.model import VolumeSpec
from holdfast.sockets import bracketed, split_address
from holdfast_transport_nvmeof import secrets_file
from holdfast_transport_nvmeof.authentication import ControllerAuthentication
from holdfast_transport_nvmeof.connecting import (
    RefusalError,
    admit,
    check_admin,
    check_size,
    invalid_data,
    new_controller,
)
from holdfast_transport_nvmeof.connection import Connection
from holdfast_transport_nvmeof.controller import Controller, Notice
from holdfast_transport_nvmeof.discovery import FRONTEND, listed
from holdfast_transport_nvmeof.fabrics import (
    DISCOVERY_NQN,
    IPO_CNTLID,
    IPO_HOSTNQN,
    IPO_QID,
    IPO_SUBNQN,
    Connect,
)
from holdfast_transport_nvmeof.io_commands import QueueLimits
from holdfast_transport_nvmeof.namespace import Namespace, nqn_of, volume_of
from holdfast_transport_nvmeof.options import NvmeTcpOptions
from holdfast_transport_nvmeof.queue import TargetQueue
from holdfast_transport_nvmeof.reservations import Reservations
from holdfast_transport_nvmeof.status import ConnectStatus, Status, name_of_status
from holdfast_transport_nvmeof.subsystem import Subsystem

_log = logging.getLogger("holdfast.nvme_tcp")

CLOSE_TIMEOUT_S = 5.0
"""How long closing waits for sessions to be given up."""
TICK_S = 0.25
DISCOVERY_TICKS = 8
"""Every so many ticks the volumes are listed anew for discovery controllers."""
H2C_BYTES_MAX = 1 << 20


class NvmeTcpFrontendDriver:
    """The entry point `nvme-tcp` of `holdfast.frontend`."""

    API_VERSION: ClassVar[int] = 1
    name: ClassVar[str] = "nvme-tcp"
    Options: ClassVar[type[NvmeTcpOptions]] = NvmeTcpOptions

    @staticmethod
    async def open(options: NvmeTcpOptions, provider: VolumeProvider) -> NvmeTcpFrontend:
        """Listen, and return the frontend.

        Raises:
            ConfigError: The file of secrets is not usable.
            UnavailableError: An address cannot be had.
        """
        if options.dhchap_file:
            secrets_file.read(options.dhchap_file)
        frontend = NvmeTcpFrontend(options, provider)
        try:
            await frontend.listen()
        except UnavailableError:
            await frontend.aclose()
            raise
        return frontend


@attrs.define(eq=False)
class NvmeTcpFrontend:
    """A running NVMe/TCP frontend; open it with `NvmeTcpFrontendDriver.open`."""

    options: NvmeTcpOptions
    provider: VolumeProvider = attrs.field(repr=False)
    address: str = ""
    discovery_address: str = ""
    """Really bound; empty when there is none."""
    _servers: list[asyncio.Server] = attrs.field(factory=list, repr=False)
    _connections: set[Connection] = attrs.field(factory=set, repr=False)
    _subsystems: dict[str, Subsystem] = attrs.field(factory=dict, repr=False)
    """By volume name; those with a host."""
    _discovery: set[Connection] = attrs.field(factory=set, repr=False)
    """Admin queues of discovery controllers."""
    _closing: dict[str, asyncio.Task[None]] = attrs.field(factory=dict, repr=False)
    """By volume name: how the last session was given up; the next one waits for that."""
    _tasks: set[asyncio.Task[None]] = attrs.field(factory=set, repr=False)
    _is_closing: bool = False
    _emptied: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)
    _timer: asyncio.TimerHandle | None = None
    _ticks: int = 0
    _totals: dict[str, float] = attrs.field(factory=dict)
    """Counters of connections that are gone."""

    async def listen(self) -> None:
        """Begin to listen; raises `UnavailableError` naming the address when it cannot be had."""
        self.address = await self._listen_at(self.options.listen, "listen")
        if self.options.discovery_listen:
            wanted = self.options.discovery_listen
            self.discovery_address = await self._listen_at(wanted, "discovery_listen")

    async def _listen_at(self, address: str, key: str) -> str:
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._new_connection, host, port)
        except OSError as error:
            raise UnavailableError(
                f"The NVMe/TCP frontend cannot listen at {address}: {error.strerror}.",
                hint=f"Choose another address with frontend.nvme-tcp.{key}, or end what holds it.",
            ) from error
        self._servers.append(server)
        bound = server.sockets[0].getsockname()
        return f"{bracketed(bound[0])}:{bound[1]}"

    def _new_connection(self) -> Connection:
        limits = QueueLimits(
            in_capsule_bytes=self.options.in_capsule_bytes,
            h2c_bytes_max=H2C_BYTES_MAX,
            inflight_bytes_max=self.options.inflight_bytes_max,
        )
        return Connection(self, TargetQueue(limits), self.options.connect_timeout_s)

    def uri(self, volume: str, host: str) -> str:
        """Return the URI at which hosts find the volume: `nvme+tcp://HOST:PORT/NQN`."""
        port = split_address(self.address)[1]
        return f"nvme+tcp://{bracketed(host)}:{port}/{quote(nqn_of(volume), safe=':')}"

    def metrics(self) -> Mapping[str, float]:
        """Return gauges of now and counters since the start."""
        totals = dict(self._totals)
        for connection in self._connections:
            _count(totals, connection)
        names = ("connections", "commands", "read_bytes", "written_bytes", "errors")
        controllers = sum(len(s.controllers) for s in self._subsystems.values())
        return {
            "connections": len(self._connections),
            "controllers": controllers + len(self._discovery),
            "sessions": sum(s.session is not None for s in self._subsystems.values()),
            **{f"{name}_total": totals.get(name, 0) for name in names},
        }

    async def aclose(self) -> None:
        """Stop listening, close every connection, give every session up. Idempotent."""
        self._is_closing = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()
        if self._connections:
            await self._emptied.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

    def on_requests(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Pass requests on to the volume's session."""
        controller = connection.controller
        assert controller is not None
        assert controller.namespace is not None
        self._subsystems[controller.namespace.name].submit(connection, requests)

    def on_disconnected(self, connection: Connection) -> None:
        """Count what the connection did; with an admin queue its whole controller goes."""
        self._connections.discard(connection)
        self._discovery.discard(connection)
        _count(self._totals, connection)
        if self._is_closing and not self._connections:
            self._emptied.set()
        controller = connection.controller
        name = volume_of(controller.facts.subsystem) if controller is not None else None
        subsystem = self._subsystems.get(name or "")
        if subsystem is None or controller is None:
            return
        io = connection.queue.io
        if io is not None:
            if subsystem.queues.get(io.number) is connection:
                del subsystem.queues[io.number]
        elif subsystem.controllers.get(controller.facts.cntlid) is connection:
            del subsystem.controllers[controller.facts.cntlid]
            for queue in list(subsystem.queues.values()):
                if queue.controller is controller:
                    queue.abort()
        if subsystem.is_unused:
            self._forget(subsystem)

    def _forget(self, subsystem: Subsystem) -> None:
        """Give the subsystem's session up; the last host has left."""
        if self._subsystems.get(subsystem.name) is subsystem:
            del self._subsystems[subsystem.name]
        session, subsystem.session = subsystem.session, None
        if session is not None:
            self._closing[subsystem.name] = self._spawn(session.aclose())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("NVMe/TCP: work for a host failed", exc_info=task.exception())

    # --- sessions --------------------------------------------------------------------------

    def _open_session(self, subsystem: Subsystem) -> None:
        self._spawn(self._open(subsystem))

    async def _open(self, subsystem: Subsystem) -> None:
        closing = self._closing.get(subsystem.name)
        if closing is not None:
            await asyncio.wait([closing])
        try:
            session = await self.provider.open(
                subsystem.name, subsystem, consumer=subsystem.consumer
            )
        except HoldfastError as error:
            _log.warning("NVMe/TCP volume %s: %s", subsystem.name, error)
            subsystem.refused(error)
            return
        except Exception:
            subsystem.refused(UnavailableError(f"Volume {subsystem.name} cannot be opened."))
            raise
        if subsystem.is_unused:
            await session.aclose()  # The host left while the session was being opened.
        else:
            subsystem.opened(session)

    # --- Connect ---------------------------------------------------------------------------

    def on_question(self, connection: Connection) -> None:
        """Answer Connect: I/O queues at once, admin queues in a task of their own."""
        question = connection.queue.question
        assert question is not None
        if question.qid:
            self._decide(connection, question, None)
        elif question.subsystem == DISCOVERY_NQN:
            self._spawn(self._connect_discovery(connection, question))
        else:
            self._spawn(self._connect_admin(connection, question))

    async def _connect_admin(self, connection: Connection, question: Connect) -> None:
        name = volume_of(question.subsystem)
        spec: VolumeSpec | None = None
        try:
            if name is not None:
                spec = await self.provider.describe(name)
        except NotFoundError:
            pass
        except HoldfastError as error:
            _log.warning("NVMe/TCP host %s: %s", connection.peer, error)
            connection.queue.refuse(ConnectStatus.CONNECT_CONTROLLER_BUSY)
            connection.answered()
            return
        if connection.is_open:
            self._decide(connection, question, spec)

    async def _connect_discovery(self, connection: Connection, question: Connect) -> None:
        entries = await listed(
            self.options, self.provider, own=self.address, seen=connection.local_host
        )
        if not connection.is_open:
            return
        try:
            # The name has to be a known one, but is not proved: nvme-cli gives the kernel no secret
            # for discovery. What is told lets nobody in.
            admit(question, self.options)
            check_admin(question)
        except (RefusalError, ConfigError) as refusal:
            self._refuse(connection, question, refusal)
            return
        controller = new_controller(question, self.options)
        controller.log.change(entries)
        self._discovery.add(connection)
        self._accept(connection, controller, None)

    def _decide(self, connection: Connection, question: Connect, spec: VolumeSpec | None) -> None:
        try:
            authentication = admit(question, self.options)
            check_size(question, self.options)
            if question.qid:
                self._join(connection, question, authentication)
            else:
                if spec is None:
                    raise invalid_data(IPO_SUBNQN)
                check_admin(question)
                self._begin(connection, question, spec, authentication)
        except (RefusalError, ConfigError) as refusal:
            self._refuse(connection, question, refusal)

    def _begin(
        self,
        connection: Connection,
        question: Connect,
        spec: VolumeSpec,
        authentication: ControllerAuthentication | None,
    ) -> None:
        """Make a controller for an admin queue."""
        subsystem = self._subsystems.get(spec.name)
        if subsystem is None:
            space = Namespace.of(spec)
            if self.options.reservations:
                space.reservations = Reservations(is_alone=self._is_alone)
            subsystem = Subsystem(spec, space, self._open_session)
            subsystem.follow(self.provider.path(spec.name))
            self._subsystems[spec.name] = subsystem
        controller = new_controller(question, self.options, subsystem)
        subsystem.controllers[controller.facts.cntlid] = connection
        self._accept(connection, controller, authentication)

    def _is_alone(self) -> bool:
        return not self.provider.addresses(FRONTEND)

    def _join(
        self,
        connection: Connection,
        question: Connect,
        authentication: ControllerAuthentication | None,
    ) -> None:
        """Add an I/O queue to its controller."""
        subsystem = self._subsystems.get(volume_of(question.subsystem) or "")
        if subsystem is None:
            raise invalid_data(IPO_SUBNQN)
        admin = subsystem.controllers.get(question.cntlid)
        controller = admin.controller if admin is not None else None
        if controller is None:
            raise invalid_data(IPO_CNTLID)
        if (controller.host, controller.host_id) != (question.host, question.host_id):
            raise invalid_data(IPO_HOSTNQN)
        if question.qid > self.options.queues_max:
            raise RefusalError(ConnectStatus.CONNECT_INVALID_PARAMETERS, IPO_QID)
        if not controller.is_ready:
            raise RefusalError(Status.COMMAND_SEQUENCE_ERROR)
        for other in subsystem.queues.values():
            if other.controller is controller and other.queue.wire.qid == question.qid:
                raise RefusalError(Status.COMMAND_SEQUENCE_ERROR)
        number = subsystem.next_number()
        subsystem.queues[number] = connection
        connection.queue.accept(controller, number, authentication)
        connection.answered()

    def _accept(
        self,
        connection: Connection,
        controller: Controller,
        authentication: ControllerAuthentication | None,
    ) -> None:
        connection.queue.accept(controller, authentication=authentication)
        facts = controller.facts
        _log.info(
            "NVMe/TCP host %s at %s: controller %d of %s begins.",
            *(controller.host, connection.peer, facts.cntlid, facts.subsystem),
        )
        connection.answered()
        self._arm()

    def _refuse(
        self, connection: Connection, question: Connect, why: RefusalError | ConfigError
    ) -> None:
        if isinstance(why, ConfigError):
            refusal, told = RefusalError(ConnectStatus.CONNECT_CONTROLLER_BUSY), f" {why.message}"
        else:
            refusal, told = why, ""
        _log.warning(
            "NVMe/TCP host %s at %s: its Connect of queue %d of %s is refused: %s.%s",
            *(question.host, connection.peer, question.qid, question.subsystem),
            *(name_of_status(refusal.status, is_fabrics=True), told),
        )
        connection.queue.refuse(refusal.status, refusal.dw0)
        connection.answered()

    # --- time ------------------------------------------------------------------------------

    def _arm(self) -> None:
        if self._timer is None and not self._is_closing:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._ticks += 1
        now = asyncio.get_running_loop().time()
        admin = [c for s in self._subsystems.values() for c in s.controllers.values()]
        for connection in (*admin, *self._discovery):
            controller = connection.controller
            if controller is not None and controller.has_expired(now):
                connection.hang_up(
                    f"Controller {controller.facts.cntlid} heard nothing from its host for "
                    f"{controller.kato_ms / 1000:g} s."
                )
        for name, subsystem in self._subsystems.items():
            subsystem.follow(self.provider.path(name))
        if self._discovery and self._ticks % DISCOVERY_TICKS == 0:
            self._spawn(self._refresh_discovery())
        if self._subsystems or self._discovery:
            self._arm()

    # --- discovery -------------------------------------------------------------------------

    async def _refresh_discovery(self) -> None:
        for connection in list(self._discovery):
            entries = await listed(
                self.options, self.provider, own=self.address, seen=connection.local_host
            )
            controller = connection.controller
            if controller is not None and controller.log.change(entries):
                controller.notify(Notice.DISCOVERY_LOG_PAGE_CHANGE)
                connection.send_events()


def _count(totals: dict[str, float], own: Connection) -> None:
    totals.update({k: totals.get(k, 0) + value for k, value in own.counters().items()})
