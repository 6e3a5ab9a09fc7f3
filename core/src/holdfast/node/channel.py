"""What the processes of one node say to each other: small values, and connections passed on.

A Unix socket of packets, which keeps a value and its descriptor together and ends with the process
at its other end, however that ends. It knows no volumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

PACKET_BYTES_MAX = 192 * 1024
"""A first message of 64 KiB in hexadecimal fits; so does what Linux lets a socket hold by default."""
_log = logging.getLogger("holdfast.node")


class Channel:
    """One end."""

    def __init__(
        self,
        own: socket.socket,
        on_value: Callable[[dict[str, Any], int | None], None],
        on_closed: Callable[[], None],
    ) -> None:
        """Begin to receive.

        Args:
            own: This end's socket.
            on_value: Told each value and the descriptor that came with it, which it must close.
            on_closed: Told once that the other process has ended; not after `close`.
        """
        self._socket = own
        self._on_value = on_value
        self._on_closed = on_closed
        self._is_open = True
        own.setblocking(False)
        asyncio.get_running_loop().add_reader(own.fileno(), self._receive)

    def send(self, value: dict[str, Any], fd: int | None = None) -> bool:
        """Send a value and close `fd`; return False if the other process does not take it."""
        try:
            socket.send_fds(self._socket, [json.dumps(value).encode()], [] if fd is None else [fd])
        except OSError as error:
            # Busy beyond what the socket holds, or gone; whoever connected will try again.
            _log.warning("A process of this node takes no more: %s.", error)
            return False
        finally:
            if fd is not None:
                os.close(fd)
        return True

    def _receive(self) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(self._socket, PACKET_BYTES_MAX, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            self.close()
            self._on_closed()
            return
        self._on_value(json.loads(packet), fds[0] if fds else None)

    def close(self) -> None:
        """Hang up. Idempotent."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(ValueError, OSError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
