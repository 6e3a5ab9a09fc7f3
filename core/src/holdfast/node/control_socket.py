"""The Unix socket of the control API: made so that only its owner may open it, in a dead one's place.

Knows nothing of what is said over it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from holdfast.errors import ConflictError, UsageError

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of Linux is 108 bytes with the closing zero."""


def listen(path: Path) -> socket.socket:
    """Return a listening socket at `path`, in the place of a dead one."""
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise UsageError(
            f"The control socket's path {path} is longer than {SOCKET_PATH_BYTES_MAX} bytes.",
            hint="Set node.control to a shorter path.",
        )
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConflictError(
                f"The control socket's path {path} is taken by something that is no socket.",
                hint="Move it away or set node.control to another path.",
            )
        if _somebody_listens(path):
            raise ConflictError(
                f"Another process already serves the control socket {path}.",
                hint="The node is running; `holdfast status` shows it.",
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode must be right before anybody can connect, so it is set by the umask.
        old = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(old)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"The control socket {path} cannot be made: {error.strerror}.",
            hint="Check that its folder exists and is writable.",
        ) from error
    return listener


def inode(path: Path) -> int | None:
    """Return what tells this file from another one at the same path; None: there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def remove(path: Path) -> None:
    """Remove the socket's file, if it is there."""
    with contextlib.suppress(OSError):
        path.unlink()


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True
