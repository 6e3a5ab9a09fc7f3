"""A node that is being drained: its volumes get another user, and its members another home. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from holdfast.errors import ConflictError
from holdfast.units import NodeName
from holdfast_transport_nvmeof.md.model import MdNode, MdVolume, MemberState
from holdfast_transport_nvmeof.md.placing import GONE, heir, moved_away
from holdfast_transport_nvmeof.md.plan import Plan

Json = dict[str, Any]


def plan_draining(
    volume: MdVolume, node: NodeName, nodes: Mapping[NodeName, MdNode], now: float
) -> Plan | None:
    """Return the next thing to do so that `node` has nothing of a volume any more, or None.

    The user moves first; a copy follows it where it has none, in the place of the one here.
    """
    if volume.deleting or not volume.created:
        return None
    if volume.consumer == node:
        target = heir(volume, node, nodes)
        if target is None:
            return None
        why = f"Node {node} is being drained; node {target} is to use the volume."
        return Plan(why, kind="draining", after=attrs.evolve(volume, consumer=target, anew=True))
    calm = all(m.state is MemberState.SYNCED for m in volume.members if m.state not in GONE)
    here = any(m.node == node and m.state not in GONE for m in volume.members)
    there = any(m.node == volume.active for m in volume.members)
    if not here or not calm or volume.active != volume.consumer or not there:
        return None
    if any(m.replaces for m in volume.members):
        return None
    try:
        moved = moved_away(volume, node, nodes, now)
    except ConflictError:
        return None
    why = f"Node {node} is being drained; its copy is made anew elsewhere."
    return Plan(why, kind="draining", after=moved)


def drain_steps(
    volumes: Iterable[MdVolume], node: NodeName, nodes: Mapping[NodeName, MdNode]
) -> list[Json]:
    """Return what draining `node` does to each volume, with the keys that `NodeService.drain` has."""
    steps = []
    for volume in volumes:
        members = [m for m in volume.members if m.node == node and m.state not in GONE]
        is_user = volume.consumer == node
        if volume.deleting or (not members and not is_user):
            continue
        goes = heir(volume, node, nodes) if is_user else None
        copy_to, why_not = None, ""
        if goes is not None and all(m.node != goes for m in volume.members):
            copy_to = goes
        elif members:
            try:
                moved = moved_away(volume, node, nodes, 0.0)
                copy_to = moved.members[-1].node
            except ConflictError as error:
                why_not = error.hint or "no other node runs the replicator md"
        steps.append(
            {
                "volume": volume.name,
                "role": "primary" if volume.active == node else "replica",
                "state": "in-sync"
                if all(m.state is MemberState.SYNCED for m in members)
                else "syncing",
                "promote": goes,
                "copy_to": copy_to,
                "why_not": why_not,
            }
        )
    return steps
