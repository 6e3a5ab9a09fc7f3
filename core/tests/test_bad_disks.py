"""Disks that cannot read, or answer nothing at all: served by other copies, on real group machines."""

import errno

from core.tests.groups import VOLUME, Group

from holdfast.errors import FaultReason
from holdfast.messages import RequestKind
from holdfast.model import CopyState
from holdfast.testing.simulation.disk import CopyDisk
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, NodeName


def disk_of(group: Group, node: NodeName) -> CopyDisk:
    return group.world.machines[node].copies[VOLUME]


def test_what_the_primary_cannot_read_is_served_from_a_replica_and_repaired() -> None:
    group = Group(2)
    writer = group.attach()
    assert writer.write(0, b"x") == 0
    disk = disk_of(group, group.primary_node)
    disk.unreadable = {0, 1}
    reply = writer.read(0)
    assert (reply.errno, bytes(reply.data)) == (0, b"x" * BLOCK_BYTES)
    assert not disk.unreadable
    assert len(group.notes("repaired")) == 1
    assert group.serves
    assert len(group.record.in_sync) == 3, "nobody was dropped"
    assert writer.write(0, b"y") == 0, "writes go on"


def test_a_repair_holds_nobody_longer_than_a_copy_may_take_to_answer() -> None:
    """R12: the copy that was asked first never answers, and is lost; the other one has the bytes."""
    group = Group(2)
    writer = group.attach()
    assert writer.write(0, b"x") == 0
    disk_of(group, group.primary_node).unreadable = {0}
    process = group.world.machines[group.replica_nodes[0]].process
    assert process is not None
    process.pumps[VOLUME].stalled_until = group.world.now + 1000.0
    read = writer.ask(RequestKind.READ, 0)
    assert writer.write(BLOCK_BYTES * 40, b"z") == 0
    assert bytes(writer.answer(read).data) == b"x" * BLOCK_BYTES


def test_a_read_over_several_chunks_is_put_together() -> None:
    group = Group(1)
    writer = group.attach()
    for number in range(14, 18):
        assert writer.write(number * BLOCK_BYTES, bytes([number])) == 0
    disk_of(group, group.primary_node).unreadable = {15, 16}
    request = writer.ask(RequestKind.READ, CHUNK_BYTES - BLOCK_BYTES)
    assert bytes(writer.answer(request).data) == bytes([15]) * BLOCK_BYTES
    assert bytes(writer.read(CHUNK_BYTES).data) == bytes([16]) * BLOCK_BYTES


def test_rotten_bytes_are_not_taken_for_a_repair() -> None:
    group = Group(2)
    writer = group.attach()
    assert writer.write(0, b"x") == 0
    first, second = group.replica_nodes
    disk_of(group, first).rot(0)
    disk_of(group, group.primary_node).unreadable = {0}
    assert bytes(writer.read(0).data) == b"x" * BLOCK_BYTES
    assert group.content(first)[0] == group.content(second)[0] == b"x" * BLOCK_BYTES


def test_an_error_is_seen_only_when_nobody_has_the_bytes() -> None:
    group = Group(1)
    writer = group.attach()
    assert writer.write(0, b"x") == 0
    for node in (group.primary_node, *group.replica_nodes):
        disk_of(group, node).unreadable = {0}
    assert writer.read(0).errno == errno.EIO
    assert writer.read(BLOCK_BYTES * 32).errno == 0, "the rest is served"
    assert len(group.record.in_sync) == 2
    assert writer.write(0, b"y") == 0
    assert bytes(writer.read(0).data) == b"y" * BLOCK_BYTES


def test_a_lone_copy_with_a_bad_sector_serves_the_rest() -> None:
    group = Group(0)
    writer = group.attach()
    assert writer.write(0, b"x") == 0
    disk_of(group, group.primary_node).unreadable = {0}
    assert writer.read(0).errno == errno.EIO
    assert writer.read(0).errno == errno.EIO
    assert len(group.notes("unreadable")) == 1, "told once"
    told = group.explain()
    assert any("cannot be read" in sentence for sentence in told["why"])
    assert any("backup" in each["sentence"] for each in told["help"])
    assert writer.write(BLOCK_BYTES * 40, b"z") == 0


def test_a_sync_goes_round_what_its_source_cannot_read() -> None:
    group = Group(2)
    writer = group.attach()
    victim = group.replica_nodes[0]
    assert writer.write(0, b"x") == 0
    group.kill(victim)
    group.until(lambda: len(group.record.in_sync) == 2, "the drop")
    group.wipe(victim)
    disk_of(group, group.primary_node).unreadable = {0}
    group.start(victim)
    group.until_healthy()
    assert group.content(victim)[0] == b"x" * BLOCK_BYTES


def test_a_chunk_that_nobody_can_read_keeps_a_new_copy_from_nothing_but_itself() -> None:
    group = Group(1)
    writer = group.attach()
    target = group.replica_nodes[0]
    for chunk in range(16):
        assert writer.write(chunk * CHUNK_BYTES, bytes([chunk + 1])) == 0
    blocks = CHUNK_BYTES // BLOCK_BYTES
    bad = (5, 6, 12)
    disk_of(group, group.primary_node).unreadable = {chunk * blocks for chunk in bad}
    group.kill(target)
    group.until(lambda: len(group.record.in_sync) == 1, "the drop")
    group.wipe(target)
    group.start(target)
    group.run(20.0)
    held = group.content(target)
    assert [c for c in range(16) if held.get(c * blocks) != bytes([c + 1]) * BLOCK_BYTES] == [*bad]
    assert len(group.record.in_sync) == 1, "it lacks what was acknowledged"
    told = group.explain()
    assert [s.split(" at ")[1].split()[0] for s in told["why"] if "cannot be read" in s] == [
        "320",
        "384",
        "768",
    ]
    assert len(group.notes("unreadable")) == len(bad), "each is told once"
    for chunk in bad:
        assert writer.write(chunk * CHUNK_BYTES, b"n") == 0
    group.until_healthy()
    assert group.content(target)[6 * blocks] == b"n" * BLOCK_BYTES
    assert not any("cannot be read" in sentence for sentence in group.explain()["why"])


def test_a_stalled_disk_of_the_primary_holds_nobody_longer_than_a_stalled_copy() -> None:
    group = Group(2)
    writer = group.attach(group.replica_nodes[1])
    former, pump = group.primary_node, group.pump
    assert pump is not None
    pump.stall(group.world.now + 60.0)
    asked = writer.ask(RequestKind.WRITE, 0, b"x" * BLOCK_BYTES)
    assert writer.answer(asked, within_s=10.5).errno == 0
    assert group.primary_node != former
    member = group.record.on_node(former)
    assert member is not None
    assert (member.state, member.reason) == (CopyState.OFFLINE, FaultReason.ACK_TIMEOUT)
    group.run(60.0)
    group.until_healthy()
    assert group.content(former)[0] == b"x" * BLOCK_BYTES


def test_one_is_patient_with_the_stalled_disk_of_the_last_copy() -> None:
    group = Group(1)
    writer = group.attach()
    former, pump = group.primary_node, group.pump
    assert pump is not None
    group.kill(*group.replica_nodes)
    group.until(lambda: group.online == 0, "the loss")
    pump.stall(group.world.now + 60.0)
    asked = writer.ask(RequestKind.WRITE, 0, b"x" * BLOCK_BYTES)
    group.run(50.0)
    assert writer.waits(asked)
    assert any("has answered nothing for" in sentence for sentence in group.explain()["why"])
    assert group.primary_node == former
    assert writer.answer(asked).errno == 0
