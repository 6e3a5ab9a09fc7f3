"""What draining a node will do to each volume that has a copy there, and what stands in its way.

The plan is for people; it binds nobody. Once the node says that it is being drained, the primary of
each group decides by itself, adds and syncs first, switches, and removes last.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from holdfast.errors import ConflictError
from holdfast.model import CopyState, GroupRecord, NodeRecord, VolumeSpec
from holdfast.node.service import Json
from holdfast.sync.placement import SPREAD_LABEL, place
from holdfast.units import NodeName, VolumeId


def drain_plan(
    node: NodeName,
    specs: Mapping[VolumeId, VolumeSpec],
    groups: Mapping[VolumeId, GroupRecord],
    alive: Mapping[NodeName, NodeRecord],
) -> list[Json]:
    """Return a step for each volume with a copy on `node`, by name.

    Returns:
        `volume`, `role` (`primary` or `replica`), `state`, `promote` (the node that may take over
        at once, or None), `copy_to` (where its copy goes; None: nowhere), `why_not` (a sentence
        when no node can take it, else empty).
    """
    nodes = dict(alive)
    if node in nodes:
        nodes[node] = attrs.evolve(nodes[node], cordoned=True, draining=True)
    steps = []
    for spec in sorted(specs.values(), key=lambda spec: spec.name):
        record = groups.get(spec.id)
        member = None if record is None else record.on_node(node)
        if record is None or member is None:
            continue
        others = [m for m in record.members if m.node != node]
        heirs = [m.node for m in others if m.state is CopyState.IN_SYNC and m.node in alive]
        is_primary = member.copy == record.primary
        step: Json = {
            "volume": spec.name,
            "role": "primary" if is_primary else "replica",
            "state": member.state.value,
            "promote": heirs[0] if is_primary and heirs else None,
            "copy_to": None,
            "why_not": "",
        }
        if len(heirs) <= spec.replicas:
            placed = place(
                nodes,
                size_bytes=spec.size_bytes,
                taken={m.node for m in record.members},
                spread=spec.labels.get(SPREAD_LABEL, ""),
                apart_from={m.node for m in others},
                transport_to=spec.transport_to,
            )
            step["copy_to"] = placed.node
            if placed.node is None:
                reasons = [f"{name} {why}" for name, why in placed.reasons.items()]
                step["why_not"] = "; ".join(reasons) or "no node is up"
            else:
                there = nodes[placed.node]
                nodes[placed.node] = attrs.evolve(
                    there,
                    copies=there.copies + 1,
                    promised_bytes=there.promised_bytes + spec.size_bytes,
                )
        steps.append(step)
    return steps


def refuse_to_lower(node: NodeName, steps: list[Json]) -> None:
    """Raise `ConflictError` when some volume would have fewer copies than it declares."""
    stuck = [step for step in steps if step["why_not"]]
    if stuck:
        names = ", ".join(step["volume"] for step in stuck)
        raise ConflictError(
            f"Node {node} cannot be drained: no other node can take its copy of {names} "
            f"({stuck[0]['why_not']}).",
            hint="Add a node, make room, or declare fewer replicas; `--dry-run` shows the plan.",
        )
