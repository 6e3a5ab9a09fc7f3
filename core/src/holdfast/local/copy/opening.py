"""Making, opening and removing a copy's directory: the rules for when nothing may be guessed.

A copy is made under a temporary name beside its place, flushed, and renamed, so that a directory
with a copy's name holds a whole copy or none. It is opened under a lock on the directory itself.
Damage is answered by what it can cost: a damaged map of bits counts as all set, a damaged list of
hashes is computed anew, half a superblock is made good from its other half; a lost superblock or
data cut short is the loss of the copy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs

from holdfast.errors import ConflictError, CopyError, FaultReason, IntegrityError, NotFoundError
from holdfast.interfaces.copy import Superblock
from holdfast.local.copy import files
from holdfast.local.copy.bitmap_file import BitmapFile
from holdfast.local.copy.data import DataFile
from holdfast.local.copy.dirty import DirtyMaps
from holdfast.local.copy.hash_file import HashFile, file_bytes
from holdfast.local.copy.hashes import ChunkHashes
from holdfast.local.copy.store import CopyFiles, FileCopyStore
from holdfast.local.copy.superblock import (
    FORMAT_VERSION,
    SuperblockFile,
    read_superblock_file,
)
from holdfast.sync.hashlist import parse_key
from holdfast.units import CopyId, Epoch, VolumeId, chunks_of, regions_of
from holdfast.units import Sequence as Position

_FILES: Final = ("data", "superblock", "intent", "stale", "hashes")
_TRUSTED: Final = ("superblock", "intent", "stale", "hashes")
"""What an opening reads and acts upon. `data` is not here: write intent stands where it may differ."""
_DIRTY: Final = "dirty"


def create_copy(
    directory: Path,
    *,
    cluster: str,
    volume: VolumeId,
    copy: CopyId,
    size_bytes: int,
    hash_key: str,
    boot: str,
    epoch: Epoch = Epoch(0),  # noqa: B008, RUF100  # A NewType call makes no object.
    state: str = "offline",
    durable: Position = Position(0),  # noqa: B008, RUF100
) -> FileCopyStore:
    """Make a copy, all zeros, and return it open, locked, and with `fresh` set.

    Its incarnation is drawn here. Its superblock says `clean`; the owner saves one that does not
    before the first `apply`.

    Args:
        directory: Where; its parent must exist, itself must not.
        cluster: Id of the cluster.
        volume: Id of the volume.
        copy: Id of the copy.
        size_bytes: Size of the volume, a multiple of 512.
        hash_key: The volume's key, 64 hexadecimal digits.
        boot: The machine's boot id.
        epoch: The epoch known so far.
        state: A `CopyState` value.
        durable: Position up to which everything is on stable storage.

    Raises:
        ConflictError: There is something at `directory`, or someone is making a copy there.
        CopyError: NO_SPACE, IO_ERROR or FLUSH_FAILED; there is nothing at `directory`, or (when
            flushing its parent failed) a whole copy.
        UsageError: `hash_key` is none.
    """
    parse_key(hash_key)
    assert size_bytes > 0
    assert size_bytes % 512 == 0
    superblock = Superblock(
        cluster=cluster,
        volume=volume,
        copy=copy,
        incarnation=secrets.token_hex(16),
        boot=boot,
        epoch=epoch,
        state=state,
        durable=durable,
        applied=durable,
        clean=True,
        size_bytes=size_bytes,
        hash_key=hash_key,
    )
    directory = directory.absolute()
    new = directory.with_name(f".{directory.name}.new")
    with contextlib.ExitStack() as undo:
        with files.errors_named(str(directory)):
            lock = _make_locked(directory, new, undo)
        with contextlib.ExitStack() as remove:
            remove.callback(files.port.rmtree, new, ignore_errors=True)
            with files.errors_named(str(directory)):
                _create_files(new, superblock)
                _rename(new, directory)
            remove.pop_all()
        files.sync_directory(directory.parent)
        # The lock is on the directory, whatever its name, so nobody came in between.
        parts, repaired = _open_parts(directory, lock, undo)
        undo.pop_all()
    return FileCopyStore(directory, parts, boot=boot, fresh=True, repaired=repaired)


def open_copy(directory: Path, *, boot: str) -> FileCopyStore:
    """Open a copy that exists; writes nothing until the owner does, but for a lost list of hashes.

    What it tells is on stable storage: a process that was killed may have written what the disk
    does not have yet, and a power loss later must not take back what was told here.

    Args:
        directory: The copy's directory.
        boot: The machine's boot id.

    Raises:
        NotFoundError: There is no such directory.
        ConflictError: Another process, or this one, has it open.
        IntegrityError: The copy is lost; nothing was changed.
        CopyError: It is no copy's directory, a newer version has written it, or the disk fails.
    """
    directory = directory.absolute()
    with contextlib.ExitStack() as undo:
        lock = _lock(directory, undo)
        files.sync_directory(directory.parent)
        parts, repaired = _open_parts(directory, lock, undo)
        undo.pop_all()
    return FileCopyStore(directory, parts, boot=boot, fresh=False, repaired=repaired)


def read_superblock(directory: Path) -> Superblock:
    """Return the superblock of a copy that may be open elsewhere, for listings; errors as `open_copy`."""
    path = directory.absolute() / "superblock"
    if not path.exists():
        raise NotFoundError(f"There is no copy in {directory}.")
    return read_superblock_file(path)


def delete_copy(directory: Path) -> None:
    """Remove a copy that nobody has open, and its space. Idempotent.

    It is renamed first, so that a crash on the way leaves no half copy under the copy's name.

    Raises:
        ConflictError: It is open.
        CopyError: The disk fails.
    """
    directory = directory.absolute()
    gone = directory.with_name(f".{directory.name}.gone")
    with contextlib.ExitStack() as undo, files.errors_named(str(directory)):
        if directory.exists():
            lock = _lock(directory, undo)
            files.port.rmtree(gone, ignore_errors=True)
            files.port.rename(directory, gone)
            undo.pop_all()
            os.close(lock)
        if gone.exists():
            # Also where an earlier call was cut short: the files may go only after the name has.
            files.sync_directory(directory.parent)
            files.port.rmtree(gone)


# --- making ------------------------------------------------------------------------------------


def _exists(directory: Path) -> ConflictError:
    return ConflictError(
        f"There is already something at {directory}.",
        hint="A copy is never written over another; open it, or remove it first.",
    )


def _make_locked(directory: Path, new: Path, undo: contextlib.ExitStack) -> int:
    """Return a locked descriptor of the new, empty directory `new`."""
    if directory.exists():
        raise _exists(directory)
    if new.exists():
        # What an interrupted making left; it never was a copy. Its lock tells whether one goes on.
        with contextlib.ExitStack() as leftover:
            _lock(new, leftover)
            files.port.rmtree(new)
    try:
        files.port.mkdir(new, 0o700)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no directory {directory.parent}.") from error
    return _lock(new, undo)


def _create_files(directory: Path, superblock: Superblock) -> None:
    """Write and flush the files of a new copy."""
    regions, chunks = regions_of(superblock.size_bytes), chunks_of(superblock.size_bytes)
    files.port.mkdir(directory / _DIRTY, 0o700)
    files.sync_directory(directory / _DIRTY)
    # The superblock comes last, so that what has one has everything else.
    for name in ("data", "hashes", "intent", "stale", "superblock"):
        path = directory / name
        fd = files.port.create(path)
        try:
            match name:
                case "data":
                    files.port.ftruncate(fd, superblock.size_bytes)
                    files.sync(fd, str(path))
                case "hashes":
                    files.port.ftruncate(fd, file_bytes(chunks))
                    files.sync(fd, str(path))
                case "intent":
                    BitmapFile.create(fd, path, regions, _identity(name, superblock))
                case "stale":
                    BitmapFile.create(fd, path, chunks, _identity(name, superblock))
                case _:
                    SuperblockFile.create(fd, path, superblock)
        finally:
            os.close(fd)
    files.sync_directory(directory)


def _rename(new: Path, directory: Path) -> None:
    try:
        files.port.rename(new, directory)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise _exists(directory) from error
        raise


# --- opening -----------------------------------------------------------------------------------


def _open_parts(
    directory: Path, lock: int, undo: contextlib.ExitStack
) -> tuple[CopyFiles, tuple[str, ...]]:
    """Return the open files of a locked copy, and what was found damaged, as sentences."""
    descriptors = {name: fd for name in _FILES if (fd := _open(directory / name, undo)) >= 0}
    _refuse_strangers(directory, descriptors)
    for name in _TRUSTED:
        files.sync(descriptors[name], str(directory / name))
    slots, found = SuperblockFile.open(descriptors["superblock"], directory / "superblock")
    if found:
        # The damaged slot may have been the newer one, and it may have said "not clean".
        slots.current = attrs.evolve(slots.current, clean=False)
    superblock = slots.current
    data = DataFile(descriptors["data"], str(directory / "data"), superblock.size_bytes)
    data.check_length()
    intent, in_intent = _open_map(directory, "intent", descriptors, superblock)
    stale, in_stale = _open_map(directory, "stale", descriptors, superblock)
    hashes, in_hashes = _open_hashes(directory, descriptors, slots, stale, data)
    if not superblock.clean:
        hashes.mark_regions_stale(intent.bits)
    with files.errors_named(str(directory)):
        (directory / _DIRTY).mkdir(mode=0o700, exist_ok=True)
    parts = CopyFiles(
        descriptors=(*descriptors.values(), lock),
        data=data,
        superblock=slots,
        intent=intent,
        hashes=hashes,
        dirty=DirtyMaps(directory / _DIRTY),
    )
    return parts, (*found, *in_intent, *in_stale, *in_hashes)


def _identity(name: str, superblock: Superblock) -> str:
    """Return what binds a map to its copy: one from another directory counts as damaged."""
    return f"{name}:{superblock.copy}:{superblock.incarnation}"


def _lock(directory: Path, undo: contextlib.ExitStack) -> int:
    """Return a descriptor of `directory` that holds its lock."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"There is no copy's directory at {directory}.") from error
    except OSError as error:
        raise files.copy_error(error, str(directory)) from error
    undo.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConflictError(
            f"The copy in {directory} is in use by another process.",
            hint="One daemon serves a data directory; stop the other one first.",
        ) from error
    except OSError as error:
        raise files.copy_error(error, str(directory)) from error
    return fd


def _open(path: Path, undo: contextlib.ExitStack) -> int:
    """Return a descriptor of `path`, or -1 when there is no such file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise files.copy_error(error, str(path)) from error
    undo.callback(os.close, fd)
    return fd


def _refuse_strangers(directory: Path, found: Iterable[str]) -> None:
    missing = [name for name in _FILES if name not in set(found)]
    if len(missing) == len(_FILES):
        raise CopyError(
            f"{directory} holds no copy of a volume.",
            reason=FaultReason.WRONG_IDENTITY,
            hint="Look at the data directories in the configuration; is a disk not mounted?",
        )
    if missing:
        raise IntegrityError(
            f"The copy in {directory} is lost: it has no file {' and no file '.join(missing)}.",
            reason=FaultReason.CORRUPT,
            hint="Nothing was changed. Remove the copy from its group and let a new one be made.",
        )


def _open_map(
    directory: Path, name: str, descriptors: dict[str, int], superblock: Superblock
) -> tuple[BitmapFile, tuple[str, ...]]:
    count = regions_of if name == "intent" else chunks_of
    return BitmapFile.open(
        descriptors[name],
        directory / name,
        count(superblock.size_bytes),
        _identity(name, superblock),
    )


def _open_hashes(
    directory: Path,
    descriptors: dict[str, int],
    slots: SuperblockFile,
    stale: BitmapFile,
    data: DataFile,
) -> tuple[ChunkHashes, tuple[str, ...]]:
    path, fd = directory / "hashes", descriptors["hashes"]
    chunks = chunks_of(slots.current.size_bytes)
    with files.errors_named(str(path)):
        missing = file_bytes(chunks) - os.lseek(fd, 0, os.SEEK_END)
    buffer = HashFile(fd, chunks, str(path), _identity("hashes", slots.current))
    hashes = ChunkHashes(buffer, stale, data, parse_key(slots.current.hash_key))
    if slots.format_version < FORMAT_VERSION:
        # Format 1 had a list without checksums. Saving last, so that a crash on the way is harmless.
        hashes.forget()
        slots.save(slots.current)
    elif missing > 0:
        hashes.forget()
        return hashes, (f"{path} was cut short by {missing} bytes; its hashes are computed anew.",)
    return hashes, ()
