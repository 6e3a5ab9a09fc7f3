"""Races that the specification or a simulated world has shown, each at its very moment."""

from __future__ import annotations

from collections.abc import Callable

import attrs
from core.tests.groups import VOLUME, Group

from holdfast.messages import EpochChange, RequestKind
from holdfast.model import Access, CopyState
from holdfast.sync import events as ev
from holdfast.sync.member import GroupMember
from holdfast.sync.roles import Role
from holdfast.units import BLOCK_BYTES, NodeName


def cut(group: Group, one: NodeName, other: NodeName) -> None:
    group.world.network.block(one, other)
    group.world.network.block(other, one)


def mend(group: Group, one: NodeName, other: NodeName) -> None:
    group.world.network.unblock(one, other)
    group.world.network.unblock(other, one)


def member_of(group: Group, node: NodeName) -> GroupMember:
    process = group.world.machines[node].process
    assert process is not None
    return process.pumps[VOLUME].member


def is_blocked(group: Group, node: NodeName) -> bool:
    process = group.world.machines[node].process
    pump = None if process is None else process.pumps.get(VOLUME)
    return pump is not None and pump.member.ctx.disk.blocked


def test_a_candidate_promises_nothing_at_the_epoch_that_it_has_only_read_of() -> None:
    """The epoch rose while the stream was cut, so the superblock of the candidate is behind.

    A promise would let the old primary answer reads for another `lease_s`, beside the new one.
    """
    group = Group(2)
    primary, (replica, other) = group.primary_node, group.replica_nodes
    epoch = group.record.epoch
    group.kill(other)
    cut(group, primary, replica)
    group.until(lambda: group.record.epoch > epoch, "drop of the dead copy")
    group.world.store.cut_off[primary] = 1
    member, old = member_of(group, replica), member_of(group, primary).primary
    assert old is not None
    group.world.store.slow_s = 4.0
    group.until(
        lambda: member.role is Role.CANDIDATE and member.asking.wanted is not None, "candidate"
    )
    assert member.ctx.epoch < member.ctx.record.epoch
    mend(group, primary, replica)
    for _ in range(20):
        group.run(0.05)
        assert member.role is Role.CANDIDATE
        assert old.lease_until() <= group.world.machines[primary].clock.mono(group.world.now)


def test_a_link_that_breaks_as_a_sync_begins_does_not_block_the_copy_for_good() -> None:
    group = Group(1)
    primary, (replica,) = group.primary_node, group.replica_nodes
    attached = group.attach()
    group.kill(replica)
    group.until(lambda: len(group.record.in_sync) == 1, "drop")
    attached.write(0)
    group.start(replica)
    limit = group.world.now + 20.0
    while not is_blocked(group, replica):
        assert group.world.now < limit, "no sync has begun"
        group.world.step()
    machine = group.world.machines[replica]
    assert machine.process is not None
    machine.process.pumps[VOLUME].stalled_until = group.world.now + 1.0
    attached.ask(RequestKind.WRITE, 0, b"y" * BLOCK_BYTES)
    group.until(lambda: not member_of(group, replica).ctx.disk.idle, "live write behind the mark")
    assert is_blocked(group, replica)
    group.world.network.reset(primary, replica)
    group.until_healthy()


def test_a_change_is_asked_for_by_the_record_in_the_store_and_not_by_an_older_one_of_the_stream() -> (
    None
):
    """A watch was quicker than the stream, whose record is of the same epoch and says less.

    Asked for at the version of the watch, a change of the older record undid what lay between: a
    volume whose writing was withdrawn became writable.
    """
    group = Group(1)
    member = member_of(group, group.replica_nodes[0])
    ctx, now = member.ctx, ev.Instant(group.world.now, group.world.now)
    before, version = ctx.record, ctx.version + 1
    newer = attrs.evolve(before, access=Access.READ_ONLY)
    member.step(ev.RecordSeen(newer, version), now)
    assert member.replica.link is not None
    told = EpochChange(ctx.epoch, before.to_bytes())
    member.step(ev.Received(member.replica.link, (told,)), now)
    ctx.rebooted = True
    asked = member.step(ev.Tick(), now)
    assert [type(effect) for effect in asked] == [ev.ReadRecord]
    (change,) = member.step(ev.RecordSeen(newer, version), now)
    assert isinstance(change, ev.CompareAndSet)
    assert (change.record.access, change.version) == (Access.READ_ONLY, version)


def test_a_primary_that_reaches_the_store_and_no_copy_goes_on_alone_and_says_so() -> None:
    """Decision 0015: nothing is lost, no other copy stands, and who cannot reach it waits."""
    group = Group(2, nodes=4)
    primary, replicas = group.primary_node, group.replica_nodes
    (outside,) = group.world.machines.keys() - {primary, *replicas}
    far = group.attach(outside)
    assert far.write(0, b"a") == 0
    for node in (*replicas, outside):
        cut(group, primary, node)
    waits = far.ask(RequestKind.WRITE, 0, b"b" * BLOCK_BYTES)
    group.until(lambda: len(group.record.in_sync) == 1, "the drops")
    group.run(20.0)
    assert group.primary_node == primary, "what it alone may have acknowledged stays"
    assert far.waits(waits)
    told = group.explain()
    assert any(s.startswith(f"{primary} goes on alone: it does not reach") for s in told["why"])
    assert any("Mend the network" in each["sentence"] for each in told["help"])
    for node in (*replicas, outside):
        mend(group, primary, node)
    assert far.answer(waits).errno == 0
    group.until_healthy()
    assert bytes(far.read(0).data) == b"b" * BLOCK_BYTES
    assert not any("alone" in sentence for sentence in group.explain()["why"])


def test_a_copy_joins_only_when_its_disk_has_what_was_flushed_without_it() -> None:
    """Its own last flush was behind: after a loss of power of all of them it might be promoted."""
    group = Group(2)
    primary, (replica, _) = group.primary_node, group.replica_nodes
    attached = group.attach(primary)
    group.kill(replica)
    group.until(lambda: len(group.record.in_sync) == 2, "drop")
    group.start(replica)
    copy = group.record.on_node(replica)
    role = member_of(group, primary).primary
    assert copy is not None
    assert role is not None

    def step_until(condition: Callable[[], object]) -> None:
        limit = group.world.now + 30.0
        while not condition():
            assert group.world.now < limit
            group.world.step()

    leg = role.legs[copy.copy]
    step_until(lambda: leg.job is not None and leg.job.flush_at is not None)
    process = group.world.machines[replica].process
    assert process is not None
    pump = process.pumps[VOLUME]
    pump.stalled_until = group.world.now + 1.0
    assert attached.write(0, b"b") == 0
    assert attached.answer(attached.ask(RequestKind.FLUSH)).errno == 0
    assert leg.job is not None
    flush_at = leg.job.flush_at
    assert flush_at is not None
    assert role.durable > flush_at
    step_until(lambda: pump.member.ctx.disk.durable >= flush_at)
    pump.stalled_until = group.world.now + 2.0
    group.until(lambda: copy.copy in group.record.in_sync, "join")
    assert pump.disk.stable[0] == b"b" * BLOCK_BYTES
    group.until_healthy()


def test_a_primary_that_was_away_takes_its_own_silence_for_nobody_elses() -> None:
    """It dropped every replica on its return, so that its loss a moment later was that of the volume.

    Seen at a load of 45: `benchmarks.failover` killed the only copy that was counted in.
    """
    group = Group(2)
    epoch, process = group.record.epoch, group.world.machines[group.primary_node].process
    assert process is not None
    for away_s in (1.6, 2.0, 2.4, 2.8):
        process.pause()
        group.run(away_s)
        process.resume()
        group.run(3.0)
        assert group.record.epoch == epoch, f"away for {away_s:g} s"


def test_a_copy_that_was_lost_while_its_primary_was_away_is_dropped_all_the_same() -> None:
    group = Group(2)
    primary, (replica, other) = group.primary_node, group.replica_nodes
    process = group.world.machines[primary].process
    assert process is not None
    cut(group, primary, replica)
    # Again and again: it is excused once, and sooner than the copy would stand.
    for _ in range(2):
        process.pause()
        group.run(1.2)
        process.resume()
        group.run(0.1)
    in_sync = {m.node for m in group.record.members if m.state is CopyState.IN_SYNC}
    assert in_sync == {primary, other}
    assert group.primary_node == primary
