"""What an operator may set under `[transport.tcp]`."""

from __future__ import annotations

import attrs

from holdfast.sockets import SocketOptions, port_field
from holdfast.units import KIB
from holdfast_transport_tcp.compression import CHOICES
from holdfast_transport_tcp.layout import BATCH_BYTES_MAX

PORT = 5703


@attrs.frozen
class TcpOptions(SocketOptions):
    """Options of the transport `tcp`; sizes in bytes, times in seconds."""

    port: int = port_field(PORT)
    compression: str = attrs.field(
        default="lz4",
        validator=attrs.validators.in_(CHOICES),
        metadata={
            "doc": "How frames are compressed: lz4, zstd (for slow links) or none. Two nodes use"
            " the weaker of their choices."
        },
    )
    frame_bytes_max: int = attrs.field(
        default=BATCH_BYTES_MAX,
        validator=attrs.validators.and_(
            attrs.validators.ge(64 * KIB), attrs.validators.le(BATCH_BYTES_MAX)
        ),
        metadata={"doc": "Most bytes of several operations in one frame."},
    )
    connections_max: int = attrs.field(
        default=4096,
        validator=attrs.validators.ge(1),
        metadata={"doc": "Most accepted connections at a time."},
    )
    connections_per_node_max: int = attrs.field(
        default=1024,
        validator=attrs.validators.ge(1),
        metadata={"doc": "Most accepted connections of one node at a time."},
    )
    half_open_max: int = attrs.field(
        default=128,
        validator=attrs.validators.ge(1),
        metadata={"doc": "Most accepted connections that have not finished their handshake."},
    )
