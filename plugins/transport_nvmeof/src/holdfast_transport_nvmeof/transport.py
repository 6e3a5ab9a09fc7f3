"""The driver `nvme-tcp` of transports: listening, connecting, and the NVMe handshake on both sides.

See `replication.py` for what a link is. There is no TLS here yet; both ends belong on a network of
their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from holdfast.errors import HoldfastError, RefusedError, UnavailableError, UsageError
from holdfast.heap import keep_warm
from holdfast.interfaces.transport import Accept, LinkHandler
from holdfast.messages import Hello
from holdfast.sockets import Counters, bracketed, split_address
from holdfast_transport_nvmeof.fabrics import DISCOVERY_NQN
from holdfast_transport_nvmeof.host_stream import HostStream, Press
from holdfast_transport_nvmeof.identify import VENDOR_SPECIFIC, Cns
from holdfast_transport_nvmeof.initiator import NvmeTcpHost
from holdfast_transport_nvmeof.link import NvmeLink
from holdfast_transport_nvmeof.listening import NvmeListener
from holdfast_transport_nvmeof.replication import (
    ENTRIES_MAX,
    VERSION,
    Advertised,
    cluster_of,
    host_of,
    subsystem_of,
)
from holdfast_transport_nvmeof.status import NvmeStatusError
from holdfast_transport_nvmeof.transport_options import NvmeTcpTransportOptions


class NvmeTcpTransport:
    """One node's transport over NVMe/TCP."""

    def __init__(self, options: NvmeTcpTransportOptions, cluster: str, node: str) -> None:
        """Prepare; nothing is opened yet."""
        self.options = options
        self.cluster = cluster
        self.node = node
        self.counters = Counters()
        self.close_timeout_s = options.close_timeout_s
        self._press = Press()
        self._links: dict[NvmeLink, NvmeTcpHost] = {}
        """Links that this node opened, with their controllers."""
        self._listeners: list[NvmeListener] = []
        self._closing: set[asyncio.Task[None]] = set()

    async def listen(self, accept: Accept) -> NvmeListener:
        """Listen where the options say.

        Raises:
            UnavailableError: The address cannot be had; names it and who may hold it.
        """
        host, port = self.options.listen, self.options.port
        listener = NvmeListener(self.options, self.cluster, self.node, self.counters, accept)
        try:
            await listener.open(host, port)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise UnavailableError(
                f"Cannot listen on {bracketed(host)}:{port}: {reason}.",
                hint="Set `listen` and `port` under [transport.nvme-tcp]; "
                f"`ss -ltnp 'sport = :{port}'` shows who holds the port.",
            ) from error
        self._listeners.append(listener)
        return listener

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> NvmeLink:
        """Open a link to `address` and send `hello` as its first message.

        Raises:
            ConnectionRefusedError: Nothing listens there: the peer's process is gone.
            UnavailableError: No connection within `connect_timeout_s`.
            RefusedError: The peer speaks another version, or is of another cluster.
        """
        try:
            host, port = split_address(address)
        except ValueError as error:
            raise UsageError(f"{error}.") from error
        controller: NvmeTcpHost | None = None
        try:
            async with asyncio.timeout(self.options.connect_timeout_s):
                controller, name = await self._controller(host, port)
                await controller.connect_queue(1)
        except BaseException as error:
            if controller is not None:
                await controller.aclose()
            if isinstance(error, TimeoutError):
                raise UnavailableError(
                    f"{address} did not answer in {self.options.connect_timeout_s:g} s."
                ) from error
            if isinstance(error, NvmeStatusError):
                raise UnavailableError(f"{address} refused the connection: {error}.") from error
            if isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError):
                raise UnavailableError(f"{address} cannot be reached: {error}.") from error
            raise
        return self._begin(controller, f"{name}@{address}", hello, handler)

    async def _controller(self, host: str, port: int) -> tuple[NvmeTcpHost, str]:
        """Connect an admin queue and learn whom it belongs to."""
        try:
            controller = await NvmeTcpHost.connect(
                host,
                port,
                subsystem_of(self.cluster),
                queues=0,
                entries=ENTRIES_MAX,
                digests=self.options.digests.bits,
                kato_ms=0,
                host=host_of(self.cluster, self.node),
            )
        except NvmeStatusError as error:
            raise await self._refusal(host, port, error) from error
        try:
            page = await controller.identify(Cns.CONTROLLER)
            return controller, _node_in(page[VENDOR_SPECIFIC:], f"{bracketed(host)}:{port}")
        except BaseException:
            await controller.aclose()
            raise

    async def _refusal(self, host: str, port: int, error: NvmeStatusError) -> HoldfastError:
        """Return what to say of a refused Connect: the discovery log names who lives there."""
        where = f"{bracketed(host)}:{port}"
        found: set[str] = set()
        with contextlib.suppress(OSError, HoldfastError):
            discovery = await NvmeTcpHost.connect(host, port, DISCOVERY_NQN, kato_ms=0)
            try:
                entries = await discovery.discover()
            finally:
                await discovery.aclose()
            found = {name for e in entries if (name := cluster_of(e.nqn)) is not None}
        if found and self.cluster not in found:
            return RefusedError(
                f"{where} belongs to cluster {found.pop()!r}, this node to {self.cluster!r}.",
                hint="Check the address, and the cluster name of both nodes.",
            )
        return RefusedError(f"{where} refused the connection: {error}.")

    def _begin(
        self, controller: NvmeTcpHost, peer: str, hello: Hello, handler: LinkHandler
    ) -> NvmeLink:
        """Make a link of a controller's I/O queue."""
        connection = controller.queues.pop()
        stream = HostStream(connection.queue.framing, self.counters, self._press)
        connection_transport, slab = connection.hand_over()
        link = NvmeLink(self, stream, slab, peer)
        self._links[link] = controller
        link.begin(connection_transport, handler.on_messages)
        link.serve(handler)
        self.options.tune(connection_transport)
        link.send((hello,))
        controller.admin.when_closed(link.orphaned_later)
        return link

    def left(self, link: NvmeLink) -> None:
        """Take note that a link is gone; its controller goes as well."""
        controller = self._links.pop(link, None)
        if controller is not None:
            controller.admin.abort()

    def metrics(self) -> Mapping[str, float]:
        """Return the counters; see `Counters`."""
        return self.counters.as_metrics()

    async def aclose(self) -> None:
        """Abort every link and stop every listener."""
        for link in tuple(self._links):
            link.abort()
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.aclose()


def _node_in(area: bytes, where: str) -> str:
    """Return the node that a controller's vendor-specific bytes name.

    Raises:
        RefusedError: It is none of ours, or speaks another version.
    """
    try:
        version, advertised = Advertised.unpack(area)
    except ValueError as error:
        raise RefusedError(f"{where} presents itself with rubbish: {error}.") from error
    if advertised is None:
        raise RefusedError(
            f"{where} speaks version {version} of replication over NVMe/TCP, this node {VERSION}.",
            hint="Upgrade the older node.",
        )
    return advertised.node


class NvmeTcpTransportDriver:
    """What the entry point `nvme-tcp` in `holdfast.transport` names."""

    API_VERSION = 1
    name = "nvme-tcp"
    Options: type[Any] = NvmeTcpTransportOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {
        "options": {"port": 0},
        "capabilities": {"compresses": False},
    }

    @staticmethod
    async def open(options: NvmeTcpTransportOptions, cluster: str, node: str) -> NvmeTcpTransport:
        """Return the transport of `node`, a member of `cluster`."""
        keep_warm(options.warm_heap_bytes)
        return NvmeTcpTransport(options, cluster, node)
