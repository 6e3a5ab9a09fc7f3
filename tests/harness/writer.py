"""An application that can prove what was done to it: it writes, notes every answer, and reads back.

Each 4 KiB block it writes carries the run's seed, the block's number, a version and a checksum. It
never has two requests under way for one block, because NBD orders none; so for each block it knows
the last version that was acknowledged, and which later one was sent without an answer. Reading back,
a block must hold the one or the other. Reads in between are checked at once: they must see exactly
the last acknowledged version, whatever has failed over in the meantime.
"""

from __future__ import annotations

import random
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import attrs
from tests.harness.nbd import FUA, Command, NbdConnection

BLOCK_BYTES: Final = 4096
READ_BYTES: Final = 256 * 1024
"""How much one request reads while checking; a whole number of blocks."""
_HEADER: Final = struct.Struct(">8sQQQI")
_MAGIC: Final = b"HFCHECK1"
_POOL: Final = 64
"""How many different payloads there are; a version says which one it has."""
_POLL_S: Final = 0.05
"""How often a writer that gets no answers looks whether it is to stop."""


@attrs.frozen
class Pause:
    """A time in which requests were under way and none was answered."""

    began_s: float
    """Since the writer began."""
    length_s: float


@attrs.frozen
class Wrong:
    """A block that does not hold what it must."""

    block: int
    found: str
    """What it holds, for people."""
    acknowledged: int
    """The version that was answered last; 0: none."""
    sent: tuple[int, ...]
    """Later versions without a good answer, any of which may be there."""


@attrs.define
class Books:
    """What one writer knows of every block."""

    seed: int
    blocks: int
    acknowledged: dict[int, int] = attrs.field(factory=dict)
    """The last version answered, by block."""
    sent: dict[int, list[int]] = attrs.field(factory=dict)
    """Versions sent and not answered, or answered with an error, later than the acknowledged."""
    _pool: list[bytes] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the payloads: half of each is random, so that compression has its usual work."""
        dice = random.Random(self.seed)
        half = (BLOCK_BYTES - _HEADER.size) // 2
        rest = BLOCK_BYTES - _HEADER.size - half
        self._pool = [dice.randbytes(half) + bytes([n]) * rest for n in range(_POOL)]

    @property
    def newest(self) -> int:
        """The highest version that was given to any block."""
        sent = (version for versions in self.sent.values() for version in versions)
        return max((0, *self.acknowledged.values(), *sent))

    def content(self, block: int, version: int) -> bytes:
        """Return what version `version` of `block` consists of."""
        payload = self._pool[version % _POOL]
        sum_ = zlib.crc32(payload)
        return _HEADER.pack(_MAGIC, self.seed, block, version, sum_) + payload

    def check(self, block: int, data: bytes) -> Wrong | None:
        """Return what is wrong with `data` as the content of `block`, or None."""
        acknowledged = self.acknowledged.get(block, 0)
        sent = tuple(v for v in self.sent.get(block, ()) if v > acknowledged)
        allowed = {acknowledged, *sent}
        if data == bytes(BLOCK_BYTES):
            found, version = "zeros", 0
        else:
            magic, seed, number, version, _ = _HEADER.unpack_from(data)
            if magic != _MAGIC:
                return Wrong(block, f"rubbish: {data[:16].hex()}...", acknowledged, sent)
            found = f"version {version} of block {number}, seed {seed}"
            if (seed, number) != (self.seed, block) or data != self.content(block, version):
                return Wrong(block, f"damaged or misplaced: {found}", acknowledged, sent)
        return None if version in allowed else Wrong(block, found, acknowledged, sent)

    def verify(self, uri: str, *, depth: int = 8) -> list[Wrong]:
        """Read everything back through a new connection; return the blocks that are wrong."""
        wrong: list[Wrong] = []
        end = self.blocks * BLOCK_BYTES
        offsets = iter(range(0, end, READ_BYTES))
        with NbdConnection(uri, timeout_s=60) as volume:
            pending: dict[int, int] = {}
            while True:
                while len(pending) < depth and (at := next(offsets, None)) is not None:
                    length = min(READ_BYTES, end - at)
                    pending[volume.send(Command.READ, at, length)] = at
                if not pending:
                    return wrong
                reply = volume.receive()
                at = pending.pop(reply.cookie)
                if reply.errno:
                    raise OSError(reply.errno, f"reading back at {at} failed")
                for start in range(0, len(reply.data), BLOCK_BYTES):
                    block = (at + start) // BLOCK_BYTES
                    fault = self.check(block, reply.data[start : start + BLOCK_BYTES])
                    if fault is not None:
                        wrong.append(fault)


def version_of(data: bytes) -> int:
    """Return the version that a whole block of a writer's says it has; 0 for zeros."""
    version: int = _HEADER.unpack_from(data)[3]
    return version


@attrs.define
class Outcome:
    """What a writer lived through."""

    seed: int
    seconds: float = 0.0
    writes: int = 0
    """Answered without an error."""
    reads: int = 0
    flushes: int = 0
    pauses: list[Pause] = attrs.field(factory=list)
    """Those longer than `PAUSE_S_MIN`, in their order."""
    errors: list[str] = attrs.field(factory=list)
    """Errors that the volume answered with; an application would have seen them."""
    wrong_reads: list[Wrong] = attrs.field(factory=list)

    @property
    def longest_pause_s(self) -> float:
        """The longest time without an answer, in seconds; 0.0 when none was worth noting."""
        return max((pause.length_s for pause in self.pauses), default=0.0)

    def __str__(self) -> str:
        """Return one line for people."""
        rate = self.writes / self.seconds if self.seconds else 0
        return (
            f"{self.writes} writes and {self.reads} reads in {self.seconds:.1f} s ({rate:.0f}/s), "
            f"longest pause {self.longest_pause_s:.2f} s, {len(self.errors)} errors, "
            f"seed {self.seed}"
        )


DRAIN_S_MAX: Final = 240.0
"""How long what is under way may take when nothing new is sent."""
SILENCE_S_MAX: Final = 600.0
"""A volume that takes nothing at all for so long ends the writer."""
PAUSE_S_MIN: Final = 0.1
"""Shorter ones are the machine's own."""


@attrs.frozen
class _UnderWay:
    command: Command
    block: int
    version: int


@attrs.define
class Writer:
    """Writes random blocks until told to stop, on a thread of its own.

    Use it as a context manager; leaving it stops it. `outcome` and `books` may be read afterwards,
    `answered` at any time.
    """

    uri: str
    blocks: int
    """How many blocks from the start of the volume it uses."""
    depth: int = 16
    """Requests under way."""
    seed: int = attrs.field(factory=lambda: random.SystemRandom().randrange(1 << 32))
    reads: float = 0.0
    """Which part of the requests reads and checks, 0.0 to 1.0."""
    flush_every: int = 0
    """Send a FLUSH after so many writes; 0: never."""
    fua: bool = False
    """Ask with every write that it be on stable storage when it is answered."""
    think_s: float = 0.0
    """Seconds of rest after each answer, for those who want the machine for something else too."""
    continues: Books | None = None
    """What an earlier writer of this volume knew; None: the volume holds nothing but zeros."""
    answered: int = attrs.field(default=0, init=False)
    """How many answers came so far."""
    books: Books = attrs.field(init=False)
    outcome: Outcome = attrs.field(init=False)
    failure: BaseException | None = attrs.field(default=None, init=False)
    """What ended the writer before its time, such as a closed connection."""
    _stop: threading.Event = attrs.field(factory=threading.Event, init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _dice: random.Random = attrs.field(init=False)
    _pending: dict[int, _UnderWay] = attrs.field(factory=dict, init=False)
    _busy: set[int] = attrs.field(factory=set, init=False)
    _version: int = attrs.field(default=0, init=False)
    _began: float = attrs.field(default=0.0, init=False)
    _last: float = attrs.field(default=0.0, init=False)
    _drain_s: float = attrs.field(default=DRAIN_S_MAX, init=False)

    def __attrs_post_init__(self) -> None:
        """Derive everything random from the seed."""
        assert self.blocks > 2 * self.depth, "too few blocks for the depth"
        self.books = self.continues or Books(self.seed, self.blocks)
        self._version = self.books.newest
        self.outcome = Outcome(self.seed)
        self._dice = random.Random(self.seed)

    def start(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name=f"writer {self.seed}", daemon=True)
        self._thread.start()
        return self

    def stop(self, *, drain_s: float = DRAIN_S_MAX) -> Outcome:
        """Send nothing new, wait for what is under way, and return what was lived through.

        Args:
            drain_s: How long to wait for the answers.

        Raises:
            BaseException: What ended the writer early.
        """
        self._drain_s = drain_s
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.failure is not None:
            raise self.failure
        return self.outcome

    @property
    def seconds(self) -> float:
        """How long it has been writing."""
        return time.monotonic() - self._began if self._began else 0.0

    @property
    def silence_s(self) -> float:
        """How long ago the last answer came."""
        return time.monotonic() - self._last if self._last else 0.0

    def __enter__(self) -> Self:
        """Begin."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop; an error that is under way already is not hidden by the writer's own."""
        if kind is None:
            self.stop()
        else:
            self._drain_s = 0.0
            self._stop.set()
            if self._thread is not None:
                self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            with NbdConnection(self.uri, timeout_s=SILENCE_S_MAX) as volume:
                self._began = self._last = time.monotonic()
                for _ in self._answers(volume):
                    self._note_time()
                    if self.think_s:
                        time.sleep(self.think_s)
        except BaseException as error:  # noqa: BLE001 - it is raised in `stop`.
            self.failure = error
        finally:
            for each in self._pending.values():
                self._unanswered(each)
            self.outcome.seconds = self.seconds

    def _answers(self, volume: NbdConnection) -> Iterator[None]:
        """Keep requests under way and yield after each answer."""
        stopped_at = 0.0
        while True:
            if not self._stop.is_set():
                while len(self._pending) < self.depth:
                    self._send(volume)
            elif not self._pending:
                return
            else:
                stopped_at = stopped_at or time.monotonic()
                if time.monotonic() - stopped_at > self._drain_s:
                    raise TimeoutError(
                        f"{len(self._pending)} requests were not answered within "
                        f"{self._drain_s:g} s after the last one was sent; seed {self.seed}."
                    )
            if not volume.has_reply(_POLL_S):
                continue
            reply = volume.receive()
            self._note(self._pending.pop(reply.cookie), reply.errno, reply.data)
            yield

    def _send(self, volume: NbdConnection) -> None:
        if self.flush_every and self._version % self.flush_every == self.flush_every - 1:
            # The version moves on, or it would be flush after flush.
            self._version += 1
            self._pending[volume.send(Command.FLUSH)] = _UnderWay(Command.FLUSH, -1, 0)
            return
        block = self._dice.randrange(self.blocks)
        while block in self._busy:
            block = self._dice.randrange(self.blocks)
        self._busy.add(block)
        at = block * BLOCK_BYTES
        if self.reads and self._dice.random() < self.reads:
            cookie = volume.send(Command.READ, at, BLOCK_BYTES)
            self._pending[cookie] = _UnderWay(Command.READ, block, 0)
            return
        self._version += 1
        under_way = _UnderWay(Command.WRITE, block, self._version)
        data = self.books.content(block, self._version)
        try:
            cookie = volume.send(Command.WRITE, at, data=data, flags=FUA if self.fua else 0)
        except BaseException:
            # Part of it may have arrived.
            self._unanswered(under_way)
            raise
        self._pending[cookie] = under_way

    def _note(self, done: _UnderWay, errno: int, data: bytes) -> None:
        self._busy.discard(done.block)
        self.answered += 1
        if errno:
            self._unanswered(done)
            if len(self.outcome.errors) < 100:
                at = f"{done.command.name} of block {done.block}"
                self.outcome.errors.append(f"errno {errno} after {self.seconds:.2f} s: {at}")
        elif done.command == Command.WRITE:
            self.outcome.writes += 1
            self.books.acknowledged[done.block] = done.version
            # An earlier one that failed can no longer be what the block holds.
            self.books.sent.pop(done.block, None)
        elif done.command == Command.READ:
            self.outcome.reads += 1
            wrong = self.books.check(done.block, data)
            if wrong is not None:
                self.outcome.wrong_reads.append(wrong)
        else:
            self.outcome.flushes += 1

    def _unanswered(self, each: _UnderWay) -> None:
        if each.command == Command.WRITE:
            self.books.sent.setdefault(each.block, []).append(each.version)

    def _note_time(self) -> None:
        now = time.monotonic()
        if now - self._last >= PAUSE_S_MIN:
            self.outcome.pauses.append(Pause(self._last - self._began, now - self._last))
        self._last = now
