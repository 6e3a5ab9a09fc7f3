"""The driver `tcp`: listening, connecting, and the limits on both.

A place for TLS is kept where sockets meet asyncio, `create_server` and `create_connection`: both take
a context, and nothing above or below them changes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import anyio

from holdfast.errors import UnavailableError, UsageError
from holdfast.heap import keep_warm
from holdfast.interfaces.passing import Passed
from holdfast.interfaces.transport import Accept, LinkHandler
from holdfast.messages import Hello
from holdfast.sockets import Counters
from holdfast_transport_tcp.accepted import AcceptedLink, AdoptedLink
from holdfast_transport_tcp.compression import Codec, codec_named
from holdfast_transport_tcp.encoder import Press
from holdfast_transport_tcp.link import ConnectingLink, TcpLink
from holdfast_transport_tcp.options import TcpOptions
from holdfast_transport_tcp.slab import Shelf

BACKLOG = 1024
COLLECT_S = 1.0
"""A link that has received nothing for once to twice this gives its slab back."""
"""After a node's restart all its peers connect within a second."""


class TcpListener:
    """An open listening socket and the connections that came through it."""

    def __init__(self, room: TcpTransport, accept: Accept) -> None:
        self.accept = accept
        self.address = ""
        self._room = room
        self._server: asyncio.Server | None = None
        self._links: set[AcceptedLink] = set()
        self._half_open: set[AcceptedLink] = set()
        self._by_node: Counter[str] = Counter()

    async def open(self, listening: socket.socket) -> None:
        """Accept from `listening`, a bound socket, from here on."""
        self.address = _join(*listening.getsockname()[:2])
        self._server = await asyncio.get_running_loop().create_server(
            lambda: AcceptedLink(self._room, self), sock=listening, backlog=BACKLOG
        )

    async def aclose(self) -> None:
        """Stop listening and abort every link that was accepted."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for link in tuple(self._links):
            link.abort()
        with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
            await server.wait_closed()

    # --- what accepted links ask --------------------------------------------------------------

    def admit(self, link: AcceptedLink) -> str:
        """Return why a connection that has just arrived cannot stay, or an empty string."""
        options = self._room.options
        if len(self._half_open) >= options.half_open_max:
            return f"{options.half_open_max} connections are still in their handshake."
        if len(self._links) >= options.connections_max:
            return f"This node takes no more than {options.connections_max} connections."
        self._links.add(link)
        self._half_open.add(link)
        self._room.counters.connections_accepted += 1
        return ""

    def admit_node(self, link: AcceptedLink, node: str) -> str:
        """Return why a connection of `node` cannot stay, or an empty string."""
        most = self._room.options.connections_per_node_max
        if self._by_node[node] >= most:
            return f"Node {node} has {most} connections here already."
        self._by_node[node] += 1
        return ""

    def settled(self, link: AcceptedLink) -> None:
        """Take note that the handshake of `link` is over."""
        self._half_open.discard(link)

    def left(self, link: AcceptedLink) -> None:
        """Take note that the connection is gone."""
        self._half_open.discard(link)
        self._links.discard(link)
        if link.peer_node:
            self._by_node[link.peer_node] -= 1
            if not self._by_node[link.peer_node]:
                del self._by_node[link.peer_node]


class TcpTransport:
    """One node's transport over TCP."""

    def __init__(self, options: TcpOptions, cluster: str, node: str) -> None:
        self.options = options
        self.cluster = cluster
        self.node = node
        self.counters = Counters()
        self.shelf = Shelf()
        self.press = Press()
        self._collecting: asyncio.TimerHandle | None = None
        self._links: set[TcpLink] = set()
        self._listeners: list[TcpListener] = []
        self._adopting: TcpListener | None = None
        """Counts what other processes have accepted for this one; it listens to nothing."""
        self._codecs: dict[str, Codec | None] = {}

    async def listen(self, accept: Accept) -> TcpListener:
        """Listen where the options say.

        Raises:
            UnavailableError: The address cannot be had; names it and who may hold it.
        """
        where = _join(self.options.listen, self.options.port)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self.options.listen,
                self.options.port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
            family, _, _, _, address = found[0]
            listening = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise UnavailableError(
                f"{where} is no address to listen on: {error}.",
                hint="Set `listen` and `port` under [transport.tcp].",
            ) from error
        listener = TcpListener(self, accept)
        try:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listening.bind(address)
            await listener.open(listening)
        except OSError as error:
            listening.close()
            raise UnavailableError(
                f"Cannot listen on {where}: {os.strerror(error.errno or errno.EIO)}.",
                hint=f"`ss -ltnp 'sport = :{self.options.port}'` shows who holds the port.",
            ) from error
        self._listeners.append(listener)
        return listener

    async def connect(self, address: str, hello: Hello, handler: LinkHandler) -> ConnectingLink:
        """Open a link to `address` and send `hello` as its first message.

        Raises:
            ConnectionRefusedError: Nothing listens there: the peer's process is gone.
            UnavailableError: No connection within `connect_timeout_s`.
            RefusedError: The peer speaks another version, cluster or compression.
        """
        host, port = _split(address)
        timeout_s = self.options.connect_timeout_s
        link: ConnectingLink | None = None
        try:
            with anyio.fail_after(timeout_s):
                connected = await _connected_socket(host, port)
                try:
                    _, link = await asyncio.get_running_loop().create_connection(
                        lambda: ConnectingLink(self), sock=connected
                    )
                except BaseException:
                    connected.close()
                    raise
                await link.start(hello, handler)
        except BaseException as error:
            if link is not None:
                link.abort()
            if isinstance(error, TimeoutError):
                raise UnavailableError(f"{address} did not answer in {timeout_s:g} s.") from error
            if isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError):
                raise UnavailableError(f"{address} cannot be reached: {error}.") from error
            raise
        return link

    async def adopt(self, passed: Passed, accept: Accept) -> None:
        """Go on with a connection that another process of this node has accepted."""
        door = self._adopting = self._adopting or TcpListener(self, accept)
        adopted = socket.socket(fileno=passed.fd)
        try:
            adopted.setblocking(False)
            await asyncio.get_running_loop().create_connection(
                lambda: AdoptedLink(self, door, passed.state), sock=adopted
            )
        except BaseException:
            adopted.close()
            raise

    def codec(self, name: str) -> Codec | None:
        """Return the codec of a negotiated name; Zstandard's contexts take a MiB, so links share."""
        if name not in self._codecs:
            self._codecs[name] = codec_named(name)
        return self._codecs[name]

    def arrived(self, link: TcpLink) -> None:
        """Take note of a connection, and make the kernel notice when its peer dies."""
        self._links.add(link)
        self.counters.connections_open += 1
        if self._collecting is None:
            self._collect()
        link.watch_peer()

    def left(self, link: TcpLink) -> None:
        """Take note that a connection is gone."""
        self._links.discard(link)
        self.counters.connections_open -= 1

    def _collect(self) -> None:
        """Take slabs back from links that have fallen silent, as long as there are links."""
        self._collecting = None
        self.shelf.collect()
        if self._links:
            loop = asyncio.get_running_loop()
            self._collecting = loop.call_later(COLLECT_S, self._collect)

    def metrics(self) -> Mapping[str, float]:
        """Return the counters; see `Counters`."""
        return self.counters.as_metrics()

    async def aclose(self) -> None:
        """Abort every link and stop every listener."""
        listeners, self._listeners = self._listeners, []
        if self._collecting is not None:
            self._collecting.cancel()
        for link in tuple(self._links):
            link.abort()
        for listener in listeners:
            await listener.aclose()


class TcpTransportDriver:
    """What the entry point `tcp` in `holdfast.transport` names."""

    API_VERSION = 1
    name = "tcp"
    Options: type[Any] = TcpOptions
    CONFORMANCE: ClassVar[Mapping[str, Any]] = {"options": {"port": 0}}

    @staticmethod
    async def open(options: TcpOptions, cluster: str, node: str) -> TcpTransport:
        """Return the transport of `node`, a member of `cluster`."""
        keep_warm(options.warm_heap_bytes)
        return TcpTransport(options, cluster, node)


async def _connected_socket(host: str, port: int) -> socket.socket:
    """Return a socket connected to the first address of `host` that takes it.

    Raises:
        ConnectionRefusedError: Every address refused.
        OSError: The error of the last address that failed otherwise.
    """
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, _, _, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        candidate = socket.socket(family, socket.SOCK_STREAM)
        try:
            candidate.setblocking(False)
            await loop.sock_connect(candidate, address)
        except OSError as error:
            candidate.close()
            if failure is None or not isinstance(error, ConnectionRefusedError):
                failure = error
        except BaseException:
            candidate.close()
            raise
        else:
            return candidate
    raise failure or OSError(f"{host} has no address")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"{address!r} is no address of a node.", hint="Write host:port, or [IPv6]:port."
        )
    return host.strip("[]"), int(port)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
