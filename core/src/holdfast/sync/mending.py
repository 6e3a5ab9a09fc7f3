"""What the primary's own disk cannot read is read from another copy, and put right on the way.

A media error is not the loss of a copy: the consumer gets its bytes from an in-sync copy that has
them, and every copy is given them again, which makes the failing disk put them elsewhere. Writes are
held meanwhile and everything acknowledged is everywhere, so what is read is what a read of the
primary's disk would have returned. Bytes count as good when they match the hash that their copy
keeps of them: a rotten chunk must not be spread in the name of repair.

An error reaches a consumer only when no in-sync copy has the bytes.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence

from attrs import define, field, frozen

from holdfast.messages import HashQuery, Op, OpKind, ReadQuery, Reply, Request
from holdfast.sync.events import Effect, Instant, LinkId, SendReplies
from holdfast.sync.leg import Leg, Phase
from holdfast.sync.primary import PrimaryRole
from holdfast.units import CHUNK_BYTES, CopyId, format_size


@frozen
class _Wanted:
    """A range that the primary's disk could not read."""

    offset: int
    length: int
    link: LinkId | None
    """The session that asked; None: a sync did, and will read again by itself."""
    request_id: int = 0


@define
class _Fetch:
    """One chunk on its way from one copy."""

    chunk: int
    source: CopyId
    read_id: int
    hash_id: int
    data: bytes | None = None
    hash: bytes | None = None


@define
class Mending:
    """Everything of that kind under one primary; owned by its keeper."""

    primary: PrimaryRole
    _wanted: deque[_Wanted] = field(factory=deque)
    _holding: bool = False
    _drained: bool = False
    _parts: list[bytes] = field(factory=list)
    """The chunks of the first wanted range so far."""
    _failed: set[CopyId] = field(factory=set)
    """Copies that have no good bytes for the chunk in turn."""
    _fetch: _Fetch | None = None

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._wanted) or self._holding

    def awaits(self, leg: Leg) -> bool:
        """Whether writes are held until `leg` has answered."""
        return self._fetch is not None and self._fetch.source == leg.copy

    def add(
        self, link: LinkId, requests: Sequence[Request], now: Instant, out: list[Effect]
    ) -> None:
        """Take reads of a consumer that the own disk failed."""
        for request in requests:
            self._wanted.append(_Wanted(request.offset, request.length, link, request.id))
        self.advance(now, out)

    def add_range(self, offset: int, length: int, now: Instant, out: list[Effect]) -> None:
        """Take a range that a sync could not read."""
        self._wanted.append(_Wanted(offset, length, None))
        self.advance(now, out)

    def advance(self, now: Instant, out: list[Effect]) -> None:
        """Go on as far as possible."""
        primary = self.primary
        while self._wanted:
            if not self._is_wanted(self._wanted[0]):
                self._drop()
                continue
            if not self._holding:
                self._holding = True
                primary.holds += 1
            if not self._drained:
                if not (primary.idle and primary.ctx.disk.idle and _all_drained(primary)):
                    return
                self._drained = True
            if self._fetch is not None:
                leg = primary.legs.get(self._fetch.source)
                if leg is not None and leg.in_sync and leg.phase is Phase.STREAMING:
                    return
                self._fetch = None
            if len(self._parts) < len(_chunks(self._wanted[0])):
                if not self._ask(now, out):
                    return
            elif not self._answer(now, out):
                return
        if self._holding:
            self._holding = self._drained = False
            primary.holds -= 1
            primary.release(now, out)

    def on_hashes(
        self, leg: Leg, query_id: int, hashes: bytes, now: Instant, out: list[Effect]
    ) -> bool:
        """Take the hash that a copy keeps of its bytes; return whether it was ours."""
        fetch = self._fetch
        if fetch is None or (fetch.source, fetch.hash_id) != (leg.copy, query_id):
            return False
        fetch.hash = hashes
        self._take(now, out)
        return True

    def on_bytes(
        self, leg: Leg, query_id: int, data: bytes, now: Instant, out: list[Effect]
    ) -> bool:
        """Take the bytes of a copy, none when it could not read them; return whether it was ours."""
        fetch = self._fetch
        if fetch is None or (fetch.source, fetch.read_id) != (leg.copy, query_id):
            return False
        fetch.data = data
        self._take(now, out)
        return True

    # -- inside -----------------------------------------------------------------------------------

    def _is_wanted(self, wanted: _Wanted) -> bool:
        return wanted.link is None or wanted.link in self.primary.attachments.open

    def _drop(self) -> None:
        self._wanted.popleft()
        self._parts.clear()
        self._failed.clear()
        self._fetch = None

    def _ask(self, now: Instant, out: list[Effect]) -> bool:
        """Ask a copy for the next chunk; return False when one must be waited for."""
        ctx = self.primary.ctx
        chunk = _chunks(self._wanted[0])[len(self._parts)]
        offset = chunk * CHUNK_BYTES
        length = min(CHUNK_BYTES, ctx.size_bytes - offset)
        others = [leg for leg in self.primary.legs.values() if leg.in_sync]
        others = [leg for leg in others if leg.copy not in self._failed]
        for leg in others:
            if leg.phase is Phase.STREAMING:
                self._fetch = _Fetch(chunk, leg.copy, ctx.token(), ctx.token())
                leg.progress_at = now.mono
                leg.send(ReadQuery(ctx.epoch, self._fetch.read_id, offset, length), out)
                leg.send(HashQuery(ctx.epoch, self._fetch.hash_id, 0, (chunk,)), out)
                return False
        if not others:
            self._give_up(chunk, out)
        return not others

    def _take(self, now: Instant, out: list[Effect]) -> None:
        fetch, ctx = self._fetch, self.primary.ctx
        assert fetch is not None
        if fetch.data is None or fetch.hash is None:
            return
        self._fetch = None
        data, offset = fetch.data, fetch.chunk * CHUNK_BYTES
        whole = len(data) == min(CHUNK_BYTES, ctx.size_bytes - offset)
        if whole and ctx.hash_of(data, ctx.spec) == fetch.hash:
            if data == bytes(len(data)):
                op = Op(OpKind.DISCARD, offset, len(data))
            else:
                op = Op(OpKind.WRITE, offset, len(data), data)
            self.primary.rewrite(op, now, out)
            self._parts.append(data)
            self._failed.clear()
            self.primary.lost.discard(fetch.chunk)
        else:
            self._failed.add(fetch.source)
        self.advance(now, out)

    def _answer(self, now: Instant, out: list[Effect]) -> bool:
        """Answer the first range, whose bytes are all there; False: not without the lease (R5)."""
        primary, wanted = self.primary, self._wanted[0]
        if wanted.link is not None:
            if primary.stopped or primary.lease_until() <= now.mono:
                return False
            start = wanted.offset % CHUNK_BYTES
            data = b"".join(self._parts)[start : start + wanted.length]
            out.append(SendReplies(wanted.link, (Reply(wanted.request_id, 0, data),)))
        ctx = primary.ctx
        sentence = (
            f"{format_size(wanted.length)} at {wanted.offset} could not be read on {ctx.node}; "
            "another copy had them, and they were written anew."
        )
        ctx.note("repaired", sentence, out)
        self._drop()
        return True

    def _give_up(self, chunk: int, out: list[Effect]) -> None:
        """No in-sync copy has the bytes."""
        ctx, wanted = self.primary.ctx, self._wanted[0]
        if chunk not in self.primary.lost:
            self.primary.lost.add(chunk)
            sentence = f"Chunk {chunk} cannot be read on {ctx.node}, and no in-sync copy has it."
            ctx.note("unreadable", sentence, out)
        if wanted.link is not None:
            out.append(SendReplies(wanted.link, (Reply(wanted.request_id, errno.EIO),)))
        self._drop()


def _chunks(wanted: _Wanted) -> range:
    last = (wanted.offset + wanted.length - 1) // CHUNK_BYTES
    return range(wanted.offset // CHUNK_BYTES, last + 1)


def _all_drained(primary: PrimaryRole) -> bool:
    return all(not leg.unacked for leg in primary.legs.values() if leg.in_sync)
