"""Reads that a replica answers from its own disk, so that its consumer crosses no network for them.

An in-sync copy has applied every write that was acknowledged, so its bytes are never too old. What
could go wrong, and what prevents it (decision 0014):

- It was dropped and does not know: it answers only under a *read lease* of its primary, and no record
  without a copy is asked for before that copy's lease is over (`are_over`).
- Its primary was deposed and does not know: a read lease ends with the primary's own (R5), which a new
  primary has waited out, or else waits out before it drops a copy that it has not heard of.
- It has applied a write that is not acknowledged and may yet be lost: what overlaps its window goes to
  the primary, which waits for such a write.

The lease counts, on the copy, from when it sent its query, and on the primary from when that arrived,
which is later; clocks matter only as far as they do for R5.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from holdfast.messages import ReadLease, ReadLeaseQuery, Request, RequestKind
from holdfast.model import Access, GroupRecord
from holdfast.sync.context import Context
from holdfast.sync.events import Effect, Instant, LinkId, Send, ServeReads, Unserved
from holdfast.sync.leg import Leg, Phase
from holdfast.sync.primary import PrimaryRole
from holdfast.sync.refusing import MISALIGNED
from holdfast.units import REQUEST_BYTES_MAX

NEVER = float("-inf")
ASK_EVERY_S = 0.25
"""How often a lease that was refused, or whose query was not answered, is asked for again."""
_READ = int(RequestKind.READ)
_READABLE = frozenset({Access.READ_WRITE, Access.READ_ONLY})
_new = tuple.__new__  # Half the cost of calling the named tuple.


@define
class LocalReader:
    """A replica's side: what it may answer by itself, and until when."""

    ctx: Context
    until: float = NEVER
    """When the lease ends; monotonic."""
    served: int = 0
    """Reads that were answered here."""
    _number: int = 0
    _asked_at: float = NEVER
    """When the query of `_number` was sent; NEVER: it was answered."""
    _ask_at: float = NEVER
    """Not before then is asked again."""

    def end(self) -> None:
        """The lease is worth nothing any more, nor is what was asked: stream, epoch or role changed."""
        self.until = self._asked_at = self._ask_at = NEVER

    def on_lease(self, lease: ReadLease) -> None:
        """Take the primary's answer; one that was not waited for any more is ignored."""
        if lease.number == self._number and self._asked_at > NEVER:
            self.until = self._asked_at + lease.for_s
            if lease.for_s > 0:
                self._ask_at = self._asked_at + lease.for_s / 2
            self._asked_at = NEVER

    def read(
        self,
        link: LinkId,
        requests: Sequence[Request],
        stream: LinkId | None,
        now: Instant,
        out: list[Effect],
    ) -> None:
        """Answer what may be answered here, and send the rest to the primary.

        Args:
            link: Where the consumer is answered.
            requests: What it reads.
            stream: The link to the primary; None while it is not one of an in-sync copy.
            now: The time.
            out: Effects.
        """
        ctx = self.ctx
        mono = now.mono
        if stream is not None and mono >= self._ask_at and ctx.counted_in:
            self._ask(stream, mono, out)
        if (
            stream is None
            or mono >= self.until
            or not ctx.counted_in
            or ctx.record.access not in _READABLE
        ):
            out.append(_new(Unserved, (link, requests)))
            return
        window, size = list(ctx.disk.recent()), ctx.size_bytes
        ready: list[Request] = []
        others: list[Request] = []
        for request in requests:
            _, kind, _, offset, length, _ = request
            end = offset + length
            if (
                kind == _READ
                and not (offset | length) & MISALIGNED
                and 0 < length <= REQUEST_BYTES_MAX
                and end <= size
                and not (window and any(o < end and offset < o + n for _, o, n in window))
            ):
                ready.append(request)
            else:
                others.append(request)
        if ready:
            self.served += len(ready)
            out.append(_new(ServeReads, (link, ready, True)))
        if others:
            out.append(_new(Unserved, (link, others)))

    def _ask(self, stream: LinkId, mono: float, out: list[Effect]) -> None:
        self._number += 1
        self._asked_at = mono
        self._ask_at = mono + ASK_EVERY_S
        out.append(Send(stream, (ReadLeaseQuery(self.ctx.epoch, self._number),)))


def grant(
    primary: PrimaryRole, leg: Leg, query: ReadLeaseQuery, now: Instant, out: list[Effect]
) -> None:
    """Answer a copy's query with what is left of the primary's own lease."""
    ctx = primary.ctx
    until = primary.lease_until()
    if (
        query.epoch != ctx.epoch
        or not primary.serving
        or primary.stopped
        or not (leg.in_sync and leg.equal and leg.phase is Phase.STREAMING)
        or leg.fault is not None
        or leg.reads_ended
        or ctx.record.access not in _READABLE
    ):
        until = NEVER
    else:
        leg.reads_until = max(leg.reads_until, until)
    leg.send(ReadLease(ctx.epoch, query.number, max(0.0, until - now.mono)), out)


def are_over(primary: PrimaryRole, desired: GroupRecord, now: Instant) -> bool:
    """Return whether no copy that `desired` takes out of the in-sync set can be reading by itself.

    Such a copy gets no further lease, for as long as its going is what is desired.
    """
    staying = set(desired.in_sync)
    margin_s = primary.ctx.peers.timing.margin_s
    over = True
    for leg in primary.legs.values():
        leg.reads_ended = leg.in_sync and leg.copy not in staying
        if leg.reads_ended and now.mono < leg.reads_until + margin_s:
            over = False
    return over
