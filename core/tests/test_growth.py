"""A volume grows while it is used, whatever happens meanwhile, and no failover takes it back."""

import errno

import pytest
from core.tests.groups import Attached, Group

from holdfast.messages import RequestKind
from holdfast.sync import events as ev
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, MIB

ODD = MIB + 3 * BLOCK_BYTES
"""Ends within a chunk."""


def sizes(group: Group) -> set[int]:
    disks = [machine.copies.get(group.record.volume) for machine in group.world.machines.values()]
    return {disk.size_bytes for disk in disks if disk is not None}


def grown(group: Group, writer: Attached, size_bytes: int) -> None:
    group.until(lambda: writer.size_bytes == size_bytes, "the new size")


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_the_new_size_is_served_when_every_copy_has_it(replicas: int) -> None:
    group = Group(replicas, size_bytes=ODD)
    writer = group.attach()
    assert writer.write(ODD - BLOCK_BYTES) == 0
    assert writer.write(ODD) == errno.ENOSPC
    group.change(size_bytes=3 * MIB)
    grown(group, writer, 3 * MIB)
    assert sizes(group) == {3 * MIB}
    assert writer.write(3 * MIB - BLOCK_BYTES) == 0
    assert writer.read(ODD - BLOCK_BYTES).data == b"x" * BLOCK_BYTES
    assert not any(writer.read(ODD).data)
    assert len(group.notes("resized")) == 1


def test_a_copy_that_was_away_grows_before_it_is_synced() -> None:
    group = Group(1, size_bytes=ODD)
    writer = group.attach()
    replica = group.replica_nodes[0]
    group.kill(replica)
    group.until(lambda: group.online == 0, "the loss")
    group.change(size_bytes=2 * MIB)
    grown(group, writer, 2 * MIB)
    assert writer.write(2 * MIB - BLOCK_BYTES) == 0
    assert sizes(group) == {ODD, 2 * MIB}
    group.start(replica)
    group.until_healthy()
    assert sizes(group) == {2 * MIB}
    assert len(group.content(replica)) == 1
    group.kill(group.primary_node)
    group.until(lambda: group.serves, "the takeover")
    assert not any(group.attach(replica).read(ODD).data)


def test_a_new_primary_that_had_grown_alone_grows_the_others_first() -> None:
    group = Group(2, size_bytes=ODD)
    first, second = group.replica_nodes
    for node in (group.primary_node, second):
        process = group.world.machines[node].process
        assert process is not None
        process.pumps[group.record.volume].stalled_until = group.world.now + 30
    group.change(size_bytes=2 * MIB)
    grown_alone = group.world.machines[first].copies[group.record.volume]
    group.until(lambda: grown_alone.size_bytes == 2 * MIB, "one grown copy")
    assert sizes(group) == {ODD, 2 * MIB}
    former = group.primary_node
    group.kill(former)
    group.until(lambda: group.serves, "a new primary")
    writer = group.attach()
    grown(group, writer, 2 * MIB)
    assert writer.write(2 * MIB - BLOCK_BYTES) == 0
    group.start(former)
    group.until_healthy()
    assert sizes(group) == {2 * MIB}


def test_growing_during_a_sync_leaves_equal_copies() -> None:
    group = Group(1, size_bytes=4 * MIB, nodes=3)
    writer = group.attach()
    for chunk in range(40):
        assert writer.write(chunk * CHUNK_BYTES, bytes([chunk + 1])) == 0
    source, target = (
        group.replica_nodes[0],
        next(n for n in group.world.machines if group.record.on_node(n) is None),
    )
    group.feed(ev.MoveCopy(source, target))
    group.change(size_bytes=5 * MIB)
    asked = writer.ask(RequestKind.WRITE, 0, b"y" * BLOCK_BYTES)
    assert writer.answer(asked).errno == 0
    grown(group, writer, 5 * MIB)
    assert writer.write(5 * MIB - BLOCK_BYTES) == 0
    group.until(lambda: source not in [m.node for m in group.record.members], "the move")
    group.until_healthy()
    assert group.content(target) == group.content(group.primary_node)


def test_what_growing_waits_for_is_explained() -> None:
    group = Group(1)
    replica = group.replica_nodes[0]
    process = group.world.machines[replica].process
    assert process is not None
    process.pumps[group.record.volume].stalled_until = group.world.now + 3
    group.change(size_bytes=2 * MIB)
    group.run(1.0)
    assert group.explain()["doing"] == [
        f"The volume grows from 1 MiB to 2 MiB; waiting for the copy on {replica}."
    ]
    group.run(5.0)
    assert not group.explain()["doing"]


def test_a_copy_that_cannot_grow_for_too_long_is_lost() -> None:
    group = Group(1, "alwayson")
    writer = group.attach()
    replica = group.replica_nodes[0]
    process = group.world.machines[replica].process
    assert process is not None
    process.pumps[group.record.volume].stalled_until = group.world.now + 60
    group.change(size_bytes=2 * MIB)
    grown(group, writer, 2 * MIB)
    assert group.online == 0
    group.run(60.0)
    group.until_healthy()
    assert sizes(group) == {2 * MIB}
