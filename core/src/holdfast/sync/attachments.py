"""The consumer sessions of a primary: who may write (R11), and what they are answered.

One writer session at a time, named in the group record together with a generation that rises with
every new holder, so that a new primary knows it too. A session that reconnects keeps its
generation; another one gets in when the holder has left, when its process is known to be dead, or
by force. A holder without a lease in the store (a program, or a node whose lease is over) counts as
dead once it has stayed away for `HOLDER_PATIENCE_S`; until then others wait, so that a failover
takes no volume from a program that is just looking for the new primary.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from attrs import define, field

from holdfast.messages import SessionOpen, SessionOpened, VolumeChanged
from holdfast.model import GroupRecord
from holdfast.sync.context import Context
from holdfast.sync.events import CloseLink, Effect, Instant, LinkId, Send

HOLDER_PATIENCE_S = 5.0
"""How long a holder without a lease may stay away; sessions look for their primary four times a
second, so one that lives is back long before."""


def is_same_consumer(one: str, other: str) -> bool:
    """Return whether two session ids are known to be of the same consumer: `CONSUMER/SESSION`.

    It has moved from one node's path to another's, so it may take over from itself; what its older
    session still has under way is fenced by the generation, as with any takeover.
    """
    consumer, slash, _ = one.partition("/")
    return bool(slash) and other.partition("/")[0] == consumer


@define
class Attachment:
    """One session link."""

    link: LinkId
    hello: SessionOpen
    generation: int = -1
    """-1 until the session was opened; 0 for a read-only one."""


@define
class Attachments:
    """The session links of one primary."""

    ctx: Context
    open: dict[LinkId, Attachment] = field(factory=dict)
    """Sessions that were answered with `SessionOpened`."""
    waiting: dict[LinkId, Attachment] = field(factory=dict)
    """Sessions that wait for the group to serve, or for the record to name them."""
    detaching: tuple[str, int] | None = None
    """(session, generation) of a holder that closed in order."""
    _holder_seen: float | None = None
    """When the writer's link last stood, or this primary first looked; monotonic."""

    def add(self, link: LinkId, hello: SessionOpen, out: list[Effect]) -> None:
        """Take a new session link; an older link of the same session is closed first.

        Whatever the older link still had in its buffers is dropped with it, so that nothing old can
        arrive behind what the session sends again.
        """
        for old in [a for a in self.all() if a.hello.session == hello.session]:
            self._close(old.link, "the session has opened a newer link", out)
        if self.detaching is not None and self.detaching[0] == hello.session:
            self.detaching = None
        self.waiting[link] = Attachment(link, hello)

    def all(self) -> list[Attachment]:
        """Return every session link."""
        return [*self.open.values(), *self.waiting.values()]

    def lost(self, link: LinkId) -> bool:
        """A link broke; return whether it was a session's."""
        return self.open.pop(link, None) is not None or self.waiting.pop(link, None) is not None

    def leave(self, link: LinkId, generation: int, out: list[Effect]) -> None:
        """A session says that its last client has gone."""
        attachment = self.open.get(link)
        if attachment is not None and attachment.generation == generation > 0:
            self.detaching = (attachment.hello.session, generation)
        self._close(link, "the session has ended", out)

    def admit(
        self,
        record: GroupRecord,
        now: Instant,
        on_new: Callable[[GroupRecord], GroupRecord],
        out: list[Effect],
    ) -> GroupRecord:
        """Answer waiting sessions as far as `record` allows; return the record wanted for others.

        Args:
            record: The record that is about to be asked for, beginning with the one in force.
            now: The time.
            on_new: Applied to the wanted record when a new writer attaches (the policy's say).
            out: Effects.
        """
        current = self.ctx.record
        if self._holder_seen is None or self._holder_is_here(current):
            self._holder_seen = now.mono
        for attachment in list(self.waiting.values()):
            hello = attachment.hello
            if self.ctx.spec.shared and not hello.read_only:
                # R11 is lifted. Sticky read-only is left by a new attachment all the same, and one
                # that comes back after a failover is none.
                lifted = record if hello.resume_generation else on_new(record)
                if lifted.access is current.access:
                    self._opened(attachment, max(1, current.attachment_generation), out)
                else:
                    generation = record.attachment_generation + 1
                    record = attrs.evolve(lifted, attachment_generation=generation)
            elif hello.read_only or _holds(current, hello):
                self._opened(attachment, 0 if hello.read_only else current, out)
                if _holds(current, hello):
                    self._holder_seen = now.mono
            elif _was_fenced(current, hello):
                self._refuse(attachment, current, out)
            elif record.attached_session in {"", hello.session} or self._may_take(
                record, hello, now
            ):
                if record.attached_session != hello.session:
                    record = on_new(
                        attrs.evolve(
                            record,
                            attachment_generation=record.attachment_generation + 1,
                            attached_node=hello.node,
                            attached_process=hello.process,
                            attached_session=hello.session,
                        )
                    )
            elif not self._may_be_dead(record):
                self._refuse(attachment, record, out)
        if self.detaching is not None:
            session, generation = self.detaching
            if record.attached_session != session or record.attachment_generation != generation:
                self.detaching = None
            else:
                record = attrs.evolve(
                    record, attached_node=None, attached_process="", attached_session=""
                )
        return record

    def on_record(self, record: GroupRecord, out: list[Effect]) -> None:
        """Close the sessions that the record no longer names."""
        if self.ctx.spec.shared:
            return
        for attachment in list(self.open.values()):
            if attachment.generation > 0 and not _holds(record, attachment.hello):
                self._refuse(attachment, record, out)

    def tell(self, out: list[Effect]) -> None:
        """Tell every open session the size and access in force."""
        ctx = self.ctx
        for link in self.open:
            changed = VolumeChanged(ctx.record.epoch, ctx.size_bytes, ctx.record.access.value)
            out.append(Send(link, (changed,)))

    def close_all(self, code: str, sentence: str, out: list[Effect]) -> None:
        """Send every session away; they will look for the new primary."""
        for attachment in self.all():
            out.append(Send(attachment.link, (self.ctx.refused(code, sentence),)))
            out.append(CloseLink(attachment.link, sentence))
        self.open.clear()
        self.waiting.clear()

    # -- inside -----------------------------------------------------------------------------------

    def _opened(self, attachment: Attachment, holder: GroupRecord | int, out: list[Effect]) -> None:
        ctx = self.ctx
        generation = holder if isinstance(holder, int) else holder.attachment_generation
        attachment.generation = generation
        self.waiting.pop(attachment.link, None)
        self.open[attachment.link] = attachment
        opened = SessionOpened(
            ctx.record.epoch,
            generation,
            ctx.size_bytes,
            ctx.record.access.value,
            ctx.record.loss_epoch,
        )
        out.append(Send(attachment.link, (opened,)))

    def _may_take(self, record: GroupRecord, hello: SessionOpen, now: Instant) -> bool:
        if hello.force or is_same_consumer(record.attached_session, hello.session):
            return True
        if self._holder_is_here(record):
            return False
        node, process = record.attached_node, record.attached_process
        if node == hello.node:
            # A node shares one session among its frontends, so another id means that it gave the
            # first one up; another process, that the first is gone: it held the node's lock.
            return True
        known = self.ctx.nodes.get(node) if node is not None else None
        if node == self.ctx.node and process != self.ctx.process:
            # Unless it is another worker beside us, the holder was before us and is gone.
            beside = () if known is None or not known.workers else (known.process, *known.workers)
            return process not in beside
        if known is not None:
            return process != known.process and process not in known.workers
        # Should it live all the same, the generation fences it.
        seen = self._holder_seen
        return (
            self._may_be_dead(record) and seen is not None and now.mono - seen > HOLDER_PATIENCE_S
        )

    def _holder_is_here(self, record: GroupRecord) -> bool:
        return any(a.hello.session == record.attached_session for a in self.open.values())

    def _may_be_dead(self, record: GroupRecord) -> bool:
        """Whether nothing says that the writer lives; an empty picture of nodes says nothing."""
        nodes = self.ctx.nodes
        return (
            bool(nodes) and record.attached_node not in nodes and not self._holder_is_here(record)
        )

    def _refuse(self, attachment: Attachment, record: GroupRecord, out: list[Effect]) -> None:
        sentence = (
            f"Volume {self.ctx.spec.name} is attached at node {record.attached_node}; "
            "detach it there, or take it over by force."
        )
        out.append(Send(attachment.link, (self.ctx.refused("attached-elsewhere", sentence),)))
        self._close(attachment.link, sentence, out)

    def _close(self, link: LinkId, why: str, out: list[Effect]) -> None:
        if self.lost(link):
            out.append(CloseLink(link, why))


def _holds(record: GroupRecord, hello: SessionOpen) -> bool:
    return bool(hello.session) and record.attached_session == hello.session


def _was_fenced(record: GroupRecord, hello: SessionOpen) -> bool:
    """Whether another session has held the volume since `hello`'s did.

    It must not come back, not even when the volume is free again: what it would send anew was asked
    for before the other one's writes.
    """
    return 0 < hello.resume_generation != record.attachment_generation
