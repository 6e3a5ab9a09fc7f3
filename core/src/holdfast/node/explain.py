"""Why a volume is as it is: what happened, what is being done, what comes next, what would help.

Everything is derived from the specification, the group record, the nodes that live and, where the
primary runs, its machine; nothing is remembered for the sake of explaining. What only the machine
knows (how far a sync is, the verdict of the policy, why no node was found) is left out rather than
guessed when the machine cannot be asked, and `told_by` says which of the two it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from attrs import define, field

from holdfast.errors import FaultReason
from holdfast.interfaces.policy import Policy, Verdict
from holdfast.model import Access, CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.node.explain_words import FAULTS, sync_words
from holdfast.node.service import Json
from holdfast.node.status import volume_status
from holdfast.sync.healing import leaving, missing_count, view_of
from holdfast.sync.leg import Leg, Phase
from holdfast.sync.member import GroupMember
from holdfast.sync.peers import Timing
from holdfast.sync.roles import Role
from holdfast.units import CHUNK_BYTES, MIB, NodeName, counted, format_size

FULL_BYTES = 64 * MIB
"""A node that has less room left is told of."""
LOST_MAX = 10
"""Unreadable chunks that are told one by one."""
_STICKY = frozenset({Access.READ_ONLY, Access.ERROR})
_SHORT = frozenset({Access.READ_ONLY, Access.SUSPENDED, Access.ERROR, Access.NONE})


def explain(
    spec: VolumeSpec,
    record: GroupRecord | None,
    alive: Mapping[NodeName, NodeRecord],
    member: GroupMember | None,
    policy: Policy,
    events: Sequence[Json] = (),
    now: float | None = None,
    *,
    nodes_known: int = 0,
    silent: bool = False,
) -> Json:
    """Return the explanation of a volume's state.

    Args:
        spec: Its specification.
        record: Its group record; None while it is being made.
        alive: The nodes whose leases live.
        member: The machine of the copy that the record calls primary, if it is in this process.
        policy: The volume's policy.
        events: The volume's events, oldest first; some moments are known from nowhere else.
        now: Unix seconds; None: this moment.
        silent: The primary's node was asked and did not answer, whatever its lease says.
        nodes_known: How many nodes the cluster knows; 0: not known.

    Returns:
        `name`, `health`, `access`, `since` (Unix seconds or None), `told_by` (`primary` or
        `record`), and lists: `why`, `doing` of sentences, `next` of `at` (Unix seconds or None) and
        `sentence`, `help` of `sentence` and `command` (may be empty).
    """
    story = _Story(spec, alive, member, policy, events, time.time() if now is None else now)
    story.nodes_known, story.silent = nodes_known, silent
    status = volume_status(spec, record, dict(alive), member, silent=silent)
    if record is None:
        story.why.append("The volume is being made: no group record has been written yet.")
        story.since = spec.created_at or None
    elif spec.deleting:
        story.why.append("The volume is being deleted.")
    elif status["health"] == "offline":
        story.tell_offline(record)
    else:
        story.tell_serving(record)
    return {
        "name": spec.name,
        "health": status["health"],
        "access": status["access"],
        "policy": spec.policy,
        "since": story.since,
        "told_by": "record" if member is None else "primary",
        "why": story.why,
        "doing": story.doing,
        "next": sorted(story.next, key=lambda each: each["at"] or float("inf")),
        "help": story.help,
    }


@define
class _Story:
    """The explanation in the making."""

    spec: VolumeSpec
    alive: Mapping[NodeName, NodeRecord]
    member: GroupMember | None
    policy: Policy
    events: Sequence[Json]
    now: float
    nodes_known: int = 0
    silent: bool = False
    since: float | None = None
    why: list[str] = field(factory=list)
    doing: list[str] = field(factory=list)
    next: list[Json] = field(factory=list)
    help: list[Json] = field(factory=list)

    # -- nobody serves ----------------------------------------------------------------------------

    def tell_offline(self, record: GroupRecord) -> None:
        """No primary serves: who could, and what keeps them from it."""
        primary = record.primary_member
        member = self.member
        if member is not None and member.role is Role.PRIMARY:
            self._tell_taking_over(record, member)
            return
        others = [m for m in record.members if m.copy != record.primary]
        if member is not None and member.role is Role.FAILED:
            self.why.append(
                f"The disk of the primary's node {primary.node} failed: {member.failure.rstrip('.')}."
            )
            self.since = self._event_at("disk-failed")
            self._next("The copy is opened anew every few seconds, in case the disk is well again.")
        elif self.silent:
            self.why.append(f"The primary's node {primary.node} does not answer.")
        elif primary.node in self.alive or member is not None:
            self.why.append(
                f"The copy on {primary.node} is primary by the group record, but does not serve."
            )
        else:
            self.why.append(f"The primary's node {primary.node} does not run.")
        heirs = [m for m in others if m.state is CopyState.IN_SYNC and m.node in self.alive]
        sound = [m for m in heirs if not m.suspect]
        if sound:
            timing = Timing() if member is None else member.ctx.peers.timing
            silence = timing.lease_s + timing.margin_s
            self.doing.append(
                f"The in-sync copy on {_names(sound)} takes over once {primary.node} has been "
                f"silent for {silence:g} s; consumers wait and see no error."
            )
            return
        self._tell_nobody_left(record, heirs)

    def _tell_taking_over(self, record: GroupRecord, member: GroupMember) -> None:
        primary = member.primary
        assert primary is not None
        self.since = self._event_at("standing")
        self.why.append(
            f"{record.primary_member.node} has taken over (epoch {record.epoch}) and makes the "
            "recent writes equal on every in-sync copy before it serves, so that what was read once stays."
        )
        for leg in primary.legs.values():
            if not leg.in_sync or leg.equal:
                continue
            if leg.phase in {Phase.READY, Phase.STREAMING}:
                left = leg.job.left_bytes if leg.job is not None else 0
                self.doing.append(f"Comparing with {leg.node}: at most {format_size(left)} to go.")
            else:
                patience = member.ctx.peers.timing.lease_s
                self.doing.append(
                    f"Waiting for the copy on {leg.node}; it is dropped when its node has been "
                    f"silent for {patience:g} s."
                )
        self._tell_store(member)

    def _tell_nobody_left(self, record: GroupRecord, suspects: Sequence[Member]) -> None:
        """No in-sync copy may take over; only the return of one helps."""
        holders = [m for m in record.members if m.state is CopyState.IN_SYNC]
        # A node whose lease cannot be renewed, for want of the store, runs all the same if it is this one.
        here = None if self.member is None else self.member.ctx.copy
        away = [m for m in holders if m.node not in self.alive and m.copy != here]
        for entry in suspects:
            self.why.append(
                f"The machine of {entry.node} restarted without a clean stop, so its copy may lack "
                f"acknowledged writes that nobody had flushed; {_names(away)} may still hold them."
            )
        if away:
            only = "Only the copy" if len(holders) == 1 else "Only the copies"
            self.why.append(
                f"{only} on {_names(holders)} held every acknowledged write, so no other may serve."
            )
            who = "it" if len(holders) == 1 else "one of them"
            self._next(f"The volume serves again as soon as {who} is back, losing nothing.")
            for entry in away:
                self._help(f"Start {entry.node}.", f"holdfast node start {entry.node}")
            for entry in suspects:
                self._help(
                    f"Or go on with the copy on {entry.node}, if the other will never be back, and "
                    "lose what was not flushed.",
                    f"holdfast volume promote {self.spec.name} {entry.node} --force",
                )
        elif not self.next:
            self._next(
                f"The group is taken up again as soon as the copy on {_names(holders)} is open and "
                "the state store answers."
            )

    # -- somebody serves --------------------------------------------------------------------------

    def tell_serving(self, record: GroupRecord) -> None:
        """A primary serves: what is missing, what is done about it, what the policy will do."""
        missing = [m for m in record.members if m.state is not CopyState.IN_SYNC]
        if not missing and len(record.members) > self.spec.replicas:
            everything = (
                "All copies are" if len(record.members) > 1 else "The only declared copy is"
            )
            self.why.append(f"{everything} in sync.")
            self.since = max((m.since for m in record.members), default=0.0) or None
        for entry in missing:
            self._tell_missing(record, entry)
        known = [m.since for m in missing if m.since]
        if record.grace_started_at is not None:
            known.append(record.grace_started_at)
        if known:
            self.since = min(known)
        self._tell_alone(record, missing)
        self._tell_shortage(record)
        self._tell_moves(record)
        self._tell_access(record)
        self._tell_room(record)
        if self.member is not None:
            self._tell_growth(self.member)
            self._tell_disks(self.member)
            self._tell_store(self.member)

    def _tell_missing(self, record: GroupRecord, entry: Member) -> None:
        leg = self._leg(entry)
        if entry.state is CopyState.SYNCING:
            if entry.node not in self.alive and (leg is None or leg.phase is not Phase.STREAMING):
                self.why.append(
                    f"The copy on {entry.node} was being synced; its node does not run."
                )
                self._help(f"Start {entry.node}.", f"holdfast node start {entry.node}")
                return
            self.why.append(f"The copy on {entry.node} is not in sync yet.")
            self.doing.append(sync_words(entry, leg))
            return
        start = f"holdfast node start {entry.node}"
        fault = f": {FAULTS[entry.reason.value]}" if entry.reason else ""
        self.why.append(f"The copy on {entry.node} is offline{fault}.")
        if entry.node in self.alive:
            self.doing.append(
                f"The primary tries to reach the copy on {entry.node}; once there, it gets what it "
                "lacks."
            )
            if entry.reason is FaultReason.LINK_LOST:
                self._help(f"If {entry.node} does not run, start it.", start)
        else:
            self._next(
                f"If {entry.node} returns, only what changed since is sent to it; if a replacement "
                "is being synced by then, the copy with the smaller difference is kept."
            )
            self._help(f"Start {entry.node}.", start)
        patience = self.spec.member_missing_timeout_s
        if patience and self.now - entry.since < patience:
            at = entry.since + patience
            self._next(f"If {entry.node} is not back by then, a replacement is made elsewhere.", at)
            evict = f"holdfast volume evict {self.spec.name} {entry.node}"
            self._help(f"Do not wait for {entry.node}: replace its copy now.", evict)

    def _tell_alone(self, record: GroupRecord, missing: Sequence[Member]) -> None:
        """A primary that hears none of the copies, though their nodes live: which side is cut off?"""
        lost = [m for m in missing if m.reason is FaultReason.LINK_LOST and m.node in self.alive]
        legs = [leg for m in lost if (leg := self._leg(m)) is not None and leg.gone_since is None]
        if len(record.in_sync) > 1 or not legs or len(legs) != len(missing):
            return  # Or a process is known to be gone, which is no matter of networks.
        here = record.primary_member.node
        self.why.append(
            f"{here} goes on alone: it does not reach {_names(lost)}, alive by the state store. "
            f"Consumers on nodes that do not reach {here} wait, for no other copy has every "
            "acknowledged write."
        )
        url = f"holdfast volume url {self.spec.name} --node {here}"
        self._help(f"Mend the network of {here}; until then use the volume there.", url)

    def _tell_shortage(self, record: GroupRecord) -> None:
        """Copies that are declared and that nobody makes."""
        short = missing_count(record, self.spec, self.alive, self.now)
        if short <= 0:
            return
        copies = "One copy" if short == 1 else f"{short} copies"
        healing = None if self.member is None else self.member.healing
        placement = None if healing is None else healing.placement
        if placement is None or placement.node is not None:
            self.doing.append(f"{copies} still to be placed.")
            return
        self.why.append(f"No node can take {copies.lower()} that should be there.")
        for node, reason in sorted(placement.reasons.items()):
            self.why.append(f"Node {node} {reason}.")
        self._next("A replacement is made as soon as a node can take one.")
        taken = {m.node for m in record.members}
        for node in sorted(self.alive):
            if node not in taken and self.alive[node].cordoned:
                self._help(f"Let {node} take copies.", f"holdfast node uncordon {node}")
        grow = f"holdfast up --detach --nodes {self.nodes_known + 1}" if self.nodes_known else ""
        self._help("Add a node, or make room on one.", grow)
        have = len(record.members) - 1
        if have < self.spec.replicas:
            fewer = f"holdfast volume set {self.spec.name} --replicas {have}"
            self._help("Or declare fewer replicas.", fewer)

    def _tell_room(self, record: GroupRecord) -> None:
        """Nodes whose disks are full: their copies fail, and come back, with each write."""
        for entry in record.members:
            node = self.alive.get(entry.node)
            if node is not None and node.capacity_bytes and node.free_bytes < FULL_BYTES:
                left = format_size(node.free_bytes)
                self.why.append(
                    f"{entry.node} has {left} left for data; what needs more fails there."
                )
                self._help(f"Make room on {entry.node}, or move the copy to another node.")

    def _tell_disks(self, member: GroupMember) -> None:
        """Disks that answer nothing, and what no disk can read."""
        ctx, legs = member.ctx, () if member.primary is None else member.primary.legs.values()
        volume, silent = ctx.record.volume, {ctx.node: ctx.stalled_s}
        silent |= {leg.node: ctx.peers.stall_of(leg.node, volume) for leg in legs if leg.in_sync}
        for node, for_s in silent.items():
            if for_s:
                self.why.append(f"A disk of {node} has answered nothing for {for_s:.0f} s.")
                goes_on = "it is waited for"
                if len(silent) > 1:
                    goes_on = f"the copy there is left out after {ctx.peers.timing.ack_timeout_s:g}"
                    goes_on += " s without an answer, the last but one after twice that"
                self._next(f"If it goes on, {goes_on}.")
        for chunk in sorted(member.primary.lost if member.primary else ())[:LOST_MAX]:
            at = format_size(chunk * CHUNK_BYTES)
            self.why.append(f"64 KiB at {at} cannot be read on {ctx.node}; no in-sync copy has it.")
            self._help("Write what it held anew, from a backup; until then it reads as an error.")
            zero = f"--offset {chunk * CHUNK_BYTES} --length {CHUNK_BYTES}"
            self._help(f"Or give up {at}.", f"holdfast volume zero {self.spec.name} {zero}")

    def _tell_moves(self, record: GroupRecord) -> None:
        going = leaving(record, self.alive)
        for entry in record.members:
            if entry.copy not in going:
                continue
            node = self.alive.get(entry.node)
            drained = node is not None and node.draining
            why = "its node is being drained" if drained else "an operator moves it"
            self.doing.append(
                f"The copy on {entry.node} is to go ({why}), as soon as enough others are in sync."
            )

    def _tell_access(self, record: GroupRecord) -> None:
        """What the policy says now, and what it will say."""
        verdict = self._verdict(record)
        if record.access in _SHORT:
            self.why.append(f"Access is {record.access.value}: {verdict.reason}")
            self.since = self._event_at("access") or self.since
            self._tell_way_back(record, verdict)
        elif verdict.below:
            self.why.append(verdict.reason)
        if verdict.deadline is not None and verdict.access is record.access:
            after = self.policy.decide(
                view_of(record, self.spec, attached_anew=False), verdict.deadline
            )
            if after.access is not record.access:
                self._next(
                    "Unless enough replicas are online by then, access becomes "
                    f"{after.access.value}.",
                    verdict.deadline,
                )
                self._tell_milder(record)

    def _tell_way_back(self, record: GroupRecord, verdict: Verdict) -> None:
        view = view_of(record, self.spec, attached_anew=True)
        if self.policy.decide(view, self.now).access is Access.READ_WRITE:
            if verdict.access is record.access:
                where = record.attached_node or "its consumer"
                self._help(
                    f"Attach it anew: detach it at {where} (unmount, close every connection), then "
                    "attach it again."
                )
                if "auto_resume" in self.spec.policy_options:
                    self._help(
                        "Or let it resume by itself.",
                        f"holdfast volume set {self.spec.name} --set auto_resume=true",
                    )
            else:
                self.doing.append("Enough replicas are online; writing is being resumed.")
            return
        least = self.policy.least(self.spec.replicas)
        self._next(
            f"Writing can resume with {counted(least, 'replica')} online; now {view.online}."
        )
        self._tell_milder(record)

    def _tell_milder(self, record: GroupRecord) -> None:
        online = view_of(record, self.spec, attached_anew=False).online
        if online < self.policy.least(self.spec.replicas) and self.spec.policy != "alwayson":
            anew = ", and then attach it anew" if record.access in _STICKY else ""
            self._help(
                f"Or accept writes with fewer replicas{anew}: one more loss may then lose data.",
                f"holdfast volume set {self.spec.name} --policy threshold --set threshold={online}",
            )

    def _tell_growth(self, member: GroupMember) -> None:
        served = member.ctx.size_bytes
        if self.spec.size_bytes <= served or member.primary is None:
            return
        small = [
            leg.node
            for leg in member.primary.legs.values()
            if leg.in_sync and leg.size_bytes < self.spec.size_bytes
        ]
        waits = f"; waiting for the copy on {' and '.join(small)}" if small else ""
        self.doing.append(
            f"The volume grows from {format_size(served)} to {format_size(self.spec.size_bytes)}"
            f"{waits}."
        )

    def _tell_store(self, member: GroupMember) -> None:
        if member.waits_for_store:
            self.why.append(
                "The state store does not answer, so a change of the group waits for it; what "
                "needs no change goes on."
            )

    # -- helpers ----------------------------------------------------------------------------------

    def _verdict(self, record: GroupRecord) -> Verdict:
        return self.policy.decide(view_of(record, self.spec, attached_anew=False), self.now)

    def _leg(self, entry: Member) -> Leg | None:
        if self.member is None or self.member.primary is None:
            return None
        return self.member.primary.legs.get(entry.copy)

    def _event_at(self, kind: str) -> float | None:
        """Return when the last event of a kind was noted."""
        return next((float(e["at"]) for e in reversed(self.events) if e["kind"] == kind), None)

    def _next(self, sentence: str, at: float | None = None) -> None:
        self.next.append({"at": at, "sentence": sentence})

    def _help(self, sentence: str, command: str = "") -> None:
        entry = {"sentence": sentence, "command": command}
        if entry not in self.help:
            self.help.append(entry)


def _names(members: Sequence[Member]) -> str:
    names = sorted(m.node for m in members)
    return " or ".join(names) if len(names) < 3 else ", ".join(names[:-1]) + " or " + names[-1]
