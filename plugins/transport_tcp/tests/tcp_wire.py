"""Frames for the tests: an encoder and a decoder without a socket, and forged frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xxhash import xxh3_64_intdigest

from holdfast.sockets import Counters
from holdfast_transport_tcp.compression import Squeezer, codec_named
from holdfast_transport_tcp.decoder import Decoder
from holdfast_transport_tcp.encoder import Encoder
from holdfast_transport_tcp.layout import HEADER, HEADER_CHECKED_BYTES, MAGIC, VERSION
from holdfast_transport_tcp.slab import Inbox, Shelf


def encoded(messages: Sequence[Any], compression: str = "none", **options: Any) -> bytes:
    """Return what an encoder makes of `messages`."""
    counters = Counters()
    encoder = Encoder(counters, Squeezer(codec_named(compression), counters), **options)
    return b"".join(encoder.encode(messages))


class Wire:
    """A decoder that is fed by hand."""

    def __init__(self, compression: str = "none", **options: Any) -> None:
        self.counters = Counters()
        self.inbox = Inbox(Shelf())
        self.decoder = Decoder(self.inbox, self.counters, codec_named(compression), **options)
        self.messages: list[Any] = []

    def feed(self, data: bytes, step: int = 1 << 30) -> list[Any]:
        """Receive `data` in pieces of at most `step` bytes; return every message so far."""
        rest = memoryview(data)
        while rest:
            buffer = self.inbox.buffer()
            size = min(len(buffer), step, len(rest))
            buffer[:size] = rest[:size]
            del buffer
            rest = rest[size:]
            self.decoder.receive(size, self.messages)
        return self.messages


def decoded(data: bytes, compression: str = "none", step: int = 1 << 30) -> list[Any]:
    """Return the messages in `data`."""
    return Wire(compression).feed(data, step)


def forged(
    kind: int,
    body: bytes = b"",
    *,
    stored_as: int = 0,
    epoch: int = 0,
    first: int = 0,
    mark: int = 0,
    count: int = 1,
    stored: int | None = None,
    plain: int | None = None,
    table: int = 0,
    version: int = VERSION,
    reserved: int = 0,
    checksum: int | None = None,
) -> bytes:
    """Return a frame whose checksums are right and whose contents need not be."""
    size = len(body) - table
    head = HEADER.pack(
        MAGIC,
        version,
        kind,
        stored_as,
        reserved,
        epoch,
        first,
        mark,
        count,
        size if stored is None else stored,
        size if plain is None else plain,
        (xxh3_64_intdigest(body) if body else 0) if checksum is None else checksum,
        0,
    )[:HEADER_CHECKED_BYTES]
    return head + (xxh3_64_intdigest(head) & 0xFFFFFFFF).to_bytes(4, "big") + body
