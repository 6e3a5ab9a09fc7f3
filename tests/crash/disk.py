"""A disk that remembers what it was: the calls of a store carried out, and all they may have left.

Knows files as sectors of 512 bytes, lengths and names; nothing of what a copy is.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from holdfast.local.copy.files import StoragePort
from holdfast.messages import Payload

SECTOR = 512
PAGE = 4096
ZERO = bytes(SECTOR)


@attrs.define
class File:
    """What is on disk for certain, what the page cache has, and every state in between."""

    durable: dict[int, bytes] = attrs.Factory(dict)
    durable_length: int = 0
    cached: dict[int, bytes] = attrs.Factory(dict)
    length: int = 0
    sectors: dict[int, list[bytes]] = attrs.Factory(dict)
    """What a sector was since the last sync, oldest first."""
    lengths: list[int] = attrs.Factory(list)

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            at = sector * SECTOR
            old = self.cached.get(sector, ZERO)
            begin, stop = max(offset, at), min(end, at + SECTOR)
            new = old[: begin - at] + data[begin - offset : stop - offset] + old[stop - at :]
            self._put(sector, new)
        if end > self.length:
            self.resize(end)

    def zero(self, offset: int, length: int) -> None:
        """Zero a range that lies within the file."""
        length = min(length, self.length - offset)
        first, end = offset // SECTOR, -(-(offset + length) // SECTOR)
        for sector in [s for s in self.cached if first <= s < end]:
            at = sector * SECTOR
            old = self.cached[sector]
            begin, stop = max(offset, at), min(offset + length, at + SECTOR)
            self._put(sector, old[: begin - at] + bytes(stop - begin) + old[stop - at :])

    def resize(self, length: int) -> None:
        for sector in [s for s in self.cached if s * SECTOR >= length]:
            self._put(sector, ZERO)
        self.length = length
        self.lengths.append(length)

    def sync(self) -> None:
        self.durable = dict(self.cached)
        self.durable_length = self.length
        self.sectors.clear()
        self.lengths.clear()

    def _put(self, sector: int, data: bytes) -> None:
        if data == self.cached.get(sector, ZERO):
            return
        self.cached[sector] = data
        self.sectors.setdefault(sector, []).append(data)


@attrs.define
class Folder:
    """Names as they are on disk for certain, and what was done to them since."""

    durable: dict[str, int] = attrs.Factory(dict)
    cached: dict[str, int] = attrs.Factory(dict)
    changes: list[Callable[[dict[str, int]], object]] = attrs.Factory(list)

    def change(self, change: Callable[[dict[str, int]], object]) -> None:
        change(self.cached)
        self.changes.append(change)

    def sync(self) -> None:
        self.durable = dict(self.cached)
        self.changes.clear()


@attrs.frozen
class Item:
    """One thing whose fate a power loss decides: which of `states` it is, 0 being the oldest."""

    inode: int
    part: int
    """A sector; -1 is the file's length; in a folder the number of the change."""
    states: int
    page: int


Choice = tuple[int, ...]
"""For each item the state that it is found in."""


class Disk:
    """Files and folders by number; 0 is the folder that holds everything."""

    def __init__(self) -> None:
        self.nodes: dict[int, File | Folder] = {0: Folder()}
        self._numbers = itertools.count(1)

    def add(self, node: File | Folder) -> int:
        number = next(self._numbers)
        self.nodes[number] = node
        return number

    def items(self) -> list[Item]:
        """Return what is undecided."""
        found = []
        for inode, node in self.nodes.items():
            if isinstance(node, Folder):
                found += [Item(inode, at, 2, -at) for at in range(len(node.changes))]
                continue
            for sector, states in node.sectors.items():
                found.append(Item(inode, sector, len(states) + 1, sector * SECTOR // PAGE))
            if node.lengths:
                found.append(Item(inode, -1, len(node.lengths) + 1, -1))
        return found

    def choices(
        self, items: Sequence[Item], dice: random.Random, most: int, exhaustive_most: int
    ) -> Iterator[Choice]:
        """Yield mixtures, each once: all when there are at most `exhaustive_most`, else about `most`.

        Nothing lost and everything lost are always among them.
        """
        newest = tuple(item.states - 1 for item in items)
        if math.prod(item.states for item in items) <= exhaustive_most:
            yield from itertools.product(*(range(item.states) for item in items))
            return
        oldest = (0,) * len(items)
        yield newest
        yield oldest
        seen = {newest, oldest}
        for _ in range(most):
            choice = _mixture(items, newest, dice)
            if choice not in seen:
                seen.add(choice)
                yield choice

    def write_out(self, items: Sequence[Item], choice: Choice, place: Path) -> Disk:
        """Make `place` what a power loss leaves, and return a disk on which all of it is durable."""
        fates: dict[int, dict[int, int]] = {}
        for item, state in zip(items, choice, strict=True):
            fates.setdefault(item.inode, {})[item.part] = state
        after = Disk()
        self._write_folder(0, fates, place, after, 0)
        return after

    def _write_folder(
        self, inode: int, fates: dict[int, dict[int, int]], place: Path, after: Disk, into: int
    ) -> None:
        node, copy = self.nodes[inode], after.nodes[into]
        assert isinstance(node, Folder)
        assert isinstance(copy, Folder)
        names = dict(node.durable)
        for at, change in enumerate(node.changes):
            if fates[inode][at]:
                change(names)
        for name, child in names.items():
            path = place / name
            if isinstance(self.nodes[child], Folder):
                path.mkdir()
                number = after.add(Folder())
                self._write_folder(child, fates, path, after, number)
            else:
                number = after.add(self._write_file(child, fates.get(child, {}), path))
            copy.cached[name] = copy.durable[name] = number

    def _write_file(self, inode: int, fates: dict[int, int], path: Path) -> File:
        node = self.nodes[inode]
        assert isinstance(node, File)
        length = [node.durable_length, *node.lengths][fates.get(-1, 0)]
        sectors = dict(node.durable)
        for sector, states in node.sectors.items():
            if fates[sector]:
                sectors[sector] = states[fates[sector] - 1]
        kept = {s: d for s, d in sectors.items() if s * SECTOR < length and d != ZERO}
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, length)
            for sector in kept:
                os.pwrite(fd, kept[sector][: length - sector * SECTOR], sector * SECTOR)
        finally:
            os.close(fd)
        return File(dict(kept), length, dict(kept), length)


def _mixture(items: Sequence[Item], newest: Choice, dice: random.Random) -> Choice:
    """Return a mixture of one of several kinds: what real disks do, and what none does yet."""
    kind = dice.randrange(6)
    at = dice.randrange(len(items))
    if kind == 0:  # One thing lost.
        return (*newest[:at], dice.randrange(items[at].states), *newest[at + 1 :])
    if kind == 1:  # One thing kept.
        return tuple(newest[i] if i == at else 0 for i in range(len(items)))
    if kind == 2:  # One file or folder kept, or lost.
        inode, kept = items[at].inode, dice.random() < 0.5
        return tuple(
            n if (item.inode == inode) == kept else 0 for item, n in zip(items, newest, strict=True)
        )
    if kind == 3:  # Pages, each whole in one of its states.
        pages = {(item.inode, item.page): dice.random() for item in items}
        return tuple(int(pages[item.inode, item.page] * item.states) for item in items)
    bias = 0.5 if kind == 4 else dice.random()
    return tuple(
        dice.randrange(item.states) if dice.random() < bias else n
        for item, n in zip(items, newest, strict=True)
    )


class Killed(BaseException):
    """The process ends between two calls, or within one."""


class ForgetfulPort(StoragePort):
    """Syncs nothing: what is looked at once needs no stable storage."""

    def fdatasync(self, fd: int) -> None:  # type: ignore[override]
        """Do nothing."""

    def fsync(self, fd: int) -> None:  # type: ignore[override]
        """Do nothing."""


class RecordingPort(StoragePort):
    """Carries out every call below one folder, keeps it in a `Disk`, and tells of each."""

    def __init__(self, root: Path, after_call: Callable[[], None]) -> None:
        self.root = root
        self.disk = Disk()
        self.calls_left: int | None = None
        """Calls until the process is killed; None is never."""
        self.dice = random.Random(0)
        self._after_call = after_call
        self._numbers = {root.stat().st_ino: 0}

    def adopt(self, disk: Disk) -> None:
        """Go on with a disk that has just been written out to the root."""
        self.disk = disk
        self._numbers = {}
        waiting = [(self.root, 0)]
        while waiting:
            path, number = waiting.pop()
            self._numbers[path.stat().st_ino] = number
            node = disk.nodes[number]
            if isinstance(node, Folder):
                waiting += [(path / name, child) for name, child in node.cached.items()]

    # --- the calls ---

    def pwrite(self, fd: int, data: Payload, offset: int) -> int:  # type: ignore[override]
        raw = bytes(data)
        self._dies_here(len(raw), lambda part: self._write(fd, raw[:part], offset))
        self._write(fd, raw, offset)
        self._after_call()
        return len(raw)

    def pwritev(self, fd: int, parts: Sequence[Payload], offset: int) -> int:  # type: ignore[override]
        return self.pwrite(fd, b"".join(bytes(part) for part in parts), offset)

    def ftruncate(self, fd: int, length: int) -> None:
        self._dies_here()
        os.ftruncate(fd, length)
        self._file(fd).resize(length)
        self._after_call()

    def fdatasync(self, fd: int) -> None:  # type: ignore[override]
        self._dies_here()
        self.disk.nodes[self._number(fd)].sync()
        self._after_call()

    def fsync(self, fd: int) -> None:  # type: ignore[override]
        self.fdatasync(fd)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> bool:
        self._dies_here()
        if not super().fallocate(fd, mode, offset, length):
            return False
        self._file(fd).zero(offset, length)
        self._after_call()
        return True

    def create(self, path: Path) -> int:
        self._dies_here()
        is_new = not path.exists()
        fd = super().create(path)
        if is_new:
            number = self._numbers[os.fstat(fd).st_ino] = self.disk.add(File())
            self._folder(path).change(lambda names: names.update({path.name: number}))
        else:
            self._file(fd).resize(0)
        self._after_call()
        return fd

    def mkdir(self, path: Path, mode: int = 0o777) -> None:  # type: ignore[override]
        self._dies_here()
        path.mkdir(mode)
        number = self._numbers[path.stat().st_ino] = self.disk.add(Folder())
        self._folder(path).change(lambda names: names.update({path.name: number}))
        self._after_call()

    def rename(self, source: Path, target: Path) -> None:  # type: ignore[override]
        self._dies_here()
        assert source.parent == target.parent
        source.rename(target)
        number = self._folder(source).cached[source.name]

        def change(names: dict[str, int]) -> None:
            # The name may have come and not reached the disk; the inode is known all the same.
            names.pop(source.name, None)
            names[target.name] = number

        self._folder(source).change(change)
        self._after_call()

    def unlink(self, path: Path) -> None:  # type: ignore[override]
        self._dies_here()
        path.unlink()
        self._folder(path).change(lambda names: names.pop(path.name, None))
        self._after_call()

    def rmtree(self, path: Path, ignore_errors: bool = False) -> None:  # type: ignore[override]
        if ignore_errors and not path.exists():
            return
        for each in sorted(path.iterdir()):
            if each.is_dir():
                self.rmtree(each)
            else:
                self.unlink(each)
        self._dies_here()
        path.rmdir()
        self._folder(path).change(lambda names: names.pop(path.name, None))
        self._after_call()

    # --- inside ---

    def _write(self, fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data, offset)
        self._file(fd).write(offset, data)

    def _dies_here(self, length: int = 0, partly: Callable[[int], None] | None = None) -> None:
        if self.calls_left is None:
            return
        if self.calls_left == 0:
            # A write that is killed may have reached the page cache in part, page by page.
            if partly is not None and length > PAGE and self.dice.random() < 0.5:
                partly(self.dice.randrange(1, length // PAGE + 1) * PAGE)
            raise Killed
        self.calls_left -= 1

    def _number(self, fd: int) -> int:
        return self._numbers[os.fstat(fd).st_ino]

    def _file(self, fd: int) -> File:
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        node = self.disk.nodes[self._number(fd)]
        assert isinstance(node, File)
        return node

    def _folder(self, path: Path) -> Folder:
        node = self.disk.nodes[self._numbers[path.parent.stat().st_ino]]
        assert isinstance(node, Folder)
        return node
