"""The node: opens what the configuration names, wires it together, runs until it is told to stop.

Order matters at both ends. At the start the transport listens before copies are opened, so that other
primaries find us; frontends come last, when volumes can be served. At the stop primaries are handed
over while the frontends still serve, so that their consumers move on with a pause and no error.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from holdfast import __version__
from holdfast.errors import (
    HoldfastError,
    StateConflictError,
    StateError,
    UnavailableError,
)
from holdfast.interfaces.frontend import Frontend
from holdfast.interfaces.state import NodeSession as StateSession
from holdfast.interfaces.state import StateStore
from holdfast.interfaces.transport import Accept, Link, LinkHandler
from holdfast.kernel.config import Config
from holdfast.kernel.hooks import load_hooks
from holdfast.kernel.sections import SyncOptions, TimingOptions
from holdfast.local.host import Space
from holdfast.messages import Attach, Hello, PeerHello, SessionOpen
from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.node import eventlog
from holdfast.node.consumer import Consumer
from holdfast.node.control import serve_control
from holdfast.node.data_directories import DataDirectories
from holdfast.node.eventlog import EventLog
from holdfast.node.heartbeats import Heartbeats
from holdfast.node.hosting import Hosting
from holdfast.node.observing import Observing
from holdfast.node.policies import Policies
from holdfast.node.polling import Polling
from holdfast.node.pump import Pump
from holdfast.node.replicators import ReplicatorService, open_replicators
from holdfast.node.scrubbing import Scrubbing
from holdfast.node.service import NodeService
from holdfast.node.service_impl import Service
from holdfast.node.tasks import Tasks
from holdfast.node.transports import Transports
from holdfast.node.volumes import Volumes
from holdfast.sync import events as ev
from holdfast.sync.pace import PaceLimits
from holdfast.sync.peers import Peers, Timing
from holdfast.units import MIB, Epoch, NodeName, VolumeId

SESSION_TTL_S = 10.0
"""A node's lease in the store; replica links notice a dead primary sooner."""
PUBLISH_S = 15.0
"""How often free space and promises are looked at, and published when they have changed much."""
PUBLISH_BYTES_MIN = 16 * MIB
"""A quarter of what is left is worth telling of, however large the disk; less than this is not."""
GC_THRESHOLDS = (10_000, 20, 50)
"""Of the three generations: a batch makes some dozens of objects and forgets nearly all of them."""
STOP_PATIENCE_S = 8.0
_log = logging.getLogger("holdfast.node")


class Node:
    """One running node."""

    def __init__(
        self,
        config: Config,
        store: StateStore,
        transports: Transports,
        *,
        process: str = "",
        worker: int = 0,
    ) -> None:
        """Wire the rooms together; `run` brings them to life.

        Args:
            config: What is in force.
            store: The state store, open.
            transports: The transports, open.
            process: Names this process; empty: a new name.
            worker: Which of the node's workers this is; 0 where the node is one process.
        """
        self.config = config
        self.name = NodeName(config.node.name)
        self.cluster = config.cluster.name
        self.process = process or uuid.uuid4().hex
        self.store = store
        self.transports = transports
        self.ready = False
        self.started_at = time.time()
        self.stopping: asyncio.Event = asyncio.Event()
        self.handover = True
        self.frontends: dict[str, Frontend] = {}
        self.record = NodeRecord(self.name, "", "")
        self.cordoned = config.node.cordoned
        self.draining = False
        self.relabelled: dict[str, str | None] = {}
        self.tasks = Tasks(self._on_failure)
        self.failure: BaseException | None = None
        self.polling = Polling(config.node.busy_poll_us)
        self.peers = Peers(self.name, _timing(config.timing), self._worker_of)
        self.consumer = Consumer(
            name=self.name,
            cluster=self.cluster,
            process=self.process,
            store=store,
            transport=transports.own,
            spawn=self.tasks.spawn,
            on_store_error=self._on_store_error,
            on_group=self._on_group,
            on_spec=self._on_spec,
            on_nodes=self._on_nodes,
            local_pump=self._local_pump,
            keeps=self.keeps,
            io_deadline_s=config.node.io_deadline_s or None,
            polling=self.polling,
        )
        self.directory = self.consumer.directory
        self.observing = Observing(self.name, load_hooks(), self.directory)
        self.policies = Policies(config.policies)
        self.volumes = Volumes(
            store,
            self.directory,
            self.policies,
            config.volumes,
            config.transport.name,
            self.observing,
        )
        self.hosting = self._make_hosting()
        self.heartbeats = Heartbeats(
            self.peers,
            PeerHello(self.cluster, self.name, self.process, worker),
            self.consumer.dial,
            self.tasks.spawn,
            self._on_answer,
        )
        self._state_session: StateSession | None = None
        self._told_store_error = ""

    def _make_hosting(self) -> Hosting:
        roots = [Path(path) for path in self.config.node.data]
        return Hosting(
            name=self.name,
            cluster=self.cluster,
            process=self.process,
            data=DataDirectories(roots, self.cluster),
            directory=self.directory,
            peers=self.peers,
            policy_of=self.policies.of,
            dial=self._dial_copy,
            spawn=self.tasks.spawn,
            heard=self._kick,
            events=EventLog(self._home() / eventlog.DIRECTORY, self.name),
            observing=self.observing,
            polling=self.polling,
            pace_limits=_pace_limits(self.config.sync),
            keeps=self.keeps,
        )

    def _on_failure(self, error: BaseException) -> None:
        """An unexpected exception stops the node rather than going unseen."""
        _log.error("A task of the node failed; the node stops.", exc_info=error)
        self.failure = error
        self.stopping.set()

    def keeps(self, _volume: VolumeId) -> bool:
        """Whether this process keeps the node's copy of a volume, if the node has one."""
        return True

    def _worker_of(self, node: NodeName, volume: VolumeId) -> int:
        known = self.directory.nodes.get(node)
        # Asked for every answer that a primary gives; most nodes have no workers.
        return 0 if known is None or not known.workers else known.worker_of(volume)

    # -- links -------------------------------------------------------------------------------------

    def _accept_for(self, _transport: str) -> Accept:
        return self._accept

    def _accept(self, link: Link, hello: Hello) -> LinkHandler | None:
        if isinstance(hello, Attach):
            return self.hosting.accept_attach(link, hello)
        if isinstance(hello, SessionOpen):
            return self.hosting.accept_session(link, hello)
        return self.heartbeats.accept(link, hello)

    async def _dial_copy(self, node: NodeName, hello: Attach, handler: LinkHandler) -> Link:
        """Open a replication link by the transport that the volume has chosen for that node."""
        known = self.directory.nodes.get(node)
        if known is None or not known.address:
            raise UnavailableError(f"The address of node {node} is not known.")
        spec = self.directory.specs.get(hello.volume)
        name = self.transports.own_name if spec is None else spec.transport_to(node)
        return await self.transports.connect(name, known, hello, handler)

    def _kick(self) -> None:
        self.heartbeats.kick()

    def _on_answer(self, refused: Sequence[tuple[VolumeId, Epoch]]) -> None:
        """A peer has answered: leases may have begun, come back, or been refused."""
        for volume, epoch in refused:
            pump = self.hosting.pumps.get(volume)
            if pump is not None:
                pump.feed(ev.Fenced(epoch))
        for pump in list(self.hosting.pumps.values()):
            primary = pump.member.primary
            if primary is not None and not (primary.serving and primary.idle):
                pump.feed(ev.Tick())

    # -- the directory's callbacks -----------------------------------------------------------------

    def _on_group(self, volume: VolumeId, record: GroupRecord | None, version: int) -> None:
        self.hosting.on_group(volume, record, version)

    def _local_pump(self, volume: VolumeId) -> Pump | None:
        return self.hosting.pumps.get(volume)

    def _on_spec(self, spec: VolumeSpec) -> None:
        self.hosting.on_spec(spec)
        if self.ready:  # Before that all of them are prepared at once.
            self.tasks.spawn(asyncio.to_thread(self.policies.prepare, (spec,)))

    def _on_nodes(self) -> None:
        self.hosting.on_nodes()
        self.observing.nodes_changed()
        self._reseat()

    def _reseat(self) -> None:
        self.peers.reseat()
        if self.peers.changed:
            self._kick()

    def _on_store_error(self, sentence: str) -> None:
        if sentence != self._told_store_error:
            self._told_store_error = sentence
            _log.warning("The state store: %s", sentence)

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Run until stopped; return the exit code."""
        async with contextlib.AsyncExitStack() as stack:
            address = await self.transports.listen(self._accept_for, stack)
            self._state_session = await self.store.open_session(self.name, SESSION_TTL_S)
            await self._recall()
            await self._publish(address, session=self.process)
            await self.directory.prime()
            self.tasks.spawn(self._renew())
            self.tasks.spawn(self.directory.run())
            self.tasks.spawn(self._republish())
            self.tasks.spawn(self.observing.run(self.hosting.pumps))
            await self._open_copies(stack)
            await self._open_frontends(stack)
            await self._publish(address, session=self.process)
            async with serve_control(await self._service(stack), self.control_path()):
                settle_heap()
                self.ready = True
                _log.info("Node %s is ready at %s.", self.name, address)
                await self.stopping.wait()
                self.ready = False
                await self._stop(address)
        return 0 if self.failure is None else 70

    async def _open_copies(self, _stack: contextlib.AsyncExitStack) -> None:
        """Open what is on disk, and begin to look after it."""
        await asyncio.to_thread(self.policies.prepare, list(self.directory.specs.values()))
        await self.hosting.open_all()
        if self.hosting.data.roots:
            kept_in = self.hosting.data.roots[0] / self._scrubs_file()
            scrubbing = Scrubbing(self.hosting.pumps, self.config.scrub, kept_in)
            self.tasks.spawn(scrubbing.refresh())
            self.tasks.spawn(scrubbing.scrub())

    def _scrubs_file(self) -> str:
        return "scrubs.json"

    async def _open_frontends(self, stack: contextlib.AsyncExitStack) -> None:
        for name, chosen in self.config.frontends.items():
            self.frontends[name] = await chosen.driver.open(chosen.options, self.consumer)
            stack.push_async_callback(self.frontends[name].aclose)

    async def _service(self, stack: contextlib.AsyncExitStack) -> NodeService:
        if not self.config.replicators:
            return Service(self)
        replicators = await open_replicators(self)
        stack.push_async_callback(replicators.aclose)
        return ReplicatorService(self, replicators)

    async def _end_copies(self) -> None:
        """Hand primaries over and close the copies; then frontends and heartbeats."""
        await self.hosting.stop(handover=self.handover, patience_s=STOP_PATIENCE_S)
        for frontend in self.frontends.values():
            await frontend.aclose()
        self.heartbeats.close()

    async def _stop(self, address: str) -> None:
        _log.info("Node %s is stopping.", self.name)
        await self._end_copies()
        with contextlib.suppress(HoldfastError):
            await self._publish(address, session="")
            if self._state_session is not None:
                await self._state_session.end()
        await self.tasks.aclose()

    def control_path(self) -> Path:
        """Return where the control API is served."""
        if self.config.control.socket:
            return Path(self.config.control.socket)
        return self._home() / "control.sock"

    def _home(self) -> Path:
        """Return where the node's own files are: what belongs to no copy."""
        if self.config.node.data:
            return Path(self.config.node.data[0])
        return Path(self.config.source).absolute().parent

    async def _renew(self) -> None:
        """Keep the node's lease in the store alive; its own end is not the end of its volumes (R9)."""
        session = self._state_session
        assert session is not None
        while True:
            await asyncio.sleep(SESSION_TTL_S / 4)
            try:
                await session.renew()
                self._told_store_error = ""  # The next outage is told again.
            except StateConflictError:
                # The lease ran out while the store or we were away; begin another.
                with contextlib.suppress(HoldfastError):
                    session = await self.store.open_session(self.name, SESSION_TTL_S)
                    self._state_session = session
                    await self._publish(self.record.address, session=self.process)
            except StateError as error:
                self._on_store_error(error.message)

    async def _republish(self) -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            space = await asyncio.to_thread(self._space)
            moved = abs(space.free_bytes - self.record.free_bytes)
            promised = self.record.promised_bytes != self._promised_bytes()
            quarter = max(self.record.free_bytes / 4, PUBLISH_BYTES_MIN)
            if moved > min(space.total_bytes / 100, quarter) or promised:
                with contextlib.suppress(HoldfastError):
                    await self._publish(self.record.address, session=self.process)

    def _space(self) -> Space:
        return self.hosting.data.space()

    def _workers(self) -> tuple[str, ...]:
        """Return the names of the processes that keep the copies, if they are others."""
        return ()

    def _promised_bytes(self) -> int:
        return sum(pump.member.ctx.spec.size_bytes for pump in self.hosting.pumps.values())

    async def _publish(self, address: str, *, session: str) -> None:
        """Write this node's record; `session` empty says that it has stopped."""
        space = await asyncio.to_thread(self._space)
        assert self._state_session is not None
        self.record = NodeRecord(
            name=self.name,
            address=self.config.node.advertise or address,
            session=self._state_session.id if session else "",
            process=self.process,
            workers=self._workers(),
            control=str(self.control_path()),
            capacity_bytes=space.total_bytes,
            free_bytes=space.free_bytes,
            promised_bytes=self._promised_bytes(),
            overcommit=self.config.node.overcommit,
            copies=len(self.hosting.pumps),
            cordoned=self.cordoned,
            draining=self.draining,
            compute_only=self.config.node.compute_only,
            labels=self.labels,
            relabelled=self.relabelled,
            transports=self.transports.addresses(self.config.node.advertise),
            frontends={name: frontend.address for name, frontend in self.frontends.items()},
            version=__version__,
            started_at=self.started_at,
        )
        key = f"node/{self.name}"
        while True:
            entry = await self.store.get(key)
            try:
                await self.store.compare_and_set(
                    key, self.record.to_bytes(), None if entry is None else entry.version
                )
            except StateConflictError:
                continue  # The process before us, writing its last word.
            return

    async def _recall(self) -> None:
        """Take up what an operator has said of this node before it was restarted."""
        entry = await self.store.get(f"node/{self.name}")
        if entry is not None:
            before = NodeRecord.from_bytes(entry.value)
            self.cordoned = self.cordoned or before.cordoned
            self.draining = before.draining
            self.relabelled = dict(before.relabelled)

    async def set_cordoned(self, *, cordoned: bool, draining: bool = False) -> None:
        """Take no new copies, or take them again; `draining` moves those that it has away."""
        self.cordoned, self.draining = cordoned, draining
        await self._publish(self.record.address, session=self.process)

    @property
    def labels(self) -> dict[str, str]:
        """The labels in force: the configuration's, and what an operator has said since."""
        merged = {**self.config.node.labels, **self.relabelled}
        return {key: value for key, value in merged.items() if value is not None}

    async def relabel(self, changes: Mapping[str, str | None]) -> None:
        """Set labels, or remove those that are None; kept over restarts."""
        self.relabelled |= changes
        await self._publish(self.record.address, session=self.process)

    def request_stop(self, *, handover: bool = True) -> None:
        """Begin a clean stop."""
        self.handover = handover
        self.stopping.set()


def settle_heap() -> None:
    """Spare the garbage collector what lives as long as the process: modules, classes, open copies.

    A full collection otherwise walks all of it, some 20 ms in which no request is answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _timing(options: TimingOptions) -> Timing:
    return Timing(options.heartbeat_s, options.lease_s, options.margin_s, options.ack_timeout_s)


def _pace_limits(options: SyncOptions) -> PaceLimits:
    ceiling = options.ceiling_mib_s * MIB or float("inf")
    return PaceLimits(min(options.floor_mib_s * MIB, ceiling), ceiling)
