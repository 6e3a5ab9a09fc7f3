"""A disk comes back in an older state of its own, as from a backup: nothing that was written is lost."""

from copy import deepcopy

from core.tests.groups import VOLUME, Group

from holdfast.model import CopyState
from holdfast.sync.disk import CLEAR_AFTER_S
from holdfast.units import BLOCK_BYTES, NodeName


def grown_old(group: Group, victim: NodeName) -> None:
    """Write, and put `victim`'s disk, whose node is down, into a state of before its last return."""
    machine = group.world.machines[victim]
    writer = group.attach(next(n for n in group.world.machines if n != victim))
    assert writer.write(0, b"a") == 0
    group.run(3 * CLEAR_AFTER_S)  # Until no mark of write intent is left.

    def lose() -> None:
        group.kill(victim)
        group.until(
            lambda: CopyState.OFFLINE in {m.state for m in group.record.members}, "the drop"
        )

    lose()
    saved = deepcopy(machine.copies[VOLUME])
    group.start(victim)
    group.until_healthy()
    assert writer.write(0, b"b") == 0
    lose()
    machine.copies[VOLUME] = saved


def test_what_an_older_state_of_a_disk_lacks_is_found_though_no_mark_says_so() -> None:
    group = Group(2, nodes=3)
    victim = group.replica_nodes[0]
    grown_old(group, victim)
    group.start(victim)
    group.until_healthy()
    assert group.content(victim)[0] == group.content(group.primary_node)[0] == b"b" * BLOCK_BYTES


def test_it_is_found_as_well_when_the_node_dies_on_the_way() -> None:
    group = Group(2, nodes=3)
    victim = group.replica_nodes[0]
    grown_old(group, victim)
    group.start(victim)
    disk = group.world.machines[victim].copies[VOLUME]
    before = disk.superblock.epoch
    while disk.superblock.epoch == before:
        group.run(0.0001)
    assert group.content(victim)[0] == b"a" * BLOCK_BYTES
    group.kill(victim)
    group.start(victim)
    group.until_healthy()
    assert group.content(victim)[0] == group.content(group.primary_node)[0] == b"b" * BLOCK_BYTES
