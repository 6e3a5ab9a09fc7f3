"""A world as the specification sees it: one group, one block, one consumer.

`docs/spec/Holdfast.tla` knows of a group what its actions speak of, and no more. `Observer` looks at
a simulated world after every event and keeps each state in which that has changed. A copy in the
middle of what is one step there (a batch that is not applied, an epoch that is not on disk) is not
looked at: its fields are left open until it has settled. Nothing here knows TLA+.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, evolve, field, frozen

from holdfast.messages import Request, RequestKind
from holdfast.model import Access, CopyState, GroupRecord
from holdfast.sync.roles import Role
from holdfast.testing.simulation import faults as flt
from holdfast.testing.simulation.disk import ZERO_BLOCK
from holdfast.testing.simulation.history import Value, value_of
from holdfast.testing.simulation.workload import Client
from holdfast.testing.simulation.world import Config, World
from holdfast.units import MIB, NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.pump import Pump

_STATES = {CopyState.IN_SYNC: "in", CopyState.SYNCING: "sync", CopyState.OFFLINE: "off"}
_ROLES = {Role.REPLICA: "replica", Role.CANDIDATE: "candidate", Role.PRIMARY: "primary"}
BLOCK = 0
"""The block that is looked at, and the only one that is written."""


@frozen
class Membership:
    """A group record, as far as the specification has it; epochs count from the trace's beginning."""

    epoch: int
    primary: NodeName
    states: Mapping[NodeName, str]
    suspect: tuple[NodeName, ...]
    access: str
    generation: int


@frozen
class CopyView:
    """One copy: for each field the values that it may have; none stand for any."""

    roles: tuple[str, ...]
    """What it may be called: a process that has not opened its copy is `down` or `replica`."""
    views: tuple[Membership, ...] = ()
    """The record as it knows it."""
    epochs: tuple[int, ...] = ()
    """The highest epoch on its disk."""
    values: tuple[int, ...] = ()
    """The number of the write that its block holds; 0: none of them."""
    suspects: tuple[bool, ...] = ()
    """Whether it suspects that it may differ."""
    serving: bool = False
    is_settled: bool = False
    """Whether it is not in the middle of what is one step of the specification."""


@frozen
class Observation:
    """One state of the group."""

    time: float
    record: Membership
    copies: Mapping[NodeName, CopyView]
    acked: int
    """The number of the last write that the primary has answered."""
    cut: tuple[tuple[NodeName, NodeName], ...]
    """Pairs of nodes that do not reach each other."""
    store: tuple[NodeName, ...]
    """Nodes that do not reach the store."""
    read: tuple[NodeName, int] | None = None
    """A read was answered just now: by whom, and with the number of which write."""

    def same(self, other: Observation) -> bool:
        """Whether nothing but time lies between the two."""
        return self.read is None and (
            (self.record, self.copies, self.acked, self.cut, self.store)
            == (other.record, other.copies, other.acked, other.cut, other.store)
        )


class OneBlock(Client):
    """A consumer that writes and reads one block, and waits for each answer."""

    def _draw(self) -> Request | None:
        if self.asked:
            return None
        reads = self.process.world.rng.random() < self.load.reads
        return self._make(RequestKind.READ if reads else RequestKind.WRITE, BLOCK, 1, 0)


@define(eq=False)
class Observer:
    """Keeps what the first volume of a world goes through, from when it is made."""

    world: World
    states: list[Observation] = field(factory=list)
    _numbers: dict[int, int] = field(factory=dict)
    """Request id of a write to its number."""
    _acked: int = 0
    _read: tuple[NodeName, int] | None = None
    _epoch: int = 0
    _generation: int = 0

    def __attrs_post_init__(self) -> None:
        """Begin: epochs and generations count from here."""
        record = self._record()
        self._epoch, self._generation = record.epoch - 1, record.attachment_generation

    def look(self) -> None:
        """Keep the present state, if it is not the last one."""
        seen = self._observe()
        self._read = None
        if not self.states or not seen.same(self.states[-1]):
            self.states.append(seen)

    def on_answer(self, pump: Pump, request: Request, value: Value | None) -> None:
        """A primary has answered a write, or a read with `value`."""
        if request.kind == RequestKind.WRITE:
            self._acked = max(self._acked, self._number(request.id))
        elif isinstance(value, int):
            self._read = (pump.process.name, self._number(value))

    # -- inside ------------------------------------------------------------------------------------

    def _record(self) -> GroupRecord:
        (record, _), *_ = self.world.store.records.values()
        return record

    def _number(self, value: int) -> int:
        if value == 0:
            return 0
        # One after another: the next is asked for when the last is answered.
        return self._numbers.setdefault(value, len(self._numbers) + 1)

    def _membership(self, record: GroupRecord) -> Membership:
        return Membership(
            record.epoch - self._epoch,
            record.primary_member.node,
            {m.node: _STATES[m.state] for m in record.members},
            tuple(sorted(m.node for m in record.members if m.suspect)),
            "rw" if record.access is Access.READ_WRITE else "ro",
            record.attachment_generation - self._generation,
        )

    def _observe(self) -> Observation:
        world, record = self.world, self._record()
        nodes = sorted(m.node for m in record.members)
        blocked = world.network.blocked
        return Observation(
            time=world.now,
            record=self._membership(record),
            copies={node: self._copy(node, record) for node in nodes},
            acked=self._acked,
            cut=tuple(
                (one, other)
                for at, one in enumerate(nodes)
                for other in nodes[at + 1 :]
                if blocked.get((one, other)) or blocked.get((other, one))
            ),
            store=tuple(node for node in nodes if not world.store.reachable(node)),
            read=self._read,
        )

    def _copy(self, node: NodeName, record: GroupRecord) -> CopyView:
        process = self.world.machines[node].process
        if process is None:
            return CopyView(("down",))
        pump = process.pumps.get(record.volume)
        if pump is None:
            return CopyView(("down", "replica"))
        member = pump.member
        ctx, disk = member.ctx, member.ctx.disk
        serving = member.primary is not None and member.primary.serving
        greeting = member.replica._greeting  # noqa: SLF001 (a half-step, see above)
        value = value_of(pump.disk.cache.get(BLOCK, ZERO_BLOCK))
        return CopyView(
            (_ROLES[member.role],),
            (self._membership(ctx.record),),
            (ctx.epoch - self._epoch,),
            (self._number(value),) if isinstance(value, int) else (),
            (bool(disk.window or disk.pinned),),
            serving,
            is_settled=not greeting and not disk.blocked and disk.idle and ctx.epoch_is_durable,
        )


def filled(states: Sequence[Observation]) -> list[Observation]:
    """Return the states with what copies may be called while they are not settled.

    In the middle of a step a copy may pass for what it was before, for what it is by now, or for what
    it is when it has settled; when it never does, for anything.
    """
    made = list(states)
    for node in states[0].copies:
        before: CopyView | None = None
        after: CopyView | None = None
        afters: list[CopyView | None] = []
        for state in reversed(states):
            seen = state.copies[node]
            after = seen if seen.is_settled else None if "down" in seen.roles else after
            afters.append(after)
        for number, (state, after) in enumerate(zip(states, reversed(afters), strict=True)):
            seen = state.copies[node]
            if seen.is_settled or "down" in seen.roles:
                before = seen if seen.is_settled else None
                continue
            copies = dict(made[number].copies)
            copies[node] = _between(before, seen, after)
            made[number] = evolve(made[number], copies=copies)
    return made


def _between(before: CopyView | None, seen: CopyView, after: CopyView | None) -> CopyView:
    if before is None or after is None:
        return CopyView(seen.roles, serving=seen.serving)
    stages = (before, seen, after)
    return CopyView(
        seen.roles,
        tuple(view for stage in stages for view in stage.views),
        tuple(sorted({epoch for stage in stages for epoch in stage.epochs})),
        tuple(sorted({value for stage in stages for value in stage.values})),
        serving=seen.serving,
    )


def observed(
    seed: int,
    steps: Sequence[tuple[float, str, tuple[str, ...], float, float]],
    *,
    for_s: float,
    think_s: float = 0.4,
    reads: float = 0.3,
) -> list[Observation]:
    """Run a group of three copies with one consumer beside them, and return what it went through.

    Args:
        seed: Names the world.
        steps: Faults: seconds from the beginning, kind, nodes, duration, amount.
        for_s: Virtual seconds to look for; what is still broken then stays so.
        think_s: Mean pause of the consumer.
        reads: The part of its requests that are reads.
    """
    config = Config(
        seed, nodes=4, replicas=2, size_bytes=MIB, depth=1, think_s=think_s, reads=reads, clients=0
    )
    world = World(config)
    world.run(0.6)
    volume = VolumeId("v1")
    record = world.store.records[volume][0]
    (spare,) = (machine for name, machine in world.machines.items() if not record.on_node(name))
    spare.cordoned = True  # No copy is made there, whatever is lost: the specification has three.
    process = spare.process
    assert process is not None
    process.publish()
    load = world.loads[volume]
    load.depth = 0  # Nothing is asked for before the group is whole.
    client = OneBlock(process, volume, load)
    process.clients[volume] = [client]
    client.begin()
    while not (world.is_at_rest() and client.is_attached):
        world.run(world.now + 0.5)
    load.depth = config.depth
    observer = world.observer = Observer(world)
    observer.look()
    flt.plant(
        world,
        [
            flt.Fault(
                number,
                world.now + time,
                kind,
                tuple(map(NodeName, nodes)),
                duration,
                amount,
                volume,
            )
            for number, (time, kind, nodes, duration, amount) in enumerate(steps)
        ],
    )
    world.run(world.now + for_s)
    return filled(observer.states)
