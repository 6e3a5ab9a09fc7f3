"""Between a file and a volume, both ways, through an NBD connection; holes stay holes.

What a file or a volume does not hold is neither read nor sent. Knows no commands and no cluster.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from holdfast.cli.nbd_client import READ, WRITE, WRITE_ZEROES, NbdClient, Request
from holdfast.errors import UnavailableError
from holdfast.units import MIB, SECTOR_BYTES, format_size

BLOCK_BYTES = 256 * 1024
"""One request: four chunks. Larger ones gain nothing over 16 under way."""
ZEROS = bytes(BLOCK_BYTES)
_ZERO_RUN_BYTES_MAX = 32 * MIB
_EXTENT_BYTES_MAX = 1 << 30
"""How much one question about holes covers; NBD lengths have 32 bits."""


def copy_in(
    source: int, size: int, volume: NbdClient, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write the file behind the descriptor `source` to `volume` and flush; return the bytes sent.

    Args:
        source: Opened for reading.
        size: The file's size in bytes.
        volume: As large or larger.
        advance: Told of bytes dealt with, sent or skipped.

    Raises:
        UnavailableError: The file cannot be read, or has become shorter.
        VolumeError: The volume refused a write.
    """
    tail = size % SECTOR_BYTES
    sent = 0
    for request, _ in volume.pipeline(_writes(source, size - tail, zeroes=volume.can_zero)):
        advance(request.length)
        sent += request.length if request.kind == WRITE else 0
    if tail:
        # The volume's own bytes stay behind a file that ends within a sector.
        start = size - tail
        old = volume.read(start, SECTOR_BYTES)
        volume.write(start, _read_at(source, tail, start) + old[tail:])
        advance(tail)
        sent += tail
    volume.flush()
    return sent


def _writes(source: int, size: int, *, zeroes: bool) -> Iterator[Request]:
    for start, length, is_hole in _file_runs(source, size):
        step = _ZERO_RUN_BYTES_MAX if is_hole and zeroes else BLOCK_BYTES
        for offset in range(start, start + length, step):
            count = min(step, start + length - offset)
            if is_hole and zeroes:
                yield Request(WRITE_ZEROES, offset, count)
                continue
            data = _read_at(source, count, offset)
            if zeroes and data == ZEROS[:count]:
                yield Request(WRITE_ZEROES, offset, count)
            else:
                yield Request(WRITE, offset, count, data)


def _file_runs(source: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, is a hole) runs that cover the file's first `size` bytes."""
    offset = 0
    while offset < size:
        try:
            data = min(os.lseek(source, offset, os.SEEK_DATA), size)
        except OSError as error:
            # ENXIO: nothing but a hole to the end. Anything else: no holes on this file system.
            data = size if error.errno == errno.ENXIO else offset
            if os.lseek(source, 0, os.SEEK_END) < size:
                raise _shrunk(source, offset) from error
        data -= data % SECTOR_BYTES
        if data > offset:
            yield offset, data - offset, True
            offset = data
            continue
        try:
            hole = min(os.lseek(source, offset, os.SEEK_HOLE), size)
        except OSError:
            hole = size
        hole = min(size, -(-hole // SECTOR_BYTES) * SECTOR_BYTES)
        yield offset, hole - offset, False
        offset = hole


def copy_out(
    volume: NbdClient, target: int, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write `volume` into the empty file behind the descriptor `target`; return the bytes read."""
    os.ftruncate(target, volume.size_bytes)
    got = 0

    def reads() -> Iterator[Request]:
        for start in range(0, volume.size_bytes, _EXTENT_BYTES_MAX):
            offset = start
            length = min(_EXTENT_BYTES_MAX, volume.size_bytes - start)
            for run, is_zero in volume.extents(start, length):
                if is_zero:
                    advance(run)
                else:
                    for at in range(offset, offset + run, BLOCK_BYTES):
                        yield Request(READ, at, min(BLOCK_BYTES, offset + run - at))
                offset += run

    for request, data in volume.pipeline(reads()):
        if data != ZEROS[: len(data)]:
            _write_all(target, data, request.offset)
        got += len(data)
        advance(len(data))
    os.fsync(target)
    return got


def _write_all(target: int, data: bytes, offset: int) -> None:
    """Write all of `data`: a file system that is nearly full takes a part, without an error."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(target, rest, offset)
        rest, offset = rest[written:], offset + written


def _read_at(source: int, count: int, offset: int) -> bytes:
    """Read from the file that is imported; its errors are not the volume's."""
    data = b""
    try:
        while len(data) < count:
            more = os.pread(source, count - len(data), offset + len(data))
            if not more:
                raise _shrunk(source, offset + len(data))
            data += more
    except OSError as error:
        raise UnavailableError(
            f"The file cannot be read at {format_size(offset)}: {error.strerror}.",
            hint="Check the disk or the server that holds it.",
        ) from error
    return data


def _shrunk(source: int, reached: int) -> UnavailableError:
    # What the kernel makes up as it is read, as in /sys, ends before the size that it claims.
    end = min(reached, os.lseek(source, 0, os.SEEK_END))
    return UnavailableError(
        f"The file ends at {format_size(end)}, before the size that it had at first.",
        hint="Let nobody change it while it is imported.",
    )
