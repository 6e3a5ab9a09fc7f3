"""One open copy: data, superblock, intent, hashes and dirty maps under one roof.

Who does what. The store keeps the promises of `holdfast.interfaces.copy`: what is durable on return,
in which order, and that it refuses everything once it cannot be trusted. Its owner (the node's
member of the group) decides when: it saves a superblock with `clean=False` and the machine's boot id
before the first `apply`, marks regions before the operations that touch them, unmarks them after a
flush, and saves `clean=True` as the last thing before `close`.

In the directory:

    data          the volume's bytes, sparse
    superblock    two slots, `holdfast.local.copy.superblock`
    intent        a bit per region, `holdfast.local.copy.bitmap_file`
    stale         a bit per chunk, the same format
    hashes        16 bytes per chunk and checksums, sparse, `holdfast.local.copy.hash_file`
    dirty/<copy>  `holdfast.local.copy.dirty`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from threading import Lock

import attrs

from holdfast.errors import ConflictError, CopyError, FaultReason
from holdfast.interfaces.copy import Superblock
from holdfast.local.copy import files
from holdfast.local.copy.bitmap_file import BitmapFile
from holdfast.local.copy.data import DataFile
from holdfast.local.copy.dirty import DirtyMaps
from holdfast.local.copy.hashes import ChunkHashes
from holdfast.local.copy.superblock import SuperblockFile
from holdfast.messages import Extent, Op
from holdfast.units import REGION_BYTES, CopyId, format_size, regions_of


@attrs.frozen
class CopyFiles:
    """Everything that an opening opens; the store takes it over and closes it."""

    descriptors: tuple[int, ...]
    """All of them, the locked directory last."""
    data: DataFile
    superblock: SuperblockFile
    intent: BitmapFile
    hashes: ChunkHashes
    dirty: DirtyMaps


class FileCopyStore:
    """A `CopyStore` over a directory; made by `create_copy` and `open_copy`.

    `apply` is called from one thread at a time; everything else may run beside it and beside one
    another, but for `resize` and `close`, which want to be alone.
    """

    def __init__(
        self, directory: Path, parts: CopyFiles, *, boot: str, fresh: bool, repaired: Sequence[str]
    ) -> None:
        """Take over what was opened.

        Args:
            directory: Where the copy is.
            parts: Its open files.
            boot: The machine's boot id now.
            fresh: The copy was made by this very opening.
            repaired: What was found damaged and could be made good, as sentences; when it is the
                superblock, the copy counts as not clean.
        """
        self.directory = directory
        self.repaired = tuple(repaired)
        self.superblock = parts.superblock.current
        self.was_clean = self.superblock.clean
        self.rebooted = not fresh and self.superblock.boot != boot
        self.fresh = fresh
        self.debug = False
        """Check in `apply` that operations stay within the volume and their regions are marked."""
        self._parts: CopyFiles | None = parts
        self._data = parts.data
        self._intent = parts.intent
        self._hashes = parts.hashes
        self._dirty = parts.dirty
        self._metadata_lock = Lock()
        self._failure: CopyError | None = None

    # --- the data path ---------------------------------------------------------------------

    def apply(self, ops: Sequence[Op]) -> None:
        """Apply writes, discards and zeroes in order, into the page cache; FLUSH is skipped.

        The regions touched must have been marked before. After an error some of `ops` are done.

        Raises:
            CopyError: NO_SPACE, IO_ERROR, or why the store refuses everything.
        """
        if self._failure is not None:
            raise self._refusal(self._failure)
        if self.debug:
            self._check_ops(ops)
        try:
            self._data.apply(ops)
        finally:
            self._hashes.note(ops)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes; holes read as zeros."""
        if self._failure is not None:
            raise self._refusal(self._failure)
        return self._data.read(offset, length)

    def flush(self) -> None:
        """Put everything applied before the call on stable storage.

        Raises:
            CopyError: FLUSH_FAILED; from then on the store refuses everything.
        """
        with self._trusted():
            self._data.flush()

    # --- write intent ----------------------------------------------------------------------

    def mark_regions(self, regions: Iterable[int]) -> None:
        """Mark write intent, durable on return; regions that are marked already cost nothing."""
        with self._metadata():
            self._intent.set_bits(regions)
            self._intent.write()
            self._intent.sync()

    def clear_regions(self, regions: Iterable[int]) -> None:
        """Unmark write intent, after data, hashes and staleness are on stable storage.

        The unmarking itself is durable with the next marking at the latest. Dirty maps are durable
        whenever `save_dirty` has returned.
        """
        with self._metadata():
            self._data.flush()
            self._hashes.persist()
            self._intent.clear_bits(regions)
            self._intent.write()

    def marked_regions(self) -> frozenset[int]:
        """Return the regions with write intent, as on disk."""
        with self._trusted(), self._metadata_lock:
            return frozenset(self._intent.bits)

    # --- identity --------------------------------------------------------------------------

    def save(self, superblock: Superblock) -> None:
        """Write the other slot and flush it; durable on return.

        A superblock that says `clean` promises that nothing is suspect, so data, hashes and
        staleness are put on stable storage before it is written. Identity is settled when a copy
        is made, and its size by `resize`: another size in `superblock` is ignored.
        """
        with self._metadata():
            parts = self._opened()
            old = self.superblock
            assert (superblock.copy, superblock.incarnation) == (old.copy, old.incarnation)
            if superblock.clean:
                self._data.flush()
                self._hashes.persist()
            parts.superblock.save(attrs.evolve(superblock, size_bytes=old.size_bytes))
            self.superblock = parts.superblock.current

    # --- hashes ----------------------------------------------------------------------------

    def hashes(self, chunks: Sequence[int]) -> bytes:
        """Return 16 bytes for each chunk, recomputing what is stale; `ZERO_HASH` for zeros."""
        with self._trusted():
            return self._hashes.get(chunks)

    def tree(self, level: int, indexes: Sequence[int]) -> bytes:
        """Return 16 bytes for each node of the fan-out-256 tree; level 0 is `hashes`."""
        with self._trusted():
            return self._hashes.tree(level, indexes)

    def refresh_hashes(self, limit: int) -> int:
        """Recompute up to `limit` stale chunk hashes; return how many are still stale."""
        with self._trusted():
            return self._hashes.refresh(limit)

    # --- holes -----------------------------------------------------------------------------

    def zero_chunks(self, chunks: Sequence[int]) -> Sequence[bool]:
        """Return for each chunk whether it is a hole for certain; may say False for zeros."""
        with self._trusted():
            return self._data.zero_chunks(chunks)

    def extents(self, offset: int, length: int, *, grain: int = 1) -> Sequence[Extent]:
        """Return the holes and data in a range; their lengths add up to `length`.

        Data in any part of a piece of `grain` bytes makes the whole piece data.
        """
        with self._trusted():
            return self._data.extents(offset, length, grain=grain)

    # --- dirty maps of other copies --------------------------------------------------------

    def load_dirty(self, copy: CopyId) -> bytes | None:
        """Return the dirty map kept for another copy, or None; all ones when it was damaged."""
        with self._trusted():
            return self._dirty.load(copy, self.superblock.size_bytes)

    def save_dirty(self, copy: CopyId, bits: bytes) -> None:
        """Keep a dirty map; durable on return."""
        with self._trusted(), self._metadata_lock:
            self._dirty.save(copy, bits)

    def drop_dirty(self, copy: CopyId) -> None:
        """Forget a dirty map, durably. Idempotent."""
        with self._trusted(), self._metadata_lock:
            self._dirty.drop(copy)

    def dirty_maps(self) -> Sequence[CopyId]:
        """Return the copies for which a dirty map is kept, sorted."""
        with self._trusted():
            return self._dirty.names()

    def probe(self) -> None:
        """Return when the disk itself has answered a small read; caches do not count."""
        if self._failure is None:
            files.probe(self.directory / "superblock")

    # --- the whole -------------------------------------------------------------------------

    def resize(self, size_bytes: int) -> None:
        """Grow the data, hashes and intent map; durable on return.

        The superblock is written last, so that after a crash on the way the copy has its old size
        and files that are larger than they need to be, which is allowed.

        Raises:
            ConflictError: The copy is larger than `size_bytes`; volumes never shrink.
        """
        with self._metadata():
            old = self.superblock.size_bytes
            if size_bytes < old:
                raise ConflictError(
                    f"The copy in {self.directory} has {format_size(old)} and cannot shrink to"
                    f" {format_size(size_bytes)}."
                )
            if size_bytes == old:
                return
            self._data.grow(size_bytes)
            self._intent.resize(regions_of(size_bytes))
            self._hashes.grow(size_bytes)
            superblock = self._opened().superblock
            superblock.save(attrs.evolve(self.superblock, size_bytes=size_bytes))
            self.superblock = superblock.current

    def used_bytes(self) -> int:
        """Return the space taken on disk, by everything in the directory."""
        with files.errors_named(str(self.directory)):
            return sum(
                p.lstat().st_blocks * 512 for p in (self.directory, *self.directory.rglob("*"))
            )

    def close(self) -> None:
        """Release files and the lock; writes nothing. Idempotent. No call may be under way."""
        parts, self._parts = self._parts, None
        if parts is None:
            return
        self._failure = self._failure or CopyError(
            f"The copy in {self.directory} is closed.", reason=FaultReason.REMOVED
        )
        for fd in parts.descriptors:
            os.close(fd)

    # --- inside ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _trusted(self) -> Iterator[None]:
        """Refuse when the store has failed; when the block fails to flush, it has.

        After a failed fsync nobody knows what is on disk, and a second one would claim that all is
        well.
        """
        if self._failure is not None:
            raise self._refusal(self._failure)
        try:
            yield
        except CopyError as error:
            if error.reason is FaultReason.FLUSH_FAILED:
                self._failure = error
                self._distrust()
            raise

    def _distrust(self) -> None:
        """Say on disk, if it still takes that, that unflushed writes may be gone.

        A superblock of no boot id makes every later opening treat the copy as one whose machine has
        restarted; else a process that is started anew soon would trust the page cache, from which
        Linux may have dropped what the fsync could not write.
        """
        parts = self._parts
        if parts is not None:
            with self._metadata_lock, contextlib.suppress(CopyError):
                block = parts.superblock.current
                parts.superblock.save(attrs.evolve(block, boot="", clean=False))

    @contextlib.contextmanager
    def _metadata(self) -> Iterator[None]:
        """As `_trusted`, one at a time, and any failure is final.

        Half a metadata write leaves in memory what is not on disk: a region that counts as marked
        and is not.
        """
        with self._trusted(), self._metadata_lock:
            try:
                yield
            except CopyError as error:
                self._failure = error
                raise

    def _refusal(self, failure: CopyError) -> CopyError:
        if self._parts is None:
            return failure
        return CopyError(
            f"The copy in {self.directory} refuses everything since an earlier failure:"
            f" {failure.message}",
            reason=failure.reason,
            hint=failure.hint,
        )

    def _opened(self) -> CopyFiles:
        assert self._parts is not None
        return self._parts

    def _check_ops(self, ops: Sequence[Op]) -> None:
        assert not self.superblock.clean, "the superblock must say `clean=False` first"
        marked = self._intent.bits
        for op in ops:
            if op.length:
                assert 0 <= op.offset <= op.offset + op.length <= self._data.size_bytes, op
                first = op.offset // REGION_BYTES
                last = (op.offset + op.length - 1) // REGION_BYTES
                assert marked.next_clear(first, last + 1) == last + 1, f"unmarked region of {op}"
