"""What a copy has promised so far, and whether what a power loss left keeps it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import attrs
from tests.crash.disk import SECTOR, ZERO

from holdfast.errors import HoldfastError, NotFoundError
from holdfast.interfaces.copy import Superblock
from holdfast.local.copy_store import FileCopyStore, open_copy
from holdfast.sync.hashlist import ZERO_HASH, chunk_hash, node_hash
from holdfast.units import CHUNK_BYTES, REGION_BYTES, CopyId, chunks_of, regions_of

KEY = bytes(range(32))
_PER_CHUNK = CHUNK_BYTES // SECTOR
_PER_REGION = REGION_BYTES // SECTOR


class BrokenPromiseError(AssertionError):
    """A power loss took what the store had promised to keep."""


@attrs.frozen
class Promises:
    """What an opening after a power loss may find, as of one moment.

    While an operation is under way it may be done, undone, or, for data, done in part.
    """

    exists: frozenset[bool] = frozenset({False})
    """Whether there is a copy."""
    superblocks: tuple[Superblock, ...] | None = None
    """The last one saved, and the one being saved; None while the copy is being made."""
    current: Mapping[int, bytes] = attrs.field(factory=dict)
    """The bytes as last applied, by sector; what is missing is zeros."""
    unflushed: Mapping[int, frozenset[bytes]] = attrs.field(factory=dict)
    """Sectors that were written since the last flush, and what each may be."""
    marked: frozenset[int] = frozenset()
    """Regions whose mark must be there."""
    dirty: Mapping[CopyId, frozenset[bytes | None]] = attrs.field(factory=dict)
    """Dirty maps; None is no map."""


def anonymous(superblock: Superblock) -> Superblock:
    """Return a superblock without the number that the store gives it."""
    return attrs.evolve(superblock, generation=0)


def hold(directory: Path, promises: Promises, dice: random.Random) -> None:
    """Open what a power loss left and compare.

    Raises:
        BrokenPromiseError: A promise was broken; says which.
    """
    try:
        store = open_copy(directory, boot="after")
    except NotFoundError as error:
        if False not in promises.exists:
            raise BrokenPromiseError(f"the copy is gone: {error}") from error
        return
    except HoldfastError as error:
        raise BrokenPromiseError(f"the copy cannot be opened: {error}") from error
    try:
        _expect(True in promises.exists, "a copy that was never made, or was removed, is there")
        compare(store, promises)
        if dice.random() < 0.25:
            _go_on(store)
    finally:
        store.close()


def compare(store: FileCopyStore, promises: Promises) -> None:
    """Hold an open store to its promises."""
    found = anonymous(store.superblock)
    if promises.superblocks is not None:
        allowed = [anonymous(each) for each in promises.superblocks]
        if store.repaired:
            # Where a slot is damaged, nothing counts as clean: it may have been the newer one.
            allowed += [attrs.evolve(each, clean=False) for each in allowed]
        _expect(
            found in allowed,
            f"the superblock is {found}, not one of {promises.superblocks}",
        )
    for told in store.repaired:
        # A slot that was being written is torn; of nothing else is more than a sector at stake.
        _expect("superblock" in told, f"something is damaged: {told}")
    marked = store.marked_regions()
    _expect(marked >= promises.marked, f"marks were lost: {promises.marked - marked}")
    sectors = _contents(store)
    for sector in sectors.keys() | promises.current.keys() | promises.unflushed.keys():
        is_covered = sector // _PER_REGION in marked and not found.clean
        expected = {promises.current.get(sector, ZERO)}
        if is_covered:
            expected |= promises.unflushed.get(sector, frozenset())
        value = sectors.get(sector, ZERO)
        _expect(
            value in expected,
            f"sector {sector} is {value[:8].hex()}, not {[each[:8].hex() for each in expected]};"
            f" {'' if is_covered else 'no '}intent covers it",
        )
    _compare_hashes(store, sectors)
    maps = {copy: store.load_dirty(copy) for copy in store.dirty_maps()}
    for copy in maps.keys() | promises.dirty.keys():
        kept = promises.dirty.get(copy, frozenset({None}))
        _expect(maps.get(copy) in kept, f"the dirty map of {copy[:4]} is {maps.get(copy)!r}")


def _contents(store: FileCopyStore) -> dict[int, bytes]:
    sectors = {}
    at = 0
    for length, is_hole in store.extents(0, store.superblock.size_bytes):
        if not is_hole:
            data = store.read(at, length)
            for sector in range(length // SECTOR):
                part = data[sector * SECTOR : (sector + 1) * SECTOR]
                if part != ZERO:
                    sectors[at // SECTOR + sector] = part
        at += length
    return sectors


def _compare_hashes(store: FileCopyStore, sectors: Mapping[int, bytes]) -> None:
    size = store.superblock.size_bytes
    count = chunks_of(size)
    right = [ZERO_HASH] * count
    for chunk in {sector // _PER_CHUNK for sector in sectors}:
        first = chunk * _PER_CHUNK
        data = b"".join(sectors.get(s, ZERO) for s in range(first, first + _PER_CHUNK))
        right[chunk] = chunk_hash(data[: size - chunk * CHUNK_BYTES], KEY)
    raw = store.hashes(range(count))
    wrong = [c for c in range(count) if raw[c * 16 : c * 16 + 16] != right[c]]
    _expect(not wrong, f"hashes of chunks {wrong} are told wrong")
    node = node_hash(b"".join(right[:256]), KEY)
    _expect(store.tree(1, [0]) == node, "the tree is told wrong")


def _go_on(store: FileCopyStore) -> None:
    """Do what an owner does next; the copy must take it and keep it."""
    store.save(attrs.evolve(store.superblock, clean=False, boot="after"))
    store.mark_regions(range(regions_of(store.superblock.size_bytes)))
    store.clear_regions(store.marked_regions())
    before = store.hashes(range(chunks_of(store.superblock.size_bytes)))
    store.close()
    again = open_copy(store.directory, boot="after")
    try:
        _expect(again.repaired == (), f"still damaged: {again.repaired}")
        _expect(not again.marked_regions(), "marks came back")
        after = again.hashes(range(chunks_of(again.superblock.size_bytes)))
        _expect(after == before, "hashes were not kept")
    finally:
        again.close()


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise BrokenPromiseError(otherwise)
