"""What a member has asked the store about its group's record, and what the answers mean.

One compare-and-set is under way at a time, and one read. An answer can be lost, come late, or tell of
a change that was carried out although nobody could say so; what a member may conclude from it is
decided here. What follows from the record is none of this module's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, frozen

from holdfast.model import GroupRecord
from holdfast.sync.context import Context
from holdfast.sync.events import CasDone, CompareAndSet, Effect, Note, ReadRecord, RecordSeen


@frozen
class Answer:
    """The record in force, as far as the store has told."""

    record: GroupRecord | None
    """None: it was deleted."""
    version: int
    is_won: bool
    """Whether it is what this member asked for."""


@define
class Asking:
    """The questions of one member."""

    ctx: Context
    wanted: GroupRecord | None = None
    """The record of the compare-and-set under way."""
    _notes: Sequence[Note] = ()
    """What is to be told when it has been won."""
    is_unsure: bool = False
    """The outcome of the compare-and-set is unknown; the record is being read."""
    _reading: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing was asked that is not answered."""
        return self.wanted is None and not self._reading

    def change(self, record: GroupRecord, out: list[Effect], notes: Sequence[Note] = ()) -> None:
        """Ask for `record` in place of the one that is known; `notes` are told if that is won."""
        self.wanted = record
        self._notes = notes
        out.append(CompareAndSet(record, self.ctx.version))

    def read(self, out: list[Effect]) -> None:
        """Ask for the record in force."""
        if not self._reading:
            self._reading = True
            out.append(ReadRecord())

    def forget(self) -> None:
        """Ask no more for the change under way; it may still take place.

        For a copy that has lost what it held: asked for again, it would drop copies that still hold
        it.
        """
        self.wanted, self.is_unsure = None, False

    def tell(self, out: list[Effect]) -> None:
        """Tell what was to be told of the change that was won."""
        out.extend(self._notes)
        self._notes = ()

    def on_done(self, event: CasDone, out: list[Effect]) -> Answer | None:
        """Take the answer to a compare-and-set; None: nothing can be concluded yet."""
        wanted = self.wanted
        if wanted is None:
            return None
        if event.outcome == "unknown":
            self.is_unsure = True
            self.read(out)
            return None
        self.wanted = None
        # A conflict with what was wanted is the same request, carried out when nobody could tell.
        if event.outcome == "ok" or event.record == wanted:
            return Answer(wanted, event.version, is_won=True)
        return Answer(event.record, event.version, is_won=False)

    def on_seen(self, event: RecordSeen, out: list[Effect]) -> Answer | None:
        """Take a record that was read or watched; None: it decides nothing."""
        if event.version < self.ctx.version:
            # A late watch; it never decides anything. Or a read that was overtaken: look again.
            if self._reading:
                out.append(ReadRecord())
            return None
        self._reading = False
        wanted = self.wanted
        if wanted is not None:
            if not self.is_unsure:
                return None  # The answer to the compare-and-set says the same, and in its order.
            self.is_unsure = False
            if event.record is not None and event.version == self.ctx.version:
                # Not carried out so far; but it may be on its way, and must not land when nobody
                # reckons with it any more. The same is asked again until the store says.
                out.append(CompareAndSet(wanted, self.ctx.version))
                return None
            self.wanted = None
        return Answer(event.record, event.version, wanted is not None and event.record == wanted)
