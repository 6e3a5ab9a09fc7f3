"""The copies of one node: found on disk, opened, made, removed; one pump for each.

Data is never deleted unless the store proves it superseded: a group record that no longer names the
copy, or a tombstone of the volume. A store that knows nothing of a volume proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import attrs

from holdfast.errors import (
    ConflictError,
    HoldfastError,
    IntegrityError,
    StateConflictError,
    StateError,
    UnavailableError,
)
from holdfast.interfaces.transport import Link, LinkHandler
from holdfast.local.copy_store import FileCopyStore, delete_copy, open_copy, read_superblock
from holdfast.local.host import boot_id
from holdfast.messages import Attach, Refused, SessionOpen
from holdfast.model import CopyState, GroupRecord, VolumeSpec
from holdfast.node.data_directories import (
    DataDirectories,
    closed_on_failure,
    delete_superseded,
)
from holdfast.node.directory import Directory
from holdfast.node.eventlog import EventLog
from holdfast.node.observing import Observing
from holdfast.node.polling import Polling
from holdfast.node.pump import Outlet, Pump, PumpLink
from holdfast.node.witness import Witness
from holdfast.sync import events as ev
from holdfast.sync.healing import PolicyOf
from holdfast.sync.opening import open_member, opened, regions_in_doubt
from holdfast.sync.pace import PaceLimits
from holdfast.sync.peers import Peers
from holdfast.units import NodeName, VolumeId

REOPEN_S = 5.0
"""How long a copy whose disk failed rests before it is tried again."""
_log = logging.getLogger("holdfast.node")

Dial = Callable[[NodeName, Attach, LinkHandler], Coroutine[Any, Any, Link]]


class Hosting:
    """All pumps of one node; implements `pump.PumpHost`."""

    def __init__(
        self,
        *,
        name: NodeName,
        cluster: str,
        process: str,
        data: DataDirectories,
        directory: Directory,
        peers: Peers,
        policy_of: PolicyOf,
        dial: Dial,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        heard: Callable[[], None],
        events: EventLog,
        observing: Observing,
        polling: Polling,
        pace_limits: PaceLimits,
        keeps: Callable[[VolumeId], bool],
    ) -> None:
        """Prepare; `open_all` opens what is on disk."""
        self.name = name
        self.cluster = cluster
        self.process = process
        self.data = data
        self.directory = directory
        self.peers = peers
        self.events = events
        self.polling = polling
        self._pace_limits = pace_limits
        self._witness = Witness(events)
        self.note = self._witness.note
        self.looked = self._witness.look
        self.pumps: dict[VolumeId, Pump] = {}
        self.orphans: dict[Path, str] = {}
        """Copies on disk that are not opened, with the reason."""
        self._policy_of = policy_of
        self._keeps = keeps
        self._dial = dial
        self._spawn = spawn
        self._heard = heard
        self._observing = observing
        self._unsure: dict[VolumeId, tuple[GroupRecord | None, GroupRecord]] = {}
        """Writes of which it is not known whether they took place: (before, after)."""
        self._busy: dict[VolumeId, asyncio.Lock] = {}
        self._paths: dict[VolumeId, Path] = {}
        self._stopping = False

    # -- PumpHost ----------------------------------------------------------------------------------

    async def read_group(self, volume: VolumeId) -> tuple[GroupRecord | None, int]:
        """Read a group record from the store."""
        record, version = await self.directory.read_group(volume)
        before, after = self._unsure.pop(volume, (None, None))
        if after is not None and record == after:
            self._observing.group_changed(self.directory.specs.get(volume), before, after)
            self._witness.wrote(after, 0, version)
        return record, version

    async def write_group(self, record: GroupRecord, version: int) -> int:
        """Compare-and-set a group record."""
        volume = record.volume
        pump = self.pumps.get(volume)
        known = self.directory.groups.get(volume)
        before = pump.member.ctx.record if pump is not None else known[0] if known else None
        try:
            entry = await self.directory.store.compare_and_set(
                f"group/{volume}", record.to_bytes(), version
            )
        except StateError:
            self._unsure[volume] = (before, record)
            raise
        assert entry is not None
        self._observing.group_changed(self.directory.specs.get(volume), before, record)
        self._witness.wrote(record, version, entry.version)
        return entry.version

    async def dial(self, node: NodeName, hello: Attach, handler: PumpLink) -> Outlet:
        """Open a replication link."""
        return await self._dial(node, hello, handler)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine under the node's task group."""
        self._spawn(coroutine)

    def heard(self, pump: Pump) -> None:
        """A lease set has changed; a heartbeat is due."""
        self._heard()

    def removed(self, pump: Pump) -> None:
        """Close a copy that is said to be superseded; its data goes if the store proves it."""
        self._spawn(self._look_again(pump))

    def failed(self, pump: Pump) -> None:
        """Let a failed disk rest, then open the copy anew."""
        if not self._stopping:
            self._spawn(self._look_again(pump, after_s=REOPEN_S))

    # -- from the directory ------------------------------------------------------------------------

    def on_group(self, volume: VolumeId, record: GroupRecord | None, version: int) -> None:
        """A watch has told a record."""
        pump = self.pumps.get(volume)
        if pump is not None:
            if record is not None:
                pump.saw_record(record, version)
            else:
                self._spawn(self._check_deleted(volume))
        elif record is not None and self._keeps(volume) and _is_new_here(record, self.name):
            self._spawn(self._make_first(volume))

    def on_spec(self, spec: VolumeSpec) -> None:
        """A watch has told a specification."""
        if (pump := self.pumps.get(spec.id)) is not None:
            pump.on_spec(spec)

    def on_nodes(self) -> None:
        """The nodes that live have changed."""
        for pump in list(self.pumps.values()):
            pump.feed(ev.NodesSeen(self.directory.alive))

    # -- opening -----------------------------------------------------------------------------------

    async def open_all(self) -> None:
        """Open every copy on disk that the store knows; needs a primed directory."""
        for path in self.data.copies():
            if self._keeps(VolumeId(path.name)):
                await self._open_listed(path)
        for volume, (record, _) in list(self.directory.groups.items()):
            new = volume not in self.pumps and _is_new_here(record, self.name)
            if new and self._keeps(volume):
                self._spawn(self._make_first(volume))

    async def _open_listed(self, path: Path) -> bool:
        """Open a copy, if that is not done yet; return False when it is worth another try."""
        volume = VolumeId(path.name)
        # A primary may have asked for the copy by now, or do so meanwhile.
        async with self._lock(volume):
            if volume in self.pumps or self._stopping:
                return True
            try:
                await self._open_found(path)
            except HoldfastError as error:
                # One damaged copy keeps no other from being served.
                if self.orphans.get(path) != str(error):
                    _log.error("The copy in %s is not opened: %s", path, error)
                self.orphans[path] = str(error)
                return isinstance(error, IntegrityError)
            return True

    async def _open_found(self, path: Path) -> None:
        superblock = await asyncio.to_thread(read_superblock, path)
        volume = superblock.volume
        if superblock.cluster != self.cluster:
            raise ConflictError(
                f"It belongs to cluster {superblock.cluster}, this node to {self.cluster}.",
                hint="Give this node another data directory, or its own cluster's name.",
            )
        record, version = await self.read_group(volume)
        if record is None:
            if await self.directory.store.get(f"deleted/{volume}") is not None:
                await asyncio.to_thread(delete_copy, path)
            else:
                self.orphans[path] = "The state store knows no volume with this id."
            return
        if record.find(superblock.copy) is None:
            await asyncio.to_thread(delete_superseded, path, superblock, record.epoch)
            _log.info("The copy in %s was superseded and is deleted.", path)
            return
        if (spec := self.directory.specs.get(volume)) is None:
            self.orphans[path] = "The state store has no specification of its volume."
            return
        store = await asyncio.to_thread(open_copy, path, boot=boot_id())
        with closed_on_failure(store):
            self._start(store, path, record, version, spec)
        self.orphans.pop(path, None)

    def _start(
        self, store: FileCopyStore, path: Path, record: GroupRecord, version: int, spec: VolumeSpec
    ) -> Pump:
        """Open a member over `store` and begin to step it."""
        if self._stopping:  # Nobody would close it.
            raise UnavailableError(f"Node {self.name} is stopping.")
        if doubtful := regions_in_doubt(store.superblock, record, fresh=store.fresh):
            store.mark_regions(doubtful)
        store.save(opened(store.superblock, boot_id()))
        maps = {copy: bits for copy in store.dirty_maps() if (bits := store.load_dirty(copy))}
        member = open_member(
            node=self.name,
            process=self.process,
            boot=boot_id(),
            superblock=store.superblock,
            was_clean=store.was_clean,
            rebooted=store.rebooted,
            fresh=store.fresh,
            marked_regions=store.marked_regions(),
            dirty_maps=maps,
            record=record,
            version=version,
            spec=spec,
            peers=self.peers,
            policy_of=self._policy_of,
            now=time.monotonic(),
            score_of=self._observing.score if self._observing.is_watched else None,
            pace_limits=self._pace_limits,
        )
        pump = self.pumps[spec.id] = Pump(self, member, store, self.data.threads_of(path))
        self._paths[spec.id] = path
        for found in store.repaired:
            self.events.add(spec, record.epoch, "copy-repaired", f"On {self.name}: {found}")
        self._witness.opened(pump)
        pump.feed(ev.NodesSeen(self.directory.alive))
        return pump

    # -- making ------------------------------------------------------------------------------------

    async def _make_first(self, volume: VolumeId) -> None:
        """Make the first copy of a new volume, and say in the record which incarnation it is.

        Nothing is served before the record names the incarnation: an empty copy that came into being
        a second time can then never be taken for the first. Nobody else makes it, and no watch tells
        of the volume again, so an outage of the store is waited out.
        """
        while not self._stopping:
            async with self._lock(volume):
                try:
                    if volume not in self.pumps:
                        await self._make_named(volume)
                except StateConflictError:
                    _log.warning("Another node changed the new volume %s first.", volume)
                except StateError as error:
                    _log.warning("The first copy of volume %s has to wait: %s", volume, error)
                except HoldfastError as error:
                    _log.error("The first copy of volume %s cannot be made: %s", volume, error)
                    return
                else:
                    return
            await asyncio.sleep(REOPEN_S)

    async def _make_named(self, volume: VolumeId) -> None:
        record, version = await self.read_group(volume)
        spec = await self._spec(volume)
        if record is None or spec is None:
            return
        if not _is_new_here(record, self.name):
            path = self.data.find(volume)
            if path is not None:  # The record was written after all, though nobody could say so.
                await self._open_found(path)
            return
        mine = record.primary_member
        store, made_in = await asyncio.to_thread(
            self.data.make, spec, mine, CopyState.IN_SYNC, record.epoch
        )
        with closed_on_failure(store):
            incarnation = store.superblock.incarnation
            named = record.with_member(attrs.evolve(mine, incarnation=incarnation))
            version = await self.write_group(named, version)
            self._start(store, made_in, named, version, spec)

    async def _spec(self, volume: VolumeId) -> VolumeSpec | None:
        if (spec := self.directory.specs.get(volume)) is not None:
            return spec
        entry = await self.directory.store.get(f"spec/{volume}")
        return None if entry is None else VolumeSpec.from_bytes(entry.value)

    # -- links from other nodes --------------------------------------------------------------------

    def accept_attach(self, link: Link, hello: Attach) -> LinkHandler:
        """Take a primary's link; the copy is made first when the record wants one here."""
        pump = self.pumps.get(hello.volume)
        if pump is not None and pump.member.ctx.copy == hello.target:
            link_id = pump.accept(link)
            handler = PumpLink(pump, link_id)
            pump.feed(ev.AttachReceived(link_id, hello))
            return handler
        pending = PumpLink()
        self._spawn(self._make_for(link, hello, pending))
        return pending

    def accept_session(self, link: Link, hello: SessionOpen) -> LinkHandler | None:
        """Take a consumer's link, if the primary is here."""
        pump = self.pumps.get(hello.volume)
        if pump is None or pump.closed or hello.cluster != self.cluster:
            link.send((Refused("not-primary", f"Node {self.name} has no copy of this volume."),))
            link.close("no copy here")
            return None
        link_id = pump.accept(link)
        handler = PumpLink(pump, link_id)
        pump.feed(ev.SessionLinked(link_id, hello))
        return handler

    async def _make_for(self, link: Link, hello: Attach, pending: PumpLink) -> None:
        """Make the copy that a primary asks for, if the record names it."""
        refusal = ""
        async with self._lock(hello.volume):
            pump = self.pumps.get(hello.volume)
            if self._stopping:
                refusal = f"Node {self.name} is stopping."
            elif pump is None or pump.member.ctx.copy != hello.target:
                refusal = await self._make_replica(hello, pump)
        pump = self.pumps.get(hello.volume)
        if refusal or pump is None:
            link.send((Refused("no-such-copy", refusal or "The copy was removed."),))
            link.close(refusal)
            return
        link_id = pump.accept(link)
        pump.feed(ev.AttachReceived(link_id, hello))
        pending.become(pump, link_id)

    async def _make_replica(self, hello: Attach, older: Pump | None) -> str:
        """Make the copy `hello.target`; return why not, or an empty string."""
        try:
            record, version = await self.read_group(hello.volume)
            spec = await self._spec(hello.volume)
            member = None if record is None else record.find(hello.target)
            if record is None or spec is None or member is None or member.node != self.name:
                return f"The group record names no copy {hello.target} on node {self.name}."
            if member.copy == record.primary:
                return "A primary's copy is never made anew."
            if older is not None:
                older.close()
                self.pumps.pop(hello.volume, None)
                await self._close_store(older)
            store, path = await asyncio.to_thread(
                self.data.make, spec, member, CopyState.OFFLINE, record.epoch
            )
            with closed_on_failure(store):
                self._start(store, path, record, version, spec)
        except HoldfastError as error:
            _log.error("A copy of volume %s cannot be made: %s", hello.volume, error)
            return error.message
        return ""

    # -- removing ----------------------------------------------------------------------------------

    async def _check_deleted(self, volume: VolumeId) -> None:
        """A record has gone; the copy goes too if a tombstone proves that it was deleted."""
        try:
            entry = await self.directory.store.get(f"deleted/{volume}")
        except StateError:
            return
        pump = self.pumps.get(volume)
        if pump is not None and entry is not None:
            pump.saw_record(None, 0)

    async def _look_again(self, pump: Pump, *, after_s: float = 0.0) -> None:
        """Close a copy, and do with its data what the store says: delete it, keep it, open it anew."""
        await asyncio.sleep(after_s)
        async with self._lock(pump.volume):
            if self._stopping or self.pumps.get(pump.volume) is not pump:
                return  # A newer copy may have been made in its place, and its data is gone with it.
            pump.close()
            del self.pumps[pump.volume]
            path = self._paths.pop(pump.volume)
            await self._close_store(pump)
        # Until it opens: it may be the only copy, and what hinders it now (the same disk, the state
        # store) may pass. What is lost for good stays so.
        while not await self._open_listed(path):  # noqa: ASYNC110 - nobody tells of that.
            await asyncio.sleep(REOPEN_S)

    async def _close_store(self, pump: Pump) -> None:
        await pump.drain()
        pump.store.close()

    def _lock(self, volume: VolumeId) -> asyncio.Lock:
        return self._busy.setdefault(volume, asyncio.Lock())

    # -- the whole ---------------------------------------------------------------------------------

    async def stop(self, *, handover: bool, patience_s: float) -> None:
        """Hand primaries over, come to rest, and close every copy."""
        self._stopping = True
        pumps = list(self.pumps.values())
        for pump in pumps:
            pump.feed(ev.Stop(handover=handover))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.gather(*(pump.stopped.wait() for pump in pumps))
        for pump in pumps:
            pump.close()
            await self._close_store(pump)
        self.pumps.clear()
        self.data.close()


def _is_new_here(record: GroupRecord, node: NodeName) -> bool:
    """Whether the record asks this node for the first copy of a volume that was never served."""
    first = record.primary_member
    return record.epoch == 1 and first.node == node and not first.incarnation
