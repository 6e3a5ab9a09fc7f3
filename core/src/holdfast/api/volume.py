"""One volume for a program, awaited or blocking; see the package for how to come by one."""

from __future__ import annotations

import asyncio
import errno as errnos
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self, TypeVar

import attrs
from anyio.from_thread import BlockingPortal, start_blocking_portal

from holdfast.errors import VolumeError
from holdfast.interfaces.frontend import VolumeProvider, VolumeSession
from holdfast.messages import (
    Extent,
    Payload,
    Reply,
    Request,
    RequestFlag,
    RequestKind,
    unpack_extents,
)
from holdfast.model import Access
from holdfast.units import REQUEST_BYTES_MAX, SECTOR_BYTES, VOLUME_BYTES_MAX

_T = TypeVar("_T")
_NOT_OPEN, _CLOSED = "it is not open", "it was closed"
_SENTENCES = {
    errnos.EPERM: ("is read-only", "`holdfast explain` says why."),
    errnos.EINVAL: (
        "cannot take this request",
        f"Offsets and lengths are multiples of {SECTOR_BYTES} within the volume.",
    ),
    errnos.ENOSPC: ("has no space for this", ""),
    errnos.EIO: ("could not carry it out", "`holdfast explain` says why."),
}


@attrs.define(eq=False)
class Volume:
    """A volume, open while in its `async with` block.

    Requests may overlap: start several in a task group and they travel together. Offsets and
    lengths are bytes, multiples of 512, within the volume; longer ones than 32 MiB are split.
    """

    _provider: VolumeProvider = attrs.field(repr=False)
    name: str
    read_only: bool = attrs.field(default=False, kw_only=True)
    force: bool = attrs.field(default=False, kw_only=True)
    """Take the volume over from whoever has it open for writing."""
    _session: VolumeSession | None = attrs.field(default=None, init=False, repr=False)
    _futures: dict[int, asyncio.Future[Reply]] = attrs.field(factory=dict, init=False, repr=False)
    _last_id: int = attrs.field(default=0, init=False)
    _closed_because: str = attrs.field(default=_NOT_OPEN, init=False)

    async def __aenter__(self) -> Self:
        """Open the volume.

        Raises:
            NotFoundError: There is no such volume.
            ConflictError: Another session writes to it, and `force` is not set.
            UnavailableError: Its primary cannot be had.
        """
        self._session = await self._provider.open(
            self.name, _Handler(self), read_only=self.read_only, force=self.force
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is unanswered, then let the volume go; flushes nothing."""
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()
        self._end(_CLOSED)

    @property
    def size_bytes(self) -> int:
        """The volume's size now."""
        return self._open_session().size_bytes

    @property
    def access(self) -> Access:
        """What may be done with the volume now."""
        return self._open_session().access

    async def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; raises `VolumeError`."""
        replies = await self._submit(RequestKind.READ, offset, length)
        return bytes(replies[0].data) if len(replies) == 1 else b"".join(r.data for r in replies)

    async def write(self, offset: int, data: Payload, *, fua: bool = False) -> None:
        """Write `data` at `offset` and return when every in-sync copy has it.

        Args:
            offset: Bytes from the start of the volume.
            data: Must not be changed before this returns.
            fua: Return only when it is on stable storage on every in-sync copy.

        Raises:
            VolumeError: It was not written, or not everywhere; `errno` says why.
        """
        flags = RequestFlag.FUA if fua else RequestFlag.NONE
        # Not `len`: that of a view counts items, and they may be longer than a byte.
        length = memoryview(data).nbytes
        await self._submit(RequestKind.WRITE, offset, length, flags, data)

    async def flush(self) -> None:
        """Return when every write that was answered is on stable storage; raises `VolumeError`."""
        await self._submit(RequestKind.FLUSH, 0, 0)

    async def discard(self, offset: int, length: int) -> None:
        """Give the space of a range back; it reads as zeros. Raises `VolumeError`."""
        await self._submit(RequestKind.DISCARD, offset, length)

    async def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """Fill a range with zeros without sending them; raises `VolumeError`.

        Args:
            offset: Bytes from the start of the volume.
            length: Bytes.
            keep_space: Whether the space stays allocated, so that later writes cannot lack it.
        """
        flags = RequestFlag.NO_HOLE if keep_space else RequestFlag.NONE
        await self._submit(RequestKind.ZERO, offset, length, flags)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return which runs of a range are holes, in order; raises `VolumeError`."""
        replies = await self._submit(RequestKind.EXTENTS, offset, length)
        return [extent for reply in replies for extent in unpack_extents(reply.data)]

    # --- session ---------------------------------------------------------------------------

    def _open_session(self) -> VolumeSession:
        if self._session is None:
            raise self._unusable()
        return self._session

    def _unusable(self) -> VolumeError:
        ours = self._closed_because in {_NOT_OPEN, _CLOSED}
        return VolumeError(
            f"Volume {self.name} cannot be used: {self._closed_because}.",
            errno=errnos.EIO,
            hint="Use it inside its `with` or `async with` block." if ours else "",
        )

    async def _submit(
        self,
        kind: RequestKind,
        offset: int,
        length: int,
        flags: RequestFlag = RequestFlag.NONE,
        data: Payload = b"",
    ) -> list[Reply]:
        """Send one request, in parts when it is long, and return the replies in order."""
        session = self._open_session()
        if min(offset, length) < 0 or offset + length > VOLUME_BYTES_MAX:
            raise self._error(kind, offset, length, errnos.EINVAL)  # No frame has room for these.
        view = memoryview(data).cast("B") if data else b""
        loop = asyncio.get_running_loop()
        requests: list[Request] = []
        futures: list[asyncio.Future[Reply]] = []
        # At least one part, so that a length of 0 is judged by the session like any other.
        for at in range(0, max(length, 1), REQUEST_BYTES_MAX):
            part = min(REQUEST_BYTES_MAX, length - at)
            self._last_id += 1
            requests.append(
                Request(self._last_id, kind, flags, offset + at, part, view[at : at + part])
            )
            future: asyncio.Future[Reply] = loop.create_future()
            self._futures[self._last_id] = future
            futures.append(future)
        session.submit(requests)
        # All parts are waited for, even after one failed: until then the session uses `data`.
        replies = list(await asyncio.gather(*futures))
        for reply in replies:
            if reply.errno:
                raise self._error(kind, offset, length, reply.errno)
        return replies

    def _error(self, kind: RequestKind, offset: int, length: int, errno: int) -> VolumeError:
        what, hint = _SENTENCES.get(errno, (f"answered with errno {errno}", ""))
        if errno == errnos.EPERM and self.read_only:
            hint = "It was opened with `read_only`."
        where = "" if kind is RequestKind.FLUSH else f" of {length} bytes at offset {offset}"
        return VolumeError(
            f"{kind.name.capitalize()}{where} failed: volume {self.name} {what}.",
            errno=errno,
            hint=hint,
        )

    def _take(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            future = self._futures.pop(reply.id, None)
            if future is not None and not future.done():
                future.set_result(reply)

    def _end(self, sentence: str) -> None:
        """Fail what is unanswered: the session is over."""
        self._session = None
        self._closed_because = sentence.rstrip(".")
        self._take([Reply(number, errnos.EIO) for number in list(self._futures)])


@attrs.frozen
class _Handler:
    """The `SessionHandler` of a volume, apart from its public face."""

    volume: Volume

    def on_replies(self, replies: Sequence[Reply]) -> None:
        self.volume._take(replies)  # noqa: SLF001 - the two are one thing with two faces.

    def on_changed(self, size_bytes: int, access: Access) -> None:
        """The session itself is asked."""

    def on_closed(self, sentence: str) -> None:
        self.volume._end(sentence)  # noqa: SLF001


@attrs.define(eq=False)
class BlockingVolume:
    """The same for scripts without an event loop: `with BlockingVolume(provider, "db") as v: ...`.

    The calls run on the loop of `portal`, which must be the one that `provider` lives on; without a
    portal a loop is started in a thread for as long as the volume is open.
    """

    _provider: VolumeProvider = attrs.field(repr=False)
    name: str
    read_only: bool = attrs.field(default=False, kw_only=True)
    force: bool = attrs.field(default=False, kw_only=True)
    _portal: BlockingPortal | None = attrs.field(default=None, kw_only=True, repr=False)
    _stack: ExitStack = attrs.field(factory=ExitStack, init=False, repr=False)
    _volume: Volume = attrs.field(init=False, repr=False)
    _running: BlockingPortal | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Make the volume that the portal's loop is to open."""
        self._volume = Volume(self._provider, self.name, read_only=self.read_only, force=self.force)

    def __enter__(self) -> Self:
        """Open the volume; raises what `Volume.__aenter__` raises."""
        with ExitStack() as stack:
            started: AbstractContextManager[BlockingPortal] = start_blocking_portal()
            portal = self._portal or stack.enter_context(started)
            stack.enter_context(portal.wrap_async_context_manager(self._volume))
            self._running = portal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the volume go; flushes nothing."""
        self._running = None
        self._stack.__exit__(kind, error, traceback)

    @property
    def size_bytes(self) -> int:
        """The volume's size now."""
        return self._volume.size_bytes

    @property
    def access(self) -> Access:
        """What may be done with the volume now."""
        return self._volume.access

    def read(self, offset: int, length: int) -> bytes:
        """As `Volume.read`."""
        return self._call(self._volume.read, offset, length)

    def write(self, offset: int, data: Payload, *, fua: bool = False) -> None:
        """As `Volume.write`."""
        self._call(lambda: self._volume.write(offset, data, fua=fua))

    def flush(self) -> None:
        """As `Volume.flush`."""
        self._call(self._volume.flush)

    def discard(self, offset: int, length: int) -> None:
        """As `Volume.discard`."""
        self._call(self._volume.discard, offset, length)

    def zero(self, offset: int, length: int, *, keep_space: bool = False) -> None:
        """As `Volume.zero`."""
        self._call(lambda: self._volume.zero(offset, length, keep_space=keep_space))

    def extents(self, offset: int, length: int) -> list[Extent]:
        """As `Volume.extents`."""
        return self._call(self._volume.extents, offset, length)

    def _call(self, call: Callable[..., Awaitable[_T]], *words: object) -> _T:
        if self._running is None:
            raise self._volume._unusable()  # noqa: SLF001 - the two are one thing with two faces.
        return self._running.call(call, *words)
