"""What an explanation says of a fault and of a sync; it decides nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping

from holdfast.model import Member
from holdfast.sync.leg import Leg, Phase
from holdfast.units import format_size

FAULTS: Mapping[str, str] = {
    "link-lost": "its node stopped answering",
    "ack-timeout": "it answered heartbeats but acknowledged nothing for too long",
    "restarted": "its process or machine restarted",
    "no-space": "its file system is full",
    "unreadable": "its disk cannot read some of its data",
    "io-error": "its disk answered with an error",
    "flush-failed": "its disk failed to put data on stable storage",
    "corrupt": "its data or metadata failed a check",
    "fenced": "it knows a newer epoch",
    "wrong-identity": "its disk is not the one that the group knows",
    "removed": "its node was stopped or it was taken out",
}
"""By the fault that the group record names."""


def sync_words(entry: Member, leg: Leg | None) -> str:
    """Return what the sync of a copy is doing."""
    node = entry.node
    if leg is None:
        return f"The copy on {node} is being synced; its primary's node knows how far it is."
    if leg.fault is not None:
        return f"The sync of the copy on {node} was cut off: {leg.fault[1]}."
    if leg.job is None or leg.phase is not Phase.STREAMING:
        return f"The copy on {node} is being made and reached."
    job = leg.job
    if not job.counted:
        return f"The copies are compared to learn what the one on {node} lacks ({job.how})."
    elapsed = max(time.monotonic() - job.started_at, 1e-6)
    rate = job.sent_bytes / elapsed
    words = f"The copy on {node} is synced by {job.how}: {format_size(job.left_bytes)} left"
    if rate > 0 and job.left_bytes:
        words += f", {format_size(rate)}/s, about {job.left_bytes / rate:.0f} s"
    return words + "."
