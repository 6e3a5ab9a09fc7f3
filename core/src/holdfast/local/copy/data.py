"""The file with the volume's bytes: writes, holes, reads, and nothing about what they mean.

`apply` is on the way of every write of a volume. It issues one system call per run of adjacent
writes and makes no object per operation beside the list of that run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from holdfast.compiled import PYTHON, compiled
from holdfast.errors import CopyError, FaultReason
from holdfast.local.copy import files
from holdfast.messages import Extent, Op, OpKind, Payload
from holdfast.units import CHUNK_BYTES

_WRITES: Final = (int(OpKind.WRITE), int(OpKind.SYNC_WRITE))
_FLUSH: Final = int(OpKind.FLUSH)
_ZERO: Final = int(OpKind.ZERO)


@compiled
def write_ops(fd: int, ops: Sequence[Op], at: int) -> int:
    """Write the writes that stand at `ops[at:]`, up to the first operation that is none.

    Returns:
        The index of that operation, or how many there are.

    Raises:
        OSError: The kernel refused one; some of them are done, one may be done in part.
    """
    run: list[Payload] = []
    start = end = -1
    # By index: a slice behind each of many discards would copy the batch as often.
    while at < len(ops):
        kind, offset, length, data = ops[at]
        if kind not in _WRITES:
            break
        if offset == end and len(run) < files.IOV_MAX:
            run.append(data)
            end += length
        else:
            if run:
                _write(fd, run, start, end)
            run = [data]
            start, end = offset, offset + length
        at += 1
    if run:
        _write(fd, run, start, end)
    return at


_write_by_port = PYTHON["write_ops"]


class DataFile:
    """An open data file of `size_bytes`."""

    __slots__ = ("_fd", "_where", "size_bytes")

    def __init__(self, fd: int, where: str, size_bytes: int) -> None:
        """Take over a descriptor that is open for reading and writing."""
        self._fd = fd
        self._where = where
        self.size_bytes = size_bytes

    def apply(self, ops: Sequence[Op]) -> None:
        """Carry out writes, discards and zeroes in order, into the page cache.

        Raises:
            CopyError: NO_SPACE or IO_ERROR; some of `ops` are done, one may be done in part.
        """
        fd = self._fd
        # The compiled loop writes by itself, past whatever port the crash tests have put there.
        write = write_ops if files.port is files.KERNEL else _write_by_port
        try:
            done = write(fd, ops, 0)
            while done < len(ops):
                kind, offset, length, _ = ops[done]
                if kind == _ZERO:
                    files.zero_range(fd, offset, length)
                elif kind != _FLUSH:
                    files.punch_hole(fd, offset, length)
                done = write(fd, ops, done + 1)
        except OSError as error:
            raise files.copy_error(error, self._where) from error

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; holes read as zeros.

        Raises:
            CopyError: UNREADABLE for a media error; IO_ERROR for anything else.
        """
        try:
            return files.read_filled(self._fd, length, offset)
        except OSError as error:
            raise files.read_error(error, self._where) from error

    def flush(self) -> None:
        """Put everything written so far on stable storage."""
        files.sync(self._fd, self._where)

    def hole_chunks(self, first: int, count: int) -> int:
        """Return how many chunks from `first` on, `count` at most, lie in a hole for certain."""
        start, end = first * CHUNK_BYTES, (first + count) * CHUNK_BYTES
        with files.errors_named(self._where):
            return files.next_data(self._fd, start, end) // CHUNK_BYTES - first

    def zero_chunks(self, chunks: Sequence[int]) -> list[bool]:
        """Return for each chunk whether it lies in a hole for certain."""
        answers = []
        hole_start = hole_end = 0
        size = self.size_bytes
        with files.errors_named(self._where):
            for chunk in chunks:
                start = chunk * CHUNK_BYTES
                if not hole_start <= start < hole_end:
                    hole_start, hole_end = start, files.next_data(self._fd, start, size)
                answers.append(min(start + CHUNK_BYTES, size) <= hole_end)
        return answers

    def extents(self, offset: int, length: int, *, grain: int = 1) -> list[Extent]:
        """Return the holes and data in a range, alternating; their lengths add up to `length`.

        Data in any part of a piece of `grain` bytes makes the whole piece data.
        """
        found: list[Extent] = []
        end = offset + length
        start = at = offset
        """Data begins at `start`, and is looked for from `at` on."""
        with files.errors_named(self._where):
            while at < end:
                data = files.next_data(self._fd, at, end)
                hole = end if data >= end else max(at, data // grain * grain)
                if hole > at:
                    if at > start:
                        found.append(Extent(at - start, is_hole=False))
                    found.append(Extent(hole - at, is_hole=True))
                    start = at = hole
                if data < end:
                    # One that is no longer than nothing: a writer beside us has just made a hole.
                    stop = files.next_hole(self._fd, data, end)
                    at = min(-(-stop // grain) * grain, end) if stop > data else at
        if at > start:
            found.append(Extent(at - start, is_hole=False))
        return found

    def grow(self, size_bytes: int) -> None:
        """Make the file longer; durable on return."""
        with files.errors_named(self._where):
            files.port.ftruncate(self._fd, size_bytes)
        self.flush()
        self.size_bytes = size_bytes

    def check_length(self) -> None:
        """Refuse a file that is shorter than the volume: what it lacks would read as zeros.

        Raises:
            CopyError: CORRUPT.
        """
        with files.errors_named(self._where):
            length = os.lseek(self._fd, 0, os.SEEK_END)
        if length < self.size_bytes:
            raise CopyError(
                f"{self._where} has {length} bytes where the copy has {self.size_bytes}:"
                " its end was cut off, so this copy is lost.",
                reason=FaultReason.CORRUPT,
                hint="Nothing was changed. Remove the copy from its group and let a new one be"
                " made.",
            )


def _write(fd: int, run: list[Payload], start: int, end: int) -> None:
    if len(run) == 1:
        files.write_all(fd, run[0], start)
    else:
        files.write_run(fd, run, start, end - start)
