"""What an operator may set under `[transport.tcp]`."""

from __future__ import annotations

import attrs

from holdfast.units import KIB, MIB
from holdfast_transport_tcp.compression import CHOICES
from holdfast_transport_tcp.layout import BATCH_BYTES_MAX

PORT = 5703


@attrs.frozen
class TcpOptions:
    """Options of the transport `tcp`; sizes in bytes, times in seconds."""

    listen: str = attrs.field(
        default="127.0.0.1",
        metadata={"doc": "Address to listen on; 0.0.0.0 or :: for every one of the machine."},
    )
    port: int = attrs.field(
        default=PORT,
        validator=attrs.validators.and_(attrs.validators.ge(0), attrs.validators.le(65535)),
        metadata={"doc": "TCP port to listen on; 0 picks a free one."},
    )
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
            "doc": "Freed memory that the process keeps for the next frames; 0 leaves the C"
            " library's allocator as it is."
        },
    )
