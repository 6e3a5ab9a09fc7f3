from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import (
    ConflictError,
    CopyError,
    FaultReason,
    IntegrityError,
    NotFoundError,
    UsageError,
)
from holdfast.local.copy import files, hashes, superblock
from holdfast.local.copy.bitmap_file import BITS_PER_SECTOR, SECTOR_BYTES
from holdfast.local.copy_store import (
    FileCopyStore,
    create_copy,
    delete_copy,
    open_copy,
    read_superblock,
)
from holdfast.messages import Extent, Op, OpKind
from holdfast.sync.hashlist import ZERO_HASH, chunk_hash
from holdfast.units import CHUNK_BYTES, MIB, REGION_BYTES, CopyId, Epoch, VolumeId
from holdfast.units import Sequence as Position

KEY = bytes(range(32))
SIZE = 10 * MIB + 512  # Neither regions nor chunks come out even.
CHUNKS = SIZE // CHUNK_BYTES + 1
OTHER = CopyId("e" * 32)


def make(directory: Path, *, size: int = SIZE, used: bool = True) -> FileCopyStore:
    store = create_copy(
        directory,
        cluster="test",
        volume=VolumeId("a" * 32),
        copy=CopyId("b" * 32),
        size_bytes=size,
        hash_key=KEY.hex(),
        boot="first",
    )
    store.debug = True
    if used:
        begin(store)
    return store


def begin(store: FileCopyStore) -> None:
    """What an owner does before the first apply."""
    store.debug = True
    store.save(attrs.evolve(store.superblock, clean=False))
    store.mark_regions(range(-(-store.superblock.size_bytes // REGION_BYTES)))


def write(offset: int, data: bytes) -> Op:
    return Op(OpKind.WRITE, offset, len(data), data)


def right_hashes(content: bytes | bytearray) -> list[bytes]:
    return [
        chunk_hash(content[at : at + CHUNK_BYTES], KEY)
        for at in range(0, len(content), CHUNK_BYTES)
    ]


def told_hashes(store: FileCopyStore) -> list[bytes]:
    raw = store.hashes(range(-(-store.superblock.size_bytes // CHUNK_BYTES)))
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "copy"


@pytest.fixture
def store(directory: Path) -> Iterator[FileCopyStore]:
    store = make(directory)
    yield store
    store.close()


# --- making, opening, removing -----------------------------------------------------------------


def test_a_new_copy_is_fresh_clean_and_reads_as_zeros(directory: Path) -> None:
    store = make(directory, used=False)
    assert (store.fresh, store.was_clean, store.rebooted) == (True, True, False)
    assert store.read(SIZE - 512, 512) == bytes(512)
    assert store.hashes([0, CHUNKS - 1]) == ZERO_HASH * 2
    assert store.tree(1, [0]) == ZERO_HASH
    assert len(store.superblock.incarnation) == 32
    assert store.marked_regions() == frozenset()
    store.close()


def test_what_was_saved_is_there_after_reopening(directory: Path) -> None:
    store = make(directory)
    store.apply([write(CHUNK_BYTES, b"x" * 4096)])
    store.flush()
    saved = attrs.evolve(
        store.superblock, epoch=Epoch(7), durable=Position(3), applied=Position(3), clean=True
    )
    store.save(saved)
    store.close()
    again = open_copy(directory, boot="first")
    assert again.superblock == attrs.evolve(saved, generation=store.superblock.generation)
    assert (again.fresh, again.was_clean, again.rebooted) == (False, True, False)
    assert again.repaired == ()
    assert again.read(CHUNK_BYTES, 4096) == b"x" * 4096
    again.close()
    assert read_superblock(directory) == again.superblock


def test_another_boot_id_and_an_unclean_end_are_told(directory: Path) -> None:
    make(directory).close()
    store = open_copy(directory, boot="second")
    assert (store.was_clean, store.rebooted) == (False, True)
    store.close()


def test_a_copy_is_never_made_over_something(directory: Path) -> None:
    directory.mkdir()
    with pytest.raises(ConflictError, match="already something"):
        make(directory)
    assert list(directory.iterdir()) == []


def test_what_an_interrupted_making_left_is_no_copy_and_does_not_hinder(tmp_path: Path) -> None:
    (tmp_path / ".copy.new").mkdir()
    (tmp_path / ".copy.new" / "data").write_bytes(b"half")
    with pytest.raises(NotFoundError):
        open_copy(tmp_path / "copy", boot="first")
    make(tmp_path / "copy").close()
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    with file_size_limited(4096), pytest.raises(CopyError) as caught:
        make(tmp_path / "copy")
    assert caught.value.reason is FaultReason.NO_SPACE
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        create_copy(
            tmp_path / "copy",
            cluster="test",
            volume=VolumeId("a"),
            copy=CopyId("b"),
            size_bytes=512,
            hash_key="secret",
            boot="",
        )
    assert list(tmp_path.iterdir()) == []


def test_an_open_copy_is_locked_against_opening_and_removing(
    store: FileCopyStore, directory: Path
) -> None:
    for attempt in (lambda: open_copy(directory, boot="first"), lambda: delete_copy(directory)):
        with pytest.raises(ConflictError, match=str(directory)):
            attempt()
    store.close()
    store.close()
    open_copy(directory, boot="first").close()


def test_a_removed_copy_is_gone_and_removing_it_again_is_nothing(directory: Path) -> None:
    make(directory).close()
    delete_copy(directory)
    delete_copy(directory)
    assert list(directory.parent.iterdir()) == []


def test_a_directory_that_holds_no_copy_is_told_apart_from_a_lost_copy(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_copy(tmp_path / "none", boot="first")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "precious").write_text("not ours")
    with pytest.raises(CopyError) as caught:
        open_copy(tmp_path / "foreign", boot="first")
    assert caught.value.reason is FaultReason.WRONG_IDENTITY
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["precious"]
    make(tmp_path / "copy").close()
    (tmp_path / "copy" / "superblock").unlink()
    with pytest.raises(IntegrityError, match="no file superblock"):
        open_copy(tmp_path / "copy", boot="first")


def test_a_closed_store_refuses_instead_of_using_a_number_that_is_another_file_by_now(
    directory: Path,
) -> None:
    store = make(directory)
    store.close()
    for attempt in (store.flush, lambda: store.read(0, 512), lambda: store.apply([])):
        with pytest.raises(CopyError, match="is closed"):
            attempt()


# --- the superblock ----------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("offset", [0, 12, 16, 24, 40, 4095])
def test_one_damaged_slot_is_made_good_from_the_other(
    directory: Path, slot: int, offset: int
) -> None:
    store = make(directory)
    store.save(attrs.evolve(store.superblock, epoch=Epoch(9), clean=True))
    store.close()
    flip(directory / "superblock", slot * 4096 + offset)
    again = open_copy(directory, boot="first")
    # Both slots hold the newest, so nothing is forgotten; yet nothing is taken for clean.
    assert again.superblock.epoch == 9
    assert not again.was_clean
    assert f"Slot {slot}" in again.repaired[0]
    again.save(attrs.evolve(again.superblock, epoch=Epoch(10)))
    again.close()
    last = open_copy(directory, boot="first")
    assert (last.superblock.epoch, last.repaired) == (10, ())
    last.close()


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 2048, 4095])
def test_a_save_torn_by_a_power_loss_leaves_the_one_before(directory: Path, cut: int) -> None:
    store = make(directory)
    before = (directory / "superblock").read_bytes()
    generation = store.superblock.generation
    store.save(attrs.evolve(store.superblock, epoch=Epoch(5)))
    after = (directory / "superblock").read_bytes()
    store.close()
    # Both slots held the old one; whichever is written first, the other is still whole.
    for slot in (0, 1):
        at = slot * 4096
        torn = bytearray(before)
        torn[at : at + cut] = after[at : at + cut]
        (directory / "superblock").write_bytes(torn)
        again = open_copy(directory, boot="first")
        # The bytes that differ are in the first 512, so with those the new one is whole.
        assert again.superblock.epoch in ({0, 5} if cut >= 511 else {0})
        assert again.superblock.generation in {generation, generation + 1}
        again.close()


def test_every_save_survives_the_loss_of_the_slot_written_last(directory: Path) -> None:
    store = make(directory)
    for epoch in range(1, 6):
        durable = (directory / "superblock").read_bytes()
        store.save(attrs.evolve(store.superblock, epoch=Epoch(epoch)))
        now = (directory / "superblock").read_bytes()
        for slot in (0, 1):
            mixed = bytearray(now)
            mixed[slot * 4096 : (slot + 1) * 4096] = durable[slot * 4096 : (slot + 1) * 4096]
            clone = directory.parent / f"clone-{epoch}-{slot}"
            shutil.copytree(directory, clone)
            (clone / "superblock").write_bytes(mixed)
            again = open_copy(clone, boot="first")
            assert again.superblock.epoch == epoch
            again.close()
    store.close()


def test_a_save_never_takes_a_growth_back(store: FileCopyStore) -> None:
    old = store.superblock
    store.resize(SIZE * 2)
    store.save(attrs.evolve(old, epoch=Epoch(4)))
    assert (store.superblock.epoch, store.superblock.size_bytes) == (4, SIZE * 2)


def test_two_damaged_slots_are_a_lost_copy(directory: Path) -> None:
    make(directory).close()
    flip(directory / "superblock", 100)
    flip(directory / "superblock", 4096 + 100)
    before = (directory / "superblock").read_bytes()
    with pytest.raises(IntegrityError, match="is lost") as caught:
        open_copy(directory, boot="first")
    assert caught.value.reason is FaultReason.CORRUPT
    assert (directory / "superblock").read_bytes() == before


def test_slots_that_contradict_each_other_are_a_lost_copy(directory: Path) -> None:
    store = make(directory)
    other = superblock.encode_slot(attrs.evolve(store.superblock, epoch=Epoch(99)))
    store.close()
    with (directory / "superblock").open("r+b") as file:
        file.write(other)
    with pytest.raises(IntegrityError, match="two things at once"):
        open_copy(directory, boot="first")


def test_a_newer_format_is_refused_with_the_remedy_and_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(superblock, "FORMAT_VERSION", superblock.FORMAT_VERSION + 1)
        make(directory).close()
    with pytest.raises(CopyError, match="Upgrade Holdfast") as caught:
        open_copy(directory, boot="first")
    assert not isinstance(caught.value, IntegrityError)


# --- data --------------------------------------------------------------------------------------


def test_operations_take_effect_in_their_order(store: FileCopyStore) -> None:
    store.apply(
        [
            write(0, b"a" * 8192),
            write(8192, memoryview(b"b" * 4096)),  # type: ignore[arg-type]
            Op(OpKind.FLUSH, 0, 0),
            Op(OpKind.ZERO, 4096, 512),
            write(4096, b"c" * 512),
            Op(OpKind.DISCARD, 0, 512),
            Op(OpKind.SYNC_WRITE, 12288, 512, bytearray(b"d" * 512)),
            Op(OpKind.SYNC_ZERO, 8192, 1024),
        ]
    )
    expected = bytearray(b"a" * 8192 + b"b" * 4096 + b"d" * 512)
    expected[4096:4608] = b"c" * 512
    expected[:512] = bytes(512)
    expected[8192:9216] = bytes(1024)
    assert store.read(0, len(expected)) == expected


def test_more_adjacent_writes_than_the_kernel_takes_at_once(store: FileCopyStore) -> None:
    ops = [write(i * 512, bytes([i % 251]) * 512) for i in range(files.IOV_MAX * 2 + 3)]
    store.apply(ops)
    assert store.read(0, len(ops) * 512) == b"".join(bytes(op.data) for op in ops)


def test_discarded_space_is_given_back_and_zeroed_space_is_kept(store: FileCopyStore) -> None:
    store.apply([write(0, os.urandom(4 * MIB))])
    store.flush()
    full = store.used_bytes()
    store.apply([Op(OpKind.ZERO, 0, MIB)])
    store.flush()
    assert store.used_bytes() >= full
    store.apply([Op(OpKind.DISCARD, 512, 3 * MIB), Op(OpKind.SYNC_ZERO, 3 * MIB + 512, 512)])
    store.flush()
    assert store.used_bytes() <= full - 2 * MIB
    assert store.read(512, 3 * MIB + 512) == bytes(3 * MIB + 512)
    assert store.read(3 * MIB + 1024, 512) != bytes(512)


def test_where_the_kernel_cannot_punch_or_zero_zeros_are_written(
    store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.apply([write(0, b"x" * (2 * MIB + 4096))])
    monkeypatch.setattr(files, "_fallocate", None)
    store.apply([Op(OpKind.DISCARD, 512, MIB + 512), Op(OpKind.ZERO, 2 * MIB, 512)])
    assert store.read(0, 512) == b"x" * 512
    assert store.read(512, MIB + 512) == bytes(MIB + 512)
    assert store.read(2 * MIB - 512, 1536) == b"x" * 512 + bytes(512) + b"x" * 512


def test_where_only_aligned_holes_can_be_punched_the_ends_are_written(
    store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = files._try_fallocate, []

    def aligned_only(fd: int, mode: int, offset: int, length: int) -> bool:
        if offset % 4096 or length % 4096:  # As a block device with 4 KiB sectors does.
            refused.append(offset)
            return False
        return real(fd, mode, offset, length)

    monkeypatch.setattr(files, "_try_fallocate", aligned_only)
    store.apply(
        [write(0, b"x" * MIB), Op(OpKind.DISCARD, 512, 16384), Op(OpKind.DISCARD, 65536, 512)]
    )
    assert refused == [512, 65536]
    assert store.read(0, 17408) == b"x" * 512 + bytes(16384) + b"x" * 512
    assert store.read(65536, 1024) == bytes(512) + b"x" * 512


def test_holes_are_told_as_holes(store: FileCopyStore) -> None:
    store.apply([write(2 * CHUNK_BYTES, b"x" * CHUNK_BYTES)])
    assert store.zero_chunks([0, 1, 2, 3, CHUNKS - 1]) == [True, True, False, True, True]
    assert store.extents(0, 4 * CHUNK_BYTES) == [
        Extent(2 * CHUNK_BYTES, is_hole=True),
        Extent(CHUNK_BYTES, is_hole=False),
        Extent(CHUNK_BYTES, is_hole=True),
    ]
    assert store.extents(SIZE - 512, 512) == [Extent(512, is_hole=True)]


def test_islands_are_told_apart_no_finer_than_asked(store: FileCopyStore) -> None:
    for block in range(0, 32, 2):
        store.apply([write(CHUNK_BYTES + block * 4096, b"x" * 4096)])
    fine = store.extents(0, 4 * CHUNK_BYTES)
    assert len(fine) == 33
    assert sum(extent.length for extent in fine if not extent.is_hole) == 16 * 4096
    for start in (0, 4096):
        assert store.extents(start, 4 * CHUNK_BYTES - start, grain=CHUNK_BYTES) == [
            Extent(CHUNK_BYTES - start, is_hole=True),
            Extent(2 * CHUNK_BYTES, is_hole=False),
            Extent(CHUNK_BYTES, is_hole=True),
        ]


def test_a_large_volume_of_nothing_takes_next_to_no_space(directory: Path) -> None:
    store = make(directory, size=1 << 40)
    store.apply([write((1 << 40) - 4096, b"x" * 4096)])
    store.flush()
    store.clear_regions([0])
    assert store.used_bytes() < 4 * MIB  # 2 MiB of which are a bit per chunk.
    assert store.hashes([0, (1 << 24) - 1])[:16] == ZERO_HASH
    store.close()


# --- errors ------------------------------------------------------------------------------------


@contextmanager
def file_size_limited(size: int) -> Iterator[None]:
    """A limit that makes writes beyond `size` fail as a full file system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def failing(fd: int) -> Iterator[None]:
    """In place of a file, a pipe: it can neither be synced nor read at an offset."""
    saved = os.dup(fd)
    reader, writer = os.pipe()
    os.dup2(writer, fd)
    try:
        yield
    finally:
        os.dup2(saved, fd)
        for each in (saved, reader, writer):
            os.close(each)


def test_no_space_is_told_apart(store: FileCopyStore) -> None:
    with file_size_limited(MIB), pytest.raises(CopyError, match="copy/data") as caught:
        store.apply([write(2 * MIB, b"x" * 4096)])
    assert caught.value.reason is FaultReason.NO_SPACE
    assert "Free space" in caught.value.hint
    for code in (errno.ENOSPC, errno.EDQUOT):
        assert files.copy_error(OSError(code, "full"), "x").reason is FaultReason.NO_SPACE


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_file_system_is_no_space_and_nothing_worse(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount")
    try:
        store = make(place / "copy")
        with pytest.raises(CopyError) as caught:
            store.apply([write(0, b"x" * MIB)])
        assert caught.value.reason is FaultReason.NO_SPACE
        # The hash file is sparse too: to put a hash takes space, and there is none.
        with pytest.raises(CopyError) as caught:
            store.hashes(range(CHUNKS))
        assert caught.value.reason is FaultReason.NO_SPACE
        assert store.read(0, 4096) == b"x" * 4096
        store.close()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_error_is_told_apart(store: FileCopyStore) -> None:
    with failing(store._data._fd):
        for attempt in (lambda: store.read(0, 512), lambda: store.apply([write(0, b"x" * 512)])):
            with pytest.raises(CopyError) as caught:
                attempt()
            assert caught.value.reason is FaultReason.IO_ERROR
    assert store.read(0, 512) == bytes(512)


def test_after_a_failed_flush_everything_is_refused(store: FileCopyStore) -> None:
    with failing(store._data._fd), pytest.raises(CopyError) as caught:
        store.flush()
    assert caught.value.reason is FaultReason.FLUSH_FAILED
    for attempt in (
        store.flush,
        lambda: store.apply([]),
        lambda: store.read(0, 512),
        lambda: store.mark_regions([1]),
        lambda: store.clear_regions([1]),
        lambda: store.hashes([0]),
        lambda: store.save(store.superblock),
        lambda: store.save_dirty(OTHER, b""),
    ):
        with pytest.raises(CopyError, match="refuses everything") as caught:
            attempt()
        assert caught.value.reason is FaultReason.FLUSH_FAILED


def test_a_failed_flush_counts_as_a_restart_of_the_machine(directory: Path) -> None:
    store = make(directory)
    with failing(store._data._fd), pytest.raises(CopyError):
        store.flush()
    store.close()
    again = open_copy(directory, boot="first")
    assert again.rebooted
    assert not again.was_clean
    again.close()


def test_a_failed_marking_is_never_taken_for_done(store: FileCopyStore) -> None:
    store.clear_regions([1])
    with failing(store._intent._fd), pytest.raises(CopyError):
        store.mark_regions([1])
    with pytest.raises(CopyError, match="refuses everything"):
        store.mark_regions([1])


# --- write intent ------------------------------------------------------------------------------


def test_marks_are_kept_and_cleared(directory: Path) -> None:
    store = make(directory, used=False)
    store.mark_regions([0, 2])
    store.mark_regions([2])
    assert store.marked_regions() == {0, 2}
    store.clear_regions([0, 1])
    store.close()
    again = open_copy(directory, boot="first")
    assert again.marked_regions() == {2}
    again.close()


CHILD = """
import os, sys
import attrs
from pathlib import Path
from holdfast.local.copy_store import open_copy
from holdfast.messages import Op, OpKind
store = open_copy(Path(sys.argv[1]), boot="first")
store.save(attrs.evolve(store.superblock, clean=False))
store.refresh_hashes(1000)
store.clear_regions(range(3))
store.mark_regions([1])
store.apply([Op(OpKind.WRITE, 4 << 20, 4096, b"k" * 4096)])
store.hashes([64])
store.apply([Op(OpKind.WRITE, (4 << 20) + 4096, 4096, b"l" * 4096)])
print("ready", flush=True)
sys.stdin.read()
"""


def test_intent_survives_the_kill_of_the_process_and_its_regions_are_rehashed(
    directory: Path,
) -> None:
    make(directory).close()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(ConflictError):
            open_copy(directory, boot="first")
        child.send_signal(signal.SIGKILL)
        child.wait()
    store = open_copy(directory, boot="first")
    assert (store.was_clean, store.rebooted) == (False, False)
    assert store.marked_regions() == {1}
    content = store.read(0, SIZE)
    assert content[4 * MIB : 4 * MIB + 8192] == b"k" * 4096 + b"l" * 4096
    assert store.refresh_hashes(0) == REGION_BYTES // CHUNK_BYTES
    assert told_hashes(store) == right_hashes(content)
    assert store.refresh_hashes(0) == 0
    store.close()


def test_a_map_from_another_copy_counts_as_all_marked(tmp_path: Path) -> None:
    make(tmp_path / "one", used=False).close()
    make(tmp_path / "two", used=False).close()
    shutil.copy(tmp_path / "one" / "intent", tmp_path / "two" / "intent")
    store = open_copy(tmp_path / "two", boot="first")
    assert store.marked_regions() == {0, 1, 2}
    assert "intent" in store.repaired[0]
    store.close()


def test_a_damaged_sector_marks_only_what_it_covers(directory: Path) -> None:
    regions = BITS_PER_SECTOR * 3
    make(directory, size=regions * REGION_BYTES, used=False).close()
    flip(directory / "intent", SECTOR_BYTES + 77)
    store = open_copy(directory, boot="first")
    assert store.marked_regions() == frozenset(range(BITS_PER_SECTOR, BITS_PER_SECTOR * 2))
    store.clear_regions(store.marked_regions())
    store.close()
    again = open_copy(directory, boot="first")
    assert (again.marked_regions(), again.repaired) == (frozenset(), ())
    again.close()


# --- hashes ------------------------------------------------------------------------------------

_BLOCKS = 4 * CHUNK_BYTES // 512
_OPS = st.lists(
    st.tuples(
        st.sampled_from([OpKind.WRITE, OpKind.SYNC_WRITE, OpKind.DISCARD, OpKind.ZERO]),
        st.integers(0, _BLOCKS - 1),
        st.integers(1, 140),
        st.integers(0, 255),
    ),
    max_size=8,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.one_of(
            _OPS,
            st.sampled_from(["hash", "tree", "refresh", "clear", "kill", "restart", "grow"]),
        ),
        max_size=12,
    )
)
def test_the_hashes_are_always_those_of_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[object]
) -> None:
    directory = tmp_path_factory.mktemp("hashes") / "copy"
    size = _BLOCKS * 512 - 1024
    store = make(directory, size=size)
    content = bytearray(size)
    for step in steps:
        match step:
            case list():
                ops = []
                for kind, block, count, fill in step:
                    offset = min(block * 512, len(content) - 512)
                    length = min(count * 512, len(content) - offset)
                    data = bytes([fill]) * length if "WRITE" in kind.name else b""
                    ops.append(Op(kind, offset, length, data))
                    content[offset : offset + length] = data or bytes(length)
                store.apply(ops)
            case "hash":
                assert told_hashes(store) == right_hashes(content)
            case "tree":
                store.tree(1, [0])
            case "refresh":
                store.refresh_hashes(1)
            case "clear":
                store.clear_regions([0])
                store.mark_regions([0])
            case "kill" | "restart":
                if step == "restart":
                    store.save(attrs.evolve(store.superblock, clean=True))
                store.close()
                store = open_copy(directory, boot="first")
                begin(store)
            case _:
                store.resize(len(content) + 512)
                content += bytes(512)
    assert store.read(0, len(content)) == content
    assert told_hashes(store) == right_hashes(content)
    other = make(directory.with_name("other"), size=len(content))
    other.apply([write(0, bytes(content))])
    assert other.tree(1, [0]) == store.tree(1, [0])
    for each in (store, other):
        each.close()
    shutil.rmtree(directory.parent)


def test_hashing_beside_writing_never_leaves_a_wrong_hash(store: FileCopyStore) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def hash_on() -> None:
        try:
            while not done.is_set():
                store.hashes(range(CHUNKS))
                store.refresh_hashes(7)
                store.tree(1, [0])
        except BaseException as error:  # noqa: BLE001  # A thread has no other way to fail a test.
            failures.append(error)

    hashers = [threading.Thread(target=hash_on) for _ in range(2)]
    for hasher in hashers:
        hasher.start()
    dice = random.Random(4)
    for number in range(300):
        data = dice.randbytes(4096)
        store.apply([write(dice.randrange(SIZE // 4096) * 4096, data) for _ in range(8)])
        if number % 50 == 0:
            store.clear_regions([2])
            store.mark_regions([2])
    done.set()
    for hasher in hashers:
        hasher.join()
    assert failures == []
    assert told_hashes(store) == right_hashes(store.read(0, SIZE))


def test_notes_of_many_writes_are_taken_before_they_pile_up(store: FileCopyStore) -> None:
    wide = [write(CHUNK_BYTES - 512, b"x" * 1024)] * 256
    for _ in range(40):
        store.apply(wide)
    assert len(store._hashes._noted_runs) <= 8192 + 256
    store.apply([write(0, b"x" * 512)] * 256)
    assert store._hashes._noted == {0}


def test_notes_of_many_chunks_are_taken_before_they_pile_up(
    store: FileCopyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_NOTES_MAX", 8)
    for chunk in range(20):
        store.apply([write(chunk * CHUNK_BYTES, b"x" * 512)])
        assert len(store._hashes._noted) <= 8
    assert told_hashes(store) == right_hashes(store.read(0, SIZE))
    assert not store._hashes._noted


def test_refreshing_goes_round_and_ends(store: FileCopyStore) -> None:
    store.apply([write(chunk * CHUNK_BYTES, b"x" * 512) for chunk in range(20)])
    assert [store.refresh_hashes(8) for _ in range(4)] == [12, 4, 0, 0]
    assert told_hashes(store) == right_hashes(store.read(0, SIZE))


@pytest.mark.parametrize("asked", ["hashes", "tree", "refresh"])
def test_a_flipped_bit_among_the_hashes_makes_them_unknown_and_is_mended(
    directory: Path, asked: str
) -> None:
    store = make(directory)
    store.apply([write(chunk * CHUNK_BYTES, b"x" * 512) for chunk in range(40)])
    right = right_hashes(store.read(0, SIZE))
    assert told_hashes(store) == right
    root = store.tree(1, [0])
    store.save(attrs.evolve(store.superblock, clean=True))
    store.close()
    for offset in (0, 100, 500, 511, 515):
        flip(directory / "hashes", offset, 0x10)
        again = open_copy(directory, boot="first")
        match asked:
            case "hashes":
                assert told_hashes(again) == right
            case "tree":
                assert again.tree(1, [0]) == root
            case _:
                again.apply([write(2 * CHUNK_BYTES, b"x" * 512)])
                assert again.refresh_hashes(1) == (30 if offset < 512 else 0)
        again.close()
        # What was unknown is so on disk before its sector is written, whatever is cut off then.
        last = open_copy(directory, boot="first")
        assert told_hashes(last) == right
        last.save(attrs.evolve(last.superblock, clean=True))
        last.close()


def test_a_copy_of_format_1_gets_a_list_with_checksums(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(superblock, "FORMAT_VERSION", 1)
        store = make(directory)
        store.apply([write(40 * CHUNK_BYTES, b"x" * 512)])
        right = right_hashes(store.read(0, SIZE))
        store.clear_regions([0, 1, 2])
        store.save(attrs.evolve(store.superblock, clean=True))
        store.close()
    # Sixteen bytes a chunk and nothing else; made longer by a growth that was cut short.
    (directory / "hashes").write_bytes(b"".join(right) + bytes(8192))
    again = open_copy(directory, boot="first")
    assert (again.was_clean, again.repaired) == (True, ())
    assert told_hashes(again) == right
    again.close()
    last = open_copy(directory, boot="first")
    assert last._opened().superblock.format_version == 2
    assert told_hashes(last) == right
    last.close()


# --- dirty maps --------------------------------------------------------------------------------


def test_dirty_maps_are_kept_replaced_and_forgotten(directory: Path) -> None:
    store = make(directory)
    assert store.load_dirty(OTHER) is None
    store.save_dirty(OTHER, b"\1" * 20)
    store.save_dirty(OTHER, b"\2" * 21)
    (directory / "dirty" / "interrupted.new").write_bytes(b"half")
    store.close()
    again = open_copy(directory, boot="first")
    assert again.dirty_maps() == (OTHER,)
    assert again.load_dirty(OTHER) == b"\2" * 21
    again.drop_dirty(OTHER)
    again.drop_dirty(OTHER)
    assert again.dirty_maps() == ()
    again.close()


def test_an_id_that_leads_out_of_the_directory_is_refused(store: FileCopyStore) -> None:
    for name in ("../superblock", "", ".x", "a/b"):
        with pytest.raises(UsageError):
            store.save_dirty(CopyId(name), b"")


# --- growing -----------------------------------------------------------------------------------


def test_growing_keeps_the_bytes_and_adds_zeros(directory: Path) -> None:
    store = make(directory)
    store.apply([write(SIZE - 512, b"x" * 512)])
    store.hashes(range(CHUNKS))
    store.resize(SIZE + 50 * MIB)
    assert store.superblock.size_bytes == SIZE + 50 * MIB
    store.mark_regions([2, 15])
    store.apply([write(SIZE + 50 * MIB - 512, b"y" * 512)])
    content = store.read(0, SIZE + 50 * MIB)
    assert content == bytes(SIZE - 512) + b"x" * 512 + bytes(50 * MIB - 512) + b"y" * 512
    assert told_hashes(store) == right_hashes(content)
    with pytest.raises(ConflictError, match="cannot shrink"):
        store.resize(SIZE)
    store.flush()
    store.close()
    again = open_copy(directory, boot="first")
    assert again.read(0, SIZE + 50 * MIB) == content
    assert 15 in again.marked_regions()
    again.close()


def test_a_growing_cut_short_leaves_the_old_size(directory: Path) -> None:
    store = make(directory)
    old = (directory / "superblock").read_bytes()
    store.apply([write(0, b"x" * 512)])
    store.resize(SIZE * 2)
    store.close()
    (directory / "superblock").write_bytes(old)
    again = open_copy(directory, boot="first")
    assert again.superblock.size_bytes == SIZE
    assert told_hashes(again) == right_hashes(again.read(0, SIZE))
    again.resize(SIZE * 3)
    assert told_hashes(again) == right_hashes(again.read(0, SIZE * 3))
    again.close()


# --- damage ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["superblock", "intent", "stale", "hashes", "dirty/" + OTHER, "data"]),
    clean=st.booleans(),
    cut=st.one_of(st.none(), st.integers(0, 12_000)),
    flips=st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 255)), max_size=4),
)
def test_damaged_metadata_is_made_good_or_refused_and_never_guessed(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    clean: bool,
    cut: int | None,
    flips: list[tuple[int, int]],
) -> None:
    directory = tmp_path_factory.mktemp("damage") / "copy"
    store = make(directory)
    store.clear_regions([0, 2])
    store.apply([write(5 * MIB, b"x" * 4096)])
    store.flush()
    store.save_dirty(OTHER, b"\x0f" + bytes(CHUNKS // 8))
    content = store.read(0, SIZE)
    store.save(attrs.evolve(store.superblock, epoch=Epoch(3), clean=clean))
    store.close()
    path = directory / name
    size = path.stat().st_size
    if cut is not None and (name != "data" or cut % 2):
        os.truncate(path, min(cut, size))
    for offset, mask in flips if name != "data" else ():
        if path.stat().st_size:
            flip(path, offset % path.stat().st_size, mask)
    try:
        again = open_copy(directory, boot="first")
    except CopyError:
        assert name in {"superblock", "data"}
    else:
        assert again.read(0, SIZE) == content
        assert again.superblock.epoch == 3
        assert again.marked_regions() >= {1}
        dirty = again.load_dirty(OTHER)
        assert dirty is not None
        assert dirty[0] & 0x0F == 0x0F
        wrong = [a != b for a, b in zip(told_hashes(again), right_hashes(content), strict=True)]
        assert not any(wrong)
        again.close()
    shutil.rmtree(directory.parent)
