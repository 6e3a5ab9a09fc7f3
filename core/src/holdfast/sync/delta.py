"""What one copy still needs: the plan of a delta sync, a full sync or a reconcile.

Candidates come from the cheapest knowledge there is (design, section 6): a dirty map, the returning
copy's suspects, or the hash tree; hashes confirm them, and only chunks that differ travel.

Why hashes may be compared while writes go on, without a lock: both copies apply the same ordered
stream of live writes, so for every byte each copy's value is its start value overwritten by a prefix
of the same log. If the two values are equal at any two prefixes, then applying the rest of the log
to each leaves them equal, because replaying a suffix of a log that is already contained in a state
changes nothing. The argument is per byte, so not even the hashing of one chunk must be atomic. What
does need care is the copying: bytes read before a live write must not be enqueued behind it. So a
chunk that a live write has touched between being read and being enqueued is read again, and if that
happened the primary holds writes back while it reads once more (`contended`).

A live write that was *not* sent to the copy (R12) breaks the premise for its chunks; `skip` says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from attrs import define, field

from holdfast.messages import Op, OpKind
from holdfast.sync.bitmap import Bitmap, consecutive
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, KIB, chunks_of
from holdfast.units import Sequence as Position

QUERY_INDEXES_MAX = 256
"""Hashes asked for at once: 4 KiB of answer, 16 MiB of data to be read when all are stale."""
QUERIES_MAX = 4
READ_CHUNKS_MAX = 16
"""1 MiB a read, of chunks that need not be neighbours: long enough to stream."""
READ_CHUNKS_BUSY = 4
"""The same while consumers write, whose next write waits behind it in the stream."""
ZERO_BYTES_MIN = 16 * KIB
"""Shorter runs of zeros are sent as data to a copy that may hold something else there: punching
thousands of small holes costs more than zeros that compress to nothing."""
FAN_OUT = 256
_ZERO_BLOCK = bytes(BLOCK_BYTES)
Runs = tuple[tuple[int, int], ...]
"""Chunk runs: (first chunk, chunks)."""


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
    blank: bool = False
    """The copy holds nothing but what this stream has brought: zeros need not be sent."""
    reading: Runs = ()
    """What is being read for sending."""
    contended: bool = False
    """Live writes have touched what was being read: they are held back during the next read."""
    sent_bytes: int = 0
    total_bytes: int = 0
    in_flight_bytes: int = 0
    finished_at: float | None = None
    flush_at: Position | None = None
    """The flush that makes everything durable before the copy joins."""
    _queries: dict[int, _Query] = field(factory=dict)
    set_aside: set[int] = field(factory=set)
    """Chunks that could not be read; `retry` has them read again, when there is nothing else to do."""
    _suspects: set[int] = field(factory=set)
    """Chunks in runs that could not be read as a whole; each is read by itself."""
    _overtaken: set[int] = field(factory=set)
    """Chunks being read that live writes have touched since."""
    _sending: deque[tuple[Position, Runs, int]] = field(factory=deque)
    """(sequence of the last operation, chunk runs, bytes that they cover) on their way."""
    _compared: bool = False
    """`todo` is known to be empty; it never grows."""
    _read_from: int = 0
    """No chunk below this is to be read."""

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
        job.mapping = job.blank = True
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
        if self.frontier or self.mapping or self._queries:
            return False
        self._compared = self._compared or not self.todo.any()
        return self._compared

    @property
    def equal(self) -> bool:
        """Whether the copy has applied everything it needed."""
        return self.counted and not (self.reading or self._sending) and not self.dirty.any()

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
        elif self._compared:
            return None
        else:
            indexes = tuple(self._take_todo())
            level = 0
            if not indexes:
                self._compared = True
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
                    self._want(chunk, 1)
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
        for offset, length in extents:
            first = offset // CHUNK_BYTES
            self._want(first, chunks_of(min(offset + length, self.size_bytes)) - first)
        self.total_bytes = self.left_bytes

    def _want(self, first: int, count: int) -> None:
        """Have chunks read and sent."""
        self.dirty.set_range(first, count)
        self.differ.set_range(first, count)
        self._read_from = min(self._read_from, first)

    # -- copying --------------------------------------------------------------------------------

    def next_read(self, chunks_max: int = READ_CHUNKS_MAX) -> list[tuple[int, int]]:
        """Return what is to be read for sending, as (offset, length) in bytes; empty: nothing now.

        Chunks that are not neighbours are collated, so that a scattered difference costs no more
        round trips than one in a piece.
        """
        if self.reading:
            return []
        runs: list[tuple[int, int]] = []
        left = chunks_max
        first = self.differ.next_set(self._read_from)
        while first is not None and left:
            stop = self.differ.next_clear(first, min(first + left, len(self.differ)))
            if self._suspects:
                stop = self._before_suspect(first, stop)
            self.differ.clear(first, stop - first)
            runs.append((first, stop - first))
            left -= stop - first
            self._read_from = stop
            first = self.differ.next_set(stop)
        self.reading = tuple(runs)
        return [self._bytes_of(*run) for run in runs]

    def _before_suspect(self, first: int, stop: int) -> int:
        """Return where a run that begins at `first` ends, so that it holds no suspect but itself."""
        if first in self._suspects:
            return first + 1
        return next((chunk for chunk in range(first, stop) if chunk in self._suspects), stop)

    def _bytes_of(self, first: int, count: int) -> tuple[int, int]:
        offset = first * CHUNK_BYTES
        return offset, min(offset + count * CHUNK_BYTES, self.size_bytes) - offset

    def give_up_read(self, *, contended: bool = False) -> None:
        """What was to be read is to be read later."""
        for run in self.reading:
            self._want(*run)
        self.reading = ()
        self._overtaken.clear()
        self.contended = contended

    def overtake(self, ops: Sequence[Op]) -> None:
        """Take note that live operations go ahead of what is being read."""
        for op in ops:
            if op.length:
                first = op.offset // CHUNK_BYTES
                last = (op.offset + op.length - 1) // CHUNK_BYTES
                for start, count in self.reading:
                    if start <= last and first < start + count:
                        touched = range(max(first, start), min(last + 1, start + count))
                        self._overtaken.update(touched)

    def on_read(self, pieces: Sequence[bytes | None], first: Position) -> list[Op]:
        """Take what `next_read` asked for; return the operations to enqueue from `first` on.

        What live writes have touched is to be read again, and so is each chunk of a run that could
        not be read, by itself; the one that still cannot is set aside.
        """
        runs, self.reading = self.reading, ()
        overtaken, self._overtaken = self._overtaken, set()
        self.contended = bool(overtaken)
        ops: list[Op] = []
        taken: list[tuple[int, int]] = []
        for (chunk, count), data in zip(runs, pieces, strict=True):
            if data is None:
                self._set_apart(chunk, count)
                continue
            if self._suspects:
                self._suspects.difference_update(range(chunk, chunk + count))
            for start, length in _without(chunk, count, overtaken):
                taken.append((start, length))
                at = (start - chunk) * CHUNK_BYTES
                end = at + length * CHUNK_BYTES
                whole = data if length == count else data[at:end]
                ops += split_zeros(start * CHUNK_BYTES, whole, keep_zeros=not self.blank)
        for chunk in sorted(overtaken):
            self._want(chunk, 1)
        self.sent_bytes += sum(len(op.data) for op in ops)
        size_bytes = sum(op.length for op in ops)
        self.in_flight_bytes += size_bytes
        last = Position(first + len(ops) - 1)
        if ops:
            self._sending.append((last, tuple(taken), size_bytes))
        else:
            self._arrived(tuple(taken))
        return ops

    def _set_apart(self, first: int, count: int) -> None:
        """Have the chunks of a run that could not be read told apart, or the only one set aside."""
        chunks = range(first, first + count)
        if count > 1:
            self._suspects.update(chunks)
            self._want(first, count)
        else:
            self.dirty.set_range(first)
            self.set_aside.update(chunks)

    def retry(self) -> bool:
        """Have what was set aside read again if nothing else is left; return whether that is so."""
        if self.differ.any():
            return False
        for chunk in self.set_aside:
            self._want(chunk, 1)
        self.set_aside.clear()
        return True

    def lost_in(self, pieces: Sequence[bytes | None]) -> list[tuple[int, int]]:
        """Return the chunks (offset, length) that cannot be read, before `on_read` takes the rest."""
        runs = zip(self.reading, pieces, strict=True)
        return [self._bytes_of(*run) for run, data in runs if data is None and run[1] == 1]

    def on_applied(self, through: Position) -> None:
        """The copy has applied everything up to `through`."""
        sending = self._sending
        while sending and sending[0][0] <= through:
            _, runs, size_bytes = sending.popleft()
            self.in_flight_bytes -= size_bytes
            self._arrived(runs)

    def _arrived(self, runs: Runs) -> None:
        for chunk, count in runs:
            for index in range(chunk, chunk + count):
                if not self.differ.test(index) and index not in self.set_aside:
                    self.dirty.clear(index)

    def skip(self, offset: int, length: int) -> None:
        """A live write was not sent to the copy: its chunks must be sent whole, later."""
        stop = min(offset + length, self.size_bytes)
        if stop > offset:
            first = offset // CHUNK_BYTES
            self._want(first, chunks_of(stop) - first)
        self.blank = False
        self.flush_at = None


def _without(first: int, count: int, gone: set[int]) -> Iterator[tuple[int, int]]:
    """Return a chunk run in the pieces that are left without the chunks that are `gone`."""
    if not gone:
        yield first, count
        return
    yield from consecutive(chunk for chunk in range(first, first + count) if chunk not in gone)


def split_zeros(offset: int, data: bytes, *, keep_zeros: bool) -> list[Op]:
    """Return the operations that put `data` at `offset`, with its runs of zeros told apart.

    Args:
        offset: Where in the volume, in bytes.
        data: A whole number of sectors.
        keep_zeros: Whether the copy may hold something else there, so that zeros must be told too.
    """
    size = len(data)
    # `startswith` compares in place: 70 ns a block, less where the first byte differs.
    zeros = [data.startswith(_ZERO_BLOCK, at) for at in range(0, size, BLOCK_BYTES)]
    rest = size % BLOCK_BYTES
    if rest:
        zeros[-1] = data.endswith(bytes(rest))
    if True not in zeros:
        return [Op(OpKind.SYNC_WRITE, offset, size, data)]
    ops: list[Op] = []
    least = ZERO_BYTES_MIN // BLOCK_BYTES if keep_zeros else 1
    view = memoryview(data)
    at = start = 0
    count = len(zeros)
    zeros.append(False)
    while at < count:
        if not zeros[at]:
            at += 1
            continue
        end = zeros.index(False, at)
        if end - at >= least or end - at == count:
            if at > start:
                ops.append(_sync_write(offset, view, start, at))
            if keep_zeros:
                begin, stop = at * BLOCK_BYTES, min(end * BLOCK_BYTES, size)
                ops.append(Op(OpKind.SYNC_ZERO, offset + begin, stop - begin))
            start = end
        at = end
    if start < count:
        ops.append(_sync_write(offset, view, start, count))
    return ops


def _sync_write(offset: int, view: memoryview, start: int, end: int) -> Op:
    data = view[start * BLOCK_BYTES : end * BLOCK_BYTES]
    return Op(OpKind.SYNC_WRITE, offset + start * BLOCK_BYTES, len(data), data)


def mark_extents(bitmap: Bitmap, extents: Sequence[tuple[int, int]], size_bytes: int) -> None:
    """Set the bits of all chunks that the byte extents (offset, length) touch."""
    for offset, length in extents:
        stop = min(offset + length, size_bytes)
        if stop > offset:
            first = offset // CHUNK_BYTES
            bitmap.set_range(first, (stop - 1) // CHUNK_BYTES - first + 1)
