"""Consumers: writer sessions that write unique values, read, flush and discard, at some depth.

Those with an I/O deadline number their requests as an NVMe host does: by the least number that stands
for nothing they wait for. So an answer that is late may meet another request under its number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from holdfast.messages import (
    Message,
    Replies,
    Reply,
    Request,
    RequestFlag,
    RequestKind,
    Requests,
    SessionOpen,
)
from holdfast.model import Access, GroupRecord
from holdfast.sync import consumer
from holdfast.sync.consumer import ConsumerSession, SessionPhase
from holdfast.testing.simulation import history as hist
from holdfast.testing.simulation.invariants import Violation
from holdfast.testing.simulation.network import End
from holdfast.testing.simulation.stable import not_kept_of
from holdfast.units import BLOCK_BYTES, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.node import Process

_WRITES = frozenset({RequestKind.WRITE, RequestKind.DISCARD, RequestKind.ZERO})
_READS = frozenset({RequestKind.READ, RequestKind.EXTENTS})


@define
class Load:
    """What one consumer asks for."""

    depth: int = 4
    think_s: float = 0.04
    hot: tuple[int, ...] = ()
    """Blocks that most requests begin at."""
    blocks: int = 0
    """Blocks of the volume."""
    reads: float = 0.34
    """The part of the requests that are reads."""
    ordered: bool = True
    """Never two unanswered requests on one block, as file systems have it."""
    hot_part: float = 0.8
    """The part of the requests that begin at hot blocks; the others begin anywhere."""
    deadline_s: float | None = None
    """How long a request may wait before it is given up; None: for ever."""
    commits: bool = False
    """Writers write and flush in turn, one thing at a time, as a database does that commits."""


@define(eq=False)
class Asked:
    """One request, from when it is made until it is answered."""

    request: Request
    session: str
    start: int
    """Place in the order of all that consumers did and were told."""
    accesses: list[hist.Access]


@define(eq=False)
class Client:
    """One consumer of one volume on one node."""

    process: Process
    volume: VolumeId
    load: Load
    session: ConsumerSession | None = None
    asked: dict[int, Asked] = field(factory=dict)
    """What was not answered, by number."""
    force_next: bool = False
    read_only: bool = False
    _unflushed: bool = False
    """The last request of a consumer that commits was a write."""
    _end: End | None = None
    _tick_at: float = float("inf")
    _unsettled: list[tuple[int, hist.Access]] = field(factory=list)
    """Writes of this session that were answered with an error, and when."""
    _unkept: list[tuple[int, hist.Access]] = field(factory=list)
    """Blocks, and the changes to them that this session was told of and has no flush for."""

    # -- sessions ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open a session, and ask for things for as long as the process lives."""
        self._new_session()
        self.process.world.after(self._think(), self.process.run, self._ask)

    def _new_session(self) -> None:
        process = self.process
        name = f"{process.session}/{process.world.draw_id()}"
        self.session = ConsumerSession(
            SessionOpen(
                cluster="sim",
                volume=self.volume,
                node=process.name,
                session=name,
                process=process.session,
                read_only=self.read_only,
                force=self.force_next,
                resume_generation=0,
            ),
            deadline_s=self.load.deadline_s,
        )
        self._unsettled.clear()
        self._unkept.clear()
        self.force_next = False
        known = process.records.get(self.volume)
        if known is not None and known[0] is not None:
            self.on_record(known[0])

    def on_record(self, record: GroupRecord) -> None:
        """The group record is now this."""
        if self.session is not None:
            self._do(self.session.on_record(record, self._now()))

    def process_died(self) -> None:
        """Nothing that was asked will be answered."""
        self.asked.clear()
        self.session = None

    def reattach(self, *, force: bool) -> None:
        """Give the session up and open another, as a remount does."""
        session = self.session
        if session is None or session.phase is SessionPhase.CLOSED:
            return
        self.force_next = force
        self._do(session.close())
        self.asked.clear()
        self.session = None
        self.process.world.after(0.3, self.process.run, self._new_session)

    @property
    def is_attached(self) -> bool:
        """Whether the session has been let in, as far as it knows."""
        return self.session is not None and self.session.opened

    @property
    def idle(self) -> bool:
        """Whether everything asked was answered."""
        return not self.asked

    def _now(self) -> float:
        return self.process.clock.mono(self.process.world.now)

    def _do(self, outcomes: Sequence[consumer.Outcome]) -> None:
        network = self.process.world.network
        for outcome in outcomes:
            if isinstance(outcome, consumer.Dial):
                if self._end is not None:
                    network.close(self._end)
                end = self._end = End(self.process)
                end.on_messages = self._on_messages
                end.on_lost = self._on_lost
                network.connect(end, outcome.node, outcome.hello, lambda _end: None)
            elif isinstance(outcome, consumer.Hang):
                if self._end is not None:
                    network.close(self._end)
                    self._end = None
            elif isinstance(outcome, consumer.Tell):
                self._send(outcome.messages)
            elif isinstance(outcome, consumer.Answer):
                self.on_replies(outcome.replies)
            elif isinstance(outcome, consumer.Changed):
                lost = outcome.access is Access.READ_ONLY and not self.read_only
                if lost and self.process.world.load_on:
                    self.process.world.after(2.0, self.process.run, self._remount, self.session)
            elif isinstance(outcome, consumer.Ended):
                self.session = None
                self.asked.clear()
                delay = 1.0 + self.process.world.rng.random() * 3
                self.process.world.after(delay, self.process.run, self._session_again)
        session = self.session
        if session is not None and session.phase is SessionPhase.SEEKING:
            self._tick_later(session.retry_at)
        if session is not None and session.gives_up_at is not None:
            self._tick_later(session.gives_up_at)

    def _send(self, messages: Sequence[Message]) -> None:
        """Send on the link, if it stands; no number there ever means two requests at a time (R7)."""
        end = self._end
        if end is None:
            return
        for message in messages:
            if isinstance(message, Requests):
                for request in message.requests:
                    asked = self.asked.get(request.id)
                    if asked is None:
                        raise Violation("R7", f"{request.id} was answered and is sent again")
                    if end.asked.setdefault(request.id, asked) is not asked:
                        raise Violation("R7", f"{request.id} means another request on its link")
        self.process.world.network.send(end, messages)

    def _session_again(self) -> None:
        if self.session is None:
            self._new_session()

    def _remount(self, session: ConsumerSession) -> None:
        if session is self.session and (session.access is Access.READ_ONLY or session.has_lost):
            self.reattach(force=False)

    def _on_loss(self, session: ConsumerSession) -> None:
        """No flush succeeds any more: reattach, as whoever looks after the file system does."""
        world = self.process.world
        world.trace("flushes-fail", self.process.name, session.hello.session)
        if not self._unkept:
            raise Violation(
                "I4", f"a session of {self.volume} is told of a loss, and had nothing to lose"
            )
        if world.load_on:
            world.after(2.0, self.process.run, self._remount, session)

    def _tick_later(self, mono: float) -> None:
        world = self.process.world
        at = max(world.now + 0.001, self.process.clock.when(mono))
        if at < self._tick_at:
            self._tick_at = at
            world.at(at, self.process.run, self._tick, at)

    def _tick(self, at: float) -> None:
        if self._tick_at != at:
            return
        self._tick_at = float("inf")
        if self.session is not None:
            self._do(self.session.tick(self._now() + 1e-9))

    def _on_messages(self, end: End, messages: Sequence[Message]) -> None:
        if end is self._end and self.session is not None:
            for message in messages:
                if isinstance(message, Replies):
                    for reply in message.replies:
                        end.asked.pop(reply.id, None)
            told = self.session.has_lost
            self._do(self.session.on_messages(messages, self._now()))
            if self.session is not None and self.session.has_lost and not told:
                self._on_loss(self.session)

    def _on_lost(self, end: End, _gone: bool, _sentence: str) -> None:
        if end is self._end and self.session is not None:
            self._end = None
            self._do(self.session.on_lost(self._now()))

    # -- requests ----------------------------------------------------------------------------------

    def _think(self) -> float:
        return self.process.world.rng.expovariate(1.0 / self.load.think_s)

    def submit(self, requests: list[Request]) -> None:
        """Hand requests to the session, and what it makes of them to the link."""
        assert self.session is not None
        process = self.process
        pump = process.pumps.get(self.volume)
        if process.world.config.readers and pump is not None and not pump.closed:
            here, requests = self.session.readable_here(requests)
            if here:
                pump.read_locally(self, here)
        if requests:
            self._submit(requests)

    def _submit(self, requests: Sequence[Request]) -> None:
        assert self.session is not None
        message = self.session.submit(requests, self._now())
        self._do([] if message is None else [consumer.Tell((message,))])

    def on_unserved(self, requests: Sequence[Request]) -> None:
        """The copy on this node does not answer these."""
        wanted = [each for each in requests if each.id in self.asked]
        session = self.session
        if wanted and session is not None and session.phase is not SessionPhase.CLOSED:
            self._submit(wanted)

    def _ask(self) -> None:
        world = self.process.world
        if world.load_on:
            session = self.session
            room = self.load.depth - len(self.asked)
            if session is not None and session.opened and room > 0:
                if self.load.commits and not self.read_only:
                    count = 1 - len(self.asked)
                else:
                    count = min(room, world.rng.choice((1, 1, 1, 2, 4, 8)))
                requests = [r for r in (self._draw() for _ in range(count)) if r is not None]
                if requests and session.phase is not SessionPhase.CLOSED:
                    self.submit(requests)
            world.after(self._think(), self.process.run, self._ask)

    def _draw(self) -> Request | None:
        world, load = self.process.world, self.load
        rng = world.rng
        assert self.session is not None
        blocks = self.session.size_bytes // BLOCK_BYTES
        roll = rng.random()
        if load.commits and not self.read_only:
            # Now and then the habit is broken.
            roll = 0.0 if self._unflushed and roll < 0.95 else 1.0
            self._unflushed = not self._unflushed
        if roll < 0.06 and not self.read_only:
            return self._make(RequestKind.FLUSH, 0, 0, 0)
        if rng.random() < load.hot_part:
            first = load.hot[int(rng.random() * len(load.hot))]
        else:
            first = rng.randrange(blocks)
        count = min(rng.choice((1, 1, 1, 1, 2, 4)), blocks - first)
        if load.ordered and self._is_busy(first, count):
            return None
        if roll < 0.06 + load.reads or self.read_only:
            return self._make(RequestKind.READ, first, count, 0)
        if roll < 0.11 + load.reads:
            kind = RequestKind.DISCARD if rng.random() < 0.5 else RequestKind.ZERO
            return self._make(kind, first, count, int(RequestFlag.NO_HOLE))
        fua = int(RequestFlag.FUA) if rng.random() < 0.05 else 0
        return self._make(RequestKind.WRITE, first, count, fua)

    def _is_busy(self, first: int, count: int) -> bool:
        for asked in self.asked.values():
            request = asked.request
            start = request.offset // BLOCK_BYTES
            if start < first + count and first < start + request.length // BLOCK_BYTES:
                return True
        return False

    def _make(self, kind: int, first: int, count: int, flags: int) -> Request:
        world = self.process.world
        history = world.history.of(self.volume)
        start = world.history.tick()
        drawn = world.draw_id()
        number = drawn
        if self.load.deadline_s is not None:
            number = next(n for n in itertools.count(1) if n not in self.asked)
        is_write = kind in _WRITES
        value = drawn if kind == RequestKind.WRITE else 0
        accesses: list[hist.Access] = []
        for block in range(first, first + count):
            access = hist.Access(
                start, is_write, value, time=world.now, durable=bool(flags & RequestFlag.FUA)
            )
            history.blocks.setdefault(block, []).append(access)
            accesses.append(access)
            if is_write and not value:
                history.zeroed.add(block)
        if value:
            history.writers[value] = accesses[0]
        data = hist.block_of(value) * count if value else b""
        request = Request(number, int(kind), flags, first * BLOCK_BYTES, count * BLOCK_BYTES, data)
        assert self.session is not None
        self.asked[number] = Asked(request, self.session.hello.session, start, accesses)
        return request

    def on_replies(self, replies: Sequence[Reply]) -> None:
        """Take answers, from wherever."""
        world = self.process.world
        for reply in replies:
            asked = self.asked.pop(reply.id, None)
            if asked is None:
                raise Violation(
                    "R7", f"{self.volume}: {reply.id} is answered, and nothing is asked"
                )
            world.answered += 1
            request, accesses = asked.request, asked.accesses
            end = world.history.tick()
            if reply.errno:
                # Whether it took place is not known.
                self._unsettled.extend((end, each) for each in accesses if each.is_write)
                continue
            if self._unsettled and request.kind not in _READS:
                self._settle(asked, end)
            if request.kind == RequestKind.FLUSH:
                self._flushed(asked.start)
                world.history.of(self.volume).flushes.append((asked.start, end))
            for number, access in enumerate(accesses):
                access.end = end
                if access.is_write:
                    if not access.durable:
                        first = request.offset // BLOCK_BYTES
                        self._unkept.append((first + number, access))
                else:
                    at = number * BLOCK_BYTES
                    access.value = hist.value_of(bytes(reply.data[at : at + BLOCK_BYTES]))

    def _flushed(self, start: int) -> None:
        """A flush was answered well: what the session was told before it is kept, whatever was lost."""
        world, volume = self.process.world, self.volume
        covered = [(block, access) for block, access in self._unkept if access.end < start]
        self._unkept = [each for each in self._unkept if each[1].end > start]
        disks = world.invariants.in_sync_disks(world.store.records[volume][0])
        sick = world.invariants.damage.ever.get(volume, set())
        lacks = not_kept_of(world.history.of(volume), disks, covered, sick)
        if lacks is not None:
            raise Violation("I4", f"a session's flush of {volume} is answered, and covers {lacks}")

    def _settle(self, asked: Asked, end: int) -> None:
        """A change has taken place: what had failed when it was asked for has as well, or never will.

        A primary orders what it takes, and whatever was on its way through older links is dropped. That
        a read was answered says nothing: it waits for writes of its own place alone.
        """
        over = [access for failed, access in self._unsettled if failed < asked.start]
        for access in over:
            access.settled = end
        for access in asked.accesses:
            access.settles = frozenset(each.start for each in over)
        self._unsettled = [each for each in self._unsettled if each[0] > asked.start]
