"""What one copy still needs: the plan of a delta sync, a full sync or a reconcile.

Candidates come from the cheapest knowledge there is (design, section 6): a dirty map, the returning
copy's suspects, or the hash tree; hashes confirm them, and only chunks that differ travel.

Why hashes may be compared while writes go on, without a lock: both copies apply the same ordered
stream of live writes, so for every byte each copy's value is its start value overwritten by a prefix
of the same log. If the two values are equal at any two prefixes, then applying the rest of the log
to each leaves them equal, because replaying a suffix of a log that is already contained in a state
changes nothing. The argument is per byte, so not even the hashing of one chunk must be atomic. What
does need care is the copying: bytes read before a live write must not be enqueued behind it, so the
primary holds writes back between reading a run and enqueueing it.

A live write that was *not* sent to the copy (R12) breaks the premise for its chunks; `skip` says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from attrs import define, field

from holdfast.messages import Op, OpKind
from holdfast.sync.bitmap import Bitmap
from holdfast.units import CHUNK_BYTES, chunks_of
from holdfast.units import Sequence as Position

QUERY_INDEXES_MAX = 256
"""Hashes asked for at once: 4 KiB of answer, 16 MiB of data to be read when all are stale."""
QUERIES_MAX = 4
READ_CHUNKS_MAX = 16
"""1 MiB a read: long enough to stream, short enough that held writes do not notice."""
FAN_OUT = 256
_ZEROS = bytes(READ_CHUNKS_MAX * CHUNK_BYTES)


@define
class _Query:
    level: int
    indexes: tuple[int, ...]
    local: bytes | None = None
    remote: bytes | None = None


@define
class SyncJob:
    """The work left for one copy; its owner carries out what `next_query` and `next_read` name."""

    how: str
    """For people: `dirty-map`, `intent`, `hash-tree`, `full` or `reconcile`."""
    size_bytes: int
    dirty: Bitmap
    """Chunks not known to be equal. Cleared when hashes agree or the copy has applied the bytes."""
    todo: Bitmap
    """Chunks whose hashes are still to be compared."""
    differ: Bitmap
    """Chunks that are to be read and sent."""
    started_at: float
    frontier: deque[tuple[int, tuple[int, ...]]] = field(factory=deque)
    """Tree nodes still to be compared: (level, indexes)."""
    mapping: bool = False
    """A map of the local holes is awaited, to learn what a fresh copy needs."""
    map_asked: bool = False
    reading: tuple[int, int] | None = None
    """(first chunk, chunks) being read for sending."""
    sent_bytes: int = 0
    total_bytes: int = 0
    in_flight_bytes: int = 0
    finished_at: float | None = None
    flush_at: Position | None = None
    """The flush that makes everything durable before the copy joins."""
    _queries: dict[int, _Query] = field(factory=dict)
    _sending: deque[tuple[Position, int, int]] = field(factory=deque)

    # -- making ---------------------------------------------------------------------------------

    @classmethod
    def confirming(
        cls,
        how: str,
        size_bytes: int,
        extents: Sequence[tuple[int, int]],
        known: Bitmap | None,
        now: float,
    ) -> SyncJob:
        """Return a job over candidates: byte extents and a dirty map, both to be confirmed."""
        count = chunks_of(size_bytes)
        dirty = Bitmap(count) if known is None else known.copy()
        dirty.resize(count)
        mark_extents(dirty, extents, size_bytes)
        job = cls(how, size_bytes, dirty, dirty.copy(), Bitmap(count), now)
        job.total_bytes = job.left_bytes
        return job

    @classmethod
    def comparing(cls, size_bytes: int, now: float) -> SyncJob:
        """Return a job that compares the whole trees from the root."""
        count = chunks_of(size_bytes)
        job = cls("hash-tree", size_bytes, Bitmap(count), Bitmap(count), Bitmap(count), now)
        level = 0
        nodes = count
        while nodes > 1:
            nodes = -(-nodes // FAN_OUT)
            level += 1
        job.frontier.append((level, (0,)))
        return job

    @classmethod
    def filling(cls, size_bytes: int, now: float) -> SyncJob:
        """Return a job that sends everything but holes to a copy that is all zeros."""
        count = chunks_of(size_bytes)
        job = cls("full", size_bytes, Bitmap(count), Bitmap(count), Bitmap(count), now)
        job.mapping = True
        return job

    def grow(self, size_bytes: int) -> None:
        """Go on with a grown volume: what is new is zeros on every copy."""
        self.size_bytes = size_bytes
        for bitmap in (self.dirty, self.todo, self.differ):
            bitmap.resize(chunks_of(size_bytes))

    # -- state ----------------------------------------------------------------------------------

    @property
    def counted(self) -> bool:
        """Whether the difference is known: nothing is left to compare."""
        return not (self.frontier or self.mapping or self._queries) and not self.todo.any()

    @property
    def equal(self) -> bool:
        """Whether the copy has applied everything it needed."""
        return self.counted and self.reading is None and not self._sending and not self.dirty.any()

    @property
    def asking(self) -> bool:
        """Whether an answer of the copy is awaited."""
        return bool(self._queries)

    @property
    def left_bytes(self) -> int:
        """Bytes of the chunks not known to be equal; an upper bound until `counted`."""
        return min(self.dirty.count() * CHUNK_BYTES, self.size_bytes)

    # -- comparing ------------------------------------------------------------------------------

    def next_query(self, query_id: int) -> tuple[int, tuple[int, ...]] | None:
        """Return (level, indexes) to be hashed on both sides as query `query_id`, or None for now.

        Ids must never repeat on a leg: an answer to a query of an earlier job may still arrive.
        """
        if len(self._queries) >= QUERIES_MAX:
            return None
        if self.frontier:
            level, indexes = self.frontier.popleft()
        else:
            indexes = tuple(self._take_todo())
            level = 0
            if not indexes:
                return None
        self._queries[query_id] = _Query(level, indexes)
        return level, indexes

    def on_hashes(self, query_id: int, hashes: bytes, *, local: bool) -> None:
        """Take one side's answer; compares when both are there."""
        query = self._queries.get(query_id)
        if query is None:
            return
        if local:
            query.local = hashes
        else:
            query.remote = hashes
        if query.local is None or query.remote is None:
            return
        del self._queries[query_id]
        mine, theirs = query.local, query.remote
        if query.level == 0:
            for at, chunk in enumerate(query.indexes):
                same = mine[at * 16 : at * 16 + 16] == theirs[at * 16 : at * 16 + 16]
                if not same:
                    self.dirty.set_range(chunk)
                    self.differ.set_range(chunk)
                elif not self.differ.test(chunk):
                    self.dirty.clear(chunk)
        else:
            self._descend(query.level, query.indexes, mine, theirs)
        if self.counted:
            # What is sent from here on is known; a bar may be drawn.
            self.total_bytes = max(self.sent_bytes + self.left_bytes, self.sent_bytes)

    def _descend(self, level: int, indexes: tuple[int, ...], mine: bytes, theirs: bytes) -> None:
        width = chunks_of(self.size_bytes)
        for _ in range(level - 1):
            width = -(-width // FAN_OUT)
        for at, index in enumerate(indexes):
            if mine[at * 16 : at * 16 + 16] != theirs[at * 16 : at * 16 + 16]:
                first = index * FAN_OUT
                children = tuple(range(first, min(first + FAN_OUT, width)))
                self.frontier.append((level - 1, children))

    def _take_todo(self) -> list[int]:
        taken: list[int] = []
        for start, length in self.todo.runs():
            taken.extend(range(start, start + min(length, QUERY_INDEXES_MAX - len(taken))))
            if len(taken) >= QUERY_INDEXES_MAX:
                break
        for chunk in taken:
            self.todo.clear(chunk)
        return taken

    def on_map(self, extents: Iterator[tuple[int, int]]) -> None:
        """Take the local data extents (offset, length): what a copy of zeros needs."""
        self.mapping = False
        mark_extents(self.dirty, list(extents), self.size_bytes)
        mark_extents(self.differ, list(self.dirty_extents()), self.size_bytes)
        self.total_bytes = self.left_bytes

    def dirty_extents(self) -> Iterator[tuple[int, int]]:
        """Return the dirty runs as byte extents."""
        for start, length in self.dirty.runs():
            yield start * CHUNK_BYTES, length * CHUNK_BYTES

    # -- copying --------------------------------------------------------------------------------

    def next_read(self) -> tuple[int, int] | None:
        """Return (offset, length) to be read for sending, or None for now."""
        if self.reading is not None:
            return None
        first = self.differ.next_set(0)
        if first is None:
            return None
        stop = self.differ.next_clear(first, min(first + READ_CHUNKS_MAX, len(self.differ)))
        self.differ.clear(first, stop - first)
        self.reading = (first, stop - first)
        offset = first * CHUNK_BYTES
        return offset, min(stop * CHUNK_BYTES, self.size_bytes) - offset

    def on_read(self, data: bytes, first: Position) -> list[Op]:
        """Take what `next_read` asked for; return the operations to enqueue from `first` on."""
        assert self.reading is not None
        chunk, count = self.reading
        self.reading = None
        offset = chunk * CHUNK_BYTES
        if data == _ZEROS[: len(data)]:
            op = Op(OpKind.SYNC_ZERO, offset, len(data))
        else:
            op = Op(OpKind.SYNC_WRITE, offset, len(data), data)
            self.sent_bytes += len(data)
        self.in_flight_bytes += len(data)
        self._sending.append((first, chunk, count))
        return [op]

    def on_read_failed(self) -> tuple[int, int]:
        """What `next_read` asked for cannot be read now; return its (offset, length)."""
        assert self.reading is not None
        chunk, count = self.reading
        self.reading = None
        self.differ.set_range(chunk, count)
        offset = chunk * CHUNK_BYTES
        return offset, min(count * CHUNK_BYTES, self.size_bytes - offset)

    def on_applied(self, through: Position) -> None:
        """The copy has applied everything up to `through`."""
        sending = self._sending
        while sending and sending[0][0] <= through:
            _, chunk, count = sending.popleft()
            self.in_flight_bytes -= min(count * CHUNK_BYTES, self.size_bytes - chunk * CHUNK_BYTES)
            for index in range(chunk, chunk + count):
                if not self.differ.test(index):
                    self.dirty.clear(index)

    def skip(self, offset: int, length: int) -> None:
        """A live write was not sent to the copy: its chunks must be sent whole, later."""
        mark_extents(self.dirty, [(offset, length)], self.size_bytes)
        mark_extents(self.differ, [(offset, length)], self.size_bytes)
        self.flush_at = None


def mark_extents(bitmap: Bitmap, extents: Sequence[tuple[int, int]], size_bytes: int) -> None:
    """Set the bits of all chunks that the byte extents (offset, length) touch."""
    for offset, length in extents:
        stop = min(offset + length, size_bytes)
        if stop > offset:
            first = offset // CHUNK_BYTES
            bitmap.set_range(first, (stop - 1) // CHUNK_BYTES - first + 1)
