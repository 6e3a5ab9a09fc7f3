"""The log pages: error information, SMART, firmware, changed namespaces, ANA, discovery, and others.

Only packing. A log page is made whole, and Get Log Page takes the piece that it asks for.

Source: NVM Express Base Specification 2.0, section 5.16.1 (figures 202 to 264); ANA in figure 217,
discovery in figures 262 to 264; reservation notification in figure 263 of 1.4.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

import attrs

from holdfast_transport_nvmeof.commands import AdminOpcode, IoOpcode
from holdfast_transport_nvmeof.namespace import ANA_GROUP, NSID, Namespace


class LogPage(enum.IntEnum):
    """LID."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART_HEALTH = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACE_LIST = 0x04
    COMMANDS_SUPPORTED_AND_EFFECTS = 0x05
    ASYMMETRIC_NAMESPACE_ACCESS = 0x0C
    DISCOVERY = 0x70


class Trtype(enum.IntEnum):
    """TRTYPE of a discovery log entry."""

    RDMA = 1
    TCP = 3


class Adrfam(enum.IntEnum):
    """ADRFAM of a discovery log entry."""

    IPV4 = 1
    IPV6 = 2


class Subtype(enum.IntEnum):
    """SUBTYPE of a discovery log entry."""

    REFERRAL = 1
    NVM = 2
    CURRENT_DISCOVERY = 3


@attrs.frozen
class ErrorEntry:
    """One entry of the error log."""

    count: int
    """Number of this error since the start, from 1."""
    qid: int
    cid: int
    status: int
    """As in the completion, without the phase bit."""
    nsid: int = 0
    lba: int = 0

    def pack(self) -> bytes:
        """Return its 64 bytes."""
        return struct.pack(
            "<QHHHHQIBB34x", self.count, self.qid, self.cid, self.status << 1, 0xFFFF, self.lba,
            self.nsid, 0, 3,
        )  # fmt: skip


@attrs.frozen
class DiscoveryEntry:
    """One way to a subsystem or to another discovery controller."""

    nqn: str
    host: str
    """An address, not a name."""
    port: int
    subtype: Subtype = Subtype.NVM
    port_id: int = 0
    entries_max: int = 32
    """Admin queue size."""

    def pack(self) -> bytes:
        """Return its 1024 bytes."""
        family = Adrfam.IPV6 if ":" in self.host else Adrfam.IPV4
        head = struct.pack(
            "<BBBBHHHH20x32s192x", Trtype.TCP, family, self.subtype, 0, self.port_id, 0xFFFF,
            self.entries_max, 0, str(self.port).encode(),
        )  # fmt: skip
        # TRADDR at 512; transport specific address subtype: no security.
        body = struct.pack("<256s256s256s", self.nqn.encode(), self.host.encode(), b"")
        return head + body

    @classmethod
    def unpack(cls, data: bytes) -> DiscoveryEntry:
        """Return the entry in 1024 bytes."""
        _, _, subtype, _, port_id, _, entries, _, service = struct.unpack_from(
            "<BBBBHHHH20x32s", data
        )
        nqn, address = struct.unpack_from("<256s256s", data, 256)
        return cls(
            nqn=nqn.rstrip(b"\0 ").decode(),
            host=address.rstrip(b"\0 ").decode(),
            port=int(service.rstrip(b"\0 ")),
            subtype=Subtype(subtype),
            port_id=port_id,
            entries_max=entries,
        )


def discovery(generation: int, entries: Sequence[DiscoveryEntry]) -> bytes:
    """Return the discovery log page: GENCTR, NUMREC, RECFMT, then the entries from byte 1024 on."""
    head = struct.pack("<QQH", generation, len(entries), 0).ljust(1024, b"\0")
    return head + b"".join(entry.pack() for entry in entries)


def ana(space: Namespace, *, groups_only: bool) -> bytes:
    """Return the ANA log page of a subsystem with one group.

    Args:
        space: Its namespace.
        groups_only: Return no namespace ids (RGO).
    """
    head = struct.pack("<QH6x", space.ana_changes, 1)
    count = 0 if groups_only else 1
    group = struct.pack("<IIQB15x", ANA_GROUP, count, space.ana_changes, space.ana)
    return head + group + (b"" if groups_only else struct.pack("<I", NSID))


def errors(entries: Sequence[ErrorEntry]) -> bytes:
    """Return the error information log, the newest error first."""
    return b"".join(entry.pack() for entry in entries)


@attrs.frozen
class Counters:
    """What SMART counts."""

    read_bytes: int = 0
    written_bytes: int = 0
    reads: int = 0
    writes: int = 0
    error_entries: int = 0


def smart(counters: Counters, *, is_read_only: bool) -> bytes:
    """Return the SMART / health information log."""
    page = bytearray(512)
    page[0] = is_read_only << 3  # Critical warning: media placed in read-only mode.
    struct.pack_into("<H", page, 1, 273 + 25)  # Composite temperature in kelvin: a room's.
    page[3], page[4] = 100, 10  # Available spare and its threshold, percent.
    thousands = 512 * 1000
    values = (
        (32, -(-counters.read_bytes // thousands)),
        (48, -(-counters.written_bytes // thousands)),
        (64, counters.reads),
        (80, counters.writes),
        (176, counters.error_entries),
    )
    for offset, value in values:
        page[offset : offset + 16] = value.to_bytes(16, "little")
    return bytes(page)


def firmware(revision: str) -> bytes:
    """Return the firmware slot log: one slot, which is active."""
    return struct.pack("<B7x8s", 1, revision.encode().ljust(8)[:8]).ljust(512, b"\0")


def changed_namespaces(*, has_changed: bool) -> bytes:
    """Return the changed namespace list."""
    return struct.pack("<I", NSID if has_changed else 0).ljust(4096, b"\0")


_SUPPORTED = 1
_CHANGES_DATA = 1 << 1


def effects(*, is_io: bool, has_reservations: bool) -> bytes:
    """Return the commands supported and effects log."""
    page = bytearray(4096)
    for opcode in AdminOpcode:
        if opcode is not AdminOpcode.FABRICS:
            struct.pack_into("<I", page, 4 * opcode, _SUPPORTED)
    writing = {IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT}
    for io_opcode in IoOpcode if is_io else ():
        if io_opcode is IoOpcode.FABRICS:
            continue
        if not has_reservations and io_opcode.name.startswith("RESERVATION"):
            continue
        flags = _SUPPORTED | (_CHANGES_DATA if io_opcode in writing else 0)
        struct.pack_into("<I", page, 1024 + 4 * io_opcode, flags)
    return bytes(page)


def supported(pages: Sequence[LogPage]) -> bytes:
    """Return the list of supported log pages."""
    page = bytearray(1024)
    for each in pages:
        struct.pack_into("<I", page, 4 * each, 1)
    return bytes(page)


@attrs.define
class DiscoveryLog:
    """What discovery controllers say; shared by all of them, changed by the frontend."""

    entries: Sequence[DiscoveryEntry] = ()
    generation: int = 1

    def change(self, entries: Sequence[DiscoveryEntry]) -> bool:
        """Take new entries; return whether they differ from the old ones."""
        if list(entries) == list(self.entries):
            return False
        self.entries = tuple(entries)
        self.generation += 1
        return True
