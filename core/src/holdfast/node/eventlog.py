"""The history of each volume, as far as this node made it: one JSON line per event.

Kept for people and for `holdfast audit`: short, append-only, bounded. Nothing reads it to decide.
A line has a sentence for people, or facts for the audit (`witness.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from holdfast.model import VolumeSpec
from holdfast.units import MIB, NodeName, VolumeId

FILE_BYTES_MAX = MIB
"""Some 6,000 events; then the file is begun anew, with its second half."""
READ_S = 1.0
"""How long whoever asks waits for the disk; less than other nodes wait for an answer."""
_log = logging.getLogger("holdfast.node")


DIRECTORY = "events"
"""Below the first data directory of a node."""


class EventLog:
    """The events of all volumes on one node."""

    def __init__(self, directory: Path, node: NodeName) -> None:
        """Keep the files in `directory`, which is made when the first event comes."""
        self._directory = directory
        self._node = node
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="holdfast-events")
        self._waiters: dict[VolumeId, set[asyncio.Event]] = {}

    def add(self, spec: VolumeSpec, epoch: int, kind: str, sentence: str) -> None:
        """Append an event, and log it."""
        _log.info("%s: %s", spec.name, sentence, extra={"volume": spec.name, "epoch": epoch})
        self._keep(spec.id, epoch, kind, {"sentence": sentence})
        for waiter in self._waiters.get(spec.id, ()):
            waiter.set()

    def fact(self, volume: VolumeId, epoch: int, kind: str, **facts: Any) -> None:
        """Append what only `holdfast audit` reads; people are not shown it."""
        self._keep(volume, epoch, kind, {"facts": facts})

    def _keep(self, volume: VolumeId, epoch: int, kind: str, more: dict[str, Any]) -> None:
        line = {"at": time.time(), "node": self._node, "epoch": epoch, "kind": kind, **more}
        # A disk that stalls, which is when events come, must not hold the loop.
        self._thread.submit(self._append, volume, json.dumps(line) + "\n")

    def _append(self, volume: VolumeId, line: str) -> None:
        path = self._path(volume)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line)
                size = file.tell()
            if size > FILE_BYTES_MAX:
                _halve(path)
        except OSError as error:
            _log.warning("An event of volume %s was not kept: %s", volume, error)

    async def read(self, volume: VolumeId) -> list[dict[str, Any]]:
        """Return the events of a volume for people, oldest first, with all that were added before.

        None from a disk that answers nothing, which is when people ask why.
        """
        try:
            async with asyncio.timeout(READ_S):
                return await self._found(volume)
        except TimeoutError:
            return []

    async def _found(self, volume: VolumeId) -> list[dict[str, Any]]:
        return await asyncio.wrap_future(self._thread.submit(self._read, volume))

    def _read(self, volume: VolumeId) -> list[dict[str, Any]]:
        try:
            with self._path(volume).open(encoding="utf-8") as file:
                events = [event for line in file if (event := _parse(line)) is not None]
                return [event for event in events if "sentence" in event]
        except OSError:
            return []

    async def follow(self, volume: VolumeId) -> AsyncIterator[dict[str, Any]]:
        """Yield the events there are, then those that come."""
        told = 0
        waiter = asyncio.Event()
        self._waiters.setdefault(volume, set()).add(waiter)
        try:
            while True:
                waiter.clear()
                events = await self._found(volume)
                if len(events) < told:
                    told = 0
                for event in events[told:]:
                    yield event
                told = len(events)
                await waiter.wait()
        finally:
            self._waiters[volume].discard(waiter)

    def _path(self, volume: VolumeId) -> Path:
        return self._directory / f"{volume}.jsonl"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None  # A line that a crash cut short, or damaged.
    return event if isinstance(event, dict) else None


def _halve(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    new = path.with_suffix(".new")
    new.write_text("".join(lines[len(lines) // 2 :]), encoding="utf-8")
    new.replace(path)
