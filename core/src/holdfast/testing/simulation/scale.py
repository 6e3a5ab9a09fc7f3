"""A large cluster that loses a zone: what that costs the state store, and how long it takes.

    python -m holdfast.testing.simulation.scale --nodes 1000 --volumes 10000 --zones 10

The group machines, heartbeats and placement are the real ones; volumes are idle and empty, so the
time to redundancy is the protocol's own: detection, failover, placement, joining. What the copying
of data takes on top depends on disks and network and is measured elsewhere.

A record is told to the nodes that its group is about; what the store would have to send to all who
watch it is counted. Invariants are not checked here: they cost more than what is measured.
"""

from __future__ import annotations

import argparse
import heapq
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from holdfast.model import CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.sync.placement import SPREAD_LABEL
from holdfast.testing.simulation.store import SESSION_TTL_S, Store, Watcher
from holdfast.testing.simulation.world import Config, World
from holdfast.units import MIB, CopyId, Epoch, NodeName, VolumeId

NODES_TOLD_EVERY_S = 0.5
SETTLE_S = 40.0
"""Virtual seconds within which everything must be healthy, before and after the loss."""


class _QuietStore(Store):
    """Counts operations by second; tells what concerns a node, and of nodes in batches."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.by_second: Counter[int] = Counter()
        self.writes = 0
        self.told = 0
        self._nodes_due = False

    def _on_cas(self, *args: object) -> None:
        self.by_second[int(self.world.now)] += 1
        super()._on_cas(*args)  # type: ignore[arg-type]

    def _on_read(self, *args: object) -> None:
        self.by_second[int(self.world.now)] += 1
        super()._on_read(*args)  # type: ignore[arg-type]

    def renew(self, process: Watcher, record: NodeRecord) -> None:
        self.by_second[int(self.world.now)] += 1
        super().renew(process, record)

    def write(self, record: GroupRecord) -> None:
        before = self.records.get(record.volume)
        self.version += 1
        self.writes += 1
        self.records[record.volume] = (record, self.version)
        members = (*record.members, *(() if before is None else before[0].members))
        machines = self.world.machines
        self.told += sum(1 for m in machines.values() if m.process is not None)
        for name in dict.fromkeys(m.node for m in members):
            process = machines[name].process
            if process is not None:
                self._tell_later(process, record.volume)

    def begin_watching(self, process: Watcher) -> None:
        """Nothing is there yet."""

    def _nodes_changed(self) -> None:
        if not self._nodes_due:
            self._nodes_due = True
            self.world.after(NODES_TOLD_EVERY_S, self._tell_all_nodes)
        self.world.after(SESSION_TTL_S + 0.1, self._expire)

    def _tell_all_nodes(self) -> None:
        self._nodes_due = False
        nodes = {name: record for name, (record, _) in self.nodes.items()}
        for process in self.world.processes():
            process.run(process.on_nodes, nodes)


class _LargeWorld(World):
    """A world in which nothing is checked and nobody writes."""

    def run(self, until: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, args = heapq.heappop(heap)
            self.events += 1
            action(*args)
        self.now = until

    def trace(self, *words: object) -> None:
        """Nobody reads it."""

    def _checkpoint(self) -> None:
        """Nothing is checked."""


@frozen
class Result:
    """What the loss of a zone has cost."""

    nodes: int
    volumes: int
    lost_nodes: int
    affected: int
    """Volumes that had a copy in the zone."""
    failovers: int
    """Those whose primary was there."""
    serving_s: float
    """Until every volume had a serving primary again, virtual seconds."""
    redundant_s: float
    """Until every volume had all its copies in sync again."""
    operations: int
    """Of the state store, on behalf of the loss: compare-and-sets and reads."""
    peak: int
    """The most operations in a second, renewals of node leases included."""
    idle: float
    """Operations a second before the loss: the renewals."""
    told: int
    """What a store tells that every node watches: writes of records times nodes."""
    memory_bytes: int
    events: int
    took_s: float


def lose_a_zone(
    nodes: int, volumes: int, zones: int, *, replicas: int = 2, seed: int = 1
) -> Result:
    """Build a cluster, take a whole zone away, and wait until every volume is healthy."""
    began = time.perf_counter()
    world = _LargeWorld(Config(seed, nodes=nodes, volumes=0, clients=0, keep_trace=False))
    store = world.store = _QuietStore(world)
    names = list(world.machines)
    zone_of = {name: number % zones for number, name in enumerate(names)}
    for name, machine in world.machines.items():
        machine.labels = {"zone": f"z{zone_of[name]}"}
    world.run(2.0)
    for number in range(volumes):
        world.at(2.0 + 8.0 * number / volumes, _create, world, number, zone_of, replicas)
    _until(world, lambda: len(store.records) == volumes and _all(world), 10.0 + SETTLE_S)
    world.run(world.now + 3.0)
    idle_from = int(world.now)
    world.run(world.now + 4.0)
    idle = sum(store.by_second[idle_from + at] for at in range(4)) / 4
    lost = {name for name in names if zone_of[name] == 0}
    records = [record for record, _ in store.records.values()]
    affected = sum(any(m.node in lost for m in record.members) for record in records)
    failovers = sum(record.primary_member.node in lost for record in records)
    operations, told = store.operations, store.told
    struck = world.now
    for name in lost:
        world.machines[name].down_until = float("inf")
        world.machines[name].lose_power()
    _until(world, lambda: _all(world, members=False), struck + SETTLE_S)
    serving_s = world.now - struck
    _until(world, lambda: _all(world), struck + SETTLE_S)
    redundant_s = world.now - struck
    seconds = range(int(struck), int(world.now) + 1)
    return Result(
        nodes,
        volumes,
        len(lost),
        affected,
        failovers,
        serving_s,
        redundant_s,
        store.operations - operations,
        max(store.by_second[second] for second in seconds),
        idle,
        store.told - told,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        world.events,
        time.perf_counter() - began,
    )


def _create(world: World, number: int, zone_of: dict[NodeName, int], replicas: int) -> None:
    volume = VolumeId(f"v{number + 1}")
    chosen: list[NodeName] = []
    names = list(zone_of)
    while len(chosen) < replicas + 1:
        name = names[world.rng.randrange(len(names))]
        if all(zone_of[name] != zone_of[other] for other in chosen):
            chosen.append(name)
    world.store.specs[volume] = VolumeSpec(
        volume,
        volume,
        MIB,
        replicas,
        policy="alwayson",
        hash_key="0" * 64,
        labels={SPREAD_LABEL: "zone"},
    )
    members = tuple(
        Member(
            CopyId(f"{volume}-{name}"),
            name,
            CopyState.IN_SYNC if name == chosen[0] else CopyState.SYNCING,
        )
        for name in chosen
    )
    world.store.write(GroupRecord(volume, Epoch(1), members[0].copy, members))


def _all(world: World, *, members: bool = True) -> bool:
    """Return whether every volume is healthy, or (not `members`) at least served."""
    if members:
        return all(world.is_healthy(volume) for volume in world.store.records)
    for volume, (record, _) in world.store.records.items():
        process = world.machines[record.primary_member.node].process
        pump = None if process is None else process.pumps.get(volume)
        if pump is None or pump.member.primary is None or not pump.member.primary.serving:
            return False
    return True


def _until(world: World, condition: object, limit: float) -> None:
    assert callable(condition)
    while not condition():
        if world.now > limit:
            raise AssertionError(f"not healthy within {SETTLE_S:.0f} virtual seconds")
        world.run(world.now + 0.25)


def main(arguments: Sequence[str] | None = None) -> int:
    """Lose a zone of clusters of several sizes, and print what it cost."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.testing.simulation.scale")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--volumes", type=int, nargs="+", default=[2500, 5000, 10000])
    parser.add_argument("--zones", type=int, default=10)
    options = parser.parse_args(arguments)
    say = sys.stdout.write
    for volumes in options.volumes:
        r = lose_a_zone(options.nodes, volumes, options.zones)
        say(
            f"{r.nodes} nodes, {r.volumes} volumes, {r.lost_nodes} nodes lost: {r.affected} volumes "
            f"affected, {r.failovers} failovers; served again after {r.serving_s:.1f} s, all copies "
            f"after {r.redundant_s:.1f} s; store: {r.operations} operations "
            f"({r.operations / r.affected:.2f} for each volume), {r.peak}/s at most, {r.idle:.0f}/s "
            f"idle, {r.told} watch events; {r.memory_bytes / MIB:.0f} MiB, {r.events} events in "
            f"{r.took_s:.0f} s\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
