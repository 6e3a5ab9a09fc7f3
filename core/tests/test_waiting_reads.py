"""Reads that overlap writes under way answer with what every copy has, and with nothing newer (I5)."""

from core.tests.groups import Group

from holdfast.messages import RequestKind
from holdfast.sync import events as ev
from holdfast.units import BLOCK_BYTES

STEP_S = 0.0001
OLD, FIRST, SECOND, THIRD = b"o", b"1", b"2", b"3"


def block(fill: bytes) -> bytes:
    return fill * BLOCK_BYTES


def cut_off(group: Group) -> None:
    """Let nothing come back from the replica, so that no write is acknowledged."""
    group.world.network.block(group.replica_nodes[0], group.primary_node)


def join_again(group: Group) -> None:
    group.world.network.unblock(group.replica_nodes[0], group.primary_node)


def cross(group: Group) -> int:
    """Let a write come behind a read that waits for another; return how often it could be told."""
    writer = group.attach()
    assert group.member is not None
    primary = group.member.primary
    assert primary is not None
    crossed = 0
    for number in range(4):
        fill = bytes([number + 1])
        first = writer.ask(RequestKind.WRITE, 0, block(fill))
        read = writer.ask(RequestKind.READ, 0, length=2 * BLOCK_BYTES)
        group.until(lambda: bool(primary._reads), "the read to wait", step_s=STEP_S)
        group.run(number * 2 * STEP_S)
        second = writer.ask(RequestKind.WRITE, BLOCK_BYTES, block(fill))
        group.until(lambda w=first: not writer.waits(w), "the write", step_s=STEP_S)  # type: ignore[misc]
        crossed += writer.waits(second) and writer.waits(read)
        group.until(lambda r=read: not writer.waits(r), "the read", step_s=STEP_S)  # type: ignore[misc]
        told = writer.answer(read).data[BLOCK_BYTES:]
        assert told != block(fill) or not writer.waits(second), "this write may yet be lost"
        assert writer.answer(second).errno == 0
    return crossed


def test_a_read_that_waits_for_one_write_waits_for_a_later_one_in_its_way_too() -> None:
    assert sum(cross(Group(1, seed=seed)) for seed in (1, 2, 3)) >= 3


def test_writes_that_come_behind_a_crowded_read_are_held_and_then_taken_up() -> None:
    group = Group(1)
    writer = group.attach()
    assert writer.write(0, OLD) == 0
    member = group.member
    assert member is not None
    primary = member.primary
    assert primary is not None
    cut_off(group)
    writes = [writer.ask(RequestKind.WRITE, 0, block(FIRST))]
    group.run(0.05)
    read = writer.ask(RequestKind.READ, 0)
    group.run(0.05)
    (entry,) = primary._reads
    writes.append(writer.ask(RequestKind.WRITE, 0, block(SECOND)))
    group.run(0.05)
    # Its wait is over, as if the first write alone had been acknowledged.
    primary._reads = [(0, *entry[1:])]
    group.feed(ev.Tick())
    assert primary._crowded, "the read has found the second write"
    writes.append(writer.ask(RequestKind.WRITE, 0, block(THIRD)))
    group.run(0.05)
    join_again(group)
    assert writer.answer(read).data == block(SECOND)
    for write in writes:
        assert writer.answer(write).errno == 0
    assert not primary._crowded
    assert writer.read().data == block(THIRD)
