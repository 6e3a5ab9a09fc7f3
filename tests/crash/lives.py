"""Lives of a copy made up from a seed: what its owner does, with kills and power losses on the way.

The owner is a proper one: it saves `clean=False` before it writes, marks regions before it touches
them, unmarks them with nothing in flight. Everything else is up to the dice.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from tests.crash.disk import (
    SECTOR,
    ZERO,
    Choice,
    ForgetfulPort,
    Item,
    Killed,
    RecordingPort,
)
from tests.crash.promises import KEY, BrokenPromiseError, Promises, anonymous, compare, hold

from holdfast.errors import NotFoundError
from holdfast.interfaces.copy import Superblock
from holdfast.local.copy import files
from holdfast.local.copy.files import StoragePort
from holdfast.local.copy_store import FileCopyStore, create_copy, delete_copy, open_copy
from holdfast.messages import Op, OpKind
from holdfast.units import CHUNK_BYTES, MIB, REGION_BYTES, CopyId, Epoch, VolumeId

SIZE = 8 * MIB + CHUNK_BYTES + SECTOR
"""Three regions, and neither they nor the chunks come out even."""
_HOT = tuple(
    at + step
    for at in (0, 30 * CHUNK_BYTES, 4 * MIB - CHUNK_BYTES, 4 * MIB, 8 * MIB)
    for step in (0, 4096, CHUNK_BYTES - 1024)
)
"""Where writes go: few places, so that they meet one another, at ends of sectors of hashes, chunks
and regions."""
_CLUSTER = "a cluster of a long name " * 24
"""So that a superblock takes more than one sector, and can be torn."""
_OTHERS = (CopyId("e" * 32), CopyId("f" * 32))


@contextlib.contextmanager
def through(port: StoragePort) -> Iterator[None]:
    """Put a port beneath every store."""
    before, files.port = files.port, port
    try:
        yield
    finally:
        files.port = before


def memory() -> str | None:
    """Return a folder in memory, where there is one: the disk is simulated anyway."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108


@attrs.define
class Effort:
    """How thorough a life is."""

    operations: int = 30
    mixtures: int = 2
    """Tried after each call, beside nothing lost and everything lost."""
    exhaustive_most: int = 4
    """Where there are at most so many, all are tried."""


LEAN = Effort()
PLAIN = Effort(mixtures=0, exhaustive_most=1)
"""Only nothing lost and everything lost."""
THOROUGH = Effort(operations=60, mixtures=24, exhaustive_most=64)


class Life:
    """One life of a copy, and every power loss that it might have met."""

    def __init__(
        self, seed: int, place: Path, effort: Effort, only_state: int | None = None
    ) -> None:
        """Prepare it.

        Args:
            seed: Decides everything.
            place: An empty folder.
            effort: How many mixtures are tried.
            only_state: Try no state but this one, to see it again.
        """
        self.states = 0
        """How many were tried so far; the number of a state."""
        self.calls = 0
        self._seed = seed
        self._dice = random.Random(seed)
        # Apart, so that the life is the same however many states are tried.
        self._fates = random.Random(seed)
        self._effort = effort
        self._only = only_state
        self._place = place
        self._root = place / "disk"
        self._root.mkdir()
        self._port = RecordingPort(self._root, self._after_call)
        self._port.dice = random.Random(seed)
        self._promises = Promises()
        self._store: FileCopyStore | None = None
        self._written = 0
        self._boot = 0
        self._was_cut = False

    def run(self) -> None:
        """Live it.

        Raises:
            BrokenPromiseError: With the line that shows the state again.
        """
        with through(self._port):
            self._create()
            for _ in range(self._effort.operations):
                self._step()
            self._dies(lambda: None)
            self._store_open().close()
            self._delete()
            self._create()
            self._store_open().close()

    def run_interrupted(self, calls: int) -> bool:
        """Kill the process after `calls` calls of a fixed piece of work, and do the same again after.

        What the first process left in the page cache is what the second one leans on, so a power
        loss then shows what should have been synced in between.

        Returns:
            Whether the work is longer than that.

        Raises:
            BrokenPromiseError: As `run`.
        """
        with through(self._port):
            self._create()
            self._work()
            self._flush()
            self._dies(self._work, calls)
            was_cut = self._was_cut
            self._work()
            self._close_in_order()
            self._store_open().close()
        return was_cut

    def _work(self) -> None:
        store = self._store_open()
        self._clear_all()
        self._save()
        self._write([self._fresh_write(at, 8) for at in (0, 4 * MIB - 4096)])
        store.refresh_hashes(1000)
        self._clear_all()
        self._write([self._fresh_write(4 * MIB, 1)])
        store.hashes([64])
        self._save_dirty()
        self._drop_dirty()
        self._save()

    def _clear_all(self) -> None:
        self._clear_regions(sorted(self._store_open().marked_regions()))

    # --- what a power loss may leave ---

    def _after_call(self) -> None:
        self.calls += 1
        items = self._port.disk.items()
        dice = self._fates
        effort = self._effort
        for choice in self._port.disk.choices(items, dice, effort.mixtures, effort.exhaustive_most):
            self.states += 1
            fate = random.Random(self.states)
            if self._only in {None, self.states}:
                self._try_state(items, choice, fate)

    def _try_state(self, items: list[Item], choice: Choice, dice: random.Random) -> None:
        found = Path(tempfile.mkdtemp(dir=self._place))
        try:
            self._port.disk.write_out(items, choice, found)
            with through(ForgetfulPort()):
                hold(found / "copy", self._promises, dice)
        except BrokenPromiseError as error:
            raise BrokenPromiseError(
                f"{error}\nSee it again: python -m tests.crash --seed {self._seed}"
                f" --state {self.states}"
            ) from error
        finally:
            shutil.rmtree(found)

    # --- what the owner does ---

    def _step(self) -> None:
        kinds: list[tuple[int, Callable[[], None]]] = [
            (10, self._apply),
            (3, self._flush),
            (3, self._clear),
            (3, self._save),
            (3, self._save_dirty),
            (1, self._drop_dirty),
            (4, self._hash),
            (1, self._grow),
            (1, self._close_in_order),
        ]
        work = self._dice.choices([k for _, k in kinds], [w for w, _ in kinds])[0]
        fate = self._dice.random()
        if fate < 0.12:
            self._dies(work)
        elif fate < 0.16:
            self._loses_power()
        else:
            work()

    def _store_open(self) -> FileCopyStore:
        assert self._store is not None
        return self._store

    def _promise(self, **changes: Any) -> None:
        self._promises = attrs.evolve(self._promises, **changes)

    def _create(self) -> None:
        self._promise(exists=frozenset({True, False}))
        self._store = create_copy(
            self._root / "copy",
            cluster=_CLUSTER,
            volume=VolumeId("a" * 32),
            copy=CopyId("b" * 32),
            size_bytes=SIZE,
            hash_key=KEY.hex(),
            boot=str(self._boot),
        )
        self._promises = Promises(
            exists=frozenset({True}), superblocks=(anonymous(self._store.superblock),)
        )
        self._begin()

    def _delete(self) -> None:
        self._promise(exists=frozenset({True, False}))
        self._port.calls_left = self._dice.choice([None, *range(9)])
        with contextlib.suppress(Killed):
            delete_copy(self._root / "copy")
        self._port.calls_left = None
        delete_copy(self._root / "copy")
        self._promises = Promises()

    def _begin(self) -> None:
        store = self._store_open()
        store.debug = True
        self._save_as(attrs.evolve(store.superblock, clean=False, boot=str(self._boot)))

    def _save_as(self, superblock: Superblock) -> None:
        assert self._promises.superblocks is not None
        self._promise(superblocks=(self._promises.superblocks[-1], superblock))
        self._store_open().save(superblock)
        if superblock.clean:
            self._promise(unflushed={})
        self._promise(superblocks=(superblock,))

    def _save(self) -> None:
        block = self._store_open().superblock
        self._save_as(attrs.evolve(block, epoch=Epoch(block.epoch + 1)))

    def _apply(self) -> None:
        self._write([self._op() for _ in range(self._dice.randrange(1, 4))])

    def _write(self, ops: list[Op]) -> None:
        store = self._store_open()
        regions = {
            r
            for op in ops
            for r in range(
                op.offset // REGION_BYTES, (op.offset + op.length - 1) // REGION_BYTES + 1
            )
        }
        store.mark_regions(regions)
        self._promise(marked=self._promises.marked | regions)
        current = dict(self._promises.current)
        unflushed = dict(self._promises.unflushed)
        for op in ops:
            for at in range(0, op.length, SECTOR):
                sector = (op.offset + at) // SECTOR
                old = current.get(sector, ZERO)
                current[sector] = bytes(op.data[at : at + SECTOR]) if op.data else ZERO
                unflushed[sector] = unflushed.get(sector, frozenset()) | {old, current[sector]}
        self._promise(unflushed=unflushed)
        store.apply(ops)
        self._promise(current=current)

    def _op(self) -> Op:
        dice = self._dice
        offset = dice.choice(_HOT)
        sectors = dice.choice([1, 1, 3, 8, 16, 128])
        length = min(sectors * SECTOR, self._store_open().superblock.size_bytes - offset)
        kind = dice.choices(
            [OpKind.WRITE, OpKind.SYNC_WRITE, OpKind.DISCARD, OpKind.ZERO], [8, 2, 2, 1]
        )[0]
        if kind in {OpKind.DISCARD, OpKind.ZERO}:
            return Op(kind, offset, length)
        return self._fresh_write(offset, length // SECTOR, kind)

    def _fresh_write(self, offset: int, sectors: int, kind: OpKind = OpKind.WRITE) -> Op:
        """Return a write of bytes that nobody has written before."""
        self._written += 1
        data = b"".join(
            (self._written << 16 | sector).to_bytes(8, "big") * (SECTOR // 8)
            for sector in range(sectors)
        )
        return Op(kind, offset, len(data), data)

    def _flush(self) -> None:
        self._store_open().flush()
        self._promise(unflushed={})

    def _clear(self) -> None:
        marked = sorted(self._store_open().marked_regions())
        self._clear_regions(self._dice.sample(marked, self._dice.randrange(len(marked) + 1)))

    def _clear_regions(self, gone: list[int]) -> None:
        self._promise(marked=self._promises.marked - set(gone))
        self._store_open().clear_regions(gone)
        self._promise(unflushed={})

    def _hash(self) -> None:
        store = self._store_open()
        match self._dice.randrange(3):
            case 0:
                store.hashes([at // CHUNK_BYTES for at in self._dice.sample(_HOT, 3)])
            case 1:
                store.refresh_hashes(self._dice.choice([1, 8, 200]))
            case _:
                store.tree(1, [0])

    def _save_dirty(self) -> None:
        copy, bits = (
            self._dice.choice(_OTHERS),
            self._dice.randbytes(self._dice.choice([2, 40, 9000])),
        )
        before = self._promises.dirty
        self._promise(dirty={**before, copy: before.get(copy, frozenset({None})) | {bits}})
        self._store_open().save_dirty(copy, bits)
        self._promise(dirty={**before, copy: frozenset({bits})})

    def _drop_dirty(self) -> None:
        copy = self._dice.choice(_OTHERS)
        before = self._promises.dirty
        self._promise(dirty={**before, copy: before.get(copy, frozenset({None})) | {None}})
        self._store_open().drop_dirty(copy)
        self._promise(dirty={**before, copy: frozenset({None})})

    def _grow(self) -> None:
        store = self._store_open()
        old = store.superblock
        size = old.size_bytes + self._dice.choice([SECTOR, CHUNK_BYTES, 5 * MIB])
        if size > 300 * MIB:
            return
        self._promise(superblocks=(old, attrs.evolve(old, size_bytes=size)))
        store.resize(size)
        self._promise(superblocks=(store.superblock,))

    def _close_in_order(self) -> None:
        self._save_as(attrs.evolve(self._store_open().superblock, clean=True))
        self._store_open().close()
        self._open_again()

    # --- how the process or the machine ends ---

    def _dies(self, work: Callable[[], None], calls: int | None = None) -> None:
        """Kill the process after some calls of `work`, and let another one find what it left."""
        self._port.calls_left = self._dice.randrange(8) if calls is None else calls
        self._was_cut = True
        with contextlib.suppress(Killed):
            work()
            self._was_cut = False
        self._port.calls_left = None
        store, self._store = self._store, None
        if store is not None:
            store.close()
        self._open_again()

    def _loses_power(self) -> None:
        """Go on from one of the states that a power loss may leave."""
        self._store_open().close()
        disk = self._port.disk
        items = disk.items()
        choices = list(disk.choices(items, self._dice, 4, 1))
        shutil.rmtree(self._root)
        self._root.mkdir()
        self._port.adopt(disk.write_out(items, self._dice.choice(choices), self._root))
        self._boot += 1
        self._open_again()
        self._promise(unflushed={})

    def _open_again(self) -> None:
        """Open what is there; what it tells, the owner acts upon, so it is promised from now on."""
        try:
            store = self._store = open_copy(self._root / "copy", boot=str(self._boot))
        except NotFoundError as error:
            raise BrokenPromiseError(f"the copy is gone: {error}") from error
        compare(store, self._promises)
        sectors = self._promises.current.keys() | self._promises.unflushed.keys()
        current = {s: store.read(s * SECTOR, SECTOR) for s in sectors}
        self._promise(
            exists=frozenset({True}),
            superblocks=(store.superblock,),
            marked=store.marked_regions(),
            current=current,
            unflushed={s: states | {current[s]} for s, states in self._promises.unflushed.items()},
            dirty={copy: frozenset({store.load_dirty(copy)}) for copy in store.dirty_maps()},
        )
        self._begin()
