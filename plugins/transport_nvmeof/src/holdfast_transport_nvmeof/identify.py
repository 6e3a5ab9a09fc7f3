"""The data structures that Identify returns, as kernels want to read them.

Only packing: from what a controller and a namespace are to 4096 bytes. Fields that are not named here
are zero, which says "not supported" or "not reported".

Source: NVM Express Base Specification 2.0, section 5.17 (figures 273 to 286); NVM Command Set
Specification 1.0, section 4.1.5 (figures 97 and 100); TCP and fabrics fields in figure 275.
"""

from __future__ import annotations

import enum
import struct

import attrs

from holdfast import __version__
from holdfast.units import BLOCK_BYTES, REQUEST_BYTES_MAX, SECTOR_BYTES
from holdfast_transport_nvmeof.namespace import ANA_GROUP, NSID, Namespace

IDENTIFY_BYTES = 4096
VENDOR_SPECIFIC = 3072
"""Where the vendor-specific bytes of Identify Controller begin."""
VERSION = 0x0001_0400
"""1.4.0: ANA, controller types and namespace write protection are there, and all kernels know it."""
MODEL = "Holdfast volume"
MDTS = 8
"""Largest read, write or compare: 2 to this power of 4 KiB pages, so 1 MiB."""
TRANSFER_BYTES_MAX = BLOCK_BYTES << MDTS
ASYNC_EVENTS_MAX = 4
ERROR_LOG_ENTRIES = 64
ANATT_S = 10
"""Longest that a state of transition lasts: a failover takes 3 s."""
KAS = 10
"""Keep-alive granularity in units of 100 ms."""
PREFERRED = BLOCK_BYTES // SECTOR_BYTES - 1
"""Preferred write and deallocate sizes, and the atomic write size: one 4 KiB block, 0-based."""


class Cns(enum.IntEnum):
    """What Identify is to return."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    NAMESPACE_OF_COMMAND_SET = 0x05
    CONTROLLER_OF_COMMAND_SET = 0x06
    ACTIVE_NAMESPACES_OF_COMMAND_SET = 0x07
    NAMESPACE_INDEPENDENT = 0x08
    ALLOCATED_NAMESPACES = 0x10
    ALLOCATED_NAMESPACE = 0x11
    CONTROLLERS_OF_NAMESPACE = 0x12
    CONTROLLERS = 0x13
    COMMAND_SETS = 0x1C


class ControllerType(enum.IntEnum):
    """CNTRLTYPE."""

    IO = 1
    DISCOVERY = 2


class Oncs(enum.IntFlag):
    """Optional NVM commands supported."""

    COMPARE = 1 << 0
    DATASET_MANAGEMENT = 1 << 2
    WRITE_ZEROES = 1 << 3
    RESERVATIONS = 1 << 5


class Oaes(enum.IntFlag):
    """Optional asynchronous events supported; the same bits in Asynchronous Event Configuration."""

    NAMESPACE_ATTRIBUTE = 1 << 8
    ANA_CHANGE = 1 << 11
    DISCOVERY_LOG_CHANGE = 1 << 31


@attrs.frozen
class ControllerFacts:
    """What Identify Controller says of one controller."""

    cntlid: int
    kind: ControllerType
    subsystem: str
    serial: str
    entries_max: int
    """Queue depth: MAXCMD."""
    in_capsule_bytes: int = 0
    """Data that an I/O command may carry in its capsule."""
    has_reservations: bool = False
    mdts: int = MDTS
    """0 for no limit."""
    vendor: bytes = b""
    """What stands in the vendor-specific bytes."""


def controller(facts: ControllerFacts) -> bytes:
    """Return the Identify Controller data structure (CNS 01h)."""
    page = bytearray(IDENTIFY_BYTES)
    is_io = facts.kind is ControllerType.IO
    page[4:24] = facts.serial.encode().ljust(20)[:20]
    page[24:64] = MODEL.encode().ljust(40)
    page[64:72] = __version__.encode().ljust(8)[:8]
    page[77] = facts.mdts
    struct.pack_into("<HI", page, 78, facts.cntlid, VERSION)
    oaes = Oaes.NAMESPACE_ATTRIBUTE | Oaes.ANA_CHANGE if is_io else Oaes.DISCOVERY_LOG_CHANGE
    ctratt = 1 | 1 << 6  # 128-bit host identifiers; any command keeps the controller alive.
    struct.pack_into("<II", page, 92, oaes, ctratt)
    page[111] = facts.kind
    page[258] = 3  # ACL: 0-based; aborts are answered at once.
    page[259] = ASYNC_EVENTS_MAX - 1
    page[260] = 0b11  # FRMW: one slot, read-only.
    page[261] = 1 << 2  # LPA: extended data, so that offsets count.
    page[262] = ERROR_LOG_ENTRIES - 1
    struct.pack_into("<H", page, 320, KAS)
    struct.pack_into("<H", page, 514, facts.entries_max)
    struct.pack_into("<I", page, 536, 1 | 1 << 20)  # SGLS: SGLs, and offsets in capsules.
    page[768:1024] = facts.subsystem.encode().ljust(256, b"\0")
    if is_io:
        _io_controller(page, facts)
    assert len(facts.vendor) <= IDENTIFY_BYTES - VENDOR_SPECIFIC
    page[VENDOR_SPECIFIC : VENDOR_SPECIFIC + len(facts.vendor)] = facts.vendor
    return bytes(page)


def _io_controller(page: bytearray, facts: ControllerFacts) -> None:
    page[76] = 0b1011  # CMIC: several ports, several controllers, ANA reporting.
    oncs = Oncs.COMPARE | Oncs.DATASET_MANAGEMENT | Oncs.WRITE_ZEROES
    if facts.has_reservations:
        oncs |= Oncs.RESERVATIONS
    page[342] = ANATT_S
    page[343] = 0b0100_0111  # ANACAP: group ids do not change; optimized, non-opt., inaccessible.
    struct.pack_into("<II", page, 344, ANA_GROUP, 1)
    page[512], page[513] = 0x66, 0x44  # SQES 64 bytes, CQES 16 bytes.
    struct.pack_into("<IH", page, 516, NSID, oncs)
    page[525] = 0b111  # VWC: there is a volatile write cache; Flush takes all namespaces, too.
    struct.pack_into("<HH", page, 526, PREFERRED, PREFERRED)  # AWUN, AWUPF
    struct.pack_into("<I", page, 540, 1)  # MNAN
    capsule = 64 + facts.in_capsule_bytes
    struct.pack_into("<IIHBBH", page, 1792, capsule // 16, 1, 0, 0, 1, 1)


def namespace(space: Namespace) -> bytes:
    """Return the Identify Namespace data structure of the NVM command set (CNS 00h)."""
    page = bytearray(IDENTIFY_BYTES)
    struct.pack_into("<QQQ", page, 0, space.blocks, space.blocks, space.blocks)
    page[24] = 0b1_0011  # NSFEAT: thin, own atomic sizes, preferred sizes.
    page[30] = 1  # NMIC: several controllers at a time.
    page[31] = 0b0111_1110 if space.offers_reservations else 0  # RESCAP: all types, no PTPL.
    page[33] = 0b0_1001  # DLFEAT: deallocated blocks read as zeros; Write Zeroes may deallocate.
    struct.pack_into("<HH", page, 34, PREFERRED, PREFERRED)  # NAWUN, NAWUPF
    page[48:64] = space.size_bytes.to_bytes(16, "little")  # NVMCAP
    struct.pack_into("<HHHH", page, 64, PREFERRED, PREFERRED, PREFERRED, PREFERRED)
    struct.pack_into("<I", page, 92, ANA_GROUP)
    page[99] = not space.is_writable  # NSATTR: write protected.
    page[104:120] = space.unique_id
    page[130] = SECTOR_BYTES.bit_length() - 1  # LBAF 0: no metadata.
    return bytes(page)


def namespace_independent(space: Namespace) -> bytes:
    """Return what holds for each command set (CNS 08h)."""
    page = bytearray(IDENTIFY_BYTES)
    page[1] = 1  # NMIC
    page[2] = 0b0111_1110 if space.offers_reservations else 0
    struct.pack_into("<I", page, 4, ANA_GROUP)
    page[8] = not space.is_writable
    page[14] = 1  # NSTAT: ready.
    return bytes(page)


def namespace_descriptors(space: Namespace) -> bytes:
    """Return the Namespace Identification Descriptor list (CNS 03h): NGUID, UUID, command set."""
    unique = space.unique_id
    descriptors = struct.pack("<BBxx", 2, 16) + unique + struct.pack("<BBxx", 3, 16) + unique
    descriptors += struct.pack("<BBxxB", 4, 1, 0)
    return descriptors.ljust(IDENTIFY_BYTES, b"\0")


def controller_of_command_set() -> bytes:
    """Return the I/O Command Set specific data of the NVM command set (CNS 06h)."""
    page = bytearray(IDENTIFY_BYTES)
    zeroes = (REQUEST_BYTES_MAX // BLOCK_BYTES).bit_length() - 1
    # VSL, WZSL, WUSL, DMRL (no limit on ranges below 256), DMRSL, DMSL: any length.
    struct.pack_into("<BBBBIQ", page, 0, 0, zeroes, 0, 0, 0, 0)
    return bytes(page)


def namespace_list(*, after: int) -> bytes:
    """Return a list of namespaces whose ids are greater than `after`."""
    listed = struct.pack("<I", NSID) if after < NSID else b""
    return listed.ljust(IDENTIFY_BYTES, b"\0")


def controller_list(ids: list[int], *, least: int) -> bytes:
    """Return a controller list: those of `ids` from `least` on."""
    chosen = sorted(i for i in ids if i >= least)[:2047]
    return struct.pack(f"<H{len(chosen)}H", len(chosen), *chosen).ljust(IDENTIFY_BYTES, b"\0")


def command_sets() -> bytes:
    """Return the one combination of command sets there is: NVM alone (CNS 1Ch)."""
    return struct.pack("<Q", 1).ljust(IDENTIFY_BYTES, b"\0")
