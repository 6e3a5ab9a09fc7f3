"""Bytes that rot are found, told apart from copies that diverged, and repaired from good ones."""

import pytest
from core.tests.groups import VOLUME, Attached, Group

from holdfast.errors import FaultReason
from holdfast.messages import RequestKind
from holdfast.sync import events as ev
from holdfast.sync.verify import VerifyJob
from holdfast.testing.simulation.disk import CopyDisk
from holdfast.testing.simulation.pump import _CARRY, Pump
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, MIB, NodeName

SIZE = 20 * MIB + 3 * BLOCK_BYTES


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[ev.Verified]:
    """Return what verifications tell, from now on."""
    told: list[ev.Verified] = []
    monkeypatch.setitem(_CARRY, ev.Verified, lambda _pump, effect: told.append(effect))
    return told


def disk_of(group: Group, node: NodeName) -> CopyDisk:
    return group.world.machines[node].copies[VOLUME]


def filled(group: Group) -> Attached:
    writer = group.attach()
    for chunk in range(0, 320, 10):
        assert writer.write(chunk * CHUNK_BYTES, bytes([chunk % 250 + 1])) == 0
    return writer


def has_ended(outcomes: list[ev.Verified]) -> bool:
    return bool(outcomes) and outcomes[-1].differing is not None


def run(group: Group, outcomes: list[ev.Verified], *, repair: bool = True) -> ev.Verified:
    group.feed(ev.Verify(len(outcomes) + 1000, repair=repair))
    group.until(lambda: has_ended(outcomes), "the outcome")
    outcome = outcomes[-1]
    outcomes.clear()
    return outcome


@pytest.mark.parametrize("where", ["primary", "replica"])
def test_rot_is_repaired_from_a_good_copy(where: str, outcomes: list[ev.Verified]) -> None:
    group = Group(2, size_bytes=SIZE)
    writer = filled(group)
    node = group.primary_node if where == "primary" else group.replica_nodes[0]
    disk_of(group, node).rot(160)
    disk_of(group, node).rot(5001)
    only_told = run(group, outcomes, repair=False)
    assert only_told.rotten == ((10, (node,)), (312, (node,)))
    assert only_told.differing == ()
    assert only_told.repaired == ()
    outcome = run(group, outcomes)
    assert outcome.rotten == ((10, (node,)), (312, (node,)))
    assert outcome.repaired == (10, 312)
    assert outcome.copies == 3
    assert run(group, outcomes).rotten == ()
    assert writer.read(160 * BLOCK_BYTES).data == bytes([11]) * BLOCK_BYTES
    assert len({frozenset(group.content(n).items()) for n in group.world.machines}) == 1
    assert any(f"Chunk 10 has rotted on {node}." in line for line in group.notes("scrub"))


def test_the_last_short_chunk_is_repaired_too(outcomes: list[ev.Verified]) -> None:
    group = Group(1, size_bytes=SIZE)
    last = SIZE // BLOCK_BYTES - 1
    disk_of(group, group.primary_node).rot(last)
    assert run(group, outcomes).repaired == (last // 16,)
    assert not group.content(group.primary_node)


def test_copies_that_diverged_are_made_equal_to_the_primary(outcomes: list[ev.Verified]) -> None:
    group = Group(1, size_bytes=SIZE)
    filled(group)
    disk = disk_of(group, group.replica_nodes[0])
    disk.rot(160)
    disk._hashes.clear()  # Its list was computed after that: nothing shows that it is rot.
    outcome = run(group, outcomes)
    assert outcome.differing == ((10, (group.replica_nodes[0],)),)
    assert outcome.rotten == ()
    assert outcome.repaired == (10,)
    assert disk.cache[160] == disk_of(group, group.primary_node).cache[160]


def test_without_a_good_copy_rot_is_told_and_left_alone(outcomes: list[ev.Verified]) -> None:
    group = Group(0, size_bytes=SIZE)
    filled(group)
    disk_of(group, group.primary_node).rot(160)
    outcome = run(group, outcomes)
    assert outcome.rotten == ((10, (group.primary_node,)),)
    assert outcome.repaired == ()
    assert any("no copy has good bytes" in line for line in group.notes("scrub"))


def test_writes_go_on_during_a_scrub_and_are_not_taken_for_rot(
    outcomes: list[ev.Verified],
) -> None:
    group = Group(2, size_bytes=SIZE)
    writer = filled(group)
    disk_of(group, group.replica_nodes[0]).rot(160)
    group.feed(ev.Verify(7, repair=True, pace_s=0.2))
    asked = []
    for number in range(200):
        offset = number * 7 % 320 * CHUNK_BYTES
        asked.append(writer.ask(RequestKind.WRITE, offset, bytes([number + 1]) * BLOCK_BYTES))
        group.run(0.01)
    group.until(lambda: has_ended(outcomes), "the outcome")
    assert all(writer.answer(each).errno == 0 for each in asked)
    assert outcomes[-1].differing == ()
    assert [chunk for chunk, _ in outcomes[-1].rotten] in ([10], [])
    group.run(1.0)
    assert len({frozenset(group.content(n).items()) for n in group.world.machines}) == 1


def test_losing_the_good_copy_ends_the_scrub_all_the_same(outcomes: list[ev.Verified]) -> None:
    group = Group(1, size_bytes=SIZE)
    filled(group)
    replica = group.replica_nodes[0]
    disk_of(group, group.primary_node).rot(160)
    group.feed(ev.Verify(7, repair=True))
    group.kill(replica)
    group.until(lambda: has_ended(outcomes), "the outcome")
    assert outcomes[-1].repaired == ()
    assert isinstance(group.pump, Pump)


def test_a_scrub_ends_with_the_disk_of_its_primary(outcomes: list[ev.Verified]) -> None:
    group = Group(1, size_bytes=SIZE)
    filled(group)
    group.feed(ev.Verify(7, repair=True, pace_s=0.2))
    group.feed(ev.DiskFailed(FaultReason.IO_ERROR, "the disk fails"))
    group.until(lambda: any(told.failed for told in outcomes), "the word that there is no outcome")


def scrub_that_holds(group: Group) -> tuple[Attached, VerifyJob]:
    """Return a scrub that holds writes and waits for the hashes of the copies."""
    writer = filled(group)
    disk_of(group, group.replica_nodes[0]).rot(160)
    group.feed(ev.Verify(7, repair=True))
    assert group.member is not None
    assert group.member.keeper is not None
    (job,) = group.member.keeper.verifying
    limit = group.world.now + 20.0
    while not (job.holding and job.batch):
        assert group.world.now < limit, "no scrub holds writes"
        group.world.step()
    return writer, job


def pump_of(group: Group, node: NodeName) -> Pump:
    process = group.world.machines[node].process
    assert process is not None
    return process.pumps[VOLUME]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_scrub_holds_nobody_longer_than_a_copy_may_take_to_answer(
    replicas: int, outcomes: list[ev.Verified]
) -> None:
    """R12: a copy whose disk stands still beside its heartbeats is lost, whoever waits for it."""
    group = Group(replicas, size_bytes=SIZE)
    writer, _ = scrub_that_holds(group)
    pump_of(group, group.replica_nodes[0]).stalled_until = group.world.now + 1000.0
    assert writer.write(0, b"z") == 0
    group.until(lambda: has_ended(outcomes), "the outcome")


def test_a_copy_whose_link_breaks_and_is_resumed_is_waited_for_no_more(
    outcomes: list[ev.Verified],
) -> None:
    group = Group(1, size_bytes=SIZE)
    writer, _ = scrub_that_holds(group)
    replica = group.replica_nodes[0]
    pump_of(group, group.primary_node).stalled_until = group.world.now + 1.0
    group.world.network.reset(group.primary_node, replica)
    assert writer.write(0, b"z") == 0
    group.until(lambda: has_ended(outcomes), "the outcome")
