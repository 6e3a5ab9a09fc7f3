"""The values that the cluster agrees on: volume specifications, group records, nodes.

Everything here is frozen, compares by value, and turns into JSON and back without loss, because the
same bytes go through compare-and-set in the state store. Times are Unix seconds (they must survive a
change of machine); leases never use them.
"""

from __future__ import annotations

import enum
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs

from holdfast.errors import FaultReason, IntegrityError
from holdfast.units import CopyId, Epoch, NodeName, VolumeId


class CopyState(enum.Enum):
    """What the group record says of a member."""

    IN_SYNC = "in-sync"
    """Holds every acknowledged write; acks need it; it may be promoted."""
    SYNCING = "syncing"
    """Receives live writes and is being caught up; never promoted."""
    OFFLINE = "offline"
    """Lost or dropped; its bytes are old."""


class Access(enum.Enum):
    """What consumers may do with a volume."""

    READ_WRITE = "read-write"
    READ_ONLY = "read-only"
    SUSPENDED = "suspended"
    """Requests wait."""
    ERROR = "error"
    """Writes fail with EIO; reads work."""
    NONE = "none"
    """Reads and writes fail with EIO."""


class Health(enum.Enum):
    """How a volume is, for people and orchestrators; see the design, section 5."""

    HEALTHY = "healthy"
    SYNCING = "syncing"
    DEGRADED = "degraded"
    READ_ONLY = "read-only"
    SUSPENDED = "suspended"
    OFFLINE = "offline"
    DELETING = "deleting"


READ_FROM = ("primary", "local")
"""What `VolumeSpec.read_from` may be."""


@attrs.frozen
class VolumeSpec:
    """What the operator declared; changed only by the operator."""

    id: VolumeId
    name: str
    size_bytes: int
    replicas: int
    """Declared replicas beside the primary, 0 to 5."""
    policy: str = "hard"
    policy_options: Mapping[str, Any] = attrs.field(factory=dict)
    transport: str = "tcp"
    """What carries its replication from the primary to the other copies."""
    transports: Mapping[str, str] = attrs.field(factory=dict)
    """Node name to transport, for copies that are reached by another one."""
    shared: bool = False
    """Lifts R11 (one writer) for cluster file systems."""
    read_from: str = READ_FROM[0]
    """Which copy answers reads: the primary, or the in-sync one on the consumer's own node, if any."""
    hash_key: str = ""
    """64 hexadecimal digits: the key of this volume's chunk hashes."""
    member_missing_timeout_s: float = 0.0
    """How long a lost copy is waited for before a replacement is made; 0 replaces at once."""
    created_at: float = 0.0
    deleting: bool = False
    labels: Mapping[str, str] = attrs.field(factory=dict)

    def transport_to(self, node: str) -> str:
        """Return the transport by which a primary reaches the copy on `node`."""
        return self.transports.get(node, self.transport)

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return _dump(attrs.asdict(self))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the specification in `raw`; raises `IntegrityError` when it is not one."""
        return cls(**_load(raw, cls))


@attrs.frozen
class Member:
    """One copy as the group record knows it."""

    copy: CopyId
    """Names the copy for as long as it is a member."""
    node: NodeName
    """Where it is."""
    state: CopyState
    """Whether acknowledgements need it."""
    incarnation: str = ""
    """Drawn when the copy's directory is made; empty until the copy has presented itself."""
    since: float = 0.0
    """When the state began, Unix seconds."""
    left_epoch: int = 0
    """The first epoch without this copy; 0 while it is in sync."""
    reason: FaultReason | None = None
    """Why it is not in sync, when a fault was the cause."""
    leaving: bool = False
    """An operator moves it away: it goes once enough others are in sync."""
    suspect: bool = False
    """In sync by the record, but its machine restarted without a clean stop, so acknowledged writes
    that nobody flushed may be gone; set by the copy itself."""


@attrs.frozen
class GroupRecord:
    """The one small compare-and-set value of a group; see the design, section 4."""

    volume: VolumeId
    """Whose record this is."""
    epoch: Epoch
    """Rises exactly when the primary or the in-sync set changes."""
    primary: CopyId
    """The copy that orders writes; always in sync."""
    members: tuple[Member, ...]
    """In order of joining; at most one per node."""
    access: Access = Access.READ_WRITE
    """What the policy lets consumers do."""
    grace_started_at: float | None = None
    """When the online replicas first fell below the policy's least; Unix seconds."""
    loss_epoch: int = 0
    """The last epoch that began when no in-sync copy was known to have kept what was not flushed; 0:
    none did. Writes that were acknowledged before it and not flushed may be gone."""
    attachment_generation: int = 0
    """Rises with every new writer session; requests of an older one are refused (R11)."""
    attached_node: NodeName | None = None
    """The node whose frontend holds the writer session, if any."""
    attached_process: str = ""
    """That node's process session, so that its end can be noticed."""
    attached_session: str = ""
    """That consumer session's id."""

    @property
    def in_sync(self) -> tuple[CopyId, ...]:
        """The copies whose acknowledgements an acknowledgement needs."""
        return tuple(m.copy for m in self.members if m.state is CopyState.IN_SYNC)

    @property
    def primary_member(self) -> Member:
        """The member that `primary` names."""
        return self.member(self.primary)

    def member(self, copy: CopyId) -> Member:
        """Return the member named `copy`; raises `KeyError` when there is none."""
        for member in self.members:
            if member.copy == copy:
                return member
        raise KeyError(copy)

    def find(self, copy: CopyId) -> Member | None:
        """Return the member named `copy`, or None."""
        return next((m for m in self.members if m.copy == copy), None)

    def on_node(self, node: NodeName) -> Member | None:
        """Return the member on `node`, or None."""
        return next((m for m in self.members if m.node == node), None)

    def with_member(self, member: Member) -> GroupRecord:
        """Return this record with `member` added, or put in place of its namesake."""
        if self.find(member.copy) is None:
            return attrs.evolve(self, members=(*self.members, member))
        return attrs.evolve(
            self, members=tuple(member if m.copy == member.copy else m for m in self.members)
        )

    def without(self, copy: CopyId) -> GroupRecord:
        """Return this record without the member `copy`; the primary cannot be taken out."""
        assert copy != self.primary
        return attrs.evolve(self, members=tuple(m for m in self.members if m.copy != copy))

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return _dump(attrs.asdict(self, value_serializer=_plain))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the record in `raw`; raises `IntegrityError` when it is not one."""
        fields = _load(raw, cls)
        try:
            fields["members"] = tuple(
                Member(
                    **{
                        **m,
                        "state": CopyState(m["state"]),
                        "reason": None if m["reason"] is None else FaultReason(m["reason"]),
                    }
                )
                for m in fields["members"]
            )
            fields["access"] = Access(fields["access"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"A group record in the state store is damaged: {error}.",
                reason=FaultReason.CORRUPT,
            ) from error


def _as_names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


@attrs.frozen
class NodeRecord:
    """What a node publishes of itself; ends with its session."""

    name: NodeName
    address: str
    """`host:port` of the listener of its own transport, which carries sessions and heartbeats."""
    session: str
    """Id of its lease in the state store; empty once it has stopped in order."""
    process: str = ""
    """Names the daemon's process; another one is another start."""
    workers: tuple[str, ...] = attrs.field(default=(), converter=_as_names)
    """The same of its data processes, in their order; empty where the daemon is the only one."""
    control: str = ""
    """Path of its control socket, for tools on the same machine."""
    capacity_bytes: int = 0
    free_bytes: int = 0
    promised_bytes: int = 0
    """Sum of the sizes of the volumes with a copy here (thin: may exceed the capacity)."""
    overcommit: float = 0.0
    """How many times its capacity it may promise; 0: as often as is asked of it."""
    copies: int = 0
    cordoned: bool = False
    """It takes no new copies."""
    draining: bool = False
    """Its copies are to move to other nodes; cordoned as well."""
    compute_only: bool = False
    labels: Mapping[str, str] = attrs.field(factory=dict)
    """Those in force: what the configuration says, changed by `relabelled`."""
    relabelled: Mapping[str, str | None] = attrs.field(factory=dict)
    """What an operator has said of labels at run time; None: it has no such label."""
    transports: Mapping[str, str] = attrs.field(factory=dict)
    """Every transport that it runs, by name, to `host:port`; volumes choose among them."""
    frontends: Mapping[str, str] = attrs.field(factory=dict)
    """Frontend name to `host:port`."""
    version: str = ""
    started_at: float = 0.0

    def worker_of(self, volume: VolumeId) -> int:
        """Return which of its workers keeps the copy of a volume; 0 where there are none."""
        return worker_of(volume, len(self.workers))

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return _dump(attrs.asdict(self))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the node in `raw`; raises `IntegrityError` when it is not one."""
        return cls(**_load(raw, cls))


def worker_of(volume: VolumeId, workers: int) -> int:
    """Return which of so many workers keeps a volume.

    All nodes compute it alike, so that nothing has to be kept or told; who makes a volume chooses an
    id that spreads well (`node/volumes.py`).
    """
    return zlib.crc32(volume.encode()) % workers if workers else 0


def _plain(_instance: type, _field: attrs.Attribute[Any], value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _dump(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _load(raw: bytes, cls: type[Any]) -> dict[str, Any]:
    """Return the JSON object in `raw`, holding just the fields of `cls`."""
    try:
        fields = json.loads(raw)
        known = {a.name for a in attrs.fields(cls)}
        needed = {a.name for a in attrs.fields(cls) if a.default is attrs.NOTHING}
        if not isinstance(fields, dict) or not needed <= fields.keys() <= known:
            raise ValueError(f"not a {cls.__name__}")  # noqa: TRY301 - one place says what it is.
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"A value in the state store is not a {cls.__name__}: {error}.",
            reason=FaultReason.CORRUPT,
            hint="A newer version may have written it; upgrade this node.",
        ) from error
    return fields
