"""How a data block is made smaller, and when that is not worth trying.

Compressing what does not compress costs about a quarter of what sending it costs (230 us/MiB on
random data). So after a block that shrank by less than a tenth, the blocks of the next bytes go as
they are, then one is tried again. The pause doubles while nothing has changed.
"""

from __future__ import annotations

from typing import Final, Protocol

import lz4.block
import zstandard

from holdfast.messages import Payload
from holdfast.sockets import Counters
from holdfast.units import KIB, MIB
from holdfast_transport_tcp.layout import Stored

COMPRESS_BYTES_MIN: Final = 1 * KIB
"""Blocks below this go as they are: a header costs more than they could save."""
RATIO_MAX: Final = 0.9
"""A block that does not shrink to this goes as it is."""
PAUSE_BYTES_MIN: Final = 256 * KIB
PAUSE_BYTES_MAX: Final = 16 * MIB
"""At most one frame in 16 MiB is tried in vain: one MiB in 16 if frames are that large."""

CHOICES: Final = ("lz4", "zstd", "none")


class Codec(Protocol):
    """One way to store a block."""

    stored: Stored

    def compress(self, data: Payload) -> bytes:
        """Return `data` made smaller, perhaps."""
        ...

    def decompress(self, block: Payload, plain: int) -> bytes:
        """Return the `plain` bytes in `block`; raises `ValueError` when it holds anything else."""
        ...


class Lz4Codec:
    """Fast on both ends; the default."""

    stored = Stored.LZ4

    def compress(self, data: Payload) -> bytes:
        """Return one LZ4 block."""
        block: bytes = lz4.block.compress(data, store_size=False)
        return block

    def decompress(self, block: Payload, plain: int) -> bytes:
        """Return the bytes in the block; writes no more than `plain` whatever the block says."""
        try:
            data: bytes = lz4.block.decompress(block, uncompressed_size=plain)
        except lz4.block.LZ4BlockError as error:
            raise ValueError(f"damaged LZ4 block: {error}") from error
        return data


class ZstdCodec:
    """Smaller and slower: for links slower than about 1 Gbit/s."""

    stored = Stored.ZSTD

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=False)
        self._decompressor = zstandard.ZstdDecompressor()

    def compress(self, data: Payload) -> bytes:
        """Return one Zstandard frame that declares its content size."""
        return self._compressor.compress(data)

    def decompress(self, block: Payload, plain: int) -> bytes:
        """Return the bytes in the frame, whose declared size is checked before any is written."""
        try:
            if zstandard.frame_content_size(block) != plain:
                raise ValueError("a Zstandard frame declares another size than the header")
            return self._decompressor.decompress(block, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(f"damaged Zstandard frame: {error}") from error


def codec_named(name: str) -> Codec | None:
    """Return the codec of a negotiated name; None for `none`."""
    if name == "none":
        return None
    return Lz4Codec() if name == "lz4" else ZstdCodec()


class Squeezer:
    """Decides block by block, for one link, whether to compress."""

    __slots__ = ("_codec", "_counters", "_pause_bytes", "_rest_bytes", "stored")

    def __init__(self, codec: Codec | None, counters: Counters) -> None:
        self._codec = codec
        self.stored = Stored.PLAIN if codec is None else codec.stored
        """How blocks are stored that shrink."""
        self._counters = counters
        self._pause_bytes = PAUSE_BYTES_MIN
        self._rest_bytes = 0
        """Bytes still to go as they are before the next try."""

    def wants(self, size: int) -> bool:
        """Whether a block of `size` bytes is to be tried; counts it as sent plain when not."""
        if self._codec is None or size < COMPRESS_BYTES_MIN:
            return False
        if self._rest_bytes > 0:
            self._rest_bytes -= size
            self._counters.frames_stored += 1
            return False
        return True

    def squeeze(self, data: Payload, size: int) -> tuple[Stored, bytes] | None:
        """Return how `data` is stored and the block, or None when it does not shrink enough."""
        assert self._codec is not None
        block = self._codec.compress(data)
        if len(block) > size * RATIO_MAX:
            self._counters.frames_stored += 1
            self._rest_bytes = self._pause_bytes
            self._pause_bytes = min(2 * self._pause_bytes, PAUSE_BYTES_MAX)
            return None
        self._pause_bytes = PAUSE_BYTES_MIN
        return self._codec.stored, block
