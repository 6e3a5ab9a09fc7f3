"""The consumer's session: a pause when the primary changes, never a loss (R7)."""

from __future__ import annotations

import attrs

from holdfast.messages import (
    Refused,
    Replies,
    Reply,
    Request,
    RequestKind,
    Requests,
    SessionOpen,
    SessionOpened,
)
from holdfast.model import CopyState, GroupRecord, Member
from holdfast.node.sessions import session_id
from holdfast.sync.attachments import is_same_consumer
from holdfast.sync.consumer import (
    Answer,
    ConsumerSession,
    Dial,
    Ended,
    Hang,
    Outcome,
    SessionPhase,
    Tell,
)
from holdfast.units import CopyId, Epoch, NodeName, VolumeId

VOLUME = VolumeId("v" * 32)


def record(epoch: int, primary: str) -> GroupRecord:
    members = tuple(
        Member(CopyId(copy), NodeName(f"node-{copy}"), CopyState.IN_SYNC) for copy in ("a", "b")
    )
    return GroupRecord(VOLUME, Epoch(epoch), CopyId(primary), members)


def session() -> ConsumerSession:
    hello = SessionOpen("c", VOLUME, NodeName("x"), "s", "p", False, False, 0)
    return ConsumerSession(hello)


def opened(generation: int = 1) -> SessionOpened:
    return SessionOpened(Epoch(1), generation, 1 << 20, "read-write")


def write(request_id: int) -> Request:
    return Request(request_id, RequestKind.WRITE, 0, 0, 512, b"x" * 512)


def told(outcomes: list[Outcome]) -> list[int]:
    """Return the ids of the requests that go to the primary."""
    return [
        request.id
        for outcome in outcomes
        if isinstance(outcome, Tell)
        for message in outcome.messages
        if isinstance(message, Requests)
        for request in message.requests
    ]


def test_unanswered_requests_go_to_the_new_primary_in_their_order() -> None:
    machine = session()
    (dial,) = machine.on_record(record(1, "a"), 0.0)
    assert isinstance(dial, Dial)
    assert dial.node == "node-a"
    machine.on_messages([opened()], 0.0)
    asked = machine.submit([write(1), write(2), write(3)], 0.0)
    assert asked is not None
    assert [request.id for request in asked.requests] == [1, 2, 3]
    machine.on_messages([Replies([Reply(2, 0)])], 0.0)
    machine.on_lost(1.0)
    assert machine.submit([write(4)], 1.0) is None
    dials = machine.on_record(record(2, "b"), 1.0)
    assert [d.node for d in dials if isinstance(d, Dial)] == ["node-b"]
    assert told(machine.on_messages([opened()], 1.1)) == [1, 3, 4]


def test_a_frozen_primary_is_left_when_the_record_names_another() -> None:
    """Its link stays open, so only the record tells."""
    machine = session()
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened()], 0.0)
    machine.submit([write(1)], 0.0)
    outcomes = machine.on_record(record(2, "b"), 3.0)
    assert isinstance(outcomes[0], Hang)
    assert isinstance(outcomes[1], Dial)
    assert outcomes[1].node == "node-b"
    assert told(machine.on_messages([opened()], 3.1)) == [1]


def test_an_older_record_that_comes_late_moves_nothing() -> None:
    machine = session()
    machine.on_record(record(2, "b"), 0.0)
    machine.on_messages([opened()], 0.0)
    assert machine.on_record(record(1, "a"), 1.0) == []
    assert machine.phase is SessionPhase.OPEN


def test_an_epoch_that_rises_under_the_same_primary_moves_nothing() -> None:
    machine = session()
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened()], 0.0)
    assert machine.on_record(attrs.evolve(record(2, "a")), 1.0) == []
    assert machine.phase is SessionPhase.OPEN


def test_a_fenced_session_answers_everything_with_an_error_and_ends() -> None:
    machine = session()
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened()], 0.0)
    machine.submit([write(1)], 0.0)
    outcomes = machine.on_messages([Refused("attached-elsewhere", "At node y.")], 1.0)
    assert [r.errno != 0 for o in outcomes if isinstance(o, Answer) for r in o.replies] == [True]
    assert any(isinstance(o, Ended) for o in outcomes)
    assert machine.phase is SessionPhase.CLOSED


def test_not_primary_is_tried_again_after_a_moment() -> None:
    machine = session()
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([Refused("not-primary", "Not me.")], 0.0)
    assert machine.phase is SessionPhase.SEEKING
    assert any(isinstance(o, Dial) for o in machine.tick(1.0))


def test_the_io_deadline_answers_what_has_waited_too_long() -> None:
    machine = session()
    machine.deadline_s = 5.0
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened()], 0.0)
    machine.submit([write(1)], 0.0)
    machine.on_lost(1.0)
    assert not any(isinstance(o, Answer) for o in machine.tick(4.0))
    answers = [r.id for o in machine.tick(6.0) if isinstance(o, Answer) for r in o.replies]
    assert answers == [1]


def test_a_late_answer_is_left_behind_on_the_old_link_when_its_number_is_used_anew() -> None:
    machine = session()
    machine.deadline_s = 5.0
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened()], 0.0)
    machine.submit([write(1), write(2)], 0.0)
    machine.submit([write(3)], 3.0)
    assert machine.gives_up_at == 5.0
    outcomes = machine.tick(5.0)
    assert [type(o) for o in outcomes] == [Hang, Answer]
    assert machine.phase is SessionPhase.SEEKING
    assert machine.gives_up_at == 8.0
    assert machine.submit([write(1)], 5.0) is None
    (dial,) = machine.tick(5.0)
    assert isinstance(dial, Dial)
    # What is resubmitted is the request that still has time, and the new one, in this order.
    (_, told) = machine.on_messages([opened(generation=2)], 5.1)
    assert isinstance(told, Tell)
    (requests,) = told.messages
    assert isinstance(requests, Requests)
    assert [r.id for r in requests.requests] == [3, 1]


def test_a_consumer_is_known_by_its_session_ids_and_nobody_else_is() -> None:
    mine, again, other = session_id("nqn.host"), session_id("nqn.host"), session_id("nqn.other")
    assert mine != again
    assert is_same_consumer(mine, again)
    assert not is_same_consumer(mine, other)
    assert not is_same_consumer(session_id(), session_id())
    assert not is_same_consumer("", "")
