"""What goes wrong, when: a list drawn from the seed before the world begins.

Each fault carries its own end (how long a node is down, when a partition heals), so a shorter list is
still a sensible one; that is what makes shrinking work. A fault that would destroy the last good copy
of acknowledged data by itself, which no protocol survives, does nothing instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from holdfast.errors import FaultReason
from holdfast.testing.simulation import effect, operators, rot
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.disk import CopyDisk
    from holdfast.testing.simulation.node import Machine
    from holdfast.testing.simulation.pump import Pump
    from holdfast.testing.simulation.world import Config, World


@frozen
class Fault:
    """One fault of a schedule."""

    number: int
    """Its name in a replay line."""
    time: float
    kind: str
    nodes: tuple[NodeName, ...] = ()
    duration: float = 0.0
    amount: float = 0.0
    volume: VolumeId = VolumeId("")

    def __str__(self) -> str:
        """Return one line for people."""
        parts = [f"#{self.number} {self.time:.3f} s {self.kind}", *self.nodes]
        if self.volume:
            parts.append(self.volume)
        if self.duration:
            parts.append(f"for {self.duration:.2f} s")
        if self.amount:
            parts.append(f"({self.amount:.2f})")
        return " ".join(parts)


KINDS: dict[str, int] = {
    "kill": 10,
    "power": 6,
    "power-all": 1,
    "pause": 6,
    "partition": 6,
    "partition-one-way": 4,
    "isolate": 4,
    "reset": 6,
    "clog": 3,
    "store-down": 4,
    "store-cut": 3,
    "store-slow": 2,
    "store-unsure": 3,
    "disk-stall": 4,
    "disk-error": 2,
    "disk-full": 2,
    "bad-sectors": 3,
    "rot": 2,
    "misdirected": 2,
    "fsync-error": 2,
    "wipe": 2,
    "wall-jump": 2,
    "stop": 3,
    "handover": 3,
    "evict": 2,
    "replicas": 2,
    "remount": 2,
    "takeover": 1,
    "resize": 2,
    "move": 2,
    "drain": 2,
    "policy": 2,
}
"""Kind to weight."""


def draw(config: Config) -> list[Fault]:
    """Return the faults of a world, by time."""
    rng = random.Random(f"{config.seed}/faults")
    names = [NodeName(f"n{i + 1}") for i in range(config.nodes)]
    volumes = [VolumeId(f"v{i + 1}") for i in range(config.volumes)]
    # A few kinds for each seed, so that their combinations are tried in depth.
    kinds = rng.sample(sorted(KINDS), rng.randrange(2, 8))
    weights = [KINDS[kind] for kind in kinds]
    every_s = rng.choice((0.4, 1.0, 2.0, 4.0))
    faults: list[Fault] = []
    time = config.calm_s
    while True:
        time += rng.expovariate(1.0 / every_s)
        if time > config.calm_s + config.faults_s:
            return faults
        kind = rng.choices(kinds, weights)[0]
        rng.shuffle(names)
        duration = rng.choice((0.05, 0.3, 1.0, 2.5, 4.0, 8.0)) * rng.uniform(0.5, 1.5)
        faults.append(
            Fault(
                len(faults),
                time,
                kind,
                tuple(names[:2]),
                duration,
                rng.random(),
                rng.choice(volumes),
            )
        )
        if rng.random() < 0.15:
            # Two in quick succession.
            time += rng.random() * 0.02


def plant(world: World, faults: list[Fault]) -> None:
    """Let the faults happen in the world."""
    for fault in faults:
        world.at(fault.time, _strike, world, fault)


def _strike(world: World, fault: Fault) -> None:
    if any(name.startswith("@") for name in fault.nodes):
        nodes = tuple(_meant(world, fault, name) for name in fault.nodes)
        if "" in nodes:
            return
        fault = evolve(fault, nodes=nodes)
    world.trace("fault", fault)
    before = effect.look(world)
    _STRIKES[fault.kind](world, fault)
    world.struck[fault.kind] += 1
    world.struck[f"{fault.kind}!"] += effect.look(world) != before


def _meant(world: World, fault: Fault, name: NodeName) -> NodeName:
    """Return the node that `@primary`, `@replica`, `@other`, `@spare` or `@writer` means now, or nothing."""
    record, _ = world.store.records[fault.volume]
    others = [m.node for m in record.members if m.copy != record.primary]
    spare = [n for n in world.machines if record.on_node(n) is None]
    meant = {
        "@primary": [record.primary_member.node],
        "@replica": others[:1],
        "@other": others[1:2],
        "@spare": spare[:1],
        "@writer": [record.attached_node] if record.attached_node else [],
    }.get(name, [name])
    return meant[0] if meant else NodeName("")


def heal(world: World) -> None:
    """End every fault that still goes on; the operator's work when all is over."""
    network, store = world.network, world.store
    for pair in list(network.blocked):
        network.blocked[pair] = 1
        network.unblock(*pair)
    network.clogged.clear()
    store.down = 0
    store.cut_off.clear()
    store.slow_s = store.unsure = 0.0
    for machine in world.machines.values():
        for disk in machine.copies.values():
            # What no other copy has is given back from elsewhere; no group can.
            disk.unreadable.clear()
        machine.down_until = min(machine.down_until, world.now)
        operators.set_draining(machine, draining=False)
        process = machine.process
        if process is None:
            machine.start()
        elif process.paused:
            process.resume()
        for pump in [] if machine.process is None else machine.process.pumps.values():
            pump.stalled_until = 0.0
            pump.faults.clear()


# -- processes and machines ------------------------------------------------------------------------


def _machine(world: World, fault: Fault) -> Machine:
    return world.machines[fault.nodes[0]]


def _kill(world: World, fault: Fault) -> None:
    machine = _machine(world, fault)
    machine.kill()
    machine.start_at(world.now + fault.duration)


def _power(world: World, fault: Fault) -> None:
    machine = _machine(world, fault)
    machine.lose_power()
    machine.start_at(world.now + fault.duration)


def _power_all(world: World, fault: Fault) -> None:
    for number, machine in enumerate(world.machines.values()):
        machine.lose_power()
        machine.start_at(world.now + fault.duration + fault.amount * number)


def _pause(world: World, fault: Fault) -> None:
    process = _machine(world, fault).process
    if process is not None and not process.paused:
        process.pause()
        world.after(fault.duration, process.run_anyway, process.resume)


def _wipe(world: World, fault: Fault) -> None:
    """A node comes back with empty disks under its old name."""
    machine = _machine(world, fault)
    for volume, disk in machine.copies.items():
        if not _is_spare(world, volume, disk.superblock.copy):
            return
    machine.kill()
    machine.copies.clear()
    machine.start_at(world.now + fault.duration)


def _is_spare(world: World, volume: VolumeId, copy: str) -> bool:
    """Whether another in-sync copy holds every acknowledged write."""
    record, _ = world.store.records[volume]
    return record.primary != copy and any(
        disk.superblock.copy != copy and not disk.tainted
        for _, disk in world.invariants.in_sync_disks(record)
    )


def _stop(world: World, fault: Fault) -> None:
    machine = _machine(world, fault)
    if machine.process is not None:
        machine.process.run(_stop_process, machine, fault.amount < 0.8)
        at = world.now + fault.duration + 6.0
        machine.down_until = max(machine.down_until, at)
        world.at(at, _start_when_stopped, world, machine)


def _start_when_stopped(world: World, machine: Machine) -> None:
    if machine.process is not None and machine.process.stopping:
        world.after(1.0, _start_when_stopped, world, machine)
    else:
        machine.start()


def _stop_process(machine: Machine, handover: bool) -> None:
    if machine.process is not None:
        machine.process.stop(handover=handover)


def _wall_jump(world: World, fault: Fault) -> None:
    _machine(world, fault).clock.wall_offset += (fault.amount - 0.5) * 7200


# -- network ---------------------------------------------------------------------------------------


def _partition(world: World, fault: Fault) -> None:
    _block(world, [fault.nodes, fault.nodes[::-1]], fault.duration)


def _partition_one_way(world: World, fault: Fault) -> None:
    _block(world, [fault.nodes], fault.duration)


def _isolate(world: World, fault: Fault) -> None:
    name = fault.nodes[0]
    others = [other for other in world.machines if other != name]
    pairs = [(name, other) for other in others] + [(other, name) for other in others]
    _block(world, pairs, fault.duration)
    if fault.amount < 0.5:
        _store_cut(world, fault)


def _block(world: World, pairs: Sequence[tuple[NodeName, ...]], duration: float) -> None:
    for source, target in pairs:
        world.network.block(source, target)
        world.after(duration, _unblock, world, source, target)


def _unblock(world: World, source: NodeName, target: NodeName) -> None:
    if (source, target) in world.network.blocked:
        world.network.unblock(source, target)


def _reset(world: World, fault: Fault) -> None:
    world.network.reset(*fault.nodes)


def _clog(world: World, fault: Fault) -> None:
    pairs = [fault.nodes, fault.nodes[::-1]] if fault.amount < 0.5 else [fault.nodes]
    for source, target in pairs:
        world.network.clogged[source, target] = fault.amount * 2
        world.after(fault.duration, _unclog, world, source, target)


def _unclog(world: World, source: NodeName, target: NodeName) -> None:
    world.network.clogged.pop((source, target), None)


# -- store -----------------------------------------------------------------------------------------


def _store_down(world: World, fault: Fault) -> None:
    world.store.down += 1
    world.after(fault.duration, _store_up, world)


def _store_up(world: World) -> None:
    world.store.down = max(0, world.store.down - 1)


def _store_cut(world: World, fault: Fault) -> None:
    name = fault.nodes[0]
    world.store.cut_off[name] = world.store.cut_off.get(name, 0) + 1
    world.after(fault.duration, _store_uncut, world, name)


def _store_uncut(world: World, name: NodeName) -> None:
    world.store.cut_off[name] = max(0, world.store.cut_off.get(name, 0) - 1)


def _store_slow(world: World, fault: Fault) -> None:
    world.store.slow_s = fault.amount * 3
    world.after(fault.duration, setattr, world.store, "slow_s", 0.0)


def _store_unsure(world: World, fault: Fault) -> None:
    world.store.unsure = 0.6
    world.after(fault.duration, setattr, world.store, "unsure", 0.0)


# -- disks -----------------------------------------------------------------------------------------


def _pump(world: World, fault: Fault) -> Pump | None:
    process = _machine(world, fault).process
    return None if process is None else process.pumps.get(fault.volume)


def _disk_stall(world: World, fault: Fault) -> None:
    pump = _pump(world, fault)
    if pump is not None:
        pump.stall(world.now + fault.duration * 3)


def _disk_error(world: World, fault: Fault) -> None:
    pump = _pump(world, fault)
    if pump is not None:
        kind = ("apply", "read", "metadata")[int(fault.amount * 3)]
        pump.faults[kind] = FaultReason.IO_ERROR


def _others(world: World, pump: Pump) -> list[CopyDisk]:
    """Return the disks of the other in-sync copies that have kept everything."""
    record, _ = world.store.records[pump.volume]
    disks = (disk for _, disk in world.invariants.in_sync_disks(record))
    return [disk for disk in disks if disk is not pump.disk and not disk.tainted]


def _bad_sectors(world: World, fault: Fault) -> None:
    """Some blocks of one copy, of those that are much used, cannot be read."""
    pump = _pump(world, fault)
    if pump is None:
        return
    others = _others(world, pump)
    hot = world.loads[fault.volume].hot
    first = int(fault.amount * len(hot))
    wanted = {hot[(first + n) % len(hot)] for n in range(6)}
    # What has rotted and was half overwritten has a hash that fits: no other copy can stand in.
    sick = world.invariants.damage.ever.get(fault.volume, set())
    if any(block * BLOCK_BYTES // CHUNK_BYTES in sick for block in wanted):
        return
    if others and all(wanted.isdisjoint(disk.unreadable) for disk in others):
        pump.disk.unreadable |= wanted


def _disk_full(world: World, fault: Fault) -> None:
    pump = _pump(world, fault)
    if pump is not None:
        pump.faults["apply"] = FaultReason.NO_SPACE


def _fsync_error(world: World, fault: Fault) -> None:
    """An fsync fails; that of the last copy in a fifth of the cases."""
    pump = _pump(world, fault)
    if pump is not None and (fault.amount < 0.2 or _others(world, pump)):
        pump.faults["flush"] = FaultReason.FLUSH_FAILED


# -- consumers -------------------------------------------------------------------------------------


def _remount(world: World, fault: Fault) -> None:
    _reattach(world, fault, force=False)


def _takeover(world: World, fault: Fault) -> None:
    """A consumer that was refused takes the volume by force; if none was, the holder starts anew."""
    for process in world.processes():
        for client in process.clients.get(fault.volume, ()):
            if not client.is_attached and not client.read_only:
                client.force_next = True
                return
    _reattach(world, fault, force=True)


def _reattach(world: World, fault: Fault, *, force: bool) -> None:
    for process in world.processes():
        for client in process.clients.get(fault.volume, ()):
            process.run(_reattach_one, client.reattach, force)


def _reattach_one(reattach: Callable[..., None], force: bool) -> None:
    reattach(force=force)


_STRIKES: dict[str, Callable[[World, Fault], None]] = {
    "kill": _kill,
    "power": _power,
    "power-all": _power_all,
    "pause": _pause,
    "partition": _partition,
    "partition-one-way": _partition_one_way,
    "isolate": _isolate,
    "reset": _reset,
    "clog": _clog,
    "store-down": _store_down,
    "store-cut": _store_cut,
    "store-slow": _store_slow,
    "store-unsure": _store_unsure,
    "disk-stall": _disk_stall,
    "disk-error": _disk_error,
    "disk-full": _disk_full,
    "bad-sectors": _bad_sectors,
    "rot": rot.strike,
    "misdirected": rot.strike,
    "fsync-error": _fsync_error,
    "wipe": _wipe,
    "wall-jump": _wall_jump,
    "stop": _stop,
    "remount": _remount,
    "takeover": _takeover,
    **operators.STRIKES,
}
