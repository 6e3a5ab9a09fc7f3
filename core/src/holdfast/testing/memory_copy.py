"""A copy's store in memory that forgets what a disk may forget: for simulation and fast tests.

`MemoryDisk` is the machine's part: what its page cache holds, what of that is durable, and what goes
wrong. `MemoryCopyStore` is the process's part: the open copy, the same interface as the store over a
directory, against which it is verified (`core/tests/test_memory_copy.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from holdfast.errors import ConflictError, CopyError, FaultReason
from holdfast.interfaces.copy import Superblock
from holdfast.messages import Extent, Op, OpKind
from holdfast.sync.bitmap import consecutive
from holdfast.sync.hashlist import HASH_BYTES, HashList, chunk_hash, parse_key
from holdfast.testing.memory_disk import FAULTY, Fault, MemoryDisk
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, CHUNKS_PER_REGION, CopyId, chunks_of

__all__ = ["FAULTY", "MemoryCopyStore", "MemoryDisk"]

_WRITES: Final = (int(OpKind.WRITE), int(OpKind.SYNC_WRITE))
_FLUSH: Final = int(OpKind.FLUSH)
_BLOCKS_PER_CHUNK: Final = CHUNK_BYTES // BLOCK_BYTES


class MemoryCopyStore:
    """A `CopyStore` over a `MemoryDisk`, which has one such handle at a time."""

    def __init__(self, disk: MemoryDisk, boot: str) -> None:
        """Open a copy as `open_copy` does; raises `ConflictError` while another handle is open."""
        if disk.handle is not None:
            raise ConflictError("The copy is in use by another process.")
        disk.handle = self
        self.disk = disk
        self.superblock = disk.superblock
        self.was_clean = self.superblock.clean
        self.fresh, disk.fresh = disk.fresh, False
        self.rebooted = not self.fresh and self.superblock.boot != boot
        self.repaired: tuple[str, ...] = ()
        self._failure: CopyError | None = None
        stale = disk.stale_durable.copy()
        chunks = chunks_of(self.superblock.size_bytes)
        if not self.was_clean:
            for first, count in consecutive(sorted(disk.intent)):
                start = first * CHUNKS_PER_REGION
                stop = min((first + count) * CHUNKS_PER_REGION, chunks)
                stale.set_range(start, stop - start)
        key = parse_key(self.superblock.hash_key)
        self._hashes = HashList(disk.hash_bytes, stale, chunks=chunks, key=key)

    def apply(self, ops: Sequence[Op]) -> None:
        """Apply operations in order, into the page cache; FLUSH is skipped."""
        self._check()
        fault = self.disk.take_fault("apply")
        if fault is not None and not fault.done:
            ops = ops[: len(ops) // 2]
        stale = self._hashes.stale
        for kind, offset, length, data in ops:
            if kind == _FLUSH or length == 0:
                continue
            if kind in _WRITES:
                self.disk.write(offset, bytes(data))
            else:
                self.disk.zero(offset, length)
            first = offset // CHUNK_BYTES
            stale.set_range(first, (offset + length - 1) // CHUNK_BYTES - first + 1)
        if fault is not None:
            raise _error(fault)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes; holes read as zeros."""
        self._check("read")
        return self.disk.read(offset, length)

    def flush(self) -> None:
        """Make everything applied durable."""
        self._check()
        self._flush("flush")

    def mark_regions(self, regions: Iterable[int]) -> None:
        """Mark write intent, durable on return."""
        wanted = set(regions)

        def mark() -> None:
            self.disk.intent |= wanted
            self.disk.intent_durable = set(self.disk.intent)

        self._change("mark", mark)

    def clear_regions(self, regions: Iterable[int]) -> None:
        """Unmark write intent, after everything else is durable; itself durable with the next mark."""
        self._check()
        self._persist("clear")
        self.disk.intent -= set(regions)

    def marked_regions(self) -> frozenset[int]:
        """Return the regions with write intent."""
        self._check()
        return frozenset(self.disk.intent)

    def save(self, superblock: Superblock) -> None:
        """Keep a superblock; durable on return. With `clean` everything else is durable first."""
        self._check()
        if superblock.clean:
            self._persist("flush")

        def save() -> None:
            old = self.disk.superblock
            assert (superblock.copy, superblock.incarnation) == (old.copy, old.incarnation)
            self._replace_superblock(attrs.evolve(superblock, size_bytes=old.size_bytes))

        self._change("save", save)

    def hashes(self, chunks: Sequence[int]) -> bytes:
        """Return 16 bytes for each chunk, recomputing what is stale."""
        self._check("hashes")
        count, stale = self._hashes.chunks, self._hashes.stale
        self._rehash([c for c in chunks if c < count and stale.test(c)])
        return self._hashes.get(chunks)

    def tree(self, level: int, indexes: Sequence[int]) -> bytes:
        """Return 16 bytes for each node, recomputing what is stale below; level 0 is `hashes`."""
        self._check("hashes")
        for index in indexes:
            for first, count in self._hashes.stale_below(level, index):
                self._rehash(range(first, first + count))
        return self._hashes.nodes(level, indexes)

    def refresh_hashes(self, limit: int) -> int:
        """Recompute up to `limit` stale hashes; return how many are still stale."""
        self._check("hashes")
        for first, count in self._hashes.stale.runs():
            if limit <= 0:
                break
            self._rehash(range(first, first + min(count, limit)))
            limit -= count
        return self._hashes.stale.count()

    def zero_chunks(self, chunks: Sequence[int]) -> Sequence[bool]:
        """Return for each chunk whether it is a hole for certain."""
        self._check()
        return [self._is_hole(chunk) for chunk in chunks]

    def extents(self, offset: int, length: int, *, grain: int = 1) -> Sequence[Extent]:
        """Return the holes and data in a range, alternating."""
        self._check()
        found: list[Extent] = []
        end = offset + length
        piece = max(grain, BLOCK_BYTES)
        while offset < end:
            number = offset // piece
            stop = min((number + 1) * piece, end)
            blocks = range(number * piece // BLOCK_BYTES, (number + 1) * piece // BLOCK_BYTES)
            is_hole = not any(block in self.disk.blocks for block in blocks)
            if found and found[-1].is_hole == is_hole:
                found[-1] = Extent(found[-1].length + stop - offset, is_hole)
            else:
                found.append(Extent(stop - offset, is_hole))
            offset = stop
        return found

    def load_dirty(self, copy: CopyId) -> bytes | None:
        """Return the dirty map kept for another copy, or None."""
        self._check()
        return self.disk.dirty.get(copy)

    def save_dirty(self, copy: CopyId, bits: bytes) -> None:
        """Keep a dirty map; durable on return."""
        self._change("dirty", lambda: self.disk.dirty.update({copy: bytes(bits)}))

    def drop_dirty(self, copy: CopyId) -> None:
        """Forget a dirty map. Idempotent."""
        self._change("dirty", lambda: self.disk.dirty.pop(copy, None))

    def dirty_maps(self) -> Sequence[CopyId]:
        """Return the copies for which a dirty map is kept, sorted."""
        self._check()
        return tuple(sorted(self.disk.dirty))

    def probe(self) -> None:
        """Return at once: there is no disk."""

    def resize(self, size_bytes: int) -> None:
        """Grow; durable on return."""
        self._check()
        if size_bytes < self.superblock.size_bytes:
            raise ConflictError("A copy cannot shrink.")

        def resize() -> None:
            chunks = chunks_of(size_bytes)
            buffer = self.disk.hash_bytes
            buffer.content.extend(bytes(chunks * HASH_BYTES - len(buffer.content)))
            self.disk.stale_durable.resize(chunks)
            self._hashes.resize(buffer, chunks)
            self._replace_superblock(attrs.evolve(self.disk.superblock, size_bytes=size_bytes))

        self._change("resize", resize)

    def used_bytes(self) -> int:
        """Return the bytes of all blocks that are not holes."""
        return len(self.disk.blocks) * BLOCK_BYTES

    def close(self) -> None:
        """Let go of the disk; writes nothing. Idempotent."""
        if self.disk.handle is self:
            self.disk.handle = None
        if self._failure is None:
            self._failure = CopyError("The copy is closed.", reason=FaultReason.REMOVED)

    # --- inside ----------------------------------------------------------------------------

    def _check(self, operation: str = "") -> None:
        """Refuse after a failure; let a planned fault of a reading `operation` strike."""
        if self._failure is not None:
            raise self._failure
        fault = self.disk.take_fault(operation) if operation else None
        if fault is not None:
            raise _error(fault)

    def _change(self, operation: str, effect: Callable[[], object]) -> None:
        """Carry out a metadata change, or let a planned fault strike, which is then final."""
        self._check()
        fault = self.disk.take_fault(operation)
        if fault is None or fault.done:
            effect()
        if fault is not None:
            self._failure = _error(fault)
            raise self._failure

    def _flush(self, operation: str) -> None:
        fault = self.disk.take_fault(operation)
        if fault is None:
            self.disk.flush()
            return
        if not fault.done:
            self.disk.flush_in_vain()
        self._failure = _error(fault)
        raise self._failure

    def _persist(self, operation: str) -> None:
        self._flush(operation)
        self.disk.hash_bytes.unsynced.clear()
        self.disk.stale_durable = self._hashes.stale.copy()

    def _replace_superblock(self, superblock: Superblock) -> None:
        generation = self.disk.superblock.generation + 1
        self.superblock = self.disk.superblock = attrs.evolve(superblock, generation=generation)

    def _is_hole(self, chunk: int) -> bool:
        first = chunk * _BLOCKS_PER_CHUNK
        blocks = self.disk.blocks
        return not any(number in blocks for number in range(first, first + _BLOCKS_PER_CHUNK))

    def _rehash(self, chunks: Iterable[int]) -> None:
        size, key = self.superblock.size_bytes, self._hashes.key
        for chunk in chunks:
            start = chunk * CHUNK_BYTES
            data = self.disk.read(start, min(CHUNK_BYTES, size - start))
            self._hashes.put(chunk, chunk_hash(data, key))


def _error(fault: Fault) -> CopyError:
    return CopyError(
        f"The disk failed to {fault.operation}: {fault.reason.value}.", reason=fault.reason
    )
