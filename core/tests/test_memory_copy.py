from __future__ import annotations

import random
import shutil
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ConflictError, CopyError, FaultReason
from holdfast.interfaces.copy import CopyStore, Superblock
from holdfast.local.copy_store import create_copy, open_copy
from holdfast.messages import Extent, Op, OpKind
from holdfast.testing.memory_copy import MemoryCopyStore, MemoryDisk
from holdfast.units import CHUNK_BYTES, MIB, CopyId, Epoch, VolumeId
from holdfast.units import Sequence as Position

SIZE = 5 * MIB
KEY = "5a" * 32
OTHER = CopyId("other")


def make_disk(size: int = SIZE) -> MemoryDisk:
    return MemoryDisk(
        Superblock(
            cluster="test",
            volume=VolumeId("v"),
            copy=CopyId("c"),
            incarnation="i",
            boot="first",
            epoch=Epoch(0),
            state="offline",
            durable=Position(0),
            applied=Position(0),
            clean=True,
            size_bytes=size,
            hash_key=KEY,
        )
    )


def opened(disk: MemoryDisk) -> MemoryCopyStore:
    store = MemoryCopyStore(disk, "first")
    store.save(attrs.evolve(store.superblock, clean=False))
    store.mark_regions([0, 1])
    return store


def write(offset: int, data: bytes) -> Op:
    return Op(OpKind.WRITE, offset, len(data), data)


def create_file_copy(directory: Path) -> CopyStore:
    return create_copy(
        directory,
        cluster="test",
        volume=VolumeId("v"),
        copy=CopyId("c"),
        size_bytes=SIZE,
        hash_key=KEY,
        boot="first",
    )


_OP = st.tuples(
    st.sampled_from([OpKind.WRITE, OpKind.DISCARD, OpKind.ZERO, OpKind.SYNC_ZERO, OpKind.FLUSH]),
    st.integers(0, 600),
    st.integers(1, 200),
    st.integers(0, 255),
)
_STEP = st.one_of(
    st.lists(_OP, max_size=6),
    st.tuples(st.sampled_from(["mark", "clear"]), st.sets(st.integers(0, 1))),
    st.sampled_from(["hash", "tree", "refresh", "kill", "stop", "grow", "dirty", "drop", "flush"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_STEP, max_size=15))
def test_the_store_in_memory_answers_as_the_one_on_disk(
    tmp_path_factory: pytest.TempPathFactory, steps: list[object]
) -> None:
    """A fake that is verified: the same calls, the same answers."""
    directory = tmp_path_factory.mktemp("twin") / "copy"
    disk = make_disk()
    pair: list[CopyStore] = [MemoryCopyStore(disk, "first"), create_file_copy(directory)]

    def same(*answers: object) -> None:
        assert answers[0] == answers[1]

    for step in steps:
        size = pair[0].superblock.size_bytes
        chunks = range(size // CHUNK_BYTES)
        match step:
            case list():
                ops = []
                for kind, block, count, fill in step:
                    if kind is OpKind.FLUSH:
                        ops.append(Op(kind, 0, 0))
                        continue
                    data = bytes([fill]) * (count * 512) if kind is OpKind.WRITE else b""
                    ops.append(Op(kind, block * 512, count * 512, data))
                for store in pair:
                    store.apply(ops)
            case ("mark", set() as regions):
                for store in pair:
                    store.mark_regions(regions)
            case ("clear", set() as regions):
                for store in pair:
                    store.clear_regions(regions)
            case "hash":
                same(*(store.hashes(chunks) for store in pair))
            case "tree":
                same(*(store.tree(1, [0, 1]) for store in pair))
            case "refresh":
                for store in pair:
                    store.refresh_hashes(3)
            case "flush":
                for store in pair:
                    store.flush()
            case "grow":
                for store in pair:
                    store.resize(size + 64 * 1024)
            case "dirty":
                for store in pair:
                    store.save_dirty(OTHER, bytes([len(steps)]) * 10)
            case "drop":
                for store in pair:
                    store.drop_dirty(OTHER)
            case _:
                for store in pair:
                    clean = step == "stop"
                    store.save(attrs.evolve(store.superblock, clean=clean))
                    store.close()
                pair = [MemoryCopyStore(disk, "second"), open_copy(directory, boot="second")]
                same(*((s.fresh, s.was_clean, s.rebooted) for s in pair))
        same(*(store.marked_regions() for store in pair))
        same(*(store.load_dirty(OTHER) for store in pair))
        same(*(store.dirty_maps() for store in pair))
        same(*(store.read(0, 600 * 512) for store in pair))
    same(*(store.hashes(range(100)) for store in pair))
    same(*(store.tree(2, [0]) for store in pair))
    for store in pair:
        store.close()
    shutil.rmtree(directory.parent)


def test_one_handle_at_a_time() -> None:
    disk = make_disk()
    store = MemoryCopyStore(disk, "first")
    assert store.fresh
    with pytest.raises(ConflictError):
        MemoryCopyStore(disk, "first")
    disk.crash()
    with pytest.raises(CopyError, match="closed"):
        store.flush()
    again = MemoryCopyStore(disk, "second")
    assert (again.fresh, again.rebooted, again.was_clean) == (False, True, True)


@given(st.integers(0, 1000))
def test_a_power_loss_keeps_what_was_flushed_and_any_part_of_what_was_not(seed: int) -> None:
    disk = make_disk()
    store = opened(disk)
    store.apply([write(0, b"a" * 16384)])
    store.flush()
    store.apply([write(4096, b"b" * 4096), write(4096, b"c" * 4096), write(12288, b"d" * 512)])
    assert disk.unflushed_blocks() == {1, 3}
    disk.power_loss(random.Random(seed))
    after = MemoryCopyStore(disk, "second")
    content = after.read(0, 16384)
    assert content[:4096] + content[8192:12288] + content[12800:] == b"a" * (8192 + 3584)
    assert set(content[4096:8192]) <= set(b"abc")
    assert all(len(set(content[at : at + 512])) == 1 for at in range(0, 16384, 512))
    assert content[12288:12800] in {b"a" * 512, b"d" * 512}
    assert after.marked_regions() >= {0, 1}
    assert after.hashes([0]) == clean_hash(content)


def clean_hash(content: bytes) -> bytes:
    other = opened(make_disk())
    other.apply([write(0, content)])
    return other.hashes([0])


def test_every_outcome_of_a_power_loss_happens() -> None:
    outcomes = set()
    for seed in range(200):
        disk = make_disk()
        store = opened(disk)
        store.apply([write(0, b"a" * 4096), write(4096, b"b" * 4096)])
        disk.power_loss(random.Random(seed))
        content = MemoryCopyStore(disk, "second").read(0, 8192)
        outcomes.add((len(set(content[:4096])), content[0], content[4096]))
    assert {(1, 0, 0), (1, 97, 0), (1, 0, 98), (1, 97, 98)} <= outcomes
    assert any(torn == 2 for torn, _, _ in outcomes)


def test_an_unmarking_may_be_lost_but_never_a_mark() -> None:
    seen = set()
    for seed in range(40):
        disk = make_disk()
        store = opened(disk)
        store.clear_regions([0])
        disk.power_loss(random.Random(seed))
        seen.add(MemoryCopyStore(disk, "second").marked_regions())
    assert seen == {frozenset({1}), frozenset({0, 1})}


def test_a_failed_flush_is_final_and_what_it_covered_is_never_made_durable() -> None:
    disk = make_disk()
    store = opened(disk)
    store.apply([write(0, b"x" * 4096)])
    disk.fail("flush", FaultReason.FLUSH_FAILED)
    with pytest.raises(CopyError) as caught:
        store.flush()
    assert caught.value.reason is FaultReason.FLUSH_FAILED
    with pytest.raises(CopyError):
        store.read(0, 512)
    disk.crash()
    again = MemoryCopyStore(disk, "first")
    assert again.read(0, 4096) == b"x" * 4096
    again.flush()
    lost = set()
    for seed in range(20):
        twin = disk.clone()
        twin.power_loss(random.Random(seed))
        lost.add(MemoryCopyStore(twin, "second").read(0, 1))
    assert lost == {b"x", b"\0"}


def test_faults_strike_when_planned() -> None:
    disk = make_disk()
    store = opened(disk)
    disk.fail("apply", FaultReason.NO_SPACE, after=1)
    store.apply([write(0, b"a" * 512)])
    with pytest.raises(CopyError) as caught:
        store.apply([write(0, b"b" * 512), write(512, b"b" * 512)])
    assert caught.value.reason is FaultReason.NO_SPACE
    assert store.read(0, 1024) == b"b" * 512 + bytes(512)
    disk.fail("read", FaultReason.IO_ERROR)
    with pytest.raises(CopyError):
        store.read(0, 512)
    store.read(0, 512)
    disk.fail("save", FaultReason.FLUSH_FAILED, done=True)
    with pytest.raises(CopyError):
        store.save(attrs.evolve(store.superblock, epoch=Epoch(9)))
    disk.crash()
    assert MemoryCopyStore(disk, "first").superblock.epoch == 9


def test_rot_and_misplaced_writes_go_unnoticed_until_bytes_are_hashed_anew() -> None:
    disk = make_disk()
    store = opened(disk)
    store.apply([write(0, b"a" * 8192)])
    before = store.hashes([0])
    disk.rot(5)
    assert store.read(5, 1) == b"`"
    assert store.hashes([0]) == before
    disk.misdirect_next_write(CHUNK_BYTES)
    store.apply([write(0, b"z" * 512)])
    assert store.read(0, 1) == b"a"
    assert store.read(CHUNK_BYTES, 512) == b"z" * 512
    disk.misdirect_next_write(-1)
    store.apply([write(0, b"z" * 512)])
    assert store.read(0, 1) == b"a"


def test_holes_are_told_and_cost_nothing() -> None:
    store = opened(make_disk(1 << 36))
    store.apply([write(CHUNK_BYTES, b"x" * 4096), Op(OpKind.DISCARD, 0, 1 << 36)])
    assert store.used_bytes() == 0
    store.apply([write(CHUNK_BYTES, b"x" * 4096)])
    assert store.zero_chunks([0, 1, 2]) == [True, False, True]
    assert store.extents(0, 2 * CHUNK_BYTES) == [
        Extent(CHUNK_BYTES, is_hole=True),
        Extent(4096, is_hole=False),
        Extent(CHUNK_BYTES - 4096, is_hole=True),
    ]


def test_a_clone_goes_its_own_way() -> None:
    disk = make_disk()
    opened(disk).apply([write(0, b"a" * 4096)])
    twin = disk.clone()
    opened(twin).apply([write(0, b"b" * 4096)])
    assert (disk.block(0)[:1], twin.block(0)[:1]) == (b"a", b"b")
