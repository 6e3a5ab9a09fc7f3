"""What may be seen of a site from outside; the search looks at nothing else of it."""

from __future__ import annotations

from attrs import frozen

from holdfast.model import Access
from holdfast.sync.leg import Phase
from holdfast.sync.member import GroupMember
from holdfast.sync.peers import NEVER, Peers
from holdfast.sync.roles import Role
from holdfast.testing.explorer.site import NOW, VOLUME, Shape, Site
from holdfast.testing.simulation.disk import ZERO_BLOCK, CopyDisk
from holdfast.testing.simulation.history import value_of
from holdfast.units import BLOCK_BYTES, CopyId, Epoch, NodeName


@frozen
class LegFacts:
    """What the world needs to know of a leg."""

    node: NodeName
    retries: bool
    """Closed, and it waits before it tries again."""
    gone: bool
    """The copy's process has refused connections."""
    lost: bool
    """It has had no stream for a while."""
    waits: bool
    """The copy owes an answer."""
    leased: bool
    """The copy's promise not to take over holds."""
    wanted: bool
    """Heartbeats are to go there."""
    beats: bool
    """One that goes there would change something."""
    in_sync: bool
    heard: bool
    """Its silence is not long enough yet."""
    reads: bool
    """It is to go, and could still be answering reads by itself."""


@frozen
class Facts:
    """What may be seen of a site from outside; `checks.py` and `world.py` read nothing else."""

    running: bool
    role: str
    epoch: int
    version: int
    process: str
    follows: NodeName | None
    may_stand: bool
    """A replica that may take over, and waits until its promises are over."""
    data: int
    metadata: int
    beside: tuple[str, ...]
    legs: tuple[LegFacts, ...]
    holds: tuple[int, ...]
    """What each block of the copy has: the number of a write, or 0."""
    readable: tuple[int | None, ...] | None
    """What a read of each block would be answered with at once; None: no read is answered."""
    serving: bool
    knows: bool
    """It holds itself for possibly different from other in-sync copies."""
    maps: tuple[CopyId, ...]
    """Absent copies of which it knows that they have missed something."""
    kept: tuple[CopyId, ...]
    """Absent copies of which it keeps a map at all."""
    tainted: bool


def facts_of(site: Site, shape: Shape) -> Facts:
    """Look at a site."""
    disk, member, peers = site.disk, site.member, site.peers
    holds = tuple(_value(disk, block) for block in range(shape.blocks))
    if member is None or peers is None:
        return Facts(
            running=False,
            role="",
            epoch=int(disk.superblock.epoch),
            version=0,
            process="",
            follows=None,
            may_stand=False,
            data=0,
            metadata=0,
            beside=(),
            legs=(),
            holds=holds,
            readable=None,
            serving=False,
            knows=bool(disk.marked),
            maps=(),
            kept=(),
            tainted=disk.tainted,
        )
    ctx, primary = member.ctx, member.primary
    follows = peers._follows.get(VOLUME, (Epoch(0), None))[1]  # noqa: SLF001
    return Facts(
        running=True,
        role=member.role.value,
        epoch=int(ctx.epoch),
        version=ctx.version,
        process=ctx.process,
        follows=follows,
        may_stand=(
            member.role is Role.REPLICA
            and member.candidacy.may_promote()
            and member.candidacy.stand_at() > NEVER
        ),
        data=len(site.data),
        metadata=len(site.metadata),
        beside=tuple(type(effect).__name__ for effect, _ in site.beside),
        legs=_legs(member, peers),
        holds=holds,
        readable=_readable(member, holds),
        serving=primary is not None and primary.serving,
        knows=bool(ctx.disk.suspects()),
        maps=tuple(copy for copy, bitmap in ctx.absent.items() if bitmap.any()),
        kept=tuple(ctx.absent),
        tainted=disk.tainted,
    )


def _value(disk: CopyDisk, block: int) -> int:
    value = value_of(disk.cache.get(block, ZERO_BLOCK))
    assert isinstance(value, int)
    return value


def _legs(member: GroupMember, peers: Peers) -> tuple[LegFacts, ...]:
    if member.primary is None:
        return ()
    wanted = {node for node, _ in peers.targets()}
    return tuple(
        LegFacts(
            node=leg.node,
            retries=leg.phase is Phase.CLOSED and leg.retry_at > NOW.mono,
            gone=leg.gone_since == NOW.mono,
            lost=leg.lost_since == NOW.mono,
            waits=bool(leg.unacked or (leg.job is not None and leg.job.asking))
            and leg.progress_at == NOW.mono,
            leased=peers.valid_until(leg.node, VOLUME) > NOW.mono,
            wanted=leg.node in wanted,
            beats=leg.node in wanted
            and (peers.valid_until(leg.node, VOLUME) <= NOW.mono or _untold(peers, leg.node)),
            in_sync=leg.in_sync,
            heard=leg.required_since == NOW.mono,
            reads=leg.reads_ended and leg.reads_until > NEVER,
        )
        for leg in member.primary.legs.values()
    )


def _untold(peers: Peers, node: NodeName) -> bool:
    outgoing = peers._outgoing[node, 0]  # noqa: SLF001
    return outgoing.told_version != outgoing.version


def _readable(member: GroupMember, holds: tuple[int, ...]) -> tuple[int | None, ...] | None:
    """Return what reads would be answered with at once: the rules of `PrimaryRole`, asked of it."""
    primary = member.primary
    if primary is None or not primary.serving or primary.stopped:
        return None
    if primary.lease_until() <= NOW.mono or member.ctx.record.access is not Access.READ_WRITE:
        return None
    busy = {
        block
        for sequence, offset, length in member.ctx.disk.recent()
        if sequence > primary.commit
        for block in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1)
    }
    return tuple(None if block in busy else value for block, value in enumerate(holds))
