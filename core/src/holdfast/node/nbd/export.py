"""One volume as this frontend exports it: the session, and the client connections that share it.

Several connections of one client count as one writer (R11), and a frontend cannot tell clients apart,
so there is one session per volume: opened for the first connection, given up after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from holdfast.interfaces.frontend import VolumeSession
from holdfast.messages import Reply, Request
from holdfast.model import Access
from holdfast.node.nbd.transmission import Transmission

if TYPE_CHECKING:
    from holdfast.node.nbd.connection import Connection


@attrs.define(eq=False)
class Export:
    """A `SessionHandler` that spreads what comes from the session over the connections."""

    name: str
    on_ended: Callable[[Export, str], None] = attrs.field(repr=False)
    """Called when the session ended from its side, with the sentence that says why."""
    connections: dict[int, Connection] = attrs.field(factory=dict, repr=False)
    """By number."""
    is_ended: bool = False
    session: VolumeSession | None = attrs.field(default=None, repr=False)
    _last_number: int = 0

    @property
    def size_bytes(self) -> int:
        """The volume's size now."""
        assert self.session is not None
        return self.session.size_bytes

    @property
    def writable(self) -> bool:
        """Whether writes are passed on; what else is wrong with a volume, its session answers."""
        assert self.session is not None
        return self.session.access is not Access.READ_ONLY

    def join(self, connection: Connection) -> int:
        """Take a connection in and return its number."""
        self._last_number += 1
        self.connections[self._last_number] = connection
        return self._last_number

    def submit(self, requests: Sequence[Request]) -> None:
        """Pass the requests of one connection on."""
        if self.session is not None and not self.is_ended:
            self.session.submit(requests)

    def on_replies(self, replies: Sequence[Reply]) -> None:
        """Give each connection its own answers; those of connections that are gone are dropped."""
        if len(self.connections) == 1:
            # Its machine passes over the ids of others.
            (connection,) = self.connections.values()
            connection.on_replies(replies)
            return
        by_number: dict[int, list[Reply]] = {}
        for reply in replies:
            by_number.setdefault(Transmission.number_of(reply[0]), []).append(reply)
        for number, own in by_number.items():
            found = self.connections.get(number)
            if found is not None:
                found.on_replies(own)

    def on_changed(self, size_bytes: int, access: Access) -> None:
        """Tell every connection."""
        for connection in self.connections.values():
            connection.on_changed(size_bytes, writable=access is not Access.READ_ONLY)

    def on_closed(self, sentence: str) -> None:
        """Hang up on everybody: there is nothing behind this export any more."""
        self.is_ended = True
        self.on_ended(self, sentence)
        for connection in list(self.connections.values()):
            connection.hang_up(sentence)
