"""The state store of a simulated world: compare-and-set, late watches, outages, lost answers.

Versions rise by one with every write. A watch tells each node the value in force after a delay and
never goes back. While a node cannot reach the store its requests fail, with or without having been
carried out, as the interface says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import attrs
from attrs import define, field

from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.units import NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.testing.simulation.world import World

WATCH_S_MAX = 20.0
"""How late a watch tells of a change at most; a slow store must not outlast the time for healing."""
SESSION_TTL_S = 10.0
RETRY_S = 0.3


class Watcher(Protocol):
    """A process, as the store sees it."""

    name: NodeName
    session: str
    alive: bool

    def run(self, action: Callable[..., None], *args: object) -> None:
        """Run `action` now, or when resumed."""
        ...

    def on_record(self, volume: VolumeId, record: GroupRecord | None, version: int) -> None:
        """A record is now this."""
        ...

    def on_spec(self, spec: VolumeSpec) -> None:
        """A specification is now this."""
        ...

    def on_nodes(self, nodes: dict[NodeName, NodeRecord]) -> None:
        """The living nodes are now these."""
        ...


@define(eq=False)
class Store:
    """The store of a world."""

    world: World
    records: dict[VolumeId, tuple[GroupRecord, int]] = field(factory=dict)
    specs: dict[VolumeId, VolumeSpec] = field(factory=dict)
    nodes: dict[NodeName, tuple[NodeRecord, float]] = field(factory=dict)
    """Living sessions: record and when the lease runs out, in world time."""
    version: int = 0
    down: int = 0
    """How many outages are under way."""
    cut_off: dict[NodeName, int] = field(factory=dict)
    """Nodes that cannot reach the store."""
    slow_s: float = 0.0
    unsure: float = 0.0
    """How probably an answer is lost."""
    on_write: Callable[[GroupRecord, GroupRecord | None], None] = field(default=lambda _a, _b: None)
    operations: int = 0
    asked_at: float = 0.0
    """When the last compare-and-set that took place was asked for, in world time."""
    policy_changed_at: dict[VolumeId, float] = field(factory=dict)
    """When an operator last changed the policy of a volume."""

    def reachable(self, node: NodeName) -> bool:
        """Return whether `node` reaches the store."""
        return not self.down and not self.cut_off.get(node)

    def _delay(self) -> float:
        return self.world.rng.uniform(0.0005, 0.004) + self.world.rng.random() * self.slow_s

    # -- compare and set ---------------------------------------------------------------------------

    def compare_and_set(
        self,
        process: Watcher,
        record: GroupRecord,
        expected: int,
        done: Callable[[str, GroupRecord | None, int], None],
    ) -> None:
        """Write `record` if `expected` is in force; `done` is told once."""
        now = self.world.now
        self.world.after(self._delay(), self._on_cas, process, record, expected, done, now)

    def _on_cas(
        self,
        process: Watcher,
        record: GroupRecord,
        expected: int,
        done: Callable[[str, GroupRecord | None, int], None],
        asked_at: float,
    ) -> None:
        rng = self.world.rng
        self.operations += 1
        if not self.reachable(process.name) or (self.unsure and rng.random() < self.unsure):
            self.world.after(0.5 + rng.random(), process.run, done, "unknown", None, 0)
            return
        current = self.records.get(record.volume)
        if current is not None and current[1] == expected:
            self.asked_at = asked_at
            self.write(record)
            answer: tuple[str, GroupRecord | None, int] = ("ok", record, self.version)
        elif current is None:
            answer = ("conflict", None, self.version)
        else:
            answer = ("conflict", *current)
        self.world.after(self._delay(), self._answer, process, done, answer)

    def _answer(
        self,
        process: Watcher,
        done: Callable[[str, GroupRecord | None, int], None],
        answer: tuple[str, GroupRecord | None, int],
    ) -> None:
        rng = self.world.rng
        if not self.reachable(process.name) or (self.unsure and rng.random() < self.unsure):
            # It took place, and nobody is told.
            self.world.after(0.5 + rng.random(), process.run, done, "unknown", None, 0)
        else:
            process.run(done, *answer)

    def write(self, record: GroupRecord) -> None:
        """Write a record, whatever is in force."""
        before = self.records.get(record.volume)
        self.version += 1
        self.records[record.volume] = (record, self.version)
        self.on_write(record, None if before is None else before[0])
        for process in self.world.processes():
            self._tell_later(process, record.volume)

    # -- reading -----------------------------------------------------------------------------------

    def read(
        self, process: Watcher, volume: VolumeId, done: Callable[[GroupRecord | None, int], None]
    ) -> None:
        """Read a record; asks again until the store answers."""
        self.world.after(self._delay(), self._on_read, process, volume, done)

    def _on_read(
        self, process: Watcher, volume: VolumeId, done: Callable[[GroupRecord | None, int], None]
    ) -> None:
        self.operations += 1
        if not process.alive:
            return
        if not self.reachable(process.name):
            self.world.after(RETRY_S, self._on_read, process, volume, done)
            return
        record, version = self.records.get(volume, (None, self.version))
        self.world.after(self._delay(), process.run, done, record, version)

    # -- watching ----------------------------------------------------------------------------------

    def _tell_later(self, process: Watcher, volume: VolumeId) -> None:
        record, version = self.records[volume]
        delay = self._delay() * (1 if self.world.rng.random() < 0.8 else 100)
        delay = min(delay, WATCH_S_MAX)
        self.world.after(delay, self._tell, process, volume, record, version)

    def _tell(
        self, process: Watcher, volume: VolumeId, record: GroupRecord | None, version: int
    ) -> None:
        if not process.alive:
            return
        if not self.reachable(process.name):
            self.world.after(RETRY_S, self._tell_again, process, volume)
            return
        process.run(process.on_record, volume, record, version)

    def _tell_again(self, process: Watcher, volume: VolumeId) -> None:
        if self.reachable(process.name):
            record, version = self.records[volume]
            self._tell(process, volume, record, version)
        elif process.alive:
            self.world.after(RETRY_S, self._tell_again, process, volume)

    def begin_watching(self, process: Watcher) -> None:
        """Tell a new process everything that is there."""
        for volume, (record, version) in self.records.items():
            self.world.after(self._delay(), self._tell, process, volume, record, version)
        for volume in self.specs:
            self._tell_spec(process, volume)

    def write_spec(self, spec: VolumeSpec) -> None:
        """Write a specification; the operator's doing."""
        self.specs[spec.id] = spec
        for process in self.world.processes():
            self._tell_spec(process, spec.id)

    def _tell_spec(self, process: Watcher, volume: VolumeId) -> None:
        if not process.alive:
            return
        if self.reachable(process.name):
            process.run(process.on_spec, self.specs[volume])
        else:
            self.world.after(RETRY_S, self._tell_spec, process, volume)

    # -- node sessions -----------------------------------------------------------------------------

    def renew(self, process: Watcher, record: NodeRecord) -> None:
        """Begin or prolong the session of a node."""
        if not self.reachable(process.name):
            return
        known = self.nodes.get(process.name)
        self.nodes[process.name] = (record, self.world.now + SESSION_TTL_S)
        if known is None or known[0] != record:
            self._nodes_changed()
        else:
            self.world.after(SESSION_TTL_S + 0.1, self._expire)

    def end_session(self, process: Watcher) -> None:
        """End the session of a node that stops in order."""
        known = self.nodes.get(process.name)
        if known is not None and known[0].session == process.session:
            if self.reachable(process.name):
                del self.nodes[process.name]
                self._nodes_changed()

    def _expire(self) -> None:
        now = self.world.now
        gone = [name for name, (_, until) in self.nodes.items() if until < now]
        for name in gone:
            del self.nodes[name]
        if gone:
            self._nodes_changed()

    def _nodes_changed(self) -> None:
        self.world.after(SESSION_TTL_S + 0.1, self._expire)
        for process in self.world.processes():
            self.world.after(self._delay() * 10, self._tell_nodes, process)

    def _tell_nodes(self, process: Watcher) -> None:
        if not process.alive:
            return
        if self.reachable(process.name):
            nodes = {name: record for name, (record, _) in self.nodes.items()}
            process.run(process.on_nodes, nodes)
        else:
            self.world.after(RETRY_S * 3, self._tell_nodes, process)

    def change_spec(self, volume: VolumeId, **changes: object) -> None:
        """The operator changes what a volume declares."""
        self.write_spec(attrs.evolve(self.specs[volume], **changes))  # type: ignore[arg-type]
