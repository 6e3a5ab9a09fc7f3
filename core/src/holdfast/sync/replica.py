"""The replica role: apply the primary's stream in order and say what is applied and durable.

A replica decides nothing about the group. It fences (R3), keeps its window (R6), presents its
identity (R8), marks intent before data (R10, in `DiskQueue`) and acknowledges cumulatively. No
acknowledgement leaves before the epoch that it speaks for is durable in the superblock.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import assert_never, cast

from attrs import define, field

from holdfast.errors import FaultReason
from holdfast.messages import (
    Ack,
    Attach,
    Attached,
    Batch,
    BeginSync,
    CopyFailed,
    EpochChange,
    HashAnswer,
    HashQuery,
    Message,
    ReadAnswer,
    ReadLease,
    ReadQuery,
    Refused,
    Request,
    Resize,
    Resized,
    SyncBegun,
)
from holdfast.model import CopyState, GroupRecord
from holdfast.sync.context import Context
from holdfast.sync.events import CloseLink, Effect, HashDisk, Instant, LinkId, ReadDisk, Send
from holdfast.sync.reading import LocalReader
from holdfast.units import Epoch
from holdfast.units import Sequence as Position

_new = tuple.__new__  # Half the cost of calling the named tuple.
StreamMessage = Batch | EpochChange | BeginSync | Resize | HashQuery | ReadQuery | ReadLease


@define
class ReplicaRole:
    """One copy that follows a primary."""

    ctx: Context
    heard_since: float
    """Monotonic time from which silence of the primary counts, if it has not been heard since."""
    link: LinkId | None = None
    received: Position = Position(0)
    """Every operation of the stream up to here was taken; duplicates after a resume are skipped."""
    promoted: bool = False
    """The record that arrived on the stream names this copy as primary (handover)."""
    leaving: bool = False
    """The primary was told that this node is stopping."""
    _session: str = ""
    """The primary's process, for resuming."""
    _greeting: bool = False
    _resizing: int = 0
    """The size that the primary has asked for and was not answered."""
    _begun: bool = False
    synced: bool = False
    """A sync was begun in this very process: when the record says in sync, that is what it means."""
    _streaming: bool = False
    """Sequences mean something to the primary: in sync, or a sync has begun. Before that, an
    acknowledgement in the numbering of an older stream would vouch for what never arrived."""
    _acked: tuple[Position, Position] = (Position(-1), Position(-1))
    _answers: dict[int, tuple[int, bool]] = field(factory=dict)
    """Disk token to (query id, whether it is a read)."""
    reader: LocalReader = field(init=False)

    def __attrs_post_init__(self) -> None:
        """Begin without a read lease."""
        self.reader = LocalReader(self.ctx)

    def on_attach(
        self, link: LinkId, hello: Attach, record: GroupRecord, now: Instant, out: list[Effect]
    ) -> None:
        """Follow the primary behind `link`; its epoch was found not to be stale."""
        ctx = self.ctx
        if self.link is not None and self.link != link:
            out.append(CloseLink(self.link, "the primary has opened a newer link"))
        self.link = link
        self.heard_since = now.mono
        self._acked = (Position(-1), Position(-1))
        self._begun = False
        self._resizing = 0
        self._answers.clear()
        self.reader.end()
        if not hello.resume or hello.session != self._session:
            self.received = ctx.disk.submitted
        self._session = hello.session
        self._take_record(record, hello.epoch, out)
        mine = ctx.me
        self._streaming = mine is not None and mine.state is CopyState.IN_SYNC
        self._greeting = True
        self._greet(out)

    def on_link_lost(self) -> None:
        """The stream is cut; what it brought stays in the window."""
        self.link = None
        self._greeting = self._begun = False
        self._resizing = 0
        self._answers.clear()
        self.reader.end()

    def close_link(self, why: str, out: list[Effect]) -> None:
        """Cut the stream, if there is one."""
        if self.link is not None:
            out.append(CloseLink(self.link, why))
            self.on_link_lost()

    def on_messages(self, messages: Sequence[Message], now: Instant, out: list[Effect]) -> None:
        """Take messages of the stream, in order."""
        ctx, disk = self.ctx, self.ctx.disk
        for message in messages:
            if type(message) is not Batch or message.epoch != ctx.superblock.epoch:
                if not self._on_rare(cast("StreamMessage", message), now, out):
                    return
                continue
            _, first, commit, ops = message
            if first <= self.received:
                ops = ops[self.received + 1 - first :]
                first = Position(self.received + 1)
            if ops:
                if ctx.absent:
                    ctx.mark_absent(ops)
                disk.submit(first, ops, now.mono, out)
                self.received = disk.submitted
            if commit > disk.commit:
                disk.advance_commit(min(self.received, commit))

    def _on_rare(self, message: StreamMessage, now: Instant, out: list[Effect]) -> bool:
        """Take anything but a batch of the present epoch; whether the stream goes on behind it."""
        ctx = self.ctx
        if message.epoch < ctx.epoch:
            self._refuse(ctx.refused("stale-epoch", f"This copy knows epoch {ctx.epoch}."), out)
            return False
        if isinstance(message, EpochChange):
            record = GroupRecord.from_bytes(message.record)
            # Heartbeats to a copy begin when it joins; it has not been silent until then.
            self.heard_since = now.mono
            self.reader.end()
            self._take_record(record, message.epoch, out)
            if record.primary != ctx.copy:
                return True
            # Not when what was meant is gone: another disk stands under its name, or it lost power since
            # this was asked for. Then nobody hears from it, and an in-sync copy takes over.
            self.promoted = ctx.counted_in and not ctx.rebooted
            return False
        if message.epoch > ctx.epoch or isinstance(message, Batch):
            self._refuse(
                Refused("protocol", "The epoch rose without an epoch change.", ctx.epoch), out
            )
            return False
        if isinstance(message, BeginSync):
            self._on_begin_sync(message, out)
        elif isinstance(message, Resize):
            self._resizing = max(self._resizing, message.size_bytes)
            ctx.grow(message.size_bytes, out)
            self.on_progress(out)
        elif isinstance(message, HashQuery):
            token = ctx.token()
            self._answers[token] = (message.id, False)
            out.append(HashDisk(token, message.level, message.indexes))
        elif isinstance(message, ReadQuery):
            token = ctx.token()
            self._answers[token] = (message.id, True)
            out.append(ReadDisk(token, message.offset, message.length))
        elif isinstance(message, ReadLease):
            self.reader.on_lease(message)
        else:
            assert_never(message)
        return True

    def on_answer(self, token: int, data: bytes, out: list[Effect]) -> bool:
        """Take the outcome of a disk effect; return whether it was ours."""
        query = self._answers.pop(token, None)
        if query is None:
            return False
        if self.link is not None:
            query_id, is_read = query
            answer: Message
            if is_read:
                answer = ReadAnswer(self.ctx.epoch, query_id, 0, data)
            else:
                answer = HashAnswer(self.ctx.epoch, query_id, data)
            out.append(Send(self.link, (answer,)))
        return True

    def on_read_failed(self, token: int, out: list[Effect]) -> bool:
        """A range that the primary asked for cannot be read; return whether it was ours."""
        query = self._answers.pop(token, None)
        if query is not None and self.link is not None:
            out.append(Send(self.link, (ReadAnswer(self.ctx.epoch, query[0], errno.EIO, b""),)))
        return query is not None

    def read(
        self, link: LinkId, requests: Sequence[Request], now: Instant, out: list[Effect]
    ) -> None:
        """Answer reads of a consumer on this node as far as the read lease allows."""
        stream = None if self._greeting or not self._streaming or self.leaving else self.link
        self.reader.read(link, requests, stream, now, out)

    def on_progress(self, out: list[Effect]) -> None:
        """Something was applied, flushed or saved: greet or acknowledge as far as that allows."""
        ctx = self.ctx
        if ctx.disk.blocked and ctx.epoch_is_durable:
            # Also when the link that began the sync is gone: the mark is on disk, and what had come
            # behind it would otherwise wait for good, and the next greeting with it.
            ctx.disk.unblock(out)
        if self.link is None:
            return
        if self._greeting:
            self._greet(out)
            return
        if not ctx.epoch_is_durable:
            return
        if self._begun:
            self._begun = False
            self._streaming = self.synced = True
            out.append(Send(self.link, (SyncBegun(ctx.epoch),)))
        if self._resizing and ctx.size_bytes >= self._resizing:
            out.append(Send(self.link, (Resized(ctx.epoch, ctx.size_bytes),)))
            self._resizing = 0
        disk = ctx.disk
        acked = (disk.applied, disk.durable)
        if acked != self._acked and self._streaming:
            self._acked = acked
            ack = _new(Ack, (ctx.superblock.epoch, disk.applied, disk.durable))
            out.append(_new(Send, (self.link, (ack,))))

    def on_joined(self, out: list[Effect]) -> bool:
        """The record counts this copy in; return whether that is what a sync of this process did.

        A primary asks for that only when the sync has come to its end and is on stable storage. What
        was asked for before this process began cannot come to pass after its sync has begun.
        """
        if not self.synced:
            return False
        self.synced = False
        self.ctx.disk.unpin_at_commit()
        self.ctx.trust(out)
        return True

    def fail(self, reason: FaultReason, sentence: str, out: list[Effect]) -> None:
        """Tell the primary that this copy cannot go on."""
        if self.link is not None:
            out.append(Send(self.link, (CopyFailed(self.ctx.epoch, reason.value, sentence),)))

    # -- inside -----------------------------------------------------------------------------------

    def _greet(self, out: list[Effect]) -> None:
        """Answer `Attach` once the epoch is durable and everything taken before is applied."""
        ctx = self.ctx
        if self.link is None or not ctx.epoch_is_durable or not ctx.disk.idle:
            return
        self._greeting = False
        self._acked = (ctx.disk.applied, ctx.disk.durable)
        out.append(
            Send(
                self.link,
                (
                    Attached(
                        epoch=ctx.epoch,
                        incarnation=ctx.superblock.incarnation,
                        boot=ctx.boot,
                        session=ctx.process,
                        state=ctx.superblock.state,
                        applied=ctx.disk.applied,
                        durable=ctx.disk.durable,
                        clean=not ctx.restarted_unclean,
                        rebooted=ctx.rebooted,
                        fresh=ctx.fresh,
                        suspects=tuple(ctx.disk.suspects()),
                        size_bytes=ctx.size_bytes,
                    ),
                ),
            )
        )

    def _take_record(self, record: GroupRecord, epoch: Epoch, out: list[Effect]) -> None:
        ctx = self.ctx
        ctx.adopt(record, None, out)
        mine = ctx.me
        state = CopyState.OFFLINE if mine is None else mine.state
        if state is CopyState.OFFLINE and ctx.superblock.state == CopyState.SYNCING.value:
            # A half-synced copy stays unmistakable on its own disk, whatever it is called elsewhere.
            state = CopyState.SYNCING
        if state is CopyState.SYNCING and ctx.superblock.state != CopyState.SYNCING.value:
            # The mark is written when the sync begins, not when it is planned.
            state = CopyState(ctx.superblock.state)
        if state is CopyState.IN_SYNC and not ctx.counted_in:
            # It speaks of the disk that was here before.
            state = CopyState(ctx.superblock.state)
        if state is CopyState.IN_SYNC:
            self.on_joined(out)
        ctx.raise_epoch(epoch, state, out)
        ctx.peers.follow(record.volume, epoch, record.primary_member.node)

    def _on_begin_sync(self, message: BeginSync, out: list[Effect]) -> None:
        """Mark this copy as syncing before the first byte of the sync is applied (R8)."""
        ctx, disk = self.ctx, self.ctx.disk
        before = Position(message.first - 1)
        disk.restart_at(before)
        self.received = before
        self._begun = True
        ctx.fresh = False
        for copy in list(ctx.absent):
            ctx.forget(copy, out)
        ctx.save(out, epoch=message.epoch, state=CopyState.SYNCING.value)

    def _refuse(self, refusal: Refused, out: list[Effect]) -> None:
        if self.link is not None:
            out.append(Send(self.link, (refusal,)))
            self.close_link(refusal.sentence, out)
