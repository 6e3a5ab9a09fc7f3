"""The stream of one watch, as the stores of this folder share it.

It keeps the newest untold change of each key and nothing else, so its memory is bounded by the number
of keys, however slow its reader is. It knows no store: whoever owns it offers rows as of a version,
repeats and overlaps included, and the stream tells each key forward only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import attrs

from holdfast.interfaces.state import Change, Entry


@attrs.frozen
class Row:
    """One change as a store knows it."""

    version: int
    """The version that the write or the deletion drew."""
    change: Change


@attrs.define(eq=False)
class Watch:
    """What was told to one reader and what is still to tell; belongs to one event loop."""

    prefix: str
    seen: int = -1
    """Everything up to this version of the store is told or pending; -1 before the first list."""
    _known: set[str] = attrs.field(factory=set, init=False)
    """Keys that are present as far as this stream told or will tell."""
    _pending: dict[str, Change] = attrs.field(factory=dict, init=False)
    _ready: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _error: BaseException | None = attrs.field(default=None, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    def offer(self, version: int, rows: Iterable[Row]) -> None:
        """Take the changes up to `version`; those at or below `seen` are repeats.

        Args:
            version: The store's version when `rows` were read.
            rows: By rising version; keys of other prefixes are passed over.
        """
        for row in rows:
            if row.version > self.seen and row.change.key.startswith(self.prefix):
                self._put(row.change)
        self.seen = max(self.seen, version)

    def relist(self, version: int, entries: Iterable[Entry]) -> None:
        """Take all entries of the prefix as of `version`; known keys that are missing are gone."""
        if version < self.seen:
            return
        present = {entry.key: entry for entry in entries}
        for key in sorted(self._known - present.keys()):
            self._put(Change(key, None))
        for entry in present.values():
            if entry.version > self.seen:
                self._put(Change(entry.key, entry))
        self.seen = version

    def fail(self, error: BaseException) -> None:
        """End the stream: the reader gets `error`, before anything that was pending."""
        self._error = error
        self._ready.set()

    def close(self) -> None:
        """End the stream without an error, once its reader has left the context."""
        self._closed = True
        self._ready.set()

    def _put(self, change: Change) -> None:
        # Taken out first, so that the changes of one stream stay in the order of their versions.
        self._pending.pop(change.key, None)
        self._pending[change.key] = change
        if change.entry is None:
            self._known.discard(change.key)
        else:
            self._known.add(change.key)
        self._ready.set()

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            if self._pending:
                return self._pending.pop(next(iter(self._pending)))
            self._ready.clear()
            await self._ready.wait()
