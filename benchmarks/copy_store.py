"""How fast one copy's store takes 4 KiB writes: a program to run, not a test.

Prints operations per second for random and sequential batches of several sizes, with what a bare
`os.pwrite` loop over the same offsets reaches beside it; the ratio is what the store costs. Runs in
a temporary directory below the one named on the command line (default: the current one).

    python benchmarks/copy_store.py [directory]
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from holdfast.local.copy_store import FileCopyStore, create_copy
from holdfast.messages import Op, OpKind
from holdfast.units import BLOCK_BYTES, GIB, CopyId, VolumeId, format_size, regions_of

SIZE_BYTES = GIB
SECONDS = 1.0
PAYLOAD = os.urandom(BLOCK_BYTES)


def batches(size: int, *, sequential: bool) -> list[list[Op]]:
    """Return batches of `size` writes, 20,000 in all, within 256 MiB so that pages stay cached."""
    dice, blocks = random.Random(1), (256 << 20) // BLOCK_BYTES
    offsets = (
        list(range(0, 20_000 * BLOCK_BYTES, BLOCK_BYTES))
        if sequential
        else [dice.randrange(blocks) * BLOCK_BYTES for _ in range(20_000)]
    )
    ops = [Op(OpKind.WRITE, offset, BLOCK_BYTES, PAYLOAD) for offset in offsets]
    return [ops[i : i + size] for i in range(0, len(ops), size)]


def rate(apply: Callable[[Sequence[Op]], None], work: list[list[Op]]) -> float:
    """Return operations per second, after one round to warm the page cache."""
    for batch in work:
        apply(batch)
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS:
        for batch in work:
            apply(batch)
            done += len(batch)
    return done / spent


def measure(store: FileCopyStore, directory: Path) -> None:
    """Print a table of rates."""
    fd = os.open(directory / "bare", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, SIZE_BYTES)

    def bare(ops: Sequence[Op]) -> None:
        for op in ops:
            os.pwrite(fd, op.data, op.offset)

    print(
        f"{'4 KiB writes':24} {'store, op/s':>12} {'pwrite, op/s':>13} {'ratio':>6} {'us more':>8}"
    )
    for sequential in (False, True):
        for size in (1, 32, 256):
            work = batches(size, sequential=sequential)
            ours, theirs = rate(store.apply, work), rate(bare, work)
            name = f"{'sequential' if sequential else 'random'}, batches of {size}"
            more = (1 / ours - 1 / theirs) * 1e6
            print(f"{name:24} {ours:12,.0f} {theirs:13,.0f} {ours / theirs:6.2f} {more:8.2f}")
    os.close(fd)
    start = time.perf_counter()
    left = store.refresh_hashes(1 << 20)
    spent = time.perf_counter() - start
    assert left == 0
    print(f"rehashing 256 MiB at {format_size((256 << 20) / spent)}/s")
    start = time.perf_counter()
    for region in range(64):
        store.mark_regions([region + 128])
    print(f"marking one region durably: {(time.perf_counter() - start) / 64 * 1e3:.2f} ms")


def main() -> None:
    """Make a copy, measure, and leave nothing."""
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    with tempfile.TemporaryDirectory(dir=place) as name:
        store = create_copy(
            Path(name) / "copy",
            cluster="benchmark",
            volume=VolumeId("0" * 32),
            copy=CopyId("1" * 32),
            size_bytes=SIZE_BYTES,
            hash_key="5a" * 32,
            boot="here",
        )
        try:
            store.save(attrs.evolve(store.superblock, clean=False))
            store.mark_regions(range(regions_of(SIZE_BYTES) // 2))
            measure(store, Path(name))
        finally:
            store.close()


if __name__ == "__main__":
    main()
