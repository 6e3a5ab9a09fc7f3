"""Volumes that another replicator than `lockstep` keeps: the same calls, handed to whose they are.

A node without `[replicator.…]` in its configuration never comes here. Names are one space for all
replicators: whoever makes a volume claims `name/NAME` in the store first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from holdfast.errors import ConflictError
from holdfast.interfaces.policy import Policy
from holdfast.interfaces.replicator import Replicator
from holdfast.model import VolumeSpec
from holdfast.node.service import Json, Sample, VolumeChanges, VolumeRequest
from holdfast.node.service_impl import Service
from holdfast.node.volumes import check_name
from holdfast.units import NodeName, VolumeId

if TYPE_CHECKING:
    from holdfast.node.daemon import Node

PATIENCE_S = 30.0
"""How long a deletion or a change of node is waited for before it is left to itself."""
POLL_S = 0.1


class _Host:
    """What a replicator may ask of its node; implements `interfaces.replicator.ReplicatorHost`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.name = node.name
        self.cluster = node.cluster
        self.store = node.store

    def alive(self) -> Collection[NodeName]:
        return self._node.directory.alive.keys()

    def cordoned(self) -> Collection[NodeName]:
        return {name for name, node in self._node.directory.nodes.items() if node.cordoned}

    def draining(self) -> Collection[NodeName]:
        return {name for name, node in self._node.directory.nodes.items() if node.draining}

    def policy(self, spec: VolumeSpec) -> Policy:
        return self._node.policies.of(spec)

    def policy_options(self, name: str, given: Mapping[str, Any], declared: int) -> dict[str, Any]:
        options = self._node.policies.options(name, given)
        self._node.policies.refuse(name, declared, options)
        return options

    def note(self, spec: VolumeSpec, epoch: int, kind: str, sentence: str) -> None:
        self._node.hosting.events.add(spec, epoch, kind, sentence)

    async def events(self, volume: VolumeId) -> Sequence[Mapping[str, Any]]:
        return await self._node.hosting.events.read(volume)


class Replicators:
    """The replicators that a node has opened."""

    def __init__(self, opened: Mapping[str, Replicator]) -> None:
        """Take them by name."""
        self.opened = opened

    async def of(self, name: str) -> Replicator | None:
        """Return whose volume a name is; None when it is nobody's here."""
        for replicator in self.opened.values():
            if name in await replicator.ids():
                return replicator
        return None

    async def aclose(self) -> None:
        """Close all of them."""
        for replicator in self.opened.values():
            await replicator.aclose()


async def open_replicators(node: Node) -> Replicators:
    """Open what the node's configuration names; what was opened is closed again if one fails."""
    opened: dict[str, Replicator] = {}
    try:
        for name, chosen in node.config.replicators.items():
            opened[name] = await chosen.driver.open(chosen.options, _Host(node))
    except BaseException:
        await Replicators(opened).aclose()
        raise
    return Replicators(opened)


class ReplicatorService(Service):
    """The node's service with the volumes of other replicators beside its own."""

    def __init__(self, node: Node, replicators: Replicators) -> None:
        """Answer for `node`; `replicators` answer for what is theirs."""
        super().__init__(node)
        self._replicators = replicators

    async def volumes(self) -> Sequence[Json]:
        """Return the status of every volume, whoever keeps it."""
        found = [*await super().volumes()]
        for replicator in self._replicators.opened.values():
            found += [await replicator.volume(name) for name in await replicator.ids()]
        return sorted(found, key=lambda status: str(status["name"]))

    async def volume(self, name: str) -> Json:
        """Return the status of a volume."""
        other = await self._replicators.of(name)
        return await (super().volume(name) if other is None else other.volume(name))

    async def own_volume(self, name: str) -> Json:
        """Return the status as this node alone sees it."""
        other = await self._replicators.of(name)
        return await (super().own_volume(name) if other is None else other.volume(name))

    async def explain(self, name: str) -> Json:
        """Explain a volume's state."""
        other = await self._replicators.of(name)
        return await (super().explain(name) if other is None else other.explain(name))

    async def own_explain(self, name: str) -> Json:
        """Explain a volume's state by what this node knows."""
        other = await self._replicators.of(name)
        return await (super().own_explain(name) if other is None else other.explain(name))

    async def create_volume(self, request: VolumeRequest) -> tuple[Json, Sequence[str]]:
        """Make a volume by the replicator that the request names."""
        other = self._replicators.opened.get(str(request.replicator))
        if other is None:
            return await super().create_volume(request)
        check_name(request.name)
        warnings = await other.create(attrs.asdict(request))
        return await other.volume(request.name), warnings

    async def change_volume(self, name: str, changes: VolumeChanges) -> Json:
        """Change what was declared."""
        other = await self._replicators.of(name)
        if other is None:
            return await super().change_volume(name, changes)
        await other.change(name, attrs.asdict(changes))
        return await other.volume(name)

    async def delete_volume(self, name: str, *, force: bool) -> None:
        """Delete a volume; returns when it is gone, or refuses to wait longer."""
        other = await self._replicators.of(name)
        if other is None:
            await super().delete_volume(name, force=force)
            return
        await other.delete(name, force=force)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while name in await other.ids():  # noqa: ASYNC110 - other nodes do it.
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise ConflictError(
                f"Volume {name} is not gone within {PATIENCE_S:.0f} s; it is being deleted still.",
                hint=f"`holdfast explain {name}` tells what it waits for.",
            ) from None

    async def promote(self, name: str, node: NodeName, *, force: bool = False) -> Json:
        """Let another node use a volume; returns when it does, or refuses to wait longer."""
        other = await self._replicators.of(name)
        if other is None:
            return await super().promote(name, node, force=force)
        await other.promote(name, node, force=force)
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await other.volume(name)
                while status["attached"] != node:
                    await asyncio.sleep(POLL_S)
                    status = await other.volume(name)
        except TimeoutError:
            raise ConflictError(
                f"Node {node} does not have volume {name} within {PATIENCE_S:.0f} s; it goes on trying.",
                hint=f"`holdfast explain {name}` tells what it waits for.",
            ) from None
        return status

    async def evict(self, name: str, node: NodeName) -> Json:
        """Replace what a node holds of a volume."""
        other = await self._replicators.of(name)
        if other is None:
            return await super().evict(name, node)
        await other.evict(name, node)
        return await other.volume(name)

    async def _drain_plan(self) -> list[Json]:
        plan = await super()._drain_plan()
        for replicator in self._replicators.opened.values():
            plan += await replicator.drain_plan(self._node.name)
        return sorted(plan, key=lambda step: str(step["volume"]))

    async def move(self, name: str, source: NodeName, target: NodeName) -> Json:
        """Move a copy; other replicators choose the place themselves."""
        if await self._replicators.of(name) is not None:
            raise _not_offered(name, "move", f"holdfast volume evict {name} {source}")
        return await super().move(name, source, target)

    async def events(self, name: str, *, follow: bool) -> AsyncIterator[Json]:
        """Yield what happened to a volume, oldest first, from all nodes of this machine."""
        other = await self._replicators.of(name)
        if other is None:
            async for event in super().events(name, follow=follow):
                yield event
            return
        volume = (await other.ids())[name]
        async for event in self._events_of(name, volume, follow=follow):
            yield event

    async def own_events(self, name: str) -> list[Json]:
        """Return the events that this node itself has noted."""
        other = await self._replicators.of(name)
        if other is None:
            return await super().own_events(name)
        return await self._node.hosting.events.read((await other.ids())[name])

    async def verify(self, name: str) -> AsyncIterator[Json]:
        """Compare all copies; MD has its own way to do that."""
        await self._refuse_check(name)
        async for line in super().verify(name):
            yield line

    async def scrub(self, name: str) -> AsyncIterator[Json]:
        """Compare and repair all copies; MD has its own way to do that."""
        await self._refuse_check(name)
        async for line in super().scrub(name):
            yield line

    async def _refuse_check(self, name: str) -> None:
        if await self._replicators.of(name) is not None:
            raise _not_offered(name, "verify", "echo check > /sys/block/mdN/md/sync_action")

    async def metrics(self) -> Sequence[Sample]:
        """Return the node's metrics and those of its replicators."""
        found = [*await super().metrics()]
        for replicator in self._replicators.opened.values():
            for name, value in replicator.metrics().items():
                found.append(Sample(f"holdfast_{name}", value, {"node": self._node.name}))
        return found


def _not_offered(name: str, what: str, instead: str) -> ConflictError:
    return ConflictError(
        f"Volume {name} is not kept by lockstep, which alone can {what}.", hint=f"Try `{instead}`."
    )
