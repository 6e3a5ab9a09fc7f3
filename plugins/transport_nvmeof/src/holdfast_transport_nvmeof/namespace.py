"""What a subsystem on this node is: its names, and the state of its one namespace.

The names are made from the volume's id alone, so every node says the same and they survive restarts:
a kernel that sees other ones fails what it has queued. The state is shared by all controllers of the
subsystem here; whoever changes it tells them.
"""

from __future__ import annotations

import enum
import uuid
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import attrs

from holdfast.model import VolumeSpec
from holdfast.units import SECTOR_BYTES, VolumeId

if TYPE_CHECKING:
    from holdfast_transport_nvmeof.reservations import Reservations

NQN_PREFIX = "nqn.2026-11.io.holdfast:"
NSID = 1
"""The only namespace of each subsystem."""
ANA_GROUP = 1
"""The only group of each subsystem."""


class AnaState(enum.IntEnum):
    """Asymmetric Namespace Access State, as the ANA log page has it (base spec 2.0, 8.1)."""

    OPTIMIZED = 0x1
    NON_OPTIMIZED = 0x2
    INACCESSIBLE = 0x3
    PERSISTENT_LOSS = 0x4
    CHANGE = 0xF


def nqn_of(volume: str) -> str:
    """Return the subsystem NQN under which a volume is offered."""
    return NQN_PREFIX + quote(volume, safe="")


def volume_of(nqn: str) -> str | None:
    """Return the name of the volume that a subsystem NQN means, or None when it is not ours."""
    return unquote(nqn.removeprefix(NQN_PREFIX)) if nqn.startswith(NQN_PREFIX) else None


@attrs.define(eq=False)
class Namespace:
    """The namespace of one volume as this node offers it."""

    nqn: str
    volume: VolumeId
    size_bytes: int
    is_writable: bool = True
    ana: AnaState = AnaState.OPTIMIZED
    ana_changes: int = 0
    """How often `ana` has changed: the change count of the log page."""
    reservations: Reservations | None = None
    """None when reservations are not offered."""
    name: str = attrs.field(init=False)
    """The volume's name."""

    def __attrs_post_init__(self) -> None:
        """Take the name from the NQN."""
        self.name = volume_of(self.nqn) or ""

    @classmethod
    def of(cls, spec: VolumeSpec) -> Namespace:
        """Return the namespace of a volume."""
        return cls(nqn_of(spec.name), spec.id, spec.size_bytes)

    @property
    def blocks(self) -> int:
        """Its size in logical blocks of 512 bytes."""
        return self.size_bytes // SECTOR_BYTES

    @property
    def unique_id(self) -> bytes:
        """16 bytes: NGUID and UUID alike."""
        return uuid.UUID(self.volume).bytes

    @property
    def serial(self) -> str:
        """20 characters: the serial number of the subsystem."""
        return self.volume[:20]

    @property
    def is_accessible(self) -> bool:
        """Whether commands on the namespace are carried out here."""
        return self.ana <= AnaState.NON_OPTIMIZED

    @property
    def offers_reservations(self) -> bool:
        """Whether hosts may reserve it: it is switched on, and this node is the only way to it."""
        return self.reservations is not None and self.reservations.is_alone()

    @property
    def is_plain(self) -> bool:
        """Whether reads and writes need no closer look: accessible, and nothing is reserved."""
        return self.ana <= AnaState.NON_OPTIMIZED and self.reservations is None
