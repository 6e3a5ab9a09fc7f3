"""`holdfast explain` for md volumes: why, what is being done, what comes next, what would help. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from holdfast.interfaces.policy import Policy, PolicyView
from holdfast.model import Access
from holdfast.units import NodeName
from holdfast_transport_nvmeof.md.model import MdNode, MdVolume, MemberState
from holdfast_transport_nvmeof.md.placing import place_again, reasons
from holdfast_transport_nvmeof.md.status import health_of, phase_of

Json = dict[str, Any]


def explained(
    volume: MdVolume,
    alive: Collection[NodeName],
    nodes: Mapping[NodeName, MdNode],
    policy: Policy,
    now: float,
) -> Json:
    """Return the explanation with the keys that `NodeService.explain` promises."""
    telling = _Telling(volume, alive, nodes)
    telling.array()
    for member in volume.members:
        telling.member(member.id)
    telling.policy(policy, now)
    health = health_of(volume, alive)
    calm = "All members are in sync." if not telling.why else ""
    return {
        "name": volume.name,
        "health": health.value,
        "access": volume.access,
        "policy": volume.policy,
        "since": min((m.since for m in volume.members if m.state in _BAD), default=None),
        "told_by": "primary" if volume.active in alive else "record",
        "why": telling.why or [calm],
        "doing": telling.doing,
        "next": telling.next,
        "help": telling.help,
        "phase": phase_of(volume),
    }


_BAD = (MemberState.MISSING, MemberState.FAULTY)


class _Telling:
    def __init__(
        self, volume: MdVolume, alive: Collection[NodeName], nodes: Mapping[NodeName, MdNode]
    ) -> None:
        self.volume, self.alive, self.nodes = volume, alive, nodes
        self.why: list[str] = []
        self.doing: list[str] = []
        self.next: list[Json] = []
        self.help: list[Json] = []

    def array(self) -> None:
        volume = self.volume
        name = volume.name
        if volume.status.error:
            self.why.append(f"The last attempt failed: {volume.status.error}")
        if volume.deleting:
            self.doing.append("It is being deleted: its members go, one node after the other.")
        elif volume.active and volume.active not in self.alive:
            self.why.append(f"Node {volume.active}, which has the array, does not answer.")
            self._next(f"When {volume.active} is back, it goes on with what it had.")
            self._help(f"Start {volume.active}.", f"holdfast node start {volume.active}")
            command = f"holdfast volume promote {name} NODE --force"
            self._help(f"Or make sure that {volume.active} is off, and take over.", command)
        elif volume.active and volume.active != volume.consumer:
            self.doing.append(
                f"Node {volume.active} lets go of it, then {volume.consumer} takes it."
            )
        elif not volume.active and volume.created:
            absent = [
                m.node
                for m in volume.members
                if m.state is MemberState.SYNCED and m.node not in self.alive
            ]
            self.why.append(f"The array is not running; node {volume.consumer} is to run it.")
            if absent:
                nodes = " and ".join(sorted(set(absent)))
                self.why.append(
                    f"The member on {nodes} may have writes that no other has, so it is waited for."
                )
                command = f"holdfast volume promote {name} {volume.consumer} --force"
                self._help(f"Or go on without what only {nodes} may have.", command)
        elif not volume.created:
            self.doing.append("Its members are being made and zeroed; then the array is.")

    def member(self, id_: str) -> None:
        volume = self.volume
        member = volume.member(id_)
        assert member is not None
        node = member.node
        if member.state is MemberState.MISSING:
            self.why.append(f"The member on {node} is missing.")
            how = "as a whole" if member.whole else "by the bitmap, only what changed"
            self._next(f"If it comes back, it is synced {how}.")
            at = member.since + volume.member_missing_timeout_s
            target = place_again(volume, member.slot, self.nodes, avoid=(node,))
            if target is not None:
                self._next(f"If it is not back by then, another is made on {target}.", at)
                command = f"holdfast volume evict {volume.name} {node}"
                self._help(f"Do not wait for {node}: replace it now.", command)
            else:
                told = "; ".join(
                    f"{n}: {w}" for n, w in sorted(reasons(volume, self.nodes).items())
                )
                self._next("No node can take another one." + (f" {told}." if told else ""))
                self._help("Add a node or a drive.")
            if node not in self.alive:
                self._help(f"Start {node}.", f"holdfast node start {node}")
        elif member.state is MemberState.FAULTY:
            self.why.append(f"The member on {node} was given up.")
            self._next("Its partition is removed once another has taken its place.")
        elif member.state is MemberState.SYNCING:
            done = f", {volume.status.sync} done" if volume.status.sync else ""
            self.doing.append(f"The member on {node} is synced{done}.")
        elif member.state in {MemberState.REQUESTED, MemberState.CREATED} and volume.created:
            self.doing.append(f"A member is being made on {node}.")
        elif member.state is MemberState.DELETING:
            self.doing.append(f"The former member on {node} is being removed.")

    def policy(self, policy: Policy, now: float) -> None:
        volume = self.volume
        in_sync = sum(m.state is MemberState.SYNCED for m in volume.members)
        copies = min(in_sync // volume.drives_per_copy, volume.copies)
        view = PolicyView(
            volume.copies - 1, max(copies - 1, 0), max(copies - 1, 0), Access(volume.access),
            volume.grace_started_at,
        )  # fmt: skip
        verdict = policy.decide(view, now)
        if volume.access != Access.READ_WRITE.value:
            self.why.append(f"Writes wait: {verdict.reason}")
            if volume.access != Access.SUSPENDED.value:
                again = f"holdfast volume promote {volume.name} {volume.consumer}"
                self._help("When enough members are back, use it anew.", again)
        elif verdict.below:
            self.why.append(verdict.reason)
        if verdict.deadline is not None:
            self._next("The policy looks again.", verdict.deadline)

    def _next(self, sentence: str, at: float | None = None) -> None:
        self.next.append({"at": at, "sentence": sentence})

    def _help(self, sentence: str, command: str = "") -> None:
        entry = {"sentence": sentence, "command": command}
        if entry not in self.help:
            self.help.append(entry)
