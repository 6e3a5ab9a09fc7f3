"""What a node does for its copies while nobody asks: hashes of cold chunks, scrubs that are due.

A hash that is computed soon after a chunk has cooled is what lets a later scrub tell rot from a
write, and a returning copy be compared without reading everything; so it is done in the
background, slowly. Scrubs run one at a time on a node, for the volumes whose primary is here, and
repair what they find. When a volume was last scrubbed is kept in a file, so that restarts do not
begin the round anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.kernel.sections import ScrubOptions
from holdfast.node import verifying
from holdfast.node.pump import Pump
from holdfast.node.toml_files import write_atomically
from holdfast.sync.roles import Role
from holdfast.units import CHUNK_BYTES, MIB, VolumeId

LOOK_S = 2.0
"""How often copies are looked at for hashes to be refreshed."""
DUE_LOOK_S = 30.0
"""How often scrubs that are due are looked for."""
_log = logging.getLogger("holdfast.node")


class Scrubbing:
    """The background work on the copies of one node."""

    def __init__(
        self, pumps: Mapping[VolumeId, Pump], options: ScrubOptions, kept_in: Path
    ) -> None:
        """Work on `pumps`; remember in the file `kept_in` when volumes were scrubbed."""
        self._pumps = pumps
        self._options = options
        self._path = kept_in
        self._done_at: dict[str, float] = _read(kept_in)
        self._rested: dict[VolumeId, tuple[Pump, int]] = {}
        """Copies without stale hashes, and the position of the stream at which that was so."""
        self._seen: dict[VolumeId, int] = {}
        self._refreshing: dict[VolumeId, Pump] = {}

    # -- hashes -----------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Refresh the hashes of cold chunks, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for volume, pump in list(self._pumps.items()):
                self._refresh(volume, pump)

    def _refresh(self, volume: VolumeId, pump: Pump) -> None:
        written = int(pump.member.ctx.disk.submitted)
        if self._rested.get(volume) == (pump, written) or self._refreshing.get(volume) is pump:
            return
        # A chunk that is written again and again is not worth hashing.
        share = 1 if self._seen.get(volume) == written else 16
        self._seen[volume] = written
        limit = int(self._options.hash_mib_s * LOOK_S * MIB / CHUNK_BYTES) // share

        def refreshed(left: int) -> None:
            self._refreshing.pop(volume, None)
            if left == 0:
                self._rested[volume] = (pump, written)

        if limit and pump.member.role is not Role.FAILED:
            self._refreshing[volume] = pump
            pump.refresh_hashes(limit, refreshed)

    # -- scrubs -----------------------------------------------------------------------------------

    async def scrub(self) -> None:
        """Scrub the volumes that are due, one after the other, for ever."""
        if not self._options.interval_s:
            return
        while True:
            for pump in list(self._pumps.values()):
                if pump.is_primary and self._due_at(pump) <= time.time():
                    await self._scrub(pump)
            await asyncio.sleep(min(DUE_LOOK_S, self._options.interval_s / 4))

    def _due_at(self, pump: Pump) -> float:
        spec = pump.member.ctx.spec
        return self._done_at.get(spec.id, spec.created_at) + self._options.interval_s

    async def _scrub(self, pump: Pump) -> None:
        spec = pump.member.ctx.spec
        pace_s = verifying.BATCH_BYTES / (self._options.scrub_mib_s * MIB)
        try:
            async for line in verifying.run(pump, spec.name, repair=True, pace_s=pace_s):
                if "equal" in line and not line["equal"]:
                    _log.error("A scrub of %s found what it could not repair.", spec.name)
        except HoldfastError as error:
            _log.info("The scrub of %s waits: %s", spec.name, error)
            return
        self._done_at[spec.id] = time.time()
        text = json.dumps(self._done_at, indent=0, sort_keys=True) + "\n"
        await asyncio.to_thread(write_atomically, self._path, text)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {k: float(v) for k, v in found.items()} if isinstance(found, dict) else {}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
