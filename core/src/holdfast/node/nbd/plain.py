"""The requests that come by the thousand: reads and writes in order, and answers to writes.

`transmission.py` says what becomes of everything else. These loops run once for every request, so
they may be compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from holdfast.compiled import compiled
from holdfast.messages import Payload, Reply, Request, RequestFlag, RequestKind
from holdfast.node.nbd.protocol import (
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    REQUEST,
    SIMPLE_REPLY,
    Command,
    CommandFlag,
)
from holdfast.units import REQUEST_BYTES_MAX, SECTOR_BYTES

_HEADER_BYTES = REQUEST.size
_MISALIGNED = SECTOR_BYTES - 1
_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
_KIND_READ = int(RequestKind.READ)
_KIND_WRITE = int(RequestKind.WRITE)
assert int(RequestFlag.FUA) == int(CommandFlag.FUA) == 1, "`take_requests` passes the bit on"
_new = tuple.__new__  # Half the cost of calling the named tuple.

MORE: Final = 0
FULL: Final = 1
RARE: Final = 2
"""Why `take_requests` stopped: no further request is whole; a limit; a request that is not common."""


@compiled
def take_requests(
    view: memoryview,
    position: int,
    end: int,
    next_id: int,
    room: int,
    inflight_bytes: int,
    inflight_bytes_max: int,
    size_bytes: int,
    writable: bool,
    requests: list[Request],
    pending: dict[int, tuple[int, int, int, int]],
) -> tuple[int, int, int, int, int, int]:
    """Take the reads and writes in `view[position:end]` that are in order, up to anything else.

    Args:
        view: What was received.
        position: Where a request begins.
        end: Where what was received ends.
        next_id: The id of the next request.
        room: How many requests may be taken.
        inflight_bytes: Bytes of the reads and writes that are not answered.
        inflight_bytes_max: No further one is taken once they are so many.
        size_bytes: The size of the volume.
        writable: Whether writes are in order.
        requests: Gets what was taken.
        pending: Gets (cookie, command, offset, length) of each by id.

    Returns:
        Why it stopped; the bytes that the request there takes in all, as far as is known; `next_id` and
        `inflight_bytes` as they are now; the bytes of the writes; and where the next request begins.
    """
    written_bytes = 0
    wanted = _HEADER_BYTES
    stop = MORE
    unpack = REQUEST.unpack_from
    while end - position >= _HEADER_BYTES:
        if room <= 0 or inflight_bytes >= inflight_bytes_max:
            stop = FULL
            break
        magic, flags, command, cookie, offset, length = unpack(view, position)
        if not (
            magic == NBD_REQUEST_MAGIC
            and command <= _WRITE
            and flags <= 1
            and 0 < length <= REQUEST_BYTES_MAX
            and not (offset | length) & _MISALIGNED
            and offset + length <= size_bytes
            and (writable or command == _READ)
        ):
            stop = RARE
            break
        begin = position + _HEADER_BYTES
        request: tuple[int, int, int, int, int, Payload]
        if command == _READ:
            position = begin
            request = (next_id, _KIND_READ, 0, offset, length, b"")
        elif begin + length > end:
            wanted = _HEADER_BYTES + length
            break
        else:
            position = begin + length
            request = (next_id, _KIND_WRITE, flags, offset, length, view[begin:position])
            written_bytes += length
        requests.append(_new(Request, request))
        pending[next_id] = (cookie, command, offset, length)
        next_id += 1
        inflight_bytes += length
        room -= 1
    return stop, wanted, next_id, inflight_bytes, written_bytes, position


@compiled
def answer_writes(
    replies: Sequence[Reply], pending: dict[int, tuple[int, int, int, int]]
) -> tuple[bytes, int, int]:
    """Answer the writes that succeeded with which `replies` begin, up to anything else.

    Args:
        replies: In any order.
        pending: What is not answered, by id, as `take_requests` fills it; loses what is answered.

    Returns:
        The bytes that answer them, the bytes of their payloads, and how many they are.
    """
    answers = []
    inflight_bytes = 0
    for number, error, _ in replies:
        entry = pending.get(number)
        if entry is None or entry[1] != _WRITE or error:
            break
        del pending[number]
        answers.append(SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, entry[0]))
        inflight_bytes += entry[3]
    return b"".join(answers), inflight_bytes, len(answers)
