"""One loss of nodes, played through in the simulator and watched ten times a second.

The machines, timeouts and policies are the real ones. The volume is small, and its sync takes as long
as the user's would at the given rate, because the network holds sync data back. The consumer sits on a
node of its own that is never lost, and mounts anew two seconds after it meets read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import define, field, frozen

from holdfast.messages import Attach, Batch, Hello, Message, OpKind
from holdfast.model import Access, CopyState, GroupRecord, Member, VolumeSpec
from holdfast.sync.healing import PolicyOf
from holdfast.sync.peers import Timing
from holdfast.sync.placement import SPREAD_LABEL
from holdfast.testing.simulation.network import End, Network
from holdfast.testing.simulation.workload import Load
from holdfast.testing.simulation.world import Config, World
from holdfast.testing.whatif.layout import Layout, Volume
from holdfast.units import BLOCK_BYTES, CHUNK_BYTES, CopyId, Epoch, NodeName, VolumeId

LOOK_S = 0.1
SETTLE_S = 15.0
RUNS = 64
"""Pieces in which a whole copy is sent; every other chunk of the small volume is filled."""
SIZE_BYTES = 2 * RUNS * CHUNK_BYTES + CHUNK_BYTES
SYNC_S_MAX = 3600.0
_PATTERN = b"\x01" * BLOCK_BYTES
ZONE = "zone"


@frozen
class Span:
    """A stretch of time in one state; seconds from the first loss."""

    start: float
    end: float
    access: str
    """`read-write`, `read-only`, `suspended`, or `unavailable`."""
    copies: int
    """In-sync copies that are up."""


@frozen
class Told:
    """What one loss did to one volume."""

    volume: str
    lost: tuple[str, ...]
    without: str
    """The lost nodes as a person calls them: `zone east`, or their names."""
    copies: int
    """How many are declared, the primary's among them."""
    copies_lost: int
    """How many of its copies were on the nodes that were lost."""
    unavailable_s: float
    longest_s: float
    """The longest time in which writes were not answered."""
    read_only_s: float
    exposed_s: float
    """How long one more loss would have lost acknowledged writes: at most one copy was up."""
    whole_after_s: float | None
    """When full redundancy was back; None: not within the time that was watched."""
    loses: str
    """`nothing`; `unflushed writes` when all copies lost power at once; `everything` when no copy
    is left."""
    spans: tuple[Span, ...]


@define(eq=False)
class PacedNetwork(Network):
    """Holds sync data back as long as it would take at the real size."""

    chunk_s: Mapping[VolumeId, float] = field(factory=dict)
    """Seconds for one chunk of each small volume."""
    _paces: dict[End, float] = field(factory=dict)

    def connect(
        self, end: End, target: NodeName, hello: Hello, on_open: Callable[[End], None]
    ) -> None:
        """Open a link, and remember whose it is."""
        if isinstance(hello, Attach):
            self._paces[end] = self.chunk_s[hello.volume]
        super().connect(end, target, hello, on_open)

    def send(self, end: End, messages: Sequence[Message]) -> None:
        """Send, and keep the link busy for as long as sync data takes."""
        super().send(end, messages)
        pace_s = self._paces.get(end)
        if pace_s is None or end.peer is None:
            return
        for message in messages:
            if isinstance(message, Batch):
                writes = (op for op in message.ops if op.kind == OpKind.SYNC_WRITE)
                end.peer.arrives_at += pace_s * len({op.offset // CHUNK_BYTES for op in writes})


@define(eq=False)
class LayoutWorld(World):
    """A world of the user's nodes and volumes."""

    layout: Layout = field(kw_only=True)
    chunk_s: Mapping[VolumeId, float] = field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Make the machines, and name their zones."""
        super().__attrs_post_init__()
        paced = PacedNetwork(self, chunk_s=self.chunk_s)
        paced.process_of, paced.powered = self.network.process_of, self.network.powered
        self.network = paced
        for name, machine in self.machines.items():
            zone = self.layout.zones.get(self.name_of(name))
            if zone is None:
                machine.cordoned = True  # The consumer's own node.
            else:
                machine.labels = {ZONE: zone}

    def name_of(self, node: NodeName) -> str:
        """Return what the user calls a node."""
        names = list(self.layout.zones)
        at = int(node.removeprefix("n")) - 1
        return names[at] if at < len(names) else "consumer"

    def node_of(self, name: str) -> NodeName:
        """Return what the world calls a node."""
        return NodeName(f"n{list(self.layout.zones).index(name) + 1}")

    def _create_volume(self, number: int) -> None:
        volume = self.layout.volumes[number]
        key = VolumeId(f"v{number + 1}")
        home = NodeName(f"n{len(self.layout.zones) + 1}")
        hot = tuple(range(2 * RUNS * CHUNK_BYTES // BLOCK_BYTES, SIZE_BYTES // BLOCK_BYTES))
        self.loads[key] = Load(
            1, self.config.think_s, hot[:1], SIZE_BYTES // BLOCK_BYTES, 0.0, hot_part=1.0
        )
        self.homes[key] = (home,)
        self.store.write_spec(
            VolumeSpec(
                key,
                volume.name,
                SIZE_BYTES,
                volume.replicas,
                policy=volume.policy,
                policy_options=volume.options,
                hash_key="0" * 64,
                labels={SPREAD_LABEL: ZONE},
            )
        )
        nodes = [self.node_of(name) for name in volume.nodes]
        members = tuple(
            Member(
                CopyId(f"{key}-{n}"), n, CopyState.IN_SYNC if n == nodes[0] else CopyState.SYNCING
            )
            for n in nodes
        )
        self.store.write(GroupRecord(key, Epoch(1), members[0].copy, members))
        process = self.machines[home].process
        if process is not None:
            self.clients_start(process)

    def fill(self) -> None:
        """Put the same bytes into every copy, as if written long ago."""
        for machine in self.machines.values():
            for disk in machine.copies.values():
                for run in range(RUNS):
                    block = 2 * run * CHUNK_BYTES // BLOCK_BYTES
                    disk.cache[block] = disk.stable[block] = _PATTERN
                disk._hashes.clear()  # noqa: SLF001 (behind the machines' back, in all alike)

    def look(self, volume: VolumeId) -> tuple[str, int]:
        """Return what a consumer may do now, and how many in-sync copies are up."""
        record, _ = self.store.records[volume]
        copies = sum(
            m.state is CopyState.IN_SYNC and self.machines[m.node].process is not None
            for m in record.members
        )
        for process in self.processes():
            pump = process.pumps.get(volume)
            primary = None if pump is None else pump.member.primary
            if pump is None or primary is None or not primary.serving or primary.stopped:
                continue
            if primary.lease_until() > process.clock.mono(self.now):
                access = pump.member.ctx.record.access
                if access is Access.READ_WRITE and self._waits(volume):
                    break
                return _ACCESS.get(access, access.value), copies
        return "unavailable", copies

    def _waits(self, volume: VolumeId) -> bool:
        """Whether the consumer has been waiting for an answer for longer than it should."""
        return any(
            asked.accesses and self.now - asked.accesses[0].time > LOOK_S
            for process in self.processes()
            for client in process.clients.get(volume, ())
            for asked in client.asked.values()
        )


_ACCESS = {Access.ERROR: "read-only", Access.NONE: "unavailable"}


@frozen
class Plan:
    """What all losses of one run have in common."""

    layout: Layout
    policy_of: PolicyOf
    down_s: float | None
    """How long lost nodes are away; None: for good."""
    sync_bytes_s: float
    seed: int = 1


def rehearse(plan: Plan, lost: Sequence[str], *, gap_s: float = 0.0) -> list[Told]:
    """Lose some nodes, and tell what became of each volume.

    Args:
        plan: The layout and what is supposed of it.
        lost: Nodes of the layout; they lose power.
        gap_s: Between one loss and the next.
    """
    layout = plan.layout
    syncs_s = [min(SYNC_S_MAX, v.size_bytes / plan.sync_bytes_s) for v in layout.volumes]
    sync_s = max(syncs_s)
    world = LayoutWorld(
        Config(
            seed=plan.seed,
            nodes=len(layout.zones) + 1,
            volumes=len(layout.volumes),
            think_s=max(0.25, sync_s / 1000),
            timing=Timing(ack_timeout_s=max(8.0, sync_s / 2)),
            policy_of=plan.policy_of,
            keep_trace=False,
        ),
        layout=layout,
        chunk_s={VolumeId(f"v{at}"): s / RUNS for at, s in enumerate(syncs_s, start=1)},
    )
    world.run(SETTLE_S)
    world.fill()
    world.run(SETTLE_S + 1.0)
    start = world.now
    for number, name in enumerate(lost):
        world.at(start + number * gap_s, _lose, world, name, plan.down_s)
    watched = _watch(world, start, (plan.down_s or 0.0) + 2.0 * sync_s + 60.0 + gap_s * len(lost))
    return [
        _told(world, volume, VolumeId(f"v{number + 1}"), lost, plan, spans)
        for number, (volume, spans) in enumerate(zip(layout.volumes, watched, strict=True))
    ]


def _lose(world: LayoutWorld, name: str, down_s: float | None) -> None:
    machine = world.machines[world.node_of(name)]
    machine.lose_power()
    machine.start_at(world.now + (1e9 if down_s is None else down_s))


def _watch(world: LayoutWorld, start: float, horizon_s: float) -> list[list[Span]]:
    """Look at all volumes until they are whole again and all nodes are back, or for so long."""
    keys = list(world.store.records)
    spans: list[list[Span]] = [[] for _ in keys]
    while world.now < start + horizon_s:
        world.run(world.now + LOOK_S)
        now = world.now - start
        for at, key in enumerate(keys):
            access, copies = world.look(key)
            last = spans[at][-1] if spans[at] else None
            if last is not None and (last.access, last.copies) == (access, copies):
                spans[at][-1] = attrs.evolve(last, end=now)
            else:
                spans[at].append(Span(now - LOOK_S, now, access, copies))
        if now > 30.0 and all(world.is_healthy(key) for key in keys):
            if all(m.process is not None or m.down_until > 1e8 for m in world.machines.values()):
                break
    return spans


def _told(
    world: LayoutWorld,
    volume: Volume,
    key: VolumeId,
    lost: Sequence[str],
    plan: Plan,
    spans: Sequence[Span],
) -> Told:
    record, _ = world.store.records[key]
    away = [s for s in spans if s.access == "unavailable"]
    exposed = [s for s in spans if s.copies <= 1] if volume.replicas else []
    whole = world.is_healthy(key)
    gone = plan.down_s is None and all(
        world.name_of(record.member(copy).node) in lost for copy in record.in_sync
    )
    lessened = [s for s in spans if s.copies < volume.replicas + 1]
    loses = "nothing"
    if gone:
        loses = "everything"
    elif world.history.of(key).losses:
        loses = "unflushed writes"
    return Told(
        volume.name,
        tuple(lost),
        plan.layout.called(tuple(lost)),
        volume.replicas + 1,
        sum(name in lost for name in volume.nodes),
        _sum(away),
        _longest(spans),
        _sum([s for s in spans if s.access in {"read-only", "suspended"}]),
        _sum(exposed),
        (round(lessened[-1].end, 1) if lessened else 0.0) if whole else None,
        loses,
        tuple(spans),
    )


def _sum(spans: Sequence[Span]) -> float:
    return round(sum(span.end - span.start for span in spans), 1)


def _longest(spans: Sequence[Span]) -> float:
    longest = now = 0.0
    for span in spans:
        now = now + span.end - span.start if span.access == "unavailable" else 0.0
        longest = max(longest, now)
    return round(longest, 1)


def as_json(told: Told) -> Mapping[str, Any]:
    """Return what one loss did, for programs."""
    return attrs.asdict(told)
