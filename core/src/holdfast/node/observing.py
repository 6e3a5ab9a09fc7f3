"""Tells the observers of this node (`kernel.hooks`) what happens here.

Nothing is decided by what an observer does, except that placement adds its points. Without any
observer none of this costs anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from holdfast.kernel.hooks import HookManager
from holdfast.model import GroupRecord, NodeRecord, VolumeSpec
from holdfast.node.directory import Directory
from holdfast.node.pump import Pump
from holdfast.node.service import Sample
from holdfast.sync.delta import SyncJob
from holdfast.sync.leg import Leg
from holdfast.units import CopyId, NodeName, VolumeId

PROGRESS_S = 1.0
_log = logging.getLogger("holdfast.hooks")


class Observing:
    """What one node has told its observers, and what is to be told next."""

    def __init__(self, node: NodeName, hooks: HookManager, directory: Directory) -> None:
        """Begin with the nodes that live now."""
        self.is_watched = bool(hooks.names)
        self._node = node
        self._hooks = hooks
        self._directory = directory
        self._alive: Mapping[NodeName, NodeRecord] = {}
        self._sent: dict[tuple[VolumeId, CopyId], tuple[SyncJob, int]] = {}
        """Of each sync: its job and how many bytes it had sent when it was last told."""
        self._ended: dict[tuple[VolumeId, CopyId], SyncJob] = {}

    def group_changed(
        self, spec: VolumeSpec | None, before: GroupRecord | None, after: GroupRecord
    ) -> None:
        """A compare-and-set of this node was won."""
        if self.is_watched and spec is not None:
            self._hooks.tell("group_changed", spec=spec, before=before, after=after)

    def nodes_changed(self) -> None:
        """Other nodes live than before; those that left without a word are lost."""
        before, self._alive = self._alive, self._directory.alive
        for name in before.keys() - self._alive.keys():
            record = self._directory.nodes.get(name)
            # A node that stops in order takes its session out of its record, or the record away.
            if record is not None and record.session and name != self._node:
                self._hooks.tell("node_lost", node=name)

    def score(self, spec: VolumeSpec, node: NodeRecord) -> float:
        """Return the points that observers add to a node for a copy of a volume."""
        return self._hooks.score_placement(spec, node) if self.is_watched else 0.0

    def samples(self) -> list[Sample]:
        """Return the observers' metrics; what is no sample is logged and left out."""
        samples = []
        for told in self._hooks.tell("metrics", node=self._node):
            try:
                samples += [Sample(str(n), float(v), dict(labels)) for n, v, labels in told]
            except (TypeError, ValueError) as error:
                _log.error("An observer's metrics are left out: %s.", error)
        return samples

    async def run(self, pumps: Mapping[VolumeId, Pump]) -> None:
        """Tell the progress of syncs until cancelled; returns at once when nobody listens."""
        last = time.monotonic()
        while self.is_watched:
            await asyncio.sleep(PROGRESS_S)
            now = time.monotonic()
            self.tell_progress(pumps, now - last)
            last = now

    def tell_progress(self, pumps: Mapping[VolumeId, Pump], elapsed_s: float) -> None:
        """Tell of every sync that this node's primaries run, or that ended in `elapsed_s`."""
        seen = set()
        for pump in list(pumps.values()):
            primary = pump.member.primary
            if primary is None:
                continue
            for leg in primary.legs.values():
                key = (pump.volume, leg.copy)
                seen.add(key)
                self._tell_leg(key, pump.member.ctx.spec, leg, elapsed_s)
        for told in (self._sent, self._ended):
            for key in told.keys() - seen:
                del told[key]

    def _tell_leg(self, key: Any, spec: VolumeSpec, leg: Leg, elapsed_s: float) -> None:
        job = leg.job if leg.job is not None else leg.last_job
        if job is None or job.how == "reconcile" or self._ended.get(key) is job:
            return
        ended = leg.job is None
        if ended and not leg.in_sync:
            return
        known, sent = self._sent.pop(key, (job, 0))
        if known is not job:
            sent = 0
        if ended:
            self._ended[key] = job
        else:
            self._sent[key] = (job, job.sent_bytes)
        self._hooks.tell(
            "sync_progress",
            spec=spec,
            node=leg.node,
            bytes_left=0 if ended else job.left_bytes,
            bytes_total=max(job.total_bytes, job.sent_bytes),
            rate=(job.sent_bytes - sent) / elapsed_s,
        )
