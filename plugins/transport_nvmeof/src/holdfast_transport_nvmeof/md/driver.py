"""What a node opens for `[replicator.md]`: the agent, and the operators' requests as edits of records."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs

from holdfast.errors import ConflictError, NotFoundError, StateConflictError, UsageError
from holdfast.interfaces import API_VERSION
from holdfast.interfaces.replicator import Json, ReplicatorHost
from holdfast.interfaces.state import Entry, StateStore
from holdfast.units import (
    MIB,
    VOLUME_BYTES_MAX,
    NodeName,
    VolumeId,
    format_size,
    nearest_sizes,
)
from holdfast_transport_nvmeof.md import inventory, machine
from holdfast_transport_nvmeof.md.agent import NODES, VOLUMES, Agent, Around
from holdfast_transport_nvmeof.md.draining import drain_steps
from holdfast_transport_nvmeof.md.explain import explained
from holdfast_transport_nvmeof.md.model import (
    NOBODY,
    MdNode,
    MdVolume,
    MemberState,
)
from holdfast_transport_nvmeof.md.options import MdOptions
from holdfast_transport_nvmeof.md.placing import first_members, moved_away
from holdfast_transport_nvmeof.md.status import told
from holdfast_transport_nvmeof.md.volume_options import SIZE_BYTES_MIN, volume_options

DEFAULT_POLICY = "alwayson"
"""MeshStor's own: I/O goes on while one copy lives."""
XFS_BYTES_MIN = 300 * MIB
"""mkfs.xfs refuses less."""
_UNSUPPORTED = ("replicas", "shared")


class MdReplicator:
    """The md replicator of one node; implements `interfaces.replicator.Replicator`."""

    def __init__(self, options: MdOptions, host: ReplicatorHost) -> None:
        """Begin to work at once."""
        self._host = host
        self._store = host.store
        around = Around(
            name=host.name,
            cluster=host.cluster,
            store=host.store,
            policy_of=lambda volume: host.policy(volume.spec),
            alive=lambda: frozenset(host.alive()),
            cordoned=lambda: frozenset(host.cordoned()),
            draining=lambda: host.name in host.draining(),
            note=lambda volume, kind, words: host.note(volume.spec, volume.epoch, kind, words),
        )
        self.agent = Agent(around, options)
        self._task = asyncio.create_task(self.agent.run())

    # -- looking -----------------------------------------------------------------------------------

    async def ids(self) -> Mapping[str, VolumeId]:
        """Return the names of all md volumes with their ids."""
        entries = await self._store.list(VOLUMES)
        volumes = [MdVolume.from_bytes(entry.value) for entry in entries]
        return {volume.name: VolumeId(volume.id) for volume in volumes}

    async def volume(self, name: str) -> Json:
        """Return a volume's status."""
        volume, _ = await self._read(name)
        return told(volume, self._host.alive())

    async def explain(self, name: str) -> Json:
        """Explain a volume's state."""
        volume, _ = await self._read(name)
        policy = self._host.policy(volume.spec)
        nodes = await self._takers()
        return explained(volume, self._host.alive(), nodes, policy, time.time())

    async def _read(self, name: str) -> tuple[MdVolume, Entry]:
        entry = await self._store.get(f"{VOLUMES}{name}")
        if entry is None:
            raise NotFoundError(f"There is no md volume {name!r}.")
        return MdVolume.from_bytes(entry.value), entry

    async def _nodes(self) -> dict[NodeName, MdNode]:
        """Return the living nodes that run this replicator."""
        nodes = [MdNode.from_bytes(entry.value) for entry in await self._store.list(NODES)]
        return {node.name: node for node in nodes if node.name in self._host.alive()}

    async def _takers(self) -> dict[NodeName, MdNode]:
        """Return those of them that may take new members."""
        cordoned = self._host.cordoned()
        return {
            name: attrs.evolve(node, lacks="it is cordoned.") if name in cordoned else node
            for name, node in (await self._nodes()).items()
        }

    # -- changing ----------------------------------------------------------------------------------

    async def create(self, request: Mapping[str, Any]) -> Sequence[str]:
        """Declare a volume; its nodes make it from then on."""
        options = volume_options(
            request.get("replicator_options") or {},
            replicas=request.get("replicas"),
            missing_timeout_s=request.get("member_missing_timeout_s"),
        )
        if request.get("shared"):
            raise UsageError("An md volume is used by one node at a time; it cannot be shared.")
        size = int(request["size_bytes"])
        least = XFS_BYTES_MIN if options.filesystem == "xfs" else SIZE_BYTES_MIN
        if size < least or size % MIB:
            raise UsageError(
                f"{format_size(size)} is no size for an md volume with file system "
                f"{options.filesystem}: it must be whole MiB, at least {format_size(least)}.",
                hint=f"Nearest: {_near(size, least)}.",
            )
        policy = request.get("policy") or DEFAULT_POLICY
        given = request.get("policy_options") or {}
        volume = MdVolume(
            id=uuid.uuid4().hex,
            name=request["name"],
            size_bytes=size,
            policy=policy,
            policy_options=self._host.policy_options(policy, given, options.copies - 1),
            consumer=NodeName(request.get("primary_node") or NOBODY),
            created_at=time.time(),
            labels=request.get("labels") or {},
            **attrs.asdict(options),
        )
        volume = first_members(volume, await self._takers(), time.time())
        try:
            await self._store.compare_and_set(f"name/{volume.name}", volume.id.encode(), None)
        except StateConflictError:
            raise ConflictError(
                f"There is a volume {volume.name!r} already.", hint="Choose another name."
            ) from None
        await self._store.compare_and_set(f"{VOLUMES}{volume.name}", volume.to_bytes(), None)
        return []

    async def change(self, name: str, changes: Mapping[str, Any]) -> None:
        """Change what was declared; what an array cannot change is refused."""
        for key in _UNSUPPORTED:
            if changes.get(key) is not None:
                raise ConflictError(f"{key} of an md volume cannot be changed.")

        def changed(volume: MdVolume) -> MdVolume:
            fields: dict[str, Any] = {}
            size = changes.get("size_bytes")
            if size is not None:
                fields["size_bytes"] = _grown(volume, int(size))
            policy = changes.get("policy") or volume.policy
            if changes.get("policy") or changes.get("policy_options") is not None:
                given = dict(changes.get("policy_options") or {})
                kept = volume.policy_options if policy == volume.policy else {}
                fields["policy"] = policy
                fields["policy_options"] = self._host.policy_options(
                    policy, {**kept, **given}, volume.copies - 1
                )
            timeout_s = changes.get("member_missing_timeout_s")
            if timeout_s is not None:
                volume_options({}, replicas=None, missing_timeout_s=timeout_s)
                fields["member_missing_timeout_s"] = float(timeout_s)
            if changes.get("labels") is not None:
                fields["labels"] = {**volume.labels, **changes["labels"]}
            return attrs.evolve(volume, **fields)

        await self._edit(name, changed)

    async def delete(self, name: str, *, force: bool) -> None:
        """Begin to delete a volume: its user lets go, then each node removes its members."""

        def deleted(volume: MdVolume) -> MdVolume:
            if volume.status.mounted and not force:
                raise ConflictError(
                    f"Volume {name} is mounted at {volume.status.mounted} on {volume.active}.",
                    hint="Unmount it, or give --force.",
                )
            return attrs.evolve(volume, deleting=True, consumer=NOBODY)

        await self._edit(name, deleted)

    async def promote(self, name: str, node: NodeName, *, force: bool) -> None:
        """Let another node use the volume; a copy is brought there if it has none."""
        nodes = await self._nodes()

        def moved(volume: MdVolume) -> MdVolume:
            if node not in nodes or nodes[node].lacks:
                why = nodes[node].lacks if node in nodes else "it runs no md replicator now."
                raise ConflictError(f"Node {node} cannot use {name}: {why}")
            new = attrs.evolve(volume, consumer=node, anew=True)
            gone = volume.active and volume.active not in self._host.alive()
            if not force:
                if gone:
                    raise ConflictError(
                        f"Node {volume.active}, which has the array of {name}, does not answer; it may "
                        "still write to its own member.",
                        hint="Make sure that it is off, then give --force. What MD acknowledged there "
                        "after it lost the other members is lost.",
                    )
                return new
            if volume.active and not gone:
                raise ConflictError(
                    f"Node {volume.active} answers, so it can let go of {name} without loss.",
                    hint="Leave --force out.",
                )
            taken = _taken_over(new, time.time()) if gone else attrs.evolve(new, force=True)
            if not taken.is_whole:
                raise ConflictError(
                    f"Without node {volume.active} no copy of {name} is in sync.",
                    hint=f"Start {volume.active}; its copy is the only one that has everything.",
                )
            return taken

        await self._edit(name, moved)

    async def evict(self, name: str, node: NodeName) -> None:
        """Replace a node's members by others elsewhere, which are in sync before these go."""
        nodes = await self._takers()

        def evicted(volume: MdVolume) -> MdVolume:
            if not any(m.node == node for m in volume.members):
                raise NotFoundError(f"Node {node} has no copy of {name}.")
            return moved_away(volume, node, nodes, time.time())

        await self._edit(name, evicted)

    async def drain_plan(self, node: NodeName) -> Sequence[Json]:
        """Return what draining a node does to md volumes."""
        entries = await self._store.list(VOLUMES)
        volumes = [MdVolume.from_bytes(entry.value) for entry in entries]
        return drain_steps(volumes, node, await self._takers())

    async def _edit(self, name: str, change: Callable[[MdVolume], MdVolume]) -> None:
        while True:
            volume, entry = await self._read(name)
            changed = change(volume)
            try:
                await self._store.compare_and_set(entry.key, changed.to_bytes(), entry.version)
            except StateConflictError:
                continue  # A node has noted something meanwhile.
            self.agent.wake()
            return

    # -- the rest ----------------------------------------------------------------------------------

    def metrics(self) -> Mapping[str, float]:
        """Return what this node's agent counts."""
        volumes = [volume for volume, _ in self.agent.volumes.values()]
        mine = [volume for volume in volumes if volume.active == self._host.name]
        return {
            "md_volumes": len(volumes),
            "md_arrays": len(mine),
            "md_members_missing": sum(volume.status.down for volume in mine),
            "md_members_in_sync": sum(volume.status.active for volume in mine),
            "md_steps_total": self.agent.steps_done,
            "md_errors": len(self.agent.errors),
        }

    async def aclose(self) -> None:
        """Stop working; arrays, exports and imports go on in the kernel."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def _grown(volume: MdVolume, size: int) -> int:
    if volume.drives_per_copy > 1:
        raise ConflictError(
            f"Volume {volume.name} is striped over {volume.drives_per_copy} drives; it cannot grow."
        )
    if size < volume.size_bytes or size % MIB:
        raise ConflictError(
            f"Volume {volume.name} has {format_size(volume.size_bytes)}; "
            "it can only grow, by whole MiB.",
            hint=f"Nearest: {_near(size, volume.size_bytes)}.",
        )
    return size


def _near(size: int, least: int) -> str:
    return nearest_sizes(size, multiple=MIB, least=least, most=VOLUME_BYTES_MAX)


def _taken_over(volume: MdVolume, now: float) -> MdVolume:
    """Return a volume whose former user is given up: what only that one may have is forgotten."""
    members = tuple(
        attrs.evolve(m, state=MemberState.MISSING, since=now, whole=True)
        if m.node == volume.active and m.state in {MemberState.SYNCED, MemberState.SYNCING}
        else m
        for m in volume.members
    )
    return attrs.evolve(
        volume, members=members, previous=volume.active, active=NOBODY, force=True,
        epoch=volume.epoch + 1,
    )  # fmt: skip


class MdReplicatorDriver:
    """The entry point `md` of `holdfast.replicator`."""

    API_VERSION: ClassVar[int] = API_VERSION
    name: ClassVar[str] = "md"
    Options: ClassVar[type[MdOptions]] = MdOptions

    @staticmethod
    async def open(options: MdOptions, host: ReplicatorHost) -> MdReplicator:
        """Return the running replicator; see `interfaces.replicator`."""
        return MdReplicator(options, host)

    @staticmethod
    async def drives(options: MdOptions) -> list[Json]:
        """Return every drive of this machine; those of the options may be used."""
        return await inventory.drives(options)

    @staticmethod
    def drive_events(options: MdOptions) -> AsyncIterator[Json]:
        """Yield drives as they come, go and change."""
        return inventory.events(options)

    @staticmethod
    async def cleanup(
        options: MdOptions, cluster: str, node: str, store: StateStore, *, apply: bool = False
    ) -> list[Json]:
        """Return the slices of this machine that are in no volume; remove them if `apply`."""
        return await inventory.cleanup(options, cluster, node, store, apply=apply)

    @staticmethod
    def lacks() -> Sequence[tuple[str, str]]:
        """Return what this machine lacks for it, with remedies."""
        found = list(machine.lacks(MdOptions()))
        assembles = machine.auto_assembly()
        if assembles is not None and not found:
            link = "ln -s /dev/null /etc/udev/rules.d/64-md-raid-assembly.rules"
            found.append((assembles, link))
        if not machine.has_rdma():
            found.append(("There is no RDMA device: only TCP is possible.", machine.SOFT_RDMA))
        return found
