"""The control API's calls, answered by a running node; see `service.py` for the promises.

Questions that only a primary's machine can answer are asked of that node's own control socket. That
reaches nodes of the same machine; on another machine the answer is what the record says.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from holdfast import __version__
from holdfast.errors import ConflictError, NotFoundError, UnavailableError
from holdfast.kernel import registry
from holdfast.kernel.config import provenance
from holdfast.model import CopyState, GroupRecord, VolumeSpec
from holdfast.node import verifying
from holdfast.node.draining import drain_plan, refuse_to_lower
from holdfast.node.explain import explain
from holdfast.node.metrics import samples_of
from holdfast.node.other_nodes import OtherNodes
from holdfast.node.pump import Pump
from holdfast.node.service import VOLUME_IN_URI, Json, Sample, VolumeChanges, VolumeRequest
from holdfast.node.status import declared, volume_status
from holdfast.sync import events as ev
from holdfast.sync.member import GroupMember
from holdfast.units import NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.node.daemon import Node

SETTLE_S = 10.0
"""How long a command waits for what it began to be visible."""


class Service:
    """Implements `service.NodeService` over a `Node`."""

    def __init__(self, node: Node) -> None:
        """Answer for `node`."""
        self._node = node
        self._others = OtherNodes(node.name, node.directory)

    # -- nodes -------------------------------------------------------------------------------------

    async def node(self) -> Json:
        """Describe this node."""
        node = self._node
        return {
            "name": node.name,
            "cluster": node.cluster,
            "pid": os.getpid(),
            "version": __version__,
            "ready": node.ready,
            "started_at": node.started_at,
            "address": node.record.address,
            "frontends": dict(node.record.frontends),
            "uris": {
                name: frontend.uri(VOLUME_IN_URI, _host_of(frontend.address, node.record.address))
                for name, frontend in node.frontends.items()
            },
            "transports": dict(node.record.transports),
            "cordoned": node.cordoned,
            "draining": node.draining,
            "labels": node.labels,
            "copies": len(node.hosting.pumps),
            "data": [str(path) for path in node.hosting.data.roots],
            "capacity_bytes": node.record.capacity_bytes,
            "free_bytes": node.record.free_bytes,
            "orphans": {str(path): why for path, why in node.hosting.orphans.items()},
        }

    async def nodes(self) -> Sequence[Json]:
        """Describe every node that the cluster knows."""
        directory = self._node.directory
        records = [record for record, _ in directory.groups.values()]
        rows = []
        for name in sorted(directory.nodes):
            known = directory.nodes[name]
            rows.append(
                {
                    "name": name,
                    "alive": name in directory.alive,
                    "address": known.address,
                    "frontends": dict(known.frontends),
                    "transports": dict(known.transports),
                    "cordoned": known.cordoned,
                    "draining": known.draining,
                    "compute_only": known.compute_only,
                    "labels": dict(known.labels),
                    "copies": sum(1 for r in records if r.on_node(name) is not None),
                    "primaries": sum(1 for r in records if r.primary_member.node == name),
                    "capacity_bytes": known.capacity_bytes,
                    "free_bytes": known.free_bytes,
                    "version": known.version,
                    "started_at": known.started_at,
                }
            )
        return rows

    async def cordon(self, cordoned: bool) -> Json:
        """Let this node take no new copies, or let it again."""
        await self._node.set_cordoned(cordoned=cordoned)
        return await self.node()

    async def label(self, changes: Mapping[str, str | None]) -> Json:
        """Set and remove labels of this node."""
        await self._node.relabel(changes)
        return await self.node()

    async def drain(self, *, dry_run: bool) -> Json:
        """Begin to move all copies of this node to others."""
        node = self._node
        plan = await self._drain_plan()
        if not dry_run:
            refuse_to_lower(node.name, plan)
            await node.set_cordoned(cordoned=True, draining=True)
        return {"node": node.name, "draining": node.draining, "plan": plan}

    async def _drain_plan(self) -> list[Json]:
        directory = self._node.directory
        groups = {volume: record for volume, (record, _) in directory.groups.items()}
        return drain_plan(self._node.name, directory.specs, groups, directory.loaded())

    async def stop(self, *, handover: bool) -> None:
        """Begin a clean stop."""
        self._node.request_stop(handover=handover)

    # -- volumes -----------------------------------------------------------------------------------

    async def volumes(self) -> Sequence[Json]:
        """Return the status of every volume."""
        specs = sorted(self._node.directory.specs.values(), key=lambda spec: spec.name)
        # Together, so that the volumes of a node that is silent wait for it once.
        return await asyncio.gather(*map(self._status, specs))

    async def volume(self, name: str) -> Json:
        """Return the status of a volume."""
        return await self._status(await self._node.directory.find(name))

    async def _status(self, spec: VolumeSpec) -> Json:
        remote, silent = await self._told_by_primary(spec, "volume")
        if remote is not None:
            return remote
        record, member = self._own(spec)
        alive = self._node.directory.alive
        return volume_status(spec, record, alive, member, silent=silent)

    def _own(self, spec: VolumeSpec) -> tuple[GroupRecord | None, GroupMember | None]:
        """Return the record in force, and the machine of its primary if that is here."""
        record = self._node.consumer.group(spec.id)
        pump = self._node.hosting.pumps.get(spec.id)
        member = None if pump is None else pump.member
        if member is not None and member.primary is not None:
            return member.ctx.record, member
        is_primary = member is not None and record is not None and member.ctx.copy == record.primary
        return record, member if is_primary else None

    async def _told_by_primary(self, spec: VolumeSpec, call: str) -> tuple[Json | None, bool]:
        """Return what the primary's node answers, and whether it certainly answers nothing.

        Another may have taken over while a silent one was asked; then that one is asked as well.
        """
        asked: set[NodeName] = set()
        while True:
            record, member = self._own(spec)
            if record is None or member is not None:
                return None, False
            node = record.primary_member.node
            if node in asked or not self._others.can_ask(node):
                return None, node in asked
            asked.add(node)
            remote = await self._others.ask(node, call, spec.name)
            if remote is not None:
                return cast("Json", remote), False

    async def own_volume(self, name: str) -> Json:
        """Return the status as this node sees it, without asking another."""
        spec = await self._node.directory.find(name)
        record, member = self._own(spec)
        return volume_status(spec, record, self._node.directory.alive, member)

    async def explain(self, name: str) -> Json:
        """Explain a volume's state, by the primary's node if that can be asked."""
        spec = await self._node.directory.find(name)
        remote, silent = await self._told_by_primary(spec, "explain")
        return await self._explained(spec, silent=silent) if remote is None else remote

    async def own_explain(self, name: str) -> Json:
        """Explain a volume's state by what this node knows."""
        return await self._explained(await self._node.directory.find(name), silent=False)

    async def _explained(self, spec: VolumeSpec, *, silent: bool) -> Json:
        node = self._node
        record, member = self._own(spec)
        return explain(
            spec,
            record,
            node.directory.alive,
            member,
            node.policies.of(spec),
            await node.hosting.events.read(spec.id),
            nodes_known=len(node.directory.nodes),
            silent=silent,
        )

    async def create_volume(self, request: VolumeRequest) -> tuple[Json, Sequence[str]]:
        """Make a volume; returns as soon as its primary serves it."""
        spec, warnings = await self._node.volumes.create(request, self._others.answers)
        give_up = time.monotonic() + SETTLE_S
        status = await self._status(spec)
        while status["health"] == "offline" and time.monotonic() < give_up:
            await asyncio.sleep(0.02)
            status = await self._status(spec)
        return status, warnings

    async def change_volume(self, name: str, changes: VolumeChanges) -> Json:
        """Change what was declared."""
        spec, warnings = await self._node.volumes.change(name, changes)
        # Whoever tells the rest may not have heard of the change yet.
        return await self._status(spec) | declared(spec) | {"warnings": warnings}

    async def delete_volume(self, name: str, *, force: bool) -> None:
        """Delete a volume and all its copies."""
        await self._node.volumes.delete(name, force=force)

    async def promote(self, name: str, node: NodeName, *, force: bool = False) -> Json:
        """Hand the primary over to an in-sync copy, or let one stand that waits for another."""
        if force:
            return await self._force(name, node)
        spec, pump, record = await self._at_primary(name)
        if pump is None:
            return await self._others.order(record.primary_member.node, "promote", name, node)
        target = record.on_node(node)
        if target is None or target.state is not CopyState.IN_SYNC:
            self._node.directory.node(node)  # Raises for what is no node at all.
            raise _no_copy(name, node)
        if target.copy != record.primary:
            pump.feed(ev.Handover(node, leave=False))
            await self._until(lambda: self._primary_node(spec) == node, f"{node} takes over")
        return await self._status(spec)

    async def evict(self, name: str, node: NodeName) -> Json:
        """Take a node's copy out of the group for good."""
        spec, pump, record = await self._at_primary(name)
        if pump is None:
            return await self._others.order(record.primary_member.node, "evict", name, node)
        member = record.on_node(node)
        if member is None:
            raise NotFoundError(f"Node {node} has no copy of {name}.")
        if member.copy == record.primary:
            raise ConflictError(
                f"The copy on {node} is the primary.",
                hint=f"First `holdfast volume promote {name} NODE` with another node.",
            )
        pump.feed(ev.Evict(node))

        def is_out() -> bool:
            # The same node may have a new one at once, where no other can take it.
            now = self._node.consumer.group(spec.id)
            return now is not None and all(each.copy != member.copy for each in now.members)

        await self._until(is_out, f"the copy on {node} is taken out")
        return await self._status(spec)

    async def move(self, name: str, source: NodeName, target: NodeName) -> Json:
        """Begin to move a copy: add on `target`, sync, then remove from `source`.

        To its own node: call a move off.
        """
        spec, pump, record = await self._at_primary(name)
        if pump is None:
            return await self._others.order(
                record.primary_member.node, "move", name, source, target
            )
        if record.on_node(source) is None:
            raise NotFoundError(f"Node {source} has no copy of {name}.")
        if source == target:
            member = record.on_node(source)
            if member is None or not member.leaving:
                raise ConflictError(f"The copy of {name} on {source} is not being moved.")
        elif record.on_node(target) is not None:
            raise ConflictError(f"Node {target} has a copy of {name} already.")
        self._node.directory.check_host(target)
        pump.feed(ev.MoveCopy(source, target))
        return await self._status(spec)

    async def _at_primary(self, name: str) -> tuple[VolumeSpec, Pump | None, GroupRecord]:
        """Return a volume, the pump of its primary if that is here, and its record.

        While the primary is on a node that is silent, another one is waited for.
        """
        spec = await self._node.directory.find(name)
        give_up = time.monotonic() + SETTLE_S
        while True:
            pump = self._node.hosting.pumps.get(spec.id)
            if pump is not None and pump.is_primary:
                return spec, pump, pump.member.ctx.record
            record = self._node.consumer.group(spec.id)
            if record is None or record.primary_member.node == self._node.name:
                raise UnavailableError(
                    f"Volume {name} has no serving primary now.", hint="Try again in a moment."
                )
            node = record.primary_member.node
            others, alive = self._others, self._node.directory.alive
            if node in alive:
                if not others.can_ask(node) or await others.ask(node, "volume", name) is not None:
                    return spec, None, record
            elif not any(m.node in alive for m in record.members if m.state is CopyState.IN_SYNC):
                give_up = 0.0  # Nobody will take over.
            if time.monotonic() > give_up:
                raise UnavailableError(
                    f"Node {node}, which has the primary of {name}, does not answer.",
                    hint=f"It may be stopped or frozen; `holdfast explain {name}` tells what is next.",
                )
            await asyncio.sleep(0.1)

    async def _force(self, name: str, node: NodeName) -> Json:
        """Let the copy on `node` stand though it may lack what another one alone still has (I4)."""
        spec = await self._node.directory.find(name)
        if node != self._node.name:
            return await self._others.order(node, "promote", name, node, force=True)
        pump = self._node.hosting.pumps.get(spec.id)
        record = self._node.consumer.group(spec.id)
        mine = None if record is None else record.on_node(node)
        if pump is None or record is None or mine is None or mine.state is not CopyState.IN_SYNC:
            raise _no_copy(name, node)
        other = record.primary_member.node
        if other != node and other in self._node.directory.alive:
            raise ConflictError(
                f"The primary of {name} is on {other}, which is up, or was a moment ago.",
                hint="Leave --force out to hand over without loss, or wait ten seconds.",
            )
        if not pump.is_primary:
            pump.feed(ev.ForcePromote())
            await self._until(lambda: pump.is_primary, f"{node} takes over")
        return await self._status(spec)

    def _primary_node(self, spec: VolumeSpec) -> NodeName | None:
        record = self._node.consumer.group(spec.id)
        return None if record is None else record.primary_member.node

    async def _until(self, condition: Any, what: str) -> None:
        give_up = time.monotonic() + SETTLE_S
        while not condition():
            if time.monotonic() > give_up:
                raise UnavailableError(
                    f"It did not come to pass in {SETTLE_S:.0f} s that {what}.",
                    hint="Look at the volume's events.",
                )
            await asyncio.sleep(0.01)

    # -- long answers ------------------------------------------------------------------------------

    async def events(self, name: str, *, follow: bool) -> AsyncIterator[Json]:
        """Yield what happened to a volume, oldest first, from all nodes of this machine."""
        spec = await self._node.directory.find(name)
        async for event in self._events_of(name, spec.id, follow=follow):
            yield event

    async def _events_of(self, name: str, volume: VolumeId, *, follow: bool) -> AsyncIterator[Json]:
        log = self._node.hosting.events
        merged: list[Json] = await log.read(volume)
        for node in sorted(self._node.directory.alive):
            merged += await self._others.ask(node, "events", name) or []
        merged.sort(key=lambda event: float(event["at"]))
        for event in merged:
            yield event
        if follow:
            told = max((float(event["at"]) for event in merged), default=0.0)
            async for event in log.follow(volume):
                if event["at"] > told:
                    yield event

    async def own_events(self, name: str) -> list[Json]:
        """Return the events that this node itself has noted."""
        spec = await self._node.directory.find(name)
        return await self._node.hosting.events.read(spec.id)

    async def verify(self, name: str) -> AsyncIterator[Json]:
        """Compare all in-sync copies chunk by chunk, from the data itself."""
        async for line in self._verified(name, repair=False):
            yield line

    async def scrub(self, name: str) -> AsyncIterator[Json]:
        """As `verify`, and repair what has rotted or differs."""
        async for line in self._verified(name, repair=True):
            yield line

    async def _verified(self, name: str, *, repair: bool) -> AsyncIterator[Json]:
        call = "scrub" if repair else "verify"
        _spec, pump, record = await self._at_primary(name)
        if pump is not None:
            lines = verifying.run(pump, name, repair=repair)
        else:
            client = self._others.client_of(record.primary_member.node)
            lines = verifying.lines_of(partial(getattr(client, call), name))
        async for line in lines:
            yield line

    # -- lists -------------------------------------------------------------------------------------

    async def plugins(self) -> Sequence[Json]:
        """List the drivers that this node sees."""
        config = self._node.config
        active = {("state", config.state.name), ("transport", config.transport.name)}
        active |= {("frontend", name) for name in self._node.frontends}
        drivers = await asyncio.to_thread(registry.list_drivers)
        return [
            {
                "kind": d.kind,
                "name": d.name,
                "distribution": d.distribution,
                "version": d.version,
                "error": d.reason or None,
                "active": (d.kind, d.name) in active,
            }
            for d in drivers
        ]

    async def config(self) -> Sequence[Json]:
        """List the configuration in force."""
        return [
            {"path": s.path, "value": s.value, "source": s.source}
            for s in provenance(self._node.config)
        ]

    async def metrics(self) -> Sequence[Sample]:
        """Return the node's metrics."""
        return samples_of(self._node)


def _no_copy(name: str, node: NodeName) -> ConflictError:
    hint = f"`holdfast volume show {name}` lists the copies."
    return ConflictError(f"Node {node} has no in-sync copy of {name}.", hint=hint)


def _host_of(listens: str, node: str) -> str:
    """Return the host at which others reach what listens at `listens` on the node at `node`."""
    host = listens.rpartition(":")[0].strip("[]")
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound.
        return node.rpartition(":")[0].strip("[]")
    return host
