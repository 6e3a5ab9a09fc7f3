"""What everything that speaks TCP has in common: addresses, options, counts, and peers that vanish.

For drivers, this project's and others': a transport or frontend over sockets takes from here what is
the same in all of them, and keeps its protocol to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import attrs

from holdfast.interfaces.transport import TransportCounters
from holdfast.units import MIB


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        ValueError: It is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is no address; write HOST:PORT or [IPV6]:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bracketed(host: str) -> str:
    """Return a host as it stands in an address or URI."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


SYSTEM_CONGESTION = "system"
"""Leaves a connection the congestion control that the system gives it."""

CONGESTION_CHOICES = ("cubic", "reno", SYSTEM_CONGESTION)
"""What every process may choose, and every kernel has, or nearly so."""


def tune(
    transport: asyncio.BaseTransport,
    *,
    silent_s: float,
    probe_s: float,
    probes: int,
    unconfirmed_s: float | None = None,
    congestion: str = "cubic",
) -> None:
    """Send everything at once, and have the kernel end a connection whose peer has vanished.

    Does as much as the platform can, and nothing where the connection is no TCP.

    Args:
        transport: The connection.
        silent_s: After how long a silent peer is probed; whole seconds.
        probe_s: How long to wait for the answer to a probe; whole seconds.
        probes: How many unanswered probes end the connection.
        unconfirmed_s: How long sent bytes may go unconfirmed; None for as long as the kernel tries.
        congestion: One of `CONGESTION_CHOICES`. BBR, which some systems set for the internet, holds
            back by timers what a local network could take at once.
    """
    own = transport.get_extra_info("socket")
    if own is None or own.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", round(silent_s)),
        ("TCP_KEEPINTVL", round(probe_s)),
        ("TCP_KEEPCNT", probes),
        ("TCP_USER_TIMEOUT", None if unconfirmed_s is None else round(unconfirmed_s * 1000)),
    ):
        if value is not None and hasattr(socket, name):
            own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if congestion != SYSTEM_CONGESTION and hasattr(socket, "TCP_CONGESTION"):
        # A kernel without it, or one that reserves it, goes on with its own choice.
        with contextlib.suppress(OSError):
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


@attrs.frozen
class SocketOptions:
    """What an operator may set for every transport over TCP; times in seconds."""

    listen: str = attrs.field(
        default="127.0.0.1",
        metadata={"doc": "Address to listen on; 0.0.0.0 or :: for every one of the machine."},
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
    keepalive_s: float = attrs.field(
        default=10.0,
        validator=attrs.validators.ge(1),
        metadata={
            "doc": "A silent connection is probed after this and given up after three times this;"
            " so is one whose bytes nobody confirms."
        },
    )
    congestion: str = attrs.field(
        default="cubic",
        validator=attrs.validators.in_(CONGESTION_CHOICES),
        metadata={
            "doc": "Congestion control of the connections: cubic, reno, or what the system gives"
            " them. BBR, where the system has it, makes writes a tenth slower on a local network;"
            " between distant sites that lose packets it may be the better one."
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

    def tune(self, transport: asyncio.BaseTransport) -> None:
        """Have a connection probed as `keepalive_s` says, and fill the line as `congestion` does."""
        seconds = round(self.keepalive_s)
        tune(
            transport,
            silent_s=seconds,
            probe_s=seconds,
            probes=2,
            unconfirmed_s=3 * seconds,
            congestion=self.congestion,
        )


def port_field(port: int) -> int:
    """Return the attrs field of a port to listen on, by default `port`."""
    field: int = attrs.field(
        default=port,
        validator=attrs.validators.and_(attrs.validators.ge(0), attrs.validators.le(65535)),
        metadata={"doc": "TCP port to listen on; 0 picks a free one."},
    )
    return field


@attrs.define
class Counters(TransportCounters):
    """What a transport over TCP counts beside its frames."""

    connections_open: int = 0
    connections_accepted: int = 0
    connections_refused: int = 0
    """Turned away by a limit or in the handshake."""
    protocol_errors: int = 0
    """Connections closed because the peer broke the protocol."""
