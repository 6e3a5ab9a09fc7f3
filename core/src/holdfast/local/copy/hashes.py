"""The chunk hashes of one copy on disk, kept right beside writes that never wait for them.

A write is noted after it was done (`note`, the number of its chunk); whoever looks at hashes takes the
notes first and marks their chunks stale. So a hash that was computed from bytes that a write was just
changing is stale again as soon as that write is noted, and no lock is on the way of a write.

On disk, `stale` is trusted only where no write intent stands: a region is unmarked after `persist`,
and a region that an unclean stop left marked is stale as a whole. Hashes that are found damaged are
stale too, and are so on disk before anything is written over them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Final

from holdfast.compiled import compiled
from holdfast.errors import CopyError, FaultReason
from holdfast.local.copy.bitmap_file import BitmapFile
from holdfast.local.copy.data import DataFile
from holdfast.local.copy.hash_file import DamagedHashesError, HashFile
from holdfast.messages import Op
from holdfast.sync.bitmap import consecutive
from holdfast.sync.hashlist import HASH_BYTES, ZERO_HASH, HashList, chunk_hash
from holdfast.units import CHUNK_BYTES, CHUNKS_PER_REGION, chunks_of

_NOTES_MAX: Final = 8192
"""Notes are taken by the writer itself when so many are left lying (1 MiB of memory)."""
_READ_CHUNKS: Final = 16
"""Chunks read at once: 1 MiB, and at most so long is the lock held."""
_HOLE_CHUNKS: Final = 4096
_CHUNK_SHIFT: Final = CHUNK_BYTES.bit_length() - 1


@compiled
def note_chunks(ops: Sequence[Op], chunks: set[int]) -> list[tuple[int, int]]:
    """Note the chunks that operations touch.

    Args:
        ops: The operations.
        chunks: Gets the chunk of each operation that lies within one.

    Returns:
        The first chunk, and how many there are, of each operation that touches several.
    """
    runs = []
    for _, offset, length, _ in ops:
        if length > 0:
            first = offset >> _CHUNK_SHIFT
            last = (offset + length - 1) >> _CHUNK_SHIFT
            if first == last:
                chunks.add(first)
            else:
                runs.append((first, last - first + 1))
    return runs


class ChunkHashes:
    """Hashes, stale bits and tree of one copy. Every method may run beside every other."""

    __slots__ = (
        "_buffer",
        "_cursor",
        "_data",
        "_list",
        "_lock",
        "_noted",
        "_noted_runs",
        "_stale",
    )

    def __init__(self, buffer: HashFile, stale: BitmapFile, data: DataFile, key: bytes) -> None:
        """Take over open files; `key` is the volume's."""
        chunks = chunks_of(data.size_bytes)
        self._buffer = buffer
        self._stale = stale
        self._data = data
        self._list = HashList(buffer, stale.bits, chunks=chunks, key=key)
        self._lock = Lock()
        self._noted: set[int] = set()
        """Chunks that were written to and do not count as stale yet. The writer adds to it while
        others take from it without the writer's knowing: it is never replaced by another set."""
        self._noted_runs: deque[tuple[int, int]] = deque()
        """The same for operations over several: first chunk, and how many."""
        self._cursor = 0

    def note(self, ops: Sequence[Op]) -> None:
        """Note what `ops` touched, after they were done, or may have been done in part."""
        runs = note_chunks(ops, self._noted)
        if runs:
            self._noted_runs.extend(runs)
        notes = len(self._noted) + len(self._noted_runs)
        if notes > _NOTES_MAX and self._lock.acquire(blocking=False):
            # Else someone looks at hashes right now and takes the notes himself.
            try:
                self._take_notes()
            finally:
                self._lock.release()

    def mark_regions_stale(self, regions: Iterable[int]) -> None:
        """Mark all chunks of `regions` stale."""
        with self._lock:
            for first, count in consecutive(regions):
                start = first * CHUNKS_PER_REGION
                stop = min((first + count) * CHUNKS_PER_REGION, self._list.chunks)
                self._mark(start, stop - start)

    def forget(self) -> None:
        """Drop every hash, durably: the list itself is not to be trusted.

        Staleness goes first: a crash on the way leaves hashes as they were, or all of them stale.
        """
        with self._lock:
            self._mark(0, self._list.chunks)
            self._stale.write()
            self._stale.sync()
            self._buffer.clear()
            self._buffer.sync()
            self._list.forget_tree()

    def get(self, chunks: Sequence[int]) -> bytes:
        """Return 16 bytes for each chunk, recomputing what is stale."""
        with self._lock:
            self._take_notes()
            count, stale = self._list.chunks, self._list.stale
            wanted = [c for c in chunks if c < count and stale.test(c)]
        for first, length in consecutive(wanted):
            self._freshen(first, length)
        with self._lock:
            try:
                return self._list.get(chunks)
            except DamagedHashesError as found:
                self._distrust(found)
        return self.get(chunks)

    def tree(self, level: int, indexes: Sequence[int]) -> bytes:
        """Return 16 bytes for each node, recomputing what is stale below."""
        if level == 0:
            return self.get(indexes)
        with self._lock:
            self._take_notes()
        for index in indexes:
            for first, length in self._list.stale_below(level, index):
                self._freshen(first, length)
        with self._lock:
            try:
                return self._list.nodes(level, indexes)
            except DamagedHashesError as found:
                self._distrust(found)
        return self.tree(level, indexes)

    def refresh(self, limit: int) -> int:
        """Recompute up to `limit` stale hashes, going round; return how many are still stale."""
        with self._lock:
            self._take_notes()
        for _ in range(2):  # From where the last call ended to the end, then from the start.
            for first, length in self._list.stale.runs(self._cursor):
                count = min(length, limit)
                self._freshen(first, count)
                self._cursor = first + count
                limit -= count
                if limit <= 0:
                    return self._list.stale.count()
            self._cursor = 0
        return self._list.stale.count()

    def persist(self) -> None:
        """Put hashes and stale bits on stable storage as of the notes so far.

        Hashes go first: a stale bit may be clear on disk only when its hash is there.
        """
        with self._lock:
            self._take_notes()
            self._persist()

    def grow(self, size_bytes: int) -> None:
        """Follow the data file, which has grown by zeros; durable on return."""
        chunks = chunks_of(size_bytes)
        with self._lock:
            self._take_notes()
            self._buffer.grow(chunks)
            self._stale.resize(chunks)
            self._list.resize(self._buffer, chunks)

    def _freshen(self, first: int, count: int) -> None:
        """Recompute the hashes of a run of chunks, giving way to others in between."""
        stop = first + count
        while first < stop:
            with self._lock:
                self._take_notes()
                first += self._freshen_piece(first, stop - first)

    def _freshen_piece(self, first: int, count: int) -> int:
        unreadable: list[int] = []
        holes = self._data.hole_chunks(first, min(count, _HOLE_CHUNKS))
        if holes:
            values = ZERO_HASH * holes
        else:
            count = min(count, _READ_CHUNKS)
            start = first * CHUNK_BYTES
            length = min(count * CHUNK_BYTES, self._data.size_bytes - start)
            values, unreadable = self._hash_run(first, start, length)
        done = len(values) // HASH_BYTES
        try:
            self._list.put_run(first, values)
        except DamagedHashesError as found:
            self._distrust(found)
            return 0  # The chunks are still stale, and their turn comes again.
        self._stale.touch(first, done)
        for chunk in unreadable:
            self._mark(chunk, 1)
        return done

    def _hash_run(self, first: int, start: int, length: int) -> tuple[bytes, list[int]]:
        """Return the hashes of a run of bytes from chunk `first` on, and what cannot be read of it."""
        key = self._list.key
        try:
            data = memoryview(self._data.read(start, length))
        except CopyError as error:
            if error.reason is not FaultReason.UNREADABLE:
                raise
        else:
            pieces = (data[at : at + CHUNK_BYTES] for at in range(0, length, CHUNK_BYTES))
            return b"".join(chunk_hash(piece, key) for piece in pieces), []
        values, unreadable = [], []
        for at in range(0, length, CHUNK_BYTES):
            try:
                piece = self._data.read(start + at, min(CHUNK_BYTES, length - at))
                values.append(chunk_hash(piece, key))
            except CopyError as error:
                if error.reason is not FaultReason.UNREADABLE:
                    raise
                # Equal to nothing, so that whoever compares finds it, and stale.
                values.append(os.urandom(HASH_BYTES))
                unreadable.append(first + at // CHUNK_BYTES)
        return b"".join(values), unreadable

    def _persist(self) -> None:
        self._buffer.sync()
        self._stale.write()
        self._stale.sync()

    def _distrust(self, found: DamagedHashesError) -> None:
        """Mark stale what was found damaged, durably: the first hash written there mends the sector.

        The lock is held.
        """
        self._mark(found.first, min(found.count, self._list.chunks - found.first))
        self._persist()

    def _take_notes(self) -> None:
        """Mark stale what the notes name. The lock is held."""
        runs = self._noted_runs
        while runs:
            self._mark(*runs.popleft())
        # A chunk that is noted between these two stays noted, or is in `chunks` and marked below.
        chunks = frozenset(self._noted)
        self._noted.difference_update(chunks)
        self._stale.set_bits(chunks)

    def _mark(self, first: int, count: int) -> None:
        if count > 0:
            self._list.stale.set_range(first, count)
            self._stale.touch(first, count)
