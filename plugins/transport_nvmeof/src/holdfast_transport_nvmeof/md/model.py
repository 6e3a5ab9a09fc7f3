"""What the cluster agrees on about one md volume: a record under compare-and-set, as JSON.

`consumer` is who is to use the volume, `active` who has its array now. They differ only while one node
lets go before the other begins, and no node assembles an array unless the record names it as active:
that is what keeps two kernels from writing to the same members.
"""

from __future__ import annotations

import enum
import json
import uuid
from collections.abc import Mapping
from typing import Any, Self

import attrs

from holdfast.errors import FaultReason, IntegrityError
from holdfast.model import VolumeSpec
from holdfast.units import MIB, NodeName, VolumeId

DATA_OFFSET_BYTES = 16 * MIB
"""Where a member's data begin: after MD's superblock and bitmap."""
NOBODY = NodeName("")
"""Where a record names no node."""
_NAMES = uuid.UUID("6f1a6a0e-6a0f-5a52-9a2b-3b6f6d64f00d")
"""The name space of UUIDs made from ids; any constant would do."""


class MemberState(enum.Enum):
    """The life of a member, in its order."""

    REQUESTED = "requested"
    """Its node is to make it."""
    CREATED = "created"
    """It is there, zeroed, and not in the array yet."""
    SYNCING = "syncing"
    """MD copies to it."""
    SYNCED = "synced"
    """It holds every byte."""
    MISSING = "missing"
    """Its device is gone or failed; it is waited for."""
    FAULTY = "faulty"
    """It was waited for long enough; another one takes its place."""
    DELETING = "deleting"
    """Its node is to remove it."""


@attrs.frozen
class MdMember:
    """One partition of one volume."""

    id: str
    """The partition's UUID."""
    slot: int
    """Its place in the array's order; mirrors stand side by side."""
    node: NodeName
    state: MemberState = MemberState.REQUESTED
    since: float = 0.0
    """When the state began, Unix seconds."""
    drive: str = ""
    ports: tuple[str, ...] = ()
    """Where its node exports it, best first as its node has them."""
    size_bytes: int = 0
    whole: bool = False
    """Its bytes may differ where no bitmap says so: it is wiped and synced as a whole."""
    replaces: str = ""
    """The member whose place it takes while that one still serves; empty for none."""


@attrs.frozen
class MdStatus:
    """What the active node last saw, for everybody else."""

    mdstate: str = "missing"
    """`active`, `clean`, `degraded`, `recovering` or `missing`."""
    active: int = 0
    failed: int = 0
    down: int = 0
    sync: str = ""
    """Such as `45.2%`; empty when nothing is synced."""
    device: str = ""
    size_bytes: int = 0
    """Of the device, which grows after its members."""
    mounted: str = ""
    error: str = ""
    """What stopped the last attempt to do something; empty when nothing did."""
    at: float = 0.0


@attrs.frozen
class MdVolume:
    """One md volume."""

    id: str
    name: str
    size_bytes: int
    copies: int = 2
    drives_per_copy: int = 1
    member_missing_timeout_s: float = 900.0
    sector_size: int = 4096
    policy: str = "alwayson"
    policy_options: Mapping[str, Any] = attrs.field(factory=dict)
    filesystem: str = "xfs"
    """`xfs`, or `none` for a bare device."""
    consumer: NodeName = NOBODY
    active: NodeName = NOBODY
    previous: NodeName = NOBODY
    """Who was the consumer before; its members make room for those of the new one."""
    epoch: int = 0
    """Rises whenever another node becomes active."""
    created: bool = False
    """Its array was made; from then on it is only ever assembled."""
    formatted: bool = False
    deleting: bool = False
    force: bool = False
    """An operator takes it over though members in sync by the record cannot be reached."""
    anew: bool = False
    """It was given to its user anew, which some policies want before they let writes go on."""
    access: str = "read-write"
    grace_started_at: float | None = None
    members: tuple[MdMember, ...] = ()
    status: MdStatus = MdStatus()
    created_at: float = 0.0
    labels: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def mirrors(self) -> int:
        """Members that hold the same bytes; one copy has a place for a second one, to move by."""
        return max(self.copies, 2)

    @property
    def slots(self) -> int:
        """Places of the array."""
        return self.mirrors * self.drives_per_copy

    @property
    def component_bytes(self) -> int:
        """What one member holds of the volume, in whole MiB."""
        each = -(-self.size_bytes // self.drives_per_copy)
        return -(-each // MIB) * MIB

    @property
    def member_bytes(self) -> int:
        """How large a partition must be."""
        return self.component_bytes + DATA_OFFSET_BYTES

    @property
    def array_uuid(self) -> str:
        """The array's UUID, as `uuid.UUID` prints it."""
        return str(uuid.uuid5(_NAMES, self.id))

    @property
    def wanted_slots(self) -> tuple[int, ...]:
        """The slots that hold members in quiet times."""
        return tuple(slot for slot in range(self.slots) if slot % self.mirrors < self.copies)

    @property
    def is_whole(self) -> bool:
        """Whether the members that are in sync by the record have every byte among them."""
        sets = {m.slot // self.mirrors for m in self.members if m.state is MemberState.SYNCED}
        return len(sets) == self.drives_per_copy

    @property
    def spec(self) -> VolumeSpec:
        """The volume as every replicator has it, for events and hooks."""
        return VolumeSpec(
            id=VolumeId(self.id), name=self.name, size_bytes=self.size_bytes,
            replicas=self.copies - 1, policy=self.policy, policy_options=self.policy_options,
            member_missing_timeout_s=self.member_missing_timeout_s, created_at=self.created_at,
            deleting=self.deleting, labels=self.labels,
        )  # fmt: skip

    def member(self, id_: str) -> MdMember | None:
        """Return the member of that id, or None."""
        return next((each for each in self.members if each.id == id_), None)

    def with_member(self, member: MdMember) -> MdVolume:
        """Return this volume with `member` added, or put in place of its namesake."""
        if self.member(member.id) is None:
            return attrs.evolve(self, members=(*self.members, member))
        kept = tuple(member if each.id == member.id else each for each in self.members)
        return attrs.evolve(self, members=kept)

    def without(self, id_: str) -> MdVolume:
        """Return this volume without a member."""
        return attrs.evolve(self, members=tuple(m for m in self.members if m.id != id_))

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        fields = attrs.asdict(self, value_serializer=_plain)
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the volume in `raw`; raises `IntegrityError` when it is not one."""
        try:
            fields = json.loads(raw)
            fields["members"] = tuple(_member(each) for each in fields["members"])
            fields["status"] = MdStatus(**fields["status"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"A value in the state store is no md volume: {error}.",
                reason=FaultReason.CORRUPT,
                hint="A newer version may have written it; upgrade this node.",
            ) from error


@attrs.frozen
class MdNode:
    """What a node publishes for others to place members on it and to reach it."""

    name: NodeName
    hostnqn: str
    ports: tuple[str, ...] = ()
    rdma: bool = False
    free: tuple[tuple[int, int], ...] = ()
    """Of each drive: the largest partition that fits, in bytes, and its sector size."""
    lacks: str = ""
    """Why it can hold no members; empty when it can."""
    at: float = 0.0

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return json.dumps(attrs.asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the node in `raw`; raises `IntegrityError` when it is not one."""
        try:
            fields = json.loads(raw)
            fields["ports"] = tuple(fields["ports"])
            fields["free"] = tuple((int(a), int(b)) for a, b in fields["free"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"A value in the state store is no md node: {error}.", reason=FaultReason.CORRUPT
            ) from error


def _member(fields: dict[str, Any]) -> MdMember:
    state = MemberState(fields["state"])
    return MdMember(**{**fields, "state": state, "ports": tuple(fields["ports"])})


def _plain(_instance: type, _field: attrs.Attribute[Any], value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def nqn_of(cluster: str, node: str, member: str) -> str:
    """Return the NQN under which a node exports a member."""
    return f"{subsystem_prefix(cluster, node)}{member}"


def subsystem_prefix(cluster: str, node: str) -> str:
    """Return how the NQNs of everything that a node exports begin."""
    return f"nqn.2026-11.io.holdfast:md:{cluster}:{node}:"


def host_prefix(cluster: str) -> str:
    """Return how the NQNs of all hosts of a cluster begin."""
    return f"nqn.2026-11.io.holdfast:host:{cluster}:"


def host_of(cluster: str, node: str) -> tuple[str, str]:
    """Return the NQN and the id under which a node imports."""
    nqn = f"{host_prefix(cluster)}{node}"
    return nqn, str(uuid.uuid5(_NAMES, nqn))
