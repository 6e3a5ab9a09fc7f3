"""Are all copies equal, and is each of them what it once was? Compared and repaired while in use.

Of every chunk each copy tells two hashes: the one of its bytes as they are now, and the one that
its hash list keeps since it was last written. Bytes that no longer match their own kept hash have
rotted; copies that all match their own hashes and yet differ have diverged. Which of the two it is
decides whose bytes are good: those of any copy that has not rotted, or the primary's.

Hashes taken at different places of the stream may differ for a moment; a chunk in doubt is asked
for again while writes are held and everything written has been applied everywhere. What differs
then, differs. A repair writes the good bytes to every copy, as one more operation of the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from attrs import define, field, frozen

from holdfast.messages import DATA_LEVEL, HashQuery, Op, OpKind, ReadQuery
from holdfast.sync.events import Effect, HashDisk, Instant, ReadDisk, Verified
from holdfast.sync.leg import Leg, Phase
from holdfast.sync.primary import PrimaryRole
from holdfast.units import CHUNK_BYTES, CopyId, NodeName, chunks_of, counted

BATCH_CHUNKS = 128
"""8 MiB of data are read and hashed at a time on each copy."""
NOTES_MAX = 20
"""Chunks that are told of one by one in the volume's events; the rest is a number."""
_LEVELS = (0, DATA_LEVEL)
"""The kept hash is asked for first, so that a stale one is settled before the bytes are read."""


@frozen
class _Repair:
    """Good bytes that are being fetched."""

    chunk: int
    source: CopyId
    expected: bytes
    token: int
    """Of the local read, or the id of the query to the other copy."""


@define
class VerifyJob:
    """One run over all chunks; owned by the primary."""

    token: int
    primary: PrimaryRole
    chunks: int
    repair: bool = False
    pace_s: float = 0.0
    """The least time between two batches; a run in the background leaves the disks to others."""
    next_chunk: int = 0
    batch: tuple[int, ...] = ()
    asked: tuple[Leg, ...] = ()
    doubts: deque[int] = field(factory=deque)
    """Chunks that were not equal, or not what they should be, once."""
    holding: bool = False
    differing: dict[int, list[NodeName]] = field(factory=dict)
    """Chunks in which copies differ though each matches its own hash, and those nodes."""
    rotten: dict[int, list[NodeName]] = field(factory=dict)
    """Chunks whose bytes do not match their own hash, and where."""
    repaired: list[int] = field(factory=list)
    compared: int = 0
    done: bool = False
    _wanted: deque[tuple[int, CopyId, bytes]] = field(factory=deque)
    """Repairs to be made: chunk, whose bytes are good, their hash."""
    _fetching: _Repair | None = None
    _tokens: dict[int, int] = field(factory=dict)
    """Local token or query id to level, for the batch under way."""
    _hashes: dict[tuple[CopyId, int], bytes] = field(factory=dict)
    """By copy and level."""
    _next_at: float = 0.0

    @classmethod
    def over(
        cls, token: int, primary: PrimaryRole, *, repair: bool = False, pace_s: float = 0.0
    ) -> VerifyJob:
        """Return a run over the whole volume."""
        return cls(token, primary, chunks_of(primary.ctx.size_bytes), repair, pace_s)

    def advance(self, now: Instant, out: list[Effect]) -> None:
        """Ask for the next batch when the last one is compared."""
        if self.done or self.batch or self._fetching is not None:
            return
        primary = self.primary
        if self._wanted:
            self._fetch(now, out)
        elif self.next_chunk < self.chunks:
            if now.mono < self._next_at:
                return
            self._next_at = now.mono + self.pace_s
            stop = min(self.next_chunk + BATCH_CHUNKS, self.chunks)
            self._ask(tuple(range(self.next_chunk, stop)), now, out)
            self.next_chunk = stop
        elif self.doubts:
            if not self.holding:
                self.holding = True
                primary.holds += 1
            if primary.idle and primary.ctx.disk.idle and self._drained():
                batch = tuple(
                    self.doubts.popleft() for _ in range(min(len(self.doubts), BATCH_CHUNKS))
                )
                self._ask(batch, now, out)
        else:
            self._end(now, out)

    def _drained(self) -> bool:
        return all(not leg.unacked for leg in self.primary.legs.values() if leg.in_sync)

    # -- comparing --------------------------------------------------------------------------------

    def _ask(self, batch: tuple[int, ...], now: Instant, out: list[Effect]) -> None:
        ctx = self.primary.ctx
        self.batch = batch
        self._tokens.clear()
        self._hashes.clear()
        self.asked = tuple(
            leg
            for leg in self.primary.legs.values()
            if leg.in_sync and leg.phase is Phase.STREAMING
        )
        if self.holding:
            for leg in self.asked:
                leg.progress_at = now.mono
        for level in _LEVELS:
            token = ctx.token()
            self._tokens[token] = level
            out.append(HashDisk(token, level, batch))
            for leg in self.asked:
                leg.send(HashQuery(ctx.epoch, token, level, batch), out)

    def on_local(self, token: int, hashes: bytes, now: Instant, out: list[Effect]) -> bool:
        """Take the local hashes; return whether they were ours."""
        return self._take(self.primary.ctx.copy, token, hashes, now, out)

    def on_remote(
        self, leg: Leg, query_id: int, hashes: bytes, now: Instant, out: list[Effect]
    ) -> bool:
        """Take a copy's hashes; return whether they were ours."""
        return self._take(leg.copy, query_id, hashes, now, out)

    def _take(
        self, copy: CopyId, token: int, hashes: bytes, now: Instant, out: list[Effect]
    ) -> bool:
        level = self._tokens.get(token)
        if level is None or self.done:
            return False
        self._hashes[copy, level] = hashes
        self._compare(now, out)
        return True

    def _alive(self) -> list[Leg]:
        return [leg for leg in self.asked if leg.in_sync and leg.phase is Phase.STREAMING]

    def _compare(self, now: Instant, out: list[Effect]) -> None:
        # A leg that was lost on the way is left out; the outcome tells how many were compared.
        copies = [self.primary.ctx.copy, *(leg.copy for leg in self._alive())]
        if any((copy, level) not in self._hashes for copy in copies for level in _LEVELS):
            return
        for at, chunk in enumerate(self.batch):
            part = slice(at * 16, at * 16 + 16)
            kept = {copy: self._hashes[copy, 0][part] for copy in copies}
            data = {copy: self._hashes[copy, DATA_LEVEL][part] for copy in copies}
            if len({*kept.values(), *data.values()}) == 1:
                continue
            if self.holding:
                self._judge(chunk, kept, data, out)
            else:
                self.doubts.append(chunk)
        self.compared = len(copies)
        self.batch = ()
        self._tokens.clear()
        out.append(Verified(self.token, self.next_chunk, self.chunks, self.compared, None))
        self.advance(now, out)

    def _judge(
        self,
        chunk: int,
        kept: Mapping[CopyId, bytes],
        data: Mapping[CopyId, bytes],
        out: list[Effect],
    ) -> None:
        """Say what is wrong with a chunk, and whose bytes are good."""
        me = self.primary.ctx.copy
        if len(data) > 1 and len(set(data.values())) == 1:
            return  # The bytes are equal; only a hash list is behind.
        rotten = [copy for copy in data if kept[copy] != data[copy]]
        # The primary is the last to be looked at, so that its bytes are taken if they are good.
        good = {data[copy]: copy for copy in reversed(list(data)) if copy not in rotten}
        if rotten and len(good) < 2:
            self.rotten[chunk] = [self._node(copy) for copy in rotten]
            self._note(f"Chunk {chunk} has rotted on {', '.join(self.rotten[chunk])}", good, out)
        else:
            others = [copy for copy in data if data[copy] != data[me]]
            self.differing[chunk] = [self._node(copy) for copy in others]
            self._note(f"The copies differ in chunk {chunk} though none has rotted", good, out)
            good = {} if me in rotten else {data[me]: me}
        if self.repair and good:
            ((expected, source),) = good.items()
            self._wanted.append((chunk, source, expected))

    def _note(self, what: str, good: Mapping[bytes, CopyId], out: list[Effect]) -> None:
        found = len(self.rotten) + len(self.differing)
        if found > NOTES_MAX:
            return
        fate = "" if good else "; no copy has good bytes"
        self.primary.ctx.note("scrub", f"{what}{fate}.", out)

    def _node(self, copy: CopyId) -> NodeName:
        return self.primary.ctx.record.member(copy).node

    # -- repairing --------------------------------------------------------------------------------

    def _fetch(self, now: Instant, out: list[Effect]) -> None:
        """Read the good bytes of the next chunk; writes are held, so they stay good."""
        ctx = self.primary.ctx
        chunk, source, expected = self._wanted.popleft()
        token = ctx.token()
        offset = chunk * CHUNK_BYTES
        length = min(CHUNK_BYTES, ctx.size_bytes - offset)
        self._fetching = _Repair(chunk, source, expected, token)
        if source == ctx.copy:
            out.append(ReadDisk(token, offset, length))
            return
        leg = self.primary.legs.get(source)
        if leg is None or leg.phase is not Phase.STREAMING:
            self._fetching = None
        else:
            leg.progress_at = now.mono
            leg.send(ReadQuery(ctx.epoch, token, offset, length), out)

    def on_bytes(self, token: int, data: bytes, now: Instant, out: list[Effect]) -> bool:
        """Take what was read, here or on another copy; return whether it was ours."""
        repair = self._fetching
        if repair is None or repair.token != token or self.done:
            return False
        self._fetching = None
        ctx = self.primary.ctx
        offset = repair.chunk * CHUNK_BYTES
        whole = len(data) == min(CHUNK_BYTES, ctx.size_bytes - offset)
        if whole and ctx.hash_of(data, ctx.spec) == repair.expected:
            if data == bytes(len(data)):
                op = Op(OpKind.DISCARD, offset, len(data))
            else:
                op = Op(OpKind.WRITE, offset, len(data), data)
            self.primary.rewrite(op, now, out)
            self.repaired.append(repair.chunk)
        self.advance(now, out)
        return True

    # -- ends -------------------------------------------------------------------------------------

    def awaits(self, leg: Leg) -> bool:
        """Whether writes are held until `leg` has answered."""
        if self._fetching is not None:
            return self._fetching.source == leg.copy
        return (
            self.holding
            and bool(self.batch)
            and any(other.copy == leg.copy for other in self.asked)
            and any((leg.copy, level) not in self._hashes for level in _LEVELS)
        )

    def on_leg_changed(self, now: Instant, out: list[Effect]) -> None:
        """A leg was lost or dropped; what was waited for from it will not come."""
        repair = self._fetching
        if repair is not None and repair.source != self.primary.ctx.copy:
            leg = self.primary.legs.get(repair.source)
            if leg is None or leg.phase is not Phase.STREAMING:
                self._fetching = None
        # One whose link was resumed meanwhile has forgotten what it was asked.
        self.asked = tuple(self._alive())
        if self.batch:
            self._compare(now, out)

    def abandon(self, out: list[Effect]) -> None:
        """The primary is one no longer; there is no outcome."""
        if not self.done:
            self.done = True
            out.append(Verified(self.token, self.next_chunk, self.chunks, 0, None, failed=True))

    def _end(self, now: Instant, out: list[Effect]) -> None:
        self.done = True
        if self.holding:
            self.primary.holds -= 1
            self.primary.release(now, out)
        if self.repaired:
            # What was repaired is to outlive a loss of power like anything that was flushed.
            self.primary.rewrite(Op(OpKind.FLUSH, 0, 0), now, out)
            told = f"Repaired from good copies: {counted(len(self.repaired), 'chunk')}."
            self.primary.ctx.note("scrub", told, out)
        out.append(
            Verified(
                self.token,
                self.chunks,
                self.chunks,
                self.compared,
                tuple(sorted((c, tuple(n)) for c, n in self.differing.items())),
                rotten=tuple(sorted((c, tuple(n)) for c, n in self.rotten.items())),
                repaired=tuple(sorted(self.repaired)),
            )
        )
