"""One node of a small world: the real machines, over the disk of the simulator.

A site carries out the effects of its machines as the pumps do: what concerns this node alone is done
here, the rest is put out for the world. Each input is a function that changes a site and adds to what
it puts out; it knows nothing of other sites.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, field, frozen

from holdfast.interfaces.copy import Superblock
from holdfast.messages import Attach, Heartbeat, HeartbeatAnswer, Replies, SessionOpen
from holdfast.model import CopyState, GroupRecord, NodeRecord, VolumeSpec
from holdfast.sync import events as ev
from holdfast.sync.events import Event, Instant
from holdfast.sync.member import GroupMember
from holdfast.sync.opening import open_member, opened
from holdfast.sync.peers import NEVER, Peers
from holdfast.testing.explorer.labels import EpochMark, Name, VersionMark
from holdfast.testing.simulation.disk import CopyDisk, hash_of
from holdfast.testing.simulation.policies import AlwaysWritable
from holdfast.units import CopyId, Epoch, NodeName, VolumeId
from holdfast.units import Sequence as Position

NOW = Instant(0.0, 0.0)
"""The only time there is."""
VOLUME = VolumeId("v")
CLUSTER = "explored"
Output = tuple[Any, ...]


def policy_of(_spec: VolumeSpec) -> AlwaysWritable:
    """Return the policy of small worlds: no deadline, so no wall clock."""
    return AlwaysWritable()


def _hash_of(data: bytes, _spec: VolumeSpec) -> bytes:
    return hash_of(data)


def copy_name(node: NodeName) -> CopyId:
    """Return the id of the copy on `node`."""
    return CopyId(Name(f"copy-{node}"))


@frozen
class Shape:
    """What all sites of a world have in common."""

    blocks: int
    slow: frozenset[str]
    """Kinds of disk work that take a step of their own: `data`, `metadata`, `reads`, `flushes`."""
    power: bool
    """Whether power may fail: only then does it matter what was flushed."""
    spec: VolumeSpec


@define(eq=False)
class Site:
    """One node: its disk, and the machines of the process that runs on it."""

    name: NodeName
    disk: CopyDisk
    boots: int = 1
    peers: Peers | None = None
    member: GroupMember | None = None
    """None: the process is not running."""
    data: list[ev.ApplyOps] = field(factory=list)
    metadata: list[ev.Effect] = field(factory=list)
    beside: list[tuple[ev.Effect, int]] = field(factory=list)
    """Flushes, reads and hashes under way, with what a flush covers."""


# -- inputs ----------------------------------------------------------------------------------------


def feed(event: Event) -> Callable[[Site, Shape, list[Output]], None]:
    """Return the input that steps the member with `event`."""

    def act(site: Site, shape: Shape, out: list[Output]) -> None:
        _step(site, shape, event, out)

    return act


def accept(hello: Attach | SessionOpen, above: int) -> Callable[..., None]:
    """Return the input of a new link; its id is put out, and lies above `above`."""

    def act(site: Site, shape: Shape, out: list[Output]) -> None:
        assert site.member is not None
        link = max(above, top_link(site.member)) + 1
        out.append(("accepted", link))
        if isinstance(hello, Attach):
            _step(site, shape, ev.AttachReceived(link, hello), out)
        else:
            _step(site, shape, ev.SessionLinked(link, hello), out)

    return act


def start(record: GroupRecord, version: int, process: int) -> Callable[..., None]:
    """Return the input that starts a process of this number, which finds this record in the store."""

    def act(site: Site, shape: Shape, out: list[Output]) -> None:
        disk = site.disk
        boot = Name(f"{site.name}-boot-{site.boots}")
        was_clean, rebooted = disk.superblock.clean, disk.superblock.boot != boot
        disk.save(opened(disk.superblock, boot))
        site.peers = Peers(site.name)
        site.member = open_member(
            node=site.name,
            process=Name(f"{site.name}-{process}"),
            boot=boot,
            superblock=disk.superblock,
            was_clean=was_clean,
            rebooted=rebooted,
            fresh=False,
            marked_regions=sorted(disk.marked),
            dirty_maps=dict(disk.dirty),
            record=record,
            version=VersionMark(version),
            spec=shape.spec,
            peers=site.peers,
            policy_of=policy_of,
            now=NOW.mono,
        )
        site.member.ctx.hash_of = _hash_of
        # Node leases do not run out here: whoever is away is expected back.
        nodes = {m.node: NodeRecord(m.node, m.node, m.node) for m in record.members}
        _step(site, shape, ev.NodesSeen(nodes), out)
        _step(site, shape, ev.Tick(), out)

    return act


def crash(*, applied: bool, power: bool) -> Callable[..., None]:
    """Return the input that ends the process, or the whole machine.

    Args:
        applied: Whether what the disk was about to do has still happened.
        power: Whether everything that was not flushed is lost.
    """

    def act(site: Site, _shape: Shape, _out: list[Output]) -> None:
        if applied:
            for effect in site.data:
                site.disk.apply(effect.ops)
        site.data.clear()
        site.metadata.clear()
        site.beside.clear()
        site.member = site.peers = None
        if power:
            disk = site.disk
            disk.cache = dict(disk.stable)
            disk.log.clear()
            disk.tainted = True
            site.boots += 1

    return act


def apply(site: Site, shape: Shape, out: list[Output]) -> None:
    """The next operations reach the page cache, and the member learns it."""
    effect = site.data.pop(0)
    site.disk.apply(effect.ops)
    _step(site, shape, ev.Applied(effect.through), out)


def save(site: Site, shape: Shape, out: list[Output]) -> None:
    """The next change of metadata is durable."""
    done = _meta(site.disk, site.metadata.pop(0))
    if done is not None:
        _step(site, shape, done, out)


def beside(at: int) -> Callable[..., None]:
    """Return the input that ends the flush, read or hash number `at`."""

    def act(site: Site, shape: Shape, out: list[Output]) -> None:
        effect, mark = site.beside.pop(at)
        _step(site, shape, _looked(site.disk, effect, mark), out)

    return act


def timer(kind: str, node: NodeName) -> Callable[..., None]:
    """Return the input by which a time runs out: what is compared with now lies long ago.

    Args:
        kind: `retry`, `gone`, `lost`, `slow`, `reads` or `lapse` of the leg to `node`; `silence` of the
            primary there; `quiet`: nothing was written for a while.
        node: The other node.
    """

    def act(site: Site, shape: Shape, out: list[Output]) -> None:
        member, peers = site.member, site.peers
        assert member is not None
        assert peers is not None
        if kind == "silence":
            member.replica.heard_since = NEVER
            for incoming in peers._incoming.values():  # noqa: SLF001 (time is set, not told)
                incoming.heard_at = NEVER
                incoming.until.clear()
        elif kind == "quiet":
            queue = member.ctx.disk
            queue._next_clear = 0.0  # noqa: SLF001
            for region, (sequence, _) in queue._touched.items():  # noqa: SLF001
                queue._touched[region] = (sequence, NEVER)  # noqa: SLF001
        else:
            _leg_timer(kind, node, member, peers)
        _step(site, shape, ev.Tick(), out)

    return act


def _leg_timer(kind: str, node: NodeName, member: GroupMember, peers: Peers) -> None:
    assert member.primary is not None
    leg = next(leg for leg in member.primary.legs.values() if leg.node == node)
    if kind == "retry":
        leg.retry_at = 0.0
    elif kind == "gone":
        leg.gone_since = NEVER
    elif kind == "lost":
        leg.lost_since = NEVER
    elif kind == "slow":
        leg.progress_at = NEVER
    elif kind == "reads":
        leg.reads_until = NEVER
    else:
        assert kind == "lapse"
        peers._outgoing[node, 0].answered_at = NEVER  # noqa: SLF001
        leg.required_since = NEVER


def make_beat(node: NodeName) -> Callable[..., None]:
    """Return the input by which a heartbeat for `node` is made."""

    def act(site: Site, _shape: Shape, out: list[Output]) -> None:
        peers = site.peers
        assert peers is not None
        known = peers._outgoing[node, 0]  # noqa: SLF001
        if not known.connected:
            peers.on_connected((node, 0))
        for (other, _), outgoing in peers._outgoing.items():  # noqa: SLF001
            outgoing.due_at = NEVER if other == node else float("inf")
        out.extend(("beat", beat) for _, beat in peers.due(NOW.mono))

    return act


def take_beat(node: NodeName, session: str, beat: Heartbeat) -> Callable[..., None]:
    """Return the input by which a heartbeat of `node` is answered."""

    def act(site: Site, _shape: Shape, out: list[Output]) -> None:
        assert site.peers is not None
        out.append(("answer", site.peers.on_heartbeat(node, session, beat, NOW.mono)))

    return act


def take_answer(node: NodeName, answer: HeartbeatAnswer) -> Callable[..., None]:
    """Return the input by which the answer to a heartbeat arrives."""

    def act(site: Site, shape: Shape, out: list[Output]) -> None:
        assert site.peers is not None
        for _, epoch in site.peers.on_answer((node, 0), answer):
            _step(site, shape, ev.Fenced(epoch), out)

    return act


def top_link(member: GroupMember) -> int:
    """Return the highest id of an accepted link that a member remembers."""
    primary = member.primary
    if primary is None:
        return max(0, member.replica.link or 0)
    waiting = (*primary._writes, *primary._flushes, *primary._reads)  # noqa: SLF001
    links = [link for _, link, _ in waiting] + [link for link, _ in primary._held]  # noqa: SLF001
    return max((0, *links, *primary.attachments.open, *primary.attachments.waiting))


# -- effects ---------------------------------------------------------------------------------------


def _step(site: Site, shape: Shape, event: Event, out: list[Output]) -> None:
    member = site.member
    assert member is not None
    inbox = deque([event])
    while inbox:
        for effect in member.step(inbox.popleft(), NOW):
            done = _carry(site, shape, effect, out)
            if done is not None:
                inbox.append(done)


def _carry(site: Site, shape: Shape, effect: ev.Effect, out: list[Output]) -> Event | None:
    match effect:
        case ev.Send():
            out.append(("send", effect.link, tuple(effect.messages)))
        case ev.ApplyOps():
            if "data" in shape.slow or site.data:
                site.data.append(effect)
                return None
            site.disk.apply(effect.ops)
            return ev.Applied(effect.through)
        case ev.SendReplies():
            assert site.member is not None
            replies = tuple(effect.replies)
            out.append(("reply", int(site.member.ctx.epoch), replies))
            out.append(("send", effect.link, (Replies(replies),)))
        case ev.FlushDisk():
            mark = site.disk.flush_mark()
            if "flushes" in shape.slow:
                site.beside.append((effect, mark))
                return None
            return _looked(site.disk, effect, mark)
        case ev.ReadDisk() | ev.ReadRuns() | ev.HashDisk() | ev.MapDisk():
            if "reads" in shape.slow or site.data:
                site.beside.append((effect, 0))
                return None
            return _looked(site.disk, effect, 0)
        case ev.OpenLink():
            out.append(("open", effect.link, effect.node, effect.hello))
        case ev.CloseLink():
            out.append(("close", effect.link))
        case ev.CompareAndSet():
            out.append(("ask", effect.record, int(effect.version)))
        case ev.ReadRecord():
            out.append(("read",))
        case ev.Note():
            out.append(("note", effect.sentence))
        case ev.RemoveCopy() | ev.Stopped() | ev.Assign() | ev.Verified() | ev.ServeReads():
            raise AssertionError(effect)  # Nothing in a small world asks for these.
        case _:
            if "metadata" in shape.slow or site.metadata:
                site.metadata.append(effect)
                return None
            return _meta(site.disk, effect)
    return None


def _meta(disk: CopyDisk, effect: ev.Effect) -> Event | None:
    match effect:
        case ev.MarkRegions():
            disk.mark(effect.regions)
            return ev.RegionsMarked()
        case ev.SaveSuperblock():
            disk.save(effect.superblock)
            return ev.Saved(effect.token)
        case ev.ClearRegions():
            disk.clear(effect.regions)
        case ev.SaveDirty():
            disk.save_dirty(effect.copy, effect.bits)
        case ev.DropDirty():
            disk.drop_dirty(effect.copy)
        case _:
            raise AssertionError(effect)
    return None


def _looked(disk: CopyDisk, effect: ev.Effect, mark: int) -> Event:
    match effect:
        case ev.FlushDisk():
            disk.flush_done(mark)
            return ev.Flushed(effect.token)
        case ev.ReadDisk():
            return ev.ReadDone(effect.token, disk.read(effect.offset, effect.length))
        case ev.ReadRuns():
            return ev.RunsRead(effect.token, [disk.read(*run) for run in effect.runs])
        case ev.HashDisk():
            return ev.HashesDone(effect.token, disk.tree(effect.level, effect.indexes))
        case ev.MapDisk():
            return ev.MapDone(effect.token, disk.extents())
        case _:
            raise AssertionError(effect)


def new_site(name: NodeName, spec: VolumeSpec, epoch: EpochMark) -> Site:
    """Return a node with an empty copy that was closed in order."""
    disk = CopyDisk(
        spec.size_bytes,
        Superblock(
            cluster=CLUSTER,
            volume=spec.id,
            copy=copy_name(name),
            incarnation=Name(f"{name}/1"),
            boot=Name(f"{name}-boot-1"),
            epoch=Epoch(epoch),
            state=CopyState.IN_SYNC.value,
            durable=Position(0),
            applied=Position(0),
            clean=True,
            size_bytes=spec.size_bytes,
            hash_key=spec.hash_key,
        ),
    )
    return Site(name, disk)
