"""A replicator: how the copies of a volume are kept equal, when not by the group protocol of `sync`.

The group protocol, `lockstep`, is part of the core and needs no driver. Another replicator has its own
way on the data path, and is on the same footing everywhere else: the same commands, health words,
policies and events. A node opens the replicators that its configuration names and asks them about
the volumes that are theirs; what such a volume's record looks like is the replicator's own affair.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from holdfast.interfaces.policy import Policy
from holdfast.interfaces.state import StateStore
from holdfast.model import VolumeSpec
from holdfast.units import NodeName, VolumeId

Json = dict[str, Any]
"""A JSON object, as the control API has it."""


class ReplicatorHost(Protocol):
    """What a node gives its replicators; everything but the store answers at once."""

    name: NodeName
    cluster: str
    store: StateStore
    """Keys under the replicator's own name are its own; `name/NAME` holds the id of the volume of a
    name, whoever keeps it."""

    def alive(self) -> Collection[NodeName]:
        """Return the nodes whose leases live."""
        ...

    def cordoned(self) -> Collection[NodeName]:
        """Return the nodes that are to take no new copies."""
        ...

    def draining(self) -> Collection[NodeName]:
        """Return the nodes whose copies are to move to others."""
        ...

    def policy(self, spec: VolumeSpec) -> Policy:
        """Return the policy of a volume; raises `DriverError` when it is not installed."""
        ...

    def policy_options(self, name: str, given: Mapping[str, Any], declared: int) -> dict[str, Any]:
        """Return the options of a new volume's policy, checked against so many replicas.

        Raises:
            HoldfastError: There is no such policy, or these options are impossible.
        """
        ...

    def note(self, spec: VolumeSpec, epoch: int, kind: str, sentence: str) -> None:
        """Keep an event of a volume, and log it."""
        ...

    async def events(self, volume: VolumeId) -> Sequence[Mapping[str, Any]]:
        """Return the events of a volume that this node has kept, oldest first."""
        ...


class Replicator(Protocol):
    """A running replicator of one node; answers for all volumes of its kind in the cluster."""

    async def ids(self) -> Mapping[str, VolumeId]:
        """Return the names of its volumes with their ids."""
        ...

    async def volume(self, name: str) -> Json:
        """Return a volume's status, with the keys that `NodeService.volume` promises."""
        ...

    async def explain(self, name: str) -> Json:
        """Return why a volume is as it is, with the keys that `NodeService.explain` promises."""
        ...

    async def create(self, request: Mapping[str, Any]) -> Sequence[str]:
        """Declare a volume and return warnings; it is made from then on.

        Args:
            request: The fields of `VolumeRequest` that were given, and `replicator_options`.

        Raises:
            UsageError: Something about it is impossible.
            ConflictError: The name is taken, or the nodes cannot hold it.
        """
        ...

    async def change(self, name: str, changes: Mapping[str, Any]) -> None:
        """Change what was declared: the fields of `VolumeChanges` that were given.

        Raises:
            ConflictError: The present state does not satisfy the change.
        """
        ...

    async def delete(self, name: str, *, force: bool) -> None:
        """Begin to delete a volume.

        Raises:
            ConflictError: It is in use and `force` is False.
        """
        ...

    async def promote(self, name: str, node: NodeName, *, force: bool) -> None:
        """Begin to let `node` be the one that uses the volume."""
        ...

    async def evict(self, name: str, node: NodeName) -> None:
        """Begin to replace what `node` holds of the volume by something elsewhere."""
        ...

    async def drain_plan(self, node: NodeName) -> Sequence[Json]:
        """Return what draining a node will do to each volume that has something there.

        Each with the keys that `NodeService.drain` promises. The replicator does it once the host
        says that the node is being drained.
        """
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return counters and gauges, by name without prefix."""
        ...

    async def aclose(self) -> None:
        """Stop working; what serves volumes goes on and is adopted by the next start."""
        ...


class ReplicatorDriver(Protocol):
    """What an entry point in `holdfast.replicator` names: a class with these."""

    API_VERSION: int
    name: str
    Options: type[Any]

    open: Callable[[Any, ReplicatorHost], Awaitable[Replicator]]
    """`await Driver.open(options, host)`; what the machine lacks is no error but told by `explain` and
    by `holdfast doctor`."""

    lacks: Callable[[], Sequence[tuple[str, str]]]
    """What this machine lacks for it: sentences, each with what to do."""

    drives: Callable[[Any], Awaitable[Sequence[Json]]]
    """`await Driver.drives(options)`: every drive of this machine, each with `path`, `model`,
    `serial`, `size_bytes`, `free_bytes`, `sector_bytes`, `usable`, `told`, `partitions`."""

    drive_events: Callable[[Any], AsyncIterator[Json]]
    """Drives as they come, go and change: `action`, `path`, `told`."""

    cleanup: Callable[..., Awaitable[Sequence[Json]]]
    """`await Driver.cleanup(options, cluster, node, store, apply=False)`: what is ours on this
    machine and in no volume, each with `path`, `label`, `size_bytes`, `told`; removed if `apply`,
    each looked at again right before."""
