"""Where a new copy goes, as a pure function that keeps its reasons.

Nodes that are up, not cordoned, not compute-only, without a copy of this group and with room; among
those the best by free space, copies held and topology. Each choice or refusal is kept as a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from attrs import field, frozen

from holdfast.model import NodeRecord, VolumeSpec
from holdfast.units import GIB, NodeName, format_size

SPREAD_LABEL = "holdfast/spread"
"""The label of a volume that names the node label by which its copies are spread."""
KEPT_FREE_BYTES = GIB
"""StorageOS 2.2 keeps 1 GiB free on each data directory; the least that a full disk needs to heal."""
ScoreOf = Callable[[VolumeSpec, NodeRecord], float]
"""Points of placement hooks for one more copy of a volume on a node."""


@frozen
class Placement:
    """The outcome for one new copy."""

    node: NodeName | None
    reasons: Mapping[NodeName, str] = field(factory=dict)
    """A sentence for every node that was looked at."""


def place(
    nodes: Mapping[NodeName, NodeRecord],
    *,
    size_bytes: int,
    taken: Collection[NodeName],
    spread: str = "",
    apart_from: Collection[NodeName] | None = None,
    extra: Mapping[NodeName, float] | None = None,
    transport_to: Callable[[NodeName], str] | None = None,
) -> Placement:
    """Choose a node for one more copy.

    Args:
        nodes: The nodes whose sessions live.
        size_bytes: The volume's size.
        taken: Nodes that hold a copy of the group, or may not be used.
        spread: A node label whose values should differ between copies; empty: none.
        apart_from: The nodes whose value of that label is to be avoided; None: those `taken`.
        extra: Points of placement hooks, added to the score.
        transport_to: The transport by which a copy on a node is to be reached; None: any.

    Returns:
        The choice with the reason for every node.
    """
    reasons: dict[NodeName, str] = {}
    best: tuple[float, NodeName] | None = None
    apart = taken if apart_from is None else apart_from
    zones = {nodes[n].labels.get(spread) for n in apart if n in nodes} if spread else set()
    for name in sorted(nodes):
        node = nodes[name]
        refusal = _refusal(node, size_bytes, taken)
        if not refusal and transport_to is not None:
            refusal = transport_refusal(node, transport_to(name))
        if refusal:
            reasons[name] = refusal
            continue
        capacity = max(1, node.capacity_bytes)
        score = node.free_bytes / capacity * 10 - node.copies
        if spread and node.labels.get(spread) not in zones:
            score += 1000.0
        score += (extra or {}).get(name, 0.0)
        reasons[name] = f"fits, score {score:.1f}"
        # Names break ties, so that two observers of the same nodes choose alike.
        if best is None or score > best[0]:
            best = (score, name)
    if best is None:
        return Placement(None, reasons)
    reasons[best[1]] += ", chosen"
    return Placement(best[1], reasons)


def transport_refusal(node: NodeRecord, transport: str) -> str:
    """Return why a copy on `node` cannot be reached by `transport`, or an empty string."""
    # A record without any was not written by a node of this version; it is not held against it.
    if not node.transports or transport in node.transports:
        return ""
    return f"does not run the transport {transport}, only {', '.join(sorted(node.transports))}"


def _refusal(node: NodeRecord, size_bytes: int, taken: Collection[NodeName]) -> str:
    if node.name in taken:
        return "already holds a copy of this group"
    if node.draining:
        return "is being drained"
    if node.cordoned:
        return "is cordoned"
    if node.compute_only:
        return "is compute-only"
    if node.free_bytes <= KEPT_FREE_BYTES:
        return f"has {format_size(node.free_bytes)} free, and 1 GiB must stay free"
    limit = node.overcommit * node.capacity_bytes
    if limit and node.promised_bytes + size_bytes > limit:
        promised = f"has promised {format_size(node.promised_bytes)}"
        return f"{promised} to volumes already, and may promise {format_size(int(limit))}"
    return ""
