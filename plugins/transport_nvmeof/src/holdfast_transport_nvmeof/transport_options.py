"""What an operator may set under `[transport.nvme-tcp]`."""

from __future__ import annotations

import enum

import attrs

from holdfast.sockets import SocketOptions, port_field
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
class NvmeTcpTransportOptions(SocketOptions):
    """Options of the transport `nvme-tcp`; times in seconds."""

    port: int = port_field(PORT)
    digests: Digests = attrs.field(
        default=Digests.BOTH,
        metadata={
            "doc": "Which checksums the links that this node opens carry: both, header, data or"
            " none. Without them only TCP's own checksum guards the data."
        },
    )
    connections_max: int = attrs.field(
        default=4096,
        validator=attrs.validators.ge(2),
        metadata={"doc": "Most accepted connections at a time; a link takes two."},
    )
