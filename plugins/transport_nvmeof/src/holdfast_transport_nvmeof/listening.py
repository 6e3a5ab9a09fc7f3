"""The accepting side of the transport `nvme-tcp`: a discovery controller, and one controller per link.

A link arrives as two connections: the admin queue, whose host learns by Identify whom it talks to, and
the I/O queue, which becomes the link. Whoever is no node of the cluster gets as far as the status that
says so. Links are handed on with their first message; what links do is in `link.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import attrs

from holdfast.interfaces.transport import Accept
from holdfast.messages import Attach, PeerHello, Request, SessionOpen
from holdfast.sockets import Counters
from holdfast.units import KIB, VolumeId
from holdfast_transport_nvmeof.connecting import RefusalError, check_admin, invalid_data
from holdfast_transport_nvmeof.connection import Connection
from holdfast_transport_nvmeof.controller import Controller
from holdfast_transport_nvmeof.fabrics import (
    CNTLID_MAX,
    DISCOVERY_NQN,
    IPO_CNTLID,
    IPO_HOSTNQN,
    IPO_QID,
    IPO_SUBNQN,
    Connect,
)
from holdfast_transport_nvmeof.identify import ControllerFacts, ControllerType
from holdfast_transport_nvmeof.io_commands import QueueLimits
from holdfast_transport_nvmeof.link import NvmeLink
from holdfast_transport_nvmeof.logpages import DiscoveryEntry
from holdfast_transport_nvmeof.namespace import Namespace
from holdfast_transport_nvmeof.queue import TargetQueue
from holdfast_transport_nvmeof.replication import (
    CAPSULE_BYTES_MAX,
    ENTRIES_MAX,
    Advertised,
    node_of,
    subsystem_of,
)
from holdfast_transport_nvmeof.status import ConnectStatus, Status, name_of_status
from holdfast_transport_nvmeof.stream import QID
from holdfast_transport_nvmeof.target_stream import TargetStream
from holdfast_transport_nvmeof.transport_options import NvmeTcpTransportOptions

log = logging.getLogger("holdfast.transport.nvme_tcp")

HELLOS = (Attach, SessionOpen, PeerHello)
TERM_PATIENCE_S = 0.25
"""How long a stranger may take to close after a termination request."""
_LIMITS = QueueLimits(in_capsule_bytes=8 * KIB, h2c_bytes_max=4 * KIB, inflight_bytes_max=0)
"""Of the queues before they become links."""


@attrs.define(eq=False)
class Association:
    """One controller: its admin queue, and its link once that stands."""

    admin: Connection
    node: str
    timer: asyncio.TimerHandle | None = None
    link: NvmeLink | None = None


class NvmeListener:
    """An open listening socket and the connections that came through it; owns `Connection`s."""

    def __init__(
        self,
        options: NvmeTcpTransportOptions,
        cluster: str,
        node: str,
        counters: Counters,
        accept: Accept,
    ) -> None:
        """Prepare; `open` begins."""
        self.address = ""
        self.counters = counters
        self.close_timeout_s = options.close_timeout_s
        self._options = options
        self._cluster = cluster
        self._node = node
        self._accept = accept
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._associations: dict[int, Association] = {}
        """By controller id."""
        self._links: dict[NvmeLink, Association] = {}

    async def open(self, host: str, port: int) -> None:
        """Accept connections from here on; raises `OSError`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port, backlog=1024)
        bound = self._server.sockets[0].getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def aclose(self) -> None:
        """Stop listening and abort every link that was accepted. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in tuple(self._links):
            link.abort()
        for connection in tuple(self._connections):
            connection.abort()
        for association in self._associations.values():
            if association.timer is not None:
                association.timer.cancel()

    def _connection(self) -> Connection:
        timeout_s = self._options.connect_timeout_s
        return Connection(self, TargetQueue(_LIMITS), timeout_s, TERM_PATIENCE_S)

    # --- what connections ask ---------------------------------------------------------------

    def on_connected(self, connection: Connection) -> bool:
        """Take a new connection in; False when there are too many."""
        self._connections.add(connection)
        self.counters.connections_accepted += 1
        return len(self._connections) + len(self._links) <= self._options.connections_max

    def on_requests(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Never called: an I/O queue becomes a link before it takes a command."""

    def on_disconnected(self, connection: Connection) -> None:
        """With its admin queue a controller goes, and its link."""
        self._connections.discard(connection)
        controller = connection.controller
        if controller is None:
            return
        association = self._associations.pop(controller.facts.cntlid, None)
        if association is None:
            return
        if association.timer is not None:
            association.timer.cancel()
        if association.link is not None:
            association.link.orphaned_later()

    def on_question(self, connection: Connection) -> None:
        """Answer Connect."""
        question = connection.queue.question
        assert question is not None
        try:
            if question.subsystem == DISCOVERY_NQN:
                self._discover(connection, question)
            elif question.qid:
                association = self._joined(question)
                # Not from here: what is called has the connection's buffer in use.
                loop = asyncio.get_running_loop()
                loop.call_soon(self._promote, connection, association)
            else:
                self._begin(connection, question)
        except RefusalError as refusal:
            self.counters.connections_refused += 1
            log.warning(
                "Connect of queue %d of %s by %s at %s is refused: %s.",
                *(question.qid, question.subsystem, question.host, connection.peer),
                name_of_status(refusal.status, is_fabrics=True),
            )
            connection.queue.refuse(refusal.status, refusal.dw0)
            connection.answered()

    # --- Connect ----------------------------------------------------------------------------

    def _begin(self, connection: Connection, question: Connect) -> None:
        """Make a controller for an admin queue."""
        if question.subsystem != subsystem_of(self._cluster):
            raise invalid_data(IPO_SUBNQN)
        node = node_of(question.host, self._cluster)
        if not node:
            raise RefusalError(ConnectStatus.CONNECT_INVALID_HOST)
        check_admin(question)
        controller = self._controller(question, ControllerType.IO)
        association = Association(connection, node)
        self._associations[controller.facts.cntlid] = association
        connection.queue.accept(controller)
        connection.answered()
        association.timer = asyncio.get_running_loop().call_later(
            self._options.connect_timeout_s, connection.hang_up, "Its I/O queue did not come."
        )

    def _discover(self, connection: Connection, question: Connect) -> None:
        """Tell of the one subsystem that there is."""
        check_admin(question)
        controller = self._controller(question, ControllerType.DISCOVERY)
        port = int(self.address.rpartition(":")[2])
        nqn = subsystem_of(self._cluster)
        controller.log.change([DiscoveryEntry(nqn, connection.local_host, port)])
        connection.queue.accept(controller)
        connection.answered()

    def _controller(self, question: Connect, kind: ControllerType) -> Controller:
        while (cntlid := 1 + secrets.randbelow(CNTLID_MAX)) in self._associations:
            pass
        is_io = kind is ControllerType.IO
        nqn = subsystem_of(self._cluster)
        facts = ControllerFacts(
            cntlid=cntlid,
            kind=kind,
            subsystem=nqn if is_io else DISCOVERY_NQN,
            serial=self._node[:20],
            entries_max=ENTRIES_MAX,
            in_capsule_bytes=CAPSULE_BYTES_MAX,
            mdts=0,
            vendor=Advertised(self._cluster, self._node).pack() if is_io else b"",
        )
        # Which copy the namespace is, the first message says; before that it has no size.
        space = Namespace(nqn, VolumeId("0" * 32), 0) if is_io else None
        return Controller(facts, question.host, question.host_id, queues_max=1, namespace=space)

    def _joined(self, question: Connect) -> Association:
        """Return the association that an I/O queue belongs to."""
        association = self._associations.get(question.cntlid)
        controller = association.admin.controller if association is not None else None
        if association is None or controller is None:
            raise invalid_data(IPO_CNTLID)
        if (controller.host, controller.host_id) != (question.host, question.host_id):
            raise invalid_data(IPO_HOSTNQN)
        if question.qid != QID:
            raise RefusalError(ConnectStatus.CONNECT_INVALID_PARAMETERS, IPO_QID)
        if association.link is not None or not controller.is_ready or question.sq_flow_control:
            raise RefusalError(Status.COMMAND_SEQUENCE_ERROR)
        return association

    def _promote(self, connection: Connection, association: Association) -> None:
        """Make a link of an I/O queue."""
        controller = association.admin.controller
        assert controller is not None
        if not connection.is_open:
            return
        if not association.admin.is_open or association.link is not None:
            connection.abort()
            return
        if association.timer is not None:
            association.timer.cancel()
            association.timer = None
        connection.queue.accept(controller)
        framing = connection.queue.wire.framing
        self._connections.discard(connection)
        stream = TargetStream(framing, self.counters)
        transport, slab = connection.hand_over()
        link = NvmeLink(self, stream, slab, f"{association.node}@{connection.peer}")
        association.link = link
        self._links[link] = association
        link.begin(transport, lambda messages: self._greeted(link, messages))
        self._options.tune(transport)
        link.process()

    def _greeted(self, link: NvmeLink, messages: list[Any]) -> None:
        """Take the first message of a link."""
        hello, *rest = messages
        if not isinstance(hello, HELLOS):
            link.violated(f"A link cannot open with {type(hello).__name__}.")
            return
        handler = self._accept(link, hello)
        if handler is None:
            link.close("refused")
        else:
            link.serve(handler)
            if rest and link.is_open:
                handler.on_messages(rest)

    # --- what links say ---------------------------------------------------------------------

    def left(self, link: NvmeLink) -> None:
        """The link is gone; so is its controller."""
        association = self._links.pop(link, None)
        if association is not None and association.admin.is_open:
            association.admin.hang_up()
