"""Volumes in memory: a `VolumeProvider` to test and measure frontends with, no node behind it.

It keeps the contract of `VolumeSession` to the letter, including who may open what, and lets a test
hold replies back, withdraw writing, or fail requests. It promises no durability.
"""

from __future__ import annotations

import asyncio
import errno as errnos
import mmap
import sys
from collections import Counter, deque
from collections.abc import Sequence
from difflib import get_close_matches

import attrs

from holdfast.errors import ConflictError, NotFoundError
from holdfast.interfaces.frontend import PathState, SessionHandler
from holdfast.messages import Reply, Request, RequestFlag, RequestKind, pack_extents
from holdfast.model import Access, VolumeSpec
from holdfast.units import CHUNK_BYTES, REQUEST_BYTES_MAX, SECTOR_BYTES, VolumeId, chunks_of

_MISALIGNED = SECTOR_BYTES - 1
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""A volume larger than the machine's memory is fine while it is sparse; named from Python 3.13 on."""
_WRITING = frozenset(
    {RequestKind.WRITE, RequestKind.DISCARD, RequestKind.ZERO},
)


@attrs.define
class MemoryVolume:
    """The bytes of one volume, sparse by chunk, and what is to go wrong with it."""

    spec: VolumeSpec
    access: Access = Access.READ_WRITE
    size_bytes: int = attrs.field(init=False)
    served: Counter[RequestKind] = attrs.field(factory=Counter)
    """Requests answered without error, by kind."""
    fua_served: int = 0
    opened: int = 0
    """Sessions opened and closed so far."""
    closed: int = 0
    sessions: list[MemorySession] = attrs.field(factory=list, repr=False)
    is_held: bool = False
    """Replies wait until `release`."""
    _failures: list[list[int]] = attrs.field(factory=list)
    _memory: mmap.mmap = attrs.field(init=False, repr=False)
    _present: bytearray = attrs.field(init=False, repr=False)
    """One byte per chunk: 1 where something was written since it was last discarded."""

    def __attrs_post_init__(self) -> None:
        """Reserve addresses; pages come when they are written."""
        self.size_bytes = self.spec.size_bytes
        # Private, not shared: only such memory can grow in place and give pages back.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._memory = mmap.mmap(-1, self.size_bytes, flags=flags)
        self._present = bytearray(chunks_of(self.size_bytes))

    # --- what a test does to it ------------------------------------------------------------

    def hold(self) -> None:
        """Keep every reply back from now on."""
        self.is_held = True

    def release(self) -> None:
        """Send the replies that were kept back, and later ones at once."""
        self.is_held = False
        for session in list(self.sessions):
            session.flush_replies()

    def fail(self, kind: RequestKind, errno: int, *, times: int = 1) -> None:
        """Answer the next `times` requests of `kind` with `errno`."""
        self._failures.append([kind, errno, times])

    def change(self, *, access: Access | None = None, size_bytes: int | None = None) -> None:
        """Set access or grow, tell every session, and let what was suspended go on."""
        if access is not None:
            self.access = access
        if size_bytes is not None:
            self._memory.resize(size_bytes)
            self._present.extend(bytes(chunks_of(size_bytes) - len(self._present)))
            self.size_bytes = size_bytes
        for session in list(self.sessions):
            session.on_changed()

    def end_sessions(self, sentence: str) -> None:
        """Close every session from this side, as when the volume is deleted."""
        for session in list(self.sessions):
            session.end(sentence)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes as they are now, without a session."""
        return self._memory[offset : offset + length]

    # --- requests --------------------------------------------------------------------------

    def serve(self, request: Request) -> Reply:
        """Carry one request out."""
        number, kind, flags, offset, length, data = request
        error = self._error_of(kind, offset, length)
        if error:
            return Reply(number, error)
        answer = b""
        if kind == RequestKind.WRITE:
            self._memory[offset : offset + length] = data
            self._mark(offset, length)
        elif kind == RequestKind.READ:
            answer = self._memory[offset : offset + length]
        elif kind in {RequestKind.DISCARD, RequestKind.ZERO}:
            self._clear(offset, length, keeps=bool(flags & RequestFlag.NO_HOLE))
        elif kind == RequestKind.EXTENTS:
            answer = self._extents(offset, length)
        self.served[RequestKind(kind)] += 1
        self.fua_served += flags & RequestFlag.FUA
        return Reply(number, 0, answer)

    def _error_of(self, kind: int, offset: int, length: int) -> int:
        for failure in self._failures:
            if failure[0] == kind and failure[2]:
                failure[2] -= 1
                return failure[1]
        if self.access is not Access.READ_WRITE:
            if self.access is Access.NONE:
                return errnos.EIO
            if kind in _WRITING:
                return errnos.EPERM if self.access is Access.READ_ONLY else errnos.EIO
        if kind == RequestKind.FLUSH:
            return 0
        fits = 0 < length <= REQUEST_BYTES_MAX and offset + length <= self.size_bytes
        return 0 if fits and not (offset | length) & _MISALIGNED else errnos.EINVAL

    def _mark(self, offset: int, length: int) -> None:
        first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
        if first == last:
            self._present[first] = 1
        else:
            self._present[first : last + 1] = b"\1" * (last + 1 - first)

    def _clear(self, offset: int, length: int, *, keeps: bool) -> None:
        self._memory[offset : offset + length] = bytes(length)
        if keeps:
            self._mark(offset, length)
            return
        first, end = -(-offset // CHUNK_BYTES), (offset + length) // CHUNK_BYTES
        if offset + length == self.size_bytes:
            end = len(self._present)
        if end > first:
            self._present[first:end] = bytes(end - first)
            self._memory.madvise(
                mmap.MADV_DONTNEED,
                first * CHUNK_BYTES,
                min(end * CHUNK_BYTES, self.size_bytes) - first * CHUNK_BYTES,
            )

    def _extents(self, offset: int, length: int) -> bytes:
        extents: list[tuple[int, bool]] = []
        end = offset + length
        while offset < end:
            chunk = offset // CHUNK_BYTES
            stop = min((chunk + 1) * CHUNK_BYTES, end)
            extents.append((stop - offset, not self._present[chunk]))
            offset = stop
        return pack_extents(extents)


@attrs.define(eq=False)
class MemorySession:
    """One open session on a `MemoryVolume`."""

    volume: MemoryVolume = attrs.field(repr=False)
    handler: SessionHandler = attrs.field(repr=False)
    read_only: bool
    answers_at_once: bool
    consumer: str = ""
    spec: VolumeSpec = attrs.field(init=False)
    size_bytes: int = attrs.field(init=False)
    access: Access = attrs.field(init=False)
    _suspended: deque[Request] = attrs.field(factory=deque)
    _replies: list[Reply] = attrs.field(factory=list)
    _is_scheduled: bool = False

    def __attrs_post_init__(self) -> None:
        """Take over what the volume says."""
        self.spec = self.volume.spec
        self._look()

    def _look(self) -> None:
        self.size_bytes = self.volume.size_bytes
        self.access = self.volume.access
        if self.read_only and self.access is Access.READ_WRITE:
            self.access = Access.READ_ONLY

    def submit(self, requests: Sequence[Request]) -> None:
        """Carry requests out in memory; answers come in one batch, by default a loop turn later."""
        if self.access is Access.SUSPENDED:
            self._suspended.extend(requests)
            return
        serve = self.volume.serve
        if self.read_only:
            self._replies += [
                Reply(r.id, errnos.EPERM) if r.kind in _WRITING else serve(r) for r in requests
            ]
        else:
            self._replies += [serve(request) for request in requests]
        if self.answers_at_once:
            self.flush_replies()
        elif not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        self.flush_replies()

    def flush_replies(self) -> None:
        """Hand over the answers that are ready, unless they are held back."""
        if self._replies and not self.volume.is_held:
            replies, self._replies = self._replies, []
            self.handler.on_replies(replies)

    def on_changed(self) -> None:
        """Tell the handler what the volume is like now, then serve what was suspended."""
        self._look()
        self.handler.on_changed(self.size_bytes, self.access)
        if self._suspended and self.access is not Access.SUSPENDED:
            requests, self._suspended = list(self._suspended), deque()
            self.submit(requests)

    def end(self, sentence: str) -> None:
        """End the session from the volume's side."""
        self._replies += [Reply(request.id, errnos.EIO) for request in self._suspended]
        self._suspended.clear()
        replies, self._replies = self._replies, []
        self._leave()
        if replies:
            self.handler.on_replies(replies)
        self.handler.on_closed(sentence)

    async def aclose(self) -> None:
        """Give the session up."""
        self._leave()

    def _leave(self) -> None:
        if self in self.volume.sessions:
            self.volume.sessions.remove(self)
            self.volume.closed += 1


@attrs.define
class MemoryVolumeProvider:
    """A cluster's worth of volumes in this process's memory."""

    volumes: dict[str, MemoryVolume] = attrs.field(factory=dict)
    answers_at_once: bool = False
    """Answer within `submit`; the fastest, and the hardest on re-entrant users."""
    paths: dict[str, PathState] = attrs.field(factory=dict)
    """By volume name; optimized where nothing is said."""
    others: list[str] = attrs.field(factory=list)
    """What `addresses` returns."""

    def add(self, name: str, size_bytes: int, *, shared: bool = False) -> MemoryVolume:
        """Make a volume of zeros and return it."""
        spec = VolumeSpec(
            id=VolumeId(f"{len(self.volumes) + 1:032x}"),
            name=name,
            size_bytes=size_bytes,
            replicas=0,
            shared=shared,
        )
        volume = self.volumes[name] = MemoryVolume(spec)
        return volume

    async def names(self) -> Sequence[str]:
        """Return the names of all volumes, sorted."""
        return sorted(self.volumes)

    async def describe(self, name: str) -> VolumeSpec:
        """Return a volume's specification; raises `NotFoundError` with the nearest name."""
        return self._volume(name).spec

    async def open(
        self,
        name: str,
        handler: SessionHandler,
        *,
        read_only: bool = False,
        force: bool = False,
        consumer: str = "",
    ) -> MemorySession:
        """Open a session; raises `NotFoundError`, or `ConflictError` when another one writes."""
        volume = self._volume(name)
        writers = [s for s in volume.sessions if not s.read_only]
        if writers and not read_only and not volume.spec.shared:
            if not force and not (consumer and writers[0].consumer == consumer):
                raise ConflictError(
                    f"Volume {name} is in use by another session.",
                    hint="Close that one first, or take over with force.",
                )
            for writer in writers:
                writer.end(f"Another session took volume {name} over.")
        session = MemorySession(volume, handler, read_only, self.answers_at_once, consumer)
        volume.sessions.append(session)
        volume.opened += 1
        return session

    def path(self, name: str) -> PathState:
        """Return what a test has set in `paths`."""
        return self.paths.get(name, PathState.OPTIMIZED)

    def addresses(self, frontend: str) -> Sequence[str]:
        """Return what a test has set in `others`."""
        return self.others

    def _volume(self, name: str) -> MemoryVolume:
        try:
            return self.volumes[name]
        except KeyError:
            near = get_close_matches(name, self.volumes, n=1)
            hint = f"Did you mean {near[0]}?" if near else ""
            raise NotFoundError(f"There is no volume named {name}.", hint=hint) from None
