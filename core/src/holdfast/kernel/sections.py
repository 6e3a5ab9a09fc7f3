"""The sections of the configuration that belong to Holdfast itself; a driver declares its own.

Each class is one TOML table, each field one key with its default; the reference in
`docs/configuration.md` is printed from here. Nothing in this module reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from holdfast.units import REPLICAS_MAX

WORKERS_MAX = 64
"""More than one for each core gains nothing."""


@attrs.frozen
class ClusterOptions:
    """`[cluster]`: which cluster this node belongs to."""

    name: str = "holdfast"
    """Nodes of clusters with different names refuse to talk to one another."""


@attrs.frozen
class NodeOptions:
    """`[node]`: this machine's part."""

    name: str
    """What this node is called; unique in the cluster, and kept for good."""
    data: tuple[str, ...] = attrs.field(default=(), metadata={"path": True})
    """Where copies are kept: each a directory, best on a file system of its own."""
    advertise: str = ""
    """Address, or address and port, at which other nodes reach this one; empty: where its transport
    listens."""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    """What placement may spread over, such as zone = "z1"; `holdfast node label` changes them."""
    cordoned: bool = False
    """Whether the node starts by taking no new copies; those that it has stay."""
    compute_only: bool = False
    """Whether the node only consumes volumes and keeps no copy at all."""
    overcommit: float = attrs.field(default=0.0, metadata={"min": 0})
    """How many times its capacity the node may promise to volumes, which take only the space that
    is written: 1 promises no more than there is; 0 sets no limit. 1 GiB is kept free in any case."""
    io_deadline_s: float = attrs.field(default=0.0, metadata={"min": 0, "unit": "s"})
    """How long a request may wait, for a failover or a policy that suspends, before the client gets
    an I/O error (EIO); whether such a write happens after all is open. 0 waits as long as it takes:
    a file system that is told of an error goes read-only, one that waits goes on."""
    workers: int = attrs.field(default=1, metadata={"min": 1, "max": WORKERS_MAX})
    """How many data processes the node has, its volumes spread over them; up to one for each core
    that it may use. With 1 the daemon itself is the only process, which takes the least memory."""
    busy_poll_us: int = attrs.field(default=200, metadata={"min": 0, "max": 10_000, "unit": "us"})
    """How long a data process that has heard something looks for more before it sleeps, where that
    has paid of late: latency for processor time that nobody else wants. 0 always sleeps."""

    def __attrs_post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if not self.name:
            raise ValueError("'name' is empty")
        if self.compute_only and self.data:
            raise ValueError("'data' is given, but compute_only = true keeps no copies")
        if not self.compute_only and not self.data:
            raise ValueError("'data' names no place for copies, and compute_only is false")


@attrs.frozen
class ControlOptions:
    """`[control]`: how tools reach the daemon."""

    socket: str = attrs.field(default="", metadata={"path": True})
    """The Unix socket of the control API, at most 107 bytes long; empty: `control.sock` in the first
    data directory, or beside this file where a compute-only node has none."""


@attrs.frozen
class VolumeDefaults:
    """`[volumes.defaults]`: what a new volume gets when its maker does not say."""

    replicas: int = attrs.field(default=1, metadata={"min": 0, "max": REPLICAS_MAX})
    """Copies beside the primary."""
    policy: str = "hard"
    """The failure mode; its parameters stand in `[policy.NAME]`."""
    member_missing_timeout_s: float = attrs.field(default=0.0, metadata={"min": 0, "unit": "s"})
    """How long a lost copy is waited for before it is replaced; 0 replaces at once."""


@attrs.frozen
class TimingOptions:
    """`[timing]`: when a silence becomes a fault. Equal on all nodes of a cluster."""

    heartbeat_s: float = attrs.field(default=0.5, metadata={"min": 0.01, "unit": "s"})
    """How often a primary asks its replicas for a sign of life."""
    lease_s: float = attrs.field(default=2.0, metadata={"min": 0.02, "unit": "s"})
    """How long a sign of life counts; at least twice the heartbeat."""
    margin_s: float = attrs.field(default=1.0, metadata={"min": 0.0, "unit": "s"})
    """What an in-sync copy adds to the lease before it promotes itself."""
    ack_timeout_s: float = attrs.field(default=8.0, metadata={"min": 0.1, "unit": "s"})
    """How long acknowledgements may stand still while heartbeats live; twice as long for the last
    other copy."""

    def __attrs_post_init__(self) -> None:
        """Refuse a lease that one lost heartbeat ends."""
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError(
                f"'lease_s' is {self.lease_s:g} and heartbeat_s {self.heartbeat_s:g}; "
                "a lease must be at least twice the heartbeat, or one lost message ends it"
            )


@attrs.frozen
class ScrubOptions:
    """`[scrub]`: how copies are checked while nobody asks."""

    interval_s: float = attrs.field(default=604_800.0, metadata={"min": 0, "unit": "s"})
    """How often each volume is compared over all its copies, and repaired; 0: only when asked."""
    scrub_mib_s: float = attrs.field(default=32.0, metadata={"min": 0.1, "unit": "MiB/s"})
    """How fast that reads each copy at most."""
    hash_mib_s: float = attrs.field(default=16.0, metadata={"min": 0, "unit": "MiB/s"})
    """How fast chunks that were written are read again to keep their hashes; 0: not before they are
    needed."""


@attrs.frozen
class SyncOptions:
    """`[sync]`: how fast copies are caught up; in between, what consumers' writes take decides."""

    floor_mib_s: float = attrs.field(default=16.0, metadata={"min": 0.1, "unit": "MiB/s"})
    """What the syncs of one volume may send in any case, so that every one ends."""
    ceiling_mib_s: float = attrs.field(default=0.0, metadata={"min": 0, "unit": "MiB/s"})
    """What they send at most, also where nobody writes; 0: no limit."""


@attrs.frozen
class LogOptions:
    """`[log]`: what is written to standard error."""

    level: str = attrs.field(
        default="info", metadata={"choices": ("debug", "info", "warning", "error")}
    )
    """The least important line that is written."""
    format: str = attrs.field(default="console", metadata={"choices": ("console", "json")})
    """Lines for people, or one JSON object per line."""


SECTIONS: Mapping[str, type[Any]] = {
    "cluster": ClusterOptions,
    "node": NodeOptions,
    "control": ControlOptions,
    "volumes.defaults": VolumeDefaults,
    "timing": TimingOptions,
    "scrub": ScrubOptions,
    "sync": SyncOptions,
    "log": LogOptions,
}
"""Table name to its class, in the order of the reference."""
