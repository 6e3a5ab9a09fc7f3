"""The data directories of one node: where copies lie, where there is room, and who works on them.

It knows nothing of groups. Whether a copy may be made, opened or deleted is decided by whoever asks,
from what the state store has said.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from holdfast.errors import ConfigError, ConflictError, IntegrityError
from holdfast.interfaces.copy import Superblock
from holdfast.local.copy_store import (
    FileCopyStore,
    create_copy,
    delete_copy,
    open_copy,
    read_superblock,
)
from holdfast.local.host import Space, boot_id, space_of
from holdfast.model import CopyState, Member, VolumeSpec
from holdfast.node.disk_threads import DiskThreads
from holdfast.units import Epoch, VolumeId

COPIES = "copies"
"""The directory below each data directory that has one directory a copy, named by its volume."""

_log = logging.getLogger("holdfast.node")


class DataDirectories:
    """Everything of a node that lies on its disks."""

    def __init__(self, roots: Sequence[Path], cluster: str) -> None:
        """Use `roots`, which exist; the copies that are made belong to `cluster`."""
        self.roots = tuple(roots)
        self._cluster = cluster
        # Apart, so that a disk that stalls holds no thread that the copies on another need.
        self._threads = {root: DiskThreads() for root in self.roots}

    def copies(self) -> list[Path]:
        """Return the directories of all copies, whole or not.

        Raises:
            ConfigError: A data directory cannot be read; what is in it must not be taken for gone.
        """
        found = []
        for root in self.roots:
            copies = root / COPIES
            try:
                copies.mkdir(parents=True, exist_ok=True)
                found += [path for path in sorted(copies.iterdir()) if path.is_dir()]
            except OSError as error:
                raise unusable(root, error) from error
        return [path for path in found if not path.name.startswith(".")]

    def find(self, volume: VolumeId) -> Path | None:
        """Return the directory of the copy of a volume, if there is one."""
        paths = (root / COPIES / volume for root in self.roots)
        return next((path for path in paths if path.exists()), None)

    def make(
        self, spec: VolumeSpec, member: Member, state: CopyState, epoch: Epoch
    ) -> tuple[FileCopyStore, Path]:
        """Return the copy that the record calls `member`, made empty where it is not there.

        Another copy of the volume makes room: there is one on a node, and the record names this one.
        One of which nobody can say any more what it is makes room as well, but its files are kept.

        Args:
            spec: The volume.
            member: The copy.
            state: What a new copy's superblock is to say.
            epoch: Of the record.

        Raises:
            ConflictError: Another copy is there that knows more than the record.
            HoldfastError: As `open_copy`, `create_copy` and `delete_copy`.
        """
        while (path := self.find(spec.id)) is not None:
            try:
                found = read_superblock(path)
            except IntegrityError as error:
                aside = path.with_name(f".{path.name}.damaged-{uuid.uuid4().hex[:8]}")
                _log.error("%s It is kept as %s, and a new copy is made.", error.message, aside)
                path.rename(aside)
                continue
            if found.copy == member.copy:
                return open_copy(path, boot=boot_id()), path
            delete_superseded(path, found, epoch)
        root = max(self.roots, key=lambda path: space_of(path).free_bytes)
        path = root / COPIES / spec.id
        store = create_copy(
            path,
            cluster=self._cluster,
            volume=spec.id,
            copy=member.copy,
            size_bytes=spec.size_bytes,
            hash_key=spec.hash_key,
            boot=boot_id(),
            state=state.value,
        )
        return store, path

    def threads_of(self, path: Path) -> DiskThreads:
        """Return the threads for the copy in `path`."""
        return self._threads[path.parents[1]]

    def space(self) -> Space:
        """Return the room of all together."""
        spaces = [space_of(path) for path in self.roots]
        return Space(sum(s.total_bytes for s in spaces), sum(s.free_bytes for s in spaces))

    def close(self) -> None:
        """End the threads, when they have done what they are at."""
        for threads in self._threads.values():
            threads.close()


def unusable(path: Path, error: OSError) -> ConfigError:
    """Return what to tell of a data directory with which nothing can be done."""
    return ConfigError(
        f"The data directory {path} cannot be used: {error.strerror or error}.",
        hint="Create it, make it writable, or name another under [node] data.",
    )


def delete_superseded(path: Path, found: Superblock, epoch: Epoch) -> None:
    """Delete the copy in `path`, which the group record, of `epoch`, does not name.

    Raises:
        ConflictError: The copy has seen a later epoch. The state store is behind it, as one that was
            restored from a backup is, and proves nothing.
        HoldfastError: As `delete_copy`.
    """
    if epoch < found.epoch:
        raise ConflictError(
            f"The copy in {path} knows epoch {found.epoch} of its group, the state store only epoch"
            f" {epoch}.",
            hint="Was the state store restored from a backup? This copy may be the newest, and stays.",
        )
    delete_copy(path)


@contextlib.contextmanager
def closed_on_failure(store: FileCopyStore) -> Iterator[None]:
    """Close a store that was not taken over, or its lock would keep it from ever being opened."""
    try:
        yield
    except BaseException:
        store.close()
        raise
