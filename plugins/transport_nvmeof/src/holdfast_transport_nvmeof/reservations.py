"""Reservations of one namespace: who is registered, who holds it, and what others may then do.

A machine over commands; state lives as long as the subsystem does on this node (no persistence through
power loss, and RESCAP says so), and other nodes do not know it. So a frontend offers reservations
only where it is told to, for hosts that reach a volume through one node.

Source: NVM Express Base Specification 2.0, section 8.19 (reservations; figure 432: command behaviour)
and sections 6.2 to 6.5 of the NVM command set for the commands.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

import attrs

from holdfast_transport_nvmeof.commands import Command, Completion, IoOpcode
from holdfast_transport_nvmeof.status import Status


class ReservationType(enum.IntEnum):
    """RTYPE."""

    NONE = 0
    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 2
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 3
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 4
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 5
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 6


_EXCLUSIVE_ACCESS = frozenset({2, 4, 6})
_FOR_REGISTRANTS = frozenset({3, 4, 5, 6})
_ALL_REGISTRANTS = frozenset({5, 6})
_KEYS = struct.Struct("<QQ")
IEKEY = 1 << 3
EXTENDED = 1
"""EDS of Reservation Report: 128-bit host identifiers."""


@attrs.frozen
class Registrant:
    """One registered host."""

    cntlid: int
    key: int


@attrs.define
class Reservations:
    """The reservation of one namespace."""

    registrants: dict[bytes, Registrant] = attrs.field(factory=dict)
    """By host identifier, 16 bytes."""
    holder: bytes | None = None
    """One of `registrants`; with "all registrants" types, the first of all that hold it."""
    kind: ReservationType = ReservationType.NONE
    generation: int = 0
    is_alone: Callable[[], bool] = attrs.field(default=lambda: True, repr=False)
    """Whether no other node offers the volume, which would not know of any reservation made here."""

    def allows(self, host: bytes, *, writes: bool) -> bool:
        """Return whether a host may read or write now."""
        if self.kind is ReservationType.NONE or host == self.holder:
            return True
        if self.kind in _FOR_REGISTRANTS and host in self.registrants:
            return True
        return not writes and self.kind not in _EXCLUSIVE_ACCESS

    def execute(self, command: Command, data: bytes, host: bytes, cntlid: int) -> Completion:
        """Carry a reservation command out.

        Args:
            command: One of the four.
            data: What came with it.
            host: Identifier of the host that sends it.
            cntlid: Of the controller that it sends it to.
        """
        if command.opcode == IoOpcode.RESERVATION_REPORT:
            return self._report(command)
        if len(data) < (16 if command.opcode != IoOpcode.RESERVATION_RELEASE else 8):
            return Completion(Status.DATA_SGL_LENGTH_INVALID)
        current, new = _KEYS.unpack(data[:16].ljust(16, b"\0"))
        action, ignores_key = command.cdw10 & 7, bool(command.cdw10 & IEKEY)
        if command.opcode == IoOpcode.RESERVATION_REGISTER:
            if command.cdw10 >> 30 == 3:
                return Completion(Status.INVALID_FIELD_IN_COMMAND)  # PTPL is not supported.
            return self._register(host, cntlid, action, current, new, ignores_key=ignores_key)
        known = self.registrants.get(host)
        if ignores_key:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if known is None or known.key != current:
            return Completion(Status.RESERVATION_CONFLICT)
        kind = command.cdw10 >> 8 & 0xFF
        if command.opcode == IoOpcode.RESERVATION_RELEASE:
            return self._release(host, action, kind)
        return self._acquire(host, action, kind, new)

    def _register(
        self, host: bytes, cntlid: int, action: int, current: int, new: int, *, ignores_key: bool
    ) -> Completion:
        known = self.registrants.get(host)
        if action == 0:
            if known is not None and known.key != new:
                return Completion(Status.RESERVATION_CONFLICT)
            self.registrants[host] = Registrant(cntlid, new)
        elif action == 1:
            if known is None or (not ignores_key and known.key != current):
                return Completion(Status.RESERVATION_CONFLICT)
            self._forget(host)
        elif action == 2:
            if not ignores_key and (known is None or known.key != current):
                return Completion(Status.RESERVATION_CONFLICT)
            self.registrants[host] = Registrant(cntlid, new)
        else:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        self.generation += 1
        return Completion()

    def _acquire(self, host: bytes, action: int, kind: int, preempted: int) -> Completion:
        if kind not in ReservationType._value2member_map_ or not kind:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        if action == 0:
            if self.kind is not ReservationType.NONE:
                same = self._holds(host) and kind == self.kind
                return Completion(
                    Status.SUCCESSFUL_COMPLETION if same else Status.RESERVATION_CONFLICT
                )
            self.holder, self.kind = host, ReservationType(kind)
            return Completion()
        if action not in {1, 2}:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        return self._preempt(host, ReservationType(kind), preempted)

    def _preempt(self, host: bytes, kind: ReservationType, key: int) -> Completion:
        """Unregister whoever has `key`, and take the reservation if it was held with it (8.19.7)."""
        victims = [h for h, r in self.registrants.items() if r.key == key and h != host]
        if self.kind in _ALL_REGISTRANTS and not key:
            victims = [h for h in self.registrants if h != host]
            takes = True
        else:
            if not victims and not (key == self.registrants[host].key and self._holds(host)):
                return Completion(Status.RESERVATION_CONFLICT)
            takes = self.kind is not ReservationType.NONE and (
                self.holder in victims or self.holder == host
            )
            if self.kind in _ALL_REGISTRANTS:
                takes = False
        for victim in victims:
            self.registrants.pop(victim)
        if takes:
            self.holder, self.kind = host, kind
        elif self.holder in victims:
            self.holder = host
        self.generation += 1
        return Completion()

    def _release(self, host: bytes, action: int, kind: int) -> Completion:
        if action == 0:
            if self._holds(host):
                if kind != self.kind:
                    return Completion(Status.INVALID_FIELD_IN_COMMAND)
                self._drop()
            return Completion()
        if action != 1:
            return Completion(Status.INVALID_FIELD_IN_COMMAND)
        self.registrants.clear()
        self._drop()
        self.generation += 1
        return Completion()

    def _report(self, command: Command) -> Completion:
        if not command.cdw11 & EXTENDED:
            return Completion(Status.HOST_IDENTIFIER_INCONSISTENT_FORMAT)
        length = (command.cdw10 + 1) * 4
        head = struct.pack("<IBHxxB", self.generation, self.kind, len(self.registrants), 0).ljust(
            64, b"\0"
        )
        body = b"".join(
            struct.pack("<HB5xQ16s32x", r.cntlid, self._holds(host), r.key, host)
            for host, r in self.registrants.items()
        )
        return Completion(data=(head + body)[:length].ljust(length, b"\0"))

    def _holds(self, host: bytes) -> bool:
        if self.kind in _ALL_REGISTRANTS:
            return host in self.registrants
        return self.holder == host and self.kind is not ReservationType.NONE

    def _forget(self, host: bytes) -> None:
        del self.registrants[host]
        if self.kind in _ALL_REGISTRANTS and self.registrants:
            self.holder = next(iter(self.registrants))
        elif self.holder == host or not self.registrants:
            self._drop()

    def _drop(self) -> None:
        self.holder, self.kind = None, ReservationType.NONE
