"""What the directory of one copy would hold, in memory, with the faults that disks have.

The faults are those that a group must survive, and no stronger ones:

- after a power loss each 4 KiB block that was not flushed is as any of its writes since the last
  flush left it, or as before all of them, or torn between these at 512-byte sectors; nothing orders
  blocks among each other; an unmarking of intent, and a chunk hash, may have been lost likewise;
- what the interface calls durable is durable: flushed data, marks, superblock, dirty maps;
- after a failed flush the pages still read as written, but no later flush writes them out.

A volume costs memory for the blocks that were written and 16 bytes per chunk. Knows nothing of the
process that has the copy open but that it may end.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import attrs

from holdfast.errors import FaultReason
from holdfast.interfaces.copy import Superblock
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.hashlist import HASH_BYTES
from holdfast.units import BLOCK_BYTES, SECTOR_BYTES, CopyId, chunks_of

_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_VERSIONS_MAX: Final = 6
"""Contents remembered of a block between two flushes; the oldest is always among them."""

FAULTY: Final = ("apply", "read", "flush", "mark", "clear", "save", "hashes", "dirty", "resize")
"""Operations that `MemoryDisk.fail` knows."""


class SupportsClose(Protocol):
    """What has the disk open."""

    def close(self) -> None:
        """Let go of it."""
        ...


@attrs.define
class Fault:
    """What is planned to go wrong."""

    operation: str
    reason: FaultReason
    after: int
    done: bool


class HashBytes:
    """The bytes of the hash list, and what they were when last put on stable storage."""

    __slots__ = ("content", "unsynced")

    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.unsynced: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, where: slice, /) -> bytearray:
        return self.content[where]

    def __setitem__(self, where: slice, value: bytes, /) -> None:
        for at in range(where.start, where.stop, HASH_BYTES):
            self.unsynced.setdefault(at, bytes(self.content[at : at + HASH_BYTES]))
        self.content[where] = value


class MemoryDisk:
    """What one copy's directory would hold; outlives the processes that open it."""

    def __init__(self, superblock: Superblock) -> None:
        """Make a copy, all zeros, as `create_copy` does; the caller draws the incarnation."""
        self.superblock = attrs.evolve(superblock, generation=1)
        self.blocks: dict[int, bytes] = {}
        """Content as reads see it, by block number; a missing block is a hole."""
        self.dirty: dict[CopyId, bytes] = {}
        self.faults: list[Fault] = []
        self.handle: SupportsClose | None = None
        """The process that has it open."""
        self.fresh = True
        # By block: what it may be after a power loss, oldest first, the last one as in `blocks`.
        self._versions: dict[int, list[bytes]] = {}
        # By block: what is on the platter, where a failed flush has left the page marked clean.
        self._doomed: dict[int, bytes] = {}
        self.intent: set[int] = set()
        self.intent_durable: set[int] = set()
        chunks = chunks_of(superblock.size_bytes)
        self.hash_bytes = HashBytes(bytearray(chunks * HASH_BYTES))
        self.stale_durable = Bitmap(chunks)
        self._redirect: int | None = None

    # --- what the simulation does to it ----------------------------------------------------

    def crash(self) -> None:
        """End the process that has it open, whatever it was doing; the page cache stays."""
        if self.handle is not None:
            self.handle.close()

    def power_loss(self, dice: random.Random) -> None:
        """End the process and forget what was not durable, as `dice` has it."""
        self.crash()
        for number, versions in sorted(self._versions.items()):
            self._put(number, _survivor(versions, dice))
        for number, durable in sorted(self._doomed.items()):
            self._put(number, _survivor([durable, self.block(number)], dice))
        for region in sorted(self.intent_durable - self.intent):
            if dice.random() < 0.5:
                self.intent.add(region)
        for at, old in sorted(self.hash_bytes.unsynced.items()):
            if dice.random() < 0.5:
                self.hash_bytes.content[at : at + HASH_BYTES] = old
        self._versions.clear()
        self._doomed.clear()
        self.hash_bytes.unsynced.clear()
        self.intent_durable = set(self.intent)
        self._redirect = None

    def fail(
        self, operation: str, reason: FaultReason, *, after: int = 0, done: bool = False
    ) -> None:
        """Let a coming operation fail.

        Args:
            operation: One of `FAULTY`.
            reason: What the error says; FLUSH_FAILED for anything that flushes.
            after: So many calls of it succeed before.
            done: It takes effect all the same. Else it has none; `apply` stops half way.
        """
        assert operation in FAULTY
        self.faults.append(Fault(operation, reason, after, done))

    def rot(self, offset: int, mask: int = 1) -> None:
        """Flip bits of a byte, durably and unnoticed."""
        number, at = divmod(offset, BLOCK_BYTES)
        block = bytearray(self.block(number))
        block[at] ^= mask
        self._versions.pop(number, None)
        self._doomed.pop(number, None)
        self._put(number, bytes(block))

    def misdirect_next_write(self, offset: int) -> None:
        """Let the next write's bytes land at `offset` instead, unnoticed; -1 loses them."""
        self._redirect = offset

    def clone(self) -> MemoryDisk:
        """Return a disk with the same content and state, closed; blocks are shared, being immutable."""
        twin = MemoryDisk(self.superblock)
        twin.superblock = self.superblock
        twin.fresh = self.fresh
        twin.blocks = self.blocks.copy()
        twin.dirty = self.dirty.copy()
        twin.faults = [attrs.evolve(fault) for fault in self.faults]
        twin._versions = {number: v.copy() for number, v in self._versions.items()}
        twin._doomed = self._doomed.copy()
        twin.intent = self.intent.copy()
        twin.intent_durable = self.intent_durable.copy()
        twin.hash_bytes = HashBytes(self.hash_bytes.content.copy())
        twin.hash_bytes.unsynced = self.hash_bytes.unsynced.copy()
        twin.stale_durable = self.stale_durable.copy()
        twin._redirect = self._redirect
        return twin

    # --- what a checker asks ---------------------------------------------------------------

    def block(self, number: int) -> bytes:
        """Return the 4 KiB of a block as a read would."""
        return self.blocks.get(number, _ZERO_BLOCK)

    def unflushed_blocks(self) -> frozenset[int]:
        """Return the blocks that a power loss could change."""
        return frozenset(self._versions) | frozenset(self._doomed)

    # --- what the store does to it ---------------------------------------------------------

    def take_fault(self, operation: str) -> Fault | None:
        """Return the fault that hits this call of `operation`, if any."""
        hit: Fault | None = None
        for fault in [f for f in self.faults if f.operation == operation]:
            if fault.after == 0 and hit is None:
                hit = fault
                self.faults.remove(fault)
            elif fault.after > 0:
                fault.after -= 1
        return hit

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes into the page cache."""
        if self._redirect is not None:
            offset, self._redirect = self._redirect, None
            if offset < 0:
                return
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, BLOCK_BYTES)
            piece = data[at : at + BLOCK_BYTES - start]
            if len(piece) < BLOCK_BYTES:
                old = self.block(number)
                self._change(number, old[:start] + piece + old[start + len(piece) :])
            else:
                self._change(number, piece)
            at += len(piece)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros, with holes where whole blocks are zeroed."""
        end = offset + length
        first, last = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
        if first > last:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * BLOCK_BYTES - offset))
        self.write(last * BLOCK_BYTES, bytes(end - last * BLOCK_BYTES))
        inside: Iterable[int] = range(first, last)
        if last - first > len(self.blocks):
            inside = [number for number in self.blocks if first <= number < last]
        for number in inside:
            if number in self.blocks:
                self._change(number, _ZERO_BLOCK)
                self.blocks.pop(number, None)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes as the page cache has them."""
        first, last = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        get = self.blocks.get
        whole = b"".join([get(number, _ZERO_BLOCK) for number in range(first, last)])
        start = offset - first * BLOCK_BYTES
        return whole[start : start + length]

    def flush(self) -> None:
        """Make the content durable, but for what a failed flush has doomed."""
        self._versions.clear()

    def flush_in_vain(self) -> None:
        """Fail a flush as Linux does: the pages count as clean and are not on the platter."""
        for number, versions in self._versions.items():
            self._doomed.setdefault(number, versions[0])
        self._versions.clear()

    def _change(self, number: int, block: bytes) -> None:
        versions = self._versions.get(number)
        if versions is None:
            base = self._doomed.pop(number, None)
            versions = self._versions[number] = [self.block(number) if base is None else base]
        if len(versions) == _VERSIONS_MAX:
            del versions[1]
        versions.append(block)
        self.blocks[number] = block

    def _put(self, number: int, block: bytes) -> None:
        if block == _ZERO_BLOCK:
            self.blocks.pop(number, None)
        else:
            self.blocks[number] = block


def _survivor(versions: Sequence[bytes], dice: random.Random) -> bytes:
    """Return what is left of a block: one of `versions`, or one torn between them."""
    if dice.random() < 0.7:
        return dice.choice(versions)
    return b"".join(
        dice.choice(versions)[at : at + SECTOR_BYTES] for at in range(0, BLOCK_BYTES, SECTOR_BYTES)
    )
