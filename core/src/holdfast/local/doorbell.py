"""A bell between the processes of one machine: "something was committed, look".

Each listener binds a Unix datagram socket of a random name in one directory; a ring sends one byte to
every socket there. A ring may be lost (full buffer, full disk, foreign hands in the directory), so
listeners also look now and then by themselves. It carries no content, so it can carry nothing wrong.
"""

from __future__ import annotations

import errno
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

_FRESH = "."
"""Begins the name of a socket that is not yet bound, or not yet heard."""


@attrs.define
class Doorbell:
    """The bells of one directory; `ring` may run in any thread, the rest in the listener's."""

    directory: Path
    _name: str = attrs.field(default="", init=False)
    _socket: socket.socket | None = attrs.field(default=None, init=False)

    def listen(self) -> socket.socket:
        """Bind a socket and return it: non-blocking, readable after a ring.

        Raises:
            OSError: The directory cannot be made or written.
        """
        assert self._socket is None
        self.directory.mkdir(mode=0o700, exist_ok=True)
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            name = uuid.uuid4().hex
            with _short(self.directory) as short:
                bell.bind(f"{short}/{_FRESH}{name}")
                # Renamed once it is bound: a ring in between would find nobody and remove it.
                Path(f"{short}/{_FRESH}{name}").rename(f"{short}/{name}")
        except OSError:
            bell.close()
            raise
        self._name, self._socket = name, bell
        return bell

    @property
    def is_hung(self) -> bool:
        """Whether the socket is bound and still where a ring finds it."""
        return self._socket is not None and (self.directory / self._name).exists()

    def answer(self) -> None:
        """Take every ring that has arrived, so that the socket is silent until the next."""
        assert self._socket is not None
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(1)

    def hush(self) -> None:
        """Close the socket and take its name away. Idempotent."""
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        with suppress(OSError):
            (self.directory / self._name).unlink()

    def ring(self) -> None:
        """Wake every other listener of the directory; never waits, never fails.

        The name of a listener that is dead (killed before it could hush) is taken away.
        """
        with (
            suppress(OSError),
            _short(self.directory) as short,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        ):
            sender.setblocking(False)
            for name in os.listdir(short):  # noqa: PTH208 - a descriptor, and names are enough.
                if name.startswith(_FRESH) or name == self._name:
                    continue
                try:
                    sender.sendto(b"!", f"{short}/{name}")
                except OSError as error:
                    # A full buffer (EAGAIN) already has rings that its owner has not answered.
                    if error.errno == errno.ECONNREFUSED:
                        with suppress(OSError):
                            Path(f"{short}/{name}").unlink()


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """Name `directory` in a few characters: a socket's address may have 107, a path 4,095."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
