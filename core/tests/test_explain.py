"""What `holdfast explain` says is what then happens, in every state that a group gets into."""

import json

import attrs
import pytest
from core.tests.groups import VOLUME, Group, policy_of

from holdfast.errors import FaultReason
from holdfast.messages import RequestKind
from holdfast.model import CopyState
from holdfast.node.explain import explain
from holdfast.node.service import Json
from holdfast.node.status import volume_status
from holdfast.sync.roles import Role
from holdfast.testing.simulation import faults as flt
from holdfast.testing.simulation.world import World, drawn_config
from holdfast.units import MIB, Epoch, NodeName


def sentences(told: Json) -> str:
    parts = [*told["why"], *told["doing"]]
    parts += [each["sentence"] for each in (*told["next"], *told["help"])]
    return "\n".join(parts)


def commands(told: Json) -> list[str]:
    return [each["command"] for each in told["help"] if each["command"]]


def test_a_healthy_volume_needs_no_help() -> None:
    told = Group(2).explain()
    assert (told["health"], told["told_by"]) == ("healthy", "primary")
    assert told["why"] == ["All copies are in sync."]
    assert not told["doing"]
    assert not told["next"]
    assert not told["help"]
    assert told["since"] is not None


def test_a_volume_without_replicas_is_whole() -> None:
    assert Group(0).explain()["why"] == ["The only declared copy is in sync."]


def test_a_lost_replica_without_a_spare_node() -> None:
    group = Group(1, "hard", grace_s=30.0)
    replica = group.replica_nodes[0]
    group.kill(replica)
    group.until(lambda: group.online == 0, "the loss")
    group.run(1.0)
    told = group.explain()
    assert told["health"] == "degraded"
    assert f"The copy on {replica} is offline: its node stopped answering." in told["why"]
    assert "goes on alone" not in sentences(told), "its process is gone, and no network is"
    assert f"Node {replica} already holds a copy of this group." in told["why"]
    assert f"holdfast node start {replica}" in commands(told)
    assert f"holdfast volume set {VOLUME} --policy threshold --set threshold=0" in commands(told)
    assert told["since"] == min(m.since for m in group.record.members if m.since > 0)
    (ends,) = [each["at"] for each in told["next"] if each["at"] is not None]
    group.run(ends - group.wall - 0.1)
    assert group.record.access.value == "read-write"
    group.run(1.5)
    assert group.record.access.value == "read-only"
    told = group.explain()
    assert "Writing can resume with 1 replica online; now 0." in sentences(told)
    assert "accept writes with fewer replicas, and then attach it anew" in sentences(told)


def test_a_cordoned_node_is_named_with_the_command_that_frees_it() -> None:
    group = Group(1, nodes=3)
    spare = next(n for n in group.world.machines if group.record.on_node(n) is None)
    group.cordon(spare)
    group.kill(group.replica_nodes[0])
    group.until(lambda: group.online == 0, "the loss")
    group.run(1.0)
    told = group.explain()
    assert f"Node {spare} is cordoned." in told["why"]
    assert f"holdfast node uncordon {spare}" in commands(told)
    group.cordon(spare, cordoned=False)
    group.until_healthy()


def test_a_replacement_that_waits_says_until_when() -> None:
    group = Group(1, nodes=3)
    group.change(member_missing_timeout_s=60.0)
    victim = group.replica_nodes[0]
    group.kill(victim)
    group.until(lambda: group.online == 0, "the loss")
    group.run(1.0)
    told = group.explain()
    (at,) = [each["at"] for each in told["next"] if each["at"] is not None]
    assert commands(told)[:2] == [
        f"holdfast node start {victim}",
        f"holdfast volume evict {VOLUME} {victim}",
    ]
    group.run(at - group.wall - 0.1)
    assert len(group.record.members) == 2
    group.until(lambda: group.online == 1, "a replacement", 1.5)


def test_a_silent_primary_is_succeeded_as_told() -> None:
    group = Group(2)
    former = group.primary_node
    group.kill(former)
    group.run(0.5)
    told = group.explain(silent=True)
    assert told["health"] == "offline"
    assert "An in-sync copy takes over as soon as it may" in group.status(silent=True)["reason"]
    assert f"The primary's node {former} does not answer." in told["why"]
    group.world.store.nodes.pop(former)
    told = group.explain()
    assert told["health"] == "offline"
    assert f"The primary's node {former} does not run." in told["why"]
    (doing,) = told["doing"]
    assert "takes over once" in doing
    group.until(lambda: group.primary_node != former, "a new primary", 4.0)
    assert group.primary_node in doing


def test_the_use_by_a_process_that_is_gone_is_over() -> None:
    group = Group(1)
    node = group.alive[group.primary_node]
    for process, told in ((node.process, node.name), ("gone", None)):
        record = attrs.evolve(group.record, attached_node=node.name, attached_process=process)
        assert volume_status(group.spec, record, group.alive, None)["attached"] == told
    # A node that is away may have the same process still.
    record = attrs.evolve(group.record, attached_node=NodeName("away"), attached_process="gone")
    assert volume_status(group.spec, record, group.alive, None)["attached"] == "away"


def test_the_only_holder_of_acknowledged_writes_is_named() -> None:
    group = Group(1)
    replica, last = group.replica_nodes[0], group.primary_node
    group.kill(replica)
    group.until(lambda: group.online == 0, "the loss")
    group.kill(last)
    group.start(replica)
    group.run(12.0)
    told = group.explain()
    assert told["health"] == "offline"
    assert f"Only the copy on {last} held every acknowledged write" in sentences(told)
    assert commands(told) == [f"holdfast node start {last}"]
    assert f"Nobody but {last} can serve without losing writes" in group.status()["reason"]
    group.start(last)
    group.until_healthy()


def test_a_volume_that_was_made_just_now_is_not_told_as_lost() -> None:
    group = Group(2)
    new = attrs.evolve(group.record, epoch=Epoch(1), members=(group.record.primary_member,))
    first, member = group.primary_node, group.member
    assert member is not None
    assert member.primary is not None
    member.primary.serving = False
    for record, silent, told in (
        (new, False, f"No primary serves yet: {first} is about to."),
        (new, True, f"No primary serves: {first} was the last one. Nobody but {first} can"),
        (group.record, False, f"No primary serves: {first} was the last one. An in-sync copy"),
    ):
        asked = None if silent else member
        status = volume_status(group.spec, record, group.alive, asked, silent=silent)
        assert (status["health"], status["reason"][: len(told)]) == ("offline", told)


def test_a_failed_disk_is_why() -> None:
    group = Group(0)
    writer = group.attach()
    assert group.pump is not None
    group.pump.faults["read"] = FaultReason.IO_ERROR
    writer.ask(RequestKind.READ)
    group.run(1.0)
    told = group.explain()
    assert told["health"] == "offline"
    assert "disk" in sentences(told)
    assert "opened anew" in sentences(told)


def test_a_node_that_runs_does_not_say_that_it_does_not() -> None:
    group = Group(0)
    node = group.primary_node
    group.kill(node)
    group.start(node)

    def is_candidate() -> bool:
        return group.member is not None and group.member.role is Role.CANDIDATE

    group.until(is_candidate, "the copy to be opened", step_s=0.001)
    # A store that cannot be written, such as one on a full disk, renews no lease.
    group.world.store.down = 1
    group.world.store.nodes.clear()
    group.run(4.0)
    told = group.explain()
    assert f"The copy on {node} is primary by the group record, but does not serve." in told["why"]
    assert "and the state store answers" in sentences(told)
    assert commands(told) == []


def test_a_full_disk_is_told_before_and_between_its_failures() -> None:
    group = Group(1)
    node = group.replica_nodes[0]
    known, session = group.world.store.nodes[node]
    group.world.store.nodes[node] = (
        attrs.evolve(known, capacity_bytes=MIB, free_bytes=4096),
        session,
    )
    told = group.explain()
    assert f"{node} has 4 KiB left for data; what needs more fails there." in told["why"]
    assert f"Make room on {node}" in sentences(told)


def test_a_change_that_waits_for_the_store_is_told() -> None:
    group = Group(2)
    group.world.store.down = 1
    group.kill(group.replica_nodes[0])
    group.run(4.0)
    assert "The state store does not answer" in sentences(group.explain())
    group.world.store.down = 0


@pytest.mark.parametrize("seed", range(1, 13))
def test_every_state_of_a_troubled_world_can_be_explained(seed: int) -> None:
    """Nothing crashes, nothing is empty, and a volume in trouble always has a reason."""
    world = World(drawn_config(seed))
    flt.plant(world, flt.draw(world.config))
    for step in range(1, 90):
        world.run(step * 0.35)
        alive = {name: node for name, (node, _) in world.store.nodes.items()}
        for volume, (record, _) in world.store.records.items():
            process = world.machines[record.primary_member.node].process
            pump = None if process is None else process.pumps.get(volume)
            member = None if pump is None else pump.member
            spec = world.store.specs[volume]
            serves = member is not None and member.primary is not None
            known = member.ctx.record if member is not None and serves else record
            told = explain(spec, known, alive, member, policy_of(spec))
            assert json.loads(json.dumps(told)) == told
            assert told["why"], (volume, record)
            if told["health"] == "healthy":
                others = [m for m in known.members if m.copy != known.primary]
                in_sync = sum(m.state is CopyState.IN_SYNC for m in others)
                assert in_sync >= spec.replicas, "what is surplus may be on its way out"
            else:
                assert told["doing"] or told["next"] or told["help"], (told, record)


def test_a_copy_that_may_lack_unflushed_writes_waits_and_says_so() -> None:
    group = Group(1)
    first, second = group.primary_node, group.replica_nodes[0]
    writer = group.attach()
    assert writer.write() == 0
    for node in (first, second):
        machine = group.world.machines[node]
        machine.down_until = 1e9
        machine.lose_power()
    group.start(second)
    group.run(15.0)
    told = group.explain()
    assert told["health"] == "offline"
    assert f"The machine of {second} restarted without a clean stop" in sentences(told)
    assert commands(told) == [
        f"holdfast node start {first}",
        f"holdfast volume promote {VOLUME} {second} --force",
    ]
    group.start(first)
    group.until_healthy()
