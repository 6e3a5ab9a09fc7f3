"""What operators do while things go wrong: hand over, move, drain, and change what was declared.

Drawn and told like the faults, because their moments matter as much. Nothing here breaks anything; an
operator who would take the last good copy away is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from holdfast.model import CopyState
from holdfast.sync import events as ev
from holdfast.units import BLOCK_BYTES, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.faults import Fault
    from holdfast.testing.simulation.node import Machine
    from holdfast.testing.simulation.world import World

CALLED_OFF = 0.3
"""Of all moves."""


def _to_primary(world: World, volume: VolumeId, event: ev.Event) -> None:
    for process in world.processes():
        pump = process.pumps.get(volume)
        if pump is not None and pump.is_primary():
            process.run(pump.feed, event)


def _handover(world: World, fault: Fault) -> None:
    node = fault.nodes[0] if fault.amount < 0.5 else None
    _to_primary(world, fault.volume, ev.Handover(node, leave=False))


def _evict(world: World, fault: Fault) -> None:
    stored = world.store.records.get(fault.volume)
    if stored is None:
        return
    record = stored[0]
    member = record.on_node(fault.nodes[0])
    if member is None or member.copy == record.primary:
        return
    others = [m for m in record.members if m.state is CopyState.IN_SYNC and m != member]
    if len(others) > 1 or member.state is not CopyState.IN_SYNC:
        _to_primary(world, fault.volume, ev.Evict(fault.nodes[0]))


def _replicas(world: World, fault: Fault) -> None:
    most = world.config.nodes - 1
    replicas = int(fault.amount * (most + 1))
    world.store.change_spec(fault.volume, replicas=min(most, replicas))


def _policy(world: World, fault: Fault) -> None:
    policy = "hard" if fault.amount < 0.5 else "alwayson"
    options = {"grace_s": 1.0 + 8.0 * fault.amount} if policy == "hard" else {}
    world.store.change_spec(fault.volume, policy=policy, policy_options=options)
    world.store.policy_changed_at[fault.volume] = world.now


def _resize(world: World, fault: Fault) -> None:
    spec = world.store.specs.get(fault.volume)
    if spec is not None:
        # Not by whole chunks, so that a last chunk that was short grows as well.
        more = (1 + int(fault.amount * 40)) * BLOCK_BYTES
        world.store.change_spec(fault.volume, size_bytes=spec.size_bytes + more)


def _move(world: World, fault: Fault) -> None:
    stored = world.store.records.get(fault.volume)
    if stored is None or len(fault.nodes) < 2:
        return
    source, target = fault.nodes[:2]
    if stored[0].on_node(source) is not None and stored[0].on_node(target) is None:
        _to_primary(world, fault.volume, ev.MoveCopy(source, target))
        if fault.amount < CALLED_OFF:
            stay = ev.MoveCopy(source, source)
            world.after(fault.duration, _to_primary, world, fault.volume, stay)


def _drain(world: World, fault: Fault) -> None:
    machine = world.machines[fault.nodes[0]]
    set_draining(machine, draining=True)
    world.after(fault.duration * 2, partial(set_draining, machine, draining=False))


def set_draining(machine: Machine, *, draining: bool) -> None:
    """Let a node be emptied, or used again."""
    machine.cordoned = machine.draining = draining
    if machine.process is not None:
        machine.process.publish()


STRIKES: Mapping[str, Callable[[World, Fault], None]] = {
    "handover": _handover,
    "evict": _evict,
    "replicas": _replicas,
    "policy": _policy,
    "resize": _resize,
    "move": _move,
    "drain": _drain,
}
