"""Writes down what `holdfast audit` needs beside the events for people: facts, not sentences.

Three kinds of facts, each a line of the volume's event log without a sentence: `record`, when this
node has changed the group record; `opened`, when it has opened its copy; and `answering` and `silent`,
when its copy begins and ceases to be one that may answer consumers. All are rare; nothing is written
for a request. It decides nothing, and what it writes is read by nobody but the audit.
"""

from __future__ import annotations

import time
from typing import Protocol

from holdfast.model import CopyState, GroupRecord
from holdfast.node.eventlog import EventLog
from holdfast.sync.member import GroupMember
from holdfast.units import VolumeId


class Stepped(Protocol):
    """What steps a member."""

    volume: VolumeId
    member: GroupMember


class Witness:
    """Keeps the facts of one node."""

    def __init__(self, events: EventLog) -> None:
        """Write to `events`."""
        self._events = events
        self._answering: dict[VolumeId, int] = {}
        """The epoch in which the copy here answers, as written last."""

    def note(self, stepped: Stepped, kind: str, sentence: str) -> None:
        """Keep a line of a volume's history for people."""
        ctx = stepped.member.ctx
        self._events.add(ctx.spec, ctx.epoch, kind, sentence)
        self.look(stepped)

    def wrote(self, record: GroupRecord, before: int, version: int) -> None:
        """This node has changed the group record, and nobody acts on it yet; versions are the store's."""
        self._events.fact(
            record.volume,
            record.epoch,
            "record",
            before=before,
            version=version,
            primary=record.primary_member.node,
            in_sync=[m.node for m in record.members if m.state is CopyState.IN_SYNC],
            members=[m.node for m in record.members],
            access=record.access.value,
            generation=record.attachment_generation,
        )

    def opened(self, stepped: Stepped) -> None:
        """This node has opened its copy; whatever an older process was, it is no more."""
        ctx = stepped.member.ctx
        self._answering.pop(stepped.volume, None)
        self._events.fact(
            stepped.volume,
            ctx.epoch,
            "opened",
            copy=ctx.copy,
            incarnation=ctx.superblock.incarnation,
            process=ctx.process,
            clean=not ctx.restarted_unclean,
            rebooted=ctx.rebooted,
        )

    def look(self, stepped: Stepped) -> None:
        """Write down whether the copy has begun or ceased to answer; asked at every tick."""
        primary = stepped.member.primary
        known = self._answering.get(stepped.volume)
        epoch, until, now = 0, 0.0, time.monotonic()
        if primary is not None and primary.serving and not primary.stopped:
            until = primary.lease_until()
            if until > now:
                epoch = int(stepped.member.ctx.epoch)
        if epoch == (known or 0):
            return
        if known is not None:
            # A lease that has run out did so before anybody looked.
            ended = time.time() - (now - until if 0.0 < until < now else 0.0)
            self._events.fact(stepped.volume, known, "silent", until=ended)
            del self._answering[stepped.volume]
        if epoch:
            self._answering[stepped.volume] = epoch
            self._events.fact(stepped.volume, epoch, "answering")
