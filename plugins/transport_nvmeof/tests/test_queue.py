"""I/O queues without sockets: commands, data both ways, and hosts that break the rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugins.transport_nvmeof.tests.machines import LIMITS, SIZE, Target, joined
from plugins.transport_nvmeof.tests.test_pdu import split

from holdfast.messages import Reply, RequestFlag, RequestKind
from holdfast.units import KIB, MIB
from holdfast_transport_nvmeof.commands import AD, DEAC, DSM_RANGE, FUA, Command, IoOpcode, SglType
from holdfast_transport_nvmeof.fabrics import Connect
from holdfast_transport_nvmeof.io_commands import IoCommands
from holdfast_transport_nvmeof.namespace import AnaState
from holdfast_transport_nvmeof.pdu import (
    DATA,
    FatalErrorStatus,
    Framing,
    Offset,
    PduError,
    PduFlag,
    PduType,
    ic_pdu,
)
from holdfast_transport_nvmeof.queue import Phase, TargetQueue
from holdfast_transport_nvmeof.status import DO_NOT_RETRY, STATUS_MASK, Status


def command(
    opcode: int, cid: int = 1, *, lba: int = 0, blocks: int = 1, flags: int = 0, **fields: int
) -> Command:
    base = Command(
        opcode, 0x40, cid, 1, 0, 0, 0, blocks * 512, SglType.TRANSPORT_DATA_BLOCK,
        lba & 0xFFFFFFFF, lba >> 32, blocks - 1 | flags,
    )  # fmt: skip
    return base._replace(**fields)


def capsule(target: Target, sqe: Command, data: bytes = b"") -> bytes:
    if data:
        sqe = sqe._replace(sgl_type=SglType.DATA_BLOCK_OFFSET, sgl_length=len(data))
    return joined(target.queue.wire.framing.pdu(PduType.CAPSULE_CMD, 0, sqe.pack(), data))


def h2c(target: Target, cid: int, tag: int, offset: int, data: bytes, flags: int) -> bytes:
    fields = DATA.pack(cid, tag, offset, len(data))
    return joined(target.queue.wire.framing.pdu(PduType.H2C_DATA, flags, fields, data))


def answers(target: Target) -> list[bytes]:
    return split(joined(target.queue.take_output()))


def status_of(pdu: bytes) -> int:
    assert pdu[0] == PduType.CAPSULE_RESP
    (field,) = struct.unpack_from("<H", pdu, 22)
    return int(field >> 1)


def fail_with(target: Target, sqe: Command, data: bytes = b"") -> int:
    target.feed(capsule(target, sqe, data))
    (pdu,) = answers(target)
    return status_of(pdu) & STATUS_MASK


@pytest.mark.parametrize("digests", [0, 1, 2, 3])
@pytest.mark.parametrize("flow_control", [False, True])
def test_a_write_in_a_capsule_is_read_back(*, digests: int, flow_control: bool) -> None:
    target = Target(digests=digests, flow_control=flow_control)
    data = bytes(range(256)) * 16
    target.feed(capsule(target, command(IoOpcode.WRITE, 5, lba=8, blocks=8, flags=FUA), data))
    (written,) = answers(target)
    assert status_of(written) == 0
    assert target.asked[0][1:5] == (RequestKind.WRITE, RequestFlag.FUA, 4096, 4096)
    target.feed(capsule(target, command(IoOpcode.READ, 6, lba=8, blocks=8)))
    read, *rest = answers(target)
    assert read[0] == PduType.C2H_DATA
    start = read[3]
    assert read[start : start + 4096] == data
    assert bool(read[1] & PduFlag.SUCCESS) is not flow_control
    assert len(rest) == flow_control
    if rest:
        assert struct.unpack_from("<H", rest[0], 16)[0] == 3, "SQHD counts Connect, too"


@pytest.mark.parametrize("piece", [512, 64 * KIB, 128 * KIB])
def test_a_large_write_is_asked_for_and_comes_in_pieces(piece: int) -> None:
    target = Target(digests=3)
    target.feed(capsule(target, command(IoOpcode.WRITE, 9, blocks=256)))
    (r2t,) = answers(target)
    assert r2t[0] == PduType.R2T
    cid, tag, offset, length = DATA.unpack_from(r2t, 8)
    assert (cid, offset, length) == (9, 0, 128 * KIB)
    data = bytes(range(256)) * 512
    for at in range(0, length, piece):
        last = PduFlag.LAST_PDU if at + piece == length else 0
        target.feed(h2c(target, cid, tag, at, data[at : at + piece], last))
    (done,) = answers(target)
    assert status_of(done) == 0
    assert target.memory[:length] == data


def test_damaged_data_fails_one_command_and_writes_nothing() -> None:
    target = Target(digests=2)
    raw = bytearray(capsule(target, command(IoOpcode.WRITE), b"x" * 512))
    raw[100] ^= 1
    target.feed(bytes(raw))
    assert status_of(answers(target)[0]) == Status.TRANSIENT_TRANSPORT_ERROR
    target.feed(capsule(target, command(IoOpcode.WRITE, 2, blocks=200)))
    (r2t,) = answers(target)
    whole = bytearray(h2c(target, 2, DATA.unpack_from(r2t, 8)[1], 0, b"y" * 102_400, 4))
    whole[100] ^= 1
    target.feed(bytes(whole))
    assert status_of(answers(target)[0]) == Status.TRANSIENT_TRANSPORT_ERROR
    assert not any(target.memory)
    assert not target.asked


def test_zeroes_discards_compares_and_flushes() -> None:
    target = Target()
    target.memory[:] = b"m" * SIZE
    target.feed(capsule(target, command(IoOpcode.WRITE_ZEROES, blocks=16, flags=FUA)))
    target.feed(capsule(target, command(IoOpcode.WRITE_ZEROES, blocks=16, flags=DEAC)))
    kept, freed = (request.flags for request in target.asked)
    assert (kept, freed) == (RequestFlag.FUA | RequestFlag.NO_HOLE, 0)
    assert not any(target.memory[: 16 * 512])
    ranges = DSM_RANGE.pack(0, 8, 100) + DSM_RANGE.pack(0, 4096, 4096)
    dsm = command(IoOpcode.DATASET_MANAGEMENT, cdw10=1, cdw11=AD, cdw12=0)
    target.feed(capsule(target, dsm, ranges.ljust(4096, b"\xff")))
    assert [r[3:5] for r in target.asked[2:]] == [(51_200, 4096), (2 * MIB, 2 * MIB)]
    target.feed(capsule(target, command(IoOpcode.FLUSH, nsid=0xFFFFFFFF)))
    assert target.asked[-1].kind == RequestKind.FLUSH
    assert [status_of(pdu) for pdu in answers(target)] == [0] * 4
    assert fail_with(target, command(IoOpcode.COMPARE), bytes(512)) == 0
    assert fail_with(target, command(IoOpcode.COMPARE), b"c" * 512) == Status.COMPARE_FAILURE


def test_a_long_discard_is_a_few_requests_at_a_time() -> None:
    target = Target()
    target.queue.io.namespace.size_bytes = 1 << 42  # type: ignore[union-attr]
    target.is_held = True
    dsm = command(IoOpcode.DATASET_MANAGEMENT, cdw10=0, cdw11=AD, cdw12=0)
    target.feed(capsule(target, dsm, DSM_RANGE.pack(0, 0xFFFFFFFF, 0)))
    taken, answered = target.asked, 0
    while answered < len(taken):
        assert len(taken) - answered <= 8
        target.queue.answer([Reply(taken[answered].id, 0)])
        answered += 1
        taken += target.queue.take_requests()
    assert sum(request.length for request in taken) == 0xFFFFFFFF * 512
    assert [status_of(pdu) for pdu in answers(target)] == [0]


@pytest.mark.parametrize(
    ("sqe", "data", "status"),
    [
        (command(0x99), b"", Status.INVALID_COMMAND_OPCODE),
        (command(IoOpcode.READ, nsid=2), b"", Status.INVALID_NAMESPACE_OR_FORMAT),
        (command(IoOpcode.READ, nsid=0xFFFFFFFF), b"", Status.INVALID_NAMESPACE_OR_FORMAT),
        (command(IoOpcode.READ, lba=SIZE // 512), b"", Status.LBA_OUT_OF_RANGE),
        (command(IoOpcode.READ, lba=(1 << 64) - 1), b"", Status.LBA_OUT_OF_RANGE),
        (command(IoOpcode.WRITE, lba=SIZE // 512 - 1, blocks=2), b"", Status.LBA_OUT_OF_RANGE),
        (command(IoOpcode.READ, sgl_length=1024), b"", Status.DATA_SGL_LENGTH_INVALID),
        (command(IoOpcode.READ, blocks=4096), b"", Status.INVALID_FIELD_IN_COMMAND),
        (command(IoOpcode.WRITE, blocks=2), b"x" * 512, Status.DATA_SGL_LENGTH_INVALID),
        (command(IoOpcode.WRITE, sgl_address=1), b"x" * 512, Status.SGL_OFFSET_INVALID),
        (command(IoOpcode.READ, sgl_type=0x00), b"", Status.SGL_DESCRIPTOR_TYPE_INVALID),
        (command(IoOpcode.READ, flags=0)._replace(flags=0), b"", Status.INVALID_FIELD_IN_COMMAND),
        (command(IoOpcode.WRITE)._replace(flags=0x41), b"x" * 512, Status.INVALID_FIELD_IN_COMMAND),
        (command(IoOpcode.RESERVATION_REPORT), b"", Status.INVALID_COMMAND_OPCODE),
        (command(IoOpcode.FABRICS, nsid=0), b"", Status.INVALID_COMMAND_OPCODE),
    ],
)
def test_a_wrong_command_has_its_own_status(sqe: Command, data: bytes, status: Status) -> None:
    target = Target()
    target.feed(capsule(target, sqe, data))
    (pdu,) = answers(target)
    assert status_of(pdu) == status | DO_NOT_RETRY
    assert not target.asked
    assert target.queue.phase is Phase.LIVE


def test_what_a_path_or_a_volume_does_not_allow_is_refused() -> None:
    target = Target()
    space = target.controller.namespace
    assert space is not None
    space.is_writable = False
    write = command(IoOpcode.WRITE)
    assert fail_with(target, write, bytes(512)) == Status.NAMESPACE_IS_WRITE_PROTECTED
    space.ana = AnaState.INACCESSIBLE
    target.feed(capsule(target, command(IoOpcode.READ)))
    (pdu,) = answers(target)
    assert status_of(pdu) == Status.ASYMMETRIC_ACCESS_INACCESSIBLE, "a host may retry elsewhere"


def test_errors_of_the_volume_become_statuses() -> None:
    target = Target()
    target.is_held = True
    target.feed(capsule(target, command(IoOpcode.WRITE, 1), bytes(512)))
    target.feed(capsule(target, command(IoOpcode.READ, 2)))
    target.feed(capsule(target, command(IoOpcode.READ, 3)))
    target.feed(capsule(target, command(IoOpcode.FLUSH, 4)))
    first, second, third, flush = target.asked
    target.queue.answer([Reply(first.id, 28), Reply(second.id, 5)])
    target.queue.answer([Reply(third.id, 5)], Status.ASYMMETRIC_ACCESS_INACCESSIBLE)
    target.queue.answer([Reply(flush.id, 5)])
    assert [status_of(pdu) & STATUS_MASK for pdu in answers(target)] == [
        Status.CAPACITY_EXCEEDED,
        Status.UNRECOVERED_READ_ERROR,
        Status.ASYMMETRIC_ACCESS_INACCESSIBLE,
        Status.WRITE_FAULT,
    ]


def test_reads_beyond_the_limit_wait_and_are_served_in_the_end() -> None:
    target = Target()
    target.is_held = True
    for cid in range(8):
        target.feed(capsule(target, command(IoOpcode.READ, cid, blocks=2048)))
    assert len(target.asked) == 2, "2 MiB may be in flight"
    for number in range(8):
        target.queue.answer([target.serve(target.asked[number])])
        target.asked += target.queue.take_requests()
    assert len(answers(target)) == 8


def test_a_command_id_in_use_is_a_conflict() -> None:
    target = Target()
    target.is_held = True
    target.feed(capsule(target, command(IoOpcode.READ, 4)))
    assert fail_with(target, command(IoOpcode.READ, 4)) == Status.COMMAND_ID_CONFLICT


def break_rules(target: Target, raw: bytes) -> PduError:
    with pytest.raises(PduError) as caught:
        target.feed(raw)
    term = answers(target)[-1]
    assert term[0] == PduType.C2H_TERM_REQ
    assert target.queue.phase is Phase.CLOSED
    assert term[24:] == raw[: len(term) - 24]
    return caught.value


def test_data_that_nobody_asked_for_ends_the_connection() -> None:
    target = Target()
    error = break_rules(target, h2c(target, 1, 77, 0, b"x" * 512, PduFlag.LAST_PDU))
    assert (error.fes, error.fei) == (FatalErrorStatus.INVALID_PDU_HEADER_FIELD, Offset.TTAG)


@pytest.mark.parametrize(
    ("cid", "offset", "length", "flags", "fes", "fei"),
    [
        (4, 0, 512, 0, FatalErrorStatus.INVALID_PDU_HEADER_FIELD, Offset.CCCID),
        (3, 512, 512, 0, FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE, Offset.DATAO),
        (3, 0, 128 * KIB + 512, 4, FatalErrorStatus.DATA_TRANSFER_OUT_OF_RANGE, Offset.DATAO),
        (3, 0, 512, 4, FatalErrorStatus.INVALID_PDU_HEADER_FIELD, Offset.FLAGS),
        (3, 0, 128 * KIB, 0, FatalErrorStatus.INVALID_PDU_HEADER_FIELD, Offset.FLAGS),
    ],
)
def test_data_of_another_shape_than_asked_for_ends_the_connection(
    cid: int, offset: int, length: int, flags: int, fes: int, fei: int
) -> None:
    target = Target()
    target.feed(capsule(target, command(IoOpcode.WRITE, 3, blocks=256)))
    tag = DATA.unpack_from(answers(target)[0], 8)[1]
    error = break_rules(target, h2c(target, cid, tag, offset, bytes(length), flags))
    assert (error.fes, error.fei) == (fes, fei)
    assert not target.asked


def test_more_commands_than_entries_end_the_connection() -> None:
    target = Target()
    target.is_held = True
    for cid in range(32):
        target.feed(capsule(target, command(IoOpcode.READ, cid)))
    error = break_rules(target, capsule(target, command(IoOpcode.READ, 99)))
    assert error.fes is FatalErrorStatus.PDU_SEQUENCE_ERROR


@settings(max_examples=300, deadline=None)
@given(
    sqe=st.builds(
        Command,
        opcode=st.sampled_from([*IoOpcode, 0x55]),
        flags=st.sampled_from([0x40, 0x40, 0x40, 0, 0x80]),
        cid=st.integers(0, 3),
        nsid=st.sampled_from([1, 1, 1, 0, 2, 0xFFFFFFFF]),
        cdw23=st.integers(0, 1),
        mptr=st.just(0),
        sgl_address=st.sampled_from([0, 0, 1, 1 << 40]),
        sgl_length=st.sampled_from([0, 8, 16, 512, 1024, 4096, 0xFFFFFFFF]),
        sgl_type=st.sampled_from([0, 1, 0x5A, 0x5A]),
        cdw10=st.integers(0, 0xFFFFFFFF) | st.integers(0, 16),
        cdw11=st.integers(0, 0xFFFFFFFF) | st.integers(0, 7),
        cdw12=st.integers(0, 0xFFFFFFFF) | st.integers(0, 16),
        cdw13=st.just(0),
        cdw14=st.just(0),
        cdw15=st.just(0),
    ),
    data=st.sampled_from([b"", b"d" * 16, b"d" * 512, bytes(1024)]),
    digests=st.integers(0, 3),
    flow_control=st.booleans(),
)
def test_no_command_makes_the_queue_ask_for_what_a_volume_does_not_have(
    *, sqe: Command, data: bytes, digests: int, flow_control: bool
) -> None:
    target = Target(digests=digests, flow_control=flow_control)
    framing = target.queue.wire.framing
    raw = joined(framing.pdu(PduType.CAPSULE_CMD, 0, sqe.pack(), data))
    target.feed(raw)
    for request in target.asked:
        assert request.offset + request.length <= SIZE
        assert request.length % 512 == 0
    output = joined(target.queue.take_output())
    assert len(split(output)) <= 2 or target.asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IoCommands, "take_run", lambda _self, _view, position, _end: position)
        slow = Target(digests=digests, flow_control=flow_control)
        slow.feed(raw)
    assert joined(slow.queue.take_output()) == output, "in a run or alone, it is all the same"
    assert slow.asked == target.asked


@pytest.mark.parametrize("digests", [0, 3])
@pytest.mark.parametrize("cut", [1, 100, 8192])
def test_a_run_of_commands_is_taken_wherever_it_is_cut(digests: int, cut: int) -> None:
    target = Target(digests=digests)
    block, raw = bytes(range(256)) * 2, b""
    for cid in range(0, 30, 3):
        raw += capsule(target, command(IoOpcode.WRITE, cid, lba=cid), block)
        raw += capsule(target, command(IoOpcode.FLUSH, cid + 1))
        raw += capsule(target, command(IoOpcode.READ, cid + 2, lba=cid))
    for start in range(0, len(raw), cut):
        target.feed(raw[start : start + cut])
    kinds = [request.kind for request in target.asked]
    assert kinds == [RequestKind.WRITE, RequestKind.FLUSH, RequestKind.READ] * 10
    got = answers(target)
    assert [pdu[0] for pdu in got] == [
        PduType.CAPSULE_RESP,
        PduType.CAPSULE_RESP,
        PduType.C2H_DATA,
    ] * 10
    assert all(block in pdu for pdu in got[2::3])
    assert target.queue.wire.commands_taken == 31, "Connect is one, too"


def test_a_read_with_fua_is_flushed_first() -> None:
    target = Target()
    target.feed(capsule(target, command(IoOpcode.READ, 3, lba=8, blocks=8, flags=FUA)))
    target.feed(capsule(target, command(IoOpcode.COMPARE, 4, blocks=8, flags=FUA), bytes(4096)))
    kinds = [request.kind for request in target.asked]
    assert kinds == [RequestKind.FLUSH, RequestKind.READ, RequestKind.FLUSH, RequestKind.READ]
    read, compared = answers(target)
    assert (read[0], status_of(compared)) == (PduType.C2H_DATA, 0)


def test_a_read_with_fua_fails_with_its_flush() -> None:
    target = Target()
    target.is_held = True
    target.feed(capsule(target, command(IoOpcode.READ, 3, flags=FUA)))
    (flush,) = target.asked
    target.queue.answer([Reply(flush.id, 5)])
    assert not target.queue.take_requests()
    (answer,) = answers(target)
    assert status_of(answer) & STATUS_MASK == Status.UNRECOVERED_READ_ERROR


def test_a_command_that_waits_for_room_can_be_aborted() -> None:
    target = Target()
    target.is_held = True
    for cid in range(4):
        target.feed(capsule(target, command(IoOpcode.READ, cid, blocks=2048)))
    assert len(target.asked) == 2, "the others wait for room"
    io = target.queue.io
    assert io is not None
    assert (io.abort(3), io.abort(3), io.abort(0)) == (True, False, False)
    (answer,) = answers(target)
    assert status_of(answer) & STATUS_MASK == Status.COMMAND_ABORT_REQUESTED
    target.queue.answer([target.serve(request) for request in target.asked])
    assert [request.id & 0xFFFF for request in target.queue.take_requests()] == [2]


IC_REQUEST = ic_pdu(PduType.IC_REQ, alignment=4, digests=0, maximum=0)


@pytest.mark.parametrize("before", [b"", IC_REQUEST])
@pytest.mark.parametrize("kind", [PduType.H2C_DATA, PduType.R2T, PduType.CAPSULE_RESP])
def test_a_pdu_before_its_time_ends_the_connection(before: bytes, kind: PduType) -> None:
    queue = TargetQueue(LIMITS)
    raw = before + joined(Framing({}).pdu(kind, 0, bytes(16)))
    with pytest.raises(PduError) as caught:
        queue.parse(memoryview(raw), 0, len(raw))
    assert caught.value.fes is FatalErrorStatus.PDU_SEQUENCE_ERROR


def test_a_second_hello_ends_the_connection() -> None:
    error = break_rules(Target(), IC_REQUEST)
    assert error.fes is FatalErrorStatus.PDU_SEQUENCE_ERROR


def test_a_command_before_connect_has_come_too_early() -> None:
    queue = TargetQueue(LIMITS)
    write = command(IoOpcode.WRITE)._replace(sgl_type=SglType.DATA_BLOCK_OFFSET)
    raw = IC_REQUEST + joined(Framing({}).pdu(PduType.CAPSULE_CMD, 0, write.pack(), bytes(512)))
    assert queue.parse(memoryview(raw), 0, len(raw)) == len(raw)
    _, refused = split(joined(queue.take_output()))
    assert status_of(refused) == Status.COMMAND_SEQUENCE_ERROR | DO_NOT_RETRY
    assert (queue.io, queue.phase) == (None, Phase.CONNECT)


@pytest.mark.parametrize("qid", [0, 1])
def test_a_queue_cannot_be_connected_twice(qid: int) -> None:
    target = Target(qid=qid)
    connect = Connect(target.controller.facts.subsystem, "nqn.other", bytes(16), qid=1)
    target.feed(capsule(target, connect.command(9), connect.data()))
    (refused,) = answers(target)
    assert status_of(refused) & STATUS_MASK == Status.INVALID_COMMAND_OPCODE
    assert target.queue.question is None
