"""Mistakes that a store of copies could make, each of which a life must bring to light.

A mutant is a pair of names of what is replaced and what replaces it; `tests/test_crash.py` puts it
in force and runs seeds until a promise is broken.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
from tests.crash import lives

from holdfast.interfaces.copy import Superblock
from holdfast.local.copy import files, opening
from holdfast.local.copy.bitmap_file import BitmapFile
from holdfast.local.copy.data import DataFile
from holdfast.local.copy.dirty import DirtyMaps
from holdfast.local.copy.hash_file import HashFile
from holdfast.local.copy.hashes import ChunkHashes
from holdfast.local.copy.store import FileCopyStore
from holdfast.local.copy.superblock import SuperblockFile, encode_slot
from holdfast.units import CopyId, regions_of

Mutant = Callable[[Callable[[object, str, Any], None]], None]
"""Puts a mistake in force by the function it is given, which is pytest's `monkeypatch.setattr`."""

_sync, _sync_directory = files.sync, files.sync_directory


def _without_sync_of(*names: str) -> Mutant:
    def sync(fd: int, where: str) -> None:
        if Path(where).name not in names:
            _sync(fd, where)

    return lambda put: put(files, "sync", sync)


def _without_directory_sync(is_left_out: Callable[[Path], bool]) -> Mutant:
    def sync_directory(directory: Path) -> None:
        if not is_left_out(directory):
            _sync_directory(directory)

    return lambda put: put(files, "sync_directory", sync_directory)


def _stale_before_hashes(hashes: ChunkHashes) -> None:
    hashes._stale.write()
    hashes._stale.sync()
    hashes._buffer.sync()


def _clear_without_flush(store: FileCopyStore, regions: Iterable[int]) -> None:
    store._hashes.persist()
    store._intent.clear_bits(regions)
    store._intent.write()


def _clear_without_persist(store: FileCopyStore, regions: Iterable[int]) -> None:
    store._data.flush()
    store._intent.clear_bits(regions)
    store._intent.write()


def _save_one_slot_always(block: SuperblockFile, superblock: Superblock) -> None:
    current = attrs.evolve(superblock, generation=block.current.generation + 1)
    files.write_all(block._fd, encode_slot(current), 0)
    files.sync(block._fd, block._where)
    block.current = current


def _save_both_slots_at_once(block: SuperblockFile, superblock: Superblock) -> None:
    current = attrs.evolve(superblock, generation=block.current.generation + 1)
    files.write_all(block._fd, encode_slot(current) * 2, 0)
    files.sync(block._fd, block._where)
    block.current = current


def _save_clean_at_once(store: FileCopyStore, superblock: Superblock) -> None:
    store._opened().superblock.save(superblock)
    store.superblock = store._opened().superblock.current


def _save_dirty_in_place(maps: DirtyMaps, copy: CopyId, bits: bytes) -> None:
    path = maps._path(copy)
    if not path.exists():
        _save_dirty(maps, copy, bits)
        return
    body = len(bits).to_bytes(8, "little") + zlib.compress(bits, 1)
    raw = b"HFDIRTY1" + zlib.crc32(body).to_bytes(4, "little") + body
    fd = os.open(path, os.O_RDWR)
    try:
        files.port.ftruncate(fd, len(raw))
        files.write_all(fd, raw, 0)
        files.sync(fd, str(path))
    finally:
        os.close(fd)


_save_dirty = DirtyMaps.save


def _grow_superblock_first(store: FileCopyStore, size_bytes: int) -> None:
    block = store._opened().superblock
    block.save(attrs.evolve(store.superblock, size_bytes=size_bytes))
    store.superblock = block.current
    store._data.grow(size_bytes)
    store._intent.resize(regions_of(size_bytes))
    store._hashes.grow(size_bytes)


def _mark_without_sync(store: FileCopyStore, regions: Iterable[int]) -> None:
    store._intent.set_bits(regions)
    store._intent.write()


def _delete_in_place(directory: Path) -> None:
    if directory.exists():
        files.port.rmtree(directory)
    _sync_directory(directory.parent)


def _trusting(*names: str) -> Mutant:
    left = tuple(name for name in opening._TRUSTED if name not in names)
    return lambda put: put(opening, "_TRUSTED", left)


def _replace(owner: object, name: str, mistake: Any) -> Mutant:
    return lambda put: put(owner, name, mistake)


MUTANTS: Mapping[str, Mutant] = {
    "flush does not sync the data": _replace(DataFile, "flush", lambda _self: None),
    "marks are not synced": _replace(FileCopyStore, "mark_regions", _mark_without_sync),
    "unmarking does not flush the data": _replace(
        FileCopyStore, "clear_regions", _clear_without_flush
    ),
    "unmarking does not keep staleness": _replace(
        FileCopyStore, "clear_regions", _clear_without_persist
    ),
    "staleness is cleared before the hashes are synced": _replace(
        ChunkHashes, "_persist", _stale_before_hashes
    ),
    "hashes are never synced": _replace(HashFile, "sync", lambda _self: None),
    "maps of bits are never synced": _replace(BitmapFile, "sync", lambda _self: None),
    "one slot of the superblock is used": _replace(SuperblockFile, "save", _save_one_slot_always),
    "both slots are written before a sync": _replace(
        SuperblockFile, "save", _save_both_slots_at_once
    ),
    "the superblock is not synced": _without_sync_of("superblock"),
    "clean is said before all is on disk": _replace(FileCopyStore, "save", _save_clean_at_once),
    "a dirty map is renamed before it is synced": _without_sync_of("e" * 32, "f" * 32),
    "a dirty map is written in place": _replace(DirtyMaps, "save", _save_dirty_in_place),
    "the names of dirty maps are not synced": _without_directory_sync(
        lambda directory: directory.name == "dirty"
    ),
    "a new copy's name is not synced": _without_directory_sync(
        lambda directory: directory.name == "disk"
    ),
    "a new copy's files are not synced": _without_directory_sync(
        lambda directory: directory.name == ".copy.new"
    ),
    "a copy is removed file by file": _replace(lives, "delete_copy", _delete_in_place),
    "a copy grows in its superblock first": _replace(
        FileCopyStore, "resize", _grow_superblock_first
    ),
    "an opening trusts the superblock in the cache": _trusting("superblock"),
    "an opening trusts the intent in the cache": _trusting("intent"),
    "an opening trusts the hashes in the cache": _trusting("hashes"),
}

LATE = frozenset(
    {
        "an opening trusts the superblock in the cache",
        "an opening trusts the intent in the cache",
        "an opening trusts the hashes in the cache",
    }
)
"""Those that show only when a power loss follows a kill at the right call."""
