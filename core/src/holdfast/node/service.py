"""What a running node offers to the people and programs that run it.

The control API (`control.py`) turns HTTP into these calls and knows nothing else of the node; the
daemon implements them. Values are JSON-able dicts, because they cross a socket anyway and are read
by shell scripts; the keys named here are a promise to those scripts, and more may be added.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from holdfast.units import NodeName

Json = dict[str, Any]
"""A JSON object."""
VOLUME_IN_URI = "VOLUME"
"""Stands for the name in the URIs that a node tells; names need no quoting."""


@attrs.frozen
class VolumeRequest:
    """What an operator asks for when making a volume; None means the node's default."""

    name: str
    size_bytes: int
    """A multiple of 512, at most `VOLUME_BYTES_MAX`."""
    replicas: int | None = None
    policy: str | None = None
    policy_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Values may be strings as typed; the policy's options class gives them their type."""
    shared: bool = False
    read_from: str | None = None
    """`primary` or `local`: which copy answers a consumer's reads."""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    primary_node: NodeName | None = None
    """Where the first copy is to be; None lets placement choose."""
    member_missing_timeout_s: float | None = None
    """How long a lost copy is waited for before a replacement is made; 0 replaces at once."""
    transport: str | None = None
    """What carries the replication."""
    transports: Mapping[str, str] = attrs.field(factory=dict)
    """Node name to transport, for copies that are reached by another one."""
    replicator: str | None = None
    """What keeps the copies equal; None for `lockstep`."""
    replicator_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Parameters of a replicator other than `lockstep`; values may be strings as typed."""


@attrs.frozen
class VolumeChanges:
    """What an operator changes of a volume; None leaves a field as it is."""

    size_bytes: int | None = None
    """Only larger."""
    replicas: int | None = None
    policy: str | None = None
    policy_options: Mapping[str, Any] | None = None
    """Merged into those in force; a new `policy` begins with its defaults."""
    shared: bool | None = None
    read_from: str | None = None
    labels: Mapping[str, str] | None = None
    """Merged into those in force; an empty one is taken away."""
    member_missing_timeout_s: float | None = None
    transport: str | None = None
    transports: Mapping[str, str] | None = None
    """Merged into those in force; an empty one takes the choice for that node back."""


@attrs.frozen
class Sample:
    """One line of metrics."""

    name: str
    """`holdfast_…`, with its unit last; counters end in `_total`."""
    value: float
    labels: Mapping[str, str] = attrs.field(factory=dict)


class NodeService(Protocol):
    """A running node, as its control API sees it.

    Any node answers for the whole cluster: it reads the state store, and asks the primary's node
    for what only the primary knows (`copies[].sync`, the reason). Errors are `HoldfastError`s.
    """

    async def node(self) -> Json:
        """Describe this node; must answer in milliseconds, whatever disks and peers do.

        Returns:
            At least `name`, `cluster`, `pid`, `version`, `ready` (it serves), `started_at` (Unix
            seconds), `address`, `frontends` (name to `host:port`), `uris` (frontend name to the URI
            of a volume called `VOLUME`), `transports` (name to `host:port`), `cordoned`, `labels`,
            `copies`, `data` (directories), `capacity_bytes`, `free_bytes`.
        """
        ...

    async def nodes(self) -> Sequence[Json]:
        """Describe every node that the cluster knows, by name.

        Returns:
            For each at least `name`, `alive`, `address`, `frontends`, `cordoned`, `copies`,
            `primaries`, `capacity_bytes`, `free_bytes`.
        """
        ...

    async def volumes(self) -> Sequence[Json]:
        """Return the status of every volume, by name; what `volume` returns for each."""
        ...

    async def volume(self, name: str) -> Json:
        """Return the status of a volume.

        Returns:
            At least `name`, `id`, `size` (bytes), `declared_replicas`, `policy`,
            `policy_options`, `health`, `access`, `epoch`, `primary` (node name), `attached` (node
            name or None), `reason` (a sentence for people), `copies`: a list of `node`, `role`
            (`primary` or `replica`), `state` (`in-sync`, `syncing`, `offline`), `alive` (its node's
            lease is), `copy` (id),
            `sync` (None, or `bytes_left`, `bytes_sent` (before compression), `bytes_total`,
            `rate` (bytes a second), `seconds_left` (None while unknown)). `sync` stays, with
            `bytes_left` 0, after a sync has ended, so that its cost can be read.

        Raises:
            NotFoundError: No volume has this name; names the nearest.
        """
        ...

    async def own_volume(self, name: str) -> Json:
        """Return the status as this node alone sees it; other nodes ask the primary's for it."""
        ...

    async def explain(self, name: str) -> Json:
        """Explain a volume's state.

        Returns:
            `name`, `health`, `access`, `policy`, `since` (Unix seconds or None), `told_by`
            (`primary`, or `record` when the primary cannot be asked), the sentences `why` and
            `doing`, and `next` (of `at`, Unix seconds or None, and `sentence`) and `help` (of
            `sentence` and `command`, which may be empty).
        """
        ...

    async def own_explain(self, name: str) -> Json:
        """Explain the state as this node alone sees it."""
        ...

    async def own_events(self, name: str) -> Sequence[Json]:
        """Return the events that this node itself has noted, oldest first."""
        ...

    async def create_volume(self, request: VolumeRequest) -> tuple[Json, Sequence[str]]:
        """Make a volume and return its status as soon as its primary serves it, and warnings.

        A warning is a sentence: fewer nodes than the policy wants for high availability, thin space
        promised beyond capacity.

        Raises:
            UsageError: Name, size, replicas or options are impossible.
            ConflictError: The name is taken, or no node can hold the first copy.
            DriverError: No such policy.
        """
        ...

    async def change_volume(self, name: str, changes: VolumeChanges) -> Json:
        """Change what was declared and return the new status, and `warnings` (sentences).

        Raises:
            ConflictError: The present state does not satisfy the change; says why.
        """
        ...

    async def delete_volume(self, name: str, *, force: bool) -> None:
        """Delete a volume and all its copies; returns when the name is free again.

        Raises:
            ConflictError: It is attached and `force` is False.
        """
        ...

    def events(self, name: str, *, follow: bool) -> AsyncIterator[Json]:
        """Yield what happened to a volume, oldest first; with `follow` go on for ever.

        Yields:
            At least `at` (Unix seconds), `node`, `kind` (a word), `sentence`.
        """
        ...

    def verify(self, name: str) -> AsyncIterator[Json]:
        """Compare the hashes of all copies that are in sync, while the volume is in use.

        Yields:
            Progress: `chunks_done`, `chunks_total`. The last line: `equal`, `copies` (how many were
            compared), `chunks_total`, `differences`: a list of `chunk`, `offset`, `nodes`
            (those whose copy differs from the primary's), `repaired`; `rotten`: the same of chunks
            whose bytes do not match their own hash, with the nodes where; `repaired` (a number).

        Raises:
            UnavailableError: A declared copy cannot be read now; says which.
        """
        ...

    def scrub(self, name: str) -> AsyncIterator[Json]:
        """As `verify`, but repairs: rot from a good copy, what differs from the primary.

        Yields:
            As `verify`; `equal` then says that nothing wrong is left.
        """
        ...

    async def promote(self, name: str, node: NodeName, *, force: bool = False) -> Json:
        """Hand the primary over to an in-sync copy; return the new status.

        Args:
            name: The volume's name.
            node: Where the primary is to be.
            force: Let this copy stand though it waits for another one that may still have writes
                which were acknowledged and not flushed; refused while the primary's node is up.
        """
        ...

    async def move(self, name: str, source: NodeName, target: NodeName) -> Json:
        """Begin to move a copy: add on `target`, sync, switch, remove; return the status.

        With `target` the same as `source` a move is called off.
        """
        ...

    async def evict(self, name: str, node: NodeName) -> Json:
        """Take a node's copy out of the group for good; return the new status."""
        ...

    async def cordon(self, cordoned: bool) -> Json:
        """Let this node take no new copies, or let it again; return `node()`."""
        ...

    async def label(self, changes: Mapping[str, str | None]) -> Json:
        """Set labels of this node, and remove those whose value is None; return `node()`.

        They hold over restarts and in place of the configuration's. Copies stay where they are;
        what is placed from now on is placed by them.

        Raises:
            StateError: The state store cannot be written; nothing is lost of what was there.
        """
        ...

    async def drain(self, *, dry_run: bool) -> Json:
        """Begin to move all copies of this node to others, and let it take no new ones.

        Args:
            dry_run: Only say what would be done.

        Returns:
            `node`, `draining`, and `plan`: for each volume with a copy here `volume`, `role`,
            `state`, `promote` (who may take over at once, or None), `copy_to` (a node or None),
            `why_not` (a sentence when no node can take the copy).

        Raises:
            ConflictError: Some volume would have fewer copies than it declares.
        """
        ...

    async def stop(self, *, handover: bool) -> None:
        """Begin a clean stop and return at once.

        Args:
            handover: Hand primaries over first; False when the whole cluster goes down, so that
                volumes do not wander over the nodes that are still up.
        """
        ...

    async def plugins(self) -> Sequence[Json]:
        """List the drivers that this node sees.

        Returns:
            For each `kind`, `name`, `distribution`, `version`, `error` (a sentence or None),
            `active` (in use by this node's configuration).
        """
        ...

    async def config(self) -> Sequence[Json]:
        """List the configuration in force.

        Returns:
            For each `path` (`transport.tcp.port`), `value`, `source` (`default`, or the file).
        """
        ...

    async def metrics(self) -> Sequence[Sample]:
        """Return the node's metrics."""
        ...
