"""What a node counts, as samples for its metrics; asked at each scrape, kept nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.node.service import Sample

if TYPE_CHECKING:
    from holdfast.node.daemon import Node


def samples_of(node: Node) -> list[Sample]:
    """Return the node's metrics."""
    samples = [
        Sample("holdfast_copies", len(node.hosting.pumps)),
        Sample("holdfast_primaries", sum(p.is_primary for p in node.hosting.pumps.values())),
    ]
    samples += [
        Sample(f"holdfast_transport_{key}_total", value, {"transport": name})
        for name, counters in node.transports.metrics().items()
        for key, value in counters.items()
    ]
    for name, frontend in node.frontends.items():
        samples += [
            Sample(f"holdfast_frontend_{key}", value, {"frontend": name})
            for key, value in frontend.metrics().items()
        ]
    samples += node.observing.samples()
    for pump in node.hosting.pumps.values():
        member = pump.member
        labels = {"volume": member.ctx.spec.name}
        served = member.replica.reader.served
        samples.append(Sample("holdfast_volume_local_reads_total", served, labels))
        if member.primary is None:
            continue
        legs = member.primary.legs.values()
        left = sum(leg.job.left_bytes for leg in legs if leg.job is not None)
        samples += [
            Sample("holdfast_volume_epoch", member.ctx.epoch, labels),
            Sample("holdfast_volume_in_sync", len(member.ctx.record.in_sync), labels),
            Sample("holdfast_volume_sync_left_bytes", left, labels),
        ]
    return samples
