"""The consumer's end of a session: nothing that was asked is lost when the primary changes (R7).

Requests that were not answered are kept in their order. When the link to a primary breaks, or the
primary says that it is none any longer, the session finds the new one by the group record and sends
them again before anything newer. The consumer sees a pause. It sees an error only when the primary
answers with one, when the session is taken over, or when the I/O deadline passes.

Across one event a session cannot go on as if nothing were: no in-sync copy has kept what was not
flushed, and among that were writes that the consumer was told of. A flush would claim that they are
kept. So its flushes and FUA writes fail from there on, until the consumer gives the session up.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence

from attrs import define, field

from holdfast.compiled import compiled
from holdfast.messages import (
    Message,
    Refused,
    Replies,
    Reply,
    Request,
    RequestFlag,
    RequestKind,
    Requests,
    SessionClose,
    SessionOpen,
    SessionOpened,
    VolumeChanged,
)
from holdfast.model import Access, GroupRecord
from holdfast.units import NodeName

_READ, _WRITE, _FLUSH = int(RequestKind.READ), int(RequestKind.WRITE), int(RequestKind.FLUSH)
_CHANGES = frozenset({_WRITE, int(RequestKind.DISCARD), int(RequestKind.ZERO)})
_FUA = int(RequestFlag.FUA)
_new = tuple.__new__  # Half the cost of calling the named tuple.
RETRY_S_MIN = 0.005
"""The new primary of a handover may hear of it some milliseconds after its consumers."""
RETRY_S_MAX = 0.25
"""Looking for a primary costs one connection; failover takes seconds, so this adds little to it."""


@compiled
def keep_requests(unanswered: dict[int, Request], requests: Sequence[Request]) -> int:
    """Put requests into `unanswered` by their ids, up to the first flush.

    Returns:
        The index of that flush, or how many requests there are.
    """
    for index, request in enumerate(requests):
        if request[1] == _FLUSH:
            return index
        unanswered[request[0]] = request
    return len(requests)


@compiled
def settle_writes(unanswered: dict[int, Request], replies: Sequence[Reply]) -> int:
    """Take the plain writes out of `unanswered` that `replies` begin with and tell as done.

    Returns:
        The index of the first reply that is another, or how many replies there are.
    """
    for index, (request_id, error, _) in enumerate(replies):
        request = unanswered.get(request_id)
        if request is None or request[1] != _WRITE or request[2] or error:
            return index
        del unanswered[request_id]
    return len(replies)


class SessionPhase(enum.Enum):
    """Where a session stands."""

    SEEKING = "seeking"
    """No link; the record names a node to try."""
    OPENING = "opening"
    """A connection is being made, or its `SessionOpen` waits for an answer."""
    OPEN = "open"
    """A primary has taken it."""
    CLOSED = "closed"
    """For good."""


_OPEN, _CLOSED = SessionPhase.OPEN, SessionPhase.CLOSED
"""Looked up in its enum, a member costs more than a call, on the hot path."""


@define
class Dial:
    """Connect to this node and open the session."""

    node: NodeName
    hello: SessionOpen


@define
class Hang:
    """Close the link, having sent what was asked to be sent."""


@define
class Tell:
    """Send on the link."""

    messages: Sequence[Message]


@define
class Answer:
    """Give these replies to the consumer."""

    replies: Sequence[Reply]


@define
class Changed:
    """Tell the consumer that size or access is now this."""

    size_bytes: int
    access: Access


@define
class Ended:
    """Tell the consumer that the session is over for good."""

    sentence: str
    code: str


Outcome = Dial | Hang | Tell | Answer | Changed | Ended


@define
class ConsumerSession:
    """One session of one consumer on one volume; methods return what is to be done, in order."""

    hello: SessionOpen
    """As it is sent to every primary; the generation is filled in."""
    deadline_s: float | None = None
    """How long a request may wait before it is answered with EIO; None: for ever."""
    phase: SessionPhase = SessionPhase.SEEKING
    generation: int = 0
    size_bytes: int = 0
    access: Access = Access.READ_WRITE
    opened: bool = False
    """Whether some primary has ever taken the session."""
    record: GroupRecord | None = None
    unanswered: dict[int, Request] = field(factory=dict)
    """By id, in the consumer's order (dicts keep it)."""
    retry_at: float = 0.0
    last_refusal: str = ""
    loss_epoch: int = 0
    """The last epoch, as far as any primary has told, that began with unflushed writes gone."""
    has_lost: bool = False
    """Such writes of this session were among them; no flush succeeds any more."""
    _changed: int = 0
    """Rises whenever changes were answered that only a flush makes durable."""
    _flushed: int = 0
    """What of that is covered by flushes that were answered."""
    _flushing: dict[int, int] = field(factory=dict)
    """By id of a flush: what of it was answered when the flush was asked for."""
    _retry_s: float = RETRY_S_MIN
    _since: dict[int, float] = field(factory=dict)

    def submit(self, requests: Sequence[Request], now: float) -> Requests | None:
        """Take new requests of the consumer; return what to send on the link at once, if anything.

        Only while the session is not closed; a closed one answers by `refuse`.
        """
        assert self.phase is not _CLOSED
        unanswered = self.unanswered
        kept = keep_requests(unanswered, requests)
        for request in requests[kept:]:
            unanswered[request[0]] = request
            if request[1] == _FLUSH:
                self._flushing[request[0]] = self._changed
        if self.deadline_s is not None:
            for request in requests:
                self._since[request.id] = now
        if self.phase is _OPEN:
            return _new(Requests, (self.generation, requests))
        return None

    def readable_here(self, requests: Sequence[Request]) -> tuple[list[Request], list[Request]]:
        """Divide new requests into reads that a copy beside the consumer may answer, and the others.

        A read behind an unanswered write of its own session goes the way of that write, so that it
        sees it, as it would at the primary.
        """
        here: list[Request] = []
        others: list[Request] = []
        if self.phase is not SessionPhase.OPEN:
            return here, list(requests)
        before = [(r.offset, r.length) for r in self.unanswered.values() if r.kind != _READ]
        for request in requests:
            _, kind, _, offset, length, _ = request
            if kind != _READ:
                before.append((offset, length))
                others.append(request)
            elif before and any(o < offset + length and offset < o + n for o, n in before):
                others.append(request)
            else:
                here.append(request)
        return here, others

    def refuse(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """Return the answers of a closed session."""
        return [Reply(r.id, errno.EIO) for r in requests]

    def answered(self, replies: Sequence[Reply]) -> Sequence[Reply]:
        """Take what the primary has answered; return what is to be handed on: nothing twice."""
        done = settle_writes(self.unanswered, replies)
        changed = done > 0
        fresh = list(replies[:done])
        pop = self.unanswered.pop
        for reply in replies[done:]:
            request = pop(reply[0], None)
            if request is None:
                continue
            if request[1] == _WRITE and not (request[2] or reply[1]):
                changed = True
                fresh.append(reply)
            elif request[1] == _READ:
                fresh.append(reply)
            else:
                fresh.append(self._settled(request, reply))
        if changed:
            self._changed += 1
        if self._since:
            for reply in fresh:
                self._since.pop(reply.id, None)
        return fresh

    def on_record(self, record: GroupRecord, now: float) -> list[Outcome]:
        """The group record is now this."""
        before = self.record
        if before is not None and record.epoch < before.epoch:
            return []
        self.record = record
        outcomes: list[Outcome] = []
        if before is None or before.primary != record.primary or before.epoch != record.epoch:
            self._retry_s = RETRY_S_MIN
            self.retry_at = now
        if before is not None and before.primary != record.primary:
            if self.phase in {SessionPhase.OPENING, SessionPhase.OPEN}:
                # A frozen or cut-off primary closes no link; what it owes is asked of the new one.
                self.phase = SessionPhase.SEEKING
                outcomes.append(Hang())
        outcomes.extend(self.tick(now))
        return outcomes

    def on_deleted(self) -> list[Outcome]:
        """The volume was deleted."""
        return self._end("The volume was deleted.", "not-found")

    def tick(self, now: float) -> list[Outcome]:
        """Do what is due: dial, or give up requests whose deadline has passed."""
        outcomes: list[Outcome] = []
        if self.phase is SessionPhase.SEEKING and self.record is not None and now >= self.retry_at:
            self.phase = SessionPhase.OPENING
            hello = self.hello
            outcomes.append(
                Dial(
                    self.record.primary_member.node,
                    SessionOpen(
                        cluster=hello.cluster,
                        volume=hello.volume,
                        node=hello.node,
                        session=hello.session,
                        process=hello.process,
                        read_only=hello.read_only,
                        force=hello.force and not self.opened,
                        resume_generation=self.generation,
                    ),
                )
            )
        if self.deadline_s is not None:
            late = [i for i, since in self._since.items() if now - since >= self.deadline_s]
            if late:
                for request_id in late:
                    self._forget(request_id)
                if self.phase is SessionPhase.OPEN:
                    # The consumer may use these numbers anew, and an answer that is still under way
                    # must not be taken for that of another request: it is left behind on the old
                    # link, and what was sent there is dropped when the primary takes the next one.
                    self.phase = SessionPhase.SEEKING
                    self.retry_at = now
                    outcomes.append(Hang())
                outcomes.append(Answer([Reply(i, errno.EIO) for i in late]))
        return outcomes

    def on_lost(self, now: float) -> list[Outcome]:
        """The link broke or could not be opened."""
        if self.phase is not SessionPhase.CLOSED:
            self.phase = SessionPhase.SEEKING
            self.retry_at = now + self._retry_s
            self._retry_s = min(self._retry_s * 2, RETRY_S_MAX)
        return []

    def on_messages(self, messages: Sequence[Message], now: float) -> list[Outcome]:
        """Take what the primary has sent."""
        outcomes: list[Outcome] = []
        for message in messages:
            if isinstance(message, Replies):
                replies = self.answered(message.replies)
                if replies:
                    outcomes.append(Answer(replies))
            elif isinstance(message, SessionOpened):
                outcomes.extend(self._on_opened(message))
            elif isinstance(message, VolumeChanged):
                self.size_bytes = message.size_bytes
                self.access = Access(message.access)
                outcomes.append(Changed(self.size_bytes, self.access))
            elif isinstance(message, Refused):
                outcomes.extend(self._on_refused(message, now))
        return outcomes

    def close(self) -> list[Outcome]:
        """The consumer is done; give the writer session up."""
        outcomes: list[Outcome] = []
        if self.phase is SessionPhase.OPEN:
            outcomes.append(Tell((SessionClose(self.generation),)))
        outcomes.append(Hang())
        self.phase = SessionPhase.CLOSED
        return outcomes

    @property
    def gives_up_at(self) -> float | None:
        """When the oldest unanswered request will have waited too long; None: never."""
        if self.deadline_s is None or not self._since:
            return None
        return next(iter(self._since.values())) + self.deadline_s

    # -- inside -----------------------------------------------------------------------------------

    def _settled(self, request: Request, reply: Reply) -> Reply:
        """Note what an answer says of durability; return the answer that the consumer is given."""
        mark = self._flushing.pop(request.id, None)
        is_change = request.kind in _CHANGES
        if reply.errno:
            return reply
        if mark is None and not (is_change and request.flags & _FUA):
            self._changed += is_change
        elif self.has_lost:
            return Reply(reply.id, errno.EIO)
        elif mark is not None:
            self._flushed = max(self._flushed, mark)
        return reply

    def _on_opened(self, message: SessionOpened) -> list[Outcome]:
        if message.loss_epoch > self.loss_epoch:
            self.loss_epoch = message.loss_epoch
            # What was asked and not answered is asked again, so it is not lost.
            self.has_lost = self.has_lost or self._changed > self._flushed
        self.phase = SessionPhase.OPEN
        self._retry_s = RETRY_S_MIN
        self.last_refusal = ""
        self.generation = message.generation
        self.size_bytes = message.size_bytes
        self.access = Access(message.access)
        self.opened = True
        outcomes: list[Outcome] = [Changed(self.size_bytes, self.access)]
        if self.unanswered:
            outcomes.append(Tell((Requests(self.generation, tuple(self.unanswered.values())),)))
        return outcomes

    def _on_refused(self, message: Refused, now: float) -> list[Outcome]:
        self.last_refusal = message.sentence
        if message.code == "attached-elsewhere":
            # Another session holds the volume: this one was fenced, or never let in (R11).
            return [*self._end(message.sentence, message.code), Hang()]
        self.on_lost(now)
        return [Hang()]

    def _end(self, sentence: str, code: str) -> list[Outcome]:
        if self.phase is SessionPhase.CLOSED:
            return []
        self.phase = SessionPhase.CLOSED
        ids = list(self.unanswered)
        self.unanswered.clear()
        self._since.clear()
        outcomes: list[Outcome] = []
        if ids:
            outcomes.append(Answer([Reply(i, errno.EIO) for i in ids]))
        outcomes.append(Ended(sentence, code))
        return outcomes

    def _forget(self, request_id: int) -> None:
        self.unanswered.pop(request_id, None)
        self._flushing.pop(request_id, None)
        self._since.pop(request_id, None)
