"""Consumer sessions of this node: every frontend's way to any volume, local primary or remote.

A `NodeSession` drives the machine of `sync.consumer`: it opens links, resends, and hands answers to
the frontend. When the primary is in this process, the link is a pair of method calls and nothing is
copied or encoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from holdfast.errors import ConflictError, HoldfastError, NotFoundError, UnavailableError
from holdfast.interfaces.frontend import SessionHandler
from holdfast.interfaces.transport import LinkHandler
from holdfast.messages import Message, Replies, Reply, Request, SessionOpen
from holdfast.model import Access, GroupRecord, VolumeSpec
from holdfast.node.local_reads import LocalReader
from holdfast.node.polling import Polling
from holdfast.node.pump import Outlet, Pump
from holdfast.sync import consumer
from holdfast.sync import events as ev
from holdfast.sync.consumer import ConsumerSession, SessionPhase
from holdfast.units import NodeName, VolumeId

_new = tuple.__new__  # Half the cost of calling the named tuple.
_CLOSED = SessionPhase.CLOSED  # Looked up in its enum it costs more than a call, on the hot path.
OPEN_PATIENCE_S = 30.0
"""How long opening a session may take: a failover with a full reconcile fits in."""
CLOSE_PATIENCE_S = 5.0


def session_id(consumer: str = "") -> str:
    """Return a new session's id, which tells sessions of one consumer without naming it.

    Args:
        consumer: Who is behind the session, such as a host's NQN; empty when nobody knows.
    """
    own = uuid.uuid4().hex
    if not consumer:
        return own
    return f"{hashlib.blake2s(consumer.encode(), digest_size=16).hexdigest()}/{own}"


class SessionHost(Protocol):
    """What a session needs of its node (or of a program that consumes without one)."""

    name: NodeName
    cluster: str
    process: str
    polling: Polling

    def local_pump(self, volume: VolumeId) -> Pump | None:
        """Return the pump of the local copy, if there is one."""
        ...

    def group(self, volume: VolumeId) -> GroupRecord | None:
        """Return the group record last seen."""
        ...

    def is_here(self, node: NodeName, volume: VolumeId) -> bool:
        """Whether this very process keeps the copy that `node` has of a volume."""
        ...

    async def dial(self, node: NodeName, hello: SessionOpen, handler: LinkHandler) -> Outlet:
        """Open a link to a node."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine under the host's task group."""
        ...

    def session_closed(self, session: NodeSession) -> None:
        """The session is over; forget it."""
        ...


class _LocalOutlet:
    """The primary's end of a session inside one process."""

    __slots__ = ("_session",)

    def __init__(self, session: NodeSession) -> None:
        self._session: NodeSession | None = session

    def send(self, messages: Sequence[Message]) -> None:
        session = self._session
        if session is not None:
            session.on_messages(messages)

    def close(self, reason: str = "") -> None:
        session, self._session = self._session, None
        if session is not None:
            session.on_local_closed(self)

    def detach(self) -> None:
        """The session has let go of this end."""
        self._session = None


class _LocalLink:
    """The session's end of the same."""

    __slots__ = ("_id", "_outlet", "_pump")

    def __init__(self, pump: Pump, session: NodeSession) -> None:
        self._pump = pump
        self._outlet = _LocalOutlet(session)
        self._id = pump.accept(self._outlet)

    def open(self, hello: SessionOpen) -> None:
        self._pump.feed(ev.SessionLinked(self._id, hello))

    def send(self, messages: Sequence[Message]) -> None:
        self._pump.feed(_new(ev.Received, (self._id, messages)))

    def close(self, reason: str = "") -> None:
        self._outlet.detach()
        self._pump.lost(self._id, reason or "the session has ended")

    def is_behind(self, outlet: _LocalOutlet) -> bool:
        return self._outlet is outlet


class NodeSession:
    """One session on one volume; implements `interfaces.frontend.VolumeSession`."""

    def __init__(
        self,
        host: SessionHost,
        spec: VolumeSpec,
        handler: SessionHandler,
        *,
        read_only: bool,
        force: bool,
        io_deadline_s: float | None,
        consumer: str = "",
    ) -> None:
        """Prepare; `start` begins to look for the primary."""
        self._host = host
        self._handler = handler
        self.spec = spec
        self.id = session_id(consumer)
        self._machine = ConsumerSession(
            SessionOpen(
                cluster=host.cluster,
                volume=spec.id,
                node=host.name,
                session=self.id,
                process=host.process,
                read_only=read_only,
                force=force,
                resume_generation=0,
            ),
            deadline_s=io_deadline_s,
        )
        self.size_bytes = spec.size_bytes
        self.access = Access.READ_WRITE
        self._link: Outlet | None = None
        self._reader: LocalReader | None = None
        self._attempt = 0
        self._cut_at = time.monotonic()
        """When the session was last without a primary."""
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._empty: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Return once a primary has taken the session.

        Raises:
            ConflictError: Another session holds the volume.
            NotFoundError: The volume was deleted meanwhile.
            UnavailableError: No primary took it within `OPEN_PATIENCE_S`.
        """
        record = self._host.group(self.spec.id)
        if record is not None:
            self.on_record(record)
        try:
            await asyncio.wait_for(asyncio.shield(self._settled), OPEN_PATIENCE_S)
        except TimeoutError:
            why = self._machine.last_refusal or "no primary answers"
            self._finish()
            raise UnavailableError(
                f"Volume {self.spec.name} cannot be opened: {why}.",
                hint=f"Look at `holdfast volume show {self.spec.name}`.",
            ) from None
        except asyncio.CancelledError:
            # Nobody waits for it: it must not go on looking, and hold the volume once it has found.
            self._finish()
            raise

    # -- for the frontend --------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        """Send requests; never blocks."""
        polling = self._host.polling
        arrived_at = polling.clock()
        if type(self._link) is _LocalLink or self._machine.phase is _CLOSED:
            self._submit(requests)  # The primary is in this process, or there is none any more.
        else:
            self._divide(requests)
        polling.handled(arrived_at, awaiting=bool(self._machine.unanswered))

    def _divide(self, requests: Sequence[Request]) -> None:
        """Read from the copy on this node what may be; send the other requests to the primary."""
        reader = self._local_reader()
        if reader is not None:
            here, requests = self._machine.readable_here(requests)
            if here:
                reader.read(here)
        if requests:
            self._submit(requests)

    def _submit(self, requests: Sequence[Request]) -> None:
        """Send requests to the primary."""
        machine = self._machine
        if machine.phase is _CLOSED:
            self._handler.on_replies(machine.refuse(requests))
            return
        now = 0.0 if machine.deadline_s is None else time.monotonic()
        message = machine.submit(requests, now)
        link = self._link
        if message is not None and link is not None:
            link.send((message,))
        if machine.deadline_s is not None:
            self._arm()

    def _local_reader(self) -> LocalReader | None:
        """Return the way to the copy on this node, if reads are to be tried there."""
        pump = self._host.local_pump(self.spec.id)
        if pump is None or pump.member.ctx.spec.read_from != "local" or pump.closed:
            return None
        if pump.member.primary is not None:
            return None  # The session's link leads there anyway.
        reader = self._reader
        if reader is None or reader.pump is not pump:
            reader = self._reader = LocalReader(pump, self._answer, self._submit)
        return reader

    async def aclose(self) -> None:
        """Wait for unanswered requests for a moment, then give the writer session up."""
        if self._machine.unanswered:
            self._empty = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty, CLOSE_PATIENCE_S)
        self._run(self._machine.close())
        self._finish()

    # -- from the host and the links ---------------------------------------------------------------

    def on_record(self, record: GroupRecord) -> None:
        """The group record has changed."""
        self._run(self._machine.on_record(record, time.monotonic()))
        self._arm()

    def on_deleted(self) -> None:
        """The volume was deleted."""
        self._run(self._machine.on_deleted())

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Take what the primary has sent."""
        if len(messages) == 1 and type(messages[0]) is Replies:
            replies = self._machine.answered(messages[0].replies)
            if replies:
                self._answer(replies)
            return
        self._run(self._machine.on_messages(messages, time.monotonic()))
        if self._machine.phase is not SessionPhase.OPEN:
            self._arm()

    def on_remote(self, messages: Sequence[Message]) -> None:
        """Take what a primary on another node has sent."""
        polling = self._host.polling
        arrived_at = polling.clock()
        self.on_messages(messages)
        polling.handled(arrived_at, awaiting=bool(self._machine.unanswered))

    def on_lost(self, attempt: int) -> None:
        """The link of this attempt is gone."""
        if attempt != self._attempt:
            return
        self._link = None
        if self._machine.phase is SessionPhase.OPEN:
            self._cut_at = time.monotonic()
        self._run(self._machine.on_lost(time.monotonic()))
        self._arm()

    @property
    def cut_off_s(self) -> float:
        """How long no primary has had this session; 0.0 while one has."""
        return 0.0 if self._machine.phase is SessionPhase.OPEN else time.monotonic() - self._cut_at

    def is_current(self, attempt: int) -> bool:
        """Whether the link of this attempt is still the session's."""
        return attempt == self._attempt

    def on_local_closed(self, outlet: _LocalOutlet) -> None:
        """The local primary has closed its end."""
        if isinstance(self._link, _LocalLink) and self._link.is_behind(outlet):
            self.on_lost(self._attempt)

    # -- inside ------------------------------------------------------------------------------------

    def _run(self, outcomes: list[consumer.Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, consumer.Tell):
                if self._link is not None:
                    self._link.send(outcome.messages)
            elif isinstance(outcome, consumer.Answer):
                self._answer(outcome.replies)
            elif isinstance(outcome, consumer.Dial):
                self._dial(outcome)
            elif isinstance(outcome, consumer.Changed):
                self.size_bytes, self.access = outcome.size_bytes, outcome.access
                if not self._settled.done():
                    self._settled.set_result(None)
                self._handler.on_changed(outcome.size_bytes, outcome.access)
            elif isinstance(outcome, consumer.Hang):
                self._hang()
            else:
                self._end(outcome)

    def _answer(self, replies: Sequence[Reply]) -> None:
        self._handler.on_replies(replies)
        if self._empty is not None and not self._machine.unanswered and not self._empty.done():
            self._empty.set_result(None)

    def _dial(self, dial: consumer.Dial) -> None:
        self._attempt += 1
        if self._host.is_here(dial.node, self.spec.id):
            pump = self._host.local_pump(self.spec.id)
            if pump is None or pump.closed:
                self._loop.call_soon(self.on_lost, self._attempt)
                return
            link = _LocalLink(pump, self)
            self._link = link
            link.open(dial.hello)
            return
        self._host.spawn(self._dial_remote(dial, self._attempt))

    async def _dial_remote(self, dial: consumer.Dial, attempt: int) -> None:
        handler = _RemoteHandler(self, attempt)
        try:
            link = await self._host.dial(dial.node, dial.hello, handler)
        except (OSError, HoldfastError):
            self.on_lost(attempt)
            return
        if attempt == self._attempt and self._machine.phase is SessionPhase.OPENING:
            self._link = link
            handler.flush()
        else:
            link.close("no longer wanted")

    def _hang(self) -> None:
        link, self._link = self._link, None
        self._attempt += 1
        if link is not None:
            link.close("the session has moved on")

    def _end(self, ended: consumer.Ended) -> None:
        if not self._settled.done():
            error: HoldfastError
            if ended.code == "attached-elsewhere":
                error = ConflictError(ended.sentence)
            else:
                error = NotFoundError(ended.sentence)
            self._settled.set_exception(error)
        else:
            self._handler.on_closed(ended.sentence)
        self._finish()

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._machine.phase is not SessionPhase.CLOSED:
            self._run(self._machine.close())
        self._hang()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._host.session_closed(self)

    def _arm(self) -> None:
        """Have the machine ticked while it looks for a primary, and when a request has waited too long."""
        machine = self._machine
        now = time.monotonic()
        delays = []
        if machine.phase is SessionPhase.SEEKING:
            delays.append(max(0.005, machine.retry_at - now))
        elif machine.phase is SessionPhase.OPENING:
            delays.append(0.1)  # While an answer is awaited, only the record is looked at again.
        if machine.gives_up_at is not None and machine.phase is not SessionPhase.CLOSED:
            delays.append(max(0.005, machine.gives_up_at - now))
        if not delays:
            return
        delay = min(delays)
        if self._timer is not None:
            if self._timer.when() <= self._loop.time() + delay:
                return
            # A refusal, or a request, came before the time at which one would have looked again.
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        record = self._host.group(self.spec.id)
        if record is not None and record != self._machine.record:
            self._run(self._machine.on_record(record, time.monotonic()))
        else:
            self._run(self._machine.tick(time.monotonic()))
        self._arm()


class _RemoteHandler:
    """The handler of a session's link over the transport."""

    __slots__ = ("_attempt", "_early", "_ready", "_session")

    def __init__(self, session: NodeSession, attempt: int) -> None:
        self._session = session
        self._attempt = attempt
        self._ready = False
        self._early: list[Message] = []

    def flush(self) -> None:
        """The session has taken the link; hand over what came before."""
        self._ready = True
        early, self._early = self._early, []
        if early:
            self._session.on_messages(early)

    def on_messages(self, messages: Sequence[Message]) -> None:
        if not self._session.is_current(self._attempt):
            return  # What a deposed primary still says is said by the new one, or nobody.
        if self._ready:
            self._session.on_remote(messages)
        else:
            self._early.extend(messages)

    def on_lost(self, error: HoldfastError) -> None:
        self._session.on_lost(self._attempt)
