"""A frontend presents volumes to consumers; a `VolumeSession` is what it talks to.

A session hides where the primary is: it keeps unanswered requests and sends them again, in their
order, to a new primary (R7). The frontend sees a pause, never an error, unless the policy or an I/O
deadline says so.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from holdfast.interfaces.passing import Passed
from holdfast.messages import Reply, Request
from holdfast.model import Access, VolumeSpec
from holdfast.units import VolumeId


class SessionHandler(Protocol):
    """What the user of a session supplies; called on the event loop's thread."""

    def on_replies(self, replies: Sequence[Reply]) -> None:
        """Take the answers that have arrived, in any order; each request is answered once."""
        ...

    def on_changed(self, size_bytes: int, access: Access) -> None:
        """Size or access is now this."""
        ...

    def on_closed(self, sentence: str) -> None:
        """The session is over for good: the volume was deleted, or another session took over.

        Unanswered requests were answered with EIO before this.
        """
        ...


class VolumeSession(Protocol):
    """One open session on a volume; many client connections of a frontend may share it."""

    spec: VolumeSpec
    size_bytes: int
    access: Access

    def submit(self, requests: Sequence[Request]) -> None:
        """Send requests; never blocks. Ids must be unique among the session's unanswered ones.

        Payloads must not change until they are answered. Offsets and lengths are multiples of 512
        within the volume, lengths at most 32 MiB; others are answered with EINVAL.
        """
        ...

    async def aclose(self) -> None:
        """Wait for unanswered requests for a moment, then give the writer session up."""
        ...


class PathState(enum.Enum):
    """What a node's way to a volume is worth, for consumers that have the choice between several."""

    OPTIMIZED = "optimized"
    """The primary is here."""
    NON_OPTIMIZED = "non-optimized"
    """The primary is elsewhere, and asked for every request."""
    INACCESSIBLE = "inaccessible"
    """Nothing can be had here: the group is not known, or this node was fenced."""


class VolumeProvider(Protocol):
    """What a node gives its frontends."""

    async def names(self) -> Sequence[str]:
        """Return the names of all volumes of the cluster, sorted."""
        ...

    async def describe(self, name: str) -> VolumeSpec:
        """Return a volume's specification; raises `NotFoundError` with the nearest name."""
        ...

    async def open(
        self,
        name: str,
        handler: SessionHandler,
        *,
        read_only: bool = False,
        force: bool = False,
        consumer: str = "",
    ) -> VolumeSession:
        """Open a session and return once the primary serves it.

        Args:
            name: Of the volume.
            handler: Told answers, changes and the end.
            read_only: Write nothing, and disturb nobody who does.
            force: Take the volume over from whoever holds it.
            consumer: Who is behind the session, where the protocol tells: the same one, coming by
                another node, takes over from itself without force. Empty when nobody knows.

        Raises:
            NotFoundError: No volume has this name.
            ConflictError: Another node's session holds it (R11); says which and how to take over.
            UnavailableError: No primary took the session within the provider's deadline.
        """
        ...

    def path(self, name: str) -> PathState:
        """Return what this node's way to a volume is worth now; never waits."""
        ...

    def addresses(self, frontend: str) -> Sequence[str]:
        """Return `host:port` of the frontend of that name on every other living node that has it."""
        ...


class Frontend(Protocol):
    """A running frontend of one node."""

    address: str
    """`host:port` really bound."""

    def uri(self, volume: str, host: str) -> str:
        """Return the URI at which clients on other machines find the volume."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return counters: connections, requests, bytes."""
        ...

    async def aclose(self) -> None:
        """Stop listening, close every connection and session."""
        ...


PassTo = Callable[[VolumeId, Callable[[], Passed]], bool]
"""Finds the process of the node that keeps a volume. If that is another one, calls the function to
have the client's connection and passes it there; returns whether it did."""


@runtime_checkable
class PassingFrontend(Frontend, Protocol):
    """A frontend whose clients another process of the node can go on with."""

    pass_to: PassTo | None
    """Set by the node; asked when a client has chosen its volume."""

    async def adopt(self, passed: Passed) -> None:
        """Go on with a client that another process of this node has accepted.

        Raises:
            OSError: The client is gone already.
        """
        ...


@runtime_checkable
class PassingFrontendDriver(Protocol):
    """The driver of such a frontend."""

    open_adopting: Callable[[Any, VolumeProvider], PassingFrontend]
    """Returns a frontend that listens to nothing and serves what is given to `adopt`."""


class FrontendDriver(Protocol):
    """What an entry point in `holdfast.frontend` names: a class with these."""

    API_VERSION: int
    name: str
    Options: type[Any]

    open: Callable[[Any, VolumeProvider], Awaitable[Frontend]]
    """`await Driver.open(options, provider)` listens and returns the frontend; raises
    `UnavailableError` naming the address when it cannot be had."""


class AttachDriver(Protocol):
    """What an entry point in `holdfast.attach` names: turns a URI into a local block device."""

    API_VERSION: int
    name: str

    def unavailable(self) -> str | None:
        """Return what this machine lacks and how to get it, or None when it can attach."""
        ...

    async def attach(self, uri: str, directory: str, *, read_only: bool = False) -> str:
        """Return the path of a block device that reads and writes `uri`.

        Args:
            uri: An NBD URI.
            directory: An empty directory for what the driver must keep (mount point, process ids),
                so that `detach` works from another process.
            read_only: Whether writes are refused.
        """
        ...

    async def detach(self, directory: str) -> None:
        """Undo `attach`: flush, remove the device, end helper processes. Idempotent."""
        ...
