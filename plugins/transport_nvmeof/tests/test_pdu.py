"""Bytes of PDUs: recorded ones, our own both ways, and what nobody should send."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plugins.transport_nvmeof.tests.machines import LIMITS, joined, make_controller

from holdfast_transport_nvmeof.fabrics import Connect
from holdfast_transport_nvmeof.pdu import (
    COMMON,
    FatalErrorStatus,
    Framing,
    Offset,
    PduError,
    PduFlag,
    PduType,
    crc32c,
    ic_pdu,
    offending_header,
    term_pdu,
)
from holdfast_transport_nvmeof.queue import TargetQueue

GOLDEN = Path(__file__).parent / "golden" / "linux-admin.hex"
ANY: dict[int, int] = dict.fromkeys((4, 6, 7), 1 << 20)
"""Capsules and data, of up to 1 MiB."""


def test_the_digest_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"1234", memoryview(b"56789")) == 0xE3069283


def test_a_linux_host_gets_what_it_was_recorded_to_get() -> None:
    lines = GOLDEN.read_text().splitlines()
    sent = [bytes.fromhex(line[2:]) for line in lines if line.startswith("> ")]
    wanted = [bytes.fromhex(line[2:]) for line in lines if line.startswith("< ")]
    queue = TargetQueue(LIMITS)
    got: list[bytes] = []
    for data in sent:
        assert queue.parse(memoryview(data), 0, len(data)) == len(data)
        if queue.question is not None:
            assert isinstance(queue.question, Connect)
            assert queue.question.subsystem == "nqn.2026-11.io.holdfast:db"
            assert queue.question.kato_ms == 5000
            queue.accept(make_controller(cntlid=0x87E8, is_ready=False))
        got += split(joined(queue.take_output()))
    assert [pdu[: len(want)] for pdu, want in zip(got, wanted, strict=True)] == wanted


def split(data: bytes) -> list[bytes]:
    pdus = []
    while data:
        length = COMMON.unpack_from(data)[4]
        pdus.append(data[:length])
        data = data[length:]
    return pdus


@given(
    header_digest=st.booleans(),
    data_digest=st.booleans(),
    alignment=st.sampled_from([4, 8, 64, 128]),
    data=st.binary(max_size=300),
    cut=st.integers(0, 10_000),
)
def test_what_is_written_is_found(
    *, header_digest: bool, data_digest: bool, alignment: int, data: bytes, cut: int
) -> None:
    digests = {"header_digest": header_digest, "data_digest": data_digest}
    writer = Framing({}, alignment_out=alignment, **digests)
    raw = joined(writer.pdu(PduType.CAPSULE_CMD, 0, bytes(range(64)), data))
    reader = Framing(dict(ANY), alignment_in=alignment, **digests)
    part = min(cut, len(raw) - 1)
    assert reader.take(memoryview(raw), 0, part) is None
    assert reader.wanted in {8, len(raw)}
    pdu = reader.take(memoryview(raw + b"more"), 0, len(raw) + 4)
    assert pdu is not None
    assert (pdu.next, pdu.is_data_intact) == (len(raw), True)
    assert raw[pdu.data_start : pdu.data_end] == data


def test_damaged_data_fails_the_command_and_a_damaged_header_the_connection() -> None:
    framing = Framing(dict(ANY), header_digest=True, data_digest=True)
    raw = bytearray(joined(framing.pdu(PduType.CAPSULE_CMD, 0, bytes(64), b"data")))
    raw[-6] ^= 1
    pdu = framing.take(memoryview(raw), 0, len(raw))
    assert pdu is not None
    assert not pdu.is_data_intact
    raw[20] ^= 1
    with pytest.raises(PduError) as caught:
        framing.take(memoryview(raw), 0, len(raw))
    assert caught.value.fes is FatalErrorStatus.HEADER_DIGEST_ERROR
    assert caught.value.fei == int.from_bytes(raw[72:76], "little")


@pytest.mark.parametrize(
    ("change", "offset"),
    [
        ({0: 0x55}, Offset.TYPE),
        ({1: PduFlag.HDGSTF}, Offset.FLAGS),
        ({1: PduFlag.DDGSTF}, Offset.FLAGS),
        ({2: 71}, Offset.HLEN),
        ({3: 71}, Offset.PDO),
        ({3: 80}, Offset.PDO),
        ({4: 71}, Offset.PLEN),
        ({7: 0xFF}, Offset.PLEN),
    ],
)
def test_a_wrong_field_is_pointed_at(change: dict[int, int], offset: Offset) -> None:
    framing = Framing(dict(ANY))
    raw = bytearray(joined(framing.pdu(PduType.CAPSULE_CMD, 0, bytes(64), b"12345678")))
    for at, value in change.items():
        raw[at] = value
    with pytest.raises(PduError) as caught:
        framing.take(memoryview(raw), 0, len(raw))
    assert (caught.value.fes, caught.value.fei) == (
        FatalErrorStatus.INVALID_PDU_HEADER_FIELD,
        offset,
    )


def test_a_termination_request_carries_the_header_back() -> None:
    raw = ic_pdu(PduType.IC_REQ, alignment=4, digests=0, maximum=0)
    header = offending_header(memoryview(raw), 0, len(raw))
    assert header == raw
    term = term_pdu(PduType.C2H_TERM_REQ, FatalErrorStatus.UNSUPPORTED_PARAMETER, 8, header)
    assert len(term) == 24 + 128 == int.from_bytes(term[4:8], "little")
    assert term[:16].hex() == "03001800980000000600080000000000"
    assert term[24:] == raw


@given(st.binary(min_size=1, max_size=400))
def test_no_bytes_make_the_target_do_anything_but_say_why(data: bytes) -> None:
    queue = TargetQueue(LIMITS)
    fes = None
    try:
        position = queue.parse(memoryview(data), 0, len(data))
        assert position in {0, 128}
    except PduError as error:
        fes = error.fes
    if fes is not None:
        raw = joined(queue.take_output())
        assert raw[0] == PduType.C2H_TERM_REQ
        assert int.from_bytes(raw[8:10], "little") == fes
