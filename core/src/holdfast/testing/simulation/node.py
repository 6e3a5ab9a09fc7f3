"""A simulated node: a machine with clocks, power and disks, and the process that runs on it.

A machine outlives its processes and keeps their copies. A process keeps what the real daemon keeps:
one `Peers`, a pump for each copy, peer links, and the consumer sessions of its frontends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import attrs
from attrs import define, field

from holdfast.interfaces.copy import Superblock
from holdfast.messages import (
    Attach,
    Heartbeat,
    HeartbeatAnswer,
    Hello,
    Message,
    PeerHello,
    Refused,
    SessionOpen,
)
from holdfast.model import CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.sync import events as ev
from holdfast.sync.opening import open_member, regions_in_doubt
from holdfast.sync.peers import Peers
from holdfast.sync.roles import Role
from holdfast.testing.simulation.clock import Clock
from holdfast.testing.simulation.disk import CopyDisk, hash_of
from holdfast.testing.simulation.network import End
from holdfast.testing.simulation.pump import Pump, opened_superblock
from holdfast.testing.simulation.store import SESSION_TTL_S
from holdfast.units import TIB, CopyId, Epoch, NodeName, VolumeId
from holdfast.units import Sequence as Position

if TYPE_CHECKING:
    from holdfast.testing.simulation.workload import Client
    from holdfast.testing.simulation.world import World

CLUSTER = "sim"
PEER_RETRY_S = 0.2


@define(eq=False)
class Machine:
    """What stays when a process ends."""

    world: World
    name: NodeName
    clock: Clock
    boots: int = 1
    started: int = 0
    powered: bool = True
    cordoned: bool = False
    draining: bool = False
    labels: Mapping[str, str] = field(factory=dict)
    copies: dict[VolumeId, CopyDisk] = field(factory=dict)
    process: Process | None = None
    down_until: float = 0.0
    """Nothing starts the process before this; raised by whatever takes the node down."""

    @property
    def boot(self) -> str:
        """The boot id."""
        return f"{self.name}-boot-{self.boots}"

    def start(self) -> None:
        """Start the daemon, if nothing of it runs and nothing keeps it down."""
        if self.process is not None or self.world.now < self.down_until:
            return
        self.powered = True
        self.started += 1
        self.process = Process(self.world, self, self.name, f"{self.name}-{self.started}")
        self.world.network.process_started(self.name)
        self.process.begin()

    def start_at(self, time: float) -> None:
        """Start the daemon at `time`, unless something later keeps it down longer."""
        self.down_until = max(self.down_until, time)
        self.world.at(time, self.start)

    def kill(self) -> None:
        """End the process as SIGKILL does; the page cache stays."""
        process = self.process
        if process is None:
            return
        self.process = None
        process.die()
        self.world.network.process_ended(process, power=False)

    def lose_power(self) -> None:
        """End everything; the next start is under another boot id."""
        process = self.process
        self.process = None
        if process is not None:
            process.die()
            self.world.network.process_ended(process, power=True)
        if not self.powered:
            return
        self.powered = False
        self.boots += 1
        for volume, disk in self.copies.items():
            disk.power_lost(self.world.rng)
            self.world.invariants.on_damage(volume, disk)

    def ended(self) -> None:
        """The process came to rest by itself."""
        process = self.process
        assert process is not None
        self.process = None
        process.die()
        self.world.network.process_ended(process, power=False)


@define(eq=False)
class Process:
    """One run of the daemon on one machine."""

    world: World
    machine: Machine
    name: NodeName
    session: str
    alive: bool = True
    paused: bool = False
    backlog: list[tuple[Callable[..., None], tuple[object, ...]]] = field(factory=list)
    links: dict[End, None] = field(factory=dict)
    peers: Peers = field(init=False)
    pumps: dict[VolumeId, Pump] = field(factory=dict)
    records: dict[VolumeId, tuple[GroupRecord | None, int]] = field(factory=dict)
    nodes: dict[NodeName, NodeRecord] = field(factory=dict)
    clients: dict[VolumeId, list[Client]] = field(factory=dict)
    stopping: bool = False
    _peer_ends: dict[NodeName, End] = field(factory=dict)
    _heard_ends: dict[NodeName, End] = field(factory=dict)
    _peers_at: float = float("inf")
    _opening: set[VolumeId] = field(factory=set)

    def __attrs_post_init__(self) -> None:
        """Begin with no peers."""
        self.peers = Peers(self.name, self.world.config.timing)

    @property
    def clock(self) -> Clock:
        """The machine's clocks."""
        return self.machine.clock

    # -- running -----------------------------------------------------------------------------------

    def run(self, action: Callable[..., None], *args: object) -> None:
        """Run `action` now, or when the process is resumed, or never when it is dead."""
        if not self.alive:
            return
        if self.paused:
            self.backlog.append((action, args))
        else:
            action(*args)

    def pause(self) -> None:
        """Stop the process as SIGSTOP does."""
        self.paused = True

    def resume(self) -> None:
        """Go on; what has arrived meanwhile is taken in its order."""
        self.paused = False
        backlog, self.backlog = self.backlog, []
        while backlog and self.alive:
            action, args = backlog.pop(0)
            if self.paused:
                self.backlog = [(action, args), *backlog, *self.backlog]
                return
            action(*args)

    def run_anyway(self, action: Callable[[], None]) -> None:
        """Run `action` though the process is paused."""
        if self.alive:
            action()

    def die(self) -> None:
        """End at once."""
        self.alive = False
        self.backlog.clear()
        for pump in self.pumps.values():
            pump.crash()
        for clients in self.clients.values():
            for client in clients:
                client.process_died()

    # -- starting ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Watch the store, open what is on disk, start the frontends."""
        self.world.trace("start", self.name, self.session)
        self.world.store.begin_watching(self)
        self._renew()
        for volume in list(self.machine.copies):
            self._open_found(volume)
        self.world.clients_start(self)

    def _renew(self) -> None:
        self.publish()
        self.world.after(SESSION_TTL_S / 3, self.run, self._renew)

    def publish(self) -> None:
        """Write the node's record, and renew its lease with it."""
        record = NodeRecord(
            name=self.name,
            address=f"{self.name}:5703",
            session=self.session,
            capacity_bytes=TIB,
            free_bytes=TIB,
            copies=0,
            cordoned=self.machine.cordoned,
            draining=self.machine.draining,
            labels=self.machine.labels,
        )
        self.world.store.renew(self, record)

    def _open_found(self, volume: VolumeId) -> None:
        self._opening.add(volume)
        self.world.store.read(self, volume, partial(self._open_with, volume))

    def _open_with(self, volume: VolumeId, record: GroupRecord | None, version: int) -> None:
        self._opening.discard(volume)
        disk = self.machine.copies.get(volume)
        if disk is None or volume in self.pumps or record is None:
            return
        if record.find(disk.superblock.copy) is None:
            del self.machine.copies[volume]
            return
        self._start_pump(disk, record, version, fresh=False)

    def _start_pump(
        self, disk: CopyDisk, record: GroupRecord, version: int, *, fresh: bool
    ) -> Pump:
        boot = self.machine.boot
        was_clean = disk.superblock.clean
        rebooted = disk.superblock.boot != boot
        disk.marked.update(regions_in_doubt(disk.superblock, record, fresh=fresh))
        opened_superblock(disk, boot)
        member = open_member(
            node=self.name,
            process=self.session,
            boot=boot,
            superblock=disk.superblock,
            was_clean=was_clean,
            rebooted=rebooted,
            fresh=fresh,
            marked_regions=sorted(disk.marked),
            dirty_maps=dict(disk.dirty),
            record=record,
            version=version,
            spec=self.world.store.specs[record.volume],
            peers=self.peers,
            policy_of=self.world.config.policy_of,
            now=self.clock.mono(self.world.now),
        )
        member.ctx.hash_of = lambda data, _spec: hash_of(data)
        pump = Pump(self, member, disk, record.volume)
        self.pumps[record.volume] = pump
        pump.feed(ev.NodesSeen(self.nodes))
        return pump

    def reopen(self, pump: Pump) -> None:
        """Open a failed copy anew, as the node does after a rest."""
        if self.pumps.get(pump.volume) is pump and not self.stopping:
            pump.close()
            del self.pumps[pump.volume]
            self._open_found(pump.volume)

    # -- making copies -----------------------------------------------------------------------------

    def _create(self, spec: VolumeSpec, member: Member, state: CopyState) -> CopyDisk:
        disk = CopyDisk(
            spec.size_bytes,
            Superblock(
                cluster=CLUSTER,
                volume=spec.id,
                copy=member.copy,
                incarnation=f"{self.name}/{self.world.draw_id()}",
                boot=self.machine.boot,
                epoch=Epoch(0),
                state=state.value,
                durable=Position(0),
                applied=Position(0),
                clean=False,
                size_bytes=spec.size_bytes,
                hash_key=spec.hash_key,
            ),
        )
        self.machine.copies[spec.id] = disk
        return disk

    def _make_first(self, volume: VolumeId, record: GroupRecord, version: int) -> None:
        if volume in self.machine.copies or volume in self._opening:
            return
        spec = self.world.store.specs[volume]
        mine = record.primary_member
        disk = self._create(spec, mine, CopyState.IN_SYNC)
        named = record.with_member(attrs.evolve(mine, incarnation=disk.superblock.incarnation))

        def done(outcome: str, _present: GroupRecord | None, version: int) -> None:
            if outcome == "ok" and volume not in self.pumps:
                self._start_pump(disk, named, version, fresh=True)
            elif outcome == "unknown" and volume not in self.pumps:
                self._open_found(volume)

        self.world.store.compare_and_set(self, named, version, done)

    def _make_replica(self, end: End, hello: Attach) -> None:
        """Make the copy that a primary asks for, if the record in the store names it."""
        self.world.store.read(self, hello.volume, partial(self._make_replica_with, end, hello))

    def _make_replica_with(
        self, end: End, hello: Attach, record: GroupRecord | None, version: int
    ) -> None:
        if not end.open:
            return
        pump = self.pumps.get(hello.volume)
        if pump is not None and pump.member.ctx.copy == hello.target:
            self.accept(end, hello)
            return
        member = None if record is None else record.find(hello.target)
        refusal = ""
        if record is None or member is None or member.node != self.name:
            refusal = f"The group record names no copy {hello.target} on node {self.name}."
        elif member.copy == record.primary:
            refusal = "A primary's copy is never made anew."
        elif (
            self.stopping
            or hello.volume in self._opening
            or (
                (disk := self.machine.copies.get(hello.volume)) is not None
                and (disk.superblock.copy == hello.target)
            )
        ):
            refusal = "not now"
        if refusal:
            code = "busy" if refusal == "not now" else "no-such-copy"
            self.world.network.send(end, (Refused(code, refusal),))
            self.world.network.close(end)
            return
        assert record is not None
        assert member is not None
        if pump is not None:
            pump.close()
            del self.pumps[hello.volume]
        spec = self.world.store.specs[hello.volume]
        disk = self._create(spec, member, CopyState.OFFLINE)
        self._start_pump(disk, record, version, fresh=True)
        self.accept(end, hello)

    def removed(self, pump: Pump) -> None:
        """A superseded copy goes."""
        if self.pumps.get(pump.volume) is pump:
            del self.pumps[pump.volume]
            self.machine.copies.pop(pump.volume, None)
            self.world.trace("removed", self.name, pump.volume, pump.member.ctx.copy)

    # -- stopping ----------------------------------------------------------------------------------

    def stop(self, *, handover: bool) -> None:
        """Stop the daemon in order."""
        if self.stopping:
            return
        self.stopping = True
        self.world.trace("stop", self.name, str(handover))
        for pump in list(self.pumps.values()):
            pump.feed(ev.Stop(handover=handover))
        self._ended_if_idle()
        self.world.after(15.0, self.run, self._end)

    def stopped(self, pump: Pump) -> None:
        """A member came to rest."""
        if self.pumps.get(pump.volume) is pump:
            del self.pumps[pump.volume]
        self._ended_if_idle()

    def _ended_if_idle(self) -> None:
        if self.stopping and not self.pumps:
            self.world.after(0.01, self.run, self._end)

    def _end(self) -> None:
        if self.alive:
            self.world.store.end_session(self)
            self.machine.ended()

    # -- from the store ----------------------------------------------------------------------------

    def on_record(self, volume: VolumeId, record: GroupRecord | None, version: int) -> None:
        """A watch has told a record."""
        known = self.records.get(volume)
        if known is not None and known[1] >= version:
            return
        self.records[volume] = (record, version)
        pump = self.pumps.get(volume)
        if pump is not None:
            pump.feed(ev.RecordSeen(record, version))
        elif record is not None and not self.stopping:
            first = record.primary_member
            if record.epoch == 1 and first.node == self.name and not first.incarnation:
                self._make_first(volume, record, version)
        if record is not None:
            for client in self.clients.get(volume, ()):
                client.on_record(record)

    def on_spec(self, spec: VolumeSpec) -> None:
        """A watch has told a specification."""
        pump = self.pumps.get(spec.id)
        if pump is not None and pump.member.ctx.spec != spec:
            pump.feed(ev.SpecSeen(spec))

    def on_nodes(self, nodes: dict[NodeName, NodeRecord]) -> None:
        """The nodes that live have changed."""
        self.nodes = nodes
        for pump in list(self.pumps.values()):
            pump.feed(ev.NodesSeen(nodes))

    # -- from the network --------------------------------------------------------------------------

    def accept(self, end: End, hello: Hello) -> None:
        """Take a new link."""
        if isinstance(hello, PeerHello):
            older = self._heard_ends.get(hello.node)
            if older is not None:
                self.world.network.close(older)
            self._heard_ends[hello.node] = end
            end.on_messages = partial(self._on_heartbeats, hello)
            return
        volume = hello.volume
        pump = self.pumps.get(volume)
        if isinstance(hello, SessionOpen):
            if pump is None:
                self.world.network.send(end, (Refused("not-primary", "No copy here."),))
                self.world.network.close(end)
                return
            link = pump.accept(end)
            pump.feed(ev.SessionLinked(link, hello))
        elif pump is not None and pump.member.ctx.copy == hello.target:
            link = pump.accept(end)
            pump.feed(ev.AttachReceived(link, hello))
        else:
            self._make_replica(end, hello)

    # -- peers -------------------------------------------------------------------------------------

    def tend_peers(self) -> None:
        """Send what is due, open what is missing, set the timer."""
        peers = self.peers
        peers.changed = False
        for node, _ in peers.targets():
            if node not in self._peer_ends:
                self._open_peer(node)
        mono = self.clock.mono(self.world.now)
        for (node, _), beat in peers.due(mono):
            end = self._peer_ends.get(node)
            if end is not None:
                self.world.network.send(end, (beat,))
        due = peers.next_due()
        if due < float("inf"):
            at = max(self.clock.when(due), self.world.now + 0.001)
            if at < self._peers_at:
                self._peers_at = at
                self.world.at(at, self._peers_timer, at)

    def _peers_timer(self, at: float) -> None:
        if self._peers_at == at:
            self.run(self._peers_due)

    def _peers_due(self) -> None:
        self._peers_at = float("inf")
        self.tend_peers()

    def _open_peer(self, node: NodeName) -> None:
        end = End(self)
        self._peer_ends[node] = end
        end.on_messages = partial(self._on_answers, node)
        end.on_lost = partial(self._peer_lost, node)
        hello = PeerHello(CLUSTER, self.name, self.session)
        self.world.network.connect(end, node, hello, partial(self._peer_open, node))

    def _peer_open(self, node: NodeName, _end: End) -> None:
        self.peers.on_connected((node, 0))
        self.tend_peers()

    def _peer_lost(self, node: NodeName, end: End, _gone: bool, _sentence: str) -> None:
        self.peers.on_disconnected((node, 0))
        self.world.after(PEER_RETRY_S, self.run, self._retry_peer, node, end)

    def _retry_peer(self, node: NodeName, end: End) -> None:
        if self._peer_ends.get(node) is end:
            del self._peer_ends[node]
        self.tend_peers()

    def _on_answers(self, node: NodeName, _end: End, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, HeartbeatAnswer):
                for volume, epoch in self.peers.on_answer((node, 0), message):
                    pump = self.pumps.get(volume)
                    if pump is not None:
                        pump.feed(ev.Fenced(epoch))
                if message.version < 0:
                    self.tend_peers()

    def _on_heartbeats(self, hello: PeerHello, end: End, messages: Sequence[Message]) -> None:
        mono = self.clock.mono(self.world.now)
        for message in messages:
            if isinstance(message, Heartbeat):
                answer = self.peers.on_heartbeat(hello.node, hello.session, message, mono)
                self.world.network.send(end, (answer,))

    # -- for invariants ----------------------------------------------------------------------------

    def copy_of(self, volume: VolumeId, copy: CopyId) -> CopyDisk | None:
        """Return the disk of a copy on this machine."""
        disk = self.machine.copies.get(volume)
        return disk if disk is not None and disk.superblock.copy == copy else None

    def role_of(self, volume: VolumeId) -> Role | None:
        """Return the role that the local copy of a volume plays."""
        pump = self.pumps.get(volume)
        return None if pump is None else pump.member.role
