"""Reservations of several hosts on one namespace."""

from __future__ import annotations

import struct

import pytest

from holdfast_transport_nvmeof.commands import Command, Completion, IoOpcode
from holdfast_transport_nvmeof.reservations import Reservations, ReservationType
from holdfast_transport_nvmeof.status import Status

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


def run(
    reservations: Reservations, opcode: int, host: bytes, *, cdw10: int, cdw11: int = 0,
    keys: tuple[int, int] = (0, 0),
) -> Completion:  # fmt: skip
    command = Command(opcode, 0x40, 1, 1, 0, 0, 0, 16, 0x5A, cdw10, cdw11)
    return reservations.execute(command, struct.pack("<QQ", *keys), host, host[0])


def register(reservations: Reservations, host: bytes, key: int) -> None:
    completion = run(reservations, IoOpcode.RESERVATION_REGISTER, host, cdw10=0, keys=(0, key))
    assert not completion.status


def acquire(reservations: Reservations, host: bytes, key: int, kind: int) -> int:
    keys = (key, 0)
    return run(reservations, IoOpcode.RESERVATION_ACQUIRE, host, cdw10=kind << 8, keys=keys).status


@pytest.mark.parametrize(
    ("kind", "registrant", "stranger"),
    [
        (ReservationType.WRITE_EXCLUSIVE, "r", "r"),
        (ReservationType.EXCLUSIVE_ACCESS, "", ""),
        (ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, "rw", "r"),
        (ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, "rw", ""),
        (ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, "rw", "r"),
        (ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, "rw", ""),
    ],
)
def test_each_type_allows_what_the_specification_says(
    kind: ReservationType, registrant: str, stranger: str
) -> None:
    reservations = Reservations()
    register(reservations, A, 10)
    register(reservations, B, 20)
    assert acquire(reservations, A, 10, kind) == 0
    for host, allowed in ((A, "rw"), (B, registrant), (C, stranger)):
        assert reservations.allows(host, writes=False) is ("r" in allowed)
        assert reservations.allows(host, writes=True) is ("w" in allowed)


def test_only_registered_hosts_with_their_key_acquire() -> None:
    reservations = Reservations()
    assert acquire(reservations, A, 10, 1) == Status.RESERVATION_CONFLICT
    register(reservations, A, 10)
    register(reservations, B, 20)
    assert acquire(reservations, A, 11, 1) == Status.RESERVATION_CONFLICT
    assert acquire(reservations, A, 10, 1) == 0
    assert acquire(reservations, A, 10, 1) == 0
    assert acquire(reservations, B, 20, 1) == Status.RESERVATION_CONFLICT
    assert acquire(reservations, B, 20, 9) == Status.INVALID_FIELD_IN_COMMAND


def test_preempting_fences_the_other_host() -> None:
    reservations = Reservations()
    register(reservations, A, 10)
    register(reservations, B, 20)
    acquire(reservations, A, 10, ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    preempt = 1 | ReservationType.WRITE_EXCLUSIVE << 8
    completion = run(reservations, IoOpcode.RESERVATION_ACQUIRE, B, cdw10=preempt, keys=(20, 10))
    assert not completion.status
    assert not reservations.allows(A, writes=True)
    assert reservations.allows(B, writes=True)
    assert set(reservations.registrants) == {B}


def test_release_unregister_and_clear_let_go() -> None:
    reservations = Reservations()
    register(reservations, A, 10)
    register(reservations, B, 20)
    acquire(reservations, A, 10, 1)
    release = IoOpcode.RESERVATION_RELEASE
    assert not run(reservations, release, B, cdw10=1 << 8, keys=(20, 0)).status
    assert not reservations.allows(B, writes=True), "only the holder releases"
    assert run(reservations, release, A, cdw10=2 << 8, keys=(10, 0)).status
    assert not run(reservations, release, A, cdw10=1 << 8, keys=(10, 0)).status
    assert reservations.allows(B, writes=True)
    acquire(reservations, A, 10, 1)
    assert not run(reservations, IoOpcode.RESERVATION_REGISTER, A, cdw10=1, keys=(10, 0)).status
    assert reservations.allows(C, writes=True)
    acquire(reservations, B, 20, 1)
    assert not run(reservations, release, B, cdw10=1, keys=(20, 0)).status
    assert not reservations.registrants


def test_the_report_lists_registrants() -> None:
    reservations = Reservations()
    register(reservations, A, 10)
    register(reservations, B, 20)
    acquire(reservations, B, 20, 3)
    report = run(reservations, IoOpcode.RESERVATION_REPORT, C, cdw10=255, cdw11=1).data
    assert len(report) == 1024
    assert struct.unpack_from("<IBH", report) == (2, 3, 2)
    assert struct.unpack_from("<HB5xQ16s", report, 64) == (1, 0, 10, A)
    assert struct.unpack_from("<HB5xQ16s", report, 128) == (2, 1, 20, B)
    short = run(reservations, IoOpcode.RESERVATION_REPORT, C, cdw10=255)
    assert short.status == Status.HOST_IDENTIFIER_INCONSISTENT_FORMAT
