"""Which record a primary asks for: drops, joins, replacements, surplus, the policy's verdict.

One function from what is to what is wanted, evaluated after every event; when the two differ and no
compare-and-set is under way, the difference is asked for. Nothing is remembered that could be
derived, so a lost compare-and-set, a restart or an outage of the store needs no special case: the
next evaluation asks for whatever is still wanted (level-triggered, as StorageOS 1.0 learned).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from attrs import define, field

from holdfast.errors import FaultReason
from holdfast.interfaces.policy import Policy, PolicyView, Verdict
from holdfast.model import Access, CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.sync import membership
from holdfast.sync.context import Context
from holdfast.sync.events import Assign, Effect, Instant
from holdfast.sync.leg import Phase
from holdfast.sync.placement import SPREAD_LABEL, Placement, place
from holdfast.sync.primary import PrimaryRole
from holdfast.units import CopyId, NodeName, format_size

PolicyOf = Callable[[VolumeSpec], Policy]


def view_of(record: GroupRecord, spec: VolumeSpec, *, attached_anew: bool) -> PolicyView:
    """Return what a policy may see of a group."""
    others = [m for m in record.members if m.copy != record.primary]
    in_sync = sum(1 for m in others if m.state is CopyState.IN_SYNC)
    syncing = sum(1 for m in others if m.state is CopyState.SYNCING)
    return PolicyView(
        declared=spec.replicas,
        online=in_sync + syncing,
        in_sync=in_sync,
        access=record.access,
        below_since=record.grace_started_at,
        attached_anew=attached_anew,
    )


def leaving(record: GroupRecord, nodes: Mapping[NodeName, NodeRecord]) -> frozenset[CopyId]:
    """Return the copies that are to go as soon as others hold what they hold."""
    return frozenset(
        m.copy
        for m in record.members
        if m.leaving or ((node := nodes.get(m.node)) is not None and node.draining)
    )


def missing_count(
    record: GroupRecord, spec: VolumeSpec, nodes: Mapping[NodeName, NodeRecord], wall: float
) -> int:
    """Return how many copies are to be made now; a lost one is waited for as `spec` says."""
    going = leaving(record, nodes)
    others = [m for m in record.members if m.copy not in {record.primary, *going}]
    wanted = spec.replicas + (record.primary in going)
    missing = wanted - sum(1 for m in others if m.state is not CopyState.OFFLINE)
    for member in others:
        if member.state is CopyState.OFFLINE:
            missing -= wall - member.since < spec.member_missing_timeout_s
    return missing


@define
class Healing:
    """Decides what the group record should be; owned by the primary."""

    ctx: Context
    primary: PrimaryRole
    policy_of: PolicyOf
    evicted: set[CopyId] = field(factory=set)
    """Copies that an operator wants gone; one that is made on such a node later is not meant."""
    wanted_nodes: set[NodeName] = field(factory=set)
    """Nodes on which an operator wants a copy, beyond the declared number until it is in sync."""
    moves: dict[NodeName, NodeName] = field(factory=dict)
    """Source to target of moves that are asked for and not yet in the record."""
    called_off: set[NodeName] = field(factory=set)
    """Nodes whose copy is to stay after all, and by the record is still to go."""
    _targets: dict[NodeName, NodeName] = field(factory=dict)
    """By source: the targets of all moves that this primary was asked for."""
    verdict: Verdict | None = None
    placement: Placement | None = None
    """The last search for a node, with its reasons."""

    def evict(self, node: NodeName) -> None:
        """Plan to take out the copy that is on `node` now, and to make none there in its place."""
        member = self.ctx.record.on_node(node)
        if member is not None:
            self.evicted.add(member.copy)
            self.wanted_nodes.discard(node)

    def move(self, source: NodeName, target: NodeName) -> None:
        """Plan a move; to its own node: call it off, and let the copy that was made go."""
        if target == source:
            self.moves.pop(source, None)
            self.wanted_nodes.discard(self._targets.pop(source, source))
            self.called_off.add(source)
        else:
            self.called_off.discard(source)
            self.wanted_nodes.add(target)
            self.moves[source] = self._targets[source] = target

    @property
    def is_content(self) -> bool:
        """Whether the record is all that is declared, and time alone will not ask for another."""
        record, spec = self.ctx.record, self.ctx.spec
        return (
            len(record.members) == 1 + spec.replicas
            and all(m.state is CopyState.IN_SYNC and not m.leaving for m in record.members)
            and record.grace_started_at is None
            and self.verdict is not None
            and self.verdict.deadline is None
            and not (self.evicted or self.wanted_nodes or self.moves or self.called_off)
        )

    def desired(self, now: Instant, out: list[Effect]) -> GroupRecord:
        """Return the record that the present state asks for; the one in force when all is well."""
        record = self.ctx.record
        record = self.drop_faulty(record, now)
        record = self._join(record, now)
        record = self._begin(record, now)
        record = self._stay(record)
        record = self._remove(record, out)
        record = self._replace(record, now, out)
        record = self.primary.attachments.admit(
            record, now, lambda r: self._judge(r, now, attached_anew=True), out
        )
        return self._judge(record, now, attached_anew=False)

    # -- members ----------------------------------------------------------------------------------

    def drop_faulty(self, record: GroupRecord, now: Instant) -> GroupRecord:
        """Return `record` without the copies whose legs have failed (R2)."""
        faults: dict[CopyId, FaultReason] = {}
        for leg in self.primary.legs.values():
            member = record.find(leg.copy)
            if leg.fault is not None and member is not None:
                if member.state is not CopyState.OFFLINE:
                    faults[leg.copy] = leg.fault[0]
        return membership.drop(record, faults, now.wall) if faults else record

    def _join(self, record: GroupRecord, now: Instant) -> GroupRecord:
        ready = frozenset(
            leg.copy
            for leg in self.primary.legs.values()
            if leg.joining
            and leg.fault is None
            and leg.has_on_disk(self.primary.durable)
            and self.ctx.peers.valid_until(leg.node, record.volume) > now.mono
            and (member := record.find(leg.copy)) is not None
            and member.state is CopyState.SYNCING
        )
        return membership.join(record, ready, now.wall) if ready else record

    def _begin(self, record: GroupRecord, now: Instant) -> GroupRecord:
        for leg in self.primary.legs.values():
            member = record.find(leg.copy)
            if leg.wants_sync and leg.identity is not None and member is not None:
                record = membership.begin_sync(record, leg.copy, leg.identity.incarnation, now.wall)
        return record

    def _stay(self, record: GroupRecord) -> GroupRecord:
        for node in sorted(self.called_off):
            member = record.on_node(node)
            if member is None or not member.leaving:
                self.called_off.discard(node)
            else:
                record = membership.mark_leaving(record, member.copy, leaving=False)
        return record

    def _remove(self, record: GroupRecord, out: list[Effect]) -> GroupRecord:
        """Take out what is surplus: offline copies first, then syncing, then in sync."""
        others = [m for m in record.members if m.copy != record.primary]
        # By the record in force: what is asked for may fail, and is then to be asked for again.
        self.evicted &= {m.copy for m in self.ctx.record.members}
        for member in others:
            if member.copy in self.evicted and len(record.in_sync) > (
                1 if member.state is CopyState.IN_SYNC else 0
            ):
                self.ctx.note("copy-evicted", f"The copy on {member.node} is taken out.", out)
                record = membership.remove(record, member.copy)
        keep = [m for m in record.members if m.copy != record.primary]
        in_sync = [m for m in keep if m.state is CopyState.IN_SYNC]
        going = leaving(record, self.ctx.nodes)
        staying = [m for m in in_sync if m.copy not in going]
        # A primary that is to go needs somebody to take its place first.
        wanted = self.ctx.spec.replicas + (record.primary in going)
        asked = [m for m in keep if m.node in self.wanted_nodes]
        self.wanted_nodes -= {m.node for m in asked if m.state is CopyState.IN_SYNC}
        if len(staying) < wanted:
            # Of several that are to go, those that are one too many go before another is made: there
            # may be no other node, and theirs is free then.
            for member in [m for m in in_sync if m.copy in going][: max(0, len(in_sync) - wanted)]:
                record = self._surplus(record, member, out)
            rivals = [m for m in keep if m.copy not in going]
            return self._rivals(record, rivals, wanted - len(staying), out)
        for member in keep:
            if member.node not in self.wanted_nodes and member not in staying:
                record = self._surplus(record, member, out)
        for member in reversed(staying[:]):
            if len(staying) > wanted and not self._protected(member):
                staying.remove(member)
                record = self._surplus(record, member, out)
        return record

    def successor(self) -> NodeName | None:
        """Return the node whose copy should be primary instead, when this one is to go."""
        ctx = self.ctx
        record, mine = ctx.record, ctx.record.primary_member
        going = leaving(record, ctx.nodes)
        if record.primary not in going:
            return None
        ready = [
            member
            for leg in self.primary.legs.values()
            if leg.in_sync and leg.equal and leg.phase is Phase.STREAMING and leg.fault is None
            if (member := record.find(leg.copy)) is not None
        ]
        heirs = [m for m in ready if m.copy not in going]
        if not heirs or (mine.leaving and len(ready) <= ctx.spec.replicas):
            return None  # A move switches when the new copy is there; a drained node goes at once.
        # The consumer's own node is best; else the newest copy, which is where a move went.
        return max(heirs, key=lambda m: (m.node == record.attached_node, m.since)).node

    def _protected(self, member: Member) -> bool:
        """An operator's own choice of node is the last to go."""
        return member.node in self.ctx.spec.labels.get("holdfast/prefer", "").split(",")

    def _rivals(
        self, record: GroupRecord, keep: list[Member], places: int, out: list[Effect]
    ) -> GroupRecord:
        """Of more syncing copies than places, keep those that differ least from the primary."""
        syncing = [
            m for m in keep if m.state is CopyState.SYNCING and m.node not in self.wanted_nodes
        ]
        if len(syncing) <= places:
            return record
        lefts: dict[CopyId, int] = {}
        for member in syncing:
            leg = self.primary.legs.get(member.copy)
            if leg is None or leg.job is None or not leg.job.counted:
                return record
            lefts[member.copy] = leg.job.left_bytes
        ranked = sorted(syncing, key=lambda m: (lefts[m.copy], m.since))
        kept = ranked[0]
        for member in ranked[places:]:
            self.ctx.note(
                "smaller-difference",
                f"The copy on {kept.node} differs by {format_size(lefts[kept.copy])}, the one on "
                f"{member.node} by {format_size(lefts[member.copy])}; the former is kept.",
                out,
            )
            record = membership.remove(record, member.copy)
        return record

    def _surplus(self, record: GroupRecord, member: Member, out: list[Effect]) -> GroupRecord:
        why = "has been moved away" if member.leaving else f"({member.state.value}) is surplus"
        self.ctx.note("copy-removed", f"The copy on {member.node} {why} and is removed.", out)
        return membership.remove(record, member.copy)

    def _replace(self, record: GroupRecord, now: Instant, out: list[Effect]) -> GroupRecord:
        """Plan a copy on the best node for each one that is missing (design, section 5)."""
        ctx = self.ctx
        nodes = ctx.nodes
        if ctx.spec.deleting or not self.primary.serving:
            return record
        for source, target in list(self.moves.items()):
            member = record.on_node(source)
            if member is None or member.leaving or target not in nodes:
                del self.moves[source]
                continue
            record = membership.mark_leaving(record, member.copy)
            if record.on_node(target) is None:
                record = self._add(record, target, now, out)
        going = leaving(record, nodes)
        taken = {m.node for m in record.members}
        taken |= {m.node for m in ctx.record.members if m.copy in self.evicted}
        for _ in range(missing_count(record, ctx.spec, nodes, now.wall)):
            self.placement = place(
                nodes,
                size_bytes=ctx.spec.size_bytes,
                taken=taken,
                spread=ctx.spec.labels.get(SPREAD_LABEL, ""),
                apart_from={m.node for m in record.members if m.copy not in going},
                extra=self._extra_scores(),
                transport_to=ctx.spec.transport_to,
            )
            if self.placement.node is None:
                break
            record = self._add(record, self.placement.node, now, out)
            taken.add(self.placement.node)
        for node in sorted(self.wanted_nodes):
            if record.on_node(node) is None and node in nodes:
                record = self._add(record, node, now, out)
        return record

    def _extra_scores(self) -> Mapping[NodeName, float]:
        score_of, ctx = self.ctx.score_of, self.ctx
        if score_of is None:
            return {}
        return {name: score_of(ctx.spec, node) for name, node in ctx.nodes.items()}

    def _add(
        self, record: GroupRecord, node: NodeName, now: Instant, out: list[Effect]
    ) -> GroupRecord:
        copy = membership.new_copy_id(record.volume, self.ctx.version, node)
        out.append(Assign(node, copy))
        self.ctx.note("copy-added", f"A new copy is made on {node}.", out)
        return membership.add(record, copy, node, now.wall)

    # -- access -----------------------------------------------------------------------------------

    def _judge(self, record: GroupRecord, now: Instant, *, attached_anew: bool) -> GroupRecord:
        """Return `record` with the access and grace that the policy wants (I6)."""
        spec = self.ctx.spec
        policy = self.policy_of(spec)
        view = view_of(record, spec, attached_anew=attached_anew)
        verdict = self.verdict = policy.decide(view, now.wall)
        since = record.grace_started_at
        if verdict.below and since is None:
            since = now.wall
        elif not verdict.below:
            since = None
        if (verdict.access, since) == (record.access, record.grace_started_at):
            return record
        return attrs.evolve(record, access=verdict.access, grace_started_at=since)

    def deadline(self) -> float | None:
        """Return the wall time at which the policy wants to be asked again."""
        return None if self.verdict is None else self.verdict.deadline


def health_of(record: GroupRecord, spec: VolumeSpec) -> str:
    """Return the health word of a group that has a serving primary."""
    if spec.deleting:
        return "deleting"
    if record.access is Access.READ_ONLY:
        return "read-only"
    if record.access is not Access.READ_WRITE:
        return "suspended"
    others = [m for m in record.members if m.copy != record.primary]
    in_sync = sum(1 for m in others if m.state is CopyState.IN_SYNC)
    if in_sync >= spec.replicas:
        return "healthy"
    syncing = sum(1 for m in others if m.state is CopyState.SYNCING)
    return "syncing" if in_sync + syncing >= spec.replicas else "degraded"
