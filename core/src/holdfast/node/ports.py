"""TCP ports for the nodes of a local cluster: which are free, and one chooser at a time.

A port that is free now may be taken a moment later, and nothing but a listener holds it. So whoever
chooses ports and starts what listens there holds a lock of the user's, and ports beside the usual
ones come from below the range that the kernel gives to outgoing connections.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import UnavailableError

HOST = "127.0.0.1"
_FIRST, _BEYOND = 10_000, 32_000
"""Linux takes local ports of outgoing connections from 32768 on."""
_TRIES = 500


def is_free(port: int) -> bool:
    """Return whether nothing listens on `port` of the loopback address."""
    with socket.socket() as probe:
        # As the listeners do: a connection that has just closed does not block its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port(wanted: int, taken: set[int]) -> int:
    """Return `wanted` when it is free and not in `taken`, else another; adds it to `taken`.

    Raises:
        UnavailableError: No free port was found.
    """
    for port in (wanted, *(random.randrange(_FIRST, _BEYOND) for _ in range(_TRIES))):
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise UnavailableError(f"No free TCP port was found on {HOST}.")


@contextlib.contextmanager
def choosing() -> Iterator[None]:
    """Hold the lock of those who choose ports and start what listens there."""
    path = Path(tempfile.gettempdir(), f"holdfast-ports-{os.getuid()}.lock")
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError:
        # Without a temporary folder there is no lock; a race then ends in a clear error.
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
