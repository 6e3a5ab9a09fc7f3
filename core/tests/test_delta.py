"""What a sync reads and sends: collated runs, no zeros, nothing that a live write has overtaken."""

import pytest

from holdfast.messages import Op, OpKind
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.delta import READ_CHUNKS_MAX, SyncJob, split_zeros
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, MIB, Sequence, chunks_of

SIZE = 4 * MIB
DATA = b"x" * BLOCK_BYTES
ZEROS = bytes(BLOCK_BYTES)


def write(chunk: int) -> Op:
    return Op(OpKind.WRITE, chunk * CHUNK_BYTES, BLOCK_BYTES, DATA)


def job_for(*chunks: int) -> SyncJob:
    """Return a job that has compared, and found these chunks to differ."""
    known = Bitmap(chunks_of(SIZE))
    for chunk in chunks:
        known.set_range(chunk)
    job = SyncJob.confirming("dirty-map", SIZE, [], known, 0.0)
    query = job.next_query(1)
    assert query is not None
    count = len(query[1])
    job.on_hashes(1, bytes(16 * count), local=True)
    job.on_hashes(1, b"1" * 16 * count, local=False)
    return job


def pieces_of(runs: list[tuple[int, int]]) -> list[bytes]:
    return [b"x" * length for _, length in runs]


def placed(ops: list[Op]) -> list[tuple[str, int, int]]:
    """Return (kind, block, blocks) of operations."""
    return [
        (OpKind(op.kind).name, op.offset // BLOCK_BYTES, op.length // BLOCK_BYTES) for op in ops
    ]


def test_chunks_that_are_no_neighbours_travel_together() -> None:
    job = job_for(1, 2, 9, 30)
    runs = job.next_read()
    assert runs == [
        (CHUNK_BYTES, 2 * CHUNK_BYTES),
        (9 * CHUNK_BYTES, CHUNK_BYTES),
        (30 * CHUNK_BYTES, CHUNK_BYTES),
    ]
    assert job.next_read() == []
    ops = job.on_read(pieces_of(runs), Sequence(5))
    assert [(op.offset, op.length) for op in ops] == runs
    assert job.in_flight_bytes == job.sent_bytes == 4 * CHUNK_BYTES
    job.on_applied(Sequence(6))
    assert not job.equal
    job.on_applied(Sequence(7))
    assert job.equal
    assert job.in_flight_bytes == 0


def test_one_read_is_bounded() -> None:
    job = job_for(*range(40))
    assert sum(length for _, length in job.next_read()) == READ_CHUNKS_MAX * CHUNK_BYTES


def test_what_a_live_write_has_overtaken_is_read_again_under_a_hold() -> None:
    job = job_for(1, 2, 3)
    runs = job.next_read()
    job.overtake([write(0), write(2), write(7)])
    ops = job.on_read(pieces_of(runs), Sequence(5))
    assert [op.offset // CHUNK_BYTES for op in ops] == [1, 3]
    assert job.contended
    job.on_applied(Sequence(6))
    assert list(job.dirty) == [2]
    again = job.next_read()
    assert again == [(2 * CHUNK_BYTES, CHUNK_BYTES)]
    assert len(job.on_read(pieces_of(again), Sequence(8))) == 1
    assert not job.contended
    job.on_applied(Sequence(8))
    assert job.equal


def test_a_long_discard_overtakes_all_that_it_covers() -> None:
    job = job_for(1, 2, 3)
    runs = job.next_read()
    job.overtake([Op(OpKind.DISCARD, 2 * CHUNK_BYTES, SIZE - 2 * CHUNK_BYTES)])
    assert [op.offset // CHUNK_BYTES for op in job.on_read(pieces_of(runs), Sequence(5))] == [1]


def test_a_read_that_is_given_up_comes_back() -> None:
    job = job_for(1, 3)
    first = job.next_read()
    job.give_up_read(contended=True)
    assert job.contended
    assert job.next_read() == first


def test_zeros_are_not_sent_to_a_blank_copy() -> None:
    job = SyncJob.filling(SIZE, 0.0)
    job.map_asked = True
    job.on_map(iter([(0, CHUNK_BYTES), (3 * CHUNK_BYTES, CHUNK_BYTES)]))
    runs = job.next_read()
    islands = (DATA + ZEROS) * (CHUNK_BYTES // BLOCK_BYTES // 2)
    ops = job.on_read([islands, bytes(CHUNK_BYTES)], Sequence(5))
    assert len(runs) == 2
    assert placed(ops) == [("SYNC_WRITE", at, 1) for at in range(0, 16, 2)]
    assert job.sent_bytes == CHUNK_BYTES // 2
    job.on_applied(Sequence(12))
    assert job.equal


def test_a_blank_copy_that_needs_nothing_is_equal_at_once() -> None:
    job = SyncJob.filling(SIZE, 0.0)
    job.on_map(iter([(0, CHUNK_BYTES)]))
    job.next_read()
    assert job.on_read([bytes(CHUNK_BYTES)], Sequence(5)) == []
    assert job.equal


def test_a_copy_that_missed_a_live_write_is_blank_no_more() -> None:
    job = SyncJob.filling(SIZE, 0.0)
    job.on_map(iter([(0, CHUNK_BYTES)]))
    job.skip(0, BLOCK_BYTES)
    job.next_read()
    assert placed(job.on_read([bytes(CHUNK_BYTES)], Sequence(5))) == [("SYNC_ZERO", 0, 16)]


@pytest.mark.parametrize(
    ("blocks", "blank", "other"),
    [
        ("xxxx", [("W", 0, 4)], [("W", 0, 4)]),
        ("....", [], [("Z", 0, 4)]),
        (".", [], [("Z", 0, 1)]),
        ("x.xx", [("W", 0, 1), ("W", 2, 2)], [("W", 0, 4)]),
        ("x....x", [("W", 0, 1), ("W", 5, 1)], [("W", 0, 1), ("Z", 1, 4), ("W", 5, 1)]),
        ("..x.", [("W", 2, 1)], [("W", 0, 4)]),
        ("....x", [("W", 4, 1)], [("Z", 0, 4), ("W", 4, 1)]),
        ("x.....", [("W", 0, 1)], [("W", 0, 1), ("Z", 1, 5)]),
    ],
)
def test_runs_of_zeros_are_told_apart(
    blocks: str, blank: list[tuple[str, int, int]], other: list[tuple[str, int, int]]
) -> None:
    data = b"".join(ZEROS if each == "." else DATA for each in blocks)
    names = {"W": "SYNC_WRITE", "Z": "SYNC_ZERO"}
    for wanted, keep_zeros in ((blank, False), (other, True)):
        ops = split_zeros(0, data, keep_zeros=keep_zeros)
        assert placed(ops) == [(names[kind], at, count) for kind, at, count in wanted]
        for op in ops:
            if op.kind == OpKind.SYNC_WRITE:
                assert op.data == data[op.offset : op.offset + op.length]


def test_the_short_end_of_a_volume_is_judged_by_what_it_has() -> None:
    data = DATA + bytes(512)
    assert [(op.offset, op.length) for op in split_zeros(0, data, keep_zeros=False)] == [(0, 4096)]
    ops = split_zeros(0, bytes(4096) + b"x" * 512, keep_zeros=False)
    assert [(op.offset, op.length) for op in ops] == [(4096, 512)]
