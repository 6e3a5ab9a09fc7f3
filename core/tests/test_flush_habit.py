"""A flush that is foreseen is under way before it is asked for, and promises no less."""

from core.tests.groups import Attached, Group

from holdfast.messages import RequestKind
from holdfast.sync.flush_habit import BYTES_MAX, PAIRS_MIN, FlushHabit
from holdfast.units import BLOCK_BYTES, KIB

BLOCK = b"c" * BLOCK_BYTES


def practised() -> FlushHabit:
    habit = FlushHabit()
    for _ in range(PAIRS_MIN):
        assert not habit.wrote(4 * KIB)
        habit.flushed()
    return habit


def test_pairs_of_a_write_and_its_flush_become_a_habit() -> None:
    assert practised().wrote(4 * KIB)


def test_a_second_write_ends_it() -> None:
    habit = practised()
    assert habit.wrote(4 * KIB)
    assert not habit.wrote(4 * KIB)
    habit.flushed()
    for _ in range(PAIRS_MIN):
        assert not habit.wrote(4 * KIB)
        habit.flushed()
    assert habit.wrote(4 * KIB)


def test_flushes_alone_are_no_habit_and_end_none() -> None:
    habit = FlushHabit()
    for _ in range(10):
        habit.flushed()
    assert not habit.wrote(4 * KIB)
    habit = practised()
    habit.flushed()
    assert habit.wrote(4 * KIB)


def test_much_at_once_is_no_commit() -> None:
    assert not practised().wrote(BYTES_MAX + 1)


def commit(writer: Attached, times: int) -> None:
    """Write and flush in turn."""
    for _ in range(times):
        assert writer.write() == 0
        assert writer.answer(writer.ask(RequestKind.FLUSH)).errno == 0


def test_a_foreseen_flush_is_answered_from_what_the_copies_have_said_by_then() -> None:
    group = Group(2)
    writer = group.attach()
    commit(writer, PAIRS_MIN)
    assert writer.write() == 0
    group.run(1.0)
    member = group.member
    assert member is not None
    assert member.primary is not None
    assert member.primary.durable >= member.primary.written
    next_sequence = member.primary.next
    assert writer.answer(writer.ask(RequestKind.FLUSH)).errno == 0
    assert member.primary.next == next_sequence, "no copy was asked again"


def test_a_flush_that_meets_one_under_way_waits_for_that_and_for_no_other() -> None:
    group = Group(2)
    writer = group.attach()
    commit(writer, PAIRS_MIN)
    member = group.member
    assert member is not None
    assert member.primary is not None
    for node in group.replica_nodes:
        group.world.network.block(node, group.primary_node)
    write, flush = writer.ask(RequestKind.WRITE, 0, BLOCK), writer.ask(RequestKind.FLUSH)
    group.run(0.3)
    assert member.primary.next == member.primary.written + 2, "the write's own flush, and no other"
    assert writer.waits(write)
    assert writer.waits(flush)
    for node in group.replica_nodes:
        group.world.network.unblock(node, group.primary_node)
    assert writer.answer(write).errno == 0
    assert writer.answer(flush).errno == 0
    assert member.primary.durable >= member.primary.written


def test_a_write_behind_a_flush_is_flushed_again() -> None:
    group = Group(2)
    writer = group.attach()
    assert writer.write() == 0
    assert writer.answer(writer.ask(RequestKind.FLUSH)).errno == 0
    assert writer.write(BLOCK_BYTES) == 0
    assert writer.write(2 * BLOCK_BYTES) == 0
    assert writer.answer(writer.ask(RequestKind.FLUSH)).errno == 0
    member = group.member
    assert member is not None
    assert member.primary is not None
    assert member.primary.durable >= member.primary.written
