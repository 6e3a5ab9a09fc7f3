"""One volume in memory behind the session interface, so that the NBD frontend can serve it."""

import errno
from collections.abc import Sequence

from holdfast.errors import NotFoundError
from holdfast.interfaces.frontend import SessionHandler
from holdfast.messages import Extent, Reply, Request, RequestKind, pack_extents
from holdfast.model import Access, VolumeSpec
from holdfast.units import BLOCK_BYTES, VolumeId


class MemoryVolume:
    """The provider of one volume, `v`, and its only session."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.spec = VolumeSpec(VolumeId("0" * 32), "v", size_bytes, 0)
        self.access = Access.READ_WRITE
        self.data = bytearray(size_bytes)
        self.held = bytearray(size_bytes // BLOCK_BYTES)
        """1 for each block that is no hole."""
        self.requests: list[tuple[int, int, int]] = []
        self.fail: int = 0
        self._handler: SessionHandler | None = None

    async def names(self) -> Sequence[str]:
        return ["v"]

    async def describe(self, name: str) -> VolumeSpec:
        if name != "v":
            raise NotFoundError(f"No volume is named {name!r}.")
        return self.spec

    async def open(
        self, name: str, handler: SessionHandler, *, read_only: bool = False, force: bool = False
    ) -> "MemoryVolume":
        await self.describe(name)
        self._handler = handler
        return self

    async def aclose(self) -> None:
        self._handler = None

    def submit(self, requests: Sequence[Request]) -> None:
        assert self._handler is not None
        self._handler.on_replies([self._answer(request) for request in requests])

    def _answer(self, request: Request) -> Reply:
        self.requests.append((request.kind, request.offset, request.length))
        if self.fail:
            return Reply(request.id, self.fail)
        start, end = request.offset, request.offset + request.length
        blocks = slice(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        match request.kind:
            case RequestKind.READ:
                return Reply(request.id, 0, bytes(self.data[start:end]))
            case RequestKind.WRITE:
                if self.access is not Access.READ_WRITE:
                    return Reply(request.id, errno.EPERM)
                self.data[start:end] = request.data
                self.held[blocks] = b"\1" * (blocks.stop - blocks.start)
            case RequestKind.ZERO | RequestKind.DISCARD:
                self.data[start:end] = bytes(request.length)
                self.held[blocks] = bytes(blocks.stop - blocks.start)
            case RequestKind.EXTENTS:
                return Reply(request.id, 0, self._extents(start, end))
        return Reply(request.id, 0)

    def _extents(self, start: int, end: int) -> bytes:
        runs = [
            Extent(min(BLOCK_BYTES, end - at), not self.held[at // BLOCK_BYTES])
            for at in range(start, end, BLOCK_BYTES)
        ]
        return pack_extents(runs)
