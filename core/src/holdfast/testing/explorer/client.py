"""The consumer of a small world: one real `ConsumerSession` that asks for each write once.

Numbered and remembered like the sites (`site.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from attrs import frozen

from holdfast.messages import Message, Request, RequestKind, SessionOpen
from holdfast.model import GroupRecord
from holdfast.sync import consumer
from holdfast.sync.consumer import ConsumerSession, SessionPhase
from holdfast.testing.explorer.numbered import Numbered
from holdfast.testing.explorer.site import CLUSTER, NOW, VOLUME, Output
from holdfast.testing.explorer.sites import Things
from holdfast.testing.simulation.history import block_of
from holdfast.units import BLOCK_BYTES, NodeName

HOME = NodeName("client")
LATER = float("inf")
Act = Callable[[ConsumerSession, list[Output]], None]


@frozen
class ClientFacts:
    """What may be seen of the consumer from outside."""

    phase: str
    unanswered: tuple[int, ...]
    seeks: bool
    """It would dial if its time came."""


class Clients(Numbered):
    """All states of the consumer ever met, by number."""

    def __init__(self, things: Things) -> None:
        """Begin with none."""
        super().__init__()
        self.things = things
        self.facts: list[ClientFacts] = []
        self._known: dict[tuple[int, Hashable], tuple[int, tuple[Output, ...]]] = {}

    def look(self, thing: Any, _fingerprint: object) -> None:
        """Keep what may be seen of the consumer."""
        record = thing.record
        self.facts.append(
            ClientFacts(
                thing.phase.value,
                tuple(thing.unanswered),
                thing.phase is SessionPhase.SEEKING and record is not None,
            )
        )

    def add(self, session: ConsumerSession) -> int:
        """Return the number of a state."""
        session._retry_s = consumer.RETRY_S_MIN  # noqa: SLF001 (how long it waits is no matter)
        session.retry_at = LATER if session.phase is SessionPhase.SEEKING else NOW.mono
        session.last_refusal = ""
        session._changed = min(session._changed, 1)  # noqa: SLF001 (it asks for no flush)
        return self.number(session)

    def react(self, number: int, name: Hashable, act: Act) -> tuple[int, tuple[Output, ...]]:
        """Return what becomes of the consumer by `act`, and what it puts out."""
        key = (number, name)
        known = self._known.get(key)
        if known is None:
            session: ConsumerSession = self.load(number)
            out: list[Output] = []
            act(session, out)
            known = self._known[key] = (self.add(session), self.things.numbered(out))
        return known


def new_client() -> ConsumerSession:
    """Return a consumer that has not found its volume yet."""
    return ConsumerSession(
        SessionOpen(CLUSTER, VOLUME, HOME, f"{HOME}/1", f"{HOME}-1", False, False, 0)
    )


def submit(write: int, block: int) -> Act:
    """Return the input that asks for write number `write`, of a block of its own value."""
    request = Request(
        write, int(RequestKind.WRITE), 0, block * BLOCK_BYTES, BLOCK_BYTES, block_of(write)
    )

    def act(session: ConsumerSession, out: list[Output]) -> None:
        message = session.submit((request,), NOW.mono)
        if message is not None:
            out.append(("send", 1, (message,)))

    return act


def messages(parcel: Sequence[Message]) -> Act:
    """Return the input of messages of the primary."""

    def act(session: ConsumerSession, out: list[Output]) -> None:
        _carry(session.on_messages(parcel, NOW.mono), out)

    return act


def lost(session: ConsumerSession, out: list[Output]) -> None:
    """The link broke, or could not be opened."""
    _carry(session.on_lost(NOW.mono), out)


def on_record(record: GroupRecord) -> Act:
    """Return the input of a record that the store shows."""

    def act(session: ConsumerSession, out: list[Output]) -> None:
        _carry(session.on_record(record, NOW.mono), out)

    return act


def retry(session: ConsumerSession, out: list[Output]) -> None:
    """It is time to look for the primary again."""
    _carry(session.tick(LATER), out)


def _carry(outcomes: Sequence[consumer.Outcome], out: list[Output]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, consumer.Dial):
            out.append(("close", 1))
            out.append(("open", 1, outcome.node, outcome.hello))
        elif isinstance(outcome, consumer.Hang):
            out.append(("close", 1))
        elif isinstance(outcome, consumer.Tell):
            out.append(("send", 1, tuple(outcome.messages)))
        else:
            # It is the only consumer, so no other takes the volume from it.
            assert not isinstance(outcome, consumer.Ended), outcome
