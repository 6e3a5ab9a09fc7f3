"""The disk under one simulated copy: what is in the page cache, and what would survive a power loss.

Content is kept by 4 KiB block, twice: `cache` is what a read returns, `stable` is what the platters
hold. Between the two lies an ordered log of block writes that no flush has covered. A killed process
leaves the cache as it is; a power loss keeps any subset of the log, torn at 512-byte boundaries.

Hashes here are Python's own hashes of the blocks, folded: equal content gives equal hashes within
one process, which is all that the machines ask of them, and costs a hundredth of BLAKE3.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterable, Sequence

import attrs
from attrs import define, field

from holdfast.interfaces.copy import Superblock
from holdfast.messages import DATA_LEVEL, Extent, Op, OpKind
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, SECTOR_BYTES, CopyId, chunks_of

ZERO_BLOCK = bytes(BLOCK_BYTES)
_BLOCKS_PER_CHUNK = CHUNK_BYTES // BLOCK_BYTES
_FOLD = struct.Struct(f">{_BLOCKS_PER_CHUNK}q")
_ZERO_HASH = hash(ZERO_BLOCK)
_WRITES = frozenset({OpKind.WRITE, OpKind.SYNC_WRITE})
FAN_OUT = 256


def tear(rng: random.Random, old: bytes, new: bytes) -> bytes:
    """Return a mixture of two versions of one block, cut at a 512-byte boundary."""
    cut = rng.randrange(1, BLOCK_BYTES // SECTOR_BYTES) * SECTOR_BYTES
    return new[:cut] + old[cut:] if rng.random() < 0.5 else old[:cut] + new[cut:]


def hash_of(data: bytes) -> bytes:
    """Return the 16 bytes that name the content of a chunk."""
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    blocks += [ZERO_BLOCK] * (_BLOCKS_PER_CHUNK - len(blocks))
    return hashlib.blake2b(_FOLD.pack(*map(hash, blocks)), digest_size=16).digest()


@define(eq=False)
class CopyDisk:
    """The bytes and metadata of one copy; outlives processes, and power losses as far as durable."""

    size_bytes: int
    superblock: Superblock
    cache: dict[int, bytes] = field(factory=dict)
    """Block number to content; what is missing is zeros."""
    stable: dict[int, bytes] = field(factory=dict)
    log: list[tuple[int, bytes]] = field(factory=list)
    """Block writes, in order, that no flush has covered."""
    marked: set[int] = field(factory=set)
    """Regions with write intent, as read back by a living machine."""
    marked_maybe: set[int] = field(factory=set)
    """Cleared lazily: a power loss may bring these marks back."""
    dirty: dict[CopyId, bytes] = field(factory=dict)
    unreadable: set[int] = field(factory=set)
    """Blocks that cannot be read until they are written again; `cache` has what is lost there."""
    rotten: bool = False
    """Damaged beyond what the rules promise to survive; invariants leave it alone."""
    tainted: bool = False
    tainted_at: float = 0.0
    """When, in world time."""
    """Lost power since it was last known to hold every acknowledged write."""
    rotted: set[int] = field(factory=set)
    """Blocks that have other bytes than were written there, until they are written again."""
    _hashes: dict[int, bytes] = field(factory=dict)
    _flushed_base: int = 0

    # -- data -------------------------------------------------------------------------------------

    def apply(self, ops: Iterable[Op]) -> None:
        """Apply operations to the page cache."""
        cache, log, hashes = self.cache, self.log, self._hashes
        for kind, offset, length, data in ops:
            if not length:
                continue
            assert not (offset | length) % BLOCK_BYTES, (offset, length)
            assert offset + length <= self.size_bytes, (offset, length, self.size_bytes)
            first = offset // BLOCK_BYTES
            last = first + length // BLOCK_BYTES - 1
            if self.rotted:
                self.rotted.difference_update(range(first, last + 1))
            if self.unreadable:
                self.unreadable.difference_update(range(first, last + 1))
            if kind in _WRITES:
                assert len(data) == length
                if length == BLOCK_BYTES:
                    block = bytes(data)
                    cache[first] = block
                    log.append((first, block))
                else:
                    raw = bytes(data)
                    for at in range(length // BLOCK_BYTES):
                        block = raw[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]
                        cache[first + at] = block
                        log.append((first + at, block))
            else:
                for number in range(first, last + 1):
                    if cache.pop(number, None) is not None or number in self.stable:
                        log.append((number, ZERO_BLOCK))
            for chunk in range(first // _BLOCKS_PER_CHUNK, last // _BLOCKS_PER_CHUNK + 1):
                hashes.pop(chunk, None)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the page cache."""
        cache = self.cache
        first = offset // BLOCK_BYTES
        if length == BLOCK_BYTES:
            return cache.get(first, ZERO_BLOCK)
        count = length // BLOCK_BYTES
        return b"".join([cache.get(n, ZERO_BLOCK) for n in range(first, first + count)])

    def can_read(self, offset: int, length: int) -> bool:
        """Return whether all of a range can be read."""
        first = offset // BLOCK_BYTES
        return self.unreadable.isdisjoint(range(first, first + -(-length // BLOCK_BYTES)))

    def flush_mark(self) -> int:
        """Return what a flush that starts now will cover."""
        return self._flushed_base + len(self.log)

    def flush_done(self, mark: int) -> None:
        """Put everything up to `mark` on the platters."""
        count = mark - self._flushed_base
        if count <= 0:
            return
        for number, block in self.log[:count]:
            self._settle(number, block)
        del self.log[:count]
        self._flushed_base = mark

    def flush_failed(self, rng: random.Random) -> None:
        """A failed fsync: some dirty pages are dropped and marked clean, as Linux does."""
        self._lose(rng, rng.choice((0.0, 0.5)), torn=False)

    def power_lost(self, rng: random.Random) -> None:
        """Keep what is stable and any subset of what is not."""
        self._lose(rng, rng.choice((0.0, 0.1, 0.5, 0.9, 1.0)), torn=True)
        self.marked |= {region for region in sorted(self.marked_maybe) if rng.random() < 0.5}
        self.marked_maybe.clear()

    def _lose(self, rng: random.Random, kept: float, *, torn: bool) -> None:
        for number, block in self.log:
            if rng.random() < kept:
                if torn and rng.random() < 0.05:
                    self._settle(number, tear(rng, self.stable.get(number, ZERO_BLOCK), block))
                else:
                    self._settle(number, block)
        self._flushed_base += len(self.log)
        self.log.clear()
        self.cache = dict(self.stable)
        self._hashes.clear()

    def _settle(self, number: int, block: bytes) -> None:
        if block == ZERO_BLOCK:
            self.stable.pop(number, None)
        else:
            self.stable[number] = block

    # -- hashes -----------------------------------------------------------------------------------

    def chunk_hash(self, chunk: int) -> bytes:
        """Return 16 bytes that name the content of a chunk."""
        known = self._hashes.get(chunk)
        if known is None:
            first = chunk * _BLOCKS_PER_CHUNK
            cache = self.cache
            known = self._hashes[chunk] = hashlib.blake2b(
                _FOLD.pack(
                    *[
                        hash(cache[n]) if n in cache else _ZERO_HASH
                        for n in range(first, first + _BLOCKS_PER_CHUNK)
                    ]
                ),
                digest_size=16,
            ).digest()
        return known

    def data_hash(self, chunk: int) -> bytes:
        """Return the hash of a chunk's bytes as they are, whatever is kept."""
        start = chunk * CHUNK_BYTES
        return hash_of(self.read(start, min(CHUNK_BYTES, self.size_bytes - start)))

    def _hash_or_none(self, chunk: int) -> bytes:
        """As `data_hash`; what cannot be read is like nothing else, on no copy."""
        start = chunk * CHUNK_BYTES
        if self.can_read(start, min(CHUNK_BYTES, self.size_bytes - start)):
            return self.data_hash(chunk)
        return hashlib.blake2b(f"{id(self)} {chunk}".encode(), digest_size=16).digest()

    def rot(self, block: int) -> None:
        """Change a block's bytes without anybody's knowledge; its kept hash stays."""
        old = self.cache.get(block, ZERO_BLOCK)
        self.chunk_hash(block // _BLOCKS_PER_CHUNK)
        self.cache[block] = self.stable[block] = bytes([old[0] ^ 1]) + old[1:]
        self.rotted.add(block)

    def misdirect(self, block: int, other: int) -> None:
        """Put what belongs to one block into another one.

        The hash of the former was taken while the page cache still had what was meant.
        """
        if self.cache.get(block, ZERO_BLOCK) == self.cache.get(other, ZERO_BLOCK):
            return
        for chunk in (block // _BLOCKS_PER_CHUNK, other // _BLOCKS_PER_CHUNK):
            self.chunk_hash(chunk)
        self.cache[other] = self.stable[other] = self.cache.get(block, ZERO_BLOCK)
        self.cache[block] = self.stable[block] = ZERO_BLOCK
        self.rotted |= {block, other}

    def tree(self, level: int, indexes: Sequence[int]) -> bytes:
        """Return the hashes of nodes of the fan-out-256 tree."""
        if level == 0:
            return b"".join([self.chunk_hash(index) for index in indexes])
        if level == DATA_LEVEL:
            return b"".join([self._hash_or_none(index) for index in indexes])
        below = chunks_of(self.size_bytes)
        for _ in range(level - 1):
            below = -(-below // FAN_OUT)
        return b"".join(
            hashlib.blake2b(
                self.tree(level - 1, range(index * FAN_OUT, min((index + 1) * FAN_OUT, below))),
                digest_size=16,
            ).digest()
            for index in indexes
        )

    def extents(self) -> list[Extent]:
        """Return holes and data of the whole copy, by chunk."""
        extents: list[Extent] = []
        with_data = {number // _BLOCKS_PER_CHUNK for number in self.cache}
        for chunk in range(chunks_of(self.size_bytes)):
            length = min(CHUNK_BYTES, self.size_bytes - chunk * CHUNK_BYTES)
            extents.append(Extent(length, chunk not in with_data))
        return extents

    # -- metadata ---------------------------------------------------------------------------------

    def mark(self, regions: Iterable[int]) -> None:
        """Mark write intent durably."""
        self.marked.update(regions)
        self.marked_maybe.difference_update(regions)

    def clear(self, regions: Iterable[int]) -> None:
        """Unmark lazily, after flushing data."""
        self.flush_done(self.flush_mark())
        for region in regions:
            if region in self.marked:
                self.marked.discard(region)
                self.marked_maybe.add(region)

    def save_dirty(self, copy: CopyId, bits: bytes) -> None:
        """Keep a dirty map, durably."""
        self.dirty[copy] = bits

    def drop_dirty(self, copy: CopyId) -> None:
        """Forget a dirty map, durably."""
        self.dirty.pop(copy, None)

    def save(self, superblock: Superblock) -> None:
        """Write the superblock durably; one that says `clean` is preceded by a flush."""
        if superblock.clean:
            self.flush_done(self.flush_mark())
        generation = self.superblock.generation + 1
        self.superblock = attrs.evolve(
            superblock, generation=generation, size_bytes=self.size_bytes
        )

    def resize(self, size_bytes: int) -> None:
        """Grow durably; what is new is zeros."""
        assert size_bytes >= self.size_bytes
        self.size_bytes = size_bytes
        self.save(self.superblock)
