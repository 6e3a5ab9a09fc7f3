"""Are all copies equal? Compares every chunk of every in-sync copy while the volume is in use.

Hashes taken at different places of the stream may differ for a moment; a chunk that differs is
therefore asked for again while writes are held and everything written has been applied everywhere.
What differs then, differs.
"""

from __future__ import annotations

from collections import deque

from attrs import define, field

from holdfast.messages import DATA_LEVEL, HashQuery
from holdfast.sync.events import Effect, HashDisk, Instant, Verified
from holdfast.sync.leg import Leg, Phase
from holdfast.sync.primary import PrimaryRole
from holdfast.units import CopyId, NodeName, chunks_of

BATCH_CHUNKS = 128
"""8 MiB of data are read and hashed at a time on each copy."""


@define
class VerifyJob:
    """One run over all chunks; owned by the primary."""

    token: int
    primary: PrimaryRole
    chunks: int
    next_chunk: int = 0
    batch: tuple[int, ...] = ()
    query_id: int = 0
    local_token: int = 0
    local: bytes | None = None
    remote: dict[CopyId, bytes] = field(factory=dict)
    asked: tuple[Leg, ...] = ()
    doubts: deque[int] = field(factory=deque)
    """Chunks that differed once."""
    holding: bool = False
    differing: dict[int, list[NodeName]] = field(factory=dict)
    compared: int = 0
    done: bool = False

    @classmethod
    def over(cls, token: int, primary: PrimaryRole) -> VerifyJob:
        """Return a run over the whole volume."""
        return cls(token, primary, chunks_of(primary.ctx.size_bytes))

    def advance(self, now: Instant, out: list[Effect]) -> None:
        """Ask for the next batch when the last one is compared."""
        if self.done or self.batch:
            return
        primary = self.primary
        if self.next_chunk < self.chunks:
            stop = min(self.next_chunk + BATCH_CHUNKS, self.chunks)
            self._ask(tuple(range(self.next_chunk, stop)), out)
            self.next_chunk = stop
            return
        if self.doubts:
            if not self.holding:
                self.holding = True
                primary.holds += 1
            if primary.idle and primary.ctx.disk.idle and self._drained():
                batch = tuple(
                    self.doubts.popleft() for _ in range(min(len(self.doubts), BATCH_CHUNKS))
                )
                self._ask(batch, out)
            return
        self._end(now, out)

    def _drained(self) -> bool:
        return all(not leg.unacked for leg in self.primary.legs.values() if leg.in_sync)

    def _ask(self, batch: tuple[int, ...], out: list[Effect]) -> None:
        ctx = self.primary.ctx
        self.batch = batch
        self.query_id, self.local_token = ctx.token(), ctx.token()
        self.local = None
        self.remote = {}
        self.asked = tuple(
            leg
            for leg in self.primary.legs.values()
            if leg.in_sync and leg.phase is Phase.STREAMING
        )
        out.append(HashDisk(self.local_token, DATA_LEVEL, batch))
        for leg in self.asked:
            leg.send(HashQuery(ctx.epoch, self.query_id, DATA_LEVEL, batch), out)

    def on_local(self, token: int, hashes: bytes, now: Instant, out: list[Effect]) -> bool:
        """Take the local hashes; return whether they were ours."""
        if token != self.local_token or self.done:
            return False
        self.local = hashes
        self._compare(now, out)
        return True

    def on_remote(
        self, leg: Leg, query_id: int, hashes: bytes, now: Instant, out: list[Effect]
    ) -> bool:
        """Take a copy's hashes; return whether they were ours."""
        if query_id != self.query_id or self.done:
            return False
        self.remote[leg.copy] = hashes
        self._compare(now, out)
        return True

    def _compare(self, now: Instant, out: list[Effect]) -> None:
        # A leg that was lost on the way is left out; the outcome tells how many were compared.
        alive = [leg for leg in self.asked if leg.in_sync and leg.phase is Phase.STREAMING]
        if self.local is None or any(leg.copy not in self.remote for leg in alive):
            return
        for at, chunk in enumerate(self.batch):
            mine = self.local[at * 16 : at * 16 + 16]
            nodes = [
                leg.node for leg in alive if self.remote[leg.copy][at * 16 : at * 16 + 16] != mine
            ]
            if nodes and self.holding:
                self.differing[chunk] = nodes
            elif nodes:
                self.doubts.append(chunk)
        self.compared = len(alive) + 1
        self.batch = ()
        out.append(Verified(self.token, self.next_chunk, self.chunks, self.compared, None))
        self.advance(now, out)

    def on_leg_changed(self, now: Instant, out: list[Effect]) -> None:
        """A leg was lost or dropped; what was waited for from it will not come."""
        if self.batch:
            self._compare(now, out)

    def abandon(self, out: list[Effect]) -> None:
        """The primary steps down; there is no outcome."""
        if not self.done:
            self.done = True
            out.append(Verified(self.token, self.next_chunk, self.chunks, 0, None, failed=True))

    def _end(self, now: Instant, out: list[Effect]) -> None:
        self.done = True
        if self.holding:
            self.primary.holds -= 1
            self.primary.release(now, out)
        differing = tuple(sorted((c, tuple(n)) for c, n in self.differing.items()))
        out.append(Verified(self.token, self.chunks, self.chunks, self.compared, differing))
