"""When an event loop waits awake, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from holdfast.node.polling import Polling

WINDOW_US = 200
SHORT_S, LONG_S = 50e-6, 1e-3


class Loop:
    """A loop whose turns take 10 us, and which counts them."""

    def __init__(self, window_us: int = WINDOW_US) -> None:
        self.now = 0.0
        self.turns = 0
        self.work_s = 0.0
        """How long it takes to deal with what has arrived."""
        self.taken_s = 0.0
        """How long somebody else has the core each time that it is given away."""
        self.due: list[Callable[[], None]] = []
        self.polling = Polling(
            window_us,
            clock=lambda: self.now,
            call_soon=self.due.append,
            give_way=self._give_way,
        )

    def _give_way(self) -> None:
        self.now += self.taken_s

    @property
    def is_awake(self) -> bool:
        return bool(self.due)

    def wait(self, for_s: float) -> int:
        """Let time pass; return how many turns were spent awake meanwhile."""
        before, until = self.turns, self.now + for_s
        while self.due and self.now < until:
            self.now += 10e-6
            self.turns += 1
            self.due.pop()()
        self.now = until
        return self.turns - before

    def arrive(self, *, awaiting: bool = False) -> None:
        arrived_at = self.now
        self.now += self.work_s
        self.polling.handled(arrived_at, awaiting=awaiting)

    def hear(self, times: int, every_s: float, *, awaiting: bool = False) -> None:
        for _ in range(times):
            self.wait(every_s)
            self.arrive(awaiting=awaiting)


def test_nobody_is_awake_who_has_heard_little() -> None:
    loop = Loop()
    loop.hear(3, SHORT_S)
    assert not loop.is_awake


def test_short_waits_are_spent_awake_once_they_are_the_rule() -> None:
    loop = Loop()
    loop.hear(20, SHORT_S)
    assert loop.is_awake
    assert loop.wait(SHORT_S) == pytest.approx(5, abs=1)


def test_a_wait_that_is_longer_than_the_window_is_spent_asleep_from_there_on() -> None:
    loop = Loop()
    loop.hear(20, SHORT_S)
    assert loop.wait(1.0) == pytest.approx(WINDOW_US / 10, abs=1)
    assert not loop.is_awake


def test_long_waits_end_it_and_a_lasting_change_begins_it_anew() -> None:
    loop = Loop()
    loop.hear(20, SHORT_S)
    loop.hear(4, LONG_S)
    assert not loop.is_awake
    loop.hear(20, SHORT_S)
    assert loop.is_awake


def test_rare_requests_with_quick_answers_are_waited_for_asleep_and_their_answers_awake() -> None:
    loop = Loop()
    for _ in range(20):
        loop.hear(1, LONG_S, awaiting=True)
        loop.hear(1, SHORT_S, awaiting=True)
        loop.hear(1, SHORT_S, awaiting=False)
    assert loop.wait(LONG_S) <= 1, "nobody expects the next request soon"
    loop.arrive(awaiting=True)
    assert loop.wait(SHORT_S) > 0, "the answer is expected soon"


def test_what_is_done_about_what_arrives_is_no_wait() -> None:
    loop = Loop()
    loop.work_s = 10 * WINDOW_US / 1e6
    loop.hear(20, SHORT_S)
    assert loop.is_awake


def test_a_window_of_nothing_always_sleeps() -> None:
    loop = Loop(0)
    loop.hear(50, SHORT_S)
    assert loop.wait(1.0) == 0


def test_turns_end_by_themselves_when_nothing_more_is_heard() -> None:
    loop = Loop()
    loop.hear(20, SHORT_S)
    loop.wait(1.0)
    assert loop.wait(1.0) == 0


def test_beside_somebody_who_computes_all_waits_are_spent_asleep() -> None:
    loop = Loop()
    loop.hear(20, SHORT_S)
    loop.taken_s = 0.003
    loop.hear(2, SHORT_S)
    assert not loop.is_awake
    began, turns = loop.now, loop.turns
    while loop.now < began + 60:
        loop.hear(100, SHORT_S)
    assert loop.turns - turns < 60, "it tries again ever more seldom"


def test_when_nobody_computes_any_longer_waits_are_spent_awake_again() -> None:
    loop = Loop()
    loop.hear(20, SHORT_S)
    loop.taken_s = 0.003
    loop.hear(50_000, SHORT_S)
    loop.taken_s = 0.0
    loop.hear(100_000, SHORT_S)
    assert loop.is_awake
