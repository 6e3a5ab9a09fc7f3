"""The consumer in `holdfast demo`: writes records, notes every acknowledgement, reads back.

It is an ordinary NBD client on an ordinary thread. It keeps its own books, so that what the
cluster says of itself is never the proof.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterator

from holdfast.cli.nbd_client import READ, WRITE, NbdClient, Request
from holdfast.errors import HoldfastError
from holdfast.units import BLOCK_BYTES

DEPTH = 8
"""Writes under way at once: like a busy database, and more than one can be caught by a crash."""
RATE_PER_S = 1500
"""Writes a second at most, so that what changes while a node is away is a small part of all."""
READ_BYTES = 256 * 1024
_HEADER = struct.Struct(">8sQI")
_MAGIC = b"HOLDFAST"


def record(number: int) -> bytes:
    """Return record `number`: one block of header, checksum and half-compressible payload."""
    noise = random.Random(number).randbytes(BLOCK_BYTES // 2 - _HEADER.size)
    payload = noise + f"record {number} ".encode().ljust(32, b".") * (BLOCK_BYTES // 64)
    return _HEADER.pack(_MAGIC, number, zlib.crc32(payload)) + payload


class Writer:
    """Writes records one behind the other into an area of a volume until told to stop."""

    def __init__(self, uri: str, offset: int, length: int) -> None:
        """Prepare; `start` begins.

        Args:
            uri: Where to write.
            offset: First byte of the area.
            length: Bytes of the area; the records go round when it is full.
        """
        self.acknowledged = 0
        """How many writes were answered."""
        self.pause_s = 0.0
        """Longest time between two answers since `mark`."""
        self.failure: HoldfastError | None = None
        self._uri = uri
        self._offset = offset
        self._slots = array("Q", bytes(8 * (length // BLOCK_BYTES)))
        """The number of the record acknowledged last in each block, 0 for none."""
        self._last_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Begin to write, on a thread of its own."""
        self._last_at = time.monotonic()
        self._thread.start()

    def mark(self) -> None:
        """Measure the longest pause from here on."""
        self.pause_s = 0.0

    def silence_s(self) -> float:
        """Return how long ago the last answer came."""
        return time.monotonic() - self._last_at

    def stop(self) -> None:
        """Stop, and wait until everything under way is answered; raises what ended the writing."""
        self._stop.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def abandon(self) -> None:
        """Stop without waiting, for cleaning up."""
        self._stop.set()

    def check(
        self, volume: NbdClient, advance: Callable[[int], None] = lambda _: None
    ) -> list[int]:
        """Read every acknowledged record back; return the numbers of those that are not there."""
        lost = []
        used = max((i + 1 for i, number in enumerate(self._slots) if number), default=0)
        end = self._offset + used * BLOCK_BYTES
        reads = (
            Request(READ, at, min(READ_BYTES, end - at))
            for at in range(self._offset, end, READ_BYTES)
        )
        for request, data in volume.pipeline(reads):
            first = (request.offset - self._offset) // BLOCK_BYTES
            for index in range(request.length // BLOCK_BYTES):
                number = self._slots[first + index]
                found = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
                if number and found != record(number):
                    lost.append(number)
            advance(request.length)
        return sorted(lost)

    @property
    def area_used_bytes(self) -> int:
        """How many bytes the acknowledged records cover."""
        return sum(map(bool, self._slots)) * BLOCK_BYTES

    def _run(self) -> None:
        try:
            with NbdClient(self._uri) as volume:
                for request, _ in volume.pipeline(self._requests(), depth=DEPTH):
                    self._note(request)
        except HoldfastError as error:
            self.failure = error

    def _requests(self) -> Iterator[Request]:
        number = 0
        due = time.monotonic()
        while not self._stop.is_set():
            number += 1
            data = record(number)
            slot = (number - 1) % len(self._slots)
            yield Request(WRITE, self._offset + slot * BLOCK_BYTES, BLOCK_BYTES, data)
            # After a pause nothing is caught up: the writer goes on at its pace.
            due = max(due + 1 / RATE_PER_S, time.monotonic() - 0.05)
            time.sleep(max(0.0, due - time.monotonic()))

    def _note(self, request: Request) -> None:
        now = time.monotonic()
        self.pause_s = max(self.pause_s, now - self._last_at)
        self._last_at = now
        number = _HEADER.unpack_from(request.data)[1]
        self._slots[(request.offset - self._offset) // BLOCK_BYTES] = number
        self.acknowledged += 1
