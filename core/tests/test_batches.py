"""A batch is kept and answered as one; where that is not so, nothing is answered too early."""

from core.tests.groups import Group

from holdfast.messages import Op, OpKind, Request, RequestKind
from holdfast.sync import events as ev
from holdfast.sync.disk import DiskQueue
from holdfast.units import BLOCK_BYTES, REGION_BYTES
from holdfast.units import Sequence as Position

NOW = ev.Instant(1.0, 1.0)


def block(number: int) -> Op:
    return Op(OpKind.WRITE, number * BLOCK_BYTES, BLOCK_BYTES, bytes(BLOCK_BYTES))


def queue() -> DiskQueue:
    """A queue with two batches, of three operations and of two."""
    disk = DiskQueue(marked={0})
    disk.submit(Position(5), [block(n) for n in range(3)], NOW.mono, [])
    disk.submit(Position(8), [block(3), Op(OpKind.FLUSH, 0, 0), block(4)], NOW.mono, [])
    return disk


def test_a_write_of_which_one_frame_was_applied_is_answered_that_far() -> None:
    group = Group(1)
    writer = group.attach()
    assert writer.write() == 0
    member = group.member
    assert member is not None
    primary = member.primary
    assert primary is not None
    group.world.network.block(group.replica_nodes[0], group.primary_node)
    data = bytes(BLOCK_BYTES)
    batch = [Request(n, RequestKind.WRITE, 0, n * BLOCK_BYTES, BLOCK_BYTES, data) for n in range(3)]
    now = group.world.machines[group.primary_node].clock.instant(group.world.now)
    (link,) = primary.attachments.open
    before = primary.next
    out: list[ev.Effect] = []
    primary.on_requests(link, batch, now, out)
    member.ctx.disk.applied = member.ctx.disk.submitted
    (leg,) = primary.legs.values()

    def acknowledged(sequence: int) -> list[int]:
        told: list[ev.Effect] = []
        leg.on_ack(Position(sequence), leg.durable, now.mono)
        primary.advance(now, told)
        return [r.id for each in told if isinstance(each, ev.SendReplies) for r in each.replies]

    assert acknowledged(before - 1) == []
    assert acknowledged(before + 1) == [0, 1]
    assert acknowledged(before + 1) == []
    assert not primary.idle
    assert acknowledged(before + 2) == [2]
    assert primary.idle


def test_a_batch_stays_in_the_window_until_all_of_it_is_committed() -> None:
    disk = queue()
    first = [(n, (n - 5) * BLOCK_BYTES, BLOCK_BYTES) for n in (5, 6, 7)]
    second = [(8, 3 * BLOCK_BYTES, BLOCK_BYTES), (10, 4 * BLOCK_BYTES, BLOCK_BYTES)]
    for commit, kept in ((6, first + second), (7, second), (9, second), (10, [])):
        disk.advance_commit(Position(commit))
        assert list(disk.recent()) == kept
        assert disk.suspects() == [(offset, length) for _, offset, length in kept]
    assert not disk.window


def test_what_changes_nothing_takes_no_place_in_the_window() -> None:
    disk = DiskQueue(marked=set())
    disk.submit(Position(1), [Op(OpKind.FLUSH, 0, 0)], NOW.mono, [])
    assert not disk.window
    disk.unpin_at_commit()
    assert not disk.window


def test_an_extent_is_settled_once_what_was_submitted_for_it_is_applied() -> None:
    disk = queue()
    for applied, settled in ((4, []), (5, [0]), (7, [0, 1, 2]), (9, [0, 1, 2, 3]), (10, range(5))):
        disk.applied = Position(applied)
        for number in range(5):
            extent = (number * BLOCK_BYTES + 512, 512)
            assert disk.is_settled([extent]) == (number in settled)
    disk.applied = Position(4)
    assert disk.is_settled([(5 * BLOCK_BYTES, REGION_BYTES)])
