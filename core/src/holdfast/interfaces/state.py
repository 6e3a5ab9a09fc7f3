"""A state store: small values under compare-and-set, watches, and leases of nodes.

The group protocol leans on one property alone: `compare_and_set` is atomic and linearizable per key.
Watches may be late, may coalesce several writes of one key into the last, and never go back.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import attrs

from holdfast.errors import UsageError

KEY_CHARS_MAX = 200
"""Leaves room for a store's own prefix below the 253 characters of a Kubernetes object name."""
VALUE_BYTES_MAX = 64 * 1024
"""A group record of six members is about 2 KiB; etcd refuses a request above 1.5 MiB."""

_KEY = re.compile(r"[A-Za-z0-9._/-]*")


def check_key(key: str) -> None:
    """Refuse a key that some store could not hold, so that all stores refuse the same ones.

    Raises:
        UsageError: The key is empty, too long, or has a character outside `[A-Za-z0-9._/-]`.
    """
    if not key:
        raise UsageError("A key of the state store is empty.")
    check_prefix(key)


def check_prefix(prefix: str) -> None:
    """Refuse a prefix that no key can begin with; the empty one is every key's.

    Raises:
        UsageError: The prefix is too long, or has a character outside `[A-Za-z0-9._/-]`.
    """
    if len(prefix) > KEY_CHARS_MAX or _KEY.fullmatch(prefix) is None:
        raise UsageError(
            f"{prefix[:KEY_CHARS_MAX]!r} cannot be a key of the state store.",
            hint=f"Use at most {KEY_CHARS_MAX} letters, digits, dots, dashes, underscores, slashes.",
        )


def check_value(key: str, value: bytes) -> None:
    """Refuse a value above `VALUE_BYTES_MAX` bytes; `key` is for the sentence.

    Raises:
        UsageError: The value is too long.
    """
    if len(value) > VALUE_BYTES_MAX:
        raise UsageError(
            f"The value of {key} is {len(value)} bytes; the state store takes {VALUE_BYTES_MAX}.",
            hint="Shorten what is kept there, such as labels.",
        )


def check_ttl(ttl_s: float) -> None:
    """Refuse a lease that is over before it began.

    Raises:
        UsageError: `ttl_s` is not above 0.
    """
    if not ttl_s > 0:
        raise UsageError(f"A session of {ttl_s} s makes no sense; it must be above 0 s.")


@attrs.frozen
class Entry:
    """A stored value."""

    key: str
    """Lower-case path such as `group/1f…`; see `check_key`."""
    value: bytes
    """At most `VALUE_BYTES_MAX`."""
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
        """Live for another `ttl_s`.

        Raises:
            StateConflictError: The session is already over.
            StateError: The store cannot be reached; the session may run out meanwhile.
        """
        ...

    async def end(self) -> None:
        """End at once, so that others need not wait for the lease. Idempotent."""
        ...


class StateStore(Protocol):
    """An open store. Every method may raise `StateError` when the store cannot be reached.

    After a `StateError` from `compare_and_set` it is unknown whether the write took place; read
    before deciding. What `check_key`, `check_value` and `check_ttl` refuse raises their
    `UsageError` before anything else. A closed handle answers everything with `StateError`.
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
        was entered is told within a second on a healthy store, without busy polling. A deletion
        of a key that the stream never told may be told or not.

        The iterator raises `StateError` when the stream cannot go on, also when the handle is
        closed; a new watch then begins with every entry present, and what is missing was deleted.
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
