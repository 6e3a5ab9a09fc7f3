"""What this node knows of the cluster, kept fresh by watches: volumes, groups, nodes.

Reading it costs nothing and may be a moment old; whoever decides something (the group machines) goes
to the store itself. The keys:

    name/NAME         the id of the volume of this name
    spec/ID           VolumeSpec
    group/ID          GroupRecord
    deleted/ID        proof that a volume was deleted, so that a node that was away may remove its copy
    node/NAME         NodeRecord
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections import Counter
from collections.abc import Callable

import attrs

from holdfast.errors import ConflictError, HoldfastError, NotFoundError, StateError
from holdfast.interfaces.state import Change, StateStore
from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.units import NodeName, VolumeId

PRIMARY_WEIGHT = 2
"""What a primary's copy counts beside a replica's, when work is spread."""
SESSION_POLL_S = 2.0
"""How often the leases of nodes are looked at; replica links notice a dead primary sooner."""


class Directory:
    """A cached picture of the store."""

    def __init__(
        self,
        store: StateStore,
        on_group: Callable[[VolumeId, GroupRecord | None, int], None],
        on_spec: Callable[[VolumeSpec], None],
        on_nodes: Callable[[], None],
        on_error: Callable[[str], None],
    ) -> None:
        """Prepare; `run` keeps the picture fresh and calls back on every change."""
        self.store = store
        self.groups: dict[VolumeId, tuple[GroupRecord, int]] = {}
        self.specs: dict[VolumeId, VolumeSpec] = {}
        self.nodes: dict[NodeName, NodeRecord] = {}
        """Every node that ever joined."""
        self.alive: dict[NodeName, NodeRecord] = {}
        """Those whose lease lives."""
        self._on_group = on_group
        self._on_spec = on_spec
        self._on_nodes = on_nodes
        self._on_error = on_error
        self._look = asyncio.Event()

    # -- reading -----------------------------------------------------------------------------------

    def by_name(self, name: str) -> VolumeSpec:
        """Return the specification of the volume `name`; raises `NotFoundError` with the nearest."""
        for spec in self.specs.values():
            if spec.name == name:
                return spec
        names = [spec.name for spec in self.specs.values()]
        nearest = difflib.get_close_matches(name, names, 1)
        hint = f"Did you mean {nearest[0]}?" if nearest else "`holdfast volume list` shows all."
        raise NotFoundError(f"There is no volume {name!r}.", hint=hint)

    async def find(self, name: str) -> VolumeSpec:
        """As `by_name`, but looks into the store for a volume that was made this very moment."""
        try:
            return self.by_name(name)
        except NotFoundError:
            entry = await self.store.get(f"name/{name}")
            if entry is None:
                raise
            spec = await self.store.get(f"spec/{entry.value.decode()}")
            if spec is None:
                raise
            self._take_spec(VolumeSpec.from_bytes(spec.value))
            return self.by_name(name)

    def node(self, name: NodeName) -> NodeRecord:
        """Return a node that an operator names; raises `NotFoundError` for one never heard of."""
        if name not in self.nodes:
            known = ", ".join(sorted(self.nodes))
            raise NotFoundError(
                f"The cluster has no node {name!r}.", hint=f"Its nodes are {known}."
            )
        return self.nodes[name]

    def check_host(self, name: NodeName) -> None:
        """Raise `ConflictError` or `NotFoundError` when a node that is named cannot take a copy."""
        node = self.node(name)
        if name not in self.alive:
            raise ConflictError(
                f"Node {name} is not up.", hint="`holdfast node list` shows which ones are."
            )
        if node.compute_only:
            raise ConflictError(f"Node {name} is compute-only: it keeps no copies.")

    def loaded(self) -> dict[NodeName, NodeRecord]:
        """Return the nodes that live, with the copies that records name: fresher than what nodes say."""
        copies: Counter[NodeName] = Counter()
        promised: Counter[NodeName] = Counter()
        for volume, (record, _) in self.groups.items():
            spec = self.specs.get(volume)
            for member in record.members:
                copies[member.node] += PRIMARY_WEIGHT if member.copy == record.primary else 1
                promised[member.node] += 0 if spec is None else spec.size_bytes
        return {
            name: attrs.evolve(node, copies=copies[name], promised_bytes=promised[name])
            for name, node in self.alive.items()
        }

    async def read_group(self, volume: VolumeId) -> tuple[GroupRecord | None, int]:
        """Read a group record from the store itself."""
        entry = await self.store.get(f"group/{volume}")
        if entry is None:
            return None, 0
        return GroupRecord.from_bytes(entry.value), entry.version

    # -- watching ----------------------------------------------------------------------------------

    async def run(self, *, leases: bool = True) -> None:
        """Watch until cancelled; an outage of the store is waited out.

        Args:
            leases: Whether to find out which nodes live; who only consumes need not know.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch("spec/"))
            tasks.create_task(self._watch("group/"))
            tasks.create_task(self._watch("node/"))
            if leases:
                tasks.create_task(self._watch_leases())

    async def prime(self) -> None:
        """Fill the picture once, before anything else looks at it."""
        for prefix in ("spec/", "group/", "node/"):
            for entry in await self.store.list(prefix):
                self._take(Change(entry.key, entry))
        await self._look_at_leases()

    async def _watch(self, prefix: str) -> None:
        while True:
            try:
                async with self.store.watch(prefix) as changes:
                    async for change in changes:
                        self._take(change)
            except StateError as error:
                self._on_error(error.message)
                await asyncio.sleep(0.5)

    def _take(self, change: Change) -> None:
        prefix, _, key = change.key.partition("/")
        entry = change.entry
        try:
            if prefix == "group":
                self._take_group(VolumeId(key), change)
            elif prefix == "spec":
                if entry is None:
                    self.specs.pop(VolumeId(key), None)
                else:
                    self._take_spec(VolumeSpec.from_bytes(entry.value))
            elif entry is None:
                self.nodes.pop(NodeName(key), None)
                self._look.set()
            else:
                self.nodes[NodeName(key)] = NodeRecord.from_bytes(entry.value)
                self._look.set()
        except HoldfastError as error:
            # One damaged or newer value must not blind the node to all the others.
            self._on_error(f"{change.key}: {error.message}")

    def _take_group(self, volume: VolumeId, change: Change) -> None:
        if change.entry is None:
            if self.groups.pop(volume, None) is not None:
                self._on_group(volume, None, 0)
            return
        known = self.groups.get(volume)
        if known is not None and known[1] >= change.entry.version:
            return
        record = GroupRecord.from_bytes(change.entry.value)
        self.groups[volume] = (record, change.entry.version)
        self._on_group(volume, record, change.entry.version)

    def _take_spec(self, spec: VolumeSpec) -> None:
        if self.specs.get(spec.id) != spec:
            self.specs[spec.id] = spec
            self._on_spec(spec)

    async def _watch_leases(self) -> None:
        while True:
            # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SESSION_POLL_S):
                    await self._look.wait()
            self._look.clear()
            try:
                await self._look_at_leases()
            except StateError as error:
                self._on_error(error.message)
                await asyncio.sleep(0.5)

    async def _look_at_leases(self) -> None:
        alive = {
            name: node
            for name, node in list(self.nodes.items())
            if node.session and await self.store.session_alive(name) == node.session
        }
        if alive != self.alive:
            self.alive = alive
            self._on_nodes()
