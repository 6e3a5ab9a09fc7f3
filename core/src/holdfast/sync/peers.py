"""Heartbeats between nodes, and the leases that they renew (R5).

One heartbeat goes from a node to each node that holds an in-sync copy of a group whose primary is
here; it renews the leases of all those groups at once, so that a thousand idle volumes cost no more
than one. The *lease set* names the groups and their epochs; it travels when it changes, and its
version with every beat. The answer lists the groups that the receiver does not grant.

Safety, in one paragraph. A holds a lease on B for (volume, epoch) until `lease_s` after the moment at
which A *sent* the last beat that B answered without refusing that group. B tries to take over only
`lease_s + margin_s` after it *received* the last beat that named the group at an epoch not below its
own, which is later; and once B has decided to, it refuses. Each side uses its own monotonic clock for
one interval of a few seconds; only a difference in rate of `margin_s / lease_s` could confuse them.

A node may spread its copies over several *workers*, processes that live and die apart. Then each end of
the paragraph above is a process: heartbeats go from the worker that runs the primary to the worker that
keeps the copy (a *seat*), and a promise counts only if that very process has given it. A beat that
reaches another worker than the copy's is refused there, because nobody there follows the group; so a
wrong idea of who keeps what costs a lease and never makes one.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

from holdfast.messages import Heartbeat, HeartbeatAnswer
from holdfast.units import Epoch, NodeName, VolumeId

NEVER = float("-inf")

Seat = tuple[NodeName, int]
"""A node and the number of one of its workers; 0 where a node is one process."""


@define
class Timing:
    """The intervals of failure detection, in seconds."""

    heartbeat_s: float = 0.5
    lease_s: float = 2.0
    margin_s: float = 1.0
    ack_timeout_s: float = 8.0
    """For a copy whose heartbeats live but whose acks stand still; twice this for the last one."""
    gone_s: float = 0.25
    """A copy whose process refuses connections for this long is lost."""


@define
class _Outgoing:
    """What we send to one node as primary of some groups."""

    version: int = 0
    leases: dict[VolumeId, tuple[Epoch, int]] = field(factory=dict)
    """Volume to (epoch, the version of the set that first had it)."""
    number: int = 0
    sent: dict[int, float] = field(factory=dict)
    answered_at: float = NEVER
    """When the last answered beat was sent."""
    away_until: float = NEVER
    """When a beat went out again after this process was away, and had asked nothing."""
    answered_version: int = -1
    told_version: int = -1
    stall_s: float = 0.0
    """What it last said of its slowest disk."""
    refused: dict[VolumeId, Epoch] = field(factory=dict)
    connected: bool = False
    due_at: float = NEVER

    def leave(self, volume: VolumeId) -> None:
        """Take a group out of the lease set."""
        del self.leases[volume]
        self.refused.pop(volume, None)
        self.version += 1


@define
class _Incoming:
    """What a node has told us as primary of some groups."""

    session: str = ""
    heard_at: float = NEVER
    version: int = -1
    leases: dict[VolumeId, Epoch] = field(factory=dict)
    until: dict[VolumeId, float] = field(factory=dict)
    """When a volume that left the set was last named."""
    before: float = NEVER
    """When the process before this one was last heard."""


def _only_worker(_node: NodeName, _volume: VolumeId) -> int:
    return 0


@define
class Peers:
    """All heartbeats of one node. Methods take the monotonic time as `now`."""

    node: NodeName
    timing: Timing = field(factory=Timing)
    worker_of: Callable[[NodeName, VolumeId], int] = _only_worker
    """Which worker of a node keeps its copy of a volume."""
    changed: bool = False
    """A lease set has changed and a beat is due at once; whoever sends the beats clears it."""
    _outgoing: dict[Seat, _Outgoing] = field(factory=dict)
    _incoming: dict[Seat, _Incoming] = field(factory=dict)
    _stalls: dict[VolumeId, float] = field(factory=dict)
    """How long the disks of our copies have answered nothing, where that is worth telling."""
    _follows: dict[VolumeId, tuple[Epoch, NodeName | None]] = field(factory=dict)

    # -- disks --------------------------------------------------------------------------------

    def on_stall(self, volume: VolumeId, for_s: float) -> None:
        """The disk of our copy of `volume` has answered nothing for so long; 0: it does again."""
        if for_s:
            self._stalls[volume] = for_s
        else:
            self._stalls.pop(volume, None)

    @property
    def stall_s(self) -> float:
        """How long the slowest of our disks has answered nothing; what heartbeats tell."""
        return max(self._stalls.values(), default=0.0)

    def stall_of(self, node: NodeName, volume: VolumeId) -> float:
        """Return what the keeper of `node`'s copy last said of its slowest disk."""
        peer = self._outgoing.get(self._seat(node, volume))
        return 0.0 if peer is None else peer.stall_s

    # -- as primary ---------------------------------------------------------------------------

    def _seat(self, node: NodeName, volume: VolumeId) -> Seat:
        return node, self.worker_of(node, volume)

    def grant(self, node: NodeName, volume: VolumeId, epoch: Epoch) -> None:
        """Ask `node` to renew our lease on (volume, epoch) from now on."""
        peer = self._outgoing.setdefault(self._seat(node, volume), _Outgoing())
        have = peer.leases.get(volume)
        if have is None or have[0] != epoch:
            peer.version += 1
            peer.leases[volume] = (epoch, peer.version)
            peer.refused.pop(volume, None)
            peer.due_at = NEVER
            self.changed = True

    def revoke(self, volume: VolumeId, *, keep: frozenset[NodeName] = frozenset()) -> None:
        """Ask no node but those in `keep` to renew our lease on `volume` any longer."""
        kept = {self._seat(node, volume) for node in keep}
        for seat, peer in self._outgoing.items():
            if seat not in kept and volume in peer.leases:
                peer.leave(volume)

    def reseat(self) -> None:
        """Ask anew for the leases of copies that other workers of their nodes keep by now."""
        for (node, worker), peer in list(self._outgoing.items()):
            for volume, (epoch, _) in list(peer.leases.items()):
                if self.worker_of(node, volume) != worker:
                    peer.leave(volume)
                    self.grant(node, volume, epoch)

    def valid_until(self, node: NodeName, volume: VolumeId) -> float:
        """Return until when `node` has promised not to take over `volume`; -inf: no promise."""
        peer = self._outgoing.get((node, self.worker_of(node, volume)))
        if peer is None:
            return NEVER
        lease = peer.leases.get(volume)
        if lease is None or volume in peer.refused or lease[1] > peer.answered_version:
            return NEVER
        return peer.answered_at + self.timing.lease_s

    def silent_since(self, node: NodeName, volume: VolumeId, now: float) -> float:
        """Return since when the keeper of the copy has answered no beat; -inf: for ever.

        A process that was away itself, stopped or without processor time, has asked nothing and read
        nothing: that silence is its own. What it returns leaves `margin_s` for an answer before the
        silence is longer than `lease_s`; once for each answer, so that one that is away again and
        again does not wait for the dead.
        """
        peer = self._outgoing.get(self._seat(node, volume))
        if peer is None:
            return NEVER
        back_at = now if self._was_away(peer, now) else peer.away_until
        return max(peer.answered_at, back_at + self.timing.margin_s - self.timing.lease_s)

    def _was_away(self, peer: _Outgoing, now: float) -> bool:
        """Whether a beat is late by more than there is between two, and nothing has excused it yet."""
        is_late = NEVER < peer.due_at < now - self.timing.heartbeat_s
        return is_late and peer.connected and peer.away_until <= peer.answered_at

    def targets(self) -> tuple[Seat, ...]:
        """Return to whom a peer link is wanted."""
        return tuple(seat for seat, peer in self._outgoing.items() if peer.leases)

    def on_connected(self, seat: Seat) -> None:
        """A peer link to `seat` stands."""
        peer = self._outgoing.setdefault(seat, _Outgoing())
        peer.connected = True
        peer.told_version = -1
        peer.sent.clear()
        peer.due_at = NEVER

    def on_disconnected(self, seat: Seat) -> None:
        """The peer link to `seat` is gone; promises already made run on."""
        peer = self._outgoing.get(seat)
        if peer is not None:
            peer.connected = False
            peer.sent.clear()

    def due(self, now: float) -> list[tuple[Seat, Heartbeat]]:
        """Return the heartbeats to send now."""
        beats = []
        for seat, peer in self._outgoing.items():
            if not peer.connected or not peer.leases or peer.due_at > now:
                continue
            if self._was_away(peer, now):
                peer.away_until = now
            peer.due_at = now + self.timing.heartbeat_s
            peer.number += 1
            peer.sent[peer.number] = now
            leases = None
            if peer.told_version != peer.version:
                leases = tuple((volume, lease[0]) for volume, lease in peer.leases.items())
                peer.told_version = peer.version
            beats.append((seat, Heartbeat(peer.number, peer.version, leases, self.stall_s)))
        return beats

    def next_due(self) -> float:
        """Return when `due` will have something; +inf: not until something changes."""
        times = [p.due_at for p in self._outgoing.values() if p.connected and p.leases]
        return min(times, default=float("inf"))

    def on_answer(self, seat: Seat, answer: HeartbeatAnswer) -> list[tuple[VolumeId, Epoch]]:
        """Take an answer; return the groups that were newly refused and the epoch known there."""
        peer = self._outgoing.get(seat)
        sent_at = None if peer is None else peer.sent.pop(answer.number, None)
        if peer is None or sent_at is None:
            return []
        for number in [n for n in peer.sent if n < answer.number]:
            del peer.sent[number]
        if answer.version < 0:
            peer.told_version = -1
            peer.due_at = NEVER
            return []
        refused = {
            volume: epoch
            for volume, epoch in answer.refused
            if volume in peer.leases and peer.leases[volume][1] <= answer.version
        }
        news = [(v, e) for v, e in refused.items() if peer.refused.get(v) != e]
        peer.refused = refused
        peer.stall_s = answer.stall_s
        peer.answered_at = max(peer.answered_at, sent_at)
        peer.answered_version = max(peer.answered_version, answer.version)
        return news

    # -- as the node of other copies ------------------------------------------------------------

    def follow(self, volume: VolumeId, epoch: Epoch, primary_node: NodeName | None) -> None:
        """Say whom the local copy of `volume` follows; None: nobody (it is a candidate, or fenced)."""
        self._follows[volume] = (epoch, primary_node)

    def unfollow(self, volume: VolumeId) -> None:
        """There is no local copy of `volume` any longer."""
        self._follows.pop(volume, None)
        self._stalls.pop(volume, None)

    def on_heartbeat(
        self, node: NodeName, session: str, beat: Heartbeat, now: float, worker: int = 0
    ) -> HeartbeatAnswer:
        """Take a heartbeat that a worker of `node` has sent and return its answer."""
        seat = (node, worker)
        peer = self._incoming.setdefault(seat, _Incoming())
        if peer.session != session:
            before = max(peer.before, peer.heard_at)
            peer = self._incoming[seat] = _Incoming(session=session, before=before)
        if beat.leases is not None:
            leases = dict(beat.leases)
            for volume in peer.leases.keys() - leases.keys():
                peer.until[volume] = peer.heard_at
            peer.leases = leases
            peer.version = beat.version
        if peer.version != beat.version:
            return HeartbeatAnswer(beat.number, -1, (), self.stall_s)
        peer.heard_at = now
        refused = []
        for volume, epoch in peer.leases.items():
            mine = self._follows.get(volume)
            if mine is None:
                refused.append((volume, Epoch(0)))
            elif epoch < mine[0] or (epoch == mine[0] and mine[1] != node):
                refused.append((volume, mine[0]))
        return HeartbeatAnswer(beat.number, beat.version, tuple(refused), self.stall_s)

    def heard_at(self, volume: VolumeId) -> float:
        """Return when the primary that the local copy of `volume` follows was last heard."""
        epoch, primary_node = self._follows.get(volume, (Epoch(0), None))
        heard_at = NEVER
        # Of whichever of its workers: whom we believe to run the primary may be out of date.
        for (node, _), peer in self._incoming.items():
            if node == primary_node:
                named = peer.leases.get(volume)
                until = peer.until.get(volume, NEVER)
                at = peer.heard_at if named is not None and named >= epoch else until
                heard_at = max(heard_at, at)
        return heard_at

    def promised_at(self, volume: VolumeId) -> float:
        """Return when the primary that the local copy of `volume` follows was last given a promise.

        Not before that, whichever process of its node it was given to.
        """
        _, primary_node = self._follows.get(volume, (Epoch(0), None))
        before = [peer.before for (node, _), peer in self._incoming.items() if node == primary_node]
        return max(self.heard_at(volume), *before) if before else NEVER
