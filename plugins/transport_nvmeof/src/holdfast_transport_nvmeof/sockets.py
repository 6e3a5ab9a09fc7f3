"""Socket options of the transport's connections."""

from __future__ import annotations

import asyncio
import socket


def keep_alive(transport: asyncio.Transport, seconds: float) -> None:
    """Send small PDUs at once, and have the kernel end a connection whose peer has died."""
    own = transport.get_extra_info("socket")
    if own is None or own.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    whole = round(seconds)
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, whole),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, whole),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000 * whole),
    ):
        own.setsockopt(level, option, value)
