"""A group that nobody uses costs nearly nothing, and misses nothing for it."""

from core.tests.groups import Group

from holdfast.messages import RequestKind
from holdfast.sync.context import BUSY_TICK_S, IDLE_TICK_S
from holdfast.units import BLOCK_BYTES

QUIET_S = 15.0
"""Until the marks of the last writes are gone."""
WATCHED_S = 30.0


def resting(replicas: int) -> Group:
    """Return a group that was written to and then left alone."""
    group = Group(replicas, nodes=3)
    writer = group.attach()
    assert writer.write() == 0
    writer.detach()
    group.run(QUIET_S)
    return group


def due_in(group: Group) -> float:
    """Return after how many seconds the primary wants to look again."""
    assert group.member is not None
    clock = group.world.machines[group.primary_node].clock
    return group.member.next_tick - clock.instant(group.world.now).mono


def test_a_primary_at_rest_looks_as_seldom_as_a_silent_copy_allows() -> None:
    for replicas in (0, 2):
        group = resting(replicas)
        looks = set()
        end = group.world.now + WATCHED_S
        while group.world.now < end:
            assert group.member is not None
            looks.add(group.member.next_tick)
            group.run(0.1)
        assert len(looks) <= WATCHED_S / 1.4, f"{len(looks)} looks with {replicas} replicas"


def test_a_copy_that_falls_silent_while_nobody_writes_is_dropped_as_soon() -> None:
    for number in range(8):
        group = resting(2)
        group.run(number * 0.23)
        silent = group.replica_nodes[0]
        for other in group.world.machines:
            if other != silent:
                group.world.network.block(silent, other)
                group.world.network.block(other, silent)
        began = group.world.now
        group.until(lambda g=group: g.online == 1, "the loss")  # type: ignore[misc]
        # The lease may have been renewed just before; the record's change takes its time.
        timing = group.world.config.timing
        assert group.world.now - began <= timing.lease_s + 0.3


def test_the_first_write_ends_the_rest() -> None:
    group = resting(2)
    writer = group.attach()
    group.run(QUIET_S)
    group.until(lambda: due_in(group) > IDLE_TICK_S, "a rest")
    group.world.network.block(group.replica_nodes[0], group.primary_node)
    request = writer.ask(RequestKind.WRITE, 0, b"y" * BLOCK_BYTES)
    group.until(lambda: due_in(group) <= BUSY_TICK_S, "the end of the rest", within_s=0.2)
    assert writer.waits(request)


def test_reads_do_not_end_it() -> None:
    group = resting(2)
    reader = group.attach()
    group.run(QUIET_S)
    group.until(lambda: due_in(group) > 2 * IDLE_TICK_S, "a rest")
    before = group.member
    assert before is not None
    due_at = before.next_tick
    assert reader.read().errno == 0
    assert before.next_tick == due_at
