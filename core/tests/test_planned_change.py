"""Moves, drains and changed numbers of replicas: add and sync first, then switch, then remove."""

from collections.abc import Callable

import pytest
from core.tests.groups import Group

from holdfast.errors import ConflictError
from holdfast.messages import RequestKind
from holdfast.model import CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.node.draining import drain_plan, refuse_to_lower
from holdfast.node.service import Json
from holdfast.sync import events as ev
from holdfast.sync.context import BUSY_TICK_S
from holdfast.sync.placement import place
from holdfast.units import BLOCK_BYTES, GIB, CopyId, Epoch, NodeName, VolumeId


def nodes_of(group: Group) -> set[NodeName]:
    return {m.node for m in group.record.members}


def spare_of(group: Group) -> NodeName:
    return next(n for n in group.world.machines if group.record.on_node(n) is None)


def watched(group: Group, check: Callable[[GroupRecord], None]) -> list[GroupRecord]:
    """Return the list of all records from now on, each of them checked."""
    seen: list[GroupRecord] = []
    before = group.world.store.on_write

    def on_write(record: GroupRecord, old: GroupRecord | None) -> None:
        before(record, old)
        seen.append(record)
        check(record)

    group.world.store.on_write = on_write
    return seen


def keeps(count: int) -> Callable[[GroupRecord], None]:
    def check(record: GroupRecord) -> None:
        assert len(record.in_sync) >= count, record

    return check


def test_a_replica_moves_without_ever_lowering_the_redundancy() -> None:
    group = Group(2, nodes=4)
    writer = group.attach()
    for number in range(8):
        assert writer.write(number * BLOCK_BYTES, bytes([number + 1])) == 0
    source, target = group.replica_nodes[0], spare_of(group)
    watched(group, keeps(3))
    group.feed(ev.MoveCopy(source, target))
    group.until(lambda: source not in nodes_of(group), "the move")
    group.until_healthy()
    assert target in nodes_of(group)
    assert len(group.content(target)) == 8


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_a_primary_moves_to_the_node_that_was_named(replicas: int) -> None:
    group = Group(replicas, nodes=replicas + 2)
    writer = group.attach(spare_of(group))
    assert writer.write() == 0
    source, target = group.primary_node, spare_of(group)
    watched(group, keeps(replicas + 1))
    group.feed(ev.MoveCopy(source, target))
    group.until(lambda: source not in nodes_of(group), "the move")
    assert group.primary_node == target
    assert writer.write(BLOCK_BYTES) == 0
    assert group.content(target).keys() == {0, 1}


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_handover_under_writes_takes_one_epoch_and_no_tick(seed: int) -> None:
    group = Group(2, seed=seed)
    writer = group.attach()
    for _ in range(6):
        asked = [writer.ask(RequestKind.WRITE, 0, b"x" * BLOCK_BYTES) for _ in range(16)]
        epoch, target = group.record.epoch, group.replica_nodes[0]
        began = group.world.now
        group.feed(ev.Handover(target, leave=False))
        while not (group.primary_node == target and group.serves):
            group.run(0.001)
        assert group.world.now - began < BUSY_TICK_S
        for each in asked:
            assert writer.answer(each).errno == 0
        group.until_healthy()
        assert group.record.epoch == epoch + 1


def test_a_successor_whose_predecessor_is_silent_takes_over_all_the_same() -> None:
    group = Group(1)
    writer = group.attach(group.replica_nodes[0])
    former, target = group.primary_node, group.replica_nodes[0]
    group.feed(ev.Handover(target, leave=False))
    process = group.world.machines[former].process
    assert process is not None
    while group.primary_node != target:
        group.run(0.0005)
    process.pause()
    group.until(lambda: group.primary_node == target and group.serves, "the successor", 6.0)
    assert writer.write() == 0


def test_a_move_goes_on_under_another_primary() -> None:
    group = Group(2, nodes=5)
    source, target = group.replica_nodes[0], spare_of(group)
    group.feed(ev.MoveCopy(source, target))
    group.until(lambda: target in nodes_of(group), "the new copy", 2.0)
    group.kill(group.primary_node)
    group.until(lambda: source not in nodes_of(group), "the move")
    group.until_healthy()
    assert target in nodes_of(group)


@pytest.mark.parametrize("role", ["replica", "primary"])
@pytest.mark.parametrize("wait_s", [0.0, 0.02, 0.2])
def test_a_move_that_is_called_off_leaves_everything_as_it_was(role: str, wait_s: float) -> None:
    group = Group(1, nodes=3)
    before = {m.node for m in group.record.members}
    source = group.primary_node if role == "primary" else group.replica_nodes[0]
    target = next(node for node in group.world.machines if node not in before)
    group.cordon(target)  # What is made there is made because an operator said so.
    group.world.machines[target].process.pause()  # type: ignore[union-attr]
    group.feed(ev.MoveCopy(source, target))
    group.run(wait_s)
    group.feed(ev.MoveCopy(source, source))
    group.run(1.0)
    group.world.machines[target].process.resume()  # type: ignore[union-attr]
    group.run(20.0)
    assert {m.node for m in group.record.members} == before
    assert not any(m.leaving for m in group.record.members)
    group.until_healthy()


def test_a_move_is_not_forgotten_when_its_compare_and_set_loses() -> None:
    group = Group(1, nodes=3)
    source, target = group.replica_nodes[0], spare_of(group)
    group.world.store.unsure = 1.0
    group.feed(ev.MoveCopy(source, target))
    group.run(2.0)
    group.world.store.unsure = 0.0
    group.until(lambda: source not in nodes_of(group), "the move")
    assert target in nodes_of(group)


@pytest.mark.parametrize("replicas", [0, 1, 2])
@pytest.mark.parametrize("role", ["primary", "replica"])
def test_a_drained_node_is_left_without_lowering_the_redundancy(replicas: int, role: str) -> None:
    if role == "replica" and not replicas:
        return
    group = Group(replicas, nodes=replicas + 2)
    writer = group.attach(spare_of(group))
    assert writer.write() == 0
    victim = group.primary_node if role == "primary" else group.replica_nodes[0]
    watched(group, keeps(replicas + 1))
    group.cordon(victim, draining=True)
    told = group.explain()["doing"]
    assert victim not in nodes_of(group) or any("is being drained" in each for each in told)
    asked = writer.ask(RequestKind.WRITE, BLOCK_BYTES, b"y" * BLOCK_BYTES)
    group.until(lambda: victim not in nodes_of(group), "the drain")
    assert writer.answer(asked).errno == 0
    group.until_healthy()


def test_a_drain_without_a_spare_node_leaves_the_copy_and_moves_the_primary() -> None:
    group = Group(1)
    former = group.primary_node
    group.cordon(former, draining=True)
    group.until(lambda: group.primary_node != former, "another primary")
    group.run(10.0)
    assert former in nodes_of(group)
    assert len(group.record.in_sync) == 2
    told = group.explain()
    assert f"Node {former} already holds a copy of this group." in told["why"]


def test_a_drain_that_is_called_off_removes_what_is_surplus() -> None:
    group = Group(1, nodes=3)
    victim = group.replica_nodes[0]
    machine = group.world.machines[victim]
    machine.cordoned = machine.draining = True
    assert machine.process is not None
    machine.process.publish()
    group.until(lambda: len(group.record.members) == 3, "the new copy")
    group.cordon(victim, cordoned=False)
    group.until(lambda: len(group.record.members) == 2, "the end of the surplus")
    group.until_healthy()


def test_more_replicas_are_made_and_fewer_are_taken_out() -> None:
    group = Group(1, nodes=4)
    writer = group.attach()
    assert writer.write() == 0
    group.change(replicas=3)
    group.until(lambda: len(group.record.in_sync) == 4, "three replicas")
    assert writer.write(BLOCK_BYTES) == 0
    group.change(replicas=1)
    group.until(lambda: len(group.record.members) == 2, "one replica")
    group.run(1.0)
    assert writer.write(2 * BLOCK_BYTES) == 0
    assert sum(bool(m.copies) for m in group.world.machines.values()) == 2, "the data is gone"
    group.change(replicas=0)
    group.until(lambda: len(group.record.members) == 1, "none")
    assert writer.write(3 * BLOCK_BYTES) == 0


def test_of_too_many_copies_the_offline_one_goes_first() -> None:
    group = Group(2, nodes=3)
    victim = group.replica_nodes[0]
    group.kill(victim)
    group.until(lambda: group.online == 1, "the loss")
    group.change(replicas=1)
    group.until(lambda: victim not in nodes_of(group), "the removal")
    assert len(group.record.in_sync) == 2


def test_a_lost_copy_is_waited_for_as_long_as_declared() -> None:
    group = Group(1, nodes=3)
    group.change(member_missing_timeout_s=60.0)
    victim = group.replica_nodes[0]
    group.kill(victim)
    group.until(lambda: group.online == 0, "the loss")
    group.run(50.0)
    assert nodes_of(group) == {group.primary_node, victim}
    group.start(victim)
    group.until_healthy()
    assert nodes_of(group) == {group.primary_node, victim}
    group.kill(victim)
    group.until(lambda: group.online == 0, "the loss")
    group.run(61.0)
    group.until_healthy()
    assert victim not in nodes_of(group)


def test_an_evicted_copy_is_replaced_elsewhere_although_it_is_waited_for() -> None:
    group = Group(1, nodes=3)
    group.change(member_missing_timeout_s=600.0)
    victim = group.replica_nodes[0]
    group.kill(victim)
    group.until(lambda: group.online == 0, "the loss")
    group.feed(ev.Evict(victim))
    group.until_healthy()
    assert victim not in nodes_of(group)


def test_a_copy_that_was_wanted_before_it_is_evicted_is_taken_out_once() -> None:
    group = Group(1, nodes=2)
    (victim,) = group.replica_nodes
    group.kill(victim)
    group.until(lambda: group.online == 0, "the loss")
    group.feed(ev.AddCopy(victim))
    group.feed(ev.Evict(victim))
    group.until(lambda: bool(group.notes("copy-evicted")), "the eviction")
    group.run(5.0)
    group.start(victim)
    group.until_healthy()
    assert len(group.notes("copy-evicted")) == 1


def node(name: str, **changes: object) -> NodeRecord:
    fields = {"capacity_bytes": 100 * GIB, "free_bytes": 50 * GIB} | changes
    return NodeRecord(NodeName(name), "", "", **fields)  # type: ignore[arg-type]


def test_copies_are_spread_over_the_zones_of_those_that_stay() -> None:
    zones = {"n1": "a", "n2": "b", "n3": "a", "n4": "b"}
    nodes = {NodeName(n): node(n, labels={"zone": zone}) for n, zone in zones.items()}
    n1, n2, n3, _ = map(NodeName, zones)
    assert place(nodes, size_bytes=GIB, taken={n1}, spread="zone").node == n2
    # n1 is to go: what matters is to be apart from n2.
    chosen = place(nodes, size_bytes=GIB, taken={n1, n2}, spread="zone", apart_from={n2})
    assert chosen.node == n3
    assert "already holds" in chosen.reasons[n1]


def test_a_drained_node_takes_nothing() -> None:
    nodes = {NodeName("n1"): node("n1", draining=True)}
    placed = place(nodes, size_bytes=GIB, taken=())
    assert placed.node is None
    assert placed.reasons == {"n1": "is being drained"}


def test_a_member_that_leaves_is_still_one() -> None:
    group = Group(1, nodes=3)
    source, target = group.replica_nodes[0], spare_of(group)
    seen = watched(group, keeps(2))
    group.feed(ev.MoveCopy(source, target))
    group.until(lambda: source not in nodes_of(group), "the move")
    marked = [m for record in seen for m in record.members if m.leaving]
    assert {m.node for m in marked} == {source}
    assert all(m.state is CopyState.IN_SYNC for m in marked)
    assert GroupRecord.from_bytes(seen[0].to_bytes()) == seen[0]


def planned(replicas: int, names: str) -> list[Json]:
    """Return the plan for n1, which is the primary; replicas are on n2 and so on."""
    members = tuple(
        Member(CopyId(f"c{i}"), NodeName(f"n{i}"), CopyState.IN_SYNC)
        for i in range(1, replicas + 2)
    )
    volume = VolumeId("v1")
    spec = VolumeSpec(volume, "db", GIB, replicas)
    record = GroupRecord(volume, Epoch(1), CopyId("c1"), members)
    alive = {NodeName(n): node(n) for n in names.split()}
    return drain_plan(NodeName("n1"), {volume: spec}, {volume: record}, alive)


def test_the_plan_names_who_takes_over_and_where_the_copy_goes() -> None:
    (step,) = planned(1, "n1 n2 n3")
    assert (step["role"], step["promote"], step["copy_to"]) == ("primary", "n2", "n3")
    refuse_to_lower(NodeName("n1"), [step])
    (step,) = planned(0, "n1 n2")
    assert (step["promote"], step["copy_to"]) == (None, "n2")


def test_a_drain_that_would_lower_the_redundancy_is_refused() -> None:
    steps = planned(1, "n1 n2")
    assert "n2 already holds a copy of this group" in steps[0]["why_not"]
    with pytest.raises(ConflictError, match="no other node can take its copy of db"):
        refuse_to_lower(NodeName("n1"), steps)


def test_two_moves_to_the_only_spare_node_leave_no_copy_too_many() -> None:
    group = Group(1, nodes=3)
    writer = group.attach()
    assert writer.write() == 0
    former, other, spare = group.primary_node, group.replica_nodes[0], spare_of(group)
    watched(group, keeps(2))
    group.feed(ev.MoveCopy(former, spare))
    group.until(lambda: any(m.leaving for m in group.record.members), "the first move", 2.0)
    group.feed(ev.MoveCopy(other, spare))
    group.run(20.0)
    group.until_healthy()
    assert len(nodes_of(group)) == 2
