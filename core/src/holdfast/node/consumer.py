"""A consumer's place in a cluster: the picture of it, links to its nodes, sessions on its volumes.

A node has one for its frontends, a program one for itself; the only difference is that a node's
sessions may find their primary in the same process. It knows no copies and takes no part in any
group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from holdfast.errors import UnavailableError
from holdfast.interfaces.frontend import PathState, SessionHandler
from holdfast.interfaces.state import StateStore
from holdfast.interfaces.transport import Link, LinkHandler, Transport
from holdfast.messages import Hello
from holdfast.model import GroupRecord, VolumeSpec
from holdfast.node.directory import Directory
from holdfast.node.polling import ALWAYS_ASLEEP, Polling
from holdfast.node.pump import Pump
from holdfast.node.sessions import NodeSession
from holdfast.units import NodeName, VolumeId

FENCED_S = 1.5
"""How long a primary is without its lease before its node is no way to the volume: the margin after
which others promote themselves, and a little."""
CUT_OFF_S = 8.0
"""How long sessions may look for a primary before their node is no way to it; a failover takes 6 s."""


class Consumer:
    """Opens sessions; implements `VolumeProvider` for frontends and `SessionHost` for sessions."""

    def __init__(
        self,
        *,
        name: NodeName,
        cluster: str,
        process: str,
        store: StateStore,
        transport: Transport,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        on_store_error: Callable[[str], None],
        on_group: Callable[[VolumeId, GroupRecord | None, int], None] = lambda *_: None,
        on_spec: Callable[[VolumeSpec], None] = lambda _: None,
        on_nodes: Callable[[], None] = lambda: None,
        local_pump: Callable[[VolumeId], Pump | None] = lambda _: None,
        keeps: Callable[[VolumeId], bool] = lambda _: True,
        io_deadline_s: float | None = None,
        polling: Polling = ALWAYS_ASLEEP,
    ) -> None:
        """Prepare; the owner primes `directory` and runs it.

        Args:
            name: What the group record calls the place of this consumer's sessions (R11).
            cluster: The cluster's name, as nodes present themselves with it.
            process: Names this process; another one is another start.
            store: The cluster's state store, open.
            transport: Opens links to nodes.
            spawn: Runs a coroutine under the owner's task group.
            on_store_error: Told a sentence when the store does not answer.
            on_group: Told every change of a group record, before the sessions are.
            on_spec: Told every change of a specification.
            on_nodes: Told when the nodes whose leases live are others.
            local_pump: Finds the copy of a volume in this very process.
            keeps: Whether copies of a volume on this node are kept by this process.
            io_deadline_s: How long a request may wait before its consumer is told EIO; None: for ever.
            polling: Whether to wait awake for answers; a program's own loop does not.
        """
        self.name = name
        self.cluster = cluster
        self.process = process
        self.polling = polling
        self.directory = Directory(store, self._on_group, on_spec, on_nodes, on_store_error)
        self._transport = transport
        self._spawn = spawn
        self._observe = on_group
        self._local_pump = local_pump
        self._keeps = keeps
        self._io_deadline_s = io_deadline_s
        self._sessions: dict[VolumeId, set[NodeSession]] = {}

    # -- VolumeProvider ---------------------------------------------------------------------------

    async def names(self) -> Sequence[str]:
        """Return the names of all volumes, sorted."""
        return sorted(s.name for s in self.directory.specs.values() if not s.deleting)

    async def describe(self, name: str) -> VolumeSpec:
        """Return a volume's specification."""
        return await self.directory.find(name)

    async def open(
        self,
        name: str,
        handler: SessionHandler,
        *,
        read_only: bool = False,
        force: bool = False,
        consumer: str = "",
    ) -> NodeSession:
        """Open a session and return once the primary serves it."""
        spec = await self.directory.find(name)
        if spec.id not in self.directory.groups:
            record, version = await self.directory.read_group(spec.id)
            if record is not None:
                self.directory.groups.setdefault(spec.id, (record, version))
        session = NodeSession(
            self,
            spec,
            handler,
            read_only=read_only,
            force=force,
            consumer=consumer,
            io_deadline_s=self._io_deadline_s,
        )
        self._sessions.setdefault(spec.id, set()).add(session)
        try:
            await session.start()
        except BaseException:
            self.session_closed(session)
            raise
        return session

    def path(self, name: str) -> PathState:
        """Return what the way from here to a volume is worth now."""
        spec = next((s for s in self.directory.specs.values() if s.name == name), None)
        record = self.group(spec.id) if spec is not None else None
        if spec is None or record is None:
            return PathState.INACCESSIBLE
        pump = self.local_pump(spec.id)
        primary = pump.member.primary if pump is not None else None
        if record.primary_member.node == self.name and primary is not None:
            # Without its lease it answers nothing, and by now another may have been promoted.
            is_fenced = time.monotonic() - primary.lease_until() > FENCED_S
            return PathState.INACCESSIBLE if is_fenced else PathState.OPTIMIZED
        # Also when it is deposed here, or not promoted yet: what comes waits for what follows.
        sessions = self._sessions.get(spec.id)
        if sessions and min(session.cut_off_s for session in sessions) > CUT_OFF_S:
            return PathState.INACCESSIBLE
        return PathState.NON_OPTIMIZED

    def addresses(self, frontend: str) -> Sequence[str]:
        """Return where other living nodes offer the frontend."""
        found = []
        for name, known in self.directory.alive.items():
            address = known.frontends.get(frontend) if name != self.name else None
            if address is not None:
                host, _, port = address.rpartition(":")
                if host in {"0.0.0.0", "[::]"}:  # noqa: S104 - compared, not bound.
                    host = known.address.rpartition(":")[0]
                found.append(f"{host}:{port}")
        return found

    # -- SessionHost ------------------------------------------------------------------------------

    def local_pump(self, volume: VolumeId) -> Pump | None:
        """Return the pump of the local copy, if there is one."""
        return self._local_pump(volume)

    def is_here(self, node: NodeName, volume: VolumeId) -> bool:
        """Whether this very process keeps the copy that `node` has of a volume."""
        return node == self.name and self._keeps(volume)

    def group(self, volume: VolumeId) -> GroupRecord | None:
        """Return the group record last seen."""
        known = self.directory.groups.get(volume)
        return None if known is None else known[0]

    async def dial(self, node: NodeName, hello: Hello, handler: LinkHandler) -> Link:
        """Open a link to a node by its name.

        Raises:
            UnavailableError: Its address is not known, or nothing answers there.
        """
        known = self.directory.nodes.get(node)
        if known is None or not known.address:
            raise UnavailableError(f"The address of node {node} is not known.")
        return await self._transport.connect(known.address, hello, handler)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine under the owner's task group."""
        self._spawn(coroutine)

    def session_closed(self, session: NodeSession) -> None:
        """Forget a session."""
        sessions = self._sessions.get(session.spec.id)
        if sessions is not None:
            sessions.discard(session)
            if not sessions:
                del self._sessions[session.spec.id]

    # -- inside -----------------------------------------------------------------------------------

    def _on_group(self, volume: VolumeId, record: GroupRecord | None, version: int) -> None:
        self._observe(volume, record, version)
        for session in list(self._sessions.get(volume, ())):
            if record is None:
                session.on_deleted()
            else:
                session.on_record(record)
