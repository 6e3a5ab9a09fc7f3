"""A whole cluster in one process, on virtual time, from one seed.

The world is a heap of (time, order, action). Every choice that is not the machines' own is drawn from
one `random.Random`, so a seed and a list of faults replay a run exactly. The faults themselves are
drawn beforehand from a generator of their own, so that leaving one out leaves the others as they are.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from holdfast.model import CopyState, GroupRecord, Member, VolumeSpec
from holdfast.sync.events import ForcePromote
from holdfast.sync.healing import PolicyOf
from holdfast.sync.peers import Timing
from holdfast.sync.roles import Role
from holdfast.testing.simulation import history as hist
from holdfast.testing.simulation import rot
from holdfast.testing.simulation.clock import Clock
from holdfast.testing.simulation.invariants import Invariants, Violation
from holdfast.testing.simulation.network import Network
from holdfast.testing.simulation.node import Machine, Process
from holdfast.testing.simulation.policies import policy_of
from holdfast.testing.simulation.store import Store
from holdfast.testing.simulation.workload import Client, Load
from holdfast.units import BLOCK_BYTES, MIB, CopyId, Epoch, NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.abstraction import Observer

TRACE_LINES = 4000
CHECK_EVERY_S = 0.5
EVENTS_PER_S_MAX = 20_000
"""Nothing that the machines do to each other may run in circles."""
SCRUB_WITHIN_S = 5.0
LOCAL_READS = 0.3
"""The part of the seeds in whose worlds consumers read from copies on their own nodes."""
DEADLINES = 0.25
"""The part of the seeds in whose worlds consumers give requests up that wait for too long."""
SLOW_FLUSHES = 0.15
"""The part of the seeds in whose worlds a disk has to turn before a flush is over."""
COMMITS = 0.15
"""The part of the seeds in whose worlds they flush after each write."""
REST_WITHIN_S = 90.0
"""I7's bound: declared redundancy is back this long after the last fault (virtual seconds)."""


@frozen
class Config:
    """The shape of a world; drawn from the seed unless given."""

    seed: int
    nodes: int = 4
    volumes: int = 1
    replicas: int = 2
    size_bytes: int = 9 * MIB
    depth: int = 4
    think_s: float = 0.04
    reads: float = 0.34
    ordered: bool = True
    commits: bool = False
    """Consumers write and flush in turn."""
    clients: int = 1
    """Consumers' nodes for each volume; all but one wait until the volume is free."""
    readers: int = 0
    """Nodes with a read-only consumer beside those; where there are any, everybody reads from the copy
    on the own node if there is one."""
    calm_s: float = 3.0
    """How long the world runs before the first fault."""
    faults_s: float = 25.0
    """How long faults go on."""
    load_after_s: float = 3.0
    timing: Timing = field(factory=Timing)
    skew: float = 0.02
    deadline_s: float = 0.0
    """How long requests may wait before their consumers are told an error; 0: for ever."""
    flush_s: float = 0.001
    """How long a disk takes for a flush, on average."""
    policy: str = "alwayson"
    policy_of: PolicyOf = policy_of
    keep_trace: bool = True


@define(eq=False)
class World:
    """Nodes, store, network, consumers; step it with `run`."""

    config: Config
    rng: random.Random = field(init=False)
    now: float = 0.0
    events: int = 0
    steps: int = 0
    """Steps of group members."""
    answered: int = 0
    """Requests of consumers that were answered."""
    struck: Counter[str] = field(factory=Counter)
    """How many faults of each kind have struck, and under `KIND!` how many had an effect."""
    read_here: int = 0
    """Reads among them that a copy on the consumer's own node has answered."""
    load_on: bool = True
    machines: dict[NodeName, Machine] = field(factory=dict)
    network: Network = field(init=False)
    store: Store = field(init=False)
    history: hist.History = field(factory=hist.History)
    invariants: Invariants = field(init=False)
    loads: dict[VolumeId, Load] = field(factory=dict)
    homes: dict[VolumeId, tuple[NodeName, ...]] = field(factory=dict)
    observer: Observer | None = None
    """Keeps the states of the first volume for the specification, where that is wanted."""
    lines: deque[str] = field(factory=lambda: deque(maxlen=TRACE_LINES))
    _heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = field(factory=list)
    _order: int = 0
    _last_id: int = 0
    _digest: hashlib.blake2b = field(factory=lambda: hashlib.blake2b(digest_size=16))

    def __attrs_post_init__(self) -> None:
        """Make the machines, the volumes and their consumers."""
        config = self.config
        self.rng = random.Random(f"{config.seed}/world")
        self.network = Network(self)
        self.network.process_of = lambda name: self.machines[name].process
        self.network.powered = lambda name: self.machines[name].powered
        self.store = Store(self)
        self.invariants = Invariants(self)
        self.store.on_write = self.invariants.on_record
        for number in range(config.nodes):
            name = NodeName(f"n{number + 1}")
            rate = 1.0 + self.rng.uniform(-config.skew, config.skew)
            clock = Clock(rate, self.rng.uniform(0, 10_000), self.rng.uniform(-5, 5))
            self.machines[name] = Machine(self, name, clock)
        for machine in self.machines.values():
            self.at(self.rng.random() * 0.2, machine.start)
        for number in range(config.volumes):
            self.at(0.5 + number * 0.01, self._create_volume, number)
        self.at(CHECK_EVERY_S, self._checkpoint)

    # -- time --------------------------------------------------------------------------------------

    def at(self, time: float, action: Callable[..., None], *args: object) -> None:
        """Do `action` at `time`."""
        self._order += 1
        heapq.heappush(self._heap, (time, self._order, action, args))

    def after(self, delay: float, action: Callable[..., None], *args: object) -> None:
        """Do `action` after `delay` seconds."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, action, args))

    def run(self, until: float) -> None:
        """Run all events up to the time `until`."""
        heap = self._heap
        pop = heapq.heappop
        budget = self.events + int((until - self.now + 1.0) * EVENTS_PER_S_MAX)
        while heap and heap[0][0] <= until:
            time, _, action, args = pop(heap)
            self.now = time
            self.events += 1
            action(*args)
            if self.observer is not None:
                self.observer.look()
            if self.events > budget:
                raise Violation("busy", f"more than {EVENTS_PER_S_MAX} events a second")
        self.now = until

    def step(self) -> None:
        """Run what comes next, and whatever else is due at that very moment."""
        self.run(self._heap[0][0])

    # -- making ------------------------------------------------------------------------------------

    def draw_id(self) -> int:
        """Return a number that was not returned before; requests, values, incarnations."""
        self._last_id += 1
        return self._last_id

    def _create_volume(self, number: int) -> None:
        config = self.config
        volume = VolumeId(f"v{number + 1}")
        names = list(self.machines)
        self.rng.shuffle(names)
        chosen = names[: config.replicas + 1]
        spec = VolumeSpec(
            volume,
            volume,
            config.size_bytes,
            config.replicas,
            policy=config.policy,
            hash_key="0" * 64,
            read_from="local" if config.readers else "primary",
        )
        blocks = config.size_bytes // BLOCK_BYTES
        hot = tuple(
            base + offset
            for base in [self.rng.randrange(blocks - 8) for _ in range(4)]
            for offset in range(8)
        )
        self.loads[volume] = Load(
            config.depth,
            config.think_s,
            hot,
            blocks,
            config.reads,
            ordered=config.ordered,
            deadline_s=config.deadline_s or None,
            commits=config.commits,
        )
        self.homes[volume] = tuple(
            self.rng.sample(list(self.machines), min(config.clients, len(self.machines)))
        )
        self.store.write_spec(spec)
        members = tuple(
            Member(
                CopyId(f"{volume}-{name}"),
                name,
                CopyState.IN_SYNC if name == chosen[0] else CopyState.SYNCING,
            )
            for name in chosen
        )
        self.store.write(GroupRecord(volume, Epoch(1), members[0].copy, members))
        others = [name for name in self.machines if name not in self.homes[volume]]
        for home in (*self.homes[volume], *others):
            process = self.machines[home].process
            if process is not None:
                self._clients_start(process, volume)

    def clients_start(self, process: Process) -> None:
        """Start the consumers whose node's daemon has started."""
        for volume in self.homes:
            self._clients_start(process, volume)

    def _clients_start(self, process: Process, volume: VolumeId) -> None:
        clients = []
        load = self.loads[volume]
        if process.name in self.homes[volume]:
            clients.append(Client(process, volume, load))
        if process.name in list(self.machines)[: self.config.readers]:
            clients.append(Client(process, volume, evolve(load, reads=1.0), read_only=True))
        for client in clients:
            process.clients.setdefault(volume, []).append(client)
            client.begin()

    # -- looking -----------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Return the processes that live."""
        return [m.process for m in self.machines.values() if m.process is not None]

    def is_healthy(self, volume: VolumeId) -> bool:
        """Return whether a group has its declared redundancy and serves."""
        record, _ = self.store.records[volume]
        spec = self.store.specs[volume]
        if len(record.in_sync) != len(record.members) or len(record.members) != spec.replicas + 1:
            return False
        process = self.machines[record.primary_member.node].process
        pump = None if process is None else process.pumps.get(volume)
        primary = None if pump is None else pump.member.primary
        return primary is not None and primary.serving

    def is_at_rest(self) -> bool:
        """Return whether every group is healthy and every consumer has its answers."""
        if not all(self.is_healthy(volume) for volume in self.store.records):
            return False
        for process in self.processes():
            for clients in process.clients.values():
                if not all(client.idle for client in clients):
                    return False
            for pump in process.pumps.values():
                if pump.member.ctx.disk.window:
                    return False
        return bool(self.store.records)

    def come_to_rest(self) -> None:
        """Run without load until redundancy is back, then ask the last questions (I7)."""
        self.load_on = False
        limit = self.now + REST_WITHIN_S
        while not self.is_at_rest():
            if self.now >= limit:
                raise Violation("I7", self._unrest())
            self.run(self.now + 0.5)
            if self.now > limit - REST_WITHIN_S + 20.0:
                self._force_what_is_lost()
        self._scrub_what_is_damaged()
        self.invariants.at_rest()

    def _scrub_what_is_damaged(self) -> None:
        """The last scrub: whatever has rotted on an in-sync copy is right again after it."""
        if self.invariants.damage_left() is None:
            return
        for volume in self.store.records:
            rot.scrub(self, volume)
        self.run(self.now + SCRUB_WITHIN_S)
        left = self.invariants.damage_left()
        if left is not None:
            raise Violation("scrub", left)

    def _force_what_is_lost(self) -> None:
        """The operator's part: an in-sync copy is gone for good, and all others lost power."""
        for volume, (record, _) in self.store.records.items():
            disks = dict(self.invariants.in_sync_disks(record))
            if len(disks) == len(record.in_sync) or not all(d.tainted for d in disks.values()):
                continue
            for name in disks:
                process = self.machines[name].process
                pump = None if process is None else process.pumps.get(volume)
                if pump is not None and pump.member.role is Role.REPLICA:
                    self.trace("forced", volume, name)
                    pump.feed(ForcePromote())
                    return

    def _unrest(self) -> str:
        parts = []
        for volume, (record, _) in self.store.records.items():
            states = " ".join(f"{m.node}:{m.state.value}" for m in record.members)
            waiting = sum(len(c.asked) for p in self.processes() for c in p.clients.get(volume, ()))
            roles = " ".join(
                f"{p.name}:{q.member.role.value}"
                for p in self.processes()
                if (q := p.pumps.get(volume)) is not None
            )
            parts.append(
                f"{volume} epoch {record.epoch} primary {record.primary_member.node} [{states}] "
                f"roles [{roles}], {waiting} requests wait"
            )
        return f"no rest {REST_WITHIN_S:.0f} s after the last fault: " + "; ".join(parts)

    def _checkpoint(self) -> None:
        self.invariants.checkpoint()
        self.after(CHECK_EVERY_S, self._checkpoint)

    # -- telling -----------------------------------------------------------------------------------

    def trace(self, *words: object) -> None:
        """Keep a line of what happened; all lines together are the run's fingerprint."""
        line = f"{self.now:.6f} " + " ".join([str(word) for word in words])
        self._digest.update(line.encode())
        if self.config.keep_trace:
            self.lines.append(line)

    def digest(self) -> str:
        """Return the fingerprint of everything that was told and answered."""
        digest = self._digest.copy()
        for volume, history in sorted(self.history.volumes.items()):
            for block, accesses in sorted(history.blocks.items()):
                for a in accesses:
                    digest.update(f"{volume} {block} {a.start} {a.end} {a.value}".encode())
        return digest.hexdigest()


def drawn_config(seed: int) -> Config:
    """Return the shape of the world that `seed` stands for."""
    rng = random.Random(f"{seed}/shape")
    nodes = rng.choice((2, 3, 3, 4, 4, 5))
    reading = random.Random(f"{seed}/reading")
    waiting = random.Random(f"{seed}/waiting")
    flushing = random.Random(f"{seed}/flushing")
    return Config(
        seed=seed,
        nodes=nodes,
        volumes=rng.choice((1, 1, 2)),
        replicas=min(nodes - 1, rng.choice((0, 1, 1, 2, 2, 2, 3))),
        depth=rng.choice((1, 2, 4, 8, 16)),
        think_s=rng.choice((0.03, 0.06, 0.15)),
        clients=rng.choice((1, 1, 2)),
        policy=rng.choice(("alwayson", "alwayson", "alwayson", "hard")),
        ordered=rng.random() < 0.75,
        readers=reading.choice((1, 2, nodes)) if reading.random() < LOCAL_READS else 0,
        deadline_s=waiting.choice((0.05, 0.5, 2.0, 6.0)) if waiting.random() < DEADLINES else 0.0,
        flush_s=0.05 if flushing.random() < SLOW_FLUSHES else 0.001,
        commits=random.Random(f"{seed}/commits").random() < COMMITS,
    )
