"""One volume as this frontend offers it: the session, the controllers and queues that share it.

The session is opened by the first I/O command, not by Connect: a host with several paths connects to
several nodes, and only the path that it uses may hold the volume (R11). It is given up with the last
connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import attrs

from holdfast.errors import ConflictError, HoldfastError, NotFoundError
from holdfast.interfaces.frontend import PathState, VolumeSession
from holdfast.messages import Reply, Request
from holdfast.model import Access, VolumeSpec
from holdfast_transport_nvmeof.connection import Connection
from holdfast_transport_nvmeof.controller import Controller, Notice
from holdfast_transport_nvmeof.io_commands import IoCommands
from holdfast_transport_nvmeof.logpages import Counters
from holdfast_transport_nvmeof.namespace import AnaState, Namespace
from holdfast_transport_nvmeof.status import Status

_log = logging.getLogger("holdfast.nvme_tcp")

_ANA = {
    PathState.OPTIMIZED: AnaState.OPTIMIZED,
    PathState.NON_OPTIMIZED: AnaState.NON_OPTIMIZED,
    PathState.INACCESSIBLE: AnaState.INACCESSIBLE,
}


@attrs.define(eq=False)
class Subsystem:
    """A `SessionHandler` that spreads what comes from the session over the queues."""

    spec: VolumeSpec
    namespace: Namespace
    open_session: Callable[[Subsystem], None] = attrs.field(repr=False)
    """Called when requests wait for a session; ends in `opened` or `refused`."""
    controllers: dict[int, Connection] = attrs.field(factory=dict, repr=False)
    """The admin queue of each, by controller id."""
    queues: dict[int, Connection] = attrs.field(factory=dict, repr=False)
    """The I/O queues by number."""
    session: VolumeSession | None = attrs.field(default=None, repr=False)
    consumer: str = ""
    """NQN of the host that the session is for."""
    is_opening: bool = False
    _waiting: list[Request] = attrs.field(factory=list, repr=False)
    _failed: list[Reply] = attrs.field(factory=list, repr=False)
    """Answers with an errno, held for a turn of the loop: the session may be about to end."""
    _last_number: int = 0

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.spec.name

    @property
    def is_unused(self) -> bool:
        """Whether no host is connected."""
        return not self.controllers and not self.queues

    def next_number(self) -> int:
        """Return a number for a new I/O queue."""
        self._last_number += 1
        return self._last_number

    def counters(self) -> Counters:
        """Return what the queues of now have counted."""
        totals = [0, 0, 0, 0]
        for connection in self.queues.values():
            io = connection.queue.io
            if io is not None:
                each = (io.read_bytes, io.written_bytes, io.reads, io.writes)
                totals = [a + b for a, b in zip(totals, each, strict=True)]
        return Counters(*totals)

    # --- requests --------------------------------------------------------------------------

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Pass the requests of one queue on, opening the session for the first ones."""
        controller = connection.controller
        assert controller is not None
        if self.session is not None or self.is_opening:
            if controller.host != self.consumer and not self.spec.shared:
                # One writer (R11): another host holds the volume through this very node.
                refused = [Reply(request.id, 1) for request in requests]
                connection.on_replies(refused, Status.RESERVATION_CONFLICT)
            elif self.session is not None:
                self.session.submit(requests)
            else:
                self._waiting.extend(requests)
            return
        self.consumer = controller.host
        self.is_opening = True
        self._waiting.extend(requests)
        self.open_session(self)

    def abort(self, controller: Controller, qid: int, cid: int) -> bool:
        """Take back an I/O command of `controller`; return whether that was possible."""
        for connection in self.queues.values():
            queue = connection.queue
            if connection.controller is controller and queue.wire.qid == qid and queue.io:
                done = queue.io.abort(cid)
                connection.flush()
                return done
        return False

    def opened(self, session: VolumeSession) -> None:
        """Go on with the session."""
        self.is_opening = False
        self.session = session
        self.on_changed(session.size_bytes, session.access)
        waiting, self._waiting = self._waiting, []
        if waiting:
            session.submit(waiting)

    def refused(self, error: HoldfastError) -> None:
        """Tell the hosts why there is no session."""
        self.is_opening = False
        self.consumer = ""
        waiting, self._waiting = self._waiting, []
        self._spread([Reply(request.id, 5) for request in waiting], _status_of(error))

    # --- SessionHandler --------------------------------------------------------------------

    def on_replies(self, replies: Sequence[Reply]) -> None:
        """Give each queue its own answers; those of queues that are gone are dropped."""
        failed = [reply for reply in replies if reply[1]]
        if failed:
            if not self._failed:
                asyncio.get_running_loop().call_soon(self._spread_failed, None)
            self._failed += failed
            replies = [reply for reply in replies if not reply[1]]
        if replies:
            self._spread(replies, None)

    def on_changed(self, size_bytes: int, access: Access) -> None:
        """Tell every host."""
        space = self.namespace
        is_writable = access is not Access.READ_ONLY
        if (space.size_bytes, space.is_writable) != (size_bytes, is_writable):
            space.size_bytes, space.is_writable = size_bytes, is_writable
            self._notify(Notice.NAMESPACE_ATTRIBUTE_CHANGED)

    def on_closed(self, sentence: str) -> None:
        """Hang up on everybody: what they know of the volume may be wrong from now on.

        Requests that were cut off are answered as a fault of this path, so that a host with another
        one sends them there.
        """
        self.session = None
        _log.info("NVMe/TCP volume %s: its session ended. %s", self.name, sentence)
        self._spread_failed(Status.ASYMMETRIC_ACCESS_INACCESSIBLE)
        self.hang_up(sentence)

    def hang_up(self, sentence: str) -> None:
        """Close every connection; the last one's end gives the session up."""
        for connection in [*self.queues.values(), *self.controllers.values()]:
            connection.hang_up(sentence)

    def follow(self, path: PathState) -> None:
        """Let the hosts know what this node's path is worth."""
        ana, space = _ANA[path], self.namespace
        if ana is not space.ana:
            space.ana = ana
            space.ana_changes += 1
            self._notify(Notice.ANA_CHANGE)
            if ana is AnaState.INACCESSIBLE and self._has_unanswered:
                # The host sends it by another path, whose session fences off what is under way
                # here (R11), however late it gets through.
                self.hang_up("This node has lost the way to the volume.")

    @property
    def _has_unanswered(self) -> bool:
        ios = (connection.queue.io for connection in self.queues.values())
        return any(io is not None and not io.is_idle for io in ios)

    def _notify(self, notice: Notice) -> None:
        for connection in self.controllers.values():
            controller: Controller | None = connection.controller
            if controller is not None:
                controller.notify(notice)
                connection.send_events()

    def _spread_failed(self, status: int | None) -> None:
        failed, self._failed = self._failed, []
        self._spread(failed, status)

    def _spread(self, replies: Sequence[Reply], status: int | None) -> None:
        if len(self.queues) == 1:
            # Its machine passes over the ids of others.
            (connection,) = self.queues.values()
            connection.on_replies(replies, status)
            return
        by_number: dict[int, list[Reply]] = {}
        for reply in replies:
            by_number.setdefault(IoCommands.number_of(reply[0]), []).append(reply)
        for number, own in by_number.items():
            found = self.queues.get(number)
            if found is not None:
                found.on_replies(own, status)


def _status_of(error: HoldfastError) -> Status:
    if isinstance(error, ConflictError):
        return Status.RESERVATION_CONFLICT
    if isinstance(error, NotFoundError):
        return Status.INVALID_NAMESPACE_OR_FORMAT
    return Status.ASYMMETRIC_ACCESS_INACCESSIBLE
