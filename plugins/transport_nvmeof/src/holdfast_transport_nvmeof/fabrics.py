"""Fabrics commands: Connect, Property Get and Set, Disconnect; and the properties of a controller.

Values in, values out. Whether a host may connect to what it names is decided elsewhere.

Source: NVM Express Base Specification 2.0, sections 6.1 to 6.6 (fabrics commands) and 3.1.3
(controller properties); names under which NQNs are formed in section 4.5.
"""

from __future__ import annotations

import enum
import struct

import attrs

from holdfast_transport_nvmeof.commands import PSDT_SGL, Command, SglType

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
NQN_BYTES_MAX = 223
DYNAMIC_CONTROLLER = 0xFFFF
CNTLID_MAX = 0xFFEF
"""Ids above it are reserved."""
CONNECT_DATA_BYTES = 1024
ADMIN_QUEUE_ENTRIES_MIN = 32


class FabricsType(enum.IntEnum):
    """FCTYPE."""

    PROPERTY_SET = 0x00
    CONNECT = 0x01
    PROPERTY_GET = 0x04
    AUTHENTICATION_SEND = 0x05
    AUTHENTICATION_RECEIVE = 0x06
    DISCONNECT = 0x08


class Cattr(enum.IntFlag):
    """CATTR of Connect."""

    DISABLE_SQ_FLOW_CONTROL = 1 << 2


class Property(enum.IntEnum):
    """Offsets of the properties that exist over fabrics."""

    CAP = 0x00
    VS = 0x08
    CC = 0x14
    CSTS = 0x1C
    NSSR = 0x20


class Csts(enum.IntFlag):
    """Bits of CSTS."""

    RDY = 1
    CFS = 2
    SHST_COMPLETE = 2 << 2


CONNECT_DATA = struct.Struct("<16sH238x256s256s256x")
"""HOSTID, CNTLID, SUBNQN, HOSTNQN."""
_CONNECT_CDW = struct.Struct("<HHHBxI")
"""RECFMT, QID, SQSIZE (0-based), CATTR, KATO in ms: CDW10 to CDW12."""

IPO_CNTLID, IPO_SUBNQN, IPO_HOSTNQN = 16, 256, 512
"""Offsets within Connect's data that Invalid Parameters points at."""
IPO_QID, IPO_SQSIZE = 42, 44
"""Offsets within Connect's command that Invalid Parameters points at."""
IATTR_DATA = 1 << 16
"""In dword 0 of Invalid Parameters: the offset counts in the data, not in the command."""


@attrs.frozen
class Connect:
    """What a host says when it connects one queue."""

    subsystem: str
    host: str
    host_id: bytes
    """16 bytes."""
    cntlid: int = DYNAMIC_CONTROLLER
    qid: int = 0
    entries: int = ADMIN_QUEUE_ENTRIES_MIN
    """Submission queue entries."""
    kato_ms: int = 0
    sq_flow_control: bool = False
    record_format: int = 0

    @classmethod
    def parse(cls, command: Command, data: memoryview | bytes) -> Connect:
        """Return what a command and its 1024 bytes of data say.

        Raises:
            ValueError: A name is not UTF-8, or has no end.
        """
        raw = struct.pack("<III", command.cdw10, command.cdw11, command.cdw12)
        record_format, qid, sqsize, cattr, kato_ms = _CONNECT_CDW.unpack(raw)
        host_id, cntlid, subsystem, host = CONNECT_DATA.unpack_from(data)
        return cls(
            subsystem=_name(subsystem),
            host=_name(host),
            host_id=host_id,
            cntlid=cntlid,
            qid=qid,
            entries=sqsize + 1,
            kato_ms=kato_ms,
            sq_flow_control=not cattr & Cattr.DISABLE_SQ_FLOW_CONTROL,
            record_format=record_format,
        )

    def command(self, cid: int) -> Command:
        """Return the command; its data goes with it in the capsule."""
        cattr = 0 if self.sq_flow_control else Cattr.DISABLE_SQ_FLOW_CONTROL
        raw = _CONNECT_CDW.pack(self.record_format, self.qid, self.entries - 1, cattr, self.kato_ms)
        return fabrics_command(
            cid, FabricsType.CONNECT, *struct.unpack("<III", raw), length=CONNECT_DATA_BYTES
        )

    def data(self) -> bytes:
        """Return its 1024 bytes of data."""
        return CONNECT_DATA.pack(
            self.host_id, self.cntlid, self.subsystem.encode(), self.host.encode()
        )


def fabrics_command(  # noqa: D417 - CDW10 to CDW13 are what their names say.
    cid: int,
    kind: FabricsType,
    cdw10: int = 0,
    cdw11: int = 0,
    cdw12: int = 0,
    cdw13: int = 0,
    *,
    length: int = 0,
) -> Command:
    """Return a Fabrics command.

    Args:
        cid: Command identifier.
        kind: FCTYPE.
        length: Bytes of data in the capsule.
    """
    sgl = SglType.DATA_BLOCK_OFFSET if length else SglType.TRANSPORT_DATA_BLOCK
    return Command(0x7F, PSDT_SGL, cid, kind, 0, 0, 0, length, sgl, cdw10, cdw11, cdw12, cdw13)


def property_get(cid: int, offset: Property, *, is_8_bytes: bool = False) -> Command:
    """Return a Property Get."""
    return fabrics_command(cid, FabricsType.PROPERTY_GET, int(is_8_bytes), offset)


def property_set(cid: int, offset: Property, value: int) -> Command:
    """Return a Property Set of 4 bytes."""
    return fabrics_command(cid, FabricsType.PROPERTY_SET, 0, offset, value)


def _name(field: bytes) -> str:
    name, end, _ = field.partition(b"\0")
    if not end or len(name) > NQN_BYTES_MAX:
        raise ValueError("an NQN is longer than 223 bytes")
    return name.decode()
