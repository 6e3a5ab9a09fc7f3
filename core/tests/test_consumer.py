"""The consumer's session: a pause when the primary changes, never a loss (R7)."""

from __future__ import annotations

import errno

import attrs
import pytest

from holdfast.messages import (
    Refused,
    Replies,
    Reply,
    Request,
    RequestFlag,
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


def opened(generation: int = 1, loss_epoch: int = 0) -> SessionOpened:
    return SessionOpened(Epoch(1), generation, 1 << 20, "read-write", loss_epoch)


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


def ask(machine: ConsumerSession, request_id: int, kind: RequestKind, flags: int = 0) -> Request:
    """Hand one request to the session; nothing answers it yet."""
    length = 0 if kind is RequestKind.FLUSH else 512
    data = b"x" * length if kind is RequestKind.WRITE else b""
    request = Request(request_id, kind, flags, 0, length, data)
    machine.submit([request], 0.0)
    return request


def answer(machine: ConsumerSession, *ids: int, code: int = 0) -> list[int]:
    """Let the primary answer; return the errno values that the consumer is given."""
    return [r.errno for r in machine.answered([Reply(i, code) for i in ids])]


def attached() -> ConsumerSession:
    machine = session()
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened()], 0.0)
    return machine


def resume(machine: ConsumerSession, loss_epoch: int) -> None:
    """The link breaks, and a primary that knows of losses takes the session again."""
    machine.on_lost(1.0)
    machine.tick(2.0)
    machine.on_messages([opened(loss_epoch=loss_epoch)], 2.0)


CHANGES = [RequestKind.WRITE, RequestKind.DISCARD, RequestKind.ZERO]


@pytest.mark.parametrize("kind", CHANGES)
def test_after_a_loss_of_unflushed_changes_flushes_and_fua_writes_fail_for_good(
    kind: RequestKind,
) -> None:
    machine = attached()
    ask(machine, 1, kind)
    assert answer(machine, 1) == [0]
    resume(machine, loss_epoch=2)
    for number in (10, 20):
        ask(machine, number, RequestKind.FLUSH)
        ask(machine, number + 1, RequestKind.WRITE, RequestFlag.FUA)
        ask(machine, number + 2, RequestKind.WRITE)
        ask(machine, number + 3, RequestKind.READ)
        told = answer(machine, number, number + 1, number + 2, number + 3)
        assert told == [errno.EIO, errno.EIO, 0, 0]
        resume(machine, loss_epoch=2)


def test_a_flush_that_was_unanswered_at_the_loss_fails() -> None:
    machine = attached()
    ask(machine, 1, RequestKind.WRITE)
    answer(machine, 1)
    ask(machine, 2, RequestKind.FLUSH)
    resume(machine, loss_epoch=2)
    assert answer(machine, 2) == [errno.EIO]


def test_a_flush_covers_what_was_answered_before_it_was_asked_for_and_no_more() -> None:
    machine = attached()
    ask(machine, 1, RequestKind.FLUSH)
    ask(machine, 2, RequestKind.WRITE)
    assert answer(machine, 2) == [0]
    assert answer(machine, 1) == [0]
    resume(machine, loss_epoch=2)
    ask(machine, 3, RequestKind.FLUSH)
    assert answer(machine, 3) == [errno.EIO]


def test_a_flush_that_failed_covers_nothing() -> None:
    machine = attached()
    ask(machine, 1, RequestKind.WRITE)
    answer(machine, 1)
    ask(machine, 2, RequestKind.FLUSH)
    assert answer(machine, 2, code=errno.EIO) == [errno.EIO]
    resume(machine, loss_epoch=2)
    assert machine.has_lost


def test_a_loss_disturbs_nobody_who_had_nothing_unflushed() -> None:
    machine = attached()
    ask(machine, 1, RequestKind.WRITE)
    ask(machine, 2, RequestKind.WRITE)
    answer(machine, 1)
    ask(machine, 3, RequestKind.FLUSH)  # Behind it another one, which overtakes it.
    answer(machine, 2)
    ask(machine, 4, RequestKind.FLUSH)
    assert answer(machine, 4, 3) == [0, 0]
    ask(machine, 5, RequestKind.WRITE, RequestFlag.FUA)
    assert answer(machine, 5) == [0]
    ask(machine, 6, RequestKind.WRITE)
    assert answer(machine, 6, code=errno.ENOSPC) == [errno.ENOSPC]
    ask(machine, 7, RequestKind.READ)
    answer(machine, 7)
    ask(machine, 8, RequestKind.WRITE)  # Unanswered: it is asked for again.
    resume(machine, loss_epoch=2)
    ask(machine, 9, RequestKind.FLUSH)
    assert answer(machine, 8, 9) == [0, 0]


def test_a_loss_before_a_session_or_told_of_before_is_none_of_it() -> None:
    machine = session()
    machine.on_record(record(1, "a"), 0.0)
    machine.on_messages([opened(loss_epoch=7)], 0.0)
    ask(machine, 1, RequestKind.WRITE)
    answer(machine, 1)
    for told in (7, 5):  # The latter by a primary that has been deposed and does not know.
        resume(machine, loss_epoch=told)
        ask(machine, 2, RequestKind.FLUSH)
        assert answer(machine, 2) == [0]
        ask(machine, 3, RequestKind.WRITE)
        answer(machine, 3)
