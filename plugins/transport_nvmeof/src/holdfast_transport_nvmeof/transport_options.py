"""What an operator may set under `[transport.nvme-tcp]`."""

from __future__ import annotations

import enum

import attrs

from holdfast.units import MIB
from holdfast_transport_nvmeof.pdu import DGST_DATA, DGST_HEADER

PORT = 5704


class Digests(enum.Enum):
    """Which PDUs carry a CRC-32C."""

    BOTH = "both"
    HEADER = "header"
    DATA = "data"
    NONE = "none"

    @property
    def bits(self) -> int:
        """DGST of ICReq."""
        return {"both": DGST_HEADER | DGST_DATA, "header": DGST_HEADER, "data": DGST_DATA}.get(
            self.value, 0
        )


@attrs.frozen
class NvmeTcpTransportOptions:
    """Options of the transport `nvme-tcp`; times in seconds."""

    listen: str = attrs.field(
        default="127.0.0.1",
        metadata={"doc": "Address to listen on; 0.0.0.0 or :: for every one of the machine."},
    )
    port: int = attrs.field(
        default=PORT,
        validator=attrs.validators.and_(attrs.validators.ge(0), attrs.validators.le(65535)),
        metadata={"doc": "TCP port to listen on; 0 picks a free one."},
    )
    digests: Digests = attrs.field(
        default=Digests.BOTH,
        metadata={
            "doc": "Which checksums the links that this node opens carry: both, header, data or"
            " none. Without them only TCP's own checksum guards the data."
        },
    )
    connect_timeout_s: float = attrs.field(
        default=3.0,
        validator=attrs.validators.gt(0),
        metadata={"doc": "How long a connection and its handshake may take, on either side."},
    )
    close_timeout_s: float = attrs.field(
        default=5.0,
        validator=attrs.validators.gt(0),
        metadata={"doc": "How long a closed link may take to send what it had accepted."},
    )
    connections_max: int = attrs.field(
        default=4096,
        validator=attrs.validators.ge(2),
        metadata={"doc": "Most accepted connections at a time; a link takes two."},
    )
    keepalive_s: float = attrs.field(
        default=10.0,
        validator=attrs.validators.ge(1),
        metadata={
            "doc": "A silent connection is probed after this and given up after three times this;"
            " so is one whose bytes nobody confirms."
        },
    )
    warm_heap_bytes: int = attrs.field(
        default=64 * MIB,
        validator=attrs.validators.ge(0),
        metadata={
            "doc": "Freed memory that the process keeps for the next PDUs; 0 leaves the C"
            " library's allocator as it is."
        },
    )
