"""A state store: small values under compare-and-set, watches, and leases of nodes.

The group protocol leans on one property alone: `compare_and_set` is atomic and linearizable per key.
Watches may be late, may coalesce several writes of one key into the last, and never go back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import attrs


@attrs.frozen
class Entry:
    """A stored value."""

    key: str
    """Lower-case path such as `group/1f…`; at most 200 characters of `[a-z0-9._/-]` and capitals."""
    value: bytes
    """At most 64 KiB."""
    version: int
    """Rises with every write of any key of the store; compare for equality only."""


@attrs.frozen
class Change:
    """What a watch tells: the key's present entry, or that it is gone."""

    key: str
    entry: Entry | None


class NodeSession(Protocol):
    """A lease of one process: alive while renewed, over when ended or when `ttl_s` ran out."""

    id: str

    async def renew(self) -> None:
        """Live for another `ttl_s`. Raises `StateConflictError` when the session is already over,
        `StateError` when the store cannot be reached."""
        ...

    async def end(self) -> None:
        """End at once, so that others need not wait for the lease. Idempotent."""
        ...


class StateStore(Protocol):
    """An open store. Every method may raise `StateError` when the store cannot be reached.

    After a `StateError` from `compare_and_set` it is unknown whether the write took place; read
    before deciding.
    """

    async def get(self, key: str) -> Entry | None:
        """Return the entry under `key`; linearizable."""
        ...

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Return the entries whose keys begin with `prefix`, by key, of one instant."""
        ...

    async def compare_and_set(
        self, key: str, value: bytes | None, expected: int | None
    ) -> Entry | None:
        """Write `value` if the key's version is `expected`; None as value deletes.

        Args:
            key: The key.
            value: The new value, or None to delete.
            expected: The version that must be in force; None: the key must not exist.

        Returns:
            The new entry; None after a deletion.

        Raises:
            StateConflictError: Another version is in force; nothing was written.
        """
        ...

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Change]]:
        """Open a stream of changes of keys that begin with `prefix`.

        The stream begins with every entry present when it opens. A change made after the context
        was entered is told within a second on a healthy store, without busy polling.
        """
        ...

    async def open_session(self, name: str, ttl_s: float) -> NodeSession:
        """Begin the lease of the node `name`. An older session of the same name ends with this.

        Leases are timed by the monotonic clock of the store's own machine, never by wall time.
        """
        ...

    async def session_alive(self, name: str) -> str | None:
        """Return the id of the living session of the node `name`, or None when it is over."""
        ...

    async def aclose(self) -> None:
        """Release everything. Sessions that were not ended run out by themselves."""
        ...


class StateDriver(Protocol):
    """What an entry point in `holdfast.state` names: a class with these."""

    API_VERSION: int
    name: str
    Options: type[Any]

    open: Callable[[Any], Awaitable[StateStore]]
    """`await Driver.open(options)` returns an open store; raises `StateError` with a hint."""
