"""Calls to the operating system that a copy's store needs, and their errors in our words.

The one place where an `OSError` becomes a `CopyError`, and where Linux's `fallocate` is reached:
Python's own `os.posix_fallocate` can neither punch holes nor zero ranges. Knows no file's meaning.

Whatever changes the disk goes through the `StoragePort` in force. It is the kernel, except where the
crash tests put one beneath the store that keeps a record of all calls (`tests/crash`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from holdfast.errors import CopyError, FaultReason
from holdfast.messages import Payload

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
"""Flags of `fallocate(2)`, linux/falloc.h."""
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
"""What `fallocate` answers where a file system or device cannot do a mode, or not at this place."""
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNREADABLE: Final = frozenset({errno.EIO, errno.EBADMSG, errno.EILSEQ, errno.EUCLEAN})
"""What a read answers for a medium that has lost some sectors, or whose checksums say so."""
_ZEROS: Final = memoryview(bytes(1 << 20))
"""Zeros are written in pieces of this many bytes at most."""
IOV_MAX: Final = 1024
"""Buffers of one `pwritev`: UIO_MAXIOV of linux/uio.h."""


class StoragePort:
    """Every call by which the store of a copy changes its disk; they raise `OSError`, as in `os`.

    Not safe to change while another thread uses it, so only tests do.
    """

    pwrite = staticmethod(os.pwrite)
    pwritev = staticmethod(os.pwritev)
    ftruncate = staticmethod(os.ftruncate)
    fdatasync = staticmethod(os.fdatasync)
    fsync = staticmethod(os.fsync)
    mkdir = staticmethod(os.mkdir)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    rmtree = staticmethod(shutil.rmtree)

    def create(self, path: Path) -> int:
        """Return a descriptor of the empty file `path`; the directory's entry is not durable yet."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> bool:
        """Return whether the kernel did it; raises `OSError` for a failure that is not "cannot"."""
        if _fallocate is None:
            return False
        while _fallocate(fd, mode, offset, length) != 0:
            code = ctypes.get_errno()
            if code in _UNSUPPORTED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True


KERNEL: Final = StoragePort()
port = KERNEL
"""The port in force."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    _fallocate.restype = ctypes.c_int


def copy_error(error: OSError, where: str) -> CopyError:
    """Return the `CopyError` that says what `error`, met while using `where`, means for a copy."""
    cause = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return CopyError(
            f"No space left for {where}: {cause}.",
            reason=FaultReason.NO_SPACE,
            hint="Free space on its file system, or move the copy to another node.",
        )
    return CopyError(
        f"Input or output failed on {where}: {cause}.",
        reason=FaultReason.IO_ERROR,
        hint="Look for disk errors in the kernel's log.",
    )


def read_error(error: OSError, where: str) -> CopyError:
    """Return the `CopyError` that a failed read of a volume's data means: not the loss of it all."""
    if error.errno in _UNREADABLE:
        return CopyError(
            f"Part of {where} cannot be read: {error.strerror or error}.",
            reason=FaultReason.UNREADABLE,
            hint="It is served from other copies and written anew; watch that disk.",
        )
    return copy_error(error, where)


def flush_error(error: OSError, where: str) -> CopyError:
    """Return the `CopyError` for a failed fsync of `where`."""
    return CopyError(
        f"Flushing {where} to stable storage failed: {error.strerror or error}.",
        reason=FaultReason.FLUSH_FAILED,
        hint="What was written since the last flush may be gone; look for disk errors in the"
        " kernel's log.",
    )


@contextlib.contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Turn an `OSError` of the block into the `CopyError` for `where`."""
    try:
        yield
    except OSError as error:
        raise copy_error(error, where) from error


def sync(fd: int, where: str) -> None:
    """Put what was written to `fd` on stable storage.

    Raises:
        CopyError: FLUSH_FAILED, whatever the errno: the kernel reports a lost page once and then
            calls it clean, so nothing may be tried again.
    """
    try:
        port.fdatasync(fd)
    except OSError as error:
        raise flush_error(error, where) from error


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    with errors_named(str(directory)):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        port.fsync(fd)
    except OSError as error:
        raise flush_error(error, str(directory)) from error
    finally:
        os.close(fd)


def write_all(fd: int, data: Payload, offset: int) -> None:
    """Write all of `data` at `offset`, however often the kernel has to be asked."""
    written = port.pwrite(fd, data, offset)
    if written == len(data):
        return
    rest = memoryview(data)
    while written < len(rest):
        # A short write is how a full disk begins; the next attempt raises what is the matter.
        more = port.pwrite(fd, rest[written:], offset + written)
        if more == 0:
            raise OSError(errno.EIO, "the kernel wrote nothing")
        written += more


def write_run(fd: int, parts: Sequence[Payload], offset: int, length: int) -> None:
    """Write `parts`, at most `IOV_MAX`, one behind the other from `offset` on; `length` in all."""
    written = port.pwritev(fd, parts, offset)
    if written == length:
        return
    for part in parts:
        if written >= len(part):
            written -= len(part)
        else:
            write_all(fd, memoryview(part)[written:], offset + written)
            written = 0
        offset += len(part)


def read_filled(fd: int, length: int, offset: int) -> bytes:
    """Return `length` bytes from `offset` on; what lies beyond the end of the file is zeros."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    parts, missing = [data], length - len(data)
    while missing and parts[-1]:
        offset += len(parts[-1])
        parts.append(os.pread(fd, missing, offset))
        missing -= len(parts[-1])
    return b"".join(parts) + bytes(missing)


def write_zeros(fd: int, offset: int, length: int) -> None:
    """Write zeros in bounded pieces."""
    while length > 0:
        piece = min(length, len(_ZEROS))
        write_all(fd, _ZEROS[:piece], offset)
        offset += piece
        length -= piece


def probe(path: Path) -> None:
    """Read the first block of a file from its disk; does nothing where `O_DIRECT` is not known."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # An anonymous mapping begins at a page, as direct input must.
        with mmap.mmap(-1, mmap.PAGESIZE) as page, contextlib.suppress(OSError):
            os.preadv(fd, [page], 0)
    finally:
        os.close(fd)


def punch_hole(fd: int, offset: int, length: int, block: int = 4096) -> None:
    """Make a range read as zeros and give its space back where that is possible.

    The kernel zeroes the unaligned ends itself in files. A block device refuses them, and some file
    systems refuse holes: then ends, or all, are written as zeros.
    """
    if length <= 0 or _try_fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        return
    start, stop = -(-offset // block) * block, (offset + length) // block * block
    if start >= stop or not _try_fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, start, stop - start):
        write_zeros(fd, offset, length)
        return
    write_zeros(fd, offset, start - offset)
    write_zeros(fd, stop, offset + length - stop)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeros and keep, or take, its space."""
    if length > 0 and not _try_fallocate(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length):
        write_zeros(fd, offset, length)


def next_data(fd: int, offset: int, end: int) -> int:
    """Return where the first byte at or after `offset` that is not in a hole stands, `end` at most."""
    return _seek(fd, offset, end, os.SEEK_DATA, beyond=end)


def next_hole(fd: int, offset: int, end: int) -> int:
    """Return where the first hole at or after `offset` begins, `end` at most."""
    return _seek(fd, offset, end, os.SEEK_HOLE, beyond=offset)


def _seek(fd: int, offset: int, end: int, whence: int, *, beyond: int) -> int:
    # All other access names its offset, so moving the file's position disturbs nobody.
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # Nothing but a hole from here on.
            return beyond
        if error.errno == errno.EINVAL:  # A device without holes: all of it is data.
            return offset if whence == os.SEEK_DATA else end
        raise


def _try_fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    return port.fallocate(fd, mode, offset, length)
