"""Both ends of a replication link without sockets: what arrives, what is completed when, hostile bytes."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.transport_nvmeof.tests.machines import joined
from plugins.transport_nvmeof.tests.test_pdu import split

from holdfast import messages as m
from holdfast.errors import LocalProtocolError, RemoteProtocolError
from holdfast.sockets import Counters
from holdfast.testing.checks.transport import EXAMPLES
from holdfast.units import MIB, Epoch, Sequence
from holdfast_transport_nvmeof.commands import IoOpcode
from holdfast_transport_nvmeof.frames import frames_of, message_of
from holdfast_transport_nvmeof.host_stream import HostStream, Press
from holdfast_transport_nvmeof.pdu import FatalErrorStatus, Framing, PduError, PduType
from holdfast_transport_nvmeof.replication import (
    SQE,
    STREAM_COMMANDS_MAX,
    Advertised,
    Mark,
    ReplicationOpcode,
)
from holdfast_transport_nvmeof.status import STATUS_MASK, Status
from holdfast_transport_nvmeof.stream import Stream
from holdfast_transport_nvmeof.target_stream import TargetStream

DIGESTS = [(False, False), (True, False), (False, True), (True, True)]
BLOCK = bytes(range(256)) * 2


def plain(message: Any) -> Any:
    """Return a message that compares by value, whatever buffers its payloads are in."""
    if isinstance(message, m.Batch):
        ops = [(*tuple(op[:3]), bytes(op[3])) for op in message.ops]
        return message.epoch, message.first, message.commit, ops
    if isinstance(message, m.Requests):
        return message.generation, [(*r[:5], bytes(r[5])) for r in message.requests]
    if isinstance(message, m.Replies):
        return [(r[0], r[1], bytes(r[2])) for r in message.replies]
    if isinstance(message, m.ReadAnswer):
        return attrs.astuple(attrs.evolve(message, data=bytes(message.data)))
    return message


class Ends:
    """Two ends, joined by hand."""

    def __init__(self, digests: tuple[bool, bool] = (False, False)) -> None:
        self.host = HostStream(Framing({}, *digests), Counters())
        self.target = TargetStream(Framing({}, *digests), Counters())
        self.carry(self.host, self.target)

    @staticmethod
    def carry(near: Stream, far: Stream) -> list[Any]:
        """Carry the output of one end to the other; return the messages that it makes."""
        data = joined(near.take_output())
        got: list[Any] = []
        assert far.parse(memoryview(bytearray(data)), 0, len(data), got) == len(data)
        return got

    def responses(self) -> list[tuple[int, int]]:
        """Return command identifier and status of each completion in the target's output."""
        found = []
        for pdu in split(joined(self.target.take_output())):
            if pdu[0] == PduType.CAPSULE_RESP:
                cid, status = struct.unpack_from("<HH", pdu, 20)
                found.append((cid, status >> 1 & STATUS_MASK))
        return found


def batch(first: int, *ops: m.Op, epoch: int = 7, commit: int = 0) -> m.Batch:
    return m.Batch(Epoch(epoch), Sequence(first), Sequence(commit), ops)


def write(block: int, data: bytes = BLOCK) -> m.Op:
    return m.Op(m.OpKind.WRITE, block * 512, len(data), data)


FLUSH = m.Op(m.OpKind.FLUSH, 0, 0)


def ack(applied: int, durable: int = 0) -> m.Ack:
    return m.Ack(Epoch(7), Sequence(applied), Sequence(durable))


@pytest.mark.parametrize("digests", DIGESTS)
def test_every_kind_of_message_passes_both_ways(digests: tuple[bool, bool]) -> None:
    ends = Ends(digests)
    for near, far in ((ends.host, ends.target), (ends.target, ends.host)):
        for example in EXAMPLES:
            near.send([example])
            assert [plain(got) for got in ends.carry(near, far)] == [plain(example)]
            ends.carry(far, near)


def test_a_write_is_completed_when_applied_and_a_flush_when_durable() -> None:
    ends = Ends()
    ends.host.send([batch(1, write(0), FLUSH, write(1))])
    ends.carry(ends.host, ends.target)
    ends.target.send([ack(0)])
    assert ends.responses() == []
    ends.target.send([ack(2)])
    assert ends.responses() == [(0, 0)]
    ends.target.send([ack(3, durable=1)])
    assert ends.responses() == [(2, 0)]
    ends.target.send([ack(3, durable=3)])
    assert ends.responses() == [(1, 0)]


@pytest.mark.parametrize(
    ("last_word", "status"),
    [
        (m.Refused("stale-epoch", "Epoch 6 is over.", Epoch(7)), Status.RESERVATION_CONFLICT),
        (m.CopyFailed(Epoch(7), "no-space", "Full."), Status.CAPACITY_EXCEEDED),
        (m.CopyFailed(Epoch(7), "io-error", "Broken."), Status.WRITE_FAULT),
    ],
)
def test_a_copy_that_gives_up_fails_what_is_outstanding(
    last_word: m.Message, status: Status
) -> None:
    ends = Ends()
    ends.host.send([batch(1, write(0), FLUSH)])
    ends.carry(ends.host, ends.target)
    ends.target.send([last_word])
    assert ends.responses() == [(0, status), (1, status)]
    ends.target.send([ack(2, 2)])
    assert ends.responses() == []


def test_messages_wait_in_order_while_all_command_identifiers_are_in_use() -> None:
    ends = Ends()
    count = STREAM_COMMANDS_MAX + 10
    ops = [m.Op(m.OpKind.ZERO, n * 512, 512) for n in range(count)]
    change = m.EpochChange(Epoch(8), b"record")
    ends.host.send([batch(1, *ops), change])
    assert ends.host.is_waiting
    (first,) = ends.carry(ends.host, ends.target)
    assert len(first.ops) == STREAM_COMMANDS_MAX
    ends.target.send([ack(10)])
    ends.carry(ends.target, ends.host)
    rest, last = ends.carry(ends.host, ends.target)
    assert (rest.first, len(rest.ops), last) == (STREAM_COMMANDS_MAX + 1, 10, change)
    assert not ends.host.is_waiting


def test_links_of_one_transport_pack_a_batch_once_and_keep_nothing_of_it() -> None:
    press = Press()
    hosts = [HostStream(Framing({}, True, True), Counters(), press) for _ in range(2)]
    same = batch(1, write(0), FLUSH, write(8, BLOCK * 8))
    sent = []
    for host in hosts:
        host.take_output()
        host.send([same])
        sent.append(host.take_output())
    assert sent[0][0] is sent[1][0]
    hosts[0].send([batch(4, write(1))])
    hosts[1].send([batch(1, write(1), epoch=8)])  # Its places, and so its identifiers, are in use.
    target = TargetStream(Framing({}, True, True), Counters())
    for data in (sent[1], hosts[1].take_output()):
        got: list[Any] = []
        target.parse(memoryview(joined(data)), 0, len(joined(data)), got)
    assert plain(got[0]) == plain(batch(1, write(1), epoch=8))
    hosts[0].parse(memoryview(b""), 0, 0, [])
    assert press.batch is None
    assert not press.output


def test_what_nvme_cannot_say_is_refused_before_it_is_sent() -> None:
    ends = Ends()
    for op in (
        m.Op(m.OpKind.WRITE, 0, 511, bytes(511)),
        m.Op(m.OpKind.WRITE, 100, 512, bytes(512)),
        m.Op(m.OpKind.WRITE, 0, 512, bytes(1024)),
        m.Op(m.OpKind.DISCARD, 0, 0),
        m.Op(m.OpKind.FLUSH, 512, 0),
    ):
        with pytest.raises(LocalProtocolError):
            ends.host.send([batch(1, op)])


# --- hostile and damaged input ------------------------------------------------------------------


def capsule(ends: Ends, data: bytes = b"", **fields: int) -> bytes:
    values = {
        "opcode": int(IoOpcode.WRITE), "flags": 0x40, "cid": 0, "nsid": 1, "epoch": 7,
        "sequence": 1, "address": 0, "length": len(data), "sgl": 1, "slba": 0,
        "cdw12": len(data) // 512 - 1 if data else 0, "cdw13": int(Mark.FIRST), "commit": 0,
    }  # fmt: skip
    sqe = SQE.pack(*(values | fields).values())
    return joined(ends.host._framing.pdu(PduType.CAPSULE_CMD, 0, sqe, data))


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"opcode": 0x55}, Status.INVALID_COMMAND_OPCODE),
        ({"opcode": int(IoOpcode.READ)}, Status.INVALID_COMMAND_OPCODE),
        ({"opcode": int(ReplicationOpcode.RECEIVE), "cid": 5}, Status.INVALID_COMMAND_OPCODE),
        ({"opcode": int(ReplicationOpcode.SEND), "cid": 0x8000}, Status.INVALID_FIELD_IN_COMMAND),
        ({"flags": 0x41}, Status.INVALID_FIELD_IN_COMMAND),
        ({"nsid": 2}, Status.INVALID_NAMESPACE_OR_FORMAT),
        ({"length": 1024}, Status.DATA_SGL_LENGTH_INVALID),
        ({"address": 64}, Status.DATA_SGL_LENGTH_INVALID),
        ({"cdw12": 3}, Status.INVALID_FIELD_IN_COMMAND),
        ({"cdw13": 0}, Status.INVALID_FIELD_IN_COMMAND),
        ({"slba": 1 << 62}, Status.LBA_OUT_OF_RANGE),
    ],
)
def test_a_wrong_command_ends_the_link_with_its_status(
    fields: dict[str, int], status: Status
) -> None:
    ends = Ends()
    data = capsule(ends, BLOCK, **fields)
    got: list[Any] = []
    with pytest.raises(RemoteProtocolError):
        ends.target.parse(memoryview(data), 0, len(data), got)
    assert got == []
    assert ends.responses() == [(fields.get("cid", 0), status)]


def test_a_batch_that_does_not_go_on_where_it_was_ends_the_link() -> None:
    ends = Ends()
    data = capsule(ends, BLOCK)
    data += capsule(ends, BLOCK, cid=1, sequence=3, cdw13=0) + capsule(ends, BLOCK, cid=2)
    got: list[Any] = []
    with pytest.raises(RemoteProtocolError, match="out of place"):
        ends.target.parse(memoryview(data), 0, len(data), got)
    assert [plain(each) for each in got] == [plain(batch(1, write(0)))]


def test_a_command_identifier_in_use_terminates_the_connection() -> None:
    ends = Ends()
    data = capsule(ends, BLOCK) * 2
    with pytest.raises(PduError) as caught:
        ends.target.parse(memoryview(data), 0, len(data), [])
    assert caught.value.fes is FatalErrorStatus.PDU_SEQUENCE_ERROR
    (term,) = split(joined(ends.target.take_output()))
    assert term[0] == PduType.C2H_TERM_REQ


@pytest.mark.parametrize("digests", DIGESTS)
def test_a_host_does_not_believe_answers_to_what_it_never_asked(
    digests: tuple[bool, bool],
) -> None:
    for answer in (
        struct.pack("<BBBBIIIHHHH", 5, 0, 24, 0, 24, 0, 0, 0, 1, 77, 0),
        struct.pack("<BBBBIHHII4x", 7, 0, 24, 24, 56, 0xFF00, 0, 4096, 32) + bytes(32),
        struct.pack("<BBBBIHHII4x", 7, 0, 24, 24, 56, 3, 0, 0, 32) + bytes(32),
    ):
        ends = Ends(digests)
        with pytest.raises(RemoteProtocolError):
            ends.host.parse(memoryview(answer), 0, len(answer), [])


OPS = st.one_of(
    st.builds(write, st.integers(0, 1 << 40), st.sampled_from([BLOCK, BLOCK * 8, BLOCK * 33])),
    st.builds(
        lambda kind, at, blocks: m.Op(kind, at * 512, blocks * 512),
        st.sampled_from([m.OpKind.ZERO, m.OpKind.SYNC_ZERO, m.OpKind.DISCARD]),
        st.integers(0, 1 << 40),
        st.integers(1, 1 << 32),
    ),
    st.just(FLUSH),
    st.builds(lambda block: m.Op(m.OpKind.SYNC_WRITE, block * 512, 512, BLOCK), st.integers(0, 9)),
)
BATCHES = st.lists(
    st.tuples(st.lists(OPS, max_size=6), st.integers(0, 5), st.integers(0, 3)),
    min_size=1,
    max_size=5,
)


def stream_of(batches: list[tuple[list[m.Op], int, int]]) -> list[m.Batch]:
    """Return batches whose sequences rise, with gaps."""
    made, place = [], 1
    for ops, gap, commit in batches:
        made.append(batch(place + gap, *ops, commit=commit))
        place += gap + len(ops)
    return made


@settings(max_examples=150, deadline=None)
@given(
    batches=BATCHES,
    digests=st.sampled_from(DIGESTS),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    is_slow=st.booleans(),
)
def test_batches_arrive_however_the_bytes_are_cut(
    *,
    batches: list[tuple[list[m.Op], int, int]],
    digests: tuple[bool, bool],
    cuts: list[float],
    is_slow: bool,
) -> None:
    """With the quick way for writes, and by the close look alone."""
    ends = Ends(digests)
    if is_slow:
        ends.target._on_run = lambda _view, start, _end, _into: (start, 0)  # type: ignore[method-assign, assignment]
    sent = stream_of(batches)
    ends.host.send(sent)
    data = joined(ends.host.take_output())
    got: list[Any] = []
    view, start = memoryview(bytearray(data)), 0
    for end in sorted({*(int(cut * len(data)) for cut in cuts), len(data)}):
        start = ends.target.parse(view, start, end, got)
    assert start == len(data)
    assert [(b.epoch, b.commit, s) for b in sent for s in _places(b)] == [
        (b.epoch, b.commit, s) for b in got for s in _places(b)
    ]
    assert [plain(b)[3] for b in sent if b.ops] == _merged(got, sent)


@settings(max_examples=100, deadline=None)
@given(
    batches=BATCHES,
    digests=st.sampled_from(DIGESTS),
    start=st.sampled_from([0, STREAM_COMMANDS_MAX - 3]),
    reached=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5),
)
def test_every_command_is_completed_once_whatever_acknowledgements_cover(
    batches: list[tuple[list[m.Op], int, int]],
    digests: tuple[bool, bool],
    start: int,
    reached: list[tuple[int, int]],
) -> None:
    ends = Ends(digests)
    sent = [b._replace(first=Sequence(b.first + start)) for b in stream_of(batches)]
    ends.host.send(sent)
    ends.carry(ends.host, ends.target)
    applied = durable = start
    for more_applied, more_durable in [*reached, (100, 100)]:
        applied, durable = applied + more_applied, durable + more_durable
        ends.target.send([ack(applied, durable)])
        assert ends.carry(ends.target, ends.host) == [ack(applied, durable)]
        open_ = [
            place
            for each in sent
            for place, op in enumerate(each.ops, each.first)
            if place > (durable if op.kind == m.OpKind.FLUSH else applied)
        ]
        assert ends.host._ops_open == len(open_) == ends.host._busy.count(1, 0, STREAM_COMMANDS_MAX)
        assert ends.target._busy[:STREAM_COMMANDS_MAX] == ends.host._busy[:STREAM_COMMANDS_MAX]


def _places(each: m.Batch) -> list[int]:
    return list(range(each.first, each.first + len(each.ops))) or [-each.first]


def _merged(got: list[m.Batch], sent: list[m.Batch]) -> list[Any]:
    """Return the operations that arrived, in runs as long as they were sent."""
    ops = iter([op for each in got for op in plain(each)[3]])
    return [[next(ops) for _ in each.ops] for each in sent if each.ops]


@settings(max_examples=300, deadline=None)
@given(
    batches=BATCHES,
    digests=st.sampled_from(DIGESTS),
    at=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_a_damaged_byte_never_gets_through_digests(
    batches: list[tuple[list[m.Op], int, int]], digests: tuple[bool, bool], at: float, flip: int
) -> None:
    """And without them it never does worse than to make other messages or a protocol error."""
    ends = Ends(digests)
    sent = stream_of(batches)
    ends.host.send(sent)
    data = bytearray(joined(ends.host.take_output()))
    data[int(at * len(data))] ^= flip
    got: list[Any] = []
    with contextlib.suppress(RemoteProtocolError):
        ends.target.parse(memoryview(data), 0, len(data), got)
    if digests == (True, True):
        right = [op for each in sent for op in plain(each)[3]]
        arrived = [op for each in got for op in plain(each)[3]]
        assert arrived == right[: len(arrived)]


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400), kind=st.sampled_from([*PduType, 0x55]))
def test_rubbish_ends_either_end_with_a_protocol_error_or_waits(data: bytes, kind: int) -> None:
    for data_ in (data, bytes([kind]) + data[1:]):
        ends = Ends()
        for end in (ends.host, ends.target):
            try:
                end.parse(memoryview(data_), 0, len(data_), [])
            except RemoteProtocolError:
                assert end.take_output() or kind in {PduType.H2C_TERM_REQ, PduType.C2H_TERM_REQ}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_frame_is_a_message_or_a_protocol_error(data: st.DataObject) -> None:
    example = data.draw(st.sampled_from(EXAMPLES))
    raw = bytearray(b"".join(b"".join(map(bytes, parts)) for parts, _ in frames_of(example)))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with contextlib.suppress(RemoteProtocolError):
        message_of(memoryview(raw))


@given(area=st.binary(min_size=8, max_size=200), ours=st.booleans())
def test_what_a_controller_says_of_itself_is_read_or_refused(*, area: bytes, ours: bool) -> None:
    own = Advertised("c", "n1").pack()
    assert Advertised.unpack(own.ljust(1024, b"\0")) == (1, Advertised("c", "n1"))
    with contextlib.suppress(ValueError):
        Advertised.unpack(own[:8] + area if ours else area)


def test_a_request_of_the_largest_size_passes() -> None:
    ends = Ends()
    data = bytes(32 * MIB)
    ends.host.send([m.Requests(1, [m.Request(1, m.RequestKind.WRITE, 0, 0, len(data), data)])])
    (got,) = ends.carry(ends.host, ends.target)
    assert len(got.requests[0].data) == len(data)
