"""The end of a connection that was connected to: let in, greeted, and given to whom it is for.

Which process of a node that is shows only in the first message; a link may go on in another one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Protocol

from holdfast.errors import HoldfastError, RemoteProtocolError
from holdfast.interfaces.passing import Passed
from holdfast.interfaces.transport import Accept
from holdfast.messages import Attach, PeerHello, SessionOpen
from holdfast.sockets import Counters
from holdfast_transport_tcp import preface
from holdfast_transport_tcp.decoder import OtherVersionError
from holdfast_transport_tcp.encoder import Encoder
from holdfast_transport_tcp.layout import HELLO_BYTES_MAX, PREFACE_BYTES_MAX
from holdfast_transport_tcp.link import Room, TcpLink, log
from holdfast_transport_tcp.preface import Preface, Welcome

HELLOS = (Attach, SessionOpen, PeerHello)


class Door(Protocol):
    """What an accepted link needs of the listener that it came through."""

    accept: Accept

    def admit(self, link: AcceptedLink) -> str:
        """Return why a connection that has just arrived cannot stay, or an empty string."""
        ...

    def admit_node(self, link: AcceptedLink, node: str) -> str:
        """Return why a connection of `node` cannot stay, or an empty string."""
        ...

    def settled(self, link: AcceptedLink) -> None:
        """Take note that the handshake of an accepted connection is over."""
        ...

    def left(self, link: AcceptedLink) -> None:
        """Take note that the connection is gone."""
        ...


class AcceptedLink(TcpLink):
    """The end that was connected to."""

    def __init__(self, room: Room, door: Door) -> None:
        super().__init__(room, limits=(PREFACE_BYTES_MAX, HELLO_BYTES_MAX))
        self._door = door
        self.peer_node = ""
        self._compression = ""
        self._arrived: list[Any] = []
        """While the door decides: the first message and what came with it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the peer to present itself, if there is room for it."""
        super().connection_made(transport)
        refusal = self._door.admit(self)
        if refusal:
            self._turned_away(refusal)
            return
        self._deliver = self._take_preface
        self._expect_within(self._room.options.connect_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another one."""
        self._door.left(self)
        super().connection_lost(exc)

    def _take_preface(self, messages: list[Any]) -> None:
        room = self._room
        hello = messages[0]
        if not isinstance(hello, Preface) or len(messages) > 1:
            self._violated(RemoteProtocolError("The peer did not begin with a handshake."))
            return
        self.peer = f"{hello.node}@{self.peer}"
        welcome = preface.answer(
            hello, cluster=room.cluster, node=room.node, choice=room.options.compression
        )
        if welcome.refused:
            self._refuse(welcome)
            return
        refusal = self._door.admit_node(self, hello.node)
        if refusal:
            self._turned_away(refusal)
            return
        self.peer_node = hello.node
        self._send_own(welcome)
        self._expect_hello(welcome.compression)

    def _expect_hello(self, compression: str) -> None:
        self._compression = compression
        self._use(compression)
        self._deliver = self._take_hello

    def _take_hello(self, messages: list[Any]) -> None:
        hello, *rest = messages
        if not isinstance(hello, HELLOS):
            self._violated(RemoteProtocolError(f"A link cannot open with {type(hello).__name__}."))
            return
        self._cancel_timer()
        self._door.settled(self)
        self._arrived = messages
        handler = self._door.accept(self, hello)
        self._arrived = []
        if handler is None:
            self.close("refused")
        elif self._open:
            self._serve(handler)
            if rest:
                self._deliver(rest)

    def pass_on(self) -> Passed:
        """Let go of the connection, for `adopt` in another process of this node."""
        assert self._transport is not None
        # Packed anew, and plain: how it came depends on what the two ends have agreed on.
        arrived = b"".join(Encoder(Counters()).encode(self._arrived))
        arrived += bytes(self._inbox.slab[self._inbox.start : self._inbox.end])
        passed = Passed(
            os.dup(self._transport.get_extra_info("socket").fileno()),
            {
                "peer": self.peer,
                "node": self.peer_node,
                "compression": self._compression,
                "arrived": arrived.hex(),
            },
        )
        self._room.counters.connections_accepted -= 1  # Counted where it is served.
        # Closes our descriptor; the connection lives on by the other.
        self.abort()
        return passed

    def _violated(self, error: HoldfastError) -> None:
        """Tell a peer of another version why before closing."""
        if isinstance(error, OtherVersionError) and self._deliver == self._take_preface:
            self._refuse(preface.other_version(self._room.node, self._room.cluster, error.version))
        else:
            super()._violated(error)

    def _turned_away(self, why: str) -> None:
        welcome = Welcome(self._room.cluster, self._room.node, "", (), "too-many", why)
        self._refuse(welcome)

    def _refuse(self, welcome: Welcome) -> None:
        self._room.counters.connections_refused += 1
        log.warning(
            "A connection of %s is refused (%s): %s", self.peer, welcome.refused, welcome.sentence
        )
        self._send_own(welcome)
        self.close(welcome.refused)


class AdoptedLink(AcceptedLink):
    """An accepted connection whose handshake another process of this node has led."""

    def __init__(self, room: Room, door: Door, state: Mapping[str, Any]) -> None:
        super().__init__(room, door)
        self._state = state

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Go on where the other process has stopped: at the first message."""
        TcpLink.connection_made(self, transport)
        self.peer = self._state["peer"]
        refusal = self._door.admit(self) or self._door.admit_node(self, self._state["node"])
        if refusal:
            log.warning("A connection of %s is refused (too-many): %s", self.peer, refusal)
            self.abort()
            return
        self.peer_node = self._state["node"]
        self._expect_within(self._room.options.connect_timeout_s)
        self._expect_hello(self._state["compression"])
        arrived = bytes.fromhex(self._state["arrived"])
        while arrived:
            room = self.get_buffer(len(arrived))
            count = min(len(room), len(arrived))
            room[:count] = arrived[:count]
            arrived = arrived[count:]
            self.buffer_updated(count)
