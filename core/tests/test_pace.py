"""The rate of a sync follows what it costs those who write."""

from collections.abc import Callable

import pytest

from holdfast.sync.pace import FOREGROUND_S, PAUSE_EVERY_S, PAUSE_S, Pace, PaceLimits
from holdfast.units import MIB

PIECE = MIB // 4
Cost = Callable[[float], float]
"""Sync rate in bytes a second to the time a write takes, in seconds."""


def simulate(pace: Pace, seconds: float, cost: Cost, *, begin: float = 100.0) -> float:
    """Sync as fast as `pace` allows beside one writer; return the mean rate of the last half."""
    now, written_at, sent, late = begin, begin, 0, 0
    recent = 0.0
    while now < begin + seconds:
        now += 0.0005
        recent *= 0.95
        if pace.ready_at(now) <= now:
            pace.sent(now, PIECE)
            recent += PIECE
            sent += PIECE
            late += PIECE if now > begin + seconds / 2 else 0
        took = cost(recent / 0.01)
        if now - written_at >= took:
            pace.wrote(now, took)
            written_at = now
    return late / (seconds / 2)


def settled(cost_s: float, limits: PaceLimits | None = None) -> Pace:
    """Return a pace that has seen writes without a sync."""
    pace = Pace(limits or PaceLimits())
    for at in range(200):
        pace.wrote(99.0 + at * 0.005, cost_s)
    assert pace.usual_s == pytest.approx(cost_s)
    return pace


def test_a_sync_that_costs_nobody_anything_goes_as_fast_as_it_can() -> None:
    assert simulate(settled(0.001), 6.0, lambda _rate: 0.001) > 300 * MIB


def test_a_sync_gives_way_until_writes_are_tolerable() -> None:
    # Twice the usual time at 100 MiB/s, half as much again at 50.
    rate = simulate(settled(0.001), 10.0, lambda rate: 0.001 * (1 + rate / (100 * MIB)))
    assert 20 * MIB < rate < 75 * MIB


def test_there_is_a_floor() -> None:
    pace = settled(0.001, PaceLimits(floor=8.0 * MIB))
    rate = simulate(pace, 10.0, lambda rate: 0.1 if rate > 0 else 0.001)
    assert 7 * MIB < rate < 16 * MIB


def test_there_is_a_ceiling_also_where_nobody_writes() -> None:
    pace = Pace(PaceLimits(ceiling=20.0 * MIB))
    rate = simulate(pace, 6.0, lambda _rate: 1e9)
    assert 18 * MIB < rate < 22 * MIB


def test_a_low_ceiling_is_reached_by_who_asks_no_earlier_than_told() -> None:
    pace, now, sent = Pace(PaceLimits(ceiling=2.0 * MIB)), 100.0, 0
    while now < 160.0:
        if (ready_at := pace.ready_at(now)) > now:
            now = ready_at
            continue
        pace.sent(now, MIB)
        sent += MIB
    assert 118 * MIB < sent < 124 * MIB


def test_without_writes_nothing_is_waited_for() -> None:
    pace = settled(0.001)
    now = 100.0 + 2 * FOREGROUND_S
    for _ in range(1000):
        assert pace.ready_at(now) <= now
        pace.sent(now, MIB)


def test_what_is_usual_is_learnt_in_pauses_when_the_load_changes() -> None:
    pace = settled(0.001)
    # Twice as many writers: each takes twice as long, sync or no sync.
    rate = simulate(pace, 8 * (PAUSE_EVERY_S + PAUSE_S), lambda _rate: 0.002)
    assert pace.usual_s is not None
    assert pace.usual_s > 0.0018
    assert rate > 200 * MIB
