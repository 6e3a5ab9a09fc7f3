"""The pump of one group member: carries its effects out, and decides nothing.

Everything the machine asks for is started in order: links and the state store here, the copy's own
disk in `disk_work.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, cast

from holdfast.errors import CopyError, HoldfastError, StateConflictError, StateError
from holdfast.interfaces.copy import CopyStore
from holdfast.messages import Attach, Message, Replies, Request
from holdfast.model import GroupRecord, VolumeSpec
from holdfast.node.disk_threads import DiskThreads
from holdfast.node.disk_work import DiskWork, unexpected
from holdfast.node.polling import Polling
from holdfast.sync import events as ev
from holdfast.sync.events import Event, Instant, LinkId
from holdfast.sync.member import GroupMember
from holdfast.sync.roles import Role
from holdfast.units import NodeName, VolumeId

STORE_RETRY_S = 0.25
_new = tuple.__new__  # Half the cost of calling the named tuple.
_monotonic, _wall = time.monotonic, time.time
_log = logging.getLogger("holdfast.node")


class Outlet(Protocol):
    """Where messages on a link go; a transport's link, or a session of this very process."""

    def send(self, messages: Sequence[Message]) -> None:
        """Send in order; never blocks."""
        ...

    def close(self, reason: str = "") -> None:
        """Close after what was sent."""
        ...


class Reader(Outlet, Protocol):
    """The outlet of a link on which a consumer of this node reads from this very copy."""

    def unserved(self, requests: Sequence[Request]) -> None:
        """Take the reads that the copy does not answer."""
        ...


class PumpHost(Protocol):
    """What a pump needs of its node."""

    polling: Polling

    async def read_group(self, volume: VolumeId) -> tuple[GroupRecord | None, int]:
        """Read a group record; raises `StateError`."""
        ...

    async def write_group(self, record: GroupRecord, version: int) -> int:
        """Compare-and-set a group record and return its version.

        Raises:
            StateConflictError: Somebody else wrote first.
            StateError: The store cannot be reached; the write may have taken place.
        """
        ...

    async def dial(self, node: NodeName, hello: Attach, handler: PumpLink) -> Outlet:
        """Open a link to a node; raises `ConnectionRefusedError` or `HoldfastError`."""
        ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine under the node's task group."""
        ...

    def heard(self, pump: Pump) -> None:
        """Leases or roles may have changed."""
        ...

    def note(self, pump: Pump, kind: str, sentence: str) -> None:
        """Keep a line of a volume's history."""
        ...

    def looked(self, pump: Pump) -> None:
        """The member has looked at the time."""
        ...

    def removed(self, pump: Pump) -> None:
        """The copy is superseded; its pump is closed and its data goes."""
        ...

    def failed(self, pump: Pump) -> None:
        """The copy's disk has failed."""
        ...


class PumpLink:
    """The handler of one transport link of a pump: turns callbacks into events.

    While the copy is still being made there is no pump: what arrives meanwhile is kept.
    """

    __slots__ = ("_early", "_id", "_lost", "_pump")

    def __init__(self, pump: Pump | None = None, link: LinkId = 0) -> None:
        """Report what happens on `link` to `pump`, or keep it for `become`."""
        self._pump = pump
        self._id = link
        self._early: list[Message] = []
        self._lost: HoldfastError | None = None

    def become(self, pump: Pump, link: LinkId) -> None:
        """Report to the pump that is there now, all that has happened first."""
        self._pump = pump
        self._id = link
        if self._early:
            self.on_messages(tuple(self._early))
            self._early.clear()
        if self._lost is not None:
            self.on_lost(self._lost)

    def on_messages(self, messages: Sequence[Message]) -> None:
        """Take what has arrived."""
        pump = self._pump
        if pump is None:
            self._early.extend(messages)
            return
        polling = pump.host.polling
        arrived_at = polling.clock()
        pump.feed(_new(ev.Received, (self._id, messages)))
        primary = pump.member.primary
        polling.handled(arrived_at, awaiting=primary is not None and not primary.idle)

    def on_lost(self, error: HoldfastError) -> None:
        """The link is gone."""
        if self._pump is None:
            self._lost = error
        else:
            self._pump.lost(self._id, error.message)


class Pump:
    """Steps one member and carries out what it asks for."""

    def __init__(
        self, host: PumpHost, member: GroupMember, store: CopyStore, threads: DiskThreads
    ) -> None:
        """Begin; the owner feeds a first `Tick`. The threads are those of the copy's disk."""
        self.host = host
        self.member = member
        self.store = store
        self.volume: VolumeId = member.ctx.record.volume
        self.stopped = asyncio.Event()
        self.listeners: dict[int, Callable[[ev.Verified], None]] = {}
        """By token: who waits for a verification."""
        self._loop = asyncio.get_running_loop()
        self._links: dict[LinkId, Outlet] = {}
        self._nodes: dict[LinkId, NodeName] = {}
        """Where the links lead that this end has opened."""
        self._dialling: set[LinkId] = set()
        self._last_link = 0
        self._inbox: deque[Event] = deque()
        self._stepping = False
        self._broken = False
        """A step met something unexpected; the member was told that its copy has failed."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._closed = False
        self._disk = DiskWork(store, threads, self.feed, self._reply, self._fail)
        self._carry: dict[type[Any], Callable[[Any], None]] = {
            ev.ApplyOps: self._disk.apply,
            ev.SendReplies: self._reply,
            ev.ServeReads: self._disk.serve_reads,
            ev.Unserved: self._unserved,
            ev.FlushDisk: self._disk.flush,
            ev.MarkRegions: self._disk.mark,
            ev.ClearRegions: self._disk.clear,
            ev.SaveSuperblock: self._disk.save,
            ev.ReadDisk: self._disk.read,
            ev.ReadRuns: self._disk.read_runs,
            ev.HashDisk: self._disk.hash,
            ev.MapDisk: self._disk.map,
            ev.OpenLink: self._open_link,
            ev.CloseLink: self._close_link,
            ev.CompareAndSet: self._compare_and_set,
            ev.ReadRecord: self._read_record,
            ev.SaveDirty: self._disk.save_dirty,
            ev.DropDirty: self._disk.drop_dirty,
            ev.ResizeDisk: self._disk.resize,
            ev.Note: self._note,
            ev.Assign: self._assign,
            ev.Verified: self._verified,
            ev.RemoveCopy: self._remove,
            ev.Stopped: self._stopped,
        }

    # -- stepping ---------------------------------------------------------------------------------

    def feed(self, event: Event) -> None:
        """Step the member with `event`, and with whatever follows from it at once."""
        inbox = self._inbox
        if self._stepping or self._closed:
            if inbox and type(event) is ev.Applied:
                last = inbox[-1]
                if type(last) is ev.Applied and not last.flushed:
                    # Cumulative: one acknowledgement for all that arrived at once.
                    inbox.pop()
            inbox.append(event)
            return
        self._stepping = True
        carry, links = self._carry, self._links
        member = self.member
        inbox.append(event)
        try:
            while inbox:
                now = _new(Instant, (_monotonic(), _wall()))
                for effect in member.step(inbox.popleft(), now):
                    if type(effect) is ev.Send:  # The most frequent one.
                        link = links.get(effect.link)
                        if link is not None:
                            link.send(effect.messages)
                    else:
                        carry[type(effect)](effect)
        except Exception as error:  # noqa: BLE001 - whatever it is, the copy is the one to end.
            self._stepping = False
            self._break(error)
        finally:
            self._stepping = False
        if member.next_tick < self._timer_at or self._timer is None:
            self._set_timer()
        if member.ctx.peers.changed:
            self.host.heard(self)

    def _break(self, error: Exception) -> None:
        """Take a copy for failed whose step came to no end.

        Part of what was to be done is not done, and nobody knows which part. Acknowledgements are
        cumulative: the next one would vouch for a write that was left out.
        """
        _log.error("A step of volume %s failed.", self.volume, exc_info=error)
        self._inbox.clear()
        if self.member.role is Role.FAILED:
            return  # It speaks to nobody any more, and is opened anew soon.
        if self._broken:
            self.close()  # Not even that could be told.
            return
        self._broken = True
        self._fail(unexpected(error))

    def lost(self, link: LinkId, sentence: str, *, gone: bool = False) -> None:
        """Tell the member that a link is gone."""
        self._dialling.discard(link)
        self._links.pop(link, None)
        self._nodes.pop(link, None)
        self.feed(ev.LinkLost(link, gone, sentence))

    def on_spec(self, spec: VolumeSpec) -> None:
        """Take a specification; links to copies that it reaches by another transport are opened anew."""
        before = self.member.ctx.spec
        self.feed(ev.SpecSeen(spec))
        for link, node in list(self._nodes.items()):
            if before.transport_to(node) != spec.transport_to(node):
                outlet = self._links.get(link)
                if outlet is not None:
                    outlet.close("the volume has changed its transport")
                    self.lost(link, "the volume has changed its transport")

    def accept(self, outlet: Outlet) -> LinkId:
        """Give a link that came from outside its id."""
        self._last_link += 1
        self._links[self._last_link] = outlet
        return self._last_link

    def forget(self, link: LinkId) -> None:
        """Send nothing more on a link of which the member keeps nothing."""
        self._links.pop(link, None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._closed:
            return
        self._timer_at = self.member.next_tick
        delay = max(0.0, self._timer_at - time.monotonic())
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self.feed(ev.Tick())
        self.host.looked(self)

    # -- links ------------------------------------------------------------------------------------

    def _reply(self, effect: ev.SendReplies) -> None:
        link = self._links.get(effect.link)
        if link is not None:
            link.send((_new(Replies, (effect.replies,)),))

    def _unserved(self, effect: ev.Unserved) -> None:
        reader = self._links.get(effect.link)
        if reader is not None:
            cast("Reader", reader).unserved(effect.requests)

    def _close_link(self, effect: ev.CloseLink) -> None:
        self._dialling.discard(effect.link)
        link = self._links.pop(effect.link, None)
        self._nodes.pop(effect.link, None)
        if link is not None:
            link.close(effect.reason)

    def _open_link(self, effect: ev.OpenLink) -> None:
        self._dialling.add(effect.link)
        self.host.spawn(self._dial(effect))

    async def _dial(self, effect: ev.OpenLink) -> None:
        link = effect.link
        handler = PumpLink(self, link)
        try:
            outlet = await self.host.dial(effect.node, effect.hello, handler)
        except ConnectionRefusedError:
            if link in self._dialling:
                self.lost(link, f"node {effect.node} refuses connections", gone=True)
        except HoldfastError as error:
            if link in self._dialling:
                self.lost(link, error.message)
        else:
            if link in self._dialling:
                self._dialling.discard(link)
                self._links[link] = outlet
                self._nodes[link] = effect.node
                self.feed(ev.LinkOpened(link))
            else:
                outlet.close("no longer wanted")

    def _fail(self, error: CopyError) -> None:
        _log.error("The copy of volume %s has failed: %s", self.volume, error)
        self.feed(ev.DiskFailed(error.reason, error.message))
        self.host.failed(self)

    # -- the state store ---------------------------------------------------------------------------

    def _compare_and_set(self, effect: ev.CompareAndSet) -> None:
        self.host.spawn(self._write_record(effect))

    async def _write_record(self, effect: ev.CompareAndSet) -> None:
        try:
            version = await self.host.write_group(effect.record, effect.version)
        except StateConflictError:
            try:
                record, present = await self.host.read_group(self.volume)
            except StateError:
                self.feed(ev.CasDone("unknown", None, effect.version))
            else:
                present = present if record is not None else effect.version + 1
                self.feed(ev.CasDone("conflict", record, present))
        except StateError as error:
            _log.warning("A group record could not be written: %s", error)
            await asyncio.sleep(STORE_RETRY_S)
            self.feed(ev.CasDone("unknown", None, effect.version))
        else:
            self.feed(ev.CasDone("ok", effect.record, version))

    def _read_record(self, effect: ev.ReadRecord) -> None:
        self.host.spawn(self._fetch_record())

    async def _fetch_record(self) -> None:
        while not self._closed:
            try:
                record, version = await self.host.read_group(self.volume)
            except StateError:
                await asyncio.sleep(STORE_RETRY_S)
            else:
                self.saw_record(record, version)
                return

    def saw_record(self, record: GroupRecord | None, version: int) -> None:
        """Tell the member a record that was read or watched."""
        if record is None:
            version = self.member.ctx.version + 1
        self.feed(ev.RecordSeen(record, version))

    # -- the rest ----------------------------------------------------------------------------------

    def _note(self, effect: ev.Note) -> None:
        self.host.note(self, effect.kind, effect.sentence)

    def _assign(self, effect: ev.Assign) -> None:
        """Nothing to do: a node learns of its copies from the records that it watches."""

    def _verified(self, effect: ev.Verified) -> None:
        listener = self.listeners.get(effect.token)
        if listener is not None:
            listener(effect)

    def _remove(self, effect: ev.RemoveCopy) -> None:
        self.host.removed(self)

    def _stopped(self, effect: ev.Stopped) -> None:
        if self.member.failure:
            self.stopped.set()
            return
        # In order: after everything else that is still being written.
        self._disk.in_order(lambda: self.store.save(effect.superblock), None)
        self._disk.in_order(lambda: self._loop.call_soon_threadsafe(self.stopped.set), None)

    def refresh_hashes(self, limit: int, done: Callable[[int], None]) -> None:
        """Recompute up to `limit` stale hashes of the copy, then tell how many are still stale."""
        self._disk.refresh(limit, done)

    def close(self) -> None:
        """Stop stepping and let go of links and files. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._disk.close()
        if self._timer is not None:
            self._timer.cancel()
        for link in list(self._links.values()):
            link.close("the node is stopping")
        self._links.clear()
        for token, listener in list(self.listeners.items()):
            listener(ev.Verified(token, 0, 0, 0, None, failed=True))
        self.stopped.set()

    async def drain(self) -> None:
        """Wait until no thread works on the store any more; only after `close`."""
        await self._disk.drain()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def is_primary(self) -> bool:
        """Whether this copy is the serving primary of its group."""
        primary = self.member.primary
        return self.member.role is Role.PRIMARY and primary is not None and primary.serving
