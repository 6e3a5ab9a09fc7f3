"""What both roles of a group member share: identity, record, disk queue, dirty maps.

A member is one copy on one node. Whatever survives a change of role lives here: the queue of the
local disk with its window, the superblock, and the maps of what absent copies have missed. Every
in-sync copy keeps those maps, not only the primary, so that a failover does not turn the next
delta sync into a comparison of everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
from attrs import define, field

from holdfast.interfaces.copy import Superblock
from holdfast.messages import Op, Refused
from holdfast.model import CopyState, GroupRecord, Member, NodeRecord, VolumeSpec
from holdfast.sync.bitmap import Bitmap
from holdfast.sync.delta import mark_extents
from holdfast.sync.disk import DiskQueue
from holdfast.sync.events import (
    ClearRegions,
    DropDirty,
    Effect,
    Instant,
    LinkId,
    Note,
    ResizeDisk,
    SaveDirty,
    SaveSuperblock,
)
from holdfast.sync.hashlist import chunk_hash, parse_key
from holdfast.sync.pace import PaceLimits
from holdfast.sync.peers import Peers
from holdfast.sync.placement import ScoreOf
from holdfast.units import CHUNK_BYTES, CopyId, Epoch, NodeName, chunks_of

HashOf = Callable[[bytes, VolumeSpec], bytes]
"""The hash of a chunk's bytes, as the copies of the volume have it in their lists."""


def hash_of(data: bytes, spec: VolumeSpec) -> bytes:
    """Return the hash of a chunk of a volume."""
    return chunk_hash(data, parse_key(spec.hash_key))


BUSY_TICK_S = 0.05
"""How soon a member looks again at what sends no event, while it waits for something."""
IDLE_TICK_S = 0.5
"""And while it waits for nothing."""
REST_TICK_S = 2.5
"""And while it watches the silence of another copy at most."""
_CHUNK_SHIFT = CHUNK_BYTES.bit_length() - 1
MAP_TAG_BYTES = 8


@define
class Context:
    """Shared by the roles of one member; the pump never touches it."""

    cluster: str
    node: NodeName
    process: str
    """This process' session, drawn at its start."""
    boot: str
    copy: CopyId
    superblock: Superblock
    """As it should be on disk; saving may be under way."""
    record: GroupRecord
    version: int
    spec: VolumeSpec
    peers: Peers
    disk: DiskQueue
    restarted_unclean: bool
    """Opened without a clean stop before: the window is gone, the pinned regions stand for it."""
    rebooted: bool
    """The machine restarted as well: what was not flushed may be gone."""
    fresh: bool
    """Made by this process, nothing but zeros, and never synced since."""
    pace_limits: PaceLimits = field(factory=PaceLimits)
    """What an operator has set for syncs."""
    score_of: ScoreOf | None = None
    """Points of placement hooks for a node; None: there are none."""
    absent: dict[CopyId, Bitmap] = field(factory=dict)
    """For copies that left while this one was in sync: every chunk that they may have missed."""
    nodes: Mapping[NodeName, NodeRecord] = field(factory=dict)
    """The nodes whose leases in the store live, as last seen."""
    saved_epoch: Epoch = Epoch(0)
    """The highest epoch known to be durable in the superblock."""
    hash_of: HashOf = hash_of
    """Another one where disks are simulated and hash in their own way."""
    told: bool = False
    """The record came by the stream, and `version` is another one's: before anything is asked for by
    compare-and-set the store is read, or the change would undo what others have changed."""
    stalled_s: float = 0.0
    """How long the own disk has answered nothing, as last told."""
    growing_to: int = 0
    """The size that the own copy is being grown to; no larger than `size_bytes` when it is not."""
    _saving: dict[int, Epoch] = field(factory=dict)
    _growing: dict[int, int] = field(factory=dict)
    _last_token: int = 0
    _last_link: int = 0

    @property
    def epoch(self) -> Epoch:
        """The highest epoch seen (R3)."""
        return self.superblock.epoch

    @property
    def size_bytes(self) -> int:
        """How large the own copy is on disk; what a primary serves. More may be declared."""
        return self.superblock.size_bytes

    @property
    def me(self) -> Member | None:
        """This copy in the record; None when the record does not name it."""
        return self.record.find(self.copy)

    @property
    def counted_in(self) -> bool:
        """Whether the record counts this very disk in sync, not one that was here before it (R8)."""
        mine = self.me
        return (
            mine is not None
            and mine.state is CopyState.IN_SYNC
            and mine.incarnation in {"", self.superblock.incarnation}
        )

    def token(self) -> int:
        """Return a number that was not used for an effect before."""
        self._last_token += 1
        return self._last_token

    def new_link(self) -> LinkId:
        """Return an id for a link that this member opens; accepted links have positive ids."""
        self._last_link -= 1
        return self._last_link

    # -- superblock -----------------------------------------------------------------------------

    def raise_epoch(self, epoch: Epoch, state: CopyState, out: list[Effect]) -> None:
        """Fence everything below `epoch` and mark `state`, durably; acknowledgements wait for it."""
        if self.superblock.epoch != epoch or self.superblock.state != state.value:
            self.save(out, epoch=epoch, state=state.value)

    def save(self, out: list[Effect], **changes: object) -> int:
        """Change the superblock in memory and ask for it to be saved; return the token."""
        if not self.rebooted:
            changes["boot"] = self.boot
        block = attrs.evolve(self.superblock, **changes)  # type: ignore[arg-type]
        self.superblock = attrs.evolve(block, applied=self.disk.applied, durable=self.disk.durable)
        token = self.token()
        self._saving[token] = self.superblock.epoch
        out.append(SaveSuperblock(token, self.superblock))
        return token

    def on_saved(self, token: int) -> bool:
        """Take `Saved`; return whether the own copy has grown with it."""
        size_bytes = self._growing.pop(token, 0)
        if size_bytes:
            self.superblock = attrs.evolve(self.superblock, size_bytes=size_bytes)
            for bitmap in self.absent.values():
                bitmap.resize(chunks_of(size_bytes))
            return True
        epoch = self._saving.pop(token, None)
        if epoch is not None:
            self.saved_epoch = max(self.saved_epoch, epoch)
        return False

    def grow(self, size_bytes: int, out: list[Effect]) -> None:
        """Ask for the own copy to be grown, unless it is that large or about to be."""
        if size_bytes > max(self.size_bytes, self.growing_to):
            self.growing_to = size_bytes
            token = self.token()
            self._growing[token] = size_bytes
            out.append(ResizeDisk(token, size_bytes))

    @property
    def epoch_is_durable(self) -> bool:
        """Whether the superblock in memory is on disk as far as fencing goes."""
        return self.saved_epoch >= self.superblock.epoch and not self._saving

    def trust(self, out: list[Effect]) -> None:
        """This copy is known to hold what it should: no restart stands between it and the others.

        Until then the superblock keeps the boot id of before a loss of power, so that a second
        restart does not pass for a harmless one.
        """
        self.restarted_unclean = self.rebooted = False
        if self.superblock.boot != self.boot:
            self.save(out)

    # -- record and dirty maps ------------------------------------------------------------------

    def adopt(self, record: GroupRecord, version: int | None, out: list[Effect]) -> None:
        """Take a newer record, and begin or end dirty maps as copies leave or return.

        A map is begun only for a copy that this one saw leave, with everything in the window marked:
        the copy may lack whatever is above the last commit. For copies that left before, there is a
        map already, or none, and then the hash tree tells.
        """
        before = self.record
        self.record = record
        if version is not None:
            self.version, self.told = version, False
        elif record != before:
            self.told = True
        mine = record.find(self.copy)
        in_sync = mine is not None and mine.state is CopyState.IN_SYNC
        was = before.find(self.copy)
        was_in_sync = was is not None and was.state is CopyState.IN_SYNC
        for member in record.members:
            if member.copy == self.copy:
                continue
            old = before.find(member.copy)
            left = (
                old is not None
                and old.state is CopyState.IN_SYNC
                and member.state is not CopyState.IN_SYNC
            )
            if left and in_sync and was_in_sync:
                bitmap = Bitmap(chunks_of(self.size_bytes))
                mark_extents(bitmap, self.disk.suspects(), self.size_bytes)
                self.keep_map(member.copy, bitmap, out)
            elif member.state is CopyState.IN_SYNC or _is_another(old, member):
                self.forget(member.copy, out)
        for copy in [c for c in self.absent if record.find(c) is None]:
            self.forget(copy, out)
        if not in_sync:
            for copy in list(self.absent):
                self.forget(copy, out)

    def keep_map(self, copy: CopyId, bitmap: Bitmap, out: list[Effect]) -> None:
        """Keep `bitmap` as what `copy` has missed, in memory and on disk."""
        self.absent[copy] = bitmap
        self.save_map(copy, out)

    def save_map(self, copy: CopyId, out: list[Effect]) -> None:
        """Put the dirty map of `copy` on disk, behind a tag that names the absence it is about."""
        tag = map_tag(self.record.find(copy))
        out.append(SaveDirty(copy, tag + self.absent[copy].to_bytes()))

    def forget(self, copy: CopyId, out: list[Effect]) -> None:
        """Drop the dirty map of `copy`."""
        if self.absent.pop(copy, None) is not None:
            out.append(DropDirty(copy))

    def mark_absent(self, ops: Iterable[Op]) -> None:
        """Mark what absent copies miss by these operations."""
        maps = tuple(self.absent.values())
        for op in ops:
            if op.length:
                first = op.offset >> _CHUNK_SHIFT
                count = ((op.offset + op.length - 1) >> _CHUNK_SHIFT) - first + 1
                for bitmap in maps:
                    bitmap.set_range(first, count)

    def clip(self, extents: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return what of these (offset, length) lies within the volume."""
        size = self.size_bytes
        return [(offset, min(length, size - offset)) for offset, length in extents if offset < size]

    def tidy_intent(self, now: Instant, out: list[Effect]) -> None:
        """Unmark regions that were written long ago, after saving the maps that they stand for."""
        due = self.disk.clear_due(now.mono)
        if due:
            for copy in self.absent:
                self.save_map(copy, out)
            out.append(ClearRegions(due))

    # -- words ------------------------------------------------------------------------------------

    def refused(self, code: str, sentence: str) -> Refused:
        """Return a refusal that tells the epoch known here."""
        return Refused(code, sentence, self.epoch)

    def note(self, kind: str, sentence: str, out: list[Effect]) -> None:
        """Add a line to the volume's events."""
        out.append(Note(kind, sentence))


def map_tag(member: Member | None) -> bytes:
    """Return what a dirty map on disk begins with: which disk it is about, and which absence.

    A copy that was made anew, or that came back and left again while this node was down, has missed
    other things than a map from before says.
    """
    text = "" if member is None else f"{member.incarnation}/{member.left_epoch}"
    return hashlib.blake2b(text.encode(), digest_size=MAP_TAG_BYTES).digest()


def _is_another(old: Member | None, member: Member) -> bool:
    """Whether the member's disk is another one than before (R8)."""
    return old is not None and bool(old.incarnation) and old.incarnation != member.incarnation
