"""Every cell of the failure modes' table, on real group machines in virtual time."""

import errno

import pytest
from core.tests.groups import Group

from holdfast.messages import RequestKind
from holdfast.model import Access
from holdfast.units import BLOCK_BYTES

RW, RO = Access.READ_WRITE, Access.READ_ONLY
GRACE_S = 4.0
SETTLE_S = 1.5
"""An idle member looks at the policy twice a second, and a compare-and-set takes its time."""
CELLS = [(replicas, online) for replicas in range(6) for online in range(replicas + 1)]
# (mode, threshold): A2 of the seeds, after the grace; v1-soft with its default tolerance.
MODES = ("hard", "soft", "alwayson", "v1-hard", "v1-soft", "v1-alwayson")
SOFT_RW = {(0, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (5, 4), (5, 5)}
V1_SOFT_NO_WRITE = {(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)}


def access_after_grace(mode: str, replicas: int, online: int, threshold: int = 0) -> Access:
    """Return what the table says of a cell."""
    if mode == "hard":
        return RW if online == replicas else RO
    if mode == "soft":
        return RW if (replicas, online) in SOFT_RW else RO
    if mode == "threshold":
        return RW if online >= threshold else RO
    if mode == "v1-hard":
        return RW if online == replicas else Access.NONE
    if mode == "v1-soft":
        # The seeds give two defaults for a single replica; with a tolerance of 1 it may write.
        tolerated = replicas == 1 or (replicas, online) not in V1_SOFT_NO_WRITE
        return RW if tolerated else Access.ERROR
    return RW


def lose(group: Group, online: int, *, primary: bool) -> None:
    """Take nodes away for good until `online` replicas are left and somebody serves."""
    count = len(group.record.members) - 1 - online
    victims = [group.primary_node] if primary else []
    victims += group.replica_nodes[: count - len(victims)]
    if not count:
        return
    group.kill(*victims)
    group.until(lambda: group.online == online and group.serves, "the loss")
    group.run(0.2)  # What the loss means for access is a change of its own after a failover.


def check_cell(mode: str, replicas: int, online: int, *, primary: bool, threshold: int = 0) -> None:
    options: dict[str, float] = {} if mode.startswith("v1-") else {"grace_s": GRACE_S}
    if mode == "threshold":
        options["threshold"] = threshold
    group = Group(replicas, mode, options=options)
    lose(group, online, primary=primary)
    wanted = access_after_grace(mode, replicas, online, threshold)
    if mode.startswith("v1-"):
        group.run(SETTLE_S)
        assert group.record.access is wanted
        return
    record = group.record
    assert record.access is RW, "within the grace everything is served"
    promised = [each for each in group.explain()["next"] if each["at"] is not None]
    if wanted is RW:
        assert record.grace_started_at is None
        assert not promised
    else:
        assert record.grace_started_at is not None
        ends = record.grace_started_at + GRACE_S
        assert promised == [
            {
                "at": ends,
                "sentence": "Unless enough replicas are online by then, access becomes read-only.",
            }
        ]
        group.run(ends - group.wall - 0.1)
        assert group.record.access is RW
    group.run(GRACE_S + SETTLE_S)
    assert group.record.access is wanted
    assert group.explain()["access"] == wanted.value


@pytest.mark.parametrize(("replicas", "online"), CELLS)
@pytest.mark.parametrize("mode", MODES)
def test_a_cell_of_the_table(mode: str, replicas: int, online: int) -> None:
    check_cell(mode, replicas, online, primary=False)


@pytest.mark.parametrize("threshold", range(6))
@pytest.mark.parametrize(("replicas", "online"), CELLS)
def test_a_cell_of_the_table_with_a_threshold(replicas: int, online: int, threshold: int) -> None:
    if threshold <= replicas:
        check_cell("threshold", replicas, online, primary=False, threshold=threshold)


@pytest.mark.parametrize(("replicas", "online"), [c for c in CELLS if c[0] > c[1]])
@pytest.mark.parametrize("mode", MODES)
def test_losing_the_primary_counts_like_losing_a_replica(
    mode: str, replicas: int, online: int
) -> None:
    check_cell(mode, replicas, online, primary=True)


def test_the_grace_of_ninety_seconds_is_the_default() -> None:
    group = Group(1, "hard")
    lose(group, 0, primary=False)
    started = group.record.grace_started_at
    assert started is not None
    group.run(started + 90.0 - group.wall - 0.1)
    assert group.record.access is RW
    group.run(0.1 + SETTLE_S)
    assert group.record.access is RO


def test_the_grace_goes_on_through_a_failover() -> None:
    group = Group(2, "hard", grace_s=10.0)
    lose(group, 1, primary=False)
    started = group.record.grace_started_at
    assert started is not None
    group.run(3.0)
    group.kill(group.primary_node)
    group.until(lambda: group.serves, "a new primary")
    assert group.record.grace_started_at == started
    group.run(started + 10.0 - group.wall - 0.1)
    assert group.record.access is RW
    group.run(0.1 + SETTLE_S)
    assert group.record.access is RO


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_read_only_is_left_by_a_new_attachment_alone(mode: str) -> None:
    group = Group(1, mode, grace_s=GRACE_S)
    replica = group.replica_nodes[0]
    writer = group.attach()
    assert writer.write() == 0
    lose(group, 0, primary=False)
    assert writer.write(BLOCK_BYTES) == 0, "served during the grace"
    group.run(GRACE_S + SETTLE_S)
    assert writer.access is RO
    assert writer.write(BLOCK_BYTES) == errno.EPERM
    assert writer.read(BLOCK_BYTES).errno == 0
    group.start(replica)
    group.until(lambda: len(group.record.in_sync) == 2, "the replica")
    group.run(5.0)
    assert writer.write(BLOCK_BYTES) == errno.EPERM, "still refused when the replica is back"
    told = group.explain()
    assert any("Attach it anew" in each["sentence"] for each in told["help"])
    writer.detach()
    second = group.attach()
    group.until(lambda: second.access is RW, "access")
    assert second.write(2 * BLOCK_BYTES) == 0
    assert group.content(replica).keys() == {0, 1, 2}


def test_read_only_of_a_shared_volume_is_left_by_a_new_attachment_alone() -> None:
    group = Group(2, "hard", grace_s=GRACE_S, nodes=4)
    group.change(shared=True)
    outside = next(node for node in group.world.machines if group.record.on_node(node) is None)
    group.cordon(outside)
    first, second = group.attach(outside), group.attach(group.primary_node)
    assert first.write() == second.write(BLOCK_BYTES) == 0
    victim = group.replica_nodes[0]
    lose(group, 1, primary=False)
    group.run(GRACE_S + SETTLE_S)
    early = group.attach(outside)
    assert first.write() == second.write() == early.write() == errno.EPERM
    former = group.primary_node
    second.detach_at_once()
    group.kill(former)
    group.until(lambda: group.serves and first.is_open, "a new primary")
    group.start(victim, former)
    group.until(lambda: len(group.record.in_sync) == 3, "everybody")
    group.run(2.0)
    assert first.write() == errno.EPERM, "it came back, which is no new attachment"
    assert group.attach(outside).write() == 0
    assert first.write() == 0


def test_attaching_anew_while_replicas_are_missing_does_not_help() -> None:
    group = Group(1, "hard", grace_s=GRACE_S)
    replica = group.replica_nodes[0]
    lose(group, 0, primary=False)
    group.run(GRACE_S + SETTLE_S)
    writer = group.attach()
    assert writer.write() == errno.EPERM
    group.start(replica)
    group.until(lambda: len(group.record.in_sync) == 2, "the replica")
    group.run(1.0)
    assert writer.write() == errno.EPERM, "that attachment came before"
    writer.detach()
    assert group.attach().write() == 0


def test_read_only_survives_a_failover() -> None:
    group = Group(2, "hard", grace_s=GRACE_S)
    lose(group, 1, primary=False)
    group.run(GRACE_S + SETTLE_S)
    group.kill(group.primary_node)
    group.until(lambda: group.serves, "a new primary")
    group.run(2.0)
    assert group.record.access is RO


def test_a_session_that_reconnects_is_no_new_attachment() -> None:
    group = Group(2, "hard", grace_s=GRACE_S, nodes=4)
    outside = next(node for node in group.world.machines if group.record.on_node(node) is None)
    group.cordon(outside)
    writer = group.attach(outside)
    victim = group.replica_nodes[0]
    lose(group, 1, primary=False)
    group.run(GRACE_S + SETTLE_S)
    assert group.record.access is RO
    former = group.primary_node
    group.kill(former)
    group.until(lambda: group.serves and writer.is_open, "a new primary")
    group.start(victim, former)
    group.until(lambda: len(group.record.in_sync) == 3, "everybody")
    assert writer.write() == errno.EPERM


def test_auto_resume_needs_no_new_attachment() -> None:
    group = Group(1, "hard", grace_s=GRACE_S, auto_resume=True)
    replica = group.replica_nodes[0]
    writer = group.attach()
    lose(group, 0, primary=False)
    group.run(GRACE_S + SETTLE_S)
    assert writer.write() == errno.EPERM
    group.start(replica)
    group.until(lambda: writer.access is RW, "access")
    assert writer.write() == 0


def test_suspend_blocks_and_goes_on_by_itself() -> None:
    group = Group(1, "hard", grace_s=GRACE_S, on_shortage="suspend")
    replica = group.replica_nodes[0]
    writer = group.attach()
    lose(group, 0, primary=False)
    group.run(GRACE_S + SETTLE_S)
    assert group.record.access is Access.SUSPENDED
    asked = writer.ask(RequestKind.WRITE, 0, b"x" * BLOCK_BYTES)
    group.run(30.0)
    assert writer.waits(asked)
    group.start(replica)
    assert writer.answer(asked).errno == 0
    assert group.record.access is RW


def test_error_fails_writes_and_serves_reads() -> None:
    group = Group(1, "hard", grace_s=GRACE_S, on_shortage="error")
    writer = group.attach()
    lose(group, 0, primary=False)
    group.run(GRACE_S + SETTLE_S)
    assert group.record.access is Access.ERROR
    assert writer.write() == errno.EIO
    assert writer.read().errno == 0


def test_hold_keeps_writes_during_the_grace() -> None:
    group = Group(1, "hard", grace_s=GRACE_S, during_grace="hold")
    replica = group.replica_nodes[0]
    writer = group.attach()
    lose(group, 0, primary=False)
    group.until(lambda: group.record.access is Access.SUSPENDED, "the hold", 1.0)
    asked = writer.ask(RequestKind.WRITE, 0, b"x" * BLOCK_BYTES)
    group.run(1.0)
    assert writer.waits(asked)
    group.start(replica)
    assert writer.answer(asked).errno == 0
    group.kill(replica)
    group.until(lambda: group.online == 0, "the loss")
    asked = writer.ask(RequestKind.WRITE, 0, b"x" * BLOCK_BYTES)
    assert writer.answer(asked).errno == errno.EPERM, "refused when the grace is over"
    assert group.record.access is RO


def test_v1_modes_come_back_by_themselves() -> None:
    group = Group(2, "v1-hard")
    victims = group.replica_nodes
    writer = group.attach()
    lose(group, 0, primary=False)
    group.until(lambda: group.record.access is Access.NONE, "the access")
    assert writer.read().errno == errno.EIO
    group.start(*victims)
    group.until(lambda: writer.access is RW, "access")
    assert writer.write() == 0


def test_a_replacement_ends_the_shortage() -> None:
    group = Group(1, "hard", grace_s=20.0, nodes=3)
    victim = group.replica_nodes[0]
    group.kill(victim)
    group.until(lambda: victim not in [m.node for m in group.record.members], "a replacement")
    group.until_healthy()
    assert group.record.access is RW
    assert group.record.grace_started_at is None


def test_a_milder_mode_at_run_time_ends_a_suspension() -> None:
    group = Group(1, "hard", grace_s=GRACE_S, on_shortage="suspend")
    lose(group, 0, primary=False)
    group.run(GRACE_S + SETTLE_S)
    assert group.record.access is Access.SUSPENDED
    group.change(policy="threshold", policy_options={"threshold": 0})
    group.until(lambda: group.record.access is RW, "access", 2.0)
